//! The scheduler: turns records that are due into outbox rows, many with one commit.
//!
//! It shares the database with handlers and relays. So a commit is small enough to be short, and after
//! each one the scheduler leaves the database to others for half the time that it took. One record that
//! was cancelled or replaced meanwhile does not spoil the others: then each is committed for itself.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Declared, KIND, Recurring, read_message,
    recurring::{RECURRING, State, is_recurring},
};
use crate::{
    Commit, Expected, Lease, Outgoing, Record, RecordChange, RecordValue, Store, StoreError,
    throttle::Throttle,
};

/// How long a scheduler that died keeps what it took.
const LEASE: Duration = Duration::from_secs(10);
/// How many records it takes at a time.
const BATCH_COUNT_MAX: usize = 500;
/// How many messages share a commit, but for those that one record sends at a time.
const MESSAGES_MAX: usize = 500;
/// How long it computes what is sent before it commits that, and lets others have the thread.
const COMPUTE_MAX: Duration = Duration::from_millis(50);
/// The longest time between two looks: what another instance scheduled is found by then.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long a record is left alone that cannot be read.
const UNREADABLE_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// How long a schedule is left to others that is declared by another program: while one may be there that
/// declares it and is late by this, and when there seems to be none.
const FOREIGN_PAUSE: SignedDuration = SignedDuration::from_secs(1);
const FOREIGN_PAUSE_MAX: SignedDuration = SignedDuration::from_secs(10);
/// How long after it was due there seems to be none.
const FOREIGN_LATE: SignedDuration = SignedDuration::from_mins(1);
/// How long a schedule may be due without being taken by a program that declares it. Then it ends.
const FOREIGN_MAX: SignedDuration = SignedDuration::from_hours(1);
/// How often the clock of what is declared is looked at.
const CLOCK_EVERY: Duration = Duration::from_secs(3600);

/// What keeps the schedules of a store.
pub(crate) struct Scheduler {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) instance: String,
    /// What the programs of this process declare.
    pub(crate) declared: Vec<Declared>,
}

impl Scheduler {
    /// Turns what is due into outbox rows, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut trouble = Throttle::new(Duration::from_secs(5));
        let mut next_look: Option<Instant> = None;
        while !stop.is_cancelled() {
            let round = async {
                if next_look.is_none_or(|next| next <= Instant::now()) {
                    for declared in &self.declared {
                        declared
                            .write_down(&*self.store, next_look.is_none())
                            .await?;
                    }
                    next_look = Some(Instant::now() + CLOCK_EVERY);
                }
                self.round(&stop).await
            };
            let wait = match round.await {
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
    async fn round(&self, stop: &CancellationToken) -> Result<Duration, StoreError> {
        let records = self.store.records();
        while !stop.is_cancelled() {
            let began = Instant::now();
            let due = records
                .take_due(KIND, &self.instance, LEASE, BATCH_COUNT_MAX)
                .await?;
            let is_full = due.len() == BATCH_COUNT_MAX;
            self.send(due, began).await?;
            if !is_full {
                let next = records.next_due(KIND).await?;
                return Ok(next.map_or(POLL_EVERY, |due| due.min(POLL_EVERY)));
            }
        }
        Ok(Duration::ZERO)
    }

    /// Sends these, with as few commits as they may share, and leaves the database to others after each. Of
    /// what is not sent before its lease ends, another instance sends the rest.
    async fn send(&self, due: Vec<(Lease, Record)>, mut began: Instant) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let (mut fired, mut messages) = (Vec::new(), 0);
        let last = due.len();
        for (place, (lease, record)) in due.into_iter().enumerate() {
            let next = self.fire(lease, record, now);
            messages += next.commit.outbox.len();
            fired.push(next);
            let is_enough = messages >= MESSAGES_MAX || began.elapsed() >= COMPUTE_MAX;
            if is_enough || place + 1 == last {
                self.commit(std::mem::take(&mut fired)).await?;
                if last == BATCH_COUNT_MAX || place + 1 < last {
                    sleep(began.elapsed() / 2).await;
                }
                messages = 0;
                began = Instant::now();
            }
        }
        Ok(())
    }

    /// All in one commit; each for itself if one of them was changed meanwhile.
    async fn commit(&self, fired: Vec<Fired>) -> Result<(), StoreError> {
        if fired.is_empty() {
            return Ok(());
        }
        let mut all = Commit::default();
        for fired in fired.iter().cloned() {
            all.outbox.extend(fired.commit.outbox);
            all.records.extend(fired.commit.records);
        }
        match self.store.commit(all).await {
            Ok(_) => fired.iter().for_each(Fired::tell),
            Err(error) if error.is_conflict() => {
                for fired in fired {
                    match self.store.commit(fired.commit.clone()).await {
                        Ok(_) => fired.tell(),
                        // Cancelled, replaced, or taken by another instance meanwhile.
                        Err(error) if error.is_conflict() => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What becomes of a record that is due.
    fn fire(&self, lease: Lease, record: Record, now: Timestamp) -> Fired {
        let is_recurring = is_recurring(&record.value.body);
        let (outbox, value, told) = match is_recurring {
            true => match Recurring::read(&record.value.body) {
                Ok(recurring) => self.recur(recurring, now),
                Err(why) => (Vec::new(), Some(unreadable(&record, &why, now)), None),
            },
            false => match read_message(&record.value.body) {
                Ok(message) => (vec![message], None, None),
                Err(why) => (Vec::new(), Some(unreadable(&record, &why, now)), None),
            },
        };
        Fired {
            commit: Commit {
                outbox,
                records: vec![RecordChange {
                    id: record.id,
                    expected: Expected::Lease(lease),
                    value,
                }],
                ..Commit::default()
            },
            told,
        }
    }

    fn recur(&self, mut recurring: Recurring, now: Timestamp) -> Sent {
        if self.is_foreign(&recurring) {
            return leave(recurring, now);
        }
        let late = now.duration_since(recurring.state.planned);
        let messages = recurring.fire(now);
        let name = &recurring.state.name;
        let told = match (messages.is_empty(), &recurring.state.ended) {
            (_, Some(why)) => Some(format!("the schedule `{name}` has ended: {why}")),
            (true, None) => Some(format!(
                "the schedule `{name}` was due {} s ago, and what it missed is skipped",
                late.as_secs()
            )),
            (false, None) => None,
        };
        (messages, Some(recurring.value()), told)
    }

    /// Whether another program declares it.
    fn is_foreign(&self, recurring: &Recurring) -> bool {
        let State {
            declared_by, name, ..
        } = &recurring.state;
        declared_by.as_deref().is_some_and(|consumer| {
            let is_it = |it: &Declared| it.sender.source == consumer && it.cron.name() == &**name;
            !self.declared.iter().any(is_it)
        })
    }
}

/// What is sent, what the record says then, and what people should know.
type Sent = (Vec<Outgoing>, Option<RecordValue>, Option<String>);

/// What becomes of a due record, to be committed.
#[derive(Clone)]
struct Fired {
    commit: Commit,
    /// For the log, once it is committed.
    told: Option<String>,
}

impl Fired {
    fn tell(&self) {
        if let Some(told) = &self.told {
            info!("{told}");
        }
    }
}

/// Leaves a schedule to a program that declares it; one that nobody has taken for long ends.
fn leave(mut recurring: Recurring, now: Timestamp) -> Sent {
    let since = *recurring.state.foreign_since.get_or_insert(now);
    let name = recurring.state.name.clone();
    let told = (now.duration_since(since) > FOREIGN_MAX).then(|| {
        recurring.state.ended = Some("no program declares it any more".into());
        format!("the schedule `{name}` has ended: no program declares it any more")
    });
    let mut value = recurring.value();
    if told.is_none() {
        let pause = match now.duration_since(since) < FOREIGN_LATE {
            true => FOREIGN_PAUSE,
            false => FOREIGN_PAUSE_MAX,
        };
        value.due = now.saturating_add(pause).ok();
        value.label = RECURRING.into();
    }
    (Vec::new(), Some(value), told)
}

fn unreadable(record: &Record, why: &str, now: Timestamp) -> RecordValue {
    error!(
        id = &*record.id.id,
        "a scheduled message cannot be read; it is left for an operator: {why}"
    );
    RecordValue {
        due: now.saturating_add(UNREADABLE_PAUSE).ok(),
        ..record.value.clone()
    }
}
