//! A service's store through its endpoint: what operators use of it. All else is an error that says so.

use std::{fmt, time::Duration};

use serde::de::DeserializeOwned;
use tidings_core::{
    Ask, BoxFuture, Claim, Commit, Committed, Deferred, Destination, Due, InboxQuery, InboxRow,
    Lane, Lease, Leased, ListedRow, Outbox, OutboxRow, OutboxState, OutboxStats, Record, RecordId,
    RecordQuery, Records, Seen, Store, StoreError, Transaction,
};

use crate::{
    Access, Error, Remote,
    wire::{
        Malformed, Rows, StoreAsk, WireChange, WireClaim, WireInboxRow, WireListedRow, WireQuery,
        WireRecord, WireSeen, WireStats, millis,
    },
};

/// A service's store, through its operator endpoint.
#[derive(Clone)]
pub struct RemoteStore {
    remote: Remote,
    service: String,
    access: Access,
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStore")
            .field("remote", &self.remote)
            .field("service", &self.service)
            .field("access", &self.access)
            .finish()
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

impl RemoteStore {
    pub(crate) fn new(remote: Remote, service: String, access: Access) -> Self {
        Self {
            remote,
            service,
            access,
        }
    }

    async fn look_at<T: DeserializeOwned>(&self, what: StoreAsk) -> Result<T, StoreError> {
        self.remote.ask_store(&self.service, what).await
    }

    async fn change<T: DeserializeOwned>(&self, what: StoreAsk) -> Result<T, StoreError> {
        match self.access {
            Access::Change => self.remote.ask_store(&self.service, what).await,
            Access::Look => Err(StoreError::new("this store was opened only to look at it")),
        }
    }

    /// Asks for rows until there are `limit` or no more: an answer may be cut. `ask` is given the last
    /// row there is, and how many are still wanted.
    async fn rows<W: DeserializeOwned, T>(
        &self,
        limit: usize,
        ask: impl Fn(Option<&T>, usize) -> StoreAsk,
        read: impl Fn(W) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all: Vec<T> = Vec::new();
        while all.len() < limit {
            let what = ask(all.last(), limit - all.len());
            let Rows { rows, more }: Rows<W> = self.look_at(what).await?;
            let is_over = !more || rows.is_empty();
            for row in rows {
                all.push(read(row).map_err(malformed)?);
            }
            if is_over {
                break;
            }
        }
        Ok(all)
    }
}

fn malformed(Malformed(what): Malformed) -> StoreError {
    StoreError::new(format!(
        "what came from the operator endpoint cannot be read: {what}"
    ))
}

/// What only services do.
fn not_here<'a, T: Send + 'a>(what: &str) -> Answer<'a, T> {
    let why = Error::impossible(format!(
        "{what} cannot be done through an operator endpoint; name the database itself"
    ));
    Box::pin(std::future::ready(Err(StoreError::new(why.to_string()))))
}

impl Store for RemoteStore {
    fn begin(&self) -> Answer<'_, Box<dyn Transaction>> {
        not_here("a transaction")
    }

    fn commit(&self, commit: Commit) -> Answer<'_, Committed> {
        if !commit.inbox.is_empty() || !commit.outbox.is_empty() {
            return not_here("a commit of messages");
        }
        let changes = commit.records.into_iter().map(WireChange::of);
        let Some(changes) = changes.collect::<Option<Vec<_>>>() else {
            return not_here("the work of a worker");
        };
        Box::pin(async move {
            let () = self.change(StoreAsk::RecordsWrite { changes }).await?;
            Ok(Committed::Done)
        })
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> Answer<'a, Vec<Seen>> {
        Box::pin(async move {
            let asked = asked.iter().map(WireClaim::from).collect();
            let seen: Vec<WireSeen> = self.look_at(StoreAsk::Look { asked }).await?;
            Ok(seen.into_iter().map(Seen::from).collect())
        })
    }

    fn forget<'a>(&'a self, _: &'a str, _: Duration, _: usize) -> Answer<'a, u64> {
        not_here("pruning")
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
}

impl Outbox for RemoteStore {
    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> Answer<'a, Vec<ListedRow>> {
        let ask = move |last: Option<&ListedRow>, limit| StoreAsk::OutboxList {
            state: state as i16,
            after: last.map(|row| row.position).or(after),
            limit,
        };
        Box::pin(self.rows(limit, ask, WireListedRow::read))
    }

    fn restore<'a>(&'a self, positions: &'a [i64]) -> Answer<'a, u64> {
        let positions = positions.to_vec();
        Box::pin(self.change(StoreAsk::OutboxRestore { positions }))
    }

    fn discard<'a>(&'a self, positions: &'a [i64]) -> Answer<'a, u64> {
        let positions = positions.to_vec();
        Box::pin(self.change(StoreAsk::OutboxDiscard { positions }))
    }

    fn stats(&self) -> Answer<'_, OutboxStats> {
        Box::pin(async move {
            let stats: WireStats = self.look_at(StoreAsk::OutboxStats).await?;
            Ok(stats.into())
        })
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn lease<'a>(&'a self, _: &'a str, _: Duration) -> Answer<'a, Leased> {
        not_here("relaying")
    }

    fn release<'a>(&'a self, _: &'a str, _: Option<&'a [Lane]>) -> Answer<'a, ()> {
        not_here("relaying")
    }

    fn next<'a>(
        &'a self,
        _: &'a [Lane],
        _: &'a [Destination],
        _: &'a [i64],
        _: usize,
    ) -> Answer<'a, Vec<OutboxRow>> {
        not_here("relaying")
    }

    fn confirmed<'a>(&'a self, _: &'a [i64]) -> Answer<'a, ()> {
        not_here("relaying")
    }

    fn hold<'a>(&'a self, _: &'a str, _: &'a [i64], _: &'a str) -> Answer<'a, ()> {
        not_here("relaying")
    }

    fn held<'a>(&'a self, _: &'a [Lane]) -> Answer<'a, Vec<Destination>> {
        not_here("relaying")
    }

    fn next_held<'a>(
        &'a self,
        _: &'a [Lane],
        _: &'a Destination,
        _: usize,
    ) -> Answer<'a, Vec<OutboxRow>> {
        not_here("relaying")
    }

    fn set_aside<'a>(&'a self, _: &'a str, _: &'a [i64], _: &'a str) -> Answer<'a, ()> {
        not_here("relaying")
    }
}

impl Deferred for RemoteStore {
    fn waiting<'a>(&'a self, consumer: &'a str, limit: u64) -> Answer<'a, u64> {
        let consumer = consumer.to_owned();
        Box::pin(self.look_at(StoreAsk::Waiting { consumer, limit }))
    }

    fn consumers(&self, limit: usize) -> Answer<'_, Vec<Box<str>>> {
        Box::pin(self.look_at(StoreAsk::Consumers { limit }))
    }

    fn list<'a>(&'a self, query: &'a InboxQuery) -> Answer<'a, Vec<InboxRow>> {
        let ask = |last: Option<&InboxRow>, limit| StoreAsk::InboxList {
            consumer: query.consumer.as_deref().map(str::to_owned),
            state: query.state.map(|state| state as i16),
            after: last.map(|row| row.number).or(query.after),
            limit,
        };
        Box::pin(self.rows(query.limit, ask, WireInboxRow::read))
    }

    fn reschedule<'a>(&'a self, claims: &'a [Claim], due_in: Duration) -> Answer<'a, u64> {
        let claims = claims.iter().map(WireClaim::from).collect();
        let due_in_ms = millis(due_in);
        Box::pin(self.change(StoreAsk::InboxReschedule { claims, due_in_ms }))
    }

    fn discard<'a>(&'a self, claims: &'a [Claim]) -> Answer<'a, u64> {
        let claims = claims.iter().map(WireClaim::from).collect();
        Box::pin(self.change(StoreAsk::InboxDiscard { claims }))
    }

    fn take_due<'a>(
        &'a self,
        _: &'a [Box<str>],
        _: &'a str,
        _: Duration,
        _: usize,
    ) -> Answer<'a, Vec<Due>> {
        not_here("the work of a worker")
    }

    fn renew<'a>(&'a self, _: &'a [Lease], _: Duration) -> Answer<'a, ()> {
        not_here("the work of a worker")
    }

    fn release<'a>(&'a self, _: &'a [Lease], _: Duration) -> Answer<'a, ()> {
        not_here("the work of a worker")
    }

    fn next_due<'a>(&'a self, _: &'a [Box<str>]) -> Answer<'a, Option<Duration>> {
        not_here("the work of a worker")
    }
}

impl Records for RemoteStore {
    fn read<'a>(&'a self, ids: &'a [RecordId]) -> Answer<'a, Vec<Option<Record>>> {
        Box::pin(async move {
            let ids = ids
                .iter()
                .map(|id| (id.kind.to_string(), id.id.to_string()));
            let what = StoreAsk::RecordsRead { ids: ids.collect() };
            let found: Vec<Option<WireRecord>> = self.look_at(what).await?;
            let read = found
                .into_iter()
                .map(|it| it.map(WireRecord::read).transpose());
            read.collect::<Result<_, _>>().map_err(malformed)
        })
    }

    fn kinds(&self, limit: usize) -> Answer<'_, Vec<Box<str>>> {
        Box::pin(self.look_at(StoreAsk::RecordKinds { limit }))
    }

    fn list<'a>(&'a self, query: &'a RecordQuery) -> Answer<'a, Vec<Record>> {
        let ask = |last: Option<&Record>, limit| {
            let mut next = query.clone();
            next.limit = limit;
            if let Some(last) = last {
                next.after = Some((last.written, last.id.id.clone()));
            }
            StoreAsk::RecordsList {
                query: WireQuery::from(&next),
            }
        };
        Box::pin(self.rows(query.limit, ask, WireRecord::read))
    }

    fn take_due<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Duration,
        _: usize,
    ) -> Answer<'a, Vec<(Lease, Record)>> {
        not_here("the work of a worker")
    }

    fn next_due<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Duration>> {
        not_here("the work of a worker")
    }
}
