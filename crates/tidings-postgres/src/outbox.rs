//! The statements of inbox, outbox and lanes. Times are the database's own, so that the clocks of
//! machines that share it do not matter.

use std::time::Duration;

use sqlx::{PgExecutor, PgPool, Row, postgres::PgRow};
use tidings_core::{Claim, Commit, Committed, Lane, OutboxRow, OutboxStats, Outgoing, StoreError};

use crate::error::explain;

/// Claim and outbox rows in one statement, which is a round trip and, alone, a transaction.
///
/// A row's position is drawn when it is written, not when it is committed. So that positions of a
/// key follow the order of commits, a transaction first locks the keys of its messages, until it
/// ends. It locks them in one order and waits for nothing afterwards: no deadlock comes of it.
const WRITE: &str = "
    with claimed as (
        insert into tidings_inbox (consumer, message)
        select $1, $2 where $1 is not null
        on conflict do nothing
        returning 1
    ), claim as materialized (
        select $1 is null or exists (select from claimed) as free
    ), locked as materialized (
        select count(pg_advisory_xact_lock($3, key)) from (
            select key from (select distinct unnest($4::int[]) as key) as keys
            where (select free from claim) order by key
        ) as in_order
    ), written as (
        insert into tidings_outbox (lane, message, body)
        select lane, message, body
        from locked, unnest($5::smallint[], $6::text[], $7::bytea[])
            with ordinality as row (lane, message, body, number)
        where (select free from claim)
        order by number
    )
    select free from claim";

/// Writes claim and outbox rows. After `Duplicate` nothing was written.
pub(crate) async fn write(
    executor: impl PgExecutor<'_>,
    schema_hash: i32,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    if commit.claim.is_none() && commit.outbox.is_empty() {
        return Ok(Committed::Done);
    }
    let claim = commit.claim.as_ref();
    let messages = || commit.outbox.iter();
    let keys: Vec<i32> = messages()
        .filter_map(|message| message.envelope.key.as_deref())
        .map(hash)
        .collect();
    let lanes: Vec<i16> = messages()
        .map(|message| number(Lane::of_message(message)))
        .collect();
    let records: Vec<String> = messages().map(Outgoing::to_record).collect();
    let bodies: Vec<&[u8]> = messages().map(|message| &*message.envelope.body).collect();
    let free: bool = sqlx::query_scalar(WRITE)
        .bind(claim.map(|claim| &*claim.consumer))
        .bind(claim.map(|claim| claim.message.as_str()))
        .bind(schema_hash)
        .bind(keys)
        .bind(lanes)
        .bind(records)
        .bind(bodies)
        .fetch_one(executor)
        .await
        .map_err(|error| explain("write claim and outbox", &error))?;
    Ok(if free {
        Committed::Done
    } else {
        Committed::Duplicate
    })
}

/// 32 bits of FNV-1a, to name an advisory lock. Two keys with one hash only wait for each other.
pub(crate) fn hash(text: &str) -> i32 {
    text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    }) as i32
}

/// A lane's number as the database's type for it.
fn number(lane: Lane) -> i16 {
    lane.0.cast_signed()
}

pub(crate) async fn is_claimed(pool: &PgPool, claim: &Claim) -> Result<bool, StoreError> {
    sqlx::query_scalar(
        "select exists (select from tidings_inbox where consumer = $1 and message = $2)",
    )
    .bind(&*claim.consumer)
    .bind(claim.message.as_str())
    .fetch_one(pool)
    .await
    .map_err(|error| explain("look for a claim", &error))
}

pub(crate) async fn forget_claims(
    pool: &PgPool,
    age: Duration,
    limit: usize,
) -> Result<u64, StoreError> {
    sqlx::query(
        "delete from tidings_inbox where ctid = any (array(
             select ctid from tidings_inbox
             where claimed_at < clock_timestamp() - make_interval(secs => $1) limit $2
         ))",
    )
    .bind(age.as_secs_f64())
    .bind(count(limit))
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
    .map_err(|error| explain("forget old claims", &error))
}

/// Takes free lanes in one order and passes over those that another relay is just taking.
pub(crate) async fn lease_lanes(
    pool: &PgPool,
    relay: &str,
    lease: Duration,
) -> Result<Vec<Lane>, StoreError> {
    let mut lanes: Vec<Lane> = sqlx::query_scalar::<_, i16>(
        "with free as (
             select lane from tidings_lane
             where relay is null or relay = $1 or leased_until <= clock_timestamp()
             order by lane for update skip locked
         )
         update tidings_lane
         set relay = $1, leased_until = clock_timestamp() + make_interval(secs => $2)
         from free where tidings_lane.lane = free.lane
         returning tidings_lane.lane",
    )
    .bind(relay)
    .bind(lease.as_secs_f64())
    .fetch_all(pool)
    .await
    .map_err(|error| explain("lease outbox lanes", &error))?
    .into_iter()
    .map(|lane| Lane(lane.cast_unsigned()))
    .collect();
    lanes.sort_unstable();
    Ok(lanes)
}

pub(crate) async fn release_lanes(pool: &PgPool, relay: &str) -> Result<(), StoreError> {
    sqlx::query("update tidings_lane set relay = null where relay = $1")
        .bind(relay)
        .execute(pool)
        .await
        .map(drop)
        .map_err(|error| explain("release outbox lanes", &error))
}

pub(crate) async fn unsent(
    pool: &PgPool,
    lanes: &[Lane],
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let lanes: Vec<i16> = lanes.iter().copied().map(number).collect();
    let rows = sqlx::query(
        "(select position, message, body from tidings_outbox
          where deferred_until is null and lane = any ($1) order by position limit $2)
         union all
         (select position, message, body from tidings_outbox
          where deferred_until <= clock_timestamp() and lane = any ($1) order by position limit $2)
         order by position limit $2",
    )
    .bind(lanes)
    .bind(count(limit))
    .fetch_all(pool)
    .await
    .map_err(|error| explain("read the outbox", &error))?;
    rows.iter().map(outbox_row).collect()
}

fn outbox_row(row: &PgRow) -> Result<OutboxRow, StoreError> {
    let failed = |error| explain("read a row of the outbox", &error);
    let position: i64 = row.try_get(0).map_err(failed)?;
    let record: &str = row.try_get(1).map_err(failed)?;
    let body: Vec<u8> = row.try_get(2).map_err(failed)?;
    let message = Outgoing::from_record(record, body.into()).map_err(|error| {
        StoreError::new(format!(
            "outbox row {position} is not as this version writes it; mend or delete it"
        ))
        .with_source(error)
    })?;
    Ok(OutboxRow { position, message })
}

pub(crate) async fn defer(
    pool: &PgPool,
    positions: &[i64],
    delay: Duration,
) -> Result<(), StoreError> {
    sqlx::query(
        "update tidings_outbox set deferred_until = clock_timestamp() + make_interval(secs => $2)
         where position = any ($1)",
    )
    .bind(positions)
    .bind(delay.as_secs_f64())
    .execute(pool)
    .await
    .map(drop)
    .map_err(|error| explain("put off outbox rows", &error))
}

pub(crate) async fn sent(pool: &PgPool, positions: &[i64]) -> Result<(), StoreError> {
    sqlx::query("delete from tidings_outbox where position = any ($1)")
        .bind(positions)
        .execute(pool)
        .await
        .map(drop)
        .map_err(|error| explain("remove sent outbox rows", &error))
}

pub(crate) async fn stats(pool: &PgPool) -> Result<OutboxStats, StoreError> {
    let (unsent, age): (i64, f64) = sqlx::query_as(
        "select (select count(*) from tidings_outbox), coalesce((
             select greatest(0, extract(epoch from clock_timestamp() - created_at))::float8
             from tidings_outbox order by position limit 1), 0)",
    )
    .fetch_one(pool)
    .await
    .map_err(|error| explain("count the outbox", &error))?;
    Ok(OutboxStats {
        unsent: unsent.unsigned_abs(),
        oldest_age: Duration::from_secs_f64(age),
    })
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
