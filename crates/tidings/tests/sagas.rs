//! Sagas through `serve`: three services with a database each, and everything between them.

mod support;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use support::{Database, Running, broker::Broker, outgoing, until};
use tidings::{
    First, Permanent, RecordQuery, Saga, Sagas, StepError, StepReply, Store, prelude::*,
};
use tidings_sqlite::Tx;

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    card: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderConfirmed {
    order_id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderCancelled {
    order_id: String,
    reason: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = u64)]
struct ReserveStock {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = ())]
struct ReleaseStock {
    reservation: u64,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = String)]
struct ChargeCard {
    order_id: String,
    card: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct CancelCharge {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct RefundCard {
    charge: String,
}

async fn checkout(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let cancelled = |error: StepError| OrderCancelled {
        order_id: order_id.clone(),
        reason: error.to_string(),
    };
    let reserve = ReserveStock {
        order_id: order_id.clone(),
    };
    let stock = saga
        .step("reserve-stock", reserve)
        .undo(|reservation| ReleaseStock { reservation });
    stock.await.map_err(cancelled)?;
    let charge = ChargeCard {
        order_id: order_id.clone(),
        card: order.card,
    };
    let cancel = CancelCharge {
        order_id: order_id.clone(),
    };
    saga.step("charge-card", charge)
        .cancel(cancel)
        .deadline(Duration::from_millis(1500))
        .undo(|charge| RefundCard { charge })
        .await
        .map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

/// What the services did, in order.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Vec<String>>>);

impl Book {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().push(what.into());
    }

    fn read(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

async fn reserve(
    command: ReserveStock,
    State(book): State<Book>,
    mut tx: Tx,
) -> Result<StepReply<u64>> {
    if command.order_id.contains("sold-out") {
        return Ok(StepReply::refused("sold out"));
    }
    tx.execute(
        "insert into effect (number, account) values (1, ?1)",
        (command.order_id.clone(),),
    )
    .await?;
    book.note(format!("reserved {}", command.order_id));
    Ok(StepReply::Done(7))
}

async fn release(command: ReleaseStock, State(book): State<Book>, mut tx: Tx) -> Result<()> {
    tx.execute(
        "insert into effect (number, account) values (-1, 'released')",
        (),
    )
    .await?;
    book.note(format!("released {}", command.reservation));
    Ok(())
}

async fn charge(
    command: ChargeCard,
    State(book): State<Book>,
    State(silent): State<Silent>,
) -> Result<StepReply<String>> {
    if silent.0.lock().contains(&command.order_id) {
        return Err(tidings::Error::msg("the bank does not answer"));
    }
    match &*command.card {
        "declined" => Ok(StepReply::refused("the card was declined")),
        "broken" => Err(Permanent::new("the bank cannot be understood").into()),
        _ => {
            book.note(format!("charged {}", command.order_id));
            Ok(StepReply::Done(format!("c-{}", command.order_id)))
        }
    }
}

/// The orders about which the bank says nothing.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<Vec<String>>>);

async fn cancel(command: CancelCharge, State(book): State<Book>) -> Result<()> {
    book.note(format!("cancelled {}", command.order_id));
    Ok(())
}

async fn refund(command: RefundCard, State(book): State<Book>) -> Result<()> {
    book.note(format!("refunded {}", command.charge));
    Ok(())
}

async fn confirmed(event: OrderConfirmed, State(book): State<Book>) -> Result<()> {
    book.note(format!("confirmed {}", event.order_id));
    Ok(())
}

async fn gone(event: OrderCancelled, State(book): State<Book>) -> Result<()> {
    book.note(format!("cancelled {}: {}", event.order_id, event.reason));
    Ok(())
}

/// The services, each with a database.
struct World {
    broker: Broker,
    book: Book,
    silent: Silent,
    checkout: Database,
    inventory: Database,
    payment: Database,
}

impl World {
    async fn new() -> Self {
        Self {
            broker: Broker::default(),
            book: Book::default(),
            silent: Silent::default(),
            checkout: Database::new().await,
            inventory: Database::new().await,
            payment: Database::new().await,
        }
    }

    fn routers(&self) -> Vec<Router> {
        let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
        let quick = Retry::exponential(Duration::from_millis(100)).attempts(50);
        vec![
            Router::new("checkout")
                .saga(sagas.version(1, checkout))
                .transactional(self.checkout.store.clone()),
            Router::new("inventory")
                .on(reserve)
                .on(release)
                .transactional(self.inventory.store.clone())
                .with_state(self.book.clone()),
            Router::new("payment")
                .on(charge)
                .on(cancel)
                .on(refund)
                .retry(quick)
                .transactional(self.payment.store.clone())
                .with_state(self.book.clone())
                .with_state(self.silent.clone()),
            Router::new("watcher")
                .on(confirmed)
                .on(gone)
                .with_state(self.book.clone()),
        ]
    }

    async fn start(&self) -> Running {
        Running::start_all(&self.broker, self.routers()).await
    }

    fn place(&self, order_id: &str, card: &str) {
        let order = OrderPlaced {
            order_id: order_id.into(),
            card: card.into(),
        };
        self.broker.publish_raw(outgoing(&order));
    }

    /// Waits until this is the last that happened.
    async fn until(&self, last: &str) {
        let has_come = async || self.book.read().iter().any(|it| it == last);
        let waiting = until("it is in the book", has_come);
        if tokio::time::timeout(Duration::from_secs(15), waiting)
            .await
            .is_err()
        {
            panic!(
                "waited for `{last}`: {:?}, {:?}",
                self.book.read(),
                self.states().await
            );
        }
    }

    async fn states(&self) -> Vec<String> {
        let query = RecordQuery {
            kind: "saga:checkout".into(),
            limit: 100,
            ..RecordQuery::default()
        };
        let found = self
            .checkout
            .store
            .records()
            .list(&query)
            .await
            .expect("records");
        let state = |record: tidings::Record| format!("{} {}", record.id.id, record.value.label);
        found.into_iter().map(state).collect()
    }
}

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
    world.place("late", "ok");
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
    match saga
        .first((released, saga.timer("held", Duration::from_secs(1))))
        .await
    {
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
        .transactional(world.checkout.store.clone());
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
        .transactional(world.checkout.store.clone());
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
