//! One SQL text on two databases.
//!
//! A [`Statement`] is written once, in the words that SQLite and PostgreSQL share: `$1` for
//! parameters, `on conflict`, `returning`, and the types `bigint` and `text`. What only one of the
//! two understands has no place in the shop.

use rusqlite::types::{ToSqlOutput, ValueRef};
use tidings_core::StoreError;

/// A statement and its parameters.
#[derive(Debug, Clone)]
pub struct Statement {
    pub(crate) text: &'static str,
    pub(crate) values: Vec<Value>,
}

/// A statement without parameters yet.
pub fn sql(text: &'static str) -> Statement {
    Statement {
        text,
        values: Vec::new(),
    }
}

impl Statement {
    /// Gives the next parameter: the first call is for `$1`.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }
}

/// What stands in a column. A missing value still has a type, because PostgreSQL asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A `bigint`.
    Int(Option<i64>),
    /// A `text`.
    Text(Option<String>),
}

macro_rules! values {
    ($($variant:ident from $type:ty: |$value:ident| $text:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                Self::$variant(Some($text))
            }
        }

        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                Self::$variant(value.map(|$value| $text))
            }
        }
    )*};
}

values! {
    Int from i64: |value| value;
    Text from String: |value| value;
    Text from &String: |value| value.clone();
    Text from &str: |value| value.to_owned();
}

/// What a statement did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How many rows it wrote.
    pub(crate) affected: u64,
    /// The rows it returned.
    pub(crate) rows: Vec<Row>,
}

/// A row that a statement returned.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) values: Vec<Value>,
}

impl Row {
    /// The value of a column, counted from 0.
    ///
    /// # Errors
    ///
    /// When there is no such column, or it is of another type.
    pub fn get<T: FromValue>(&self, column: usize) -> Result<T, StoreError> {
        let value = self.values.get(column).cloned();
        value.clone().and_then(T::from_value).ok_or_else(|| {
            StoreError::new(format!(
                "column {column} of the answer is {value:?}, not a `{}`",
                std::any::type_name::<T>()
            ))
        })
    }
}

/// What a column can be read as.
pub trait FromValue: Sized {
    /// `None` if the value is of another type.
    fn from_value(value: Value) -> Option<Self>;
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Option<Self> {
        Option::<i64>::from_value(value)?
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Option<Self> {
        Option::<String>::from_value(value)?
    }
}

impl FromValue for Option<i64> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Int(value) => Some(value),
            // SQLite's missing values have no type.
            Value::Text(None) => Some(None),
            Value::Text(Some(_)) => None,
        }
    }
}

impl FromValue for Option<String> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Text(value) => Some(value),
            Value::Int(_) => None,
        }
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Int(Some(value)) => ValueRef::Integer(*value),
            Self::Text(Some(value)) => ValueRef::Text(value.as_bytes()),
            Self::Int(None) | Self::Text(None) => ValueRef::Null,
        }))
    }
}

/// Runs a statement on a connection to SQLite.
pub(crate) fn run_on_sqlite(
    connection: &rusqlite::Connection,
    statement: &Statement,
) -> rusqlite::Result<Outcome> {
    let mut prepared = connection.prepare_cached(statement.text)?;
    for (index, value) in statement.values.iter().enumerate() {
        // SQLite counts `$2` as a name: its index is where it first stands.
        let name = format!("${}", index + 1);
        let Some(index) = prepared.parameter_index(&name)? else {
            return Err(rusqlite::Error::InvalidParameterName(name));
        };
        prepared.raw_bind_parameter(index, value)?;
    }
    let columns = prepared.column_count();
    let mut rows = Vec::new();
    let mut answer = prepared.raw_query();
    while let Some(row) = answer.next()? {
        let values = (0..columns).map(|column| from_sqlite(row.get_ref(column)?, column));
        rows.push(Row {
            values: values.collect::<rusqlite::Result<_>>()?,
        });
    }
    drop(answer);
    let affected = if prepared.readonly() {
        0
    } else {
        connection.changes()
    };
    Ok(Outcome { affected, rows })
}

fn from_sqlite(value: ValueRef<'_>, column: usize) -> rusqlite::Result<Value> {
    match value {
        ValueRef::Null => Ok(Value::Text(None)),
        ValueRef::Integer(value) => Ok(Value::Int(Some(value))),
        ValueRef::Text(_) => Ok(Value::Text(Some(value.as_str()?.to_owned()))),
        ValueRef::Real(_) | ValueRef::Blob(_) => {
            let name = "a `bigint` or `text`".into();
            Err(rusqlite::Error::InvalidColumnType(
                column,
                name,
                value.data_type(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_as_in_postgresql() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let statement = sql("select $2, $1, $2, cast($3 as bigint)")
            .bind("first")
            .bind(2_i64)
            .bind(None::<i64>);
        let row = run_on_sqlite(&connection, &statement)
            .unwrap()
            .rows
            .into_iter()
            .next()
            .unwrap();
        assert_eq!(row.get::<i64>(0).unwrap(), 2);
        assert_eq!(row.get::<String>(1).unwrap(), "first");
        assert_eq!(row.get::<Option<i64>>(3).unwrap(), None);
        let error = row.get::<i64>(1).unwrap_err().to_string();
        assert!(error.contains("column 1"), "{error}");
    }

    #[test]
    fn a_statement_says_how_many_rows_it_wrote() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let run = |text| run_on_sqlite(&connection, &sql(text)).unwrap();
        run("create table t (a bigint primary key)");
        assert_eq!(run("insert into t values (1), (2)").affected, 2);
        let again = run("insert into t values (2), (3) on conflict do nothing returning a");
        assert_eq!(again.rows.len(), 1);
        assert_eq!(run("update t set a = a + 10 where a = 99").affected, 0);
    }

    #[test]
    fn too_many_parameters_are_an_error() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        assert!(run_on_sqlite(&connection, &sql("select 1").bind(1_i64)).is_err());
    }
}
