//! Some errors make SQLite roll back a whole transaction by itself. Whatever is written after that
//! must not stay, since it would be a transaction of its own.

mod support;

use std::pin::pin;

use support::{Busy, ROUNDS_MAX, note, note_in, notes, open, queue, slot};
use tidings_core::Commit;
use tidings_sqlite::{
    SqliteStore, Tx,
    rusqlite::{Connection, Error, Result},
};

const NOTE: &str = "insert into note values (?1)";

/// Makes SQLite roll back, and ignores the error as careless code might.
fn roll_back(connection: &Connection) {
    connection
        .execute("insert or rollback into note values ('there')", ())
        .expect_err("it is there already");
    assert!(connection.is_autocommit(), "SQLite has rolled back");
}

async fn check(store: &SqliteStore, work: impl FnOnce(&Connection) -> Result<()> + Send + 'static) {
    let error = store.write(work).await.expect_err("nothing of it stays");
    assert!(
        error.to_string().contains("gave up the transaction"),
        "{error}"
    );
    assert_eq!(notes(store).await, ["there"]);
    // The next one is as if nothing had happened.
    note(store, "next").await.expect("a write");
    let delete =
        store.write(|connection| connection.execute("delete from note where text = 'next'", ()));
    assert_eq!(delete.await.expect("a write"), 1);
}

#[tokio::test]
async fn what_a_closure_writes_after_sqlite_rolled_back_does_not_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    note(&store, "there").await.expect("a write");

    // A statement that is prepared afterwards, and the error passed on or ignored.
    check(&store, |connection| {
        connection.execute(NOTE, ("before",))?;
        roll_back(connection);
        connection.execute(NOTE, ("after",)).map(drop)
    })
    .await;
    check(&store, |connection| {
        connection.execute(NOTE, ("before",))?;
        roll_back(connection);
        let _ = connection.execute(NOTE, ("after",));
        Ok(())
    })
    .await;

    // What it would read is not its transaction, and no setting may be changed.
    check(&store, |connection| {
        roll_back(connection);
        for sql in ["select text from note", "pragma journal_mode = delete"] {
            let error = connection.query_one(sql, (), |_| Ok(())).expect_err(sql);
            assert!(error.to_string().contains("not authorized"), "{error}");
        }
        Ok(())
    })
    .await;

    // Statements that were prepared before, which SQLite does not ask the guard about.
    check(&store, |connection| {
        let mut insert = connection.prepare(NOTE)?;
        insert.execute(("before",))?;
        roll_back(connection);
        insert.execute(("after",)).map(drop)
    })
    .await;
    check(&store, |connection| {
        let mut insert = connection.prepare(NOTE)?;
        roll_back(connection);
        for _ in 0..3 {
            let _ = insert.execute(("after",));
        }
        Ok(())
    })
    .await;
    check(&store, |connection| {
        roll_back(connection);
        connection.execute_batch("begin; insert into note values ('after'); commit")
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_inside_a_closure_leaves_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let lost = store.write(|connection| {
        connection.execute(NOTE, ("before",))?;
        connection.pragma_update(None, "max_page_count", 1)?;
        let full = connection.execute("insert into note values (hex(zeroblob(1000000)))", ());
        connection.pragma_update(None, "max_page_count", 1_000_000)?;
        assert!(
            connection.is_autocommit(),
            "SQLite has rolled back: {full:?}"
        );
        let _ = connection.execute(NOTE, ("after",));
        Ok(())
    });
    lost.await.expect_err("nothing of it stays");
    assert!(notes(&store).await.is_empty());
    note(&store, "next").await.expect("a write");
    assert_eq!(notes(&store).await, ["next"]);
}

#[tokio::test]
async fn a_handler_whose_transaction_was_lost_cannot_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    note(&store, "there").await.expect("a write");
    let slot = slot(&store);
    let mut tx = Tx::from(slot.handle());
    note_in(&mut tx, "before").await.expect("a write");
    tx.call(|connection| {
        roll_back(connection);
        let _ = connection.execute(NOTE, ("after",));
        Ok(())
    })
    .await
    .expect("it ignores its errors");
    let error = note_in(&mut tx, "later").await.expect_err("it is lost");
    assert!(
        error.to_string().contains("gave up the transaction"),
        "{error}"
    );
    drop(tx);
    let transaction = slot.take().expect("handed back").expect("begun");
    let committed = transaction.commit(Commit::default()).await;
    committed.expect_err("there is nothing to commit");
    assert_eq!(notes(&store).await, ["there"]);
}

#[tokio::test]
async fn the_innocent_who_shared_a_lost_transaction_are_told_to_try_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    note(&store, "there").await.expect("a write");
    for round in 0..ROUNDS_MAX {
        let innocent_note = format!("innocent {round}");
        let busy = Busy::keep(&store).await;
        let mut innocent = pin!(note(&store, &innocent_note));
        queue(innocent.as_mut()).await;
        let mut guilty = pin!(store.write(|connection| -> Result<()> {
            roll_back(connection);
            Err(Error::InvalidQuery)
        }));
        queue(guilty.as_mut()).await;
        busy.release().await;
        let error = guilty.await.expect_err("it fails");
        assert!(!error.is_conflict(), "it is its own fault: {error}");
        match innocent.await {
            // They missed each other.
            Ok(_) => assert!(notes(&store).await.contains(&innocent_note)),
            Err(error) => {
                assert!(error.is_conflict(), "{error}");
                assert!(!notes(&store).await.contains(&innocent_note));
                note(&store, &innocent_note).await.expect("it succeeds now");
                return;
            }
        }
    }
    panic!("they missed each other {ROUNDS_MAX} times");
}
