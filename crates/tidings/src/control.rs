//! Pausing consumers: an operator's word that holds for all instances and survives restarts.
//!
//! A pause is a record in the consumer's store. Every instance looks at it once a second, and stops
//! receiving and working off what waits; messages under way are finished. Nothing is lost: what
//! comes stays in the broker, what waits stays in the store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Commit, Error, Expected, Permanent, RecordChange, RecordId, RecordQuery, RecordValue, Store,
    StoreError, retry,
};

/// The kind of the records; their ids are consumers' or handlers' names.
const KIND: &str = "tidings.pause";

/// A consumer that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// The consumer, or one of its handlers (`payment.order-placed.v1`).
    pub consumer: String,
    /// Since when, by the database's clock.
    pub since: Timestamp,
    /// Why, for people.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    reason: String,
}

/// Pauses a consumer (`payment`) or one of its handlers (`payment.order-placed.v1`): all its
/// instances, also those that start later, until [`resume`].
///
/// # Errors
///
/// When the database does not answer.
pub async fn pause(store: &dyn Store, consumer: &str, reason: &str) -> Result<(), Error> {
    let body = Body {
        reason: reason.to_owned(),
    };
    let body = serde_json::to_vec(&body).map_err(Permanent::new)?;
    let value = RecordValue {
        label: "paused".into(),
        due: None,
        body: body.into(),
    };
    Ok(write(store, consumer, Some(value)).await?)
}

/// Lets a consumer, or a handler, go on. One that is not paused goes on anyway.
///
/// # Errors
///
/// When the database does not answer.
pub async fn resume(store: &dyn Store, consumer: &str) -> Result<(), Error> {
    Ok(write(store, consumer, None).await?)
}

/// The consumers and handlers that are paused, at most `limit`, those that were paused first first.
///
/// # Errors
///
/// When the database does not answer.
pub async fn paused(store: &dyn Store, limit: usize) -> Result<Vec<Paused>, Error> {
    let query = RecordQuery {
        kind: KIND.into(),
        limit,
        ..RecordQuery::default()
    };
    let records = store.records().list(&query).await?;
    let paused = records.into_iter().map(|record| Paused {
        consumer: record.id.id.into(),
        since: record.written,
        reason: serde_json::from_slice::<Body>(&record.value.body)
            .map_or_else(|_| String::new(), |body| body.reason),
    });
    Ok(paused.collect())
}

async fn write(
    store: &dyn Store,
    consumer: &str,
    value: Option<RecordValue>,
) -> Result<(), StoreError> {
    let commit = Commit::from(RecordChange {
        id: RecordId::new(KIND, consumer),
        expected: Expected::Anything,
        value,
    });
    retry::commit(store, commit).await.map(drop)
}

/// Which of `handlers` of `consumer` are paused, themselves or with the whole consumer.
pub(crate) async fn are_paused(
    store: &dyn Store,
    consumer: &str,
    handlers: &[Box<str>],
) -> Result<Vec<bool>, StoreError> {
    let names = std::iter::once(consumer).chain(handlers.iter().map(|name| &**name));
    let ids: Vec<RecordId> = names.map(|name| RecordId::new(KIND, name)).collect();
    let found = store.records().read(&ids).await?;
    let all = found.first().is_some_and(Option::is_some);
    let each = found.iter().skip(1).map(|record| all || record.is_some());
    Ok(each.collect())
}
