//! What a saga does when its steps are answered in whatever way.

use std::time::Duration;

use tidings_saga::{Action, Arrival, Part, Saga, SagaState, Sagas, What};
use world::{
    BookParcel, ChargeCard, OrderCancelled, OrderConfirmed, OrderPlaced, RefundCard, ReleaseStock,
    ReserveStock, World, cancelled, checkout, done, raw, refused, refused_for_now,
};

mod world;

fn sagas() -> Sagas<OrderPlaced> {
    Sagas::new("checkout", |order: &OrderPlaced| order.of.clone())
}

fn begin() -> World {
    let mut world = World::start(sagas().version(1, checkout));
    assert_eq!(world.sent(), ["reserve-stock do", "charge-card do"]);
    world
}

#[test]
fn one_whose_steps_are_all_done_completes() {
    let mut world = begin();
    world.done("charge-card", "c-1");
    assert!(world.sent().is_empty());
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["book-parcel do"]);
    world.done("book-parcel", "p-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
    assert_eq!(world.journal.state, SagaState::Completed);
    assert_eq!(world.due, None);
}

#[test]
fn what_was_done_is_undone_in_reverse_and_the_end_is_told_after_it() {
    let mut world = begin();
    world.done("reserve-stock", "r-1");
    world.done("charge-card", "c-1");
    world.sent();
    world.refused("book-parcel", "no carrier");
    assert_eq!(world.sent(), ["charge-card undo"]);
    world.undone("charge-card");
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    assert_eq!(world.journal.state, SagaState::Compensating);
    world.undone("reserve-stock");
    let end = world.sent.last().expect("the end").clone();
    assert_eq!(world.sent(), ["order-cancelled.v1"]);
    assert!(end.envelope.body.ends_with(br#""no carrier"}"#));
    assert_eq!(world.journal.state, SagaState::Compensated);
}

#[test]
fn an_undo_is_made_from_the_reply() {
    let mut world = begin();
    world.done("reserve-stock", "shelf 7");
    world.refused("charge-card", "declined");
    let undo = world.sent.last().expect("an undo");
    assert_eq!(&*undo.envelope.body, br#"{"of":"shelf 7"}"#);
    assert_eq!(
        undo.envelope.id.as_ref().map(|id| id.as_str()),
        Some("checkout/0/reserve-stock#undo/o-1")
    );
    assert_eq!(
        undo.envelope.header("tidings-reply-to"),
        Some("checkout.tidings.step-answer.v1")
    );
}

/// `all`: one refused, one open: it waits, then undoes.
#[test]
fn a_step_that_is_open_is_waited_for_before_anything_is_undone() {
    let mut world = begin();
    world.refused("charge-card", "declined");
    assert!(world.sent().is_empty());
    assert_eq!(world.journal.state, SagaState::Compensating);
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    world.undone("reserve-stock");
    assert_eq!(world.sent(), ["order-cancelled.v1"]);
}

#[test]
fn one_that_is_open_and_can_be_cancelled_is_cancelled() {
    let mut world = begin();
    world.refused("reserve-stock", "sold out");
    assert_eq!(world.sent(), ["charge-card cancel"]);
    world.arrive([refused("charge-card", Part::Cancel, "")]);
    assert_eq!(world.sent(), ["order-cancelled.v1"]);
    // The command that was overtaken is refused by its target.
    world.refused("charge-card", "it was cancelled");
    assert_eq!(world.journal.state, SagaState::Compensated);
    assert_eq!(world.ignored.len(), 1, "{:?}", world.ignored);
}

#[test]
fn one_that_was_done_before_it_could_be_cancelled_is_undone() {
    for answers_first in [Part::Do, Part::Cancel] {
        let mut world = begin();
        world.refused("reserve-stock", "sold out");
        assert_eq!(world.sent(), ["charge-card cancel"]);
        world.arrive([done("charge-card", answers_first, "c-1")]);
        assert_eq!(world.sent(), ["charge-card undo"]);
        world.arrive([
            done("charge-card", Part::Cancel, "c-1"),
            done("charge-card", Part::Do, "c-1"),
        ]);
        assert!(
            world.sent().is_empty(),
            "an answer that comes twice changes nothing"
        );
        world.undone("charge-card");
        assert_eq!(world.sent(), ["order-cancelled.v1"]);
    }
}

#[test]
fn of_a_reply_and_a_deadline_the_first_one_wins() {
    let mut world = begin();
    world.done("reserve-stock", "r-1");
    world.wait(599);
    world.done("charge-card", "c-1");
    world.wait(1);
    assert_eq!(world.sent(), ["book-parcel do"]);

    let mut world = begin();
    world.done("reserve-stock", "r-1");
    world.wait(600);
    assert_eq!(world.sent(), ["charge-card cancel"]);
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["charge-card undo"]);
    world.undone("charge-card");
    world.undone("reserve-stock");
    assert_eq!(world.sent(), ["reserve-stock undo", "order-cancelled.v1"]);
}

/// Nobody waits for the parcel when the time is up.
async fn impatient(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let stock = saga
        .step(
            "reserve-stock",
            ReserveStock {
                of: order.of.clone(),
            },
        )
        .undo(|place| ReleaseStock { of: place });
    let soon = saga.timer("soon", Duration::from_secs(5));
    let first = saga.first((stock, soon)).await;
    if first.is_second() {
        let charge = saga.step("charge-card", ChargeCard { of: order.of });
        charge
            .undo(|charge| RefundCard { of: charge })
            .await
            .map_err(cancelled)?;
    }
    Ok(OrderConfirmed { of: "done".into() })
}

#[test]
fn a_late_reply_is_undone_at_once_and_the_saga_goes_on() {
    let mut world = World::start(sagas().version(1, impatient));
    assert_eq!(world.sent(), ["reserve-stock do"]);
    world.wait(5);
    assert_eq!(world.sent(), ["charge-card do"]);
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["order-confirmed.v1"]);
    world.undone("reserve-stock");
    assert_eq!(world.journal.state, SagaState::Completed);

    let mut world = World::start(sagas().version(1, impatient));
    world.wait(5);
    world.done("charge-card", "c-1");
    assert_eq!(
        world.sent(),
        ["reserve-stock do", "charge-card do", "order-confirmed.v1"]
    );
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["reserve-stock undo"], "after the end");
    world.undone("reserve-stock");
    assert!(world.ignored.is_empty(), "{:?}", world.ignored);
}

#[test]
fn a_refusal_for_the_moment_is_asked_again_under_another_id() {
    let mut world = begin();
    world.arrive([refused_for_now("charge-card")]);
    assert!(world.sent().is_empty());
    world.wait(1);
    let again = world.sent.last().expect("it is sent again").clone();
    assert_eq!(world.sent(), ["charge-card do"]);
    assert_eq!(
        again.envelope.id.as_ref().map(|id| id.as_str()),
        Some("checkout/0/charge-card/o-1/2")
    );
    world.arrive([refused_for_now("charge-card")]);
    world.wait(1);
    assert!(world.sent().is_empty(), "the second pause is longer");
    world.wait(1);
    assert_eq!(world.sent(), ["charge-card do"]);
    world.arrive([refused_for_now("charge-card")]);
    assert_eq!(
        world.journal.state,
        SagaState::Compensating,
        "two retries were asked for"
    );
}

#[test]
fn a_saga_that_fails_does_not_send_again_what_was_put_off() {
    let mut world = begin();
    world.arrive([
        refused_for_now("charge-card"),
        refused("reserve-stock", Part::Do, "sold out"),
    ]);
    assert_eq!(world.sent(), ["order-cancelled.v1"]);
    assert_eq!(world.journal.state, SagaState::Compensated);
}

/// The pivot is done, and the function fails.
async fn careless(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let parcel = saga
        .step("book-parcel", BookParcel { of: order.of })
        .pivot();
    let parcel = parcel.await.map_err(cancelled)?;
    Err(OrderCancelled { of: parcel })
}

#[test]
fn what_cannot_be_undone_makes_a_failure_visible() {
    let mut world = World::start(sagas().version(1, careless));
    world.done("book-parcel", "p-1");
    let why = world.is_stuck().expect("it is stuck");
    assert!(
        why.contains("after `book-parcel`, which cannot be undone"),
        "{why}"
    );
    assert_eq!(world.sent(), ["book-parcel do"]);
}

#[test]
fn an_undo_that_is_refused_is_stuck_until_an_operator_has_looked() {
    let stuck = || {
        let mut world = begin();
        world.done("reserve-stock", "r-1");
        world.refused("charge-card", "declined");
        world.sent();
        world.arrive([refused("reserve-stock", Part::Undo, "the shelf is gone")]);
        assert_eq!(
            world.is_stuck(),
            Some("`reserve-stock` cannot be undone: the shelf is gone")
        );
        world
    };
    let mut world = stuck();
    world.operate(Action::Retry);
    let again = world.sent.last().expect("an undo").clone();
    assert_eq!(world.sent(), ["reserve-stock undo"]);
    assert_eq!(
        again.envelope.id.as_ref().map(|id| id.as_str()),
        Some("checkout/0/reserve-stock#undo/o-1/2")
    );
    world.undone("reserve-stock");
    assert_eq!(world.sent(), ["order-cancelled.v1"]);

    let mut world = stuck();
    world.operate(Action::Skip("reserve-stock".into()));
    assert_eq!(world.sent(), ["order-cancelled.v1"]);
    assert_eq!(world.journal.state, SagaState::Compensated);

    let mut world = stuck();
    world.operate(Action::GiveUp);
    assert_eq!(world.journal.state, SagaState::Abandoned);
    assert!(world.sent().is_empty());
    let said = world.journal.entries.iter().any(|entry| {
        matches!(&entry.what, What::Operator { who, why, action }
            if &**who == "ann" && &**why == "a test" && &**action == "give up")
    });
    assert!(said, "{:?}", world.journal);
}

#[test]
fn a_dead_letter_is_stuck_and_goes_on_when_its_answer_comes_after_all() {
    let mut world = begin();
    world.done("reserve-stock", "r-1");
    world.arrive([Arrival::DeadLetter {
        run: 0,
        step: "charge-card".into(),
        part: Part::Do,
        reason: "the bank's answer cannot be read".into(),
    }]);
    let why = world.is_stuck().expect("it is stuck");
    assert_eq!(
        why,
        "the command of `charge-card` is a dead letter: the bank's answer cannot be read"
    );
    world.done("charge-card", "c-1");
    assert_eq!(world.sent(), ["book-parcel do"]);
    assert_eq!(world.journal.state, SagaState::Running);
}

#[test]
fn a_failed_saga_that_waits_for_too_long_is_stuck_and_goes_on_when_the_answer_comes() {
    let mut world = World::start(
        sagas()
            .version(1, checkout)
            .stuck_after(Duration::from_secs(60)),
    );
    world.refused("charge-card", "declined");
    world.wait(59);
    assert_eq!(world.journal.state, SagaState::Compensating);
    world.wait(1);
    let why = world.is_stuck().expect("it is stuck");
    assert_eq!(
        why,
        "nobody knows whether `reserve-stock` was done: `reserve-stock.v1` was not answered"
    );
    world.sent();
    world.done("reserve-stock", "r-1");
    assert_eq!(world.sent(), ["reserve-stock undo"]);
}

#[test]
fn an_operator_may_answer_by_hand() {
    let mut world = begin();
    world.done("reserve-stock", "r-1");
    let answer = tidings_saga::Answer::Done(raw("c-1"));
    world.operate(Action::Answer("charge-card".into(), answer));
    assert_eq!(world.sent(), ["book-parcel do"]);
    assert!(world.ignored.is_empty(), "{:?}", world.ignored);
}
