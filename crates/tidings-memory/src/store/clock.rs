//! The database's clock: tokio's, so that a test with paused time moves it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

pub(super) struct Clock {
    started: Instant,
    started_at: Timestamp,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            started_at: Timestamp::now(),
        }
    }
}

impl Clock {
    pub(super) fn now(&self) -> Timestamp {
        later(self.started_at, self.started.elapsed())
    }
}

/// The time `duration` after `time`, or the latest there is.
pub(super) fn later(time: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    time.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

/// The time `duration` before `time`, or the earliest there is.
pub(super) fn earlier(time: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    time.saturating_sub(duration).unwrap_or(Timestamp::MIN)
}

/// How long it takes from `from` to `to`; zero if `to` is not after it.
pub(super) fn until(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
