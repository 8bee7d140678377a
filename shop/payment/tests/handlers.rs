//! What payment does when something happens, in a world in the process, with the bank over HTTP.

#[allow(dead_code, reason = "a part of it is enough here")]
#[path = "world/gate.rs"]
mod gate;

use std::time::Duration;

use gate::{Call::Charge, Gate, Rule};
use shop_contracts::{
    CheckoutStyle, Money, OrderCancelled, OrderPlaced, OrderStatus, PaymentAuthorized,
    PaymentDeclined,
};
use shop_kit::{BaseUrl, Database};
use tidings_testing::TestWorld;

async fn run(world: &TestWorld) -> (Gate, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    let bank = shop_bank::service(&database).await.unwrap();
    let gate = Gate::serve(bank.http).await;
    let url = BaseUrl::of_address(gate.address()).unwrap();
    let payment = shop_payment::service(&database, url, CheckoutStyle::default())
        .await
        .unwrap();
    world.run(payment.messages.unwrap()).await;
    (gate, folder)
}

fn order(card: &str) -> OrderPlaced {
    OrderPlaced {
        order_id: "o-1".into(),
        amount: Money::from_cents(9999),
        timestamp: jiff::Timestamp::now(),
        status: OrderStatus::Created,
        customer_id: None,
        email: None,
        card: Some(card.into()),
        items: Vec::new(),
    }
}

#[tidings::test]
async fn an_order_that_comes_twice_is_charged_once(world: TestWorld) {
    let (gate, _folder) = run(&world).await;
    world.publish(&order("tok_ok"));
    world.quiet().await;
    world.publish(&order("tok_ok"));
    world.quiet().await;
    assert_eq!(world.published::<PaymentAuthorized>().len(), 1);
    assert_eq!(gate.count(Charge), 1);
}

#[tidings::test]
async fn a_bank_that_declines_is_an_answer(world: TestWorld) {
    let (gate, _folder) = run(&world).await;
    let answer = r#"{"status": "DECLINED", "reason": "no money"}"#;
    gate.rule(Charge, Rule::Answer(200, answer));
    world.publish(&order("tok_ok"));
    world.quiet().await;
    assert_eq!(world.published::<PaymentDeclined>()[0].reason, "no money");
}

#[tidings::test]
async fn a_bank_that_comes_back_is_asked_again(world: TestWorld) {
    let (gate, _folder) = run(&world).await;
    for _ in 0..5 {
        gate.rule(Charge, Rule::Answer(503, "later"));
    }
    world.publish(&order("tok_ok"));
    world.quiet().await;
    assert_eq!(world.published::<PaymentAuthorized>(), []);
    world.advance(Duration::from_secs(60)).await;
    assert_eq!(world.published::<PaymentAuthorized>().len(), 1);
    assert_eq!(gate.count(Charge), 6);
}

#[tidings::test]
async fn an_order_that_was_cancelled_before_is_not_charged(world: TestWorld) {
    let (gate, _folder) = run(&world).await;
    world.publish(&OrderCancelled {
        order_id: "o-1".into(),
        reason: "it took too long".into(),
        email: None,
    });
    world.quiet().await;
    world.publish(&order("tok_ok"));
    world.quiet().await;
    assert_eq!((gate.count(Charge), world.sent().len()), (0, 0));
}
