//! The rows of the inbox, as commits write them.
//!
//! Of the rows with one order key at most one is the *head*: it is deferred, or dead and blocks
//! the key. The key is open as long as there is a head; parked rows wait behind it. Whatever takes
//! the head away makes the first parked row the next one, in the same transaction. All of that
//! happens under the key's lock ([`locks`](crate::locks)); a unique index is the second guard.

use std::{collections::HashSet, time::SystemTime};

use tidings_core::{
    Claim, Commit, Fate, InboxEntry, InboxState, OrderKey, Over, Refusal, StoreError, Waiting,
};
use tokio_postgres::{Row, types::ToSql};

use crate::{
    connection::{Connection, Pool},
    error::{Error, explain},
    locks::hash_of_order,
    progress::Progress,
    values::{claim_columns, count, order_key, seconds},
};

/// Whether there is a head of a key, other than what `$not` leaves out.
///
/// `head` says which rows are heads as the index `tidings_inbox_head` does. The key is asked for as
/// a range of one, and in the order of that index, so that the planner takes no other way: it does
/// not know that a key has one head at most, and where many rows are parked behind one, it expects
/// to find one soon by reading all.
macro_rules! has_head {
    ($group:literal, $key:literal, $not:literal) => {
        concat!(
            "(select true from tidings_inbox as head
              where head.order_key is not null
                and (head.state = 1 or head.state = 3 and head.blocks)
                and (head.order_group, head.order_key) >= (",
            $group,
            ", ",
            $key,
            ") and (head.order_group, head.order_key) <= (",
            $group,
            ", ",
            $key,
            ") ",
            $not,
            " order by head.order_group, head.order_key limit 1) is true"
        )
    };
}

mod looking; // After the macro, which it uses.
pub(crate) use looking::look;
#[cfg(test)]
pub(crate) use looking::{LOOK, LOOK_ONE, LOOK_ONE_OF_KEY};

/// Writes the rows of messages without order that nothing is known of. Says which was refused, and
/// why; what was written must be rolled back then.
pub(crate) async fn write_new(
    connection: &Connection,
    commit: &Commit,
) -> Result<Option<(usize, Refusal)>, StoreError> {
    let entries = commit.inbox.iter().enumerate();
    let plain = || entries.clone().filter(|(_, entry)| entry.is_plain());
    let claims = plain().map(|(_, entry)| &entry.claim).collect();
    let free = claim(connection, claims)
        .await
        .map_err(|error| explain("write claims", error))?;
    let place = plain().find(|(_, entry)| !free.contains(&entry.claim));
    if let Some((place, _)) = place {
        return Ok(Some((place, Refusal::Known)));
    }
    let new = entries.filter(|(_, entry)| is_new(entry) && !entry.is_plain());
    let mut new: Vec<_> = new.collect();
    new.sort_unstable_by(|(_, one), (_, other)| one.claim.cmp(&other.claim));
    write_entries(connection, commit, new).await
}

/// A row of a message without order that nothing is known of. The same message may be handled
/// elsewhere at the same time, so it is written at the same point of a commit whatever becomes of it.
fn is_new(entry: &InboxEntry) -> bool {
    entry.over == Over::Nothing && entry.order.is_none()
}

/// Writes claims. Returns those that were free; of equal ones there is one in the end.
///
/// They are written in their order, so that two transactions with the same claims do not wait for
/// each other in a circle.
async fn claim(connection: &Connection, mut claims: Vec<&Claim>) -> Result<HashSet<Claim>, Error> {
    if claims.is_empty() {
        return Ok(HashSet::new());
    }
    claims.sort_unstable();
    claims_of(&write_claims(connection, claims).await?)
}

/// Writes claims, which are sorted. Returns the rows of those that were free ([`claims_of`]).
pub(crate) async fn write_claims(
    connection: &Connection,
    claims: Vec<&Claim>,
) -> Result<Vec<Row>, Error> {
    let (consumers, messages) = claim_columns(claims);
    connection.rows(CLAIM, &[&consumers, &messages]).await
}

/// The claims of rows.
pub(crate) fn claims_of(rows: &[Row]) -> Result<HashSet<Claim>, Error> {
    rows.iter()
        .map(|row| {
            Ok(Claim {
                consumer: row.try_get::<_, &str>(0)?.into(),
                message: row.try_get::<_, String>(1)?.into(),
            })
        })
        .collect()
}

/// So that claims are sent before what is sent after them.
pub(crate) async fn prepare_claims(connection: &Connection) -> Result<(), StoreError> {
    let prepared = connection.prepare(CLAIM).await;
    prepared.map_err(|error| explain("write claims", error))
}

const CLAIM: &str = "
    insert into tidings_inbox (consumer, message)
    select consumer, message
    from unnest($1::text[], $2::text[]) with ordinality as claim (consumer, message, number)
    order by number
    on conflict do nothing
    returning consumer, message";

/// Takes back claims of the same transaction.
pub(crate) async fn unclaim(connection: &Connection, claim: &Claim) -> Result<(), Error> {
    connection
        .execute(
            "delete from tidings_inbox where consumer = $1 and message = $2",
            &[&&*claim.consumer, &claim.message.as_str()],
        )
        .await
        .map(drop)
}

/// Writes the other entries of `commit`. Says which was refused, and why; what was written must be
/// rolled back then.
///
/// Entries without order are written in the order of their claims. Those with order are written in
/// the order they have in the commit, which is that of their key; their keys are locked.
pub(crate) async fn write_others(
    connection: &Connection,
    commit: &Commit,
) -> Result<Option<(usize, Refusal)>, StoreError> {
    let entries = commit.inbox.iter().enumerate();
    let others = entries.filter(|(_, entry)| !is_new(entry));
    let (ordered, mut unordered): (Vec<_>, Vec<_>) =
        others.partition(|(_, entry)| entry.order.is_some());
    unordered.sort_unstable_by(|(_, one), (_, other)| one.claim.cmp(&other.claim));
    unordered.extend(ordered);
    write_entries(connection, commit, unordered).await
}

async fn write_entries(
    connection: &Connection,
    commit: &Commit,
    entries: Vec<(usize, &InboxEntry)>,
) -> Result<Option<(usize, Refusal)>, StoreError> {
    // A message that no dead letter carries stays in its row.
    let sends = !commit.outbox.is_empty();
    for (place, entry) in entries {
        let refused = write_entry(connection, entry, sends).await?;
        if let Some(why) = refused {
            return Ok(Some((place, why)));
        }
    }
    Ok(None)
}

async fn write_entry(
    connection: &Connection,
    entry: &InboxEntry,
    sends: bool,
) -> Result<Option<Refusal>, StoreError> {
    if matches!(entry.fate, Fate::Parked(_))
        && (entry.order.is_none() || matches!(entry.over, Over::Lease(_)))
    {
        return Err(StoreError::new(format!(
            "message `{}` of `{}` cannot be parked: only a delivery with an order key can wait \
             behind another",
            entry.claim.message, entry.claim.consumer
        )));
    }
    match &entry.over {
        Over::Nothing => insert(connection, entry, 0).await,
        Over::Dead { redrive } => overwrite(connection, entry, *redrive).await,
        Over::Lease(lease) => settle(connection, entry, &lease.0, sends).await,
    }
}

/// What a fate says, as columns.
#[derive(Default)]
struct Columns<'a> {
    state: i16,
    due_in: Option<f64>,
    failures: i64,
    history: Option<String>,
    blocks: bool,
    metadata: Option<String>,
    body: Option<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(fate: &'a Fate) -> Result<Self, StoreError> {
        let (state, failures, history) = match fate {
            Fate::Handled => return Ok(Self::default()),
            Fate::Deferred(waiting) => (InboxState::Deferred, waiting.failures, &waiting.history),
            Fate::Parked(waiting) => (InboxState::Parked, waiting.failures, &waiting.history),
            Fate::Dead {
                failures, history, ..
            } => (InboxState::Dead, *failures, history),
        };
        let as_json = || {
            serde_json::to_string(history).map_err(|error| {
                StoreError::invalid("the history of a message cannot be written as JSON")
                    .with_source(error)
            })
        };
        let columns = Self {
            state: state as i16,
            failures: i64::from(failures),
            history: (!history.is_empty()).then(as_json).transpose()?,
            blocks: matches!(fate, Fate::Dead { blocks: true, .. }),
            ..Self::default()
        };
        Ok(match fate {
            Fate::Deferred(waiting) => Self {
                due_in: Some(seconds(waiting.due_in)),
                ..columns.with_message(waiting)
            },
            Fate::Parked(waiting) => columns.with_message(waiting),
            _ => columns,
        })
    }

    fn with_message(self, waiting: &'a Waiting) -> Self {
        Self {
            metadata: Some(waiting.envelope.to_metadata()),
            body: Some(&waiting.envelope.body),
            ..self
        }
    }
}

/// Whether the row is out of the way of the others of its key.
const fn ends(fate: &Fate) -> bool {
    matches!(fate, Fate::Handled | Fate::Dead { blocks: false, .. })
}

/// A row, as the parameters `$1` to `$13` of [`insert`] and [`update_dead`].
struct Params<'a> {
    consumer: &'a str,
    message: &'a str,
    redrive: i64,
    group: Option<&'a str>,
    key: Option<&'a str>,
    key_hash: Option<i32>,
    columns: Columns<'a>,
}

impl<'a> Params<'a> {
    fn of(entry: &'a InboxEntry, redrive: u32) -> Result<Self, StoreError> {
        let order = entry.order.as_ref();
        Ok(Self {
            consumer: &entry.claim.consumer,
            message: entry.claim.message.as_str(),
            redrive: i64::from(redrive),
            group: order.map(|order| &*order.group),
            key: order.map(|order| &*order.key),
            key_hash: order.map(hash_of_order),
            columns: Columns::of(&entry.fate)?,
        })
    }

    fn all(&self) -> Vec<&(dyn ToSql + Sync)> {
        let columns = &self.columns;
        vec![
            &self.consumer,
            &self.message,
            &columns.state,
            &self.redrive,
            &self.group,
            &self.key,
            &self.key_hash,
            &columns.due_in,
            &columns.failures,
            &columns.history,
            &columns.blocks,
            &columns.metadata,
            &columns.body,
        ]
    }
}

/// Writes a row where there is none.
async fn insert(
    connection: &Connection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<Option<Refusal>, StoreError> {
    let parks = matches!(entry.fate, Fate::Parked(_));
    let row = Params::of(entry, redrive)?;
    let mut params = row.all();
    params.push(&parks);
    const INSERT: &str = concat!(
        "insert into tidings_inbox (consumer, message, state, number, redrive, order_group, \
             order_key, order_hash, due, failures, history, blocks, metadata, body)
         select $1::text, $2::text, $3::smallint,
             case when $3 <> 0 then nextval('tidings_inbox_number') end, $4::bigint,
             case when $3 <> 0 then $5::text end, case when $3 <> 0 then $6::text end,
             case when $3 <> 0 then $7::int end, statement_timestamp() + make_interval(secs => $8),
             $9::bigint, $10::text, $11::boolean, $12::text, $13::bytea
         where $6 is null or $14 = (",
        has_head!("$5", "$6", ""),
        ") on conflict do nothing"
    );
    let written = connection.execute(INSERT, &params).await;
    if written.map_err(|error| explain("write a row of the inbox", error))? > 0 {
        return Ok(None);
    }
    let known = connection
        .row(
            "select exists (select from tidings_inbox where consumer = $1 and message = $2)",
            &[&row.consumer, &row.message],
        )
        .await;
    let is_known = known.and_then(|row| Ok(row.try_get(0)?));
    let is_known: bool = is_known.map_err(|error| explain("read a row of the inbox", error))?;
    Ok(Some(match (is_known, parks) {
        (true, _) => Refusal::Known,
        (false, true) => Refusal::Free,
        (false, false) => Refusal::Behind,
    }))
}

/// Writes a row over a dead one with a lower number of redrives, or where there is none.
async fn overwrite(
    connection: &Connection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<Option<Refusal>, StoreError> {
    let failed = |error| explain("read a row of the inbox", error);
    let old = connection
        .first(
            "select state, redrive, order_group, order_key from tidings_inbox
         where consumer = $1 and message = $2 for update",
            &[&&*entry.claim.consumer, &entry.claim.message.as_str()],
        )
        .await;
    let Some(row) = old.map_err(failed)? else {
        return insert(connection, entry, redrive).await;
    };
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, key_of(&row, 2)?));
    let (state, redriven, old_order): (i16, i64, _) = read().map_err(failed)?;
    if state != InboxState::Dead as i16 || redriven >= i64::from(redrive) {
        return Ok(Some(Refusal::Known));
    }
    if let Some(order) = &entry.order {
        let parks = matches!(entry.fate, Fate::Parked(_));
        match (is_behind(connection, order, entry).await?, parks) {
            (true, false) => return Ok(Some(Refusal::Behind)),
            (false, true) => return Ok(Some(Refusal::Free)),
            _ => {}
        }
    }
    update_dead(connection, entry, redrive).await?;
    if old_order != entry.order
        && let Some(order) = &old_order
    {
        go_on(connection, order).await?;
    }
    if let Some(order) = &entry.order
        && ends(&entry.fate)
    {
        go_on(connection, order).await?;
    }
    Ok(None)
}

/// Whether another row than that of `entry` is the head of `order`.
async fn is_behind(
    connection: &Connection,
    order: &OrderKey,
    entry: &InboxEntry,
) -> Result<bool, StoreError> {
    let asked = connection
        .row(
            concat!(
                "select ",
                has_head!(
                    "$1",
                    "$2",
                    "and not (head.consumer = $3 and head.message = $4)"
                )
            ),
            &[
                &&*order.group,
                &&*order.key,
                &&*entry.claim.consumer,
                &entry.claim.message.as_str(),
            ],
        )
        .await;
    let is_behind = asked.and_then(|row| Ok(row.try_get(0)?));
    is_behind.map_err(|error| explain("look for earlier messages of a key", error))
}

async fn update_dead(
    connection: &Connection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<(), StoreError> {
    const UPDATE: &str = "update tidings_inbox
         set state = $3::smallint, number = case when $3 <> 0 then number end, redrive = $4,
             order_group = $5, order_key = $6, order_hash = $7,
             due = statement_timestamp() + make_interval(secs => $8), lease = null,
             unfinished = 0, failures = $9, history = $10, blocks = $11, metadata = $12,
             body = $13, claimed_at = statement_timestamp()
         where consumer = $1 and message = $2";
    let row = Params::of(entry, redrive)?;
    let written = connection.execute(UPDATE, &row.all()).await;
    written
        .map(drop)
        .map_err(|error| explain("write over a dead row of the inbox", error))
}

pub(crate) const SETTLE: &str = "
    update tidings_inbox
    set state = $4::smallint, number = case when $4 <> 0 then number end,
        due = statement_timestamp() + make_interval(secs => $5), lease = null,
        unfinished = 0, failures = $6, history = $7, blocks = $8,
        metadata = case when $9 then metadata end, body = case when $9 then body end,
        claimed_at = statement_timestamp()
    where consumer = $1 and message = $2 and lease = $3
    returning order_group, order_key";

/// Writes what became of a message that was taken under `lease`. Only deferred rows have one.
async fn settle(
    connection: &Connection,
    entry: &InboxEntry,
    lease: &str,
    sends: bool,
) -> Result<Option<Refusal>, StoreError> {
    let columns = Columns::of(&entry.fate)?;
    let keeps_message = match entry.fate {
        Fate::Handled => false,
        Fate::Dead { .. } => !sends,
        Fate::Deferred(_) | Fate::Parked(_) => true,
    };
    let failed = |error| explain("settle a deferred message", error);
    let settled = connection
        .first(
            SETTLE,
            &[
                &&*entry.claim.consumer,
                &entry.claim.message.as_str(),
                &lease,
                &columns.state,
                &columns.due_in,
                &columns.failures,
                &columns.history,
                &columns.blocks,
                &keeps_message,
            ],
        )
        .await;
    let Some(row) = settled.map_err(failed)? else {
        return Ok(Some(Refusal::Known));
    };
    if let Some(order) = key_of(&row, 0).map_err(failed)?
        && ends(&entry.fate)
    {
        go_on(connection, &order).await?;
    }
    Ok(None)
}

/// The order of a row that has its group in this column, and its key in the next.
fn key_of(row: &Row, column: usize) -> Result<Option<OrderKey>, Error> {
    Ok(order_key(row.try_get(column)?, row.try_get(column + 1)?))
}

/// The key is asked for as a range of one, as the lanes of the outbox are, and for the same reason.
pub(crate) const GO_ON: &str = concat!(
    "update tidings_inbox set state = 1, due = statement_timestamp()
     where (consumer, message) = (
         select consumer, message from tidings_inbox
         where state = 2 and (order_group, order_key) >= ($1, $2)
           and (order_group, order_key) <= ($1, $2)
         order by order_group, order_key, number limit 1
     ) and not (",
    has_head!("$1", "$2", ""),
    ")"
);

/// Makes the first parked row of a key due, unless the key still has a head. The key is locked.
pub(crate) async fn go_on(connection: &Connection, order: &OrderKey) -> Result<(), StoreError> {
    let gone = connection
        .execute(GO_ON, &[&&*order.group, &&*order.key])
        .await;
    gone.map(drop)
        .map_err(|error| explain("let the next message of a key go on", error))
}

/// Another instance that forgets at the same moment takes other rows. The limit is asked for as in
/// [`NEXT`](crate::outbox::NEXT), and it begins after `$4` ([`Progress`]).
pub(crate) const FORGET: &str = "
    with forgotten as (
        delete from tidings_inbox where state = 0 and ctid = any (array(
            select ctid from tidings_inbox
            where consumer = $1 and state = 0
              and claimed_at < statement_timestamp() - make_interval(secs => $2)
              and claimed_at >= $4
            order by claimed_at limit (select $3::bigint) for update skip locked
        ))
        returning claimed_at
    )
    select count(*), max(claimed_at) from forgotten";

pub(crate) async fn forget(
    pool: &Pool,
    progress: &Progress,
    consumer: &str,
    age: std::time::Duration,
    limit: usize,
) -> Result<u64, StoreError> {
    let from = progress.forgotten_before(consumer);
    let forgotten = async {
        let row = pool
            .row(FORGET, &[&consumer, &seconds(age), &count(limit), &from])
            .await?;
        let (count, until): (i64, Option<SystemTime>) = (row.try_get(0)?, row.try_get(1)?);
        Ok((count.unsigned_abs(), until))
    };
    let (forgotten, until) = forgotten
        .await
        .map_err(|error: Error| explain("forget handled messages", error))?;
    let is_done = forgotten < limit as u64;
    progress.has_forgotten(consumer, until.filter(|_| !is_done));
    Ok(forgotten)
}
