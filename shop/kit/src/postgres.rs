//! Running a [`Statement`] on PostgreSQL.

use futures_util::TryStreamExt;
use sqlx::{Column, Either, Executor, Row as _, TypeInfo, postgres::PgRow};
use tidings_core::StoreError;

use crate::sql::{Outcome, Row, Statement, Value};

/// Runs a statement on a connection to PostgreSQL.
pub(crate) async fn run(
    connection: &mut sqlx::PgConnection,
    statement: &Statement,
) -> Result<Outcome, sqlx::Error> {
    let mut query = sqlx::query(statement.text);
    for value in &statement.values {
        query = match value {
            Value::Int(value) => query.bind(*value),
            Value::Text(value) => query.bind(value.as_deref()),
        };
    }
    let mut outcome = Outcome::default();
    let mut answer = connection.fetch_many(query);
    while let Some(part) = answer.try_next().await? {
        match part {
            Either::Left(done) => outcome.affected += done.rows_affected(),
            Either::Right(row) => outcome.rows.push(from_postgres(&row)?),
        }
    }
    Ok(outcome)
}

fn from_postgres(row: &PgRow) -> Result<Row, sqlx::Error> {
    let value = |column: &sqlx::postgres::PgColumn| -> Result<Value, sqlx::Error> {
        let index = column.ordinal();
        Ok(match column.type_info().name() {
            "INT8" => Value::Int(row.try_get(index)?),
            "INT4" => Value::Int(row.try_get::<Option<i32>, _>(index)?.map(i64::from)),
            _ => Value::Text(row.try_get(index)?),
        })
    };
    Ok(Row {
        values: row
            .columns()
            .iter()
            .map(value)
            .collect::<Result<_, sqlx::Error>>()?,
    })
}

/// A failure of the driver as one of the store.
pub(crate) fn failed(error: sqlx::Error) -> StoreError {
    StoreError::new("a statement failed in the database").with_source(error)
}
