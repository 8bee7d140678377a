//! Records: small versioned values by kind and id, for what the toolkit itself keeps between
//! messages: schedules, pauses, partition counts, saga journals, pending replies.
//!
//! They are written by [`Commit`](crate::Commit)s, together with what they belong to. One table
//! carries all kinds. There is one mechanism for *later*: a record with a due time, which a worker
//! takes under a lease and turns into an outbox row.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::{BoxFuture, Lease, StoreError};

/// Names a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// What kind of record, `schedule`.
    pub kind: Box<str>,
    /// Which one of its kind.
    pub id: Box<str>,
}

impl RecordId {
    /// The record `id` of `kind`.
    pub fn new(kind: impl Into<Box<str>>, id: impl Into<Box<str>>) -> Self {
        Self {
            kind: kind.into(),
            id: id.into(),
        }
    }
}

/// What a commit writes about one record.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordChange {
    /// Which record.
    pub id: RecordId,
    /// What must be there; otherwise the commit fails with
    /// [`is_conflict`](StoreError::is_conflict).
    pub expected: Expected,
    /// What is there afterwards; `None` to delete it.
    pub value: Option<RecordValue>,
}

/// What must be there when a record is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Whatever there is.
    Anything,
    /// No such record.
    Nothing,
    /// The record with this version.
    Version(u64),
    /// The record under the lease of [`Records::take_due`].
    Lease(Lease),
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordValue {
    /// A word to list by: a state, for example. May be empty.
    pub label: Box<str>,
    /// When a worker should take it.
    pub due: Option<Timestamp>,
    /// The content, as its kind writes it.
    pub body: Bytes,
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub id: RecordId,
    /// Counts its writes, from 1. A record that was deleted and made again begins anew.
    pub version: u64,
    /// What it says.
    pub value: RecordValue,
    /// When it was last written.
    pub written: Timestamp,
}

/// Reading records outside of a transaction, and taking those that are due.
pub trait Records: Send + Sync {
    /// The records with these names, in their order.
    fn read<'a>(
        &'a self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>>;

    /// Leases due records of `kind`, at most `limit`, those that are due longest first. A record
    /// that is not written over its lease is due again when `lease` has passed. Taking one changes
    /// neither its version nor its value; any write ends the lease.
    fn take_due<'a>(
        &'a self,
        kind: &'a str,
        worker: &'a str,
        lease: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Lease, Record)>, StoreError>>;

    /// How long until the next record of `kind` is due; zero if one is; `None` if none has a time.
    fn next_due<'a>(&'a self, kind: &'a str)
    -> BoxFuture<'a, Result<Option<Duration>, StoreError>>;

    /// The kinds of which there are records, ascending as the database compares texts; at most
    /// `limit`. For people: services know their own.
    fn kinds(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Box<str>>, StoreError>>;

    /// Records of a kind, those that were written longest ago first.
    fn list<'a>(&'a self, query: &'a RecordQuery)
    -> BoxFuture<'a, Result<Vec<Record>, StoreError>>;
}

/// Which records to list.
#[derive(Debug, Clone, Default)]
pub struct RecordQuery {
    /// Of which kind.
    pub kind: Box<str>,
    /// Only those with this label.
    pub label: Option<Box<str>>,
    /// Only those that have not been written for so long.
    pub older_than: Option<Duration>,
    /// Only those after this one, in the order of the list.
    pub after: Option<(Timestamp, Box<str>)>,
    /// How many at most.
    pub limit: usize,
}
