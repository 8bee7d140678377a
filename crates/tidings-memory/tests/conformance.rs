//! What lives in memory keeps the contracts of what does not.

use std::{any::Any, sync::Arc};

use tidings_core::{BoxFuture, Store, StoreError, Transaction};
use tidings_memory::{MemoryStore, MemoryTransaction, MemoryTransport};
use tidings_testing::store::{Damage, Subject};

struct Memory(MemoryStore);

impl Subject for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.0.clone().into()
    }

    fn in_another_process(&self) -> BoxFuture<'_, Option<Arc<dyn Store>>> {
        Box::pin(async { None })
    }

    fn write<'a>(
        &'a self,
        transaction: &'a mut dyn Transaction,
        note: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let transaction: &mut dyn Any = transaction;
        let transaction: &mut MemoryTransaction = transaction
            .downcast_mut()
            .expect("the memory's own transaction");
        Box::pin(transaction.put(note, &()))
    }

    fn notes(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async { self.0.names() })
    }

    fn damage<'a>(&'a self, what: Damage<'a>) -> BoxFuture<'a, bool> {
        let is_damaged = match what {
            Damage::Outbox(position) => self.0.damage_outbox(position),
            Damage::Inbox(claim) => self.0.damage_inbox(claim),
            Damage::Log(position) => self.0.damage_log(position),
        };
        Box::pin(async move { is_damaged })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_conforms() {
    tidings_testing::store::conformance(async || Memory(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transport_conforms() {
    let broker = MemoryTransport::new();
    let connect = async || broker.connect();
    let limit = async |queue: &str, messages| assert!(broker.limit(queue, messages));
    tidings_testing::transport::conformance_with_limits(connect, limit).await;
}

#[test]
fn the_table_of_engines_says_what_it_can_do() {
    let page = tidings_testing::foreign::documents("engines.md");
    let features = tidings_core::Transport::features(&MemoryTransport::new().connect());
    tidings_testing::transport::assert_documented(&page, "memory", &features);
}
