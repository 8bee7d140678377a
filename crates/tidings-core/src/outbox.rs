//! The outbox: messages that were committed and wait for the broker's confirm. This is the relay's
//! side of it; rows are written by [`Commit`](crate::Commit)s.
//!
//! A row is *ready*, *held* or *set aside*. Ready rows are offered to the broker in order. A row that
//! was offered and not taken is held: nobody listens to its destination, or a queue behind it
//! refused it or did not confirm it. Held rows cost nothing in the rounds of the others; one row of each destination is
//! offered again from time to time, and when it is taken the others follow in order. A row that can
//! never be sent is set aside with the reason, until an operator releases or discards it.
//!
//! Rows are removed only by position and only after their own confirm (P1).

use std::time::Duration;

use jiff::Timestamp;

use crate::{BoxError, BoxFuture, Destination, MessageId, Outgoing, StoreError};

/// The relay's side of a store's outbox.
///
/// Times are the database's, so that the clocks of machines that share it do not matter.
pub trait Outbox: Send + Sync {
    /// Renews the lease of the lanes that `relay` has, and takes free ones, so that the relays that
    /// are alive (that called this within their `lease`) have equal shares. A relay that stops
    /// calling loses its lanes when the lease ends.
    fn lease<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Leased, StoreError>>;

    /// Gives up lanes of `relay`, or all of them and its share (shutdown).
    fn release<'a>(
        &'a self,
        relay: &'a str,
        lanes: Option<&'a [Lane]>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The oldest ready rows of `lanes` that are not among `except` (in flight), at most `limit`,
    /// in order of position. Rows with the same key are in the same lane.
    ///
    /// There is no watermark on purpose: a transaction may commit later than one with greater
    /// positions, and its rows must not be skipped. A store may return those of a transaction that
    /// took longer than a second a few seconds later, if no row of theirs has a key that a row returned
    /// before it has.
    ///
    /// A row to one of the `held` destinations says whether a row with its key is held there
    /// ([`OutboxRow::is_behind`]).
    fn next<'a>(
        &'a self,
        lanes: &'a [Lane],
        held: &'a [Destination],
        except: &'a [i64],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>>;

    /// Removes rows that the broker confirmed, by their positions, in whatever state they are.
    fn confirmed<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Holds rows, with the reason for people. Does nothing to rows of lanes that `relay` does not
    /// have (any more): whoever has them decides.
    fn hold<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The destinations to which rows of `lanes` are held.
    fn held<'a>(&'a self, lanes: &'a [Lane])
    -> BoxFuture<'a, Result<Vec<Destination>, StoreError>>;

    /// The oldest rows held for `destination`, as [`next`](Self::next); none of them is
    /// [behind](OutboxRow::is_behind).
    fn next_held<'a>(
        &'a self,
        lanes: &'a [Lane],
        destination: &'a Destination,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>>;

    /// Sets rows aside, with the reason for people, under the same condition as
    /// [`hold`](Self::hold).
    fn set_aside<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Rows for people: held ones, or those set aside; oldest first, after the position `after`.
    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ListedRow>, StoreError>>;

    /// Makes rows that were set aside ready again. Returns how many there were.
    fn restore<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Deletes rows that were set aside, for good. Returns how many there were.
    fn discard<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Resolves when a transaction with outbox rows has committed (in this process, or in another
    /// as far as the database tells) since this was last called. May resolve without cause.
    fn committed(&self) -> BoxFuture<'_, ()>;

    /// How full the outbox is.
    fn stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>>;
}

/// A part of the outbox that one relay at a time drains: rows with the same key share a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u16);

impl Lane {
    /// How many lanes there are.
    pub const COUNT: u16 = 16;

    /// The lane of a key.
    pub fn of(key: &str) -> Self {
        Self((hash_of_key(key) % u64::from(Self::COUNT)) as u16)
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

/// FNV-1a over the key's bytes, 64 bits: the same in every version of every store.
pub fn hash_of_key(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The lanes of a relay after a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leased {
    /// The lanes that are its own now, ascending.
    pub lanes: Vec<Lane>,
    /// How many of them it should give up, once nothing of theirs is in flight, for relays that
    /// have fewer.
    pub surplus: u16,
}

/// A message that is not confirmed.
#[derive(Debug)]
pub struct OutboxRow {
    /// Its place: greater for whatever was committed later with the same key.
    pub position: i64,
    /// How long ago it was written.
    pub age: Duration,
    /// True if a row with its key is held for its destination.
    pub is_behind: bool,
    /// The message, or why it cannot be read.
    pub message: Result<Outgoing, BoxError>,
}

/// Why an outbox row is not ready, as stored (`1` and `2`; ready is `0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxState {
    /// It was offered to the broker and not taken.
    Held = 1,
    /// It cannot be sent as it is.
    SetAside = 2,
}

/// A row that is not ready, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedRow {
    /// Its place.
    pub position: i64,
    /// When it was written.
    pub written: Timestamp,
    /// Where it goes.
    pub destination: Destination,
    /// Why it is not ready.
    pub reason: String,
    /// The message, if it can be read.
    pub message: Option<Outgoing>,
}

/// How full an outbox is. Counts stop at [`OutboxStats::COUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxStats {
    /// Messages that are ready to be sent.
    pub ready: u64,
    /// The age of the oldest of those; zero if there is none.
    pub oldest_ready_age: Duration,
    /// Messages that are held.
    pub held: u64,
    /// The age of the oldest of those; zero if there is none.
    pub oldest_held_age: Duration,
    /// Messages that were set aside.
    pub set_aside: u64,
}

impl OutboxStats {
    /// Each count says at most this, so that counting a million rows costs the others nothing.
    pub const COUNT_MAX: u64 = 100_000;
}
