//! Looking at schedules and operating them, from any program that reaches their database.

use jiff::Timestamp;

use super::{
    KIND, Missed, Recurring, read_message,
    recurring::{RECURRING, is_recurring},
};
use crate::{
    Commit, Error, Expected, Outgoing, Record, RecordChange, RecordId, RecordQuery, ScheduleId,
    Store,
};

/// How often an operation is tried again at once, while the schedule fires.
const CONFLICTS_MAX: u32 = 20;

/// Which schedules to list.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only those that recur and are not paused.
    pub only_recurring: bool,
    /// Only those after this one: when it was last written, and its id.
    pub after: Option<(Timestamp, Box<str>)>,
    /// How many at most.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            only_recurring: false,
            after: None,
            limit: 100,
        }
    }
}

/// A schedule in a list.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Planned {
    /// By which it is cancelled. What a program declares is `consumer/name`.
    pub id: Box<str>,
    /// When it is sent next. `None`: it is paused or has ended.
    pub due: Option<Timestamp>,
    /// When it was last written.
    pub written: Timestamp,
    /// The message, or why it cannot be read.
    pub message: Result<Outgoing, String>,
    /// How it recurs; `None` for what is sent once.
    pub recurs: Option<Recurs>,
}

/// How a message recurs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recurs {
    /// The schedule's name.
    pub name: Box<str>,
    /// The expression.
    pub expression: Box<str>,
    /// Its time zone.
    pub zone: Box<str>,
    /// What becomes of missed occurrences.
    pub missed: Missed,
    /// The last occurrence that was sent.
    pub last: Option<Timestamp>,
    /// Whether a program declares it; otherwise a producer made it.
    pub is_declared: bool,
    /// Why an operator paused it.
    pub paused: Option<Box<str>>,
    /// Why it has ended.
    pub ended: Option<Box<str>>,
}

/// Messages that are sent later, those that were written longest ago first.
///
/// # Errors
///
/// When the database does not answer.
pub async fn list(store: &dyn Store, query: &Query) -> Result<Vec<Planned>, Error> {
    let query = RecordQuery {
        kind: KIND.into(),
        label: query.only_recurring.then(|| RECURRING.into()),
        after: query.after.clone(),
        limit: query.limit,
        ..RecordQuery::default()
    };
    let found = store.records().list(&query).await?;
    Ok(found.into_iter().map(planned).collect())
}

/// What is sent later under `id`; `None` if nothing is (any more).
///
/// # Errors
///
/// When the database does not answer.
pub async fn get(store: &dyn Store, id: &ScheduleId) -> Result<Option<Planned>, Error> {
    let record = RecordId::new(KIND, id.as_str());
    let found = store.records().read(std::slice::from_ref(&record)).await?;
    Ok(found.into_iter().next().flatten().map(planned))
}

fn planned(record: Record) -> Planned {
    let body = &record.value.body;
    let (message, state) = match is_recurring(body).then(|| Recurring::read(body)) {
        Some(Ok(Recurring { message, state, .. })) => (Ok(message), Some(state)),
        Some(Err(why)) => (Err(why), None),
        None => (read_message(body), None),
    };
    Planned {
        due: record.value.due,
        written: record.written,
        message,
        recurs: state.map(|state| Recurs {
            name: state.name,
            expression: state.expression,
            zone: state.zone,
            missed: state.missed,
            last: state.last,
            is_declared: state.declared_by.is_some(),
            paused: state.paused,
            ended: state.ended,
        }),
        id: record.id.id,
    }
}

/// Cancels what was scheduled under `id`, once or recurring. Returns whether there was something to
/// cancel. What a program declares comes back when that program starts: [`pause`] it, or take it out of the
/// code.
///
/// # Errors
///
/// When the database does not answer.
pub async fn cancel(store: &dyn Store, id: &ScheduleId) -> Result<bool, Error> {
    Ok(super::cancel(store, id).await?)
}

/// Pauses a recurring message, for this reason, until it is [resumed](resume): it is not sent, and what
/// it misses is not counted. Restarts and deployments do not end a pause.
///
/// # Errors
///
/// When nothing recurs under this id, or the database does not answer.
pub async fn pause(store: &dyn Store, id: &ScheduleId, reason: &str) -> Result<(), Error> {
    change(store, id, |recurring| {
        recurring.state.paused = Some(reason.into());
    })
    .await
}

/// Ends a pause: the message is sent at its next occurrence from now on. Does nothing to one that is not
/// paused.
///
/// # Errors
///
/// When nothing recurs under this id, or the database does not answer.
pub async fn resume(store: &dyn Store, id: &ScheduleId) -> Result<(), Error> {
    change(store, id, |recurring| {
        if recurring.state.paused.take().is_some() {
            let last = recurring.state.last.unwrap_or(Timestamp::MIN);
            recurring.plan_after(Timestamp::now().max(last));
        }
    })
    .await
}

async fn change(
    store: &dyn Store,
    id: &ScheduleId,
    change: impl Fn(&mut Recurring),
) -> Result<(), Error> {
    let name = id.as_str();
    let id = RecordId::new(KIND, name);
    for _ in 0..CONFLICTS_MAX {
        let found = store.records().read(std::slice::from_ref(&id)).await?;
        let record = found.into_iter().next().flatten();
        let record = record.filter(|record| is_recurring(&record.value.body));
        let record = record.ok_or_else(|| {
            Error::msg(format!(
                "nothing recurs under the id `{name}`; list what does, and cancel what is sent once"
            ))
        })?;
        let mut recurring = Recurring::read(&record.value.body)
            .map_err(|why| Error::msg(format!("the schedule `{name}` cannot be read: {why}")))?;
        change(&mut recurring);
        let commit = Commit::from(RecordChange {
            id: id.clone(),
            expected: Expected::Version(record.version),
            value: Some(recurring.value()),
        });
        match store.commit(commit).await {
            Err(error) if error.is_conflict() => {} // It was sent just now.
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
    Err(Error::msg(format!(
        "the schedule `{name}` changes all the time; try again"
    )))
}
