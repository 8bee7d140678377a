//! The writer's own statements, and the guard that lets nobody else begin, commit and roll back.
//!
//! They are prepared when they are first needed and kept: to look one up by its text costs as much as
//! to run it.
//!
//! A transaction that shares the outer one gets its savepoint before its first write that may have to
//! be undone by it. The claim of a message is one row that nobody else knows: it is written before, and
//! taken back by its number. So an attempt that writes nothing but its claim needs no savepoint, and
//! SQLite keeps no copy of the inbox's pages for any.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rusqlite::{
    Connection, Result, Statement,
    hooks::{AuthAction, AuthContext, Authorization},
};
use tidings_core::{InboxEntry, Refusal};

use crate::{clock::now_ms, inbox};

/// The savepoint of the transaction that runs.
const SAVEPOINT: &str = "tidings";

/// Takes back a claim of the same transaction.
const UNCLAIM: &str = "delete from tidings_inbox where claim = ?1";

/// Only the writer begins, commits and rolls back. A closure that did would commit, or undo, its
/// neighbours' half-done work.
#[derive(Default)]
pub(crate) struct Guard {
    /// True while the writer's own statements run.
    own: AtomicBool,
    /// SQLite has rolled back the outer transaction by itself (a full disk, `insert or rollback`).
    /// A closure that goes on would write outside of any transaction.
    lost: AtomicBool,
}

impl Guard {
    /// Statements that are prepared are asked about by the authorizer. Those that were prepared
    /// before are not; if one writes after the transaction was lost, its commit is turned into a
    /// rollback.
    pub(crate) fn watch(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let (ask, commit, roll_back) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            ask.authorize(&context)
        }))?;
        connection.commit_hook(Some(move || !commit.own.load(Ordering::Relaxed)))?;
        connection.rollback_hook(Some(move || roll_back.lost.store(true, Ordering::Relaxed)))
    }

    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let guarded = match context.action {
            AuthAction::Transaction { .. } => true,
            AuthAction::Savepoint { savepoint_name, .. } => {
                savepoint_name.eq_ignore_ascii_case(SAVEPOINT)
            }
            _ => self.lost.load(Ordering::Relaxed),
        };
        if guarded && !self.own.load(Ordering::Relaxed) {
            Authorization::Deny
        } else {
            Authorization::Allow
        }
    }

    /// What was lost is over.
    pub(crate) fn forget_loss(&self) {
        self.lost.store(false, Ordering::Relaxed);
    }
}

/// What only the writer may say.
#[derive(Clone, Copy)]
pub(crate) enum Command {
    Begin,
    Commit,
    RollBack,
    Save,
    Release,
    BackToSaved,
}

impl Command {
    const COUNT: usize = Self::BackToSaved as usize + 1;

    pub(crate) const fn sql(self) -> &'static str {
        match self {
            Self::Begin => "begin immediate",
            Self::Commit => "commit",
            Self::RollBack => "rollback",
            Self::Save => "savepoint tidings",
            Self::Release => "release tidings",
            Self::BackToSaved => "rollback to tidings",
        }
    }
}

/// The statements on the writer's connection, and how far the transaction is that runs.
pub(crate) struct Own<'c> {
    connection: &'c Connection,
    guard: Arc<Guard>,
    commands: [Option<Statement<'c>>; Command::COUNT],
    handle: Option<Statement<'c>>,
    unclaim: Option<Statement<'c>>,
    /// Its savepoint is there.
    is_saved: bool,
    /// The row of its claim, if that was written before the savepoint.
    claimed: Option<i64>,
}

impl<'c> Own<'c> {
    pub(crate) fn new(connection: &'c Connection, guard: Arc<Guard>) -> Self {
        Self {
            connection,
            guard,
            commands: [const { None }; Command::COUNT],
            handle: None,
            unclaim: None,
            is_saved: false,
            claimed: None,
        }
    }

    pub(crate) fn run(&mut self, command: Command) -> Result<()> {
        self.guard.own.store(true, Ordering::Relaxed);
        let statement = kept(
            self.connection,
            &mut self.commands[command as usize],
            command.sql(),
        );
        let outcome = statement.and_then(|statement| statement.execute(()));
        self.guard.own.store(false, Ordering::Relaxed);
        outcome.map(drop)
    }

    /// A transaction begins that shares the outer one. It has no savepoint yet.
    pub(crate) fn start(&mut self) {
        (self.is_saved, self.claimed) = (false, None);
    }

    /// Sets the savepoint of the transaction, if it has none.
    pub(crate) fn save(&mut self) -> Result<()> {
        if !self.is_saved {
            self.run(Command::Save)?;
            self.is_saved = true;
        }
        Ok(())
    }

    /// Writes the entry of a message as the first thing that its transaction writes, or says why not.
    pub(crate) fn claim(&mut self, entry: &InboxEntry) -> Result<Option<Refusal>> {
        if !entry.is_plain() {
            self.save()?;
            return inbox::write(self.connection, entry, now_ms());
        }
        let handle = kept(self.connection, &mut self.handle, inbox::HANDLE)?;
        if inbox::handle(handle, entry, now_ms())? {
            self.claimed = Some(self.connection.last_insert_rowid());
            return Ok(None);
        }
        Ok(Some(Refusal::Known))
    }

    /// What the transaction has written becomes a part of the outer one.
    pub(crate) fn keep(&mut self) -> std::result::Result<(), (Command, rusqlite::Error)> {
        match std::mem::take(&mut self.is_saved) {
            true => self.close(Command::Release),
            false => Ok(()),
        }
    }

    /// Nothing of the transaction stays.
    pub(crate) fn undo(&mut self) -> std::result::Result<(), (Command, rusqlite::Error)> {
        if std::mem::take(&mut self.is_saved) {
            self.close(Command::BackToSaved)?;
            self.close(Command::Release)?;
        }
        if let Some(claim) = self.claimed.take() {
            kept(self.connection, &mut self.unclaim, UNCLAIM)
                .and_then(|unclaim| unclaim.execute((claim,)))
                .map_err(|error| (Command::BackToSaved, error))?;
        }
        Ok(())
    }

    fn close(&mut self, command: Command) -> std::result::Result<(), (Command, rusqlite::Error)> {
        self.run(command).map_err(|error| (command, error))
    }
}

/// A statement that is prepared when it is first needed.
fn kept<'a, 'c>(
    connection: &'c Connection,
    place: &'a mut Option<Statement<'c>>,
    sql: &str,
) -> Result<&'a mut Statement<'c>> {
    match place {
        Some(statement) => Ok(statement),
        none => Ok(none.insert(connection.prepare(sql)?)),
    }
}
