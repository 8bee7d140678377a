//! `tidings` on Kafka, run as an operator runs it. Built with `--features kafka`, as `cargo xtask test` does.

#![cfg(feature = "kafka")]

// Not all of it is needed here.
#[allow(dead_code)]
#[path = "program/run.rs"]
mod run;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use run::{Ran, command, tidings};
use tempfile::TempDir;
use tidings::{
    AccessErrorKind, Destination, Error, HandlerOptions, Outgoing, Subscription, Transport,
    prelude::*,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_kafka::Kafka;
use tidings_sqlite::SqliteStore;
use tidings_testing::servers::{Process, kafka_url};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

const SOON: Duration = Duration::from_secs(60);

/// All tests have one Kafka and publish to the same topics, so one at a time does.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

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
}

#[derive(Default)]
struct Book {
    is_away: AtomicBool,
    handled: Mutex<Vec<String>>,
}

async fn settle(order: OrderPlaced, State(book): State<Arc<Book>>) -> Result<()> {
    if book.is_away.load(Ordering::SeqCst) {
        return Err(Error::msg("the bank is away"));
    }
    book.handled.lock().unwrap().push(order.order_id);
    Ok(())
}

async fn ship(order: OrderShipped, State(book): State<Arc<Book>>) -> Result<()> {
    book.handled.lock().unwrap().push(order.parcel);
    Ok(())
}

/// A service, its database, and what it has handled.
struct Service {
    name: String,
    folder: TempDir,
    book: Arc<Book>,
}

struct Running(oneshot::Sender<()>, JoinHandle<()>);

impl Running {
    async fn stop(self) {
        self.0.send(()).unwrap();
        self.1.await.unwrap();
    }
}

impl Service {
    fn new() -> Self {
        Self {
            name: format!("pay-{}", uuid::Uuid::new_v4().simple()),
            folder: tempfile::tempdir().unwrap(),
            book: Arc::default(),
        }
    }

    fn queue(&self) -> String {
        format!("{}.order-placed.v1", self.name)
    }

    async fn start(&self, transport: impl Transport) -> Running {
        let file = self.folder.path().join("payment.db");
        let store = SqliteStore::open(file).await.unwrap();
        let router = Router::new(self.name.clone())
            .on(settle)
            .on_with(ship, HandlerOptions::new().ordered(3))
            .with_state(Arc::clone(&self.book))
            .retry(Retry::none())
            .transactional(store);
        let (stop, stopped) = oneshot::channel::<()>();
        let service = serve(transport, router).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let service = tokio::spawn(async move { service.await.unwrap() });
        tokio::time::timeout(SOON, ready).await.unwrap();
        Running(stop, service)
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let args = self.with_database(args);
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
    }

    fn with_database(&self, args: &[&str]) -> Vec<String> {
        let database = format!("sqlite://{}", self.folder.path().display());
        let args = [args, &["--database", &database]].concat();
        args.into_iter().map(Into::into).collect()
    }

    /// Waits until so many were handled, and says which.
    async fn handled(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + SOON;
        loop {
            let mut handled = self.book.handled.lock().unwrap().clone();
            if handled.len() >= count {
                handled.sort();
                return handled;
            }
            assert!(Instant::now() < deadline, "{count}: {handled:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until there are so many letters.
async fn letters(transport: &impl Transport, dead: &str, count: u64) {
    let access = transport.dead_letter_access().unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        match access.count(dead).await {
            Ok(there) if there == count => return,
            there => assert!(Instant::now() < deadline, "{count} letters: {there:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish<M: Message>(transport: &impl Transport, messages: impl IntoIterator<Item = M>) {
    let outgoing = messages.into_iter().map(|it| Outgoing::new(&it).unwrap());
    for outcome in transport.publish(outgoing.collect()).await {
        outcome.unwrap();
    }
}

fn order(number: usize) -> OrderPlaced {
    OrderPlaced {
        order_id: format!("o-{number}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn dead_letters_on_kafka_are_looked_at_discarded_and_redriven() {
    let _alone = ALONE.lock().await;
    let url = format!("{}?partitions=4", kafka_url());
    let kafka = Arc::new(Kafka::connect(&url).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&kafka)).await;
    publish(&*kafka, (0..3).map(order)).await;
    let queue = service.queue();
    let dead = tidings::dead_letter_queue(&queue);
    letters(&kafka, &dead, 3).await;
    let run = async |args: &[&str]| {
        let args = [&["dead-letters"], args, &["--broker", &url]].concat();
        service.run(&args).await
    };

    let groups = run(&["groups", &queue, "--json"]).await;
    assert_eq!(groups.ends(0).json()["groups"][0]["count"], 3);
    // Which have some, the database knows.
    let listed = run(&["list", "--json"]).await.ends(0).json();
    let listed = listed["letters"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    // In any order: their orders are in several partitions, which fail beside each other.
    let paid = listed.iter().find(|it| it["key"] == "o-1").unwrap();
    let paid = paid["id"].as_str().unwrap();
    let shown = run(&["show", &queue, paid]).await;
    shown.ends(0).tells("the bank is away");
    let discard = [
        "discard",
        &queue,
        "--id",
        paid,
        "--why",
        "paid in cash",
        "--by",
        "me",
    ];
    run(&discard).await.ends(0);
    letters(&kafka, &dead, 2).await;
    run(&["list", "--recorded"]).await.ends(0).tells(&queue);

    service.book.is_away.store(false, Ordering::SeqCst);
    let redrive = ["redrive", &queue, "--all", "--settle", "300ms", "--json"];
    let redriven = run(&redrive).await.ends(0).json();
    assert_eq!(redriven["sent"], 2, "{redriven:#}");
    letters(&kafka, &dead, 0).await;
    assert_eq!(service.handled(2).await, ["o-0", "o-2"]);
    run(&["list", &queue])
        .await
        .ends(0)
        .tells("no dead letters");
    running.stop().await;
}

/// Messages, messages of an ordered group, and a dead letter.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn what_waits_on_amqp_is_moved_to_kafka() {
    let _alone = ALONE.lock().await;
    let new = format!("{}?partitions=4", kafka_url());
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let old = broker.amqp_url();
    let amqp = Arc::new(Amqp::connect(&old).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&amqp)).await;
    publish(&*amqp, [order(0)]).await;
    let dead = tidings::dead_letter_queue(&service.queue());
    letters(&amqp, &dead, 1).await;
    running.stop().await;
    let amqp = Amqp::connect(&old).await.unwrap();
    publish(&amqp, (1..50).map(order)).await;
    let parcels = (0..30).map(|number| OrderShipped {
        parcel: format!("p-{number}"),
        order_id: format!("o-{}", number % 5),
    });
    publish(&amqp, parcels).await;

    service.book.is_away.store(false, Ordering::SeqCst);
    let running = service.start(Kafka::connect(&new).await.unwrap()).await;
    let moved = ["move", "--broker", &old, "--to", &new, "--json"];
    let moved = service.run(&moved).await.ends(0).json();
    assert_eq!(moved["moved"], 1 + 49 + 30, "{moved:#}");
    let handled = service.handled(49 + 30).await;
    let mut expected: Vec<String> = (1..50).map(|it| format!("o-{it}")).collect();
    expected.extend((0..30).map(|it| format!("p-{it}")));
    expected.sort();
    assert_eq!(handled, expected);
    let list = ["dead-letters", "list", "--broker", &new, "--json"];
    let list = service.run(&list).await.ends(0).json();
    assert_eq!(list["letters"].as_array().unwrap().len(), 1, "{list:#}");
    running.stop().await;
    broker.shutdown().await.unwrap();
}

/// The same the other way. While somebody receives on Kafka, nothing is taken from under him.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn what_waits_on_kafka_is_moved_to_amqp() {
    let _alone = ALONE.lock().await;
    let old = format!("{}?partitions=4", kafka_url());
    let kafka = Arc::new(Kafka::connect(&old).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&kafka)).await;
    publish(&*kafka, [order(0)]).await;
    letters(&kafka, &tidings::dead_letter_queue(&service.queue()), 1).await;
    running.stop().await;
    let kafka = Kafka::connect(&old).await.unwrap();
    publish(&kafka, (1..50).map(order)).await;
    let parcel = |number: usize| OrderShipped {
        parcel: format!("p-{number:02}"),
        order_id: format!("o-{}", number % 5),
    };
    publish(&kafka, (0..30).map(parcel)).await;

    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let new = broker.amqp_url();
    service.book.is_away.store(false, Ordering::SeqCst);
    let running = service.start(Amqp::connect(&new).await.unwrap()).await;
    let run = ["move", "--broker", &old, "--to", &new, "--json"];
    let queue = service.queue();
    let mut deliveries = kafka
        .subscribe(Subscription::new(queue.clone()))
        .await
        .unwrap();
    let held = tokio::time::timeout(SOON, deliveries.next()).await.unwrap();
    let refused = service.run(&run).await;
    let report = refused.ends(1).json();
    let places = report["places"].as_array().unwrap();
    let place = places.iter().find(|it| it["place"] == *queue).unwrap();
    assert_eq!(
        (&place["moved"], &place["waiting"]),
        (&0.into(), &49.into()),
        "{report:#}"
    );
    let why = place["why"].as_str().unwrap();
    assert!(
        why.contains("1 receive") && why.contains("stop the services"),
        "{why}"
    );
    drop(held);
    drop(deliveries);
    kafka.close().await;

    let moved = service.run(&run).await.ends(0).json();
    let places_left = moved["places"].as_array().unwrap().iter();
    let mut of_queue = places_left.filter(|it| it["place"] == *queue);
    let of_queue = of_queue.next().unwrap();
    assert_eq!(
        of_queue["moved"], 49,
        "the rest was moved before: {moved:#}"
    );
    // Not the record of discarded letters, which others on this Kafka write to.
    let others = places
        .iter()
        .filter(|it| it["place"] != "tidings.discarded");
    let others: u64 = others.map(|it| it["moved"].as_u64().unwrap()).sum();
    assert_eq!(others, 30 + 1, "{report:#}");
    let mut handled = service.handled(49 + 30).await;
    // Each key in order.
    let in_order = service.book.handled.lock().unwrap().clone();
    for key in 0..5 {
        let of_key = |it: &&String| {
            (0..30)
                .filter(|n| n % 5 == key)
                .any(|n| **it == parcel(n).parcel)
        };
        let parcels: Vec<&String> = in_order.iter().filter(of_key).collect();
        assert!(parcels.is_sorted() && parcels.len() == 6, "{parcels:?}");
    }
    let mut expected: Vec<String> = (1..50).map(|it| format!("o-{it}")).collect();
    expected.extend((0..30).map(|it| parcel(it).parcel));
    expected.sort();
    handled.sort();
    assert_eq!(handled, expected);
    let list = ["dead-letters", "list", "--broker", &new, "--json"];
    let list = service.run(&list).await.ends(0).json();
    assert_eq!(list["letters"].as_array().unwrap().len(), 1, "{list:#}");
    let again = service.run(&run).await.ends(0).json();
    assert_eq!(again["moved"], 0, "{again:#}");
    running.stop().await;
    broker.shutdown().await.unwrap();
}

/// An operator who is killed in the middle holds the letters until his session is over. Then somebody else sends the rest:
/// none is lost, and one that was sent and not taken out has no effect again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn a_redrive_that_is_killed_is_finished_by_the_next_one() {
    let _alone = ALONE.lock().await;
    const COUNT: usize = 400;
    let url = format!("{}?partitions=4", kafka_url());
    let kafka = Arc::new(Kafka::connect(&url).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&kafka)).await;
    publish(&*kafka, (0..COUNT).map(order)).await;
    let queue = service.queue();
    let dead = tidings::dead_letter_queue(&queue);
    letters(&kafka, &dead, COUNT as u64).await;

    service.book.is_away.store(false, Ordering::SeqCst);
    let redrive = [
        "dead-letters",
        "redrive",
        &queue,
        "--all",
        "--broker",
        &url,
        "--json",
    ];
    let slowly = ["--rate", "50", "--ramp", "0s", "--batch", "5"];
    let args = service.with_database(&[&redrive[..], &slowly].concat());
    let mut operator = Process::start(command(args)).unwrap();
    service.handled(20).await;
    operator.kill9();
    let handled = service.handled(20).await.len();
    assert!(handled < COUNT / 2, "it was in the middle: {handled}");

    let deadline = Instant::now() + SOON;
    let fast = ["--unlimited", "--settle", "300ms"];
    let redriven = loop {
        let ran = service.run(&[&redrive[..], &fast].concat()).await;
        match ran.code {
            Some(0) => break ran.json(),
            _ => ran.says("TDG-2003"),
        };
        assert!(Instant::now() < deadline, "{ran:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let sent = redriven["sent"].as_u64().unwrap();
    assert!(sent > (COUNT / 2) as u64, "{redriven:#}");
    let mut expected: Vec<String> = (0..COUNT).map(|it| order(it).order_id).collect();
    expected.sort();
    assert_eq!(service.handled(COUNT).await, expected);
    letters(&kafka, &dead, 0).await;
    let access = kafka.dead_letter_access().unwrap();
    match access.hold(&dead).await {
        Ok(mut held) => assert!(held.next(10).await.unwrap().is_empty()),
        Err(error) => assert_eq!(error.kind(), AccessErrorKind::Busy, "{error}"),
    }
    running.stop().await;
    // Nothing of it has had an effect twice meanwhile.
    assert_eq!(service.handled(COUNT).await, expected);
}

/// A service that is added later gets what is in the topic, and getting it again has no effect again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn a_new_service_is_told_what_the_topic_still_has() {
    let _alone = ALONE.lock().await;
    let url = format!("{}?partitions=4", kafka_url());
    let kafka = Arc::new(Kafka::connect(&url).await.unwrap());
    let Destination::Topic(topic) = Outgoing::new(&order(0)).unwrap().destination else {
        panic!("an event goes to a topic");
    };
    // Somebody has to want it, or it is not published.
    let (first, service) = (Service::new(), Service::new());
    first.start(Arc::clone(&kafka)).await.stop().await;
    let kafka = Arc::new(Kafka::connect(&url).await.unwrap());
    let began = jiff::Timestamp::now().to_string();
    publish(&*kafka, (0..20).map(order)).await;

    let queue = service.queue();
    let run = async |more: &[&str]| {
        let replay = [
            "events", "replay", "--broker", &url, "--topic", &topic, "--to", &queue,
        ];
        let args = [&replay[..], &["--from", &began, "--json"], more].concat();
        service.run(&args).await
    };
    run(&[]).await.ends(1).says("TDG-7001");
    let told = run(&["--new"]).await.ends(0).json();
    assert_eq!(told["messages"], 20, "{told:#}");
    let mut expected: Vec<String> = (0..20).map(|it| order(it).order_id).collect();
    expected.sort();
    let running = service.start(Arc::clone(&kafka)).await;
    assert_eq!(service.handled(20).await, expected);
    run(&["--reset"]).await.ends(1).says("TDG-7005");
    running.stop().await;

    run(&[]).await.ends(1).says("TDG-7006");
    let told = run(&["--reset"]).await.ends(0).json();
    assert_eq!(told["messages"], 20, "{told:#}");
    let kafka = Arc::new(Kafka::connect(&url).await.unwrap());
    let running = service.start(Arc::clone(&kafka)).await;
    // Behind all that comes again, in each partition.
    publish(&*kafka, (20..60).map(order)).await;
    expected.extend((20..60).map(|it| order(it).order_id));
    expected.sort();
    assert_eq!(service.handled(60).await, expected);
    running.stop().await;
    assert_eq!(service.handled(60).await, expected, "each once");
}

/// What a service wrote down when it ran elsewhere is looked for, made, and looked at: topics that somebody else made may have
/// settings that lose messages.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn what_services_need_on_kafka_is_planned_and_made() {
    let _alone = ALONE.lock().await;
    let url = format!("{}?partitions=4", kafka_url());
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let service = Service::new();
    let amqp = Amqp::connect(&broker.amqp_url()).await.unwrap();
    service.start(amqp).await.stop().await;
    let topology = async |verb: &str, url: &str| {
        let args = ["topology", verb, "--json", "--broker", url];
        service.run(&args).await
    };
    // The pieces whose names contain the service's, with what is told of each.
    let told = |ran: &Ran, column: &str| {
        let items = ran.json()["items"].as_array().unwrap().clone();
        let own = items
            .into_iter()
            .filter(|it| it["name"].as_str().unwrap().starts_with(&service.name));
        let own = own.map(|it| {
            assert_eq!(it["services"], serde_json::json!([service.name]), "{it}");
            let kind = it["kind"].as_str().unwrap().to_owned();
            (kind, it[column].as_str().unwrap().to_owned())
        });
        own.collect::<Vec<_>>()
    };
    let of = |kind: &str, what: &str, count: usize| vec![(kind.to_owned(), what.to_owned()); count];
    // A queue and its dead letters; three partitions, what goes to none, and the dead letters of the group.
    let all = |what: &str| [of("topic", what, 7), of("subscription", what, 2)].concat();
    let sorted = |mut told: Vec<(String, String)>| {
        told.sort_by(|one, other| other.cmp(one));
        told
    };
    let plan = topology("plan", &url).await;
    assert_eq!(sorted(told(plan.ends(1), "state")), all("missing"));
    plan.says("TDG-9030");

    // Whoever makes them keeps messages for a second only.
    let short = format!("{url}&retention=1000");
    let made = topology("apply", &short).await;
    assert_eq!(sorted(told(made.ends(0), "outcome")), all("made"));
    let kept = topology("apply", &url).await;
    assert_eq!(sorted(told(kept.ends(0), "outcome")), all("kept"));
    let plan = topology("plan", &url).await;
    assert_eq!(sorted(told(plan.ends(0), "state")), all("there"));
    let plan = service.run(&["topology", "plan", "--broker", &url]).await;
    plan.ends(0)
        .tells("it keeps messages for 1000 ms")
        .tells("(TDG-4016)");
    let prune = service.run(&["topology", "prune", "--broker", &url]).await;
    prune.ends(2).says("kafka-topics.sh --delete");
}
