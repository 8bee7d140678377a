//! Odd orders: what strangers may publish to `order_events`, by the thousand. Whatever an order is
//! like, nobody pays for what they do not get, nothing is left undecided, no goods vanish, and the
//! next good order passes.
//!
//! The orders come from a seed, which is printed; `TIDINGS_TEST_SEED` gives it back.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::Value;
use tidings_testing::servers::wait_until;

use crate::books;
use crate::odd_order::{Odd, odd_order};
use crate::orders::ledger;
use crate::random::Random;
use crate::world::{BrokerKind, DatabaseKind, ORCHESTRATION, World, good_order};

/// To work everything off, on a machine that is busy.
const DONE_MAX: Duration = Duration::from_secs(240);

/// All that handle messages, in one process, so that a test can stop them together.
const ALL: &str = "orders,payment,inventory,shipping,notification,loyalty,checkout";

/// An order that only one of its readers got (its copies may expire) ends by its deadline.
const DEADLINE: [&str; 2] = ["--order-deadline", "20s"];

#[test]
fn odd_orders_harm_nobody_on_the_broker_in_the_box_and_sqlite() {
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Sqlite, &DEADLINE);
    harm_nobody(world, 1000);
}

#[test]
fn odd_orders_harm_nobody_whom_the_checkout_tells_what_to_do() {
    let flags = [&DEADLINE[..], &ORCHESTRATION].concat();
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Sqlite, &flags);
    harm_nobody(world, 1000);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn odd_orders_harm_nobody_on_the_broker_in_the_box_and_postgresql() {
    let world = World::with_flags(BrokerKind::Embedded, DatabaseKind::Postgres, &DEADLINE);
    harm_nobody(world, 4000);
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn odd_orders_harm_nobody_on_rabbitmq_and_postgresql() {
    let world = World::with_flags(BrokerKind::RabbitMq, DatabaseKind::Postgres, &DEADLINE);
    harm_nobody(world, 1000);
}

fn harm_nobody(mut world: World, count: usize) {
    let mut random = Random::from_environment();
    let shop = world.start(ALL);
    let mut times_published = BTreeMap::new();
    let mut orders = Vec::new();
    for number in 0..count {
        let known: Vec<&String> = times_published.keys().collect();
        let order = odd_order(&mut random, number, &known);
        for id in &order.ids {
            *times_published.entry(id.clone()).or_insert(0_usize) += 1;
        }
        orders.push(order);
    }
    publish(&world, &orders);

    settle(&mut world, shop);
    let good = world.place(&good_order("after-odd"), "after the odd orders");
    world.wait_for_all(std::slice::from_ref(&good), "CONFIRMED", DONE_MAX);
    settle(&mut world, shop);

    let mut ends = BTreeMap::new();
    for (id, times) in &times_published {
        // What waits in a service's store for its next attempt is in no queue: an order has ended
        // when its books say so.
        let mut end = check(&world, id, *times == 1);
        let ended = wait_until("an order to end well", DONE_MAX, || {
            end = check(&world, id, *times == 1);
            end.is_ok()
        });
        let end = end.unwrap_or_else(|why| panic!("{why}\n{}", world.log(shop)));
        ended.unwrap();
        *ends.entry(end).or_insert(0) += 1;
    }
    println!(
        "{count} odd orders, {} ids: {ends:?}",
        times_published.len()
    );
    for end in ["CONFIRMED", "CANCELLED", "unknown"] {
        assert!(ends.contains_key(end), "no order was {end}: {ends:?}");
    }
    assert_eq!(world.get("/orders?status=stuck"), Value::Array(Vec::new()));
    books::goods_are_all_there(&world);
    assert_eq!(ledger(&world, &good), [("charge".to_owned(), 12.9)]);
}

/// What must be true of an order when everything has come to rest. Says how it ended, or what is
/// wrong.
fn check(world: &World, id: &str, is_published_once: bool) -> Result<String, String> {
    let in_path = encoded(id);
    let booked = ledger(world, &in_path);
    let of_kind = |kind: &str| -> Vec<f64> {
        let of_kind = booked.iter().filter(|(k, _)| k == kind);
        of_kind.map(|(_, amount)| *amount).collect()
    };
    let (charges, refunds) = (of_kind("charge"), of_kind("refund"));
    let paths = [format!("/orders/{in_path}"), format!("/payments/{in_path}")];
    let [order, payment] = paths.map(|path| world.try_get(&path).unwrap());
    let about = format!("{id:?}: {order}; payment {payment}; ledger {booked:?}");
    let end = match order.status {
        404 => "unknown".to_owned(),
        _ => order.json()["status"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    };
    let is_right = match end.as_str() {
        "CONFIRMED" => {
            let amount = order.json()["amount"].as_f64().unwrap();
            let is_paid = charges.len() == 1 && refunds.is_empty();
            is_paid && (!is_published_once || charges == [amount])
        }
        "CANCELLED" | "unknown" => charges == refunds,
        _ => false,
    };
    // This would not mend itself.
    assert!(
        charges.len() <= 1 && refunds.len() <= charges.len(),
        "{about}"
    );
    if is_right { Ok(end) } else { Err(about) }
}

/// Waits until no message waits or is being handled, and leaves the shop running. What is being
/// handled is back in its queue when the services are stopped: only then can it be counted.
fn settle(world: &mut World, shop: usize) {
    let deadline = std::time::Instant::now() + DONE_MAX;
    loop {
        let quiet = wait_until("all queues to be empty", DONE_MAX, || {
            waiting(world).is_none()
        });
        quiet.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", waiting(world), world.log(shop)));
        let open = wait_until("all orders to end", DONE_MAX, || {
            world.get("/orders?status=stuck") == Value::Array(Vec::new())
        });
        open.unwrap_or_else(|error| panic!("{error}: {}", world.get("/orders?status=stuck")));
        world.stop(shop);
        let left = waiting(world);
        world.restart(shop);
        match left {
            None => return,
            Some(left) if std::time::Instant::now() > deadline => panic!("still waiting: {left:?}"),
            Some(_) => {}
        }
    }
}

/// A queue in which a message waits for a handler or for its next attempt.
fn waiting(world: &World) -> Option<(String, u32)> {
    let style = world.style();
    let topologies = [
        shop_orders::topology(),
        shop_payment::topology(style),
        shop_inventory::topology(style),
        shop_shipping::topology(),
        shop_notification::topology(),
        shop_loyalty::topology(),
        shop_checkout::topology(style),
    ];
    let queues = topologies.into_iter().flat_map(|topology| topology.queues);
    let names = queues.flat_map(|queue| {
        let retries = queue
            .delays
            .iter()
            .map(|delay| format!("{}.retry.{}", queue.name, delay.as_millis()));
        let retries: Vec<_> = retries.collect();
        std::iter::once(queue.name.to_string()).chain(retries)
    });
    let mut depths = names.map(|name| {
        let depth = world.depth(&name).unwrap_or_default();
        (name, depth)
    });
    depths.find(|(_, depth)| *depth > 0)
}

fn publish(world: &World, orders: &[Odd]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let url = world.broker_url();
        let connection = Connection::connect(&url, ConnectionProperties::default());
        let connection = connection.await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        for Odd {
            body, properties, ..
        } in orders
        {
            let confirm = channel.basic_publish(
                "order_events".into(),
                "".into(),
                BasicPublishOptions::default(),
                body,
                properties.clone(),
            );
            let confirm = confirm.await.unwrap().await;
            confirm.unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(body)));
        }
        connection.close(200, "done".into()).await.unwrap();
    });
}

/// Percent-encoded, for a path.
fn encoded(id: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    id.bytes().map(byte).collect()
}

/// Headers that a stranger may send: tables in tables, and values where texts are expected.
pub(crate) fn odd_headers(random: &mut Random) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut inner = FieldTable::default();
    for depth in 0..random.below(12) {
        let mut outer = FieldTable::default();
        outer.insert(
            format!("level-{depth}").into(),
            AMQPValue::FieldTable(inner),
        );
        inner = outer;
    }
    let mut headers = FieldTable::default();
    let names = [
        "cloudEvents:id",
        "cloudEvents:source",
        "cloudEvents:type",
        "cloudEvents:partitionkey",
        "cloudEvents:time",
        "cloudEvents_subject",
        "tidings-reason",
        "something",
    ];
    for _ in 0..random.below(4) {
        let value = match random.below(6) {
            0 => AMQPValue::FieldTable(inner.clone()),
            1 => AMQPValue::LongLongInt(i64::MIN),
            2 => text("a\u{0}b"),
            3 => text(&"x".repeat(5000)),
            4 => AMQPValue::Boolean(true),
            _ => text("orders"),
        };
        headers.insert((*random.one_of(&names)).into(), value);
    }
    BasicProperties::default().with_headers(headers)
}
