//! Nobody's commit waits for long because a stranger's handler is idle inside its transaction.

mod support;

use std::{pin::pin, time::Duration};

use support::{Busy, ROUNDS_MAX, SOON, note, note_in, notes, open, queue, slot};
use tidings_core::{Commit, Committed, StoreError};
use tidings_sqlite::{SqliteStore, Tx};
use tokio::time::{sleep, timeout};

/// What became of a handler that began right behind a transaction that had run.
enum Handler {
    Committed,
    GaveWay(StoreError),
}

/// A transaction, and right behind it a handler that does `idle` between its statements. The
/// transaction must be reported long before the handler may be idle no more.
async fn behind_another(
    store: &SqliteStore,
    name: &str,
    idle: impl AsyncFnOnce(&mut Tx) -> Result<(), StoreError>,
) -> Handler {
    let neighbour = format!("{name}: neighbour");
    let slot = slot(store);
    let mut tx = Tx::from(slot.handle());
    let busy = Busy::keep(store).await;
    let mut neighbour = pin!(note(store, &neighbour));
    queue(neighbour.as_mut()).await;
    {
        let mut first = pin!(note_in(&mut tx, name));
        queue(first.as_mut()).await;
        busy.release().await;
        first.await.expect("its first statement runs");
    }
    let handler = async {
        idle(&mut tx).await?;
        drop(tx);
        let transaction = slot.take()?.expect("a transaction was begun");
        transaction.commit(Commit::default()).await
    };
    let (neighbour, handler) = tokio::join!(timeout(SOON, neighbour), handler);
    neighbour
        .expect("it does not wait for the handler")
        .expect("it commits");
    match handler {
        Ok(committed) => {
            assert_eq!(committed, Committed::Done);
            Handler::Committed
        }
        Err(error) => Handler::GaveWay(error),
    }
}

#[tokio::test]
async fn a_handler_that_is_idle_gives_way_to_those_that_wait_to_be_committed_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    for round in 0..ROUNDS_MAX {
        let name = format!("{round}");
        // Until it is told; before, it would be idle for a minute.
        let idle = async |tx: &mut Tx| loop {
            sleep(Duration::from_secs(1)).await;
            note_in(tx, "late").await?;
        };
        let Handler::GaveWay(error) = behind_another(&store, &name, idle).await else {
            panic!("it is idle until it gives way");
        };
        if !error.is_conflict() {
            // They missed each other: it held nobody up, and failed at its second note.
            continue;
        }
        assert!(error.to_string().contains("while others waited"), "{error}");
        let notes = notes(&store).await;
        assert!(!notes.contains(&name), "nothing of it stays: {notes:?}");
        assert!(notes.contains(&format!("{name}: neighbour")));
        return;
    }
    panic!("they missed each other {ROUNDS_MAX} times");
}

#[tokio::test]
async fn short_gaps_add_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    for round in 0..ROUNDS_MAX {
        let idle = async |tx: &mut Tx| {
            for statement in 0..1000 {
                sleep(Duration::from_millis(20)).await;
                note_in(tx, &format!("{round}-{statement}")).await?;
            }
            Ok(())
        };
        let name = format!("{round}");
        match behind_another(&store, &name, idle).await {
            Handler::GaveWay(error) => return assert!(error.is_conflict(), "{error}"),
            Handler::Committed => {}
        }
    }
    panic!("they missed each other {ROUNDS_MAX} times");
}

#[tokio::test]
async fn a_handler_that_gave_way_succeeds_when_it_is_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder).await;
    let mut gave_way = 0;
    for round in 0..ROUNDS_MAX {
        let idle = async |_: &mut Tx| {
            sleep(Duration::from_millis(300)).await;
            Ok(())
        };
        let name = format!("{round}");
        match behind_another(&store, &name, idle).await {
            Handler::Committed if gave_way > 0 => {
                assert!(notes(&store).await.contains(&name));
                assert!(gave_way <= 3, "it gave way {gave_way} times in a row");
                return;
            }
            Handler::Committed => {}
            Handler::GaveWay(error) => {
                assert!(error.is_conflict(), "{error}");
                gave_way += 1;
            }
        }
    }
    panic!("of {ROUNDS_MAX} tries it gave way {gave_way} times, and never succeeded after that");
}
