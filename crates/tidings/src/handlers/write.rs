//! Writing the records: what a start changes of what is there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{HandlerRecord, KIND, Left, SERVICE_KIND, ServiceRecord, records_of};
use crate::{
    Commit, Expected, Record, RecordChange, RecordId, RecordValue, Router, Store, StoreError,
    handlers, throttle::Throttle,
};

/// How long a start waits for a database to take the records; then they are written later.
const WRITING_MAX: Duration = Duration::from_secs(5);
/// How often it is tried again at once when another instance was faster.
const CONFLICTS_MAX: u32 = 20;
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What the instance of a service has to say about its handlers.
pub(crate) struct Report {
    store: Arc<dyn Store>,
    service: String,
    publishes: Vec<String>,
    /// By name.
    handlers: BTreeMap<String, HandlerRecord>,
}

/// Writes down the handlers of these routers; what a database does not take in time is returned.
pub(crate) async fn write_down(routers: &[Router]) -> Vec<Report> {
    let mut unwritten = Vec::new();
    for report in reports(routers) {
        if !matches!(timeout(WRITING_MAX, report.write()).await, Ok(Ok(()))) {
            unwritten.push(report);
        }
    }
    unwritten
}

/// What these routers have to say: for each service with a store one report, even if it is several routers.
fn reports(routers: &[Router]) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for router in routers {
        let Some(store) = &router.store else {
            continue;
        };
        let topics = router.topology().topics;
        let topics = topics.into_iter().map(String::from);
        let of_router = handlers::of(router).into_iter();
        let of_router = of_router.map(|it| (it.consumer.clone(), it));
        let is_its =
            |it: &&mut Report| Arc::ptr_eq(&it.store, store) && *it.service == *router.consumer;
        if let Some(known) = reports.iter_mut().find(is_its) {
            known.publishes.extend(topics);
            known.handlers.extend(of_router);
        } else {
            reports.push(Report {
                store: Arc::clone(store),
                service: router.consumer.to_string(),
                publishes: topics.collect(),
                handlers: of_router.collect(),
            });
        }
    }
    for report in &mut reports {
        report.publishes.sort();
        report.publishes.dedup();
    }
    reports
}

impl Report {
    /// Writes what the database does not say yet.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or others write all the time.
    async fn write(&self) -> Result<(), StoreError> {
        let mut conflicts = 0;
        loop {
            let changes = self.changes().await?;
            if changes.is_empty() {
                return Ok(());
            }
            let count = changes.len();
            let commit = Commit {
                records: changes,
                ..Commit::default()
            };
            match self.store.commit(commit).await {
                Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    sleep(Duration::from_millis(5) * conflicts).await;
                }
                Err(error) => return Err(error),
                Ok(_) => {
                    let service = &self.service;
                    debug!("wrote down {count} changes of the handlers of `{service}`");
                    return Ok(());
                }
            }
        }
    }

    /// Writes it when the database answers, and then waits for `stop`.
    pub(crate) async fn keep_writing(self, stop: CancellationToken) {
        let mut trouble = Throttle::new(Duration::from_secs(30));
        loop {
            let written = tokio::select! {
                written = self.write() => written,
                () = stop.cancelled() => return,
            };
            match written {
                Ok(()) => return stop.cancelled().await,
                Err(error) if trouble.allows() => {
                    let service = &self.service;
                    warn!("the handlers of `{service}` are not written down yet: {error}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = sleep(STORE_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn changes(&self) -> Result<Vec<RecordChange>, StoreError> {
        let now = Timestamp::now();
        let store = &*self.store;
        let mut changes = Vec::new();
        let mut unknown = self.handlers.clone();
        for record in records_of(store, KIND).await? {
            let own = unknown.remove(&*record.id.id);
            let next = match (HandlerRecord::read(&record), own) {
                (Ok(known), Some(own)) => own.over(known, now),
                (Err(_), Some(own)) => Some(own),
                (Ok(known), None) if known.service == self.service => known.gone(now),
                // Of another service, or of a newer program.
                (_, None) => None,
            };
            if let Some(next) = next {
                changes.push(next.change(Expected::Version(record.version))?);
            }
        }
        for own in unknown.into_values() {
            changes.push(own.change(Expected::Nothing)?);
        }
        changes.extend(self.service_change().await?);
        Ok(changes)
    }

    async fn service_change(&self) -> Result<Option<RecordChange>, StoreError> {
        let id = RecordId::new(SERVICE_KIND, &*self.service);
        let found = self.store.records().read(std::slice::from_ref(&id)).await?;
        let found: Option<Record> = found.into_iter().next().flatten();
        let expected = match &found {
            Some(record) => Expected::Version(record.version),
            None => Expected::Nothing,
        };
        let known = found.and_then(|record| ServiceRecord::read(&record).ok());
        if known.is_some_and(|known| known.publishes == self.publishes) {
            return Ok(None);
        }
        let value = ServiceRecord {
            service: self.service.clone(),
            publishes: self.publishes.clone(),
            written: Timestamp::UNIX_EPOCH,
            revision: 0,
        };
        Ok(Some(RecordChange {
            id,
            expected,
            value: Some(written(&value, "")?),
        }))
    }
}

impl HandlerRecord {
    /// What is to be written over what is there; `None` if that says the same.
    fn over(mut self, known: Self, now: Timestamp) -> Option<Self> {
        self.left = known.left.clone();
        if self.ordered != known.ordered {
            self.left.push(Left {
                ordered: known.ordered.clone(),
                since: now,
            });
        }
        // Once each, as it was left first; and not where it receives now.
        let mut seen = vec![self.ordered.clone()];
        self.left.retain(|left| {
            let is_new = !seen.contains(&left.ordered);
            seen.push(left.ordered.clone());
            is_new
        });
        self.written = known.written;
        self.revision = known.revision;
        (self != known).then_some(self)
    }

    fn gone(mut self, now: Timestamp) -> Option<Self> {
        if self.is_gone() {
            return None;
        }
        self.gone_since = Some(now);
        Some(self)
    }

    fn change(&self, expected: Expected) -> Result<RecordChange, StoreError> {
        Ok(RecordChange {
            id: RecordId::new(KIND, &*self.consumer),
            expected,
            value: Some(value_of(self)?),
        })
    }
}

pub(super) fn value_of(handler: &HandlerRecord) -> Result<RecordValue, StoreError> {
    let label = match handler.is_gone() {
        true => "gone",
        false => "current",
    };
    written(handler, label)
}

fn written(value: &impl Serialize, label: &str) -> Result<RecordValue, StoreError> {
    let body = serde_json::to_vec(value)
        .map_err(|error| StoreError::invalid(format!("a record cannot be written: {error}")))?;
    Ok(RecordValue {
        label: label.into(),
        due: None,
        body: body.into(),
    })
}
