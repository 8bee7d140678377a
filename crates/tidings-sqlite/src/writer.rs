//! The one thread that writes to a file.
//!
//! SQLite has one writer at a time and pays one disk sync per commit. So transactions that wait
//! run one after the other as savepoints of one outer transaction, which commits when none waits
//! or a bound is reached: many transactions share one sync. A failing one rolls back to its
//! savepoint alone ([`Own`]). Nobody hears the outcome of a transaction, be it `Done` or `Refused`, before
//! the outer commit: until then its neighbours' writes, on which it may rest, are not durable.
//!
//! What SQLite finds only at the outer commit (a deferred foreign key) fails all that share it, and
//! so does an error for which SQLite rolls back the outer transaction by itself. The innocent are
//! told that it was a conflict. Then transactions are committed one by one for a while, so that
//! when they are tried again only the guilty one fails.
//!
//! A handler's attempt is polled on this thread ([`Attempt`]) and is a transaction like any other as
//! long as it awaits nothing but its own statements.
//!
//! A transaction that an async handler holds open (a [`Job::Session`]) keeps the writer to itself
//! until it ends or stays idle for too long. Those that have run before it in the same outer
//! transaction wait for it too, but not for long: it is rolled back, as a conflict, once it has
//! been idle for [`IDLE_BEFORE_OTHERS_MAX`]. When that has happened, what waits is committed before
//! the next session begins, for a while, so that it succeeds when it is tried again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    rc::Rc,
    sync::{Arc, OnceLock, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tidings_core::StoreError;
use tokio::sync::{mpsc, oneshot};

use crate::{
    attempt::{Attempt, Reached},
    error::{self, Failure},
    own::{Command, Guard, Own},
};

/// The most transactions that share one commit. Bounds how much one failed disk write undoes.
const UNITS_PER_COMMIT_MAX: usize = 1024;

/// The longest that a finished transaction waits for others to share its commit, as long as
/// others keep coming.
const COMMIT_DELAY_MAX: Duration = Duration::from_millis(10);

/// How many transactions are committed alone for each that failed in a shared commit: as many as
/// try again, and as many that come in between.
const ALONE_PER_FAILURE: usize = 2;

/// How long, in sum, a session may be idle while transactions before it wait to be committed with
/// it. Far more than a handler needs that only talks to this database.
const IDLE_BEFORE_OTHERS_MAX: Duration = Duration::from_millis(100);

/// How long, after a session was idle for longer than that, sessions begin with nothing before
/// them. Long enough for a handler to be tried again.
const APART_AFTER_IDLE: Duration = Duration::from_secs(1);

/// What the writer does next.
pub(crate) enum Job {
    /// A transaction in one step.
    Unit(Work),
    /// A transaction in several steps, the first of which is here.
    Session(Session),
    /// A handler's attempt.
    Attempt(Box<Attempt>),
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
    /// Tells its owner the outcome, after the outer commit went as it is told. If that failed, so
    /// did this, whatever its own outcome: that may rest on a neighbour's write that is undone.
    pub(crate) done: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// A transaction held open from outside.
pub(crate) struct Session {
    /// The first step, if it has not been made yet.
    pub(crate) first: Option<Statement>,
    /// The rest. When the other end is dropped, the transaction is rolled back.
    pub(crate) steps: std_mpsc::Receiver<Step>,
    /// Why the writer ended it, if it did.
    pub(crate) ended: Arc<OnceLock<Failure>>,
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
    let guard = Arc::new(Guard::default());
    guard
        .watch(&connection)
        .map_err(|error| error::explain(&path, "guard transactions", &error))?;
    let run = move || {
        let connection = Rc::new(connection);
        let writer = Writer {
            connection: &connection,
            path,
            idle_max,
            own: Own::new(&connection, Arc::clone(&guard)),
            guard,
            alone: 0,
            apart_until: None,
        };
        writer.run(jobs);
    };
    std::thread::Builder::new()
        .name("tidings-sqlite-writer".into())
        .spawn(run)
        .map(drop)
        .map_err(|error| StoreError::new("cannot start the writer's thread").with_source(error))
}

struct Writer<'c> {
    /// Shared with the attempt that runs on this thread.
    connection: &'c Rc<Connection>,
    path: Arc<Path>,
    idle_max: Duration,
    own: Own<'c>,
    guard: Arc<Guard>,
    /// How many transactions are to be committed alone.
    alone: usize,
    /// Until when sessions begin with nothing before them.
    apart_until: Option<Instant>,
}

impl Writer<'_> {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
            match job {
                Job::Look(look) => look(Ok(self.connection)),
                job => next = self.transaction(job, &mut jobs),
            }
        }
    }

    /// Runs `first` and whatever waits behind it, and commits them together. Returns a job that
    /// has to begin after that commit, if it came upon one.
    fn transaction(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        if let Err(error) = self.own.run(Command::Begin) {
            let why = Failure::of(&self.path, "begin to write", &error);
            // Taken before anybody is told: who hears of it and comes again waits for the lock anew.
            let mut waited = vec![first];
            while let Ok(job) = jobs.try_recv() {
                waited.push(job);
            }
            for job in waited {
                refuse(job, &why);
            }
            return None;
        }
        let begun = Instant::now();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        let mut after = None;
        while let Some(job) = next {
            let is_apart = match &job {
                Job::Session(_) => self.is_apart(),
                Job::Attempt(attempt) => attempt.is_apart(),
                Job::Unit(_) | Job::Look(_) => false,
            };
            if is_apart && !waiting.is_empty() {
                after = Some(job);
                break;
            }
            let unit = self.job(job, !waiting.is_empty());
            if self.connection.is_autocommit() {
                self.lose(unit, waiting);
                return None;
            }
            waiting.extend(unit);
            let full = self.alone > 0
                || waiting.len() >= UNITS_PER_COMMIT_MAX
                || begun.elapsed() >= COMMIT_DELAY_MAX;
            next = if full { None } else { jobs.try_recv().ok() };
        }
        self.alone = self.alone.saturating_sub(1);
        match self.own.run(Command::Commit) {
            Ok(()) => waiting.into_iter().for_each(|unit| (unit.done)(Ok(()))),
            Err(error) => {
                let mut why = Failure::of(&self.path, "commit", &error);
                if waiting.len() > 1 {
                    self.alone = waiting.len() * ALONE_PER_FAILURE;
                    if !why.is_unavailable() {
                        why = Failure::conflict(format!(
                            "a transaction that shared the commit failed, and nothing was \
                             written; try again: {}",
                            why.text()
                        ));
                    }
                }
                self.fail(waiting, &why);
            }
        }
        after
    }

    fn is_apart(&self) -> bool {
        self.apart_until.is_some_and(|until| Instant::now() < until)
    }

    /// SQLite has rolled back the outer transaction while `guilty` ran.
    fn lose(&mut self, guilty: Option<Unit>, innocent: Vec<Unit>) {
        if !innocent.is_empty() {
            self.alone = (innocent.len() + 1) * ALONE_PER_FAILURE;
        }
        let why = "SQLite gave up a transaction that shared the commit, and nothing was written; \
                   try again";
        self.fail(innocent, &Failure::conflict(why));
        if let Some(unit) = guilty {
            // Unless it ignored the error, its own outcome says more.
            (unit.done)(if unit.keep {
                Err(lost().error())
            } else {
                Ok(())
            });
        }
    }

    /// Ends the outer transaction without its commit and tells those who waited for it.
    fn fail(&mut self, waiting: Vec<Unit>, why: &Failure) {
        self.roll_back_all();
        self.guard.forget_loss();
        tracing::error!(
            path = %self.path.display(),
            transactions = waiting.len(),
            "nothing was committed: {}", why.text()
        );
        for unit in waiting {
            (unit.done)(Err(why.error()));
        }
    }

    /// Runs a transaction inside the outer one. What it returns waits for the outer commit.
    fn job(&mut self, job: Job, others_wait: bool) -> Option<Unit> {
        if let Job::Look(look) = job {
            look(Ok(self.connection));
            return None;
        }
        self.own.start();
        // An attempt sets its savepoint itself, when it needs one.
        if !matches!(job, Job::Attempt(_))
            && let Err(error) = self.own.save()
        {
            refuse(job, &Failure::of(&self.path, "begin to write", &error));
            return None;
        }
        match job {
            Job::Unit(work) => self.finish(work),
            Job::Session(session) => self.session(session, others_wait),
            Job::Attempt(attempt) => self.attempt(*attempt, others_wait),
            Job::Look(_) => None,
        }
    }

    fn attempt(&mut self, attempt: Attempt, others_wait: bool) -> Option<Unit> {
        match attempt.run(self.connection, &mut self.own, others_wait) {
            Reached::Ended(unit) => {
                self.end(unit.keep);
                Some(unit)
            }
            Reached::Gone => {
                self.end(false);
                None
            }
            Reached::Holds(session) => self.session(session, others_wait),
        }
    }

    fn session(&mut self, session: Session, others_wait: bool) -> Option<Unit> {
        if let Some(first) = session.first {
            first(Ok(self.connection));
        }
        let idle_max = if others_wait {
            self.idle_max.min(IDLE_BEFORE_OTHERS_MAX)
        } else {
            self.idle_max
        };
        // In sum: otherwise many short gaps would make the others wait for as long as they like.
        let mut idle = Duration::ZERO;
        loop {
            if self.connection.is_autocommit() {
                let _ = session.ended.set(lost());
                return None;
            }
            let since = Instant::now();
            let step = session.steps.recv_timeout(idle_max.saturating_sub(idle));
            idle += since.elapsed();
            if idle >= IDLE_BEFORE_OTHERS_MAX {
                self.apart_until = Some(Instant::now() + APART_AFTER_IDLE);
            }
            match step {
                Ok(Step::Statement(statement)) => statement(Ok(self.connection)),
                Ok(Step::Commit(work)) => return self.finish(work),
                Ok(Step::Rollback(done)) => {
                    self.end(false);
                    let _ = done.send(());
                    return None;
                }
                Err(std_mpsc::RecvTimeoutError::Disconnected) => {
                    self.end(false);
                    return None;
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    let _ = session.ended.set(self.too_idle(idle_max));
                    self.end(false);
                    return None;
                }
            }
        }
    }

    /// Why a session was ended that may have been idle for `allowed`.
    fn too_idle(&self, allowed: Duration) -> Failure {
        if allowed < self.idle_max {
            return Failure::conflict(format!(
                "the transaction was rolled back because it was idle for \
                 {IDLE_BEFORE_OTHERS_MAX:?} while others waited to be committed with it; try \
                 again, and do slow work before the first use of `Tx`"
            ));
        }
        Failure::new(format!(
            "the transaction was rolled back because it was held open without a statement for more \
             than {:?} in sum (`transaction_idle_max`) while all other writes waited; do slow work \
             before the first use of `Tx`",
            self.idle_max
        ))
    }

    /// Runs the last step of a transaction and closes its savepoint.
    fn finish(&mut self, work: Work) -> Option<Unit> {
        // A panic drops its owner's channel, which tells the owner.
        let connection = self.connection;
        let unit = catch_unwind(AssertUnwindSafe(|| work(Ok(connection)))).ok();
        self.end(unit.as_ref().is_some_and(|unit| unit.keep));
        unit
    }

    /// Ends a transaction that shares the outer one, unless SQLite has rolled back everything by
    /// itself.
    fn end(&mut self, keep: bool) {
        if self.connection.is_autocommit() {
            return;
        }
        let ended = match keep {
            true => self.own.keep(),
            false => self.own.undo(),
        };
        // If even that fails, nothing of the outer transaction can be trusted.
        if let Err((command, error)) = ended {
            let path = self.path.display();
            tracing::error!(%path, %error, "cannot `{}`", command.sql());
            self.roll_back_all();
        }
    }

    fn roll_back_all(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.own.run(Command::RollBack)
        {
            tracing::error!(path = %self.path.display(), %error, "cannot roll back");
        }
    }
}

/// Why a transaction during which SQLite rolled back by itself has ended.
pub(crate) fn lost() -> Failure {
    Failure::new("SQLite gave up the transaction after an earlier error, and nothing of it stays")
}

/// Tells the owner of `job` that it did not run.
fn refuse(job: Job, why: &Failure) {
    match job {
        Job::Unit(work) => (work(Err(why.error())).done)(Ok(())),
        Job::Session(session) => {
            let _ = session.ended.set(why.clone());
            if let Some(first) = session.first {
                first(Err(why.error()));
            }
        }
        Job::Attempt(attempt) => attempt.refuse(why.error()),
        Job::Look(look) => look(Err(why.error())),
    }
}
