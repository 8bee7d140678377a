//! A [`Transport`](tidings_core::Transport) and a [`Store`](tidings_core::Store) inside the
//! process, for unit tests and first steps.
//!
//! Nothing survives the process. In all else they keep the contracts of the ports and pass the
//! same conformance suites as the real ones. Their clock is tokio's: in a test with
//! `start_paused = true` a retry of an hour takes no time.
//!
//! A test can make things go wrong: [`MemoryTransport::limit`] makes a queue refuse,
//! [`MemoryTransport::delete_queue`] takes one away, [`close`](tidings_core::Transport::close) cuts a connection,
//! and [`MemoryStore::damage_outbox`] and [`MemoryStore::damage_inbox`] make stored messages
//! unreadable.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use tidings_core::{Destination, Envelope, Outgoing, Queue, Topology, Transport, Unrouted};
//! use tidings_memory::MemoryTransport;
//!
//! let transport = MemoryTransport::new();
//! let topology = Topology::new().queue(Queue::new("mail.order-placed.v1").topic("orders"));
//! transport.declare(&topology).await.unwrap();
//!
//! let message = Outgoing {
//!     destination: Destination::topic("orders"),
//!     unrouted: Unrouted::Hold,
//!     envelope: Envelope::new("order-placed.v1", r#"{"orderId":"o-1"}"#),
//! };
//! assert!(transport.publish(vec![message]).await[0].is_ok());
//! assert_eq!(transport.messages("mail.order-placed.v1").len(), 1);
//! # }
//! ```

mod broker;
mod letters;
mod store;
mod transport;

pub use broker::Stored;
pub use store::{MemoryStore, MemoryTransaction, Tx};
pub use transport::MemoryTransport;
