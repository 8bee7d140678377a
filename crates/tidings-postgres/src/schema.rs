//! The schema of a service, and the versions of the tables in it.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, raw_sql};
use tidings_core::StoreError;

use crate::error::explain;

/// Whose tables a migration makes.
pub(crate) const OWN: &str = "tidings";
pub(crate) const APPLICATION: &str = "application";

/// The lanes' rows keep their place in their page (`fillfactor`), since they are updated for ever.
pub(crate) const MIGRATIONS: &[(&str, &str)] = &[(
    "0001",
    "create table tidings_inbox (
         consumer text not null,
         message text not null,
         claimed_at timestamptz not null default clock_timestamp(),
         primary key (consumer, message)
     );
     create index tidings_inbox_age on tidings_inbox using brin (claimed_at);
     create table tidings_outbox (
         position bigint generated always as identity primary key,
         lane smallint not null,
         created_at timestamptz not null default clock_timestamp(),
         deferred_until timestamptz,
         message text not null,
         body bytea not null
     );
     create index tidings_outbox_ready on tidings_outbox (position) include (lane)
         where deferred_until is null;
     create index tidings_outbox_deferred on tidings_outbox (deferred_until)
         where deferred_until is not null;
     create table tidings_lane (
         lane smallint primary key,
         relay text,
         leased_until timestamptz not null default '-infinity'
     ) with (fillfactor = 10);
     insert into tidings_lane (lane) select generate_series(0, 15);",
)];

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
            .execute(connection)
            .await
            .map_err(failed)?;
    }
    Ok(())
}
