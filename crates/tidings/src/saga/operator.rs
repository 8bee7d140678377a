//! Looking at sagas and operating them, from any program that reaches their database.
//!
//! What an operator asks for is a record, which the service that runs the saga takes within a second:
//! only it has the function. It stands in the saga's journal, with who and why.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tidings_saga::{Action, Arrival, Journal, SagaState};
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    KIND_PREFIX, Kind,
    clock::{BATCH_COUNT_MAX, LEASE},
    kind_of, read,
};
use crate::{
    Commit, Error, Expected, Lease, Messages, Record, RecordChange, RecordId, RecordQuery,
    RecordValue, Store, StoreError, publish::Sender, retry,
};

/// How many kinds of records are looked at for those of sagas.
const KINDS_MAX: usize = 10_000;

/// How often an operation is tried again at once, while answers come to the same saga.
const CONFLICTS_MAX: u32 = 20;

/// What an operator does to a saga.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Operation {
    /// Who does it, for the journal.
    pub who: Box<str>,
    /// What for, for the journal.
    pub why: Box<str>,
    /// What.
    pub action: Action,
}

/// Names what an operator asked for, until it is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationId(RecordId);

/// The names of the sagas that have journals in this database, at most `limit`.
///
/// # Errors
///
/// When the database does not answer.
pub async fn names(store: &dyn Store, limit: usize) -> Result<Vec<Box<str>>, Error> {
    let kinds = store.records().kinds(KINDS_MAX).await?;
    let names = kinds
        .iter()
        .filter_map(|kind| kind.strip_prefix(KIND_PREFIX));
    Ok(names.take(limit).map(Into::into).collect())
}

/// Which sagas to list.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only those in this state: `running`, `compensating`, `stuck`, `completed`, `compensated`,
    /// `abandoned`.
    pub state: Option<Box<str>>,
    /// Only those to which nothing has happened for so long.
    pub older_than: Option<Duration>,
    /// Only those after this one: when something last happened to it, and its key.
    pub after: Option<(Timestamp, Box<str>)>,
    /// How many at most.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            state: None,
            older_than: None,
            after: None,
            limit: 100,
        }
    }
}

/// A saga in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Which of its kind: the order's id, for example.
    pub key: Box<str>,
    /// How far it is. `None`: its journal cannot be read by this program.
    pub state: Option<SagaState>,
    /// When something last happened to it.
    pub changed: Timestamp,
    /// When it does something by itself.
    pub due: Option<Timestamp>,
}

/// The sagas of a kind, those to which nothing has happened for the longest time first.
///
/// # Errors
///
/// When the database does not answer.
pub async fn list(store: &dyn Store, saga: &str, query: &Query) -> Result<Vec<Summary>, Error> {
    let query = RecordQuery {
        kind: kind_of(saga).into(),
        label: query.state.clone(),
        older_than: query.older_than,
        after: query.after.clone(),
        limit: query.limit,
    };
    let found = store.records().list(&query).await?;
    let summary = |record: Record| Summary {
        key: record.id.id,
        state: Journal::read(&record.value.body).ok().map(|it| it.state),
        changed: record.written,
        due: record.value.due,
    };
    Ok(found.into_iter().map(summary).collect())
}

/// The journal of a saga: everything that has happened to it. `None`: there is no such saga.
///
/// # Errors
///
/// When the database does not answer, or the journal was written by a newer program.
pub async fn journal(store: &dyn Store, saga: &str, key: &str) -> Result<Option<Journal>, Error> {
    let id = RecordId::new(kind_of(saga), key);
    let found = store.records().read(&[id]).await?;
    let Some(record) = found.into_iter().next().flatten() else {
        return Ok(None);
    };
    Journal::read(&record.value.body)
        .map(Some)
        .map_err(Error::msg)
}

/// Asks the service that runs a saga to do something to it. It is done within a second, if the
/// service runs ([`is_pending`] tells); what became of it stands in the [journal](journal).
///
/// # Errors
///
/// When there is no such saga, or the database does not answer.
pub async fn operate(
    store: &dyn Store,
    saga: &str,
    key: &str,
    operation: &Operation,
) -> Result<OperationId, Error> {
    if journal(store, saga, key).await?.is_none() {
        return Err(Error::msg(format!(
            "there is no saga `{saga}/{key}`; list those that are there"
        )));
    }
    let asked = Asked {
        key: key.into(),
        operation: operation.clone(),
    };
    let id = RecordId::new(operations_of(saga), Uuid::now_v7().to_string());
    let change = RecordChange {
        id: id.clone(),
        expected: Expected::Nothing,
        value: Some(RecordValue {
            label: key.into(),
            due: Some(Timestamp::now()),
            body: serde_json::to_vec(&asked)?.into(),
        }),
    };
    let commit = Commit::from(change);
    retry::commit(store, commit).await?;
    Ok(OperationId(id))
}

/// Whether an operation waits for the service to carry it out.
///
/// # Errors
///
/// When the database does not answer.
pub async fn is_pending(store: &dyn Store, operation: &OperationId) -> Result<bool, Error> {
    let id = std::slice::from_ref(&operation.0);
    let found = store.records().read(id).await?;
    Ok(found.into_iter().any(|record| record.is_some()))
}

/// What is asked for, as it is stored.
#[derive(Serialize, Deserialize)]
struct Asked {
    key: Box<str>,
    operation: Operation,
}

fn operations_of(saga: &str) -> String {
    format!("saga-operation:{saga}")
}

/// Carries out what operators asked for.
pub(super) async fn carry_out(
    store: &dyn Store,
    kind: &Kind,
    sender: &Sender,
    instance: &str,
) -> Result<(), StoreError> {
    let name = operations_of(kind.definition.name());
    let records = store.records();
    let due = records
        .take_due(&name, instance, LEASE, BATCH_COUNT_MAX)
        .await?;
    for (lease, record) in due {
        let asked: Asked = match serde_json::from_slice(&record.value.body) {
            Ok(asked) => asked,
            Err(why) => {
                error!("what an operator asked for cannot be read, it is passed over: {why}");
                end(store, lease, record).await?;
                continue;
            }
        };
        carry_out_one(store, kind, sender, (lease, record), &asked).await?;
    }
    Ok(())
}

async fn carry_out_one(
    store: &dyn Store,
    kind: &Kind,
    sender: &Sender,
    (lease, operation): (Lease, Record),
    asked: &Asked,
) -> Result<(), StoreError> {
    let key = &*asked.key;
    let ended = RecordChange {
        id: operation.id.clone(),
        expected: Expected::Lease(lease.clone()),
        value: None,
    };
    for _ in 0..CONFLICTS_MAX {
        let found = store.records().read(&[kind.record_id(key)]).await?;
        let Some(record) = found.into_iter().next().flatten() else {
            warn!(
                key,
                "an operation is passed over: the saga is not there any more"
            );
            return end(store, lease, operation).await;
        };
        let journal = match read(kind, key, &record) {
            Ok(journal) => journal,
            Err(why) => {
                // Its lease ends, and another program may take it.
                error!("an operation waits: {why}");
                return Ok(());
            }
        };
        let now = Timestamp::now();
        let Operation { who, why, action } = asked.operation.clone();
        let arrival = Arrival::Operator { who, why, action };
        let turn = kind.definition.advance(key, journal, [arrival], now);
        let expected = Expected::Version(record.version);
        let left = kind.leave(key, turn, expected, now);
        let committed = left.and_then(|(record, now)| {
            let messages = Messages {
                now,
                records: vec![record, ended.clone()],
                ..Messages::default()
            };
            sender.commit(messages, None)
        });
        let commit = match committed {
            Ok(commit) => commit,
            Err(why) => {
                error!(key, "what a saga sends is refused by `on_send`: {why}");
                return Ok(());
            }
        };
        match store.commit(commit).await {
            // An answer came first.
            Err(error) if error.is_conflict() => kind.conflict(),
            committed => return committed.map(drop),
        }
    }
    Ok(())
}

async fn end(store: &dyn Store, lease: Lease, record: Record) -> Result<(), StoreError> {
    let change = RecordChange {
        id: record.id,
        expected: Expected::Lease(lease),
        value: None,
    };
    let commit = Commit::from(change);
    match store.commit(commit).await {
        Err(error) if error.is_conflict() => Ok(()),
        ended => ended.map(drop),
    }
}
