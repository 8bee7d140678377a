//! How a commit writes its records: one statement for all that are written in the same way.
//!
//! A saga's step writes one record, and a commit holds the steps of many sagas. All of them are locked
//! before they are written ([`lock`](super::lock)), so none of them changes meanwhile, and the order in
//! which they are written does not matter.

use futures_util::future::join_all;
use tidings_core::{Expected, RecordChange, StoreError};
use tokio_postgres::{Row, types::ToSql};

use super::time;
use crate::{
    connection::Connection,
    error::{Error, explain},
};

/// The ways in which records are written.
const WAYS: [Way; 5] = [
    Way::Insert,
    Way::Overwrite,
    Way::Update,
    Way::Delete,
    Way::Miss,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is not there.
    Insert,
    /// It may be there.
    Overwrite,
    /// It is there with a version or under a lease.
    Update,
    /// It is gone afterwards.
    Delete,
    /// It must not be there, and is not afterwards.
    Miss,
}

impl Way {
    fn of(change: &RecordChange) -> Self {
        match (&change.value, &change.expected) {
            (Some(_), Expected::Nothing) => Self::Insert,
            (Some(_), Expected::Anything) => Self::Overwrite,
            (Some(_), Expected::Version(_) | Expected::Lease(_)) => Self::Update,
            (None, Expected::Nothing) => Self::Miss,
            (None, _) => Self::Delete,
        }
    }

    /// Each gives the names of those that were as expected.
    fn sql(self) -> &'static str {
        match self {
            Self::Insert => INSERT,
            Self::Overwrite => OVERWRITE,
            Self::Update => UPDATE,
            Self::Delete => DELETE,
            Self::Miss => MISS,
        }
    }
}

macro_rules! insert {
    ($on_conflict:literal) => {
        concat!(
            "insert into tidings_record as row (kind, id, label, due, take_at, body)
             select kind, id, label, due, due, body from (
                 select kind, id, label, ",
            time!("due"),
            " as due, body
                 from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bytea[])
                     as value (kind, id, label, due, body)
             ) as value on conflict (kind, id) do ",
            $on_conflict,
            " returning row.kind, row.id"
        )
    };
}

const INSERT: &str = insert!("nothing");

const OVERWRITE: &str = insert!(
    "update set version = row.version + 1, label = excluded.label, due = excluded.due,
         take_at = excluded.due, lease = null, written = excluded.written, body = excluded.body"
);

/// The rows of the records that are named and as expected.
///
/// Each is looked up for itself, by its name: a plan for all values that was made while there were few
/// records would read all of them where it joins. They are locked, so where they are stays true.
macro_rules! found {
    ($named:literal) => {
        concat!(
            "(select named.*, own.place from ",
            $named,
            ", lateral (
                 select own.ctid as place from tidings_record as own
                 where own.kind = named.kind and own.id = named.id
                   and (named.version is null or own.version = named.version)
                   and (named.lease is null or own.lease = named.lease)
                 limit 1
             ) as own) as found"
        )
    };
}

pub(crate) const UPDATE: &str = concat!(
    "update tidings_record as row
     set version = row.version + 1, label = found.label, due = ",
    time!("found.due"),
    ", take_at = ",
    time!("found.due"),
    ", lease = null, written = statement_timestamp(), body = found.body
     from ",
    found!(
        "unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[],
             $7::bytea[]) as named (kind, id, version, lease, label, due, body)"
    ),
    " where row.ctid = found.place returning row.kind, row.id"
);

pub(crate) const DELETE: &str = concat!(
    "delete from tidings_record as row using ",
    found!(
        "unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
             as named (kind, id, version, lease)"
    ),
    " where row.ctid = found.place returning row.kind, row.id"
);

const MISS: &str = "
    select kind, id from unnest($1::text[], $2::text[]) as named (kind, id)
    where (
        select true from tidings_record as own
        where own.kind = named.kind and own.id = named.id limit 1
    ) is null";

/// Writes records that are as expected. They are locked.
///
/// # Errors
///
/// A conflict that names the first that is not.
pub(crate) async fn write(
    connection: &Connection,
    changes: &[RecordChange],
) -> Result<(), StoreError> {
    let mut changes: Vec<&RecordChange> = changes.iter().collect();
    changes.sort_by(|one, other| one.id.cmp(&other.id));
    while !changes.is_empty() {
        changes = write_once(connection, changes).await?;
    }
    Ok(())
}

/// Writes each record once. Gives the changes of those that are named again, which come after.
async fn write_once<'a>(
    connection: &Connection,
    changes: Vec<&'a RecordChange>,
) -> Result<Vec<&'a RecordChange>, StoreError> {
    let (mut now, mut again): (Vec<&RecordChange>, Vec<&RecordChange>) = (Vec::new(), Vec::new());
    for change in changes {
        let is_again = now.last().is_some_and(|last| last.id == change.id);
        match is_again {
            true => again.push(change),
            false => now.push(change),
        }
    }
    let failed = |error| explain("write records", error);
    let mut statements = Vec::new();
    for way in WAYS {
        let of_way = now.iter().copied().filter(|change| Way::of(change) == way);
        let of_way: Vec<&RecordChange> = of_way.collect();
        if !of_way.is_empty() {
            // So that all of them are sent at once.
            connection.prepare(way.sql()).await.map_err(failed)?;
            statements.push(write_in(connection, way, of_way));
        }
    }
    let unexpected = join_all(statements).await.into_iter().collect();
    let unexpected: Vec<Option<&RecordChange>> = Result::map_err(unexpected, failed)?;
    match unexpected.into_iter().flatten().min_by_key(|it| &it.id) {
        None => Ok(again),
        Some(RecordChange { id, .. }) => Err(StoreError::conflict(format!(
            "the record `{}` of kind `{}` is not as expected: somebody else has written it; read it \
             and try again",
            id.id, id.kind
        ))),
    }
}

/// Writes records in the same way. Gives the first that is not as expected.
async fn write_in<'a>(
    connection: &Connection,
    way: Way,
    changes: Vec<&'a RecordChange>,
) -> Result<Option<&'a RecordChange>, Error> {
    let columns = Columns::of(&changes);
    let rows = connection.rows(way.sql(), &columns.params(way)).await?;
    if rows.len() == changes.len() {
        return Ok(None);
    }
    let name = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let expected: Vec<(String, String)> = rows.iter().map(name).collect::<Result<_, Error>>()?;
    let is_expected = |change: &RecordChange| {
        let is_named =
            |(kind, id): &(String, String)| (&**kind, &**id) == (&*change.id.kind, &*change.id.id);
        change.expected == Expected::Anything || expected.iter().any(is_named)
    };
    Ok(changes.into_iter().find(|change| !is_expected(change)))
}

/// Changes, column by column.
#[derive(Default)]
struct Columns<'a> {
    kinds: Vec<&'a str>,
    ids: Vec<&'a str>,
    versions: Vec<Option<i64>>,
    leases: Vec<Option<&'a str>>,
    labels: Vec<&'a str>,
    due: Vec<Option<i64>>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(changes: &[&'a RecordChange]) -> Self {
        let mut columns = Self::default();
        for change in changes {
            columns.kinds.push(&change.id.kind);
            columns.ids.push(&change.id.id);
            let (version, lease) = match &change.expected {
                Expected::Anything | Expected::Nothing => (None, None),
                Expected::Version(version) => (Some(version.cast_signed()), None),
                Expected::Lease(lease) => (None, Some(&*lease.0)),
            };
            columns.versions.push(version);
            columns.leases.push(lease);
            if let Some(value) = &change.value {
                columns.labels.push(&value.label);
                let due = value.due.map(jiff::Timestamp::as_microsecond);
                columns.due.push(due);
                columns.bodies.push(&value.body);
            }
        }
        columns
    }

    fn params(&self, way: Way) -> Vec<&(dyn ToSql + Sync)> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&self.kinds, &self.ids];
        if matches!(way, Way::Update | Way::Delete) {
            params.extend([&self.versions as &(dyn ToSql + Sync), &self.leases]);
        }
        if matches!(way, Way::Insert | Way::Overwrite | Way::Update) {
            params.extend([&self.labels as &(dyn ToSql + Sync), &self.due, &self.bodies]);
        }
        params
    }
}
