//! The transaction of a batch in the hands of one attempt: its `Tx` runs statements through this, and
//! the batch knows whether one is under way, how it ended, and that none comes later.

use std::sync::Arc;

use futures_util::future::join;
use parking_lot::Mutex;
use tidings_core::StoreError;

use crate::{
    connection::Connection,
    error::{Error, failed},
};

/// The transaction of a batch, lent to one of its attempts.
pub(crate) struct Handover {
    /// It may do whatever it likes: nobody shares the transaction, and nothing of it came before.
    is_free: bool,
    state: Mutex<Lent>,
}

pub(crate) struct Lent {
    /// `None` when the attempt has ended.
    connection: Option<Arc<Connection>>,
    /// What is sent together with the first statement.
    pub(crate) prelude: Option<&'static str>,
    /// How many statements are under way.
    pub(crate) running: u32,
    pub(crate) has_failed: bool,
    /// Nobody saw how a statement ended.
    pub(crate) is_unsure: bool,
    /// It asked for more than can be shared.
    pub(crate) wants_own: bool,
}

impl Handover {
    pub(crate) fn new(
        connection: &Arc<Connection>,
        is_free: bool,
        prelude: Option<&'static str>,
    ) -> Self {
        Self {
            is_free,
            state: Mutex::new(Lent {
                connection: Some(Arc::clone(connection)),
                prelude,
                running: 0,
                has_failed: false,
                is_unsure: false,
                wants_own: false,
            }),
        }
    }

    /// This statement begins.
    pub(crate) fn enter(self: &Arc<Self>, sql: &str) -> Result<Running, StoreError> {
        if !can_be_shared(sql) {
            self.may_all()?;
        }
        self.enter_shared()
    }

    /// The driver's client is used: nobody but its user knows how that goes.
    pub(crate) fn enter_freely(self: &Arc<Self>) -> Result<Running, StoreError> {
        self.may_all()?;
        self.enter_shared()
    }

    /// Something begins that harms nobody.
    pub(crate) fn enter_shared(self: &Arc<Self>) -> Result<Running, StoreError> {
        let mut state = self.state.lock();
        let connection = state.connection.as_ref().map(Arc::clone).ok_or_else(|| {
            StoreError::new("the handler has returned; a transaction cannot outlive it")
        })?;
        state.running += 1;
        Ok(Running {
            handover: Arc::clone(self),
            connection,
            prelude: state.prelude.take(),
            has_ended: false,
        })
    }

    fn may_all(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if self.is_free {
            state.is_unsure = true;
            return Ok(());
        }
        state.has_failed = true;
        state.wants_own = true;
        Err(StoreError::conflict(
            "the handler does more with its transaction than others can share (the driver's client, \
             or a statement other than `select`, `insert`, `update`, `delete`, `merge` and `lock`); it \
             is tried again in a transaction of its own",
        ))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.lock().running > 0
    }

    /// The attempt has ended: whoever still has its `Tx` can do nothing with it.
    pub(crate) fn close(&self) -> Lent {
        let mut state = self.state.lock();
        state.connection = None;
        Lent {
            connection: None,
            ..*state
        }
    }
}

/// A statement of an attempt in a batch.
pub(crate) struct Running {
    handover: Arc<Handover>,
    connection: Arc<Connection>,
    prelude: Option<&'static str>,
    has_ended: bool,
}

impl Running {
    pub(crate) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    /// Runs it, together with what must come before.
    pub(crate) async fn run<T, E: Failure>(
        mut self,
        statement: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, StoreError> {
        let result = match self.prelude {
            Some(prelude) => {
                let (begun, result) = join(self.connection.run(prelude), statement).await;
                begun.map_err(failed)?;
                result
            }
            None => statement.await,
        };
        self.has_ended = true;
        let has_failed = result.as_ref().is_err_and(Failure::ends_transaction);
        self.handover.state.lock().has_failed |= has_failed;
        Ok(result)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.handover.state.lock();
        state.running -= 1;
        state.is_unsure |= !self.has_ended;
    }
}

/// Whether the database takes no further statement of the transaction after this.
pub(crate) trait Failure {
    fn ends_transaction(&self) -> bool;
}

impl Failure for Error {
    fn ends_transaction(&self) -> bool {
        match self {
            Self::Driver(error) => error.as_db_error().is_some() || error.is_closed(),
            Self::NoneFree | Self::Silent => true,
        }
    }
}

impl Failure for StoreError {
    fn ends_transaction(&self) -> bool {
        true
    }
}

/// Whether nothing of a statement lasts in the transaction but what it reads, writes and locks: no
/// savepoint, no setting, no end.
fn can_be_shared(sql: &str) -> bool {
    const WORDS: [&str; 9] = [
        "select", "insert", "update", "delete", "merge", "with", "values", "table", "lock",
    ];
    let word = without_comments(sql).trim_start_matches(['(', ' ', '\n', '\t', '\r']);
    let end = word.find(|character: char| !character.is_ascii_alphabetic());
    let word = &word[..end.unwrap_or(word.len())];
    WORDS.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// What follows the comments at the beginning. (One inside another is left: such a statement is only
/// run alone.)
fn without_comments(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        let after = match rest {
            line if line.starts_with("--") => line.split_once('\n').map(|(_, after)| after),
            block if block.starts_with("/*") => block.split_once("*/").map(|(_, after)| after),
            _ => return rest,
        };
        rest = after.unwrap_or_default().trim_start();
    }
}

pub(crate) fn outlived() -> StoreError {
    StoreError::new(
        "the handler returned while a statement of its `Tx` was still running; a transaction cannot \
         outlive its handler: do not move `Tx` into a spawned task",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_in_a_transaction_is_not_shared() {
        for sql in [
            "select 1",
            "  (select 1)",
            "-- all\n/* of */ them\nINSERT into t values (1)",
            "with x as (select 1) update t set a = 1",
            "lock table t",
        ] {
            let sql = sql.replace("them\n", "");
            assert!(can_be_shared(&sql), "{sql}");
        }
        for sql in [
            "savepoint a",
            "rollback",
            "Commit",
            "set local x = 1",
            "create temporary table t (a int)",
            "selection",
            "/* never ended select",
            "",
        ] {
            assert!(!can_be_shared(sql), "{sql}");
        }
    }
}
