//! `tidings` on SNS and SQS, which an emulator stands for, run as an operator runs it. Built with `--features aws`, as
//! `cargo xtask test` does.

#![cfg(feature = "aws")]

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

use run::{Ran, tidings};
use tempfile::TempDir;
use tidings::{Error, HandlerOptions, Outgoing, Transport, prelude::*};
use tidings_amqp::Amqp;
use tidings_aws::Aws;
use tidings_broker::{Broker, Options};
use tidings_sqlite::SqliteStore;
use tidings_testing::{foreign::documents, servers::aws_url};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

const SOON: Duration = Duration::from_secs(60);

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

    async fn router(&self) -> Router {
        let file = self.folder.path().join("payment.db");
        let store = SqliteStore::open(file).await.unwrap();
        Router::new(self.name.clone())
            .on(settle)
            .on_with(ship, HandlerOptions::new().ordered(3))
            .with_state(Arc::clone(&self.book))
            .retry(Retry::none())
            .transactional(store)
    }

    async fn start(&self, transport: impl Transport) -> Running {
        let router = self.router().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let service = serve(transport, router).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let service = tokio::spawn(async move { service.await.unwrap() });
        tokio::time::timeout(SOON, ready).await.unwrap();
        Running(stop, service)
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let database = format!("sqlite://{}", self.folder.path().display());
        let args = [args, &["--database", &database]].concat();
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
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

async fn publish<M: Message>(transport: &impl Transport, messages: impl IntoIterator<Item = M>) {
    let outgoing = messages.into_iter().map(|it| Outgoing::new(&it).unwrap());
    for outcome in transport.publish(outgoing.collect()).await {
        outcome.unwrap();
    }
}

/// With a name for a prefix that nobody else uses, and receives that do not wait for long.
fn url() -> String {
    let (region, rest) = aws_url()
        .split_once('?')
        .map(|(region, rest)| (region.to_owned(), rest.to_owned()))
        .unwrap();
    let prefix = &uuid::Uuid::new_v4().simple().to_string()[..8];
    format!("{region}/{prefix}-?{rest}&wait=1&handover=1")
}

fn order(number: usize) -> OrderPlaced {
    OrderPlaced {
        order_id: format!("o-{number}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn dead_letters_on_aws_are_looked_at_discarded_and_redriven() {
    let url = url();
    let aws = Arc::new(Aws::connect(&url).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&aws)).await;
    publish(&*aws, (0..3).map(order)).await;
    let queue = service.queue();
    let dead = tidings::dead_letter_queue(&queue);
    let access = aws.dead_letter_access().unwrap();
    let letters = async |count: u64| {
        let deadline = Instant::now() + SOON;
        while access.count(&dead).await.unwrap() != count {
            assert!(Instant::now() < deadline, "{count} letters");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    letters(3).await;
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
    // In any order: they have several keys, which fail beside each other.
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
    letters(2).await;
    run(&["list", "--recorded"]).await.ends(0).tells(&queue);

    // Three times the same messages within five minutes, in which SQS drops what it takes for a duplicate.
    let redrive = ["redrive", &queue, "--all", "--settle", "300ms", "--json"];
    for is_away in [true, true, false] {
        service.book.is_away.store(is_away, Ordering::SeqCst);
        let redriven = run(&redrive).await;
        if !is_away {
            redriven.ends(0);
        }
        // Those that come back while it waits are told, and its exit code is 1 then.
        assert_eq!(redriven.json()["sent"], 2, "{redriven:#?}");
        letters(if is_away { 2 } else { 0 }).await;
    }
    assert_eq!(service.handled(2).await, ["o-0", "o-2"]);
    run(&["list", &queue])
        .await
        .ends(0)
        .tells("no dead letters");

    // Who receives, SQS does not know; that is not nobody.
    let seen = service
        .run(&["consumers", "list", "--json", "--broker", &url])
        .await;
    let seen = seen.ends(0).json();
    let seen = seen["consumers"].as_array().unwrap();
    let seen = seen.iter().find(|it| it["consumer"] == *queue).unwrap();
    assert_eq!(
        (&seen["backlog"], &seen["queueMissing"]),
        (&0.into(), &false.into())
    );
    assert!(
        seen.get("receivers").is_some_and(|it| it.is_null()),
        "{seen:#}"
    );
    let seen = service.run(&["consumers", "list", "--broker", &url]).await;
    seen.ends(0).tells("unknown");
    let healthy = service.run(&["doctor", "--broker", &url]).await;
    healthy.ends(0).says("does not say who receives");
    running.stop().await;
    let stopped = service.run(&["doctor", "--broker", &url]).await;
    stopped.ends(0);

    // What it needs is there, and nowhere else: `apply` makes it, under another prefix.
    let plan = async |url: &str| service.run(&["topology", "plan", "--broker", url]).await;
    plan(&url).await.ends(0).tells("policy of `");
    let elsewhere = url.replace("?", "elsewhere-?");
    plan(&elsewhere).await.ends(1).tells("missing").says("TDG-");
    let apply = ["topology", "apply", "--broker", &elsewhere];
    service.run(&apply).await.ends(0).tells("made");
    service.run(&apply).await.ends(0).tells("kept");
    plan(&elsewhere).await.ends(0).tells("there");
    let plan = ["topology", "plan", "--json", "--broker", &url];
    let plan = service.run(&plan).await.ends(0).json();
    assert_eq!(plan["complete"], true, "{plan:#}");
    let policy = &plan["policies"][&service.name];
    let named = |id: &str| {
        let statements = policy["Statement"].as_array().unwrap().iter();
        let mut found = statements.filter(|it| it["Sid"] == id);
        found.next().unwrap_or_else(|| panic!("{id}: {policy:#}"))["Resource"].to_string()
    };
    let queue = queue.replace('.', "--");
    assert!(named("Receive").contains(&queue), "{policy:#}");
    assert!(named("Subscribe").contains("order-placed"), "{policy:#}");
    let prune = service.run(&["topology", "prune", "--broker", &url]).await;
    prune.ends(2).says("does not say who receives");
}

/// They promise no order, so a service that asks for it learns so before it does anything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn a_service_that_asks_for_order_does_not_start_on_standard_queues() {
    const SAID: &str = "`Amazon SNS and SQS` can have 0; take fewer, or ask for no order";
    let standard = format!("{}&queues=standard", url());
    let aws = Aws::connect(&standard).await.unwrap();
    let service = Service::new();
    let serving = serve(aws, service.router().await).into_future();
    let ended = tokio::time::timeout(SOON, serving).await;
    let error = ended.expect("it ends at once").unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    let group = format!("the ordered group `{}.order-shipped.v1", service.name);
    assert!(text.contains(&group), "{text}");
    assert!(
        text.contains(&format!("has 3 partitions, and {SAID}")),
        "{text}"
    );
    assert!(documents("engines.md").contains(SAID));
}

/// Messages, messages of an ordered group, and a dead letter.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn what_waits_on_amqp_is_moved_to_aws() {
    let new = url();
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let old = broker.amqp_url();
    let amqp = Arc::new(Amqp::connect(&old).await.unwrap());
    let service = Service::new();
    service.book.is_away.store(true, Ordering::SeqCst);
    let running = service.start(Arc::clone(&amqp)).await;
    publish(&*amqp, [order(0)]).await;
    let dead = tidings::dead_letter_queue(&service.queue());
    let deadline = Instant::now() + SOON;
    while amqp
        .dead_letter_access()
        .unwrap()
        .count(&dead)
        .await
        .unwrap()
        == 0
    {
        assert!(Instant::now() < deadline, "it becomes a dead letter");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.stop().await;
    let amqp = Amqp::connect(&old).await.unwrap();
    publish(&amqp, (1..50).map(order)).await;
    let parcels = (0..30).map(|number| OrderShipped {
        parcel: format!("p-{number}"),
        order_id: format!("o-{}", number % 5),
    });
    publish(&amqp, parcels).await;

    service.book.is_away.store(false, Ordering::SeqCst);
    let running = service.start(Aws::connect(&new).await.unwrap()).await;
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
