//! Retries: a few fast attempts in the process, then delayed ones through the broker, then dead
//! letters. One policy describes all three.
//!
//! As a tower layer the policy makes the fast attempts itself, and ends with a [`Failed`] that
//! tells the consumer what to do with the message. Delays are taken from a fixed ladder, because
//! on AMQP every distinct delay is a queue.
//!
//! Only attempts count that tried something. When the database does not answer, a circuit breaker
//! is open or a layer sheds load, the message is postponed, however often: an outage of an hour
//! must not turn an hour of messages into dead letters.

use std::{
    collections::hash_map::RandomState,
    error::Error as StdError,
    fmt,
    hash::{BuildHasher, Hasher},
    task::{self, Poll},
    time::Duration,
};

use tower::{Layer, Service, ServiceExt, load_shed::error::Overloaded};

use crate::{BoxError, BoxFuture, CircuitOpen, Context, Handled, StoreError, is_permanent};

/// The delays there are, in milliseconds.
const LADDER: [u64; 17] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000,
    600_000, 1_800_000, 3_600_000,
];

/// How often and when a message is tried, before it becomes a dead letter.
///
/// An attempt that tried nothing does not count: when the database does not answer, a
/// [`CircuitBreaker`](crate::CircuitBreaker) is open or a layer sheds load, the message is
/// postponed.
///
/// The default is 12 attempts: three at once, then after 1, 2, 5, 10, 30 seconds and 1, 2, 5 and 10
/// minutes; a failure that passes within a quarter of an hour needs nobody.
///
/// ```
/// use std::time::Duration;
/// use tidings::RetryPolicy;
///
/// let policy = RetryPolicy::exponential(Duration::from_secs(1)).attempts(5).fast_attempts(2);
/// // The first two attempts follow each other at once, the others come after:
/// let delays: Vec<_> = (0..3).map(|failures| policy.delay(failures).as_secs()).collect();
/// assert_eq!(delays, [1, 2, 5]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    fast_attempts: u32,
    fast_backoff: Duration,
    delay_first: Duration,
    delay_max: Duration,
}

/// A [`RetryPolicy`] is a tower layer; so it is called among layers.
pub type RetryLayer = RetryPolicy;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1)).attempts(12)
    }
}

impl RetryPolicy {
    /// Delays that begin with `delay` and about double each time. Each is a step of a fixed ladder
    /// (10, 20, 50, 100, 200, 500 ms, 1, 2, 5, 10, 30 s, 1, 2, 5, 10, 30 min, 1 h); `delay` is
    /// rounded up to the next one.
    pub fn exponential(delay: Duration) -> Self {
        Self {
            attempts: 12,
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

    /// The longest delay (at most an hour, unless the first delay is longer).
    pub fn delay_max(mut self, delay: Duration) -> Self {
        self.delay_max = delay;
        self
    }

    /// The delay after a delivery that failed, when `failures` deliveries had failed before it.
    pub fn delay(&self, failures: u32) -> Duration {
        let step = |delay: Duration| {
            LADDER
                .iter()
                .position(|&ms| delay <= Duration::from_millis(ms))
        };
        let Some(first) = step(self.delay_first) else {
            return self.delay_first;
        };
        let last = step(self.delay_max).unwrap_or(LADDER.len() - 1).max(first);
        let at = first.saturating_add(failures as usize).min(last);
        Duration::from_millis(LADDER[at])
    }

    /// The delays of the attempts that come through the broker.
    pub(crate) fn delays(&self) -> Vec<Duration> {
        let delayed = self.attempts.saturating_sub(self.fast_attempts);
        let steps = delayed.min(LADDER.len() as u32);
        let mut delays: Vec<_> = (0..steps).map(|failures| self.delay(failures)).collect();
        delays.dedup();
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
        if is_untried(error) {
            return Verdict::Postpone(self.delay(failures));
        }
        let attempts = self.fast_attempts.saturating_add(failures);
        if is_permanent(error) || attempts >= self.attempts {
            Verdict::DeadLetter
        } else {
            Verdict::RetryAfter(self.delay(failures))
        }
    }

    /// A random part of a backoff that doubles; so that instances do not fail in step.
    fn backoff(&self, attempt: u32) -> Duration {
        let ceiling = self.fast_backoff * 2u32.saturating_pow(attempt.min(8));
        let random = RandomState::new().build_hasher().finish() % 1000;
        ceiling / 2 + ceiling / 2 * (random as u32) / 1000
    }
}

/// What to do with a message whose delivery failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver it again after this delay.
    RetryAfter(Duration),
    /// The same, but nothing was tried, so that it does not count as a failure.
    Postpone(Duration),
    /// It cannot be handled.
    DeadLetter,
}

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

/// True if `error` or one of its sources says that nothing was tried.
fn is_untried(error: &(dyn StdError + 'static)) -> bool {
    error.is::<CircuitOpen>()
        || error.is::<NotAsked>()
        || error.is::<Overloaded>()
        || error.source().is_some_and(is_untried)
}

/// True if nothing was tried because the database does not answer.
pub(crate) fn is_silent_store(error: &(dyn StdError + 'static)) -> bool {
    match error.downcast_ref::<Failed>() {
        Some(failed) => is_silent_store(&*failed.error),
        None => error.is::<NotAsked>() || error.source().is_some_and(is_silent_store),
    }
}

/// The error of a [`RetryLayer`]: the last attempt's, and what to do now.
#[derive(Debug)]
pub struct Failed {
    verdict: Verdict,
    attempts: u32,
    error: BoxError,
}

impl Failed {
    /// What to do with the message.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// How many attempts this delivery got.
    pub fn attempts(&self) -> u32 {
        self.attempts
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

impl<S> Layer<S> for RetryPolicy {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            policy: self.clone(),
            inner,
        }
    }
}

/// The service that [`RetryLayer`] makes.
#[derive(Debug, Clone)]
pub struct Retry<S> {
    policy: RetryPolicy,
    inner: S,
}

impl<S> Service<Context> for Retry<S>
where
    S: Service<Context, Response = Handled> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Handled;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Handled, BoxError>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(())) // Each attempt asks a clone of its own.
    }

    fn call(&mut self, context: Context) -> Self::Future {
        let Self { policy, inner } = self.clone();
        Box::pin(async move {
            let failures = context.failures();
            let attempts_max = policy.attempts_of_delivery(failures);
            let mut attempts = 1;
            loop {
                let error: BoxError = match inner.clone().oneshot(context.again()).await {
                    Ok(handled) => return Ok(handled),
                    Err(error) => error.into(),
                };
                if error.is::<Failed>() {
                    return Err(error); // A policy nearer to the handler has decided.
                }
                if attempts >= attempts_max || is_permanent(&*error) || is_untried(&*error) {
                    return Err(Box::new(Failed {
                        verdict: policy.verdict(failures, &*error),
                        attempts,
                        error,
                    }));
                }
                tokio::time::sleep(policy.backoff(attempts - 1)).await;
                attempts += 1;
            }
        })
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
    fn check(policy: &RetryPolicy, expected: &[(u32, Verdict)]) {
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
        let exponential = |ms| RetryPolicy::exponential(Duration::from_millis(ms));
        let dead = Verdict::DeadLetter;
        check(&RetryPolicy::none(), &[(1, dead)]);
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
                (3, after(5000)),
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
    fn delays_are_steps_of_the_ladder_so_that_there_are_few_retry_queues() {
        for (first, expected) in [(0, 10), (30, 50), (1000, 1000), (7000, 10_000)] {
            let policy = RetryPolicy::exponential(Duration::from_millis(first));
            assert_eq!(policy.delay(0), Duration::from_millis(expected));
        }
        let days = Duration::from_secs(2 * 24 * 3600);
        assert_eq!(RetryPolicy::exponential(days).delay(5), days);
    }

    #[test]
    fn an_attempt_that_tried_nothing_does_not_count() {
        let policy = RetryPolicy::exponential(Duration::from_millis(10)).attempts(2);
        let expected = Verdict::Postpone(Duration::from_millis(10));
        let silent = NotAsked(StoreError::new("the database does not answer"));
        assert_eq!(policy.verdict(0, &silent), expected);
        assert_eq!(policy.verdict(0, &Overloaded::new()), expected);
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
        let verdict = RetryPolicy::default().verdict(0, &error);
        assert_eq!(verdict, Verdict::DeadLetter);
        assert_eq!(reason(&error), "charging failed: no such card");
    }
}
