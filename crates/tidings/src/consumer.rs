//! One queue's consumer: takes deliveries, runs their handlers side by side, settles them.
//!
//! The loop owns the order ([`Lanes`]) and does nothing that takes time; each piece of work is a
//! task that it joins. How many deliveries are out is bounded by the prefetch, how many handlers
//! run by the concurrency. A delivery is settled by the task that handled it, after its commit.

use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::{Instrument, debug, debug_span, error, info, warn};

use crate::{
    Attempt, BoxError, Claim, Context, Deliveries, Delivery, Failed, Handled, HandlerService,
    MessageId, Settlement, States, Store, TransportError, Verdict,
    handler::panicked,
    lanes::{End, Lanes, Next},
    retry::{is_silent_store, reason},
    router::{Accept, Accepted},
    throttle::Throttle,
};

/// How often lanes that are no longer needed are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// How long a place for a handler stays taken when the database does not answer, so that its
/// messages do not go round as fast as the broker can.
const SILENT_STORE_PAUSE: Duration = Duration::from_millis(500);

/// How often the log says that messages are postponed.
pub(crate) const POSTPONED_LOG_EVERY: Duration = Duration::from_secs(10);

/// How many foreign message names are remembered, to be named in the log once each.
const SKIPPED_NAMES_MAX: usize = 100;

/// What a consumer needs to know.
pub(crate) struct Consumer {
    pub(crate) queue: Arc<str>,
    /// The name of the messages it handles.
    pub(crate) name: &'static str,
    /// Whether the queue gets a topic's messages, some of which may be none of its business.
    pub(crate) is_subscribed: bool,
    /// Whether messages with the same key wait for each other.
    pub(crate) is_ordered: bool,
    pub(crate) accept: Accept,
    pub(crate) service: HandlerService,
    pub(crate) states: Arc<States>,
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) concurrency: usize,
    /// Who is trying, for the history of a message.
    pub(crate) instance: Arc<str>,
    pub(crate) counts: Counts,
    pub(crate) postponed: Mutex<Throttle>,
}

/// What is counted for each queue.
pub(crate) struct Counts {
    handled: Counter,
    duplicates: Counter,
    retried: Counter,
    deferred: Counter,
    dead_lettered: Counter,
    skipped: Counter,
    duration: Histogram,
}

impl Counts {
    pub(crate) fn new(queue: &str) -> Self {
        let queue = queue.to_owned();
        let count = |end: &'static str| counter!("tidings_messages_total", "queue" => queue.clone(), "end" => end);
        Self {
            handled: count("handled"),
            duplicates: count("duplicate"),
            retried: count("retried"),
            deferred: count("deferred"),
            dead_lettered: count("dead-lettered"),
            skipped: count("skipped"),
            duration: histogram!("tidings_handler_duration_seconds", "queue" => queue),
        }
    }
}

/// A delivery in hand.
struct Job {
    delivery: Delivery,
    context: Context,
    key: Option<Box<str>>,
}

/// Something to do in a task of its own.
enum Work {
    Handle(Box<Job>),
    Defer {
        job: Box<Job>,
        delay: Duration,
        behind: MessageId,
    },
    /// It can never be handled.
    Refuse(Box<Delivery>, BoxError),
    /// It is none of this consumer's business.
    Skip(Box<Delivery>),
}

impl From<Next<Box<Job>>> for Work {
    fn from(next: Next<Box<Job>>) -> Self {
        match next {
            Next::Handle(job) => Self::Handle(job),
            Next::Defer { job, delay, behind } => Self::Defer { job, delay, behind },
        }
    }
}

/// The end of a piece of work, for the lane of its key.
type Finished = Option<(Box<str>, MessageId, End<Box<Job>>)>;

impl Consumer {
    /// Runs until `stop`, then finishes what is in hand.
    ///
    /// # Errors
    ///
    /// When the subscription ended by itself.
    pub(crate) async fn run(
        self,
        deliveries: Deliveries,
        stop: CancellationToken,
    ) -> Result<(), TransportError> {
        let mut running = Running {
            consumer: Arc::new(self),
            lanes: Lanes::new(),
            ready: VecDeque::new(),
            tasks: JoinSet::new(),
            skipped_names: HashSet::new(),
        };
        let mut deliveries = Some(deliveries);
        let mut ended = Ok(());
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if deliveries.is_none() && running.is_idle() {
                return ended;
            }
            let receiving = deliveries.is_some();
            let next = async {
                match &mut deliveries {
                    Some(deliveries) => deliveries.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled(), if receiving => deliveries = None,
                Some(finished) = running.tasks.join_next() => running.finished(finished),
                delivery = next => match delivery {
                    Some(Ok(delivery)) => running.arrive(delivery),
                    Some(Err(error)) => (deliveries, ended) = (None, Err(error)),
                    None => (deliveries, ended) = (None, Err(TransportError::fatal(
                        "the transport ended the subscription without a reason",
                    ))),
                },
                _ = sweep.tick() => running.lanes.sweep(Instant::now()),
            }
            running.start();
        }
    }
}

/// The state of the loop.
struct Running {
    consumer: Arc<Consumer>,
    lanes: Lanes<Box<Job>>,
    ready: VecDeque<Work>,
    tasks: JoinSet<Finished>,
    skipped_names: HashSet<String>,
}

impl Running {
    fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.ready.is_empty() && self.lanes.waiting() == 0
    }

    fn arrive(&mut self, delivery: Delivery) {
        if self.is_foreign(&delivery) {
            return self.ready.push_back(Work::Skip(Box::new(delivery)));
        }
        let consumer = &self.consumer;
        let accepted = consumer.accept(&delivery);
        let Accepted { context, key } = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let refused = Work::Refuse(Box::new(delivery), error);
                return self.ready.push_back(refused);
            }
        };
        let job = |key| {
            Box::new(Job {
                delivery,
                context: context.clone(),
                key,
            })
        };
        let work = match key {
            None => Some(Work::Handle(job(None))),
            Some(key) => {
                let job = job(Some(key.clone()));
                let id = context.message_id();
                let next = self.lanes.arrive(&key, id, job, Instant::now());
                next.map(Work::from)
            }
        };
        self.ready.extend(work);
    }

    /// True if the message is another one than the handler's. A topic may carry several kinds;
    /// each consumer's queue takes what it handles and passes over the others, named in the log
    /// once each. (In a command's queue there is nobody else to handle it: it is tried, and ends
    /// in the dead letters if it is of another shape.)
    fn is_foreign(&mut self, delivery: &Delivery) -> bool {
        let (name, consumer) = (&delivery.envelope.name, &self.consumer);
        let foreign = consumer.is_subscribed && !name.is_empty() && *name != consumer.name;
        if foreign
            && self.skipped_names.len() < SKIPPED_NAMES_MAX
            && self.skipped_names.insert(name.to_string())
        {
            info!(
                queue = &*consumer.queue,
                "passing over messages named `{name}`: this queue's handler takes `{}`",
                consumer.name
            );
        }
        foreign
    }

    fn finished(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let (key, id, end) = match finished {
            Ok(Some(finished)) => finished,
            Ok(None) => return,
            // Panics are caught inside the task, so this is the runtime shutting down.
            Err(_) => return,
        };
        let next = self.lanes.finished(&key, &id, end, Instant::now());
        self.ready.extend(next.map(Work::from));
    }

    /// Starts what is ready, as far as the concurrency allows.
    fn start(&mut self) {
        while self.tasks.len() < self.consumer.concurrency
            && let Some(work) = self.ready.pop_front()
        {
            self.tasks.spawn(Arc::clone(&self.consumer).work(work));
        }
    }
}

impl Consumer {
    /// Decodes a delivery. This runs code of the user's message, so it may panic.
    fn accept(&self, delivery: &Delivery) -> Result<Accepted, BoxError> {
        let accept = || (self.accept)(delivery, &self.states, self.store.as_ref());
        let mut accepted =
            catch_unwind(AssertUnwindSafe(accept)).map_err(|panic| panicked(&*panic))??;
        accepted.key = accepted.key.filter(|_| self.is_ordered);
        Ok(accepted)
    }

    async fn work(self: Arc<Self>, work: Work) -> Finished {
        match work {
            Work::Handle(job) => {
                let span =
                    debug_span!("handle", queue = &*self.queue, id = %job.context.message_id());
                self.handle(job).instrument(span).await
            }
            Work::Defer { job, delay, behind } => Box::pin(self.defer(job, delay, behind)).await,
            Work::Refuse(delivery, error) => {
                Box::pin(self.dead_letter(*delivery, &error)).await;
                None
            }
            Work::Skip(delivery) => {
                self.counts.skipped.increment(1);
                self.settle(*delivery, Settlement::Ack).await;
                None
            }
        }
    }

    async fn handle(&self, job: Box<Job>) -> Finished {
        let Job {
            delivery,
            context,
            key,
        } = *job;
        let id = key.is_some().then(|| context.message_id().clone());
        let started = Instant::now();
        let outcome = AssertUnwindSafe(self.service.clone().call(context))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(panicked(&*panic).into()));
        self.counts.duration.record(started.elapsed());
        let end = match outcome {
            Ok(handled) => {
                match handled {
                    Handled::Done => self.counts.handled.increment(1),
                    Handled::Duplicate => self.counts.duplicates.increment(1),
                }
                self.settle(delivery, Settlement::Ack).await;
                End::Settled
            }
            // Boxed, so that a task has only the size that its usual way needs.
            Err(error) => Box::pin(self.failed(delivery, error)).await,
        };
        Some((key?, id?, end))
    }

    async fn failed(&self, delivery: Delivery, error: BoxError) -> End<Box<Job>> {
        // Every service ends in a retry policy; without its word (a panic in a layer) the message
        // is treated as one that cannot be handled.
        let verdict = error
            .downcast_ref::<Failed>()
            .map_or(Verdict::DeadLetter, Failed::verdict);
        match verdict {
            Verdict::DeadLetter => {
                self.dead_letter(delivery, &error).await;
                End::Settled
            }
            Verdict::Postpone(delay) => {
                if self.postponed.lock().allows() {
                    let reason = reason(&*error);
                    warn!(
                        queue = &*self.queue,
                        "messages are postponed, nothing is lost: {reason}"
                    );
                }
                if is_silent_store(&*error) {
                    tokio::time::sleep(SILENT_STORE_PAUSE).await;
                }
                self.counts.deferred.increment(1);
                self.settle(delivery, Settlement::Defer { delay }).await;
                End::Retried(delay)
            }
            Verdict::RetryAfter(delay) => {
                let attempt = self.attempt(&error);
                info!(
                    queue = &*self.queue,
                    id = delivery.envelope.id.as_ref().map(tracing::field::display),
                    failures = delivery.failures + 1,
                    "trying again in {delay:?}: {}",
                    attempt.reason
                );
                self.counts.retried.increment(1);
                self.settle(delivery, Settlement::Retry { delay, attempt })
                    .await;
                End::Retried(delay)
            }
        }
    }

    async fn defer(&self, job: Box<Job>, delay: Duration, behind: MessageId) -> Finished {
        let key = job.key.clone()?;
        let id = job.context.message_id().clone();
        if self.was_handled(&behind).await {
            return Some((key, id, End::Overtaken { job, behind }));
        }
        debug!(queue = &*self.queue, %id, %behind, "waiting behind an earlier message of its key");
        self.counts.deferred.increment(1);
        self.settle(job.delivery, Settlement::Defer { delay }).await;
        Some((key, id, End::Deferred))
    }

    /// True if the inbox knows that this consumer, in whichever instance, has handled `message`.
    async fn was_handled(&self, message: &MessageId) -> bool {
        let Some(store) = &self.store else {
            return false;
        };
        let claim = Claim {
            consumer: (*self.queue).into(),
            message: message.clone(),
        };
        store.is_claimed(&claim).await.unwrap_or(false)
    }

    async fn dead_letter(&self, delivery: Delivery, error: &BoxError) {
        let attempt = self.attempt(error);
        error!(
            queue = &*self.queue,
            id = delivery.envelope.id.as_ref().map(tracing::field::display),
            failures = delivery.failures + 1,
            "dead letter: {}",
            attempt.reason
        );
        self.counts.dead_lettered.increment(1);
        self.settle(delivery, Settlement::DeadLetter { attempt })
            .await;
    }

    fn attempt(&self, error: &BoxError) -> Attempt {
        Attempt {
            at: Timestamp::now(),
            reason: reason(&**error),
            by: Some(self.instance.to_string()),
        }
    }

    /// A delivery that cannot be settled comes again; there is nothing else to do.
    async fn settle(&self, delivery: Delivery, settlement: Settlement) {
        if let Err(error) = delivery.settle(settlement).await {
            match error.is_temporary() {
                true => debug!(
                    queue = &*self.queue,
                    "not settled, it will come again: {error}"
                ),
                false => warn!(
                    queue = &*self.queue,
                    "not settled, it will come again: {error}"
                ),
            }
        }
    }
}
