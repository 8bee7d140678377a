//! A handler's transaction, and the `Tx` it is used through.

use std::sync::Arc;

use sqlx::{PgConnection, Postgres};
use tidings_core::{
    BoxFuture, Commit, Committed, Context, Error, FromContext, Provided, StoreError, Transaction,
    TransactionHandle,
};

use crate::{Shared, error::explain, outbox};

/// A transaction on a [`PostgresStore`](crate::PostgresStore).
pub struct PostgresTransaction {
    shared: Arc<Shared>,
    transaction: sqlx::Transaction<'static, Postgres>,
}

impl PostgresTransaction {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self, StoreError> {
        let transaction = shared.pool.begin().await;
        Ok(Self {
            transaction: transaction.map_err(|error| explain("begin a transaction", &error))?,
            shared,
        })
    }

    /// The connection that the transaction runs on.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl Transaction for PostgresTransaction {
    fn commit(
        mut self: Box<Self>,
        commit: Commit,
    ) -> BoxFuture<'static, Result<Committed, StoreError>> {
        Box::pin(async move {
            let schema_hash = self.shared.schema_hash;
            let written = outbox::write(&mut *self.transaction, schema_hash, &commit).await?;
            let ended = match written {
                Committed::Done => self.transaction.commit().await,
                Committed::Duplicate => self.transaction.rollback().await,
            };
            ended.map_err(|error| explain("end a transaction", &error))?;
            self.shared.committed(&commit, written);
            Ok(written)
        })
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
