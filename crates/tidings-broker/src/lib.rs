//! A durable message broker that speaks AMQP 0-9-1 as RabbitMQ does: a server, and a library to
//! embed.
//!
//! It never clusters, and never confirms a persistent message in a durable queue before it is on
//! stable storage.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), tidings_broker::Error> {
//! use tidings_broker::{Broker, Options};
//!
//! // A real broker for a test, in milliseconds. `Options::durable(folder)` keeps its data.
//! let broker = Broker::start(Options::ephemeral()).await?;
//! assert_ne!(broker.amqp_addr().port(), 0);
//! broker.shutdown().await
//! # }
//! ```
//!
//! # How it works
//!
//! One task per connection turns bytes into commands ([`tidings_wire`]). Commands run one after the
//! other under one lock (`engine`): the core ([`tidings_broker_core`]) decides, its records go to
//! the log ([`tidings_broker_log`]), its deliveries to the connections' outbound queues. Nobody
//! waits for a sync under the lock: the log syncs many records at once and then wakes the
//! connections that owe a confirm.

mod admission;
mod backlogs;
mod connection;
mod deadlines;
mod engine;
mod error;
mod handshake;
mod meter;
mod options;
mod outbound;
mod pending;
pub mod program;
mod service;
mod session;
mod translate;
mod users;

pub use error::Error;
pub use options::{Limits, Options};
pub use service::{Broker, Handle};
pub use users::User;
