//! Attempts share a transaction: whatever a handler does in it, it harms no other.

use std::time::Duration;

use futures_util::future::join3;
use server::attempts::{
    FULL, Outcome, World, count, is_conflict, is_done, is_failed, is_known, note, store_error,
};
use tidings_core::{BoxError, BoxFuture, Work};
use tidings_postgres::Tx;

mod server;

/// Where the bad one of [`FULL`] attempts is.
const MIDDLE: usize = FULL / 2;

type Handler = fn(Tx) -> BoxFuture<'static, Result<(), BoxError>>;

/// Runs `bad` of the consumer `bad` in the middle of others, in a world where nothing is yet: they
/// are done, in one transaction, and it is as if it had not run. Returns its outcome.
async fn check(world: &World, round: &str, bad: Handler) -> Outcome {
    let mut works = world.notings(round, 0..MIDDLE);
    works.push(world.attempt_of("bad", round, bad));
    works.extend(world.notings(round, MIDDLE + 1..FULL));
    world.quicken().await;
    let mut outcomes = world.run_all(works).await;
    let bad = outcomes.remove(MIDDLE);
    check_others(world, round, &outcomes).await;
    bad
}

async fn check_others(world: &World, round: &str, outcomes: &[Outcome]) {
    assert!(outcomes.iter().all(is_done), "{round}: {outcomes:?}");
    assert_eq!(world.transactions(round).await, 1, "{round}");
    let notes = world.notes().await;
    assert_eq!(notes.len(), FULL - 1, "{round}: {notes:?}");
    assert!(
        notes.iter().all(|note| note.starts_with(round)),
        "{round}: {notes:?}"
    );
    assert_eq!(world.claims_of("bad").await, 0, "{round}");
    let again = world.notings(round, (0..MIDDLE).chain(MIDDLE + 1..FULL));
    let outcomes = world.run_all(again).await;
    assert!(outcomes.iter().all(is_known), "{round}: {outcomes:?}");
}

/// Runs what was undone once more.
async fn again(world: &World, consumer: &str, message: &str) {
    let text = format!("again {message}");
    let work = world.attempt_of(consumer, message, |mut tx| async move {
        note(&mut tx, &text).await
    });
    let outcome = world.run(work).await;
    assert!(is_done(&outcome), "what was undone is free: {outcome:?}");
    assert_eq!(world.claims_of(consumer).await, 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_in_the_middle_of_sixty_four_that_fails_harms_no_other() {
    let ways: [(&str, Handler); 6] = [
        ("panics", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                panic!("a bug in the handler");
            })
        }),
        ("violates", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                note(&mut tx, "bad").await
            })
        }),
        ("fails", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                Err("it fails".into())
            })
        }),
        ("fails at once", |_| {
            Box::pin(async { Err("it fails".into()) })
        }),
        ("misspells", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                tx.query("select text from nots", &[]).await?;
                Ok(())
            })
        }),
        ("writes a NUL", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "bad").await?;
                note(&mut tx, "b\0d").await
            })
        }),
    ];
    for (round, way) in ways {
        let world = World::new().await;
        let bad = check(&world, round, way).await;
        assert!(is_failed(&bad), "{round}: {bad:?}");
        again(&world, "bad", round).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_ignores_the_error_of_a_statement_is_an_error_and_leaves_nothing() {
    let world = World::new().await;
    let bad = check(&world, "ignores", |mut tx| {
        Box::pin(async move {
            note(&mut tx, "bad").await?;
            let _ = note(&mut tx, "bad").await;
            Ok(())
        })
    })
    .await;
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.to_string().contains("was ignored"), "{error}");
    assert!(!error.is_conflict(), "trying again does not help: {error}");
    again(&world, "bad", "ignores").await;
}

/// Its consumer's attempts have transactions of their own from then on.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_cannot_share_a_transaction_is_tried_again_alone() {
    let ways: [(&str, Handler); 3] = [
        ("asks for the client", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "before").await?;
                let _ = tx.client().await?;
                note(&mut tx, "after").await
            })
        }),
        ("uses the client", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "before").await?;
                let client = tx.client().await?;
                let insert = "insert into note values ('after')";
                client.batch_execute(insert).await?;
                Ok(())
            })
        }),
        ("awaits something else", |mut tx| {
            Box::pin(async move {
                note(&mut tx, "before").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
                note(&mut tx, "after").await
            })
        }),
    ];
    for (round, way) in ways {
        let world = World::new().await;
        let bad = check(&world, round, way).await;
        assert!(is_conflict(&bad), "{round}: {bad:?}");

        let mut works = world.notings("others", 0..MIDDLE);
        works.push(world.attempt_of("bad", round, way));
        works.extend(world.notings("others", MIDDLE + 1..FULL));
        world.quicken().await;
        let outcomes = world.run_all(works).await;
        assert!(outcomes.iter().all(is_done), "{round}: {outcomes:?}");
        assert_eq!(world.transactions("others").await, 1, "{round}");
        assert_eq!(world.claims_of("bad").await, 1, "{round}");
        let notes = world.notes().await;
        assert_eq!(notes.len(), 2 * (FULL - 1) + 2, "{round}");
        assert!(notes.contains(&"before".to_owned()), "{round}");
        assert!(notes.contains(&"after".to_owned()), "{round}");
        let apart = "select count(*) from tidings_inbox as bad join tidings_inbox as other
                     on other.consumer = 'c' and other.xmin = bad.xmin where bad.consumer = 'bad'";
        assert_eq!(world.number(apart, &[]).await, 0, "{round}: it was alone");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_is_dropped_while_it_waits_for_a_lock_harms_no_other() {
    let world = World::new().await;
    let holder = world.hold(1).await;
    let bad = world.attempt_of("bad", "dropped", |mut tx| async move {
        note(&mut tx, "bad").await?;
        // So that it is no conflict before it is dropped.
        let patient = "select set_config('lock_timeout', '9s', true)";
        tx.query(patient, &[]).await?;
        count(&mut tx, 1).await
    });
    let dropped = async {
        tokio::select! {
            biased;
            outcome = world.run(bad) => panic!("it had to wait: {outcome:?}"),
            () = world.until_one_waits() => {}
        }
        // Now it would go on.
        holder.batch_execute("rollback").await.expect("free");
    };
    let before = world.run_all(world.notings("dropped", 0..MIDDLE));
    let after = world.run_all(world.notings("dropped", MIDDLE + 1..FULL));
    let (mut outcomes, (), after) = join3(before, dropped, after).await;
    outcomes.extend(after);
    check_others(&world, "dropped", &outcomes).await;
    let counted = world.number("select count from tally where id = 1", &[]);
    assert_eq!(counted.await, 0);
    again(&world, "bad", "dropped").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_waits_for_a_lock_for_longer_than_a_moment_is_a_conflict() {
    let world = World::new().await;
    let holder = world.hold(1).await;
    let waits: Handler = |mut tx| Box::pin(async move { count(&mut tx, 1).await });
    let bad = check(&world, "waits", waits).await;
    assert!(is_conflict(&bad), "{bad:?}");
    holder.batch_execute("rollback").await.expect("free");

    let mut works = world.notings("then", 0..MIDDLE);
    works.push(world.attempt_of("bad", "waits", waits));
    works.extend(world.notings("then", MIDDLE + 1..FULL));
    world.quicken().await;
    let outcomes = world.run_all(works).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    let together = "select count(distinct xmin::text) from tidings_inbox
                    where consumer = 'bad' or starts_with(message, 'then')";
    assert_eq!(world.number(together, &[]).await, 1);
    let counted = "select count from tally where id = 1";
    assert_eq!(world.number(counted, &[]).await, 1);
}

/// An attempt that fails after it has written something.
fn failing(world: &World, message: &str) -> Work {
    world.attempt(message, |mut tx| async move {
        note(&mut tx, "bad").await?;
        Err("it fails".into())
    })
}

fn noting_as(world: &World, message: &str, text: &'static str) -> Work {
    world.attempt(
        message,
        move |mut tx| async move { note(&mut tx, text).await },
    )
}

/// Runs `same`, attempts at one message, with others between them. Returns their outcomes.
async fn check_same(world: &World, same: Vec<Work>) -> Vec<Outcome> {
    let (mut works, mut places) = (Vec::new(), Vec::new());
    for (number, work) in same.into_iter().enumerate() {
        works.extend(world.notings(&format!("other {number}"), 0..15));
        places.push(works.len());
        works.push(work);
    }
    let mut outcomes = world.run_all(works).await;
    let same = places.iter().rev().map(|place| outcomes.remove(*place));
    let mut same: Vec<Outcome> = same.collect();
    same.reverse();
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("").await, 1, "all are in one batch");
    same
}

async fn other_notes(world: &World) -> Vec<String> {
    let mut notes = world.notes().await;
    notes.retain(|note| !note.starts_with("other"));
    notes
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_duplicate_in_the_same_batch_does_not_run() {
    let world = World::new().await;
    let same = vec![
        noting_as(&world, "same", "first"),
        world.attempt("same", |_| async { panic!("it runs") }),
        world.attempt("same", |_| async { panic!("it runs") }),
    ];
    let outcomes = check_same(&world, same).await;
    assert!(is_done(&outcomes[0]), "{outcomes:?}");
    assert!(outcomes[1..].iter().all(is_known), "{outcomes:?}");
    assert_eq!(other_notes(&world).await, ["first"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_duplicate_of_one_that_fails_in_the_same_batch_runs() {
    let world = World::new().await;
    let same = vec![
        failing(&world, "same"),
        failing(&world, "same"),
        noting_as(&world, "same", "third"),
        world.attempt("same", |_| async { panic!("it runs") }),
    ];
    let outcomes = check_same(&world, same).await;
    assert!(outcomes[..2].iter().all(is_failed), "{outcomes:?}");
    assert!(is_done(&outcomes[2]), "{outcomes:?}");
    assert!(is_known(&outcomes[3]), "{outcomes:?}");
    assert_eq!(other_notes(&world).await, ["third"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn where_all_duplicates_fail_in_the_same_batch_the_message_is_free() {
    let world = World::new().await;
    let same = vec![failing(&world, "same"), failing(&world, "same")];
    let outcomes = check_same(&world, same).await;
    assert!(outcomes.iter().all(is_failed), "{outcomes:?}");
    assert!(other_notes(&world).await.is_empty());
    assert!(is_done(&world.run(world.noting("same")).await));
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_duplicate_of_one_that_awaits_something_else_first_is_handled_in_its_place() {
    let world = World::new().await;
    let elsewhere = world.attempt("same", |mut tx| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        note(&mut tx, "first").await
    });
    let same = vec![elsewhere, noting_as(&world, "same", "second")];
    let outcomes = check_same(&world, same).await;
    assert!(is_known(&outcomes[0]), "{outcomes:?}");
    assert!(is_done(&outcomes[1]), "{outcomes:?}");
    assert_eq!(other_notes(&world).await, ["second"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn messages_of_one_key_have_positions_in_the_order_of_the_attempts() {
    let world = World::new().await;
    let sending = |number: usize| {
        let of = |part| server::message("t", &format!("{number:02} {part}"), Some("key"));
        let fails = number == MIDDLE;
        world.sending(
            "c",
            &number.to_string(),
            vec![of("a"), of("b")],
            move |mut tx| async move {
                // Some write before they send, and others do not.
                if !number.is_multiple_of(3) {
                    note(&mut tx, &number.to_string()).await?;
                }
                match fails {
                    true => Err("it fails".into()),
                    false => Ok(()),
                }
            },
        )
    };
    let mut outcomes = world.run_all((0..FULL).map(sending).collect()).await;
    assert!(is_failed(&outcomes.remove(MIDDLE)));
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("").await, 1);
    assert_eq!(sent(&world).await, both_parts_but(MIDDLE));
}

fn both_parts_but(except: usize) -> Vec<String> {
    let numbers = (0..FULL).filter(|number| *number != except);
    numbers
        .flat_map(|number| [format!("{number:02} a"), format!("{number:02} b")])
        .collect()
}

/// The messages of the outbox, in its order.
async fn sent(world: &World) -> Vec<String> {
    let client = world.store.client().await.expect("a connection");
    let bodies = "select convert_from(body, 'utf8') from tidings_outbox order by position";
    let rows = client.query(bodies, &[]).await.expect("bodies");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_message_that_the_database_cannot_hold_is_invalid_and_harms_no_other() {
    let world = World::new().await;
    let noise = (0..20_000_u64).map(|at| {
        let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        char::from(b'!' + u8::try_from(mixed % 90).unwrap_or(0))
    });
    let ids = [("NUL", "b\0d".to_owned()), ("long", noise.collect())];
    for (round, id) in ids {
        let mut works = world.notings(round, 0..MIDDLE);
        works.push(world.attempt(&id, |_| async { panic!("it runs") }));
        works.extend(world.notings(round, MIDDLE + 1..FULL));
        let mut outcomes = world.run_all(works).await;
        let bad = outcomes.remove(MIDDLE);
        let error = store_error(&bad).expect("an error of the store");
        assert!(error.is_invalid(), "{round}: {error}");
        assert!(outcomes.iter().all(is_done), "{round}: {outcomes:?}");
    }
    assert_eq!(world.notes().await.len(), 2 * (FULL - 1));
    assert_eq!(world.claims_of("c").await, 2 * (FULL as i64 - 1));

    world.quicken().await;
    let outcomes = world.run_all(world.notings("later", 0..FULL)).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("later").await, 1, "they share again");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn an_outbox_row_that_the_database_cannot_hold_is_invalid_and_harms_no_other() {
    let world = World::new().await;
    let sending = |number: usize| {
        let of = |part| {
            let mut message = server::message("t", &format!("{number:02} {part}"), Some("key"));
            if number == MIDDLE && part == "b" {
                message.destination = tidings_core::Destination::Queue("b\0d".into());
            }
            message
        };
        let message = format!("{number:02}");
        let text = message.clone();
        world.sending("c", &message, vec![of("a"), of("b")], |mut tx| async move {
            note(&mut tx, &text).await
        })
    };
    let mut outcomes = world.run_all((0..FULL).map(sending).collect()).await;
    let bad = outcomes.remove(MIDDLE);
    let error = store_error(&bad).expect("an error of the store");
    assert!(error.is_invalid(), "{error}");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("").await, 1);
    assert_eq!(sent(&world).await, both_parts_but(MIDDLE));
    assert_eq!(world.notes().await.len(), FULL - 1);
    assert_eq!(world.claims_of("c").await, FULL as i64 - 1);
    let again = world.noting(&format!("{MIDDLE:02}"));
    assert!(is_done(&world.run(again).await), "what was undone is free");
}
