//! How commits write rows of the outbox, and of the log if events are kept.

use tidings_core::{
    Commit, Committed, Destination, Lane, Outgoing, Refusal, StoreError, hash_of_key,
};

use crate::{
    Shared,
    connection::Connection,
    error::{Error, explain},
    locks::keys_of,
    values::lane_number,
};

/// What becomes of the rows of `written`, if events are kept. Destinations of events begin with
/// `topic:` ([`Destination::to_text`]).
macro_rules! and_keep {
    () => {
        "
        returning position, created_at, destination, message, body
    ), kept as (
        insert into tidings_log (segment, position, written, message, body)
        select (select segment from tidings_log_state), position, created_at, message, body
        from written where destination like 'topic:%'"
    };
}

/// The usual commit outside of [`batch`](crate::batch): at most one delivery that was handled, and
/// messages to send.
///
/// A row's position is drawn when it is written, not when it is committed. So that positions of a
/// key follow the order of commits, a transaction first locks the keys of its messages, until it
/// ends.
macro_rules! write_usual {
    ($and:expr) => {
        concat!(
            "
    with claimed as (
        insert into tidings_inbox (consumer, message)
        select $1::text, $2::text where $1::text is not null
        on conflict do nothing
        returning 1
    ), claim as materialized (
        select $1::text is null or exists (select from claimed) as free
    ), locked as materialized (
        select count(pg_advisory_xact_lock($3, key)) from claim, unnest($4::int[]) as key
        where claim.free
    ), written as (
        insert into tidings_outbox (lane, destination, key_hash, message, body)
        select lane, destination, key_hash, message, body
        from locked, claim, unnest($5::smallint[], $6::text[], $7::bigint[], $8::text[], $9::bytea[])
            with ordinality as row (lane, destination, key_hash, message, body, number)
        where claim.free
        order by number",
            $and,
            "
    )
    select free from claim"
        )
    };
}
const WRITE_USUAL: &str = write_usual!("");
const WRITE_USUAL_AND_KEEP: &str = write_usual!(and_keep!());

/// Writes the messages alone, in their order, after it has locked their keys.
const WRITE: &str = "
    with locked as materialized (
        select count(pg_advisory_xact_lock($1, key)) from unnest($2::int[]) as key
    )
    insert into tidings_outbox (lane, destination, key_hash, message, body)
    select lane, destination, key_hash, message, body
    from locked, unnest($3::smallint[], $4::text[], $5::bigint[], $6::text[], $7::bytea[])
        with ordinality as row (lane, destination, key_hash, message, body, number)
    order by number";

/// The same, and those that are events into the log.
const WRITE_AND_KEEP: &str = concat!(
    "
    with locked as materialized (
        select count(pg_advisory_xact_lock($1, key)) from unnest($2::int[]) as key
    ), written as (
        insert into tidings_outbox (lane, destination, key_hash, message, body)
        select lane, destination, key_hash, message, body
        from locked, unnest($3::smallint[], $4::text[], $5::bigint[], $6::text[], $7::bytea[])
            with ordinality as row (lane, destination, key_hash, message, body, number)
        order by number",
    and_keep!(),
    "
    )
    select"
);

/// The columns of messages.
#[derive(Default)]
pub(crate) struct Columns<'a> {
    lanes: Vec<i16>,
    destinations: Vec<String>,
    key_hashes: Vec<Option<i64>>,
    metadata: Vec<String>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(messages: impl IntoIterator<Item = &'a Outgoing>) -> Self {
        let mut columns = Self::default();
        for message in messages {
            columns.lanes.push(lane_number(Lane::of_message(message)));
            columns.destinations.push(message.destination.to_text());
            columns.key_hashes.push(key_hash(message));
            columns.metadata.push(message.to_metadata());
            columns.bodies.push(&message.envelope.body);
        }
        columns
    }
}

/// The hash of a message's key, as `bigint` holds it.
pub(crate) fn key_hash(message: &Outgoing) -> Option<i64> {
    let key = message.envelope.key.as_deref()?;
    Some(hash_of_key(key).cast_signed())
}

/// Whether the database can hold the texts of a message: a NUL in one is all that it cannot.
pub(crate) fn is_storable(message: &Outgoing) -> bool {
    let name = match &message.destination {
        Destination::Topic(name) | Destination::Queue(name) => name,
    };
    !name.contains('\0')
}

/// Writes a usual commit. After `Refused` nothing was written.
pub(crate) async fn write_usual(
    connection: &Connection,
    shared: &Shared,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    let sql = match shared.keeping.kept() {
        Some(_) => WRITE_USUAL_AND_KEEP,
        None => WRITE_USUAL,
    };
    let claim = commit.inbox.first().map(|entry| &entry.claim);
    let columns = Columns::of(&commit.outbox);
    let written = connection
        .row(
            sql,
            &[
                &claim.map(|claim| &*claim.consumer),
                &claim.map(|claim| claim.message.as_str()),
                &shared.locks.keys,
                &keys_of(commit),
                &columns.lanes,
                &columns.destinations,
                &columns.key_hashes,
                &columns.metadata,
                &columns.bodies,
            ],
        )
        .await;
    let is_free = written.and_then(|row| Ok(row.try_get(0)?));
    match is_free.map_err(|error| explain("write claim and outbox", error))? {
        true => Ok(Committed::Done),
        false => Ok(Committed::Refused {
            entry: 0,
            why: Refusal::Known,
        }),
    }
}

/// How [`write`] writes.
#[derive(Clone, Copy)]
pub(crate) struct Writing(&'static str);

impl Writing {
    /// Sees to it that what is written is sent when it is first polled.
    pub(crate) async fn prepare(shared: &Shared, connection: &Connection) -> Result<Self, Error> {
        let writing = Self::now(shared);
        connection.prepare(writing.0).await?;
        Ok(writing)
    }

    pub(crate) fn now(shared: &Shared) -> Self {
        match shared.keeping.kept() {
            Some(_) => Self(WRITE_AND_KEEP),
            None => Self(WRITE),
        }
    }
}

/// Writes messages of which `keys` are the keys, sorted ([`keys_of`]).
pub(crate) async fn write(
    connection: &Connection,
    shared: &Shared,
    writing: Writing,
    keys: &[i32],
    columns: &Columns<'_>,
) -> Result<(), Error> {
    connection
        .execute(
            writing.0,
            &[
                &shared.locks.keys,
                &keys,
                &columns.lanes,
                &columns.destinations,
                &columns.key_hashes,
                &columns.metadata,
                &columns.bodies,
            ],
        )
        .await
        .map(drop)
}
