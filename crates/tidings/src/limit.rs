//! How long an attempt may take. Its time begins when its handler does.
//!
//! Until then it waits for the store, which may be busy with the attempts of others: with one whose
//! handler panics, which can take long to be told, or with a disk that is slow. That says nothing about
//! the message, so an attempt that has not begun is none (see decision 0010).

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use futures_util::poll;
use tidings_core::{BoxError, StoreError};
use tokio::time::{Instant, timeout};

use crate::retry::not_begun;

/// How long an attempt waits for its store to begin it, if its limit is shorter.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// When a handler was first asked, for who waits for it elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Begun(Arc<OnceLock<Instant>>);

impl Begun {
    /// The handler is asked now.
    pub(crate) fn begin(&self) {
        self.0.get_or_init(Instant::now);
    }
}

/// `attempt`, unless its handler runs for longer than `limit`, or is not asked for so long that the
/// store seems not to answer. Without `begun` it is asked at once.
///
/// # Errors
///
/// The attempt's own, that it took too long, or that [nothing was begun](not_begun).
pub(crate) async fn within<T>(
    limit: Duration,
    begun: Option<&Begun>,
    attempt: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let mut attempt = pin!(attempt);
    // Most attempts of a consumer without a store do not have to wait, and need no timer.
    if let Poll::Ready(outcome) = poll!(attempt.as_mut()) {
        return outcome;
    }
    let since = Instant::now();
    let begun_at = || begun.map_or(Some(since), |begun| begun.0.get().copied());
    loop {
        let left = begun_at().map_or(limit, |at| limit.saturating_sub(at.elapsed()));
        if let Ok(outcome) = timeout(left, &mut attempt).await {
            return outcome;
        }
        match begun_at() {
            Some(at) if at.elapsed() < limit => {}
            Some(_) => return Err(took_too_long(limit)),
            None if since.elapsed() < limit.max(STORE_WAIT) => {}
            None => return Err(not_begun(busy(since.elapsed()))),
        }
    }
}

fn took_too_long(limit: Duration) -> BoxError {
    format!("the handler was still running after the `attempt_timeout` of {limit:?}").into()
}

fn busy(waited: Duration) -> StoreError {
    StoreError::unavailable(format!(
        "the store has not begun an attempt for {waited:.1?}: it is busy or does not answer"
    ))
}
