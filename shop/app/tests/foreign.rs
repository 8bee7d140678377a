//! Programs with nothing but an AMQP client take part: bare JSON in and out of `order_events`.

mod common;

use std::time::Duration;

use common::{SOON, Shop, eventually};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::Value;

const EXCHANGE: &str = "order_events";

async fn connect(shop: &Shop) -> (Connection, Channel) {
    let url = shop.amqp_url();
    let connection = Connection::connect(&url, ConnectionProperties::default());
    let connection = connection.await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .exchange_declare(
            EXCHANGE.into(),
            ExchangeKind::Fanout,
            durable,
            FieldTable::default(),
        )
        .await
        .unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, body: &str) {
    channel
        .basic_publish(
            EXCHANGE.into(),
            "".into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        )
        .await
        .unwrap()
        .await
        .unwrap();
}

fn bare(order_id: &str) -> String {
    format!(
        r#"{{"orderId": "{order_id}", "amount": 99.99,
            "timestamp": "2026-11-23T12:00:00.000Z", "status": "CREATED"}}"#
    )
}

async fn messages_in(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare(queue.into(), passive, FieldTable::default())
        .await;
    queue.unwrap().message_count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_order_is_charged_once_however_often_it_is_published() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let (_connection, channel) = connect(&shop).await;
    for _ in 0..5 {
        publish(&channel, &bare("ORD-123")).await;
    }
    let order = shop.ended("ORD-123").await;
    assert_eq!(order["status"], "CONFIRMED");
    publish(&channel, &bare("ORD-123")).await;
    publish(&channel, &bare("ORD-124")).await;
    shop.ended("ORD-124").await;
    assert_eq!(shop.ledger("ORD-123").await, ["charge 99.99"]);
    assert_eq!(shop.ledger("ORD-124").await, ["charge 99.99"]);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_order_is_a_dead_letter_and_the_next_one_passes() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let (_connection, channel) = connect(&shop).await;
    publish(&channel, "this is not json").await;
    publish(&channel, r#"{"orderId": "ORD-1", "amount": 99.99}"#).await;
    publish(&channel, &bare("ORD-2").replace("99.99", "-99.99")).await;
    publish(&channel, &bare("ORD-3")).await;
    assert_eq!(shop.ended("ORD-3").await["status"], "CONFIRMED");
    for consumer in ["payment", "inventory", "orders"] {
        let dead = format!("{consumer}.order-placed.v1.dead");
        let all = eventually(SOON, async || {
            (messages_in(&channel, &dead).await == 3).then_some(())
        });
        assert!(
            all.await.is_some(),
            "{dead} has {}",
            messages_in(&channel, &dead).await
        );
    }
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_ones_own_gets_the_orders_of_the_shop() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let (_connection, channel) = connect(&shop).await;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let own = "audit";
    channel
        .queue_declare(own.into(), durable, FieldTable::default())
        .await
        .unwrap();
    channel
        .queue_bind(
            own.into(),
            EXCHANGE.into(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let id = shop.order("tok_ok", &[("LAMP-BRASS", 1)]).await;
    let delivery = eventually(Duration::from_secs(20), async || {
        let got = channel
            .basic_get(own.into(), BasicGetOptions { no_ack: true })
            .await;
        got.unwrap()
    });
    let delivery = delivery.await.expect("the order did not come");
    let text = String::from_utf8(delivery.data.to_vec()).unwrap();
    assert!(text.contains(r#""amount":99.99"#), "{text}");
    let order: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(order["orderId"], id);
    assert_eq!(order["status"], "CREATED");
    assert!(order["timestamp"].is_string());
    shop.stop();
}
