//! Services as processes of their own: stopped, killed, started again, several of one.

mod common;

use common::{Shop, order};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 2)]).await;
    let all = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
    let before = shop.happened(&order, &all).await;
    shop.until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == 2)
        .await;
    shop.stop();

    let shop = Shop::start(data.path(), &[]);
    assert_eq!(shop.get(&format!("/orders/{order}")).await.json, before);
    assert_eq!(shop.stock("MUG-ENAMEL").await, [99_998, 0, 2]);
    assert_eq!(shop.ledger(&order).await, ["charge 25.80"]);
    assert_eq!(shop.points("c-1").await, 25);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::start(data.path(), &[]);
    let mut orders = Vec::new();
    for round in 0..3 {
        for _ in 0..10 {
            orders.push(shop.order("tok_flaky", &[("MUG-ENAMEL", 1)]).await);
        }
        // At another moment each time: as soon as one more of them has ended.
        shop.ended(&orders[round * 10 + round * 3]).await;
        shop.process.kill9();
        shop = Shop::start(data.path(), &[]);
    }
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    let shipped = orders.len() as i64;
    shop.until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == shipped)
        .await;
    assert_eq!(
        shop.stock("MUG-ENAMEL").await,
        [100_000 - shipped, 0, shipped]
    );
    shop.until("/loyalty/c-1", |loyalty| loyalty["points"] == 12 * shipped)
        .await;
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_taken_while_payment_is_away_and_charged_when_it_is_back() {
    let data = tempfile::tempdir().unwrap();
    let others = "orders,inventory,shipping,notification,loyalty,storefront,bank";
    let shop = Shop::start(data.path(), &["--services", others]);
    let mut orders = Vec::new();
    for _ in 0..20 {
        orders.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    shop.happened(&orders[19], &["StockReserved"]).await;
    assert_eq!(
        shop.get(&format!("/orders/{}", orders[0])).await.json["status"],
        "CREATED"
    );

    // Payment has never run before: its queue was there all the same. The URL is one of a cluster of which one node is
    // down.
    let down = tidings_testing::servers::free_port().unwrap();
    let hosts = format!("@127.0.0.1:{down},");
    let broker = shop.amqp_url().replacen('@', &hosts, 1);
    let bank = shop.url();
    let arguments = [
        "--services",
        "payment",
        "--broker",
        &broker,
        "--bank",
        &bank,
    ];
    let payment = Shop::start(data.path(), &arguments);
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    payment.stop();

    // And again with two of it.
    let mut more = Vec::new();
    for _ in 0..20 {
        more.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    let two = [
        Shop::start(data.path(), &arguments),
        Shop::start(data.path(), &arguments),
    ];
    for order in &more {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    two.into_iter().for_each(Shop::stop);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_taken_without_a_broker() {
    let data = tempfile::tempdir().unwrap();
    let port = tidings_testing::servers::free_port().unwrap();
    let broker = format!("amqp://guest:guest@127.0.0.1:{port}/");
    let shop = Shop::launch(data.path(), &["--broker", &broker]);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    assert_eq!(
        shop.get(&format!("/orders/{order}")).await.json["status"],
        "CREATED"
    );
    // So it is ready: whoever sends it orders shall go on.
    let ready = shop.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json["status"]), (200, &json!("up")));
    assert_eq!(ready.json["checks"]["broker"], "down");
    assert_eq!(ready.json["checks"]["subscriptions"], "down");
    let metrics = shop.get("/metrics").await.text;
    assert!(metrics.contains("\nshop_broker_connected 0\n"), "{metrics}");

    // A broker appears: here it comes with a process that does nothing else of note.
    let other = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["--services", "storefront", "--amqp-listen", &listen];
    let broker = Shop::start(other.path(), &arguments);
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
    let up = |health: &serde_json::Value| {
        let checks = &health["checks"];
        checks["broker"] == "up" && checks["subscriptions"] == "up"
    };
    shop.until("/health/ready", up).await;
    let metrics = shop.get("/metrics").await.text;
    assert!(metrics.contains("\nshop_broker_connected 1\n"), "{metrics}");
    shop.stop();
    broker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storefront_reaches_services_in_other_processes() {
    let data = tempfile::tempdir().unwrap();
    let rest = Shop::start(
        data.path(),
        &["--services", "orders,payment,inventory,bank"],
    );
    let broker = rest.amqp_url();
    let api = rest.url();
    let front = Shop::start(
        data.path(),
        &[
            "--services",
            "storefront",
            "--broker",
            &broker,
            "--api",
            &api,
        ],
    );
    assert_eq!(front.get("/").await.status, 200);
    assert_eq!(
        front.get("/products").await.text,
        rest.get("/products").await.text
    );
    let placed = front
        .post("/orders", &order("c-1", "tok_ok", &[("MUG-ENAMEL", 1)]))
        .await;
    assert_eq!(placed.status, 202, "{}", placed.text);
    let id = placed.json["orderId"].as_str().unwrap();
    assert_eq!(front.ended(id).await["status"], "CONFIRMED");
    assert_eq!(front.post("/orders", &json!({})).await.status, 422);
    // Nobody said where loyalty runs; the process that was named does not have it.
    assert_eq!(front.get("/loyalty/c-1").await.status, 404);
    rest.stop();
    let away = front.get("/products").await;
    assert_eq!(
        (away.status, &away.json["type"]),
        (502, &json!("/problems/bad-gateway"))
    );
    front.stop();
}
