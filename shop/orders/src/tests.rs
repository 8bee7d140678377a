//! The orders in their database: what an elder version stored, the deadline, and what is stuck.
//! (Over HTTP and between processes: `shop/app/tests`.)

use std::time::Duration;

use jiff::Timestamp;
use shop_contracts::{CheckoutStyle, Money, OrderPlaced, OrderStatus};
use shop_kit::{Database, Db, Statement, sql};
use tidings::Producer;

use crate::{
    MIGRATIONS, NAME, OrderDeadline, Overdue, TABLES,
    orders::{self, Answer, Decision},
    overdue, stuck,
};

pub(crate) struct Fixture {
    pub(crate) db: Db,
    _folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let db = database.open(NAME, MIGRATIONS).await.unwrap();
        Self {
            db,
            _folder: folder,
        }
    }

    /// The deadline's task of one copy of the service.
    fn copy(&self, deadline: &str) -> Overdue {
        Overdue {
            db: self.db.clone(),
            producer: Producer::new(NAME, self.db.store()),
            deadline: deadline.parse().unwrap(),
        }
    }

    pub(crate) async fn write(&self, statement: Statement) {
        self.db.execute(statement).await.unwrap();
    }

    /// An order that was placed so long ago.
    async fn place(&self, order_id: &str, ago: Duration) {
        let order = placed(order_id, ago);
        self.write(orders::place(&order, None, None)).await;
    }

    async fn answer(&self, order_id: &str, answer: Answer) {
        let at = Timestamp::now();
        self.write(orders::answered(order_id, &answer, false, at))
            .await;
    }

    /// The status and the reason, also of an order that was never placed.
    async fn end_of(&self, order_id: &str) -> (String, Option<String>) {
        let query = sql("select status, reason from orders where order_id = $1").bind(order_id);
        let rows = self.db.read(query).await.unwrap();
        (rows[0].get(0).unwrap(), rows[0].get(1).unwrap())
    }

    async fn unsent(&self) -> u64 {
        self.db.store().outbox().stats().await.unwrap().ready
    }
}

/// An order that was placed so long ago.
pub(crate) fn placed(order_id: &str, ago: Duration) -> OrderPlaced {
    OrderPlaced {
        order_id: order_id.into(),
        amount: Money::from_cents(1290),
        timestamp: Timestamp::now() - ago,
        status: OrderStatus::Created,
        customer_id: Some("c-1".into()),
        email: None,
        card: None,
        items: Vec::new(),
    }
}

const ACCEPTED: Answer = Answer::Payment { refused: None };
const IN_STOCK: Answer = Answer::Stock { refused: None };

const CONFIRM: Decision = Decision::Confirm {
    amount: Money::from_cents(1290),
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_order_is_cancelled_at_its_deadline_and_not_before() {
    let shop = Fixture::new().await;
    shop.place("both", 61 * MINUTE).await;
    shop.place("payment", 61 * MINUTE).await;
    shop.answer("payment", IN_STOCK).await;
    shop.place("inventory", 61 * MINUTE).await;
    shop.answer("inventory", ACCEPTED).await;
    shop.place("young", 59 * MINUTE).await;
    shop.place("ended", 61 * MINUTE).await;
    shop.write(orders::decided("ended", &CONFIRM)).await;

    let cancelled = shop.copy("1h").cancel_overdue(Timestamp::now()).await;
    assert_eq!(cancelled.unwrap(), 3);
    for (order, who) in [
        ("both", "payment and inventory"),
        ("payment", "payment"),
        ("inventory", "inventory"),
    ] {
        let reason = format!("{who} did not answer within 1h");
        assert_eq!(shop.end_of(order).await, ("CANCELLED".into(), Some(reason)));
        let events = timeline(&shop, order).await;
        assert_eq!(events.last().unwrap(), "OrderCancelled");
    }
    assert_eq!(shop.end_of("young").await, ("CREATED".into(), None));
    assert_eq!(shop.end_of("ended").await, ("CONFIRMED".into(), None));
    assert_eq!(shop.unsent().await, 3);
    let again = shop.copy("1h").cancel_overdue(Timestamp::now()).await;
    assert_eq!((again.unwrap(), shop.unsent().await), (0, 3));
}

#[tokio::test]
async fn copies_of_the_service_cancel_each_order_once() {
    let shop = Fixture::new().await;
    // More than two batches.
    let orders = 250;
    for number in 0..orders {
        shop.place(&format!("o-{number}"), 61 * MINUTE).await;
    }
    let now = Timestamp::now();
    let copies = [shop.copy("1h"), shop.copy("1h"), shop.copy("1h")];
    let [a, b, c] = &copies;
    let (a, b, c) = tokio::join!(
        a.cancel_overdue(now),
        b.cancel_overdue(now),
        c.cancel_overdue(now)
    );
    assert_eq!(a.unwrap() + b.unwrap() + c.unwrap(), orders);
    assert_eq!(shop.unsent().await, orders as u64);
}

#[tokio::test]
async fn what_was_answered_but_never_placed_is_cancelled_too() {
    let shop = Fixture::new().await;
    shop.answer("ghost", ACCEPTED).await;
    let copy = shop.copy("1h");
    assert_eq!(copy.cancel_overdue(Timestamp::now()).await.unwrap(), 0);
    let later = Timestamp::now() + 61 * MINUTE;
    assert_eq!(copy.cancel_overdue(later).await.unwrap(), 1);
    let reason = "it was answered, but not placed within 1h".to_owned();
    let end = ("CANCELLED".to_owned(), Some(reason));
    assert_eq!(shop.end_of("ghost").await, end);

    // If it is placed in the end, it can be asked for, and stays cancelled.
    let order = placed("ghost", Duration::ZERO);
    let row = shop.db.first(orders::adopt(&order)).await.unwrap().unwrap();
    assert_eq!(orders::Known::from_row(&row).unwrap().decision(), None);
    shop.answer("ghost", IN_STOCK).await;
    assert_eq!(shop.end_of("ghost").await, end);
}

#[tokio::test]
async fn a_late_refusal_does_not_change_why_an_order_was_cancelled() {
    let shop = Fixture::new().await;
    shop.place("late", 61 * MINUTE).await;
    let copy = shop.copy("1h");
    copy.cancel_overdue(Timestamp::now()).await.unwrap();
    let before = shop.end_of("late").await;
    let refused = Some("the card was declined".to_owned());
    shop.answer("late", Answer::Payment { refused }).await;
    assert_eq!(shop.end_of("late").await, before);
    shop.write(orders::decided("late", &CONFIRM)).await;
    assert_eq!(shop.end_of("late").await, before);
}

#[tokio::test]
async fn what_an_elder_version_stored_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    stored_by_an_elder_version(Database::Sqlite(folder.path().into())).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_an_elder_version_stored_on_postgresql_is_kept() {
    let server = tidings_testing::servers::Postgres::start().unwrap();
    stored_by_an_elder_version(Database::Postgres(server.url())).await;
}

async fn stored_by_an_elder_version(database: Database) {
    let folder = tempfile::tempdir().unwrap();
    let db = database.open(NAME, &[TABLES]).await.unwrap();
    let stored = [
        "insert into orders (order_id, status, payment) values ('ghost', 'CREATED', 'ACCEPTED')",
        "insert into orders (order_id, status, amount, placed_at, payment, stock)
         values ('old', 'CONFIRMED', 1290, 10, 'ACCEPTED', 'ACCEPTED'),
             ('open', 'CREATED', 1290, 10, null, 'ACCEPTED')",
        "insert into happening (order_id, event, at) values
         ('old', 'StockReserved', 5), ('old', 'OrderConfirmed', 30), ('old', 'OrderPlaced', 10),
         ('old', 'PaymentAuthorized', 20), ('ghost', 'PaymentAuthorized', 7),
         ('open', 'OrderPlaced', 10), ('open', 'StockReserved', 40)",
    ];
    for statement in stored {
        db.execute(sql(statement)).await.unwrap();
    }
    drop(db);
    let db = database.open(NAME, MIGRATIONS).await.unwrap();
    let shop = Fixture {
        db,
        _folder: folder,
    };
    // The order was placed before anybody answered, whatever their clocks say.
    let expected = [
        "OrderPlaced",
        "StockReserved",
        "PaymentAuthorized",
        "OrderConfirmed",
    ];
    assert_eq!(timeline(&shop, "old").await, expected);
    shop.write(orders::noted("old", "EmailSent", Timestamp::UNIX_EPOCH))
        .await;
    assert_eq!(timeline(&shop, "old").await.last().unwrap(), "EmailSent");

    // What is not decided yet goes on as if it had begun with this version.
    shop.answer("open", ACCEPTED).await;
    shop.write(orders::decided("open", &CONFIRM)).await;
    let expected = [
        "OrderPlaced",
        "StockReserved",
        "PaymentAuthorized",
        "OrderConfirmed",
    ];
    assert_eq!(timeline(&shop, "open").await, expected);

    // An order that has no time gets the time when it is first seen.
    let copy = shop.copy("1h");
    let now = Timestamp::now();
    assert_eq!(copy.cancel_overdue(now).await.unwrap(), 0);
    assert_eq!(copy.cancel_overdue(now + 59 * MINUTE).await.unwrap(), 0);
    assert_eq!(copy.cancel_overdue(now + 61 * MINUTE).await.unwrap(), 1);
    assert_eq!(shop.end_of("ghost").await.0, "CANCELLED");
    assert_eq!(shop.end_of("old").await.0, "CONFIRMED");
}

#[tokio::test]
async fn stuck_orders_are_those_that_wait_for_long_oldest_first() {
    let shop = Fixture::new().await;
    let deadline: OrderDeadline = "1h".parse().unwrap();
    for (order, minutes) in [("b", 2), ("a", 3), ("c", 1), ("over", 61), ("ended", 5)] {
        shop.place(order, minutes * MINUTE).await;
    }
    shop.place("young", stuck::STUCK_AFTER / 2).await;
    shop.answer("a", ACCEPTED).await;
    shop.write(orders::decided("ended", &CONFIRM)).await;

    let list = async |limit, after: Option<&str>| {
        let page = stuck::list(
            &shop.db,
            deadline,
            CheckoutStyle::Choreography,
            limit,
            after,
        );
        let page = page.await.unwrap();
        serde_json::to_value(page)
            .unwrap()
            .as_array()
            .unwrap()
            .clone()
    };
    let all = list(100, None).await;
    let ids: Vec<_> = all
        .iter()
        .map(|order| order["orderId"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["over", "a", "b", "c"]);
    assert_eq!(all[0]["waitsFor"], "payment,inventory");
    assert_eq!(all[1]["waitsFor"], "inventory");
    assert!(
        all[0]["reason"]
            .as_str()
            .unwrap()
            .contains("deadline of 1h is over")
    );
    assert!(!all[1]["reason"].as_str().unwrap().contains("deadline"));
    assert_eq!(list(2, Some("a")).await, all[2..]);
    assert_eq!(
        stuck::count(&shop.db, deadline, Timestamp::now())
            .await
            .unwrap(),
        4
    );
}

#[tokio::test]
async fn nobody_walks_through_orders_that_have_ended() {
    let shop = Fixture::new().await;
    let explained = |text: &str| sql(Box::leak(format!("explain query plan {text}").into()));
    let page = |text| explained(text).bind(0_i64).bind(20_i64);
    for statement in [
        explained(overdue::UNTIMED),
        page(overdue::OVERDUE),
        page(stuck::FIRST_PAGE),
        page(stuck::NEXT_PAGE).bind("a"),
    ] {
        let plan = shop.db.read(statement).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(3).unwrap()).collect();
        let uses_index = plan[0].contains("orders_open") && plan[0].starts_with("SEARCH");
        assert!(uses_index, "{plan:?}");
        let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE"));
        assert!(!sorts, "{plan:?}");
    }
}

async fn timeline(shop: &Fixture, order_id: &str) -> Vec<String> {
    let order = orders::find(&shop.db, order_id).await.unwrap();
    let order = serde_json::to_value(order).unwrap();
    let events = order["timeline"].as_array().unwrap().iter();
    events
        .map(|event| event["event"].as_str().unwrap().to_owned())
        .collect()
}
