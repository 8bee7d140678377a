//! What the tests are made of: a queue of its own for each, and short words for what they do with it.

pub(crate) mod handing_over;
pub(crate) mod looking;
pub(crate) mod outages;
pub(crate) mod processes;

use std::{num::NonZeroU16, sync::Once, time::Duration};

use futures_util::StreamExt;
use tidings_core::{
    Deliveries, Delivery, Destination, Envelope, Group, Outgoing, Queue, Settlement, Subscription,
    Topology, Transport, Unrouted,
};
use tidings_kafka::Kafka;
use tokio::time::timeout;

/// How long to wait for what must come, also when Kafka starts anew or a session has to run out.
pub(crate) const SOON: Duration = Duration::from_secs(40);
/// How long to wait for what must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

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
    logs();
    let url = format!("{url}?partitions=4&handover_timeout=1000&session_timeout=4000");
    Kafka::connect(&url).await.expect("it connects")
}

/// What the transport says, where `RUST_LOG` asks for it.
pub(crate) fn logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    });
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
