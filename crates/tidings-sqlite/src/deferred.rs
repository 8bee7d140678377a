//! Messages that wait: the worker's side of the inbox, and the operator's.
//!
//! A lease is a text that begins with the number of its row and ends with a random number, so the
//! row is found without an index and no taking is ever mistaken for another.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Result, Row};
use tidings_core::{
    BoxFuture, Claim, Deferred, Due, InboxQuery, InboxRow, InboxState, Lease, MessageId, StoreError,
};

use crate::{
    SqliteStore,
    clock::{between, later, limit, now_ms, timestamp},
    inbox::{self, envelope_of, history_of, order_of, row_of},
};

pub(crate) const DUE: &str = "\
select due_at, claim from tidings_inbox \
where consumer = ?1 and state = 1 and due_at <= ?2 order by due_at limit ?3";

const TAKE: &str = "\
update tidings_inbox set due_at = ?2, unfinished = unfinished + 1, \
    lease = claim || '.' || ?3 || '.' || lower(hex(randomblob(16))) \
where claim = ?1 \
returning consumer, message, lease, order_group, order_key, failures, history, unfinished, \
    metadata, body";

const RENEW: &str = "\
update tidings_inbox set due_at = ?3 where claim = ?1 and lease = ?2 and state = 1";

const RELEASE: &str = "\
update tidings_inbox set due_at = ?3, lease = null, unfinished = max(unfinished - 1, 0) \
where claim = ?1 and lease = ?2 and state = 1";

pub(crate) const NEXT_DUE: &str = "\
select due_at from tidings_inbox where consumer = ?1 and state = 1 order by due_at limit 1";

/// `state <> 0` is said for the sake of the partial index.
pub(crate) const WAITING: &str = "\
select count(*) from (select 1 from tidings_inbox \
    where consumer = ?1 and state in (1, 2) and state <> 0 limit ?2)";

/// Rows of one state, of one consumer and of all. `state <> 0` as above.
pub(crate) const LIST_OF: &str = "\
select claim, consumer, message, state, order_group, order_key, due_at, lease, failures, history, \
    metadata, body \
from tidings_inbox \
where consumer = ?4 and state = ?1 and state <> 0 and claim > ?2 order by claim limit ?3";
pub(crate) const LIST: &str = "\
select claim, consumer, message, state, order_group, order_key, due_at, lease, failures, history, \
    metadata, body \
from tidings_inbox where state = ?1 and state <> 0 and claim > ?2 order by claim limit ?3";

/// A lease that has ended does not protect its row, and its worker is told at its commit.
const RESCHEDULE: &str = "\
update tidings_inbox set due_at = ?4, lease = null \
where consumer = ?1 and message = ?2 and state = 1 and (lease is null or due_at <= ?3)";

const IS_FREE: &str = "\
select 1 from tidings_inbox where claim = ?1 and state <> 0 and (lease is null or due_at <= ?2)";

/// From one consumer to the next in the index, without a look at the messages between.
pub(crate) const CONSUMERS: &str = "\
with recursive consumers (consumer) as (
    select min(consumer) from tidings_inbox
    union all
    select (select min(consumer) from tidings_inbox as next
            where next.consumer > consumers.consumer)
    from consumers where consumers.consumer is not null
)
select consumer from consumers where consumer is not null limit ?1";

impl Deferred for SqliteStore {
    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<Due>, StoreError>> {
        let (consumers, worker) = (consumers.to_vec(), worker.to_owned());
        Box::pin(
            self.write(move |connection| take_due(connection, &consumers, &worker, lease, limit)),
        )
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let leases = leases.to_vec();
        Box::pin(self.write(move |connection| change(connection, RENEW, &leases, lease)))
    }

    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let leases = leases.to_vec();
        Box::pin(self.write(move |connection| change(connection, RELEASE, &leases, due_in)))
    }

    fn next_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
    ) -> BoxFuture<'a, std::result::Result<Option<Duration>, StoreError>> {
        let consumers = consumers.to_vec();
        Box::pin(self.read(move |connection| next_due(connection, &consumers)))
    }

    fn waiting<'a>(
        &'a self,
        consumer: &'a str,
        limit: u64,
    ) -> BoxFuture<'a, std::result::Result<u64, StoreError>> {
        let consumer = consumer.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Box::pin(self.read(move |connection| {
            let waiting: i64 = connection
                .prepare_cached(WAITING)?
                .query_row((consumer, limit), |row| row.get(0))?;
            Ok(waiting.unsigned_abs())
        }))
    }

    fn consumers(
        &self,
        count_max: usize,
    ) -> BoxFuture<'_, std::result::Result<Vec<Box<str>>, StoreError>> {
        Box::pin(Self::read(self, move |connection| {
            connection
                .prepare_cached(CONSUMERS)?
                .query_map((limit(count_max),), |row| row.get(0))?
                .collect()
        }))
    }

    fn list<'a>(
        &'a self,
        query: &'a InboxQuery,
    ) -> BoxFuture<'a, std::result::Result<Vec<InboxRow>, StoreError>> {
        let query = query.clone();
        Box::pin(self.read(move |connection| list(connection, &query)))
    }

    fn reschedule<'a>(
        &'a self,
        claims: &'a [Claim],
        due_in: Duration,
    ) -> BoxFuture<'a, std::result::Result<u64, StoreError>> {
        let claims = claims.to_vec();
        Box::pin(self.write(move |connection| reschedule(connection, &claims, due_in)))
    }

    fn discard<'a>(
        &'a self,
        claims: &'a [Claim],
    ) -> BoxFuture<'a, std::result::Result<u64, StoreError>> {
        let claims = claims.to_vec();
        Box::pin(self.write(move |connection| discard(connection, &claims)))
    }
}

fn take_due(
    connection: &Connection,
    consumers: &[Box<str>],
    worker: &str,
    lease: Duration,
    count_max: usize,
) -> Result<Vec<Due>> {
    let now = now_ms();
    let mut due: Vec<(i64, i64)> = Vec::new();
    let mut select = connection.prepare_cached(DUE)?;
    for consumer in consumers {
        let rows = select.query_map((consumer, now, limit(count_max)), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        for row in rows {
            due.push(row?);
        }
    }
    due.sort_unstable();
    // A consumer may be named twice.
    due.dedup();
    due.truncate(count_max);
    let mut take = connection.prepare_cached(TAKE)?;
    due.into_iter()
        .map(|(_, claim)| take.query_row((claim, later(now, lease), worker), taken))
        .collect()
}

fn taken(row: &Row<'_>) -> Result<Due> {
    Ok(Due {
        claim: claim_of(row, 0)?,
        lease: Lease(row.get(2)?),
        order: order_of(row, 3)?,
        failures: row.get(5)?,
        history: history_of(row, 6)?,
        unfinished: row.get::<_, u32>(7)?.saturating_sub(1),
        envelope: envelope_of(row, 8)?,
    })
}

fn claim_of(row: &Row<'_>, index: usize) -> Result<Claim> {
    Ok(Claim {
        consumer: row.get(index)?,
        message: MessageId::new(row.get::<_, Box<str>>(index + 1)?),
    })
}

/// Runs a statement on each row that is still under its lease, with a time that is `from_now`.
fn change(connection: &Connection, sql: &str, leases: &[Lease], from_now: Duration) -> Result<()> {
    let at = later(now_ms(), from_now);
    let mut update = connection.prepare_cached(sql)?;
    for lease in leases {
        if let Some(claim) = row_of(lease) {
            update.execute((claim, &*lease.0, at))?;
        }
    }
    Ok(())
}

fn next_due(connection: &Connection, consumers: &[Box<str>]) -> Result<Option<Duration>> {
    let mut select = connection.prepare_cached(NEXT_DUE)?;
    let mut next: Option<i64> = None;
    for consumer in consumers {
        let due: Option<i64> = select.query_row((consumer,), |row| row.get(0)).optional()?;
        next = [next, due].into_iter().flatten().min();
    }
    let now = now_ms();
    Ok(next.map(|due| between(now, due)))
}

/// The rows of each state come in order; those of several are merged.
fn list(connection: &Connection, query: &InboxQuery) -> Result<Vec<InboxRow>> {
    const OPEN: [InboxState; 3] = [InboxState::Deferred, InboxState::Parked, InboxState::Dead];
    let now = now_ms();
    let after = query.after.unwrap_or(i64::MIN);
    let mut listed = Vec::new();
    for state in OPEN {
        if query.state.is_some_and(|wanted| wanted != state) {
            continue;
        }
        let of_state = (state as i16, after, limit(query.limit));
        let read = |row: &Row<'_>| for_people(row, state, now);
        let rows: Vec<InboxRow> = match &query.consumer {
            Some(consumer) => connection
                .prepare_cached(LIST_OF)?
                .query_map((of_state.0, of_state.1, of_state.2, consumer), read)?
                .collect::<Result<_>>()?,
            None => connection
                .prepare_cached(LIST)?
                .query_map(of_state, read)?
                .collect::<Result<_>>()?,
        };
        listed.extend(rows);
    }
    listed.sort_unstable_by_key(|row| row.number);
    listed.truncate(query.limit);
    Ok(listed)
}

fn for_people(row: &Row<'_>, state: InboxState, now: i64) -> Result<InboxRow> {
    let due: Option<i64> = row.get(6)?;
    let lease: Option<Box<str>> = row.get(7)?;
    Ok(InboxRow {
        number: row.get(0)?,
        claim: claim_of(row, 1)?,
        state,
        order: order_of(row, 4)?,
        due: due.map(timestamp),
        is_leased: lease.is_some() && due.is_some_and(|ends| ends > now),
        failures: row.get(8)?,
        history: history_of(row, 9)?,
        envelope: envelope_of(row, 10)?.ok(),
    })
}

fn reschedule(connection: &Connection, claims: &[Claim], due_in: Duration) -> Result<u64> {
    let now = now_ms();
    let mut update = connection.prepare_cached(RESCHEDULE)?;
    let mut count = 0;
    for claim in claims {
        let message = claim.message.as_str();
        count += update.execute((&*claim.consumer, message, now, later(now, due_in)))?;
    }
    Ok(count as u64)
}

fn discard(connection: &Connection, claims: &[Claim]) -> Result<u64> {
    let now = now_ms();
    let mut is_free = connection.prepare_cached(IS_FREE)?;
    let mut count = 0;
    for claim in claims {
        if let Some(row) = inbox::find(connection, claim)?
            && is_free.exists((row.claim, now))?
        {
            inbox::end(connection, &row, InboxState::Handled, now)?;
            count += 1;
        }
    }
    Ok(count)
}
