//! A log line that says the same again and again says it now and then.

use std::time::Duration;

use tokio::time::Instant;

/// Allows something once in a while.
pub(crate) struct Throttle {
    every: Duration,
    next: Option<Instant>,
}

impl Throttle {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, next: None }
    }

    /// True the first time, and then once per period.
    pub(crate) fn allows(&mut self) -> bool {
        let now = Instant::now();
        let allowed = self.next.is_none_or(|next| next <= now);
        if allowed {
            self.next = Some(now + self.every);
        }
        allowed
    }
}
