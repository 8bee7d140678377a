//! One queue's consumer: takes deliveries, has them handled side by side, settles them.
//!
//! Each delivery is a task that the loop joins, unless it is done at once: without a store, the loop
//! makes the first step of a delivery itself, and only one that has to wait for something becomes a
//! task. A handler that computes for long runs beside others all the same: after a few first steps in a
//! row that took longer than [`STEP_MAX`], deliveries are tasks from their start, for a while. How many
//! deliveries are out is bounded by the prefetch, how many handlers run by the concurrency. A delivery
//! is settled by whoever handled it, after its commit.
//!
//! No delivery is held for long. What must wait goes into the store and is acknowledged; while
//! nothing can be handled, or nothing be written down ([`Gate`](crate::gate)), the consumer gives
//! back what it has and stops receiving, and the backlog stays in the broker.
//!
//! A delivery that the broker has handed out before may be the one that ended the process the last
//! time. With a store it is written down and acknowledged before it is tried, and the worker counts
//! its unfinished starts.

use std::{
    collections::{HashSet, VecDeque},
    num::NonZeroU16,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};
use tracing::{debug, error, info, warn};

use crate::{
    BoxError, Context, Deliveries, Delivery, Permanent, REDRIVE_HEADER, Settlement, Store,
    StoreError, Subscription, Transport, TransportError, dead_letters,
    gate::Source,
    handling::{Handling, Message, Outcome},
    retry::SILENT_STORE,
};

/// How many foreign message names are remembered, to be named in the log once each.
const SKIPPED_NAMES_MAX: usize = 100;

/// How long the first deliveries wait for the word whether the handler is paused, before they are
/// given back.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(5);

/// How many deliveries that are there already are taken before the loop looks at anything else.
const ROUND_MAX: usize = 32;

/// How long the first step of a delivery may take in the loop.
const STEP_MAX: Duration = Duration::from_micros(100);

/// After so many in a row that took longer...
const LONG_STEPS_MAX: u32 = 3;

/// ...so many deliveries are tasks from their start.
const TASKS_AFTER_LONG_STEPS: u32 = 1000;

/// What a consumer needs to know.
pub(crate) struct Consumer {
    pub(crate) handling: Arc<Handling>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) prefetch: NonZeroU16,
}

/// Why a subscription is left.
enum Left {
    /// The service stops.
    Stopped,
    /// The gate closed, or opened while only trials were received.
    GateChanged,
    /// The transport ended it.
    Ended(TransportError),
}

impl Consumer {
    /// Runs until `stop`, then finishes what has begun and gives back the rest.
    ///
    /// # Errors
    ///
    /// When the subscription ended by itself.
    pub(crate) async fn run(
        self,
        deliveries: Deliveries,
        stop: CancellationToken,
    ) -> Result<(), TransportError> {
        let gate = &self.handling.gate;
        let mut running = Running::new(Arc::clone(&self.handling));
        // Whether an operator paused the handler is known at once, unless the database is away.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = timeout(FIRST_LOOK_MAX, gate.opened(Source::Broker)) => {}
        }
        let mut next = Some(deliveries);
        let ended = loop {
            let is_trial = next.is_none() && !gate.is_open(Source::Broker);
            let deliveries = match next.take() {
                Some(deliveries) => deliveries,
                None => match self.subscribe(is_trial, &stop).await {
                    Ok(Some(deliveries)) => deliveries,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                },
            };
            match running.receive(deliveries, is_trial, &stop).await {
                Left::Stopped => break Ok(()),
                Left::Ended(error) => break Err(error),
                Left::GateChanged => {}
            }
            running.finish_trials(is_trial).await;
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                () = gate.passable(Source::Broker) => {}
            }
        };
        while running.tasks.join_next().await.is_some() {}
        ended
    }

    /// Receives again: one message at a time until the gate is open. `None` if it is told to stop.
    async fn subscribe(
        &self,
        is_trial: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Deliveries>, TransportError> {
        let one = const { NonZeroU16::new(1).unwrap() };
        let queue = self.handling.queue.to_string();
        let prefetch = if is_trial { one } else { self.prefetch };
        let subscription = Subscription::new(queue).prefetch(prefetch);
        tokio::select! {
            subscribed = self.transport.subscribe(subscription) => subscribed.map(Some),
            () = stop.cancelled() => Ok(None),
        }
    }
}

/// The state of the loop.
struct Running {
    handling: Arc<Handling>,
    ready: VecDeque<Delivery>,
    tasks: JoinSet<()>,
    /// The memory of a delivery that was done at once, for the next one.
    done: Option<ReusableBoxFuture<'static, ()>>,
    /// When the step began that the loop makes itself.
    step_began: Instant,
    /// How many in a row took too long.
    long_steps: u32,
    /// How many deliveries are yet to be tasks from their start.
    tasks_to_come: u32,
    skipped_names: HashSet<String>,
}

impl Running {
    fn new(handling: Arc<Handling>) -> Self {
        Self {
            handling,
            ready: VecDeque::new(),
            tasks: JoinSet::new(),
            done: None,
            step_began: Instant::now(),
            long_steps: 0,
            tasks_to_come: 0,
            skipped_names: HashSet::new(),
        }
    }

    /// Receives until there is a reason not to, and gives back what has not begun.
    async fn receive(
        &mut self,
        mut deliveries: Deliveries,
        is_trial: bool,
        stop: &CancellationToken,
    ) -> Left {
        let handling = Arc::clone(&self.handling);
        let gate = &handling.gate;
        let left = loop {
            let changed = async {
                match is_trial {
                    true => gate.opened(Source::Broker).await,
                    false => gate.shut(Source::Broker).await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break Left::Stopped,
                () = changed => break Left::GateChanged,
                Some(_) = self.tasks.join_next() => {
                    if is_trial {
                        break Left::GateChanged;
                    }
                }
                delivery = deliveries.next() => {
                    if let Err(error) = self.take(delivery, is_trial) {
                        break Left::Ended(error);
                    }
                }
            }
            self.step_began = Instant::now();
            self.start(is_trial);
            if let Err(error) = self.go_on(&mut deliveries, is_trial) {
                break Left::Ended(error);
            }
        };
        drop(deliveries);
        for delivery in self.ready.drain(..) {
            self.handling.counts.returned.increment(1);
            drop(delivery); // It goes back to the queue.
        }
        left
    }

    /// After a trial its task decides what comes next.
    async fn finish_trials(&mut self, is_trial: bool) {
        while is_trial && self.tasks.join_next().await.is_some() {}
    }

    /// Takes what is there already, for as long as nothing else may be more urgent.
    fn go_on(&mut self, deliveries: &mut Deliveries, is_trial: bool) -> Result<(), TransportError> {
        if is_trial {
            return Ok(());
        }
        for _ in 0..ROUND_MAX {
            if !self.handling.gate.is_open(Source::Broker) {
                break;
            }
            let Some(delivery) = deliveries.next().now_or_never() else {
                break;
            };
            self.take(delivery, is_trial)?;
            self.start(is_trial);
        }
        Ok(())
    }

    fn take(
        &mut self,
        delivery: Option<Result<Delivery, TransportError>>,
        is_trial: bool,
    ) -> Result<(), TransportError> {
        let delivery = delivery.unwrap_or_else(|| {
            Err(TransportError::fatal(
                "the transport ended the subscription without a reason",
            ))
        })?;
        let is_old = self.handling.skips_replayed && delivery.envelope.is_replayed();
        if is_old || self.is_foreign(&delivery) {
            let handling = Arc::clone(&self.handling);
            let passed = async move {
                match is_old {
                    true => skip(&handling, delivery).await,
                    false => pass_over(&handling, delivery).await,
                }
            };
            self.run(is_trial, passed);
        } else {
            self.ready.push_back(delivery);
        }
        Ok(())
    }

    /// True if the message is another one than the handler's. A topic may carry several kinds;
    /// each consumer's queue takes what it handles and passes over the others, named in the log
    /// once each. (In a command's queue there is nobody else to handle it: it is tried, and ends
    /// in the dead letters if it is of another shape.)
    fn is_foreign(&mut self, delivery: &Delivery) -> bool {
        let (name, handling) = (&delivery.envelope.name, &self.handling);
        let foreign = handling.is_subscribed && !name.is_empty() && !handling.takes(name);
        if foreign
            && self.skipped_names.len() < SKIPPED_NAMES_MAX
            && self.skipped_names.insert(name.to_string())
        {
            info!(
                queue = &*handling.queue,
                "passing over messages named `{name}`: this queue's handler takes `{}`",
                handling.name
            );
        }
        foreign
    }

    /// Starts what is ready, as far as the concurrency allows.
    fn start(&mut self, is_trial: bool) {
        while self.tasks.len() < self.handling.concurrency
            && let Some(delivery) = self.ready.pop_front()
        {
            let handling = Arc::clone(&self.handling);
            if handling.store.is_some() {
                self.tasks.spawn(async move {
                    if let Some(untried) = handle(&handling, delivery).await {
                        give_back(&handling, untried).await;
                    }
                });
                continue;
            }
            self.run(is_trial, async move {
                if let Some(untried) = handle_without_store(&handling, delivery).await {
                    give_back(&handling, untried).await;
                }
            });
        }
    }

    /// Runs to its end what is there at once; the rest becomes a task. A trial always does, because
    /// its end is waited for.
    fn run(&mut self, is_trial: bool, handled: impl Future<Output = ()> + Send + 'static) {
        let is_task = self.tasks_to_come > 0;
        self.tasks_to_come = self.tasks_to_come.saturating_sub(1);
        if is_trial || is_task {
            self.tasks.spawn(handled);
            return;
        }
        let mut handled = match self.done.take() {
            Some(mut done) => {
                done.set(handled);
                done
            }
            None => ReusableBoxFuture::new(handled),
        };
        // What this wakes is nobody: a task begins by asking again. A panic ends no more than it would
        // in a task.
        let step = catch_unwind(AssertUnwindSafe(|| (&mut handled).now_or_never()));
        let now = Instant::now();
        match now - self.step_began > STEP_MAX {
            true => self.long_steps += 1,
            false => self.long_steps = 0,
        }
        self.step_began = now;
        if self.long_steps == LONG_STEPS_MAX {
            (self.long_steps, self.tasks_to_come) = (0, TASKS_AFTER_LONG_STEPS);
        }
        match step {
            Ok(Some(())) => self.done = Some(handled),
            Ok(None) => drop(self.tasks.spawn(handled)),
            Err(_) => {}
        }
    }
}

/// From a delivery to its settlement. Returns it if nothing was tried and it is to be given back.
async fn handle(handling: &Handling, delivery: Delivery) -> Option<Delivery> {
    if delivery.is_stale() {
        return None; // Somebody else gets it.
    }
    match handling.accept(handling.incoming(&delivery)) {
        Ok(context) => handle_accepted(handling, delivery, context).await,
        Err(error) => {
            Box::pin(dead_letter(handling, delivery, &error)).await;
            None
        }
    }
}

/// The same for a message of a consumer with a store that is decoded already.
pub(crate) async fn handle_accepted(
    handling: &Handling,
    delivery: Delivery,
    context: Context,
) -> Option<Delivery> {
    // Who has no store does not come here: nothing of it can be tried.
    let store = handling.store.as_deref()?;
    if delivery.redelivered {
        return Box::pin(write_down(handling, store, delivery, &context, Next::Now)).await;
    }
    // Boxed, so that a task has only the size that its usual way needs.
    match handling.run(context.clone(), Source::Broker).await {
        Outcome::Settled => {
            settle(handling, delivery, Settlement::Ack).await;
            None
        }
        Outcome::Untried => Some(delivery),
        Outcome::Behind => {
            Box::pin(write_down(handling, store, delivery, &context, Next::Now)).await
        }
        Outcome::Again(error, delay) => {
            let next = Next::After(&error, delay);
            Box::pin(write_down(handling, store, delivery, &context, next)).await
        }
        Outcome::Dead(error) if Handling::is_unstorable(&error) => {
            Box::pin(dead_letter(handling, delivery, &error)).await;
            None
        }
        Outcome::Dead(error) => {
            let next = Next::Never(&error);
            Box::pin(write_down(handling, store, delivery, &context, next)).await
        }
    }
}

/// As [`handle`], for a consumer without a store. What is rare is boxed, so that this is small: it is
/// all that there is of a message for which nothing has to be waited for.
async fn handle_without_store(handling: &Handling, delivery: Delivery) -> Option<Delivery> {
    if delivery.is_stale() {
        return None; // Somebody else gets it.
    }
    let outcome = match handling.accept(handling.incoming(&delivery)) {
        Ok(context) => handling.run(context, Source::Broker).await,
        Err(error) => Outcome::Dead(error),
    };
    match outcome {
        Outcome::Settled => settle(handling, delivery, Settlement::Ack).await,
        // Only a store knows keys.
        Outcome::Untried | Outcome::Behind => return Some(delivery),
        Outcome::Dead(error) => Box::pin(dead_letter(handling, delivery, &error)).await,
        Outcome::Again(error, delay) => {
            let attempt = handling.attempt(&error);
            log_retry(handling, &delivery, delay, &attempt.reason);
            handling.counts.retried.increment(1);
            settle(handling, delivery, Settlement::Retry { delay, attempt }).await;
        }
    }
    None
}

/// When a message that is not done is tried again.
enum Next<'a> {
    /// It was not tried.
    Now,
    After(&'a BoxError, Duration),
    Never(&'a BoxError),
}

/// Writes down in the store what becomes of a message, then acknowledges it. Returns it if that
/// could not be done now.
async fn write_down(
    handling: &Handling,
    store: &dyn Store,
    delivery: Delivery,
    context: &Context,
    next: Next<'_>,
) -> Option<Delivery> {
    let message = Message::of(context, delivery.failures, delivery.history.clone());
    let written = match next {
        Next::Now => handling.defer(store, &message, Duration::ZERO).await,
        Next::After(error, delay) => {
            let attempt = handling.attempt(error);
            log_retry(handling, &delivery, delay, &attempt.reason);
            handling.counts.retried.increment(1);
            handling.defer(store, &message.failed(attempt), delay).await
        }
        Next::Never(error) => {
            let message = message.failed(handling.attempt(error));
            handling.give_up(store, &message).await
        }
    };
    match written {
        Ok(()) => settle(handling, delivery, Settlement::Ack).await,
        Err(error) if error.is_invalid() => {
            let error = error.into();
            dead_letter(handling, delivery, &error).await;
        }
        Err(error) => {
            pause(handling, &error);
            return Some(delivery);
        }
    }
    None
}

/// A store that does not take even this does not take anything.
fn pause(handling: &Handling, error: &StoreError) {
    handling.pause(SILENT_STORE, &error.to_string());
}

fn log_retry(handling: &Handling, delivery: &Delivery, delay: Duration, reason: &str) {
    info!(
        queue = &*handling.queue,
        id = delivery.envelope.id.as_ref().map(tracing::field::display),
        failures = delivery.failures + 1,
        "trying again in {delay:?}: {reason}"
    );
}

/// To the dead letters by the broker: of a message that cannot be read, or that the store cannot
/// hold, or of a consumer without a store.
pub(crate) async fn dead_letter(handling: &Handling, delivery: Delivery, error: &BoxError) {
    let attempt = handling.attempt(error);
    error!(
        queue = &*handling.queue,
        id = delivery.envelope.id.as_ref().map(tracing::field::display),
        failures = delivery.failures + 1,
        "dead letter: {}",
        attempt.reason
    );
    handling.counts.dead_lettered.increment(1);
    settle(handling, delivery, Settlement::DeadLetter { attempt }).await;
}

/// Acknowledges a message that is none of this handler's business.
pub(crate) async fn skip(handling: &Handling, delivery: Delivery) {
    handling.counts.skipped.increment(1);
    settle(handling, delivery, Settlement::Ack).await;
}

/// Passes over a message that no handler here takes: acknowledges it, since a topic may carry several kinds.
/// One that an operator has redriven came from no topic: it is a dead letter again, so that it is not lost.
pub(crate) async fn pass_over(handling: &Handling, delivery: Delivery) {
    let envelope = &delivery.envelope;
    if envelope.header(REDRIVE_HEADER).is_none() {
        return skip(handling, delivery).await;
    }
    let place = handling.group.as_ref().unwrap_or(&handling.queue);
    let error = dead_letters::Error::name_not_taken(&envelope.name, place);
    let error = Permanent::new(error.to_string()).into();
    Box::pin(dead_letter(handling, delivery, &error)).await;
}

async fn give_back(handling: &Handling, delivery: Delivery) {
    handling.counts.returned.increment(1);
    settle(handling, delivery, Settlement::Requeue).await;
}

/// A delivery that cannot be settled comes again; there is nothing else to do.
pub(crate) async fn settle(handling: &Handling, delivery: Delivery, settlement: Settlement) {
    if let Err(error) = delivery.settle(settlement).await {
        let queue = &*handling.queue;
        match error.is_temporary() {
            true => debug!(queue, "not settled, it will come again: {error}"),
            false => warn!(queue, "not settled, it will come again: {error}"),
        }
    }
}
