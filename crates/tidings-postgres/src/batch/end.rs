//! How a batch ends: everything that is kept is committed at once, and then everybody is told.

use std::time::Duration;

use futures_util::future::join;
use tidings_core::{Committed, StoreError, WorkError};
use tokio::time::timeout;

use super::{Batch, Ended, Next, PATIENCE, SILENT_MAX, ahead::Turns};
use crate::{
    error::{copy, explain},
    locks, outbox,
    runner::Ran,
};

/// How long a commit may take: it may wait for a standby.
pub(super) const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Keys are locked by others only while they commit.
const LET_WAIT: &str = "set local lock_timeout = '10s'";

impl Batch<'_> {
    pub(super) fn next(&self) -> Next {
        match self.has_stepped_aside() {
            true => Next::End,
            false => Next::Go,
        }
    }

    /// Nothing is committed: what has not begun is refused, all others are told that nothing stays.
    pub(super) fn break_off(mut self, turns: Turns) -> Next {
        let next = self.next();
        self.connection.discard();
        // One of them may be to blame, and does it again.
        if !self.is_alone {
            self.shared.runners.go_apart();
        }
        let lost = "the transaction was lost before its commit, nothing of it was written";
        let (begun, others) = turns.into_rest();
        for started in begun {
            let why = WorkError::Store(StoreError::conflict(lost));
            self.tell(started.close(), Err(why));
        }
        for attempt in others {
            let why = WorkError::NotBegun(StoreError::unavailable(lost));
            let _ = attempt.reply.send(Ran::Ended(Err(why)));
        }
        for Ended { reply, outcome } in self.ended {
            let outcome = match outcome {
                Ok(_) => Err(WorkError::Store(StoreError::conflict(lost))),
                Err(error) => Err(error),
            };
            let _ = reply.send(Ran::Ended(outcome));
        }
        next
    }

    /// Commits, and tells everybody.
    pub(super) async fn end(self) -> Next {
        let is_done = |ended: &Ended| matches!(ended.outcome, Ok(Committed::Done));
        let committed = match self.ended.iter().any(is_done) {
            true => self.commit().await,
            false => {
                if self.line.has_begun() {
                    self.roll_back().await;
                }
                Ok(())
            }
        };
        if committed.is_ok() && !self.outbox.is_empty() {
            self.shared.wake();
        }
        let next = self.next();
        for Ended { reply, outcome } in self.ended {
            let outcome = match (outcome, &committed) {
                (Ok(_), Err(error)) => Err(WorkError::Store(copy(error))),
                (outcome, _) => outcome,
            };
            let _ = reply.send(Ran::Ended(outcome));
        }
        next
    }

    /// The database has refused all of it, because of one. Whoever is to blame is told when it is
    /// alone.
    fn apart(&self, why: &StoreError) -> StoreError {
        self.shared.runners.go_apart();
        StoreError::conflict(format!(
            "{why}; nothing was written, and each is tried again alone"
        ))
    }

    pub(super) async fn roll_back(&self) {
        let undone = timeout(SILENT_MAX, self.connection.run("rollback")).await;
        if !matches!(undone, Ok(Ok(()))) {
            self.connection.discard();
        }
    }

    async fn commit(&self) -> Result<(), StoreError> {
        let connection = &self.connection;
        let sends = !self.outbox.is_empty();
        let keys = locks::keys_sent(&self.outbox);
        let columns = outbox::Columns::of(&self.outbox);
        let write = async {
            match sends {
                true => outbox::write(connection, self.shared, self.writing, &keys, &columns).await,
                false => Ok(()),
            }
        };
        let let_wait = async {
            match sends && self.line.has_begun() && !self.is_alone {
                true => connection.run(LET_WAIT).await,
                false => Ok(()),
            }
        };
        let write = async {
            let (_, written) = join(let_wait, write).await;
            written // It fails too if that did.
        };
        // Without a transaction the statement is one for itself.
        let commit = async {
            match self.line.has_begun() {
                true => connection.run("commit").await,
                false => Ok(()),
            }
        };
        let ending = self.wait(join(write, commit), PATIENCE, COMMIT_MAX).await;
        let (written, ended) = ending.map_err(|error| {
            connection.discard();
            explain("end a transaction", error)
        })?;
        if let Err(error) = written {
            let error = explain("write the outbox", error);
            if ended.is_err() {
                connection.discard();
            }
            if self.is_alone || error.is_unavailable() {
                return Err(error);
            }
            return Err(self.apart(&error));
        }
        let Err(error) = ended else { return Ok(()) };
        let is_known = error.is_refusal();
        let error = explain("end a transaction", error);
        if !is_known || error.is_unavailable() {
            connection.discard();
            return Err(error);
        }
        match self.is_alone {
            true => Err(error),
            false => Err(self.apart(&error)),
        }
    }
}
