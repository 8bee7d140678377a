//! The larger commands' parameters, and what the broker answers.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Message, Table};

/// `exchange.declare`.
#[derive(Debug, Clone, Default)]
pub struct ExchangeDeclare {
    /// Its name.
    pub name: Bytes,
    /// Its type: `direct`, `fanout`, `topic` or `headers`.
    pub kind: Bytes,
    /// Only ask whether it exists.
    pub passive: bool,
    /// It survives a restart.
    pub durable: bool,
    /// It goes when its last binding goes.
    pub auto_delete: bool,
    /// It takes no messages from clients, only from other exchanges.
    pub internal: bool,
    /// `alternate-exchange` is understood; others are kept and compared.
    pub arguments: Table,
}

/// `queue.declare`.
#[derive(Debug, Clone, Default)]
pub struct QueueDeclare {
    /// Its name; empty asks for a generated one.
    pub name: Bytes,
    /// Only ask whether it exists.
    pub passive: bool,
    /// It survives a restart.
    pub durable: bool,
    /// It belongs to this connection and goes with it.
    pub exclusive: bool,
    /// It goes when its last consumer goes.
    pub auto_delete: bool,
    /// `x-…` arguments; unknown ones are kept and compared.
    pub arguments: Table,
}

/// `queue.declare-ok`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDeclared {
    /// The queue's name.
    pub name: Bytes,
    /// Messages ready for delivery.
    pub messages: u64,
    /// Consumers.
    pub consumers: u64,
}

/// A binding command: `queue.bind`, `queue.unbind`, `exchange.bind`, `exchange.unbind`.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    /// The exchange messages come from.
    pub source: Bytes,
    /// The queue or exchange they go to. For a queue, empty means the one declared last on the
    /// channel (and then an empty routing key means its name, as the specification says).
    pub destination: Bytes,
    /// The binding key.
    pub routing_key: Bytes,
    /// For headers exchanges: what to match.
    pub arguments: Table,
}

/// `basic.consume`.
#[derive(Debug, Clone, Default)]
pub struct Consume {
    /// The queue; empty means the one declared last on the channel.
    pub queue: Bytes,
    /// The consumer's tag; empty asks for a generated one.
    pub consumer_tag: Bytes,
    /// Deliveries count as acknowledged at once.
    pub no_ack: bool,
    /// Nobody else may consume from the queue.
    pub exclusive: bool,
    /// `x-priority` is understood; others are kept.
    pub arguments: Table,
}

/// `basic.get-ok`.
#[derive(Debug, Clone, PartialEq)]
pub struct Got {
    /// For settling it (with `no_ack` it is settled already).
    pub delivery_tag: u64,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// As in [`Delivery`](crate::Delivery).
    pub delivery_count: Option<u32>,
    /// Messages left in the queue.
    pub remaining: u64,
    /// The message.
    pub message: Arc<Message>,
}

/// An acknowledgement or a rejection, as a part of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The delivery.
    pub delivery_tag: u64,
    /// All that are out up to this delivery, it included.
    pub multiple: bool,
    /// `None` acknowledges; otherwise whether to requeue.
    pub requeue: Option<bool>,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// The queues it was routed to; with 0, a mandatory message is returned.
    pub queues: usize,
    /// A queue that is full and says `reject-publish` turned it away: confirm with a nack.
    pub rejected: bool,
    /// It was stored: confirm only when the records of this command are durable.
    pub stored: bool,
}

/// What a queue looks like, and where its messages went.
///
/// Conservation: `published + restored = ready + unacked + acked + dead_lettered + expired +
/// rejected + dropped + purged`, always.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueStats {
    /// Its name.
    pub name: Bytes,
    /// Survives a restart.
    pub durable: bool,
    /// Belongs to one connection.
    pub exclusive: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// As declared.
    pub arguments: Table,
    /// Its consumers.
    pub consumers: u64,
    /// Messages waiting.
    pub ready: u64,
    /// Bytes of the bodies waiting.
    pub ready_bytes: u64,
    /// Messages out with consumers.
    pub unacked: u64,
    /// Deliveries made, repeated ones included.
    pub delivered: u64,
    /// What happened to its messages so far.
    pub counters: Counters,
}

/// Where the messages of a queue came from and went. They start at 0 with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Routed to the queue.
    pub published: u64,
    /// Found in the store at start.
    pub restored: u64,
    /// Acknowledged, or delivered to a consumer that does not acknowledge.
    pub acked: u64,
    /// Handed to the dead-letter exchange, whatever the reason.
    pub dead_lettered: u64,
    /// Time to live over, in a queue without a dead-letter exchange.
    pub expired: u64,
    /// Rejected by a consumer (or redelivered too often), without a dead-letter exchange.
    pub rejected: u64,
    /// Over the length limit, without a dead-letter exchange.
    pub dropped: u64,
    /// Purged.
    pub purged: u64,
}

impl Counters {
    /// Messages that left the queue for good.
    pub fn gone(&self) -> u64 {
        let dead = self.dead_lettered + self.expired + self.rejected + self.dropped;
        self.acked + dead + self.purged
    }
}

/// What an exchange looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangeStats {
    /// Its name.
    pub name: Bytes,
    /// Its type.
    pub kind: &'static str,
    /// Survives a restart.
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Takes no messages from clients.
    pub internal: bool,
    /// As declared.
    pub arguments: Table,
}

/// What a binding looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct BindingStats {
    /// The exchange.
    pub source: Bytes,
    /// The queue or exchange it feeds.
    pub destination: Bytes,
    /// Whether `destination` is a queue.
    pub to_queue: bool,
    /// The binding key.
    pub routing_key: Bytes,
    /// The arguments.
    pub arguments: Table,
}
