//! SQLite keeps the contract of a store.

use std::{any::Any, sync::Arc};

use tempfile::TempDir;
use tidings_core::{BoxFuture, Store, StoreError, Transaction};
use tidings_sqlite::{SqliteStore, SqliteTransaction};
use tidings_testing::store::{Damage, Subject, conformance};

struct File {
    store: SqliteStore,
    folder: TempDir,
}

impl Subject for File {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().into()
    }

    fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>> {
        // To SQLite, another opening of the file is what another process is.
        Box::pin(async { Some(open(&self.folder).await.into()) })
    }

    fn write<'a>(
        &'a self,
        transaction: &'a mut dyn Transaction,
        note: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let transaction: &mut dyn Any = transaction;
        let transaction: &mut SqliteTransaction = transaction
            .downcast_mut()
            .expect("SQLite's own transaction");
        let note = note.to_owned();
        Box::pin(async move {
            let insert = "insert into note values (?1)";
            transaction
                .call(move |connection| connection.execute(insert, (note,)).map(drop))
                .await
        })
    }

    fn notes(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async {
            let notes = self.store.read(|connection| {
                let mut notes = connection.prepare("select text from note order by text")?;
                notes.query_map((), |row| row.get(0))?.collect()
            });
            notes.await.expect("notes can be read")
        })
    }

    fn damage<'a>(&'a self, what: Damage<'a>) -> BoxFuture<'a, bool> {
        let damage = match what {
            // Where there is but one segment.
            Damage::Log(position) => {
                format!("update tidings_log_1 set message = '{{' where position = {position}")
            }
            Damage::Outbox(position) => {
                format!("update tidings_outbox set message = '{{' where position = {position}")
            }
            Damage::Inbox(claim) => format!(
                "update tidings_inbox set metadata = '{{' \
                 where consumer = '{}' and message = '{}' and metadata is not null",
                claim.consumer, claim.message
            ),
        };
        let damaged = self
            .store
            .write(move |connection| connection.execute(&damage, ()));
        Box::pin(async { damaged.await.expect("a write") == 1 })
    }
}

async fn open(folder: &TempDir) -> SqliteStore {
    let path = folder.path().join("test.db");
    SqliteStore::open(path).await.expect("a database")
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    conformance(async || {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder).await;
        let tables = [("0001", "create table note (text text)")];
        store.migrate(&tables).await.expect("a table");
        File { store, folder }
    })
    .await;
}
