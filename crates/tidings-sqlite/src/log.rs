//! The log of sent events: segments, each a table of its own, dropped as a whole.
//!
//! SQLite gives the pages of a table back one by one when it is dropped, so what that costs grows
//! with the table. Therefore a segment ends at [`SEGMENT_BYTES_MAX`]: dropping one holds up other
//! writes for about a tenth of a second, and then they have their turn, however much is dropped in all.
//!
//! Positions are those of the outbox. One transaction writes at a time, so whatever is committed
//! later has greater ones, and a reader can miss nothing.

use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Result};
use tidings_core::{BoxFuture, Log, LogEntry, LogPage, SEGMENTS_PER_RETENTION, StoreError};
use tokio::time::{Instant, sleep};

use crate::{
    SqliteStore,
    clock::{earlier, limit, now_ms, timestamp},
    outbox::message_of,
};

/// How many bytes of events a segment holds before the next one begins.
const SEGMENT_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// How much longer than dropping a segment took is left to others before the next one.
const PAUSE: u32 = 3;

/// A commit's way into the log.
pub(crate) struct Appender<'a> {
    connection: &'a Connection,
    insert: CachedStatement<'a>,
    segment: i64,
    now: i64,
    bytes: usize,
}

impl<'a> Appender<'a> {
    /// For a commit whose first event has `position`.
    pub(crate) fn begin(connection: &'a Connection, position: i64, now: i64) -> Result<Self> {
        let last: Option<(i64, i64)> = connection
            .prepare_cached(
                "select segment, bytes from tidings_log_segment order by segment desc limit 1",
            )?
            .query_row((), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let segment = match last {
            Some((segment, bytes)) if bytes < SEGMENT_BYTES_MAX => segment,
            _ => begin_segment(connection, position, now)?,
        };
        let insert = format!(
            "insert into tidings_log_{segment} (position, written_at, message, body) \
             values (?1, ?2, ?3, ?4)"
        );
        Ok(Self {
            connection,
            insert: connection.prepare_cached(&insert)?,
            segment,
            now,
            bytes: 0,
        })
    }

    pub(crate) fn append(&mut self, position: i64, metadata: &str, body: &[u8]) -> Result<()> {
        self.bytes += metadata.len() + body.len();
        self.insert
            .execute((position, self.now, metadata, body))
            .map(drop)
    }

    /// Counts what was written.
    pub(crate) fn end(self) -> Result<()> {
        self.connection
            .prepare_cached("update tidings_log_segment set bytes = bytes + ?2 where segment = ?1")?
            .execute((self.segment, limit(self.bytes)))
            .map(drop)
    }
}

/// Makes the table of a new segment.
fn begin_segment(connection: &Connection, first_position: i64, now: i64) -> Result<i64> {
    connection.execute(
        "insert into tidings_log_segment (first_position, begun_at, bytes) values (?1, ?2, 0)",
        (first_position, now),
    )?;
    let segment = connection.last_insert_rowid();
    connection.execute_batch(&format!(
        "create table tidings_log_{segment} (
             position integer primary key,
             written_at integer not null,
             message text not null,
             body blob not null
         ) strict"
    ))?;
    Ok(segment)
}

impl Log for SqliteStore {
    fn keep(&self, retention: Duration) {
        self.0.keeping.keep(retention);
    }

    fn kept(&self) -> Option<Duration> {
        self.0.keeping.kept()
    }

    fn horizon(&self) -> BoxFuture<'_, std::result::Result<i64, StoreError>> {
        // The greatest position that was ever given.
        Box::pin(self.read(|connection| {
            connection
                .prepare_cached("select seq from sqlite_sequence where name = 'tidings_outbox'")?
                .query_row((), |row| row.get(0))
                .optional()
                .map(|position| position.unwrap_or(0))
        }))
    }

    fn read(
        &self,
        after: i64,
        until: i64,
        limit: usize,
    ) -> BoxFuture<'_, std::result::Result<LogPage, StoreError>> {
        Box::pin(SqliteStore::read(self, move |connection| {
            read(connection, after, until, limit)
        }))
    }

    fn drop_older(&self, age: Duration) -> BoxFuture<'_, std::result::Result<u64, StoreError>> {
        Box::pin(async move {
            let mut dropped = 0;
            loop {
                let began = Instant::now();
                if !self.write(move |it| drop_oldest(it, age)).await? {
                    break;
                }
                dropped += 1;
                sleep(began.elapsed() * PAUSE).await;
            }
            self.write(move |it| divide(it, age)).await?;
            Ok(dropped)
        })
    }
}

/// The segments, oldest first, each with its first position.
fn segments(connection: &Connection) -> Result<Vec<(i64, i64)>> {
    connection
        .prepare_cached("select segment, first_position from tidings_log_segment order by segment")?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// A read is one transaction: no segment disappears meanwhile.
fn read(connection: &Connection, after: i64, until: i64, count_max: usize) -> Result<LogPage> {
    let mut page = LogPage {
        entries: Vec::new(),
        dropped_until: connection
            .prepare_cached("select dropped_until from tidings_log_state")?
            .query_row((), |row| row.get(0))?,
    };
    let segments = segments(connection)?;
    for (place, (segment, _)) in segments.iter().enumerate() {
        let next = segments.get(place + 1);
        let room = count_max - page.entries.len();
        if room == 0 {
            break;
        }
        if next.is_some_and(|(_, first)| *first <= after.saturating_add(1)) {
            continue;
        }
        let mut select = connection.prepare_cached(&format!(
            "select position, written_at, message, body from tidings_log_{segment} \
             where position > ?1 and position <= ?2 order by position limit ?3"
        ))?;
        let entries = select.query_map((after, until, limit(room)), |row| {
            Ok(LogEntry {
                position: row.get(0)?,
                written: timestamp(row.get(1)?),
                message: message_of(row),
            })
        })?;
        for entry in entries {
            page.entries.push(entry?);
        }
    }
    Ok(page)
}

/// The last position of a segment and when it was written.
fn newest(connection: &Connection, segment: i64) -> Result<Option<(i64, i64)>> {
    connection
        .query_row(
            &format!(
                "select position, written_at from tidings_log_{segment} \
                 order by position desc limit 1"
            ),
            (),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
}

/// Drops the oldest segment if its last event is older than `age`. Returns whether it did.
fn drop_oldest(connection: &Connection, age: Duration) -> Result<bool> {
    let Some((segment, first)) = segments(connection)?.first().copied() else {
        return Ok(false);
    };
    let (last, written) = newest(connection, segment)?.unwrap_or((first - 1, i64::MIN));
    if written > earlier(now_ms(), age) {
        return Ok(false);
    }
    connection.execute_batch(&format!("drop table tidings_log_{segment}"))?;
    connection.execute(
        "delete from tidings_log_segment where segment = ?1",
        (segment,),
    )?;
    connection.execute(
        "update tidings_log_state set dropped_until = max(dropped_until, ?1)",
        (last,),
    )?;
    Ok(true)
}

/// Begins a new segment if the events of the last one span more than a part of `age`.
fn divide(connection: &Connection, age: Duration) -> Result<()> {
    let last: Option<(i64, i64)> = connection
        .query_row(
            "select segment, begun_at from tidings_log_segment order by segment desc limit 1",
            (),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let now = now_ms();
    if let Some((segment, begun)) = last
        && begun <= earlier(now, age / SEGMENTS_PER_RETENTION)
        && let Some((position, _)) = newest(connection, segment)?
    {
        begin_segment(connection, position + 1, now)?;
    }
    Ok(())
}
