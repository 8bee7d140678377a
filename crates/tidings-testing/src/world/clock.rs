//! The world's clock. It stands still until the test moves it, also while the runtime is idle, and
//! stores with a clock of their own follow it.
//!
//! Tokio moves a paused clock by itself when no task can run, from one timer to the next; a service
//! has timers without end, so hours would pass while a handler waits for an answer. Tokio does not
//! do so while a blocking task runs: the world has one, which also wakes whoever waits for quiet
//! every millisecond of the machine's time, and only while somebody does.

use std::{
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tidings_core::{
    Commit, Expected, InboxQuery, InboxState, RecordChange, RecordId, RecordQuery, RecordValue,
    Store, StoreError,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::watch::Watch;

/// The kind of the records of messages that are sent later.
pub(super) const SCHEDULE: &str = "tidings.schedule";
/// The label of those that recur.
pub(super) const RECURRING: &str = "recurring";
/// The kind of the record by which a database is known again.
const MARK: &str = "tidings-testing.world";
/// How long a beat is.
pub(super) const BEAT: Duration = Duration::from_millis(1);
/// More than this waits in no test.
const ROWS_MAX: usize = 100_000;

/// Wakes whoever waits, once for each demand, and keeps tokio from moving a paused clock.
pub(super) struct Pulse(SyncSender<()>);

impl Pulse {
    pub(super) fn new(watch: Arc<Watch>) -> Self {
        let (demand, demands) = sync_channel(1);
        tokio::task::spawn_blocking(move || {
            while demands.recv().is_ok() {
                std::thread::sleep(BEAT);
                watch.changed.notify_one();
            }
        });
        Self(demand)
    }

    /// Asks for a beat. One that is asked for already is enough.
    pub(super) fn demand(&self) {
        let _ = self.0.try_send(());
    }
}

/// The clock of stores in memory: where it began, on the machine's clock and on tokio's.
#[derive(Clone, Copy)]
pub(super) struct VirtualTime {
    began_at: Timestamp,
    began: Instant,
}

impl VirtualTime {
    pub(super) fn begin() -> Self {
        Self {
            began_at: Timestamp::now(),
            began: Instant::now(),
        }
    }

    /// The virtual time that is as far from the virtual now as `time` is from the machine's.
    pub(super) fn of(self, time: Timestamp) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        let now = self.began_at.saturating_add(passed);
        let now = now.unwrap_or(Timestamp::MAX);
        let ahead = now.duration_since(Timestamp::now());
        time.saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }
}

/// A database of the world.
pub(super) struct Known {
    pub(super) store: Arc<dyn Store>,
    mark: RecordId,
    /// Its clock is tokio's.
    pub(super) is_virtual: bool,
}

impl Known {
    /// Marks a database, and finds out whose clock it has: on a clock that stands still, two writes
    /// are at the same time.
    pub(super) async fn new(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mark = RecordId::new(MARK, Uuid::new_v4().to_string());
        let first = written(&*store, &mark).await?;
        std::thread::sleep(BEAT * 5);
        let second = written(&*store, &mark).await?;
        Ok(Self {
            store,
            mark,
            is_virtual: first == second,
        })
    }

    /// Whether `store` is the same database, maybe by another handle.
    pub(super) async fn is(&self, store: &Arc<dyn Store>) -> Result<bool, StoreError> {
        let found = store
            .records()
            .read(std::slice::from_ref(&self.mark))
            .await?;
        Ok(found.into_iter().any(|record| record.is_some()))
    }

    /// Brings forward what waits in a database whose clock the world cannot move.
    pub(super) async fn bring_forward(&self, step: Duration) -> Result<(), StoreError> {
        if self.is_virtual {
            return Ok(());
        }
        let query = InboxQuery {
            state: Some(InboxState::Deferred),
            limit: ROWS_MAX,
            ..InboxQuery::default()
        };
        let now = Timestamp::now();
        for row in self.store.deferred().list(&query).await? {
            if let Some(due) = row.due {
                let due_in = Duration::try_from(due.duration_since(now)).unwrap_or_default();
                let due_in = due_in.saturating_sub(step);
                self.store
                    .deferred()
                    .reschedule(&[row.claim], due_in)
                    .await?;
            }
        }
        let query = RecordQuery {
            kind: SCHEDULE.into(),
            limit: ROWS_MAX,
            ..RecordQuery::default()
        };
        for mut record in self.store.records().list(&query).await? {
            record.value.due = record.value.due.map(|due| {
                let step = SignedDuration::try_from(step).unwrap_or(SignedDuration::MAX);
                due.saturating_sub(step).unwrap_or(Timestamp::MIN)
            });
            let change = RecordChange {
                id: record.id,
                expected: Expected::Version(record.version),
                value: Some(record.value),
            };
            match write(&*self.store, change).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => {} // Sent or cancelled just now.
            }
        }
        Ok(())
    }
}

async fn written(store: &dyn Store, mark: &RecordId) -> Result<Option<Timestamp>, StoreError> {
    let change = RecordChange {
        id: mark.clone(),
        expected: Expected::Anything,
        value: Some(RecordValue::default()),
    };
    write(store, change).await?;
    let found = store.records().read(std::slice::from_ref(mark)).await?;
    Ok(found
        .into_iter()
        .flatten()
        .next()
        .map(|record| record.written))
}

async fn write(store: &dyn Store, change: RecordChange) -> Result<(), StoreError> {
    let commit = Commit {
        records: vec![change],
        ..Commit::default()
    };
    store.commit(commit).await.map(drop)
}
