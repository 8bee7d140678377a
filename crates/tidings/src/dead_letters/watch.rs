//! Whether redriven messages come back, found out without reading the queue again and again.
//!
//! What comes back stands behind all the letters that are still to be sent. But the queue's length
//! tells how many letters came since the job began, and only when these are too many is it worth
//! the time to read them and see which are the job's own.

use std::time::Duration;

use super::redrive::CAME_BACK_MIN;

/// Reading takes at most this part of the time, one to how many.
const SHARE: u32 = 10;

/// What is known about what comes back.
#[derive(Debug)]
pub(super) struct Watch {
    /// The part of those that were sent which may come back.
    limit: Option<f64>,
    /// Letters that came, and are not the job's.
    others: u64,
    /// When to read next at the earliest, since the beginning.
    rests_until: Duration,
}

impl Watch {
    pub(super) fn new(limit: Option<f64>) -> Self {
        Self {
            limit,
            others: 0,
            rests_until: Duration::ZERO,
        }
    }

    /// True if so many letters have come, of so many that were sent, that they should be read.
    pub(super) fn suspects(&self, came: u64, sent: u64, now: Duration) -> bool {
        now >= self.rests_until && self.is_too_many(came.saturating_sub(self.others), sent)
    }

    /// Of `came` letters, `came_back` are the job's; to read them took until now since `began`.
    pub(super) fn has_read(&mut self, came: u64, came_back: u64, began: Duration, now: Duration) {
        self.others = came.saturating_sub(came_back);
        self.rests_until = now + now.saturating_sub(began) * SHARE;
    }

    /// True if the job must stop.
    pub(super) fn is_too_many(&self, came_back: u64, sent: u64) -> bool {
        self.limit.is_some_and(|limit| {
            came_back >= CAME_BACK_MIN && came_back as f64 > limit * sent as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn a_few_or_a_small_part_are_no_reason() {
        let watch = Watch::new(Some(0.2));
        assert!(!watch.is_too_many(CAME_BACK_MIN - 1, 10));
        assert!(!watch.is_too_many(20, 100));
        assert!(watch.is_too_many(21, 100));
        assert!(!Watch::new(None).is_too_many(100, 100));
    }

    #[test]
    fn what_others_send_is_read_once_and_then_left_out() {
        let mut watch = Watch::new(Some(0.2));
        assert!(watch.suspects(50, 100, NOW));
        watch.has_read(50, 5, NOW, NOW + Duration::from_millis(100));
        let later = Duration::from_secs(10);
        assert!(!watch.suspects(60, 100, later), "45 are not the job's");
        assert!(watch.suspects(66, 100, later));
        assert!(
            !watch.suspects(66, 100, Duration::from_millis(1500)),
            "it rests"
        );
    }
}
