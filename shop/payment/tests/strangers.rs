//! Whatever a stranger publishes to `order_events` is charged once, or refused and never charged.

mod world;

use shop_contracts::{ITEM_QUANTITY_MAX, ORDER_ITEMS_MAX};
use shop_kit::Database;
use tidings_testing::servers::Postgres;

use world::{World, gate::Call::Charge, until};

/// An order with `more` fields.
fn order(more: &str) -> String {
    format!(
        r#"{{"orderId": "o-1", "amount": 99.99, "timestamp": "2026-11-23T12:00:00Z",
            "status": "CREATED"{more}}}"#
    )
}

fn refused() -> Vec<String> {
    let plain = order("");
    let with = |old: &str, new: &str| plain.replace(old, new);
    let line = r#"{"sku": "x", "quantity": 1}"#;
    let lines = vec![line; ORDER_ITEMS_MAX + 1].join(",");
    vec![
        "not json".into(),
        with("CREATED", "CANCELLED"),
        with("CREATED", "CONFIRMED"),
        with("99.99", "-1"),
        with("99.99", "0"),
        with("99.99", "1e300"),
        with("99.99", "0.001"),
        with("99.99", "\"99.99\""),
        with("o-1", ""),
        with("o-1", "o\\u0000-1"),
        with("o-1", &"o".repeat(65)),
        order(r#", "customerId": "a\u0000b""#),
        order(r#", "email": "a@b.c\r\nBcc: d@e.f""#),
        order(r#", "card": "tok\u0000_ok""#),
        order(r#", "items": [{"sku": "\u0000", "quantity": 1}]"#),
        order(&format!(
            r#", "items": [{{"sku": "x", "quantity": {}}}]"#,
            ITEM_QUANTITY_MAX + 1
        )),
        order(&format!(r#", "items": [{lines}]"#)),
    ]
}

async fn check(database: Database) {
    let world = World::new(database).await;
    let bodies = refused();
    for (number, body) in bodies.iter().enumerate() {
        world.publish_bare(body).await;
        until(body, async || {
            world.service.dead_letters().len() == number + 1
        })
        .await;
    }
    assert_eq!(world.gate.count(Charge), 0);

    for _ in 0..3 {
        world.publish_bare(order("")).await;
        world
            .publish_bare(order(r#", "customerId": "", "items": []"#))
            .await;
    }
    world.service.until_quiet().await;
    assert_eq!(world.service.dead_letters().len(), bodies.len());
    assert_eq!(world.ledger("o-1").await, ["charge"]);
    assert_eq!(world.service.said_of("o-1"), ["payment-authorized"]);
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stranger_publishes_is_charged_once_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    check(Database::Sqlite(folder.path().into())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn the_same_on_postgresql() {
    let server = Postgres::start().unwrap();
    check(Database::Postgres(server.url())).await;
}
