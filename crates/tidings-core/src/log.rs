//! The log: events that a service keeps after it has sent them, so that they can be sent again to a
//! consumer that is added later.
//!
//! An event is written into the log by the commit that writes it into the outbox, and has the same
//! position there: the log holds exactly what was committed. A store keeps nothing until
//! [`Log::keep`] is called.
//!
//! What is old is dropped by whole *segments*, so that it costs the same however many events there
//! are. An event is therefore kept for its retention and a part of it more.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use jiff::Timestamp;

use crate::{BoxError, BoxFuture, Destination, Outgoing, StoreError};

/// A store's log of sent events. Times are the database's.
pub trait Log: Send + Sync {
    /// From now on, each event (a message to a topic) that is committed through this store is kept,
    /// in the same commit, for at least `retention`. Commands, answers and dead letters are not.
    ///
    /// It holds for this store in this process, and for work that begins after it returns.
    fn keep(&self, retention: Duration);

    /// For how long events are kept, if they are.
    fn kept(&self) -> Option<Duration>;

    /// A position up to which the log is complete: no event will ever be there at or before it that
    /// is not there now. Every event is before it whose commit ended before this was called.
    ///
    /// Waits for transactions that are writing events at this moment, as long as they take.
    fn horizon(&self) -> BoxFuture<'_, Result<i64, StoreError>>;

    /// The events after the position `after` and up to `until`, in order of position, at most
    /// `limit`. Events with the same key are in the order of their commits.
    fn read(
        &self,
        after: i64,
        until: i64,
        limit: usize,
    ) -> BoxFuture<'_, Result<LogPage, StoreError>>;

    /// Drops the segments whose events were all written longer ago than `age`. Begins a new segment
    /// if the events of the one that is written to span more than an eighth of `age`. Returns how
    /// many segments were dropped.
    ///
    /// A segment that is being read may stay until the next time.
    fn drop_older(&self, age: Duration) -> BoxFuture<'_, Result<u64, StoreError>>;
}

/// Some events of a log.
#[derive(Debug, Default)]
pub struct LogPage {
    /// The events, in order of position.
    pub entries: Vec<LogEntry>,
    /// The greatest position that was dropped; 0 if none was. A reader that was before it has missed
    /// events.
    pub dropped_until: i64,
}

/// An event that was kept.
#[derive(Debug)]
pub struct LogEntry {
    /// Its place: that of its outbox row.
    pub position: i64,
    /// When it was written.
    pub written: Timestamp,
    /// The event as it was sent, or why it cannot be read.
    pub message: Result<Outgoing, BoxError>,
}

/// Into how many parts a retention is divided: events live so much longer at most before their
/// segment is dropped.
pub const SEGMENTS_PER_RETENTION: u32 = 8;

/// The header of a message that is sent again out of a log. Its value names the replay.
pub const REPLAY_HEADER: &str = "tidings-replay";

/// For stores: whether events are kept, and for how long.
#[derive(Debug, Default)]
pub struct Keeping(AtomicU64);

impl Keeping {
    /// Events are kept for `retention` from now on, at least for a millisecond.
    pub fn keep(&self, retention: Duration) {
        let millis = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis.max(1), Ordering::Release);
    }

    /// For how long they are kept, if they are.
    pub fn kept(&self) -> Option<Duration> {
        let millis = self.0.load(Ordering::Acquire);
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// Whether `message` is an event that is kept.
    pub fn keeps(&self, message: &Outgoing) -> bool {
        self.0.load(Ordering::Acquire) > 0 && matches!(message.destination, Destination::Topic(_))
    }
}
