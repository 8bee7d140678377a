//! When a connection has to be looked at although nothing came and nothing can be written: heartbeats
//! both ways, a peer that does not read, and one that does not say goodbye.
//!
//! What is due is done, and then it is not due any more: the next deadline always lies ahead, so that
//! a connection that waits sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// How long a peer may take to answer `connection.close`.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The times that deadlines count from.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// What was agreed upon; zero is none.
    heartbeat: Duration,
    /// How long written bytes may stay unread.
    write_timeout: Duration,
    pub(crate) last_read: Instant,
    pub(crate) last_write: Instant,
    pub(crate) closing_since: Option<Instant>,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    /// Something is to be written, and the socket takes no more.
    pub(crate) to_write: bool,
    /// The peer is read as soon as it says something.
    pub(crate) to_read: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Write a heartbeat.
    Heartbeat,
    /// End the connection, for this reason.
    End(&'static str),
}

impl Deadlines {
    pub(crate) fn new(heartbeat: Duration, write_timeout: Duration, now: Instant) -> Deadlines {
        Deadlines {
            heartbeat,
            write_timeout,
            last_read: now,
            last_write: now,
            closing_since: None,
        }
    }

    /// When to call [`Deadlines::due`], if nothing happens before.
    pub(crate) fn next(&self, now: Instant, waiting: Waiting) -> Instant {
        const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
        let mut next = now + NEVER;
        if waiting.to_write {
            next = next.min(self.last_write + self.write_timeout);
        } else if !self.heartbeat.is_zero() {
            next = next.min(self.last_write + self.heartbeat / 2);
        }
        if !self.heartbeat.is_zero() {
            next = next.min(self.last_read + self.heartbeat * 2);
        }
        if let Some(since) = self.closing_since {
            next = next.min(since + CLOSE_TIMEOUT);
        }
        next
    }

    /// What is due.
    pub(crate) fn due(&mut self, now: Instant, waiting: Waiting) -> Due {
        if self
            .closing_since
            .is_some_and(|since| now >= since + CLOSE_TIMEOUT)
        {
            return Due::End("the peer did not answer connection.close");
        }
        if waiting.to_write && now >= self.last_write + self.write_timeout {
            return Due::End("the peer does not read, `write_timeout` is over");
        }
        if self.heartbeat.is_zero() {
            return Due::Nothing;
        }
        if now >= self.last_read + self.heartbeat * 2 {
            if waiting.to_read {
                return Due::End("the peer missed two heartbeats");
            }
            // A peer that is not read cannot be heard.
            self.last_read = now;
        }
        // What waits to be written tells the peer as much as a heartbeat would.
        if !waiting.to_write && now >= self.last_write + self.heartbeat / 2 {
            return Due::Heartbeat;
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every mixture of times since the last read, write and goodbye.
    #[test]
    fn what_is_due_is_done_and_then_the_next_deadline_lies_ahead() {
        let now = Instant::now() + Duration::from_secs(1000);
        let ages = [0, 1, 2, 3, 4, 5, 6, 7, 11, 31, 59, 61, 121, 500].map(Duration::from_secs);
        let mut checked = 0;
        for heartbeat in [0, 2, 6, 60] {
            for write_timeout in [3, 60] {
                for (read, written) in ages.iter().flat_map(|a| ages.iter().map(move |b| (a, b))) {
                    for closing in [None, Some(1), Some(6)].map(|s| s.map(Duration::from_secs)) {
                        for to_write in [false, true] {
                            for to_read in [false, true] {
                                let heartbeat = Duration::from_secs(heartbeat);
                                let timeout = Duration::from_secs(write_timeout);
                                let deadlines = Deadlines {
                                    last_read: now - *read,
                                    last_write: now - *written,
                                    closing_since: closing.map(|age| now - age),
                                    ..Deadlines::new(heartbeat, timeout, now)
                                };
                                check(deadlines, now, Waiting { to_write, to_read });
                                checked += 1;
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(checked, 4 * 2 * 14 * 14 * 3 * 2 * 2);
    }

    fn check(mut deadlines: Deadlines, now: Instant, waiting: Waiting) {
        let overdue = deadlines.next(now, waiting) <= now;
        let before = format!("{deadlines:?} {waiting:?}");
        match deadlines.due(now, waiting) {
            Due::End(_) => assert!(overdue, "{before} ends before its deadline"),
            Due::Heartbeat => {
                assert!(overdue && !waiting.to_write, "{before}");
                deadlines.last_write = now;
                assert!(deadlines.next(now, waiting) > now, "{before} spins");
            }
            Due::Nothing => assert!(deadlines.next(now, waiting) > now, "{before} spins"),
        }
    }
}
