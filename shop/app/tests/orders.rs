//! What becomes of an order, on the embedded broker and SQLite.

#[macro_use]
mod common;

use axum::http::Method;
use std::collections::BTreeMap;

use common::{SOON, Shop, Style, eventually, order, timeline};
use serde_json::{Value, json};

in_both_styles! {
    a_good_order_is_paid_reserved_shipped_written_and_rewarded
    a_good_order_takes_the_deliveries_that_it_needs
    an_order_that_cannot_be_had_is_cancelled_and_undone
    restocked_goods_can_be_sold
    a_bank_that_fails_charges_once
    orders_wait_for_a_bank_that_is_down
    an_order_can_be_watched_as_it_moves
}

async fn a_good_order_is_paid_reserved_shipped_written_and_rewarded(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let [available, ..] = shop.stock("LAMP-BRASS").await;

    let placed = shop
        .post("/orders", &order("c-1", "tok_ok", &[("LAMP-BRASS", 2)]))
        .await;
    assert_eq!(placed.status, 202);
    assert!(
        placed
            .text
            .contains(r#""amount":199.98,"status":"CREATED""#),
        "{}",
        placed.text
    );
    let id = placed.json["orderId"].as_str().unwrap();
    assert_eq!(placed.header("location"), format!("/orders/{id}"));

    let all = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
    let order = shop.happened(id, &all).await;
    assert_eq!(order["status"], "CONFIRMED");
    assert_eq!(order.get("reason"), None);
    let happened = timeline(&order);
    assert_eq!(happened.len(), 7, "{happened:?}");
    assert_eq!(happened[0], "OrderPlaced");
    assert_eq!(happened[3], "OrderConfirmed");
    let answers = ["PaymentAuthorized", "StockReserved"];
    assert!(answers.iter().all(|answer| happened[1..3].contains(answer)));

    let payment = shop.get(&format!("/payments/{id}")).await;
    assert_eq!(payment.json["status"], "AUTHORIZED");
    assert!(
        payment.text.contains(r#""amount":199.98"#),
        "{}",
        payment.text
    );
    assert_eq!(shop.ledger(id).await, ["charge 199.98"]);
    shop.until("/stock/LAMP-BRASS", |stock| stock["shipped"] == 2)
        .await;
    assert_eq!(shop.stock("LAMP-BRASS").await, [available - 2, 0, 2]);
    let shipment = shop.get(&format!("/shipments/{id}")).await.json;
    assert!(shipment["tracking"].as_str().unwrap().starts_with("TRK-"));
    let emails = shop.get(&format!("/emails?orderId={id}")).await.json;
    assert_eq!(emails.as_array().unwrap().len(), 1);
    assert_eq!(emails[0]["to"], "ada@example.org");
    let mails: Vec<_> = std::fs::read_dir(data.path().join("mail"))
        .unwrap()
        .collect();
    assert_eq!(mails.len(), 1);
    assert_eq!(shop.points("c-1").await, 199);
    shop.stop();
}

/// What a confirmed order costs. Whoever subscribes a service to one event more pays for it with
/// each order: then this list grows, and the table in ARCHITECTURE.md with it.
async fn a_good_order_takes_the_deliveries_that_it_needs(style: Style) {
    const OF_ALL: [&str; 9] = [
        "inventory.order-confirmed.v1",
        "loyalty.order-confirmed.v1",
        "notification.order-confirmed.v1",
        "orders.email-sent.v1",
        "orders.order-placed.v1",
        "orders.payment-authorized.v1",
        "orders.points-awarded.v1",
        "orders.shipment-booked.v1",
        "orders.stock-reserved.v1",
    ];
    const CHOREOGRAPHY: [(&str, u64); 3] = [
        ("inventory.order-placed.v1", 1),
        ("payment.order-placed.v1", 1),
        ("shipping.order-confirmed.v1", 1),
    ];
    // Each of the five commands is answered.
    const ORCHESTRATION: [(&str, u64); 8] = [
        ("checkout.order-placed.v1", 1),
        ("checkout.tidings.step-answer.v1", 5),
        ("inventory.reserve-stock.v1", 1),
        ("inventory.ship-stock.v1", 1),
        ("orders.confirm-order.v1", 1),
        ("payment.charge-card.v1", 1),
        ("shipping.book-parcel.v1", 1),
        ("shipping.order-confirmed.v1", 1),
    ];
    const ORDERS: u64 = 5;

    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    for _ in 0..ORDERS {
        let id = shop.order("tok_ok", &[("LAMP-BRASS", 1)]).await;
        let all = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
        shop.happened(&id, &all).await;
    }
    let of_style = style.pick(&CHOREOGRAPHY[..], &ORCHESTRATION[..]);
    let of_all = OF_ALL.map(|queue| (queue, 1));
    let wanted: BTreeMap<String, u64> = of_all
        .iter()
        .chain(of_style)
        .map(|(queue, count)| ((*queue).to_owned(), count * ORDERS))
        .collect();
    let in_all: u64 = wanted.values().sum();
    assert_eq!(in_all, style.pick(12, 21) * ORDERS);
    // What is counted is counted a moment after it is committed.
    let mut counted = BTreeMap::new();
    let all = eventually(SOON, async || {
        counted = handled(&shop.get("/metrics").await.text);
        (counted.values().sum::<u64>() >= in_all).then_some(())
    });
    assert!(all.await.is_some(), "only {counted:?}");
    assert_eq!(counted, wanted);
    shop.stop();
}

/// How many messages of each queue were handled, for the queues that had any. One that came again is
/// not counted: what happens twice by chance is not what an order costs.
fn handled(metrics: &str) -> BTreeMap<String, u64> {
    let counts = metrics.lines().filter_map(|line| {
        let (labels, count) = line
            .strip_prefix("tidings_messages_total{")?
            .split_once("} ")?;
        let queue = labels.split_once("queue=\"")?.1.split_once('"')?.0;
        let is_handled = labels.contains("end=\"handled\"");
        let count: u64 = count.parse().ok()?;
        (is_handled && count > 0).then(|| (queue.to_owned(), count))
    });
    counts.collect()
}

async fn an_order_that_cannot_be_had_is_cancelled_and_undone(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));

    let declined = shop.order("tok_declined", &[("MUG-ENAMEL", 3)]).await;
    let events = [
        "PaymentDeclined",
        "OrderCancelled",
        "StockReleased",
        "EmailSent",
    ];
    let order = shop.happened(&declined, &events).await;
    if style == Style::Orchestration {
        // The saga has undone it, and then said that the order ends.
        let counted = handled(&shop.get("/metrics").await.text);
        let told = ["inventory.release-stock.v1", "orders.cancel-order.v1"];
        assert_eq!(
            told.map(|queue| counted.get(queue)),
            [Some(&1); 2],
            "{counted:?}"
        );
    }
    assert_eq!(order["status"], "CANCELLED");
    assert_eq!(order["reason"], "the card was declined");
    assert_eq!(shop.ledger(&declined).await, [""; 0]);
    assert_eq!(shop.stock("MUG-ENAMEL").await, [100_000, 0, 0]);

    // One of the two is there, the other is not: neither is kept.
    let scarce = shop
        .order("tok_ok", &[("MUG-ENAMEL", 1), ("TELESCOPE-BRASS", 4)])
        .await;
    let events = ["StockRejected", "OrderCancelled", "EmailSent"];
    let order = shop.happened(&scarce, &events).await;
    assert_eq!(order["status"], "CANCELLED");
    assert_eq!(order["reason"], "not enough Pocket telescope in stock");
    // It is cancelled as soon as one of the two says no, before or after the bank was asked. The
    // checkout asks for the goods first.
    match style {
        Style::Choreography => shop.pays_nothing(&scarce).await,
        Style::Orchestration => assert_eq!(shop.ledger(&scarce).await, [""; 0]),
    }
    assert_eq!(shop.stock("MUG-ENAMEL").await, [100_000, 0, 0]);
    assert_eq!(shop.stock("TELESCOPE-BRASS").await, [3, 0, 0]);

    let both = shop.order("tok_declined", &[("GLOBE-ANTIQUE", 1)]).await;
    let reason = shop.ended(&both).await["reason"]
        .as_str()
        .unwrap()
        .to_owned();
    let refusals = ["not enough Antique globe in stock", "the card was declined"];
    let refusals = style.pick(&refusals[..], &refusals[..1]);
    assert!(refusals.contains(&reason.as_str()), "{reason}");
    assert_eq!(shop.points("c-1").await, 0);
    shop.stop();
}

async fn restocked_goods_can_be_sold(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let stock = shop
        .post("/stock/GLOBE-ANTIQUE/restock", &json!({"quantity": 2}))
        .await;
    assert_eq!(stock.json["available"], 2);
    let order = shop.order("tok_ok", &[("GLOBE-ANTIQUE", 2)]).await;
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
    shop.until("/stock/GLOBE-ANTIQUE", |stock| stock["shipped"] == 2)
        .await;
    assert_eq!(shop.stock("GLOBE-ANTIQUE").await, [0, 0, 2]);
    shop.stop();
}

async fn a_bank_that_fails_charges_once(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let flaky = shop.order("tok_flaky", &[("PEN-FOUNTAIN", 1)]).await;
    assert_eq!(shop.ended(&flaky).await["status"], "CONFIRMED");
    assert_eq!(shop.ledger(&flaky).await, ["charge 49.90"]);
    let payment = shop.get(&format!("/payments/{flaky}")).await.json;
    assert_eq!(payment["attempts"], 3);

    // Half of the answers are lost, some after the money was taken, until each order was tried.
    shop.put(
        "/bank/behaviour",
        &json!({"mode": "flaky", "failureRate": 0.5}),
    )
    .await;
    let mut orders = Vec::new();
    for _ in 0..20 {
        orders.push(shop.order("tok_ok", &[("PEN-FOUNTAIN", 1)]).await);
    }
    for order in &orders {
        let was_tried = |payment: &Value| payment["attempts"].as_i64() > Some(0);
        shop.until(&format!("/payments/{order}"), was_tried).await;
    }
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 49.90"]);
    }
    shop.stop();
}

async fn orders_wait_for_a_bank_that_is_down(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    shop.put("/bank/behaviour", &json!({"mode": "down"})).await;
    let order = shop.order("tok_ok", &[("PEN-FOUNTAIN", 1)]).await;
    let path = format!("/payments/{order}");
    let payment = shop
        .until(&path, |payment| payment["attempts"].as_i64() > Some(1))
        .await;
    assert_eq!(payment["status"], "PENDING");
    assert_eq!(
        shop.get(&format!("/orders/{order}")).await.json["status"],
        "CREATED"
    );
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    assert_eq!(shop.ended(&order).await["status"], "CONFIRMED");
    assert_eq!(shop.ledger(&order).await, ["charge 49.90"]);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_places_one_order() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let place = async |key: &str, body: Value| {
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        shop.call(Method::POST, "/orders", &headers, body.to_string())
            .await
    };
    let body = || order("c-key", "tok_ok", &[("MUG-ENAMEL", 1)]);
    let (first, second) = tokio::join!(place("k-1", body()), place("k-1", body()));
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(first.text, second.text);
    let id = first.json["orderId"].as_str().unwrap();
    shop.ended(id).await;
    // Also when the order has moved on.
    assert_eq!(place("k-1", body()).await.text, first.text);

    let other = place("k-1", order("c-key", "tok_ok", &[("MUG-ENAMEL", 2)])).await;
    assert_eq!(other.status, 422);
    assert_eq!(other.json["type"], "/problems/key-reused");
    assert_ne!(place("k-2", body()).await.json["orderId"], id);
    let orders = shop.get("/orders?customerId=c-key").await.json;
    assert_eq!(orders.as_array().unwrap().len(), 2);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_newest_first_in_pages() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let mut placed = Vec::new();
    for _ in 0..5 {
        placed.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    placed.reverse();
    let mut path = "/orders?customerId=c-1&limit=2".to_owned();
    let mut listed = Vec::new();
    loop {
        let page = shop.get(&path).await;
        let orders = page.json.as_array().unwrap();
        listed.extend(
            orders
                .iter()
                .map(|order| order["orderId"].as_str().unwrap().to_owned()),
        );
        match page.header("link").split_once(">; rel=\"next\"") {
            Some((next, "")) => path = next[1..].to_owned(),
            _ => break,
        }
    }
    assert_eq!(listed, placed);
    assert_eq!(shop.get("/orders?customerId=nobody").await.text, "[]");
    shop.stop();
}

async fn an_order_can_be_watched_as_it_moves(style: Style) {
    use std::io::{BufRead, BufReader, Write};

    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let id = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let mut stream = std::net::TcpStream::connect(shop.http).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(
        stream,
        "GET /orders/{id}/events HTTP/1.1\r\nhost: shop\r\n\r\n"
    )
    .unwrap();
    let told = BufReader::new(stream).lines().map(Result::unwrap);
    let confirmed = told
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .find(|order| timeline(order).len() == 7)
        .unwrap();
    assert_eq!(confirmed["status"], "CONFIRMED");
    // A stream that is open does not keep the shop from stopping.
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_of_the_api_is_true() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let described = shop.get("/openapi.json").await.json;
    for (path, operations) in described["paths"].as_object().unwrap() {
        let filled = path
            .replace("{orderId}", "x")
            .replace("{sku}", "x")
            .replace("{customerId}", "x");
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse().unwrap();
            let answer = shop.call(method, &filled, &[], "").await;
            let kind = answer.json["type"].as_str().unwrap_or_default();
            assert!(
                !["/problems/no-route", "/problems/wrong-method"].contains(&kind),
                "{path}: {}",
                answer.text
            );
            let status = answer.status.to_string();
            let responses = operations
                .as_object()
                .unwrap()
                .values()
                .map(|o| &o["responses"]);
            assert!(
                responses
                    .into_iter()
                    .any(|responses| responses.get(&status).is_some()),
                "{path} answers {status}, which is not described"
            );
        }
        let answer = shop.call(Method::DELETE, &filled, &[], "").await;
        assert_eq!(answer.status, 405, "{path}");
    }
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served_with_a_strict_policy() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/style.css", "text/css"),
        ("/shop.js", "text/javascript"),
        ("/live.js", "text/javascript"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        let file = shop.get(path).await;
        assert_eq!(file.status, 200, "{path}");
        assert!(file.header("content-type").starts_with(kind), "{path}");
        assert!(
            file.header("content-security-policy")
                .starts_with("default-src 'none';")
        );
    }
    let products = shop.get("/products").await.json;
    assert!(products.as_array().unwrap().len() >= 12);
    let metrics = eventually(SOON, async || {
        let metrics = shop.get("/metrics").await.text;
        metrics.contains("tidings_").then_some(metrics)
    });
    assert!(metrics.await.is_some());
    assert_eq!(shop.get("/health/live").await.status, 200);
    assert_eq!(shop.get("/health/ready").await.status, 200);
    shop.stop();
}
