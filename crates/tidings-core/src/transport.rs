//! The port to a message broker: declare, publish, subscribe.
//!
//! The doc comments are the contract; the conformance suite in `tidings-testing` runs against
//! every implementation. What an engine can do beyond it, or cannot do, is data: [`Features`].

use std::{borrow::Cow, error::Error as StdError, fmt, num::NonZeroU16, pin::Pin, sync::Arc};

use futures_core::Stream;

use crate::{BoxError, BoxFuture, Delivery, Outgoing};

/// A message broker, seen by the toolkit.
///
/// A transport owns its connection: after a loss it connects again with backoff, declares what was
/// declared, and its subscriptions go on. No caller has to do anything.
pub trait Transport: Send + Sync + 'static {
    /// What this engine can do.
    fn features(&self) -> Features;

    /// Makes sure that everything in `topology` exists; what already exists as described is left
    /// alone. Each queue gets its dead letters beside it ([`dead_letter_queue`]).
    ///
    /// Waits while the broker cannot be reached. Declares again by itself after a reconnection.
    ///
    /// # Errors
    ///
    /// When something of that name exists but differs, or the user may not declare it.
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>>;

    /// Publishes `batch` in order and resolves when the broker has confirmed or refused each
    /// message: one outcome per message, in the order of the batch.
    ///
    /// `Ok` means: stored by the broker in every queue that wants it (durable, persistent).
    /// An error means the message may or may not be there; publishing it again is safe because
    /// consumers know it by its id. While there is no connection, every outcome is
    /// [`PublishErrorKind::Unavailable`] at once.
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>>;

    /// Starts to receive from a queue.
    ///
    /// At most `prefetch` deliveries are out unsettled. The stream goes on through reconnections
    /// and ends only when it is dropped, or after an `Err` that no reconnection mends. Dropping it
    /// stops further deliveries; those that are out can still be settled.
    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>>;

    /// Closes the connection in good order, after what is under way has been settled.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A transport may be shared by several services of a process.
impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn features(&self) -> Features {
        (**self).features()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        (**self).declare(topology)
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        (**self).publish(batch)
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        (**self).subscribe(subscription)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        (**self).close()
    }
}

/// The deliveries of a subscription.
pub type Deliveries = Pin<Box<dyn Stream<Item = Result<Delivery, TransportError>> + Send>>;

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// The engine's name, for people: `AMQP 0-9-1`.
    pub engine: &'static str,
    /// Messages survive a restart of the broker.
    pub durable: bool,
    /// An unroutable publish is reported ([`PublishErrorKind::Unroutable`]).
    pub reports_unroutable: bool,
    /// Retries can be delayed through the broker.
    pub delayed_retry: bool,
}

impl Features {
    /// An engine with every feature.
    pub const fn all(engine: &'static str) -> Self {
        Self {
            engine,
            durable: true,
            reports_unroutable: true,
            delayed_retry: true,
        }
    }

    /// The same, with messages that live only as long as the process.
    pub const fn in_memory(mut self) -> Self {
        self.durable = false;
        self
    }
}

/// The topics and queues a service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Topics it publishes to (those it subscribes to are named by its queues).
    pub topics: Vec<Cow<'static, str>>,
    /// Queues it receives from.
    pub queues: Vec<Queue>,
}

/// A queue and what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name: `consumer.message-name`, for example `payment.order-placed.v1`.
    pub name: Cow<'static, str>,
    /// The topics whose messages it wants; none for a queue that takes commands.
    pub topics: Vec<Cow<'static, str>>,
    /// How long retries of its messages are going to wait, so that what they wait in is there before
    /// anything fails. A retry may ask for other delays too.
    pub delays: Vec<std::time::Duration>,
}

impl Queue {
    /// A queue whose retries ask for what they need when they need it.
    pub fn new(name: impl Into<Cow<'static, str>>, topics: Vec<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            topics,
            delays: Vec::new(),
        }
    }
}

/// The name of the dead letters beside `queue`.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dead")
}

/// What to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// From which queue.
    pub queue: Cow<'static, str>,
    /// How many deliveries may be out unsettled.
    pub prefetch: NonZeroU16,
}

/// A message that was not published, or not known to be.
#[derive(Debug)]
pub struct PublishError {
    kind: PublishErrorKind,
    source: BoxError,
}

/// Why a message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// No connection, or it was lost before the broker answered. Try again.
    Unavailable,
    /// The broker is there and took nothing for now (a full queue, an alarm). Try again later.
    Refused,
    /// No queue wants it. Try again when somebody has subscribed.
    Unroutable,
    /// It can never be published as it is (too large, not allowed).
    Invalid,
}

impl PublishError {
    /// An error of this kind with its cause.
    pub fn new(kind: PublishErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: source.into(),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> PublishErrorKind {
        self.kind
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl StdError for PublishError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

/// A failure of the transport itself.
#[derive(Debug)]
pub struct TransportError {
    temporary: bool,
    message: String,
    source: Option<BoxError>,
}

impl TransportError {
    /// A failure that passes by itself (a lost connection).
    pub fn temporary(message: impl Into<String>) -> Self {
        Self {
            temporary: true,
            message: message.into(),
            source: None,
        }
    }

    /// A failure that somebody must mend (a wrong password, a queue that differs). The message
    /// says how.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self {
            temporary: false,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// True if it passes by itself.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for TransportError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
