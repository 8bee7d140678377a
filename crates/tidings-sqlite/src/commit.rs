//! What the toolkit adds to a transaction before it commits.
//!
//! The inbox comes first: a message that is known is known, even if a record conflicts as well.

use rusqlite::{Connection, Result};
use tidings_core::{Commit, Committed, Keeping, RecordId, StoreError};

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
    for (place, entry) in commit.inbox.iter().enumerate() {
        if let Some(why) = inbox::misuse(entry) {
            return Ok(Written::Misused(why));
        }
        if let Some(why) = inbox::write(connection, entry, now)? {
            return Ok(Written::Refused(Committed::Refused { entry: place, why }));
        }
    }
    for change in &commit.records {
        if !records::write(connection, change, now)? {
            return Ok(Written::Conflict(change.id.clone()));
        }
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
