//! The statements of inbox, outbox and lanes.

use std::{
    collections::BinaryHeap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, Result, types::Type};
use tidings_core::{Claim, Commit, Committed, Lane, OutboxRow, OutboxStats, Outgoing};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, millis)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Writes the claim and the outbox rows. After `Duplicate` the caller rolls back.
pub(crate) fn write(connection: &Connection, commit: &Commit) -> Result<Committed> {
    let now = now_ms();
    if let Some(claim) = &commit.claim {
        let written = connection
            .prepare_cached(
                "insert into tidings_inbox (consumer, message, claimed_at) values (?1, ?2, ?3) \
                 on conflict do nothing",
            )?
            .execute((&*claim.consumer, claim.message.as_str(), now))?;
        if written == 0 {
            return Ok(Committed::Duplicate);
        }
    }
    if !commit.outbox.is_empty() {
        let mut insert = connection.prepare_cached(
            "insert into tidings_outbox (lane, created_at, message, body) values (?1, ?2, ?3, ?4)",
        )?;
        for message in &commit.outbox {
            let lane = Lane::of_message(message).0;
            insert.execute((lane, now, message.to_record(), &*message.envelope.body))?;
        }
    }
    Ok(Committed::Done)
}

pub(crate) fn is_claimed(connection: &Connection, claim: &Claim) -> Result<bool> {
    connection
        .prepare_cached("select 1 from tidings_inbox where consumer = ?1 and message = ?2")?
        .exists((&*claim.consumer, claim.message.as_str()))
}

/// Deletes from the front, where the oldest claims are, and stops at the first young one.
pub(crate) fn forget_claims(connection: &Connection, age: Duration, limit: usize) -> Result<u64> {
    let forgotten = connection
        .prepare_cached(
            "delete from tidings_inbox where claim in (
                 select claim from (
                     select claim, claimed_at from tidings_inbox order by claim limit ?1
                 ) where claimed_at < ?2
             )",
        )?
        .execute((
            i64::try_from(limit).unwrap_or(i64::MAX),
            now_ms().saturating_sub(millis(age)),
        ))?;
    Ok(forgotten as u64)
}

pub(crate) fn lease_lanes(
    connection: &Connection,
    relay: &str,
    lease: Duration,
) -> Result<Vec<Lane>> {
    let now = now_ms();
    let mut lanes: Vec<Lane> = connection
        .prepare_cached(
            "update tidings_lane set relay = ?1, leased_until = ?2 \
             where relay is null or relay = ?1 or leased_until <= ?3 returning lane",
        )?
        .query_map((relay, now.saturating_add(millis(lease)), now), |row| {
            row.get(0).map(Lane)
        })?
        .collect::<Result<_>>()?;
    lanes.sort_unstable();
    Ok(lanes)
}

pub(crate) fn release_lanes(connection: &Connection, relay: &str) -> Result<()> {
    connection
        .prepare_cached("update tidings_lane set relay = null, leased_until = 0 where relay = ?1")?
        .execute((relay,))
        .map(drop)
}

/// The oldest rows of `lanes`: first their positions, from the index alone, then the rows.
pub(crate) fn unsent(
    connection: &Connection,
    lanes: &[Lane],
    limit: usize,
) -> Result<Vec<OutboxRow>> {
    let positions = oldest(connection, lanes, limit)?;
    let mut row = connection
        .prepare_cached("select message, body from tidings_outbox where position = ?1")?;
    let mut rows = Vec::with_capacity(positions.len());
    for position in positions {
        let message = row
            .query_row((position,), |row| {
                let body = row.get_ref(1)?.as_blob()?.to_vec();
                Outgoing::from_record(row.get_ref(0)?.as_str()?, body.into()).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
                })
            })
            .optional()?;
        rows.extend(message.map(|message| OutboxRow { position, message }));
    }
    Ok(rows)
}

fn oldest(connection: &Connection, lanes: &[Lane], limit: usize) -> Result<Vec<i64>> {
    let mut oldest = Smallest::new(limit);
    let mut ready = connection.prepare_cached(
        "select position from tidings_outbox where lane = ?1 and deferred_until is null \
         order by position limit ?2",
    )?;
    for lane in lanes {
        let mut rows = ready.query((lane.0, i64::try_from(limit).unwrap_or(i64::MAX)))?;
        while let Some(row) = rows.next()? {
            if !oldest.take(row.get(0)?) {
                break;
            }
        }
    }
    let mut due = connection
        .prepare_cached("select position, lane from tidings_outbox where deferred_until <= ?1")?;
    let mut rows = due.query((now_ms(),))?;
    while let Some(row) = rows.next()? {
        if lanes.contains(&Lane(row.get(1)?)) {
            oldest.take(row.get(0)?);
        }
    }
    Ok(oldest.0.into_sorted_vec())
}

/// Keeps the smallest numbers of those it is given; the greatest kept is on top, to be replaced.
struct Smallest(BinaryHeap<i64>, usize);

impl Smallest {
    fn new(limit: usize) -> Self {
        Self(BinaryHeap::new(), limit)
    }

    /// False if `number` is too great to be kept.
    fn take(&mut self, number: i64) -> bool {
        if self.0.len() < self.1 {
            self.0.push(number);
            return true;
        }
        match self.0.peek_mut() {
            Some(mut greatest) if number < *greatest => {
                *greatest = number;
                true
            }
            _ => false,
        }
    }
}

pub(crate) fn defer(connection: &Connection, positions: &[i64], delay: Duration) -> Result<()> {
    let until = now_ms().saturating_add(millis(delay));
    let mut update = connection
        .prepare_cached("update tidings_outbox set deferred_until = ?2 where position = ?1")?;
    positions
        .iter()
        .try_for_each(|position| update.execute((position, until)).map(drop))
}

pub(crate) fn sent(connection: &Connection, positions: &[i64]) -> Result<()> {
    let mut delete = connection.prepare_cached("delete from tidings_outbox where position = ?1")?;
    positions
        .iter()
        .try_for_each(|position| delete.execute((position,)).map(drop))
}

pub(crate) fn stats(connection: &Connection) -> Result<OutboxStats> {
    // Two counts, since each then needs only its index and no bodies.
    let unsent: i64 = connection
        .prepare_cached(
            "select (select count(*) from tidings_outbox where deferred_until is null)
                  + (select count(*) from tidings_outbox where deferred_until is not null)",
        )?
        .query_row((), |row| row.get(0))?;
    let oldest: Option<i64> = connection
        .prepare_cached("select created_at from tidings_outbox order by position limit 1")?
        .query_row((), |row| row.get(0))
        .optional()?;
    let age = oldest.map_or(0, |created| now_ms().saturating_sub(created));
    Ok(OutboxStats {
        unsent: unsent.unsigned_abs(),
        oldest_age: Duration::from_millis(age.unsigned_abs()),
    })
}
