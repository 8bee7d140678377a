//! A shop changes its style (`--checkout`) while orders are under way: each order ends as it began, and one
//! that both styles get hold of is charged, reserved and sent once.

mod common;

use common::{SOON, Shop, Style, eventually, timeline};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::json;

const MUG: &str = "MUG-ENAMEL";

/// What happens to an order that ends well, whoever leads it.
const ALL: [&str; 7] = [
    "OrderPlaced",
    "StockReserved",
    "PaymentAuthorized",
    "OrderConfirmed",
    "ShipmentBooked",
    "EmailSent",
    "PointsAwarded",
];

/// It is confirmed, and everything was done for it once; `mugs` have been sold by now.
async fn ended_well(shop: &Shop, order: &str, mugs: i64) {
    let ended = shop.happened(order, &ALL).await;
    assert_eq!(ended["status"], "CONFIRMED", "{ended}");
    assert_eq!(timeline(&ended).len(), ALL.len(), "{ended}");
    assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    // Another order, which is cancelled, may have one for a moment.
    shop.until(&format!("/stock/{MUG}"), |stock| {
        stock["shipped"] == mugs && stock["reserved"] == 0
    })
    .await;
    assert_eq!(shop.stock(MUG).await, [100_000 - mugs, 0, mugs]);
    let mails = shop.get(&format!("/emails?orderId={order}")).await.json;
    assert_eq!(mails.as_array().unwrap().len(), 1, "{mails}");
}

/// How many messages of each of these queues were handled.
async fn handled<const N: usize>(shop: &Shop, queues: [&str; N]) -> [u64; N] {
    let metrics = shop.get("/metrics").await.text;
    queues.map(|queue| {
        let of_queue = metrics.lines().filter(|line| {
            let label = format!("queue=\"{queue}\"");
            line.starts_with("tidings_messages_total{")
                && line.contains("end=\"handled\"")
                && line.contains(&label)
        });
        let counts = of_queue.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        counts.sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_nobody_led_end_by_the_answers_of_the_services() {
    let data = tempfile::tempdir().unwrap();
    // Payment has answered, and inventory has not: its order waits in its queue.
    let services = ["--services", "orders,payment,bank"];
    let shop = Shop::start(data.path(), &Style::Choreography.flags(&services));
    let order = shop.order("tok_ok", &[(MUG, 1)]).await;
    shop.happened(&order, &["PaymentAuthorized"]).await;
    shop.stop();

    let shop = Shop::start(data.path(), &Style::Orchestration.flags(&[]));
    ended_well(&shop, &order, 1).await;
    let queues = [
        "inventory.order-placed.v1",
        "payment.order-placed.v1",
        "checkout.order-placed.v1",
    ];
    assert_eq!(handled(&shop, queues).await, [1, 0, 0]);
    // What is placed from now on is led, and nobody else begins with it.
    let order = shop.order("tok_ok", &[(MUG, 1)]).await;
    ended_well(&shop, &order, 2).await;
    assert_eq!(handled(&shop, queues).await, [1, 0, 1]);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_led_end_by_their_saga() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &Style::Orchestration.flags(&[]));
    shop.put("/bank/behaviour", &json!({"mode": "down"})).await;
    let order = shop.order("tok_ok", &[(MUG, 1)]).await;
    let path = format!("/payments/{order}");
    shop.until(&path, |payment| payment["attempts"].as_i64() > Some(0))
        .await;
    shop.stop();

    let shop = Shop::start(data.path(), &Style::Choreography.flags(&[]));
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    ended_well(&shop, &order, 1).await;
    let queues = [
        "orders.confirm-order.v1",
        "payment.order-placed.v1",
        "checkout.order-placed.v1",
    ];
    assert_eq!(handled(&shop, queues).await, [1, 0, 0]);
    let order = shop.order("tok_ok", &[(MUG, 1)]).await;
    ended_well(&shop, &order, 2).await;
    assert_eq!(handled(&shop, queues).await, [1, 1, 0]);
    shop.stop();
}

/// A foreign program publishes an order again after the change: the first copy waits for payment and
/// inventory, the second one goes to the checkout.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_both_styles_get_hold_of_has_its_effects_once() {
    let data = tempfile::tempdir().unwrap();
    let services = ["--services", "orders,bank"];
    let shop = Shop::start(data.path(), &Style::Choreography.flags(&services));
    let (_connection, channel) = connect(&shop).await;
    for order in ["twice", "poor", "too-much"] {
        publish(&channel, order).await;
    }
    for order in ["twice", "poor", "too-much"] {
        shop.until(&format!("/orders/{order}"), |it| it["status"] == "CREATED")
            .await;
    }
    shop.stop();

    // Nobody does anything yet, and each queue has its copy.
    let shop = Shop::start(data.path(), &Style::Orchestration.flags(&services));
    let (_connection, channel) = connect(&shop).await;
    for order in ["twice", "poor", "too-much"] {
        publish(&channel, order).await;
    }
    for queue in ["payment", "inventory", "checkout"] {
        let queue = format!("{queue}.order-placed.v1");
        let all = eventually(SOON, async || {
            (messages_in(&channel, &queue).await == 3).then_some(())
        });
        assert!(
            all.await.is_some(),
            "{}",
            messages_in(&channel, &queue).await
        );
    }
    shop.stop();

    let shop = Shop::start(data.path(), &Style::Orchestration.flags(&[]));
    ended_well(&shop, "twice", 1).await;
    for (order, reason) in [
        ("poor", "the card was declined"),
        ("too-much", "not enough Pocket telescope in stock"),
    ] {
        assert_eq!(shop.ended(order).await["reason"], reason, "{order}");
    }
    let (_connection, channel) = connect(&shop).await;
    let queues = [
        "payment.order-placed.v1",
        "inventory.order-placed.v1",
        "checkout.order-placed.v1",
        "checkout.tidings.step-answer.v1",
    ];
    let quiet = eventually(SOON, async || {
        for queue in queues {
            if messages_in(&channel, queue).await > 0 {
                return None;
            }
        }
        Some(())
    });
    assert!(quiet.await.is_some(), "not everything was handled");
    for order in ["poor", "too-much"] {
        shop.pays_nothing(order).await;
    }
    let untouched = |stock: &serde_json::Value| stock["reserved"] == 0;
    shop.until(&format!("/stock/{MUG}"), untouched).await;
    shop.until("/stock/TELESCOPE-BRASS", untouched).await;
    assert_eq!(shop.stock(MUG).await, [99_999, 0, 1]);
    assert_eq!(shop.points("c-2").await, 12);
    shop.stop();
}

async fn connect(shop: &Shop) -> (Connection, Channel) {
    let url = shop.amqp_url();
    let connection = Connection::connect(&url, ConnectionProperties::default());
    let connection = connection.await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let none = FieldTable::default();
    let declared =
        channel.exchange_declare("order_events".into(), ExchangeKind::Fanout, durable, none);
    declared.await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, order_id: &str) {
    let (sku, quantity) = match order_id {
        "too-much" => ("TELESCOPE-BRASS", 4),
        _ => (MUG, 1),
    };
    let card = match order_id {
        "poor" => "tok_declined",
        _ => "tok_ok",
    };
    let body = json!({
        "orderId": order_id, "amount": 12.90, "timestamp": "2026-11-23T12:00:00Z",
        "status": "CREATED", "customerId": "c-2", "email": "ada@example.org", "card": card,
        "items": [{"sku": sku, "quantity": quantity}],
    });
    let body = body.to_string();
    let confirm = channel.basic_publish(
        "order_events".into(),
        "".into(),
        BasicPublishOptions::default(),
        body.as_bytes(),
        // The broker is stopped meanwhile.
        BasicProperties::default().with_delivery_mode(2),
    );
    confirm.await.unwrap().await.unwrap();
}

async fn messages_in(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
    declared.await.unwrap().message_count()
}
