//! A service as the program sees it, and small things that every service's HTTP has in common.

use std::time::Duration;

use axum::{Router, http::HeaderMap};
use jiff::Timestamp;
use tidings::Retry;
use tidings_core::StoreError;

use crate::{Db, Problem};

/// The longest idempotency key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Everything a service does. The program decides which services run in which process.
pub struct Service {
    /// Its name, as in `--services`.
    pub name: &'static str,
    /// The calls it answers.
    pub http: Router,
    /// The messages it handles and sends, if any.
    pub messages: Option<tidings::Router>,
    /// Its database, if any.
    pub db: Option<Db>,
}

/// How a service retries whose handlers need nothing but its own database: what fails for longer
/// than some minutes is a fault of the program, for a person to look at.
pub fn retry() -> Retry {
    Retry::exponential(Duration::from_millis(200))
        .delay_max(Duration::from_secs(10))
        .attempts(50)
}

/// What stands in the header `Idempotency-Key`.
///
/// # Errors
///
/// When that is empty, too long, or not plain text.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::malformed(format_args!(
            "`Idempotency-Key` must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters"
        ))),
    }
}

/// A point in time from the microseconds that the database keeps.
///
/// # Errors
///
/// When it is out of the range of time.
pub fn timestamp(microseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(microseconds).map_err(|error| {
        StoreError::new("a time in the database is out of range").with_source(error)
    })
}
