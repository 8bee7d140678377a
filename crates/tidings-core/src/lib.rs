//! The vocabulary of Tidings (message, envelope, delivery, settlement) and its two ports,
//! [`Transport`] and [`Store`].
//!
//! It never does I/O, reads no clock and starts no task: adapters and the `tidings` crate do.
//!
//! ```text
//!            Message ──► Envelope ──► Outgoing ──► Store (outbox) ──► Transport
//!   handler ◄── FromContext ◄── Context ◄── Delivery ◄───────────────── Transport
//! ```

mod context;
mod delivery;
mod envelope;
mod error;
mod message;
mod record;
mod store;
mod transport;

pub use context::{Context, FromContext, Provided, States, TransactionHandle, TransactionSlot};
pub use delivery::{Attempt, Delivery, Settlement, Settler};
pub use envelope::{Envelope, MessageId};
pub use error::{BoxError, Error, Permanent, PermanentExt, is_permanent};
pub use message::{
    Command, Destination, Event, IntoMessages, Message, Outgoing, Unrouted, identity_of,
};
pub use store::{
    Claim, Commit, Committed, Lane, OutboxRow, OutboxStats, Store, StoreError, Transaction,
};
pub use transport::{
    Deliveries, Features, PublishError, PublishErrorKind, Queue, Subscription, Topology, Transport,
    TransportError, dead_letter_queue,
};

/// A boxed future, as the ports return it so that they can be used as trait objects.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
