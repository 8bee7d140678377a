//! Transactions: they run one at a time, from the first thing they touch to their end.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use tidings_core::{
    BoxFuture, Commit, Committed, Context, Error, FromContext, Provided, Record, RecordId,
    StoreError, Transaction, TransactionHandle,
};
use tokio::sync::OwnedMutexGuard;

use super::{Shared, Values, read};

/// A transaction on a [`MemoryStore`](super::MemoryStore).
pub struct MemoryTransaction {
    shared: Arc<Shared>,
    values: Values,
    turn: Option<OwnedMutexGuard<()>>,
}

impl MemoryTransaction {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            values: Values::new(),
            turn: None,
        }
    }

    /// The value of `name` as this transaction sees it. Waits for other transactions to end.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub async fn get<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, StoreError> {
        self.begin().await;
        let own = self.values.get(name).cloned();
        let value = own.or_else(|| self.shared.data.lock().values.get(name).cloned());
        read(name, value)
    }

    /// Writes the value of `name`. Waits for other transactions to end.
    ///
    /// # Errors
    ///
    /// When `value` cannot be written as JSON.
    pub async fn put<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), StoreError> {
        let value = serde_json::to_value(value).map_err(|error| {
            StoreError::new(format!("the value of `{name}` cannot be JSON")).with_source(error)
        })?;
        self.begin().await;
        self.values.insert(name.to_owned(), value);
        Ok(())
    }

    async fn begin(&mut self) {
        if self.turn.is_none() {
            self.turn = Some(self.shared.turn().await);
        }
    }
}

impl Transaction for MemoryTransaction {
    fn read<'a>(
        &'a mut self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(async move {
            self.begin().await;
            Ok(self.shared.data.lock().records.read(ids))
        })
    }

    fn commit(
        mut self: Box<Self>,
        commit: Commit,
    ) -> BoxFuture<'static, Result<Committed, StoreError>> {
        Box::pin(async move {
            if !commit.records.is_empty() {
                self.begin().await;
            }
            self.shared.commit(commit, self.values)
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { drop(self) })
    }
}

/// The transaction of the attempt, as an argument of a handler.
///
/// ```
/// # async fn handler(mut tx: tidings_memory::Tx) -> Result<(), tidings_core::StoreError> {
/// let points: u32 = tx.get("points/c-1").await?.unwrap_or(0);
/// tx.put("points/c-1", &(points + 10)).await?;
/// # Ok(()) }
/// ```
pub struct Tx(TransactionHandle);

impl Tx {
    /// The value of `name` as this transaction sees it.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub async fn get<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, StoreError> {
        self.0.get::<MemoryTransaction>().await?.get(name).await
    }

    /// Writes the value of `name`.
    ///
    /// # Errors
    ///
    /// When `value` cannot be written as JSON.
    pub async fn put<T: Serialize + Sync>(
        &mut self,
        name: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let transaction = self.0.get::<MemoryTransaction>().await?;
        transaction.put(name, value).await
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
