//! Threads that read, each with a connection of its own, side by side with the writer (WAL).
//!
//! Reads that wait share one snapshot, begun after the last of them was asked for, so that each
//! sees all that was committed before it.

use std::{
    collections::VecDeque,
    path::Path,
    sync::Arc,
    thread::{self, Thread},
};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tidings_core::StoreError;
use tokio::sync::Semaphore;

use crate::{error::Failure, writer::Statement};

/// The most reads that share one snapshot.
const READS_PER_SNAPSHOT_MAX: usize = 64;

/// Where reads wait for a thread. The threads end when this is dropped.
pub(crate) struct Readers(Arc<Queue>);

struct Queue {
    waiting: Mutex<Waiting>,
    /// How many more may wait.
    room: Semaphore,
}

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Statement>,
    /// Threads with nothing to do. The last one is woken first: it has the most in its caches.
    idle: Vec<Thread>,
    is_closed: bool,
}

impl Readers {
    /// Starts a thread per connection. At most `waiting_max` reads wait for them.
    pub(crate) fn start(
        connections: Vec<Connection>,
        path: &Arc<Path>,
        waiting_max: usize,
    ) -> Result<Self, StoreError> {
        let readers = Self(Arc::new(Queue {
            waiting: Mutex::default(),
            room: Semaphore::new(waiting_max),
        }));
        for connection in connections {
            let (queue, path) = (Arc::clone(&readers.0), Arc::clone(path));
            std::thread::Builder::new()
                .name("tidings-sqlite-reader".into())
                .spawn(move || run(&connection, &path, &queue))
                .map_err(|error| {
                    StoreError::new("cannot start a reader's thread").with_source(error)
                })?;
        }
        Ok(readers)
    }

    /// Has `read` run, when there is room for it to wait.
    pub(crate) async fn send(&self, read: Statement) {
        // Nobody closes it.
        if let Ok(permit) = self.0.room.acquire().await {
            permit.forget();
        }
        let mut waiting = self.0.waiting.lock();
        waiting.reads.push_back(read);
        let idle = waiting.idle.pop();
        drop(waiting);
        idle.inspect(Thread::unpark);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.is_closed = true;
        waiting.idle.drain(..).for_each(|thread| thread.unpark());
    }
}

impl Queue {
    /// Waits for reads. False if there will be none any more.
    fn take(&self, batch: &mut Vec<Statement>) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.reads.is_empty() {
            if waiting.is_closed {
                return false;
            }
            let own = thread::current();
            // It may have been woken by something else.
            waiting.idle.retain(|thread| thread.id() != own.id());
            waiting.idle.push(own);
            MutexGuard::unlocked(&mut waiting, thread::park);
        }
        let count = waiting.reads.len().min(READS_PER_SNAPSHOT_MAX);
        batch.extend(waiting.reads.drain(..count));
        drop(waiting);
        self.room.add_permits(count);
        true
    }
}

fn run(connection: &Connection, path: &Path, queue: &Queue) {
    let mut batch = Vec::new();
    while queue.take(&mut batch) {
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
