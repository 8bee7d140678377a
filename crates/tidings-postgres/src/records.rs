//! Records: small versioned values.
//!
//! `due` is the time that was written; `take_at` is when a worker may take the record: the same, or
//! the end of its lease.

use std::time::Duration;

use futures_util::future::join_all;
use tidings_core::{
    BoxFuture, Expected, Lease, Record, RecordChange, RecordId, RecordQuery, RecordValue, Records,
    StoreError,
};
use tokio_postgres::Row;

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
    let rows = pool
        .rows(
            concat!(
                "select ",
                columns!(),
                " from (select distinct * from unnest($1::text[], $2::text[])
                            as named (kind, id)) as named
                 join tidings_record as row using (kind, id)"
            ),
            &[&kinds, &names],
        )
        .await
        .map_err(|error| explain("read records", error))?;
    in_order(ids, &rows)
}

fn in_order(ids: &[RecordId], rows: &[Row]) -> Result<Vec<Option<Record>>, StoreError> {
    let records = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let find = |id: &RecordId| records.iter().find(|record| record.id == *id).cloned();
    Ok(ids.iter().map(find).collect())
}

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
    connection
        .execute(
            "select count(pg_advisory_xact_lock($1, name)) from unnest($2::int[]) as name",
            &[&names.records, &hashes],
        )
        .await
        .map_err(failed)?;
    lock_rows(connection, sorted).await.map_err(failed)
}

async fn lock_rows(connection: &Connection, sorted: &[&RecordId]) -> Result<Vec<Row>, Error> {
    let (kinds, names) = id_columns(sorted.iter().copied());
    connection
        .rows(
            concat!(
                "select ",
                columns!(),
                " from unnest($1::text[], $2::text[]) with ordinality as named (kind, id, number)
                 join tidings_record as row using (kind, id)
                 order by named.number for update of row"
            ),
            &[&kinds, &names],
        )
        .await
}

/// Writes records that are as expected.
///
/// # Errors
///
/// A conflict at the first that is not.
pub(crate) async fn write(
    connection: &Connection,
    changes: &[RecordChange],
) -> Result<(), StoreError> {
    let mut changes: Vec<&RecordChange> = changes.iter().collect();
    changes.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    // The first alone, so that the statement is prepared; the others are sent at once.
    let (first, others) = changes.split_at(changes.len().min(1));
    let mut outcomes = Vec::with_capacity(changes.len());
    for changes in [first, others] {
        let writing = changes.iter().map(|change| write_one(connection, change));
        outcomes.extend(join_all(writing).await);
    }
    for (change, as_expected) in changes.into_iter().zip(outcomes) {
        let RecordId { kind, id } = &change.id;
        if !as_expected.map_err(|error| explain("write a record", error))? {
            return Err(StoreError::conflict(format!(
                "the record `{id}` of kind `{kind}` is not as expected: somebody else has written \
                 it; read it and try again"
            )));
        }
    }
    Ok(())
}

/// False if the record is not as expected.
async fn write_one(connection: &Connection, change: &RecordChange) -> Result<bool, Error> {
    match &change.value {
        Some(value) => put(connection, change, value).await,
        None => delete(connection, change).await,
    }
}

/// What must be there, as two columns.
fn expected(expected: &Expected) -> (Option<i64>, Option<&str>) {
    match expected {
        Expected::Anything | Expected::Nothing => (None, None),
        Expected::Version(version) => (Some(version.cast_signed()), None),
        Expected::Lease(lease) => (None, Some(&lease.0)),
    }
}

macro_rules! insert {
    () => {
        concat!(
            "insert into tidings_record as row (kind, id, label, due, take_at, body)
             select $1, $2, $3, due, due, $5 from (select ",
            time!("$4"),
            " as due) as value"
        )
    };
}

async fn put(
    connection: &Connection,
    change: &RecordChange,
    value: &RecordValue,
) -> Result<bool, Error> {
    let sql = match change.expected {
        Expected::Nothing => concat!(insert!(), " on conflict do nothing"),
        Expected::Anything => concat!(
            insert!(),
            " on conflict (kind, id) do update
             set version = row.version + 1, label = excluded.label, due = excluded.due,
                 take_at = excluded.due, lease = null, written = excluded.written,
                 body = excluded.body"
        ),
        Expected::Version(_) | Expected::Lease(_) => concat!(
            "update tidings_record
             set version = version + 1, label = $3, due = ",
            time!("$4"),
            ", take_at = ",
            time!("$4"),
            ", lease = null, written = statement_timestamp(), body = $5
             where kind = $1 and id = $2 and ($6::bigint is null or version = $6)
               and ($7::text is null or lease = $7)"
        ),
    };
    let (version, lease) = expected(&change.expected);
    let params: Params<'_> = &[
        &change.id.kind,
        &change.id.id,
        &value.label,
        &value.due.map(jiff::Timestamp::as_microsecond),
        &&*value.body,
        &version,
        &lease,
    ];
    // An insert asks for nothing that is there.
    let params = match change.expected {
        Expected::Version(_) | Expected::Lease(_) => params,
        Expected::Nothing | Expected::Anything => &params[..5],
    };
    Ok(connection.execute(sql, params).await? > 0)
}

async fn delete(connection: &Connection, change: &RecordChange) -> Result<bool, Error> {
    let (version, lease) = expected(&change.expected);
    if change.expected == Expected::Nothing {
        let row = connection
            .row(
                "select not exists (select from tidings_record where kind = $1 and id = $2)",
                &[&change.id.kind, &change.id.id],
            )
            .await?;
        return Ok(row.try_get(0)?);
    }
    let deleted = connection
        .execute(
            "delete from tidings_record
             where kind = $1 and id = $2 and ($3::bigint is null or version = $3)
               and ($4::text is null or lease = $4)",
            &[&change.id.kind, &change.id.id, &version, &lease],
        )
        .await?;
    Ok(deleted > 0 || change.expected == Expected::Anything)
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
