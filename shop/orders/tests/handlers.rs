//! What orders decides when the others answer, in a world in the process.

use shop_contracts::{
    CheckoutStyle, EmailSent, LED_BY, Money, OrderCancelled, OrderConfirmed, OrderPlaced,
    OrderStatus, PaymentAuthorized, PaymentDeclined, StockRejected, StockReserved,
    commands::{CancelOrder, ConfirmOrder},
};
use shop_kit::{Database, Db, sql};
use tidings::{Event, Outgoing};
use tidings_testing::TestWorld;

struct Orders {
    http: axum::Router,
    db: Db,
    _folder: tempfile::TempDir,
}

async fn run(world: &TestWorld) -> Orders {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    let (service, _overdue) = shop_orders::service(
        &database,
        "24h".parse().unwrap(),
        CheckoutStyle::Choreography,
    )
    .await
    .unwrap();
    world.run(service.messages.unwrap()).await;
    Orders {
        http: service.http,
        db: service.db.unwrap(),
        _folder: folder,
    }
}

impl Orders {
    /// What happened to the order, as customers see it.
    async fn timeline(&self) -> Vec<String> {
        let order: serde_json::Value = shop_testing::get(&self.http, "/orders/o-1").await.unwrap();
        let events = order["timeline"].as_array().unwrap().iter();
        let event = |entry: &serde_json::Value| entry["event"].as_str().unwrap().to_owned();
        events.map(event).collect()
    }
}

/// Tells what happened to one order, in this order, and each of it twice.
async fn tell(world: &TestWorld, facts: &[Fact]) {
    world.deliver_twice();
    for fact in facts {
        let order_id = "o-1".to_owned();
        let amount = Money::from_cents(9999);
        match *fact {
            Fact::Placed => world.publish(&OrderPlaced {
                order_id,
                amount,
                timestamp: jiff::Timestamp::now(),
                status: OrderStatus::Created,
                customer_id: None,
                email: None,
                card: None,
                items: Vec::new(),
            }),
            Fact::Authorized => world.publish(&PaymentAuthorized { order_id, amount }),
            Fact::Declined => world.publish(&PaymentDeclined {
                order_id,
                reason: "no money".into(),
            }),
            Fact::Reserved => world.publish(&StockReserved { order_id }),
            Fact::Rejected => world.publish(&StockRejected {
                order_id,
                reason: "no mugs".into(),
            }),
            Fact::Written => world.publish(&EmailSent {
                order_id,
                subject: "Your order".into(),
            }),
        }
        world.quiet().await;
    }
}

#[derive(Clone, Copy)]
enum Fact {
    Placed,
    Authorized,
    Declined,
    Reserved,
    Rejected,
    Written,
}
use Fact::{Authorized, Declined, Placed, Rejected, Reserved, Written};

/// What was decided: how many confirmations, and the reasons of the cancellations.
fn decided(world: &TestWorld) -> (usize, Vec<String>) {
    let cancelled = world.published::<OrderCancelled>().into_iter();
    let reasons = cancelled.map(|cancelled| cancelled.reason).collect();
    (world.published::<OrderConfirmed>().len(), reasons)
}

#[tidings::test]
async fn an_order_waits_for_both_answers(world: TestWorld) {
    let _orders = run(&world).await;
    tell(&world, &[Placed, Authorized]).await;
    assert_eq!(decided(&world), (0, vec![]));
    tell(&world, &[Reserved]).await;
    assert_eq!(decided(&world), (1, vec![]));
}

#[tidings::test]
async fn answers_may_come_before_the_order(world: TestWorld) {
    let _orders = run(&world).await;
    tell(&world, &[Reserved, Authorized]).await;
    assert_eq!(decided(&world), (0, vec![]));
    tell(&world, &[Placed]).await;
    assert_eq!(decided(&world), (1, vec![]));
}

#[tidings::test]
async fn the_first_refusal_decides_and_nothing_after_it(world: TestWorld) {
    let _orders = run(&world).await;
    tell(&world, &[Placed, Declined, Rejected, Authorized, Reserved]).await;
    assert_eq!(decided(&world), (0, vec!["no money".to_owned()]));
}

#[tidings::test]
async fn a_confirmed_order_is_not_cancelled_any_more(world: TestWorld) {
    let _orders = run(&world).await;
    tell(&world, &[Placed, Reserved, Authorized, Declined, Rejected]).await;
    assert_eq!(decided(&world), (1, vec![]));
}

#[tidings::test]
async fn the_timeline_has_everything_once_in_the_order_of_hearing(world: TestWorld) {
    let orders = run(&world).await;
    tell(&world, &[Reserved, Placed, Declined, Authorized]).await;
    let heard = [
        "OrderPlaced",
        "StockReserved",
        "PaymentDeclined",
        "OrderCancelled",
        "PaymentAuthorized",
    ];
    assert_eq!(orders.timeline().await, heard);

    // Also when it is told again so late that nobody knows any more that it was told.
    let forget = sql("delete from tidings_inbox");
    assert!(orders.db.execute(forget).await.unwrap() > 0);
    tell(&world, &[Authorized, Declined, Reserved, Placed]).await;
    assert_eq!(orders.timeline().await, heard);
    assert_eq!(decided(&world), (0, vec!["no money".to_owned()]));
}

#[tidings::test]
async fn an_answer_to_an_order_that_has_ended_stands_where_it_was_heard(world: TestWorld) {
    let orders = run(&world).await;
    tell(&world, &[Placed, Rejected, Written, Authorized]).await;
    let heard = [
        "OrderPlaced",
        "StockRejected",
        "OrderCancelled",
        "EmailSent",
        "PaymentAuthorized",
    ];
    assert_eq!(orders.timeline().await, heard);
}

/// Tells that this answer was given to the checkout.
fn tell_led<E: Event>(world: &TestWorld, answer: &E) {
    let mut answer = Outgoing::new(answer).unwrap();
    answer
        .envelope
        .headers
        .push((LED_BY.into(), "checkout".into()));
    world.publish_raw(answer);
}

#[tidings::test]
async fn an_order_that_is_led_is_ended_by_the_checkout_alone(world: TestWorld) {
    let orders = run(&world).await;
    let order_id = || "o-1".to_owned();
    tell_led(
        &world,
        &StockReserved {
            order_id: order_id(),
        },
    );
    world.quiet().await;
    // Also when the other answer was given to nobody.
    tell(&world, &[Placed, Authorized]).await;
    assert_eq!(decided(&world), (0, vec![]));
    world.publish(&ConfirmOrder {
        order_id: order_id(),
    });
    world.quiet().await;
    assert_eq!(decided(&world), (1, vec![]));
    let confirmed = world.sent();
    let confirmed = confirmed
        .iter()
        .find(|it| it.envelope.name == "order-confirmed.v1");
    assert_eq!(confirmed.unwrap().envelope.header(LED_BY), Some("checkout"));
    let ends = [
        "OrderPlaced",
        "StockReserved",
        "PaymentAuthorized",
        "OrderConfirmed",
    ];
    assert_eq!(orders.timeline().await, ends);
    let cancel = CancelOrder {
        order_id: order_id(),
        reason: "too late".into(),
    };
    world.publish(&cancel);
    world.quiet().await;
    assert_eq!(decided(&world), (1, vec![]));
}

/// The checkout may be faster than what it was told.
#[tidings::test]
async fn the_checkout_may_end_an_order_before_orders_hears_of_it_and_of_the_answers(
    world: TestWorld,
) {
    let orders = run(&world).await;
    let order_id = || "o-1".to_owned();
    world.publish(&ConfirmOrder {
        order_id: order_id(),
    });
    world.quiet().await;
    assert_eq!(decided(&world), (0, vec![]));
    tell(&world, &[Placed]).await;
    world.advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(decided(&world), (1, vec![]));
    let amount = Money::from_cents(9999);
    tell_led(
        &world,
        &PaymentAuthorized {
            order_id: order_id(),
            amount,
        },
    );
    tell_led(
        &world,
        &StockReserved {
            order_id: order_id(),
        },
    );
    world.quiet().await;
    let ends = [
        "OrderPlaced",
        "StockReserved",
        "PaymentAuthorized",
        "OrderConfirmed",
    ];
    assert_eq!(orders.timeline().await, ends);
}

#[tidings::test]
async fn the_checkout_cancels_with_the_reason_of_who_refused(world: TestWorld) {
    let _orders = run(&world).await;
    let order_id = || "o-1".to_owned();
    tell(&world, &[Placed]).await;
    let reason = "no mugs".to_owned();
    tell_led(
        &world,
        &StockRejected {
            order_id: order_id(),
            reason: reason.clone(),
        },
    );
    world.quiet().await;
    assert_eq!(decided(&world), (0, vec![]));
    let cancel = CancelOrder {
        order_id: order_id(),
        reason: reason.clone(),
    };
    world.publish(&cancel);
    world.quiet().await;
    world.publish(&ConfirmOrder {
        order_id: order_id(),
    });
    world.quiet().await;
    assert_eq!(decided(&world), (0, vec![reason]));
}
