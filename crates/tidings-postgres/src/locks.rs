//! Locks on what has no row to lock: the keys that order is kept by, and records that are not
//! there yet.
//!
//! They are advisory locks, named by a number of the schema and a hash, and end with the
//! transaction. Two names with one hash only wait for each other.
//!
//! No deadlock comes of a commit, because every commit takes what it waits for in one order: new
//! rows of the inbox without order (the claims of deliveries that were handled first, then what waits or
//! is dead, both by name), then records by name, then the keys of its outbox rows and of its inbox
//! rows together by hash, then the other rows of the inbox. (Attempts that share a transaction
//! write their claims before they begin. A handler's own statements may run into those of another;
//! the database ends one of the two then, which is a conflict.)

use tidings_core::{Claim, Commit, OrderKey, Outgoing, Over, StoreError};

use crate::{
    connection::{Connection, Params},
    error::explain,
    values::claim_columns,
};

/// The first halves of the names of a schema's locks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LockNames {
    pub(crate) keys: i32,
    pub(crate) records: i32,
}

impl LockNames {
    pub(crate) fn of_schema(schema: &str) -> Self {
        Self {
            keys: hash(schema.bytes()),
            records: hash(schema.bytes().chain(*b" records")),
        }
    }
}

/// 32 bits of FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> i32 {
    bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    }) as i32
}

/// The second half of the name of a key's lock.
pub(crate) fn hash_of_order(order: &OrderKey) -> i32 {
    hash_of_pair(&order.group, &order.key)
}

pub(crate) fn hash_of_pair(first: &str, second: &str) -> i32 {
    hash(first.bytes().chain([0]).chain(second.bytes()))
}

/// The keys of the messages to send, and of the ordered messages that are handled: sorted, each
/// once.
pub(crate) fn keys_of(commit: &Commit) -> Vec<i32> {
    let handled = commit.inbox.iter().filter_map(|entry| entry.order.as_ref());
    let handled = handled.map(hash_of_order);
    sorted(hashes_sent(&commit.outbox).chain(handled).collect())
}

/// The keys of messages to send: sorted, each once.
pub(crate) fn keys_sent(messages: &[Outgoing]) -> Vec<i32> {
    sorted(hashes_sent(messages).collect())
}

fn hashes_sent(messages: &[Outgoing]) -> impl Iterator<Item = i32> {
    let keys = messages.iter().map(|message| &message.envelope.key);
    keys.flatten().map(|key| hash(key.bytes()))
}

fn sorted(mut keys: Vec<i32>) -> Vec<i32> {
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Locks the keys of a commit, and those of the rows that it is written over.
///
/// Whatever decides by what a key's rows say must be a statement of its own after this one: only
/// then it sees what the holder before committed. So it must be in an isolation that takes a
/// new snapshot for each statement, and others are refused.
pub(crate) async fn lock_keys(
    connection: &Connection,
    names: LockNames,
    commit: &Commit,
) -> Result<(), StoreError> {
    let keys = keys_of(commit);
    let over_rows = commit
        .inbox
        .iter()
        .filter(|entry| entry.over != Over::Nothing);
    let over_rows: Vec<&Claim> = over_rows.map(|entry| &entry.claim).collect();
    if keys.is_empty() && over_rows.is_empty() {
        return Ok(());
    }
    let isolation = lock(connection, names, &keys, over_rows).await?;
    let looks_at_keys = commit.inbox.iter().any(|entry| !entry.is_plain());
    if looks_at_keys && isolation != "read committed" {
        return Err(StoreError::new(format!(
            "cannot keep the order of keys in a transaction that is `{isolation}`; leave the \
             isolation of a handler's transaction as it is, and use `for update` where a row must \
             not change"
        )));
    }
    Ok(())
}

/// Locks `keys`, which are sorted, and the keys of the rows of `claims`, all in one order. Returns
/// the isolation of the transaction.
pub(crate) async fn lock(
    connection: &Connection,
    names: LockNames,
    keys: &[i32],
    claims: Vec<&Claim>,
) -> Result<String, StoreError> {
    let (consumers, messages) = claim_columns(claims);
    let params: Params<'_> = &[&names.keys, &keys, &consumers, &messages];
    let locked = connection.row(LOCK, params).await;
    let isolation = locked.and_then(|row| Ok(row.try_get(0)?));
    isolation.map_err(|error| explain("lock the keys of messages", error))
}

/// So that the locks are asked for before what is sent after them.
pub(crate) async fn prepare(connection: &Connection) -> Result<(), StoreError> {
    let prepared = connection.prepare(LOCK).await;
    prepared.map_err(|error| explain("lock the keys of messages", error))
}

const LOCK: &str = "
    select current_setting('transaction_isolation'), count(pg_advisory_xact_lock($1, key))
    from (
        select unnest($2::int[]) as key
        union
        select row.order_hash
        from unnest($3::text[], $4::text[]) as named (consumer, message)
        join tidings_inbox as row using (consumer, message)
        where row.order_hash is not null
        order by key
    ) as keys";
