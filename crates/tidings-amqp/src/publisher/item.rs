//! What is published: a message of a service, or a copy of a delivery.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use tidings_core::{Destination, Outgoing, Unrouted};
use tidings_wire::{BasicReturn, Properties, ShortStr};

use crate::{groups, message};

/// What a header frame has beside the properties.
const HEADER_OVERHEAD_BYTES: usize = 32;

/// Something to publish.
pub(crate) enum Item {
    /// What a service sends.
    Message { message: Outgoing, way: Way },
    /// A copy of a delivery.
    Copy {
        /// Empty: to the queue that the routing key names.
        exchange: String,
        routing_key: String,
        properties: Properties,
        body: Bytes,
    },
}

/// How a message to a queue goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the default exchange. For a topic there is no choice.
    Plain,
    /// By the exchange that leads it into an ordered group.
    Group,
}

impl Item {
    pub(crate) fn message(message: Outgoing) -> Self {
        Self::Message {
            message,
            way: Way::Plain,
        }
    }

    /// Lets a message to a queue take this way.
    pub(crate) fn take(&mut self, by: Way) {
        if let Self::Message { way, .. } = self {
            *way = by;
        }
    }

    /// The queue it is sent to, if it is not for a topic, by no group, and no copy.
    pub(crate) fn plain_queue(&self) -> Option<&str> {
        match self {
            Self::Message {
                message,
                way: Way::Plain,
            } => match &message.destination {
                Destination::Queue(queue) => Some(queue),
                Destination::Topic(_) => None,
            },
            _ => None,
        }
    }

    /// The topic it is published to, if it is not for one queue.
    pub(crate) fn topic(&self) -> Option<&str> {
        match self {
            Self::Message { message, .. } => match &message.destination {
                Destination::Topic(topic) => Some(topic),
                Destination::Queue(_) => None,
            },
            Self::Copy { .. } => None,
        }
    }

    pub(super) fn exchange(&self) -> Cow<'_, str> {
        match self {
            Self::Copy { exchange, .. } => exchange.into(),
            Self::Message { message, way } => match (&message.destination, way) {
                (Destination::Topic(topic), _) => (&**topic).into(),
                (Destination::Queue(queue), Way::Group) => groups::command_exchange(queue).into(),
                (Destination::Queue(_), Way::Plain) => "".into(),
            },
        }
    }

    pub(super) fn routing_key(&self) -> &str {
        match self {
            Self::Message { message, way } => match (&message.destination, way) {
                (Destination::Queue(queue), Way::Plain) => queue,
                _ => groups::slot_key(message.envelope.key.as_deref()),
            },
            Self::Copy { routing_key, .. } => routing_key,
        }
    }

    pub(super) fn body(&self) -> &Bytes {
        match self {
            Self::Message { message, .. } => &message.envelope.body,
            Self::Copy { body, .. } => body,
        }
    }

    pub(super) fn mandatory(&self) -> bool {
        !matches!(self, Self::Message { message, .. } if message.unrouted == Unrouted::Drop)
    }

    /// Its properties, encoded: its own, or written to `scratch`.
    pub(super) fn properties<'a>(
        &'a self,
        scratch: &'a mut BytesMut,
        bytes_max: usize,
    ) -> Result<&'a [u8], String> {
        match self {
            Self::Message { message, .. } => {
                scratch.clear();
                message::put_properties(scratch, &message.envelope, bytes_max)?;
                Ok(scratch)
            }
            Self::Copy { properties, .. } => Ok(properties.as_bytes()),
        }
    }

    /// True if this is, as far as can be told, the message that was returned.
    pub(super) fn is_returned_as(&self, returned: &BasicReturn, id: Option<&ShortStr>) -> bool {
        let own_id: Option<Cow<'_, [u8]>> = match self {
            Self::Message { message, .. } => {
                let id = message
                    .envelope
                    .id
                    .as_ref()
                    .map(|id| id.as_str().as_bytes());
                id.filter(|id| (1..=ShortStr::BYTES_MAX).contains(&id.len()))
                    .map(Cow::Borrowed)
            }
            Self::Copy { properties, .. } => {
                properties.message_id().map(|id| Cow::Owned(id.to_vec()))
            }
        };
        own_id.as_deref() == id.map(|id| &**id)
            && returned.exchange == *self.exchange()
            && returned.routing_key == *self.routing_key()
    }
}

/// How much the headers and properties of a message may have, so that they fit into one frame.
pub(crate) fn header_bytes_max(frame_bytes_max: u32) -> usize {
    frame_bytes_max as usize - HEADER_OVERHEAD_BYTES
}
