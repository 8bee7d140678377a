//! The database of a part: one SQL text on SQLite and on PostgreSQL, inside of the toolkit's
//! transactions.

use std::sync::Arc;

use tidings::{Store, StoreError, TransactionHandle};
use tidings_postgres::{
    PostgresOptions, PostgresStore, PostgresTransaction, tokio_postgres::types::ToSql,
};
use tidings_sqlite::{SqliteStore, SqliteTransaction, rusqlite};

/// The tables of both services. Nothing is unique on purpose: a doubled effect has to show.
const TABLES: (&str, &str) = (
    "0001",
    "create table counter (key text primary key, place bigint not null);
     create table ledger (number text not null, key text not null, place bigint not null,
         kind text not null);
     create index ledger_key on ledger (key, place);
     create table effect (id IDENTITY, consumer text not null, number text not null,
         key text not null, place bigint not null, before bigint not null,
         failures bigint not null, at bigint not null);
     create index effect_key on effect (consumer, key, place);
     create table answer (consumer text not null, number text not null, message text not null);
     create table trip_end (number text not null, outcome text not null);
     create table step (number text not null, step text not null, what text not null);
     create index step_number on step (number);
     create table shelved (number text not null)",
);

/// A parameter.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

/// An open database.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
}

impl Database {
    /// Opens `url`: a path, or a `postgres://` URL with a schema.
    pub(crate) async fn open(url: &str, schema: &str) -> Result<Self, StoreError> {
        let (name, sql) = TABLES;
        if url.starts_with("postgres://") {
            let store = PostgresOptions::new(url, schema).connect().await?;
            let sql = sql.replace(
                "IDENTITY",
                "bigint generated always as identity primary key",
            );
            store.migrate(&[(name, &sql)]).await?;
            return Ok(Self::Postgres(store));
        }
        let store = SqliteStore::open(url).await?;
        let sql = sql.replace("IDENTITY", "integer primary key autoincrement");
        store.migrate(&[(name, &sql)]).await?;
        Ok(Self::Sqlite(store))
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => Arc::new(store.clone()),
            Self::Postgres(store) => Arc::new(store.clone()),
        }
    }

    /// Runs one statement in the transaction behind `handle`. Parameters are `$1`, `$2`, ... and
    /// first named in that order. The answer is the number in the first column of the first row, if
    /// there is one.
    pub(crate) async fn execute(
        &self,
        handle: &mut TransactionHandle,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<i64>, StoreError> {
        match self {
            Self::Sqlite(_) => {
                let transaction = handle.get::<SqliteTransaction>().await?;
                transaction
                    .call(move |connection| execute_sqlite(connection, sql, values))
                    .await
            }
            Self::Postgres(_) => {
                let transaction = handle.get::<PostgresTransaction>().await?;
                let values = values.iter().map(|value| match value {
                    Value::Int(value) => value as &(dyn ToSql + Sync),
                    Value::Text(value) => value,
                });
                let values: Vec<_> = values.collect();
                let row = transaction.query_opt(sql, &values).await?;
                let number = row.map(|row| row.try_get(0)).transpose();
                number.map_err(|error| {
                    StoreError::new("cannot read the number that a statement of the rig gave")
                        .with_source(error)
                })
            }
        }
    }
}

fn execute_sqlite(
    connection: &rusqlite::Connection,
    sql: &str,
    values: Vec<Value>,
) -> rusqlite::Result<Option<i64>> {
    let values = values.into_iter().map(|value| match value {
        Value::Int(value) => rusqlite::types::Value::Integer(value),
        Value::Text(value) => rusqlite::types::Value::Text(value),
    });
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    match rows.next()? {
        Some(row) => row.get(0).map(Some),
        None => Ok(None),
    }
}
