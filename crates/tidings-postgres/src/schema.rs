//! The schema of a service, and the versions of the tables in it.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, raw_sql};
use tidings_core::StoreError;

use crate::{error::explain, upgrade};

/// Whose tables a migration makes.
pub(crate) const OWN: &str = "tidings";
pub(crate) const APPLICATION: &str = "application";

/// What each version added. A migration that was released is never changed.
pub(crate) const MIGRATIONS: &[(&str, &str)] = &[
    ("0001", include_str!("../migrations/0001.sql")),
    (WITH_WAITING, include_str!("../migrations/0002.sql")),
];

/// The migration after which elder outbox rows are told where they go.
const WITH_WAITING: &str = "0002";

/// Refuses a name that would have to be quoted everywhere.
pub(crate) fn check_name(schema: &str) -> Result<(), StoreError> {
    let plain = |character: char| character.is_ascii_lowercase() || character == '_';
    let fine = schema.len() <= 63
        && schema.starts_with(plain)
        && schema
            .chars()
            .all(|character| plain(character) || character.is_ascii_digit());
    if fine {
        return Ok(());
    }
    Err(StoreError::new(format!(
        "`{schema}` cannot be the name of a schema; use at most 63 of a-z, 0-9 and `_`, and begin \
         with a letter"
    )))
}

/// Makes the schema if it is missing and brings the tables of `owner` up to date.
///
/// Several copies of a service may start at once: one does the work, the others wait for it.
pub(crate) async fn migrate(
    pool: &PgPool,
    schema: &str,
    owner: &str,
    migrations: &[(&str, &str)],
) -> Result<(), StoreError> {
    let failed = |error| explain("begin a migration", &error);
    let mut transaction = pool.begin().await.map_err(failed)?;
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('tidings migration ' || $1, 0))")
        .bind(schema)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    make_schema(&mut transaction, schema).await?;
    refuse_newer(&mut transaction, schema, owner, migrations).await?;
    for (name, sql) in migrations {
        run_once(&mut transaction, owner, name, sql).await?;
    }
    transaction
        .commit()
        .await
        .map_err(|error| explain("commit a migration", &error))
}

async fn make_schema(connection: &mut PgConnection, schema: &str) -> Result<(), StoreError> {
    let failed = |error| explain(&format!("make the schema `{schema}`"), &error);
    // `if not exists` alone asks for the right to create even where there is nothing to do.
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_namespace where nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
    if !exists {
        raw_sql(AssertSqlSafe(format!("create schema {schema}")))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    let exists: bool = sqlx::query_scalar("select to_regclass('tidings_migration') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if !exists {
        raw_sql(
            "create table tidings_migration (
                 owner text not null,
                 name text not null,
                 run_at timestamptz not null default now(),
                 primary key (owner, name)
             )",
        )
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

async fn refuse_newer(
    connection: &mut PgConnection,
    schema: &str,
    owner: &str,
    migrations: &[(&str, &str)],
) -> Result<(), StoreError> {
    let newest: Option<String> = sqlx::query_scalar(
        "select max(name collate \"C\") from tidings_migration where owner = $1",
    )
    .bind(owner)
    .fetch_one(connection)
    .await
    .map_err(|error| explain("read which migrations have run", &error))?;
    let Some(newest) = newest else {
        return Ok(());
    };
    if migrations.iter().any(|(name, _)| *name == newest) {
        return Ok(());
    }
    Err(StoreError::new(format!(
        "the schema `{schema}` was written by a newer version: its {owner} tables are at \
         `{newest}`, this program knows up to `{}`; run the newer version, or restore a backup \
         from before it",
        migrations.last().map_or("nothing", |(name, _)| name),
    )))
}

async fn run_once(
    connection: &mut PgConnection,
    owner: &str,
    name: &str,
    sql: &str,
) -> Result<(), StoreError> {
    let failed = |error| explain(&format!("run migration `{name}`"), &error);
    let new = sqlx::query(
        "insert into tidings_migration (owner, name) values ($1, $2) on conflict do nothing",
    )
    .bind(owner)
    .bind(name)
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    if new.rows_affected() > 0 {
        // A migration is a text of the program, as a handler's statements are.
        raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        if (owner, name) == (OWN, WITH_WAITING) {
            upgrade::route(connection).await.map_err(failed)?;
        }
    }
    Ok(())
}
