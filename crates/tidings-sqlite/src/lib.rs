//! The [`Store`] over SQLite: a service's database in one file, with no server to set up.
//!
//! It never blocks a task of the runtime: one thread per file writes, others read. It knows no
//! broker and no router.
//!
//! * Every write is durable when it is reported (`synchronous = full`), and writes that wait share
//!   one disk sync; see [`SqliteStore::write`].
//! * Several processes may share one file on a local disk.
//! * Handlers run on the writer's thread too, as long as they await nothing but their [`Tx`]: see
//!   [`Store::run`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tidings_core::StoreError> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("payment.db");
//! use tidings_sqlite::SqliteStore;
//!
//! let store = SqliteStore::open(path).await?;
//! store
//!     .migrate(&[("0001", "create table payment (order_id text primary key, status text)")])
//!     .await?;
//! let payments: u32 = store
//!     .read(|connection| connection.query_one("select count(*) from payment", (), |row| row.get(0)))
//!     .await?;
//! assert_eq!(payments, 0);
//! # Ok(()) }
//! ```

mod attempt;
mod clock;
mod commit;
mod deferred;
mod error;
mod inbox;
mod lanes;
mod log;
mod migrations;
mod outbox;
mod own;
mod readers;
mod records;
mod schema;
mod transaction;
mod writer;

#[cfg(test)]
mod plans;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use rusqlite::Connection;
use tidings_core::{
    Ask, BoxFuture, Commit, Committed, Deferred, Habits, Keeping, Log, Outbox, Records, Seen,
    Store, StoreError, Transaction, Work, WorkError,
};
use tokio::sync::{mpsc, oneshot, watch};

pub use rusqlite;
pub use transaction::{SqliteTransaction, Tx};

use migrations::Migration;
use readers::Readers;
use transaction::{Postponed, commit_work, gone, statement, unit};
use writer::Job;

/// How long a write waits for another process that holds the file's lock.
pub(crate) const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

/// How many transactions, and how many reads, may wait; more wait outside of the queue.
const WAITING_MAX: usize = 1024;

/// How often a waiting relay looks whether another process has committed.
const OTHER_PROCESSES_POLL: Duration = Duration::from_millis(100);

/// How a [`SqliteStore`] is opened.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    path: PathBuf,
    transaction_idle_max: Duration,
    readers: usize,
    access: Access,
}

/// What may be done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything: it is made, and brought up to date.
    Own,
    /// It is there, up to date, and written.
    Existing,
    /// It is there, up to date, and only read.
    ReadOnly,
}

impl SqliteOptions {
    /// The defaults for the database at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            transaction_idle_max: Duration::from_secs(5),
            readers: 2,
            access: Access::Own,
        }
    }

    /// Opens only a database that is there and whose tables are of this version: for a program that
    /// operates a service which is not its own. It makes no file and no tables.
    pub fn existing(mut self) -> Self {
        self.access = Access::Existing;
        self
    }

    /// As [`existing`](Self::existing), and whatever would write fails.
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    /// The longest that a handler may hold its transaction open between statements, in sum, before
    /// it is rolled back (default: 5 seconds). All other writes to the file wait meanwhile.
    ///
    /// Transactions that have run already and wait to be committed together with the handler's do
    /// not wait for so long: after 100 milliseconds the handler's is rolled back with
    /// [`is_conflict`](StoreError::is_conflict), to be tried again.
    pub fn transaction_idle_max(mut self, idle: Duration) -> Self {
        self.transaction_idle_max = idle;
        self
    }

    /// How many threads read (default: 2).
    ///
    /// # Panics
    ///
    /// If `threads` is 0.
    #[track_caller]
    pub fn readers(mut self, threads: usize) -> Self {
        assert!(threads > 0, "a store needs at least one reader");
        self.readers = threads;
        self
    }

    /// Opens the database; makes the file and the toolkit's tables if they are not there, unless it
    /// is to be [`existing`](Self::existing).
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or written, is no database, or is of a newer version.
    pub async fn open(self) -> Result<SqliteStore, StoreError> {
        let (reply, opened) = oneshot::channel();
        std::thread::Builder::new()
            .name("tidings-sqlite-open".into())
            .spawn(move || reply.send(self.open_blocking()))
            .map_err(|error| {
                StoreError::new("cannot start a thread to open the database").with_source(error)
            })?;
        opened.await.unwrap_or_else(|_| Err(gone()))
    }

    fn open_blocking(self) -> Result<SqliteStore, StoreError> {
        let path: Arc<Path> = self.path.into();
        let connection = schema::open_writer(&path, self.access)?;
        let readers = (0..self.readers)
            .map(|_| schema::open_reader(&path, self.access))
            .collect::<Result<Vec<_>, _>>()?;
        let (writer, writes) = mpsc::channel(WAITING_MAX);
        writer::spawn(
            connection,
            Arc::clone(&path),
            writes,
            self.transaction_idle_max,
        )?;
        let readers = Readers::start(readers, &path, WAITING_MAX)?;
        Ok(SqliteStore(Arc::new(Shared {
            path,
            writer,
            readers,
            commits: watch::Sender::new(0),
            commits_seen: AtomicU64::new(0),
            data_version_seen: AtomicI64::new(-1),
            habits: Habits::default(),
            keeping: Keeping::default(),
        })))
    }
}

/// A database file. Cloning is cheap and gives the same one.
#[derive(Clone)]
pub struct SqliteStore(Arc<Shared>);

struct Shared {
    path: Arc<Path>,
    writer: mpsc::Sender<Job>,
    readers: Readers,
    /// Counts the commits of this process that brought outbox rows.
    commits: watch::Sender<u64>,
    commits_seen: AtomicU64,
    /// SQLite's counter of what other processes committed, when it was last looked at.
    data_version_seen: AtomicI64,
    habits: Habits,
    keeping: Keeping,
}

impl SqliteStore {
    /// Opens the database at `path`; makes the file and the toolkit's tables if they are not
    /// there. [`SqliteOptions`] has more to choose.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or written, is no database, or is of a newer version.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        SqliteOptions::new(path).open().await
    }

    /// Brings the application's own tables up to date: runs those of `migrations` that have not
    /// been run on this file, in order, all or none. Their names ascend, and a migration that was
    /// released is never changed.
    ///
    /// # Errors
    ///
    /// When a migration fails, or the file has run one that is not in `migrations`: it was written
    /// by a newer version of the program.
    pub async fn migrate(&self, migrations: &[(&str, &str)]) -> Result<(), StoreError> {
        let migrations: Vec<Migration> = migrations
            .iter()
            .map(|&(name, sql)| Migration {
                name: name.to_owned(),
                sql: sql.to_owned(),
                then: None,
            })
            .collect();
        let path = Arc::clone(&self.0.path);
        // The migration's own error says more than one of SQLite's could.
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |ready: writer::Ready<'_>| {
            let outcome = ready.and_then(|connection| {
                schema::migrate_inside(connection, &path, schema::APPLICATION, &migrations)
            });
            writer::Unit {
                keep: outcome.is_ok(),
                done: Box::new(|durable| drop(reply.send(durable.and(outcome)))),
            }
        });
        self.0.send(Job::Unit(work)).await?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Runs `work` as one transaction on the writer's thread, and resolves when it is durable. If
    /// it fails or panics, nothing of it stays. Transactions that wait share a disk sync.
    ///
    /// # Errors
    ///
    /// When `work` fails, or what it wrote cannot be made durable; with
    /// [`is_conflict`](StoreError::is_conflict) if that is the fault of a transaction that shared
    /// the sync, so that nothing was written and trying again may succeed.
    pub async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Job::Unit(unit(&self.0, reply, work));
        self.0.send(job).await?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Runs `work` on a connection that only reads; it sees all that is committed and waits for no
    /// writer.
    ///
    /// # Errors
    ///
    /// When `work` fails or panics.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let read = statement(&self.0, reply, work);
        self.0.readers.send(read).await;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Shared {
    async fn send(&self, job: Job) -> Result<(), StoreError> {
        self.writer.send(job).await.map_err(|_| gone())
    }

    async fn commit(
        self: Arc<Self>,
        postponed: Vec<Postponed>,
        commit: Commit,
    ) -> Result<Committed, StoreError> {
        let (reply, answer) = oneshot::channel();
        let work = commit_work(Arc::clone(&self), postponed, commit, reply);
        self.send(Job::Unit(work)).await?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn wake_relays(&self) {
        self.commits.send_modify(|commits| *commits += 1);
    }

    /// Whether another process has committed anything since this was last asked.
    async fn others_committed(self: &Arc<Self>) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        // Only the writer's connection leaves out what this process committed itself.
        let look = statement(self, reply, |connection| {
            connection
                .prepare_cached("pragma data_version")?
                .query_one((), |row| row.get(0))
        });
        self.send(Job::Look(look)).await?;
        let version = answer.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(self.data_version_seen.swap(version, Ordering::Relaxed) != version)
    }
}

impl Store for SqliteStore {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        let transaction = SqliteTransaction::new(Arc::clone(&self.0));
        Box::pin(async move { Ok(Box::new(transaction) as Box<dyn Transaction>) })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(Arc::clone(&self.0).commit(Vec::new(), commit))
    }

    fn run(&self, batch: Vec<Work>) -> BoxFuture<'_, Vec<Result<Committed, WorkError>>> {
        let run = |work: Work| async move {
            // A slot that was used before has a transaction, which keeps the writer to itself.
            match work.slot().is_used() || self.0.habits.is_busy(work.claim()) {
                true => work.run_on(self).await,
                false => attempt::run(self, work).await,
            }
        };
        Box::pin(join_all(batch.into_iter().map(run)))
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        let asked = asked.to_vec();
        Box::pin(self.read(move |connection| inbox::look(connection, &asked)))
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let consumer = consumer.to_owned();
        Box::pin(self.write(move |connection| inbox::forget(connection, &consumer, age, limit)))
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn deferred(&self) -> &dyn Deferred {
        self
    }

    fn records(&self) -> &dyn Records {
        self
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(self)
    }
}

impl From<SqliteStore> for Arc<dyn Store> {
    fn from(store: SqliteStore) -> Self {
        Arc::new(store)
    }
}
