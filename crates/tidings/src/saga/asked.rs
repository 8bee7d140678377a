//! Checks of open journals that an operator asks for. Only a service has its sagas' functions, so what is asked
//! for is a record in its database; an instance takes it within a second, replays the open journals dry, and
//! writes into the record what it found.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::{
    Kind,
    check::{Checked, Checking},
};
use crate::{
    Commit, Error, Expected, Lease, Record, RecordChange, RecordId, RecordValue, Router, Store,
    StoreError, retry, throttle::Throttle,
};

/// How often an instance looks whether a check is asked for.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long one that took a check has to begin with it.
const LEASE: Duration = Duration::from_secs(10);
/// How long a check may take.
const CHECK_MAX: Duration = Duration::from_secs(60);
/// When another instance takes a check that was begun and not ended.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(90);
/// How long a result is kept for who asked and did not wait.
const KEEP: SignedDuration = SignedDuration::from_mins(10);

/// Names a check that was asked for, until [`end_check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckId(RecordId);

/// How far a check is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckState {
    /// No instance has begun with it.
    Asked,
    /// An instance is at it.
    Running,
    /// It is done.
    Done(CheckReport),
}

/// What a service found when it was asked to check the open journals of a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct CheckReport {
    /// Which instance did it.
    pub by: Box<str>,
    /// Whether it came to all journals within a minute.
    pub is_whole: bool,
    /// What it found.
    pub checked: Checked,
}

#[derive(Default, Serialize, Deserialize)]
struct Body {
    report: Option<CheckReport>,
}

fn checks_of(saga: &str) -> String {
    format!("saga-check:{saga}")
}

fn value(
    label: &str,
    due: SignedDuration,
    report: Option<CheckReport>,
) -> Result<RecordValue, StoreError> {
    let body = serde_json::to_vec(&Body { report })
        .map_err(|error| StoreError::invalid(format!("a check cannot be written down: {error}")))?;
    Ok(RecordValue {
        label: label.into(),
        due: Timestamp::now().saturating_add(due).ok(),
        body: body.into(),
    })
}

/// Asks the service that runs the sagas of this name to replay their open journals dry ([`check`](super::check::check)).
/// An instance begins within a second, if one runs.
///
/// # Errors
///
/// When the database does not answer.
pub async fn ask_check(store: &dyn Store, saga: &str) -> Result<CheckId, Error> {
    let id = RecordId::new(checks_of(saga), Uuid::now_v7().to_string());
    let asked = value("asked", SignedDuration::ZERO, None)?;
    write(store, id.clone(), Expected::Nothing, Some(asked)).await?;
    Ok(CheckId(id))
}

/// How far a check is; `None` if it is not there any more.
///
/// # Errors
///
/// When the database does not answer, or the service is of a newer version.
pub async fn check_state(store: &dyn Store, check: &CheckId) -> Result<Option<CheckState>, Error> {
    let found = store.records().read(std::slice::from_ref(&check.0)).await?;
    let Some(record) = found.into_iter().next().flatten() else {
        return Ok(None);
    };
    let body: Body = serde_json::from_slice(&record.value.body)?;
    Ok(Some(match (body.report, &*record.value.label) {
        (Some(report), _) => CheckState::Done(report),
        (None, "asked") => CheckState::Asked,
        (None, _) => CheckState::Running,
    }))
}

/// Removes a check, done or not.
///
/// # Errors
///
/// When the database does not answer.
pub async fn end_check(store: &dyn Store, check: CheckId) -> Result<(), Error> {
    Ok(write(store, check.0, Expected::Anything, None).await?)
}

async fn write(
    store: &dyn Store,
    id: RecordId,
    expected: Expected,
    value: Option<RecordValue>,
) -> Result<(), StoreError> {
    let commit = Commit::from(RecordChange {
        id,
        expected,
        value,
    });
    retry::commit(store, commit).await.map(drop)
}

/// Carries out what is asked for of a router's sagas, until `stop`.
pub(crate) fn answer_checks(
    store: Arc<dyn Store>,
    router: &Router,
    instance: String,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let kinds: Vec<Kind> = router.sagas.0.read().values().cloned().collect();
    async move {
        let mut trouble = Throttle::new(Duration::from_secs(30));
        let answering = async {
            loop {
                for kind in &kinds {
                    let answered = answer(&*store, kind, &instance).await;
                    if let Err(error) = answered
                        && !error.is_conflict()
                        && trouble.allows()
                    {
                        warn!("a check of open journals waits, it is tried again: {error}");
                    }
                }
                sleep(POLL_EVERY).await;
            }
        };
        tokio::select! {
            () = answering => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn answer(store: &dyn Store, kind: &Kind, instance: &str) -> Result<(), StoreError> {
    let name = checks_of(kind.definition.name());
    let due = store.records().take_due(&name, instance, LEASE, 1).await?;
    for (lease, record) in due {
        answer_one(store, kind, instance, lease, record).await?;
    }
    Ok(())
}

async fn answer_one(
    store: &dyn Store,
    kind: &Kind,
    instance: &str,
    lease: Lease,
    record: Record,
) -> Result<(), StoreError> {
    let Record {
        id,
        version,
        value: asked,
        ..
    } = record;
    if &*asked.label == "done" {
        return write(store, id, Expected::Lease(lease), None).await; // Nobody came for it.
    }
    let begun = value("running", LOST_AFTER, None)?;
    write(store, id.clone(), Expected::Lease(lease), Some(begun)).await?;
    let mut checking = Checking::new(&kind.definition);
    let until = Instant::now() + CHECK_MAX;
    while !checking.is_over && Instant::now() < until {
        checking.page(store).await?;
    }
    let report = CheckReport {
        by: instance.into(),
        is_whole: checking.is_over,
        checked: checking.checked,
    };
    let done = value("done", KEEP, Some(report))?;
    write(store, id, Expected::Version(version + 1), Some(done)).await
}
