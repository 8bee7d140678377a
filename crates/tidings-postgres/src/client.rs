//! A connection for the program's own statements, outside of handlers.

use std::ops::Deref;

use tidings_core::StoreError;
use tokio_postgres::Row;

use crate::{
    connection::{Connection, Params},
    error::failed,
};

/// A connection of a [`PostgresStore`](crate::PostgresStore), which goes back when this is dropped.
/// Leave nothing on it that lasts: no transaction, no setting.
///
/// Statements are prepared once on each connection. For what its methods do not offer it is the
/// driver's own client too.
#[derive(Debug)]
pub struct Client(pub(crate) Connection);

impl Client {
    /// Runs a statement and says how many rows it wrote.
    ///
    /// # Errors
    ///
    /// The [`source`](std::error::Error::source) is the [`tokio_postgres::Error`].
    pub async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, StoreError> {
        self.0.execute(sql, params).await.map_err(failed)
    }

    /// Runs a statement and gives the rows that it returns.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        self.0.rows(sql, params).await.map_err(failed)
    }

    /// Runs a statement that returns just one row.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns none, or several.
    pub async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, StoreError> {
        self.0.row(sql, params).await.map_err(failed)
    }

    /// Runs a statement that returns one row or none.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute), and when it returns several.
    pub async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        self.0.first(sql, params).await.map_err(failed)
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.0
    }
}
