//! The record of a replay: what is sent to whom, and how far it is.
//!
//! Each run writes the record over the version that it wrote or read last. So of two runs one fails
//! at its next write: the one that was started first.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::warn;
use uuid::Uuid;

use super::{Replay, ReplayError, Start, TRY_AGAIN};
use crate::{
    Commit, Expected, Record, RecordChange, RecordId, RecordQuery, RecordValue, Store, StoreError,
};

/// The kind of the records; their ids are the queues' or groups' names.
const KIND: &str = "tidings.replay";
const RUNNING: &str = "running";
const DONE: &str = "done";
/// How often a write is tried again that something else was in the way of.
const WRITES_MAX: u32 = 5;
/// How long a database that is away is waited for.
const AWAY_MAX: Duration = Duration::from_secs(5 * 60);

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Progress {
    /// Where it goes: a queue, or an ordered group.
    pub to: String,
    /// Names this replay, in the header of what it sends.
    pub id: String,
    /// Where it began.
    pub start: Start,
    /// The position up to which everything is sent.
    pub position: i64,
    /// The position at which it ends: where the log ended when it was run last.
    pub until: i64,
    /// How many events were sent and confirmed. An event that was sent twice counts twice.
    pub sent: u64,
    /// How many were passed over, because they are of another kind or from before the start.
    pub passed_over: u64,
    /// How many could not be read, or can never be sent; each is named in the program's log.
    pub not_sent: u64,
    /// Whether all is sent.
    pub is_done: bool,
    /// When it began, by the clock of who runs it.
    pub began: Timestamp,
    /// Why it waits, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The position up to which the log was dropped already when it began.
    #[serde(default)]
    dropped_before: i64,
    /// The events that are sent, if they were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    events: Vec<String>,
}

/// The replays of a store that were ever begun, at most `limit`, those that were not touched for
/// longest first.
///
/// # Errors
///
/// When the database does not answer.
pub async fn list(store: &dyn Store, limit: usize) -> Result<Vec<Progress>, StoreError> {
    let query = RecordQuery {
        kind: KIND.into(),
        limit,
        ..RecordQuery::default()
    };
    let records = store.records().list(&query).await?;
    records.iter().map(read).collect()
}

fn read(record: &Record) -> Result<Progress, StoreError> {
    serde_json::from_slice(&record.value.body).map_err(|error| {
        let to = &record.id.id;
        StoreError::new(format!(
            "the record of the replay to `{to}` cannot be read; begin it anew"
        ))
        .with_source(error)
    })
}

/// A replay that this process runs.
pub(super) struct Job {
    pub(super) progress: Progress,
    version: u64,
}

impl Job {
    /// The run to go on with; or what a new one writes over.
    pub(super) async fn unfinished(
        store: &dyn Store,
        replay: &Replay,
        until: i64,
    ) -> Result<Result<Self, Expected>, ReplayError> {
        let Some(record) = record_of(store, &replay.queue).await? else {
            return Ok(Err(Expected::Nothing));
        };
        let over = Expected::Version(record.version);
        if replay.restart {
            return Ok(Err(over));
        }
        let progress = read(&record)?;
        if progress.is_done {
            return Ok(Err(over));
        }
        if progress.start != replay.start || progress.events != replay.events {
            return Err(ReplayError::unfinished(
                &replay.queue,
                progress.start,
                progress.position,
            ));
        }
        let mut job = Self {
            // The queue may not have been there until now.
            progress: Progress { until, ..progress },
            version: record.version,
        };
        job.save(store).await?; // Whoever runs it now stops.
        Ok(Ok(job))
    }

    pub(super) async fn begin(
        store: &dyn Store,
        replay: &Replay,
        expected: Expected,
        after: i64,
        until: i64,
        dropped_before: i64,
    ) -> Result<Self, ReplayError> {
        let progress = Progress {
            to: replay.queue.clone(),
            id: Uuid::now_v7().to_string(),
            start: replay.start,
            position: after,
            until,
            sent: 0,
            passed_over: 0,
            not_sent: 0,
            is_done: false,
            began: Timestamp::now(),
            trouble: None,
            dropped_before,
            events: replay.events.clone(),
        };
        let mut job = Self {
            version: match expected {
                Expected::Version(version) => version,
                _ => 0,
            },
            progress,
        };
        job.save(store).await?;
        Ok(job)
    }

    /// Fails if events after `after` were dropped since it began, before they were read.
    pub(super) fn check_dropped(&self, after: i64, dropped: i64) -> Result<(), ReplayError> {
        match dropped > after.max(self.progress.dropped_before) {
            true => Err(ReplayError::dropped(&self.progress.to, after, dropped)),
            false => Ok(()),
        }
    }

    pub(super) async fn finish(&mut self, store: &dyn Store) -> Result<(), ReplayError> {
        self.progress.is_done = true;
        self.progress.position = self.progress.position.max(self.progress.until);
        self.save(store).await
    }

    /// Writes down how far it is.
    pub(super) async fn save(&mut self, store: &dyn Store) -> Result<(), ReplayError> {
        let label = if self.progress.is_done { DONE } else { RUNNING };
        let body = serde_json::to_vec(&self.progress).map_err(|error| {
            StoreError::new("how far a replay is cannot be written as JSON").with_source(error)
        })?;
        let change = RecordChange {
            id: RecordId::new(KIND, &*self.progress.to),
            expected: match self.version {
                0 => Expected::Nothing,
                version => Expected::Version(version),
            },
            value: Some(RecordValue {
                label: label.into(),
                due: None,
                body: body.into(),
            }),
        };
        let mut patience = Patience::new(&self.progress.to);
        let mut conflicts = 0;
        loop {
            let commit = Commit::from(change.clone());
            let error = match store.commit(commit).await {
                Ok(_) => {
                    self.version += 1;
                    return Ok(());
                }
                Err(error) => error,
            };
            if error.is_unavailable() {
                patience.wait(error).await?;
                continue;
            }
            if !error.is_conflict() || conflicts == WRITES_MAX {
                return Err(error.into());
            }
            conflicts += 1;
            let now = record_of(store, &self.progress.to).await?;
            if now.as_ref().map_or(0, |record| record.version) == self.version {
                continue;
            }
            // The write whose end was not known may have been made.
            let is_ours = now.is_some_and(|now| {
                now.version == self.version + 1 && Some(&now.value) == change.value.as_ref()
            });
            return match is_ours && patience.is_used {
                true => {
                    self.version += 1;
                    Ok(())
                }
                false => Err(ReplayError::taken_over(&self.progress.to)),
            };
        }
    }
}

/// Waits for a database that is away, for a while.
pub(super) struct Patience<'a> {
    to: &'a str,
    until: Instant,
    pause: Duration,
    is_used: bool,
}

impl<'a> Patience<'a> {
    pub(super) fn new(to: &'a str) -> Self {
        Self {
            to,
            until: Instant::now() + AWAY_MAX,
            pause: TRY_AGAIN.0,
            is_used: false,
        }
    }

    /// The error, if it has been away for too long.
    pub(super) async fn wait(&mut self, error: StoreError) -> Result<(), StoreError> {
        if Instant::now() >= self.until {
            return Err(error);
        }
        warn!(to = self.to, "the replay waits: {error}");
        self.is_used = true;
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(TRY_AGAIN.1);
        Ok(())
    }
}

async fn record_of(store: &dyn Store, to: &str) -> Result<Option<Record>, StoreError> {
    let id = RecordId::new(KIND, to);
    let records = store.records().read(std::slice::from_ref(&id)).await?;
    Ok(records.into_iter().next().flatten())
}
