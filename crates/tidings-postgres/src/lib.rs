//! The [`Store`] over PostgreSQL: a service's data, inbox and outbox in one schema.
//!
//! It knows no broker and no router, and no other service's tables: one schema per service.
//!
//! Handlers that are ready at the same time share a transaction, one after the other, each in a
//! savepoint: one commit makes all of them durable. A handler notices nothing of it: its [`Tx`] runs
//! statements of [`tokio_postgres`].
//!
//! ```no_run
//! # async fn example() -> Result<(), tidings_core::StoreError> {
//! use tidings_postgres::PostgresStore;
//!
//! let store = PostgresStore::connect("postgres://localhost/shop", "payment").await?;
//! store
//!     .migrate(&[("0001", "create table payment (order_id text primary key, status text)")])
//!     .await?;
//! # Ok(()) }
//! ```

mod batch;
mod client;
mod commit;
mod connection;
mod deferred;
mod error;
mod guesses;
mod handover;
mod inbox;
mod lanes;
mod locks;
mod log;
mod options;
mod outbox;
#[cfg(test)]
mod plans;
mod progress;
mod records;
mod runner;
mod schema;
mod tls;
mod transaction;
mod upgrade;
mod values;
mod wake;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tidings_core::{
    Ask, BoxFuture, Commit, Committed, Deferred, Habits, Keeping, Log, Outbox, Records, Seen,
    Store, StoreError, Transaction, Work, WorkError,
};
use tokio::sync::watch;

pub use client::Client;
pub use connection::Params;
pub use options::PostgresOptions;
pub use tokio_postgres;
pub use transaction::{PostgresTransaction, Tx};

use connection::Pool;
use error::explain;
use guesses::Guesses;
use locks::LockNames;
use progress::Progress;
use runner::Runners;

/// A service's schema in a PostgreSQL database. Cloning is cheap and gives the same one.
#[derive(Clone)]
pub struct PostgresStore(Arc<Shared>);

struct Shared {
    /// For transactions, and for reads of people.
    pool: Pool,
    /// For the relay and for workers.
    reserved: Pool,
    /// For the removal of rows that the broker has. A commit there does not wait for the disk: if the
    /// database crashes at that moment they are sent again, and consumers know them.
    removals: Pool,
    /// Until when this store's relay has all lanes.
    alone_until: Arc<Mutex<Option<Instant>>>,
    schema: String,
    locks: LockNames,
    /// Attempts that share transactions.
    runners: Runners,
    habits: Habits,
    guesses: Guesses,
    progress: Progress,
    keeping: Keeping,
    /// Counts the commits of this store that brought outbox rows.
    commits: watch::Sender<u64>,
    /// Counts what should wake a relay: these, and those of other processes.
    wakes: watch::Sender<u64>,
    wakes_seen: AtomicU64,
    _tasks: wake::Tasks,
}

impl PostgresStore {
    /// Connects to the database at `url` with a schema of the service's own; makes the schema and
    /// the toolkit's tables if they are not there. Waits, and says so in the log, while there is
    /// no database yet. [`PostgresOptions`] has more to choose.
    ///
    /// # Errors
    ///
    /// As [`PostgresOptions::connect`].
    pub async fn connect(
        url: impl Into<String>,
        schema: impl Into<String>,
    ) -> Result<Self, StoreError> {
        PostgresOptions::new(url, schema).connect().await
    }

    /// The schemas in the database at `url` that have the toolkit's tables, by name: those of
    /// services.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached or read.
    pub async fn schemas(url: &str) -> Result<Vec<String>, StoreError> {
        options::schemas(url).await
    }

    /// Brings the application's own tables up to date: runs those of `migrations` that have not
    /// been run in this schema, in order, all or none. Their names ascend, and a migration that
    /// was released is never changed.
    ///
    /// # Errors
    ///
    /// When a migration fails, or the schema has seen one that is not in `migrations`: it was
    /// written by a newer version of the program.
    pub async fn migrate(&self, migrations: &[(&str, &str)]) -> Result<(), StoreError> {
        let Shared { pool, schema, .. } = &*self.0;
        schema::migrate(pool, schema, schema::APPLICATION, migrations).await
    }

    /// A connection, for reads outside of handlers.
    ///
    /// # Errors
    ///
    /// When none becomes free, or none can be made.
    pub async fn client(&self) -> Result<Client, StoreError> {
        let connection = self.0.pool.get().await;
        let connection = connection.map_err(|error| explain("get a connection", error))?;
        Ok(Client(connection))
    }
}

impl Shared {
    /// Wakes relays if there is something for them.
    fn committed(&self, commit: &Commit, outcome: &Committed) {
        if *outcome == Committed::Done && !commit.outbox.is_empty() {
            self.wake();
        }
    }

    fn wake(&self) {
        self.commits.send_modify(|commits| *commits += 1);
        self.wakes.send_modify(|wakes| *wakes += 1);
    }
}

impl Store for PostgresStore {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let transaction = PostgresTransaction::begin(shared).await?;
            Ok(Box::new(transaction) as Box<dyn Transaction>)
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(commit::commit_alone(&self.0, commit))
    }

    fn run(&self, batch: Vec<Work>) -> BoxFuture<'_, Vec<Result<Committed, WorkError>>> {
        let run = |work: Work| async move {
            match runner::is_for_runners(&self.0, &work) {
                true => runner::run(self, work).await,
                false => work.run_on(self).await,
            }
        };
        Box::pin(join_all(batch.into_iter().map(run)))
    }

    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>> {
        Box::pin(inbox::look(&self.0.pool, asked))
    }

    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(inbox::forget(
            &self.0.reserved,
            &self.0.progress,
            consumer,
            age,
            limit,
        ))
    }

    fn outbox(&self) -> &dyn Outbox {
        &*self.0
    }

    fn deferred(&self) -> &dyn Deferred {
        &*self.0
    }

    fn records(&self) -> &dyn Records {
        &*self.0
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(&*self.0)
    }
}

impl From<PostgresStore> for Arc<dyn Store> {
    fn from(store: PostgresStore) -> Self {
        Arc::new(store)
    }
}
