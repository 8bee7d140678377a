//! What the tests are made of: a queue of its own for each, and short words for what they do with it.

pub(crate) mod cluster;
pub(crate) mod growing;
pub(crate) mod handing_over;
pub(crate) mod letters;
pub(crate) mod log;
pub(crate) mod looking;
pub(crate) mod losses;
pub(crate) mod outages;
pub(crate) mod processes;
pub(crate) mod replays;
pub(crate) mod settings;
pub(crate) mod transactions;

use std::{collections::BTreeMap, num::NonZeroU16, time::Duration};

use futures_util::StreamExt;
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
};
use tidings_core::{
    Deliveries, Delivery, Destination, Envelope, Group, Outgoing, Queue, Settlement, Subscription,
    Topology, Transport, Unrouted,
};
use tidings_kafka::Kafka;
use tokio::time::timeout;

/// How long to wait for what must come, also when Kafka starts anew or a session has to run out.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// How long to wait for what must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

/// How many keys the messages of [`publish_all`] have.
const KEYS: usize = 7;

/// A queue that subscribes to a topic.
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) queue: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        Self {
            topic: format!("topic-{unique}"),
            queue: format!("consumer-{unique}.noted.v1"),
        }
    }

    pub(crate) async fn declare(&self, kafka: &Kafka) {
        let queue = Queue::new(self.queue.clone()).topic(self.topic.clone());
        let topology = Topology::new().queue(queue);
        kafka.declare(&topology).await.expect("it declares");
    }

    /// A group of one partition for the topic; the queue of its partition.
    pub(crate) async fn declare_group(&self, kafka: &Kafka) -> String {
        let one = NonZeroU16::MIN;
        let group = Group::new(self.queue.clone(), one).topic(self.topic.clone());
        let partition = group.partition(0);
        let topology = Topology::new().group(group);
        kafka.declare(&topology).await.expect("it declares");
        partition
    }

    /// One message to the topic, with a key if there is one.
    pub(crate) fn message(&self, key: Option<&str>, body: impl ToString) -> Outgoing {
        let mut envelope = Envelope::new("noted.v1", body.to_string());
        envelope.key = key.map(Into::into);
        Outgoing {
            destination: Destination::Topic(self.topic.clone().into()),
            unrouted: Unrouted::Hold,
            envelope,
        }
    }

    /// Publishes to one partition.
    pub(crate) async fn publish(&self, kafka: &Kafka, bodies: impl IntoIterator<Item = usize>) {
        let batch = bodies.into_iter().map(|body| self.message(None, body));
        for outcome in kafka.publish(batch.collect()).await {
            outcome.expect("it is published");
        }
    }

    pub(crate) async fn subscribe(&self, kafka: &Kafka, prefetch: u16) -> Deliveries {
        let prefetch = NonZeroU16::new(prefetch).expect("not zero");
        let subscription = Subscription::new(self.queue.clone()).prefetch(prefetch);
        kafka.subscribe(subscription).await.expect("it subscribes")
    }
}

/// A connection whose hand-overs are short, and its session too: Kafka has to allow that
/// (`group.min.session.timeout.ms`).
pub(crate) async fn connect(url: &str) -> Kafka {
    connect_with(url, "handover_timeout=1000").await
}

/// The same with other options.
pub(crate) async fn connect_with(url: &str, options: &str) -> Kafka {
    log::begin();
    let url = format!("{url}?partitions=4&session_timeout=4000&{options}");
    Kafka::connect(&url).await.expect("it connects")
}

/// The settings of a foreign client.
pub(crate) fn foreign(url: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url.trim_start_matches("kafka://"));
    config
}

pub(crate) fn admin(url: &str) -> AdminClient<DefaultClientContext> {
    foreign(url).create().expect("an operator's client")
}

/// Where a partition begins and ends.
pub(crate) fn ends(url: &str, topic: &str, partition: i32) -> KafkaResult<(i64, i64)> {
    let looker: BaseConsumer = foreign(url).create()?;
    looker.fetch_watermarks(topic, partition, SOON)
}

/// Publishes `count` messages as a relay does: from the first that was not taken on again. The longest time that a call
/// took.
pub(crate) async fn publish_all(publisher: &Kafka, place: &Place, count: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for start in (0..count).step_by(50) {
        let mut batch: Vec<usize> = (start..start + 50).collect();
        while !batch.is_empty() {
            let message = |body: &usize| place.message(Some(&(body % KEYS).to_string()), body);
            let messages = batch.iter().map(message).collect();
            let began = std::time::Instant::now();
            let outcomes = publisher.publish(messages).await;
            longest = longest.max(began.elapsed());
            match outcomes.iter().position(Result::is_err) {
                None => batch.clear(),
                Some(at) => {
                    batch.drain(..at);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    longest
}

/// Receives all of them, and says that those of each key came in order, counting each when it first comes.
pub(crate) async fn receive_all(deliveries: &mut Deliveries, count: usize) {
    let mut seen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut missing = count;
    while missing > 0 {
        let delivery = next(deliveries).await;
        let number = body(&delivery);
        let of_key = seen.entry(number % KEYS).or_default();
        if !of_key.contains(&number) {
            of_key.push(number);
            missing -= 1;
        }
        // One that is stale comes again.
        let _ = delivery.settle(Settlement::Ack).await;
    }
    for (key, numbers) in seen {
        let expected: Vec<usize> = (0..count).filter(|it| it % KEYS == key).collect();
        assert_eq!(numbers, expected, "key {key}");
    }
}

pub(crate) async fn next(deliveries: &mut Deliveries) -> Delivery {
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        Ok(other) => panic!("the subscription failed or ended: {other:?}"),
        Err(_) => panic!("no delivery within {SOON:?}"),
    }
}

/// The next `count`, which stay out.
pub(crate) async fn next_few(deliveries: &mut Deliveries, count: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(next(deliveries).await);
    }
    out
}

pub(crate) fn body(delivery: &Delivery) -> usize {
    let body = String::from_utf8_lossy(&delivery.envelope.body);
    body.parse().expect("a number")
}

pub(crate) async fn ack(delivery: Delivery) {
    let settled = timeout(SOON, delivery.settle(Settlement::Ack)).await;
    settled.expect("an answer").expect("it is settled");
}

/// Acknowledges the next ones, which must be these, redelivered or not.
pub(crate) async fn take(
    deliveries: &mut Deliveries,
    expected: impl IntoIterator<Item = (usize, bool)>,
) {
    for expected in expected {
        let delivery = next(deliveries).await;
        assert_eq!((body(&delivery), delivery.redelivered), expected);
        ack(delivery).await;
    }
}

pub(crate) async fn none(deliveries: &mut Deliveries) {
    if let Ok(delivery) = timeout(QUIET, deliveries.next()).await {
        panic!("a delivery that should not come: {delivery:?}");
    }
}
