//! What a commit writes, statement by statement.
//!
//! The usual commit (one delivery was handled, or none, and messages are sent) is one statement,
//! which is one round trip, and alone a transaction. All others are several, within one
//! transaction.

use std::{collections::HashSet, sync::Arc};

use futures_util::future::join3;
use tidings_core::{Commit, Committed, InboxEntry, RecordId, StoreError};

use crate::{
    PostgresTransaction, Shared, connection::Connection, error::explain, inbox, locks, outbox,
    records,
};

/// Commits without a transaction that was begun.
pub(crate) async fn commit_alone(
    shared: &Arc<Shared>,
    commit: Commit,
) -> Result<Committed, StoreError> {
    if commit.is_empty() {
        return Ok(Committed::Done);
    }
    if is_usual(&commit) {
        let connection = shared.pool.get().await;
        let connection = connection.map_err(|error| explain("begin a transaction", error))?;
        let written = outbox::write_usual(&connection, shared, &commit).await?;
        shared.committed(&commit, &written);
        return Ok(written);
    }
    let transaction = PostgresTransaction::begin(Arc::clone(shared)).await?;
    transaction.finish(commit).await
}

/// Writes what is in `commit` within a transaction; `locked` are records that it has read. After
/// `Refused`, what was written must be rolled back.
pub(crate) async fn write(
    connection: &Connection,
    shared: &Shared,
    locked: &HashSet<RecordId>,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    if commit.is_empty() {
        return refuse_aborted(connection).await.map(|()| Committed::Done);
    }
    if is_usual(commit) {
        return outbox::write_usual(connection, shared, commit).await;
    }
    if let refused @ Committed::Refused { .. } =
        write_but_outbox(connection, shared, locked, commit).await?
    {
        return Ok(refused);
    }
    if !commit.outbox.is_empty() {
        // Their keys are locked.
        let columns = outbox::Columns::of(&commit.outbox);
        let writing = outbox::Writing::now(shared);
        let written = outbox::write(connection, shared, writing, &[], &columns).await;
        written.map_err(|error| explain("write the outbox", error))?;
    }
    Ok(Committed::Done)
}

/// Everything but the rows of the outbox, whose keys are locked too.
pub(crate) async fn write_but_outbox(
    connection: &Connection,
    shared: &Shared,
    locked: &HashSet<RecordId>,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    let changed = commit.records.iter().map(|change| &change.id);
    let mut unlocked: Vec<&RecordId> = changed.filter(|id| !locked.contains(*id)).collect();
    if unlocked.is_empty() && commit.inbox.iter().all(InboxEntry::is_plain) {
        return write_at_once(connection, shared, commit).await;
    }
    if let Some((entry, why)) = inbox::write_new(connection, commit).await? {
        return Ok(Committed::Refused { entry, why });
    }
    unlocked.sort_unstable();
    records::lock(connection, shared.locks, &unlocked).await?;
    locks::lock_keys(connection, shared.locks, commit).await?;
    if let Some((entry, why)) = inbox::write_others(connection, commit).await? {
        return Ok(Committed::Refused { entry, why });
    }
    records::write(connection, &commit.records).await?;
    Ok(Committed::Done)
}

/// The same if nothing of it depends on an answer: messages without order, and records that are locked. A
/// batch of answers to sagas is that.
async fn write_at_once(
    connection: &Connection,
    shared: &Shared,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    // Else what is prepared already would overtake it.
    inbox::prepare_claims(connection).await?;
    locks::prepare(connection).await?;
    let claims = inbox::write_new(connection, commit);
    let keys = locks::lock_keys(connection, shared.locks, commit);
    let records = records::write(connection, &commit.records);
    let (refused, keys, records) = join3(claims, keys, records).await;
    if let Some((entry, why)) = refused? {
        return Ok(Committed::Refused { entry, why });
    }
    keys?;
    records?;
    Ok(Committed::Done)
}

/// Whether [`outbox::write_usual`] can write it.
fn is_usual(commit: &Commit) -> bool {
    let handled = match &*commit.inbox {
        [] => true,
        [entry] => entry.is_plain(),
        _ => false,
    };
    handled && commit.records.is_empty()
}

/// Fails if a statement of this transaction failed: the database answers its commit with a
/// rollback, which the driver takes for success.
async fn refuse_aborted(connection: &Connection) -> Result<(), StoreError> {
    connection
        .execute("select", &[])
        .await
        .map(drop)
        .map_err(|error| explain("commit a transaction", error))
}

#[cfg(test)]
mod tests {
    use tidings_core::{
        Claim, Destination, Envelope, Expected, OrderKey, Outgoing, Over, RecordChange, RecordId,
        Unrouted,
    };

    use super::*;

    fn handled(id: &str) -> InboxEntry {
        InboxEntry::handled(Claim {
            consumer: "c".into(),
            message: id.into(),
        })
    }

    #[test]
    fn what_a_handler_and_a_producer_usually_commit_is_one_statement() {
        let message = Outgoing {
            destination: Destination::topic("t"),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("n", "{}"),
        };
        let usual = Commit {
            inbox: vec![handled("1")],
            outbox: vec![message.clone(), message],
            records: Vec::new(),
        };
        assert!(is_usual(&usual));
        let sent = Commit {
            inbox: Vec::new(),
            ..usual.clone()
        };
        assert!(is_usual(&sent));

        let mut ordered = usual.clone();
        ordered.inbox[0].order = Some(OrderKey {
            group: "g".into(),
            key: "k".into(),
        });
        let mut redriven = usual.clone();
        redriven.inbox[0].over = Over::Dead { redrive: 1 };
        let mut two = usual.clone();
        two.inbox.push(handled("2"));
        let record = RecordChange {
            id: RecordId::new("k", "1"),
            expected: Expected::Anything,
            value: None,
        };
        let with_record = Commit {
            records: vec![record],
            ..usual
        };
        for other in [ordered, redriven, two, with_record] {
            assert!(!is_usual(&other), "{other:?}");
        }
    }
}
