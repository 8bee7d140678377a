//! One attempt of a broker to hand a message to a consumer, and how it ends.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{BoxFuture, Envelope, TransportError};

/// A message as a consumer got it. It must be settled; one that is dropped unsettled is delivered
/// again when its connection closes.
pub struct Delivery {
    /// Metadata and body; shared, because handlers keep it while it is being settled.
    pub envelope: Arc<Envelope>,
    /// The queue it came from.
    pub queue: Arc<str>,
    /// The broker has handed this out before, maybe to a consumer that crashed.
    pub redelivered: bool,
    /// The deliveries that failed before this one, oldest first (bounded: the transport keeps the
    /// first and the latest ones). Empty on the first delivery.
    pub history: Vec<Attempt>,
    /// How many deliveries failed before this one.
    pub failures: u32,
    tag: u64,
    settler: Arc<dyn Settler>,
}

impl Delivery {
    /// For transports: a delivery that `settler` settles under `tag`.
    pub fn new(envelope: Envelope, queue: Arc<str>, tag: u64, settler: Arc<dyn Settler>) -> Self {
        Self {
            envelope: Arc::new(envelope),
            queue,
            redelivered: false,
            history: Vec::new(),
            failures: 0,
            tag,
            settler,
        }
    }

    /// Ends this delivery. Resolves when the broker has taken over whatever must not be lost
    /// (a retried or dead-lettered copy is confirmed before the original is acknowledged).
    ///
    /// # Errors
    ///
    /// When the connection is gone. The broker will deliver the message again, so there is nothing
    /// to do but to go on.
    pub async fn settle(self, settlement: Settlement) -> Result<(), TransportError> {
        let settler = Arc::clone(&self.settler);
        settler.settle(self, settlement).await
    }

    /// For transports: the tag given to [`new`](Self::new).
    pub fn tag(&self) -> u64 {
        self.tag
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("envelope", &self.envelope)
            .field("queue", &self.queue)
            .field("redelivered", &self.redelivered)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

/// How a delivery ends. There is no way to drop one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the broker forgets the message.
    Ack,
    /// Deliver it again after `delay`, with `attempt` added to its history.
    Retry {
        /// How long to wait; zero means at once.
        delay: Duration,
        /// What went wrong this time.
        attempt: Attempt,
    },
    /// Deliver it again after `delay` with its history and its count of failures unchanged: it did
    /// not fail, an earlier message with its key did, and it waits behind that one. Messages that
    /// are sent to the same `delay` (by this or by [`Retry`](Self::Retry)) come back in order.
    Defer {
        /// How long to wait.
        delay: Duration,
    },
    /// Move it to the dead letters beside its queue, with `attempt` added to its history.
    DeadLetter {
        /// What went wrong this time.
        attempt: Attempt,
    },
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// Why, for people: the error and its sources.
    pub reason: String,
    /// The instance that tried, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What a transport implements to settle its deliveries.
pub trait Settler: Send + Sync {
    /// Settles `delivery`. A delivery whose connection is gone is an error, never a settlement of
    /// somebody else's tag.
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>>;
}
