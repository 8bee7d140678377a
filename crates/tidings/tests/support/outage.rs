//! A database that does not answer for a while, and that cannot hold a NUL, as PostgreSQL.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tidings::{
    Ask, BoxFuture, Claim, Commit, Committed, Deferred, Destination, Due, InboxQuery, InboxRow,
    Lane, Lease, Leased, ListedRow, Log, Outbox, OutboxRow, OutboxState, OutboxStats, Record,
    RecordId, RecordQuery, Records, Seen, Store, StoreError, Transaction,
};
use tidings_sqlite::SqliteStore;
use tokio::sync::Mutex;

/// A store with a switch.
#[derive(Clone)]
pub(crate) struct Outage {
    store: SqliteStore,
    down: Arc<AtomicBool>,
    refused: Arc<AtomicU32>,
    panics: Arc<AtomicBool>,
    keeps_leases_short: Arc<AtomicBool>,
    /// While it is held, nobody takes rows.
    pub(crate) taking: Arc<Mutex<()>>,
    /// While it is held, nobody's rows are given back.
    pub(crate) giving_back: Arc<Mutex<()>>,
    /// How often somebody asked to give back rows.
    pub(crate) asked_to_give_back: Arc<AtomicU32>,
}

impl Outage {
    pub(crate) fn of(store: SqliteStore) -> Self {
        Self {
            store,
            down: Arc::default(),
            refused: Arc::default(),
            panics: Arc::default(),
            keeps_leases_short: Arc::default(),
            taking: Arc::default(),
            giving_back: Arc::default(),
            asked_to_give_back: Arc::default(),
        }
    }

    /// How many calls had no answer.
    pub(crate) fn refused(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    /// Panics in every call from now on, as a bug in a store would.
    pub(crate) fn panic(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Has no answer when it is asked to make a lease longer.
    pub(crate) fn keep_leases_short(&self) {
        self.keeps_leases_short.store(true, Ordering::SeqCst);
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// The answer to a call, or that there is none.
    fn ask<'a, T: Send + 'a>(
        &self,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        assert!(!self.panics.load(Ordering::SeqCst), "a bug in the store");
        match self.down.load(Ordering::SeqCst) {
            false => call,
            true => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Box::pin(std::future::ready(Err(StoreError::unavailable(
                    "no database",
                ))))
            }
        }
    }
}

fn has_nul(claim: &Claim) -> bool {
    claim.message.as_str().contains('\0')
}

fn nul() -> StoreError {
    StoreError::invalid("a text has a NUL, which this database cannot hold")
}

impl From<Outage> for Arc<dyn Store> {
    fn from(outage: Outage) -> Self {
        Arc::new(outage)
    }
}

impl Store for Outage {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        self.ask(self.store.begin())
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        if commit.inbox.iter().any(|entry| has_nul(&entry.claim)) {
            return Box::pin(std::future::ready(Err(nul())));
        }
        self.ask(self.store.commit(commit))
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        if asked.iter().any(|ask| has_nul(&ask.claim)) {
            return Box::pin(std::future::ready(Err(nul())));
        }
        self.ask(self.store.look(asked))
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.ask(self.store.forget(consumer, age, limit))
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn deferred(&self) -> &dyn Deferred {
        self
    }

    fn records(&self) -> &dyn Records {
        self
    }

    fn log(&self) -> Option<&dyn Log> {
        self.store.log()
    }
}

/// Passes calls on while the database answers.
macro_rules! pass_on {
    ($port:ident: $($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $name<'a>(&'a self, $($argument: $type),*) -> BoxFuture<'a, Result<$answer, StoreError>> {
            self.ask(self.store.$port().$name($($argument),*))
        }
    )*};
}

impl Outbox for Outage {
    pass_on! { outbox:
        lease(relay: &'a str, lease: Duration) -> Leased;
        release(relay: &'a str, lanes: Option<&'a [Lane]>) -> ();
        next(lanes: &'a [Lane], held: &'a [Destination], except: &'a [i64], limit: usize)
            -> Vec<OutboxRow>;
        confirmed(positions: &'a [i64]) -> ();
        hold(relay: &'a str, positions: &'a [i64], reason: &'a str) -> ();
        held(lanes: &'a [Lane]) -> Vec<Destination>;
        next_held(lanes: &'a [Lane], destination: &'a Destination, limit: usize) -> Vec<OutboxRow>;
        set_aside(relay: &'a str, positions: &'a [i64], reason: &'a str) -> ();
        list(state: OutboxState, after: Option<i64>, limit: usize) -> Vec<ListedRow>;
        restore(positions: &'a [i64]) -> u64;
        discard(positions: &'a [i64]) -> u64;
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        self.store.outbox().committed()
    }

    fn stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        self.ask(self.store.outbox().stats())
    }
}

impl Deferred for Outage {
    pass_on! { deferred:
        next_due(consumers: &'a [Box<str>]) -> Option<Duration>;
        waiting(consumer: &'a str, limit: u64) -> u64;
        consumers(limit: usize) -> Vec<Box<str>>;
        list(query: &'a InboxQuery) -> Vec<InboxRow>;
        reschedule(claims: &'a [Claim], due_in: Duration) -> u64;
        discard(claims: &'a [Claim]) -> u64;
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        if self.keeps_leases_short.load(Ordering::SeqCst) {
            let error = StoreError::unavailable("no database");
            return Box::pin(std::future::ready(Err(error)));
        }
        self.ask(self.store.deferred().renew(leases, lease))
    }

    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        Box::pin(async move {
            let _may = self.taking.lock().await;
            let deferred = self.store.deferred();
            self.ask(deferred.take_due(consumers, worker, lease, limit))
                .await
        })
    }

    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.asked_to_give_back.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let _may = self.giving_back.lock().await;
            self.ask(self.store.deferred().release(leases, due_in))
                .await
        })
    }
}

impl Records for Outage {
    pass_on! { records:
        read(ids: &'a [RecordId]) -> Vec<Option<Record>>;
        take_due(kind: &'a str, worker: &'a str, lease: Duration, limit: usize)
            -> Vec<(Lease, Record)>;
        next_due(kind: &'a str) -> Option<Duration>;
        kinds(limit: usize) -> Vec<Box<str>>;
        list(query: &'a RecordQuery) -> Vec<Record>;
    }
}
