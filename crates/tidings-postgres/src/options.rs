//! How a store is connected, and how many connections it takes.

use std::{
    str::FromStr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use sqlx::{
    Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tidings_core::StoreError;
use tokio::sync::watch;

use crate::{
    PostgresStore, Shared,
    error::{explain, is_not_there_yet},
    locks::LockNames,
    schema, wake,
};

/// How long a transaction waits for a connection.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(30);

/// How many connections of a store are kept for the relay and for workers, whatever handlers do:
/// one listens to other processes, on the others a relay and a worker run their short statements.
pub(crate) const RESERVED_CONNECTIONS: u32 = 3;

/// How long a statement of a relay or worker waits for one of those. Leases last some seconds, and
/// a relay that hears late that the database is away has lost them.
const RESERVED_WAIT_MAX: Duration = Duration::from_secs(5);

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

    /// How many connections the store has at most, all in all (default: 10, since a server takes
    /// 100 by default and is often shared by all services). Three of them are kept for the relay
    /// and for workers, one of which listens to other processes, so that they never wait for
    /// handlers; on the others transactions run side by side.
    ///
    /// # Panics
    ///
    /// If `count` is less than 4.
    #[track_caller]
    pub fn connections_max(mut self, count: u32) -> Self {
        assert!(
            count > RESERVED_CONNECTIONS,
            "a store keeps {RESERVED_CONNECTIONS} connections for the relay and for workers, and \
             needs one more to write; give `connections_max` at least {}",
            RESERVED_CONNECTIONS + 1
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
                // Whatever the server's own default is: order by key is decided under locks, by
                // statements that see what was committed before they began.
                ("default_transaction_isolation", "read committed"),
            ]);
        wait_for(&options).await?;
        let count = self.connections_max - RESERVED_CONNECTIONS;
        let pool = pool(options.clone(), count, CONNECTION_WAIT_MAX);
        schema::migrate(&pool, &schema, schema::OWN, schema::MIGRATIONS).await?;
        let options = options.application_name(&format!("tidings {schema} relay"));
        let reserved = self::pool(options, RESERVED_CONNECTIONS, RESERVED_WAIT_MAX);
        let commits = watch::Sender::new(0);
        let wakes = watch::Sender::new(0);
        let tasks = wake::spawn(
            reserved.clone(),
            &schema,
            commits.subscribe(),
            wakes.clone(),
        );
        Ok(PostgresStore(Arc::new(Shared {
            pool,
            reserved,
            locks: LockNames::of_schema(&schema),
            schema,
            commits,
            wakes,
            wakes_seen: AtomicU64::new(0),
            _tasks: tasks,
        })))
    }
}

fn pool(options: PgConnectOptions, count: u32, wait_max: Duration) -> PgPool {
    PgPoolOptions::new()
        .max_connections(count)
        .acquire_timeout(wait_max)
        .test_before_acquire(false)
        .before_acquire(|connection, known| {
            Box::pin(async move {
                if known.idle_for > UNTRIED_MAX {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
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
