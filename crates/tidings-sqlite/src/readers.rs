//! Threads that read, each with a connection of its own, side by side with the writer (WAL).
//!
//! Reads that wait share one snapshot, begun after the last of them was asked for, so that each
//! sees all that was committed before it.

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use rusqlite::Connection;
use tidings_core::StoreError;
use tokio::sync::mpsc;

use crate::{error::Failure, writer::Statement};

/// The most reads that share one snapshot.
const READS_PER_SNAPSHOT_MAX: usize = 64;

/// Starts a thread per connection; they end when `jobs` is closed.
pub(crate) fn spawn(
    connections: Vec<Connection>,
    path: &Arc<Path>,
    jobs: mpsc::Receiver<Statement>,
) -> Result<(), StoreError> {
    let jobs = Arc::new(Mutex::new(jobs));
    for connection in connections {
        let (jobs, path) = (Arc::clone(&jobs), Arc::clone(path));
        std::thread::Builder::new()
            .name("tidings-sqlite-reader".into())
            .spawn(move || run(&connection, &path, &jobs))
            .map_err(|error| {
                StoreError::new("cannot start a reader's thread").with_source(error)
            })?;
    }
    Ok(())
}

fn run(connection: &Connection, path: &Path, jobs: &Mutex<mpsc::Receiver<Statement>>) {
    let mut batch = Vec::new();
    // The lock is held while waiting: the other readers wait behind it.
    while jobs
        .lock()
        .blocking_recv_many(&mut batch, READS_PER_SNAPSHOT_MAX)
        > 0
    {
        if let Err(error) = execute(connection, "begin /* tidings */") {
            let why = Failure::of(path, "begin to read", &error);
            for read in batch.drain(..) {
                read(Err(why.error()));
            }
            continue;
        }
        for read in batch.drain(..) {
            read(Ok(connection));
        }
        // The reads have their answers already; a failing end of a snapshot shows at the next.
        let _ = execute(connection, "commit /* tidings */");
    }
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(())
}
