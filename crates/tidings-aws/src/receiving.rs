//! Subscriptions and settlements.

use std::{sync::Arc, time::Duration};

use futures_core::Stream;
use tidings_adapter::Backoff;
use tidings_core::{
    Attempt, BoxFuture, Deliveries, Delivery, Destination, Envelope, PublishErrorKind, Settlement,
    Settler, Subscription, TransportError, dead_letter, dead_letter_queue,
};
use tracing::warn;

use crate::{
    DELAY_MAX, Shared, groups,
    intake::{End, Held, Intake, Next},
    message::history_as_json,
    topology::QueueAt,
    work,
};

/// Subscribes.
pub(crate) async fn subscribe(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<Deliveries, TransportError> {
    shared.status.reached().await?;
    let queue: Arc<str> = Arc::from(&*subscription.queue);
    let (source, is_for_keys) = match groups::partition(&queue) {
        _ if !subscription.is_ordered => (Arc::clone(&queue), true),
        Some((group, number)) if shared.address.is_fifo => (group.into(), number.is_some()),
        _ => {
            return Err(TransportError::fatal(format!(
                "`{queue}` is no partition of an ordered group: receive it with a plain subscription"
            )));
        }
    };
    let mut backoff = Backoff::default();
    let at = loop {
        match shared.queue(&source).await {
            Ok(Some(at)) => break at,
            Ok(None) => {
                return Err(TransportError::fatal(format!(
                    "there is no queue `{queue}` (TDG-4032): declare it first"
                )));
            }
            Err(why) if why.passes() && !shared.status.is_closed() => {
                shared.note(&why);
                backoff.pause().await;
            }
            Err(why) => {
                return Err(why.into_error(&format!("queue `{queue}` cannot be looked up")));
            }
        }
    };
    let prefetch = usize::from(subscription.prefetch.get());
    let intake = Intake::new(Arc::clone(&queue), source, subscription.is_ordered);
    let at = is_for_keys.then_some(at);
    let (intake, stream) = shared.intake(intake, at, prefetch)?;
    let settler = Arc::new(AwsSettler {
        shared: Arc::clone(shared),
        intake: Arc::clone(&intake),
    });
    let receiver = Receiver {
        intake,
        stream,
        settler,
    };
    Ok(Box::pin(receiver.into_stream()))
}

impl Shared {
    /// An intake like this one, with a new stream of it. Partitions of groups have one for each stream. Without a place
    /// to receive from nothing ever comes.
    fn intake(
        self: &Arc<Self>,
        intake: Arc<Intake>,
        at: Option<QueueAt>,
        prefetch: usize,
    ) -> Result<(Arc<Intake>, u64), TransportError> {
        let mut intakes = self.intakes.lock();
        if self.status.is_closed() {
            return Err(tidings_adapter::closed());
        }
        let shared = intakes
            .iter()
            .filter(|it| !intake.is_ordered && !it.is_ordered && it.queue == intake.queue)
            .find_map(|it| Some((Arc::clone(it), it.add_stream(prefetch)?)));
        if let Some(found) = shared {
            return Ok(found);
        }
        // What is over and has nothing to do any more is of no use.
        intakes.retain(|intake| !intake.is_over() || !intake.has_ended());
        let stream = intake
            .add_stream(prefetch)
            .ok_or_else(tidings_adapter::closed)?;
        if let Some(at) = at {
            work::start(self, &intake, at.url);
        }
        intakes.push(Arc::clone(&intake));
        Ok((intake, stream))
    }
}

struct Receiver {
    intake: Arc<Intake>,
    stream: u64,
    settler: Arc<AwsSettler>,
}

impl Receiver {
    fn into_stream(self) -> impl Stream<Item = Result<Delivery, TransportError>> + Send {
        futures_util::stream::unfold(Some(self), |receiver| async move {
            let receiver = receiver?;
            match receiver.intake.next(receiver.stream).await {
                Next::Message(tag, held) => {
                    let delivery = receiver.delivery(tag, *held);
                    Some((Ok(delivery), Some(receiver)))
                }
                Next::Over(Some(error)) => Some((Err(error), None)),
                Next::Over(None) | Next::Nothing => None,
            }
        })
    }

    fn delivery(&self, tag: u64, held: Held) -> Delivery {
        let settler = Arc::clone(&self.settler);
        let queue = Arc::clone(&self.intake.queue);
        let mut delivery = Delivery::new(Envelope::new("", ""), queue, tag, settler);
        delivery.envelope = held.envelope;
        delivery.redelivered = held.redelivered;
        delivery.delivered_before = Some(held.delivered_before);
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

struct AwsSettler {
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

impl Settler for AwsSettler {
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
                Settlement::Defer { delay } => self.later(&delivery, delay, None).await?,
                Settlement::Retry { delay, attempt } => {
                    self.later(&delivery, delay, Some(attempt)).await?
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

impl AwsSettler {
    /// How a message ends that is to come later. A standard queue takes a copy that it hides for so long. One that
    /// keeps an order has nothing for that: there the message waits here, if somebody asks for that in spite of
    /// [`Features`](tidings_core::Features).
    async fn later(
        &self,
        delivery: &Delivery,
        delay: Duration,
        attempt: Option<Attempt>,
    ) -> Result<End, TransportError> {
        if delay.is_zero() {
            return Ok(End::Later(attempt));
        }
        if self.shared.address.is_fifo || delay > DELAY_MAX {
            tokio::time::sleep(delay).await;
            let is_out = self.intake.is_out(delivery.tag());
            return is_out.then_some(End::Later(attempt)).ok_or_else(stale);
        }
        let mut history = delivery.history.clone();
        let mut failures = delivery.failures;
        if let Some(attempt) = attempt {
            attempt.add_to(&mut history);
            failures = failures.saturating_add(1);
        }
        let copy = dead_letter(&delivery.envelope, &delivery.queue, failures, &history);
        self.send(delivery, &delivery.queue, &copy.envelope, delay)
            .await?;
        Ok(End::Settled)
    }

    /// Puts a copy into the dead letters and waits until it is there.
    async fn bury(&self, delivery: &Delivery, attempt: Attempt) -> Result<(), TransportError> {
        // Of a partition, beside its group's name.
        let queue = &*self.intake.source;
        let mut history = delivery.history.clone();
        attempt.add_to(&mut history);
        // The reasons cut as they are to be, so that a copy is not larger than it must be.
        let history = serde_json::from_str(&history_as_json(&history)).unwrap_or(history);
        let failures = delivery.failures.saturating_add(1);
        let letter = dead_letter(&delivery.envelope, queue, failures, &history);
        if self.shared.ephemeral.lock().contains(queue) {
            // A queue that ends with its process has none.
            let reason = letter.envelope.header(tidings_core::REASON_HEADER);
            warn!(queue, ?reason, "dropped: it failed");
            return Ok(());
        }
        let letters = dead_letter_queue(queue);
        self.send(delivery, &letters, &letter.envelope, Duration::ZERO)
            .await
    }

    /// Sends a copy of a delivery to a queue and waits until it is there.
    async fn send(
        &self,
        delivery: &Delivery,
        queue: &str,
        copy: &Envelope,
        delay: Duration,
    ) -> Result<(), TransportError> {
        let Some(by) = self.intake.sqs_id(delivery.tag()) else {
            return Err(stale());
        };
        let mut backoff = Backoff::default();
        loop {
            if !self.intake.is_out(delivery.tag()) {
                return Err(stale());
            }
            let why = match self.shared.queue(queue).await {
                Ok(Some(at)) => {
                    let to = Destination::Queue(queue.to_owned().into());
                    let entry = self.shared.unchecked_entry(0, &to, copy);
                    let sent = self.shared.send_one(&at.url, entry.after(delay).apart(&by));
                    match sent.await {
                        Ok(()) => return Ok(()),
                        Err(error) if error.kind() == PublishErrorKind::Invalid => {
                            return Err(TransportError::temporary(format!(
                                "a message of `{}` cannot be put into `{queue}`: {error}",
                                delivery.queue
                            )));
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok(None) => format!("there is no queue `{queue}`"),
                Err(why) => {
                    self.shared.note(&why);
                    format!("{why:?}")
                }
            };
            warn!(queue, why, "a copy waits until it can be sent");
            self.shared.forget(queue);
            backoff.pause().await;
        }
    }
}

fn stale() -> TransportError {
    TransportError::temporary(
        "this message is not hidden from others any more; if it was not settled before, it is delivered again",
    )
}
