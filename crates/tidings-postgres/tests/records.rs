//! A record that was read in a transaction stays as it was read, also one that is not there.
//! And what becomes of one that a commit names twice.

use server::{fresh_schema, open};
use tidings_core::{
    Commit, Committed, Expected, Record, RecordChange, RecordId, RecordValue, Store,
};
use tidings_postgres::PostgresStore;

mod server;

fn id() -> RecordId {
    RecordId::new("journal", "1")
}

fn put(body: &'static str) -> Commit {
    let change = RecordChange {
        id: id(),
        expected: Expected::Anything,
        value: Some(RecordValue {
            body: body.into(),
            ..RecordValue::default()
        }),
    };
    Commit {
        records: vec![change],
        ..Commit::default()
    }
}

async fn read(store: &PostgresStore) -> Option<Record> {
    let mut read = store.records().read(&[id()]).await.expect("records");
    read.remove(0)
}

async fn waiting(schema: &str, store: &PostgresStore, count: i64) {
    server::until("they wait", async || {
        let waits = "select count(*) from pg_locks join pg_stat_activity using (pid)
                     where not granted and application_name = $1";
        server::number(store, waits, &[&format!("tidings {schema}")]).await == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_record_that_is_not_there_is_locked_for_those_who_read_and_those_who_write() {
    let schema = fresh_schema();
    let store = open(&schema).await;
    let mut first = store.begin().await.expect("a transaction");
    let ids = [id()];
    assert_eq!(first.read(&ids).await.expect("records"), [None]);

    let writes = tokio::spawn({
        let store = store.clone();
        async move { store.commit(put("second")).await }
    });
    waiting(&schema, &store, 1).await;
    let reads = tokio::spawn({
        let store = store.clone();
        async move {
            let mut transaction = store.begin().await.expect("a transaction");
            let mut read = transaction.read(&[id()]).await.expect("records");
            transaction.rollback().await;
            read.remove(0)
        }
    });
    waiting(&schema, &store, 2).await;
    let first = first.commit(put("first")).await;
    assert_eq!(first.expect("an answer"), Committed::Done);
    let second = writes.await.expect("an end");
    assert_eq!(second.expect("an answer"), Committed::Done);
    let seen = reads.await.expect("an end");
    assert!(seen.is_some(), "it sees what was written before it");
    let last = read(&store).await.expect("a record");
    assert_eq!((last.version, &*last.value.body), (2, &b"second"[..]));
}

/// Who reads a record and writes it waits for nobody else's record before it has its own: reading in
/// the order of names keeps two that want the same from waiting in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn records_that_are_read_in_opposite_orders_do_not_deadlock() {
    let store = open(&fresh_schema()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut ids: Vec<RecordId> = (0..6)
                .map(|name| RecordId::new("counter", name.to_string()))
                .collect();
            if number % 2 == 1 {
                ids.reverse();
            }
            let mut transaction = store.begin().await?;
            let read = transaction.read(&ids).await?;
            let changes = ids.into_iter().zip(read).map(|(id, read)| RecordChange {
                id,
                expected: read.map_or(Expected::Nothing, |read| Expected::Version(read.version)),
                value: Some(RecordValue::default()),
            });
            let commit = Commit {
                records: changes.collect(),
                ..Commit::default()
            };
            transaction.commit(commit).await
        });
    }
    for outcome in tasks.join_all().await {
        assert_eq!(outcome.expect("nobody is in the way"), Committed::Done);
    }
    let ids = [RecordId::new("counter", "3")];
    let read = store.records().read(&ids).await.expect("records");
    let version = read[0].as_ref().expect("a record").version;
    assert_eq!(version, 40, "each write was counted");
}

/// The port asks for different records within a commit. Who names one twice after all writes it twice, in
/// that order, although all records of a commit are written at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_record_that_is_named_twice_in_a_commit_is_written_twice() {
    let store = open(&fresh_schema()).await;
    let change = |name: &str, expected: Expected, body: &'static str| RecordChange {
        id: RecordId::new("journal", name),
        expected,
        value: Some(RecordValue {
            body: body.into(),
            ..RecordValue::default()
        }),
    };
    let commit = |records: Vec<RecordChange>| Commit {
        records,
        ..Commit::default()
    };
    let changes = vec![
        change("1", Expected::Nothing, "first"),
        change("0", Expected::Nothing, ""),
        change("1", Expected::Version(1), "second"),
        change("2", Expected::Nothing, ""),
    ];
    let written = store.commit(commit(changes)).await;
    assert_eq!(written.expect("an answer"), Committed::Done);
    let twice = read(&store).await.expect("a record");
    assert_eq!((twice.version, &*twice.value.body), (2, &b"second"[..]));

    // The second expects what is not there after the first.
    let changes = vec![
        change("1", Expected::Version(2), "third"),
        change("3", Expected::Nothing, ""),
        change("1", Expected::Version(2), "fourth"),
    ];
    let error = store.commit(commit(changes)).await;
    assert!(error.expect_err("it is not as expected").is_conflict());
    assert_eq!(read(&store).await, Some(twice));
    let other = [RecordId::new("journal", "3")];
    let other = store.records().read(&other).await.expect("records");
    assert_eq!(other, [None]);
}
