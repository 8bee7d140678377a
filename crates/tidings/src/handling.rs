//! Handling one message, whichever way it came: from the broker ([`Consumer`](crate::consumer)) or
//! from the store ([`Worker`](crate::worker)).
//!
//! It runs the handler with its layers behind the handler's [`Gate`], and writes down in the store
//! what becomes of a message that was not handled now: deferred, parked, or given up. Both sides
//! share the handler's limit of concurrency.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, RwLock, Semaphore},
    time::Instant,
};
use tracing::{Instrument, debug_span, error, warn};

use crate::{
    Attempt, BoxError, Claim, Commit, Committed, Context, Delivery, Fate, Handled, HandlerService,
    InboxEntry, Incoming, OrderKey, Outgoing, Over, REDRIVE_HEADER, Refusal, Retry, Router, States,
    Store, StoreError, Waiting,
    accept::Upcast,
    dead_letter,
    gate::{Gate, Pass, Source},
    handler::{Effects, claim_of, panicked},
    retry::{self, Failed, Pause, Verdict, is_unstorable, reason},
    router::{Accept, Route},
    steps,
    throttle::Throttle,
    trace,
};

/// How often the log says that a handler pauses.
const PAUSED_LOG_EVERY: Duration = Duration::from_secs(10);

/// How often parking is tried again when the key was just set free, and taken again.
const PARK_ATTEMPTS_MAX: u32 = 100;

/// One handler of a running service.
pub(crate) struct Handling {
    pub(crate) queue: Arc<str>,
    /// The ordered group it belongs to, if it asks for order.
    pub(crate) group: Option<Arc<str>>,
    /// Whether a dead letter blocks the later messages of its key.
    pub(crate) blocks: bool,
    /// The name of the messages it handles.
    pub(crate) name: &'static str,
    /// Whether the queue gets a topic's messages, some of which may be none of its business.
    pub(crate) is_subscribed: bool,
    /// Whether events that are sent again out of a log are passed over.
    pub(crate) skips_replayed: bool,
    pub(crate) accept: Accept,
    /// Older messages that it handles as well.
    pub(crate) upcasts: Arc<[Upcast]>,
    /// One attempt, with its layers.
    pub(crate) service: HandlerService,
    pub(crate) retry: Retry,
    pub(crate) states: Arc<States>,
    pub(crate) store: Option<Arc<dyn Store>>,
    /// How many messages are handled at the same time.
    pub(crate) concurrency: usize,
    /// Without a store there is no worker, and the consumer keeps to the concurrency by itself.
    pub(crate) permits: Option<Semaphore>,
    /// Held while something is handled, by all handlers of one `serve`. Who holds it wholly is alone
    /// (see the [worker](crate::worker)). `None` if none of them has a worker.
    pub(crate) company: Option<Arc<RwLock<()>>>,
    /// Who is trying, for the history of a message.
    pub(crate) instance: Arc<str>,
    pub(crate) counts: Counts,
    pub(crate) gate: Gate,
    /// Wakes the worker when something new waits in the store.
    pub(crate) deferred: Arc<Notify>,
    pub(crate) paused_log: Mutex<Throttle>,
}

/// What is counted for each queue.
pub(crate) struct Counts {
    pub(crate) handled: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) deferred: Counter,
    pub(crate) parked: Counter,
    pub(crate) retried: Counter,
    pub(crate) returned: Counter,
    pub(crate) dead_lettered: Counter,
    pub(crate) skipped: Counter,
    pub(crate) waiting: Gauge,
    duration: Histogram,
}

impl Counts {
    pub(crate) fn new(queue: &str) -> Self {
        let queue = queue.to_owned();
        let count = |end: &'static str| counter!("tidings_messages_total", "queue" => queue.clone(), "end" => end);
        Self {
            handled: count("handled"),
            duplicates: count("duplicate"),
            deferred: count("deferred"),
            parked: count("parked"),
            retried: count("retried"),
            returned: count("returned"),
            dead_lettered: count("dead-lettered"),
            skipped: count("skipped"),
            waiting: gauge!("tidings_deferred_messages", "queue" => queue.clone()),
            duration: histogram!("tidings_handler_duration_seconds", "queue" => queue),
        }
    }
}

/// How handling went.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is done, now or before.
    Settled,
    /// It has to wait behind an earlier message of its key.
    Behind,
    /// Nothing was tried: the gate is closed (now).
    Untried,
    /// It failed, and is to be tried again after this delay.
    Again(BoxError, Duration),
    /// It failed for good.
    Dead(BoxError),
}

/// What a handler of a running service is made from.
pub(crate) struct Handles<'a> {
    pub(crate) router: &'a Router,
    pub(crate) route: &'a Route,
    pub(crate) effects: &'a Arc<Effects>,
    pub(crate) states: &'a Arc<States>,
    pub(crate) company: Option<&'a Arc<RwLock<()>>>,
    pub(crate) instance: &'a str,
    pub(crate) deferred: &'a Arc<Notify>,
}

impl Handling {
    pub(crate) fn new(of: Handles<'_>) -> Self {
        let Handles { router, route, .. } = of;
        let group = router.group_of(route).map(|(name, _)| name);
        let concurrency = router.concurrency_of(route).get().into();
        Self {
            queue: Arc::clone(&route.queue),
            group: group.as_deref().map(Into::into),
            blocks: router.blocks_after_dead_letter(route),
            name: route.name,
            is_subscribed: route.topic.is_some(),
            skips_replayed: route.options.skip_replayed,
            accept: route.accept,
            upcasts: router.upcasts_of(route),
            service: router.service(route, of.effects),
            retry: router.retry_of(route),
            states: Arc::clone(of.states),
            store: router.store.clone(),
            concurrency,
            permits: router.store.as_ref().map(|_| Semaphore::new(concurrency)),
            company: of.company.cloned(),
            instance: of.instance.into(),
            counts: Counts::new(&route.queue),
            gate: Gate::new(router.store.is_some()),
            deferred: Arc::clone(of.deferred),
            paused_log: Mutex::new(Throttle::new(PAUSED_LOG_EVERY)),
        }
    }

    /// The message of a delivery. Its key is not known before it is decoded.
    pub(crate) fn incoming(&self, delivery: &Delivery) -> Incoming {
        let redrive = delivery.envelope.header(REDRIVE_HEADER);
        let redrive = redrive.and_then(|number| number.parse().ok());
        Incoming {
            envelope: Arc::clone(&delivery.envelope),
            queue: Arc::clone(&self.queue),
            failures: delivery.failures,
            over: redrive.map_or(Over::Nothing, |redrive| Over::Dead { redrive }),
            order: self.group.as_ref().map(|group| OrderKey {
                group: (**group).into(),
                key: delivery.envelope.key.clone().unwrap_or_default(),
            }),
            traceparent: OnceLock::new(),
        }
    }

    /// Whether messages of this name are its own, or of an older version.
    pub(crate) fn takes(&self, name: &str) -> bool {
        name == self.name || self.upcasts.iter().any(|upcast| upcast.name == name)
    }

    /// Decodes a message. This runs code of the user's message, so it may panic.
    pub(crate) fn accept(&self, incoming: Incoming) -> Result<Context, BoxError> {
        let accept = || (self.accept)(incoming, &self.upcasts, &self.states, self.store.as_ref());
        let accepted = catch_unwind(AssertUnwindSafe(accept));
        Ok(accepted.map_err(|panic| panicked("reading the message", &*panic))??)
    }

    /// Runs the handler beside others, if the gate lets it.
    pub(crate) async fn run(&self, context: Context, source: Source) -> Outcome {
        // Before the permit: who is alone must find one.
        let _company = match &self.company {
            Some(company) => Some(company.read().await),
            None => None,
        };
        self.run_alone(context, source).await
    }

    /// The same for one who sees to it that nothing else runs.
    pub(crate) async fn run_alone(&self, context: Context, source: Source) -> Outcome {
        // An error is impossible: nobody closes it.
        let _permit = match &self.permits {
            Some(permits) => permits.acquire().await.ok(),
            None => None,
        };
        let is_trial = match self.gate.pass(source) {
            Pass::Closed => return Outcome::Untried,
            Pass::Trial => true,
            Pass::Open => false,
        };
        let span = self.span(&context);
        let started = Instant::now();
        let outcome = AssertUnwindSafe(self.retry.run(&self.service, context).instrument(span))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(panicked("the handler", &*panic).into()));
        self.counts.duration.record(started.elapsed());
        let outcome = self.outcome(outcome);
        match &outcome {
            Ok(Handled::Duplicate | Handled::Behind) if is_trial => self.gate.untried(),
            Ok(_) | Err(Outcome::Again(..) | Outcome::Dead(_)) if is_trial => {
                self.gate.open();
                self.deferred.notify_one(); // What waits in the store may go on, too.
            }
            _ => {}
        }
        match outcome {
            Ok(Handled::Done) => {
                self.counts.handled.increment(1);
                Outcome::Settled
            }
            Ok(Handled::Duplicate) => {
                self.counts.duplicates.increment(1);
                Outcome::Settled
            }
            Ok(Handled::Behind) => Outcome::Behind,
            Err(outcome) => outcome,
        }
    }

    fn span(&self, context: &Context) -> tracing::Span {
        let incoming = context.incoming();
        debug_span!(
            "handle",
            queue = &*self.queue,
            id = %context.message_id(),
            traceparent = trace::of(context),
            parent = incoming.envelope.traceparent.as_deref(),
        )
    }

    /// What a failure means. Closes the gate if nothing was tried.
    fn outcome(&self, outcome: Result<Handled, BoxError>) -> Result<Handled, Outcome> {
        let error = match outcome {
            Ok(handled) => return Ok(handled),
            Err(error) => error,
        };
        // Every service ends in a retry policy; without its word (a panic in a layer) the message
        // is treated as one that cannot be handled.
        let verdict = error
            .downcast_ref::<Failed>()
            .map_or(Verdict::DeadLetter, Failed::verdict);
        Err(match verdict {
            Verdict::RetryAfter(delay) => Outcome::Again(error, delay),
            Verdict::DeadLetter => Outcome::Dead(error),
            Verdict::Pause(pause) => {
                self.pause(pause, &reason(&*error));
                Outcome::Untried
            }
        })
    }

    /// Closes the gate for `pause`, and says why, now and then.
    pub(crate) fn pause(&self, pause: Pause, why: &str) {
        self.gate.close(pause.lasts, pause.grows);
        if self.paused_log.lock().allows() {
            warn!(
                queue = &*self.queue,
                "the handler pauses, its messages wait where they are: {why}"
            );
        }
    }

    /// A failed attempt, for the history of a message.
    pub(crate) fn attempt(&self, error: &BoxError) -> Attempt {
        Attempt {
            at: Timestamp::now(),
            reason: reason(&**error),
            by: Some(self.instance.to_string()),
        }
    }

    /// True if a failure of `error` cannot be written down in the store.
    pub(crate) fn is_unstorable(error: &BoxError) -> bool {
        match error.downcast_ref::<Failed>() {
            Some(failed) => is_unstorable(failed.error()),
            None => is_unstorable(&**error),
        }
    }

    /// Writes into the store that a message is tried again in `due_in`.
    pub(crate) async fn defer(
        &self,
        store: &dyn Store,
        message: &Message<'_>,
        due_in: Duration,
    ) -> Result<(), StoreError> {
        let waiting = message.waiting(due_in);
        let written = self.write(store, message, Fate::Deferred(waiting), Vec::new());
        if written.await? {
            self.counts.deferred.increment(1);
        }
        self.deferred.notify_one();
        Ok(())
    }

    /// Writes into the store that a message cannot be handled, and sends its dead letter through
    /// the outbox.
    pub(crate) async fn give_up(
        &self,
        store: &dyn Store,
        message: &Message<'_>,
    ) -> Result<(), StoreError> {
        let reason = message.history.last().map_or("", |attempt| &attempt.reason);
        error!(
            queue = &*self.queue,
            id = %message.claim.message,
            failures = message.failures,
            "dead letter: {reason}"
        );
        let envelope = message.incoming.map(|incoming| &*incoming.envelope);
        // An ordered group has its dead letters beside its own name.
        let queue = self.group.as_ref().unwrap_or(&self.queue);
        let letter = envelope.map(|envelope| {
            let mut letter = dead_letter(envelope, queue, message.failures, &message.history);
            // What a foreign program sent without one is known by its identity, to operators too.
            let id = &mut letter.envelope.id;
            id.get_or_insert_with(|| message.claim.message.clone());
            letter
        });
        let told =
            envelope.and_then(|envelope| steps::dead(envelope, &message.claim.message, reason));
        let fate = Fate::Dead {
            failures: message.failures,
            history: message.history.clone(),
            blocks: self.blocks,
        };
        let written = self.write(
            store,
            message,
            fate,
            letter.into_iter().chain(told).collect(),
        );
        if written.await? {
            self.counts.dead_lettered.increment(1);
        }
        Ok(())
    }

    /// Commits one entry; parks the message if it turns out to be behind another one. False if
    /// there was nothing to write, because the message is known.
    async fn write(
        &self,
        store: &dyn Store,
        message: &Message<'_>,
        fate: Fate,
        outbox: Vec<Outgoing>,
    ) -> Result<bool, StoreError> {
        let commit = |fate, outbox| Commit {
            inbox: vec![InboxEntry {
                claim: message.claim.clone(),
                over: message.over.clone(),
                order: message.incoming.and_then(|incoming| incoming.order.clone()),
                fate,
            }],
            outbox,
            ..Commit::default()
        };
        for _ in 0..PARK_ATTEMPTS_MAX {
            match retry::commit(store, commit(fate.clone(), outbox.clone())).await? {
                Committed::Done => return Ok(true),
                Committed::Refused {
                    why: Refusal::Known,
                    ..
                } => return Ok(false),
                Committed::Refused { .. } => {}
            }
            let parked = Fate::Parked(message.waiting(Duration::ZERO));
            match retry::commit(store, commit(parked, Vec::new())).await? {
                Committed::Done => {
                    self.counts.parked.increment(1);
                    return Ok(false);
                }
                Committed::Refused {
                    why: Refusal::Known,
                    ..
                } => return Ok(false),
                Committed::Refused { .. } => {} // The key is free now: as at first.
            }
        }
        Err(StoreError::conflict(format!(
            "the key of message `{}` was set free and taken again {PARK_ATTEMPTS_MAX} times in a \
             row; it is tried again later",
            message.claim.message
        )))
    }
}

/// A message about which something is written into the store.
pub(crate) struct Message<'a> {
    pub(crate) claim: Claim,
    pub(crate) over: Over,
    /// `None` if what is stored of it cannot be read.
    pub(crate) incoming: Option<&'a Incoming>,
    pub(crate) failures: u32,
    pub(crate) history: Vec<Attempt>,
}

impl<'a> Message<'a> {
    /// The message of `context`, with what failed before.
    pub(crate) fn of(context: &'a Context, failures: u32, history: Vec<Attempt>) -> Self {
        let incoming = context.incoming();
        Self {
            claim: claim_of(context),
            over: incoming.over.clone(),
            incoming: Some(incoming),
            failures,
            history,
        }
    }

    /// The same after one more failed attempt.
    pub(crate) fn failed(mut self, attempt: Attempt) -> Self {
        self.failures = self.failures.saturating_add(1);
        attempt.add_to(&mut self.history);
        self
    }

    fn waiting(&self, due_in: Duration) -> Waiting {
        let envelope = self.incoming.map(|incoming| Arc::clone(&incoming.envelope));
        Waiting {
            envelope: envelope.unwrap_or_else(|| Arc::new(crate::Envelope::new("", ""))),
            due_in,
            failures: self.failures,
            history: self.history.clone(),
        }
    }
}
