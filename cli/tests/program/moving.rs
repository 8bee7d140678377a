//! `tidings move`: from the broker in the box to another one, and to RabbitMQ.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tempfile::TempDir;
use tidings::{HandlerOptions, Outgoing, Transport as _, prelude::*};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_sqlite::SqliteStore;
use tidings_testing::servers::rabbitmq_url;
use tokio::{sync::oneshot, time::Instant};

use crate::run::{Ran, command, tidings};

const SOON: Duration = Duration::from_secs(30);
const PLACED: u32 = 500;
const SHIPPED: u32 = 300;
const KEYS: u32 = 10;

#[derive(Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(id = "parcel", key = "order_id")]
struct OrderShipped {
    parcel: String,
    order_id: String,
    number: u32,
}

/// What was handled: how often, and of each key in which order.
#[derive(Default)]
struct Handled {
    placed: BTreeMap<String, u32>,
    shipped: BTreeMap<String, Vec<u32>>,
}

type Book = Arc<Mutex<Handled>>;

async fn settle(order: OrderPlaced, State(book): State<Book>) -> Result<()> {
    *book.lock().placed.entry(order.order_id).or_default() += 1;
    Ok(())
}

async fn ship(order: OrderShipped, State(book): State<Book>) -> Result<()> {
    let mut book = book.lock();
    book.shipped
        .entry(order.order_id)
        .or_default()
        .push(order.number);
    Ok(())
}

struct Service {
    name: String,
    folder: TempDir,
    book: Book,
}

struct Running {
    stop: oneshot::Sender<()>,
    service: tokio::task::JoinHandle<Result<(), tidings::ServeError>>,
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.service.await.unwrap().unwrap();
    }
}

impl Service {
    fn new() -> Self {
        Self {
            name: format!("pay-{}", uuid::Uuid::new_v4().simple()),
            folder: tempfile::tempdir().unwrap(),
            book: Book::default(),
        }
    }

    fn queue(&self, rest: &str) -> String {
        format!("{}.{rest}", self.name)
    }

    async fn start(&self, url: &str) -> Running {
        let file = self.folder.path().join("payment.db");
        let store = SqliteStore::open(file).await.unwrap();
        let router = Router::new(self.name.clone())
            .on(settle)
            .on_with(ship, HandlerOptions::new().ordered(3))
            .with_state(Arc::clone(&self.book))
            .transactional(store);
        let (stop, stopped) = oneshot::channel::<()>();
        let amqp = Amqp::connect(url).await.unwrap();
        let service = serve(amqp, router).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let service = tokio::spawn(service.into_future());
        tokio::time::timeout(SOON, ready).await.unwrap();
        Running { stop, service }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        run(self.folder.path(), args).await
    }
}

async fn run(folder: &Path, args: &[&str]) -> Ran {
    let database = format!("sqlite://{}", folder.display());
    let args = [args, &["--database", &database]].concat();
    let args: Vec<String> = args.into_iter().map(Into::into).collect();
    tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
}

async fn publish<M: Message>(amqp: &Amqp, messages: impl IntoIterator<Item = M>) {
    let outgoing = messages.into_iter().map(|it| Outgoing::new(&it).unwrap());
    for outcome in amqp.publish(outgoing.collect()).await {
        outcome.unwrap();
    }
}

async fn depth(amqp: &Amqp, queue: &str) -> u32 {
    let depths = amqp.depths(&[queue]).await.unwrap();
    depths[0].map_or(0, |it| it.ready)
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !is_so().await {
        assert!(since.elapsed() < SOON, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_moved_between_brokers_in_the_box() {
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    what_waits_is_moved(broker.amqp_url()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn what_waits_is_moved_to_rabbitmq() {
    what_waits_is_moved(rabbitmq_url()).await;
}

/// Messages, messages of an ordered group, and a dead letter, none of which the service has handled.
async fn what_waits_is_moved(new: String) {
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let old = broker.amqp_url();
    let service = Service::new();
    let running = service.start(&old).await;
    let amqp = Amqp::connect(&old).await.unwrap();
    let queue = service.queue("order-placed.v1");
    let broken = Outgoing {
        destination: tidings::Destination::Queue(queue.clone().into()),
        unrouted: tidings::Unrouted::Hold,
        envelope: tidings::Envelope::new("order-placed.v1", "no JSON"),
    };
    amqp.publish(vec![broken]).await.remove(0).unwrap();
    let dead = tidings::dead_letter_queue(&queue);
    until("a dead letter", async || depth(&amqp, &dead).await == 1).await;
    running.stop().await;
    let id = |number| format!("o-{number}");
    publish(
        &amqp,
        (0..PLACED).map(|number| OrderPlaced {
            order_id: id(number),
        }),
    )
    .await;
    let shipped = (0..SHIPPED).map(|number| OrderShipped {
        parcel: format!("p-{number}"),
        order_id: id(number % KEYS),
        number,
    });
    publish(&amqp, shipped).await;

    // Nothing is there to move to, and nothing is lost.
    let move_it = ["move", "--broker", &old, "--to", &new];
    let refused = service.run(&move_it).await;
    refused.ends(1).says("(TDG-9060)").tells("topology apply");
    until("everything is given back", async || {
        depth(&amqp, &queue).await == PLACED && depth(&amqp, &dead).await == 1
    })
    .await;
    service
        .run(&["topology", "apply", "--broker", &new])
        .await
        .ends(0);
    let dry = service
        .run(&[&move_it[..], &["--dry-run", "--json"]].concat())
        .await;
    let waiting = |ran: &Ran, place: &str| {
        let places = ran.json()["places"].as_array().unwrap().clone();
        let place = places.into_iter().find(|it| it["place"] == *place);
        place.map_or(0, |it| it["waiting"].as_u64().unwrap())
    };
    dry.ends(1);
    assert_eq!(waiting(&dry, &queue), u64::from(PLACED));
    assert_eq!(waiting(&dry, &dead), 1);
    assert_eq!(depth(&amqp, &queue).await, PLACED, "it only looked");

    let moved = service.run(&[&move_it[..], &["--json"]].concat()).await;
    let moved = moved.ends(0).json();
    assert_eq!(moved["moved"], PLACED + SHIPPED + 1, "{moved:#}");
    assert_eq!(
        (&moved["complete"], &moved["receivers"]),
        (&true.into(), &serde_json::json!([]))
    );
    let dry = service.run(&[&move_it[..], &["--dry-run"]].concat()).await;
    dry.ends(0).tells("0 messages were moved");

    let letters = ["dead-letters", "list", &queue, "--broker", &new, "--json"];
    let letters = service.run(&letters).await.ends(0).json();
    assert_eq!(
        letters["letters"].as_array().unwrap().len(),
        1,
        "{letters:#}"
    );
    let reason = letters["letters"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("expected"), "as it was: {reason}");

    let running = service.start(&new).await;
    until("all is handled", async || {
        let book = service.book.lock();
        let shipped: usize = book.shipped.values().map(Vec::len).sum();
        book.placed.len() >= PLACED as usize && shipped >= SHIPPED as usize
    })
    .await;
    running.stop().await;
    let book = service.book.lock();
    assert!(book.placed.values().all(|count| *count == 1), "once each");
    for (key, numbers) in &book.shipped {
        assert!(numbers.is_sorted(), "order of {key}: {numbers:?}");
        assert_eq!(numbers.len(), (SHIPPED / KEYS) as usize);
    }
}

/// Killed in the middle, it loses nothing, and what is on both brokers then is handled once.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_killed_goes_on_where_it_was() {
    const MANY: u32 = 20_000;
    let [one, other] = [Options::ephemeral(), Options::ephemeral()];
    let (one, other) = (
        Broker::start(one).await.unwrap(),
        Broker::start(other).await.unwrap(),
    );
    let (old, new) = (one.amqp_url(), other.amqp_url());
    let service = Service::new();
    service.start(&old).await.stop().await;
    service
        .run(&["topology", "apply", "--broker", &new])
        .await
        .ends(0);
    let amqp = Amqp::connect(&old).await.unwrap();
    let order = |number| OrderPlaced {
        order_id: format!("o-{number}"),
    };
    publish(&amqp, (0..MANY).map(order)).await;
    let queue = service.queue("order-placed.v1");
    let there = Amqp::connect(&new).await.unwrap();
    let database = format!("sqlite://{}", service.folder.path().display());
    for kill in 1..=3 {
        let args = [
            "move",
            "--broker",
            &old,
            "--to",
            &new,
            "--database",
            &database,
        ];
        let mut moving = command(args)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("a part of them is moved", async || {
            depth(&there, &queue).await > kill * 2000
        })
        .await;
        moving.kill().unwrap();
        moving.wait().unwrap();
    }
    // What it held goes back when its connection is gone.
    until("what was held is back", async || {
        depth(&amqp, &queue).await + depth(&there, &queue).await >= MANY
    })
    .await;
    let left = depth(&amqp, &queue).await;
    assert!(left > 0, "it was killed in the middle");
    let args = ["move", "--broker", &old, "--to", &new, "--json"];
    let moved = service.run(&args).await.ends(0).json();
    assert_eq!(moved["moved"], left, "{moved:#}");
    let twice = depth(&there, &queue).await - MANY;
    assert!(twice <= 3 * 400, "on both brokers: {twice}");

    let running = service.start(&new).await;
    until("all is handled", async || {
        service.book.lock().placed.len() == MANY as usize && depth(&there, &queue).await == 0
    })
    .await;
    running.stop().await;
    assert!(
        service.book.lock().placed.values().all(|count| *count == 1),
        "once each"
    );
}

/// A new broker that takes nothing for a while is waited for; one that will not take a message is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_broker_that_is_restarted_meanwhile_is_waited_for() {
    const MANY: u32 = 20_000;
    let old = Broker::start(Options::ephemeral()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut new = Broker::start(Options::durable(folder.path().to_owned()))
        .await
        .unwrap();
    let address = new.amqp_url();
    let service = Service::new();
    service.start(&old.amqp_url()).await.stop().await;
    service
        .run(&["topology", "apply", "--broker", &address])
        .await
        .ends(0);
    let amqp = Amqp::connect(&old.amqp_url()).await.unwrap();
    let order = |number| OrderPlaced {
        order_id: format!("o-{number}"),
    };
    publish(&amqp, (0..MANY).map(order)).await;
    let queue = service.queue("order-placed.v1");
    let there = Amqp::connect(&address).await.unwrap();
    let database = format!("sqlite://{}", service.folder.path().display());
    let (from, to) = (old.amqp_url(), address.clone());
    let moving = tokio::task::spawn_blocking(move || {
        let args = [
            "move",
            "--broker",
            &from,
            "--to",
            &to,
            "--database",
            &database,
            "--json",
        ];
        tidings(args)
    });
    until("a part of them is moved", async || {
        depth(&there, &queue).await > 2000
    })
    .await;
    let listen = new.amqp_addr();
    new.shutdown().await.unwrap();
    assert!(depth(&amqp, &queue).await > 0, "it was in the middle");
    tokio::time::sleep(Duration::from_secs(1)).await;
    new = Broker::start(Options::durable(folder.path().to_owned()).listen(listen))
        .await
        .unwrap();
    let moved = moving.await.unwrap();
    moved.ends(0);
    assert_eq!(depth(&amqp, &queue).await, 0);
    let running = service.start(&new.amqp_url()).await;
    until("all is handled", async || {
        service.book.lock().placed.len() == MANY as usize
    })
    .await;
    running.stop().await;
    assert!(
        service.book.lock().placed.values().all(|count| *count == 1),
        "once each"
    );
}

/// The service goes from one broker to the other while events are published to both.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_a_service_changes_its_broker_is_moved_too() {
    let [one, other] = [Options::ephemeral(), Options::ephemeral()];
    let (one, other) = (
        Broker::start(one).await.unwrap(),
        Broker::start(other).await.unwrap(),
    );
    let (old, new) = (one.amqp_url(), other.amqp_url());
    let service = Service::new();
    let before = service.start(&old).await;
    let amqp = Amqp::connect(&old).await.unwrap();
    service
        .run(&["topology", "apply", "--broker", &new])
        .await
        .ends(0);
    let after = service.start(&new).await;
    let database = service.folder.path().to_owned();
    let (from, to) = (old.clone(), new.clone());
    let moving = tokio::spawn(async move {
        let args = [
            "move", "--broker", &from, "--to", &to, "--follow", "2s", "--json",
        ];
        run(&database, &args).await
    });
    // Somebody publishes to the old broker all the while, and is the last to change.
    let mut before = Some(before);
    for round in 0..20 {
        let order = |number| OrderPlaced {
            order_id: format!("o-{round}-{number}"),
        };
        publish(&amqp, (0..50).map(order)).await;
        if round == 10 {
            before.take().unwrap().stop().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let moved = moving.await.unwrap();
    let moved = moved.ends(0).json();
    assert!(moved["moved"].as_u64().unwrap() >= 450, "{moved:#}");
    until("all is handled", async || {
        service.book.lock().placed.len() == 1000
    })
    .await;
    after.stop().await;
    assert!(
        service.book.lock().placed.values().all(|count| *count == 1),
        "once each"
    );
}
