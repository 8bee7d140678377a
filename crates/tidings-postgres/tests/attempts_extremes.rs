//! What handlers seldom do to the transaction that they share, and may not harm others with.
//!
//! Others may have to be tried again, as consumers do with conflicts and with what has not begun. In
//! the end they are done, and whoever is told to be done is.

use std::{mem, thread, time::Duration};

use futures_util::future::{join, poll_immediate};
use server::{
    SOON,
    attempts::{FULL, Outcome, World, count, is_conflict, is_done, is_known, note, store_error},
};
use tidings_core::{BoxError, BoxFuture, StoreError, Work, WorkError};
use tidings_postgres::Tx;
use tokio::{sync::oneshot, time::timeout};

mod server;

const MIDDLE: usize = FULL / 2;
const LAST: usize = FULL - 1;

/// How often others may have to be tried again: together, and then each alone.
const ROUNDS_MAX: usize = 4;

type Handler = fn(Tx) -> BoxFuture<'static, Result<(), BoxError>>;

/// Runs `bad` at a place among others, and those again that may be tried again, always with a further
/// message for `bad`. Returns what became of its first message that settled, or of the last.
async fn check(what: &str, place: usize, bad: Handler) -> Outcome {
    let world = World::new().await;
    let mut left: Vec<usize> = (1..FULL).collect();
    let (mut settled, mut last) = (None, None);
    for round in 0..ROUNDS_MAX {
        let mut works = world.notings("other", left.iter().copied());
        let place = place.min(works.len());
        works.insert(place, world.attempt_of("bad", &round.to_string(), bad));
        let outcomes = timeout(SOON, world.run_all(works)).await;
        let mut outcomes = outcomes.unwrap_or_else(|_| panic!("{what}: it hangs"));
        let bad = outcomes.remove(place);
        check_told(&world, what, &left, &outcomes).await;
        let mut outcomes = outcomes.iter();
        left.retain(|_| outcomes.next().is_some_and(may_try_again));
        match may_try_again(&bad) {
            true => last = Some(bad),
            false => _ = settled.get_or_insert(bad),
        }
        if left.is_empty() && settled.is_some() {
            break;
        }
        // A connection that was given up may still be there for a moment, and what it wrote.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(left.is_empty(), "{what}: not done in the end: {left:?}");
    let notes = world.notes().await;
    let others = notes.iter().filter(|note| note.starts_with("other"));
    assert_eq!(others.count(), FULL - 1, "{what}: {notes:?}");
    let outcome = settled.or(last);
    outcome.unwrap_or_else(|| unreachable!("it ran"))
}

fn may_try_again(outcome: &Outcome) -> bool {
    matches!(outcome, Err(WorkError::NotBegun(_)))
        || is_conflict(outcome)
        || store_error(outcome).is_some_and(StoreError::is_unavailable)
}

/// Who is told to be done is, and all others may try again.
async fn check_told(world: &World, what: &str, numbers: &[usize], outcomes: &[Outcome]) {
    let notes = world.notes().await;
    let claimed = "select count(*) from tidings_inbox where consumer = 'c' and message = $1";
    for (number, outcome) in numbers.iter().zip(outcomes) {
        let message = format!("other {number:02}");
        let is_there = notes.contains(&message);
        let is_claimed = world.number(claimed, &[&message]).await == 1;
        let is_done = is_done(outcome) || is_known(outcome);
        assert!(
            is_done || may_try_again(outcome),
            "{what}: {message}: {outcome:?}"
        );
        assert_eq!(
            (is_there, is_claimed),
            (is_done, is_done),
            "{what}: {message}, note and claim: {outcome:?}"
        );
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_savepoint_of_a_handlers_own_harms_no_other_and_leaves_nothing() {
    let bad = check("a savepoint", MIDDLE, |mut tx| {
        Box::pin(async move {
            note(&mut tx, "other that fails").await?;
            tx.execute("savepoint attempt", &[]).await?;
            Err("it fails".into())
        })
    });
    assert!(matches!(bad.await, Err(WorkError::Failed(_))));
    let bad = check("a release", MIDDLE, |mut tx| {
        Box::pin(async move {
            note(&mut tx, "bad").await?;
            // Whether there is such a savepoint is none of its business.
            let _ = tx.execute("release savepoint attempt", &[]).await;
            Err("it fails".into())
        })
    });
    assert!(matches!(bad.await, Err(WorkError::Failed(_))));
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_ends_the_transaction_harms_no_other() {
    for place in [MIDDLE, LAST] {
        let _ = check("rollback", place, |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                tx.execute("rollback", &[]).await?;
                Ok(())
            })
        })
        .await;
        let _ = check("commit", place, |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                tx.execute("commit", &[]).await?;
                Ok(())
            })
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_may_only_read_harms_no_other() {
    let _ = check("read only", MIDDLE, |mut tx| {
        Box::pin(async move {
            tx.execute("set transaction read only", &[]).await?;
            Ok(())
        })
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_violates_a_deferred_constraint_harms_no_other() {
    let bad = check("deferred", MIDDLE, |mut tx| {
        Box::pin(async move {
            tx.execute("insert into part values ('nowhere')", &[])
                .await?;
            Ok(())
        })
    });
    let bad = bad.await;
    assert!(!may_try_again(&bad) && bad.is_err(), "{bad:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_whose_connection_is_lost_each_time_harms_others_no_more_after_it() {
    let _ = check("it ends the connection", MIDDLE, |mut tx| {
        Box::pin(async move {
            let end = "select pg_terminate_backend(pg_backend_pid())";
            tx.execute(end, &[]).await?;
            Ok(())
        })
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_whose_statement_outlives_it_each_time_harms_others_no_more_after_it() {
    let bad = check("it outlives its handler", MIDDLE, |mut tx| {
        Box::pin(async move {
            note(&mut tx, "bad").await?;
            let mut late = Box::pin(async move {
                let _ = tx.execute("select pg_sleep(0.1)", &[]).await;
            });
            assert!(poll_immediate(late.as_mut()).await.is_none());
            tokio::spawn(late);
            Ok(())
        })
    })
    .await;
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.to_string().contains("outlive"), "{error}");
}

/// Panics when it is dropped, unless it is taken apart before.
struct Unfinished;

impl Drop for Unfinished {
    fn drop(&mut self) {
        assert!(thread::panicking(), "it was not finished");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_panics_when_it_is_dropped_harms_no_other() {
    let _ = check("it panics when dropped", MIDDLE, |mut tx| {
        Box::pin(async move {
            let unfinished = Unfinished;
            note(&mut tx, "bad").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            mem::forget(unfinished);
            Ok(())
        })
    })
    .await;
}

/// Works for two that share a transaction, and must not see each other.
async fn check_pair(what: &str, first: Handler, second: Handler) {
    let world = World::new().await;
    let works = vec![
        world.attempt_of("first", what, first),
        world.attempt_of("second", what, second),
    ];
    for outcome in world.run_all(works).await {
        assert!(
            is_done(&outcome) || may_try_again(&outcome),
            "{what}: {outcome:?}"
        );
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_a_handler_sets_for_its_transaction_is_not_there_for_the_next() {
    check_pair(
        "a setting",
        |mut tx| {
            Box::pin(async move {
                tx.execute("set local statement_timeout = '20ms'", &[])
                    .await?;
                Ok(())
            })
        },
        |mut tx| {
            Box::pin(async move {
                tx.query("select pg_sleep(0.1)", &[]).await?;
                Ok(())
            })
        },
    )
    .await;
    let scratch: Handler = |mut tx| {
        Box::pin(async move {
            let table = "create temporary table scratch (x int) on commit drop";
            tx.execute(table, &[]).await?;
            Ok(())
        })
    };
    check_pair("a table", scratch, scratch).await;
}

/// As in a transaction of its own: the database knows whether it is lost.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn an_error_that_leaves_the_transaction_whole_may_be_ignored() {
    let ways: [(&str, Handler); 2] = [
        ("no row", |mut tx| {
            Box::pin(async move {
                let none = tx.query_one("select 1 where false", &[]).await;
                assert!(none.is_err());
                note(&mut tx, "bad").await
            })
        }),
        ("a savepoint of its own", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                tx.execute("savepoint own", &[]).await?;
                assert!(note(&mut tx, "bad").await.is_err());
                tx.execute("rollback to savepoint own", &[]).await?;
                Ok(())
            })
        }),
    ];
    for (what, way) in ways {
        let bad = check(what, MIDDLE, way).await;
        assert!(is_done(&bad), "{what}: {bad:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_handler_may_choose_the_isolation_of_its_transaction() {
    let bad = check("isolation", MIDDLE, |mut tx| {
        Box::pin(async move {
            let set = "set transaction isolation level repeatable read";
            tx.execute(set, &[]).await?;
            note(&mut tx, "bad").await
        })
    })
    .await;
    assert!(is_done(&bad), "{bad:?}");
}

/// Where the handler has a transaction of its own, and with it the client.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_client_that_outlives_its_handler_writes_nothing() {
    let world = World::new().await;
    let shared = world.attempt("1", |mut tx| async move {
        tx.client().await?;
        Ok(())
    });
    let outcome = world.run(shared).await;
    assert!(is_conflict(&outcome), "{outcome:?}");
    let (ready, is_ready) = oneshot::channel();
    let (go_on, wait) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel();
    let work = world.attempt("1", |mut tx| async move {
        note(&mut tx, "undone").await?;
        tokio::spawn(async move {
            let client = tx.client().await.expect("it is its own");
            let _ = ready.send(());
            let _ = wait.await;
            let late = "insert into note values ('late')";
            let _ = client.batch_execute(late).await;
            drop(tx);
            let _ = tell.send(());
        });
        is_ready.await?;
        Ok(())
    });
    let outcome = world.run(work).await;
    let error = store_error(&outcome).expect("an error of the store");
    assert!(error.to_string().contains("outlive"), "{error}");
    go_on.send(()).expect("it waits");
    told.await.expect("it ends");
    assert!(is_done(&world.run(world.noting("then")).await));
    assert_eq!(world.notes().await, ["then"]);
}

fn sending(world: &World, number: usize) -> Work {
    let message = format!("{number:02}");
    let text = message.clone();
    let outbox = vec![server::message("t", &message, Some("key"))];
    world.sending("c", &message, outbox, |mut tx| async move {
        note(&mut tx, &text).await
    })
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn an_outbox_that_others_have_for_a_moment_is_waited_for() {
    let world = World::with_one_connection().await;
    let other = world.another().await;
    // From then on its statement is prepared, which waits for the table too.
    assert!(is_done(&world.run(sending(&world, 0)).await));
    world.quicken().await;
    let holder = server::begin(&other.store).await;
    let hold = holder.batch_execute("lock table tidings_outbox in share mode");
    hold.await.expect("held");
    let works = (1..=FULL).map(|number| sending(&world, number)).collect();
    let free = async {
        other.until_one_waits().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        holder.batch_execute("rollback").await.expect("free");
    };
    let (outcomes, ()) = join(world.run_all(works), free).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("").await, 2);
    let sent = world.number("select count(*) from tidings_outbox", &[]);
    assert_eq!(sent.await, FULL as i64 + 1);
}

/// Its statements are not prepared there yet.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_first_messages_of_a_connection_are_written_in_the_transaction() {
    let world = World::new().await;
    let client = world.store.client().await.expect("a connection");
    let full = "alter table tidings_outbox add constraint is_full check (false) not valid";
    client.batch_execute(full).await.expect("a constraint");
    drop(client);
    let works = (0..FULL).map(|number| sending(&world, number)).collect();
    let outcomes = world.run_all(works).await;
    assert!(outcomes.iter().all(is_conflict), "{outcomes:?}");
    assert!(world.notes().await.is_empty());
    assert_eq!(world.claims_of("c").await, 0);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_is_alone_and_waits_for_a_lock_does_not_hold_up_others() {
    let world = World::new().await;
    let holder = world.hold(1).await;
    let waits = world.attempt_of(
        "waits",
        "1",
        |mut tx| async move { count(&mut tx, 1).await },
    );
    let waits = {
        let world = world.clone();
        tokio::spawn(async move { world.run(waits).await })
    };
    world.until_one_waits().await;
    let others = world.run_all(world.notings("other", 0..FULL));
    let others = timeout(Duration::from_secs(5), others).await;
    holder.batch_execute("rollback").await.expect("free");
    assert!(is_done(&waits.await.expect("it ran")));
    let outcomes = others.expect("nobody waits with it");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
}

/// Another process has it, for longer than a moment.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_message_that_is_being_handled_elsewhere_does_not_hold_up_others() {
    let world = World::new().await;
    let other = world.another().await;
    let holder = server::begin(&other.store).await;
    let claim = "insert into tidings_inbox (consumer, message) values ('slow', '1')";
    holder.batch_execute(claim).await.expect("it is free");
    let mut works = world.notings("other", 1..FULL);
    works.insert(MIDDLE, world.attempt_of("slow", "1", |_| async { Ok(()) }));
    let store = world.clone();
    let all = tokio::spawn(async move { store.run_all(works).await });
    world.until_one_waits().await;
    let outcomes = world.run_all(world.notings("then", 0..FULL));
    let outcomes = timeout(Duration::from_secs(5), outcomes).await;
    holder.batch_execute("commit").await.expect("it is handled");
    let mut all = all.await.expect("they ran");
    let outcomes = outcomes.expect("nobody waits with it");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    let slow = all.remove(MIDDLE);
    assert!(is_known(&slow) || may_try_again(&slow), "{slow:?}");
    assert!(all.iter().all(is_done), "{all:?}");
}

/// The rest is run one by one, because of a message that the database cannot hold.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_is_left_of_a_batch_goes_on_while_one_of_it_awaits_in_its_transaction() {
    let world = World::new().await;
    let (go_on, wait) = oneshot::channel::<()>();
    let slow = world.attempt_of("slow", "slow", |mut tx| async move {
        note(&mut tx, "before").await?;
        wait.await?;
        note(&mut tx, "after").await
    });
    let bad = world.attempt("b\0d", |_| async { panic!("it runs") });
    let mut works = world.notings("others", 1..MIDDLE);
    works.push(bad);
    works.extend(world.notings("others", MIDDLE..LAST));
    let others = async {
        let others = timeout(Duration::from_secs(5), world.run_all(works)).await;
        let _ = go_on.send(());
        others
    };
    let (slow, others) = join(world.run(slow), others).await;
    assert!(is_done(&slow), "{slow:?}");
    let mut outcomes = others.expect("nobody waits with it");
    let bad = outcomes.remove(MIDDLE - 1);
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.is_invalid(), "{error}");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.notes().await.len(), FULL);
}
