//! TLS, users and what they may, on a real Kafka that asks. Built with `--features tls`, as `cargo xtask test` does.

#![cfg(feature = "tls")]

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{Once, OnceLock},
    time::Duration,
};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tidings_core::{
    Destination, Envelope, Outgoing, PublishError, PublishErrorKind, Queue, Settlement,
    Subscription, Topology, Transport, TransportError, Unrouted,
};
use tidings_kafka::Kafka;
use tidings_testing::servers::{Operation, Resource, SecuredKafka, Security};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(60);

/// What must never be shown.
const PASSWORDS: [&str; 2] = ["opensesame", "wrongword"];

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name);
    path.to_string_lossy().into_owned()
}

/// One node for all tests of this file.
fn server() -> &'static SecuredKafka {
    static SERVER: OnceLock<SecuredKafka> = OnceLock::new();
    SERVER.get_or_init(|| {
        begin_to_log();
        let read = |name| fs::read_to_string(file(name)).expect("a file of the tests");
        let security = Security {
            identity: &[read("broker-key.pem"), read("broker.pem")].concat(),
            authority: &read("authority.pem"),
            super_users: &["alice", "CN=payment"],
            passwords: &["alice", "guest", "clerk", "reader", "late"]
                .map(|user| (user, PASSWORDS[0])),
        };
        SecuredKafka::start(&security).expect("it starts")
    })
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps everything that is logged, down to what only developers look at.
fn begin_to_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(|| Log);
        log.init();
    });
}

fn log() -> String {
    String::from_utf8_lossy(&LOG.lock()).into_owned()
}

#[track_caller]
fn shows_no_secret(text: &str) {
    for secret in PASSWORDS {
        assert!(!text.contains(secret), "{text}");
    }
}

fn trusting(options: &str) -> String {
    let authority = file("authority.pem").replace('/', "%2F");
    format!("cacertfile={authority}{options}")
}

fn showing(certificate: &str, key: &str) -> String {
    let [certificate, key] = [certificate, key].map(|file| file.replace('/', "%2F"));
    trusting(&format!("&certfile={certificate}&keyfile={key}"))
}

/// A connection, or why there is none.
async fn connect(url: &str) -> Result<Kafka, TransportError> {
    let builder = Kafka::builder(url)?;
    shows_no_secret(&format!("{builder:?}"));
    match timeout(SOON, builder.connect()).await {
        Ok(connected) => connected,
        Err(_) => panic!("it neither connects nor says why: {url}: {}", log()),
    }
}

/// A user of the listener that asks for user and password.
async fn connect_as(user: &str) -> Result<Kafka, TransportError> {
    let (at, password) = (server().sasl(), PASSWORDS[0]);
    connect(&format!("kafka://{user}:{password}@{at}?partitions=1")).await
}

/// A queue that subscribes to a topic.
struct Place {
    topic: String,
    queue: String,
}

impl Place {
    fn new() -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        Self {
            topic: format!("topic-{unique}"),
            queue: format!("consumer-{unique}"),
        }
    }

    async fn declare(&self, kafka: &Kafka) -> Result<(), TransportError> {
        let queue = Queue::new(self.queue.clone()).topic(self.topic.clone());
        let topology = Topology::new().queue(queue);
        let declared = timeout(SOON, kafka.declare(&topology)).await;
        declared.expect("it declares or says why it cannot")
    }

    async fn publish(&self, kafka: &Kafka) -> Result<(), PublishError> {
        let message = Outgoing {
            destination: Destination::Topic(self.topic.clone().into()),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("noted.v1", "42"),
        };
        let published = timeout(SOON, kafka.publish(vec![message])).await;
        published.expect("an answer").remove(0)
    }

    /// The body of the next message, which is acknowledged; or why none comes any more.
    async fn receive(&self, kafka: &Kafka) -> Result<Vec<u8>, TransportError> {
        let subscription = Subscription::new(self.queue.clone());
        let mut deliveries = kafka.subscribe(subscription).await?;
        let next = timeout(SOON, deliveries.next()).await.expect("an answer");
        let delivery = next.expect("it does not end without a reason")?;
        let body = delivery.envelope.body.to_vec();
        delivery.settle(Settlement::Ack).await?;
        Ok(body)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and OpenSSL: run `cargo xtask test`"]
async fn who_has_what_is_asked_for_is_let_in() {
    let server = server();
    let (tls, mutual, sasl, both) = (
        server.tls(),
        server.mutual_tls(),
        server.sasl(),
        server.sasl_tls(),
    );
    let alice = format!("alice:{}", PASSWORDS[0]);
    let (trusting, own) = (
        trusting(""),
        showing(&file("client.pem"), &file("client-key.pem")),
    );
    for url in [
        format!("kafkas://{tls}?{trusting}"),
        format!("kafkas://{mutual}?{own}"),
        format!("kafka://{alice}@{sasl}?sasl=PLAIN"),
        format!("kafka://{alice}@{sasl}?sasl=SCRAM-SHA-256"),
        format!("kafkas://{alice}@{both}?{trusting}"),
        format!("kafkas://{alice}@{both}?{trusting}&sasl=SCRAM-SHA-256"),
        format!("kafkas://{alice}@{both}?{trusting}&sasl=SCRAM-SHA-512"),
    ] {
        let url = format!("{url}&partitions=1");
        let kafka = connect(&url).await.expect(&url);
        shows_no_secret(&format!("{kafka:?}"));
        let place = Place::new();
        place.declare(&kafka).await.expect(&url);
        place.publish(&kafka).await.expect(&url);
        assert_eq!(place.receive(&kafka).await.expect(&url), b"42", "{url}");
        kafka.close().await;
    }
    shows_no_secret(&log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and OpenSSL: run `cargo xtask test`"]
async fn who_is_not_let_in_is_told_why() {
    let server = server();
    let (tls, mutual, both) = (server.tls(), server.mutual_tls(), server.sasl_tls());
    let trusting = trusting("");
    let stranger = file("../../../tidings-amqp/tests/tls/authority.pem").replace('/', "%2F");
    let of_others = showing(
        &file("../../../tidings-amqp/tests/tls/certificate.pem"),
        &file("../../../tidings-amqp/tests/tls/key.pem"),
    );
    let sasl = |user: &str, how: &str| format!("kafkas://{user}@{both}?{trusting}&sasl={how}");
    for (url, why) in [
        (sasl("alice:wrongword", "PLAIN"), "mend user and password"),
        (
            sasl("alice:wrongword", "SCRAM-SHA-256"),
            "mend user and password",
        ),
        (
            sasl("nobody:wrongword", "SCRAM-SHA-512"),
            "mend user and password",
        ),
        (
            format!("kafkas://{tls}?cacertfile={stranger}"),
            "`cacertfile=",
        ),
        (format!("kafkas://{mutual}?{trusting}"), "`certfile="),
        (format!("kafkas://{mutual}?{of_others}"), "`certfile="),
    ] {
        let error = connect(&url).await.expect_err(&url);
        let said = format!("{error} {error:?}");
        shows_no_secret(&said);
        assert!(!error.is_temporary(), "{said}");
        assert!(
            said.contains("TDG-4014") && said.contains(why),
            "{url}: {said}"
        );
    }
    shows_no_secret(&log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka and OpenSSL: run `cargo xtask test`"]
async fn who_may_not_is_told_so_and_goes_on_when_it_may() {
    let server = server();
    let (all, topics, groups) = (Operation::All, Resource::Topic("*"), Resource::Group("*"));
    let (place, forbidden) = (Place::new(), Place::new());
    let alice = connect_as("alice").await.expect("it may everything");
    for place in [&place, &forbidden] {
        place.declare(&alice).await.expect("it declares");
    }
    let is_told = |error: TransportError, what: &str| {
        let said = error.to_string();
        assert!(!error.is_temporary(), "{said}");
        assert!(said.contains("TDG-4015") && said.contains(what), "{said}");
    };
    // Nothing at all.
    let error = connect_as("guest").await.expect_err("it may nothing");
    is_told(error, "tidings.bindings");

    // Not to publish to one of two topics.
    server.allow("clerk", topics, all).expect("an entry");
    server.allow("clerk", groups, all).expect("an entry");
    let of_topic = Resource::Topic(&forbidden.topic);
    let written = server.deny("clerk", of_topic, Operation::Write);
    written.expect("an entry");
    let clerk = connect_as("clerk").await.expect("it may");
    place.publish(&clerk).await.expect("it may");
    let refused = forbidden.publish(&clerk).await.expect_err("it may not");
    assert_eq!(refused.kind(), PublishErrorKind::Refused);
    assert!(refused.to_string().contains("TDG-4015"), "{refused}");
    assert_eq!(place.receive(&clerk).await.expect("it may"), b"42");

    // Not to receive.
    server.allow("reader", topics, all).expect("an entry");
    let reader = connect_as("reader").await.expect("it may");
    let error = place.receive(&reader).await.expect_err("it may not");
    is_told(error, &place.queue);

    // Not to publish anything, until somebody allows it.
    for operation in [Operation::Read, Operation::Describe] {
        server.allow("late", topics, operation).expect("an entry");
    }
    server.allow("late", groups, all).expect("an entry");
    let late = connect_as("late").await.expect("it may");
    let error = Place {
        topic: place.topic.clone(),
        queue: forbidden.queue.clone(),
    };
    let error = error.declare(&late).await.expect_err("it may not");
    is_told(error, "tidings.bindings");
    let refused = place.publish(&late).await.expect_err("it may not");
    assert_eq!(refused.kind(), PublishErrorKind::Refused, "{refused}");
    assert!(refused.to_string().contains("TDG-4015"), "{refused}");
    let written = server.allow("late", topics, Operation::Write);
    written.expect("an entry");
    let until = Instant::now() + SOON;
    while let Err(error) = place.publish(&late).await {
        assert!(Instant::now() < until, "{error}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(place.receive(&late).await.expect("it may"), b"42");
    shows_no_secret(&log());
}
