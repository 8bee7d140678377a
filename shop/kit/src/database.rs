//! Where services keep their data: one SQLite file, or one PostgreSQL schema, for each. No service
//! reads another's.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use tidings_core::{
    BoxFuture, Commit, Context, Error, FromContext, Provided, Store, StoreError, TransactionHandle,
    TransactionSlot, Work, WorkError,
};
#[cfg(feature = "postgres")]
use tidings_postgres::PostgresStore;
use tidings_sqlite::SqliteStore;

#[cfg(feature = "postgres")]
use crate::postgres;
use crate::sql::{Outcome, Row, Statement, run_on_sqlite};

/// The place of every service's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A folder with a file per service.
    Sqlite(PathBuf),
    /// A PostgreSQL database with a schema per service.
    Postgres(String),
}

impl FromStr for Database {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        match url.strip_prefix("sqlite://") {
            Some("") => Err("`sqlite://` must be followed by a folder".to_owned()),
            Some(folder) => Ok(Self::Sqlite(folder.into())),
            None => Err(format!(
                "`{}` is not a database the shop knows; use `postgres://user:password@host/name` \
                 or `sqlite://folder`",
                url.split("://").next().unwrap_or_default()
            )),
        }
    }
}

/// Without the password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(folder) => write!(f, "sqlite://{}", folder.display()),
            Self::Postgres(url) => match (url.find("://"), url.rfind('@')) {
                (Some(start), Some(at)) if start < at => {
                    write!(f, "postgres://…{}", &url[at..])
                }
                _ => f.write_str(url),
            },
        }
    }
}

impl Database {
    /// Opens a service's database and brings its tables up to date. Each of `migrations` is one
    /// step that was not there before; a step that was released never changes.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, is not a database, or was written by a newer version.
    pub async fn open(&self, service: &'static str, migrations: &[&str]) -> Result<Db, StoreError> {
        let names: Vec<String> = (1..=migrations.len())
            .map(|number| format!("{number:04}"))
            .collect();
        let migrations: Vec<(&str, &str)> = names
            .iter()
            .map(String::as_str)
            .zip(migrations.iter().copied())
            .collect();
        Ok(Db(match self {
            Self::Sqlite(folder) => {
                let store = SqliteStore::open(folder.join(format!("{service}.db"))).await?;
                store.migrate(&migrations).await?;
                Kind::Sqlite(store)
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => {
                let store = PostgresStore::connect(url, service).await?;
                store.migrate(&migrations).await?;
                Kind::Postgres(store)
            }
            #[cfg(not(feature = "postgres"))]
            Self::Postgres(_) => {
                return Err(StoreError::new(
                    "this program was built without PostgreSQL; build it with the feature \
                     `postgres`, or use `sqlite://folder`",
                ));
            }
        }))
    }
}

/// A service's database. Cloning is cheap and gives the same one.
#[derive(Clone)]
pub struct Db(Kind);

#[derive(Clone)]
enum Kind {
    Sqlite(SqliteStore),
    #[cfg(feature = "postgres")]
    Postgres(PostgresStore),
}

impl Db {
    /// The store that the toolkit keeps inbox and outbox in.
    pub fn store(&self) -> Arc<dyn Store> {
        match &self.0 {
            Kind::Sqlite(store) => store.clone().into(),
            #[cfg(feature = "postgres")]
            Kind::Postgres(store) => store.clone().into(),
        }
    }

    /// Reads what is committed.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn read(&self, query: Statement) -> Result<Vec<Row>, StoreError> {
        match &self.0 {
            Kind::Sqlite(store) => {
                let outcome = store.read(move |connection| run_on_sqlite(connection, &query));
                Ok(outcome.await?.rows)
            }
            #[cfg(feature = "postgres")]
            Kind::Postgres(store) => {
                let client = store.client().await?;
                let rows = client.query(query.text, &postgres::params(&query)).await?;
                postgres::rows(&rows)
            }
        }
    }

    /// Runs `work` as one transaction of its own, outside of any handler's. It awaits nothing but
    /// its `Tx`.
    ///
    /// # Errors
    ///
    /// When it fails: nothing was written. And when the database does not say whether the commit
    /// succeeded: then everything may have been written, or nothing.
    pub async fn write<T, F, Fut>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let slot = Arc::new(TransactionSlot::new(self.store()));
        let working = work(self.lend(slot.handle()));
        let work = async move { Ok((working.await?, Commit::default())) };
        Work::value_of(slot, work)
            .await
            .map_err(|error| match error {
                WorkError::NotBegun(error) | WorkError::Store(error) => error,
                WorkError::Failed(error) => match error.downcast() {
                    Ok(error) => *error,
                    Err(error) => StoreError::new(error.to_string()),
                },
            })
    }

    /// Runs one statement as a transaction of its own; says how many rows it wrote.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn execute(&self, statement: Statement) -> Result<u64, StoreError> {
        self.write(|mut tx| async move { tx.execute(statement).await })
            .await
    }

    /// Runs one statement as a transaction of its own; gives the first row that it returns.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn first(&self, statement: Statement) -> Result<Option<Row>, StoreError> {
        self.write(|mut tx| async move { tx.first(statement).await })
            .await
    }

    /// The transaction behind `handle`, to run statements in.
    pub fn lend(&self, handle: TransactionHandle) -> Tx {
        Tx(match &self.0 {
            Kind::Sqlite(_) => TxKind::Sqlite(handle.into()),
            #[cfg(feature = "postgres")]
            Kind::Postgres(_) => TxKind::Postgres(handle.into()),
        })
    }
}

/// The transaction of an attempt, as an argument of a handler. It has no commit: the toolkit
/// commits it, with the inbox claim and the outbox rows, when the handler returns `Ok`.
///
/// The router needs `.transactional(db.store())` and `.with_state(db)`.
pub struct Tx(TxKind);

enum TxKind {
    Sqlite(tidings_sqlite::Tx),
    #[cfg(feature = "postgres")]
    Postgres(tidings_postgres::Tx),
}

impl Tx {
    /// Runs one statement and says how many rows it wrote.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        match &mut self.0 {
            TxKind::Sqlite(tx) => Ok(on_sqlite(tx, statement).await?.affected),
            #[cfg(feature = "postgres")]
            TxKind::Postgres(tx) => {
                tx.execute(statement.text, &postgres::params(&statement))
                    .await
            }
        }
    }

    /// Runs one statement and gives the first row that it returns.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn first(&mut self, statement: Statement) -> Result<Option<Row>, StoreError> {
        match &mut self.0 {
            TxKind::Sqlite(tx) => Ok(on_sqlite(tx, statement).await?.rows.into_iter().next()),
            #[cfg(feature = "postgres")]
            TxKind::Postgres(tx) => {
                let params = postgres::params(&statement);
                let rows = tx.query(statement.text, &params).await?;
                rows.first().map(postgres::row).transpose()
            }
        }
    }
}

async fn on_sqlite(
    tx: &mut tidings_sqlite::Tx,
    statement: Statement,
) -> Result<Outcome, StoreError> {
    tx.call(move |connection| run_on_sqlite(connection, &statement))
        .await
}

impl FromContext for Tx {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        let lent = context.state::<Db>().zip(context.transaction());
        let tx = lent.map(|(db, slot)| db.lend(slot.handle()));
        Box::pin(std::future::ready(tx.ok_or_else(|| Error::msg(LACK))))
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        provided.needs_store()?;
        match provided.has_state::<Db>() {
            true => Ok(()),
            false => Err(LACK.to_owned()),
        }
    }
}

const LACK: &str = "it takes a `shop_kit::Tx`, but the router has no database; add \
                    `.transactional(db.store())` and `.with_state(db)`";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql;

    #[test]
    fn a_database_is_named_by_a_url() {
        let check = |url: &str, expected: Result<&str, &str>| match url.parse::<Database>() {
            Ok(database) => assert_eq!(Ok(&*database.to_string()), expected),
            Err(error) => assert!(error.contains(expected.unwrap_err()), "{error}"),
        };
        check("sqlite://data", Ok("sqlite://data"));
        check("sqlite:///var/shop", Ok("sqlite:///var/shop"));
        check(
            "postgres://me:secret@host:1/shop",
            Ok("postgres://…@host:1/shop"),
        );
        check("sqlite://", Err("followed by a folder"));
        check("mysql://me:secret@host", Err("`mysql` is not a database"));
    }

    #[tokio::test]
    async fn statements_of_one_write_are_all_done_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let steps = ["create table t (a bigint primary key)"];
        let db = database.open("test", &steps).await.unwrap();
        let insert = |a: i64| sql("insert into t (a) values ($1)").bind(a);
        let both = |a, b| {
            db.write(move |mut tx| async move {
                tx.execute(insert(a)).await?;
                tx.execute(insert(b)).await
            })
        };
        assert!(both(1, 1).await.is_err());
        assert_eq!(both(2, 3).await.unwrap(), 1);
        let rows = db.read(sql("select a from t order by a")).await.unwrap();
        let kept: Vec<i64> = rows.iter().map(|row| row.get(0).unwrap()).collect();
        assert_eq!(kept, [2, 3]);
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let steps = ["create table t (a bigint)", "create table u (a bigint)"];
        drop(database.open("test", &steps).await.unwrap());
        let error = database.open("test", &steps[..1]).await.err().unwrap();
        assert!(error.to_string().contains("newer"), "{error}");
    }
}
