//! What sharing a writer and a commit means for those who share it.

mod support;

use std::{pin::pin, sync::Arc, time::Duration};

use support::{Busy, ROUNDS_MAX, is_done, queue};

use tempfile::TempDir;
use tidings_core::{
    Claim, Commit, Committed, Expected, InboxEntry, Lane, RecordChange, RecordId, Refusal, Store,
    StoreError, TransactionSlot,
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
async fn short_gaps_between_statements_add_up_to_too_long() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let slot = slot(&store);
    let mut tx = Tx::from(slot.handle());
    for statement in 0..100 {
        if let Err(error) = write(&mut tx, &statement.to_string()).await {
            assert!(
                error.to_string().contains("`transaction_idle_max`"),
                "{error}"
            );
            assert!(!error.is_conflict(), "it would be idle again");
            return;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    panic!("it held the writer for as long as it liked");
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
                    match written.await {
                        Ok(_) => return,
                        Err(error) => assert!(error.is_conflict(), "{error}"),
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

#[tokio::test]
async fn a_failure_that_rests_on_what_was_undone_is_a_conflict() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let reply = "create table reply (note text references note deferrable initially deferred)";
    let tables = [TABLES[0], ("0002", reply)];
    store.migrate(&tables).await.expect("tables");
    for round in 0..ROUNDS_MAX {
        let text = round.to_string();
        let insert = |text: String| {
            move |connection: &Connection| {
                connection.execute("insert into note values (?1)", (text,))
            }
        };
        let busy = Busy::keep(&store).await;
        // It cannot be committed, and until that shows the note is there.
        let guilty_note = insert(text.clone());
        let mut guilty = pin!(store.write(|connection| {
            connection.execute("insert into reply values ('there is none')", ())?;
            guilty_note(connection)
        }));
        queue(guilty.as_mut()).await;
        let mut innocent = pin!(store.write(insert(text.clone())));
        queue(innocent.as_mut()).await;
        busy.release().await;
        guilty.await.expect_err("it must not be committed");
        match innocent.await {
            // They missed each other.
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_conflict(), "{error}");
                store.write(insert(text)).await.expect("it succeeds now");
                return;
            }
        }
    }
    panic!("they missed each other {ROUNDS_MAX} times");
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

/// A commit that says that the message `1` was handled, or that a record is there that is not.
fn refused_or_in_conflict(is_conflict: bool) -> Commit {
    let claim = Claim {
        consumer: "c".into(),
        message: "1".into(),
    };
    let change = RecordChange {
        id: RecordId::new("kind", "there is none"),
        expected: Expected::Version(1),
        value: None,
    };
    if is_conflict {
        Commit {
            records: vec![change],
            ..Commit::default()
        }
    } else {
        Commit {
            inbox: vec![InboxEntry::handled(claim)],
            ..Commit::default()
        }
    }
}

#[tokio::test]
async fn what_is_refused_or_in_conflict_leaves_its_neighbours_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let first = store.commit(refused_or_in_conflict(false)).await;
    assert_eq!(first.expect("an answer"), Committed::Done);
    let write = |text: &'static str| store.write(later(text));
    let work = |text: &'static str, is_conflict| {
        let slot = slot(&store);
        async move {
            let mut tx = Tx::from(slot.handle());
            tx.defer(later(text)).await?;
            drop(tx);
            let transaction = slot.take()?.expect("a transaction was begun");
            transaction
                .commit(refused_or_in_conflict(is_conflict))
                .await
        }
    };
    let busy = Busy::keep(&store).await;
    let mut a = pin!(write("a"));
    queue(a.as_mut()).await;
    let mut refused = pin!(work("refused", false));
    queue(refused.as_mut()).await;
    let mut b = pin!(write("b"));
    queue(b.as_mut()).await;
    let mut in_conflict = pin!(work("in conflict", true));
    queue(in_conflict.as_mut()).await;
    let mut c = pin!(write("c"));
    queue(c.as_mut()).await;
    busy.release().await;
    for neighbour in [a.await, b.await, c.await] {
        neighbour.expect("it commits");
    }
    let known = Committed::Refused {
        entry: 0,
        why: Refusal::Known,
    };
    assert_eq!(refused.await.expect("an answer"), known);
    let error = in_conflict.await.expect_err("the record is not there");
    assert!(error.is_conflict(), "{error}");
    assert_eq!(notes(&store).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn nobody_is_told_an_outcome_before_what_it_rests_on_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let first = store.commit(refused_or_in_conflict(false)).await;
    assert_eq!(first.expect("an answer"), Committed::Done);
    let mut shared = 0;
    for round in 0..ROUNDS_MAX {
        let slot = slot(&store);
        let mut tx = Tx::from(slot.handle());
        let busy = Busy::keep(&store).await;
        let insert = "insert into note values (?1)";
        let mut done = pin!(
            store.write(move |connection| connection.execute(insert, (format!("{round} a"),)))
        );
        queue(done.as_mut()).await;
        let mut refused = pin!(store.commit(refused_or_in_conflict(false)));
        queue(refused.as_mut()).await;
        {
            let note = format!("{round} b");
            let mut written = pin!(write(&mut tx, &note));
            queue(written.as_mut()).await;
            busy.release().await;
            written.await.expect("a write");
        }
        // The writer waits for the handler's next step, and nothing of all this is durable.
        let (done_early, refused_early) = (is_done(done.as_mut()), is_done(refused.as_mut()));
        let durable = notes(&store).await;
        if done_early.is_some() || refused_early.is_some() {
            // They missed each other: the handler began after their commit.
            assert!(durable.contains(&format!("{round} a")), "{durable:?}");
            continue;
        }
        drop(tx);
        let handler = slot.take().expect("handed back").expect("begun");
        // It may have given way meanwhile.
        let _ = handler.commit(Commit::default()).await;
        done.await.expect("it commits");
        assert!(refused.await.expect("an answer").is_known());
        shared += 1;
    }
    assert!(shared > 0, "they missed each other {ROUNDS_MAX} times");
}
