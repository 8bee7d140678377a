//! Copies of deliveries: what is tried again later, and what becomes a dead letter with its history.
//!
//! The original stays unsettled until the broker has confirmed the copy. While the copy cannot be
//! published (the broker is away, its queue is full or missing, a permission is missing) it is tried
//! again and again, with a line in the log that says what to mend: a failure that passes must never
//! cost the message its other attempts. Only what can never be a copy, because its headers or its
//! body are too large, is left to the broker's own dead-lettering.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidings_adapter::Backoff;
use tidings_core::{Delivery, PublishError, PublishErrorKind, TransportError, dead_letter_queue};
use tidings_wire::Properties;
use tracing::{debug, error};

use crate::{
    consumer::Consumer,
    message::{self, CopyFor},
    publisher::{Item, header_bytes_max},
    unsettled::Ending,
};

/// How often it is said that a copy still waits.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Why a copy was not published.
enum Failure {
    /// It can never be.
    Never(String),
    /// There is no connection, or it was lost.
    Passing(String),
    /// Somebody has to mend something.
    ToMend(String),
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        if error.is_temporary() {
            Self::Passing(error.to_string())
        } else {
            Self::ToMend(error.to_string())
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::Invalid => Self::Never(error.to_string()),
            PublishErrorKind::Unavailable | PublishErrorKind::Unconfirmed => {
                Self::Passing(error.to_string())
            }
            _ => Self::ToMend(error.to_string()),
        }
    }
}

impl Consumer {
    /// Publishes a copy until the broker has it, then acknowledges the original.
    pub(crate) async fn copy(
        &self,
        delivery: &Delivery,
        copy_for: CopyFor<'_>,
        delay: Duration,
    ) -> Result<(), TransportError> {
        let tag = delivery.tag();
        let original = self.properties(tag).ok_or_else(|| self.stale())?;
        let bytes_max = header_bytes_max(self.session.frame_bytes_max);
        let properties = message::properties_of_copy(&original, delivery, copy_for, bytes_max);
        let mut backoff = Backoff::default();
        let mut said: Option<Instant> = None;
        loop {
            let body = delivery.envelope.body.clone();
            let failure = tokio::select! {
                biased;
                () = self.ended.cancelled() => return Err(self.stale()),
                outcome = self.try_copy(copy_for, delay, properties.clone(), body) => match outcome {
                    Ok(()) => return self.end(tag, Ending::Ack),
                    Err(failure) => failure,
                },
            };
            let queue = &*self.queue;
            match failure {
                Failure::Never(reason) => {
                    error!(
                        queue,
                        "a message can have no copy; the broker moves it to the dead letters, \
                         without a history: {reason}"
                    );
                    return self.end(tag, Ending::Reject);
                }
                Failure::Passing(reason) => debug!(queue, "a copy waits: {reason}"),
                Failure::ToMend(reason) => {
                    if said.is_none_or(|said| said.elapsed() > REMIND_EVERY) {
                        said = Some(Instant::now());
                        error!(
                            queue,
                            "a message that is to be tried again, or to be a dead letter, cannot \
                             be put there; it is held until it can: {reason}"
                        );
                    }
                }
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.ended.cancelled() => return Err(self.stale()),
            }
        }
    }

    async fn try_copy(
        &self,
        copy_for: CopyFor<'_>,
        delay: Duration,
        properties: Properties,
        body: Bytes,
    ) -> Result<(), Failure> {
        let shared = self.shared.upgrade().ok_or_else(tidings_adapter::closed)?;
        let (exchange, routing_key) = match copy_for {
            CopyFor::DeadLetters(_, queue) => (String::new(), dead_letter_queue(queue)),
            _ if delay.is_zero() => (String::new(), self.queue.to_string()),
            _ => {
                let exchange = shared.delay_exchange(&self.queue, delay).await?;
                (exchange, self.queue.to_string())
            }
        };
        let copy = Item::Copy {
            exchange,
            routing_key,
            properties,
            body,
        };
        match shared.publish_items(vec![copy]).await.pop() {
            Some(Err(error)) => {
                if error.kind() == PublishErrorKind::Unroutable {
                    shared.restore(&self.queue).await;
                }
                Err(error.into())
            }
            _ => Ok(()),
        }
    }
}

/// Gives a delivery back if its settling is dropped half-way. One that is settled stays so.
pub(crate) struct Held {
    /// `None` once it is settled.
    consumer: Option<Arc<Consumer>>,
    tag: u64,
}

impl Held {
    pub(crate) fn new(consumer: Arc<Consumer>, tag: u64) -> Self {
        Self {
            consumer: Some(consumer),
            tag,
        }
    }

    /// Settles it.
    pub(crate) fn end(mut self, ending: Ending) -> Result<(), TransportError> {
        match self.consumer.take() {
            Some(consumer) => consumer.end(self.tag, ending),
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            consumer.give_back(self.tag);
        }
    }
}
