//! A handler's transaction, and the `Tx` it is used through.

use std::{collections::HashSet, sync::Arc};

use tidings_core::{
    BoxFuture, Commit, Committed, Context, Error, FromContext, Provided, Record, RecordId,
    StoreError, Transaction, TransactionHandle,
};
use tokio_postgres::{Client, Row};

use crate::{
    Shared, commit,
    connection::{Connection, Open, Params},
    error::{self, explain, failed},
    handover::Handover,
    records,
};

/// A transaction on a [`PostgresStore`](crate::PostgresStore).
pub struct PostgresTransaction {
    shared: Arc<Shared>,
    on: On,
    /// The records that it has read.
    locked: HashSet<RecordId>,
}

enum On {
    /// A connection of its own.
    Own(Box<Open>),
    /// That of a batch, which ends it; kept here while it is lent out.
    Batch(Arc<Handover>, Option<Arc<Connection>>),
}

/// Runs a statement by a method of the driver, wherever the transaction runs.
macro_rules! run {
    ($transaction:ident . $method:ident($sql:ident, $params:ident)) => {
        match &$transaction.on {
            On::Own(open) => {
                let prepared = open.prepared($sql).await.map_err(failed)?;
                let client: &Client = open;
                client
                    .$method(&prepared, $params)
                    .await
                    .map_err(|why| failed(why.into()))
            }
            On::Batch(handover, _) => {
                let running = &handover.enter($sql)?;
                let client: &Client = running.connection();
                let prepared = || running.connection().prepared($sql);
                let statement = |prepared| async move {
                    let result = client.$method(&prepared, $params).await;
                    result.map_err(error::Error::from)
                };
                running.run(prepared, statement).await?.map_err(failed)
            }
        }
    };
}

impl PostgresTransaction {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let open = shared.pool.begin().await;
        let open = open.map_err(|error| explain("begin a transaction", error))?;
        Ok(Self::new(shared, On::Own(Box::new(open))))
    }

    pub(crate) fn in_batch(shared: Arc<Shared>, handover: Arc<Handover>) -> Self {
        Self::new(shared, On::Batch(handover, None))
    }

    fn new(shared: Arc<Shared>, on: On) -> Self {
        Self {
            shared,
            on,
            locked: HashSet::new(),
        }
    }

    /// The records that it has read.
    pub(crate) fn into_locked(self) -> HashSet<RecordId> {
        self.locked
    }

    /// Runs a statement and says how many rows it wrote.
    ///
    /// # Errors
    ///
    /// The [`source`](std::error::Error::source) is the [`tokio_postgres::Error`]. With
    /// [`is_conflict`](StoreError::is_conflict) if it ran into another transaction.
    pub async fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64, StoreError> {
        run!(self.execute(sql, params))
    }

    /// Runs a statement and gives the rows that it returns.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub async fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        run!(self.query(sql, params))
    }

    /// Runs a statement that returns just one row.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns none, or several.
    pub async fn query_one(&mut self, sql: &str, params: Params<'_>) -> Result<Row, StoreError> {
        run!(self.query_one(sql, params))
    }

    /// Runs a statement that returns one row or none.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns several.
    pub async fn query_opt(
        &mut self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        run!(self.query_opt(sql, params))
    }

    /// The driver's own client, for what the other methods do not offer. Do not end the transaction
    /// on it: what the toolkit adds then would be committed on its own.
    ///
    /// # Errors
    ///
    /// In a transaction that is shared with others, with [`is_conflict`](StoreError::is_conflict): the
    /// attempt is undone, and tried again in a transaction of its own. So it is for statements that
    /// would leave something in the transaction for others: a setting, a savepoint, a temporary table.
    pub async fn client(&mut self) -> Result<&Client, StoreError> {
        match &mut self.on {
            On::Own(open) => Ok(open),
            On::Batch(handover, lent) => {
                let running = handover.enter_freely()?;
                running
                    .run_in_turn(async { Ok::<_, StoreError>(()) })
                    .await??;
                Ok(lent.insert(Arc::clone(running.connection())))
            }
        }
    }

    /// Writes what is in `commit` and ends the transaction. Whatever is told, no lock of it is left.
    pub(crate) async fn finish(self, commit: Commit) -> Result<Committed, StoreError> {
        let On::Own(open) = self.on else {
            return Err(StoreError::new("a batch ends its transaction itself"));
        };
        let written = commit::write(&open, &self.shared, &self.locked, &commit).await;
        let ended = match written {
            Ok(Committed::Done) => open.commit().await,
            Ok(Committed::Refused { .. }) | Err(_) => open.rollback().await,
        };
        let written = written?;
        ended.map_err(|error| explain("end a transaction", error))?;
        self.shared.committed(&commit, &written);
        Ok(written)
    }
}

impl Transaction for PostgresTransaction {
    fn read<'a>(
        &'a mut self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move {
            let names = self.shared.locks;
            let read = match &self.on {
                On::Own(open) => records::read_locked(open, names, ids).await?,
                On::Batch(handover, _) => {
                    let running = handover.enter_shared()?;
                    let read = records::read_locked(running.connection(), names, ids);
                    running.run_in_turn(read).await??
                }
            };
            self.locked.extend(ids.iter().cloned());
            Ok(read)
        })
    }

    fn commit(
        self: Box<Self>,
        commit: Commit,
    ) -> BoxFuture<'static, Result<Committed, StoreError>> {
        Box::pin((*self).finish(commit))
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // Where even that fails the connection is gone, and the transaction with it.
            if let On::Own(open) = self.on
                && let Err(error) = open.rollback().await
            {
                tracing::debug!("{}", explain("roll back", error));
            }
        })
    }
}

/// The transaction of the attempt, as an argument of a handler.
///
/// It has no `commit`: the toolkit commits it, with the inbox claim and the outbox rows, when the
/// handler returns `Ok`. It begins when it is first used.
///
/// ```
/// # async fn handler(mut tx: tidings_postgres::Tx) -> Result<(), Box<dyn std::error::Error>> {
/// let insert = "insert into payment (order_id, status) values ($1, $2)";
/// tx.execute(insert, &[&"o-1", &"AUTHORIZED"]).await?;
/// # Ok(()) }
/// ```
///
/// What lasts in a transaction (a setting, a savepoint, a temporary table) moves the attempts of its
/// consumer into transactions of their own. Do not set anything with `select set_config(…)`: that looks
/// like any other read, and handlers that share the transaction would have it too.
///
/// Handlers that are ready at the same time run one after the other in one transaction, and what
/// each writes is committed, or undone, for itself. So do slow work before the first statement, and
/// keep none of it for the middle: a handler that awaits something else there is undone and tried
/// again in a transaction of its own, from then on always.
pub struct Tx(TransactionHandle);

impl Tx {
    /// Runs a statement and says how many rows it wrote.
    ///
    /// # Errors
    ///
    /// When the database gives no connection, or the consumer's store is another one; and as
    /// [`PostgresTransaction::execute`].
    pub async fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64, StoreError> {
        self.transaction().await?.execute(sql, params).await
    }

    /// Runs a statement and gives the rows that it returns.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub async fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        self.transaction().await?.query(sql, params).await
    }

    /// Runs a statement that returns just one row.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns none, or several.
    pub async fn query_one(&mut self, sql: &str, params: Params<'_>) -> Result<Row, StoreError> {
        self.transaction().await?.query_one(sql, params).await
    }

    /// Runs a statement that returns one row or none.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns several.
    pub async fn query_opt(
        &mut self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        self.transaction().await?.query_opt(sql, params).await
    }

    /// The driver's own client, as [`PostgresTransaction::client`].
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and as there.
    pub async fn client(&mut self) -> Result<&Client, StoreError> {
        self.transaction().await?.client().await
    }

    async fn transaction(&mut self) -> Result<&mut PostgresTransaction, StoreError> {
        self.0.get::<PostgresTransaction>().await
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
