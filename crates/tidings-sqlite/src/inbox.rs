//! The inbox as commits write it: one row per message and consumer.
//!
//! Of the rows with one order key at most one is the *head* (`is_head`): it is deferred, or dead
//! and blocks the key. The key is open as long as there is a head, and parked rows wait behind it.
//! Each write that takes a head away makes the first parked row the next one, in the same
//! transaction. SQLite has one writer at a time, so no key has to be locked.

use std::{sync::Arc, time::Duration};

use rusqlite::{Connection, OptionalExtension, Result, Row, Statement};
use tidings_core::{
    Ask, Attempt, Claim, Envelope, Fate, InboxEntry, InboxState, Lease, OrderKey, Over, Refusal,
    Seen,
};

use crate::clock::{earlier, later, limit, now_ms};

/// The row of a message.
const FIND: &str = "\
select claim, state, redrive, lease, order_group, order_key \
from tidings_inbox where consumer = ?1 and message = ?2";

/// A message that is handled at its first delivery, in no order: what happens nearly always.
pub(crate) const HANDLE: &str = "\
insert into tidings_inbox (consumer, message, changed_at) values (?1, ?2, ?3) \
on conflict do nothing";

const INSERT: &str = "\
insert into tidings_inbox (consumer, message, changed_at, state, redrive, order_group, order_key, \
    is_head, due_at, failures, history, metadata, body) \
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) on conflict do nothing";

/// Over a dead row: the new delivery brought the message again.
const OVERWRITE: &str = "\
update tidings_inbox set changed_at = ?2, state = ?3, redrive = ?4, order_group = ?5, \
    order_key = ?6, is_head = ?7, due_at = ?8, failures = ?9, history = ?10, metadata = ?11, \
    body = ?12, lease = null, unfinished = 0 \
where claim = ?1";

/// Over a lease, to be tried again: the row keeps its message and its place.
const DEFER: &str = "\
update tidings_inbox set changed_at = ?2, due_at = ?3, failures = ?4, history = ?5, \
    lease = null, unfinished = 0 \
where claim = ?1";

/// Over a lease or by an operator, for good: the message itself is dropped.
const END: &str = "\
update tidings_inbox set changed_at = ?2, state = ?3, is_head = ?4, failures = ?5, history = ?6, \
    due_at = null, lease = null, unfinished = 0, metadata = null, body = null \
where claim = ?1";

pub(crate) const HEAD: &str = "\
select claim from tidings_inbox where order_group = ?1 and order_key = ?2 and is_head = 1";

/// Makes the first parked row of a key its head, if there is no other.
pub(crate) const GO_ON: &str = "\
update tidings_inbox set state = 1, is_head = 1, due_at = ?3, changed_at = ?3 \
where claim = ( \
    select claim from tidings_inbox \
    where order_group = ?1 and order_key = ?2 and state = 2 order by claim limit 1) \
and not exists ( \
    select 1 from tidings_inbox where order_group = ?1 and order_key = ?2 and is_head = 1)";

pub(crate) const FORGET: &str = "\
delete from tidings_inbox where claim in ( \
    select claim from tidings_inbox where consumer = ?1 and state = 0 and changed_at < ?2 \
    order by changed_at limit ?3)";

/// What an entry cannot ask for, if it does.
pub(crate) fn misuse(entry: &InboxEntry) -> Option<String> {
    let over_lease = matches!(entry.over, Over::Lease(_));
    let parks = matches!(entry.fate, Fate::Parked(_));
    (parks && (over_lease || entry.order.is_none())).then(|| {
        format!(
            "message `{}` of `{}` cannot be parked: only a delivery with an order key can wait \
             behind another",
            entry.claim.message, entry.claim.consumer
        )
    })
}

/// Writes a [plain](InboxEntry::is_plain) entry by the statement [`HANDLE`]. False if the message is known.
pub(crate) fn handle(statement: &mut Statement<'_>, entry: &InboxEntry, now: i64) -> Result<bool> {
    let claim = (&*entry.claim.consumer, entry.claim.message.as_str(), now);
    Ok(statement.execute(claim)? > 0)
}

/// Writes what becomes of a message, or says why not; then the caller rolls back. For a
/// [plain](InboxEntry::is_plain) entry [`handle`] costs less.
pub(crate) fn write(
    connection: &Connection,
    entry: &InboxEntry,
    now: i64,
) -> Result<Option<Refusal>> {
    match &entry.over {
        Over::Nothing => insert(connection, entry, 0, now),
        Over::Dead { redrive } => match find(connection, &entry.claim)? {
            None => insert(connection, entry, *redrive, now),
            Some(row) if row.is(InboxState::Dead) && row.redrive < *redrive => {
                overwrite(connection, entry, &row, *redrive, now)
            }
            Some(_) => Ok(Some(Refusal::Known)),
        },
        Over::Lease(lease) => match find(connection, &entry.claim)? {
            Some(row)
                if row.is(InboxState::Deferred) && row.lease.as_deref() == Some(&*lease.0) =>
            {
                settle(connection, &entry.fate, row, now)
            }
            _ => Ok(Some(Refusal::Known)),
        },
    }
}

fn insert(
    connection: &Connection,
    entry: &InboxEntry,
    redrive: u32,
    now: i64,
) -> Result<Option<Refusal>> {
    // Looked up first, since the row itself may be the head; told last, since a message that is
    // known is nothing else.
    let refusal = out_of_turn(connection, entry, None)?;
    if refusal.is_some() {
        let known = find(connection, &entry.claim)?.is_some();
        return Ok(if known { Some(Refusal::Known) } else { refusal });
    }
    let new = Columns::of(entry, now);
    let written = connection.prepare_cached(INSERT)?.execute((
        &*entry.claim.consumer,
        entry.claim.message.as_str(),
        now,
        new.state as i16,
        redrive,
        new.group,
        new.key,
        new.is_head,
        new.due_at,
        new.failures,
        new.history,
        new.metadata,
        new.body,
    ))?;
    Ok((written == 0).then_some(Refusal::Known))
}

fn overwrite(
    connection: &Connection,
    entry: &InboxEntry,
    row: &Found,
    redrive: u32,
    now: i64,
) -> Result<Option<Refusal>> {
    if let Some(refusal) = out_of_turn(connection, entry, Some(row.claim))? {
        return Ok(Some(refusal));
    }
    let new = Columns::of(entry, now);
    connection.prepare_cached(OVERWRITE)?.execute((
        row.claim,
        now,
        new.state as i16,
        redrive,
        new.group,
        new.key,
        new.is_head,
        new.due_at,
        new.failures,
        new.history,
        new.metadata,
        new.body,
    ))?;
    // It may have been the head of its key, and may be no more.
    go_on(connection, row.order.as_ref(), now)?;
    Ok(None)
}

fn settle(connection: &Connection, fate: &Fate, row: Found, now: i64) -> Result<Option<Refusal>> {
    match fate {
        // Refused before, as `misuse`.
        Fate::Parked(_) => return Ok(Some(Refusal::Known)),
        Fate::Deferred(waiting) => {
            connection.prepare_cached(DEFER)?.execute((
                row.claim,
                now,
                later(now, waiting.due_in),
                waiting.failures,
                as_json(&waiting.history),
            ))?;
        }
        Fate::Handled => end(connection, &row, InboxState::Handled, now)?,
        Fate::Dead {
            failures,
            history,
            blocks,
        } => {
            let is_head = *blocks && row.order.is_some();
            connection.prepare_cached(END)?.execute((
                row.claim,
                now,
                InboxState::Dead as i16,
                is_head,
                failures,
                as_json(history),
            ))?;
            go_on(connection, row.order.as_ref(), now)?;
        }
    }
    Ok(None)
}

/// Ends a row that is not under an order any more, and lets the next of its key go on.
pub(crate) fn end(connection: &Connection, row: &Found, state: InboxState, now: i64) -> Result<()> {
    let nothing = (row.claim, now, state as i16, false, 0, None::<String>);
    connection.prepare_cached(END)?.execute(nothing)?;
    go_on(connection, row.order.as_ref(), now)
}

/// Whether the message is refused because of another of its key. `own` is its row, if it has one.
fn out_of_turn(
    connection: &Connection,
    entry: &InboxEntry,
    own: Option<i64>,
) -> Result<Option<Refusal>> {
    let Some(order) = &entry.order else {
        return Ok(None);
    };
    let is_behind = is_behind(connection, order, own)?;
    Ok(match (&entry.fate, is_behind) {
        (Fate::Parked(_), false) => Some(Refusal::Free),
        (Fate::Handled | Fate::Deferred(_) | Fate::Dead { .. }, true) => Some(Refusal::Behind),
        _ => None,
    })
}

/// Whether a message of `order` other than the one with the row `own` must end first.
fn is_behind(connection: &Connection, order: &OrderKey, own: Option<i64>) -> Result<bool> {
    let head: Option<i64> = connection
        .prepare_cached(HEAD)?
        .query_row((&*order.group, &*order.key), |row| row.get(0))
        .optional()?;
    Ok(head.is_some() && head != own)
}

fn go_on(connection: &Connection, order: Option<&OrderKey>, now: i64) -> Result<()> {
    let Some(order) = order else { return Ok(()) };
    let key = (&*order.group, &*order.key, now);
    connection.prepare_cached(GO_ON)?.execute(key).map(drop)
}

/// What is known of messages.
pub(crate) fn look(connection: &Connection, asked: &[Ask]) -> Result<Vec<Seen>> {
    let look = |ask: &Ask| {
        let row = find(connection, &ask.claim)?;
        let behind = match &ask.order {
            Some(order) => is_behind(connection, order, row.as_ref().map(|row| row.claim))?,
            None => false,
        };
        Ok(Seen {
            state: row
                .as_ref()
                .and_then(|row| InboxState::from_number(row.state)),
            redrive: row.map_or(0, |row| row.redrive),
            behind,
        })
    };
    asked.iter().map(look).collect()
}

/// Deletes the rows of `consumer` that were handled longest ago.
pub(crate) fn forget(
    connection: &Connection,
    consumer: &str,
    age: Duration,
    count_max: usize,
) -> Result<u64> {
    let handled_before = earlier(now_ms(), age);
    connection
        .prepare_cached(FORGET)?
        .execute((consumer, handled_before, limit(count_max)))
        .map(|forgotten| forgotten as u64)
}

/// A row that is there, without its message.
pub(crate) struct Found {
    pub(crate) claim: i64,
    state: i16,
    redrive: u32,
    pub(crate) lease: Option<String>,
    pub(crate) order: Option<OrderKey>,
}

impl Found {
    pub(crate) fn is(&self, state: InboxState) -> bool {
        self.state == state as i16
    }
}

pub(crate) fn find(connection: &Connection, claim: &Claim) -> Result<Option<Found>> {
    connection
        .prepare_cached(FIND)?
        .query_row((&*claim.consumer, claim.message.as_str()), |row| {
            Ok(Found {
                claim: row.get(0)?,
                state: row.get(1)?,
                redrive: row.get(2)?,
                lease: row.get(3)?,
                order: order_of(row, 4)?,
            })
        })
        .optional()
}

/// What a row says about an entry.
struct Columns<'a> {
    state: InboxState,
    group: Option<&'a str>,
    key: Option<&'a str>,
    is_head: bool,
    due_at: Option<i64>,
    failures: u32,
    history: Option<String>,
    metadata: Option<String>,
    body: Option<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(entry: &'a InboxEntry, now: i64) -> Self {
        let order = entry.order.as_ref();
        let ended = |state| Self {
            state,
            group: order.map(|order| &*order.group),
            key: order.map(|order| &*order.key),
            is_head: false,
            due_at: None,
            failures: 0,
            history: None,
            metadata: None,
            body: None,
        };
        let waiting = |state, waiting: &'a tidings_core::Waiting| Self {
            failures: waiting.failures,
            history: as_json(&waiting.history),
            metadata: Some(waiting.envelope.to_metadata()),
            body: Some(&waiting.envelope.body),
            ..ended(state)
        };
        match &entry.fate {
            // What order was kept by does not matter any more.
            Fate::Handled => Self {
                group: None,
                key: None,
                ..ended(InboxState::Handled)
            },
            Fate::Deferred(waits) => Self {
                is_head: order.is_some(),
                due_at: Some(later(now, waits.due_in)),
                ..waiting(InboxState::Deferred, waits)
            },
            Fate::Parked(waits) => waiting(InboxState::Parked, waits),
            Fate::Dead {
                failures,
                history,
                blocks,
            } => Self {
                is_head: *blocks && order.is_some(),
                failures: *failures,
                history: as_json(history),
                ..ended(InboxState::Dead)
            },
        }
    }
}

fn as_json(history: &[Attempt]) -> Option<String> {
    // Times, texts and nothing else: this cannot fail.
    (!history.is_empty()).then(|| serde_json::to_string(history).unwrap_or_default())
}

/// The attempts in column `index`. Those that cannot be read are left out rather than the message.
pub(crate) fn history_of(row: &Row<'_>, index: usize) -> Result<Vec<Attempt>> {
    let text: Option<String> = row.get(index)?;
    Ok(text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

/// The order in the columns `index` and the next.
pub(crate) fn order_of(row: &Row<'_>, index: usize) -> Result<Option<OrderKey>> {
    let group: Option<Box<str>> = row.get(index)?;
    let key: Option<Box<str>> = row.get(index + 1)?;
    Ok(group.zip(key).map(|(group, key)| OrderKey { group, key }))
}

/// The message whose metadata and body are the columns `index` and the next, or why it cannot be
/// read.
pub(crate) fn envelope_of(
    row: &Row<'_>,
    index: usize,
) -> Result<std::result::Result<Arc<Envelope>, Box<str>>> {
    let (metadata, body) = (row.get_ref(index)?, row.get_ref(index + 1)?);
    let read = || -> std::result::Result<_, tidings_core::BoxError> {
        let body = body.as_blob()?.to_vec();
        Ok(Envelope::from_metadata(metadata.as_str()?, body.into())?)
    };
    Ok(read()
        .map(Arc::new)
        .map_err(|error| format!("the stored message cannot be read: {error}").into_boxed_str()))
}

/// The number of the row that was taken under `lease`, which begins with it; see
/// [`take_due`](crate::deferred).
pub(crate) fn row_of(lease: &Lease) -> Option<i64> {
    lease.0.split_once('.')?.0.parse().ok()
}
