//! Transactions that many attempts share run into those of another process, or are lost: whatever is
//! told to be done is there, and all else can be tried again.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join;
use server::attempts::{
    FULL, Outcome, World, count, is_conflict, is_done, is_known, note, store_error,
};
use tidings_core::{Work, WorkError};
use tokio::{sync::oneshot, time::timeout};

mod server;

/// How long all of it may take.
const BOUNDED: Duration = Duration::from_secs(60);

/// Runs the works that `make` makes, together, and those with conflicts again, as a consumer does.
/// Returns their outcomes, and how many conflicts there were.
async fn settle(
    world: &World,
    numbers: impl IntoIterator<Item = usize>,
    make: impl Fn(usize) -> Work,
) -> (Vec<Outcome>, usize) {
    let mut left: Vec<usize> = numbers.into_iter().collect();
    let (mut settled, mut conflicts) = (Vec::new(), 0);
    while !left.is_empty() {
        let works = left.iter().copied().map(&make).collect();
        let outcomes = world.run_all(works).await;
        let outcomes = left.drain(..).zip(outcomes);
        let (again, ended): (Vec<_>, Vec<_>) =
            outcomes.partition(|(_, outcome)| is_conflict(outcome));
        conflicts += again.len();
        left = again.into_iter().map(|(number, _)| number).collect();
        settled.extend(ended.into_iter().map(|(_, outcome)| outcome));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (settled, conflicts)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn two_stores_with_the_same_messages_in_opposite_orders_handle_each_once() {
    let one = World::new().await;
    let other = one.another().await;
    for round in 0..5 {
        let make = |world: &World, number: usize| world.noting(&format!("{round} {number:02}"));
        let both = join(
            settle(&one, 0..FULL, |number| make(&one, number)),
            settle(&other, (0..FULL).rev(), |number| make(&other, number)),
        );
        let both = timeout(BOUNDED, both).await.expect("nobody hangs");
        let ((mut outcomes, _), (others, _)) = both;
        outcomes.extend(others);
        let done = outcomes.iter().filter(|outcome| is_done(outcome)).count();
        let known = outcomes.iter().filter(|outcome| is_known(outcome)).count();
        assert_eq!((done, known), (FULL, FULL), "{outcomes:?}");
    }
    let handled = 5 * FULL;
    assert_eq!(one.claims_of("c").await, handled as i64);
    assert_eq!(one.notes().await.len(), handled);
}

/// An attempt that counts in two rows, and computes for a while between them.
fn counting(world: &World, message: &str, rows: [i32; 2], seconds: f64) -> Work {
    world.attempt(message, move |mut tx| async move {
        count(&mut tx, rows[0]).await?;
        tx.query("select pg_sleep($1)", &[&seconds]).await?;
        count(&mut tx, rows[1]).await
    })
}

async fn counted(world: &World) -> [i64; 2] {
    let sql = "select count from tally where id = $1";
    [
        world.number(sql, &[&1]).await,
        world.number(sql, &[&2]).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn two_stores_that_change_two_rows_in_opposite_orders_get_everything_done() {
    const EACH: usize = FULL / 2;
    let one = World::new().await;
    let other = one.another().await;
    // The first of both have a row each, and want the other's.
    let seconds = |number| if number == 0 { 0.2 } else { 0.001 };
    let both = join(
        settle(&one, 0..EACH, |number| {
            counting(&one, &format!("one {number}"), [1, 2], seconds(number))
        }),
        settle(&other, 0..EACH, |number| {
            counting(&other, &format!("other {number}"), [2, 1], seconds(number))
        }),
    );
    let ((outcomes, conflicts), (others, other_conflicts)) =
        timeout(BOUNDED, both).await.expect("it ends");
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert!(others.iter().all(is_done), "{others:?}");
    assert!(conflicts + other_conflicts > 0, "they met");
    assert_eq!(counted(&one).await, [2 * EACH as i64; 2]);
    assert_eq!(one.claims_of("c").await, 2 * EACH as i64);
}

/// With nobody who waits they wait themselves, and the database ends that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn two_that_are_alone_and_wait_for_each_other_are_done_one_after_the_other() {
    let one = World::new().await;
    let other = one.another().await;
    let both = join(
        settle(&one, [0], |_| counting(&one, "one", [1, 2], 0.2)),
        settle(&other, [0], |_| counting(&other, "other", [2, 1], 0.2)),
    );
    let ((outcomes, conflicts), (others, other_conflicts)) =
        timeout(BOUNDED, both).await.expect("it ends");
    assert!(is_done(&outcomes[0]) && is_done(&others[0]));
    assert!(conflicts + other_conflicts > 0, "they met");
    assert_eq!(counted(&one).await, [2, 2]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_batch_whose_connection_is_lost_in_the_middle_leaves_nothing() {
    let world = World::new().await;
    let sending = |number: usize| {
        let message = format!("{number:02}");
        let text = message.clone();
        let outbox = vec![server::message("t", &message, Some("key"))];
        world.sending("c", &message, outbox, |mut tx| async move {
            note(&mut tx, &text).await
        })
    };
    let (tell, told) = oneshot::channel::<i32>();
    let busy = world.attempt("busy", |mut tx| async move {
        note(&mut tx, "busy").await?;
        let pid = tx.query_one("select pg_backend_pid()", &[]).await?;
        let _ = tell.send(pid.get(0));
        tx.query("select pg_sleep(30)", &[]).await?;
        Ok(())
    });
    let mut works: Vec<Work> = (1..FULL).map(sending).collect();
    works.insert(FULL / 2, busy);
    let ended = async {
        let pid = told.await.expect("it is busy");
        let client = world.store.client().await.expect("a connection");
        let end = "select pg_terminate_backend($1)";
        let ended = client.query_one(end, &[&pid]).await;
        assert!(ended.expect("an answer").get::<_, bool>(0));
    };
    let (outcomes, ()) = timeout(BOUNDED, join(world.run_all(works), ended))
        .await
        .expect("nobody hangs");
    for (place, outcome) in outcomes.iter().enumerate() {
        let error = store_error(outcome).expect("nothing is done");
        let is_begun = !matches!(outcome, Err(WorkError::NotBegun(_)));
        // Those behind it may have begun before their turn.
        assert!(is_begun || place > FULL / 2, "{place}: {outcome:?}");
        assert!(
            error.is_conflict() || error.is_unavailable(),
            "{place}: {error}"
        );
    }
    let count = "select (select count(*) from note) + (select count(*) from tidings_inbox)
                      + (select count(*) from tidings_outbox)";
    assert_eq!(world.number(count, &[]).await, 0);

    let again = world.run_all((0..FULL).map(sending).collect()).await;
    assert!(again.iter().all(is_done), "{again:?}");
    let notes: HashSet<String> = world.notes().await.into_iter().collect();
    assert_eq!(notes.len(), FULL);
    assert_eq!(world.number(count, &[]).await, 3 * FULL as i64);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn attempts_that_find_their_connection_lost_are_done_on_another() {
    let world = World::with_one_connection().await;
    let other = world.another().await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where application_name = current_setting('application_name')
                 and pid <> pg_backend_pid()";
    assert!(other.number(end, &[]).await > 0);
    let make = |number: usize| world.noting(&format!("{number:02}"));
    let mut outcomes = world.run_all((0..FULL).map(make).collect()).await;
    for (number, outcome) in outcomes.iter_mut().enumerate() {
        if let Err(WorkError::NotBegun(error)) = outcome {
            assert!(error.is_unavailable(), "{error}");
            *outcome = world.run(make(number)).await;
        }
    }
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.notes().await.len(), FULL);
}

/// Numbers that look random, the same ones for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        let state = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = state.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

/// An attempt that does what chance says.
fn chancy(world: &World, message: &str, chance: &mut Chance) -> Work {
    let (way, row) = (chance.below(16), 1 + i32::from(chance.below(2) == 0));
    let key = format!("k{}", chance.below(3));
    let outbox = vec![server::message("t", message, Some(&key))];
    let text = message.to_owned();
    // Those that await something are of another consumer, since they are alone from then on.
    let consumer = if way < 4 { "awaits" } else { "c" };
    world.sending(consumer, message, outbox, move |mut tx| async move {
        let moment = Duration::from_millis(1);
        match way {
            0 => tokio::time::sleep(moment).await,
            4 => return Err("it fails at once".into()),
            _ => {}
        }
        note(&mut tx, &text).await?;
        match way {
            1 => tokio::time::sleep(moment).await,
            2 => tokio::task::yield_now().await,
            3 => drop(tx.client().await?),
            5 => return Err("it fails".into()),
            6 => panic!("a bug in the handler"),
            7 => _ = note(&mut tx, &text).await,
            8 => note(&mut tx, &text).await?,
            9 | 10 => {
                count(&mut tx, row).await?;
                count(&mut tx, 3 - row).await?;
            }
            _ => {}
        }
        Ok(())
    })
}

/// Two stores, each message several times at both, at the same time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn whatever_happens_a_claim_its_writes_and_its_messages_are_there_together() {
    const TASKS: usize = 8;
    const MESSAGES: usize = 2000;
    let seed = match std::env::var("TIDINGS_TEST_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => u64::from(std::process::id()),
    };
    eprintln!("TIDINGS_TEST_SEED={seed}");
    let one = World::new().await;
    let stores = [one.clone(), one.another().await];
    let tasks = (0..TASKS).map(|task| {
        let world = stores[task % 2].clone();
        let mut chance = Chance(seed.wrapping_add(task as u64));
        tokio::spawn(async move {
            let mut done = Vec::new();
            for _ in 0..60 {
                let count = 1 + chance.below(20);
                let names: Vec<String> = (0..count)
                    .map(|_| format!("{:04}", chance.below(MESSAGES)))
                    .collect();
                let works = names.iter().map(|name| chancy(&world, name, &mut chance));
                let works = world.run_all(works.collect());
                // Some are dropped.
                let patience = match chance.below(4) {
                    0 => Duration::from_micros(chance.below(5000) as u64),
                    _ => BOUNDED,
                };
                match timeout(patience, works).await {
                    Err(_) => assert!(patience < BOUNDED, "nobody hangs"),
                    Ok(outcomes) => {
                        let outcomes = names.into_iter().zip(outcomes);
                        done.extend(outcomes.filter(|(_, it)| is_done(it)).map(|(name, _)| name));
                    }
                }
            }
            done
        })
    });
    let mut done = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        done.extend(task.await.expect("it does not panic"));
    }
    assert!(done.len() > MESSAGES / 2, "most are done: {}", done.len());
    check_together(&one, &done).await;
}

async fn check_together(world: &World, done: &[String]) {
    // A note may be there once only, so each message is handled once, whoever's consumer it is.
    let odd = "
        select count(*) from (
            select message as id from tidings_inbox
            union all select text from note
            union all select convert_from(body, 'utf8') from tidings_outbox
        ) as each group by id having count(*) <> 3";
    let sql = format!("select count(*) from ({odd}) as odd");
    assert_eq!(world.number(&sql, &[]).await, 0);
    let notes: HashSet<String> = world.notes().await.into_iter().collect();
    let unique: HashSet<&String> = done.iter().collect();
    assert_eq!(unique.len(), done.len(), "each is done once");
    assert!(done.iter().all(|message| notes.contains(message)));
}
