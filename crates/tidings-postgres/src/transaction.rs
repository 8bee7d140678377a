//! A handler's transaction, and the `Tx` it is used through.

use std::{collections::HashSet, sync::Arc};

use sqlx::{PgConnection, Postgres};
use tidings_core::{
    BoxFuture, Commit, Committed, Context, Error, FromContext, Provided, Record, RecordId,
    StoreError, Transaction, TransactionHandle,
};

use crate::{Shared, commit, error::explain, records};

/// A transaction on a [`PostgresStore`](crate::PostgresStore).
pub struct PostgresTransaction {
    shared: Arc<Shared>,
    transaction: sqlx::Transaction<'static, Postgres>,
    /// The records that it has read.
    locked: HashSet<RecordId>,
}

impl PostgresTransaction {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let transaction = shared.pool.begin().await;
        Ok(Self {
            transaction: transaction.map_err(|error| explain("begin a transaction", &error))?,
            shared,
            locked: HashSet::new(),
        })
    }

    /// The connection that the transaction runs on.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Writes what is in `commit` and ends the transaction. Whatever is told, no lock of it is left.
    pub(crate) async fn finish(mut self, commit: Commit) -> Result<Committed, StoreError> {
        let connection = &mut *self.transaction;
        let written = commit::write(connection, &self.shared, &self.locked, &commit).await;
        let ended = match written {
            Ok(Committed::Done) => self.transaction.commit().await,
            Ok(Committed::Refused { .. }) | Err(_) => self.transaction.rollback().await,
        };
        let written = written?;
        ended.map_err(|error| explain("end a transaction", &error))?;
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
            let read = records::read_locked(&mut self.transaction, names, ids).await?;
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
            if let Err(error) = self.transaction.rollback().await {
                tracing::debug!(%error, "a rollback failed");
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
/// use tidings_postgres::sqlx;
///
/// sqlx::query("insert into payment (order_id, status) values ($1, $2)")
///     .bind("o-1")
///     .bind("AUTHORIZED")
///     .execute(tx.conn().await?)
///     .await?;
/// # Ok(()) }
/// ```
pub struct Tx(TransactionHandle);

impl Tx {
    /// The connection that the transaction runs on. Do not end the transaction on it: what the
    /// toolkit adds then would be committed on its own.
    ///
    /// # Errors
    ///
    /// When the database gives no connection, or the consumer's store is another one.
    pub async fn conn(&mut self) -> Result<&mut PgConnection, StoreError> {
        Ok(self.0.get::<PostgresTransaction>().await?.conn())
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
