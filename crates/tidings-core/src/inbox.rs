//! The inbox: the life of each message at each consumer, as one row.
//!
//! The row of a message is named by its [`Claim`]. It says that the message was *handled*, or that
//! it waits in the store: *deferred* (it is tried again when it is due) or *parked* (behind an
//! earlier message of its key); or that it is *dead*. While it waits, the row holds the message
//! itself, so no broker has to delay anything, and a restart forgets nothing.
//!
//! ```text
//!                    ┌────────────────────────── fails ─┐
//!   delivery ──► deferred ── due, leased, tried ────────┴──► handled ──► pruned after the window
//!       │            ▲                              └──────► dead ──redrive──► tried once more
//!       ├─ behind ► parked ── the one before it ended
//!       └───────────────────────────────────────────────────► handled
//! ```
//!
//! Of the messages of one [`OrderKey`] at most one is the *head*: deferred, or dead and blocking. A
//! key is open as long as it has a head; whatever takes the head away, in the same transaction makes
//! the first parked message the next one.
//!
//! Rows are written by [`Commit`](crate::Commit)s, in the transaction of the attempt; [`Deferred`]
//! is the worker's and the operator's side.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{Attempt, BoxFuture, Envelope, MessageId, StoreError};

/// Names a message at a consumer: each handler has its own row for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim {
    /// The consumer and the message's name, `payment.order-placed.v1`; never the name of a
    /// partition or of anything else of an engine, so that a message keeps its row when the broker
    /// is exchanged.
    pub consumer: Box<str>,
    /// The message.
    pub message: MessageId,
}

/// What order is kept by: messages of one group with one key are handled one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderKey {
    /// The ordered group; several message types of a consumer may share one.
    pub group: Box<str>,
    /// The key.
    pub key: Box<str>,
}

/// What a commit writes about one message.
#[derive(Debug, Clone, PartialEq)]
pub struct InboxEntry {
    /// Which message.
    pub claim: Claim,
    /// What must be there already; otherwise the commit is refused.
    pub over: Over,
    /// What order is kept by, for consumers that ask for order.
    pub order: Option<OrderKey>,
    /// What becomes of the message.
    pub fate: Fate,
}

impl InboxEntry {
    /// A delivery that was handled, at a consumer that asks for no order.
    pub fn handled(claim: Claim) -> Self {
        Self {
            claim,
            over: Over::Nothing,
            order: None,
            fate: Fate::Handled,
        }
    }

    /// Whether it is what [`handled`](Self::handled) makes: what happens nearly always.
    pub fn is_plain(&self) -> bool {
        self.over == Over::Nothing && self.order.is_none() && self.fate == Fate::Handled
    }
}

/// Which row an [`InboxEntry`] is written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// A delivery: there must be no row.
    Nothing,
    /// A delivery of a dead letter that was sent again: there must be no row, or a dead one with a
    /// lower number. A dead message that blocks its key is not behind those that wait for it.
    Dead {
        /// The number of the redrive.
        redrive: u32,
    },
    /// A row that [`Deferred::take_due`] leased: the lease must still be this one. Such a row is the
    /// first of its key and cannot be parked.
    Lease(Lease),
}

/// Names one taking of one row; made by the worker, never used twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease(pub Box<str>);

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It is done; the row only says so, until it is pruned.
    Handled,
    /// It is tried again when it is due.
    Deferred(Waiting),
    /// It waits behind an earlier message of its key; becomes due when that one ends. Only with
    /// [`InboxEntry::order`].
    Parked(Waiting),
    /// It cannot be handled. The dead letter itself is a message of the same commit's outbox.
    Dead {
        /// How many attempts failed.
        failures: u32,
        /// Those attempts; bounded.
        history: Vec<Attempt>,
        /// Whether later messages of its key stay parked until it is redriven or discarded.
        blocks: bool,
    },
}

/// A message that waits in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Metadata and body. A row that is there already keeps the one it has.
    pub envelope: Arc<Envelope>,
    /// How long from now, by the database's clock, until it is due.
    pub due_in: Duration,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts; bounded.
    pub history: Vec<Attempt>,
}

/// Why a commit was refused: about one of its [`InboxEntry`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is a row already: the message was handled, waits, or is dead; or, over a lease, the
    /// lease is not held any more. There is nothing left to do with this delivery.
    Known,
    /// An earlier message of its key is not done: park this one.
    Behind,
    /// It was to be parked, but no earlier message of its key is open (any more): try it now.
    Free,
}

/// A question about a message, before its handler runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which message.
    pub claim: Claim,
    /// What order is kept by.
    pub order: Option<OrderKey>,
}

/// What the store knows about a message. Only a hint: the commit decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The state of its row, if there is one.
    pub state: Option<InboxState>,
    /// The number of the last redrive that was handled or failed; zero for none.
    pub redrive: u32,
    /// An earlier message of its key is not done.
    pub behind: bool,
}

impl Seen {
    /// Why a commit of the message would be refused that is over this.
    pub fn refusal(&self, over: &Over) -> Option<Refusal> {
        let is_known = match (self.state, over) {
            (None, _) => false,
            (Some(InboxState::Dead), Over::Dead { redrive }) => self.redrive >= *redrive,
            (Some(_), _) => true,
        };
        match is_known {
            true => Some(Refusal::Known),
            false => self.behind.then_some(Refusal::Behind),
        }
    }
}

/// The states of an inbox row, as stored (`0` to `3`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InboxState {
    /// Done.
    Handled = 0,
    /// Tried again when it is due.
    Deferred = 1,
    /// Behind an earlier message of its key.
    Parked = 2,
    /// Given up.
    Dead = 3,
}

impl InboxState {
    /// The state with this number.
    pub const fn from_number(number: i16) -> Option<Self> {
        match number {
            0 => Some(Self::Handled),
            1 => Some(Self::Deferred),
            2 => Some(Self::Parked),
            3 => Some(Self::Dead),
            _ => None,
        }
    }
}

/// Messages that wait in the store: the worker's side, and the operator's.
///
/// Times are the database's, so that the clocks of machines that share it do not matter.
pub trait Deferred: Send + Sync {
    /// Leases due messages of `consumers`, at most `limit`, those that are due longest first. A row
    /// that is not settled by a commit over its lease is due again when `lease` has passed: the
    /// worker died. Of the messages of one [`OrderKey`] only the first is ever due.
    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>>;

    /// Extends these leases to `lease` from now; those that are not held any more are left alone.
    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Gives rows back without an attempt: they are due after `due_in`.
    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// How long until the next message of `consumers` is due; zero if one is; `None` if none waits.
    fn next_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>>;

    /// How many messages of `consumer` are deferred or parked. Counts no further than `limit`.
    fn waiting<'a>(
        &'a self,
        consumer: &'a str,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// The consumers that have rows, in whatever state, ascending as the database compares texts; at
    /// most `limit`. For people: services know their own.
    fn consumers(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>>;

    /// Rows that are not handled, oldest first.
    fn list<'a>(
        &'a self,
        query: &'a InboxQuery,
    ) -> BoxFuture<'a, Result<Vec<InboxRow>, StoreError>>;

    /// Makes deferred messages due after `due_in`. Returns how many there were; a row that is
    /// leased, parked or dead is left alone.
    fn reschedule<'a>(
        &'a self,
        claims: &'a [Claim],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Ends messages that wait or are dead without handling them: they count as handled, and the
    /// next of their key may go on. Returns how many there were; a row that is leased is left
    /// alone.
    fn discard<'a>(&'a self, claims: &'a [Claim]) -> BoxFuture<'a, Result<u64, StoreError>>;
}

/// A message that is due, leased to a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Which message.
    pub claim: Claim,
    /// The lease under which it is settled.
    pub lease: Lease,
    /// What order is kept by.
    pub order: Option<OrderKey>,
    /// Metadata and body, or why they cannot be read.
    pub envelope: Result<Arc<Envelope>, Box<str>>,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts; bounded.
    pub history: Vec<Attempt>,
    /// How often the row was taken before and never settled: its handler may have ended the
    /// process.
    pub unfinished: u32,
}

/// Which inbox rows to list.
#[derive(Debug, Clone, Default)]
pub struct InboxQuery {
    /// Only those of this consumer.
    pub consumer: Option<Box<str>>,
    /// Only those in this state (never [`InboxState::Handled`]).
    pub state: Option<InboxState>,
    /// Only those after this [`InboxRow::number`].
    pub after: Option<i64>,
    /// How many at most.
    pub limit: usize,
}

/// A message that waits or is dead, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct InboxRow {
    /// Ascends with the time at which the row was made.
    pub number: i64,
    /// Which message.
    pub claim: Claim,
    /// Waiting or dead.
    pub state: InboxState,
    /// What order is kept by.
    pub order: Option<OrderKey>,
    /// When it is due, or when its lease ends.
    pub due: Option<Timestamp>,
    /// Whether a worker has it now.
    pub is_leased: bool,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts; bounded.
    pub history: Vec<Attempt>,
    /// Metadata and body, while it waits.
    pub envelope: Option<Arc<Envelope>>,
}
