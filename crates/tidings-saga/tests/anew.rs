//! Sagas that begin anew under the same key, and signals that are taken again and again.

use std::time::Duration;

use tidings_saga::{Arrival, Explorer, First, Part, Saga, SagaState, Sagas, Start, What};
use world::{
    CancelCharge, ChargeCard, OrderCancelled, OrderConfirmed, OrderPlaced, RefundCard,
    ReserveStock, World, cancelled, done, raw,
};

mod world;

type Ended = Result<OrderConfirmed, OrderCancelled>;

const MONTH: u64 = 60;

fn sagas() -> Sagas<OrderPlaced> {
    Sagas::new("checkout", |order: &OrderPlaced| key_of(&order.of))
}

/// `o-1:3` is the third month of `o-1`.
fn key_of(of: &str) -> String {
    of.split(':').next().unwrap_or_default().to_owned()
}

fn month_of(of: &str) -> u32 {
    let month = of.split_once(':').map(|(_, month)| month.parse());
    month.map_or(0, |month| month.expect("a number"))
}

/// Pays every month until somebody ends it.
async fn subscription(this: OrderPlaced, saga: Saga) -> Ended {
    let month = month_of(&this.of);
    let charge = saga.step(
        "charge-card",
        ChargeCard {
            of: this.of.clone(),
        },
    );
    charge.no_undo().await.map_err(cancelled)?;
    let end = saga.signal::<String>("end");
    let over = saga.timer("month", Duration::from_secs(MONTH));
    match saga.first((end, over)).await {
        First::First(why) => Ok(OrderConfirmed {
            of: format!("{why} after {month}"),
        }),
        First::Second(()) => {
            let of = format!("{}:{}", key_of(&this.of), month + 1);
            saga.restart_with(OrderPlaced { of }).await
        }
    }
}

fn signal(text: &str) -> Arrival {
    Arrival::Signal {
        signal: "end".into(),
        body: raw(text),
    }
}

fn answer(run: u32, step: &str) -> Arrival {
    match done(step, Part::Do, "x") {
        Arrival::Answer {
            step, part, answer, ..
        } => Arrival::Answer {
            run,
            step,
            part,
            answer,
        },
        other => other,
    }
}

#[test]
fn one_that_begins_anew_keeps_its_key_and_nothing_else() {
    let mut world = World::start(sagas().version(1, subscription));
    let mut sizes = Vec::new();
    for run in 0..500 {
        assert_eq!(world.journal.run, run);
        let sent = world.sent.pop().expect("a command");
        let id = format!("checkout/{run}/charge-card/o-1");
        let message_id = sent.envelope.id.as_ref().map(|id| id.as_str());
        assert_eq!(message_id, Some(&*id), "its own fence each month");
        assert_eq!(sent.envelope.correlation_id.as_deref(), Some("o-1"));
        world.arrive([answer(run, "charge-card")]);
        world.wait(MONTH as i64);
        sizes.push(world.journal.write().len());
    }
    assert!(sizes.iter().max() < Some(&2000), "{sizes:?}");
    world.arrive([answer(500, "charge-card"), signal("enough")]);
    let end = world.sent.last().expect("the end");
    assert_eq!(&*end.envelope.body, br#"{"of":"enough after 500"}"#);
}

#[test]
fn an_answer_to_a_run_that_is_over_changes_nothing() {
    let mut world = World::start(sagas().version(1, subscription));
    world.arrive([answer(0, "charge-card")]);
    world.wait(MONTH as i64);
    world.sent();
    let before = world.journal.write();
    world.arrive([answer(0, "charge-card")]);
    assert_eq!(world.journal.write(), before);
    let ignored = ["an answer to `charge-card` of the run 0, which is over"];
    assert_eq!(world.ignored, ignored);
}

#[test]
fn signals_that_were_not_taken_go_along() {
    async fn one_by_one(this: OrderPlaced, saga: Saga) -> Ended {
        if month_of(&this.of) == 0 {
            let reserve = saga.step(
                "reserve-stock",
                ReserveStock {
                    of: this.of.clone(),
                },
            );
            reserve.no_undo().await.map_err(cancelled)?;
        }
        let said = saga.signal::<String>("end").await;
        match &*said {
            "last" => Ok(OrderConfirmed { of: this.of }),
            said => {
                let of = format!("{}:1{said}", key_of(&this.of));
                saga.restart_with(OrderPlaced { of }).await
            }
        }
    }
    let mut world = World::start(sagas().version(1, one_by_one));
    for number in 0..100 {
        world.arrive([signal(&number.to_string())]);
    }
    // One is taken in each run, in their order.
    world.done("reserve-stock", "r-1");
    assert_eq!(world.journal.run, 100);
    let start = world.journal.start.body.get();
    assert_eq!(start, r#"{"of":"o-1:199"}"#);
    world.arrive([signal("1"), signal("last"), signal("more")]);
    assert_eq!(world.journal.state, SagaState::Completed);
    let end = world.sent.last().expect("the end");
    assert_eq!(&*end.envelope.body, br#"{"of":"o-1:11"}"#);
    assert_eq!(world.ignored, ["the signal `end` came after the end"]);
}

#[test]
fn a_step_that_nobody_awaits_is_undone_before_it_begins_anew() {
    async fn idle(this: OrderPlaced, saga: Saga) -> Ended {
        let charge = saga.step(
            "charge-card",
            ChargeCard {
                of: this.of.clone(),
            },
        );
        let charge = charge.undo(|charge| RefundCard { of: charge });
        saga.timer("month", Duration::from_secs(MONTH)).await;
        match month_of(&this.of) {
            0 => {
                let of = format!("{}:1", key_of(&this.of));
                saga.restart_with(OrderPlaced { of }).await
            }
            _ => Ok(OrderConfirmed {
                of: charge.await.map_err(cancelled)?,
            }),
        }
    }
    let mut world = World::start(sagas().version(1, idle));
    world.wait(MONTH as i64);
    world.sent();
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["charge-card undo"]);
    world.undone("charge-card");
    assert_eq!(world.journal.run, 1);
}

#[test]
fn a_signal_that_lost_a_race_is_taken_the_next_time() {
    async fn patient(this: OrderPlaced, saga: Saga) -> Ended {
        for number in 0..10 {
            let end = saga.signal::<String>("end");
            let late = saga.timer(format!("late-{number}"), Duration::from_secs(10));
            if let First::First(why) = saga.first((end, late)).await {
                return Ok(OrderConfirmed {
                    of: format!("{why} in {number}"),
                });
            }
        }
        Err(OrderCancelled { of: this.of })
    }
    let mut world = World::start(sagas().version(1, patient));
    world.wait(10);
    world.wait(10);
    world.arrive([signal("now")]);
    let end = world.sent.last().expect("the end");
    assert_eq!(&*end.envelope.body, br#"{"of":"now in 2"}"#);
}

#[test]
fn signals_that_nobody_took_are_told_when_it_ends() {
    async fn deaf(this: OrderPlaced, saga: Saga) -> Ended {
        let first = saga.signal::<String>("end").await;
        let reserve = saga.step("reserve-stock", ReserveStock { of: this.of });
        reserve.no_undo().await.map_err(cancelled)?;
        Ok(OrderConfirmed { of: first })
    }
    let mut world = World::start(sagas().version(1, deaf));
    world.arrive([signal("one"), signal("two"), signal("three")]);
    assert!(world.ignored.is_empty());
    world.done("reserve-stock", "r-1");
    let ignored = ["the signal `end` was not awaited"; 2];
    assert_eq!(world.ignored, ignored);
    // The same if it fails; and what comes while it is undone.
    let mut world = World::start(sagas().version(1, deaf));
    world.arrive([signal("one"), signal("two")]);
    world.refused("reserve-stock", "no");
    assert_eq!(world.ignored, ["the signal `end` was not awaited"]);
}

/// Leaves a step behind that is still out.
async fn hasty(this: OrderPlaced, saga: Saga) -> Ended {
    let month = month_of(&this.of);
    if month == 2 {
        return Ok(OrderConfirmed { of: this.of });
    }
    let charge = saga
        .step(
            "charge-card",
            ChargeCard {
                of: this.of.clone(),
            },
        )
        .cancel(CancelCharge {
            of: this.of.clone(),
        })
        .undo(|charge| RefundCard { of: charge });
    let over = saga.timer("month", Duration::from_secs(MONTH));
    match saga.first((charge, over)).await {
        First::First(_) => Err(OrderCancelled { of: "done".into() }),
        First::Second(()) => {
            let of = format!("{}:{}", key_of(&this.of), month + 1);
            saga.restart_with(OrderPlaced { of }).await
        }
    }
}

#[test]
fn it_waits_until_every_step_is_settled_and_undone() {
    let mut world = World::start(sagas().version(1, hasty));
    world.sent();
    world.wait(MONTH as i64);
    assert_eq!(world.sent(), ["charge-card cancel"]);
    assert_eq!(world.journal.run, 0);
    let begins = |what: &What| matches!(what, What::BeginsAnew);
    assert!(world.journal.entries.iter().any(|it| begins(&it.what)));
    // The charge was done before it could be cancelled.
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["charge-card undo"]);
    assert_eq!(world.journal.run, 0);
    // Nobody answers: an operator sees it, and it goes on when the answer comes after all.
    world.wait(3600);
    let why = world.is_stuck().expect("it is stuck");
    assert_eq!(why, "the undoing of `charge-card` was not answered");
    world.undone("charge-card");
    assert_eq!(world.journal.run, 1);
    assert_eq!(world.journal.state, SagaState::Running);
    assert_eq!(world.sent.len(), 1, "the charge of the next month");
}

#[test]
fn what_could_still_be_undone_is_not_forgotten() {
    async fn forgetful(this: OrderPlaced, saga: Saga) -> Ended {
        let charge = saga.step(
            "charge-card",
            ChargeCard {
                of: this.of.clone(),
            },
        );
        let charge = charge.undo(|charge| RefundCard { of: charge });
        charge.await.map_err(cancelled)?;
        saga.restart_with(OrderPlaced { of: this.of }).await
    }
    let mut world = World::start(sagas().version(1, forgetful));
    world.done("charge-card", "c-1");
    let why = world.is_stuck().expect("it is stuck");
    assert!(
        why.contains("begins anew while `charge-card` can still be undone"),
        "{why}"
    );
    world.operate(tidings_saga::Action::Skip("charge-card".into()));
    assert_eq!(world.journal.run, 1, "it was undone by hand");
}

#[test]
fn a_new_beginning_that_makes_no_sense_is_told() {
    async fn at_once(this: OrderPlaced, saga: Saga) -> Ended {
        saga.restart_with(this).await
    }
    let world = World::start(sagas().version(1, at_once));
    let why = world.is_stuck().expect("it is stuck");
    assert!(why.contains("without having waited for anything"), "{why}");

    async fn other_key(_: OrderPlaced, saga: Saga) -> Ended {
        saga.timer("wait", Duration::from_secs(1)).await;
        saga.restart_with(OrderPlaced { of: "o-2".into() }).await
    }
    let mut world = World::start(sagas().version(1, other_key));
    world.wait(1);
    let why = world.is_stuck().expect("it is stuck");
    assert!(why.contains("whose key is `o-2`"), "{why}");

    async fn other_message(this: OrderPlaced, saga: Saga) -> Ended {
        saga.timer("wait", Duration::from_secs(1)).await;
        saga.restart_with(OrderCancelled { of: this.of }).await
    }
    let mut world = World::start(sagas().version(1, other_message));
    world.wait(1);
    let why = world.is_stuck().expect("it is stuck");
    assert!(
        why.contains("with `order-cancelled.v1`, but is started by"),
        "{why}"
    );
}

#[test]
fn it_goes_on_with_the_newest_version() {
    async fn newer(this: OrderPlaced, _: Saga) -> Ended {
        Ok(OrderConfirmed { of: this.of })
    }
    let mut world = World::start(sagas().version(1, subscription));
    world.arrive([answer(0, "charge-card")]);
    world.sent();
    let both = sagas().version(1, subscription).version(2, newer);
    world.definition = both.define("checkout");
    world.wait(MONTH as i64);
    assert_eq!(world.journal.version, 2);
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
}

#[test]
fn every_outcome_of_new_beginnings_is_legal() {
    let start = Start::of(&OrderPlaced { of: "o-1".into() }).expect("a message");
    let definition = sagas().version(1, hasty).define("checkout");
    let explored = Explorer::new(definition, "o-1", start)
        .replies(|step, _| raw(&step.step))
        .run();
    println!("{explored:?}");
    assert!(explored.endings["completed"] > 0 && explored.endings["compensated"] > 0);
}
