//! How fast letters are sent: so many per second, and fewer at first.

use std::{num::NonZeroU32, time::Duration};

/// What part of the rate the first moment has.
const FIRST: f64 = 0.05;

/// How many letters may have been sent by when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Letters per second; `None` for as many as go.
    pub(super) rate: Option<NonZeroU32>,
    /// How long it takes from a twentieth of the rate to the whole of it.
    pub(super) ramp: Duration,
}

impl Pace {
    /// How many letters may have been sent this long after the beginning.
    pub(super) fn allowed(&self, after: Duration) -> u64 {
        let Some(rate) = self.rate else {
            return u64::MAX;
        };
        let (after, ramp) = (after.as_secs_f64(), self.ramp.as_secs_f64());
        let on_ramp = after.min(ramp);
        // The area under a line that rises from a twentieth to one.
        let risen = match ramp > 0.0 {
            true => on_ramp * (FIRST + (1.0 - FIRST) * on_ramp / ramp / 2.0),
            false => 0.0,
        };
        let seconds = risen + (after - on_ramp);
        // One at once, so that the first moment is not waited for.
        1 + (seconds * f64::from(rate.get())) as u64
    }

    /// How long to wait, `after` the beginning, until more than `sent` may be sent: not too long, so
    /// that whoever waits can look around.
    pub(super) fn wait(&self, sent: u64, after: Duration) -> Duration {
        const STEP: Duration = Duration::from_millis(10);
        const STEPS_MAX: u32 = 100;
        let steps = (1..STEPS_MAX).find(|steps| self.allowed(after + STEP * *steps) > sent);
        STEP * steps.unwrap_or(STEPS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_slowly_and_comes_to_its_rate() {
        let pace = Pace {
            rate: NonZeroU32::new(100),
            ramp: Duration::from_secs(10),
        };
        let at = |seconds| pace.allowed(Duration::from_secs(seconds));
        assert_eq!(at(0), 1);
        assert!((5..=12).contains(&at(1)), "{}", at(1));
        let half = 10 * 100 * 21 / 40;
        assert!((half - 2..=half + 2).contains(&at(10)), "{}", at(10));
        assert_eq!(at(20) - at(10), 1000);
        let wait = pace.wait(at(1), Duration::from_secs(1));
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(200));
    }

    #[test]
    fn without_a_ramp_it_has_its_rate_at_once_and_without_a_rate_none() {
        let pace = Pace {
            rate: NonZeroU32::new(2),
            ramp: Duration::ZERO,
        };
        assert_eq!(pace.allowed(Duration::from_secs(3)), 7);
        let free = Pace { rate: None, ..pace };
        assert_eq!(free.allowed(Duration::ZERO), u64::MAX);
    }
}
