//! The inside of the broker: exchanges, queues, bindings, consumers, settlement, time to live,
//! limits and dead letters of one virtual host, as one state machine.
//!
//! It never does I/O, never reads a clock, and knows neither AMQP's bytes nor files nor a runtime:
//! commands and the time go in, [`Effect`]s come out. Whoever drives it carries the effects out in
//! order: deliveries to sockets, [`Record`]s to a store. All time is milliseconds since the epoch.
//!
//! ```
//! use tidings_broker_core::*;
//!
//! let mut broker = Broker::new(Options::default());
//! let mut effects = Vec::new();
//! let channel = broker.open_channel(ConnectionId(1), 1);
//! let queue = QueueDeclare { name: "greetings".into(), durable: true, ..Default::default() };
//! broker.declare_queue(channel, queue, 0, &mut effects)?;
//! let message = Message { persistent: true, ..Message::new("", "greetings", "hello") };
//! let published = broker.publish(channel, message, &[], 0, &mut effects)?;
//! assert_eq!(published, Published { queues: 1, rejected: false, stored: true });
//! let got = broker.get(channel, b"greetings", false, 0, &mut effects)?.expect("it is there");
//! broker.ack(channel, got.delivery_tag, false, 0, &mut effects)?;
//! assert!(matches!(effects.last(), Some(Effect::Store(Record::Removed { .. }))));
//! # Ok::<(), Refusal>(())
//! ```

mod backlog;
mod broker;
mod commands;
mod effect;
mod exchange;
mod message;
mod names;
mod queue;
mod record;
mod refusal;
mod room;
mod session;
mod slab;
mod topic;
mod value;

pub use broker::{Broker, Options};
pub use commands::{
    Binding, BindingStats, Consume, Counters, ExchangeDeclare, ExchangeStats, Got, Published,
    QueueDeclare, QueueDeclared, QueueStats, Settlement,
};
pub use effect::{ChannelId, ConnectionId, Delivery, Effect};
pub use message::{Death, DeathReason, Deaths, Message};
pub use record::{BindingEnd, BindingRecord, MessageId, QueueId, Queues, Record};
pub use refusal::{Refusal, ReplyCode};
pub use value::{NAME_BYTES_MAX, Table, Value};
