//! The versions of the toolkit's own tables. A migration that was released is never changed.
//!
//! Times end in `_at` and are milliseconds since 1970; those of records, which come from the
//! application, end in `_us` and are microseconds. The numbers of states are those of
//! `tidings_core::InboxState` and `OutboxState`.

use rusqlite::{Connection, Result};
use tidings_core::{Outgoing, hash_of_key};

/// Something that brings tables from one version to the next.
pub(crate) struct Migration {
    pub(crate) name: String,
    pub(crate) sql: String,
    /// What is done after `sql` and cannot be said in SQL.
    pub(crate) then: Option<fn(&Connection) -> Result<()>>,
}

/// The toolkit's own, in order.
pub(crate) fn own() -> Vec<Migration> {
    vec![
        Migration {
            name: "0001".into(),
            sql: FIRST.into(),
            then: None,
        },
        Migration {
            name: "0002".into(),
            sql: SECOND.into(),
            then: Some(route_old_rows),
        },
        Migration {
            name: "0003".into(),
            sql: THIRD.into(),
            then: None,
        },
    ]
}

/// Claims are an ordinary table with a unique index rather than `without rowid`: row ids grow with
/// time, so rows are listed in the order in which they were made.
pub(crate) const FIRST: &str = "\
create table tidings_inbox (
    claim integer primary key,
    consumer text not null,
    message text not null,
    claimed_at integer not null,
    unique (consumer, message)
) strict;
create table tidings_outbox (
    position integer primary key autoincrement,
    lane integer not null,
    created_at integer not null,
    deferred_until integer,
    message text not null,
    body blob not null
) strict;
create index tidings_outbox_ready on tidings_outbox (lane, position)
    where deferred_until is null;
create index tidings_outbox_deferred on tidings_outbox (deferred_until)
    where deferred_until is not null;
create table tidings_lane (
    lane integer primary key,
    relay text,
    leased_until integer not null
) strict;
with recursive numbers (lane) as (
    select 0 union all select lane + 1 from numbers where lane < 15
)
insert into tidings_lane (lane, leased_until) select lane, 0 from numbers;";

/// Claims become handled rows, and outbox rows become ready, deferred ones too. Columns are added
/// to the tables there are, which does not rewrite them.
///
/// `changed_at` is when the row got its state: of a handled row, when it was handled. `is_head` is
/// set on the one row of an order key for which the others wait: it is deferred, or dead and
/// blocks. All indexes but two are partial, so that a message that is handled at once costs an
/// entry in `unique (consumer, message)` and in `tidings_inbox_handled` only.
const SECOND: &str = "\
alter table tidings_inbox rename column claimed_at to changed_at;
alter table tidings_inbox add column state integer not null default 0;
alter table tidings_inbox add column redrive integer not null default 0;
alter table tidings_inbox add column order_group text;
alter table tidings_inbox add column order_key text;
alter table tidings_inbox add column is_head integer not null default 0;
alter table tidings_inbox add column due_at integer;
alter table tidings_inbox add column lease text;
alter table tidings_inbox add column unfinished integer not null default 0;
alter table tidings_inbox add column failures integer not null default 0;
alter table tidings_inbox add column history text;
alter table tidings_inbox add column metadata text;
alter table tidings_inbox add column body blob;
-- `forget`: the oldest handled rows of a consumer, without a look at any other.
create index tidings_inbox_handled on tidings_inbox (consumer, changed_at) where state = 0;
-- `take_due` and `next_due`: the rows of a consumer that are due longest.
create index tidings_inbox_due on tidings_inbox (consumer, due_at) where state = 1;
-- Whether a key is open. Unique, so that no bug can let two messages of a key go ahead.
create unique index tidings_inbox_head on tidings_inbox (order_group, order_key) where is_head = 1;
-- The first row that is parked behind the head of a key.
create index tidings_inbox_parked on tidings_inbox (order_group, order_key, claim) where state = 2;
-- `list`, and `waiting`, of one consumer and of all.
create index tidings_inbox_open on tidings_inbox (consumer, state, claim) where state <> 0;
create index tidings_inbox_state on tidings_inbox (state, claim) where state <> 0;

drop index tidings_outbox_ready;
drop index tidings_outbox_deferred;
alter table tidings_outbox drop column deferred_until;
alter table tidings_outbox add column state integer not null default 0;
alter table tidings_outbox add column destination text not null default '';
alter table tidings_outbox add column key_hash integer;
alter table tidings_outbox add column reason text;
-- `next`: the oldest ready rows of a lane, without a look at those that are held.
create index tidings_outbox_ready on tidings_outbox (lane, position) where state = 0;
-- `held` and `next_held`: from one destination of a lane to the next, and the rows of each.
create index tidings_outbox_held on tidings_outbox (lane, destination, position) where state = 1;
-- `is_behind`: whether a row of a key is held for its destination.
create index tidings_outbox_held_key on tidings_outbox (destination, key_hash) where state = 1;
-- `list`: rows that are held, or set aside, by age.
create index tidings_outbox_state on tidings_outbox (state, position) where state <> 0;

-- The relays that are alive, among whom the lanes are shared.
create table tidings_relay (
    relay text primary key,
    alive_until integer not null
) strict, without rowid;

-- `due_us` is what was written, `take_us` when a worker may take it: when it is due, or when the
-- lease of the worker that has it ends.
create table tidings_record (
    kind text not null,
    id text not null,
    version integer not null,
    label text not null,
    due_us integer,
    take_us integer,
    lease text,
    written_us integer not null,
    body blob not null,
    primary key (kind, id)
) strict;
-- `take_due` and `next_due`: the records of a kind that are due longest.
create index tidings_record_due on tidings_record (kind, take_us) where take_us is not null;
-- `list`, by kind, and by kind and label.
create index tidings_record_written on tidings_record (kind, written_us, id);
create index tidings_record_label on tidings_record (kind, label, written_us, id);";

/// The log of sent events. Each segment is a table of its own, `tidings_log_` and its number, made
/// when the first event is written to it (`log.rs`).
const THIRD: &str = "\
create table tidings_log_segment (
    segment integer primary key autoincrement,
    first_position integer not null,
    begun_at integer not null,
    bytes integer not null
) strict;
create table tidings_log_state (
    one integer primary key check (one = 1),
    dropped_until integer not null
) strict;
insert into tidings_log_state values (1, 0);";

/// How many rows of an older version are read at a time.
const ROUTED_PER_STEP: i64 = 1000;

/// Fills in what outbox rows of version `0001` do not say in columns: where they go, and the hash
/// of their key. It is read from their metadata here, because SQL can neither compute the hash nor
/// say why a text cannot be read. A row that cannot be read is set aside with the reason.
fn route_old_rows(connection: &Connection) -> Result<()> {
    let mut select = connection.prepare(
        "select position, message from tidings_outbox where position > ?1 \
         order by position limit ?2",
    )?;
    let mut route = connection
        .prepare("update tidings_outbox set destination = ?2, key_hash = ?3 where position = ?1")?;
    let mut set_aside = connection.prepare(SET_OLD_ASIDE)?;
    let mut after = i64::MIN;
    loop {
        let rows: Vec<(i64, std::result::Result<Outgoing, String>)> = select
            .query_map((after, ROUTED_PER_STEP), |row| {
                let text = row.get_ref(1)?.as_str().map_err(|error| error.to_string());
                let message = text.and_then(|text| {
                    Outgoing::from_metadata(text, Default::default())
                        .map_err(|error| error.to_string())
                });
                Ok((row.get(0)?, message))
            })?
            .collect::<Result<_>>()?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = *last;
        for (position, message) in rows {
            match message {
                Ok(message) => {
                    let destination = message.destination.to_text();
                    route.execute((position, destination, key_hash(&message)))?
                }
                Err(why) => set_aside.execute((
                    position,
                    format!("its metadata, written by an older version, cannot be read: {why}"),
                ))?,
            };
        }
    }
}

/// Its destination, for people, if the text is JSON that says so.
const SET_OLD_ASIDE: &str = "\
update tidings_outbox set state = 2, reason = ?2, destination = coalesce(
    case when json_valid(message) then coalesce(
        'topic:' || json_extract(message, '$.topic'),
        'queue:' || json_extract(message, '$.queue'))
    end, '')
where position = ?1";

/// What outbox rows of a key are found by; `None` for a message without key.
pub(crate) fn key_hash(message: &Outgoing) -> Option<i64> {
    let key = message.envelope.key.as_deref()?;
    Some(hash_of_key(key).cast_signed())
}
