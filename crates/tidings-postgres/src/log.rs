//! The log of sent events: sixteen segments, each a partition, one of which is written to.
//!
//! A segment whose events are old is emptied by `truncate`, which gives its files back whatever is in
//! them, and is written to again when its turn comes. So nobody makes or drops tables, and a commit
//! always finds a segment.
//!
//! **What is committed late.** An event's position is drawn when it is written, and others are
//! committed before it. Who writes events holds a lock on the table from before the position is drawn
//! until the transaction has ended. So the log is complete up to the last position that was drawn, once
//! those have ended that held the lock afterwards ([`Log::horizon`]); no other transaction is waited
//! for.

use std::{collections::HashSet, time::Duration};

use tidings_core::{BoxFuture, Log, LogEntry, LogPage, SEGMENTS_PER_RETENTION, StoreError};
use tokio::time::sleep;
use tokio_postgres::Row;

use crate::{
    Shared,
    connection::Pool,
    error::{Error, explain},
    outbox,
    values::{count, seconds, timestamp},
};

/// How many segments there are (`migrations/0003.sql`): as many as a retention is divided into, the
/// one that is written to, those that could not be emptied yet, and some for a retention that was
/// made shorter.
const SEGMENTS: i16 = 16;
const _: () = assert!(SEGMENTS_PER_RETENTION < 12);

/// How often it is looked whether transactions have ended: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// How long a segment that is to be emptied is waited for: those who write wait behind.
const LET_WAIT: &str = "set local lock_timeout = '100ms'";

const LAST_DRAWN: &str = "
    select coalesce(
        pg_sequence_last_value(pg_get_serial_sequence('tidings_outbox', 'position')::regclass), 0)";

/// Who may be writing events.
const WRITERS: &str = "
    select distinct virtualtransaction from pg_locks
    where locktype = 'relation' and relation = 'tidings_log'::regclass and granted
      and database = (select oid from pg_database where datname = current_database())
      and mode = 'RowExclusiveLock'";

pub(crate) const READ: &str = "
    select position, message, body, (extract(epoch from written) * 1000000)::bigint as written
    from tidings_log where position > $1 and position <= $2 order by position limit $3";

impl Log for Shared {
    fn keep(&self, retention: Duration) {
        self.keeping.keep(retention);
    }

    fn kept(&self) -> Option<Duration> {
        self.keeping.kept()
    }

    fn horizon(&self) -> BoxFuture<'_, Result<i64, StoreError>> {
        Box::pin(async {
            let horizon = horizon(&self.reserved).await;
            horizon.map_err(|error| explain("read how far the log is complete", error))
        })
    }

    fn read(
        &self,
        after: i64,
        until: i64,
        limit: usize,
    ) -> BoxFuture<'_, Result<LogPage, StoreError>> {
        Box::pin(read(&self.reserved, after, until, limit))
    }

    fn drop_older(&self, age: Duration) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let attempted = "drop old events of the log";
            let mut dropped = 0;
            for segment in 0..SEGMENTS {
                match empty_if_old(&self.reserved, segment, age).await {
                    Ok(is_dropped) => dropped += u64::from(is_dropped),
                    Err(error) => {
                        let error = explain(attempted, error);
                        // Somebody reads or writes it for long: the next time, then.
                        if !error.is_conflict() {
                            return Err(error);
                        }
                        tracing::debug!(segment, "{error}");
                    }
                }
            }
            let divided = divide(&self.reserved, age).await;
            divided.map_err(|error| explain(attempted, error))?;
            Ok(dropped)
        })
    }
}

async fn horizon(pool: &Pool) -> Result<i64, Error> {
    let last: i64 = pool.row(LAST_DRAWN, &[]).await?.try_get(0)?;
    let mut before = writers(pool).await?;
    let mut pause = LOOK_AGAIN.0;
    while !before.is_empty() {
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN.1);
        let now = writers(pool).await?;
        before.retain(|writer| now.contains(writer));
    }
    Ok(last)
}

async fn writers(pool: &Pool) -> Result<HashSet<String>, Error> {
    let rows = pool.rows(WRITERS, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn read(pool: &Pool, after: i64, until: i64, limit: usize) -> Result<LogPage, StoreError> {
    let attempted = "read the log";
    let read = async {
        let connection = pool.get().await?;
        let limit = count(limit);
        let rows = connection.rows(READ, &[&after, &until, &limit]).await?;
        // Afterwards: what was emptied before the events were read is known by now.
        let dropped = "select dropped_until from tidings_log_state";
        let dropped: i64 = connection.row(dropped, &[]).await?.try_get(0)?;
        Ok::<_, Error>((rows, dropped))
    };
    let (rows, dropped_until) = read.await.map_err(|error| explain(attempted, error))?;
    let entries = rows.iter().map(|row| entry(row, attempted));
    Ok(LogPage {
        entries: entries.collect::<Result<_, _>>()?,
        dropped_until,
    })
}

fn entry(row: &Row, attempted: &str) -> Result<LogEntry, StoreError> {
    let failed = |error| explain(attempted, error);
    let get = |column| row.try_get::<_, i64>(column).map_err(Error::from);
    Ok(LogEntry {
        position: get("position").map_err(failed)?,
        written: timestamp(get("written").map_err(failed)?)?,
        message: outbox::message(row).map_err(failed)?,
    })
}

/// The last position of a segment, if that event is older than `$1` seconds.
pub(crate) fn newest_if_old(segment: i16) -> String {
    format!(
        "select position from (
             select position, written from tidings_log_{segment} order by position desc limit 1
         ) as newest
         where written <= statement_timestamp() - make_interval(secs => $1)"
    )
}

async fn empty_if_old(pool: &Pool, segment: i16, age: Duration) -> Result<bool, Error> {
    let connection = pool.get().await?;
    let (newest_if_old, age) = (newest_if_old(segment), seconds(age));
    if connection.first(&newest_if_old, &[&age]).await?.is_none() {
        return Ok(false);
    }
    drop(connection);
    let transaction = pool.begin().await?;
    transaction.run(LET_WAIT).await?;
    let lock = format!("lock table tidings_log_{segment} in access exclusive mode");
    transaction.run(&lock).await?;
    // Somebody may have written to it meanwhile, who believed that it is its turn.
    let Some(newest) = transaction.first(&newest_if_old, &[&age]).await? else {
        return Ok(false);
    };
    let newest: i64 = newest.try_get(0)?;
    transaction
        .execute(
            "update tidings_log_state set dropped_until = greatest(dropped_until, $1)",
            &[&newest],
        )
        .await?;
    let truncate = format!("truncate table tidings_log_{segment}");
    transaction.run(&truncate).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Writes go on in the next segment, if that is empty and the events of this one span more than a
/// part of `age`.
async fn divide(pool: &Pool, age: Duration) -> Result<(), Error> {
    let connection = pool.get().await?;
    let state = "select segment from tidings_log_state
                 where begun <= statement_timestamp() - make_interval(secs => $1)";
    let part = seconds(age / SEGMENTS_PER_RETENTION);
    let Some(state) = connection.first(state, &[&part]).await? else {
        return Ok(());
    };
    let segment: i16 = state.try_get(0)?;
    let next = (segment + 1) % SEGMENTS;
    let is_empty = async |segment: i16| {
        let any = format!("select exists (select from tidings_log_{segment})");
        let row = connection.row(&any, &[]).await?;
        Ok::<bool, Error>(!row.try_get::<_, bool>(0)?)
    };
    let to = match is_empty(segment).await? {
        true => segment, // It begins with its first event.
        false if is_empty(next).await? => next,
        false => return Ok(()),
    };
    // Unless another instance was faster.
    connection
        .execute(
            "update tidings_log_state set segment = $2, begun = clock_timestamp()
             where segment = $1 and begun <= statement_timestamp() - make_interval(secs => $3)",
            &[&segment, &to, &part],
        )
        .await
        .map(drop)
}
