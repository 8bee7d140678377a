//! What is published: a message of a service, or a copy of a delivery.

use std::borrow::Cow;

use bytes::Bytes;
use tidings_core::{Destination, Outgoing, Unrouted};
use tidings_wire::{BasicReturn, Properties, ShortStr};

use crate::message;

/// What a header frame has beside the properties.
const HEADER_OVERHEAD_BYTES: usize = 32;

/// Something to publish.
pub(crate) enum Item {
    /// What a service sends.
    Message(Outgoing),
    /// A copy of a delivery.
    Copy {
        /// Empty: to the queue that the routing key names.
        exchange: String,
        routing_key: String,
        properties: Properties,
        body: Bytes,
    },
}

impl Item {
    /// The topic it is published to, if it is not for one queue.
    pub(crate) fn topic(&self) -> Option<&str> {
        match self {
            Self::Message(Outgoing {
                destination: Destination::Topic(topic),
                ..
            }) => Some(topic),
            _ => None,
        }
    }

    pub(super) fn exchange(&self) -> &str {
        match self {
            Self::Copy { exchange, .. } => exchange,
            Self::Message(_) => self.topic().unwrap_or_default(),
        }
    }

    pub(super) fn routing_key(&self) -> &str {
        match self {
            Self::Message(Outgoing {
                destination: Destination::Queue(queue),
                ..
            }) => queue,
            Self::Message(_) => "",
            Self::Copy { routing_key, .. } => routing_key,
        }
    }

    pub(super) fn body(&self) -> &Bytes {
        match self {
            Self::Message(message) => &message.envelope.body,
            Self::Copy { body, .. } => body,
        }
    }

    pub(super) fn mandatory(&self) -> bool {
        !matches!(self, Self::Message(message) if message.unrouted == Unrouted::Drop)
    }

    pub(super) fn properties(&self, bytes_max: usize) -> Result<Properties, String> {
        match self {
            Self::Message(message) => message::properties_of(&message.envelope, bytes_max),
            Self::Copy { properties, .. } => Ok(properties.clone()),
        }
    }

    /// True if this is, as far as can be told, the message that was returned.
    pub(super) fn is_returned_as(&self, returned: &BasicReturn, id: Option<&ShortStr>) -> bool {
        let own_id: Option<Cow<'_, [u8]>> = match self {
            Self::Message(message) => {
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
        returned.exchange == *self.exchange()
            && returned.routing_key == *self.routing_key()
            && own_id.as_deref() == id.map(|id| &**id)
    }
}

/// How much the headers and properties of a message may have, so that they fit into one frame.
pub(crate) fn header_bytes_max(frame_bytes_max: u32) -> usize {
    frame_bytes_max as usize - HEADER_OVERHEAD_BYTES
}
