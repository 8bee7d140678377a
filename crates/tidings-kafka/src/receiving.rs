//! Subscriptions and settlements.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_core::Stream;
use jiff::Timestamp;
use parking_lot::Mutex;
use tidings_adapter::Backoff;
use tidings_core::{
    Attempt, BoxFuture, Deliveries, Delivery, Destination, Outgoing, PublishErrorKind, Settlement,
    Settler, Subscription, TransportError, dead_letter, dead_letter_queue,
};
use tracing::{debug, warn};

use crate::{
    Shared,
    intake::{End, Held, Intake, Next},
    message::history_as_json,
    polling::{self, Member, Shape},
    schemas::Unread,
    topology,
};

/// How long a subscription to a partition of a group waits to be in its turn.
const JOIN_MAX: Duration = Duration::from_secs(10);

/// Subscribes.
pub(crate) async fn subscribe(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<Deliveries, TransportError> {
    shared.status.reached().await?;
    let queue: Arc<str> = Arc::from(&*subscription.queue);
    let mut backoff = Backoff::default();
    loop {
        match shared.has_topic(&queue).await {
            Ok(true) => break,
            Ok(false) => {
                return Err(TransportError::fatal(format!(
                    "there is no queue `{queue}`: declare it first"
                )));
            }
            Err(error) if error.is_temporary() => backoff.pause().await,
            Err(error) => return Err(error),
        }
    }
    let group = topology::partition_of_group(&queue);
    let shape = match (subscription.is_ordered, group) {
        (false, None) => Shape::Whole,
        (true, Some(shape)) => shape,
        (false, Some(_)) => {
            return Err(TransportError::fatal(format!(
                "`{queue}` is a partition of an ordered group: receive it with an ordered subscription"
            )));
        }
        (true, None) => {
            return Err(TransportError::fatal(format!(
                "`{queue}` is no partition of an ordered group: receive it with a plain subscription"
            )));
        }
    };
    let prefetch = usize::from(subscription.prefetch.get());
    let (intake, stream) = shared.intake(&queue, shape, prefetch)?;
    let settler = Arc::new(KafkaSettler {
        shared: Arc::clone(shared),
        intake: Arc::clone(&intake),
    });
    let receiver = Receiver {
        intake,
        stream,
        settler,
    };
    if subscription.is_ordered {
        // Who subscribed first is to be the first in the group.
        let joined = receiver.intake.wait_until_joined();
        let _ = tokio::time::timeout(JOIN_MAX, joined).await;
    }
    Ok(Box::pin(receiver.into_stream()))
}

impl Shared {
    /// The intake of a queue, with a new stream of it. Partitions of groups have one for each stream.
    fn intake(
        self: &Arc<Self>,
        queue: &Arc<str>,
        shape: Shape,
        prefetch: usize,
    ) -> Result<(Arc<Intake>, u64), TransportError> {
        let is_ordered = shape != Shape::Whole;
        let mut intakes = self.intakes.lock();
        if self.status.is_closed() {
            return Err(tidings_adapter::closed());
        }
        // What has left its group is of no use any more.
        intakes.retain(|intake| !intake.has_left());
        let shared = intakes
            .iter()
            .filter(|intake| !is_ordered && intake.queue == *queue)
            .find_map(|intake| Some((Arc::clone(intake), intake.add_stream(prefetch)?)));
        if let Some(found) = shared {
            return Ok(found);
        }
        let intake = Intake::new(Arc::clone(queue), is_ordered);
        let stream = intake
            .add_stream(prefetch)
            .ok_or_else(tidings_adapter::closed)?;
        let member = Member {
            intake: Arc::clone(&intake),
            bindings: Arc::clone(&self.bindings),
            status: Arc::clone(&self.status),
            shape,
            handover_timeout: self.address.handover_timeout,
            metadata_max_age: self.address.metadata_max_age,
            record: self.recorder(),
            recorded: Mutex::new(HashSet::new()),
        };
        let config = self.consumer_config(queue);
        let thread = std::thread::Builder::new().name(format!("kafka {queue}"));
        let started = thread.spawn(move || polling::run(member, config));
        started.map_err(|error| {
            TransportError::temporary("no thread can be started to receive with").with_source(error)
        })?;
        intakes.push(Arc::clone(&intake));
        Ok((intake, stream))
    }
}

struct Receiver {
    intake: Arc<Intake>,
    stream: u64,
    settler: Arc<KafkaSettler>,
}

impl Receiver {
    fn into_stream(self) -> impl Stream<Item = Result<Delivery, TransportError>> + Send {
        futures_util::stream::unfold(Some(self), |receiver| async move {
            let receiver = receiver?;
            loop {
                match receiver.intake.next(receiver.stream).await {
                    Next::Message(tag, held) => {
                        if let Some(delivery) = receiver.read(tag, held).await {
                            return Some((Ok(delivery), Some(receiver)));
                        }
                    }
                    Next::Over(Some(error)) => return Some((Err(error), None)),
                    Next::Over(None) | Next::Nothing => return None,
                }
            }
        })
    }

    /// What was received, its body without what a schema registry put before it; nothing if it has become a dead letter
    /// because it cannot be read, or has gone elsewhere.
    async fn read(&self, tag: u64, mut held: Held) -> Option<Delivery> {
        let Some(schemas) = &self.settler.shared.address.schemas else {
            return Some(self.delivery(tag, held));
        };
        let mut backoff = Backoff::default();
        let mut is_told = false;
        let why = loop {
            match schemas.read(&held.envelope, held.is_sent).await {
                Ok(envelope) => {
                    held.envelope = envelope;
                    return Some(self.delivery(tag, held));
                }
                Err(Unread::Never(why)) => break why,
                Err(Unread::Later(error)) => {
                    let queue = &self.intake.queue;
                    if !std::mem::replace(&mut is_told, true) {
                        warn!(%queue, %error, "a message waits for the schema registry");
                    }
                    if !self.intake.is_out(tag) {
                        return None;
                    }
                    backoff.pause().await;
                }
            }
        };
        let delivery = self.delivery(tag, held);
        let attempt = Attempt {
            at: Timestamp::now(),
            reason: why,
            by: None,
        };
        if let Err(error) = delivery.settle(Settlement::DeadLetter { attempt }).await {
            debug!(queue = %self.intake.queue, %error, "what cannot be read comes again");
        }
        None
    }

    fn delivery(&self, tag: u64, held: Held) -> Delivery {
        let settler = Arc::clone(&self.settler);
        let queue = Arc::clone(&self.intake.queue);
        let mut delivery = Delivery::new(held.envelope, queue, tag, settler);
        delivery.redelivered = held.redelivered;
        delivery.history = held.history;
        delivery.failures = held.failures;
        delivery
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.intake.remove_stream(self.stream);
    }
}

struct KafkaSettler {
    shared: Arc<Shared>,
    intake: Arc<Intake>,
}

/// Gives a delivery back whose settling was dropped half-way.
struct GiveBack<'a>(&'a Intake, u64);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.end(self.1, End::GivenBack);
    }
}

impl Settler for KafkaSettler {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            let tag = delivery.tag();
            let otherwise = GiveBack(&self.intake, tag);
            let end = match settlement {
                Settlement::Ack => End::Settled,
                Settlement::Requeue => End::GivenBack,
                Settlement::Defer { delay } => {
                    self.wait(tag, delay).await?;
                    End::Later(None)
                }
                Settlement::Retry { delay, attempt } => {
                    self.wait(tag, delay).await?;
                    End::Later(Some(attempt))
                }
                Settlement::DeadLetter { attempt } => {
                    self.bury(&delivery, attempt).await?;
                    End::Settled
                }
            };
            let is_ended = self.intake.end(tag, end);
            drop(otherwise);
            is_ended.then_some(()).ok_or_else(stale)
        })
    }

    fn acknowledge(&self, tag: u64) -> Option<Result<(), TransportError>> {
        let is_ended = self.intake.end(tag, End::Settled);
        Some(is_ended.then_some(()).ok_or_else(stale))
    }

    fn dropped(&self, tag: u64) {
        self.intake.end(tag, End::GivenBack);
    }

    fn is_stale(&self, tag: u64) -> bool {
        !self.intake.is_out(tag)
    }
}

impl KafkaSettler {
    /// Kafka delays nothing: what is to come later waits here, if somebody asks for that in spite of
    /// [`Features`](tidings_core::Features).
    async fn wait(&self, tag: u64, delay: Duration) -> Result<(), TransportError> {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.intake.is_out(tag).then_some(()).ok_or_else(stale)
    }

    /// Puts a copy into the dead letters and waits until it is there.
    async fn bury(&self, delivery: &Delivery, attempt: Attempt) -> Result<(), TransportError> {
        let queue = &*delivery.queue;
        let mut history = delivery.history.clone();
        attempt.add_to(&mut history);
        // The reasons cut as they are to be, so that a copy is not larger than it must be.
        let history = serde_json::from_str(&history_as_json(&history)).unwrap_or(history);
        let failures = delivery.failures.saturating_add(1);
        let of = topology::group_of(queue);
        let letter = dead_letter(&delivery.envelope, of, failures, &history);
        let mut backoff = Backoff::default();
        loop {
            if !self.intake.is_out(delivery.tag()) {
                return Err(stale());
            }
            let copy = Outgoing {
                destination: Destination::Queue(dead_letter_queue(of).into()),
                ..letter.clone()
            };
            let Err(error) = self.shared.publish_one(copy).await else {
                return Ok(());
            };
            match error.kind() {
                PublishErrorKind::Invalid => {
                    return Err(TransportError::temporary(format!(
                        "a message of `{queue}` cannot become a dead letter: {error}"
                    )));
                }
                // A queue that ends with its process has none.
                PublishErrorKind::Unroutable if self.shared.ephemeral.lock().contains(queue) => {
                    warn!(queue, reason = ?letter.envelope.header(tidings_core::REASON_HEADER), "dropped: it failed");
                    return Ok(());
                }
                kind => {
                    warn!(queue, ?kind, %error, "a dead letter waits until it can be published")
                }
            }
            backoff.pause().await;
        }
    }
}

fn stale() -> TransportError {
    TransportError::temporary(
        "the partition of this message has gone elsewhere; if the message was not settled before, it is delivered \
         again",
    )
}
