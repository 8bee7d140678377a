//! Connections: a pool of them, and how the crate's own statements run on one.
//!
//! A statement is prepared once on each connection. Statements that are begun one after the other
//! without awaiting the first are sent at once (the driver pipelines them), and the database runs
//! them in that order.

use std::{
    fmt,
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, RecyclingMethod, Runtime,
};
use tokio::runtime::Handle;
use tokio_postgres::{Config, Row, types::ToSql};

use crate::{error::Error, tls::Tls};

/// The parameters of a statement, the first for `$1`.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection that was idle for longer is tried before it is used.
const UNTRIED_MAX: Duration = Duration::from_secs(1);

/// How many statements are kept prepared on a connection. A program that makes its statements'
/// texts as it goes along has more, and then they are forgotten and prepared anew.
const PREPARED_MAX: usize = 500;

/// How long the end of a transaction that nobody waits for any more may take before its connection is
/// given up.
const ROLLBACK_MAX: Duration = Duration::from_secs(5);

/// Connections to the same database. Cloning is cheap and gives the same ones.
#[derive(Clone)]
pub(crate) struct Pool(deadpool_postgres::Pool);

impl Pool {
    /// At most `count` connections, each made when it is needed. Whoever finds none free waits for
    /// `wait_max`.
    pub(crate) fn new(config: Config, tls: Tls, count: u32, wait_max: Duration) -> Self {
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config, tls, recycling);
        let try_idle = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, known| {
            Box::pin(async move {
                if known.last_used() > UNTRIED_MAX {
                    let tried = client.simple_query("").await;
                    tried.map_err(HookError::Backend)?;
                }
                Ok(())
            })
        });
        let pool = deadpool_postgres::Pool::builder(manager)
            .max_size(count as usize)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(wait_max))
            .create_timeout(Some(wait_max))
            .recycle_timeout(Some(ROLLBACK_MAX))
            .pre_recycle(try_idle)
            .build();
        // An error is impossible: there is a runtime for the time-outs.
        Self(pool.unwrap_or_else(|error| unreachable!("a pool: {error}")))
    }

    pub(crate) async fn get(&self) -> Result<Connection, Error> {
        let object = self.0.get().await?;
        // Not while it is in use: what is prepared then stays so.
        if object.statement_cache.size() > PREPARED_MAX {
            object.statement_cache.clear();
        }
        Ok(Connection {
            object: Some(object),
            is_spent: AtomicBool::new(false),
        })
    }

    /// Begins a transaction, which ends with its [`Open`].
    pub(crate) async fn begin(&self) -> Result<Open, Error> {
        let open = Open(Some(self.get().await?));
        open.run("begin").await?;
        Ok(open)
    }

    /// The rows of one statement.
    pub(crate) async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.get().await?.rows(sql, params).await
    }

    /// The row of one statement that gives just one.
    pub(crate) async fn row(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        self.get().await?.row(sql, params).await
    }

    /// How many rows one statement wrote.
    pub(crate) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.get().await?.execute(sql, params).await
    }
}

/// A connection, which goes back to its pool when it is dropped.
pub(crate) struct Connection {
    /// Until it is dropped.
    object: Option<Object>,
    is_spent: AtomicBool,
}

impl Connection {
    /// The rows of a statement.
    pub(crate) async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(sql).await?;
        Ok(self.query(&statement, params).await?)
    }

    /// The row of a statement that gives just one.
    pub(crate) async fn row(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        let statement = self.prepared(sql).await?;
        Ok(self.query_one(&statement, params).await?)
    }

    /// The row of a statement that gives one or none.
    pub(crate) async fn first(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        let statement = self.prepared(sql).await?;
        Ok(self.query_opt(&statement, params).await?)
    }

    /// How many rows a statement wrote.
    pub(crate) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.prepared(sql).await?;
        Ok(tokio_postgres::Client::execute(self, &statement, params).await?)
    }

    /// Statements without parameters, not prepared. They are sent when this is first polled.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Error> {
        Ok(self.batch_execute(sql).await?)
    }

    /// Prepares a statement, so that it is sent when it is first polled.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<(), Error> {
        self.prepared(sql).await.map(drop)
    }

    pub(crate) async fn prepared(&self, sql: &str) -> Result<tokio_postgres::Statement, Error> {
        Ok(self.object().prepare_cached(sql).await?)
    }

    /// Ends it when it is dropped, instead of giving it back.
    pub(crate) fn discard(&self) {
        self.is_spent.store(true, Ordering::Relaxed);
    }

    fn object(&self) -> &Object {
        let object = self.object.as_ref();
        object.unwrap_or_else(|| unreachable!("it is there until it is dropped"))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let object = self.object.take();
        if self.is_spent.load(Ordering::Relaxed) {
            object.map(Object::take);
        }
    }
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        self.object()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A transaction on a connection of its own; undone when it is dropped.
pub(crate) struct Open(Option<Connection>);

impl Open {
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        self.run("commit").await?;
        self.0 = None;
        Ok(())
    }

    pub(crate) async fn rollback(mut self) -> Result<(), Error> {
        self.run("rollback").await?;
        self.0 = None;
        Ok(())
    }
}

impl Deref for Open {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        // An error is impossible: only what consumes it takes the connection out.
        self.0
            .as_ref()
            .unwrap_or_else(|| unreachable!("it is open"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(connection) = self.0.take() else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            return connection.discard();
        };
        runtime.spawn(async move {
            let ended = tokio::time::timeout(ROLLBACK_MAX, connection.run("rollback")).await;
            match ended {
                Ok(Ok(())) => drop(connection),
                // The connection is of no use, and the transaction ends with it.
                Ok(Err(_)) | Err(_) => connection.discard(),
            }
        });
    }
}
