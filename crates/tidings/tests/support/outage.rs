//! A database that does not answer for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidings::{
    BoxFuture, Claim, Commit, Committed, Lane, OutboxRow, OutboxStats, Store, StoreError,
    Transaction,
};
use tidings_sqlite::SqliteStore;

/// A store with a switch.
#[derive(Clone)]
pub(crate) struct Outage {
    store: SqliteStore,
    down: Arc<AtomicBool>,
}

impl Outage {
    pub(crate) fn of(store: SqliteStore) -> Self {
        Self {
            store,
            down: Arc::default(),
        }
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// The answer to a call, or that there is none.
    fn ask<'a, T: Send + 'a>(
        &self,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        match self.down.load(Ordering::SeqCst) {
            false => call,
            true => Box::pin(std::future::ready(Err(StoreError::new("no database")))),
        }
    }
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
        self.ask(self.store.commit(commit))
    }

    fn is_claimed<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.ask(self.store.is_claimed(claim))
    }

    fn lease_lanes<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Vec<Lane>, StoreError>> {
        self.ask(self.store.lease_lanes(relay, lease))
    }

    fn release_lanes<'a>(&'a self, relay: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.ask(self.store.release_lanes(relay))
    }

    fn unsent<'a>(
        &'a self,
        lanes: &'a [Lane],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        self.ask(self.store.unsent(lanes, limit))
    }

    fn defer<'a>(
        &'a self,
        positions: &'a [i64],
        delay: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.ask(self.store.defer(positions, delay))
    }

    fn sent<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.ask(self.store.sent(positions))
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        self.store.committed()
    }

    fn outbox_stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        self.ask(self.store.outbox_stats())
    }

    fn forget_claims(&self, age: Duration, limit: usize) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.ask(self.store.forget_claims(age, limit))
    }
}
