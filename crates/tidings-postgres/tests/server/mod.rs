//! The real server that these tests run on, and what they write to it.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidings_core::{
    Claim, Commit, Committed, Destination, Envelope, Fate, InboxEntry, MessageId, OrderKey,
    Outgoing, Over, Store, Unrouted, Waiting,
};
use tidings_postgres::{Client, Params, PostgresStore};

pub(crate) mod attempts;

/// How long to wait for something that happens soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Where it is.
pub(crate) fn url() -> String {
    std::env::var("TIDINGS_TEST_POSTGRES_URL")
        .expect("set TIDINGS_TEST_POSTGRES_URL, or run `cargo xtask test`, which does")
}

/// A schema that nobody used before.
pub(crate) fn fresh_schema() -> String {
    format!("test_{}", uuid::Uuid::new_v4().simple())
}

pub(crate) async fn open(schema: &str) -> PostgresStore {
    let store = PostgresStore::connect(url(), schema).await;
    store.expect("a store")
}

/// A transaction beside those of `store`. It must be ended: the connection goes back as it is.
pub(crate) async fn begin(store: &PostgresStore) -> Client {
    let client = store.client().await.expect("a connection");
    client.batch_execute("begin").await.expect("a transaction");
    client
}

/// The one number that a statement gives.
pub(crate) async fn number(store: &PostgresStore, sql: &str, params: Params<'_>) -> i64 {
    let client = store.client().await.expect("a connection");
    let row = client.query_one(sql, params).await;
    row.expect("a number").get(0)
}

pub(crate) fn claim(message: impl Into<MessageId>) -> Claim {
    Claim {
        consumer: "c".into(),
        message: message.into(),
    }
}

pub(crate) fn order(key: &str) -> Option<OrderKey> {
    Some(OrderKey {
        group: "g".into(),
        key: key.into(),
    })
}

pub(crate) fn waiting(due_in: Duration) -> Waiting {
    Waiting {
        envelope: Arc::new(Envelope::new("order-placed.v1", "{}")),
        due_in,
        failures: 1,
        history: Vec::new(),
    }
}

/// A delivery of `message` with a key.
pub(crate) fn ordered(message: impl Into<MessageId>, key: &str, fate: Fate) -> InboxEntry {
    InboxEntry {
        claim: claim(message),
        over: Over::Nothing,
        order: order(key),
        fate,
    }
}

pub(crate) fn deferred(message: impl Into<MessageId>, due_in: Duration) -> InboxEntry {
    InboxEntry {
        claim: claim(message),
        over: Over::Nothing,
        order: None,
        fate: Fate::Deferred(waiting(due_in)),
    }
}

pub(crate) fn of(entry: InboxEntry) -> Commit {
    Commit {
        inbox: vec![entry],
        ..Commit::default()
    }
}

pub(crate) async fn commit(store: &dyn Store, entry: InboxEntry) -> Committed {
    store.commit(of(entry)).await.expect("an answer")
}

pub(crate) fn message(topic: &'static str, id: &str, key: Option<&str>) -> Outgoing {
    let mut envelope = Envelope::new("order-placed.v1", id.to_owned());
    envelope.id = Some(id.into());
    envelope.key = key.map(Into::into);
    Outgoing {
        destination: Destination::topic(topic),
        unrouted: Unrouted::Hold,
        envelope,
    }
}

pub(crate) async fn send(store: &dyn Store, outbox: Vec<Outgoing>) {
    let commit = Commit {
        outbox,
        ..Commit::default()
    };
    assert_eq!(store.commit(commit).await.expect("sent"), Committed::Done);
}

/// Asks until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
