//! The rows of the outbox: how commits write them, and how a relay reads and changes them.
//!
//! A row carries its destination and the hash of its key as columns, so that nothing is decoded to
//! decide whether it may go. Ready rows, held rows and those set aside have indexes of their own:
//! what a relay's round costs does not depend on how many rows are held.

use std::borrow::Cow;

use sqlx::{PgConnection, PgExecutor, PgPool, Row, postgres::PgRow};
use tidings_core::{
    BoxError, Commit, Committed, Destination, Lane, ListedRow, OutboxRow, OutboxState, OutboxStats,
    Outgoing, Refusal, StoreError, hash_of_key,
};

use crate::{
    error::explain,
    locks::{LockNames, keys_of},
    values::{ahead, count, lane_number, lane_numbers, timestamp},
};

/// The usual commit: at most one delivery that was handled, and messages to send.
///
/// A row's position is drawn when it is written, not when it is committed. So that positions of a
/// key follow the order of commits, a transaction first locks the keys of its messages, until it
/// ends; and then claims (`locks` says why in this order).
const WRITE_USUAL: &str = "
    with locked as materialized (
        select count(pg_advisory_xact_lock($3, key)) from unnest($4::int[]) as key
    ), claimed as (
        insert into tidings_inbox (consumer, message)
        select $1, $2 from locked where $1 is not null
        on conflict do nothing
        returning 1
    ), claim as materialized (
        select $1 is null or exists (select from claimed) as free
    ), written as (
        insert into tidings_outbox (lane, destination, key_hash, message, body)
        select lane, destination, key_hash, message, body
        from locked, claim, unnest($5::smallint[], $6::text[], $7::bigint[], $8::text[], $9::bytea[])
            with ordinality as row (lane, destination, key_hash, message, body, number)
        where claim.free
        order by number
    )
    select free from claim";

/// Writes the messages alone, in their order; their keys are locked.
const WRITE: &str = "
    insert into tidings_outbox (lane, destination, key_hash, message, body)
    select lane, destination, key_hash, message, body
    from unnest($1::smallint[], $2::text[], $3::bigint[], $4::text[], $5::bytea[])
        with ordinality as row (lane, destination, key_hash, message, body, number)
    order by number";

/// The columns of messages.
struct Columns<'a> {
    lanes: Vec<i16>,
    destinations: Vec<String>,
    key_hashes: Vec<Option<i64>>,
    metadata: Vec<String>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(messages: &'a [Outgoing]) -> Self {
        let messages = || messages.iter();
        Self {
            lanes: messages()
                .map(|message| lane_number(Lane::of_message(message)))
                .collect(),
            destinations: messages()
                .map(|message| message.destination.to_text())
                .collect(),
            key_hashes: messages().map(key_hash).collect(),
            metadata: messages().map(Outgoing::to_metadata).collect(),
            bodies: messages().map(|message| &*message.envelope.body).collect(),
        }
    }
}

/// The hash of a message's key, as `bigint` holds it.
pub(crate) fn key_hash(message: &Outgoing) -> Option<i64> {
    let key = message.envelope.key.as_deref()?;
    Some(hash_of_key(key).cast_signed())
}

/// Writes a usual commit. After `Refused` nothing was written.
pub(crate) async fn write_usual(
    executor: impl PgExecutor<'_>,
    names: LockNames,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    let claim = commit.inbox.first().map(|entry| &entry.claim);
    let columns = Columns::of(&commit.outbox);
    let free: bool = sqlx::query_scalar(WRITE_USUAL)
        .bind(claim.map(|claim| &*claim.consumer))
        .bind(claim.map(|claim| claim.message.as_str()))
        .bind(names.keys)
        .bind(keys_of(commit))
        .bind(columns.lanes)
        .bind(columns.destinations)
        .bind(columns.key_hashes)
        .bind(columns.metadata)
        .bind(columns.bodies)
        .fetch_one(executor)
        .await
        .map_err(|error| explain("write claim and outbox", &error))?;
    Ok(if free {
        Committed::Done
    } else {
        Committed::Refused {
            entry: 0,
            why: Refusal::Known,
        }
    })
}

pub(crate) async fn write(
    connection: &mut PgConnection,
    messages: &[Outgoing],
) -> Result<(), StoreError> {
    if messages.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(messages);
    sqlx::query(WRITE)
        .bind(columns.lanes)
        .bind(columns.destinations)
        .bind(columns.key_hashes)
        .bind(columns.metadata)
        .bind(columns.bodies)
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| explain("write the outbox", &error))
}

/// First the positions, from each lane's part of the index of ready rows; then those rows alone.
///
/// Here and below, a lane is asked for as a range of one, and rows are ordered by it first: only the
/// right index has that order. Of a lane that is equal to something the planner knows that it orders
/// nothing, and takes the primary key where it finds that cheap: it leaves out what does not fit,
/// and that may be every held row. Likewise the question for a held row is no `exists`, which the
/// planner may answer for all rows at once, by reading every held one.
pub(crate) const NEXT: &str = "
    with next as materialized (
        select ready.position
        from (select distinct unnest($1::smallint[]) as lane) as asked, lateral (
            select position from tidings_outbox
            where state = 0 and lane between asked.lane and asked.lane
              and position <> all ($2)
            order by lane, position limit $3
        ) as ready
        order by ready.position limit $3
    )
    select row.position, row.message, row.body,
        extract(epoch from statement_timestamp() - row.created_at)::float8 as age,
        row.destination = any ($4) and (
            select true from tidings_outbox as held
            where held.destination = row.destination and held.held_key = row.key_hash limit 1
        ) is true as is_behind
    from next join tidings_outbox as row on row.position = next.position
    order by row.position";

pub(crate) async fn next(
    pool: &PgPool,
    lanes: &[Lane],
    held: &[Destination],
    except: &[i64],
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let held: Vec<String> = held.iter().map(Destination::to_text).collect();
    let rows = sqlx::query(NEXT)
        .bind(lane_numbers(lanes))
        .bind(except)
        .bind(count(limit))
        .bind(held)
        .fetch_all(pool)
        .await;
    read("read the outbox", rows)
}

pub(crate) const NEXT_HELD: &str = "
    with next as materialized (
        select held.position
        from (select distinct unnest($1::smallint[]) as lane) as asked, lateral (
            select position from tidings_outbox
            where state = 1 and (lane, destination) >= (asked.lane, $2)
              and (lane, destination) <= (asked.lane, $2)
            order by lane, destination, position limit $3
        ) as held
        order by held.position limit $3
    )
    select row.position, row.message, row.body,
        extract(epoch from statement_timestamp() - row.created_at)::float8 as age,
        false as is_behind
    from next join tidings_outbox as row on row.position = next.position
    order by row.position";

pub(crate) async fn next_held(
    pool: &PgPool,
    lanes: &[Lane],
    destination: &Destination,
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let rows = sqlx::query(NEXT_HELD)
        .bind(lane_numbers(lanes))
        .bind(destination.to_text())
        .bind(count(limit))
        .fetch_all(pool)
        .await;
    read("read held rows of the outbox", rows)
}

fn read(attempted: &str, rows: sqlx::Result<Vec<PgRow>>) -> Result<Vec<OutboxRow>, StoreError> {
    rows.and_then(|rows| rows.iter().map(outbox_row).collect())
        .map_err(|error| explain(attempted, &error))
}

fn outbox_row(row: &PgRow) -> sqlx::Result<OutboxRow> {
    Ok(OutboxRow {
        position: row.try_get("position")?,
        age: ahead(row.try_get("age")?),
        is_behind: row.try_get("is_behind")?,
        message: message(row)?,
    })
}

fn message(row: &PgRow) -> sqlx::Result<Result<Outgoing, BoxError>> {
    let metadata: &str = row.try_get("message")?;
    let body: Vec<u8> = row.try_get("body")?;
    let message = Outgoing::from_metadata(metadata, body.into());
    Ok(message.map_err(|error| format!("its metadata cannot be read: {error}").into()))
}

pub(crate) async fn confirmed(pool: &PgPool, positions: &[i64]) -> Result<(), StoreError> {
    sqlx::query("delete from tidings_outbox where position = any ($1)")
        .bind(positions)
        .execute(pool)
        .await
        .map(drop)
        .map_err(|error| explain("remove confirmed outbox rows", &error))
}

/// Makes rows of lanes that `relay` has held or set aside.
///
/// The lanes' rows stay locked until that is committed: a relay that takes one over sees it.
pub(crate) async fn withdraw(
    pool: &PgPool,
    relay: &str,
    positions: &[i64],
    state: OutboxState,
    reason: &str,
) -> Result<(), StoreError> {
    let attempted = match state {
        OutboxState::Held => "hold outbox rows",
        OutboxState::SetAside => "set outbox rows aside",
    };
    // The reason is for people, and comes from wherever something failed.
    let reason = reason.replace('\0', "\u{fffd}");
    sqlx::query(
        "with own as materialized (
             select lane from tidings_lane
             where relay = $1 and leased_until > statement_timestamp()
             order by lane for share
         )
         update tidings_outbox as row set state = $3, reason = $4
         from own where row.lane = own.lane and row.position = any ($2) and row.state <> 2",
    )
    .bind(relay)
    .bind(positions)
    .bind(state as i16)
    .bind(reason)
    .execute(pool)
    .await
    .map(drop)
    .map_err(|error| explain(attempted, &error))
}

/// The first destination of each lane, then the next after it, and so on: as many steps as there
/// are destinations, however many rows are held for each.
macro_rules! held_for {
    ($lanes:literal) => {
        concat!(
            "with recursive held_for as (
                 select asked.lane, (
                     select destination from tidings_outbox
                     where state = 1 and lane between asked.lane and asked.lane
                     order by lane, destination limit 1
                 ) as destination
                 from (select distinct ",
            $lanes,
            " as lane) as asked
                 union all
                 select held_for.lane, (
                     select next.destination from tidings_outbox as next
                     where next.state = 1 and next.lane between held_for.lane and held_for.lane
                       and next.destination > held_for.destination
                     order by next.lane, next.destination limit 1
                 )
                 from held_for where held_for.destination is not null
             )"
        )
    };
}

pub(crate) const HELD: &str = concat!(
    held_for!("unnest($1::smallint[])"),
    " select distinct destination from held_for where destination is not null order by destination"
);

pub(crate) async fn held(pool: &PgPool, lanes: &[Lane]) -> Result<Vec<Destination>, StoreError> {
    let destinations: Vec<String> = sqlx::query_scalar(HELD)
        .bind(lane_numbers(lanes))
        .fetch_all(pool)
        .await
        .map_err(|error| explain("read which destinations rows are held for", &error))?;
    let destinations = destinations.iter();
    Ok(destinations
        .filter_map(|text| Destination::from_text(text))
        .collect())
}

/// Statements about all lanes name them.
const _: () = assert!(Lane::COUNT == 16);

macro_rules! listed {
    ($from:literal) => {
        concat!(
            "select row.position, row.destination, coalesce(row.reason, '') as reason, row.message,
                 row.body, (extract(epoch from row.created_at) * 1000000)::bigint as written
             from ",
            $from,
            " order by row.position limit $2"
        )
    };
}

const LIST_ASIDE: &str = listed!("tidings_outbox as row where row.state = 2 and row.position > $1");

/// From each lane and destination the first rows, and the first of all those.
pub(crate) const LIST_HELD: &str = concat!(
    held_for!("generate_series(0, 15)::smallint"),
    listed!(
        "held_for, lateral (
             select * from tidings_outbox
             where state = 1
               and (lane, destination, position) > (held_for.lane, held_for.destination, $1)
               and (lane, destination) <= (held_for.lane, held_for.destination)
             order by lane, destination, position limit $2
         ) as row where held_for.destination is not null"
    )
);

pub(crate) async fn list(
    pool: &PgPool,
    state: OutboxState,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<ListedRow>, StoreError> {
    let failed = |error| explain("list outbox rows", &error);
    let rows = sqlx::query(match state {
        OutboxState::Held => LIST_HELD,
        OutboxState::SetAside => LIST_ASIDE,
    })
    .bind(after.unwrap_or(i64::MIN))
    .bind(count(limit))
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    let listed = rows.iter().map(|row| {
        let written = timestamp(row.try_get("written").map_err(failed)?)?;
        listed_row(row, written).map_err(failed)
    });
    listed.collect()
}

fn listed_row(row: &PgRow, written: jiff::Timestamp) -> sqlx::Result<ListedRow> {
    let destination: &str = row.try_get("destination")?;
    // A row of an elder version that cannot be read may have none.
    let unknown = || Destination::Queue(Cow::Borrowed(""));
    Ok(ListedRow {
        position: row.try_get("position")?,
        written,
        destination: Destination::from_text(destination).unwrap_or_else(unknown),
        reason: row.try_get("reason")?,
        message: message(row)?.ok(),
    })
}

pub(crate) async fn restore(pool: &PgPool, positions: &[i64]) -> Result<u64, StoreError> {
    sqlx::query(
        "update tidings_outbox set state = 0, reason = null
         where position = any ($1) and state = 2",
    )
    .bind(positions)
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
    .map_err(|error| explain("make outbox rows ready again", &error))
}

pub(crate) async fn discard(pool: &PgPool, positions: &[i64]) -> Result<u64, StoreError> {
    sqlx::query("delete from tidings_outbox where position = any ($1) and state = 2")
        .bind(positions)
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(|error| explain("discard outbox rows", &error))
}

/// The order in which rows are counted is there for the planner: it takes the index that has just
/// the rows in that state.
pub(crate) const STATS: &str = concat!(
    held_for!("generate_series(0, 15)::smallint"),
    " select
        (select count(*) from (
            select from tidings_outbox where state = 0 order by lane, position limit $1
        ) as ready),
        (select extract(epoch from statement_timestamp() - min(first.created_at))::float8
         from (select generate_series(0, 15)::smallint as lane) as lanes, lateral (
            select created_at from tidings_outbox
            where state = 0 and lane between lanes.lane and lanes.lane
            order by lane, position limit 1
         ) as first),
        (select count(*) from (
            select from tidings_outbox
            where state = 1 order by lane, destination, position limit $1
        ) as held),
        (select extract(epoch from statement_timestamp() - min(first.created_at))::float8
         from held_for, lateral (
            select created_at from tidings_outbox
            where state = 1 and (lane, destination) >= (held_for.lane, held_for.destination)
              and (lane, destination) <= (held_for.lane, held_for.destination)
            order by lane, destination, position limit 1
         ) as first),
        (select count(*) from (
            select from tidings_outbox where state = 2 order by position limit $1
        ) as aside)"
);

pub(crate) async fn stats(pool: &PgPool) -> Result<OutboxStats, StoreError> {
    let (ready, oldest_ready, held, oldest_held, set_aside): (i64, _, i64, _, i64) =
        sqlx::query_as(STATS)
            .bind(OutboxStats::COUNT_MAX.cast_signed())
            .fetch_one(pool)
            .await
            .map_err(|error| explain("count the outbox", &error))?;
    let age = |seconds: Option<f64>| seconds.map(ahead).unwrap_or_default();
    Ok(OutboxStats {
        ready: ready.unsigned_abs(),
        oldest_ready_age: age(oldest_ready),
        held: held.unsigned_abs(),
        oldest_held_age: age(oldest_held),
        set_aside: set_aside.unsigned_abs(),
    })
}
