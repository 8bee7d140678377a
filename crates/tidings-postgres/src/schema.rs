//! The schema of a service, and the versions of the tables in it.

use tidings_core::StoreError;

use crate::{
    connection::{Connection, Pool},
    error::explain,
    upgrade,
};

/// Whose tables a migration makes.
pub(crate) const OWN: &str = "tidings";
pub(crate) const APPLICATION: &str = "application";

/// What each version added. A migration that was released is never changed.
pub(crate) const MIGRATIONS: &[(&str, &str)] = &[
    ("0001", include_str!("../migrations/0001.sql")),
    (WITH_WAITING, include_str!("../migrations/0002.sql")),
    ("0003", include_str!("../migrations/0003.sql")),
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
    pool: &Pool,
    schema: &str,
    owner: &str,
    migrations: &[(&str, &str)],
) -> Result<(), StoreError> {
    let failed = |error| explain("begin a migration", error);
    let transaction = pool.begin().await.map_err(failed)?;
    transaction
        .execute(
            "select pg_advisory_xact_lock(hashtextextended('tidings migration ' || $1, 0))",
            &[&schema],
        )
        .await
        .map_err(failed)?;
    make_schema(&transaction, schema).await?;
    refuse_newer(&transaction, schema, owner, migrations).await?;
    for (name, sql) in migrations {
        run_once(&transaction, owner, name, sql).await?;
    }
    transaction
        .commit()
        .await
        .map_err(|error| explain("commit a migration", error))
}

/// The schemas that have the toolkit's tables.
pub(crate) async fn list(pool: &Pool) -> Result<Vec<String>, StoreError> {
    let rows = pool
        .rows(
            "select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.relname = 'tidings_migration' and c.relkind = 'r'
                 and has_schema_privilege(n.oid, 'usage')
             order by 1",
            &[],
        )
        .await;
    rows.and_then(|rows| {
        Ok(rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?)
    })
    .map_err(|error| explain("list the schemas of services", error))
}

/// Refuses a schema without the toolkit's tables, or with those of another version.
pub(crate) async fn is_up_to_date(pool: &Pool, schema: &str) -> Result<(), StoreError> {
    let failed = |error| explain("read which migrations have run", error);
    let connection = pool.get().await.map_err(failed)?;
    let exists: bool = connection
        .row(
            "select to_regclass($1 || '.tidings_migration') is not null",
            &[&schema],
        )
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(failed)?;
    if !exists {
        return Err(StoreError::new(format!(
            "there is no schema `{schema}` with the toolkit's tables: no service keeps its data there"
        )));
    }
    refuse_newer(&connection, schema, OWN, MIGRATIONS).await?;
    for (name, _) in MIGRATIONS {
        let has_run: bool = connection
            .row(
                "select exists (select from tidings_migration where owner = $1 and name = $2)",
                &[&OWN, name],
            )
            .await
            .and_then(|row| Ok(row.try_get(0)?))
            .map_err(failed)?;
        if !has_run {
            return Err(StoreError::new(format!(
                "the tables of the schema `{schema}` are of an older version: `{name}` has not been \
                 run; start its service with the present version, which brings them up to date"
            )));
        }
    }
    Ok(())
}

async fn make_schema(connection: &Connection, schema: &str) -> Result<(), StoreError> {
    let failed = |error| explain(&format!("make the schema `{schema}`"), error);
    // `if not exists` alone asks for the right to create even where there is nothing to do.
    let exists: bool = connection
        .row(
            "select exists (select from pg_namespace where nspname = $1)",
            &[&schema],
        )
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(failed)?;
    if !exists {
        connection
            .run(&format!("create schema {schema}"))
            .await
            .map_err(failed)?;
    }
    let exists: bool = connection
        .row("select to_regclass('tidings_migration') is not null", &[])
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(failed)?;
    if !exists {
        connection
            .run(
                "create table tidings_migration (
                     owner text not null,
                     name text not null,
                     run_at timestamptz not null default now(),
                     primary key (owner, name)
                 )",
            )
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn refuse_newer(
    connection: &Connection,
    schema: &str,
    owner: &str,
    migrations: &[(&str, &str)],
) -> Result<(), StoreError> {
    let newest: Option<String> = connection
        .row(
            "select max(name collate \"C\") from tidings_migration where owner = $1",
            &[&owner],
        )
        .await
        .and_then(|row| Ok(row.try_get(0)?))
        .map_err(|error| explain("read which migrations have run", error))?;
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
    connection: &Connection,
    owner: &str,
    name: &str,
    sql: &str,
) -> Result<(), StoreError> {
    let failed = |error| explain(&format!("run migration `{name}`"), error);
    let new = connection
        .execute(
            "insert into tidings_migration (owner, name) values ($1, $2) on conflict do nothing",
            &[&owner, &name],
        )
        .await
        .map_err(failed)?;
    if new > 0 {
        connection.run(sql).await.map_err(failed)?;
        if (owner, name) == (OWN, WITH_WAITING) {
            upgrade::route(connection).await.map_err(failed)?;
        }
    }
    Ok(())
}
