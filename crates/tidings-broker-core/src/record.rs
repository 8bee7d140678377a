//! What must survive a restart, as a log of facts.
//!
//! Only the durable part of the broker makes records: durable exchanges, durable queues that belong
//! to no connection, bindings between such, and persistent messages in such queues. Each record
//! stands on its own: a store may drop a pair that cancels out (declared and deleted, enqueued and
//! removed) and may replay what is left in the order exchanges, queues, bindings, messages by id.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Message, Table};

/// A durable queue, for ever: a queue deleted and declared anew has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

/// One publication. Ids grow, and order the messages of a queue; the copies of a message in several
/// queues share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// The durable queues a message went to; nearly always one.
#[derive(Debug, Clone, PartialEq)]
pub enum Queues {
    /// One queue, without an allocation.
    One(QueueId),
    /// Several, in no particular order, none twice.
    Many(Arc<[QueueId]>),
}

impl Queues {
    /// The queues as a slice.
    pub fn as_slice(&self) -> &[QueueId] {
        match self {
            Self::One(queue) => std::slice::from_ref(queue),
            Self::Many(queues) => queues,
        }
    }
}

/// A binding between durable ends.
#[derive(Debug, Clone, PartialEq)]
pub struct BindingRecord {
    /// The exchange messages come from.
    pub source: Bytes,
    /// Where they go.
    pub destination: BindingEnd,
    /// The binding key.
    pub routing_key: Bytes,
    /// The binding's arguments.
    pub arguments: Table,
}

/// The durable destination of a binding.
#[derive(Debug, Clone, PartialEq)]
pub enum BindingEnd {
    /// A queue.
    Queue(QueueId),
    /// An exchange, by name.
    Exchange(Bytes),
}

/// One fact about the durable part of the broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A durable exchange exists.
    ExchangeDeclared {
        /// Its name.
        name: Bytes,
        /// Its type, as AMQP names it: `direct`, `fanout`, `topic`, `headers`.
        kind: Bytes,
        /// Goes when its last binding goes.
        auto_delete: bool,
        /// Takes no messages from clients.
        internal: bool,
        /// Its arguments.
        arguments: Table,
    },
    /// A durable exchange is gone. Its bindings have had an [`Record::Unbound`] each.
    ExchangeDeleted {
        /// Its name.
        name: Bytes,
    },
    /// A durable queue exists.
    QueueDeclared {
        /// Its id.
        queue: QueueId,
        /// Its name.
        name: Bytes,
        /// Goes when its last consumer goes.
        auto_delete: bool,
        /// Its arguments.
        arguments: Table,
    },
    /// A durable queue is gone. Its bindings have had an [`Record::Unbound`] each, and the messages
    /// that were ready have been removed; those still out with a consumer are removed when their
    /// delivery is settled, so a store ignores messages of queues it does not know.
    QueueDeleted {
        /// Its id.
        queue: QueueId,
    },
    /// A durable binding exists.
    Bound(BindingRecord),
    /// A durable binding is gone.
    Unbound(BindingRecord),
    /// A persistent message lies in these durable queues.
    Enqueued {
        /// Its id, larger than that of every earlier message.
        id: MessageId,
        /// When, in milliseconds since the epoch; times to live count from here.
        at: u64,
        /// Where.
        queues: Queues,
        /// What.
        message: Arc<Message>,
    },
    /// A message has left a durable queue for good.
    Removed {
        /// The queue.
        queue: QueueId,
        /// The message.
        id: MessageId,
    },
    /// Several messages have left a durable queue for good.
    RemovedMany {
        /// The queue.
        queue: QueueId,
        /// The messages, in no particular order.
        ids: Vec<MessageId>,
    },
    /// Ids below these have been given out; kept by a store so that ids never repeat although the
    /// records that held them are gone.
    Ids {
        /// The lowest id no message ever had.
        next_message: MessageId,
        /// The lowest id no queue ever had.
        next_queue: QueueId,
    },
}
