//! A handler's transaction, and the `Tx` it is used through.

use std::{
    any::Any,
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, mpsc as std_mpsc},
};

use rusqlite::{Connection, Params, Row};
use tidings_core::{
    BoxFuture, Commit, Committed, Context, Error, FromContext, Provided, Record, RecordId,
    StoreError, Transaction, TransactionHandle,
};
use tokio::sync::oneshot;

use crate::{
    Shared,
    attempt::Handover,
    commit,
    error::{self, Failure},
    records,
    writer::{self, Job, Ready, Session, Statement, Step, Unit, Work},
};

/// How many statements of one transaction may wait for the writer. More than one only waits when
/// a handler gave up on a statement before its answer.
const STATEMENTS_WAITING_MAX: usize = 8;

/// A transaction on a [`SqliteStore`](crate::SqliteStore). It begins with its first statement and
/// holds the file's only writer from then on.
pub struct SqliteTransaction {
    shared: Arc<Shared>,
    state: State,
    postponed: Vec<Postponed>,
}

enum State {
    NotBegun,
    /// It runs on the writer's thread, and so does its handler, until it leaves.
    Here(Arc<Handover>),
    Begun(Begun),
}

/// Statements whose outcome nobody waits for: they run with the next step, or with the commit.
pub(crate) type Postponed = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// The owner's side of a [`Session`].
pub(crate) struct Begun {
    steps: std_mpsc::SyncSender<Step>,
    ended: Arc<OnceLock<Failure>>,
}

impl SqliteTransaction {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            state: State::NotBegun,
            postponed: Vec::new(),
        }
    }

    /// One that runs on the writer's thread, where its handler is too.
    pub(crate) fn here(shared: Arc<Shared>, handover: Arc<Handover>) -> Self {
        Self {
            state: State::Here(handover),
            ..Self::new(shared)
        }
    }

    /// Runs `work` later in this transaction: before the next [`call`](Self::call), or as a part
    /// of the commit. A transaction that only defers never holds the writer while its handler
    /// thinks. If `work` fails, so does that call or the commit.
    pub fn defer<F>(&mut self, work: F)
    where
        F: FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        self.postponed.push(Box::new(work));
    }

    /// Runs `work` on the writer's thread, inside this transaction.
    ///
    /// # Errors
    ///
    /// When `work` fails or panics, and when the transaction cannot begin or has been ended.
    pub async fn call<T, F>(&mut self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let postponed = std::mem::take(&mut self.postponed);
        let work = move |connection: &Connection| {
            run_postponed(postponed, connection)?;
            work(connection)
        };
        match self.call_here(work) {
            Ok(outcome) => outcome,
            Err(work) => self.call_there(work).await,
        }
    }

    /// Runs `work` at once, if this is the writer's thread and it runs this transaction.
    fn call_here<T, F>(&self, work: F) -> Result<Result<T, StoreError>, F>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T>,
    {
        let connection = match &self.state {
            State::Here(handover) => handover.here(),
            State::NotBegun | State::Begun(_) => None,
        };
        let Some(connection) = connection else {
            return Err(work);
        };
        let ready = match connection.is_autocommit() {
            false => Ok(&*connection),
            true => Err(writer::lost().error()),
        };
        Ok(run(&self.shared, ready, work))
    }

    async fn call_there<T, F>(&mut self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let statement = statement(&self.shared, reply, work);
        match self.begun().await? {
            Some(begun) => begun.send(Step::Statement(statement))?,
            None => {
                let (begun, session) = Begun::new(Some(statement));
                self.shared.send(Job::Session(session)).await?;
                self.state = State::Begun(begun);
            }
        }
        match (answer.await, &self.state) {
            (Ok(outcome), _) => outcome,
            (Err(_), State::Begun(begun)) => Err(begun.error()),
            (Err(_), _) => Err(gone()),
        }
    }

    /// How to reach it from outside of the writer's thread, if it has begun.
    async fn begun(&mut self) -> Result<Option<&Begun>, StoreError> {
        if let State::Here(handover) = &self.state {
            self.state = State::Begun(handover.session().await?);
        }
        Ok(match &self.state {
            State::Begun(begun) => Some(begun),
            State::NotBegun | State::Here(_) => None,
        })
    }
}

impl Transaction for SqliteTransaction {
    fn read<'a>(
        &'a mut self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        // Nobody else writes until the transaction ends: that is the lock.
        let ids = ids.to_vec();
        Box::pin(self.call(move |connection| records::read(connection, &ids)))
    }

    fn commit(
        self: Box<Self>,
        commit: Commit,
    ) -> BoxFuture<'static, Result<Committed, StoreError>> {
        Box::pin(async move {
            let mut own = *self;
            let (shared, postponed) = (Arc::clone(&own.shared), std::mem::take(&mut own.postponed));
            let Some(begun) = own.begun().await? else {
                return shared.commit(postponed, commit).await;
            };
            let (reply, answer) = oneshot::channel();
            let work = commit_work(shared, postponed, commit, reply);
            begun.send(Step::Commit(work))?;
            answer.await.unwrap_or_else(|_| Err(begun.error()))
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut own = *self;
            let Ok(Some(begun)) = own.begun().await else {
                return;
            };
            let (reply, answer) = oneshot::channel();
            if begun.send(Step::Rollback(reply)).is_ok() {
                // No answer means that the writer rolled it back before.
                let _ = answer.await;
            }
        })
    }
}

impl Begun {
    /// A session whose first step is `first`.
    pub(crate) fn new(first: Option<Statement>) -> (Self, Session) {
        let (steps, waiting) = std_mpsc::sync_channel(STATEMENTS_WAITING_MAX);
        let ended = Arc::new(OnceLock::new());
        let session = Session {
            first,
            steps: waiting,
            ended: Arc::clone(&ended),
        };
        (Self { steps, ended }, session)
    }

    fn send(&self, step: Step) -> Result<(), StoreError> {
        self.steps.try_send(step).map_err(|refused| match refused {
            std_mpsc::TrySendError::Full(_) => StoreError::new(format!(
                "{STATEMENTS_WAITING_MAX} statements of this transaction wait already; await the \
                 answer of each"
            )),
            std_mpsc::TrySendError::Disconnected(_) => self.error(),
        })
    }

    /// Why the writer does not answer.
    fn error(&self) -> StoreError {
        self.ended.get().map_or_else(gone, Failure::error)
    }
}

pub(crate) fn gone() -> StoreError {
    StoreError::unavailable(
        "the database's thread has ended without an answer; restart the service",
    )
}

/// A closure of the user as a step: its panic ends neither the thread nor its neighbours.
pub(crate) fn statement<T, F>(
    shared: &Arc<Shared>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    work: F,
) -> Statement
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
{
    let shared = Arc::clone(shared);
    Box::new(move |ready| {
        let _ = reply.send(run(&shared, ready, work));
    })
}

/// A closure of the user as a whole transaction.
pub(crate) fn unit<T, F>(
    shared: &Arc<Shared>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    work: F,
) -> Work
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
{
    let shared = Arc::clone(shared);
    Box::new(move |ready| {
        let outcome = run(&shared, ready, work);
        Unit {
            keep: outcome.is_ok(),
            done: Box::new(|durable| drop(reply.send(durable.and(outcome)))),
        }
    })
}

fn run<T>(
    shared: &Shared,
    ready: Ready<'_>,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, StoreError> {
    let connection = ready?;
    match catch_unwind(AssertUnwindSafe(|| work(connection))) {
        Ok(Err(error)) if error::is_denied(&error) && connection.is_autocommit() => {
            Err(writer::lost().error())
        }
        Ok(outcome) => {
            outcome.map_err(|error| error::explain(&shared.path, "run a statement", &error))
        }
        Err(_) => Err(StoreError::new(
            "a closure given to the database panicked; see the log for where",
        )),
    }
}

fn run_postponed(postponed: Vec<Postponed>, connection: &Connection) -> rusqlite::Result<()> {
    postponed.into_iter().try_for_each(|work| work(connection))
}

pub(crate) fn write_commit(
    shared: &Shared,
    connection: &Connection,
    postponed: Vec<Postponed>,
    commit: &Commit,
) -> Result<Committed, StoreError> {
    run(shared, Ok(connection), |connection| {
        run_postponed(postponed, connection)
    })?;
    commit::write(connection, &shared.keeping, commit)
        .map_err(|error| error::explain(&shared.path, "write inbox and outbox", &error))?
        .into_result()
}

/// What a transaction that was not used any more has postponed.
pub(crate) fn take_postponed(transaction: Option<Box<dyn Transaction>>) -> Vec<Postponed> {
    let transaction = transaction.map(|it| (it as Box<dyn Any>).downcast::<SqliteTransaction>());
    match transaction {
        Some(Ok(transaction)) => transaction.postponed,
        Some(Err(_)) | None => Vec::new(),
    }
}

/// What was postponed, the inbox, the records and the outbox as the last step of a transaction.
pub(crate) fn commit_work(
    shared: Arc<Shared>,
    postponed: Vec<Postponed>,
    commit: Commit,
    reply: oneshot::Sender<Result<Committed, StoreError>>,
) -> Work {
    Box::new(move |ready| {
        let outcome =
            ready.and_then(|connection| write_commit(&shared, connection, postponed, &commit));
        let keep = matches!(outcome, Ok(Committed::Done));
        let done = move |durable: Result<(), StoreError>| {
            let outcome = durable.and(outcome);
            if matches!(outcome, Ok(Committed::Done)) && !commit.outbox.is_empty() {
                shared.wake_relays();
            }
            let _ = reply.send(outcome);
        };
        Unit {
            keep,
            done: Box::new(done),
        }
    })
}

/// The transaction of the attempt, as an argument of a handler.
///
/// It has no `commit`: the toolkit commits it, with the inbox row and the outbox rows, when the
/// handler returns `Ok`. It begins with its first statement; from then on every other write to the
/// file waits, so do slow work before: a handler that awaits something else between its statements
/// is tried again alone if others wait to be committed with it, and loses its transaction if it is
/// idle for longer than [`transaction_idle_max`](crate::SqliteOptions::transaction_idle_max).
///
/// ```
/// # async fn handler(mut tx: tidings_sqlite::Tx) -> Result<(), tidings_core::StoreError> {
/// tx.execute("insert into payment (order_id, status) values (?1, ?2)", ("o-1", "AUTHORIZED"))
///     .await?;
/// let payments: u32 = tx
///     .call(|connection| connection.query_one("select count(*) from payment", (), |row| row.get(0)))
///     .await?;
/// # Ok(()) }
/// ```
pub struct Tx(TransactionHandle);

impl Tx {
    /// Runs `work` on the writer's thread, inside the transaction. What it changed stays if it
    /// fails and the handler goes on all the same.
    ///
    /// # Errors
    ///
    /// When `work` fails or panics, or the transaction cannot begin, or was ended because it was
    /// held open without a statement for too long.
    pub async fn call<T, F>(&mut self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.0.get::<SqliteTransaction>().await?.call(work).await
    }

    /// Runs `work` later in the transaction: before the next [`call`](Self::call), or as a part of
    /// the commit. Cheaper than [`call`](Self::call) where the outcome is not needed: the writer
    /// never waits for the handler. If `work` fails, so does that call or the attempt.
    ///
    /// # Errors
    ///
    /// When the transaction is in use by another argument of the handler.
    pub async fn defer<F>(&mut self, work: F) -> Result<(), StoreError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        self.0.get::<SqliteTransaction>().await?.defer(work);
        Ok(())
    }

    /// Runs one statement and says how many rows it changed.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn execute<P>(
        &mut self,
        sql: impl Into<Cow<'static, str>>,
        params: P,
    ) -> Result<usize, StoreError>
    where
        P: Params + Send + 'static,
    {
        let sql = sql.into();
        self.call(move |connection| connection.prepare_cached(&sql)?.execute(params))
            .await
    }

    /// Runs one query and makes a value of each row.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn query<T, P, F>(
        &mut self,
        sql: impl Into<Cow<'static, str>>,
        params: P,
        row: F,
    ) -> Result<Vec<T>, StoreError>
    where
        T: Send + 'static,
        P: Params + Send + 'static,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let sql = sql.into();
        self.call(move |connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params, row)?;
            rows.collect()
        })
        .await
    }
}

impl From<TransactionHandle> for Tx {
    fn from(handle: TransactionHandle) -> Self {
        Self(handle)
    }
}

impl FromContext for Tx {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move { TransactionHandle::from_context(context).await.map(Self) })
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        TransactionHandle::check(provided)
    }
}
