//! `tidings events replay`, on the broker in the box: killed in the middle, and run again.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use crate::run::{command, tidings};
use tidings::{
    Commit, Destination, Envelope, Outgoing, Queue, Store, Topology, Transport, Unrouted,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_sqlite::SqliteStore;
use tokio::{runtime::Runtime, time::Instant};

const QUEUE: &str = "loyalty.order-confirmed.v1";
const EVENTS: usize = 300;
const SOON: Duration = Duration::from_secs(60);

/// A service's database with events that were sent and are kept, and a broker.
struct Past {
    runtime: Runtime,
    folder: tempfile::TempDir,
    broker: Option<Handle>,
    url: String,
}

impl Past {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let broker = runtime.block_on(async {
            fill(&folder.path().join("orders.db")).await;
            let options = Options::durable(folder.path().join("broker"));
            let options = options.listen(([127, 0, 0, 1], 0));
            Broker::start(options).await.unwrap()
        });
        let url = format!("amqp://guest:guest@{}", broker.amqp_addr());
        Self {
            runtime,
            folder,
            broker: Some(broker),
            url,
        }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<String> {
        let database = format!("sqlite://{}", self.folder.path().display());
        let args = ["--database", &database, "--broker", &self.url, "events"];
        let args = args.iter().chain(more);
        args.map(|&arg| arg.to_owned()).collect()
    }

    fn declare(&self) {
        self.runtime.block_on(async {
            let amqp = Amqp::connect(&self.url).await.unwrap();
            let topology = Topology::new().queue(Queue::new(QUEUE));
            amqp.declare(&topology).await.unwrap();
            amqp.close().await;
        });
    }

    /// How often each event is in the queue; they stay there.
    fn arrived(&self) -> BTreeMap<usize, usize> {
        use futures_util::StreamExt as _;
        self.runtime.block_on(async {
            let amqp = Amqp::connect(&self.url).await.unwrap();
            let prefetch = std::num::NonZeroU16::new(10_000).unwrap();
            let subscription = tidings::Subscription::new(QUEUE).prefetch(prefetch);
            let mut deliveries = amqp.subscribe(subscription).await.unwrap();
            let (mut arrived, mut out) = (BTreeMap::new(), Vec::new());
            // The queue is quiet now: what does not come within a second is not there.
            while let Ok(Some(delivery)) =
                tokio::time::timeout(Duration::from_secs(1), deliveries.next()).await
            {
                let delivery = delivery.unwrap();
                assert!(delivery.envelope.is_replayed());
                let body = std::str::from_utf8(&delivery.envelope.body).unwrap();
                *arrived.entry(body.parse().unwrap()).or_default() += 1;
                out.push(delivery);
            }
            drop((out, deliveries));
            amqp.close().await;
            arrived
        })
    }

    /// How many are sent, as the program has written down.
    fn sent(&self) -> u64 {
        let listed = tidings(self.args(&["replays", "--json"])).ends(0).json();
        listed["replays"][0]["sent"].as_u64().unwrap_or(0)
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.shutdown());
        }
    }
}

/// Each second event is one of another kind.
async fn fill(path: &Path) {
    let store = SqliteStore::open(path).await.unwrap();
    store.log().unwrap().keep(Duration::from_secs(86_400));
    for number in 0..EVENTS {
        let message = |name: &'static str| {
            let mut envelope = Envelope::new(name, number.to_string());
            envelope.id = Some(format!("{name}/{number}").into());
            Outgoing {
                destination: Destination::topic("order_events"),
                unrouted: Unrouted::Hold,
                envelope,
            }
        };
        let commit = Commit {
            outbox: vec![message("order-placed.v1"), message("order-confirmed.v1")],
            ..Commit::default()
        };
        store.commit(commit).await.unwrap();
    }
}

#[test]
fn a_replay_that_is_killed_goes_on_and_everything_arrives() {
    let past = Past::new();
    let replay = |more: &[&str]| {
        let args = ["replay", "--to", QUEUE].iter().chain(more);
        past.args(&args.copied().collect::<Vec<_>>())
    };
    // Nobody has such a queue yet.
    tidings(replay(&[])).ends(1).says("TDG-7001");
    past.declare();

    let mut killed = command(replay(&["--rate", "60"]));
    let mut killed = killed.stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + SOON;
    while past.sent() < 70 {
        assert!(Instant::now() < deadline, "it sends nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = past.sent();
    assert!(before < EVENTS as u64);

    // Another one is refused, and this one goes on.
    tidings(replay(&["--from", "7"])).ends(1).says("TDG-7002");
    let ended = tidings(replay(&["--rate", "5000", "--json"]));
    let ended = ended.ends(0).json();
    assert_eq!(ended["service"], "orders");
    assert_eq!(ended["passedOver"].as_u64(), Some(EVENTS as u64), "{ended}");
    assert_eq!(ended["notSent"], 0);
    let arrived = past.arrived();
    assert!(arrived.keys().copied().eq(0..EVENTS), "nothing is missing");
    let twice = arrived.values().filter(|count| **count > 1).count();
    assert!(
        twice <= 130,
        "{twice} came twice: a second's share, and what was under way"
    );
    assert!(arrived.values().all(|count| *count <= 2));

    let listed = tidings(past.args(&["replays"]));
    listed.ends(0).tells("done").tells(QUEUE);
}

#[test]
fn wrong_usage_is_told() {
    let past = Past::new();
    let check = |more: &[&str], code, says: &str| {
        tidings(past.args(&[&["replay"], more].concat()))
            .ends(code)
            .says(says);
    };
    check(&[], 2, "--to");
    check(
        &["--to", QUEUE, "--from", "yesterday"],
        2,
        "2026-02-01T00:00:00Z",
    );
    check(&["--to", QUEUE, "--rate", "0"], 2, "--rate");
    check(&["--to", "loyalty.ordered"], 2, "--partitions");
    check(
        &["--to", "loyalty.ordered", "--partitions", "4"],
        2,
        "--event",
    );
    let partitions = ["--to", "loyalty.ordered", "--partitions", "4"];
    let named = [&partitions[..], &["--event", "order-confirmed.v1"]].concat();
    check(&named, 1, "TDG-7001");
}
