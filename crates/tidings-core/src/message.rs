//! What a service says: an [`Event`] (a fact, for whoever listens) or a [`Command`] (an
//! instruction to one target). They are different types on purpose: a command cannot be published
//! to everyone, an event has no target.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    BodyError, BodySchema, Envelope, Error, JSON, MessageId, Permanent, read_json, write_json,
};

/// Something that can be sent: an event or a command. Derive [`Event`] or [`Command`] instead of
/// implementing this by hand.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name on the wire with its version, for example `order-placed.v1`. It is the CloudEvents
    /// `type`; it never depends on the language path of the Rust type.
    const NAME: &'static str;

    /// Where it goes.
    const DESTINATION: Destination;

    /// The largest body that may be published, in bytes. Larger things belong behind a claim
    /// check. Default: 64 KiB.
    const BODY_BYTES_MAX: usize = 64 * 1024;

    /// What its bodies are written in, as a MIME type: JSON, if nothing else is said with `format = "..."` beside its name.
    const CONTENT_TYPE: &'static str = JSON;

    /// Whether sagas send it as a step and wait for its answer: `#[command(reply = ...)]` says so.
    #[doc(hidden)]
    const IS_STEP: bool = false;

    /// What happens when nobody listens (default: it waits in the outbox, visibly).
    const UNROUTED: Unrouted = Unrouted::Hold;

    /// The paths of the fields in the body that are not to be shown, as [`SensitivePaths`](crate::SensitivePaths)
    /// writes them: `card`, `customer.email`.
    fn sensitive_paths() -> Vec<String> {
        Vec::new()
    }

    /// Its body, in its format.
    ///
    /// # Errors
    ///
    /// When its values cannot be written in that format.
    fn to_body(&self) -> Result<Vec<u8>, BodyError> {
        write_json(self)
    }

    /// The message of a body: in JSON, or in its own format.
    ///
    /// # Errors
    ///
    /// When the body is not one of this message.
    fn from_body(body: &[u8], content_type: &str) -> Result<Self, BodyError> {
        // What a foreign program calls its JSON does not matter.
        let _ = content_type;
        read_json(body)
    }

    /// The schema by which its bodies are written, if they are not in JSON.
    fn body_schema() -> Option<BodySchema> {
        None
    }

    /// The key that order is kept by: messages with the same key, sent by one service, are handled
    /// in commit order by each consumer. `None`: no order is promised.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }

    /// What makes this message the same message however often it is sent, when the fact itself
    /// says so (for example the order id of `OrderPlaced`). The message id is then
    /// `NAME/identity`, also for a message that a foreign program publishes without an id.
    fn identity(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// A statement about the past, for whoever listens. `#[derive(Event)]` refuses a name that is not
/// in the past tense.
pub trait Event: Message {}

/// An instruction to exactly one target.
pub trait Command: Message {
    /// The consumer that carries it out.
    const TARGET: &'static str;
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// To every queue that subscribed to this topic (on AMQP: a durable fanout exchange of that
    /// name).
    Topic(Cow<'static, str>),
    /// To one queue.
    Queue(Cow<'static, str>),
}

impl Destination {
    /// A topic with a name known at compile time.
    pub const fn topic(name: &'static str) -> Self {
        Self::Topic(Cow::Borrowed(name))
    }

    /// A queue with a name known at compile time.
    pub const fn queue(name: &'static str) -> Self {
        Self::Queue(Cow::Borrowed(name))
    }

    /// The name of the topic or queue.
    pub fn name(&self) -> &str {
        match self {
            Self::Topic(name) | Self::Queue(name) => name,
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic `{name}`"),
            Self::Queue(name) => write!(f, "queue `{name}`"),
        }
    }
}

/// What happens to a message that no queue wants when it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unrouted {
    /// It stays in the outbox, is counted and named in the log, and is tried again until somebody
    /// subscribes. Nothing is lost.
    #[default]
    Hold,
    /// It counts as sent. Whoever chooses this writes it down in code.
    Drop,
}

/// A message on its way out: what the outbox stores and the transport publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Where it goes.
    pub destination: Destination,
    /// What happens when nobody listens.
    pub unrouted: Unrouted,
    /// Metadata and body.
    pub envelope: Envelope,
}

impl Outgoing {
    /// Writes the body of `message`, in its format. The id is set if the message has an identity; time, source and
    /// what it was caused by are up to the sender.
    ///
    /// # Errors
    ///
    /// Permanent: the message cannot be encoded, or its body is over its
    /// [`BODY_BYTES_MAX`](Message::BODY_BYTES_MAX).
    pub fn new<M: Message>(message: &M) -> Result<Self, Error> {
        let body = message.to_body().map_err(|error| {
            let format = error.format();
            Permanent::new(format!(
                "`{}` cannot be written as {format}: {error}",
                M::NAME
            ))
        })?;
        if body.len() > M::BODY_BYTES_MAX {
            return Err(Error::from(Permanent::new(format!(
                "the body of `{}` has {} bytes, more than its `body_bytes_max` of {}; send a \
                 reference to what is large (a claim check), or raise the limit with \
                 `body_bytes_max = ...` beside its name",
                M::NAME,
                body.len(),
                M::BODY_BYTES_MAX
            ))));
        }
        let mut envelope = Envelope::new(M::NAME, body);
        envelope.content_type = Cow::Borrowed(M::CONTENT_TYPE);
        envelope.id = identity_of(message);
        envelope.key = message.key().map(|key| key.into_owned().into());
        Ok(Self {
            destination: M::DESTINATION,
            unrouted: M::UNROUTED,
            envelope,
        })
    }
}

/// The id that a message has by what it says, `NAME/identity`, if it says so.
pub fn identity_of<M: Message>(message: &M) -> Option<MessageId> {
    let identity = message.identity()?;
    Some(MessageId::new(format!("{}/{identity}", M::NAME)))
}
