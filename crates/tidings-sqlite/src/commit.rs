//! What the toolkit adds to a transaction before it commits.
//!
//! The inbox comes first: a message that is known is known, even if a record conflicts as well.

use rusqlite::{CachedStatement, Connection, Result};
use tidings_core::{Commit, Committed, Keeping, RecordId, Refusal, StoreError};

use crate::{clock::now_ms, inbox, outbox, records};

/// Whether a commit was written. All but `Done` asks the caller to roll back.
pub(crate) enum Written {
    Done,
    Refused(Committed),
    Conflict(RecordId),
    Misused(String),
}

pub(crate) fn write(
    connection: &Connection,
    keeping: &Keeping,
    commit: &Commit,
) -> Result<Written> {
    let now = now_ms();
    let mut statement = LastStatement::of(connection);
    for (place, entry) in commit.inbox.iter().enumerate() {
        if let Some(why) = inbox::misuse(entry) {
            return Ok(Written::Misused(why));
        }
        let refusal = match entry.is_plain() {
            true => {
                let is_new = inbox::handle(statement.get(inbox::HANDLE)?, entry, now)?;
                (!is_new).then_some(Refusal::Known)
            }
            false => inbox::write(connection, entry, now)?,
        };
        if let Some(why) = refusal {
            return Ok(Written::Refused(Committed::Refused { entry: place, why }));
        }
    }
    if let Some(change) = records::write(connection, &commit.records, now)? {
        return Ok(Written::Conflict(change.id.clone()));
    }
    outbox::write(connection, keeping, &commit.outbox, now)?;
    Ok(Written::Done)
}

impl Written {
    pub(crate) fn into_result(self) -> std::result::Result<Committed, StoreError> {
        match self {
            Self::Done => Ok(Committed::Done),
            Self::Refused(refused) => Ok(refused),
            Self::Conflict(record) => Err(StoreError::conflict(format!(
                "the record `{}` of kind `{}` is not as expected: another transaction wrote it; \
                 read it again",
                record.id, record.kind
            ))),
            Self::Misused(why) => Err(StoreError::new(why)),
        }
    }
}

/// A statement that is kept until another one is needed: many rows of a kind look it up only once.
pub(crate) struct LastStatement<'c> {
    connection: &'c Connection,
    last: Option<(&'static str, CachedStatement<'c>)>,
}

impl<'c> LastStatement<'c> {
    pub(crate) fn of(connection: &'c Connection) -> Self {
        Self {
            connection,
            last: None,
        }
    }

    pub(crate) fn get(&mut self, sql: &'static str) -> Result<&mut CachedStatement<'c>> {
        let last = match self.last.take() {
            Some(last) if last.0 == sql => last,
            _ => (sql, self.connection.prepare_cached(sql)?),
        };
        Ok(&mut self.last.insert(last).1)
    }
}
