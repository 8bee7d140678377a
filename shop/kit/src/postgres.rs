//! A [`Statement`] on PostgreSQL: its parameters, and the rows that it returns.

use std::error::Error as StdError;

use bytes::BytesMut;
use tidings_core::StoreError;
use tidings_postgres::tokio_postgres::{
    self,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

use crate::sql::{Row, Statement, Value};

/// The parameters of a statement.
pub(crate) fn params(statement: &Statement) -> Vec<&(dyn ToSql + Sync)> {
    let values = statement.values.iter();
    values.map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// The rows that it returned.
pub(crate) fn rows(rows: &[tokio_postgres::Row]) -> Result<Vec<Row>, StoreError> {
    rows.iter().map(row).collect()
}

/// One of them.
pub(crate) fn row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let value = |column: usize| -> Result<Value, tokio_postgres::Error> {
        Ok(match *row.columns()[column].type_() {
            Type::INT8 => Value::Int(row.try_get(column)?),
            Type::INT4 => Value::Int(row.try_get::<_, Option<i32>>(column)?.map(i64::from)),
            _ => Value::Text(row.try_get(column)?),
        })
    };
    let values = (0..row.len()).map(value).collect::<Result<_, _>>();
    let unread = |error| StoreError::new("cannot read a row of the database").with_source(error);
    Ok(Row {
        values: values.map_err(unread)?,
    })
}

/// As the type that the database asks for at this place.
impl ToSql for Value {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match (self, wanted) {
            (Self::Int(Some(value)), &Type::INT4) => i32::try_from(*value)?.to_sql(wanted, out),
            (Self::Int(value), _) => value.to_sql(wanted, out),
            (Self::Text(value), _) => value.to_sql(wanted, out),
        }
    }

    fn accepts(wanted: &Type) -> bool {
        matches!(*wanted, Type::INT8 | Type::INT4 | Type::TEXT)
    }

    to_sql_checked!();
}
