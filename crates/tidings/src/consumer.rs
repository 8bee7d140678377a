//! One queue's consumer: takes deliveries, has them handled side by side, settles them.
//!
//! The loop does nothing that takes time; each delivery is a task that it joins. How many deliveries
//! are out is bounded by the prefetch, how many handlers run by the concurrency. A delivery is
//! settled by the task that handled it, after its commit.
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
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    BoxError, Context, Deliveries, Delivery, Settlement, Store, StoreError, Subscription,
    Transport, TransportError,
    gate::Source,
    handling::{Handling, Message, Outcome},
    retry::SILENT_STORE,
};

/// How many foreign message names are remembered, to be named in the log once each.
const SKIPPED_NAMES_MAX: usize = 100;

/// How long the first deliveries wait for the word whether the handler is paused, before they are
/// given back.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(5);

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
    ready: VecDeque<Box<Delivery>>,
    tasks: JoinSet<()>,
    skipped_names: HashSet<String>,
}

impl Running {
    fn new(handling: Arc<Handling>) -> Self {
        Self {
            handling,
            ready: VecDeque::new(),
            tasks: JoinSet::new(),
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
                delivery = deliveries.next() => match delivery {
                    Some(Ok(delivery)) => self.arrive(delivery),
                    Some(Err(error)) => break Left::Ended(error),
                    None => break Left::Ended(TransportError::fatal(
                        "the transport ended the subscription without a reason",
                    )),
                },
            }
            self.start();
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

    fn arrive(&mut self, delivery: Delivery) {
        if self.is_foreign(&delivery) {
            let handling = Arc::clone(&self.handling);
            self.tasks
                .spawn(async move { skip(&handling, delivery).await });
        } else {
            self.ready.push_back(Box::new(delivery));
        }
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
    fn start(&mut self) {
        while self.tasks.len() < self.handling.concurrency
            && let Some(delivery) = self.ready.pop_front()
        {
            let handling = Arc::clone(&self.handling);
            self.tasks.spawn(async move {
                if let Some(untried) = handle(&handling, *delivery).await {
                    give_back(&handling, untried).await;
                }
            });
        }
    }
}

/// From a delivery to its settlement. Returns it if nothing was tried and it is to be given back.
pub(crate) async fn handle(handling: &Handling, delivery: Delivery) -> Option<Delivery> {
    if delivery.is_stale() {
        return None; // Somebody else gets it.
    }
    let context = match handling.accept(handling.incoming(&delivery)) {
        Ok(context) => context,
        Err(error) => {
            Box::pin(dead_letter(handling, delivery, &error)).await;
            return None;
        }
    };
    handle_accepted(handling, delivery, context).await
}

/// The same for a message that is decoded already.
pub(crate) async fn handle_accepted(
    handling: &Handling,
    delivery: Delivery,
    context: Context,
) -> Option<Delivery> {
    let store = handling.store.clone();
    let Some(store) = store.as_deref() else {
        return handle_without_store(handling, delivery, context).await;
    };
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

async fn handle_without_store(
    handling: &Handling,
    delivery: Delivery,
    context: Context,
) -> Option<Delivery> {
    match handling.run(context, Source::Broker).await {
        Outcome::Settled => settle(handling, delivery, Settlement::Ack).await,
        // Only a store knows keys.
        Outcome::Untried | Outcome::Behind => return Some(delivery),
        Outcome::Dead(error) => dead_letter(handling, delivery, &error).await,
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
