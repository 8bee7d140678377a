//! The rows of the outbox: how commits write them (`writing.rs`), and how a relay reads and changes them.
//!
//! A row carries its destination and the hash of its key as columns, so that nothing is decoded to
//! decide whether it may go. Ready rows, held rows and those set aside have indexes of their own:
//! what a relay's round costs does not depend on how many rows are held.

mod writing;

use std::borrow::Cow;

use tidings_core::{
    BoxError, Destination, Lane, ListedRow, OutboxRow, OutboxState, OutboxStats, Outgoing,
    StoreError,
};
use tokio_postgres::Row;

pub(crate) use writing::{Columns, Writing, is_storable, key_hash, write, write_usual};

use crate::{
    connection::{Params, Pool},
    error::{Error, explain},
    progress::Progress,
    values::{ahead, count, lane_numbers, timestamp},
};

/// From each lane's part of the index of ready rows some rows, and the oldest of all those.
///
/// Here and below, a lane is asked for as a range of one, and rows are ordered by it first: only the
/// right index has that order. Of a lane that is equal to something the planner knows that it orders
/// nothing, and takes the primary key where it finds that cheap: it leaves out what does not fit,
/// and that may be every held row. Likewise the question for a held row is no `exists`, which the
/// planner may answer for all rows at once, by reading every held one. How many rows of a lane are
/// wanted is asked for in a roundabout way: a planner that knew it, and believes that there are no
/// more, would take all and sort them. The rows are not looked up by their positions afterwards: a
/// look in the primary key for each costs more than carrying those that are too young.
///
/// It begins after `$6` ([`Progress`]).
pub(crate) const NEXT: &str = "
    select row.position, row.message, row.body, row.lane,
        extract(epoch from statement_timestamp() - row.created_at)::float8 as age,
        row.destination = any ($4) and (
            select true from tidings_outbox as held
            where held.destination = row.destination and held.held_key = row.key_hash limit 1
        ) is true as is_behind
    from (
        select ready.*
        from (select distinct unnest($1::smallint[]) as lane) as asked, lateral (
            select position, lane, created_at, destination, key_hash, message, body
            from tidings_outbox
            where state = 0 and (lane, position) > (asked.lane, $6) and lane <= asked.lane
              and position not in (select unnest($2::bigint[]))
            order by lane, position limit (select $5::bigint)
        ) as ready
        order by ready.position limit $3
    ) as row
    order by row.position";

pub(crate) async fn next(
    pool: &Pool,
    progress: &Progress,
    lanes: &[Lane],
    held: &[Destination],
    except: &[i64],
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let held: Vec<String> = held.iter().map(Destination::to_text).collect();
    let numbers = lane_numbers(lanes);
    // Usually the first rows are in all lanes alike, and reading as many of each lane as of all
    // together is for nothing.
    let mut of_each = (limit * 2 / lanes.len().max(1)).clamp(1, limit.max(1));
    let reading = progress.read(&numbers);
    loop {
        let params: Params<'_> = &[
            &numbers,
            &except,
            &count(limit),
            &held,
            &count(of_each),
            &reading.after,
        ];
        let rows = pool.rows(NEXT, params).await;
        if let Ok(rows) = &rows
            && of_each < limit
            && has_lane_with(of_each, rows)
        {
            of_each = limit; // There may be earlier ones of that lane.
            continue;
        }
        let rows = read("read the outbox", rows)?;
        progress.have_read(&reading, &rows, except, rows.len() >= limit);
        return Ok(rows);
    }
}

/// Whether so many rows, or more, are of one lane.
fn has_lane_with(count: usize, rows: &[Row]) -> bool {
    let mut of_lanes = [0; Lane::COUNT as usize];
    rows.iter().any(|row| {
        let lane: i16 = row.try_get("lane").unwrap_or(0);
        let of_lane = of_lanes.get_mut(usize::from(lane.unsigned_abs()));
        of_lane.is_some_and(|of_lane| {
            *of_lane += 1;
            *of_lane >= count
        })
    })
}

pub(crate) const NEXT_HELD: &str = "
    with next as materialized (
        select held.position
        from (select distinct unnest($1::smallint[]) as lane) as asked, lateral (
            select position from tidings_outbox
            where state = 1 and (lane, destination) >= (asked.lane, $2)
              and (lane, destination) <= (asked.lane, $2)
            order by lane, destination, position limit (select $3::bigint)
        ) as held
        order by held.position limit $3
    )
    select row.position, row.message, row.body,
        extract(epoch from statement_timestamp() - row.created_at)::float8 as age,
        false as is_behind
    from next, lateral (
        select * from tidings_outbox where position = next.position limit 1
    ) as row
    order by row.position";

pub(crate) async fn next_held(
    pool: &Pool,
    lanes: &[Lane],
    destination: &Destination,
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let rows = pool
        .rows(
            NEXT_HELD,
            &[&lane_numbers(lanes), &destination.to_text(), &count(limit)],
        )
        .await;
    read("read held rows of the outbox", rows)
}

fn read(attempted: &str, rows: Result<Vec<Row>, Error>) -> Result<Vec<OutboxRow>, StoreError> {
    rows.and_then(|rows| rows.iter().map(outbox_row).collect())
        .map_err(|error| explain(attempted, error))
}

fn outbox_row(row: &Row) -> Result<OutboxRow, Error> {
    Ok(OutboxRow {
        position: row.try_get("position")?,
        age: ahead(row.try_get("age")?),
        is_behind: row.try_get("is_behind")?,
        message: message(row)?,
    })
}

pub(crate) fn message(row: &Row) -> Result<Result<Outgoing, BoxError>, Error> {
    let metadata: &str = row.try_get("message")?;
    let body: Vec<u8> = row.try_get("body")?;
    let message = Outgoing::from_metadata(metadata, body.into());
    Ok(message.map_err(|error| format!("its metadata cannot be read: {error}").into()))
}

/// Of positions all of which are confirmed.
const REMOVE_RUN: &str = "delete from tidings_outbox where position between $1 and $2";

const REMOVE: &str = "delete from tidings_outbox where position = any ($1)";

/// Positions that follow one another without a gap, as those of a relay that has all lanes do, are
/// removed as a range, which holds no other row: that costs half as much as to look for each.
pub(crate) async fn confirmed(
    pool: &Pool,
    progress: &Progress,
    positions: &[i64],
) -> Result<(), StoreError> {
    let removed = match run_of(positions) {
        Some((first, last)) => pool.execute(REMOVE_RUN, &[&first, &last]).await,
        None => pool.execute(REMOVE, &[&positions]).await,
    };
    removed.map_err(|error| explain("remove confirmed outbox rows", error))?;
    progress.settled(positions);
    Ok(())
}

/// The first and the last of positions that ascend without a gap.
fn run_of(positions: &[i64]) -> Option<(i64, i64)> {
    let follow = |pair: &[i64]| pair[0].checked_add(1) == Some(pair[1]);
    let is_run = positions.windows(2).all(follow);
    let ends = positions.first().copied().zip(positions.last().copied());
    ends.filter(|_| is_run)
}

/// Makes rows of lanes that `relay` has held or set aside.
///
/// The lanes' rows stay locked until that is committed: a relay that takes one over sees it.
pub(crate) async fn withdraw(
    pool: &Pool,
    progress: &Progress,
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
    pool.execute(
        "with own as materialized (
             select lane from tidings_lane
             where relay = $1 and leased_until > statement_timestamp()
             order by lane for share
         )
         update tidings_outbox as row set state = $3, reason = $4
         from own where row.lane = own.lane and row.position = any ($2) and row.state <> 2",
        &[&relay, &positions, &(state as i16), &reason],
    )
    .await
    .map_err(|error| explain(attempted, error))?;
    progress.settled(positions);
    Ok(())
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

pub(crate) async fn held(pool: &Pool, lanes: &[Lane]) -> Result<Vec<Destination>, StoreError> {
    let read = async {
        let rows = pool.rows(HELD, &[&lane_numbers(lanes)]).await?;
        let texts = rows.iter().map(|row| row.try_get(0));
        texts
            .collect::<Result<Vec<&str>, _>>()
            .map(|texts| {
                let destinations = texts.into_iter().filter_map(Destination::from_text);
                destinations.collect()
            })
            .map_err(Error::from)
    };
    read.await
        .map_err(|error| explain("read which destinations rows are held for", error))
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
    pool: &Pool,
    state: OutboxState,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<ListedRow>, StoreError> {
    let failed = |error| explain("list outbox rows", error);
    let sql = match state {
        OutboxState::Held => LIST_HELD,
        OutboxState::SetAside => LIST_ASIDE,
    };
    let rows = pool
        .rows(sql, &[&after.unwrap_or(i64::MIN), &count(limit)])
        .await;
    let rows = rows.map_err(failed)?;
    let listed = rows.iter().map(|row| {
        let written = row.try_get("written").map_err(Error::from);
        let written = timestamp(written.map_err(failed)?)?;
        listed_row(row, written).map_err(failed)
    });
    listed.collect()
}

fn listed_row(row: &Row, written: jiff::Timestamp) -> Result<ListedRow, Error> {
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

pub(crate) async fn restore(pool: &Pool, positions: &[i64]) -> Result<u64, StoreError> {
    pool.execute(
        "update tidings_outbox set state = 0, reason = null
         where position = any ($1) and state = 2",
        &[&positions],
    )
    .await
    .map_err(|error| explain("make outbox rows ready again", error))
}

pub(crate) async fn discard(pool: &Pool, positions: &[i64]) -> Result<u64, StoreError> {
    pool.execute(
        "delete from tidings_outbox where position = any ($1) and state = 2",
        &[&positions],
    )
    .await
    .map_err(|error| explain("discard outbox rows", error))
}

/// The order in which rows are counted is there for the planner: it takes the index that has just
/// the rows in that state.
pub(crate) const STATS: &str = concat!(
    held_for!("generate_series(0, 15)::smallint"),
    " select
        (select count(*) from (
            select from (select generate_series(0, 15)::smallint as lane) as lanes, lateral (
                select from tidings_outbox
                where state = 0 and (lane, position) > (lanes.lane, $2) and lane <= lanes.lane
                order by lane, position limit (select $1::bigint)
            ) as of_lane limit $1
        ) as ready),
        (select extract(epoch from statement_timestamp() - min(first.created_at))::float8
         from (select generate_series(0, 15)::smallint as lane) as lanes, lateral (
            select created_at from tidings_outbox
            where state = 0 and (lane, position) > (lanes.lane, $2) and lane <= lanes.lane
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

pub(crate) async fn stats(pool: &Pool, progress: &Progress) -> Result<OutboxStats, StoreError> {
    let read = async {
        let row = pool
            .row(
                STATS,
                &[
                    &OutboxStats::COUNT_MAX.cast_signed(),
                    &progress.after_in_all_lanes(),
                ],
            )
            .await?;
        let count = |column| row.try_get::<_, i64>(column).map(i64::unsigned_abs);
        let age = |column| {
            let seconds = row.try_get::<_, Option<f64>>(column);
            seconds.map(|seconds| seconds.map(ahead).unwrap_or_default())
        };
        Ok(OutboxStats {
            ready: count(0)?,
            oldest_ready_age: age(1)?,
            held: count(2)?,
            oldest_held_age: age(3)?,
            set_aside: count(4)?,
        })
    };
    read.await
        .map_err(|error: Error| explain("count the outbox", error))
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn only_what_ascends_without_a_gap_is_removed_as_a_range() {
        assert_eq!(run_of(&[]), None);
        assert_eq!(run_of(&[7]), Some((7, 7)));
        assert_eq!(run_of(&[7, 8, 9]), Some((7, 9)));
        assert_eq!(run_of(&[7, 9]), None);
        assert_eq!(run_of(&[8, 7]), None);
        assert_eq!(run_of(&[7, 7]), None);
    }
}
