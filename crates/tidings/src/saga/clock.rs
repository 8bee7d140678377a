//! The clock of sagas: tells those that are due, carries out what operators asked for, and deletes
//! those that ended long ago.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use metrics::histogram;
use tidings_saga::Arrival;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{Kind, kind_of, operator, read};
use crate::{
    Commit, Expected, Lease, Messages, Record, RecordChange, RecordValue, Router, Store,
    StoreError, publish::Sender, throttle::Throttle,
};

/// How long one that died keeps what it took.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// How many sagas that are due share a commit.
pub(super) const BATCH_COUNT_MAX: usize = 100;
/// The longest time between two looks.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long a journal is left alone that this program cannot read or go on with.
const FOREIGN_PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// Tells a router's sagas that they are due, and deletes those that ended long ago, until `stop`.
pub(crate) fn run(
    store: Arc<dyn Store>,
    router: &Router,
    instance: String,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let kinds = router.sagas.0.read().values().cloned().collect();
    let sender = Sender {
        source: router.consumer.clone(),
        on_send: router.on_send.clone(),
    };
    keep_time(store, kinds, sender, instance, stop)
}

async fn keep_time(
    store: Arc<dyn Store>,
    kinds: Vec<Kind>,
    sender: Sender,
    instance: String,
    stop: CancellationToken,
) {
    let mut trouble = Throttle::new(Duration::from_secs(5));
    while !stop.is_cancelled() {
        let mut wait = POLL_EVERY;
        for kind in &kinds {
            let round = async {
                operator::carry_out(&*store, kind, &sender, &instance).await?;
                round(&*store, kind, &sender, &instance).await
            };
            match round.await {
                Ok(next) => wait = wait.min(next),
                Err(error) => {
                    if trouble.allows() {
                        warn!("sagas that are due wait, it is tried again: {error}");
                    }
                    wait = wait.min(STORE_PAUSE);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(wait) => {}
        }
    }
}

/// Some of what is due; says how long to wait for more. Not all at once: after an outage there may be a
/// mountain of one kind, and the others and operators are not to wait for it.
async fn round(
    store: &dyn Store,
    kind: &Kind,
    sender: &Sender,
    instance: &str,
) -> Result<Duration, StoreError> {
    let name = kind_of(kind.definition.name());
    let records = store.records();
    let due = records
        .take_due(&name, instance, LEASE, BATCH_COUNT_MAX)
        .await?;
    let is_full = due.len() == BATCH_COUNT_MAX;
    let commits: Vec<Commit> = due
        .into_iter()
        .filter_map(|(lease, record)| fire(kind, sender, lease, &record))
        .collect();
    commit_all(store, kind, commits).await?;
    if is_full {
        return Ok(Duration::ZERO);
    }
    let next = records.next_due(&name).await?;
    Ok(next.map_or(POLL_EVERY, |due| due.min(POLL_EVERY)))
}

/// All in one commit; each for itself if one of them was changed meanwhile.
async fn commit_all(
    store: &dyn Store,
    kind: &Kind,
    commits: Vec<Commit>,
) -> Result<(), StoreError> {
    if commits.is_empty() {
        return Ok(());
    }
    let mut all = Commit::default();
    for commit in commits.clone() {
        all.outbox.extend(commit.outbox);
        all.records.extend(commit.records);
    }
    match store.commit(all).await {
        Err(error) if error.is_conflict() => {}
        committed => return committed.map(drop),
    }
    for commit in commits {
        match store.commit(commit).await {
            Ok(_) => {}
            // An answer came first.
            Err(error) if error.is_conflict() => kind.conflict(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What becomes of a saga that is due.
fn fire(kind: &Kind, sender: &Sender, lease: Lease, record: &Record) -> Option<Commit> {
    let now = Timestamp::now();
    let key = &*record.id.id;
    let expected = Expected::Lease(lease);
    let journal = match read(kind, key, record) {
        Ok(journal) => journal,
        Err(why) => {
            error!("{why}");
            let value = RecordValue {
                due: now.saturating_add(FOREIGN_PAUSE).ok(),
                ..record.value.clone()
            };
            let change = RecordChange {
                id: record.id.clone(),
                expected,
                value: Some(value),
            };
            return Some(Commit::from(change));
        }
    };
    if journal.state.is_ended() {
        let change = RecordChange {
            id: record.id.clone(),
            expected,
            value: None,
        };
        return Some(Commit::from(change));
    }
    if let Some(due) = record.value.due {
        let saga = kind.definition.name().to_owned();
        let lag = now.duration_since(due).as_secs_f64().max(0.0);
        histogram!("tidings_saga_timer_lag_seconds", "saga" => saga).record(lag);
    }
    let turn = kind.definition.advance(key, journal, [Arrival::Due], now);
    let committed = kind
        .leave(key, turn, expected, now)
        .and_then(|(record, now)| {
            let messages = Messages {
                now,
                records: vec![record],
                ..Messages::default()
            };
            sender.commit(messages, None)
        });
    match committed {
        Ok(commit) => Some(commit),
        Err(error) => {
            error!(key, "what a saga sends is refused by `on_send`: {error}");
            None
        }
    }
}
