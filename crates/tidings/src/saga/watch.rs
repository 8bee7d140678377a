//! How many sagas are open, and how old the oldest is: by saga, version and state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use metrics::gauge;
use serde::Deserialize;
use tidings_saga::SagaState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::kind_of;
use crate::{RecordQuery, Router, Store, StoreError};

/// How often sagas are counted.
const WATCH_EVERY: Duration = Duration::from_secs(60);
/// How many sagas of each state are counted: the journals have to be read for it.
const COUNT_MAX: usize = 10_000;
/// How many are read at once.
const PAGE_COUNT_MAX: usize = 500;

/// What is read of a journal.
#[derive(Deserialize)]
struct Header {
    version: u32,
    started: Timestamp,
}

/// How many of one version and state there are.
#[derive(Default)]
struct Tally {
    count: u64,
    oldest: Option<Timestamp>,
}

/// Which they are.
type Of = (u32, &'static str);

/// Measures the sagas of a router, until `stop`.
pub(crate) fn watch(
    store: Arc<dyn Store>,
    router: &Router,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let names: Vec<Box<str>> = router.sagas.0.read().keys().cloned().collect();
    async move {
        let mut seen: BTreeMap<Box<str>, BTreeSet<Of>> = BTreeMap::new();
        let mut tick = interval(WATCH_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            for saga in &names {
                match count(&*store, saga).await {
                    Ok(tallies) => show(saga, &tallies, seen.entry(saga.clone()).or_default()),
                    Err(error) => debug!(saga, "sagas were not counted: {error}"),
                }
            }
        }
    }
}

fn show(saga: &str, tallies: &BTreeMap<Of, Tally>, seen: &mut BTreeSet<Of>) {
    seen.extend(tallies.keys());
    let now = Timestamp::now();
    for of in &*seen {
        let tally = tallies.get(of);
        let labels = [
            ("saga", saga.to_owned()),
            ("version", of.0.to_string()),
            ("state", of.1.to_owned()),
        ];
        let count = tally.map_or(0, |tally| tally.count);
        gauge!("tidings_sagas_open", &labels).set(count as f64);
        let oldest = tally.and_then(|tally| tally.oldest);
        let age = oldest.map_or(0.0, |oldest| now.duration_since(oldest).as_secs_f64());
        gauge!("tidings_sagas_oldest_age_seconds", &labels).set(age.max(0.0));
    }
}

async fn count(store: &dyn Store, saga: &str) -> Result<BTreeMap<Of, Tally>, StoreError> {
    let stuck = SagaState::Stuck {
        reason: "".into(),
        while_compensating: false,
        is_waiting: false,
    };
    let mut tallies: BTreeMap<Of, Tally> = BTreeMap::new();
    for state in [SagaState::Running, SagaState::Compensating, stuck] {
        let state = state.label();
        let mut after = None;
        let mut count = 0;
        while count < COUNT_MAX {
            let query = RecordQuery {
                kind: kind_of(saga).into(),
                label: Some(state.into()),
                after,
                limit: PAGE_COUNT_MAX,
                ..RecordQuery::default()
            };
            let records = store.records().list(&query).await?;
            count += records.len();
            let is_last = records.len() < PAGE_COUNT_MAX;
            after = records
                .last()
                .map(|last| (last.written, last.id.id.clone()));
            for record in records {
                // One that this program cannot read counts as version 0.
                let header: Option<Header> = serde_json::from_slice(&record.value.body).ok();
                let version = header.as_ref().map_or(0, |header| header.version);
                let started = header.map_or(record.written, |header| header.started);
                let tally = tallies.entry((version, state)).or_default();
                tally.count += 1;
                tally.oldest = Some(tally.oldest.map_or(started, |oldest| oldest.min(started)));
            }
            if is_last {
                break;
            }
        }
    }
    Ok(tallies)
}
