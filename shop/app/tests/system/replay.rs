//! A service that is added to a running shop works off the past: the orders that were confirmed while
//! the shop did without it.

use std::{sync::Arc, time::Duration};

use tidings::{
    Store,
    replay::{Progress, Replay, ReplayError},
};
use tidings_amqp::Amqp;
use tidings_postgres::PostgresStore;
use tidings_sqlite::SqliteStore;
use tidings_testing::servers::wait_until;
use tokio::{runtime::Runtime, time::timeout};

use crate::world::{World, good_order};

const SOON: Duration = Duration::from_secs(60);
const QUEUE: &str = "loyalty.order-confirmed.v1";

/// Orders from before, each of 12.90.
const ORDERS: usize = 40;
const POINTS: i64 = 12;

/// Replays what orders has sent, as an operator's command does: beside the shop, which runs.
async fn replay(world: &World, rate: u32) -> Result<Progress, ReplayError> {
    let store: Arc<dyn Store> = match world.postgres_url() {
        Some(url) => PostgresStore::connect(url, "orders").await.unwrap().into(),
        None => {
            let orders = world.all_of("orders")[0];
            let path = world.data(orders).join("db/orders.db");
            SqliteStore::open(path).await.unwrap().into()
        }
    };
    let amqp = Amqp::connect(&world.broker_url()).await.unwrap();
    Replay::to(QUEUE)
        .rate(rate)
        .run(&*store, &amqp, |_| {})
        .await
}

fn points(world: &World, customer: &str) -> i64 {
    let loyalty = world.get(&format!("/loyalty/{customer}"));
    loyalty["points"].as_i64().expect("a number")
}

fn wait_for_points(world: &World, customer: &str, expected: usize) {
    let expected = POINTS * expected as i64;
    let has_all = || points(world, customer) == expected;
    wait_until("loyalty to give the points", SOON, has_all)
        .unwrap_or_else(|error| panic!("{error}: {}", points(world, customer)));
}

/// What the order's timeline says of points: each award is told once.
fn awards(world: &World, order: &str) -> usize {
    let order = world.get(&format!("/orders/{order}"));
    let timeline = order["timeline"].as_array().expect("a timeline").iter();
    timeline.filter(|it| it["event"] == "PointsAwarded").count()
}

pub(crate) fn a_newcomer_works_off_the_past(world: &mut World) {
    let runtime = Runtime::new().unwrap();
    let orders: Vec<String> = (0..ORDERS)
        .map(|number| world.place(&good_order("early"), &format!("early {number}")))
        .collect();
    world.wait_for_all(&orders, "CONFIRMED", SOON);

    // Nobody is told of the past who has no queue yet.
    let error = runtime.block_on(replay(world, 1000)).unwrap_err();
    assert!(error.is_no_queue(), "{error}");
    let mails = |world: &World| -> usize {
        let of_order = |id: &String| {
            let mails = world.get(&format!("/emails?orderId={id}"));
            mails.as_array().map_or(0, Vec::len)
        };
        orders.iter().map(of_order).sum()
    };
    wait_until("everybody to have a mail", SOON, || mails(world) == ORDERS).unwrap();

    let loyalty = world.start("loyalty");
    let late = world.place(&good_order("late"), "with loyalty");
    wait_for_points(world, "late", 1);
    assert_eq!(points(world, "early"), 0, "nobody has told it of the past");

    // Stopped in the middle, as by a crash, and started again.
    let part = Duration::from_millis(1500);
    let stopped = runtime.block_on(async { timeout(part, replay(world, 10)).await });
    assert!(stopped.is_err(), "it was to be stopped before it ended");
    world.kill9(loyalty);
    let ended = runtime.block_on(replay(world, 1000)).unwrap();
    assert!(ended.is_done && ended.sent as usize > ORDERS, "{ended:?}");
    world.restart(loyalty);
    wait_for_points(world, "early", ORDERS);

    // And once more, all of it.
    let again = runtime.block_on(replay(world, 1000)).unwrap();
    assert_eq!(again.sent as usize, ORDERS + 1, "{again:?}");
    wait_until("loyalty to have handled it", SOON, || {
        world.depth(QUEUE) == Some(0)
    })
    .unwrap();
    let last = world.place(&good_order("last"), "after the replays");
    wait_for_points(world, "last", 1);
    assert_eq!(points(world, "early"), POINTS * ORDERS as i64);
    assert_eq!(points(world, "late"), POINTS);

    // It told of each once, and nobody else has heard anything again.
    for order in orders.iter().chain([&late, &last]) {
        wait_until("the timeline to say so", SOON, || awards(world, order) >= 1).unwrap();
        assert_eq!(awards(world, order), 1, "{order}");
    }
    assert_eq!(mails(world), ORDERS, "nobody is written to again");
    world.stop(loyalty);
}
