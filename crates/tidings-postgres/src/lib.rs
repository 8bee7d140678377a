//! The [`Store`] over PostgreSQL: a service's data, inbox and outbox in one schema.
//!
//! It knows no broker and no router, and no other service's tables: one schema per service.
//!
//! A handler's [`Tx`] lends the driver's own connection, so all of [`sqlx`] can be used on it.
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

mod error;
mod outbox;
mod schema;
mod transaction;
mod wake;

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{
    Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tidings_core::{
    BoxFuture, Claim, Commit, Committed, Lane, OutboxRow, OutboxStats, Store, StoreError,
    Transaction,
};
use tokio::sync::watch;

pub use sqlx;
pub use transaction::{PostgresTransaction, Tx};

use error::{explain, is_not_there_yet};

/// How long a transaction waits for a connection.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(30);

/// A connection that was idle for longer is tried before it is used.
const UNTRIED_MAX: Duration = Duration::from_secs(1);

/// Between two attempts to reach a database that is not there yet, and between two log lines.
const CONNECT_EVERY: Duration = Duration::from_millis(500);
const CONNECT_LOG_EVERY: Duration = Duration::from_secs(10);

/// How a [`PostgresStore`] is connected.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    url: String,
    schema: String,
    connections_max: u32,
    transaction_idle_max: Duration,
}

impl PostgresOptions {
    /// The defaults for the database at `url` and the service's own `schema` in it.
    pub fn new(url: impl Into<String>, schema: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: schema.into(),
            connections_max: 10,
            transaction_idle_max: Duration::from_secs(60),
        }
    }

    /// How many connections there are at most (default: 10, since a server takes 100 by default
    /// and is often shared by all services): one listens, on the others transactions run side by
    /// side.
    ///
    /// # Panics
    ///
    /// If `count` is less than 2.
    #[track_caller]
    pub fn connections_max(mut self, count: u32) -> Self {
        assert!(
            count >= 2,
            "a store needs one connection to listen and one to write"
        );
        self.connections_max = count;
        self
    }

    /// The longest that a handler may hold its transaction open between two statements before the
    /// server ends it (default: 60 seconds), with all the locks it holds.
    pub fn transaction_idle_max(mut self, idle: Duration) -> Self {
        self.transaction_idle_max = idle;
        self
    }

    /// Connects; makes the schema and the toolkit's tables if they are not there. Waits, and says
    /// so in the log, while there is no database yet.
    ///
    /// # Errors
    ///
    /// When waiting does not help: a wrong URL, user, password or database, a right that is
    /// missing, or tables of a newer version.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let schema = self.schema;
        schema::check_name(&schema)?;
        // 0 would mean for ever.
        let idle_max = self.transaction_idle_max.as_millis().max(1).to_string();
        let options = read_url(&self.url)?
            .application_name(&format!("tidings {schema}"))
            .options([
                ("search_path", schema.as_str()),
                ("idle_in_transaction_session_timeout", &idle_max),
            ]);
        wait_for(&options).await?;
        let pool = PgPoolOptions::new()
            .max_connections(self.connections_max)
            .acquire_timeout(CONNECTION_WAIT_MAX)
            .test_before_acquire(false)
            .before_acquire(|connection, known| {
                Box::pin(async move {
                    if known.idle_for > UNTRIED_MAX {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        schema::migrate(&pool, &schema, schema::OWN, schema::MIGRATIONS).await?;
        let commits = watch::Sender::new(0);
        let wakes = watch::Sender::new(0);
        let tasks = wake::spawn(pool.clone(), &schema, commits.subscribe(), wakes.clone());
        Ok(PostgresStore(Arc::new(Shared {
            pool,
            schema_hash: outbox::hash(&schema),
            schema,
            commits,
            wakes,
            wakes_seen: AtomicU64::new(0),
            _tasks: tasks,
        })))
    }
}

fn read_url(url: &str) -> Result<PgConnectOptions, StoreError> {
    let refused = |why: &str| {
        StoreError::new(format!(
            "the database URL cannot be read: {why}; it looks like \
             `postgres://user:password@host:5432/database`"
        ))
    };
    // The driver takes any scheme.
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(refused("it does not begin with `postgres://`"));
    }
    PgConnectOptions::from_str(url).map_err(|error| refused(&error.to_string()))
}

/// Waits until the database can be reached.
async fn wait_for(options: &PgConnectOptions) -> Result<(), StoreError> {
    let server = format!("{}:{}", options.get_host(), options.get_port());
    let mut log_at = tokio::time::Instant::now();
    loop {
        let error = match sqlx::PgConnection::connect_with(options).await {
            Ok(connection) => {
                // It was only to see; whether it closes in good order does not matter.
                let _ = connection.close().await;
                return Ok(());
            }
            Err(error) => error,
        };
        let why = explain(&format!("connect to PostgreSQL at {server}"), &error);
        if !is_not_there_yet(&error) {
            return Err(why);
        }
        if log_at <= tokio::time::Instant::now() {
            tracing::warn!("{why}; waiting for it");
            log_at = tokio::time::Instant::now() + CONNECT_LOG_EVERY;
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// A service's schema in a PostgreSQL database. Cloning is cheap and gives the same one.
#[derive(Clone)]
pub struct PostgresStore(Arc<Shared>);

struct Shared {
    pool: PgPool,
    schema: String,
    schema_hash: i32,
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

    /// The connections, for reads outside of handlers.
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }
}

impl Shared {
    fn committed(&self, commit: &Commit, outcome: Committed) {
        if outcome == Committed::Done && !commit.outbox.is_empty() {
            self.commits.send_modify(|commits| *commits += 1);
            self.wakes.send_modify(|wakes| *wakes += 1);
        }
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
        Box::pin(async move {
            let written = outbox::write(&self.0.pool, self.0.schema_hash, &commit).await?;
            self.0.committed(&commit, written);
            Ok(written)
        })
    }

    fn is_claimed<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(outbox::is_claimed(&self.0.pool, claim))
    }

    fn lease_lanes<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Vec<Lane>, StoreError>> {
        Box::pin(outbox::lease_lanes(&self.0.pool, relay, lease))
    }

    fn release_lanes<'a>(&'a self, relay: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(outbox::release_lanes(&self.0.pool, relay))
    }

    fn unsent<'a>(
        &'a self,
        lanes: &'a [Lane],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(outbox::unsent(&self.0.pool, lanes, limit))
    }

    fn defer<'a>(
        &'a self,
        positions: &'a [i64],
        delay: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(outbox::defer(&self.0.pool, positions, delay))
    }

    fn sent<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(outbox::sent(&self.0.pool, positions))
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut wakes = self.0.wakes.subscribe();
            loop {
                let now = *wakes.borrow_and_update();
                if self.0.wakes_seen.swap(now, Ordering::Relaxed) != now {
                    return;
                }
                // An error is impossible: `self` holds a sender.
                let _ = wakes.changed().await;
            }
        })
    }

    fn outbox_stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        Box::pin(outbox::stats(&self.0.pool))
    }

    fn forget_claims(&self, age: Duration, limit: usize) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(outbox::forget_claims(&self.0.pool, age, limit))
    }
}

impl From<PostgresStore> for Arc<dyn Store> {
    fn from(store: PostgresStore) -> Self {
        Arc::new(store)
    }
}
