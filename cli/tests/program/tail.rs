//! `tidings events tail`, on the broker in the box and on RabbitMQ: what it shows, what it leaves alone, and
//! how it ends.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tidings::{
    Destination, Envelope, Outgoing, PublishErrorKind, Queue, Topology, Transport, Unrouted,
};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tokio::runtime::Runtime;

use crate::{
    run::{Ran, command, tidings},
    world::{Stack, World},
};

const SOON: Duration = Duration::from_secs(30);

/// A broker with a topic, and a consumer's queue bound to it.
pub(crate) struct Topic {
    pub(crate) runtime: Runtime,
    broker: Option<Handle>,
    pub(crate) url: String,
    pub(crate) amqp: Amqp,
    pub(crate) name: String,
    pub(crate) queue: String,
}

impl Topic {
    /// On the broker in the box.
    pub(crate) fn in_the_box() -> Self {
        let runtime = Runtime::new().unwrap();
        let broker = runtime
            .block_on(Broker::start(Options::ephemeral()))
            .unwrap();
        let url = broker.amqp_url();
        Self::on(runtime, Some(broker), url)
    }

    pub(crate) fn on_rabbitmq() -> Self {
        let url = tidings_testing::servers::rabbitmq_url();
        Self::on(Runtime::new().unwrap(), None, url)
    }

    fn on(runtime: Runtime, broker: Option<Handle>, url: String) -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        let (name, queue) = (format!("orders_{unique}"), format!("payment_{unique}"));
        let amqp = runtime.block_on(async {
            let amqp = Amqp::connect(&url).await.unwrap();
            let queue = Queue::new(queue.clone()).topic(name.clone());
            amqp.declare(&Topology::new().queue(queue)).await.unwrap();
            amqp
        });
        Self {
            runtime,
            broker,
            url,
            amqp,
            name,
            queue,
        }
    }

    pub(crate) fn publish(&self, name: &'static str, key: &str, body: impl Into<String>) {
        self.publish_all(vec![event(name, key, body.into())]);
    }

    pub(crate) fn publish_all(&self, events: Vec<Envelope>) {
        let topic = || Destination::Topic(self.name.clone().into());
        let messages = events.into_iter().map(|envelope| Outgoing {
            destination: topic(),
            unrouted: Unrouted::Hold,
            envelope,
        });
        let published = self.amqp.publish(messages.collect());
        for outcome in self.runtime.block_on(published) {
            outcome.unwrap();
        }
    }

    pub(crate) fn in_queue(&self) -> u32 {
        let depths = self.runtime.block_on(self.amqp.depths(&[&self.queue]));
        depths.unwrap()[0].unwrap().ready
    }

    /// Starts the program and waits until it watches.
    fn tail(&self, more: &[&str]) -> Tail {
        let args = [
            "events", "tail", "--topic", &self.name, "--broker", &self.url,
        ];
        Tail::start(&[&args[..], more].concat(), "watching ")
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        self.runtime.block_on(self.amqp.close());
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.shutdown());
        }
    }
}

pub(crate) fn event(name: &'static str, key: &str, body: String) -> Envelope {
    let mut envelope = Envelope::new(name, body);
    envelope.id = Some(format!("{name}/{key}").into());
    envelope.key = Some(key.into());
    envelope.source = "orders".into();
    envelope
}

/// The program while it runs.
pub(crate) struct Tail {
    child: Child,
    said: mpsc::Receiver<String>,
    heard: String,
}

impl Tail {
    /// Starts it and waits until it says that it does.
    pub(crate) fn start(args: &[&str], says: &str) -> Self {
        let mut child = command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, said) = mpsc::sync_channel(100_000);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let mut tail = Self {
            child,
            said,
            heard: String::new(),
        };
        tail.hears(says);
        tail
    }

    /// Waits until it says something on stderr.
    fn hears(&mut self, text: &str) {
        let since = Instant::now();
        while !self.heard.contains(text) {
            let left = SOON.saturating_sub(since.elapsed());
            let line = self.said.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("not said: {text}: {}", self.heard));
            self.heard.push_str(&line);
            self.heard.push('\n');
        }
    }

    /// Reads what it said until it ended.
    fn hears_the_rest(&mut self) {
        while let Ok(line) = self.said.recv_timeout(SOON) {
            self.heard.push_str(&line);
            self.heard.push('\n');
        }
    }

    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Reads everything until it ends.
    pub(crate) fn end(mut self) -> Ran {
        let mut out = String::new();
        let stdout = self.child.stdout.take();
        stdout.unwrap().read_to_string(&mut out).unwrap();
        let status = self.child.wait().unwrap();
        self.hears_the_rest();
        Ran {
            code: status.code(),
            out,
            err: std::mem::take(&mut self.heard),
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it shows, and that nobody else has less.
fn shows_copies(topic: &Topic) {
    topic.publish("order-placed.v1", "o-0", "{}");
    let json = topic.tail(&["order-*", "--json", "--count", "2"]);
    let page = topic.tail(&["--key", "o-1", "--from", "orders", "--count", "2"]);
    let revealed = topic.tail(&["--reveal", "--json", "--text", "tok_ok", "--count", "1"]);
    let body = "{\"orderId\": \"o-1\",\n \"card\": \"tok_ok\", \"note\": \"\\u001b[31m\u{9b}2J\"}";
    topic.publish("order-placed.v1", "o-1", body);
    topic.publish("payment-settled.v1", "o-1", r#"{"amount":99.90}"#);
    topic.publish("order-cancelled.v1", "o-2", r#"{"reason":"none left"}"#);

    let ran = json.end();
    ran.ends(0);
    let shown: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{ran:#?}")))
        .collect();
    let names: Vec<&Value> = shown.iter().map(|it| &it["message"]["name"]).collect();
    assert_eq!(names, ["order-placed.v1", "order-cancelled.v1"]);
    assert_eq!(shown[0]["topic"], json!(topic.name));
    assert_eq!(shown[0]["message"]["body"]["orderId"], "o-1");
    assert_eq!(shown[0]["message"]["body"]["card"], "***");

    let ran = page.end();
    ran.ends(0)
        .tells("order-placed.v1")
        .tells("payment-settled.v1")
        .tells("99.90");
    assert_eq!(ran.out.lines().count(), 2, "{ran:#?}");
    assert!(!ran.out.contains("tok_ok"), "{ran:#?}");
    let commands = |it: char| it.is_control() && it != '\n';
    assert!(!ran.out.contains(commands), "{ran:#?}");

    let ran = revealed.end();
    assert_eq!(ran.ends(0).json()["message"]["body"]["card"], "tok_ok");

    assert_eq!(topic.in_queue(), 4, "the consumer has lost some");
}

#[test]
fn it_shows_copies_and_takes_nothing() {
    shows_copies(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_it_shows_copies_and_takes_nothing() {
    shows_copies(&Topic::on_rabbitmq());
}

/// Its queue ends with it, however it ends; until then somebody receives from a topic of nobody.
fn leaves_nothing_behind(topic: &Topic) {
    let name = format!("{}_of_nobody", topic.name);
    let topology = Topology::new().topic(name.clone());
    let declared = topic.amqp.declare(&topology);
    topic.runtime.block_on(declared).unwrap();
    let publish = || {
        let message = Outgoing {
            destination: Destination::Topic(name.clone().into()),
            unrouted: Unrouted::Hold,
            envelope: event("order-placed.v1", "o-1", "{}".to_owned()),
        };
        topic
            .runtime
            .block_on(topic.amqp.publish(vec![message]))
            .remove(0)
    };
    let is_for_nobody = || {
        let outcome = publish();
        outcome.is_err_and(|error| error.kind() == PublishErrorKind::Unroutable)
    };
    assert!(is_for_nobody());
    for how in ["interrupted", "killed"] {
        let mut tail = topic.tail(&["--topic", &name]);
        publish().unwrap();
        match how {
            "killed" => tail.child.kill().unwrap(),
            _ => tail.interrupt(),
        }
        let ran = tail.end();
        assert_eq!(ran.code, (how == "interrupted").then_some(0), "{ran:#?}");
        let since = Instant::now();
        while !is_for_nobody() {
            assert!(since.elapsed() < SOON, "{how}: its queue is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn it_leaves_nothing_behind() {
    leaves_nothing_behind(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_it_leaves_nothing_behind() {
    leaves_nothing_behind(&Topic::on_rabbitmq());
}

fn refuses_a_missing_topic(topic: &Topic) {
    for _ in 0..2 {
        // Twice: the first look did not make it.
        let args = [
            "events",
            "tail",
            "--topic",
            &topic.name,
            "--topic",
            "order_evnts",
        ];
        let ran = tidings([&args[..], &["--broker", &topic.url]].concat());
        ran.ends(1)
            .says("there is no topic `order_evnts`")
            .says("TDG-9050");
        assert_eq!(ran.out, "");
    }
}

#[test]
fn a_topic_that_is_not_there_is_an_error_and_is_not_made() {
    refuses_a_missing_topic(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_a_topic_that_is_not_there_is_an_error_and_is_not_made() {
    refuses_a_missing_topic(&Topic::on_rabbitmq());
}

/// Nobody reads what it prints while many events come: it drops some and counts them, and takes no others
/// from the broker's memory or from the consumer.
fn counts_what_it_drops(topic: &Topic) {
    const EVENTS: usize = 16_000;
    let mut tail = topic.tail(&["--json"]);
    let pad = "x".repeat(100);
    let placed = |number: usize| {
        event(
            "order-placed.v1",
            &number.to_string(),
            format!("{{\"pad\":\"{pad}\"}}"),
        )
    };
    for first in (0..EVENTS).step_by(1000) {
        topic.publish_all((first..first + 1000).map(placed).collect());
        // Not so fast that the broker's queue is full for less than a second, which is not told.
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut stdout = BufReader::new(tail.child.stdout.take().unwrap()).lines();
    let mut shown = Vec::new();
    // The last one is not dropped: the oldest are.
    while shown.last() != Some(&(EVENTS - 1)) {
        let line: Value = serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap();
        shown.push(line["message"]["key"].as_str().unwrap().parse().unwrap());
    }
    tail.hears("events are not shown");
    assert!(shown.is_sorted(), "they are in order");
    tail.interrupt();
    assert_eq!(tail.child.wait().unwrap().code(), Some(0));
    tail.hears_the_rest();
    let counts = tail.heard.lines();
    let counts = counts.filter_map(|line| {
        let one = || line.split_once(" event is not shown");
        line.split_once(" events are not shown").or_else(one)
    });
    let dropped: usize = counts
        .map(|(count, _)| count.parse::<usize>().unwrap())
        .sum();
    let known = shown.len() + dropped;
    // On a machine that is very slow the broker drops some, too, and that is said.
    match tail.heard.contains("nobody counts them") {
        true => assert!(known < EVENTS, "{}", tail.heard),
        false => assert_eq!(known, EVENTS, "{}", tail.heard),
    }
    assert_eq!(topic.in_queue() as usize, EVENTS);
}

#[test]
fn a_slow_reader_is_told_how_many_events_it_missed() {
    counts_what_it_drops(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_a_slow_reader_is_told_how_many_events_it_missed() {
    counts_what_it_drops(&Topic::on_rabbitmq());
}

#[test]
fn it_ends_when_its_time_is_over_or_nobody_reads() {
    let topic = Topic::in_the_box();
    topic.tail(&["--for", "100ms"]).end().ends(0);
    let late = topic.tail(&["--for", "100ms", "--count", "1"]).end();
    late.ends(1).says("0 of 1 event came");
    // Nobody reads what it prints, and more is there than fits on the way.
    let mut stuck = topic.tail(&["--json"]);
    let pad = format!("{{\"pad\":\"{}\"}}", "x".repeat(10_000));
    let many = (0..100).map(|number| event("order-placed.v1", &number.to_string(), pad.clone()));
    topic.publish_all(many.collect());
    std::thread::sleep(Duration::from_millis(500));
    stuck.interrupt();
    let since = Instant::now();
    while stuck.child.try_wait().unwrap().is_none() {
        assert!(since.elapsed() < SOON, "it waits for its reader");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(stuck.child.wait().unwrap().code(), Some(0));

    let mut tail = topic.tail(&[]);
    drop(tail.child.stdout.take());
    let since = Instant::now();
    let ended = loop {
        topic.publish("order-placed.v1", "o-1", "{}");
        if let Some(ended) = tail.child.try_wait().unwrap() {
            break ended;
        }
        assert!(since.elapsed() < SOON, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn it_goes_on_after_the_broker_was_killed_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let port = tidings_testing::servers::free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let start = || {
        let data = folder.path().to_str().unwrap();
        let mut broker = command(["broker", "--listen", &listen, "--data", data]);
        let broker = broker.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut broker = broker.spawn().unwrap();
        let mut lines = BufReader::new(broker.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        broker
    };
    let mut broker = start();
    let url = format!("amqp://guest:guest@{listen}");
    let topic = Topic::on(Runtime::new().unwrap(), None, url);
    let mut tail = topic.tail(&["--json", "--count", "2"]);
    topic.publish("order-placed.v1", "o-1", "{}");
    broker.kill().unwrap();
    broker.wait().unwrap();
    let mut broker = start();
    tail.hears("watching again");
    let connected = Instant::now();
    while !topic.amqp.is_connected() {
        assert!(connected.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    topic.publish("order-placed.v1", "o-2", "{}");
    let ran = tail.end();
    ran.ends(0)
        .says("events meanwhile were missed")
        .tells("o-1")
        .tells("o-2");
    broker.kill().unwrap();
    broker.wait().unwrap();
}

/// Without topics it watches those from which services receive, and no other: its queue would take what is
/// held.
async fn watches_what_services_hear(stack: Stack) {
    let world = World::new(stack).await;
    let services = world.start().await;
    let (database, broker) = (world.database.clone(), world.broker());
    let at = ["--database", &*database, "--broker", &*broker];
    let tail = Tail::start(
        &[&["events", "tail", "--json", "--count", "1"], &at[..]].concat(),
        "watching ",
    );
    world.place("o-1", "tok_ok").await;
    let ran = tokio::task::spawn_blocking(|| tail.end()).await.unwrap();
    let shown = ran.ends(0).json();
    assert_eq!(shown["message"]["name"], "order-placed.v1");
    assert_eq!(shown["message"]["body"]["card"], "***");
    let heard = shown["topic"].as_str().unwrap().to_owned();
    ran.says("is not watched, because no service receives from it");

    // The saga says how it ended, and nobody listens: it is held, and not to be taken.
    let held = world
        .until(&["outbox", "list", "--json"], |it| {
            it["rows"][0]["state"] == "held"
        })
        .await;
    let topic = held["rows"][0]["destination"]
        .as_str()
        .unwrap()
        .trim_start_matches("topic:");
    let topic = topic
        .trim_start_matches("topic `")
        .trim_end_matches('`')
        .to_owned();
    let run = async |args: &[&str]| {
        let args = [&["events", "tail", "--for", "100ms"], args, &at].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
    };
    run(&["--topic", &topic])
        .await
        .ends(1)
        .says("are held")
        .says("TDG-9050");
    let pattern = format!("{}*", &heard[..heard.len() - 1]);
    run(&["--topic", &pattern])
        .await
        .ends(0)
        .says(&format!("watching {heard}"));
    run(&["--topic", "nothing-*"])
        .await
        .ends(1)
        .says("no such topic")
        .says("TDG-9050");
    let still = world.tidings(&["outbox", "list", "--json"]).await.json();
    assert_eq!(still["rows"][0]["state"], "held");
    services.stop().await;
    tidings(["events", "tail", "--broker", &broker])
        .ends(2)
        .says("--topic NAME");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_topics_it_watches_those_that_services_hear() {
    watches_what_services_hear(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn on_postgresql_without_topics_it_watches_those_that_services_hear() {
    watches_what_services_hear(Stack::Postgres).await;
}
