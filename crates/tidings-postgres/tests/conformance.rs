//! PostgreSQL keeps the contract of a store.

use std::{any::Any, sync::Arc};

use tidings_core::{BoxFuture, Store, StoreError, Transaction};
use tidings_postgres::{PostgresStore, PostgresTransaction, sqlx};
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
            sqlx::query("insert into note values ($1)")
                .bind(note)
                .execute(transaction.conn())
                .await
                .map(drop)
                .map_err(|error| StoreError::new(error.to_string()))
        })
    }

    fn notes(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async {
            sqlx::query_scalar("select text from note order by text collate \"C\"")
                .fetch_all(self.store.pool())
                .await
                .expect("notes can be read")
        })
    }

    fn damage<'a>(&'a self, what: Damage<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let query = match what {
                Damage::Outbox(position) => {
                    sqlx::query("update tidings_outbox set message = '{' where position = $1")
                        .bind(position)
                }
                Damage::Inbox(claim) => sqlx::query(
                    "update tidings_inbox set metadata = '{' where consumer = $1 and message = $2",
                )
                .bind(&*claim.consumer)
                .bind(claim.message.as_str()),
            };
            let done = query.execute(self.store.pool()).await;
            done.expect("a row is changed").rows_affected() == 1
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
