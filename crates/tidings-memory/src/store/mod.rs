//! A database in the process: inbox, outbox, records and values by name.
//!
//! One lock guards everything, so each question is answered from one moment and each commit is one
//! step. Transactions wait for one another where they must see what the others wrote: when they use
//! a value or read or write a record.

mod clock;
mod inbox;
mod log;
mod outbox;
mod records;
mod transaction;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tidings_core::{
    Ask, BoxFuture, Claim, Commit, Committed, Deferred, Destination, Due, InboxQuery, InboxRow,
    Keeping, Lane, Lease, Leased, ListedRow, Log, LogPage, Outbox, OutboxRow, OutboxState,
    OutboxStats, Outgoing, Record, RecordId, RecordQuery, Records, Seen, Store, StoreError,
    Transaction,
};
use tokio::sync::{OwnedMutexGuard, watch};

pub use transaction::{MemoryTransaction, Tx};

type Values = BTreeMap<String, serde_json::Value>;

/// A database that lives in this process. Cloning gives the same one.
///
/// It keeps values by name, written through [`Tx`]: enough for a test to see that a handler's
/// effects and its messages stand and fall together. Transactions run one at a time, from their
/// first value or record to their end.
///
/// It is for tests: some questions take time in proportion to what is stored.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    data: Mutex<Data>,
    /// Held by the transaction that runs.
    turn: Arc<tokio::sync::Mutex<()>>,
    commits: watch::Sender<u64>,
    commits_seen: AtomicU64,
    keeping: Keeping,
}

#[derive(Default)]
struct Data {
    clock: clock::Clock,
    values: Values,
    inbox: inbox::Inbox,
    outbox: outbox::Outbox,
    records: records::Records,
    log: log::Log,
}

impl MemoryStore {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// The committed value of `name`.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let value = self.0.data.lock().values.get(name).cloned();
        read(name, value)
    }

    /// The names of all committed values.
    pub fn names(&self) -> Vec<String> {
        self.0.data.lock().values.keys().cloned().collect()
    }

    /// The messages in the outbox, in order, whether they are ready, held or set aside.
    pub fn unsent(&self) -> Vec<Outgoing> {
        self.0.data.lock().outbox.messages()
    }

    /// Makes the message of the outbox row at `position` unreadable, as if a foreign program had
    /// written over it: for tests of what happens then. False if there is no such row.
    pub fn damage_outbox(&self, position: i64) -> bool {
        self.0.data.lock().outbox.damage(position)
    }

    /// The same for an event in the log.
    pub fn damage_log(&self, position: i64) -> bool {
        self.0.data.lock().log.damage(position)
    }

    /// Makes a message that waits in the inbox unreadable, as if a foreign program had written over
    /// it: for tests of what happens then. False if it does not wait there.
    pub fn damage_inbox(&self, claim: &Claim) -> bool {
        self.0.data.lock().inbox.damage(claim)
    }
}

impl From<MemoryStore> for Arc<dyn Store> {
    fn from(store: MemoryStore) -> Self {
        Arc::new(store)
    }
}

fn read<T: DeserializeOwned>(
    name: &str,
    value: Option<serde_json::Value>,
) -> Result<Option<T>, StoreError> {
    value
        .map(serde_json::from_value)
        .transpose()
        .map_err(|error| {
            StoreError::new(format!("`{name}` holds another type than is asked for"))
                .with_source(error)
        })
}

impl Shared {
    /// Waits until no other transaction runs.
    async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// What `ask` says about the data at this moment.
    fn at_once<T: Send>(&self, ask: impl FnOnce(&mut Data, Timestamp) -> T) -> T {
        let mut data = self.data.lock();
        let now = data.clock.now();
        ask(&mut data, now)
    }

    /// [`at_once`](Self::at_once), when it is awaited.
    fn answer<'a, T: Send + 'a>(
        &'a self,
        ask: impl FnOnce(&mut Data, Timestamp) -> T + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move { Ok(self.at_once(ask)) })
    }

    /// Commits `commit` and `values` together, or nothing.
    fn commit(&self, commit: Commit, values: Values) -> Result<Committed, StoreError> {
        let wake = !commit.outbox.is_empty();
        let committed = self.at_once(|data, now| {
            let before = match data.inbox.write_all(commit.inbox, now)? {
                Ok(before) => before,
                Err((entry, why)) => return Ok(Committed::Refused { entry, why }),
            };
            if let Err(conflict) = data.records.check(&commit.records) {
                data.inbox.undo(before);
                return Err(conflict);
            }
            for change in commit.records {
                data.records.write(change, now);
            }
            for message in commit.outbox {
                let event = self.keeping.keeps(&message).then(|| message.clone());
                let position = data.outbox.write(message, now);
                if let Some(event) = event {
                    data.log.append(position, event, now);
                }
            }
            data.values.extend(values);
            Ok(Committed::Done)
        })?;
        if wake && committed == Committed::Done {
            self.wake();
        }
        Ok(committed)
    }

    fn wake(&self) {
        self.commits.send_modify(|commits| *commits += 1);
    }
}

impl Store for MemoryStore {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        let transaction = MemoryTransaction::new(Arc::clone(&self.0));
        Box::pin(async move { Ok(Box::new(transaction) as Box<dyn Transaction>) })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(Box::new(MemoryTransaction::new(Arc::clone(&self.0))).commit(commit))
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        Box::pin(async move {
            let data = self.0.data.lock();
            Ok(asked.iter().map(|ask| data.inbox.look(ask)).collect())
        })
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let forget = |data: &mut Data, now| data.inbox.forget(consumer, age, limit, now);
            Ok(self.0.at_once(forget))
        })
    }

    fn outbox(&self) -> &dyn Outbox {
        &*self.0
    }

    fn deferred(&self) -> &dyn Deferred {
        &*self.0
    }

    fn records(&self) -> &dyn Records {
        &*self.0
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(&*self.0)
    }
}

impl Outbox for Shared {
    fn lease<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Leased, StoreError>> {
        self.answer(move |data, now| data.outbox.lease(relay, lease, now))
    }

    fn release<'a>(
        &'a self,
        relay: &'a str,
        lanes: Option<&'a [Lane]>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, _| data.outbox.release(relay, lanes))
    }

    fn next<'a>(
        &'a self,
        lanes: &'a [Lane],
        held: &'a [Destination],
        except: &'a [i64],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        self.answer(move |data, now| data.outbox.next(lanes, held, except, limit, now))
    }

    fn confirmed<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, _| data.outbox.confirmed(positions))
    }

    fn hold<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, now| data.outbox.hold(relay, positions, reason, now))
    }

    fn held<'a>(
        &'a self,
        lanes: &'a [Lane],
    ) -> BoxFuture<'a, Result<Vec<Destination>, StoreError>> {
        self.answer(move |data, _| data.outbox.held(lanes))
    }

    fn next_held<'a>(
        &'a self,
        lanes: &'a [Lane],
        destination: &'a Destination,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        self.answer(move |data, now| data.outbox.next_held(lanes, destination, limit, now))
    }

    fn set_aside<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, now| data.outbox.set_aside(relay, positions, reason, now))
    }

    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ListedRow>, StoreError>> {
        self.answer(move |data, _| data.outbox.list(state, after, limit))
    }

    fn restore<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let count = self.at_once(|data, _| data.outbox.restore(positions));
            self.wake();
            Ok(count)
        })
    }

    fn discard<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.answer(move |data, _| data.outbox.discard(positions))
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut commits = self.commits.subscribe();
            loop {
                let now = *commits.borrow_and_update();
                if self.commits_seen.swap(now, Ordering::Relaxed) != now {
                    return;
                }
                // An error is impossible: `self` holds the sender.
                let _ = commits.changed().await;
            }
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        self.answer(|data, now| data.outbox.stats(now))
    }
}

impl Log for Shared {
    fn keep(&self, retention: Duration) {
        self.keeping.keep(retention);
    }

    fn kept(&self) -> Option<Duration> {
        self.keeping.kept()
    }

    fn horizon(&self) -> BoxFuture<'_, Result<i64, StoreError>> {
        self.answer(|data, _| data.outbox.last())
    }

    fn read(
        &self,
        after: i64,
        until: i64,
        limit: usize,
    ) -> BoxFuture<'_, Result<LogPage, StoreError>> {
        self.answer(move |data, _| data.log.read(after, until, limit))
    }

    fn drop_older(&self, age: Duration) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.answer(move |data, now| data.log.drop_older(age, now))
    }
}

impl Deferred for Shared {
    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        self.answer(move |data, now| data.inbox.take_due(consumers, worker, lease, limit, now))
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, now| data.inbox.renew(leases, clock::later(now, lease)))
    }

    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.answer(move |data, now| data.inbox.release(leases, clock::later(now, due_in)))
    }

    fn next_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        self.answer(move |data, now| data.inbox.next_due(consumers, now))
    }

    fn waiting<'a>(
        &'a self,
        consumer: &'a str,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.answer(move |data, _| data.inbox.waiting(consumer, limit))
    }

    fn consumers(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        self.answer(move |data, _| data.inbox.consumers(limit))
    }

    fn list<'a>(
        &'a self,
        query: &'a InboxQuery,
    ) -> BoxFuture<'a, Result<Vec<InboxRow>, StoreError>> {
        self.answer(move |data, now| data.inbox.list(query, now))
    }

    fn reschedule<'a>(
        &'a self,
        claims: &'a [Claim],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.answer(move |data, now| data.inbox.reschedule(claims, due_in, now))
    }

    fn discard<'a>(&'a self, claims: &'a [Claim]) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.answer(move |data, now| data.inbox.discard(claims, now))
    }
}

impl Records for Shared {
    fn read<'a>(
        &'a self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        self.answer(move |data, _| data.records.read(ids))
    }

    fn take_due<'a>(
        &'a self,
        kind: &'a str,
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Lease, Record)>, StoreError>> {
        self.answer(move |data, now| data.records.take_due(kind, worker, lease, limit, now))
    }

    fn next_due<'a>(
        &'a self,
        kind: &'a str,
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        self.answer(move |data, now| data.records.next_due(kind, now))
    }

    fn kinds(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        self.answer(move |data, _| data.records.kinds(limit))
    }

    fn list<'a>(
        &'a self,
        query: &'a RecordQuery,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        self.answer(move |data, now| data.records.list(query, now))
    }
}
