//! The outbox: writing rows, and the relay's side of it but for the lanes.
//!
//! `destination` and `key_hash` are columns, so that nothing is decoded to find a row. Rows that
//! are held or set aside are in no index that the rounds of ready ones use.

use std::{
    collections::{BinaryHeap, HashSet},
    sync::atomic::Ordering,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Result, Row};
use tidings_core::{
    BoxError, BoxFuture, Destination, Keeping, Lane, Leased, ListedRow, Outbox, OutboxRow,
    OutboxState, OutboxStats, Outgoing, StoreError,
};

use crate::{
    OTHER_PROCESSES_POLL, SqliteStore,
    clock::{between, limit, now_ms, timestamp},
    lanes, log,
    migrations::key_hash,
};

const INSERT: &str = "\
insert into tidings_outbox (lane, created_at, destination, key_hash, message, body) \
values (?1, ?2, ?3, ?4, ?5, ?6)";

pub(crate) const READY: &str = "\
select position from tidings_outbox \
where lane = ?1 and state = 0 and position > ?2 order by position limit ?3";

/// Of positions all of which are wanted.
pub(crate) const ROWS: &str = "\
select position, created_at, message, body, destination, key_hash \
from tidings_outbox where position between ?1 and ?2 order by position";

pub(crate) const IS_HELD: &str = "\
select 1 from tidings_outbox where destination = ?1 and key_hash = ?2 and state = 1";

/// The first destination of a lane after another: a step of a loose scan of the index.
pub(crate) const HELD_AFTER: &str = "\
select destination from tidings_outbox \
where lane = ?1 and state = 1 and destination > ?2 order by destination limit 1";

pub(crate) const NEXT_HELD: &str = "\
select position from tidings_outbox \
where lane = ?1 and destination = ?2 and state = 1 order by position limit ?3";

/// All of these positions are confirmed.
pub(crate) const CONFIRMED: &str = "delete from tidings_outbox where position between ?1 and ?2";

/// Only in lanes that the relay `?3` has at the time `?4`. A row that was set aside stays so.
const HOLD: &str = "\
update tidings_outbox set state = 1, reason = ?2 where position = ?1 and state <> 2 and exists ( \
    select 1 from tidings_lane where tidings_lane.lane = tidings_outbox.lane \
    and relay = ?3 and leased_until > ?4)";
const SET_ASIDE: &str = "\
update tidings_outbox set state = 2, reason = ?2 where position = ?1 and exists ( \
    select 1 from tidings_lane where tidings_lane.lane = tidings_outbox.lane \
    and relay = ?3 and leased_until > ?4)";

/// `state <> 0` is said for the sake of the partial index.
pub(crate) const LIST: &str = "\
select position, created_at, message, body, destination, reason from tidings_outbox \
where state = ?1 and state <> 0 and position > ?2 order by position limit ?3";

const RESTORE: &str = "\
update tidings_outbox set state = 0, reason = null where position = ?1 and state = 2";

const DISCARD: &str = "delete from tidings_outbox where position = ?1 and state = 2";

/// Counts stop at `?1`.
pub(crate) const COUNT_READY: &str = "\
select count(*) from (select 1 from tidings_outbox where state = 0 limit ?1)";
pub(crate) const COUNT_HELD: &str = "\
select count(*) from (select 1 from tidings_outbox where state = 1 limit ?1)";
pub(crate) const COUNT_SET_ASIDE: &str = "\
select count(*) from (select 1 from tidings_outbox where state = 2 and state <> 0 limit ?1)";

/// The ready rows are ordered within their lanes: the oldest is the oldest of all lanes' oldest.
pub(crate) const OLDEST_READY: &str = "\
select min((select created_at from tidings_outbox \
    where tidings_outbox.lane = tidings_lane.lane and state = 0 order by position limit 1)) \
from tidings_lane";
pub(crate) const OLDEST_HELD: &str = "\
select created_at from tidings_outbox where state = 1 and state <> 0 order by position limit 1";

/// Writes the messages of a commit, and those that are kept into the log as well.
pub(crate) fn write(
    connection: &Connection,
    keeping: &Keeping,
    messages: &[Outgoing],
    now: i64,
) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(INSERT)?;
    let mut appender = None;
    for message in messages {
        let metadata = message.to_metadata();
        insert.execute((
            Lane::of_message(message).0,
            now,
            message.destination.to_text(),
            key_hash(message),
            &metadata,
            &*message.envelope.body,
        ))?;
        if keeping.keeps(message) {
            let position = connection.last_insert_rowid();
            let appender = match &mut appender {
                Some(appender) => appender,
                none => none.insert(log::Appender::begin(connection, position, now)?),
            };
            appender.append(position, &metadata, &message.envelope.body)?;
        }
    }
    appender.map_or(Ok(()), log::Appender::end)
}

impl Outbox for SqliteStore {
    fn lease<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, std::result::Result<Leased, StoreError>> {
        let relay = relay.to_owned();
        Box::pin(self.write(move |connection| lanes::lease(connection, &relay, lease)))
    }

    fn release<'a>(
        &'a self,
        relay: &'a str,
        lanes: Option<&'a [Lane]>,
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let (relay, lanes) = (relay.to_owned(), lanes.map(<[Lane]>::to_vec));
        Box::pin(self.write(move |connection| lanes::release(connection, &relay, lanes.as_deref())))
    }

    fn next<'a>(
        &'a self,
        lanes: &'a [Lane],
        held: &'a [Destination],
        except: &'a [i64],
        limit: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<OutboxRow>, StoreError>> {
        let lanes = lanes.to_vec();
        let held = held.iter().map(Destination::to_text).collect();
        let except = except.to_vec();
        Box::pin(self.read(move |connection| next(connection, &lanes, &held, &except, limit)))
    }

    fn confirmed<'a>(
        &'a self,
        positions: &'a [i64],
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let positions = positions.to_vec();
        Box::pin(self.write(move |connection| {
            let mut confirmed = connection.prepare_cached(CONFIRMED)?;
            runs(positions).try_for_each(|run| confirmed.execute(run).map(drop))
        }))
    }

    fn hold<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let (relay, reason, positions) = (relay.to_owned(), reason.to_owned(), positions.to_vec());
        Box::pin(
            self.write(move |connection| {
                each_of_relay(connection, HOLD, &relay, &positions, &reason)
            }),
        )
    }

    fn held<'a>(
        &'a self,
        lanes: &'a [Lane],
    ) -> BoxFuture<'a, std::result::Result<Vec<Destination>, StoreError>> {
        let lanes = lanes.to_vec();
        Box::pin(self.read(move |connection| held(connection, &lanes)))
    }

    fn next_held<'a>(
        &'a self,
        lanes: &'a [Lane],
        destination: &'a Destination,
        limit: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<OutboxRow>, StoreError>> {
        let (lanes, destination) = (lanes.to_vec(), destination.to_text());
        Box::pin(self.read(move |connection| next_held(connection, &lanes, &destination, limit)))
    }

    fn set_aside<'a>(
        &'a self,
        relay: &'a str,
        positions: &'a [i64],
        reason: &'a str,
    ) -> BoxFuture<'a, std::result::Result<(), StoreError>> {
        let (relay, reason, positions) = (relay.to_owned(), reason.to_owned(), positions.to_vec());
        Box::pin(self.write(move |connection| {
            each_of_relay(connection, SET_ASIDE, &relay, &positions, &reason)
        }))
    }

    fn list<'a>(
        &'a self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<ListedRow>, StoreError>> {
        Box::pin(self.read(move |connection| list(connection, state, after, limit)))
    }

    fn restore<'a>(
        &'a self,
        positions: &'a [i64],
    ) -> BoxFuture<'a, std::result::Result<u64, StoreError>> {
        let positions = positions.to_vec();
        let restored = self.write(move |connection| each(connection, RESTORE, &positions));
        Box::pin(async move {
            // They are ready now.
            restored.await.inspect(|_| self.0.wake_relays())
        })
    }

    fn discard<'a>(
        &'a self,
        positions: &'a [i64],
    ) -> BoxFuture<'a, std::result::Result<u64, StoreError>> {
        let positions = positions.to_vec();
        Box::pin(self.write(move |connection| each(connection, DISCARD, &positions)))
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut commits = self.0.commits.subscribe();
            loop {
                let now = *commits.borrow_and_update();
                if self.0.commits_seen.swap(now, Ordering::Relaxed) != now {
                    return;
                }
                if tokio::time::timeout(OTHER_PROCESSES_POLL, commits.changed())
                    .await
                    .is_err()
                    && self.0.others_committed().await.unwrap_or(false)
                {
                    return;
                }
            }
        })
    }

    fn stats(&self) -> BoxFuture<'_, std::result::Result<OutboxStats, StoreError>> {
        Box::pin(self.read(stats))
    }
}

/// Runs a statement on each position, and says how many rows it changed.
fn each(connection: &Connection, sql: &str, positions: &[i64]) -> Result<u64> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut count = 0;
    for position in positions {
        count += statement.execute((position,))? as u64;
    }
    Ok(count)
}

fn each_of_relay(
    connection: &Connection,
    sql: &str,
    relay: &str,
    positions: &[i64],
    reason: &str,
) -> Result<()> {
    let now = now_ms();
    let mut statement = connection.prepare_cached(sql)?;
    positions
        .iter()
        .try_for_each(|position| statement.execute((position, reason, relay, now)).map(drop))
}

/// The oldest ready rows of `lanes`: first their positions, from the index alone, then the rows.
///
/// Of each lane some positions are read, and more of those lanes that may have more of the oldest:
/// not as many of each as of all together.
pub(crate) fn next(
    connection: &Connection,
    lanes: &[Lane],
    held: &HashSet<String>,
    except: &[i64],
    count_max: usize,
) -> Result<Vec<OutboxRow>> {
    let mut except = except.to_vec();
    except.sort_unstable();
    let mut oldest = Smallest::new(count_max);
    let mut ready = connection.prepare_cached(READY)?;
    let of_each = count_max.saturating_add(except.len()) / lanes.len().max(1) + 1;
    let mut open: Vec<(Lane, i64)> = lanes.iter().map(|lane| (*lane, i64::MIN)).collect();
    while !open.is_empty() {
        let mut still_open = Vec::new();
        for (lane, after) in open {
            let mut positions = ready.query((lane.0, after, limit(of_each)))?;
            let (mut count, mut last) = (0, after);
            while let Some(row) = positions.next()? {
                (count, last) = (count + 1, row.get(0)?);
                if except.binary_search(&last).is_err() && !oldest.take(last) {
                    count = 0; // All others of this lane are younger.
                    break;
                }
            }
            if count == of_each {
                still_open.push((lane, last));
            }
        }
        open = still_open;
    }
    rows(connection, oldest, held)
}

pub(crate) fn next_held(
    connection: &Connection,
    lanes: &[Lane],
    destination: &str,
    count_max: usize,
) -> Result<Vec<OutboxRow>> {
    let mut oldest = Smallest::new(count_max);
    let mut held = connection.prepare_cached(NEXT_HELD)?;
    for lane in lanes {
        let mut positions = held.query((lane.0, destination, limit(count_max)))?;
        while let Some(row) = positions.next()? {
            if !oldest.take(row.get(0)?) {
                break;
            }
        }
    }
    rows(connection, oldest, &HashSet::new())
}

pub(crate) fn held(connection: &Connection, lanes: &[Lane]) -> Result<Vec<Destination>> {
    let mut next = connection.prepare_cached(HELD_AFTER)?;
    let mut found = HashSet::new();
    for lane in lanes {
        let mut last = String::new();
        while let Some(destination) = next
            .query_row((lane.0, &last), |row| row.get::<_, String>(0))
            .optional()?
        {
            found.insert(destination.clone());
            last = destination;
        }
    }
    Ok(found
        .iter()
        .filter_map(|text| Destination::from_text(text))
        .collect())
}

fn rows(
    connection: &Connection,
    positions: Smallest,
    held: &HashSet<String>,
) -> Result<Vec<OutboxRow>> {
    let now = now_ms();
    let mut select = connection.prepare_cached(ROWS)?;
    let mut is_held = connection.prepare_cached(IS_HELD)?;
    let positions = positions.ascending();
    let mut found = Vec::with_capacity(positions.len());
    for run in runs(positions) {
        let mut rows = select.query(run)?;
        while let Some(row) = rows.next()? {
            let destination = row.get_ref(4)?.as_str().unwrap_or_default();
            let key_hash: Option<i64> = row.get(5)?;
            let is_behind = match key_hash {
                Some(hash) if held.contains(destination) => is_held.exists((destination, hash))?,
                _ => false,
            };
            found.push(OutboxRow {
                position: row.get(0)?,
                age: between(row.get(1)?, now),
                is_behind,
                message: message_of(row),
            });
        }
    }
    Ok(found)
}

/// Positions as runs in which each number is one of them, from the first to the last: what is said of
/// a run is said of them and of no other row.
fn runs(mut positions: Vec<i64>) -> impl Iterator<Item = (i64, i64)> {
    positions.sort_unstable();
    let mut positions = positions.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = positions.next()?;
        let mut last = first;
        while let Some(next) = positions.next_if(|next| *next <= last.saturating_add(1)) {
            last = next;
        }
        Some((first, last))
    })
}

/// The message whose metadata and body are the columns 2 and 3, or why it cannot be read: one bad
/// row harms no other.
pub(crate) fn message_of(row: &Row<'_>) -> std::result::Result<Outgoing, BoxError> {
    let body = row.get_ref(3)?.as_blob()?.to_vec();
    Ok(Outgoing::from_metadata(
        row.get_ref(2)?.as_str()?,
        body.into(),
    )?)
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

    fn ascending(self) -> Vec<i64> {
        self.0.into_sorted_vec()
    }
}

fn list(
    connection: &Connection,
    state: OutboxState,
    after: Option<i64>,
    count_max: usize,
) -> Result<Vec<ListedRow>> {
    let after = after.unwrap_or(i64::MIN);
    connection
        .prepare_cached(LIST)?
        .query_map((state as i16, after, limit(count_max)), |row| {
            let destination: String = row.get(4)?;
            Ok(ListedRow {
                position: row.get(0)?,
                written: timestamp(row.get(1)?),
                // Only a row of an older version that cannot be read has none.
                destination: Destination::from_text(&destination)
                    .unwrap_or_else(|| Destination::Queue(destination.into())),
                reason: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
                message: message_of(row).ok(),
            })
        })?
        .collect()
}

fn stats(connection: &Connection) -> Result<OutboxStats> {
    let count_max = i64::try_from(OutboxStats::COUNT_MAX).unwrap_or(i64::MAX);
    let count = |sql| -> Result<u64> {
        let count: i64 = connection
            .prepare_cached(sql)?
            .query_row((count_max,), |row| row.get(0))?;
        Ok(count.unsigned_abs())
    };
    let now = now_ms();
    let age = |sql| -> Result<Duration> {
        let oldest: Option<Option<i64>> = connection
            .prepare_cached(sql)?
            .query_row((), |row| row.get(0))
            .optional()?;
        Ok(oldest
            .flatten()
            .map_or(Duration::ZERO, |created| between(created, now)))
    };
    Ok(OutboxStats {
        ready: count(COUNT_READY)?,
        oldest_ready_age: age(OLDEST_READY)?,
        held: count(COUNT_HELD)?,
        oldest_held_age: age(OLDEST_HELD)?,
        set_aside: count(COUNT_SET_ASIDE)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(positions: &[i64], expected: &[(i64, i64)]) {
        let found: Vec<_> = runs(positions.to_vec()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_run_has_no_number_that_was_not_given() {
        check(&[], &[]);
        check(&[7], &[(7, 7)]);
        check(&[3, 1, 2, 2], &[(1, 3)]);
        check(&[1, 2, 4, 5, 9], &[(1, 2), (4, 5), (9, 9)]);
        check(&[i64::MAX, i64::MAX - 1], &[(i64::MAX - 1, i64::MAX)]);
    }
}
