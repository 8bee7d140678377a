//! Records: what the toolkit keeps between messages.
//!
//! Their times come from the application and are given back as they were, so they are kept in
//! microseconds, which is what other databases keep.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Result, Row};
use tidings_core::{
    BoxFuture, Expected, Lease, Record, RecordChange, RecordId, RecordQuery, RecordValue, Records,
    StoreError,
};

use crate::{
    SqliteStore,
    clock::{limit, now_ms, timestamp_us},
    commit::LastStatement,
};

const FIND: &str = "\
select kind, id, version, label, due_us, written_us, body from tidings_record \
where kind = ?1 and id = ?2";

const PUT: &str = "\
insert into tidings_record (kind, id, version, label, due_us, take_us, written_us, body) \
values (?1, ?2, 1, ?3, ?4, ?4, ?5, ?6) \
on conflict (kind, id) do update set version = version + 1, label = excluded.label, \
    due_us = excluded.due_us, take_us = excluded.take_us, lease = null, \
    written_us = excluded.written_us, body = excluded.body";

/// What is expected of a record is a part of the statement that writes it, which finds it only once.
const PUT_NEW: &str = "\
insert into tidings_record (kind, id, version, label, due_us, take_us, written_us, body) \
values (?1, ?2, 1, ?3, ?4, ?4, ?5, ?6) on conflict do nothing";

pub(crate) const PUT_OVER_VERSION: &str = "\
update tidings_record set version = version + 1, label = ?3, due_us = ?4, take_us = ?4, \
    lease = null, written_us = ?5, body = ?6 \
where kind = ?1 and id = ?2 and version = ?7";

pub(crate) const PUT_OVER_LEASE: &str = "\
update tidings_record set version = version + 1, label = ?3, due_us = ?4, take_us = ?4, \
    lease = null, written_us = ?5, body = ?6 \
where kind = ?1 and id = ?2 and lease = ?7";

const DELETE: &str = "delete from tidings_record where kind = ?1 and id = ?2";

const AS_EXPECTED: &str = "select version, lease from tidings_record where kind = ?1 and id = ?2";

pub(crate) const DUE: &str = "\
select id from tidings_record where kind = ?1 and take_us <= ?2 order by take_us limit ?3";

const TAKE: &str = "\
update tidings_record set take_us = ?3, lease = ?4 || '.' || lower(hex(randomblob(16))) \
where kind = ?1 and id = ?2 \
returning kind, id, version, label, due_us, written_us, body, lease";

pub(crate) const NEXT_DUE: &str = "\
select take_us from tidings_record where kind = ?1 and take_us is not null \
order by take_us limit 1";

pub(crate) const LIST: &str = "\
select kind, id, version, label, due_us, written_us, body from tidings_record \
where kind = ?1 and written_us <= ?2 and (written_us, id) > (?3, ?4) \
order by written_us, id limit ?5";

/// The index is named, since SQLite would rather look at all labels for the sake of the time.
pub(crate) const LIST_LABEL: &str = "\
select kind, id, version, label, due_us, written_us, body \
from tidings_record indexed by tidings_record_label \
where kind = ?1 and label = ?6 and written_us <= ?2 and (written_us, id) > (?3, ?4) \
order by written_us, id limit ?5";

/// Writes changes, up to the first whose record is not as expected, which it returns; then the caller
/// rolls back.
pub(crate) fn write<'a>(
    connection: &Connection,
    changes: &'a [RecordChange],
    now: i64,
) -> Result<Option<&'a RecordChange>> {
    let mut statement = LastStatement::of(connection);
    for change in changes {
        let is_written = match &change.value {
            Some(value) => put(&mut statement, change, value, microseconds(now))?,
            None => delete(connection, change)?,
        };
        if !is_written {
            return Ok(Some(change));
        }
    }
    Ok(None)
}

/// False if the record is not as expected.
fn put(
    statement: &mut LastStatement<'_>,
    change: &RecordChange,
    value: &RecordValue,
    now_us: i64,
) -> Result<bool> {
    let (kind, id) = (&*change.id.kind, &*change.id.id);
    let (label, body) = (&*value.label, &*value.body);
    let due = value.due.map(|due| due.as_microsecond());
    let count = match &change.expected {
        Expected::Anything => statement
            .get(PUT)?
            .execute((kind, id, label, due, now_us, body))?,
        Expected::Nothing => statement
            .get(PUT_NEW)?
            .execute((kind, id, label, due, now_us, body))?,
        Expected::Version(version) => {
            let version = version.cast_signed();
            let values = (kind, id, label, due, now_us, body, version);
            statement.get(PUT_OVER_VERSION)?.execute(values)?
        }
        Expected::Lease(lease) => {
            let values = (kind, id, label, due, now_us, body, &*lease.0);
            statement.get(PUT_OVER_LEASE)?.execute(values)?
        }
    };
    Ok(count > 0)
}

/// False if the record is not as expected.
fn delete(connection: &Connection, change: &RecordChange) -> Result<bool> {
    let name = (&*change.id.kind, &*change.id.id);
    let there: Option<(i64, Option<String>)> = connection
        .prepare_cached(AS_EXPECTED)?
        .query_row(name, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let is_met = match (&change.expected, &there) {
        (Expected::Anything, _) | (Expected::Nothing, None) => true,
        (Expected::Version(version), Some((there, _))) => there.cast_unsigned() == *version,
        (Expected::Lease(lease), Some((_, held))) => held.as_deref() == Some(&*lease.0),
        _ => false,
    };
    if is_met && there.is_some() {
        connection.prepare_cached(DELETE)?.execute(name)?;
    }
    Ok(is_met)
}

/// The records with these names, in their order.
pub(crate) fn read(connection: &Connection, ids: &[RecordId]) -> Result<Vec<Option<Record>>> {
    let mut find = connection.prepare_cached(FIND)?;
    ids.iter()
        .map(|id| find.query_row((&*id.kind, &*id.id), record).optional())
        .collect()
}

/// From one kind to the next in the index, without a look at the records between.
pub(crate) const KINDS: &str = "\
with recursive kinds (kind) as (
    select min(kind) from tidings_record
    union all
    select (select min(kind) from tidings_record as next where next.kind > kinds.kind)
    from kinds where kinds.kind is not null
)
select kind from kinds where kind is not null limit ?1";

impl Records for SqliteStore {
    fn read<'a>(
        &'a self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, std::result::Result<Vec<Option<Record>>, StoreError>> {
        let ids = ids.to_vec();
        Box::pin(Self::read(self, move |connection| read(connection, &ids)))
    }

    fn take_due<'a>(
        &'a self,
        kind: &'a str,
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<(Lease, Record)>, StoreError>> {
        let (kind, worker) = (kind.to_owned(), worker.to_owned());
        Box::pin(self.write(move |connection| take_due(connection, &kind, &worker, lease, limit)))
    }

    fn next_due<'a>(
        &'a self,
        kind: &'a str,
    ) -> BoxFuture<'a, std::result::Result<Option<Duration>, StoreError>> {
        let kind = kind.to_owned();
        Box::pin(Self::read(self, move |connection| {
            let due: Option<i64> = connection
                .prepare_cached(NEXT_DUE)?
                .query_row((kind,), |row| row.get(0))
                .optional()?;
            let now = microseconds(now_ms());
            Ok(due.map(|due| {
                Duration::from_micros(u64::try_from(due.saturating_sub(now)).unwrap_or(0))
            }))
        }))
    }

    fn kinds(
        &self,
        count_max: usize,
    ) -> BoxFuture<'_, std::result::Result<Vec<Box<str>>, StoreError>> {
        Box::pin(Self::read(self, move |connection| {
            connection
                .prepare_cached(KINDS)?
                .query_map((limit(count_max),), |row| row.get(0))?
                .collect()
        }))
    }

    fn list<'a>(
        &'a self,
        query: &'a RecordQuery,
    ) -> BoxFuture<'a, std::result::Result<Vec<Record>, StoreError>> {
        let query = query.clone();
        Box::pin(Self::read(self, move |connection| list(connection, &query)))
    }
}

fn take_due(
    connection: &Connection,
    kind: &str,
    worker: &str,
    lease: Duration,
    count_max: usize,
) -> Result<Vec<(Lease, Record)>> {
    let now = microseconds(now_ms());
    let until = now.saturating_add(i64::try_from(lease.as_micros()).unwrap_or(i64::MAX));
    let due: Vec<String> = connection
        .prepare_cached(DUE)?
        .query_map((kind, now, limit(count_max)), |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut take = connection.prepare_cached(TAKE)?;
    due.iter()
        .map(|id| {
            take.query_row((kind, id, until, worker), |row| {
                Ok((Lease(row.get(7)?), record(row)?))
            })
        })
        .collect()
}

fn list(connection: &Connection, query: &RecordQuery) -> Result<Vec<Record>> {
    let written_until = query.older_than.map_or(i64::MAX, |age| {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        microseconds(now_ms()).saturating_sub(age)
    });
    let (after, after_id) = match &query.after {
        Some((written, id)) => (written.as_microsecond(), &**id),
        None => (i64::MIN, ""),
    };
    let count_max = limit(query.limit);
    let (kind, label) = (&*query.kind, query.label.as_deref());
    match label {
        Some(label) => connection
            .prepare_cached(LIST_LABEL)?
            .query_map(
                (kind, written_until, after, after_id, count_max, label),
                record,
            )?
            .collect(),
        None => connection
            .prepare_cached(LIST)?
            .query_map((kind, written_until, after, after_id, count_max), record)?
            .collect(),
    }
}

fn record(row: &Row<'_>) -> Result<Record> {
    let due: Option<i64> = row.get(4)?;
    let body: Vec<u8> = row.get(6)?;
    Ok(Record {
        id: RecordId {
            kind: row.get(0)?,
            id: row.get(1)?,
        },
        version: row.get::<_, i64>(2)?.cast_unsigned(),
        value: RecordValue {
            label: row.get(3)?,
            due: due.map(timestamp_us),
            body: body.into(),
        },
        written: timestamp_us(row.get(5)?),
    })
}

const fn microseconds(ms: i64) -> i64 {
    ms.saturating_mul(1000)
}
