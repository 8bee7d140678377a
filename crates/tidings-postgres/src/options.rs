//! How a store is connected, and how many connections it takes.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use tidings_core::{Habits, StoreError};
use tokio::sync::watch;
use tokio_postgres::{Config, config::Host};

use crate::{
    PostgresStore, Shared,
    connection::Pool,
    error::{Error, explain, is_not_there_yet},
    guesses::Guesses,
    locks::LockNames,
    progress::Progress,
    runner::Runners,
    schema,
    tls::{Tls, read_url},
    wake,
};

/// How long a transaction waits for a connection.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(30);

/// How many connections of a store are kept for the relay and for workers, whatever handlers do:
/// one listens to other processes, one removes what was sent, on the others a relay and a worker run
/// their short statements.
pub(crate) const RESERVED_CONNECTIONS: u32 = 4;

/// How long a statement of a relay or worker waits for one of those. Leases last some seconds, and
/// a relay that hears late that the database is away has lost them.
const RESERVED_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the database has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// When a connection counts as lost on which the other end says nothing: for the system, which sees
/// whether what was sent arrived.
const SILENT_MAX: Duration = Duration::from_secs(30);

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
    access: Access,
}

/// What may be done to the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Everything: it is made, and brought up to date.
    Own,
    /// It is there, up to date, and written.
    Existing,
    /// It is there, up to date, and only read.
    ReadOnly,
}

impl PostgresOptions {
    /// The defaults for the database at `url` and the service's own `schema` in it.
    pub fn new(url: impl Into<String>, schema: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: schema.into(),
            connections_max: 10,
            transaction_idle_max: Duration::from_secs(60),
            access: Access::Own,
        }
    }

    /// Connects only to a database that is there, and to a schema whose tables are of this version:
    /// for a program that operates a service which is not its own. It makes no schema and no tables,
    /// and does not listen to other processes: no relay should run over it.
    pub fn existing(mut self) -> Self {
        self.access = Access::Existing;
        self
    }

    /// As [`existing`](Self::existing), and whatever would write fails.
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    /// How many connections the store has at most, all in all (default: 10, since a server takes
    /// 100 by default and is often shared by all services). Four of them are kept for the relay
    /// and for workers, one of which listens to other processes, so that they never wait for
    /// handlers; on the others transactions run side by side.
    ///
    /// # Panics
    ///
    /// If `count` is less than 5.
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
    /// so in the log, while there is no database yet. Neither, if it is to be
    /// [`existing`](Self::existing).
    ///
    /// # Errors
    ///
    /// When waiting does not help: a wrong URL, user, password or database, a right that is
    /// missing, or tables of a newer version.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let schema = self.schema;
        schema::check_name(&schema)?;
        let (mut config, tls) = read(&self.url)?;
        settle(&mut config, &schema, self.transaction_idle_max);
        if self.access == Access::ReadOnly {
            add_options(&mut config, "-c default_transaction_read_only=on");
        }
        match self.access {
            Access::Own => wait_for(&config, &tls).await?,
            Access::Existing | Access::ReadOnly => look(&config, &tls).await?,
        }
        let count = self.connections_max - RESERVED_CONNECTIONS;
        let pool = Pool::new(config.clone(), tls.clone(), count, CONNECTION_WAIT_MAX);
        match self.access {
            Access::Own => {
                schema::migrate(&pool, &schema, schema::OWN, schema::MIGRATIONS).await?;
            }
            Access::Existing | Access::ReadOnly => schema::is_up_to_date(&pool, &schema).await?,
        }
        config.application_name(format!("tidings {schema} relay"));
        // These run nothing but the crate's own statements, each of which has one plan.
        add_options(&mut config, "-c plan_cache_mode=force_generic_plan");
        // One connection is the listener's own, and one is for removals.
        let kept = RESERVED_CONNECTIONS - 2;
        let reserved = Pool::new(config.clone(), tls.clone(), kept, RESERVED_WAIT_MAX);
        let mut removing = config.clone();
        // Rows are removed by position, also where the plan was made for a table that was empty.
        add_options(
            &mut removing,
            "-c synchronous_commit=off -c enable_seqscan=off",
        );
        let removals = Pool::new(removing, tls.clone(), 1, RESERVED_WAIT_MAX);
        let alone_until = Arc::new(Mutex::new(None));
        let commits = watch::Sender::new(0);
        let wakes = watch::Sender::new(0);
        let heard = wake::Heard {
            own: commits.subscribe(),
            alone_until: Arc::clone(&alone_until),
            wakes: wakes.clone(),
        };
        let listener = (self.access == Access::Own).then_some((config, tls));
        let tasks = wake::spawn(reserved.clone(), listener, &schema, heard);
        Ok(PostgresStore(Arc::new(Shared {
            pool,
            reserved,
            removals,
            alone_until,
            locks: LockNames::of_schema(&schema),
            schema,
            runners: Runners::new(),
            habits: Habits::default(),
            guesses: Guesses::default(),
            keeping: tidings_core::Keeping::default(),
            progress: Progress::default(),
            commits,
            wakes,
            wakes_seen: AtomicU64::new(0),
            _tasks: tasks,
        })))
    }
}

/// What a URL says.
fn read(url: &str) -> Result<(Config, Tls), StoreError> {
    let refused = |why: String| {
        StoreError::new(format!(
            "the database URL cannot be read: {why}; it looks like \
             `postgres://user:password@host:5432/database`"
        ))
    };
    // The driver also takes a list of names and values.
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(refused("it does not begin with `postgres://`".to_owned()));
    }
    let (mut config, tls) = read_url(url).map_err(refused)?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_MAX);
    }
    Ok((config, tls))
}

/// The schemas of services in the database at `url`, by name.
pub(crate) async fn schemas(url: &str) -> Result<Vec<String>, StoreError> {
    let (mut config, tls) = read(url)?;
    config.application_name("tidings");
    add_options(&mut config, "-c default_transaction_read_only=on");
    let wait = CONNECTION_WAIT_MAX;
    look(&config, &tls).await?;
    schema::list(&Pool::new(config, tls, 1, wait)).await
}

/// What every connection of a store is told.
fn settle(config: &mut Config, schema: &str, idle_max: Duration) {
    // 0 would mean for ever.
    let idle_max = idle_max.as_millis().max(1);
    let own = format!(
        "-c search_path={schema} -c idle_in_transaction_session_timeout={idle_max} \
         -c default_transaction_isolation=read\\ committed"
    );
    // Whatever the server's own default of isolation is: order by key is decided under locks, by
    // statements that see what was committed before they began.
    add_options(config, &own);
    config
        .application_name(format!("tidings {schema}"))
        .keepalives_idle(SILENT_MAX / 2)
        .tcp_user_timeout(SILENT_MAX);
}

fn add_options(config: &mut Config, more: &str) {
    let options = match config.get_options() {
        Some(options) => format!("{options} {more}"),
        None => more.to_owned(),
    };
    config.options(options);
}

/// Waits until the database can be reached.
async fn wait_for(config: &Config, tls: &Tls) -> Result<(), StoreError> {
    let mut log_at = tokio::time::Instant::now();
    loop {
        let error = match config.connect(tls.clone()).await {
            Ok(_) => return Ok(()), // It was only to see.
            Err(error) => Error::from(error),
        };
        let waits = is_not_there_yet(&error);
        let why = explain(&attempt(config), error);
        if !waits {
            return Err(why);
        }
        if log_at <= tokio::time::Instant::now() {
            tracing::warn!("{why}; waiting for it");
            log_at = tokio::time::Instant::now() + CONNECT_LOG_EVERY;
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// Looks whether the database can be reached now.
async fn look(config: &Config, tls: &Tls) -> Result<(), StoreError> {
    match config.connect(tls.clone()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(explain(&attempt(config), Error::from(error))),
    }
}

/// What is attempted, for an error.
fn attempt(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(folder)) => folder.display().to_string(),
        None => "no host".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("connect to PostgreSQL at {host}:{port}")
}
