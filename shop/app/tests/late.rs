//! Orders are taken while services of the shop have never been started. They are completed when
//! these start, whichever they are: what was said meanwhile waited in their queues.

mod common;

use common::Shop;

/// Those that handle events and can come late: without orders nobody takes an order.
const LATE: [&str; 5] = [
    "payment",
    "inventory",
    "shipping",
    "notification",
    "loyalty",
];

/// Orders of each case.
const ORDERS: i64 = 3;

/// The processes of a case: one with the broker and all services but some, then one with those.
struct Late<'a> {
    first: Shop,
    late: &'a [&'a str],
    data: tempfile::TempDir,
}

impl<'a> Late<'a> {
    fn without(late: &'a [&'a str]) -> Self {
        let early = LATE.iter().filter(|service| !late.contains(service));
        let services: Vec<_> = ["orders", "bank"].iter().chain(early).copied().collect();
        let data = tempfile::tempdir().unwrap();
        let first = Shop::start(data.path(), &["--services", &services.join(",")]);
        Self { first, late, data }
    }

    /// Waits until the order has come as far as it can without those who are late: everything that
    /// is going to be said without them has been said.
    async fn stands(&self, order: &str) {
        let answers = [
            ("payment", "PaymentAuthorized"),
            ("inventory", "StockReserved"),
        ];
        let here = |service| !self.late.contains(&service);
        let mut events: Vec<_> = answers.into_iter().filter(|(by, _)| here(by)).collect();
        if events.len() == answers.len() {
            let effects = [
                ("shipping", "ShipmentBooked"),
                ("notification", "EmailSent"),
                ("loyalty", "PointsAwarded"),
            ];
            events.push(("orders", "OrderConfirmed"));
            events.extend(effects.into_iter().filter(|(by, _)| here(by)));
        }
        let events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
        self.first.happened(order, &events).await;
    }

    fn start_the_late(&self) -> Shop {
        let (broker, bank) = (self.first.amqp_url(), self.first.url());
        let services = self.late.join(",");
        let arguments = [
            "--services",
            &services,
            "--broker",
            &broker,
            "--bank",
            &bank,
        ];
        Shop::start(self.data.path(), &arguments)
    }
}

/// Every effect of every order is there, once.
async fn check(late: &[&str]) {
    println!("late: {late:?}");
    let shop = Late::without(late);
    let mut orders = Vec::new();
    for _ in 0..ORDERS {
        orders.push(shop.first.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    for order in &orders {
        shop.stands(order).await;
    }
    let second = shop.start_the_late();
    let has = |service: &str| match late.contains(&service) {
        true => &second,
        false => &shop.first,
    };
    let effects = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
    for order in &orders {
        let ended = shop.first.happened(order, &effects).await;
        assert_eq!(ended["status"], "CONFIRMED", "{late:?}: {ended}");
        assert_eq!(shop.first.ledger(order).await, ["charge 12.90"]);
        let parcel = has("shipping").get(&format!("/shipments/{order}")).await;
        assert_eq!(parcel.status, 200, "{late:?}: {}", parcel.text);
        let mails = format!("/emails?orderId={order}");
        let mails = has("notification").get(&mails).await.json;
        assert_eq!(mails.as_array().map(Vec::len), Some(1), "{late:?}");
    }
    assert_eq!(has("loyalty").points("c-1").await, 12 * ORDERS, "{late:?}");
    let stock = has("inventory").until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == ORDERS);
    assert_eq!(stock.await["reserved"], 0, "{late:?}");
    second.stop();
    shop.first.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_starts_late_finds_what_it_missed() {
    for late in [
        &["shipping", "notification", "loyalty"][..],
        &["payment"],
        &["inventory"],
        &["shipping"],
        &["notification"],
        &["loyalty"],
        &["payment", "inventory"],
        &["payment", "shipping", "loyalty"],
        &["inventory", "notification"],
        &LATE,
    ] {
        check(late).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_from_before_the_broker_was_there_wait_for_those_who_come_later() {
    let port = tidings_testing::servers::free_port().unwrap();
    let broker = format!("amqp://guest:guest@127.0.0.1:{port}/");
    let data = tempfile::tempdir().unwrap();
    let arguments = ["--services", "orders,payment,bank", "--broker", &broker];
    let first = Shop::launch(data.path(), &arguments);
    let order = first.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;

    // A broker alone: it knows nothing of the shop until orders and payment have found it.
    let options = tidings_broker::Options::ephemeral();
    let listen: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let alone = tidings_broker::Broker::start(options.listen(listen))
        .await
        .unwrap();
    first.happened(&order, &["PaymentAuthorized"]).await;
    let others = "inventory,shipping,notification,loyalty";
    let second = Shop::start(data.path(), &["--services", others, "--broker", &broker]);
    let effects = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
    let ended = first.happened(&order, &effects).await;
    assert_eq!(ended["status"], "CONFIRMED");
    second.stop();
    first.stop();
    alone.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_a_service_that_is_left_out() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &["--without", "loyalty,shipping"]);
    let before = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let order = shop
        .happened(&before, &["OrderConfirmed", "EmailSent"])
        .await;
    assert_eq!(order["status"], "CONFIRMED");
    // It does not run here, although all services do unless it is said otherwise.
    assert_eq!(shop.get("/loyalty/c-1").await.status, 503);

    let broker = shop.amqp_url();
    let loyalty = [
        "--services",
        "loyalty",
        "--without",
        "shipping",
        "--broker",
        &broker,
    ];
    let loyalty = Shop::start(data.path(), &loyalty);
    // What it could have missed would have come before this.
    let after = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    shop.happened(&after, &["PointsAwarded"]).await;
    assert_eq!(loyalty.points("c-1").await, 12);
    loyalty.stop();
    shop.stop();
}
