//! The rows of the inbox, as commits write them.
//!
//! Of the rows with one order key at most one is the *head*: it is deferred, or dead and blocks
//! the key. The key is open as long as there is a head; parked rows wait behind it. Whatever takes
//! the head away makes the first parked row the next one, in the same transaction. All of that
//! happens under the key's lock ([`locks`](crate::locks)); a unique index is the second guard.

use std::collections::HashSet;

use sqlx::{PgConnection, PgPool, Postgres, Row, postgres::PgArguments, query::Query};
use tidings_core::{
    Ask, Commit, Fate, InboxEntry, InboxState, OrderKey, Over, Refusal, Seen, StoreError, Waiting,
};

use crate::{
    commit::is_plain,
    error::explain,
    locks::hash_of_order,
    values::{claim_columns, count, counter, order_key, seconds},
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

/// Writes the entries of `commit`. Says which was refused, and why; what was written must be
/// rolled back then.
///
/// Entries without order are written in the order of their claims, so that two commits with the
/// same claims do not wait for each other in a circle. Those with order are written in the order
/// they have in the commit, which is that of their key; their keys are locked.
pub(crate) async fn write(
    connection: &mut PgConnection,
    commit: &Commit,
) -> Result<Option<(usize, Refusal)>, StoreError> {
    let entries = commit.inbox.iter().enumerate();
    let (ordered, mut unordered): (Vec<_>, Vec<_>) =
        entries.partition(|(_, entry)| entry.order.is_some());
    unordered.sort_unstable_by(|(_, one), (_, other)| one.claim.cmp(&other.claim));
    let (plain, others): (Vec<_>, Vec<_>) = unordered
        .into_iter()
        .partition(|(_, entry)| is_plain(entry));
    if let Some(place) = write_plain(connection, &plain).await? {
        return Ok(Some((place, Refusal::Known)));
    }
    // A message that no dead letter carries stays in its row.
    let sends = !commit.outbox.is_empty();
    for (place, entry) in others.into_iter().chain(ordered) {
        let refused = write_entry(connection, entry, sends).await?;
        if let Some(why) = refused {
            return Ok(Some((place, why)));
        }
    }
    Ok(None)
}

/// Deliveries that were handled, in the order of their claims, in one statement. Returns the place
/// of one that is known.
async fn write_plain(
    connection: &mut PgConnection,
    entries: &[(usize, &InboxEntry)],
) -> Result<Option<usize>, StoreError> {
    if entries.is_empty() {
        return Ok(None);
    }
    let (consumers, messages) = claim_columns(entries.iter().map(|(_, entry)| &entry.claim));
    let written: Vec<(String, String)> = sqlx::query_as(
        "insert into tidings_inbox (consumer, message)
         select consumer, message
         from unnest($1::text[], $2::text[]) with ordinality as claim (consumer, message, number)
         order by number
         on conflict do nothing
         returning consumer, message",
    )
    .bind(consumers)
    .bind(messages)
    .fetch_all(connection)
    .await
    .map_err(|error| explain("write claims", &error))?;
    let written: HashSet<(&str, &str)> = written
        .iter()
        .map(|(consumer, message)| (&**consumer, &**message))
        .collect();
    let known = entries.iter().find(|(_, entry)| {
        let claim = &entry.claim;
        !written.contains(&(&*claim.consumer, claim.message.as_str()))
    });
    Ok(known.map(|(place, _)| *place))
}

async fn write_entry(
    connection: &mut PgConnection,
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

/// Binds the columns of a row, `$1` to `$13`, as [`insert`] and [`update_dead`] number them.
fn bind_row<'q>(
    query: Query<'q, Postgres, PgArguments>,
    entry: &'q InboxEntry,
    redrive: u32,
) -> Result<Query<'q, Postgres, PgArguments>, StoreError> {
    let columns = Columns::of(&entry.fate)?;
    let order = entry.order.as_ref();
    Ok(query
        .bind(&*entry.claim.consumer)
        .bind(entry.claim.message.as_str())
        .bind(columns.state)
        .bind(i64::from(redrive))
        .bind(order.map(|order| &*order.group))
        .bind(order.map(|order| &*order.key))
        .bind(order.map(hash_of_order))
        .bind(columns.due_in)
        .bind(columns.failures)
        .bind(columns.history)
        .bind(columns.blocks)
        .bind(columns.metadata)
        .bind(columns.body))
}

/// Writes a row where there is none.
async fn insert(
    connection: &mut PgConnection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<Option<Refusal>, StoreError> {
    let parks = matches!(entry.fate, Fate::Parked(_));
    let query = sqlx::query(concat!(
        "insert into tidings_inbox (consumer, message, state, number, redrive, order_group, \
             order_key, order_hash, due, failures, history, blocks, metadata, body)
         select $1, $2, $3, case when $3 <> 0 then nextval('tidings_inbox_number') end, $4,
             case when $3 <> 0 then $5 end, case when $3 <> 0 then $6 end,
             case when $3 <> 0 then $7 end, statement_timestamp() + make_interval(secs => $8),
             $9, $10, $11, $12, $13
         where $6::text is null or $14 = (",
        has_head!("$5", "$6", ""),
        ") on conflict do nothing"
    ));
    let done = bind_row(query, entry, redrive)?
        .bind(parks)
        .execute(&mut *connection)
        .await
        .map_err(|error| explain("write a row of the inbox", &error))?;
    if done.rows_affected() > 0 {
        return Ok(None);
    }
    let is_known: bool = sqlx::query_scalar(
        "select exists (select from tidings_inbox where consumer = $1 and message = $2)",
    )
    .bind(&*entry.claim.consumer)
    .bind(entry.claim.message.as_str())
    .fetch_one(connection)
    .await
    .map_err(|error| explain("read a row of the inbox", &error))?;
    Ok(Some(match (is_known, parks) {
        (true, _) => Refusal::Known,
        (false, true) => Refusal::Free,
        (false, false) => Refusal::Behind,
    }))
}

/// Writes a row over a dead one with a lower number of redrives, or where there is none.
async fn overwrite(
    connection: &mut PgConnection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<Option<Refusal>, StoreError> {
    let old: Option<(i16, i64, Option<String>, Option<String>)> = sqlx::query_as(
        "select state, redrive, order_group, order_key from tidings_inbox
         where consumer = $1 and message = $2 for update",
    )
    .bind(&*entry.claim.consumer)
    .bind(entry.claim.message.as_str())
    .fetch_optional(&mut *connection)
    .await
    .map_err(|error| explain("read a row of the inbox", &error))?;
    let Some((state, redriven, group, key)) = old else {
        return insert(connection, entry, redrive).await;
    };
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
    let old_order = order_key(group, key);
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
    connection: &mut PgConnection,
    order: &OrderKey,
    entry: &InboxEntry,
) -> Result<bool, StoreError> {
    sqlx::query_scalar(concat!(
        "select ",
        has_head!(
            "$1",
            "$2",
            "and not (head.consumer = $3 and head.message = $4)"
        )
    ))
    .bind(&*order.group)
    .bind(&*order.key)
    .bind(&*entry.claim.consumer)
    .bind(entry.claim.message.as_str())
    .fetch_one(connection)
    .await
    .map_err(|error| explain("look for earlier messages of a key", &error))
}

async fn update_dead(
    connection: &mut PgConnection,
    entry: &InboxEntry,
    redrive: u32,
) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update tidings_inbox
         set state = $3, number = case when $3 <> 0 then number end, redrive = $4,
             order_group = $5, order_key = $6, order_hash = $7,
             due = statement_timestamp() + make_interval(secs => $8), lease = null,
             unfinished = 0, failures = $9, history = $10, blocks = $11, metadata = $12,
             body = $13, claimed_at = statement_timestamp()
         where consumer = $1 and message = $2",
    );
    bind_row(query, entry, redrive)?
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| explain("write over a dead row of the inbox", &error))
}

pub(crate) const SETTLE: &str = "
    update tidings_inbox
    set state = $4, number = case when $4 <> 0 then number end,
        due = statement_timestamp() + make_interval(secs => $5), lease = null,
        unfinished = 0, failures = $6, history = $7, blocks = $8,
        metadata = case when $9 then metadata end, body = case when $9 then body end,
        claimed_at = statement_timestamp()
    where consumer = $1 and message = $2 and lease = $3
    returning order_group, order_key";

/// Writes what became of a message that was taken under `lease`. Only deferred rows have one.
async fn settle(
    connection: &mut PgConnection,
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
    let order: Option<(Option<String>, Option<String>)> = sqlx::query_as(SETTLE)
        .bind(&*entry.claim.consumer)
        .bind(entry.claim.message.as_str())
        .bind(lease)
        .bind(columns.state)
        .bind(columns.due_in)
        .bind(columns.failures)
        .bind(columns.history)
        .bind(columns.blocks)
        .bind(keeps_message)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| explain("settle a deferred message", &error))?;
    let Some((group, key)) = order else {
        return Ok(Some(Refusal::Known));
    };
    if let Some(order) = order_key(group, key)
        && ends(&entry.fate)
    {
        go_on(connection, &order).await?;
    }
    Ok(None)
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
pub(crate) async fn go_on(
    connection: &mut PgConnection,
    order: &OrderKey,
) -> Result<(), StoreError> {
    sqlx::query(GO_ON)
        .bind(&*order.group)
        .bind(&*order.key)
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| explain("let the next message of a key go on", &error))
}

pub(crate) const LOOK: &str = concat!(
    "select row.state, row.redrive, ",
    has_head!(
        "asked.order_group",
        "asked.order_key",
        "and not (head.consumer = asked.consumer and head.message = asked.message)"
    ),
    " from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
         as asked (consumer, message, order_group, order_key, number)
     left join tidings_inbox as row
         on row.consumer = asked.consumer and row.message = asked.message
     order by asked.number"
);

pub(crate) async fn look(pool: &PgPool, asked: &[Ask]) -> Result<Vec<Seen>, StoreError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| explain("look for messages in the inbox", &error);
    let (consumers, messages) = claim_columns(asked.iter().map(|ask| &ask.claim));
    let orders = asked.iter().map(|ask| ask.order.as_ref());
    let (groups, keys): (Vec<Option<&str>>, Vec<Option<&str>>) = orders
        .map(|order| {
            (
                order.map(|order| &*order.group),
                order.map(|order| &*order.key),
            )
        })
        .unzip();
    let rows = sqlx::query(LOOK)
        .bind(consumers)
        .bind(messages)
        .bind(groups)
        .bind(keys)
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    let seen = rows.iter().map(|row| {
        let state: Option<i16> = row.try_get(0)?;
        let redrive: Option<i64> = row.try_get(1)?;
        Ok(Seen {
            state: state.and_then(InboxState::from_number),
            redrive: counter(redrive.unwrap_or(0)),
            behind: row.try_get(2)?,
        })
    });
    seen.collect::<sqlx::Result<_>>().map_err(failed)
}

/// Another instance that forgets at the same moment takes other rows.
pub(crate) const FORGET: &str = "
    delete from tidings_inbox where state = 0 and ctid = any (array(
        select ctid from tidings_inbox
        where consumer = $1 and state = 0
          and claimed_at < statement_timestamp() - make_interval(secs => $2)
        order by claimed_at limit $3 for update skip locked
    ))";

pub(crate) async fn forget(
    pool: &PgPool,
    consumer: &str,
    age: std::time::Duration,
    limit: usize,
) -> Result<u64, StoreError> {
    sqlx::query(FORGET)
        .bind(consumer)
        .bind(seconds(age))
        .bind(count(limit))
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(|error| explain("forget handled messages", &error))
}
