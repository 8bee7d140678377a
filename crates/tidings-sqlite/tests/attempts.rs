//! Attempts run on the writer's thread: whatever a handler awaits or does there, it harms no other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use tidings_core::{
    BoxError, BoxFuture, Claim, Commit, Committed, InboxEntry, MessageId, Refusal, Store,
    TransactionSlot, Work, WorkError,
};
use tidings_sqlite::{SqliteStore, Tx};

struct World {
    store: SqliteStore,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("data.db"))
            .await
            .unwrap();
        let table = "create table note (text text primary key)";
        store.migrate(&[("1", table)]).await.unwrap();
        Self {
            store,
            _folder: folder,
        }
    }

    fn port(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    /// An attempt at a message, with a handler that takes a `Tx`.
    fn attempt<F, Fut>(&self, message: &str, handler: F) -> Work
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let slot = Arc::new(TransactionSlot::new(self.port()));
        let handling = handler(Tx::from(slot.handle()));
        let entry = InboxEntry::handled(Claim {
            consumer: "consumer".into(),
            message: MessageId::new(message),
        });
        let work = async move {
            handling.await?;
            Ok(Commit::default())
        };
        Work::new(slot, work).claiming(entry)
    }

    async fn run(&self, work: Work) -> Result<Committed, WorkError> {
        self.port().run(vec![work]).await.pop().unwrap()
    }

    async fn notes(&self) -> Vec<String> {
        let notes = self.store.read(|connection| {
            let mut statement = connection.prepare("select text from note order by text")?;
            statement.query_map((), |row| row.get(0))?.collect()
        });
        notes.await.unwrap()
    }
}

async fn note(tx: &mut Tx, text: &str) -> Result<(), BoxError> {
    let insert = "insert into note (text) values (?1)";
    tx.execute(insert, (text.to_owned(),)).await?;
    Ok(())
}

fn is_done(outcome: &Result<Committed, WorkError>) -> bool {
    matches!(outcome, Ok(Committed::Done))
}

fn writers_name() -> bool {
    thread::current().name() == Some("tidings-sqlite-writer")
}

#[tokio::test]
async fn a_handler_that_only_uses_its_tx_never_leaves_the_writers_thread() {
    let world = World::new().await;
    let work = world.attempt("1", |mut tx| async move {
        assert!(writers_name());
        note(&mut tx, "a").await?;
        assert!(writers_name());
        note(&mut tx, "b").await?;
        assert!(writers_name());
        Ok(())
    });
    assert!(is_done(&world.run(work).await));
    assert_eq!(world.notes().await, ["a", "b"]);
}

#[tokio::test]
async fn a_handler_that_awaits_something_else_first_runs_once_and_holds_nobody() {
    let world = World::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    let slow = {
        let runs = Arc::clone(&runs);
        world.attempt("slow", |mut tx| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            wait.await?;
            assert!(!writers_name(), "the task that waits is woken");
            note(&mut tx, "slow").await?;
            assert!(writers_name());
            Ok(())
        })
    };
    let store = world.port();
    let slow = tokio::spawn(async move { store.run(vec![slow]).await.pop().unwrap() });
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    for number in 0..10 {
        let text = format!("other {number}");
        let work = world.attempt(
            &text.clone(),
            |mut tx| async move { note(&mut tx, &text).await },
        );
        assert!(is_done(&world.run(work).await));
    }
    assert_eq!(world.notes().await.len(), 10);
    go_on.send(()).unwrap();
    assert!(is_done(&slow.await.unwrap()));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(world.notes().await.len(), 11);
}

#[tokio::test]
async fn a_handler_that_awaits_something_else_in_its_transaction_keeps_it() {
    let world = World::new().await;
    let work = world.attempt("1", |mut tx| async move {
        note(&mut tx, "before").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        note(&mut tx, "after").await
    });
    assert!(is_done(&world.run(work).await));
    let work = world.attempt("2", |mut tx| async move {
        note(&mut tx, "undone").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err("it fails".into())
    });
    assert!(matches!(world.run(work).await, Err(WorkError::Failed(_))));
    assert_eq!(world.notes().await, ["after", "before"]);
}

#[tokio::test]
async fn one_that_awaits_something_else_in_its_transaction_gives_way_and_is_tried_again_alone() {
    let world = World::new().await;
    let away = |world: &World| {
        world.attempt("away", |mut tx| async move {
            note(&mut tx, "before").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            note(&mut tx, "after").await
        })
    };
    let other = |number: usize| {
        let text = format!("other {number:02}");
        let name = text.clone();
        world.attempt(&name, |mut tx| async move { note(&mut tx, &text).await })
    };
    let mut works: Vec<Work> = (0..32).map(other).collect();
    works.push(away(&world));
    works.extend((32..64).map(other));
    let begun = std::time::Instant::now();
    let mut outcomes = world.port().run(works).await;
    assert!(begun.elapsed() < Duration::from_millis(300), "nobody waits");
    match outcomes.remove(32) {
        Err(WorkError::Store(error)) => assert!(error.is_conflict(), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.notes().await.len(), 64);

    let mut works: Vec<Work> = (64..96).map(other).collect();
    works.push(away(&world));
    let outcomes = world.port().run(works).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.notes().await.len(), 64 + 32 + 2);
}

#[tokio::test]
async fn a_transaction_that_is_used_in_another_task_is_committed() {
    let world = World::new().await;
    let work = world.attempt("1", |mut tx| async move {
        tokio::spawn(async move { note(&mut tx, "there").await.map_err(|it| it.to_string()) })
            .await??;
        Ok(())
    });
    assert!(is_done(&world.run(work).await));
    assert_eq!(world.notes().await, ["there"]);
}

#[tokio::test]
async fn a_transaction_that_outlives_its_handler_is_an_error_each_time() {
    let world = World::new().await;
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    let (tell, told) = tokio::sync::oneshot::channel();
    let work = world.attempt("1", |mut tx| async move {
        note(&mut tx, "undone").await?;
        tokio::spawn(async move {
            let _ = wait.await;
            let first = note(&mut tx, "late").await.is_err();
            let _ = tell.send((first, note(&mut tx, "later").await.is_err()));
        });
        Ok(())
    });
    match world.run(work).await {
        Err(WorkError::Store(error)) => assert!(error.to_string().contains("outlive"), "{error}"),
        other => panic!("{other:?}"),
    }
    go_on.send(()).unwrap();
    let failed = tokio::time::timeout(Duration::from_secs(20), told).await;
    assert_eq!(failed.expect("no statement waits").unwrap(), (true, true));
    assert!(world.notes().await.is_empty());
}

#[tokio::test]
async fn one_in_the_middle_of_sixty_four_that_fails_harms_no_other() {
    let world = World::new().await;
    type Handler = fn(Tx) -> BoxFuture<'static, Result<(), BoxError>>;
    let ways: [Handler; 5] = [
        |mut tx| {
            Box::pin(async move {
                note(&mut tx, "panics").await?;
                panic!("a bug in the handler");
            })
        },
        |mut tx| {
            Box::pin(async move {
                note(&mut tx, "violates").await?;
                note(&mut tx, "violates").await
            })
        },
        |mut tx| {
            Box::pin(async move {
                note(&mut tx, "fails").await?;
                Err("it fails".into())
            })
        },
        |mut tx| {
            Box::pin(async move {
                note(&mut tx, "goes astray").await?;
                Ok(tx
                    .call(|connection| connection.execute_batch("rollback"))
                    .await?)
            })
        },
        |mut tx| {
            Box::pin(async move {
                note(&mut tx, "gives up all").await?;
                let all = "insert or rollback into note (text) values ('gives up all')";
                tx.execute(all, ()).await?;
                Ok(())
            })
        },
    ];
    for (round, way) in ways.into_iter().enumerate() {
        let batch = |names: std::ops::Range<usize>| {
            let names = names.map(move |number| format!("{round} {number:02}"));
            names.map(|text| {
                let name = text.clone();
                world.attempt(&name, |mut tx| async move { note(&mut tx, &text).await })
            })
        };
        let mut works: Vec<Work> = batch(0..32).collect();
        works.push(world.attempt(&format!("{round} bad"), way));
        works.extend(batch(32..64));
        let mut outcomes = world.port().run(works).await;
        let bad = outcomes.remove(32);
        assert!(matches!(bad, Err(WorkError::Failed(_))), "{round}: {bad:?}");
        for (number, outcome) in outcomes.into_iter().enumerate() {
            // Where SQLite gave up the whole transaction, the innocent try again.
            if let Err(WorkError::Store(error)) = &outcome {
                assert!(error.is_conflict(), "{round}: {error}");
                let again = batch(number..number + 1).next().unwrap();
                assert!(is_done(&world.run(again).await), "{round} {number}");
                continue;
            }
            assert!(is_done(&outcome), "{round} {number}: {outcome:?}");
        }
        let again = world.attempt(&format!("{round} bad"), |_| async { Ok(()) });
        assert!(
            is_done(&world.run(again).await),
            "what failed is not handled"
        );
    }
    let notes = world.notes().await;
    assert_eq!(notes.len(), 5 * 64);
    assert!(notes.iter().all(|note| note.len() == 4), "{notes:?}");
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_leaves_nothing() {
    let world = World::new().await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let store = world.port();
    let work = world.attempt("1", |mut tx| async move {
        note(&mut tx, "undone").await?;
        let _ = begun.send(());
        std::future::pending().await
    });
    let task = tokio::spawn(async move { store.run(vec![work]).await.pop().unwrap() });
    has_begun.await.unwrap();
    task.abort();
    let work = world.attempt("1", |mut tx| async move { note(&mut tx, "again").await });
    assert!(is_done(&world.run(work).await));
    assert_eq!(world.notes().await, ["again"]);
}

#[tokio::test]
async fn a_duplicate_does_not_run() {
    let world = World::new().await;
    let first = world.attempt("1", |_| async { Ok(()) });
    assert!(is_done(&world.run(first).await));
    let again = world.attempt("1", |_| async { panic!("it runs") });
    let known = Committed::Refused {
        entry: 0,
        why: Refusal::Known,
    };
    assert_eq!(world.run(again).await.unwrap(), known);
}

#[tokio::test]
async fn a_handler_that_awaits_something_else_first_begins_in_its_own_task_the_next_time() {
    let world = World::new().await;
    let mut began_there = Vec::new();
    for number in 0..5 {
        let (tell, told) = tokio::sync::oneshot::channel();
        let work = world.attempt(&number.to_string(), |mut tx| async move {
            let _ = tell.send(writers_name());
            if number < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            note(&mut tx, &number.to_string()).await
        });
        assert!(is_done(&world.run(work).await));
        began_there.push(told.await.unwrap());
        let again = world.attempt(&number.to_string(), |_| async { panic!("it runs") });
        let known = world.run(again).await;
        assert!(matches!(known, Ok(Committed::Refused { .. })), "{known:?}");
    }
    // The fourth does not wait any more, so the fifth begins on the writer's thread again.
    assert_eq!(began_there, [true, false, false, false, true]);
    assert_eq!(world.notes().await.len(), 5);
}

#[tokio::test]
async fn a_handler_that_computes_for_long_moves_to_a_task_of_its_own() {
    let world = World::new().await;
    let mut on_the_writers_thread = Vec::new();
    for number in 0..10 {
        let (tell, told) = tokio::sync::oneshot::channel();
        let work = world.attempt(&number.to_string(), |mut tx| async move {
            note(&mut tx, &number.to_string()).await?;
            thread::sleep(Duration::from_millis(15));
            let _ = tell.send(writers_name());
            Ok(())
        });
        assert!(is_done(&world.run(work).await));
        on_the_writers_thread.push(told.await.unwrap());
    }
    assert_eq!(on_the_writers_thread[..8], [true; 8]);
    assert_eq!(on_the_writers_thread[8..], [false; 2]);
}
