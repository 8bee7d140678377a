//! How the port's values become the database's, and back.
//!
//! Times are kept in microseconds, which is what the database's own type can tell apart.

use std::time::Duration;

use jiff::Timestamp;
use tidings_core::{Claim, Lane, OrderKey, StoreError};

/// The longest time that is added to or taken from the database's clock: a hundred years. More
/// than that would leave the range of its type, and means the same.
const SECONDS_MAX: f64 = 100.0 * 365.25 * 86_400.0;

pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().min(SECONDS_MAX)
}

/// A time that lies so many seconds ahead; zero if it has passed.
pub(crate) fn ahead(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

pub(crate) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A counter of the port, as `bigint` holds it.
pub(crate) fn counter(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}

pub(crate) fn timestamp(microseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(microseconds).map_err(|error| {
        StoreError::new("cannot read a time: it is outside of the years -9999 to 9999")
            .with_source(error)
    })
}

/// A lane's number as the database's type for it.
pub(crate) fn lane_number(lane: Lane) -> i16 {
    lane.0.cast_signed()
}

pub(crate) fn lane_numbers(lanes: &[Lane]) -> Vec<i16> {
    lanes.iter().copied().map(lane_number).collect()
}

/// The columns `consumer` and `message` of many claims.
pub(crate) fn claim_columns<'a>(
    claims: impl IntoIterator<Item = &'a Claim>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    claims
        .into_iter()
        .map(|claim| (&*claim.consumer, claim.message.as_str()))
        .unzip()
}

pub(crate) fn order_key(group: Option<String>, key: Option<String>) -> Option<OrderKey> {
    Some(OrderKey {
        group: group?.into(),
        key: key?.into(),
    })
}
