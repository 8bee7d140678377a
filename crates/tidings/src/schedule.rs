//! Messages that are sent later, once or again and again: each waits as a record with a due time, and
//! becomes an outbox row when it is due (up to a second later). It takes its key's order then, not before.
//!
//! The record of a message that is sent once is named by its [`ScheduleId`], or by the message's id.
//! Scheduling the same name again replaces it; cancelling deletes it. That of a recurring message
//! ([`Cron`]) stays and is due again. A scheduler per service takes due records under a lease, many at a time,
//! and turns them into outbox rows in one commit with their end or their next due time, so that each
//! occurrence is sent once, whichever instance does it.

mod cron;
pub(crate) mod declared;
pub(crate) mod operator;
mod recurring;
mod scheduler;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

pub use cron::{Cron, Missed};
pub(crate) use declared::{Declared, declared, recurring};
pub use recurring::Occurrence;
pub(crate) use recurring::Recurring;
pub(crate) use scheduler::Scheduler;

use crate::{
    Commit, Expected, Outgoing, RecordChange, RecordId, RecordValue, ScheduleId, Scheduled, Store,
    StoreError, When,
};

/// The kind of the records.
pub(crate) const KIND: &str = "tidings.schedule";

/// The last time at which something is due, the year 9999: databases round, and what they make of the last
/// of all times is none. What is due before the first is due: they have no years before our era.
const DUE_MAX: Timestamp = Timestamp::constant(253_370_764_800, 0);

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
            due: Some(due.clamp(Timestamp::UNIX_EPOCH, DUE_MAX)),
            body: write_message(&message).into(),
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

/// Deletes what was scheduled under a name. False if there is nothing (any more).
pub(crate) async fn cancel(store: &dyn Store, id: &ScheduleId) -> Result<bool, StoreError> {
    let record = RecordId::new(KIND, id.as_str());
    loop {
        let found = store.records().read(std::slice::from_ref(&record)).await?;
        let Some(Some(found)) = found.into_iter().next() else {
            return Ok(false);
        };
        let commit = Commit::from(RecordChange {
            id: record.clone(),
            expected: Expected::Version(found.version),
            value: None,
        });
        match store.commit(commit).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_conflict() => {} // Sent or replaced meanwhile: look again.
            Err(error) => return Err(error),
        }
    }
}

/// The metadata, which are JSON and thus without a line break, a line break, and the body.
fn write_message(message: &Outgoing) -> Vec<u8> {
    let mut written = message.to_metadata().into_bytes();
    written.push(b'\n');
    written.extend_from_slice(&message.envelope.body);
    written
}

fn read_message(written: &Bytes) -> Result<Outgoing, String> {
    let (metadata, body) = split_line(written)?;
    let metadata = str::from_utf8(&metadata).map_err(|error| error.to_string())?;
    Outgoing::from_metadata(metadata, body).map_err(|error| error.to_string())
}

/// The first line, and what comes after it.
fn split_line(written: &Bytes) -> Result<(Bytes, Bytes), String> {
    let end = written.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or("it has no metadata")?;
    Ok((written.slice(..end), written.slice(end + 1..)))
}
