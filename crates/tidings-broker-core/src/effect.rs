//! What the broker wants done, and the names of those it is done to.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Message, MessageId, QueueId, Record};

/// A client's connection; the server chooses the number and never reuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// An open channel, as [`Broker::open_channel`](crate::Broker::open_channel) gave it out. Using one
/// after it was closed is refused, never mistaken for another channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(crate) crate::slab::Key);

/// Something for the server to do, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send `basic.deliver`.
    Deliver(Delivery),
    /// Send `basic.cancel`: the consumer's queue is gone. The consumer no longer exists.
    CancelConsumer {
        /// The connection to send it on.
        connection: ConnectionId,
        /// The number of the channel on that connection.
        channel: u16,
        /// The consumer.
        consumer_tag: Bytes,
    },
    /// Read these messages out of the store, for [`Broker::fetched`](crate::Broker::fetched). There is
    /// only one such effect for each queue at a time.
    Fetch {
        /// The queue that they wait in.
        queue: QueueId,
        /// Them, in their order.
        messages: Vec<MessageId>,
    },
    /// Append to the log. A reply or confirm that answers the command must wait until every record
    /// of the command is durable; a delivery need not.
    Store(Record),
}

/// One message on its way to one consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The connection to send it on.
    pub connection: ConnectionId,
    /// The number of the channel on that connection.
    pub channel: u16,
    /// The consumer.
    pub consumer_tag: Bytes,
    /// Counts up from 1 on each channel.
    pub delivery_tag: u64,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// How often it was delivered before and came back; for the header `x-delivery-count`, which
    /// only quorum queues send: `None` in other queues and on the first delivery.
    pub delivery_count: Option<u32>,
    /// The message.
    pub message: Arc<Message>,
}
