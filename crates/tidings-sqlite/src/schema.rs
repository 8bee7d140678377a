//! Opening a file, and the versions of the tables in it.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, config::DbConfig};
use tidings_core::StoreError;

use crate::{
    Access, LOCK_WAIT_MAX,
    clock::now_ms,
    error,
    migrations::{self, Migration},
};

/// How many prepared statements each connection keeps.
const STATEMENTS_MAX: usize = 256;

/// Between two looks whether another process still holds the lock. Short, since the lock is free
/// only for moments when that process is busy.
const LOCK_WAIT_STEP: Duration = Duration::from_millis(1);

/// Whose tables a migration makes.
pub(crate) const OWN: &str = "tidings";
pub(crate) const APPLICATION: &str = "application";

/// Opens a connection for the writer and makes the file a database that is safe to write.
pub(crate) fn open_writer(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let connection = open(path, access)?;
    let failed = |error| error::explain(path, "prepare the database", &error);
    if access != Access::Own {
        is_up_to_date(&connection, path)?;
    }
    if access == Access::ReadOnly {
        return Ok(connection);
    }
    let mode = journal_in_wal(&connection).map_err(failed)?;
    if mode != "wal" {
        return Err(StoreError::new(format!(
            "cannot use `{}`: it is in journal mode `{mode}` and cannot be switched to WAL; put it \
             on a local disk",
            path.display()
        )));
    }
    connection
        .execute_batch("pragma synchronous = full; pragma fullfsync = on;")
        .map_err(failed)?;
    if access == Access::Own {
        migrate(&connection, path, OWN, &migrations::own())?;
    }
    Ok(connection)
}

/// Switches to WAL. SQLite does not ask the busy handler when several processes do so at once.
fn journal_in_wal(connection: &Connection) -> rusqlite::Result<String> {
    let mut waits = 0;
    loop {
        let mode = connection.query_row("pragma journal_mode = wal", (), |row| row.get(0));
        match mode {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && wait_for_lock(waits) =>
            {
                waits += 1;
            }
            mode => return mode,
        }
    }
}

/// Opens a connection that can only read.
pub(crate) fn open_reader(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let connection = open(path, access)?;
    connection
        .execute_batch("pragma query_only = on")
        .map_err(|error| error::explain(path, "prepare a reader", &error))?;
    Ok(connection)
}

fn open(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let own = OpenFlags::default();
    let flags = match access {
        Access::Own => own,
        Access::Existing => own - OpenFlags::SQLITE_OPEN_CREATE,
        Access::ReadOnly => {
            let written = OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_READ_WRITE;
            (own - written) | OpenFlags::SQLITE_OPEN_READ_ONLY
        }
    };
    let prepare = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_handler(Some(wait_for_lock))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        // Otherwise every new value of a parameter that partial indexes were compared with makes
        // SQLite prepare the statement again.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.execute_batch("pragma foreign_keys = on; pragma temp_store = memory;")?;
        Ok(connection)
    };
    prepare().map_err(|error| error::explain(path, "open the database", &error))
}

fn wait_for_lock(waits: i32) -> bool {
    std::thread::sleep(LOCK_WAIT_STEP);
    LOCK_WAIT_STEP * waits.unsigned_abs() < LOCK_WAIT_MAX
}

/// Brings the tables of `owner` up to date: runs the migrations that have not been run.
///
/// Several processes may do this at once. Callers are outside of a transaction.
pub(crate) fn migrate(
    connection: &Connection,
    path: &Path,
    owner: &str,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let failed = |error| error::explain(path, "begin a migration", &error);
    connection
        .execute_batch("begin immediate")
        .map_err(failed)?;
    let outcome = migrate_inside(connection, path, owner, migrations).and_then(|()| {
        connection
            .execute_batch("commit")
            .map_err(|error| error::explain(path, "commit a migration", &error))
    });
    if outcome.is_err() && !connection.is_autocommit() {
        connection.execute_batch("rollback").map_err(failed)?;
    }
    outcome
}

/// The same inside of a transaction that is already there.
pub(crate) fn migrate_inside(
    connection: &Connection,
    path: &Path,
    owner: &str,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let failed = |error| error::explain(path, "read which migrations have run", &error);
    connection
        .execute_batch(
            "create table if not exists tidings_migration (
                 owner text not null,
                 name text not null,
                 run_at integer not null,
                 primary key (owner, name)
             ) strict, without rowid",
        )
        .map_err(failed)?;
    refuse_newer(connection, path, owner, migrations)?;
    for Migration { name, sql, then } in migrations {
        let run = connection
            .query_row(
                "select 1 from tidings_migration where owner = ?1 and name = ?2",
                (owner, name),
                |_| Ok(()),
            )
            .optional()
            .map_err(failed)?;
        if run.is_some() {
            continue;
        }
        connection
            .execute_batch(sql)
            .and_then(|()| then.map_or(Ok(()), |then| then(connection)))
            .and_then(|()| {
                connection.execute(
                    "insert into tidings_migration (owner, name, run_at) values (?1, ?2, ?3)",
                    (owner, name, now_ms()),
                )
            })
            .map_err(|error| error::explain(path, &format!("run migration `{name}`"), &error))?;
    }
    Ok(())
}

/// Refuses a file without the toolkit's tables, or with those of another version.
fn is_up_to_date(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error| error::explain(path, "read which migrations have run", &error);
    let has_any = connection
        .query_row(
            "select 1 from sqlite_master where type = 'table' and name = 'tidings_migration'",
            (),
            |_| Ok(()),
        )
        .optional()
        .map_err(failed)?;
    if has_any.is_none() {
        return Err(StoreError::new(format!(
            "`{}` has none of the toolkit's tables: no service keeps its data there",
            path.display()
        )));
    }
    let migrations = migrations::own();
    refuse_newer(connection, path, OWN, &migrations)?;
    for Migration { name, .. } in &migrations {
        let has_run = connection
            .query_row(
                "select 1 from tidings_migration where owner = ?1 and name = ?2",
                (OWN, name),
                |_| Ok(()),
            )
            .optional()
            .map_err(failed)?;
        if has_run.is_none() {
            return Err(StoreError::new(format!(
                "the tables of `{}` are of an older version: `{name}` has not been run; start its \
                 service with the present version, which brings them up to date",
                path.display()
            )));
        }
    }
    Ok(())
}

fn refuse_newer(
    connection: &Connection,
    path: &Path,
    owner: &str,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let newest: Option<String> = connection
        .query_row(
            "select max(name) from tidings_migration where owner = ?1",
            (owner,),
            |row| row.get(0),
        )
        .map_err(|error| error::explain(path, "read which migrations have run", &error))?;
    let Some(newest) = newest else {
        return Ok(());
    };
    if migrations.iter().any(|migration| migration.name == newest) {
        return Ok(());
    }
    Err(StoreError::new(format!(
        "`{}` was written by a newer version: its {owner} tables are at `{newest}`, this program \
         knows up to `{}`; run the newer version, or restore a backup from before it",
        path.display(),
        migrations
            .last()
            .map_or("nothing", |migration| &migration.name),
    )))
}
