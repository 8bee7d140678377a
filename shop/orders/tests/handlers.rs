//! What orders decides when the others answer, in a world in the process.

use shop_contracts::{
    Money, OrderCancelled, OrderConfirmed, OrderPlaced, OrderStatus, PaymentAuthorized,
    PaymentDeclined, StockRejected, StockReserved,
};
use shop_kit::Database;
use tidings_testing::TestWorld;

async fn run(world: &TestWorld) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    let (service, _overdue) = shop_orders::service(&database, "24h".parse().unwrap())
        .await
        .unwrap();
    world.run(service.messages.unwrap()).await;
    folder
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
}
use Fact::{Authorized, Declined, Placed, Rejected, Reserved};

/// What was decided: how many confirmations, and the reasons of the cancellations.
fn decided(world: &TestWorld) -> (usize, Vec<String>) {
    let cancelled = world.published::<OrderCancelled>().into_iter();
    let reasons = cancelled.map(|cancelled| cancelled.reason).collect();
    (world.published::<OrderConfirmed>().len(), reasons)
}

#[tidings::test]
async fn an_order_waits_for_both_answers(world: TestWorld) {
    let _folder = run(&world).await;
    tell(&world, &[Placed, Authorized]).await;
    assert_eq!(decided(&world), (0, vec![]));
    tell(&world, &[Reserved]).await;
    assert_eq!(decided(&world), (1, vec![]));
}

#[tidings::test]
async fn answers_may_come_before_the_order(world: TestWorld) {
    let _folder = run(&world).await;
    tell(&world, &[Reserved, Authorized]).await;
    assert_eq!(decided(&world), (0, vec![]));
    tell(&world, &[Placed]).await;
    assert_eq!(decided(&world), (1, vec![]));
}

#[tidings::test]
async fn the_first_refusal_decides_and_nothing_after_it(world: TestWorld) {
    let _folder = run(&world).await;
    tell(&world, &[Placed, Declined, Rejected, Authorized, Reserved]).await;
    assert_eq!(decided(&world), (0, vec!["no money".to_owned()]));
}

#[tidings::test]
async fn a_confirmed_order_is_not_cancelled_any_more(world: TestWorld) {
    let _folder = run(&world).await;
    tell(&world, &[Placed, Reserved, Authorized, Declined, Rejected]).await;
    assert_eq!(decided(&world), (1, vec![]));
}
