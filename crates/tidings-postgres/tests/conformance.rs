//! PostgreSQL keeps the contract of a store.

use std::{any::Any, sync::Arc};

use tidings_core::{BoxFuture, Store, StoreError, Transaction};
use tidings_postgres::{PostgresStore, PostgresTransaction};
use tidings_testing::store::{Damage, Subject, conformance};

mod server;

struct Schema {
    store: PostgresStore,
    name: String,
}

impl Subject for Schema {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().into()
    }

    fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>> {
        Box::pin(async {
            let store = PostgresStore::connect(server::url(), &*self.name).await;
            Some(store.expect("a second connection").into())
        })
    }

    fn write<'a>(
        &'a self,
        transaction: &'a mut dyn Transaction,
        note: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let transaction: &mut dyn Any = transaction;
        let transaction: &mut PostgresTransaction = transaction
            .downcast_mut()
            .expect("PostgreSQL's own transaction");
        Box::pin(async move {
            transaction
                .execute("insert into note values ($1)", &[&note])
                .await
                .map(drop)
        })
    }

    fn notes(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async {
            let client = self.store.client().await.expect("a connection");
            let notes = "select text from note order by text collate \"C\"";
            let rows = client.query(notes, &[]).await.expect("notes can be read");
            rows.iter().map(|row| row.get(0)).collect()
        })
    }

    fn damage<'a>(&'a self, what: Damage<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let client = self.store.client().await.expect("a connection");
            let changed = match what {
                Damage::Outbox(position) => {
                    let sql = "update tidings_outbox set message = '{' where position = $1";
                    client.execute(sql, &[&position]).await
                }
                Damage::Log(position) => {
                    let sql = "update tidings_log set message = '{' where position = $1";
                    client.execute(sql, &[&position]).await
                }
                Damage::Inbox(claim) => {
                    let sql = "update tidings_inbox set metadata = '{'
                               where consumer = $1 and message = $2";
                    let message = claim.message.as_str();
                    client.execute(sql, &[&claim.consumer, &message]).await
                }
            };
            changed.expect("a row is changed") == 1
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn postgres_conforms() {
    conformance(async || {
        let name = server::fresh_schema();
        let store = PostgresStore::connect(server::url(), &*name).await;
        let store = store.expect("PostgreSQL");
        let tables = [("0001", "create table note (text text)")];
        store.migrate(&tables).await.expect("a table");
        Schema { store, name }
    })
    .await;
}
