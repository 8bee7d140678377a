//! Messages that are sent later: each waits as a record with a due time, and becomes an outbox row
//! when it is due (up to a second later). It takes its key's order then, not before.
//!
//! The record of a schedule is named by its [`ScheduleId`], or by the message's id. Scheduling the
//! same name again replaces it; cancelling deletes it. A scheduler per service takes due records
//! under a lease and turns each into an outbox row in one commit with the record's end, so that it is
//! sent once, whichever instance does it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    Commit, Expected, Lease, Outgoing, Record, RecordChange, RecordId, RecordQuery, RecordValue,
    ScheduleId, Scheduled, Store, StoreError, When, throttle::Throttle,
};

/// The kind of the records.
pub(crate) const KIND: &str = "tidings.schedule";
/// How long a scheduler that died keeps what it took.
const LEASE: Duration = Duration::from_secs(10);
/// How many records it takes at a time.
const BATCH_COUNT_MAX: usize = 100;
/// The longest time between two looks: what another instance scheduled is found by then.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long a record is left alone that cannot be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(3600);

/// The record of a message that is sent later.
pub(crate) fn record(scheduled: Scheduled) -> RecordChange {
    let Scheduled { id, when, message } = scheduled;
    // Every message that was stamped has an id.
    let message_id = message.envelope.id.as_ref().map(|id| id.as_str());
    let name = id
        .as_ref()
        .map(ScheduleId::as_str)
        .or(message_id)
        .unwrap_or_default();
    let id = RecordId::new(KIND, name);
    let due = match when {
        When::At(time) => time,
        When::After(delay) => {
            let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
            Timestamp::now()
                .saturating_add(delay)
                .unwrap_or(Timestamp::MAX)
        }
    };
    RecordChange {
        id,
        expected: Expected::Anything,
        value: Some(RecordValue {
            label: (&*message.envelope.name).into(),
            due: Some(due),
            body: write(&message),
        }),
    }
}

/// The end of what was scheduled under a name.
pub(crate) fn cancelled(id: &ScheduleId) -> RecordChange {
    RecordChange {
        id: RecordId::new(KIND, id.as_str()),
        expected: Expected::Anything,
        value: None,
    }
}

/// A message that is sent later, in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name: that of its [`ScheduleId`], or the message's id.
    pub name: Box<str>,
    /// When it was scheduled.
    pub scheduled: Timestamp,
    /// When it is sent.
    pub due: Option<Timestamp>,
    /// The message, or why it cannot be read.
    pub message: Result<Outgoing, String>,
}

/// The messages that are sent later, those that were scheduled first first; those after the one with
/// this time and name, at most `limit`.
///
/// # Errors
///
/// When the database does not answer.
pub async fn list(
    store: &dyn Store,
    after: Option<(Timestamp, Box<str>)>,
    limit: usize,
) -> Result<Vec<Listed>, StoreError> {
    let query = RecordQuery {
        kind: KIND.into(),
        after,
        limit,
        ..RecordQuery::default()
    };
    let found = store.records().list(&query).await?;
    Ok(found.into_iter().map(listed).collect())
}

/// What is sent later under a name; `None` if nothing is (any more).
///
/// # Errors
///
/// When the database does not answer.
pub async fn get(store: &dyn Store, id: &ScheduleId) -> Result<Option<Listed>, StoreError> {
    let record = RecordId::new(KIND, id.as_str());
    let found = store.records().read(std::slice::from_ref(&record)).await?;
    Ok(found.into_iter().next().flatten().map(listed))
}

fn listed(record: Record) -> Listed {
    Listed {
        message: read(&record),
        name: record.id.id,
        scheduled: record.written,
        due: record.value.due,
    }
}

/// Deletes what was scheduled under a name. False if there is nothing (any more).
///
/// # Errors
///
/// When the database does not answer.
pub async fn cancel(store: &dyn Store, id: &ScheduleId) -> Result<bool, StoreError> {
    let record = RecordId::new(KIND, id.as_str());
    loop {
        let found = store.records().read(std::slice::from_ref(&record)).await?;
        let Some(Some(found)) = found.into_iter().next() else {
            return Ok(false);
        };
        let commit = Commit {
            records: vec![RecordChange {
                id: record.clone(),
                expected: Expected::Version(found.version),
                value: None,
            }],
            ..Commit::default()
        };
        match store.commit(commit).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_conflict() => {} // Sent or replaced meanwhile: look again.
            Err(error) => return Err(error),
        }
    }
}

/// The metadata, which are JSON and thus without a line break, a line break, and the body.
fn write(message: &Outgoing) -> Bytes {
    let mut written = message.to_metadata().into_bytes();
    written.push(b'\n');
    written.extend_from_slice(&message.envelope.body);
    written.into()
}

fn read(record: &Record) -> Result<Outgoing, String> {
    let body = &record.value.body;
    let end = body.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or("it has no metadata")?;
    let metadata = str::from_utf8(&body[..end]).map_err(|error| error.to_string())?;
    Outgoing::from_metadata(metadata, body.slice(end + 1..)).map_err(|error| error.to_string())
}

/// Turns what is due into outbox rows, until `stop`.
pub(crate) async fn run(store: Arc<dyn Store>, instance: String, stop: CancellationToken) {
    let mut trouble = Throttle::new(Duration::from_secs(5));
    while !stop.is_cancelled() {
        let wait = match round(&*store, &instance).await {
            Ok(wait) => wait,
            Err(error) => {
                if trouble.allows() {
                    warn!("scheduled messages are not sent, it is tried again: {error}");
                }
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(wait) => {}
        }
    }
}

/// Sends what is due, and says how long to wait for more.
async fn round(store: &dyn Store, instance: &str) -> Result<Duration, StoreError> {
    loop {
        let records = store.records();
        let due = records
            .take_due(KIND, instance, LEASE, BATCH_COUNT_MAX)
            .await?;
        let is_full = due.len() == BATCH_COUNT_MAX;
        for (lease, record) in due {
            release(store, lease, record).await?;
        }
        if !is_full {
            let next = records.next_due(KIND).await?;
            return Ok(next.map_or(POLL_EVERY, |due| due.min(POLL_EVERY)));
        }
    }
}

async fn release(store: &dyn Store, lease: Lease, record: Record) -> Result<(), StoreError> {
    let (message, value) = match read(&record) {
        Ok(message) => (Some(message), None),
        Err(why) => {
            error!(
                id = &*record.id.id,
                "a scheduled message cannot be read; it is left for an operator: {why}"
            );
            let due = Timestamp::now().saturating_add(UNREADABLE_PAUSE);
            let value = RecordValue {
                due: due.ok(),
                ..record.value
            };
            (None, Some(value))
        }
    };
    let commit = Commit {
        outbox: message.into_iter().collect(),
        records: vec![RecordChange {
            id: record.id,
            expected: Expected::Lease(lease),
            value,
        }],
        ..Commit::default()
    };
    match store.commit(commit).await {
        Ok(_) => Ok(()),
        // Cancelled, replaced, or taken by another instance meanwhile.
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
