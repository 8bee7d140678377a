//! A circuit breaker: after failures in a row it refuses calls for a while instead of making them,
//! then lets one through to see.
//!
//! The relay has one around publishing; handlers put one around what they call outside, as
//! [`CircuitBreaker::call`] or as the tower layer [`CircuitBreakerLayer`].

use std::{
    error::Error as StdError,
    fmt,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::{info, warn};

use crate::{BoxError, BoxFuture, Error};

/// Refuses calls while what they call is down.
///
/// Clones share their state.
///
/// ```
/// # tokio_test(async {
/// use std::time::Duration;
/// use tidings::CircuitBreaker;
///
/// let bank = CircuitBreaker::new("bank").failures_max(1).open_for(Duration::from_secs(10));
/// let charge = |ok: bool| async move { if ok { Ok("charged") } else { Err("no answer") } };
///
/// assert!(bank.call(charge(false)).await.is_err());
/// let refused = bank.call(charge(true)).await.unwrap_err();
/// assert!(refused.to_string().contains("`bank` is open"));
/// # });
/// # fn tokio_test(future: impl Future<Output = ()>) {
/// #     tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
/// # }
/// ```
#[derive(Clone)]
pub struct CircuitBreaker {
    name: Arc<str>,
    failures_max: u32,
    open_for: Duration,
    open_for_max: Duration,
    state: Arc<Mutex<State>>,
    gauge: metrics::Gauge,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Calls go through; so many failed in a row.
    Closed { failures: u32 },
    /// Calls are refused until then; `pause` is how long this time.
    Open { until: Instant, pause: Duration },
    /// One call is under way to see; the others are refused.
    HalfOpen { pause: Duration },
}

impl CircuitBreaker {
    /// A closed breaker. The name stands in logs and metrics.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        Self {
            gauge: metrics::gauge!("tidings_circuit_breaker_state", "breaker" => name.to_string()),
            name,
            failures_max: 5,
            open_for: Duration::from_secs(1),
            open_for_max: Duration::from_secs(30),
            state: Arc::new(Mutex::new(State::Closed { failures: 0 })),
        }
    }

    /// How many failures in a row open it (default 5).
    pub fn failures_max(mut self, failures: u32) -> Self {
        self.failures_max = failures.max(1);
        self
    }

    /// How long it refuses before it lets a call through (default 1 s). Doubles each time that
    /// call fails, up to [`open_for_max`](Self::open_for_max).
    pub fn open_for(mut self, pause: Duration) -> Self {
        self.open_for = pause;
        self
    }

    /// The longest it refuses (default 30 s).
    pub fn open_for_max(mut self, pause: Duration) -> Self {
        self.open_for_max = pause;
        self
    }

    /// Makes a call, or refuses it with [`CircuitOpen`].
    ///
    /// Every error counts as a failure except a permanent one, which is an answer; a call that is
    /// dropped (by a timeout around it) counts as a failure.
    ///
    /// # Errors
    ///
    /// The call's, or [`CircuitOpen`].
    pub async fn call<T, E: Into<Error>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        let permit = self.permit()?;
        match call.await {
            Ok(value) => {
                permit.succeeded();
                Ok(value)
            }
            Err(error) => {
                let error = error.into();
                match error.is_permanent() {
                    true => permit.succeeded(),
                    false => permit.failed(),
                }
                Err(error)
            }
        }
    }

    /// Leave to make one call. Dropping the permit counts as a failure.
    ///
    /// # Errors
    ///
    /// While the breaker is open.
    pub fn permit(&self) -> Result<Permit, CircuitOpen> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let refused = |retry_after| CircuitOpen {
            name: Arc::clone(&self.name),
            retry_after,
        };
        match *state {
            State::Closed { .. } => {}
            State::Open { until, .. } if now < until => return Err(refused(until - now)),
            State::Open { pause, .. } => {
                *state = State::HalfOpen { pause };
                self.gauge.set(1.0);
            }
            State::HalfOpen { pause } => return Err(refused(pause)),
        }
        Ok(Permit {
            is_trial: matches!(*state, State::HalfOpen { .. }),
            breaker: self.clone(),
            concluded: false,
        })
    }

    /// True if calls are refused now.
    pub fn is_open(&self) -> bool {
        match *self.state.lock() {
            State::Closed { .. } => false,
            State::Open { until, .. } => Instant::now() < until,
            State::HalfOpen { .. } => true,
        }
    }

    /// Only the trial closes an open breaker: a call that had begun before it opened says nothing
    /// about now.
    fn succeeded(&self, is_trial: bool) {
        let mut state = self.state.lock();
        match *state {
            State::Closed { .. } => {}
            State::HalfOpen { .. } if is_trial => {
                self.gauge.set(0.0);
                info!(
                    breaker = &*self.name,
                    "`{}` answers again: circuit closed", self.name
                );
            }
            State::Open { .. } | State::HalfOpen { .. } => return,
        }
        *state = State::Closed { failures: 0 };
    }

    /// The trial was not made: the next call is it.
    fn untried(&self) {
        let mut state = self.state.lock();
        if let State::HalfOpen { pause } = *state {
            let until = Instant::now();
            *state = State::Open { until, pause };
        }
    }

    fn failed(&self, is_trial: bool) {
        let mut state = self.state.lock();
        let pause = match *state {
            State::Closed { failures } if failures + 1 < self.failures_max => {
                *state = State::Closed {
                    failures: failures + 1,
                };
                return;
            }
            State::Closed { .. } => {
                warn!(
                    breaker = &*self.name,
                    "`{}` failed {} times in a row: circuit open", self.name, self.failures_max
                );
                self.open_for
            }
            State::HalfOpen { pause } if is_trial => (pause * 2).min(self.open_for_max),
            // A call that had begun before it opened.
            State::HalfOpen { .. } | State::Open { .. } => return,
        };
        let until = Instant::now() + pause;
        *state = State::Open { until, pause };
        self.gauge.set(2.0);
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.name)
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}

/// Leave to make one call; from [`CircuitBreaker::permit`].
#[derive(Debug)]
#[must_use = "say how the call went; a dropped permit counts as a failure"]
pub struct Permit {
    breaker: CircuitBreaker,
    is_trial: bool,
    concluded: bool,
}

impl Permit {
    /// True if this is the one call that shows whether the breaker may close.
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// The call got an answer.
    pub fn succeeded(mut self) {
        self.concluded = true;
        self.breaker.succeeded(self.is_trial);
    }

    /// The call was not made.
    pub fn unused(mut self) {
        self.concluded = true;
        if self.is_trial {
            self.breaker.untried();
        }
    }

    /// The call failed.
    pub fn failed(self) {
        drop(self);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.concluded {
            self.breaker.failed(self.is_trial);
        }
    }
}

/// A call was refused because those before it failed.
#[derive(Debug, Clone)]
pub struct CircuitOpen {
    name: Arc<str>,
    retry_after: Duration,
}

impl CircuitOpen {
    /// When a call may go through again.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, retry_after } = self;
        write!(
            f,
            "the circuit breaker `{name}` is open because calls failed in a row; it tries again in \
             {} ms",
            retry_after.as_millis()
        )
    }
}

impl StdError for CircuitOpen {}

/// A tower layer that puts a [`CircuitBreaker`] around a service.
#[derive(Debug, Clone)]
pub struct CircuitBreakerLayer(CircuitBreaker);

impl CircuitBreakerLayer {
    /// Puts `breaker` around services; it is shared by all of them.
    pub fn new(breaker: CircuitBreaker) -> Self {
        Self(breaker)
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreakerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreakerService {
            breaker: self.0.clone(),
            inner,
        }
    }
}

/// The service that [`CircuitBreakerLayer`] makes.
#[derive(Debug, Clone)]
pub struct CircuitBreakerService<S> {
    breaker: CircuitBreaker,
    inner: S,
}

impl<S, Request> Service<Request> for CircuitBreakerService<S>
where
    S: Service<Request>,
    S::Response: Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let breaker = self.breaker.clone();
        let permit = match breaker.permit() {
            Ok(permit) => permit,
            Err(refused) => return Box::pin(std::future::ready(Err(refused.into()))),
        };
        let call = self.inner.call(request);
        Box::pin(async move {
            let outcome = call.await.map_err(Into::into);
            match &outcome {
                Err(error) if !crate::is_permanent(&**error) => permit.failed(),
                _ => permit.succeeded(),
            }
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Permanent;

    const PAUSE: Duration = Duration::from_secs(1);

    fn breaker() -> CircuitBreaker {
        CircuitBreaker::new("bank").failures_max(2).open_for(PAUSE)
    }

    /// Makes a call: `None` if it was refused.
    async fn call(breaker: &CircuitBreaker, answers: bool) -> Option<bool> {
        let call = async move { if answers { Ok(()) } else { Err("no answer") } };
        match breaker.call(call).await {
            Ok(()) => Some(true),
            Err(error) if error.downcast_ref::<CircuitOpen>().is_some() => None,
            Err(_) => Some(false),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_one_call_closes_it() {
        let breaker = breaker();
        assert_eq!(call(&breaker, false).await, Some(false));
        assert_eq!(call(&breaker, true).await, Some(true));
        assert_eq!(call(&breaker, false).await, Some(false));
        assert_eq!(call(&breaker, false).await, Some(false));
        assert_eq!(call(&breaker, true).await, None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(call(&breaker, true).await, Some(true));
        assert_eq!(call(&breaker, true).await, Some(true));
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_call_tries_the_others_are_refused_and_its_failure_doubles_the_pause() {
        let breaker = breaker();
        call(&breaker, false).await;
        call(&breaker, false).await;
        tokio::time::advance(PAUSE).await;
        let trial = breaker.permit().expect("the pause is over");
        assert!(trial.is_trial());
        assert!(breaker.permit().is_err());
        drop(trial); // A call that was dropped has failed.
        tokio::time::advance(PAUSE).await;
        assert_eq!(call(&breaker, true).await, None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(call(&breaker, true).await, Some(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_had_begun_before_it_opened_neither_closes_it_nor_takes_the_trials_place() {
        let breaker = breaker();
        let [early, late] = [(); 2].map(|()| breaker.permit().expect("it is closed"));
        call(&breaker, false).await;
        call(&breaker, false).await;
        early.succeeded();
        assert_eq!(call(&breaker, true).await, None, "it is still open");
        tokio::time::advance(PAUSE).await;
        let trial = breaker.permit().expect("the pause is over");
        drop(late);
        trial.succeeded();
        assert_eq!(call(&breaker, true).await, Some(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_an_answer() {
        let breaker = breaker();
        for _ in 0..10 {
            let declined = async { Err::<(), _>(Permanent::new("no such card")) };
            assert!(breaker.call(declined).await.is_err());
        }
        assert_eq!(call(&breaker, true).await, Some(true));
    }
}
