//! The database's clock, and times as its tables keep them.
//!
//! SQLite has no clock of its own that could be asked once per statement, so the time of the
//! machine is read once per transaction and bound as a parameter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, millis)
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// `duration` after `now`; both in milliseconds.
pub(crate) fn later(now: i64, duration: Duration) -> i64 {
    now.saturating_add(millis(duration))
}

/// `duration` before `now`; both in milliseconds.
pub(crate) fn earlier(now: i64, duration: Duration) -> i64 {
    now.saturating_sub(millis(duration))
}

/// From `from` until `to`, or nothing if that is over; both in milliseconds.
pub(crate) fn between(from: i64, to: i64) -> Duration {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// The same time for people. Times further away than a [`Timestamp`] reaches are its ends.
pub(crate) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_else(|_| end(ms))
}

/// The time of a number of microseconds since 1970.
pub(crate) fn timestamp_us(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_else(|_| end(us))
}

const fn end(number: i64) -> Timestamp {
    if number < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    }
}

/// A limit as SQLite takes it.
pub(crate) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
