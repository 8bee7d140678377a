//! Messages that wait: taking those that are due, and what an operator does with them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidings_core::{
    BoxFuture, Claim, Deferred, Due, Envelope, InboxQuery, InboxRow, InboxState, Lease, MessageId,
    StoreError,
};
use tokio_postgres::Row;

use crate::{
    Shared,
    connection::Pool,
    error::{Error, explain},
    inbox::go_on,
    locks, records,
    values::{ahead, claim_columns, count, counter, order_key, seconds, timestamp},
};

/// From one consumer to the next in the index, without a look at the messages between.
pub(crate) const CONSUMERS: &str = "\
with recursive consumers (consumer) as (
    select min(consumer) from tidings_inbox
    union all
    select (select min(next.consumer) from tidings_inbox as next
            where next.consumer > consumers.consumer)
    from consumers where consumers.consumer is not null
)
select consumer from consumers where consumer is not null limit $1";

/// A worker's statements run on the connections that are kept for them; an operator's do not.
impl Deferred for Shared {
    fn take_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        Box::pin(take_due(&self.reserved, consumers, worker, lease, limit))
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [Lease],
        lease: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(renew(&self.reserved, leases, lease))
    }

    fn release<'a>(
        &'a self,
        leases: &'a [Lease],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(release(&self.reserved, leases, due_in))
    }

    fn next_due<'a>(
        &'a self,
        consumers: &'a [Box<str>],
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        Box::pin(next_due(&self.reserved, consumers))
    }

    fn waiting<'a>(
        &'a self,
        consumer: &'a str,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(waiting(&self.reserved, consumer, limit))
    }

    fn consumers(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        Box::pin(async move {
            records::names(&self.pool, CONSUMERS, limit)
                .await
                .map_err(|error| explain("list consumers", error))
        })
    }

    fn list<'a>(
        &'a self,
        query: &'a InboxQuery,
    ) -> BoxFuture<'a, Result<Vec<InboxRow>, StoreError>> {
        Box::pin(list(&self.pool, query))
    }

    fn reschedule<'a>(
        &'a self,
        claims: &'a [Claim],
        due_in: Duration,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(reschedule(&self.pool, claims, due_in))
    }

    fn discard<'a>(&'a self, claims: &'a [Claim]) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(discard(self, claims))
    }
}

/// The rows of each consumer come from its own part of the index, in order: those of a consumer
/// that is not asked for, and those that are not due, are not read. Rows that another worker is
/// just taking are passed over.
pub(crate) const TAKE_DUE: &str = "
    with candidate as materialized (
        select row.consumer, row.message, row.due
        from (select distinct unnest($1::text[]) as consumer) as asked, lateral (
            select consumer, message, due from tidings_inbox
            where consumer = asked.consumer and state = 1 and due <= statement_timestamp()
            order by due limit $2 for update skip locked
        ) as row
    ), taken as materialized (
        select * from candidate order by due limit $2
    )
    update tidings_inbox as row
    set due = statement_timestamp() + make_interval(secs => $3),
        lease = $4 || ' ' || gen_random_uuid(), unfinished = row.unfinished + 1
    from taken
    where row.consumer = taken.consumer and row.message = taken.message
    returning row.consumer, row.message, row.lease, row.order_group, row.order_key, row.metadata,
        row.body, row.failures, row.history, row.unfinished - 1 as unfinished,
        (extract(epoch from taken.due) * 1000000)::bigint as was_due";

async fn take_due(
    pool: &Pool,
    consumers: &[Box<str>],
    worker: &str,
    lease: Duration,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let failed = |error| explain("take messages that are due", error);
    let rows = pool
        .rows(
            TAKE_DUE,
            &[&texts(consumers), &count(limit), &seconds(lease), &worker],
        )
        .await
        .map_err(failed)?;
    let mut taken = rows
        .iter()
        .map(|row| Ok((row.try_get::<_, i64>("was_due")?, due(row)?)))
        .collect::<Result<Vec<_>, Error>>()
        .map_err(failed)?;
    taken.sort_by_key(|(was_due, _)| *was_due);
    Ok(taken.into_iter().map(|(_, due)| due).collect())
}

fn due(row: &Row) -> Result<Due, tokio_postgres::Error> {
    Ok(Due {
        claim: claim(row)?,
        lease: Lease(row.try_get::<_, String>("lease")?.into()),
        order: order_key(row.try_get("order_group")?, row.try_get("order_key")?),
        envelope: envelope(row)?,
        failures: counter(row.try_get("failures")?),
        history: history(row)?,
        unfinished: counter(row.try_get("unfinished")?),
    })
}

fn claim(row: &Row) -> Result<Claim, tokio_postgres::Error> {
    Ok(Claim {
        consumer: row.try_get::<_, String>("consumer")?.into(),
        message: MessageId::new(row.try_get::<_, String>("message")?),
    })
}

fn envelope(row: &Row) -> Result<Result<Arc<Envelope>, Box<str>>, tokio_postgres::Error> {
    let metadata: Option<&str> = row.try_get("metadata")?;
    let body: Option<Vec<u8>> = row.try_get("body")?;
    let envelope = Envelope::from_metadata(
        metadata.unwrap_or_default(),
        body.unwrap_or_default().into(),
    );
    Ok(envelope
        .map(Arc::new)
        .map_err(|error| format!("its metadata cannot be read: {error}").into()))
}

/// A history that cannot be read is no reason to lose the message: it is only for people.
fn history(row: &Row) -> Result<Vec<tidings_core::Attempt>, tokio_postgres::Error> {
    let history: Option<&str> = row.try_get("history")?;
    Ok(history
        .and_then(|history| serde_json::from_str(history).ok())
        .unwrap_or_default())
}

/// A row that somebody has locked is just being settled, and needs no lease any more.
pub(crate) const RENEW: &str = "
    with held as materialized (
        select consumer, message from tidings_inbox
        where lease is not null and lease = any ($1)
        for update skip locked
    )
    update tidings_inbox as row set due = statement_timestamp() + make_interval(secs => $2)
    from held where row.consumer = held.consumer and row.message = held.message";

async fn renew(pool: &Pool, leases: &[Lease], lease: Duration) -> Result<(), StoreError> {
    pool.execute(RENEW, &[&lease_texts(leases), &seconds(lease)])
        .await
        .map(drop)
        .map_err(|error| explain("renew the leases of messages", error))
}

/// Rows are locked in one order: a settlement of several of them does the same.
pub(crate) const RELEASE: &str = "
    with held as materialized (
        select consumer, message from tidings_inbox
        where lease is not null and lease = any ($1)
        order by consumer, message for update
    )
    update tidings_inbox as row
    set due = statement_timestamp() + make_interval(secs => $2), lease = null,
        unfinished = greatest(0, row.unfinished - 1)
    from held where row.consumer = held.consumer and row.message = held.message";

async fn release(pool: &Pool, leases: &[Lease], due_in: Duration) -> Result<(), StoreError> {
    pool.execute(RELEASE, &[&lease_texts(leases), &seconds(due_in)])
        .await
        .map(drop)
        .map_err(|error| explain("give back messages that were taken", error))
}

pub(crate) const NEXT_DUE: &str = "
    select extract(epoch from min(first.due) - statement_timestamp())::float8
    from unnest($1::text[]) as asked (consumer), lateral (
        select due from tidings_inbox
        where consumer = asked.consumer and state = 1 order by due limit 1
    ) as first";

async fn next_due(pool: &Pool, consumers: &[Box<str>]) -> Result<Option<Duration>, StoreError> {
    let seconds: Option<f64> = pool
        .row(NEXT_DUE, &[&texts(consumers)])
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(|error| explain("look when the next message is due", error))?;
    Ok(seconds.map(ahead))
}

async fn waiting(pool: &Pool, consumer: &str, limit: u64) -> Result<u64, StoreError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let waiting: i64 = pool
        .row(
            "select count(*) from (
                 select from tidings_inbox
                 where consumer = $1 and state = any ('{1, 2}') and metadata is not null limit $2
             ) as waiting",
            &[&consumer, &limit],
        )
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(|error| explain("count messages that wait", error))?;
    Ok(waiting.unsigned_abs())
}

async fn list(pool: &Pool, query: &InboxQuery) -> Result<Vec<InboxRow>, StoreError> {
    let rows = pool
        .rows(
            "select number, consumer, message, state, order_group, order_key,
                 case when state = 1 then (extract(epoch from due) * 1000000)::bigint end as due,
                 lease is not null and due > statement_timestamp() as is_leased, failures, history,
                 case when state <> 3 then metadata end as metadata,
                 case when state <> 3 then body end as body
             from tidings_inbox
             where ($1::text is null or consumer = $1)
               and ($2::smallint is null or state = $2) and number > $3
             order by number limit $4",
            &[
                &query.consumer,
                &query.state.map(|state| state as i16),
                &query.after.unwrap_or(i64::MIN),
                &count(query.limit),
            ],
        )
        .await
        .map_err(|error| explain("list messages that wait", error))?;
    rows.iter().map(inbox_row).collect()
}

fn inbox_row(row: &Row) -> Result<InboxRow, StoreError> {
    let failed = |error| explain("read a row of the inbox", error);
    let state: i16 = row.try_get("state").map_err(failed)?;
    let state = InboxState::from_number(state).ok_or_else(|| {
        StoreError::new(format!(
            "a row of the inbox is in state {state}, which this version does not know; run the \
             version that wrote it"
        ))
    })?;
    let due: Option<i64> = row.try_get("due").map_err(failed)?;
    let due = due.map(timestamp).transpose()?;
    let read = || {
        Ok(InboxRow {
            number: row.try_get("number")?,
            claim: claim(row)?,
            state,
            order: order_key(row.try_get("order_group")?, row.try_get("order_key")?),
            due,
            is_leased: row.try_get("is_leased")?,
            failures: counter(row.try_get("failures")?),
            history: history(row)?,
            envelope: envelope(row)?.ok(),
        })
    };
    read().map_err(failed)
}

/// The rows that a worker does not have now, locked in one order.
macro_rules! not_leased {
    ($states:literal) => {
        concat!(
            "with free as materialized (
                 select row.consumer, row.message
                 from (select distinct * from unnest($1::text[], $2::text[])
                           as named (consumer, message)) as named
                 join tidings_inbox as row using (consumer, message)
                 where row.state ",
            $states,
            " and (row.lease is null or row.due <= statement_timestamp())
                 order by row.consumer, row.message for update of row
             )
             update tidings_inbox as row "
        )
    };
}

async fn reschedule(pool: &Pool, claims: &[Claim], due_in: Duration) -> Result<u64, StoreError> {
    let (consumers, messages) = claim_columns(claims);
    pool.execute(
        concat!(
            not_leased!("= 1"),
            "set due = statement_timestamp() + make_interval(secs => $3), lease = null
             from free where row.consumer = free.consumer and row.message = free.message"
        ),
        &[&consumers, &messages, &seconds(due_in)],
    )
    .await
    .map_err(|error| explain("change when messages are due", error))
}

async fn discard(shared: &Shared, claims: &[Claim]) -> Result<u64, StoreError> {
    let failed = |error| explain("discard messages", error);
    let transaction = shared.pool.begin().await.map_err(failed)?;
    locks::lock(&transaction, shared.locks, &[], claims.iter().collect()).await?;
    let (consumers, messages) = claim_columns(claims);
    let ended = transaction
        .rows(
            concat!(
                not_leased!("<> 0"),
                "set state = 0, number = null, due = null, lease = null, unfinished = 0,
                     failures = 0, history = null, blocks = false, metadata = null, body = null,
                     claimed_at = statement_timestamp()
                 from free where row.consumer = free.consumer and row.message = free.message
                 returning row.order_group, row.order_key"
            ),
            &[&consumers, &messages],
        )
        .await
        .map_err(failed)?;
    let count = ended.len() as u64;
    let keys = ended
        .iter()
        .map(|row| Ok(order_key(row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<BTreeSet<_>, Error>>()
        .map_err(failed)?;
    for key in keys.iter().flatten() {
        go_on(&transaction, key).await?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok(count)
}

fn texts(consumers: &[Box<str>]) -> Vec<&str> {
    consumers.iter().map(|consumer| &**consumer).collect()
}

fn lease_texts(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|lease| &*lease.0).collect()
}
