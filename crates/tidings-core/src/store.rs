//! The port to a database: one transaction per attempt, which holds the inbox claim, the handler's
//! writes and the outbox rows; and the relay's side of the outbox.
//!
//! The promises P1 (no lost event) and P2 (effects once) rest on [`Transaction::commit`] being
//! atomic, and on outbox rows being removed only after the broker confirmed them.

use std::{any::Any, error::Error as StdError, fmt, time::Duration};

use crate::{BoxError, BoxFuture, MessageId, Outgoing};

/// A database that belongs to one service.
pub trait Store: Send + Sync + 'static {
    /// Begins a transaction.
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>>;

    /// Commits a [`Commit`] for which no transaction was begun: the same as
    /// [`begin`](Self::begin) and [`Transaction::commit`], in one step.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>>;

    /// True if this claim has been committed: the message was handled before. Only a read, to save
    /// the work of a handler; the claim inside the transaction decides.
    fn is_claimed<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Leases, or renews, as many outbox lanes for `relay` as are free or already its own, for
    /// `lease`. A relay that stops renewing loses its lanes when the lease ends, no human needed.
    /// Returns the lanes that are now its own.
    fn lease_lanes<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Vec<Lane>, StoreError>>;

    /// Gives up the lanes of `relay` at once (shutdown).
    fn release_lanes<'a>(&'a self, relay: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The oldest unsent outbox rows of `lanes` that are not deferred, at most `limit`, in order of
    /// position. Rows with the same key are in the same lane.
    ///
    /// There is no watermark on purpose: a transaction may commit later than one with greater
    /// positions, and its rows must not be skipped.
    fn unsent<'a>(
        &'a self,
        lanes: &'a [Lane],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>>;

    /// Hides rows from [`unsent`](Self::unsent) for `delay`: nobody listens to them yet, or the
    /// broker refused them.
    fn defer<'a>(
        &'a self,
        positions: &'a [i64],
        delay: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes rows that the broker confirmed, by their positions.
    fn sent<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Resolves when a transaction with outbox rows has committed (in this process, or in another
    /// as far as the database tells) since this was last called. May resolve without cause.
    fn committed(&self) -> BoxFuture<'_, ()>;

    /// How full the outbox is.
    fn outbox_stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>>;

    /// Deletes inbox claims older than `age`, at most `limit`. Returns how many.
    fn forget_claims(&self, age: Duration, limit: usize) -> BoxFuture<'_, Result<u64, StoreError>>;
}

/// One attempt's transaction. Dropping it rolls it back.
pub trait Transaction: Any + Send {
    /// Writes the claim and the outbox rows, and commits them together with everything that was
    /// written through this transaction. Resolves when it is durable.
    ///
    /// If the claim was taken already, nothing is written and the answer is
    /// [`Committed::Duplicate`].
    fn commit(self: Box<Self>, commit: Commit)
    -> BoxFuture<'static, Result<Committed, StoreError>>;

    /// Undoes everything. Resolves when that is done.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What the toolkit adds to a transaction before it commits.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// The claim on the message that is being handled; `None` outside of handlers.
    pub claim: Option<Claim>,
    /// The messages to send.
    pub outbox: Vec<Outgoing>,
}

/// A row of the inbox: this consumer has handled this message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The consumer and the message's name, as the queue's name: each handler claims for itself.
    pub consumer: Box<str>,
    /// The message.
    pub message: MessageId,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Everything is durable.
    Done,
    /// The claim was taken: the message had been handled before. Nothing was written.
    Duplicate,
}

/// A part of the outbox that one relay at a time drains: rows with the same key share a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u16);

impl Lane {
    /// How many lanes there are.
    pub const COUNT: u16 = 16;

    /// The lane of a key (FNV-1a over its bytes, so that every version of every store agrees).
    pub fn of(key: &str) -> Self {
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self((hash % u64::from(Self::COUNT)) as u16)
    }

    /// The lane of a message: by its key, or by its id if it has none.
    pub fn of_message(message: &Outgoing) -> Self {
        let envelope = &message.envelope;
        let key = envelope
            .key
            .as_deref()
            .or(envelope.id.as_ref().map(MessageId::as_str));
        Self::of(key.unwrap_or_default())
    }
}

/// An unsent message.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Its place: greater for whatever was committed later with the same key.
    pub position: i64,
    /// The message.
    pub message: Outgoing,
}

/// How full an outbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxStats {
    /// Messages not yet confirmed by the broker.
    pub unsent: u64,
    /// The age of the oldest of them; zero if there is none.
    pub oldest_age: Duration,
}

/// A failure of the database.
#[derive(Debug)]
pub struct StoreError {
    message: String,
    source: Option<BoxError>,
}

impl StoreError {
    /// What was attempted and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
