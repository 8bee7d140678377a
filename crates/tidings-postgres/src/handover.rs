//! The transaction of a batch in the hands of one attempt: its `Tx` runs statements through this, and
//! the batch knows whether one is under way, how it ended, and that none comes later.
//!
//! The statement of an attempt whose turn has not come yet may be sent *ahead*. Nobody sees its answer
//! before the attempts in front of it have ended. If one of those sends something more after all, or
//! is undone, what was sent ahead is taken back, and sent again in its turn.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use futures_util::future::join;
use parking_lot::Mutex;
use tidings_core::StoreError;

use crate::{
    connection::Connection,
    error::{Error, failed},
};

/// While others wait to be committed with it, a statement of a handler waits no longer for a lock. (Two
/// batches of two processes that want each other's rows would wait for the database to notice, a second
/// by default.)
pub(crate) const BEGIN_SHARED: &str = "begin; set local lock_timeout = '20ms'";

/// What the attempts of a batch have sent, one behind the other.
pub(crate) struct Line {
    /// Several attempts share the transaction, each with a savepoint.
    is_shared: bool,
    state: Mutex<Sent>,
}

struct Sent {
    has_begun: bool,
    /// Whose savepoints were sent ahead, in their order.
    ahead: VecDeque<usize>,
    /// How often such were taken back.
    taken_back: u32,
    /// How many attempts have begun.
    attempts: usize,
}

impl Sent {
    /// Takes back what was sent ahead.
    fn take_back(&mut self) -> Option<String> {
        let first = self.ahead.pop_front()?;
        self.forget_ahead();
        Some(format!(
            "rollback to savepoint a{first}; release savepoint a{first}"
        ))
    }

    /// What was sent ahead is gone.
    fn forget_ahead(&mut self) {
        self.ahead.clear();
        self.taken_back += 1;
    }
}

impl Line {
    pub(crate) fn new(is_shared: bool) -> Self {
        let state = Mutex::new(Sent {
            has_begun: false,
            ahead: VecDeque::new(),
            taken_back: 0,
            attempts: 0,
        });
        Self { is_shared, state }
    }

    fn take_number(&self) -> usize {
        let mut state = self.state.lock();
        state.attempts += 1;
        state.attempts
    }

    /// The statement that begins the transaction was sent.
    pub(crate) fn began(&self) {
        self.state.lock().has_begun = true;
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.state.lock().has_begun
    }

    pub(crate) fn taken_back(&self) -> u32 {
        self.state.lock().taken_back
    }
}

/// The transaction of a batch, lent to one of its attempts.
pub(crate) struct Handover {
    /// It may do whatever it likes: nobody shares the transaction, and nothing of it came before.
    is_free: bool,
    /// Its place in the batch, which its savepoint is named after.
    number: usize,
    line: Arc<Line>,
    state: Mutex<Lent>,
}

#[derive(Clone)]
pub(crate) struct Lent {
    /// `None` when the attempt has ended.
    connection: Option<Arc<Connection>>,
    /// Its turn has not come yet.
    is_ahead: bool,
    /// Its savepoint was sent, when so much had been taken back.
    saved: Option<u32>,
    /// How many statements were sent.
    pub(crate) sent: u32,
    /// The one under way was sent, and needs nothing more to be sent: so it is not being prepared.
    is_under_way: bool,
    /// How many statements are under way.
    pub(crate) running: u32,
    pub(crate) has_failed: bool,
    /// Nobody saw how a statement ended.
    pub(crate) is_unsure: bool,
    /// It asked for more than can be shared.
    pub(crate) wants_own: bool,
}

impl Handover {
    pub(crate) fn new(connection: &Arc<Connection>, line: &Arc<Line>, is_free: bool) -> Self {
        Self {
            is_free,
            number: line.take_number(),
            line: Arc::clone(line),
            state: Mutex::new(Lent {
                connection: Some(Arc::clone(connection)),
                is_ahead: true,
                saved: None,
                sent: 0,
                is_under_way: false,
                running: 0,
                has_failed: false,
                is_unsure: false,
                wants_own: false,
            }),
        }
    }

    /// The turn of its attempt has come.
    pub(crate) fn turn(&self) {
        let (mut state, mut line) = (self.state.lock(), self.line.state.lock());
        state.is_ahead = false;
        match line.ahead.front() {
            Some(first) if *first == self.number => drop(line.ahead.pop_front()),
            // It was taken back, or never sent.
            _ => (state.saved, state.sent) = (None, 0),
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
            has_ended: AtomicBool::new(false),
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

    /// What must be sent before its next statement, and how much was taken back then.
    pub(crate) fn prelude(&self) -> (Option<String>, u32) {
        let (mut state, mut line) = (self.state.lock(), self.line.state.lock());
        state.is_under_way = false;
        let has_begun = std::mem::replace(&mut line.has_begun, true);
        if !self.line.is_shared {
            state.saved = Some(0);
            return ((!has_begun).then(|| "begin".to_owned()), 0);
        }
        let mut prelude = match has_begun {
            true => Vec::new(),
            false => vec![BEGIN_SHARED.to_owned()],
        };
        if state.is_ahead {
            // Not the one that was sent before and taken back.
            state.saved = state.saved.filter(|at| *at == line.taken_back);
        } else {
            prelude.extend(line.take_back());
        }
        if state.saved.is_none() {
            prelude.push(format!("savepoint a{}", self.number));
            state.sent = 0;
            if state.is_ahead {
                line.ahead.push_back(self.number);
            }
        }
        state.saved = Some(line.taken_back);
        let prelude = (!prelude.is_empty()).then(|| prelude.join("; "));
        (prelude, line.taken_back)
    }

    /// What undoes the attempt, whose turn it is.
    pub(crate) fn undoing(&self) -> Option<String> {
        let (state, mut line) = (self.state.lock(), self.line.state.lock());
        if !self.line.is_shared || state.saved.is_none() {
            return line.take_back();
        }
        line.forget_ahead();
        Some(format!("rollback to savepoint a{}", self.number))
    }

    /// The statement that runs is sent now.
    fn sends(&self) {
        let mut state = self.state.lock();
        state.sent += 1;
        state.is_under_way = true;
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.lock().running > 0
    }

    /// A statement is under way, as the `count`th or a later one, and stays unless the attempt or one in
    /// front of it sends more.
    pub(crate) fn has_sent(&self, count: u32) -> bool {
        let state = self.state.lock();
        let is_there = !state.is_ahead || state.saved == Some(self.line.taken_back());
        is_there && state.is_under_way && state.sent >= count
    }

    /// Something was sent ahead, and has not been taken back.
    pub(crate) fn is_ahead(&self) -> bool {
        let state = self.state.lock();
        state.is_ahead && state.saved == Some(self.line.taken_back())
    }

    /// The attempt has ended: whoever still has its `Tx` can do nothing with it.
    pub(crate) fn close(&self) -> Lent {
        let mut state = self.state.lock();
        state.connection = None;
        state.clone()
    }
}

/// A statement of an attempt in a batch.
pub(crate) struct Running {
    handover: Arc<Handover>,
    connection: Arc<Connection>,
    has_ended: AtomicBool,
}

impl Running {
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Runs it, together with what must come before; once more if it was taken back. It is `prepared`
    /// first, and sent by `statement` when that is first polled.
    pub(crate) async fn run<P, T, E, F, G>(
        &self,
        prepared: impl Fn() -> F,
        statement: impl Fn(P) -> G,
    ) -> Result<Result<T, E>, StoreError>
    where
        E: Failure,
        F: Future<Output = Result<P, E>>,
        G: Future<Output = Result<T, E>>,
    {
        loop {
            let (prelude, taken_back) = self.handover.prelude();
            let is_taken_back = || self.handover.line.taken_back() != taken_back;
            let begin = async {
                match prelude {
                    Some(prelude) => self.connection.run(&prelude).await,
                    None => Ok(()),
                }
            };
            let statement = async {
                let prepared = match prepared().await {
                    Ok(prepared) => prepared,
                    Err(error) => return Some(Err(error)),
                };
                // While it was prepared: then what must come before it is not there any more.
                if is_taken_back() {
                    return None;
                }
                self.handover.sends();
                Some(statement(prepared).await)
            };
            let (begun, result) = join(begin, statement).await;
            let Some(result) = result.filter(|_| !is_taken_back()) else {
                continue;
            };
            begun.map_err(failed)?;
            return Ok(self.ended(result));
        }
    }

    /// Runs something that is more than one statement. It is not sent ahead.
    pub(crate) async fn run_in_turn<T, E: Failure>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, StoreError> {
        // The batch polls it when its turn comes.
        poll_fn(|_| match self.handover.state.lock().is_ahead {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        let begun = match self.handover.prelude().0 {
            Some(prelude) => self.connection.run(&prelude).await,
            None => Ok(()),
        };
        begun.map_err(failed)?;
        Ok(self.ended(work.await))
    }

    /// Somebody has seen how it ended.
    fn ended<T, E: Failure>(&self, result: Result<T, E>) -> Result<T, E> {
        self.has_ended.store(true, Ordering::Relaxed);
        let has_failed = result.as_ref().is_err_and(Failure::ends_transaction);
        self.handover.state.lock().has_failed |= has_failed;
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.handover.state.lock();
        state.running -= 1;
        state.is_under_way = false;
        state.is_unsure |= !*self.has_ended.get_mut();
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
