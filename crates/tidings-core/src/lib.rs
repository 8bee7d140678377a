//! The vocabulary of Tidings (message, envelope, delivery, settlement) and its two ports,
//! [`Transport`] and [`Store`].
//!
//! It never does I/O, reads no clock and starts no task: adapters and the `tidings` crate do.
//!
//! ```text
//!            Message ──► Envelope ──► Outgoing ──► Store (outbox) ──► Transport
//!   handler ◄── FromContext ◄── Context ◄── Delivery ◄───────────────── Transport
//! ```

mod body;
mod context;
mod dead_letters;
mod delivery;
mod envelope;
mod error;
mod habits;
mod inbox;
mod log;
mod message;
mod metadata;
mod outbox;
mod received;
mod records;
mod sending;
mod sensitive;
mod store;
mod transport;

pub use body::{BodyError, BodySchema, JSON, essence, is_json, read_json, write_json};
pub use context::{
    Context, FromBatch, FromContext, Incoming, Provided, States, TransactionHandle, TransactionSlot,
};
pub use dead_letters::{
    AccessError, AccessErrorKind, DeadLetter, DeadLetterAccess, HOLD_TIME_MAX, HeldLetters,
    LetterPlace, RECORD_QUEUE, RECORDED_COUNT_MAX,
};
pub use delivery::{
    Attempt, Delivery, FAILURES_HEADER, HISTORY_HEADER, QUEUE_HEADER, REASON_HEADER,
    REDRIVE_HEADER, REPLY_TO_HEADER, Settlement, Settler, Settling, dead_letter, history_as_json,
    shortened_history, shortened_reason,
};
pub use envelope::{Envelope, MessageId};
pub use error::{BoxError, Error, Permanent, PermanentExt, RetryAfter, is_permanent};
pub use habits::Habits;
pub use inbox::{
    Ask, Claim, Deferred, Due, Fate, InboxEntry, InboxQuery, InboxRow, InboxState, Lease, OrderKey,
    Over, Refusal, Seen, Waiting,
};
pub use log::{Keeping, Log, LogEntry, LogPage, REPLAY_HEADER, SEGMENTS_PER_RETENTION};
pub use message::{Command, Destination, Event, Message, Outgoing, Unrouted, identity_of};
pub use outbox::{
    Lane, Leased, ListedRow, Outbox, OutboxRow, OutboxState, OutboxStats, hash_of_key,
};
pub use received::Received;
pub use records::{Expected, Record, RecordChange, RecordId, RecordQuery, RecordValue, Records};
pub use sending::{
    Cancel, IntoMessages, Messages, Reply, ScheduleId, Scheduled, SendWith, Sends, When, With,
};
#[doc(hidden)]
pub use sensitive::{FieldOf, NotMarked};
pub use sensitive::{Sensitive, SensitivePaths};
pub use store::{Commit, Committed, Store, StoreError, Transaction, Work, WorkError, WorkFuture};
pub use transport::{
    Deliveries, Features, Group, PublishError, PublishErrorKind, Queue, QueueDepth, SLOT_COUNT,
    Subscription, Topology, Transport, TransportError, dead_letter_queue, slot_of,
};

/// A boxed future, as the ports return it so that they can be used as trait objects.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
