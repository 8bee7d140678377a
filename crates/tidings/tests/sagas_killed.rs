//! Sagas under `kill -9`: a process with the three services of the checkout is killed at random
//! moments and started anew, while orders are placed. Afterwards every saga has ended, and every effect
//! is there once (P6).
//!
//! Who is killed when comes from a seed, which is printed; `TIDINGS_TEST_SEED` gives it back.

mod support;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use support::{
    Database, Random,
    checkout::{OrderPlaced, World},
    outgoing, until,
};
use tidings::{InboxState, Store, Transport, serve};
use tidings_amqp::Amqp;
use tidings_postgres::PostgresStore;
use tidings_testing::servers::{Process, free_port, postgres_url};

/// Says in a process that it is the one to be killed: where its databases are.
const FOLDER: &str = "TIDINGS_TEST_SAGAS_FOLDER";
const BROKER: &str = "TIDINGS_TEST_SAGAS_BROKER";
/// The schema of PostgreSQL that holds the sagas; without it they are in SQLite.
const SCHEMA: &str = "TIDINGS_TEST_SAGAS_SCHEMA";

const KILLS: u64 = 25;
const ORDERS: u64 = 200;

/// The longest that a process lives after it is ready.
const LIFE_MAX_MS: u64 = 300;

const START_MAX: Duration = Duration::from_secs(30);

async fn world(folder: &Path, schema: Option<&str>) -> World {
    let checkout: Arc<dyn Store> = match schema {
        None => Database::at(folder.join("checkout.db")).await.store.into(),
        Some(schema) => {
            let store = PostgresStore::connect(postgres_url(), schema).await;
            Arc::new(store.expect("PostgreSQL"))
        }
    };
    let inventory = Database::at(folder.join("inventory.db")).await;
    let payment = Database::at(folder.join("payment.db")).await;
    World::of(checkout, inventory, payment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests below, which kill it"]
async fn the_services() {
    let (Some(folder), Ok(broker)) = (std::env::var_os(FOLDER), std::env::var(BROKER)) else {
        return;
    };
    let schema = std::env::var(SCHEMA).ok();
    let world = world(Path::new(&folder), schema.as_deref()).await;
    let amqp = Amqp::connect(&broker).await.expect("it connects");
    let service = serve(amqp, world.routers());
    let ready = service.ready();
    tokio::spawn(async move {
        ready.await;
        println!("\nready");
    });
    service.await.expect("it runs until it is killed");
}

fn start(folder: &Path, broker: &str, schema: Option<&str>) -> Process {
    let mut command = Process::command(std::env::current_exe().expect("this program"));
    command
        .args(["--ignored", "--nocapture", "--exact", "the_services"])
        .env(FOLDER, folder)
        .env(BROKER, broker);
    if let Some(schema) = schema {
        command.env(SCHEMA, schema);
        command.env(tidings_testing::servers::POSTGRES_URL, postgres_url());
    }
    let mut process = Process::start(command).expect("it starts");
    process
        .wait_for_line(START_MAX, |line| line == "ready")
        .expect("it is ready");
    process
}

/// What is to become of an order.
fn order(number: u64) -> OrderPlaced {
    let (kind, card) = match number % 4 {
        0 => ("good", "ok"),
        1 => ("poor", "declined"),
        2 => ("sold-out", "ok"),
        _ => ("hurried", "at once"),
    };
    OrderPlaced {
        order_id: format!("{kind}-{number}"),
        card: card.into(),
    }
}

async fn killed(schema: Option<&str>) {
    let seed = std::env::var("TIDINGS_TEST_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("TIDINGS_TEST_SEED={seed}");
    let random = Random::new(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port().expect("a port");
    let options = tidings_broker::Options::durable(folder.path().join("broker"));
    let options = options.listen((std::net::Ipv4Addr::LOCALHOST, port));
    let broker = tidings_broker::Broker::start(options).await;
    let broker = broker.expect("the broker starts");
    let url = format!("amqp://guest:guest@127.0.0.1:{port}");
    let amqp = Amqp::connect(&url).await.expect("it connects");

    let begin = async || {
        let (folder, url) = (folder.path().to_owned(), url.clone());
        let schema = schema.map(str::to_owned);
        let starting = move || start(&folder, &url, schema.as_deref());
        let started = tokio::task::spawn_blocking(starting).await;
        started.expect("it starts")
    };
    let mut process = begin().await;
    for kill in 0..KILLS {
        for number in ORDERS * kill / KILLS..ORDERS * (kill + 1) / KILLS {
            let outcome = amqp.publish(vec![outgoing(&order(number))]).await.remove(0);
            outcome.expect("it is confirmed");
        }
        tokio::time::sleep(Duration::from_millis(random.below(LIFE_MAX_MS))).await;
        assert!(
            process.is_running(),
            "it ended by itself: {:?}",
            process.stdout()
        );
        process.kill9();
        process = begin().await;
    }
    let world = world(folder.path(), schema).await;
    ended(&world).await;
    process.kill9();
    balance(&world).await;
    amqp.close().await;
    broker.shutdown().await.expect("it stops");
}

/// Waits until nothing happens any more.
async fn ended(world: &World) {
    let all_ended = async || {
        let states = world.states().await;
        let is_ended = |it: &String| it.ends_with("completed") || it.ends_with("compensated");
        states.len() as u64 == ORDERS && states.iter().all(is_ended)
    };
    let waiting = async {
        while !all_ended().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(90), waiting)
        .await
        .is_err()
    {
        panic!("not all have ended: {:#?}", world.states().await);
    }
    let sent = async || {
        let stores = [world.inventory.store.outbox(), world.payment.store.outbox()];
        let mut left = world
            .checkout
            .outbox()
            .stats()
            .await
            .expect("it counts")
            .ready;
        for outbox in stores {
            left += outbox.stats().await.expect("it counts").ready;
        }
        left == 0
    };
    until("nothing is under way", sent).await;
}

/// Every effect is there once, and undone once if its saga failed.
async fn balance(world: &World) {
    for database in [&world.inventory, &world.payment] {
        assert_eq!(database.rows(InboxState::Dead).await, 0, "no dead letters");
    }
    let count = |effects: Vec<(String, u64)>| {
        let mut of_order: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        for (order_id, number) in effects {
            let (done, undone) = of_order.entry(order_id).or_default();
            match number {
                1 => *done += 1,
                _ => *undone += 1,
            }
        }
        of_order
    };
    let stock = count(world.inventory.effects().await);
    let money = count(world.payment.effects().await);
    let mut endings: BTreeMap<String, u32> = BTreeMap::new();
    for state in world.states().await {
        let (order_id, end) = state.split_once(' ').expect("a key and a state");
        let kind = order_id.split_once(|it: char| it == '-' && !order_id.starts_with("sold"));
        let kind = kind.map_or("sold-out", |(kind, _)| kind);
        *endings.entry(format!("{kind} {end}")).or_default() += 1;
        let is_completed = end == "completed";
        let of = |of: &BTreeMap<String, (u32, u32)>| of.get(order_id).copied().unwrap_or_default();
        match kind {
            "good" => assert_eq!(
                (end, of(&stock), of(&money)),
                ("completed", (1, 0), (1, 0)),
                "{order_id}"
            ),
            "poor" => assert_eq!(
                (end, of(&stock), of(&money)),
                ("compensated", (1, 1), (0, 0)),
                "{order_id}"
            ),
            "sold-out" => assert_eq!(
                (end, of(&stock), of(&money)),
                ("compensated", (0, 0), (0, 0)),
                "{order_id}"
            ),
            // The money may have come in time or not, and too late it is given back.
            _ if is_completed => {
                assert_eq!((of(&stock), of(&money)), ((1, 0), (1, 0)), "{order_id}")
            }
            _ => {
                assert_eq!(of(&stock), (1, 1), "{order_id}");
                assert!(
                    matches!(of(&money), (0, 0) | (1, 1)),
                    "{order_id}: {:?}",
                    of(&money)
                );
            }
        }
    }
    println!("{endings:?}");
    assert_eq!(endings.values().sum::<u32>(), ORDERS as u32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_effect_happens_once_under_kill_9_on_sqlite() {
    killed(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn every_effect_happens_once_under_kill_9_on_postgresql() {
    killed(Some(&format!("sagas_killed_{}", std::process::id()))).await;
}
