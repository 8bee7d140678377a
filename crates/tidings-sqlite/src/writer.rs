//! The one thread that writes to a file.
//!
//! SQLite has one writer at a time and pays one disk sync per commit. So transactions that wait
//! run one after the other as savepoints of one outer transaction, which commits when none waits
//! or a bound is reached: many transactions share one sync. A failing one rolls back to its
//! savepoint alone. Nobody hears the outcome of a transaction, be it `Done` or `Duplicate`, before
//! the outer commit: until then its neighbours' writes, on which it may rest, are not durable.
//!
//! What SQLite finds only at the outer commit (a deferred foreign key) fails all that share it. Then
//! transactions are committed one by one for a while, so that when they are tried again only the
//! guilty one fails.
//!
//! A transaction that an async handler holds open (a [`Job::Session`]) keeps the writer to itself
//! until it ends or stays idle for too long.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    time::{Duration, Instant},
};

use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
};
use tidings_core::StoreError;
use tokio::sync::{mpsc, oneshot};

use crate::error;

/// The most transactions that share one commit. Bounds how much one failed disk write undoes.
const UNITS_PER_COMMIT_MAX: usize = 1024;

/// The longest that a finished transaction waits for others to share its commit, as long as
/// others keep coming.
const COMMIT_DELAY_MAX: Duration = Duration::from_millis(10);

/// How many transactions are committed alone for each that failed in a shared commit: as many as
/// try again, and as many that come in between.
const ALONE_PER_FAILURE: usize = 2;

/// The savepoint of the transaction that runs.
const SAVEPOINT: &str = "tidings";

/// What the writer does next.
pub(crate) enum Job {
    /// A transaction in one step.
    Unit(Work),
    /// A transaction in several steps, the first of which is here.
    Session(Session),
    /// Something that writes nothing and needs this very connection.
    Look(Statement),
}

/// Where statements run, or why they cannot.
pub(crate) type Ready<'a> = Result<&'a Connection, StoreError>;

/// A whole transaction, or the last step of one.
pub(crate) type Work = Box<dyn FnOnce(Ready<'_>) -> Unit + Send>;

/// A step of a transaction; it tells its owner the outcome by itself.
pub(crate) type Statement = Box<dyn FnOnce(Ready<'_>) + Send>;

/// A transaction that has run but is not yet durable.
pub(crate) struct Unit {
    /// Whether its writes stay.
    pub(crate) keep: bool,
    /// Tells its owner the outcome, after the outer commit went as it is told.
    pub(crate) done: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// A transaction held open from outside.
pub(crate) struct Session {
    pub(crate) first: Statement,
    /// The rest. When the other end is dropped, the transaction is rolled back.
    pub(crate) steps: std_mpsc::Receiver<Step>,
    /// Why the writer ended it, if it did.
    pub(crate) ended: Arc<OnceLock<String>>,
}

pub(crate) enum Step {
    Statement(Statement),
    Commit(Work),
    Rollback(oneshot::Sender<()>),
}

/// Starts the thread on `connection`; it ends when `jobs` is closed.
pub(crate) fn spawn(
    connection: Connection,
    path: Arc<Path>,
    jobs: mpsc::Receiver<Job>,
    idle_max: Duration,
) -> Result<(), StoreError> {
    let own = Arc::new(AtomicBool::new(false));
    guard_transactions(&connection, Arc::clone(&own))
        .map_err(|error| error::explain(&path, "guard transactions", &error))?;
    let writer = Writer {
        connection,
        path,
        idle_max,
        own,
        alone: 0,
    };
    std::thread::Builder::new()
        .name("tidings-sqlite-writer".into())
        .spawn(move || writer.run(jobs))
        .map(drop)
        .map_err(|error| StoreError::new("cannot start the writer's thread").with_source(error))
}

/// A closure that committed would commit its neighbours' half-done work: only the writer may.
fn guard_transactions(connection: &Connection, own: Arc<AtomicBool>) -> rusqlite::Result<()> {
    let guard = move |context: AuthContext<'_>| {
        let guarded = match context.action {
            AuthAction::Transaction { .. } => true,
            AuthAction::Savepoint { savepoint_name, .. } => {
                savepoint_name.eq_ignore_ascii_case(SAVEPOINT)
            }
            _ => false,
        };
        if guarded && !own.load(Ordering::Relaxed) {
            Authorization::Deny
        } else {
            Authorization::Allow
        }
    };
    connection.authorizer(Some(guard))
}

struct Writer {
    connection: Connection,
    path: Arc<Path>,
    idle_max: Duration,
    /// True while the writer's own statements are prepared, which alone may begin and commit.
    own: Arc<AtomicBool>,
    /// How many transactions are to be committed alone.
    alone: usize,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            match job {
                Job::Look(look) => look(Ok(&self.connection)),
                job => self.transaction(job, &mut jobs),
            }
        }
    }

    /// Runs `first` and whatever waits behind it, and commits them together.
    fn transaction(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) {
        if let Err(error) = self.own("begin immediate /* own */") {
            let why = error::text(&self.path, "begin to write", &error);
            refuse(first, &why);
            while let Ok(job) = jobs.try_recv() {
                refuse(job, &why);
            }
            return;
        }
        let begun = Instant::now();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            waiting.extend(self.job(job));
            if self.connection.is_autocommit() {
                return self.fail(waiting, "SQLite gave up the transaction after an error");
            }
            let full = self.alone > 0
                || waiting.len() >= UNITS_PER_COMMIT_MAX
                || begun.elapsed() >= COMMIT_DELAY_MAX;
            next = if full { None } else { jobs.try_recv().ok() };
        }
        self.alone = self.alone.saturating_sub(1);
        match self.own("commit /* own */") {
            Ok(()) => waiting.into_iter().for_each(|unit| (unit.done)(Ok(()))),
            Err(error) => {
                if waiting.len() > 1 {
                    self.alone = waiting.len() * ALONE_PER_FAILURE;
                }
                self.fail(waiting, &error::text(&self.path, "commit", &error));
            }
        }
    }

    /// Ends the outer transaction without its commit and tells those who waited for it.
    fn fail(&self, waiting: Vec<Unit>, why: &str) {
        self.roll_back_all();
        tracing::error!(
            path = %self.path.display(),
            transactions = waiting.len(),
            "nothing was committed: {why}"
        );
        for unit in waiting {
            (unit.done)(Err(StoreError::new(why)));
        }
    }

    /// Runs a transaction inside the outer one. What it returns waits for the outer commit.
    fn job(&self, job: Job) -> Option<Unit> {
        if let Job::Look(look) = job {
            look(Ok(&self.connection));
            return None;
        }
        if let Err(error) = self.own("savepoint tidings /* own */") {
            refuse(job, &error::text(&self.path, "begin to write", &error));
            return None;
        }
        match job {
            Job::Unit(work) => self.finish(work),
            Job::Session(session) => self.session(session),
            Job::Look(_) => None,
        }
    }

    fn session(&self, session: Session) -> Option<Unit> {
        (session.first)(Ok(&self.connection));
        loop {
            if self.connection.is_autocommit() {
                let why = "SQLite gave up the transaction after an earlier error; try again";
                let _ = session.ended.set(why.into());
                return None;
            }
            match session.steps.recv_timeout(self.idle_max) {
                Ok(Step::Statement(statement)) => statement(Ok(&self.connection)),
                Ok(Step::Commit(work)) => return self.finish(work),
                Ok(Step::Rollback(done)) => {
                    self.undo();
                    let _ = done.send(());
                    return None;
                }
                Err(std_mpsc::RecvTimeoutError::Disconnected) => {
                    self.undo();
                    return None;
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    let why = format!(
                        "the transaction was rolled back because it was held open without a \
                         statement for {:?} (`transaction_idle_max`) while all other writes \
                         waited; do slow work before the first use of `Tx`",
                        self.idle_max
                    );
                    let _ = session.ended.set(why);
                    self.undo();
                    return None;
                }
            }
        }
    }

    /// Runs the last step of a transaction and closes its savepoint.
    fn finish(&self, work: Work) -> Option<Unit> {
        // A panic drops its owner's channel, which tells the owner.
        let unit = catch_unwind(AssertUnwindSafe(|| work(Ok(&self.connection)))).ok();
        if self.connection.is_autocommit() {
            return unit;
        }
        if unit.as_ref().is_some_and(|unit| unit.keep) {
            self.close("release tidings /* own */");
        } else {
            self.undo();
        }
        unit
    }

    /// Rolls back to the savepoint.
    fn undo(&self) {
        self.close("rollback to tidings /* own */");
        self.close("release tidings /* own */");
    }

    /// Ends a savepoint. If even that fails, nothing of the outer transaction can be trusted.
    fn close(&self, sql: &str) {
        if let Err(error) = self.own(sql) {
            tracing::error!(path = %self.path.display(), %error, "cannot `{sql}`");
            self.roll_back_all();
        }
    }

    fn roll_back_all(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.own("rollback /* own */")
        {
            tracing::error!(path = %self.path.display(), %error, "cannot roll back");
        }
    }

    /// Runs one of the writer's own statements. Their texts hold `/* own */`, since a closure with
    /// the same text would find the statement prepared, past the guard.
    fn own(&self, sql: &str) -> rusqlite::Result<()> {
        self.own.store(true, Ordering::Relaxed);
        let outcome = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(()));
        self.own.store(false, Ordering::Relaxed);
        outcome.map(drop)
    }
}

/// Tells the owner of `job` that it did not run.
fn refuse(job: Job, why: &str) {
    let error = Err(StoreError::new(why));
    match job {
        Job::Unit(work) => (work(error).done)(Ok(())),
        Job::Session(session) => {
            let _ = session.ended.set(why.into());
            (session.first)(error);
        }
        Job::Look(look) => look(error),
    }
}
