//! Programs with nothing but an AMQP client take part: bare JSON in and out of `order_events`.

#[macro_use]
mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{SOON, Shop, Style, eventually};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;

in_both_styles! {
    a_bare_order_is_charged_once_however_often_it_is_published
    an_order_is_known_whoever_claims_to_have_sent_it
    a_broken_order_is_a_dead_letter_and_the_next_one_passes
    a_queue_of_ones_own_gets_the_orders_of_the_shop
    a_full_queue_of_a_stranger_holds_up_no_order_and_gets_everything_in_the_end
}

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
    publish_as(channel, body, BasicProperties::default()).await;
}

async fn publish_as(channel: &Channel, body: &str, properties: BasicProperties) {
    channel
        .basic_publish(
            EXCHANGE.into(),
            "".into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            properties,
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

async fn a_bare_order_is_charged_once_however_often_it_is_published(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
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

async fn an_order_is_known_whoever_claims_to_have_sent_it(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let (_connection, channel) = connect(&shop).await;
    let claims = BasicProperties::default().with_app_id("orders".into());
    publish_as(&channel, &bare("ORD-200"), claims).await;
    let mut headers = FieldTable::default();
    let source = lapin::types::AMQPValue::LongString("orders".into());
    headers.insert("cloudEvents:source".into(), source);
    let claims = BasicProperties::default().with_headers(headers);
    publish_as(&channel, &bare("ORD-201"), claims).await;
    for order in ["ORD-200", "ORD-201"] {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 99.99"]);
    }
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeline_is_in_the_order_of_hearing_whatever_clocks_say() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &["--services", "orders,bank"]);
    let (_connection, channel) = connect(&shop).await;
    // Somebody whose clock is years behind answers for payment and inventory.
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let answer = async |topic: &str, body: String, time: &str| {
        let mut headers = FieldTable::default();
        let time = lapin::types::AMQPValue::LongString(time.into());
        headers.insert("cloudEvents:time".into(), time);
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish(
            topic.into(),
            "".into(),
            options,
            body.as_bytes(),
            properties,
        );
        confirm.await.unwrap().await.unwrap();
    };
    let paid = format!(r#"{{"orderId": "{order}", "amount": 12.90}}"#);
    answer("payment-authorized.v1", paid, "2031-01-01T00:00:00Z").await;
    shop.happened(&order, &["PaymentAuthorized"]).await;
    let reserved = format!(r#"{{"orderId": "{order}"}}"#);
    answer("stock-reserved.v1", reserved, "2001-01-01T00:00:00Z").await;
    let ended = shop.ended(&order).await;
    let heard = [
        "OrderPlaced",
        "PaymentAuthorized",
        "StockReserved",
        "OrderConfirmed",
    ];
    assert_eq!(common::timeline(&ended), heard);
    assert_eq!(ended["timeline"][2]["at"], "2001-01-01T00:00:00Z");
    shop.stop();
}

async fn a_broken_order_is_a_dead_letter_and_the_next_one_passes(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let (_connection, channel) = connect(&shop).await;
    publish(&channel, "this is not json").await;
    publish(&channel, r#"{"orderId": "ORD-1", "amount": 99.99}"#).await;
    publish(&channel, &bare("ORD-2").replace("99.99", "-99.99")).await;
    publish(&channel, &bare("ORD-3")).await;
    assert_eq!(shop.ended("ORD-3").await["status"], "CONFIRMED");
    let consumers = style.pick(
        &["payment", "inventory", "orders"][..],
        &["checkout", "orders"][..],
    );
    for consumer in consumers {
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

async fn a_queue_of_ones_own_gets_the_orders_of_the_shop(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
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

/// The stranger listens to everything that an order needs, and takes nothing more.
async fn a_full_queue_of_a_stranger_holds_up_no_order_and_gets_everything_in_the_end(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    let (_connection, channel) = connect(&shop).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    let overflow = AMQPValue::LongString("reject-publish".into());
    arguments.insert("x-overflow".into(), overflow);
    let (options, queue) = (QueueDeclareOptions::default(), "stranger");
    let declared = channel.queue_declare(queue.into(), options, arguments);
    declared.await.unwrap();
    for topic in [
        EXCHANGE,
        "stock-reserved.v1",
        "payment-authorized.v1",
        "order-confirmed.v1",
    ] {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let bound = channel.queue_bind(queue.into(), topic.into(), "".into(), options, none);
        bound.await.unwrap();
    }

    let mut orders = BTreeSet::new();
    for _ in 0..20 {
        orders.insert(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    assert_eq!(messages_in(&channel, queue).await, 1, "it is still full");

    // Now it reads, and hears of each order all that it missed.
    let options = BasicConsumeOptions {
        no_ack: true,
        ..Default::default()
    };
    let reading = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut reading = reading.await.unwrap();
    let mut heard: BTreeSet<(String, String)> = BTreeSet::new();
    while heard.len() < orders.len() * 4 {
        let next = tokio::time::timeout(SOON, reading.next()).await;
        let Ok(Some(message)) = next else {
            panic!("it heard {} of 80 facts: {heard:?}", heard.len());
        };
        let message = message.unwrap();
        let body: Value = serde_json::from_slice(&message.data).unwrap();
        let order_id = body["orderId"].as_str().unwrap();
        heard.insert((order_id.to_owned(), message.exchange.to_string()));
    }
    // What was sent again for it is nothing new to the others.
    for order in &orders {
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    assert_eq!(shop.stock("MUG-ENAMEL").await, [99_980, 0, 20]);
    shop.stop();
}
