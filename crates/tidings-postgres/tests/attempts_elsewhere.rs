//! Handlers that await something else, hand their `Tx` on, or are dropped: what they hold, and what
//! stays of them.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::poll_immediate;
use server::{
    SOON,
    attempts::{FULL, Outcome, World, count, is_conflict, is_done, is_known, note, store_error},
};
use tidings_core::Work;
use tokio::{
    sync::oneshot,
    task::{self, JoinHandle},
    time::timeout,
};

mod server;

/// Runs attempts in a task of its own. What several such tasks are given is in the store's queue
/// before its runner looks there.
fn spawn_all(world: &World, works: Vec<Work>) -> JoinHandle<Vec<Outcome>> {
    let world = world.clone();
    tokio::spawn(async move { world.run_all(works).await })
}

fn spawn(world: &World, work: Work) -> JoinHandle<Outcome> {
    let world = world.clone();
    tokio::spawn(async move { world.run(work).await })
}

async fn soon<T>(what: &str, task: JoinHandle<T>) -> T {
    let ended = timeout(SOON, task).await;
    let ended = ended.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"));
    ended.expect("it does not panic")
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_handler_that_awaits_something_else_first_runs_once_and_holds_nobody() {
    let world = World::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let (go_on, wait) = oneshot::channel::<()>();
    let slow = {
        let runs = Arc::clone(&runs);
        world.attempt_of("slow", "slow", |mut tx| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            wait.await?;
            note(&mut tx, "slow").await
        })
    };
    let before = spawn_all(&world, world.notings("with it", 0..FULL / 2));
    let slow = spawn(&world, slow);
    let after = spawn_all(&world, world.notings("with it", FULL / 2..FULL - 1));
    for others in [before, after] {
        let outcomes = soon("nobody waits for it", others).await;
        assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    }
    assert_eq!(world.transactions("with it").await, 1);
    assert_eq!(world.claims_of("slow").await, 0, "it has not begun");
    let later = world.run_all(world.notings("later", 0..FULL)).await;
    assert!(later.iter().all(is_done), "{later:?}");
    assert!(!slow.is_finished());

    go_on.send(()).expect("it waits");
    let outcome = soon("it goes on", slow).await;
    assert!(is_done(&outcome), "{outcome:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(world.claims_of("slow").await, 1);
    assert_eq!(world.notes().await.len(), 2 * FULL);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_handler_that_awaits_something_else_first_begins_in_its_own_task_the_next_time() {
    let world = World::new().await;
    let mut began_there = Vec::new();
    for number in 0..5 {
        let message = number.to_string();
        let text = message.clone();
        let (tell, told) = oneshot::channel();
        let work = world.attempt(&message, move |mut tx| async move {
            let _ = tell.send(task::id());
            if number < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            note(&mut tx, &text).await
        });
        let own = spawn(&world, work);
        let id = own.id();
        assert!(is_done(&soon("it runs", own).await));
        began_there.push(told.await.expect("it began") == id);
        let again = world.attempt(&message, |_| async { panic!("it runs") });
        let again = world.run(again).await;
        assert!(is_known(&again), "{again:?}");
    }
    // The fourth does not wait any more, so that the fifth begins in its transaction again.
    assert_eq!(began_there, [false, true, true, true, false]);
    assert_eq!(world.notes().await.len(), 5);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_handler_that_takes_long_each_time_gets_transactions_of_its_own() {
    let world = World::new().await;
    let mut in_its_own_task = Vec::new();
    for number in 0..10 {
        let message = number.to_string();
        let text = message.clone();
        let (tell, told) = oneshot::channel();
        let work = world.attempt(&message, move |mut tx| async move {
            let _ = tell.send(task::id());
            note(&mut tx, &text).await?;
            tx.query("select pg_sleep(0.11)", &[]).await?;
            Ok(())
        });
        let own = spawn(&world, work);
        let id = own.id();
        assert!(is_done(&soon("it runs", own).await));
        in_its_own_task.push(told.await.expect("it began") == id);
    }
    assert_eq!(in_its_own_task[..8], [false; 8]);
    assert_eq!(in_its_own_task[8..], [true; 2]);
    assert_eq!(world.notes().await.len(), 10);
}

/// A runner waits for it, and another one takes its place.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_runs_alone_may_await_in_its_transaction_while_others_go_on() {
    let world = World::new().await;
    let (begun, has_begun) = oneshot::channel();
    let (go_on, wait) = oneshot::channel::<()>();
    let slow = world.attempt_of("slow", "slow", |mut tx| async move {
        note(&mut tx, "before").await?;
        let _ = begun.send(());
        wait.await?;
        note(&mut tx, "after").await
    });
    let slow = spawn(&world, slow);
    has_begun.await.expect("it begins");
    check_that_others_go_on(&world, "others").await;
    assert!(!slow.is_finished());
    assert_eq!(world.claims_of("slow").await, 0, "it is not committed");
    go_on.send(()).expect("it waits");
    let outcome = soon("it goes on", slow).await;
    assert!(is_done(&outcome), "{outcome:?}");
    check_that_others_go_on(&world, "then").await;
    assert_eq!(world.claims_of("slow").await, 1);
    assert_eq!(world.notes().await.len(), 2 * FULL + 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_is_queued_behind_one_that_awaits_in_its_transaction_goes_on() {
    let world = World::new().await;
    let holder = world.hold(1).await;
    let (go_on, wait) = oneshot::channel::<()>();
    let slow = world.attempt_of("slow", "slow", |mut tx| async move {
        count(&mut tx, 1).await?;
        wait.await?;
        note(&mut tx, "after").await
    });
    let slow = spawn(&world, slow);
    world.until_one_waits().await;
    let others = spawn_all(&world, world.notings("others", 0..FULL));
    task::yield_now().await;
    holder.batch_execute("rollback").await.expect("free");
    let outcomes = soon("another runner takes its place", others).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert!(!slow.is_finished());
    go_on.send(()).expect("it waits");
    let outcome = soon("it goes on", slow).await;
    assert!(is_done(&outcome), "{outcome:?}");
    check_that_others_go_on(&world, "then").await;
    assert_eq!(world.notes().await.len(), 2 * FULL + 1);
}

async fn check_that_others_go_on(world: &World, prefix: &str) {
    let others = spawn_all(world, world.notings(prefix, 0..FULL));
    let outcomes = soon("others go on", others).await;
    assert!(outcomes.iter().all(is_done), "{prefix}: {outcomes:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_transaction_that_is_used_in_another_task_is_committed() {
    let world = World::new().await;
    let elsewhere = |text: &'static str| {
        world.attempt_of("elsewhere", text, move |mut tx| async move {
            let there = async move { note(&mut tx, text).await.map_err(|it| it.to_string()) };
            tokio::spawn(there).await??;
            Ok(())
        })
    };
    let outcome = world.run(elsewhere("alone")).await;
    assert!(is_done(&outcome), "{outcome:?}");
    assert_eq!(world.notes().await, ["alone"]);

    // Another store, which does not know this consumer yet.
    let world = world.another().await;
    let elsewhere = |text: &'static str| {
        world.attempt_of("elsewhere", text, move |mut tx| async move {
            note(&mut tx, text).await?;
            let there = async move { note(&mut tx, "too").await.map_err(|it| it.to_string()) };
            tokio::spawn(there).await??;
            Ok(())
        })
    };
    let mut works = world.notings("other", 1..FULL);
    works.insert(FULL / 2, elsewhere("shared"));
    let mut outcomes = world.run_all(works).await;
    let shared = outcomes.remove(FULL / 2);
    assert!(is_conflict(&shared), "{shared:?}");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("other").await, 1);
    assert_eq!(world.notes().await.len(), FULL);
    let again = world.run(elsewhere("shared")).await;
    assert!(is_done(&again), "{again:?}");
    assert_eq!(world.notes().await.len(), FULL + 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_transaction_that_outlives_its_handler_is_an_error_each_time() {
    let world = World::with_one_connection().await;
    let (go_on, wait) = oneshot::channel::<()>();
    let (tell, mut told) = oneshot::channel();
    let mut works = world.notings("first", 1..FULL);
    let outlives = world.attempt_of("bad", "outlives", |mut tx| async move {
        note(&mut tx, "undone").await?;
        tokio::spawn(async move {
            let _ = wait.await;
            let first = note(&mut tx, "late").await.is_err();
            let second = note(&mut tx, "later").await.is_err();
            let client = tx.client().await.is_err();
            let _ = tell.send([first, second, client]);
        });
        Ok(())
    });
    works.insert(FULL / 2, outlives);
    let mut outcomes = world.run_all(works).await;
    let bad = outcomes.remove(FULL / 2);
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.to_string().contains("outlive"), "{error}");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("first").await, 1);
    assert_eq!(world.claims_of("bad").await, 0);

    // It goes on while others have their transaction on the same connection.
    let mut works = world.notings("second", 1..FULL);
    let meanwhile = world.attempt("meanwhile", |mut tx| async move {
        note(&mut tx, "meanwhile").await?;
        let _ = go_on.send(());
        tx.query("select pg_sleep(0.1)", &[]).await?;
        match told.try_recv()? {
            [true, true, true] => Ok(()),
            failed => Err(format!("what failed of it: {failed:?}").into()),
        }
    });
    works.insert(FULL / 2, meanwhile);
    let outcomes = world.run_all(works).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    let notes = world.notes().await;
    assert_eq!(notes.len(), 2 * (FULL - 1) + 1, "{notes:?}");
    assert_eq!(world.claims_of("bad").await, 0);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_transaction_that_is_not_begun_before_its_handler_returns_writes_nothing() {
    let world = World::with_one_connection().await;
    let (go_on, wait) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel();
    let mut works = world.notings("other", 1..FULL);
    let outlives = world.attempt_of("late", "outlives", |mut tx| async move {
        tokio::spawn(async move {
            let _ = wait.await;
            let _ = note(&mut tx, "late").await;
            drop(tx);
            let _ = tell.send(());
        });
        Ok(())
    });
    works.insert(FULL / 2, outlives);
    let outcomes = world.run_all(works).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    go_on.send(()).expect("it waits");
    told.await.expect("it ends");
    let later = world.run_all(world.notings("then", 1..FULL)).await;
    assert!(later.iter().all(is_done), "{later:?}");
    assert_eq!(world.notes().await.len(), 2 * (FULL - 1));
}

/// The connection is given up, and with it the transaction, whoever's it is.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_statement_that_outlives_its_handler_writes_nothing() {
    let world = World::with_one_connection().await;
    let (tell, told) = oneshot::channel();
    let mut works = world.notings("other", 1..FULL);
    let outlives = world.attempt_of("bad", "outlives", |mut tx| async move {
        note(&mut tx, "undone").await?;
        let mut late = Box::pin(async move {
            let late = "insert into note select 'late' from pg_sleep(0.1)";
            let _ = tx.execute(late, &[]).await;
            let _ = note(&mut tx, "later").await;
            let _ = tell.send(());
        });
        let ended = poll_immediate(late.as_mut()).await;
        assert!(ended.is_none(), "the statement is under way");
        tokio::spawn(late);
        Ok(())
    });
    works.insert(FULL / 2, outlives);
    let mut outcomes = world.run_all(works).await;
    let bad = outcomes.remove(FULL / 2);
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.to_string().contains("outlive"), "{error}");
    for outcome in &outcomes {
        let error = store_error(outcome).expect("nobody's is committed");
        assert!(error.is_conflict() || error.is_unavailable(), "{error}");
    }
    told.await.expect("it ends");
    assert!(world.notes().await.is_empty());
    assert_eq!(world.claims_of("c").await, 0);
    let again = world.run_all(world.notings("other", 1..FULL)).await;
    assert!(again.iter().all(is_done), "{again:?}");
    assert_eq!(world.notes().await.len(), FULL - 1);
    assert_eq!(world.claims_of("bad").await, 0);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_nobody_waits_for_any_more_leaves_nothing() {
    let world = World::new().await;
    let (begun, has_begun) = oneshot::channel();
    let work = world.attempt("1", |mut tx| async move {
        note(&mut tx, "undone").await?;
        let _ = begun.send(());
        pending().await
    });
    let task = spawn(&world, work);
    has_begun.await.expect("it begins");
    task.abort();
    let work = world.attempt("1", |mut tx| async move { note(&mut tx, "again").await });
    let outcome = soon("it is free", spawn(&world, work)).await;
    assert!(is_done(&outcome), "{outcome:?}");
    assert_eq!(world.notes().await, ["again"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_nobody_waits_for_any_more_before_it_begins_does_not_run() {
    let world = World::new().await;
    let holder = world.hold(1).await;
    let first = world.attempt("first", |mut tx| async move { count(&mut tx, 1).await });
    let first = spawn(&world, first);
    world.until_one_waits().await;
    let runs = Arc::new(AtomicU32::new(0));
    let queued = ["second", "third"].map(|message| {
        let runs = Arc::clone(&runs);
        let work = world.attempt(message, |mut tx| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, "second or third").await
        });
        spawn(&world, work)
    });
    task::yield_now().await;
    queued[0].abort();
    holder.batch_execute("rollback").await.expect("free");
    assert!(is_done(&soon("it goes on", first).await));
    let [_, third] = queued;
    assert!(is_done(&soon("it goes on", third).await));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert!(is_done(&world.run(world.noting("second")).await));
    assert_eq!(world.notes().await, ["second", "second or third"]);
}
