//! Sagas through `serve`: services with a database each, and everything between them.

mod support;

use std::{sync::Arc, time::Duration};

use support::{
    Running,
    checkout::{OrderCancelled, OrderConfirmed, OrderPlaced, ReserveStock, World, confirmed, gone},
    outgoing, until,
};
use tidings::{
    First, Saga, Sagas,
    prelude::*,
    sagas::{self, Action, Answer, Operation, Query},
};

#[tokio::test]
async fn an_order_is_paid_or_everything_is_undone() {
    let world = World::new().await;
    let running = world.start().await;
    world.place("good", "ok");
    world.until("confirmed good").await;
    assert_eq!(
        world.book.read(),
        ["reserved good", "charged good", "confirmed good"]
    );
    world.book.0.lock().clear();
    world.place("poor", "declined");
    world.until("cancelled poor: the card was declined").await;
    let expected = [
        "reserved poor",
        "released 7",
        "cancelled poor: the card was declined",
    ];
    assert_eq!(world.book.read(), expected);
    world.book.0.lock().clear();
    world.place("sold-out", "ok");
    world.until("cancelled sold-out: sold out").await;
    assert_eq!(world.book.read(), ["cancelled sold-out: sold out"]);
    let mut states = world.states().await;
    states.sort_unstable();
    assert_eq!(
        states,
        ["good completed", "poor compensated", "sold-out compensated"]
    );
    running.stop().await;
}

#[tokio::test]
async fn a_saga_goes_on_after_a_restart_of_everything() {
    let world = World::new().await;
    world.silent.0.lock().push("slow".into());
    let running = world.start().await;
    world.place("slow", "ok");
    world.until("reserved slow").await;
    running.stop().await;
    world.silent.0.lock().clear();
    let running = world.start().await;
    world.until("confirmed slow").await;
    assert_eq!(
        world.book.read(),
        ["reserved slow", "charged slow", "confirmed slow"]
    );
    running.stop().await;
}

/// The cancellation overtakes the charge, which waits in the store of payment.
#[tokio::test]
async fn a_step_that_was_cancelled_before_it_was_done_is_never_done() {
    let world = World::new().await;
    world.silent.0.lock().push("late".into());
    let running = world.start().await;
    world.place("late", "in a hurry");
    world
        .until("cancelled late: `charge-card` was not answered in time")
        .await;
    world.silent.0.lock().clear();
    // The charge is tried again, and finds that it was cancelled.
    until("nothing waits", async || world.payment.is_quiet().await).await;
    let expected = [
        "reserved late",
        "cancelled late",
        "released 7",
        "cancelled late: `charge-card` was not answered in time",
    ];
    assert_eq!(world.book.read(), expected);
    running.stop().await;
}

/// It is cancelled between the look at its fence and its commit.
#[tokio::test]
async fn a_step_that_is_cancelled_while_it_is_done_leaves_nothing() {
    let world = World::new().await;
    let running = world.start().await;
    world.place("slow-bank", "in a hurry");
    world
        .until("cancelled slow-bank: `charge-card` was not answered in time")
        .await;
    world.slow.0.notify_one();
    until("nothing is under way", async || {
        world.payment.is_quiet().await && world.broker.is_settled()
    })
    .await;
    assert_eq!(
        world.payment.effects().await,
        [],
        "the charge is undone with its commit"
    );
    assert_eq!(world.states().await, ["slow-bank compensated"]);
    running.stop().await;
}

#[tokio::test]
async fn a_second_message_with_the_key_of_a_saga_starts_nothing() {
    let world = World::new().await;
    let sagas = Sagas::new("checkout", |_: &OrderPlaced| "the only one".to_owned());
    let mut routers = world.routers();
    routers[0] = Router::new("checkout")
        .saga(sagas.version(1, support::checkout::checkout))
        .transactional(Arc::clone(&world.checkout));
    let running = Running::start_all(&world.broker, routers).await;
    world.place("one", "ok");
    world.until("confirmed one").await;
    world.place("two", "ok");
    until("it was handled", async || world.broker.is_settled()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.waiting().await, 0, "and not tried again");
    let expected = ["reserved one", "charged one", "confirmed one"];
    assert_eq!(world.book.read(), expected);
    running.stop().await;
}

#[tokio::test]
async fn a_dead_letter_of_a_step_makes_its_saga_stuck() {
    let world = World::new().await;
    let running = world.start().await;
    world.place("odd", "broken");
    let is_stuck = async || world.states().await == ["odd stuck"];
    until("it is stuck", is_stuck).await;
    running.stop().await;
}

#[tokio::test]
async fn an_operator_sees_why_a_saga_is_stuck_and_answers_by_hand() {
    let world = World::new().await;
    let running = world.start().await;
    world.place("odd", "broken");
    world.place("good", "ok");
    world.until("confirmed good").await;
    let store = &*world.checkout;
    let stuck = Query {
        state: Some("stuck".into()),
        ..Query::default()
    };
    let listed = async || {
        sagas::list(store, "checkout", &stuck)
            .await
            .expect("a list")
    };
    until("it is stuck", async || listed().await.len() == 1).await;
    let summary = listed().await.remove(0);
    assert_eq!(&*summary.key, "odd");
    let state = summary.state.expect("it can be read").to_string();
    assert!(
        state.contains("dead letter: the bank cannot be understood"),
        "{state}"
    );

    let reply = serde_json::value::to_raw_value("c-odd").expect("JSON");
    let operation = Operation {
        who: "ann".into(),
        why: "the bank was called".into(),
        action: Action::Answer("charge-card".into(), Answer::Done(reply)),
    };
    sagas::operate(store, "checkout", "odd", &operation)
        .await
        .expect("it is asked for");
    world.until("confirmed odd").await;
    let journal = sagas::journal(store, "checkout", "odd")
        .await
        .expect("an answer");
    let journal = journal.expect("a journal");
    let written = String::from_utf8(journal.write()).expect("JSON");
    assert!(written.contains("the bank was called"), "{written}");
    let nobody = sagas::operate(store, "checkout", "nobody", &operation).await;
    let error = nobody.expect_err("there is none").to_string();
    assert!(
        error.contains("there is no saga `checkout/nobody`"),
        "{error}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_step_that_is_sent_again_is_answered_as_before_and_not_done_twice() {
    let world = World::new().await;
    let running = world.start().await;
    world.place("twice", "ok");
    world.until("confirmed twice").await;
    let sent = world.broker.published();
    let is_step = |name: &str| {
        let found = sent.iter().find(|message| message.envelope.name == name);
        found.unwrap_or_else(|| panic!("{name} was sent")).clone()
    };
    for name in ["reserve-stock.v1", "charge-card.v1"] {
        let mut again = is_step(name);
        // As when a saga sends it again: under another id.
        again.envelope.id = Some("another".into());
        world.broker.publish_raw(again);
    }
    until("both are handled", async || {
        let answers = world.broker.published();
        let is_answer = |it: &&tidings::Outgoing| {
            it.envelope
                .id
                .as_ref()
                .is_some_and(|id| id.as_str() == "reply/another")
        };
        answers.iter().filter(is_answer).count() == 2
    })
    .await;
    assert_eq!(
        world.book.read(),
        ["reserved twice", "charged twice", "confirmed twice"]
    );
    assert_eq!(world.inventory.effects().await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_order_that_is_placed_twice_is_one_saga() {
    let world = World::new().await;
    let running = world.start().await;
    for _ in 0..3 {
        world.place("once", "ok");
    }
    world.until("confirmed once").await;
    world.place("once", "ok");
    world.place("last", "ok");
    world.until("confirmed last").await;
    let reserved = world
        .book
        .read()
        .iter()
        .filter(|it| *it == "reserved once")
        .count();
    assert_eq!(reserved, 1);
    running.stop().await;
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderReleased {
    order_id: String,
    by: String,
}

async fn held(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let released = saga.signal::<OrderReleased>("released");
    let patience = match order_id.as_str() {
        "three" | "early" => Duration::from_millis(100),
        _ => Duration::from_secs(3600),
    };
    match saga.first((released, saga.timer("held", patience))).await {
        First::First(released) => Ok(OrderConfirmed {
            order_id: format!("{order_id} by {}", released.by),
        }),
        First::Second(()) => Err(OrderCancelled {
            order_id,
            reason: "nobody released it".into(),
        }),
    }
}

#[tokio::test]
async fn a_saga_waits_for_a_signal_or_a_time() {
    let world = World::new().await;
    let sagas = Sagas::new("held", |order: &OrderPlaced| order.order_id.clone());
    let router = Router::new("checkout")
        .saga(sagas.version(1, held))
        .saga_signal("held", "released", |it: &OrderReleased| it.order_id.clone())
        .retry(Retry::exponential(Duration::from_millis(50)).attempts(100))
        .transactional(Arc::clone(&world.checkout));
    let watcher = Router::new("watcher")
        .on(confirmed)
        .on(gone)
        .with_state(world.book.clone());
    let running = Running::start_all(&world.broker, [router, watcher]).await;
    let release = |order_id: &str| {
        let (order_id, by) = (order_id.to_owned(), "ann".to_owned());
        world
            .broker
            .publish_raw(outgoing(&OrderReleased { order_id, by }));
    };
    world.place("one", "");
    release("one");
    world.until("confirmed one by ann").await;
    // The signal comes before there is a saga.
    release("two");
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.place("two", "");
    world.until("confirmed two by ann").await;
    world.place("three", "");
    world.until("cancelled three: nobody released it").await;
    running.stop().await;
}

/// Many sagas at the same time share commits, and one whose function panics harms no other.
#[tokio::test]
async fn a_saga_that_panics_harms_no_other() {
    async fn buggy(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
        let order_id = order.order_id;
        let reserve = ReserveStock {
            order_id: order_id.clone(),
        };
        let stock = saga.step("reserve-stock", reserve).no_undo();
        let _ = stock.await;
        assert_ne!(order_id, "o-40", "a bug");
        Ok(OrderConfirmed { order_id })
    }
    let world = World::new().await;
    let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
    let mut routers = world.routers();
    routers[0] = Router::new("checkout")
        .saga(sagas.version(1, buggy))
        .transactional(Arc::clone(&world.checkout));
    let running = Running::start_all(&world.broker, routers).await;
    for number in 0..100 {
        world.place(&format!("o-{number}"), "ok");
    }
    until("all but one are confirmed", async || {
        let book = world.book.read();
        book.iter().filter(|it| it.starts_with("confirmed")).count() == 99
    })
    .await;
    let states = world.states().await;
    assert!(states.contains(&"o-40 stuck".into()), "{states:?}");
    running.stop().await;
}

/// Many at once, of all kinds, with a crash of everything in the middle: each ends, done or undone.
async fn many_end_as_they_may(world: &World, count: usize) {
    let running = world.start().await;
    for number in 0..count {
        match number % 3 {
            0 => world.place(&format!("good-{number}"), "ok"),
            1 => world.place(&format!("poor-{number}"), "declined"),
            _ => world.place(&format!("sold-out-{number}"), "ok"),
        }
    }
    let ended = async || {
        let states = world.states().await;
        let is_ended = |it: &&String| it.ends_with("completed") || it.ends_with("compensated");
        states.iter().filter(is_ended).count()
    };
    until("some have ended", async || ended().await > count / 4).await;
    running.crash().await;
    let running = world.start().await;
    until("all have ended", async || ended().await == count).await;
    let states = world.states().await;
    for state in &states {
        let (key, label) = state.split_once(' ').expect("a key and a state");
        let expected = match key.starts_with("good") {
            true => "completed",
            false => "compensated",
        };
        assert_eq!(label, expected, "{key}");
    }
    // What a handler wrote in its transaction, it wrote once.
    let effects = world.inventory.effects().await;
    let reserved = effects.iter().filter(|(_, number)| *number == 1).count();
    let released = effects.len() - reserved;
    assert_eq!((reserved, released), (count / 3 * 2, count / 3));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sagas_end_as_they_may_on_sqlite() {
    many_end_as_they_may(&World::new().await, 90).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn many_sagas_end_as_they_may_on_postgresql() {
    let url = tidings_testing::servers::postgres_url();
    let schema = format!("sagas_{}", std::process::id());
    let store = tidings_postgres::PostgresStore::connect(url, &*schema).await;
    let store = Arc::new(store.expect("a store"));
    many_end_as_they_may(&World::with(store).await, 90).await;
}

/// An event that most sagas do not wait for: it is no dead letter when there is no saga.
#[tokio::test]
async fn a_signal_to_no_saga_may_be_passed_over() {
    let world = World::new().await;
    let sagas = Sagas::new("held", |order: &OrderPlaced| order.order_id.clone());
    let router = Router::new("checkout")
        .saga(sagas.version(1, held))
        .saga_signal_if_started("held", "released", |it: &OrderReleased| it.order_id.clone())
        .retry(Retry::exponential(Duration::from_millis(50)).attempts(2))
        .transactional(Arc::clone(&world.checkout));
    let watcher = Router::new("watcher")
        .on(confirmed)
        .on(gone)
        .with_state(world.book.clone());
    let running = Running::start_all(&world.broker, [router, watcher]).await;
    let release = |order_id: &str| {
        let (order_id, by) = (order_id.to_owned(), "ann".to_owned());
        world
            .broker
            .publish_raw(outgoing(&OrderReleased { order_id, by }));
    };
    release("early");
    until("it is passed over", async || world.broker.is_settled()).await;
    world.place("early", "");
    world.place("one", "");
    until("they are started", async || world.broker.is_settled()).await;
    release("one");
    world.until("confirmed one by ann").await;
    world.until("cancelled early: nobody released it").await;
    let queue = "checkout.order-released.v1";
    assert_eq!(world.broker.dead_letters(queue).len(), 0);
    running.stop().await;
}
