//! The metadata that travels with a body: CloudEvents 1.0 in binary mode. The body is the data
//! itself, so a program that knows nothing of Tidings can read and write it.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use jiff::Timestamp;

use crate::REPLAY_HEADER;

/// Identifies one message for ever: the same message delivered again has the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Box<str>);

impl MessageId {
    /// Takes any text as an id.
    pub fn new(id: impl Into<Box<str>>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<Box<str>>> From<T> for MessageId {
    fn from(id: T) -> Self {
        Self::new(id)
    }
}

/// A body and what is known about it.
///
/// The fields are the attributes of CloudEvents 1.0; what a foreign program did not send is
/// `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// CloudEvents `id`. `None` only for a message that a foreign program sent without one.
    pub id: Option<MessageId>,
    /// CloudEvents `type`: the message's name with its version, `order-placed.v1`. Empty if a
    /// foreign program did not say.
    pub name: Cow<'static, str>,
    /// CloudEvents `source`: the service that sent it. Empty if unknown.
    pub source: Cow<'static, str>,
    /// CloudEvents `time`: when the fact was recorded.
    pub time: Option<Timestamp>,
    /// CloudEvents `partitionkey`: what order is kept by.
    pub key: Option<Box<str>>,
    /// The conversation this message belongs to: the id of its first message.
    pub correlation_id: Option<Box<str>>,
    /// The id of the message whose handling sent this one.
    pub causation_id: Option<Box<str>>,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
    /// MIME type of the body. Empty if a foreign program did not say; read as JSON then.
    pub content_type: Cow<'static, str>,
    /// Every other header whose value is text, as it came; a broker may change their order.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The data.
    pub body: Bytes,
}

impl Envelope {
    /// An envelope with nothing but a name and a body.
    pub fn new(name: impl Into<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self {
            id: None,
            name: name.into(),
            source: Cow::Borrowed(""),
            time: None,
            key: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            content_type: Cow::Borrowed("application/json"),
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// The value of the header `name` among [`headers`](Self::headers).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }

    /// Whether it was sent again out of the sender's log, to its consumer alone: what it says is not
    /// news to the others.
    pub fn is_replayed(&self) -> bool {
        self.header(REPLAY_HEADER).is_some()
    }
}
