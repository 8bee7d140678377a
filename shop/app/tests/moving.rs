//! A shop that changes its broker while customers place orders: copies run on both for a while, and what the
//! old broker still has is moved.

mod common;

use std::{path::Path, time::Duration};

use common::Shop;
use tidings::{
    Transport,
    handlers::{self, HandlerRecord, ServiceRecord},
    moving::{Place, move_all},
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_sqlite::SqliteOptions;
use tidings_testing::servers::rabbitmq_url;
use tokio::{sync::watch, time::Instant};

const ORDERS: usize = 60;
/// How long nothing must have come before the old broker counts as empty.
const IDLE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_moves_to_another_broker_in_the_box_while_orders_are_placed() {
    let new = Broker::start(Options::ephemeral()).await.unwrap();
    a_shop_moves(&new.amqp_url()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_shop_moves_to_rabbitmq_while_orders_are_placed() {
    a_shop_moves(&rabbitmq_url()).await;
}

async fn a_shop_moves(new: &str) {
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let old = broker.amqp_url();
    let data = tempfile::tempdir().unwrap();
    let before = Shop::start(data.path(), &["--broker", &old]);
    let mut orders = Vec::new();
    for _ in 0..ORDERS / 4 {
        orders.push(before.order("tok_flaky", &[("MUG-ENAMEL", 1)]).await);
    }

    let after = Shop::start(data.path(), &["--broker", new]);
    let (stopped, old_is_left) = watch::channel(false);
    let (folder, from, to) = (data.path().to_owned(), old.clone(), new.to_owned());
    let moving =
        tokio::spawn(async move { move_what_waits(&folder, &from, &to, old_is_left).await });
    for number in 0..ORDERS / 2 {
        let shop = if number % 2 == 0 { &before } else { &after };
        orders.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    before.stop();
    stopped.send(true).unwrap();
    while orders.len() < ORDERS {
        orders.push(after.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    moving.await.unwrap();
    drop(broker);

    for order in &orders {
        assert_eq!(after.ended(order).await["status"], "CONFIRMED", "{order}");
        assert_eq!(after.ledger(order).await, ["charge 12.90"]);
        let all = ["ShipmentBooked", "EmailSent", "PointsAwarded"];
        after.happened(order, &all).await;
    }
    let shipped = ORDERS as i64;
    after
        .until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == shipped)
        .await;
    after
        .until("/loyalty/c-1", |loyalty| loyalty["points"] == 12 * shipped)
        .await;
    assert_eq!(
        after.stock("MUG-ENAMEL").await,
        [100_000 - shipped, 0, shipped]
    );
    after.stop();
}

/// As `tidings move --follow` does, until nobody uses the old broker any more and nothing comes.
async fn move_what_waits(data: &Path, from: &str, to: &str, old_is_left: watch::Receiver<bool>) {
    let (handlers, services) = written_down(data).await;
    assert!(services.len() >= 6, "services: {services:?}");
    let places = Place::of(&handlers::topology(&handlers, &services));
    let from = Amqp::connect(from).await.unwrap();
    let to = Amqp::connect(to).await.unwrap();
    let mut last = Instant::now();
    while !*old_is_left.borrow() || last.elapsed() < IDLE {
        for place in &places {
            if move_all(&from, &to, place, |_| ()).await.unwrap() > 0 {
                last = Instant::now();
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    from.close().await;
    to.close().await;
}

async fn written_down(data: &Path) -> (Vec<HandlerRecord>, Vec<ServiceRecord>) {
    let (mut handlers, mut services) = (Vec::new(), Vec::new());
    for file in std::fs::read_dir(data.join("db")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|it| it == "db") {
            let store = SqliteOptions::new(file).read_only().open().await.unwrap();
            handlers.extend(handlers::list(&store).await.unwrap());
            services.extend(handlers::services(&store).await.unwrap());
        }
    }
    (handlers, services)
}
