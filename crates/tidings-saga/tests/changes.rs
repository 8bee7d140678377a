//! What becomes of a saga when its function is wrong, is changed, or is not there; and signals.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tidings_saga::{Action, Arrival, First, Saga, SagaState, Sagas, Start};
use world::{
    BookParcel, ChargeCard, OrderCancelled, OrderConfirmed, OrderPlaced, RefundCard, ReleaseStock,
    ReserveStock, World, cancelled, checkout, done, raw,
};

mod world;

type Ended = Result<OrderConfirmed, OrderCancelled>;

fn sagas() -> Sagas<OrderPlaced> {
    Sagas::new("checkout", |order: &OrderPlaced| order.of.clone())
}

fn confirmed() -> Ended {
    Ok(OrderConfirmed { of: "done".into() })
}

fn reserve(order: &OrderPlaced, saga: &Saga) -> tidings_saga::Planned<ReserveStock> {
    let command = ReserveStock {
        of: order.of.clone(),
    };
    saga.step("reserve-stock", command)
        .undo(|place| ReleaseStock { of: place })
}

#[test]
fn a_panic_is_stuck_and_the_reply_is_kept() {
    static IS_BROKEN: AtomicBool = AtomicBool::new(true);
    async fn buggy(order: OrderPlaced, saga: Saga) -> Ended {
        reserve(&order, &saga).await.map_err(cancelled)?;
        assert!(!IS_BROKEN.load(Ordering::Relaxed), "a bug");
        saga.step("book-parcel", BookParcel { of: order.of })
            .pivot()
            .await
            .map_err(cancelled)?;
        confirmed()
    }
    let stuck = || {
        let mut world = World::start(sagas().version(1, buggy));
        world.done("reserve-stock", "r-1");
        assert_eq!(world.is_stuck(), Some("its function panicked: a bug"));
        world.sent();
        world
    };
    IS_BROKEN.store(true, Ordering::Relaxed);
    // It is undone without the function.
    let mut world = stuck();
    world.operate(Action::Compensate);
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    world.undone("reserve-stock");
    assert_eq!(world.journal.state, SagaState::Compensated);
    // Or it goes on when the bug is mended.
    let mut world = stuck();
    IS_BROKEN.store(false, Ordering::Relaxed);
    world.operate(Action::Retry);
    assert_eq!(world.sent(), ["book-parcel do"]);
    world.done("book-parcel", "p-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
}

#[test]
fn an_undo_that_could_not_be_made_is_made_when_the_bug_is_mended() {
    static IS_BROKEN: AtomicBool = AtomicBool::new(true);
    async fn buggy(order: OrderPlaced, saga: Saga) -> Ended {
        let reserve = saga.step("reserve-stock", ReserveStock { of: order.of });
        let reserve = reserve.undo(|place| {
            assert!(!IS_BROKEN.load(Ordering::Relaxed), "a bug");
            ReleaseStock { of: place }
        });
        reserve.await.map_err(cancelled)?;
        Err(OrderCancelled { of: "no".into() })
    }
    let mut world = World::start(sagas().version(1, buggy));
    world.sent();
    world.done("reserve-stock", "r-1");
    let why = world.is_stuck().expect("it is stuck");
    assert_eq!(
        why,
        "the command that undoes `reserve-stock` cannot be made: it panicked"
    );
    world.operate(Action::Compensate);
    assert_eq!(
        world.is_stuck(),
        Some("what undoes `reserve-stock` is not known")
    );
    IS_BROKEN.store(false, Ordering::Relaxed);
    world.operate(Action::Retry);
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    world.undone("reserve-stock");
    assert_eq!(world.journal.state, SagaState::Compensated);
}

#[test]
fn the_command_that_undoes_a_step_may_name_its_saga() {
    async fn named(order: OrderPlaced, saga: Saga) -> Ended {
        let of = saga.clone();
        let reserve = saga.step("reserve-stock", ReserveStock { of: order.of });
        let reserve = reserve.undo(move |place| ReleaseStock {
            of: format!("{place} of {}", of.id()),
        });
        reserve.await.map_err(cancelled)?;
        Err(OrderCancelled { of: "no".into() })
    }
    let mut world = World::start(sagas().version(1, named));
    world.done("reserve-stock", "r-1");
    let undo = world.sent.last().expect("an undo");
    assert_eq!(&*undo.envelope.body, br#"{"of":"r-1 of checkout/o-1"}"#);
}

#[test]
fn a_panic_while_the_function_is_dropped_is_stuck() {
    struct Fragile;
    impl Drop for Fragile {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("it fell");
            }
        }
    }
    async fn fragile(order: OrderPlaced, saga: Saga) -> Ended {
        reserve(&order, &saga).await.map_err(cancelled)?;
        let _fragile = Fragile;
        saga.signal::<String>("release").await;
        confirmed()
    }
    let mut world = World::start(sagas().version(1, fragile));
    world.done("reserve-stock", "r-1");
    assert_eq!(world.is_stuck(), Some("its function panicked: it fell"));
    // What undoes the step was made from the same run of the function.
    world.sent();
    world.operate(Action::Compensate);
    assert_eq!(world.sent(), ["reserve-stock undo"]);
}

#[test]
fn whoever_awaits_something_else_is_told_so() {
    async fn foreign(order: OrderPlaced, saga: Saga) -> Ended {
        reserve(&order, &saga).await.map_err(cancelled)?;
        std::future::pending::<()>().await;
        confirmed()
    }
    let mut world = World::start(sagas().version(1, foreign));
    world.done("reserve-stock", "r-1");
    let why = world.is_stuck().expect("it is stuck");
    assert!(why.contains("awaits something that is no step"), "{why}");
}

#[test]
fn a_name_that_is_used_twice_is_told() {
    async fn twice(order: OrderPlaced, saga: Saga) -> Ended {
        reserve(&order, &saga).await.map_err(cancelled)?;
        reserve(&order, &saga).await.map_err(cancelled)?;
        confirmed()
    }
    let mut world = World::start(sagas().version(1, twice));
    world.done("reserve-stock", "r-1");
    let why = world.is_stuck().expect("it is stuck");
    assert!(
        why.contains("two steps or timers with the name `reserve-stock`"),
        "{why}"
    );
}

async fn before(order: OrderPlaced, saga: Saga) -> Ended {
    reserve(&order, &saga).await.map_err(cancelled)?;
    let charge = saga.step("charge-card", ChargeCard { of: order.of });
    charge
        .undo(|charge| RefundCard { of: charge })
        .await
        .map_err(cancelled)?;
    confirmed()
}

/// Step `charge-card` has another name now.
async fn renamed(order: OrderPlaced, saga: Saga) -> Ended {
    reserve(&order, &saga).await.map_err(cancelled)?;
    let charge = saga.step("take-money", ChargeCard { of: order.of });
    charge
        .undo(|charge| RefundCard { of: charge })
        .await
        .map_err(cancelled)?;
    confirmed()
}

#[test]
fn a_step_that_was_renamed_is_found_by_the_check_and_keeps_the_reply() {
    let mut world = World::start(sagas().version(1, before));
    world.done("reserve-stock", "r-1");
    world.sent();
    world.definition = sagas().version(1, renamed).define("checkout");
    let found = world.definition.check("o-1", &world.journal);
    let why = found.expect_err("it goes another way");
    assert!(
        why.contains("the step `charge-card` was sent, but the function does not ask"),
        "{why}"
    );
    world.done("charge-card", "c-1");
    assert!(world.is_stuck().is_some());
    world.definition = sagas().version(1, before).define("checkout");
    world.operate(Action::Retry);
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
}

#[test]
fn sagas_go_on_with_the_version_that_they_were_started_with() {
    let mut world = World::start(sagas().version(1, before));
    world.done("reserve-stock", "r-1");
    world.sent();
    let both = || sagas().version(1, before).version(2, renamed);
    world.definition = both().define("checkout");
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
    let mut world = World::start(both());
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["reserve-stock do", "take-money do"]);
    // The old function was taken away too early.
    let mut world = World::start(sagas().version(1, before));
    world.definition = sagas().version(2, renamed).define("checkout");
    assert!(!world.definition.has_version(world.journal.version));
    world.done("reserve-stock", "r-1");
    let why = world.is_stuck().expect("it is stuck").to_owned();
    assert!(
        why.contains("no function `checkout` with the version 1"),
        "{why}"
    );
}

/// `before` with another step at its end.
async fn patched(order: OrderPlaced, saga: Saga) -> Ended {
    reserve(&order, &saga).await.map_err(cancelled)?;
    let is_patched = saga.patched("parcel");
    let charge = saga.step(
        "charge-card",
        ChargeCard {
            of: order.of.clone(),
        },
    );
    charge
        .undo(|charge| RefundCard { of: charge })
        .await
        .map_err(cancelled)?;
    if is_patched {
        let parcel = saga.step("book-parcel", BookParcel { of: order.of });
        parcel.pivot().await.map_err(cancelled)?;
    }
    confirmed()
}

#[test]
fn a_patch_holds_for_those_that_have_not_come_as_far() {
    // It had come past the place.
    let mut world = World::start(sagas().version(1, before));
    world.done("reserve-stock", "r-1");
    world.sent();
    world.definition = sagas().version(1, patched).define("checkout");
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
    // It had not.
    let mut world = World::start(sagas().version(1, before));
    world.sent();
    world.definition = sagas().version(1, patched).define("checkout");
    world.done("reserve-stock", "r-1");
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["charge-card do", "book-parcel do"]);
    world.done("book-parcel", "p-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
}

async fn released(order: OrderPlaced, saga: Saga) -> Ended {
    reserve(&order, &saga).await.map_err(cancelled)?;
    let first = saga.signal::<String>("release").await;
    let late = saga.timer("hold", Duration::from_secs(60));
    match saga.first((saga.signal::<String>("release"), late)).await {
        tidings_saga::First::First(second) => Ok(OrderConfirmed {
            of: format!("{first} {second}"),
        }),
        tidings_saga::First::Second(()) => Err(OrderCancelled { of: first }),
    }
}

fn signal(text: &str) -> Arrival {
    Arrival::Signal {
        signal: "release".into(),
        body: raw(text),
    }
}

#[test]
fn signals_are_taken_in_order_whenever_they_came() {
    let mut world = World::start(sagas().version(1, released));
    world.arrive([signal("one"), signal("two")]);
    world.sent();
    world.done("reserve-stock", "r-1");
    let end = world.sent.last().expect("the end");
    assert_eq!(&*end.envelope.body, br#"{"of":"one two"}"#);
    world.arrive([signal("three")]);
    assert_eq!(world.ignored, ["the signal `release` came after the end"]);

    let mut world = World::start(sagas().version(1, released));
    world.done("reserve-stock", "r-1");
    world.arrive([signal("one")]);
    world.sent();
    world.wait(60);
    assert_eq!(world.sent(), ["reserve-stock undo"]);
}

/// Both steps at once; what follows the first is changed while the second is out.
#[test]
fn what_undoes_a_step_is_made_by_the_way_that_the_function_went() {
    async fn both(order: OrderPlaced, saga: Saga, has_patch: bool) -> Ended {
        let patched = std::sync::Arc::new(AtomicBool::new(false));
        let stock = reserve(&order, &saga);
        let charge = saga.step("charge-card", ChargeCard { of: order.of });
        let way = std::sync::Arc::clone(&patched);
        let charge = charge.undo(move |charge| RefundCard {
            of: format!("{charge} {}", way.load(Ordering::Relaxed)),
        });
        let stock = async {
            stock.await.map_err(cancelled)?;
            if has_patch && saga.patched("parcel") {
                patched.store(true, Ordering::Relaxed);
            }
            Ok(())
        };
        let charge = async { charge.await.map_err(cancelled) };
        futures_util::future::try_join(stock, charge).await?;
        Err(OrderCancelled { of: "no".into() })
    }
    let mut world = World::start(sagas().version(1, |order, saga| both(order, saga, false)));
    world.done("reserve-stock", "r-1");
    world.sent();
    // It was past the place of the change when the program was replaced.
    let changed = sagas().version(1, |order, saga| both(order, saga, true));
    world.definition = changed.define("checkout");
    world.done("charge-card", "c-1");
    let written = String::from_utf8(world.journal.write()).expect("JSON");
    assert!(!written.contains("patched"), "{written}");
    let undo = world.sent.last().expect("an undo");
    assert_eq!(&*undo.envelope.body, br#"{"of":"c-1 false"}"#);
}

#[test]
fn a_journal_has_an_end() {
    let mut world = World::start(sagas().version(1, released));
    world.done("reserve-stock", "r-1");
    let large = "x".repeat(1000);
    for _ in 0..70 {
        world.arrive([Arrival::Signal {
            signal: "other".into(),
            body: raw(&large),
        }]);
    }
    let why = world.is_stuck().expect("it is stuck");
    assert!(why.contains("its journal is full"), "{why}");
}

/// What sends and cancels a step is only needed until its answer is there.
#[test]
fn a_step_that_is_settled_takes_little_room() {
    let mut world = World::start(sagas().version(1, checkout));
    let written = |world: &World| String::from_utf8(world.journal.write()).expect("JSON");
    assert_eq!(written(&world).matches("\"send\"").count(), 2);
    assert_eq!(written(&world).matches("\"cancel\"").count(), 1);
    world.done("charge-card", "c-1");
    assert_eq!(written(&world).matches("\"send\"").count(), 1);
    assert_eq!(written(&world).matches("\"cancel\"").count(), 0);
    world.refused("reserve-stock", "no");
    assert_eq!(written(&world).matches("\"send\"").count(), 0);
}

#[test]
fn many_arrivals_in_one_turn_are_as_many_turns() {
    let arrivals = || {
        [
            done("charge-card", tidings_saga::Part::Do, "c-1"),
            done("reserve-stock", tidings_saga::Part::Do, "r-1"),
        ]
    };
    let mut together = World::start(sagas().version(1, checkout));
    together.arrive(arrivals());
    let mut one_by_one = World::start(sagas().version(1, checkout));
    for arrival in arrivals() {
        one_by_one.arrive([arrival]);
    }
    assert_eq!(together.journal.write(), one_by_one.journal.write());
    assert_eq!(together.sent(), one_by_one.sent());
}

#[test]
fn a_newer_journal_is_refused_with_a_reason() {
    let world = World::start(sagas().version(1, checkout));
    let text = String::from_utf8(world.journal.write()).expect("JSON");
    let newer = text.replacen("\"format\":1", "\"format\":2", 1);
    let why = tidings_saga::Journal::read(newer.as_bytes()).expect_err("it is newer");
    assert!(why.contains("newer program"), "{why}");
}

#[test]
fn every_outcome_of_the_checkout_is_legal() {
    let start = Start::of(&OrderPlaced { of: "o-1".into() }).expect("a message");
    let explorer = tidings_saga::Explorer::new(
        sagas().version(1, checkout).define("checkout"),
        "o-1",
        start,
    );
    let explored = explorer.replies(|step, _| raw(&step.step)).run();
    println!("{explored:?}");
    assert!(explored.endings["completed"] > 0 && explored.endings["compensated"] > 0);
    assert!(explored.states > 1000);
}

/// `join_all` polls again only those of many that were woken.
#[test]
fn steps_may_be_awaited_with_any_combinator() {
    async fn many(order: OrderPlaced, saga: Saga) -> Ended {
        let steps = (0..40).map(|number| {
            let command = ReserveStock {
                of: order.of.clone(),
            };
            saga.step(format!("reserve-{number}"), command).no_undo()
        });
        let replies = futures_util::future::join_all(steps).await;
        let replies = replies.into_iter().collect::<Result<Vec<_>, _>>();
        let replies = replies.map_err(cancelled)?;
        Ok(OrderConfirmed {
            of: replies.concat(),
        })
    }
    let mut world = World::start(sagas().version(1, many));
    assert_eq!(world.sent().len(), 40);
    for number in (0..40).rev() {
        world.done(&format!("reserve-{number}"), "x");
    }
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
    assert_eq!(world.journal.state, SagaState::Completed);
}

#[test]
fn the_explorer_has_signals_come_at_any_moment_and_never() {
    let explorer = |sagas: Sagas<OrderPlaced>| {
        let start = Start::of(&OrderPlaced { of: "o-1".into() }).expect("a message");
        tidings_saga::Explorer::new(sagas.define("checkout"), "o-1", start)
            .replies(|step, _| raw(&step.step))
            .signal("release", raw("now"))
    };
    async fn either(order: OrderPlaced, saga: Saga) -> Ended {
        let step = reserve(&order, &saga);
        match saga.first((step, saga.signal::<String>("release"))).await {
            First::First(reply) => drop(reply.map_err(cancelled)?),
            First::Second(_) => {
                return Err(OrderCancelled {
                    of: "released".into(),
                });
            }
        }
        Ok(OrderConfirmed { of: order.of })
    }
    let explored = explorer(sagas().version(1, either)).run();
    let step: Vec<Box<str>> = vec!["reserve-stock".into()];
    // Refused or released, and undone; or done.
    let legal = [("compensated", Vec::new()), ("completed", step)];
    assert_eq!(explored.in_effect, legal.into());
    let willing = explorer(sagas().version(1, either)).never_refused(&["reserve-stock"]);
    assert!(willing.run().states < explored.states);

    async fn patient(order: OrderPlaced, saga: Saga) -> Ended {
        saga.signal::<String>("release").await;
        Ok(OrderConfirmed { of: order.of })
    }
    let waits = std::panic::catch_unwind(|| explorer(sagas().version(1, patient)).run());
    let why = waits.expect_err("the signal may never come");
    let why = why.downcast_ref::<String>().expect("a text");
    assert!(
        why.contains("nothing happens any more, and it is running"),
        "{why}"
    );
}
