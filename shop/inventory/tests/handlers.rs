//! What inventory does when something happens, in a world in the process.

use shop_contracts::{
    CheckoutStyle, LED_BY, Money, OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced,
    OrderStatus, StockRejected, StockReleased, StockReserved,
    commands::{ReleaseStock, ReserveStock, ShipStock},
};
use shop_kit::{Database, Db, sql};
use tidings::Outgoing;
use tidings_testing::{CrashPoint, TestWorld};

/// There are three.
const SCARCE: &str = "TELESCOPE-BRASS";

async fn run(world: &TestWorld) -> (Db, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    let db = shop_inventory::service(&database, CheckoutStyle::default())
        .await
        .unwrap()
        .db;
    let make = move || {
        let database = database.clone();
        async move {
            let service = shop_inventory::service(&database, CheckoutStyle::default())
                .await
                .unwrap();
            service.messages.unwrap()
        }
    };
    world.run(make).await;
    (db.unwrap(), folder)
}

/// How many telescopes are available, reserved and shipped.
async fn stock(db: &Db) -> [i64; 3] {
    let query = sql("select available, reserved, shipped from stock where sku = $1").bind(SCARCE);
    let rows = db.read(query).await.unwrap();
    [0, 1, 2].map(|column| rows[0].get(column).unwrap())
}

fn order(order_id: &str, quantity: u32) -> OrderPlaced {
    let item = |sku: &str, quantity| OrderItem {
        sku: sku.into(),
        quantity,
    };
    OrderPlaced {
        order_id: order_id.into(),
        amount: Money::from_cents(9999),
        timestamp: jiff::Timestamp::now(),
        status: OrderStatus::Created,
        customer_id: None,
        email: None,
        card: None,
        items: vec![item("MUG-ENAMEL", 1), item(SCARCE, quantity)],
    }
}

fn cancelled() -> OrderCancelled {
    OrderCancelled {
        order_id: "o-1".into(),
        reason: "it took too long".into(),
        email: None,
    }
}

#[tidings::test]
async fn an_order_that_comes_twice_and_through_a_crash_is_put_aside_once(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.deliver_twice();
    world.crash_at(CrashPoint::AfterHandlerBeforeAck);
    world.publish(&order("o-1", 2));
    world.quiet().await;
    assert!(world.has_crashed());
    world.restart().await;
    world.quiet().await;
    assert_eq!(stock(&db).await, [1, 2, 0]);
    assert_eq!(world.published::<StockReserved>().len(), 1);
}

#[tidings::test]
async fn an_order_gets_everything_or_nothing(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.publish(&order("o-1", 4));
    world.quiet().await;
    let refused = world.published::<StockRejected>();
    assert_eq!(refused[0].reason, "not enough Pocket telescope in stock");
    assert_eq!(stock(&db).await, [3, 0, 0]);
}

#[tidings::test]
async fn what_is_confirmed_is_shipped(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.publish(&order("o-1", 2));
    world.quiet().await;
    world.publish(&OrderConfirmed {
        order_id: "o-1".into(),
        amount: Money::from_cents(9999),
        customer_id: None,
        email: None,
    });
    world.quiet().await;
    assert_eq!(stock(&db).await, [1, 0, 2]);
}

#[tidings::test]
async fn what_a_cancelled_order_had_is_for_sale_again(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.publish(&order("o-1", 2));
    world.quiet().await;
    world.deliver_twice();
    world.publish(&cancelled());
    world.quiet().await;
    assert_eq!(stock(&db).await, [3, 0, 0]);
    assert_eq!(world.published::<StockReleased>().len(), 1);
}

#[tidings::test]
async fn nothing_is_put_aside_for_an_order_that_was_cancelled_before(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.publish(&cancelled());
    world.quiet().await;
    world.publish(&order("o-1", 2));
    world.quiet().await;
    assert_eq!((stock(&db).await, world.sent().len()), ([3, 0, 0], 0));
}

/// The same order by an event and by a command, in either order, and its end by either: the second door finds
/// what the first one did.
#[tidings::test]
async fn an_order_that_comes_through_both_doors_is_handled_once(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    let items = || [("MUG-ENAMEL".to_owned(), 1), (SCARCE.to_owned(), 1)].into();
    let reserve = |order_id: &str| ReserveStock {
        order_id: order_id.into(),
        items: items(),
    };
    world.publish(&order("o-1", 1));
    world.quiet().await;
    world.publish(&reserve("o-1"));
    world.quiet().await;
    world.publish(&reserve("o-2"));
    world.quiet().await;
    world.publish(&order("o-2", 1));
    world.quiet().await;
    assert_eq!(stock(&db).await, [1, 2, 0]);
    assert_eq!(world.published::<StockReserved>().len(), 2);

    let release = ReleaseStock {
        order_id: "o-1".into(),
    };
    world.publish(&release);
    world.quiet().await;
    world.publish(&cancelled());
    world.publish(&order("o-1", 1));
    world.quiet().await;
    assert_eq!(stock(&db).await, [2, 1, 0]);
    assert_eq!(world.published::<StockReleased>().len(), 1);
}

#[tidings::test]
async fn what_the_checkout_confirms_is_sent_when_it_says_so(world: TestWorld) {
    let (db, _folder) = run(&world).await;
    world.publish(&order("o-1", 2));
    world.quiet().await;
    let mut confirmed = Outgoing::new(&OrderConfirmed {
        order_id: "o-1".into(),
        amount: Money::from_cents(9999),
        customer_id: None,
        email: None,
    })
    .unwrap();
    let led = (LED_BY.into(), "checkout".into());
    confirmed.envelope.headers.push(led);
    world.publish_raw(confirmed);
    world.quiet().await;
    assert_eq!(stock(&db).await, [1, 2, 0]);
    let ship = ShipStock {
        order_id: "o-1".into(),
    };
    world.publish(&ship);
    world.publish(&ship);
    world.quiet().await;
    assert_eq!(stock(&db).await, [1, 0, 2]);
}
