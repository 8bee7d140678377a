//! An order and its cancellation, in every order of things and at the same time: in the end a
//! cancelled order has nothing put aside, and nothing is put back twice.

mod world;

use shop_contracts::product;
use shop_kit::Database;
use tidings_postgres::tokio_postgres::{self, Client, NoTls};
use tidings_testing::servers::Postgres;

use world::{Stock, World, until};

use Step::*;

const TEA: &str = "TEA-SENCHA";
const MUG: &str = "MUG-ENAMEL";
/// There is none of it.
const GLOBE: &str = "GLOBE-ANTIQUE";

#[derive(Debug, Clone, Copy)]
enum Step {
    /// An order of three mugs and a tea is placed.
    Place,
    /// The same with a globe, of which there is none.
    PlaceMissing,
    Cancel,
    Confirm,
    /// Waits until the reservation has a status.
    Until(&'static str),
    /// Waits until everything is handled.
    Quiet,
    /// Inventory no longer knows which messages it has handled.
    ForgetInbox,
}

/// How the reservation ends, how many mugs are reserved and shipped then, and what was said.
type End = (&'static str, i64, i64, &'static [&'static str]);

#[rustfmt::skip]
const STORIES: &[(&str, &[Step], End)] = &[
    ("an order is placed", &[Place], ("RESERVED", 3, 0, &["stock-reserved"])),
    ("it is confirmed",
        &[Place, Until("RESERVED"), Confirm],
        ("SHIPPED", 0, 3, &["stock-reserved"])),
    ("the order, then its cancellation",
        &[Place, Until("RESERVED"), Cancel],
        ("RELEASED", 0, 0, &["stock-reserved", "stock-released"])),
    ("the cancellation, then the order",
        &[Cancel, Until("CANCELLED"), Place],
        ("CANCELLED", 0, 0, &[])),
    ("the cancellation, then an order of something that is missing",
        &[Cancel, Until("CANCELLED"), PlaceMissing],
        ("CANCELLED", 0, 0, &[])),
    ("a rejected order is cancelled",
        &[PlaceMissing, Until("REJECTED"), Cancel],
        ("REJECTED", 0, 0, &["stock-rejected"])),
    ("both come again",
        &[Place, Until("RESERVED"), Cancel, Quiet, Place, Cancel],
        ("RELEASED", 0, 0, &["stock-reserved", "stock-released"])),
    ("both come again when the inbox has forgotten them",
        &[Place, Until("RESERVED"), Cancel, Quiet, ForgetInbox, Place, Cancel],
        ("RELEASED", 0, 0, &["stock-reserved", "stock-released"])),
    ("the order comes again when the inbox has forgotten it",
        &[Place, Quiet, ForgetInbox, Place],
        ("RESERVED", 3, 0, &["stock-reserved"])),
    ("the cancellation comes again when the inbox has forgotten it",
        &[Cancel, Quiet, ForgetInbox, Cancel, Quiet, Place],
        ("CANCELLED", 0, 0, &[])),
    ("what is shipped stays shipped",
        &[Place, Until("RESERVED"), Confirm, Until("SHIPPED"), Cancel],
        ("SHIPPED", 0, 3, &["stock-reserved"])),
];

async fn stories(database: &Database) {
    for (number, (name, steps, end)) in STORIES.iter().enumerate() {
        let order = format!("o-{number}");
        let world = World::new(database.clone()).await;
        let before = world.stock(MUG).await;
        for step in *steps {
            match *step {
                Place => world.place(&order, &[(MUG, 1), (TEA, 1), (MUG, 2)]).await,
                PlaceMissing => world.place(&order, &[(MUG, 3), (GLOBE, 1)]).await,
                Cancel => world.cancel(&order).await,
                Confirm => world.confirm(&order).await,
                Until(status) => world.until_status(&order, status).await,
                Quiet => world.until_quiet().await,
                ForgetInbox => world.service.forget_inbox().await,
            }
        }
        world.until_quiet().await;
        let (status, reserved, shipped, said) = *end;
        let after = Stock {
            available: before.available - reserved - shipped,
            reserved: before.reserved + reserved,
            shipped: before.shipped + shipped,
        };
        assert_eq!(world.stock(MUG).await, after, "{name}");
        assert_eq!(
            world.reservation(&order).await.as_deref(),
            Some(status),
            "{name}"
        );
        assert_eq!(world.service.said_of(&order), said, "{name}");
        world.service.stop().await;
    }
}

/// Many orders and their cancellations come at once; the two are handled side by side.
async fn at_once(database: &Database) {
    const ORDERS: usize = 100;
    let world = World::new(database.clone()).await;
    let before = world.stock(MUG).await;
    for number in 0..ORDERS {
        let order = format!("race-{number}");
        match number % 2 {
            0 => {
                world.place(&order, &[(MUG, 2), (TEA, 1)]).await;
                world.cancel(&order).await;
            }
            _ => {
                world.cancel(&order).await;
                world.place(&order, &[(MUG, 2), (TEA, 1)]).await;
            }
        }
    }
    world.until_quiet().await;
    assert_eq!(world.stock(MUG).await, before);
    for number in 0..ORDERS {
        let order = format!("race-{number}");
        let said = world.service.said_of(&order);
        match world.reservation(&order).await.unwrap().as_str() {
            "CANCELLED" => assert!(said.is_empty(), "{order}: {said:?}"),
            "RELEASED" => assert_eq!(said, ["stock-reserved", "stock-released"], "{order}"),
            other => panic!("{order} ended as {other}"),
        }
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_of_things_a_cancelled_order_has_nothing_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    stories(&database).await;
    at_once(&database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn the_same_on_postgresql() {
    let server = Postgres::start().unwrap();
    let database = Database::Postgres(server.url());
    stories(&database).await;
    at_once(&database).await;
}

/// The reservation waits in the middle of its transaction, for stock that somebody else holds, and
/// the cancellation comes then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_cancellation_waits_for_a_reservation_that_is_under_way() {
    let server = Postgres::start().unwrap();
    let world = World::new(Database::Postgres(server.url())).await;
    let before = world.stock(MUG).await;
    let holder = Holder::of_mugs(&server).await;
    world.place("o-1", &[(MUG, 1)]).await;
    until_waiting(&server, 1).await;
    world.cancel("o-1").await;
    until_waiting(&server, 2).await;
    holder.release().await;
    world.until_status("o-1", "RELEASED").await;
    world.until_quiet().await;
    assert_eq!(world.stock(MUG).await, before);
    assert_eq!(
        world.service.said_of("o-1"),
        ["stock-reserved", "stock-released"]
    );
    world.service.stop().await;
}

/// The same, but inventory dies while it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_reservation_that_died_in_the_middle_is_not_half_there() {
    let server = Postgres::start().unwrap();
    let mut world = World::new(Database::Postgres(server.url())).await;
    let before = world.stock(MUG).await;
    let holder = Holder::of_mugs(&server).await;
    world.place("o-1", &[(MUG, 1)]).await;
    until_waiting(&server, 1).await;
    world.service.kill().await;
    holder.release().await;
    world.cancel("o-1").await;
    world.service.start().await;
    world.until_quiet().await;
    assert_eq!(world.stock(MUG).await, before);
    let expected: &[&str] = match world.reservation("o-1").await.unwrap().as_str() {
        "CANCELLED" => &[],
        "RELEASED" => &["stock-reserved", "stock-released"],
        other => panic!("the reservation is {other}"),
    };
    assert_eq!(world.service.said_of("o-1"), expected);
    world.service.stop().await;
}

/// Another instance has handled the cancellation, but not committed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_reservation_waits_for_a_cancellation_that_is_under_way() {
    let server = Postgres::start().unwrap();
    let world = World::new(Database::Postgres(server.url())).await;
    let before = world.stock(MUG).await;
    let holder = Holder::new(
        &server,
        "insert into inventory.reservation (order_id, items, status)
         values ('o-1', '{}', 'CANCELLED')",
    );
    let holder = holder.await;
    world.place("o-1", &[(MUG, 1)]).await;
    until_waiting(&server, 1).await;
    holder.release().await;
    world.until_quiet().await;
    assert_eq!(world.stock(MUG).await, before);
    assert!(world.service.said_of("o-1").is_empty());
    assert_eq!(world.reservation("o-1").await.as_deref(), Some("CANCELLED"));
    world.service.stop().await;
}

/// A transaction beside inventory's.
struct Holder(Client);

impl Holder {
    /// Holds the row of the mugs.
    async fn of_mugs(server: &Postgres) -> Self {
        assert_eq!(product(MUG).unwrap().sku, MUG);
        Self::new(
            server,
            "update inventory.stock set sku = sku where sku = 'MUG-ENAMEL'",
        )
        .await
    }

    async fn new(server: &Postgres, statement: &'static str) -> Self {
        let client = connect(server).await;
        client.batch_execute("begin").await.unwrap();
        assert_eq!(client.execute(statement, &[]).await.unwrap(), 1);
        Self(client)
    }

    async fn release(self) {
        self.0.batch_execute("commit").await.unwrap();
    }
}

/// A connection of its own, which ends with the client.
async fn connect(server: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until so many transactions wait for another.
async fn until_waiting(server: &Postgres, expected: i64) {
    let client = connect(server).await;
    until("transactions to wait", async || {
        let count = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        let waiting = client.query_one(count, &[]).await.unwrap();
        waiting.get::<_, i64>(0) == expected
    })
    .await;
}
