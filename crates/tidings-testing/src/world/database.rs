//! A service's store, watched: each operation counts as under way, and commits are where a crash can
//! be. Transactions are the store's own, so that handlers get the `Tx` they ask for.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidings_core::{
    Ask, BoxFuture, Claim, Commit, Committed, Deferred, Destination, Due, Fate, InboxEntry,
    InboxQuery, InboxRow, Lane, Lease, Leased, ListedRow, Log, Outbox, OutboxRow, OutboxState,
    OutboxStats, Over, Record, RecordId, RecordQuery, Records, Seen, Store, StoreError,
    Transaction, Work, WorkError,
};

use super::{
    clock::{RECURRING, SCHEDULE, VirtualTime},
    watch::{CrashPoint, Life},
};

pub(super) struct WatchedStore {
    pub(super) inner: Arc<dyn Store>,
    pub(super) life: Arc<Life>,
    /// If the store's clock is tokio's: what it shows.
    pub(super) time: Option<VirtualTime>,
}

impl WatchedStore {
    /// A time that a handler reckoned from the machine's clock, by the clock of this store.
    fn translate(time: Option<VirtualTime>, commit: &mut Commit) {
        let Some(time) = time else { return };
        for change in &mut commit.records {
            // What recurs is planned from one occurrence to the next, not by the machine's clock.
            if *change.id.kind == *SCHEDULE
                && change
                    .value
                    .as_ref()
                    .is_none_or(|it| &*it.label != RECURRING)
                && let Some(due) = change.value.as_mut().and_then(|value| value.due.as_mut())
            {
                *due = time.of(*due);
            }
        }
    }
}

/// Whether it is the commit of an attempt that succeeded.
fn is_attempt(commit: &Commit) -> bool {
    let handled = |entry: &InboxEntry| entry.fate == Fate::Handled;
    commit.inbox.iter().any(handled)
}

fn lease(entry: &InboxEntry) -> Option<Lease> {
    match &entry.over {
        Over::Lease(lease) => Some(lease.clone()),
        _ => None,
    }
}

fn leases(entries: &[InboxEntry]) -> Vec<Lease> {
    entries.iter().filter_map(lease).collect()
}

/// Watches operations that need nothing more.
macro_rules! watched {
    ($self:ident, $what:literal, $operation:expr) => {
        Box::pin(async move {
            let _under_way = $self.life.begin($what).await;
            let outcome = $operation.await;
            $self.life.alive().await;
            outcome
        })
    };
}

impl Store for WatchedStore {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        watched!(self, "beginning a transaction", self.inner.begin())
    }

    fn commit(&self, mut commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(async move {
            let _under_way = self.life.begin("a commit").await;
            Self::translate(self.time, &mut commit);
            if is_attempt(&commit) {
                self.life.reach(CrashPoint::BeforeCommit).await;
            }
            let leases = leases(&commit.inbox);
            let committed = self.inner.commit(commit).await;
            self.life.alive().await;
            if committed.is_ok() {
                self.life.settled(&leases);
            }
            committed
        })
    }

    fn run(&self, batch: Vec<Work>) -> BoxFuture<'_, Vec<Result<Committed, WorkError>>> {
        Box::pin(async move {
            let _under_way = self.life.begin("an attempt").await;
            let mut of_leases = Vec::with_capacity(batch.len());
            let works = batch.into_iter().map(|work| {
                let (slot, claim, future) = work.into_parts();
                let of_work = Arc::new(Mutex::new(Vec::from_iter(claim.iter().map(lease))));
                of_leases.push(Arc::clone(&of_work));
                let (life, time) = (Arc::clone(&self.life), self.time);
                let work = Work::new(slot, async move {
                    let mut commit = future.await?;
                    Self::translate(time, &mut commit);
                    life.reach(CrashPoint::BeforeCommit).await;
                    of_work.lock().extend(commit.inbox.iter().map(lease));
                    Ok(commit)
                });
                match claim {
                    Some(claim) => work.claiming(claim),
                    None => work,
                }
            });
            let outcomes = self.inner.run(works.collect()).await;
            self.life.alive().await;
            for (outcome, leases) in outcomes.iter().zip(&of_leases) {
                let leases = leases.lock();
                let is_settled = |place: usize| match outcome {
                    Ok(Committed::Done) => true,
                    // There is nothing left to do with that one.
                    Ok(Committed::Refused { entry, .. }) => *entry == place,
                    Err(_) => false,
                };
                let settled = leases.iter().enumerate();
                let settled = settled.filter(|(place, _)| is_settled(*place));
                let settled: Vec<Lease> = settled.filter_map(|(_, it)| it.clone()).collect();
                self.life.settled(&settled);
            }
            outcomes
        })
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        watched!(self, "a look into the inbox", self.inner.look(asked))
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let inner = &self.inner;
        watched!(
            self,
            "forgetting old rows",
            inner.forget(consumer, age, limit)
        )
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
        self.inner.log()
    }
}

impl Outbox for WatchedStore {
    fn lease<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Leased, StoreError>> {
        if self.time.is_none() {
            self.life.relays_with(relay, &self.inner);
        }
        let outbox = self.inner.outbox();
        watched!(self, "leasing lanes", outbox.lease(relay, lease))
    }

    fn release<'a>(
        &'a self,
        relay: &'a str,
        lanes: Option<&'a [Lane]>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let outbox = self.inner.outbox();
        watched!(self, "giving up lanes", outbox.release(relay, lanes))
    }

    fn next<'a>(
        &'a self,
        lanes: &'a [Lane],
        held: &'a [Destination],
        except: &'a [i64],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        let outbox = self.inner.outbox();
        watched!(
            self,
            "reading the outbox",
            outbox.next(lanes, held, except, limit)
        )
    }

    fn confirmed<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        let outbox = self.inner.outbox();
        watched!(self, "removing sent rows", outbox.confirmed(positions))
    }

    fn hold<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let outbox = self.inner.outbox();
        watched!(self, "holding rows", outbox.hold(relay, positions, reason))
    }

    fn held<'a>(
        &'a self,
        lanes: &'a [Lane],
    ) -> BoxFuture<'a, Result<Vec<Destination>, StoreError>> {
        watched!(
            self,
            "looking for held rows",
            self.inner.outbox().held(lanes)
        )
    }

    fn next_held<'a>(
        &'a self,
        lanes: &'a [Lane],
        destination: &'a Destination,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        let outbox = self.inner.outbox();
        watched!(
            self,
            "reading held rows",
            outbox.next_held(lanes, destination, limit)
        )
    }

    fn set_aside<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let outbox = self.inner.outbox();
        watched!(
            self,
            "setting rows aside",
            outbox.set_aside(relay, positions, reason)
        )
    }

    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ListedRow>, StoreError>> {
        let outbox = self.inner.outbox();
        watched!(self, "listing the outbox", outbox.list(state, after, limit))
    }

    fn restore<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        watched!(
            self,
            "restoring rows",
            self.inner.outbox().restore(positions)
        )
    }

    fn discard<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<u64, StoreError>> {
        let outbox = self.inner.outbox();
        watched!(self, "discarding rows", outbox.discard(positions))
    }

    /// Only waits: nothing is under way.
    fn committed(&self) -> BoxFuture<'_, ()> {
        self.inner.outbox().committed()
    }

    fn stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        watched!(self, "measuring the outbox", self.inner.outbox().stats())
    }
}

impl Deferred for WatchedStore {
    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        Box::pin(async move {
            let _under_way = self.life.begin("taking due messages").await;
            self.life.asked_for(consumers);
            let deferred = self.inner.deferred();
            let taken = deferred.take_due(consumers, worker, lease, limit).await?;
            self.life.alive().await;
            for due in &taken {
                let (message, consumer) = (&due.claim.message, &due.claim.consumer);
                let what =
                    format!("an attempt of `{consumer}` at the deferred message `{message}`");
                self.life.leased(due.lease.clone(), what, lease);
            }
            Ok(taken)
        })
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.life.renewed(leases, lease);
        let deferred = self.inner.deferred();
        watched!(self, "renewing leases", deferred.renew(leases, lease))
    }

    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let _under_way = self.life.begin("giving back rows").await;
            self.inner.deferred().release(leases, due_in).await?;
            self.life.settled(leases);
            Ok(())
        })
    }

    fn next_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        self.life.asked_for(consumers);
        let deferred = self.inner.deferred();
        watched!(self, "asking what is due", deferred.next_due(consumers))
    }

    fn waiting<'a>(
        &'a self,
        consumer: &'a str,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let deferred = self.inner.deferred();
        watched!(
            self,
            "counting what waits",
            deferred.waiting(consumer, limit)
        )
    }

    fn consumers(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        let deferred = self.inner.deferred();
        watched!(self, "listing consumers", deferred.consumers(limit))
    }

    fn list<'a>(
        &'a self,
        query: &'a InboxQuery,
    ) -> BoxFuture<'a, Result<Vec<InboxRow>, StoreError>> {
        watched!(self, "listing the inbox", self.inner.deferred().list(query))
    }

    fn reschedule<'a>(
        &'a self,
        claims: &'a [Claim],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let deferred = self.inner.deferred();
        watched!(self, "rescheduling", deferred.reschedule(claims, due_in))
    }

    fn discard<'a>(&'a self, claims: &'a [Claim]) -> BoxFuture<'a, Result<u64, StoreError>> {
        let deferred = self.inner.deferred();
        watched!(self, "discarding messages", deferred.discard(claims))
    }
}

impl Records for WatchedStore {
    fn read<'a>(
        &'a self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        watched!(self, "reading records", self.inner.records().read(ids))
    }

    fn take_due<'a>(
        &'a self,
        kind: &'a str,
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Lease, Record)>, StoreError>> {
        let records = self.inner.records();
        watched!(
            self,
            "taking due records",
            records.take_due(kind, worker, lease, limit)
        )
    }

    fn next_due<'a>(
        &'a self,
        kind: &'a str,
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        let records = self.inner.records();
        watched!(self, "asking which records are due", records.next_due(kind))
    }

    fn kinds(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        let records = self.inner.records();
        watched!(self, "listing kinds of records", records.kinds(limit))
    }

    fn list<'a>(
        &'a self,
        query: &'a RecordQuery,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        watched!(self, "listing records", self.inner.records().list(query))
    }
}
