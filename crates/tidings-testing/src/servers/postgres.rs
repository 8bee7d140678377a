//! A PostgreSQL of its own for a test that stops, kills and restarts it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::{Process, User};

/// How long it may take from its start until it accepts, recovery after a kill included.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A PostgreSQL cluster with default durability, on a port of its own; dropped, it is gone.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let mut postgres = tidings_testing::servers::Postgres::start()?;
/// let url = postgres.database("orders")?; // postgres://postgres@127.0.0.1:23456/orders
/// postgres.kill9();
/// postgres.restart()?; // the same URL, the same data
/// # Ok(())
/// # }
/// ```
pub struct Postgres {
    binaries: PathBuf,
    user: Option<User>,
    port: u16,
    server: Option<Process>,
    // Last, so that it is removed when nothing writes to it any more.
    folder: TempDir,
}

impl Postgres {
    /// What to do when PostgreSQL is not installed; nothing when it is.
    pub fn missing() -> Option<String> {
        find().is_none().then(|| {
            format!(
                "PostgreSQL is not installed: install it (Debian: `apt-get install postgresql`), \
                 or set {} to one that runs",
                super::POSTGRES_URL
            )
        })
    }

    /// Makes a cluster, starts it and returns when it accepts.
    pub fn start() -> Result<Postgres> {
        let binaries = find().ok_or_else(|| anyhow!("{}", Self::missing().unwrap_or_default()))?;
        let user = User::instead_of_root("postgres")?;
        let folder = super::folder("postgres", user.as_ref())?;
        let port = super::free_port()?;
        let mut postgres = Postgres {
            binaries,
            user,
            port,
            server: None,
            folder,
        };
        // Not waiting for the disk is right here and only here: what is lost is an empty cluster.
        let mut initdb = postgres.command("initdb");
        initdb.args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-sync",
        ]);
        initdb.arg("-D").arg(postgres.data());
        run(initdb, "make a PostgreSQL cluster")?;
        postgres.restart()?;
        Ok(postgres)
    }

    /// Where its first database answers; the same after each restart.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// A database of that name without anything in it, whatever was there before.
    ///
    /// The name is of lower-case letters, digits and `_`, and so the same in SQL and in the URL.
    pub fn database(&self, name: &str) -> Result<String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            bail!(
                "`{name}` is no name for a database here: use lower-case letters, digits and `_`"
            );
        }
        self.sql(&format!("drop database if exists \"{name}\" with (force)"))?;
        self.sql(&format!("create database \"{name}\""))?;
        Ok(self.url_of(name))
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `kill -9` on the server and all its processes: nothing is flushed, nobody says goodbye.
    pub fn kill9(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let children = children(server.id());
        server.kill9();
        // Its processes notice that it is gone and end; until they have, it cannot start again.
        for child in children {
            let _ = super::wait_until("a process of PostgreSQL to end", STOP_MAX, || {
                !super::process::exists(child)
            });
        }
    }

    /// Ends it as an operator would: connections are closed, nothing is left to recover.
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            // To PostgreSQL an interrupt means: do not wait for clients to leave.
            Some(mut server) => server
                .interrupt(STOP_MAX)
                .map(drop)
                .context("cannot stop PostgreSQL"),
            None => Ok(()),
        }
    }

    /// Starts it again on its old data and port, killing it first when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path());
        command.args([
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        // Every service of a test, in several copies, has a pool.
        command.args(["-c", "max_connections=300"]);
        let mut server = Process::start(command)?;
        super::wait_until("PostgreSQL to accept", START_MAX, || {
            !server.is_running() || self.sql("select 1").is_ok()
        })
        .and_then(|()| match server.status() {
            None => Ok(()),
            Some(status) => Err(anyhow!("it ended ({status})")),
        })
        .with_context(|| {
            let printed = server.stderr().join("\n");
            format!(
                "cannot start PostgreSQL in {}:\n{printed}",
                self.folder.path().display()
            )
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Runs one statement through `psql` and returns what it prints, one row a line.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = self.command("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
        psql.args([
            "--set=ON_ERROR_STOP=1",
            "--dbname",
            &self.url(),
            "--command",
            statement,
        ]);
        run(psql, &format!("run `{statement}`")).map(|rows| rows.trim_end().to_owned())
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = super::command(&self.binaries.join(program), self.user.as_ref());
        command
            .current_dir(self.folder.path())
            .env("LC_ALL", "C.UTF-8");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing is worth flushing to a folder that goes away, but its processes must be gone.
        self.kill9();
    }
}

fn run(mut command: Command, what: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot {what}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("cannot {what} ({}): {}", output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The folder of the newest PostgreSQL: Debian keeps each version's programs in their own.
fn find() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin/initdb"),
            ))
        })
        .collect();
    versions.sort();
    let initdb = super::find("initdb", versions.into_iter().rev().map(|(_, path)| path))?;
    initdb.parent().map(Path::to_owned)
}

/// The processes that `parent` started, as `/proc` knows them; none where there is no `/proc`.
fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| {
            super::process::state_and_parent(*id).is_some_and(|(_, itself)| itself == parent)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs PostgreSQL"]
    fn it_starts_dies_and_comes_back_with_what_was_committed() {
        let mut postgres = Postgres::start().unwrap();
        postgres.sql("create table kept (n int)").unwrap();
        postgres.sql("insert into kept values (42)").unwrap();

        postgres.kill9();
        assert!(postgres.sql("select 1").is_err());
        postgres.restart().unwrap();
        assert_eq!(postgres.sql("select n from kept").unwrap(), "42");

        postgres.stop().unwrap();
        postgres.restart().unwrap();
        assert_eq!(postgres.sql("select n from kept").unwrap(), "42");
    }

    #[test]
    #[ignore = "needs PostgreSQL"]
    fn a_database_is_empty_each_time_it_is_asked_for() {
        let postgres = Postgres::start().unwrap();
        let url = postgres.database("shop").unwrap();
        assert!(url.ends_with("/shop"), "{url}");
        let sql = |statement| {
            let mut psql = postgres.command("psql");
            psql.args([
                "--quiet",
                "--tuples-only",
                "--no-align",
                "--command",
                statement,
                &url,
            ]);
            run(psql, statement).unwrap()
        };
        sql("create table left_over ()");
        postgres.database("shop").unwrap();
        let tables = "select count(*) from information_schema.tables where table_schema = 'public'";
        assert_eq!(sql(tables).trim(), "0");
        assert!(postgres.database("Robert'); drop").is_err());
    }
}
