//! Transactions that certainly wait for the writer at the same time, in a known order.
#![allow(dead_code, reason = "each test program uses what it needs")]

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, mpsc},
    task::Poll,
    time::Duration,
};

use tempfile::TempDir;
use tidings_core::{StoreError, TransactionSlot};
use tidings_sqlite::{SqliteOptions, SqliteStore, Tx};

/// More than a transaction that has run ever waits for the next one to come.
const COMMIT_DELAY: Duration = Duration::from_millis(20);

/// What the computer does otherwise may let transactions miss each other: how often to try.
pub(crate) const ROUNDS_MAX: usize = 20;

/// The longest that something may take which does not wait for an idle handler.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const TABLES: &[(&str, &str)] = &[("0001", "create table note (text text primary key)")];

/// A database whose idle handlers may hold it for a minute.
pub(crate) async fn open(folder: &TempDir) -> SqliteStore {
    let store = SqliteOptions::new(folder.path().join("test.db"))
        .transaction_idle_max(Duration::from_secs(60))
        .open()
        .await
        .expect("a database in a fresh folder");
    store.migrate(TABLES).await.expect("a table");
    store
}

pub(crate) async fn notes(store: &SqliteStore) -> Vec<String> {
    store
        .read(|connection| {
            connection
                .prepare("select text from note order by text")?
                .query_map((), |row| row.get(0))?
                .collect()
        })
        .await
        .expect("notes can be read")
}

/// Writes a note in a transaction of its own.
pub(crate) async fn note(store: &SqliteStore, text: &str) -> Result<usize, StoreError> {
    let text = text.to_owned();
    store
        .write(move |connection| connection.execute("insert into note values (?1)", (text,)))
        .await
}

/// Writes a note in a transaction that is held open.
pub(crate) async fn note_in(tx: &mut Tx, text: &str) -> Result<usize, StoreError> {
    tx.execute("insert into note values (?1)", (text.to_owned(),))
        .await
}

pub(crate) fn slot(store: &SqliteStore) -> Arc<TransactionSlot> {
    Arc::new(TransactionSlot::new(Arc::new(store.clone())))
}

/// Hands the first step of `future` to the writer, which is busy.
pub(crate) async fn queue<F: Future>(mut future: Pin<&mut F>) {
    poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Keeps the writer busy until [`release`](Self::release).
pub(crate) struct Busy {
    release: mpsc::SyncSender<()>,
    done: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Busy {
    pub(crate) async fn keep(store: &SqliteStore) -> Self {
        let (release, released) = mpsc::sync_channel(1);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let store = store.clone();
        let done = tokio::spawn(async move {
            let wait = store.write(move |_| {
                let _ = begun.send(());
                let _ = released.recv();
                Ok(())
            });
            wait.await
        });
        has_begun.await.expect("the writer works");
        Self { release, done }
    }

    /// Lets the writer go on, with a commit of its own for whatever waits.
    pub(crate) async fn release(self) {
        tokio::time::sleep(COMMIT_DELAY).await;
        self.release.send(()).expect("the writer waits");
        self.done.await.expect("no panic").expect("it commits");
    }
}
