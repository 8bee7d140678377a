//! Records: small versioned values.
//!
//! `due` is the time that was written; `take_at` is when a worker may take the record: the same, or
//! the end of its lease.

mod write;

use std::{collections::HashMap, time::Duration};

use futures_util::future::join;
use tidings_core::{
    BoxFuture, Lease, Record, RecordId, RecordQuery, RecordValue, Records, StoreError,
};
use tokio_postgres::Row;

pub(crate) use write::write;
#[cfg(test)]
pub(crate) use write::{DELETE, UPDATE};

use crate::{
    Shared,
    connection::{Connection, Params, Pool},
    error::{Error, explain},
    locks::{LockNames, hash_of_pair},
    values::{ahead, count, seconds, timestamp},
};

/// A worker's statements run on the connections that are kept for them.
impl Records for Shared {
    fn read<'a>(
        &'a self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(read(&self.pool, ids))
    }

    fn take_due<'a>(
        &'a self,
        kind: &'a str,
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Lease, Record)>, StoreError>> {
        Box::pin(take_due(&self.reserved, kind, worker, lease, limit))
    }

    fn next_due<'a>(
        &'a self,
        kind: &'a str,
    ) -> BoxFuture<'a, Result<Option<Duration>, StoreError>> {
        Box::pin(next_due(&self.reserved, kind))
    }

    fn kinds(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>> {
        Box::pin(async move {
            names(&self.pool, KINDS, limit)
                .await
                .map_err(|error| explain("list the kinds of records", error))
        })
    }

    fn list<'a>(
        &'a self,
        query: &'a RecordQuery,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(list(&self.pool, query))
    }
}

/// From one kind to the next in the index, without a look at the records between.
pub(crate) const KINDS: &str = "\
with recursive kinds (kind) as (
    select min(kind) from tidings_record
    union all
    select (select min(next.kind) from tidings_record as next where next.kind > kinds.kind)
    from kinds where kinds.kind is not null
)
select kind from kinds where kind is not null limit $1";

/// The names that a statement gives, at most `limit`.
pub(crate) async fn names(pool: &Pool, sql: &str, limit: usize) -> Result<Vec<Box<str>>, Error> {
    let rows = pool.rows(sql, &[&count(limit)]).await?;
    let name = |row: &Row| Ok(row.try_get::<_, String>(0)?.into());
    rows.iter().map(name).collect()
}

/// A time that is bound in microseconds.
macro_rules! time {
    ($parameter:literal) => {
        concat!(
            "('epoch'::timestamptz + ",
            $parameter,
            "::bigint * interval '1 microsecond')"
        )
    };
}
use time;

/// The columns of a record in the order of [`record`]; times in microseconds.
macro_rules! columns {
    () => {
        "row.kind, row.id, row.version, row.label, \
         (extract(epoch from row.due) * 1000000)::bigint as due, row.body, \
         (extract(epoch from row.written) * 1000000)::bigint as written"
    };
}

fn record(row: &Row) -> Result<Record, StoreError> {
    let failed = |error| explain("read a record", error);
    let due: Option<i64> = row.try_get("due").map_err(failed)?;
    let due = due.map(timestamp).transpose()?;
    let written = timestamp(row.try_get("written").map_err(failed)?)?;
    let read = || {
        Ok(Record {
            id: RecordId {
                kind: row.try_get::<_, String>("kind")?.into(),
                id: row.try_get::<_, String>("id")?.into(),
            },
            version: row.try_get::<_, i64>("version")?.cast_unsigned(),
            value: RecordValue {
                label: row.try_get::<_, String>("label")?.into(),
                due,
                body: row.try_get::<_, Vec<u8>>("body")?.into(),
            },
            written,
        })
    };
    read().map_err(failed)
}

fn id_columns<'a>(ids: impl IntoIterator<Item = &'a RecordId>) -> (Vec<&'a str>, Vec<&'a str>) {
    ids.into_iter().map(|id| (&*id.kind, &*id.id)).unzip()
}

async fn read(pool: &Pool, ids: &[RecordId]) -> Result<Vec<Option<Record>>, StoreError> {
    let (kinds, names) = id_columns(ids);
    let rows = pool.rows(READ, &[&kinds, &names]).await;
    in_order(ids, &rows.map_err(|error| explain("read records", error))?)
}

fn in_order(ids: &[RecordId], rows: &[Row]) -> Result<Vec<Option<Record>>, StoreError> {
    let mut records = HashMap::with_capacity(rows.len());
    for row in rows {
        let record = record(row)?;
        records.insert(record.id.clone(), record);
    }
    Ok(ids.iter().map(|id| records.get(id).cloned()).collect())
}

/// Each is looked up for itself, by its name: a plan for all values that was made while there were few
/// records would read all of them where it joins.
pub(crate) const READ: &str = concat!(
    "select ",
    columns!(),
    " from (select distinct * from unnest($1::text[], $2::text[]) as named (kind, id)) as named,
         lateral (
             select * from tidings_record as own
             where own.kind = named.kind and own.id = named.id limit 1
         ) as row"
);

/// As [`READ`], one after the other, in the order in which they are named.
pub(crate) const LOCK: &str = concat!(
    "select ",
    columns!(),
    " from (
         select * from unnest($1::text[], $2::text[]) with ordinality as named (kind, id, number)
         order by number
     ) as named, lateral (
         select * from tidings_record as own
         where own.kind = named.kind and own.id = named.id for update
     ) as row"
);

/// The records with these names, locked, also those that are not there.
pub(crate) async fn read_locked(
    connection: &Connection,
    names: LockNames,
    ids: &[RecordId],
) -> Result<Vec<Option<Record>>, StoreError> {
    let mut sorted: Vec<&RecordId> = ids.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let rows = lock(connection, names, &sorted).await?;
    in_order(ids, &rows)
}

/// Locks records, each once and in their order, and returns those that are there.
///
/// One that is not there has no row to lock: its name is locked, and it is read again, since it may
/// have come in between.
pub(crate) async fn lock(
    connection: &Connection,
    names: LockNames,
    sorted: &[&RecordId],
) -> Result<Vec<Row>, StoreError> {
    if sorted.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| explain("lock records", error);
    let rows = lock_rows(connection, sorted).await.map_err(failed)?;
    if rows.len() == sorted.len() {
        return Ok(rows);
    }
    let there = rows
        .iter()
        .map(|row| Ok((row.try_get("kind")?, row.try_get("id")?)))
        .collect::<Result<Vec<(&str, &str)>, Error>>()
        .map_err(failed)?;
    let missing = sorted
        .iter()
        .filter(|id| !there.contains(&(&*id.kind, &*id.id)));
    let mut hashes: Vec<i32> = missing.map(|id| hash_of_pair(&id.kind, &id.id)).collect();
    hashes.sort_unstable();
    hashes.dedup();
    // Both are sent at once; the second sees what was committed before the first was done.
    let prepared = connection.prepare(LOCK_NAMES).await;
    prepared.map_err(failed)?;
    let params: Params<'_> = &[&names.records, &hashes];
    let locked = connection.execute(LOCK_NAMES, params);
    let (locked, rows) = join(locked, lock_rows(connection, sorted)).await;
    locked.map_err(failed)?;
    rows.map_err(failed)
}

const LOCK_NAMES: &str =
    "select count(pg_advisory_xact_lock($1, name)) from unnest($2::int[]) as name";

async fn lock_rows(connection: &Connection, sorted: &[&RecordId]) -> Result<Vec<Row>, Error> {
    let (kinds, names) = id_columns(sorted.iter().copied());
    connection.rows(LOCK, &[&kinds, &names]).await
}

pub(crate) const TAKE_DUE: &str = concat!(
    "with taken as materialized (
         select kind, id, take_at from tidings_record
         where kind = $1 and take_at <= statement_timestamp()
         order by take_at limit $2 for update skip locked
     )
     update tidings_record as row
     set take_at = statement_timestamp() + make_interval(secs => $3),
         lease = $4 || ' ' || gen_random_uuid()
     from taken where row.kind = taken.kind and row.id = taken.id
     returning ",
    columns!(),
    ", row.lease, (extract(epoch from taken.take_at) * 1000000)::bigint as was_due"
);

async fn take_due(
    pool: &Pool,
    kind: &str,
    worker: &str,
    lease: Duration,
    limit: usize,
) -> Result<Vec<(Lease, Record)>, StoreError> {
    fn failed(error: impl Into<Error>) -> StoreError {
        explain("take records that are due", error)
    }
    let rows = pool
        .rows(TAKE_DUE, &[&kind, &count(limit), &seconds(lease), &worker])
        .await
        .map_err(failed)?;
    let taken = rows.iter().map(|row| {
        let was_due: i64 = row.try_get("was_due").map_err(failed)?;
        let lease: String = row.try_get("lease").map_err(failed)?;
        Ok((was_due, (Lease(lease.into()), record(row)?)))
    });
    let mut taken = taken.collect::<Result<Vec<_>, StoreError>>()?;
    taken.sort_by_key(|(was_due, _)| *was_due);
    Ok(taken.into_iter().map(|(_, taken)| taken).collect())
}

async fn next_due(pool: &Pool, kind: &str) -> Result<Option<Duration>, StoreError> {
    let seconds: Option<f64> = pool
        .row(
            "select extract(epoch from min(take_at) - statement_timestamp())::float8
             from tidings_record where kind = $1 and take_at is not null",
            &[&kind],
        )
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(|error| explain("look when the next record is due", error))?;
    Ok(seconds.map(ahead))
}

/// With a label and without one: each has an index in the order of the list.
macro_rules! list {
    ($with_label:literal) => {
        concat!(
            "select ",
            columns!(),
            " from tidings_record as row where row.kind = $1 and ",
            $with_label,
            " and ($3::float8 is null
                   or row.written <= statement_timestamp() - make_interval(secs => $3))
              and (row.written, row.id) > (coalesce(",
            time!("$4"),
            ", '-infinity'), coalesce($5, ''))
             order by row.written, row.id limit $6"
        )
    };
}

async fn list(pool: &Pool, query: &RecordQuery) -> Result<Vec<Record>, StoreError> {
    let sql = match query.label {
        Some(_) => list!("row.label = $2"),
        None => list!("$2::text is null"),
    };
    let after = query.after.as_ref();
    let rows = pool
        .rows(
            sql,
            &[
                &query.kind,
                &query.label,
                &query.older_than.map(seconds),
                &after.map(|(written, _)| written.as_microsecond()),
                &after.map(|(_, id)| id),
                &count(query.limit),
            ],
        )
        .await
        .map_err(|error| explain("list records", error))?;
    rows.iter().map(record).collect()
}
