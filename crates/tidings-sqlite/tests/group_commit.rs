//! What sharing a writer and a commit means for those who share it.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tidings_core::{
    Claim, Commit, Committed, InboxEntry, Lane, Store, StoreError, TransactionSlot,
};
use tidings_sqlite::{
    SqliteOptions, SqliteStore, SqliteTransaction, Tx,
    rusqlite::{self, Connection},
};

const TABLES: &[(&str, &str)] = &[("0001", "create table note (text text primary key)")];

async fn open(folder: &TempDir) -> SqliteStore {
    let store = SqliteOptions::new(folder.path().join("test.db"))
        .transaction_idle_max(Duration::from_millis(300))
        .open()
        .await
        .expect("a database in a fresh folder");
    store.migrate(TABLES).await.expect("a table");
    store
}

async fn notes(store: &SqliteStore) -> Vec<String> {
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

fn slot(store: &SqliteStore) -> Arc<TransactionSlot> {
    Arc::new(TransactionSlot::new(Arc::new(store.clone())))
}

async fn write(tx: &mut Tx, text: &str) -> Result<usize, StoreError> {
    tx.execute("insert into note values (?1)", (text.to_owned(),))
        .await
}

async fn commit(slot: &TransactionSlot) -> Result<Committed, StoreError> {
    let transaction = slot.take()?.expect("a transaction was begun");
    transaction.commit(Commit::default()).await
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_its_neighbours_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(move |connection| {
                        connection.execute("insert into note values (?1)", (number,))?;
                        assert!(number % 5 != 0, "every fifth panics");
                        if number % 3 == 0 {
                            connection.execute("insert into nowhere values (1)", ())?;
                        }
                        Ok(())
                    })
                    .await
                    .is_ok()
            })
        })
        .collect();
    let mut succeeded = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        if task.await.expect("no task panics") {
            succeeded.push(number.to_string());
        }
    }
    succeeded.sort();
    assert_eq!(
        succeeded.len(),
        (0..100).filter(|n| n % 5 != 0 && n % 3 != 0).count()
    );
    assert_eq!(notes(&store).await, succeeded);
}

#[tokio::test]
async fn a_handler_that_holds_its_transaction_too_long_loses_it_and_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let slot = slot(&store);
    let mut tx = Tx::from(slot.handle());
    write(&mut tx, "stuck").await.expect("the first write");

    let other =
        store.write(|connection| connection.execute("insert into note values ('other')", ()));
    other.await.expect("the other write goes on");

    let error = write(&mut tx, "late")
        .await
        .expect_err("it was rolled back");
    assert!(
        error.to_string().contains("`transaction_idle_max`"),
        "{error}"
    );
    drop(tx);
    let error = commit(&slot).await.expect_err("there is nothing to commit");
    assert!(
        error.to_string().contains("`transaction_idle_max`"),
        "{error}"
    );
    assert_eq!(notes(&store).await, ["other"]);
}

#[tokio::test]
async fn a_statement_that_fails_undoes_nothing_else_of_its_transaction() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let slot = slot(&store);
    let mut tx = Tx::from(slot.handle());
    write(&mut tx, "one").await.expect("a write");
    write(&mut tx, "one")
        .await
        .expect_err("it is there already");
    tx.call(|_| -> tidings_sqlite::rusqlite::Result<()> { panic!("of a closure") })
        .await
        .expect_err("a panic is an error");
    write(&mut tx, "two").await.expect("another write");
    let texts: Vec<String> = tx
        .query("select text from note order by 1", (), |row| row.get(0))
        .await
        .expect("a transaction sees its own writes");
    assert_eq!(texts, ["one", "two"]);
    assert!(notes(&store).await.is_empty(), "nobody else does");
    drop(tx);
    commit(&slot).await.expect("a commit");
    assert_eq!(notes(&store).await, ["one", "two"]);
}

#[tokio::test]
async fn a_closure_can_neither_commit_nor_roll_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    for sql in [
        "commit",
        "rollback",
        "begin",
        "release tidings",
        "rollback to tidings",
    ] {
        let slot = slot(&store);
        let mut tx = Tx::from(slot.handle());
        write(&mut tx, sql).await.expect("a write");
        let error = tx.execute(sql, ()).await.expect_err(sql);
        assert!(
            error.to_string().contains("may not begin, commit"),
            "{error}"
        );
        drop(tx);
        commit(&slot).await.expect("the transaction is as it was");
    }
    assert_eq!(notes(&store).await.len(), 5);
}

#[tokio::test]
async fn a_transaction_begins_with_its_first_statement() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let idle = store.begin().await.expect("a transaction");
    store
        .write(|connection| connection.execute("insert into note values ('other')", ()))
        .await
        .expect("nothing holds the writer");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let outcome = idle.commit(Commit::default()).await;
    assert_eq!(outcome.expect("nothing timed out"), Committed::Done);
}

#[tokio::test]
async fn a_handler_that_is_cancelled_leaves_nothing_and_holds_up_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let begun = store.clone();
    let (written, is_written) = tokio::sync::oneshot::channel();
    let handler = tokio::spawn(async move {
        let mut tx = begun.begin().await.expect("a transaction");
        let tx: &mut dyn std::any::Any = tx.as_mut();
        let tx: &mut SqliteTransaction = tx.downcast_mut().expect("this store's own");
        tx.call(|connection| connection.execute("insert into note values ('cancelled')", ()))
            .await
            .expect("a write");
        written.send(()).expect("the test waits");
        std::future::pending::<()>().await;
    });
    is_written.await.expect("the handler runs");
    handler.abort();
    let wrote =
        store.write(|connection| connection.execute("insert into note values ('next')", ()));
    tokio::time::timeout(Duration::from_millis(250), wrote)
        .await
        .expect("the writer is free before the idle limit")
        .expect("a write");
    assert_eq!(notes(&store).await, ["next"]);
}

#[tokio::test]
async fn processes_that_share_a_file_take_turns_and_wake_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = open(&folder).await;
    // Another connection of this process is to SQLite what another process is.
    let there = open(&folder).await;
    let _ = tokio::time::timeout(Duration::from_millis(300), here.outbox().committed()).await;

    let message = tidings_core::Outgoing {
        destination: tidings_core::Destination::topic("t"),
        unrouted: tidings_core::Unrouted::Hold,
        envelope: tidings_core::Envelope::new("noted.v1", "{}"),
    };
    let work = |number: usize| Commit {
        inbox: vec![InboxEntry::handled(Claim {
            consumer: "c".into(),
            message: number.to_string().into(),
        })],
        outbox: vec![message.clone()],
        ..Commit::default()
    };
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let store = if number % 2 == 0 { &here } else { &there }.clone();
        let commit = work(number / 2);
        tasks.spawn(async move { store.commit(commit).await.expect("a commit") });
    }
    let outcomes = tasks.join_all().await;
    let done = outcomes
        .iter()
        .filter(|outcome| **outcome == Committed::Done);
    assert_eq!(done.count(), 100, "each message is handled once");
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    let rows = here.outbox().next(&lanes, &[], &[], 1000).await;
    assert_eq!(rows.expect("rows").len(), 100);

    here.outbox().committed().await;
    let woken = tokio::time::timeout(Duration::from_secs(5), here.outbox().committed());
    there.commit(work(1000)).await.expect("a commit");
    woken.await.expect("a commit elsewhere wakes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_only_at_the_commit_soon_fails_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let tables = [
        TABLES[0],
        (
            "0002",
            "create table reply (
                 number integer primary key,
                 note text references note deferrable initially deferred
             )",
        ),
    ];
    store.migrate(&tables).await.expect("tables");
    let guilty = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                let insert = "insert into reply (note) values ('there is none')";
                let written = store.write(move |connection| connection.execute(insert, ()));
                let error = written.await.expect_err("it must not be committed");
                assert!(error.to_string().contains("FOREIGN KEY"), "{error}");
            }
        }
    });
    let innocents: Vec<_> = (0..50)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let insert = "insert into reply (number) values (?1)";
                for _ in 0..3 {
                    let written =
                        store.write(move |connection| connection.execute(insert, (number,)));
                    if written.await.is_ok() {
                        return;
                    }
                }
                panic!("{number} failed again and again for another's fault");
            })
        })
        .collect();
    for innocent in innocents {
        innocent.await.expect("it is committed");
    }
    guilty.abort();
}

fn later(text: &'static str) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        connection
            .execute("insert into note values (?1)", (text,))
            .map(drop)
    }
}

#[tokio::test]
async fn what_is_deferred_runs_before_the_next_step_or_with_the_commit_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;

    let kept = slot(&store);
    let mut tx = Tx::from(kept.handle());
    tx.defer(later("a")).await.expect("deferred");
    // The writer is free: nothing has begun.
    store.write(later("b")).await.expect("another transaction");
    let seen: i64 = tx
        .call(|connection| connection.query_one("select count(*) from note", (), |row| row.get(0)))
        .await
        .expect("a step");
    assert_eq!(seen, 2);
    tx.defer(later("c")).await.expect("deferred");
    drop(tx);
    assert_eq!(commit(&kept).await.expect("a commit"), Committed::Done);
    assert_eq!(notes(&store).await, ["a", "b", "c"]);

    let undone = slot(&store);
    let mut tx = Tx::from(undone.handle());
    tx.defer(later("d")).await.expect("deferred");
    tx.defer(later("a")).await.expect("deferred");
    drop(tx);
    let error = commit(&undone).await.expect_err("`a` is there already");
    assert!(error.to_string().contains("run a statement"), "{error}");
    assert_eq!(notes(&store).await, ["a", "b", "c"]);
}
