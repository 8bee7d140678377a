//! Retries: a few fast attempts in the process, then delayed ones, then dead letters. One policy
//! describes all three.
//!
//! Only attempts count that tried something. When the database does not answer, a circuit breaker
//! is open or a layer sheds load, the handler pauses instead, for as long as it takes: an outage of
//! an hour must not turn an hour of messages into dead letters.

use std::{
    collections::hash_map::RandomState,
    error::Error as StdError,
    fmt,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use tower::{Service, load_shed::error::Overloaded};

use crate::{
    BoxError, CircuitOpen, Commit, Committed, Context, Handled, HandlerService, RetryAfter, Store,
    StoreError, WorkError, is_permanent,
};

/// How often and when a message is tried, before it becomes a dead letter.
///
/// An attempt that tried nothing does not count: when the database does not answer, a
/// [`CircuitBreaker`](crate::CircuitBreaker) is open or a layer sheds load, the handler pauses.
///
/// The default is 13 attempts: three at once, then after 1, 2, 4, ... seconds, the last after 512; a
/// failure that passes within a quarter of an hour needs nobody.
///
/// ```
/// use std::time::Duration;
/// use tidings::Retry;
///
/// let policy = Retry::exponential(Duration::from_secs(1)).attempts(5).fast_attempts(2);
/// // The first two attempts follow each other at once, the others come after:
/// let delays: Vec<_> = (0..3).map(|failures| policy.delay(failures).as_secs()).collect();
/// assert_eq!(delays, [1, 2, 4]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    fast_attempts: u32,
    fast_backoff: Duration,
    delay_first: Duration,
    delay_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1)).attempts(13)
    }
}

impl Retry {
    /// Delays that begin with `delay` and double each time. (A consumer without a store lets the
    /// broker delay, and that may round up.)
    pub fn exponential(delay: Duration) -> Self {
        Self {
            attempts: 13,
            fast_attempts: 3,
            fast_backoff: Duration::from_millis(20),
            delay_first: delay,
            delay_max: Duration::from_secs(600),
        }
    }

    /// No retries at all: the first failure is a dead letter.
    pub fn none() -> Self {
        Self::default().attempts(1)
    }

    /// How often a handler is tried in all (at least once) before the message becomes a dead
    /// letter.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How many of the attempts are made one after the other in the process when a message comes
    /// for the first time (at least one).
    pub fn fast_attempts(mut self, attempts: u32) -> Self {
        self.fast_attempts = attempts.max(1);
        self
    }

    /// The longest delay (default 10 minutes; the first delay may be longer).
    pub fn delay_max(mut self, delay: Duration) -> Self {
        self.delay_max = delay;
        self
    }

    /// The delay after a delivery that failed, when `failures` deliveries had failed before it.
    pub fn delay(&self, failures: u32) -> Duration {
        let doubled = self
            .delay_first
            .saturating_mul(2u32.saturating_pow(failures));
        doubled.min(self.delay_max).max(self.delay_first)
    }

    /// The different delays of the attempts after the fast ones, for a broker that prepares them.
    pub(crate) fn delays(&self) -> Vec<Duration> {
        let delayed = self.attempts.saturating_sub(self.fast_attempts);
        let mut delays: Vec<Duration> = Vec::new();
        for failures in 0..delayed {
            let delay = self.delay(failures);
            if delays.last() == Some(&delay) {
                break; // It has come to its longest.
            }
            delays.push(delay);
        }
        delays
    }

    /// How many attempts one delivery gets, after `failures` deliveries.
    fn attempts_of_delivery(&self, failures: u32) -> u32 {
        match failures {
            0 => self.fast_attempts.min(self.attempts),
            _ => 1,
        }
    }

    /// What happens to a message whose delivery failed, when `failures` had failed before it.
    fn verdict(&self, failures: u32, error: &(dyn StdError + 'static)) -> Verdict {
        if let Some(pause) = untried(error) {
            return Verdict::Pause(pause);
        }
        let attempts = self.fast_attempts.saturating_add(failures);
        if is_permanent(error) || is_unstorable(error) || attempts >= self.attempts {
            return Verdict::DeadLetter;
        }
        let asked = find::<RetryAfter>(error).map_or(Duration::ZERO, RetryAfter::delay);
        Verdict::RetryAfter(self.delay(failures).max(asked))
    }

    /// A random part of a backoff that doubles; so that instances do not fail in step.
    fn backoff(&self, attempt: u32) -> Duration {
        let ceiling = self.fast_backoff * 2u32.saturating_pow(attempt.min(8));
        let random = RandomState::new().build_hasher().finish() % 1000;
        ceiling / 2 + ceiling / 2 * (random as u32) / 1000
    }

    /// Makes the fast attempts by `service`.
    ///
    /// # Errors
    ///
    /// A [`Failed`], unless a layer panics.
    pub(crate) async fn run(
        &self,
        service: &HandlerService,
        context: Context,
    ) -> Result<Handled, BoxError> {
        let failures = context.failures();
        let attempts_max = self.attempts_of_delivery(failures);
        let (mut attempts, mut conflicts) = (1, 0);
        loop {
            let error: BoxError = match service.clone().call(context.again()).await {
                Ok(handled) => return Ok(handled),
                Err(error) => error,
            };
            // Another transaction was in the way: that says nothing about the message.
            if is_conflict(&*error) && conflicts < CONFLICTS_MAX {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_PAUSE * conflicts).await;
                continue;
            }
            let is_worth_it = attempts < attempts_max
                && !is_permanent(&*error)
                && untried(&*error).is_none()
                && find::<RetryAfter>(&*error).is_none()
                && !is_unstorable(&*error);
            if !is_worth_it {
                let verdict = self.verdict(failures, &*error);
                return Err(Box::new(Failed { verdict, error }));
            }
            tokio::time::sleep(self.backoff(attempts - 1)).await;
            attempts += 1;
        }
    }
}

/// What to do with a message whose delivery failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try it again after this delay.
    RetryAfter(Duration),
    /// Nothing was tried: the handler pauses, and the message is where it was.
    Pause(Pause),
    /// It cannot be handled.
    DeadLetter,
}

/// How long a handler pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) lasts: Duration,
    /// Longer each time that it was not long enough.
    pub(crate) grows: bool,
}

/// How a handler pauses whose database does not answer.
pub(crate) const SILENT_STORE: Pause = Pause {
    lasts: Duration::from_millis(500),
    grows: true,
};

/// How a handler pauses when a layer sheds load.
const OVERLOAD: Pause = Pause {
    lasts: Duration::from_millis(50),
    grows: false,
};

/// The database did not say whether a message was handled before, so it was not handled now.
#[derive(Debug)]
pub(crate) struct NotAsked(pub(crate) StoreError);

impl fmt::Display for NotAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for NotAsked {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Why nothing was begun: the database did not answer, or cannot take what it was asked.
pub(crate) fn not_begun(error: StoreError) -> BoxError {
    match error.is_invalid() {
        true => error.into(),
        false => NotAsked(error).into(),
    }
}

/// What became of an attempt that was not committed.
pub(crate) fn of_work(error: WorkError) -> BoxError {
    match error {
        WorkError::NotBegun(error) => not_begun(error),
        error => error.into_inner(),
    }
}

/// The first `E` among `error` and its sources.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// If `error` or one of its sources says that nothing was tried: how long to leave it alone.
pub(crate) fn untried(error: &(dyn StdError + 'static)) -> Option<Pause> {
    if let Some(open) = find::<CircuitOpen>(error) {
        return Some(Pause {
            lasts: open.retry_after(),
            grows: false,
        });
    }
    if find::<NotAsked>(error).is_some() {
        return Some(SILENT_STORE);
    }
    find::<Overloaded>(error).map(|_| OVERLOAD)
}

/// How often in a row an attempt is made again, uncounted, because another transaction was in its
/// way.
const CONFLICTS_MAX: u32 = 20;
/// How long to wait after the first conflict; longer by as much after each further one.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);

/// True if another transaction was in the way: that says nothing about the message.
pub(crate) fn is_conflict(error: &(dyn StdError + 'static)) -> bool {
    find::<StoreError>(error).is_some_and(StoreError::is_conflict)
}

/// Commits something for which there is no transaction yet; again if another one was in the way.
pub(crate) async fn commit(store: &dyn Store, commit: Commit) -> Result<Committed, StoreError> {
    let mut conflicts = 0;
    loop {
        match store.commit(commit.clone()).await {
            Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_PAUSE * conflicts).await;
            }
            outcome => return outcome,
        }
    }
}

/// True if the store can never hold what it was given: there is no writing down that it failed.
pub(crate) fn is_unstorable(error: &(dyn StdError + 'static)) -> bool {
    find::<StoreError>(error).is_some_and(StoreError::is_invalid)
}

/// How a delivery failed: the last attempt's error, and what to do now.
#[derive(Debug)]
pub(crate) struct Failed {
    verdict: Verdict,
    error: BoxError,
}

impl Failed {
    /// What to do with the message.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The last attempt's error.
    pub(crate) fn error(&self) -> &(dyn StdError + 'static) {
        &*self.error
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// An error and its sources as one line.
pub(crate) fn reason(error: &(dyn StdError + 'static)) -> String {
    let mut reason = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_says = source.to_string();
        if !reason.ends_with(&source_says) {
            reason.push_str(": ");
            reason.push_str(&source_says);
        }
        next = source.source();
    }
    const REASON_BYTES_MAX: usize = 2000;
    if reason.len() > REASON_BYTES_MAX {
        let boundary = (0..=REASON_BYTES_MAX)
            .rev()
            .find(|&at| reason.is_char_boundary(at));
        reason.truncate(boundary.unwrap_or(0));
        reason.push_str(" [...]");
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Permanent;

    /// Follows a message that never succeeds: after how many attempts what happens.
    fn check(policy: &Retry, expected: &[(u32, Verdict)]) {
        let error: BoxError = "no answer".into();
        let mut attempts = 0;
        let mut seen = Vec::new();
        for failures in 0.. {
            attempts += policy.attempts_of_delivery(failures);
            let verdict = policy.verdict(failures, &*error);
            seen.push((attempts, verdict));
            if verdict == Verdict::DeadLetter {
                break;
            }
        }
        assert_eq!(seen, expected);
    }

    fn after(ms: u64) -> Verdict {
        Verdict::RetryAfter(Duration::from_millis(ms))
    }

    #[test]
    fn a_message_gets_as_many_attempts_as_the_policy_says_fast_ones_first() {
        let exponential = |ms| Retry::exponential(Duration::from_millis(ms));
        let dead = Verdict::DeadLetter;
        check(&Retry::none(), &[(1, dead)]);
        check(&exponential(10).attempts(3), &[(3, dead)]);
        check(
            &exponential(50).attempts(5),
            &[(3, after(50)), (4, after(100)), (5, dead)],
        );
        check(
            &exponential(1000).attempts(4).fast_attempts(1),
            &[
                (1, after(1000)),
                (2, after(2000)),
                (3, after(4000)),
                (4, dead),
            ],
        );
        let capped = exponential(1000).delay_max(Duration::from_secs(2));
        check(
            &capped.attempts(4).fast_attempts(1),
            &[
                (1, after(1000)),
                (2, after(2000)),
                (3, after(2000)),
                (4, dead),
            ],
        );
    }

    #[test]
    fn delays_double_up_to_the_longest_and_a_longer_first_one_stays() {
        let policy = Retry::exponential(Duration::from_secs(1)).delay_max(Duration::from_secs(5));
        let delays: Vec<_> = (0..5).map(|n| policy.delay(n).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        assert_eq!(policy.delay(u32::MAX), Duration::from_secs(5));
        let known: Vec<_> = policy.attempts(1000).delays();
        assert_eq!(known.len(), 4, "each is told once: {known:?}");
        let days = Duration::from_secs(2 * 24 * 3600);
        assert_eq!(Retry::exponential(days).delay(5), days);
    }

    #[test]
    fn the_other_side_may_say_how_long_to_wait() {
        let policy = Retry::exponential(Duration::from_secs(1));
        let busy = RetryAfter::new("too many requests", Duration::from_secs(60));
        assert_eq!(policy.verdict(0, &busy), after(60_000));
        let soon = RetryAfter::new("too many requests", Duration::from_millis(1));
        assert_eq!(
            policy.verdict(0, &soon),
            after(1000),
            "not sooner than the policy"
        );
    }

    #[test]
    fn an_attempt_that_tried_nothing_does_not_count() {
        let policy = Retry::exponential(Duration::from_millis(10)).attempts(2);
        let silent = NotAsked(StoreError::unavailable("the database does not answer"));
        for failures in [0, 100] {
            let expected = Verdict::Pause(SILENT_STORE);
            assert_eq!(policy.verdict(failures, &silent), expected);
            let expected = Verdict::Pause(OVERLOAD);
            assert_eq!(policy.verdict(failures, &Overloaded::new()), expected);
        }
    }

    #[test]
    fn a_permanent_error_is_a_dead_letter_at_once_however_deep_it_is() {
        #[derive(Debug)]
        struct Wrapped(Permanent);
        impl fmt::Display for Wrapped {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("charging failed")
            }
        }
        impl StdError for Wrapped {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let error = Wrapped(Permanent::new("no such card"));
        let verdict = Retry::default().verdict(0, &error);
        assert_eq!(verdict, Verdict::DeadLetter);
        assert_eq!(reason(&error), "charging failed: no such card");
    }
}
