//! Bad surroundings are one clear error, or a wait that says so.

use std::{sync::Arc, time::Duration};

use tidings_core::{Commit, Committed, Fate, Lane, Store, TransactionSlot};
use tidings_postgres::{PostgresOptions, PostgresStore, Tx};
use tidings_testing::servers::Postgres;
use tokio::{task::JoinSet, time::timeout};

mod server;

const ONE: (&str, &str) = ("0001", "create table a (x int)");
const TWO: (&str, &str) = ("0002", "create table b (x int)");

async fn check(url: &str, schema: &str, expected: &str) {
    let connected = timeout(Duration::from_secs(20), PostgresStore::connect(url, schema));
    let error = connected.await.expect("an answer at once").map(drop);
    let error = error.expect_err("it must not connect").to_string();
    assert!(error.contains(expected), "{error}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn what_waiting_does_not_mend_is_an_error_at_once() {
    let url = server::url();
    check("mysql://localhost", "a", "the database URL cannot be read").await;
    check(
        &url,
        "Robert'); drop table",
        "cannot be the name of a schema",
    )
    .await;
    let nobody = format!("nobody_{}@", server::fresh_schema());
    let at = url.find('@').map_or("postgres://".len(), |at| at + 1);
    check(
        &format!("postgres://{nobody}{}", &url[at..]),
        "a",
        "nobody_",
    )
    .await;
    let slash = url.rfind('/').expect("a database in the URL");
    check(
        &format!("{}/nowhere", &url[..slash]),
        "a",
        "\"nowhere\" does not exist",
    )
    .await;
}

#[tokio::test]
async fn a_database_that_is_not_there_yet_is_waited_for() {
    // Somebody has the port, so that no database can have it, and does not accept.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let url = format!("postgres://a@{}/a", port.expect("a free port"));
    let connecting = timeout(
        Duration::from_millis(1200),
        PostgresStore::connect(url, "a"),
    );
    assert!(connecting.await.is_err(), "it waits");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn copies_of_a_service_that_start_at_once_make_its_schema_once() {
    let name = server::fresh_schema();
    let mut copies = JoinSet::new();
    for _ in 0..8 {
        let name = name.clone();
        copies.spawn(async move {
            let store = PostgresStore::connect(server::url(), name)
                .await
                .expect("a store");
            store.migrate(&[ONE, TWO]).await.expect("tables");
        });
    }
    copies.join_all().await;
    let store = PostgresStore::connect(server::url(), name).await;
    let store = store.expect("a store");
    let leased = store.outbox().lease("relay", Duration::ZERO).await;
    assert_eq!(leased.expect("lanes").lanes.len(), usize::from(Lane::COUNT));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn a_schema_of_a_newer_version_is_refused() {
    let name = server::fresh_schema();
    let store = PostgresStore::connect(server::url(), &*name)
        .await
        .expect("a store");
    store.migrate(&[ONE]).await.expect("the first version");
    store
        .migrate(&[ONE, TWO])
        .await
        .expect("the second version");
    let error = store
        .migrate(&[ONE])
        .await
        .expect_err("the first version must not run now");
    assert!(
        error.to_string().contains("written by a newer version"),
        "{error}"
    );
    let broken = [
        ONE,
        TWO,
        ("0003", "create table c (x int); create nonsense"),
    ];
    let error = store.migrate(&broken).await.expect_err("it is no SQL");
    assert!(
        error.to_string().contains("run migration `0003`"),
        "{error}"
    );
    store
        .migrate(&[ONE, TWO])
        .await
        .expect("nothing of the broken one stayed");

    let client = store.client().await.expect("a connection");
    client
        .batch_execute("insert into tidings_migration values ('tidings', '9999')")
        .await
        .expect("the schema of a later day");
    check(&server::url(), &name, "written by a newer version").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn a_connection_that_is_killed_is_an_error_and_the_next_transaction_works() {
    let name = server::fresh_schema();
    let store = PostgresStore::connect(server::url(), &*name)
        .await
        .expect("a store");
    store.migrate(&[ONE]).await.expect("a table");
    let slot = Arc::new(TransactionSlot::new(store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    let backend = tx.query_one("select pg_backend_pid()", &[]).await;
    let backend: i32 = backend.expect("its number").get(0);
    let client = store.client().await.expect("another connection");
    client
        .execute("select pg_terminate_backend($1)", &[&backend])
        .await
        .expect("it is killed");
    drop(client);
    tx.execute("insert into a values (1)", &[])
        .await
        .expect_err("it is dead");
    drop(tx);
    let transaction = slot
        .take()
        .expect("it was handed back")
        .expect("it was begun");
    let error = transaction
        .commit(Commit::default())
        .await
        .expect_err("nothing is committed");
    assert!(error.is_unavailable(), "{error}");

    let slot = Arc::new(TransactionSlot::new(store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    tx.execute("insert into a values (2)", &[])
        .await
        .expect("a write");
    drop(tx);
    let transaction = slot
        .take()
        .expect("it was handed back")
        .expect("it was begun");
    transaction
        .commit(Commit::default())
        .await
        .expect("it commits");
    let client = store.client().await.expect("a connection");
    let rows = client.query("select x from a", &[]).await.expect("rows");
    let rows: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, [2]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn a_handler_that_holds_its_transaction_too_long_loses_it_and_its_locks() {
    let options = PostgresOptions::new(server::url(), server::fresh_schema());
    let options = options.transaction_idle_max(Duration::from_millis(200));
    let store = options.connect().await.expect("a store");
    store.migrate(&[ONE]).await.expect("a table");
    let slot = Arc::new(TransactionSlot::new(store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    let lock = "lock table a in exclusive mode";
    tx.execute(lock, &[]).await.expect("a lock");

    let client = store.client().await.expect("another connection");
    let next = client.execute("insert into a values (2)", &[]);
    let next = timeout(Duration::from_secs(10), next).await;
    next.expect("the lock is free").expect("a write");
    drop(tx);
    let transaction = slot
        .take()
        .expect("it was handed back")
        .expect("it was begun");
    let outcome = transaction.commit(Commit::default()).await;
    outcome.expect_err("there is nothing to commit");
}

#[test]
#[should_panic(expected = "give `connections_max` at least 5")]
fn a_store_without_a_connection_to_write_on_is_refused() {
    let _ = PostgresOptions::new("postgres://a@localhost/a", "a").connections_max(4);
}

/// Order by key is decided under locks, by what was committed before each statement.
#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn a_database_that_takes_one_snapshot_by_default_keeps_the_order_of_keys_too() {
    let postgres = Postgres::start().expect("a server of its own");
    postgres
        .sql("alter database postgres set default_transaction_isolation = 'serializable'")
        .expect("a default");
    let store = PostgresStore::connect(postgres.url(), "s").await;
    let store = store.expect("a store");
    let handled = server::ordered("1", "key", Fate::Handled);
    let ended = server::commit(&store, handled).await;
    assert_eq!(ended, Committed::Done);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn who_operates_a_schema_makes_none_and_only_reads_if_told_so() {
    let url = server::url();
    let schema = server::fresh_schema();
    let options = PostgresOptions::new(&url, &*schema);
    let refused = async |expected: &str| {
        for options in [options.clone().existing(), options.clone().read_only()] {
            let error = options
                .connect()
                .await
                .map(drop)
                .expect_err("it must not connect");
            assert!(error.to_string().contains(expected), "{error}");
        }
    };
    let listed = async || {
        let schemas = PostgresStore::schemas(&url).await.expect("schemas");
        schemas.contains(&schema)
    };
    refused("no service keeps its data there").await;
    assert!(!listed().await, "it was made");

    let store = server::open(&schema).await;
    assert!(listed().await);
    store.migrate(&[ONE]).await.expect("a table");
    let insert = async |store: &PostgresStore| {
        let client = store.client().await.expect("a connection");
        client.execute("insert into a values (1)", &[]).await
    };
    let reader = options
        .clone()
        .read_only()
        .connect()
        .await
        .expect("it is there");
    let error = insert(&reader).await.expect_err("it must not write");
    assert!(format!("{error:?}").contains("read-only"), "{error:?}");
    let commit = Commit {
        outbox: vec![server::message("topic", "1", None)],
        ..Commit::default()
    };
    assert!(reader.commit(commit).await.is_err(), "the toolkit neither");
    let operator = options
        .clone()
        .existing()
        .connect()
        .await
        .expect("it is there");
    insert(&operator).await.expect("who may write writes");
    let client = store.client().await.expect("a connection");
    for (sql, expected) in [
        (
            "insert into tidings_migration values ('tidings', '9999')",
            "a newer version",
        ),
        (
            "delete from tidings_migration where name > '0001'",
            "an older version",
        ),
    ] {
        client.batch_execute(sql).await.expect("another version");
        refused(expected).await;
    }
}

#[tokio::test]
async fn an_operator_does_not_wait_for_a_database() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let url = format!("postgres://a@{}/a", port.expect("a free port"));
    let options = PostgresOptions::new(&url, "a").read_only();
    let connected = timeout(Duration::from_secs(5), options.connect()).await;
    assert!(connected.expect("an answer at once").is_err());
    let schemas = timeout(Duration::from_secs(5), PostgresStore::schemas(&url)).await;
    let error = schemas
        .expect("an answer at once")
        .expect_err("nobody is there");
    assert!(
        error
            .to_string()
            .contains("connect to PostgreSQL at 127.0.0.1"),
        "{error}"
    );
}
