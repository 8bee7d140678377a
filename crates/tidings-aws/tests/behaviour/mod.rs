//! What the tests are made of: a queue of its own for each, and short words for what they do with it.

pub(crate) mod letters;
pub(crate) mod outages;
pub(crate) mod policies;
pub(crate) mod receiving;
pub(crate) mod sending;

use std::{num::NonZeroU16, sync::Once, time::Duration};

use futures_util::StreamExt;
use tidings_aws::Aws;
use tidings_core::{
    Deliveries, Delivery, Destination, Envelope, Outgoing, PublishError, PublishErrorKind, Queue,
    Settlement, Subscription, Topology, Transport, Unrouted,
};
use tokio::time::timeout;

/// How long to wait for what must come, also when the emulator starts anew or a message has to become visible.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long to wait for what must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

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

    pub(crate) fn topology(&self) -> Topology {
        let queue = Queue::new(self.queue.clone()).topic(self.topic.clone());
        Topology::new().queue(queue)
    }

    pub(crate) async fn declare(&self, aws: &Aws) {
        aws.declare(&self.topology()).await.expect("it declares");
    }

    /// One message to the topic.
    pub(crate) fn message(&self, id: &str, key: Option<&str>, body: impl ToString) -> Outgoing {
        let mut envelope = Envelope::new("noted.v1", body.to_string());
        envelope.id = Some(id.into());
        envelope.key = key.map(Into::into);
        Outgoing {
            destination: Destination::Topic(self.topic.clone().into()),
            unrouted: Unrouted::Hold,
            envelope,
        }
    }

    /// Publishes one message for each body, with one key.
    pub(crate) async fn publish(&self, aws: &Aws, bodies: &[&str]) {
        let batch = bodies
            .iter()
            .map(|body| self.message(body, Some("key"), body));
        for outcome in aws.publish(batch.collect()).await {
            outcome.expect("it is published");
        }
    }

    pub(crate) async fn subscribe(&self, aws: &Aws, prefetch: u16) -> Deliveries {
        let prefetch = NonZeroU16::new(prefetch).expect("not zero");
        let subscription = Subscription::new(self.queue.clone()).prefetch(prefetch);
        aws.subscribe(subscription).await.expect("it subscribes")
    }
}

/// A connection whose receives do not wait for long, so that none is left when a case ends.
pub(crate) async fn connect(url: &str) -> Aws {
    connect_with(url, "wait=1&visibility=6&handover=1").await
}

pub(crate) async fn connect_with(url: &str, options: &str) -> Aws {
    prepare();
    let url = format!("{url}&{options}");
    Aws::connect(&url).await.expect("it connects")
}

/// Credentials, which the emulator does not look at, and what the transport says, where `RUST_LOG` asks for it.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(
            std::env::var("AWS_ACCESS_KEY_ID").is_ok(),
            "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` to anything, or run `cargo xtask test`"
        );
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    });
}

pub(crate) fn kinds(outcomes: &[Result<(), PublishError>]) -> Vec<Option<PublishErrorKind>> {
    let kinds = outcomes.iter().map(|outcome| outcome.as_ref().err());
    kinds.map(|error| error.map(PublishError::kind)).collect()
}

pub(crate) async fn next(deliveries: &mut Deliveries) -> Delivery {
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        Ok(other) => panic!("the subscription failed or ended: {other:?}"),
        Err(_) => panic!("no delivery within {SOON:?}"),
    }
}

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.envelope.body).into_owned()
}

pub(crate) async fn settle(delivery: Delivery, settlement: Settlement) {
    let settled = timeout(SOON, delivery.settle(settlement)).await;
    settled.expect("an answer").expect("it is settled");
}

/// Acknowledges the next ones, which must be these, redelivered or not.
pub(crate) async fn take(deliveries: &mut Deliveries, expected: &[(&str, bool)]) {
    for (text, redelivered) in expected {
        let delivery = next(deliveries).await;
        assert_eq!(
            (&*body(&delivery), delivery.redelivered),
            (*text, *redelivered)
        );
        settle(delivery, Settlement::Ack).await;
    }
}

pub(crate) async fn none_for(deliveries: &mut Deliveries, time: Duration) {
    if let Ok(delivery) = timeout(time, deliveries.next()).await {
        panic!("a delivery that should not come: {delivery:?}");
    }
}
