//! The first statement of an attempt may be sent before its turn: nobody can tell, whatever the
//! attempts in front of it do.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use parking_lot::Mutex;
use server::attempts::{FULL, Outcome, World, is_conflict, is_done, is_failed, note};
use tidings_core::{
    BoxError, BoxFuture, Claim, Commit, Expected, InboxEntry, MessageId, RecordChange, RecordId,
    RecordValue, TransactionSlot, Work,
};
use tidings_postgres::Tx;

mod server;

/// The numbers that handlers got, by the places of their attempts.
type Numbers = Arc<Mutex<Vec<(usize, i64)>>>;

/// A word, the place of an attempt, and the number that it got.
type Events = Arc<Mutex<Vec<(&'static str, usize, i64)>>>;

const TAKE: &str = "update tally set count = count + 1 where id = 1 returning count";

/// Takes the next number, one after the other for all handlers.
async fn take(tx: &mut Tx) -> Result<i64, BoxError> {
    Ok(tx.query_one(TAKE, &[]).await?.get(0))
}

async fn taken(world: &World) -> i64 {
    let sql = "select count from tally where id = 1";
    world.number(sql, &[]).await
}

/// Shows the store how many statements a handler of `c` runs.
async fn learn(world: &World, takes: usize) {
    let before = taken(world).await;
    for round in 0..40 {
        let work = world.attempt(
            &format!("learn {takes} {before} {round}"),
            |mut tx| async move {
                for _ in 0..takes {
                    take(&mut tx).await?;
                }
                Ok(())
            },
        );
        let outcome = world.run(work).await;
        assert!(is_done(&outcome), "{outcome:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn handlers_begin_while_the_statement_of_one_in_front_runs_and_get_answers_in_their_turn() {
    let world = World::new().await;
    learn(&world, 1).await;
    world.quicken().await;
    let before = taken(&world).await;
    let events = Events::default();
    let works = (0..FULL).map(|place| {
        let events = Arc::clone(&events);
        world.attempt(&format!("m {place:02}"), |mut tx| async move {
            events.lock().push(("begin", place, 0));
            let number = take(&mut tx).await?;
            events.lock().push(("end", place, number));
            Ok(())
        })
    });
    let outcomes = world.run_all(works.collect()).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("m ").await, 1);
    let events = events.lock();
    let first_end = events.iter().position(|event| event.0 == "end");
    assert_eq!(first_end, Some(FULL), "all have begun: {events:?}");
    let ends = events.iter().filter(|event| event.0 == "end");
    let ends: Vec<_> = ends.map(|event| (event.1, event.2)).collect();
    let expected: Vec<_> = (0..FULL).zip(before + 1..).collect();
    assert_eq!(ends, expected);
}

/// Handlers of two statements: the first of one goes with the second of the one in front.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_handler_of_several_statements_is_in_nobodys_way() {
    for learned in 1..=3 {
        let world = World::new().await;
        learn(&world, learned).await;
        world.quicken().await;
        let before = taken(&world).await;
        let numbers = Numbers::default();
        let works = (0..FULL).map(|place| {
            let numbers = Arc::clone(&numbers);
            world.attempt(&format!("m {place:02}"), |mut tx| async move {
                for _ in 0..1 + place % 3 {
                    let number = take(&mut tx).await?;
                    numbers.lock().push((place, number));
                }
                Ok(())
            })
        });
        let outcomes = world.run_all(works.collect()).await;
        assert!(outcomes.iter().all(is_done), "{outcomes:?}");
        assert_eq!(world.transactions("m ").await, 1);
        let places = (0..FULL).flat_map(|place| std::iter::repeat_n(place, 1 + place % 3));
        let expected: Vec<_> = places.zip(before + 1..).collect();
        assert_eq!(
            *numbers.lock(),
            expected,
            "{learned} statements were expected"
        );
    }
}

/// A statement that the connection has never seen is prepared first. Who comes behind must not pass it.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_statement_that_is_new_to_the_connection_keeps_its_place() {
    let world = World::new().await;
    learn(&world, 1).await;
    world.quicken().await;
    let before = taken(&world).await;
    let numbers = Numbers::default();
    let works = (0..FULL).map(|place| {
        let numbers = Arc::clone(&numbers);
        world.attempt(&format!("m {place:02}"), |mut tx| async move {
            let new = format!("{TAKE}, {place}");
            let number = match place % 5 {
                3 => tx.query_one(&new, &[]).await?.get(0),
                _ => take(&mut tx).await?,
            };
            numbers.lock().push((place, number));
            Ok(())
        })
    });
    let outcomes = world.run_all(works.collect()).await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    let expected: Vec<_> = (0..FULL).zip(before + 1..).collect();
    assert_eq!(*numbers.lock(), expected);
}

/// It runs a statement more than expected, which is new to the connection and so prepared first. Who comes
/// behind and fails must not take that one with it.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_new_statement_in_the_middle_of_a_handler_stays_when_the_one_behind_it_fails() {
    let world = World::new().await;
    learn(&world, 1).await;
    world.quicken().await;
    let before = taken(&world).await;
    let works = (0..FULL).map(|place| {
        world.attempt(&format!("m {place:02}"), move |mut tx| async move {
            take(&mut tx).await?;
            if place % 2 == 0 {
                let new =
                    format!("update tally set count = count + 1 where id = 1 or id = -{place}");
                tx.execute(&new, &[]).await?;
                return Ok(());
            }
            Err("it fails".into())
        })
    });
    let outcomes = world.run_all(works.collect()).await;
    for (place, outcome) in outcomes.iter().enumerate() {
        let is_as_expected = is_done(outcome) == (place % 2 == 0) || is_conflict(outcome);
        assert!(is_as_expected, "{place}: {outcome:?}");
    }
    let done = outcomes.iter().filter(|outcome| is_done(outcome)).count();
    assert!(done > FULL / 4, "{outcomes:?}");
    let expected = i64::try_from(2 * done).expect("few");
    assert_eq!(taken(&world).await, before + expected, "two of each");
}

/// What a handler does in [`whatever_handlers_do_each_sees_what_is_in_front_of_it_and_nothing_else`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Done,
    /// With a record, which is written when the handler has returned.
    Records,
    Fails,
    Panics,
    /// By a statement.
    Violates,
    Misspells,
    /// It wants more than can be shared.
    Saves,
    /// It awaits something else in the middle of its transaction.
    Sleeps,
}

fn chaotic(
    world: &World,
    name: &str,
    takes: usize,
    end: End,
    numbers: &Numbers,
    place: usize,
) -> Work {
    let slot = Arc::new(TransactionSlot::new(world.store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    let (numbers, text) = (Arc::clone(numbers), name.to_owned());
    let work = async move {
        let mut own = Vec::new();
        for nth in 0..takes {
            // Some are new to the connection, and so prepared first.
            let new = format!("{TAKE}, {place} + {nth}");
            let take = [TAKE, &new][usize::from((place + nth).is_multiple_of(3))];
            own.push((place, tx.query_one(take, &[]).await?.get(0)));
        }
        let mut commit = Commit::default();
        match end {
            End::Done => {}
            End::Records => commit.records.push(RecordChange {
                id: RecordId::new("chaos", text),
                expected: Expected::Nothing,
                value: Some(RecordValue {
                    label: "".into(),
                    due: None,
                    body: "x".into(),
                }),
            }),
            End::Fails => return Err("it fails".into()),
            End::Panics => panic!("a bug in the handler"),
            End::Violates => {
                note(&mut tx, "twice").await?;
                note(&mut tx, "twice").await?;
            }
            End::Misspells => drop(tx.query("selct 1", &[]).await?),
            End::Saves => drop(tx.execute("savepoint mine", &[]).await?),
            End::Sleeps => {
                take(&mut tx).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        numbers.lock().extend(own);
        Ok(commit)
    };
    Work::new(slot, work).claiming(InboxEntry::handled(Claim {
        // Each end is a consumer's: the store is to go on sharing.
        consumer: format!("{end:?} {}", place % 2).into(),
        message: MessageId::new(name),
    }))
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn whatever_handlers_do_each_sees_what_is_in_front_of_it_and_nothing_else() {
    const ENDS: [End; 12] = [
        End::Done,
        End::Fails,
        End::Done,
        End::Records,
        End::Done,
        End::Panics,
        End::Done,
        End::Violates,
        End::Saves,
        End::Done,
        End::Misspells,
        End::Sleeps,
    ];
    let world = World::new().await;
    let mut seed = 7_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap_or(0) % below
    };
    for round in 0..12 {
        world.quicken().await;
        let before = taken(&world).await;
        let numbers = Numbers::default();
        let mut plan = Vec::new();
        let works = (0..FULL).map(|place| {
            // Most do what those before them did.
            let takes = [1, 1, 1, 1, 0, 2, 3][random(7)];
            let end = ENDS[random(ENDS.len()) * usize::from(random(3) == 0)];
            plan.push((takes, end));
            chaotic(
                &world,
                &format!("{round:02} {place:02}"),
                takes,
                end,
                &numbers,
                place,
            )
        });
        let works: Vec<Work> = works.collect();
        let outcomes: Vec<Outcome> = world.run_all(works).await;
        let (mut expected, mut overtaken) = (0, 0);
        for ((takes, end), outcome) in plan.iter().zip(&outcomes) {
            match end {
                // On a machine that is so slow that a second transaction begins beside the first, one may
                // wait too long for a row of the other: nothing of it is written, and a consumer tries
                // it again.
                End::Done | End::Records => {
                    overtaken += usize::from(is_conflict(outcome));
                    assert!(
                        is_done(outcome) || is_conflict(outcome),
                        "{end:?}: {outcome:?}"
                    );
                }
                End::Fails | End::Panics => assert!(is_failed(outcome), "{end:?}: {outcome:?}"),
                // Alone, it may.
                End::Saves | End::Sleeps => {}
                End::Violates | End::Misspells => {
                    assert!(!is_done(outcome), "{end:?}: {outcome:?}");
                }
            }
            if is_done(outcome) {
                expected += takes + usize::from(*end == End::Sleeps);
            }
        }
        assert!(overtaken < FULL / 4, "{overtaken}: {outcomes:?}");
        let expected = i64::try_from(expected).expect("few");
        assert_eq!(
            taken(&world).await,
            before + expected,
            "round {round}: {plan:?}"
        );
        // Those that shared the transaction, in their order.
        let numbers = numbers.lock().clone();
        let kept = numbers.iter().filter(|(place, _)| {
            matches!(plan[*place].1, End::Done | End::Records) && is_done(&outcomes[*place])
        });
        let kept: Vec<_> = kept.copied().collect();
        let mut sorted = kept.clone();
        sorted.sort_by_key(|(_, number)| *number);
        assert_eq!(kept, sorted, "round {round}: {plan:?}");
        sorted.dedup_by_key(|(_, number)| *number);
        assert_eq!(kept.len(), sorted.len(), "no number twice: {plan:?}");
        for ((_, end), (place, outcome)) in plan.iter().zip(outcomes.iter().enumerate()) {
            let consumer = format!("{end:?} {}", place % 2);
            let message = format!("{round:02} {place:02}");
            let claimed = "select count(*) from tidings_inbox where consumer = $1 and message = $2";
            let claims = world.number(claimed, &[&consumer, &message]).await;
            assert_eq!(
                claims,
                i64::from(is_done(outcome)),
                "{message} {end:?}: {outcome:?}"
            );
        }
    }
}

/// Two whose statements are under way before their turn, and whom nobody waits for any more.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_nobody_waits_for_before_its_turn_leaves_nothing() {
    type Waiting = Arc<Mutex<Vec<Option<BoxFuture<'static, Outcome>>>>>;
    const LEFT: [usize; 2] = [10, 11];
    let world = World::new().await;
    learn(&world, 1).await;
    world.quicken().await;
    let before = taken(&world).await;
    let (waiting, numbers) = (Waiting::default(), Numbers::default());
    for place in 0..FULL {
        let (others, numbers) = (Arc::clone(&waiting), Arc::clone(&numbers));
        let work = world.attempt(&format!("m {place:02}"), move |mut tx| async move {
            let number = take(&mut tx).await?;
            numbers.lock().push((place, number));
            if place == 3 {
                for left in LEFT {
                    others.lock()[left] = None;
                }
            }
            Ok(())
        });
        let world = world.clone();
        let outcome = Box::pin(async move { world.run(work).await });
        waiting.lock().push(Some(outcome));
    }
    let mut outcomes = Vec::new();
    poll_fn(|task| {
        for waiting in waiting.lock().iter_mut() {
            if let Some(Poll::Ready(outcome)) = waiting.as_mut().map(|it| it.as_mut().poll(task)) {
                outcomes.push(outcome);
                *waiting = None;
            }
        }
        match outcomes.len() == FULL - LEFT.len() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    assert!(outcomes.iter().all(is_done), "{outcomes:?}");
    assert_eq!(world.transactions("m ").await, 1);
    assert_eq!(world.claims_of("c").await, 40 + 62);
    let others = (0..FULL).filter(|place| !LEFT.contains(place));
    let expected: Vec<_> = others.zip(before + 1..).collect();
    assert_eq!(*numbers.lock(), expected);
}

/// It gives up a statement, and what was sent behind that fails: it is not to blame.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_gives_up_a_statement_is_not_blamed_for_what_is_behind_it() {
    let world = World::new().await;
    learn(&world, 1).await;
    world.quicken().await;
    // In the second round the statements are known to the connection, and nothing is in the way.
    for round in ["m", "n"] {
        world.quicken().await;
        let works = (0..FULL).map(|place| {
            world.attempt(&format!("{round} {place:02}"), move |mut tx| async move {
                match place {
                    3 => {
                        let slow = tx.query("select pg_sleep(0.02)", &[]);
                        let _ = tokio::time::timeout(Duration::from_millis(5), slow).await;
                    }
                    4 => drop(
                        tx.query("select 1 / (count(*) - 2) from tally", &[])
                            .await?,
                    ),
                    _ => drop(take(&mut tx).await?),
                }
                Ok(())
            })
        });
        let outcomes = world.run_all(works.collect()).await;
        for (place, outcome) in outcomes.iter().enumerate() {
            assert_eq!(is_done(outcome), place != 4, "{place}: {outcome:?}");
        }
    }
}
