//! What the cases are made of.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use futures_util::StreamExt;
use jiff::Timestamp;
use tidings_core::{
    Attempt, Deliveries, Delivery, Destination, Envelope, Outgoing, PublishError, PublishErrorKind,
    Queue, Settlement, Subscription, Topology, Transport, Unrouted,
};
use tokio::time::timeout;

/// How long to wait for a delivery that must come.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// How long to wait for one that must not come.
pub(super) const QUIET: Duration = Duration::from_millis(200);

/// How long retries wait in these cases.
pub(super) const DELAY: Duration = Duration::from_millis(400);

/// Longer names are not tried, whatever is claimed.
pub(super) const NAME_BYTES_TRIED_MAX: usize = 1024;

/// Two connections, and a queue that subscribes to a topic.
pub(super) struct Case {
    pub(super) one: Arc<dyn Transport>,
    pub(super) other: Arc<dyn Transport>,
    pub(super) topic: String,
    pub(super) queue: String,
}

impl Case {
    pub(super) fn new(one: Arc<dyn Transport>, other: Arc<dyn Transport>) -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        Self {
            one,
            other,
            topic: format!("topic-{unique}"),
            queue: format!("consumer-{unique}.noted.v1"),
        }
    }

    pub(super) fn topology(&self) -> Topology {
        Topology::new()
            .topic(self.topic.clone())
            .queue(Queue::new(self.queue.clone()).topic(self.topic.clone()))
    }

    pub(super) async fn declare(&self) {
        self.one
            .declare(&self.topology())
            .await
            .expect("it declares");
    }

    /// Declares it, as a consumer whose retries wait for [`DELAY`].
    pub(super) async fn declare_with_delay(&self) {
        let queue = Queue::new(self.queue.clone())
            .topic(self.topic.clone())
            .delay(DELAY);
        let topology = Topology::new().queue(queue);
        self.one.declare(&topology).await.expect("it declares");
    }

    /// True if the engine can delay for as long as the cases need. Says so if not.
    pub(super) fn can_delay(&self) -> bool {
        let can = self.one.features().delay_max >= DELAY;
        if !can {
            eprintln!("  skipped: delays of {DELAY:?} are not claimed");
        }
        can
    }

    /// True if the engine claims that queues keep an order. Says so if not.
    pub(super) fn keeps_order(&self) -> bool {
        let keeps = self.one.features().keeps_order;
        if !keeps {
            eprintln!("  not asked: an order of queues is not claimed");
        }
        keeps
    }

    /// How many messages a case can have whose order it knows: all of them, or one.
    pub(super) fn how_many_in_order(&self, count: usize) -> usize {
        if self.one.features().keeps_order {
            count
        } else {
            1
        }
    }

    /// Asserts that this is what came: in this order, if the engine keeps one.
    #[track_caller]
    pub(super) fn assert_came<S: AsRef<str>>(&self, came: &[String], expected: &[S]) {
        let mut came: Vec<&str> = came.iter().map(String::as_str).collect();
        let mut expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        if !self.one.features().keeps_order {
            came.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(came, expected);
    }

    /// Acknowledges the next deliveries, which must have these bodies: in this order, if the engine keeps one.
    pub(super) async fn take(&self, deliveries: &mut Deliveries, bodies: &[&str]) {
        let mut came = Vec::new();
        for _ in bodies {
            let delivery = next(deliveries).await;
            came.push(body(&delivery));
            settle(delivery, Settlement::Ack).await;
        }
        self.assert_came(&came, bodies);
    }

    pub(super) fn to_topic(&self) -> Destination {
        Destination::Topic(self.topic.clone().into())
    }

    pub(super) fn to_queue(&self) -> Destination {
        Destination::Queue(self.queue.clone().into())
    }

    pub(super) async fn publish_one(
        &self,
        destination: Destination,
        envelope: Envelope,
    ) -> Result<(), PublishError> {
        let message = outgoing(destination, envelope);
        let mut outcomes = self.one.publish(vec![message]).await;
        assert_eq!(outcomes.len(), 1, "one message, one outcome");
        outcomes.remove(0)
    }

    /// Publishes a message for each of `bodies` to the topic, as one batch.
    pub(super) async fn publish(&self, bodies: &[&str]) {
        let batch = bodies
            .iter()
            .map(|body| outgoing(self.to_topic(), text(body)));
        let outcomes = self.one.publish(batch.collect()).await;
        assert_eq!(outcomes.len(), bodies.len(), "one outcome per message");
        for outcome in outcomes {
            outcome.expect("it is published");
        }
    }

    pub(super) async fn subscribe(&self, prefetch: u16) -> Deliveries {
        self.subscribe_to(&self.one, &self.queue, prefetch).await
    }

    pub(super) async fn subscribe_to(
        &self,
        transport: &Arc<dyn Transport>,
        queue: &str,
        prefetch: u16,
    ) -> Deliveries {
        let deliveries = transport.subscribe(subscription(queue, prefetch)).await;
        deliveries.expect("the queue is there")
    }
}

pub(super) fn subscription(queue: &str, prefetch: u16) -> Subscription {
    let prefetch = NonZeroU16::new(prefetch).expect("not zero");
    Subscription::new(queue.to_owned()).prefetch(prefetch)
}

pub(super) fn outgoing(destination: Destination, envelope: Envelope) -> Outgoing {
    Outgoing {
        destination,
        unrouted: Unrouted::Hold,
        envelope,
    }
}

/// How the publishing of each message failed, if it did.
pub(super) fn kinds(outcomes: &[Result<(), PublishError>]) -> Vec<Option<PublishErrorKind>> {
    let kinds = outcomes.iter().map(|outcome| outcome.as_ref().err());
    kinds.map(|error| error.map(PublishError::kind)).collect()
}

pub(super) fn text(body: &str) -> Envelope {
    Envelope::new("noted.v1", body.to_owned())
}

pub(super) fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.envelope.body).into_owned()
}

/// With a key, as messages of services usually have one.
pub(super) fn keyed(key: &str, body: &str) -> Envelope {
    let mut envelope = text(body);
    envelope.key = Some(key.into());
    envelope
}

pub(super) fn attempt(reason: &str, by: Option<&str>) -> Attempt {
    Attempt {
        at: Timestamp::from_millisecond(1_700_000_000_123).expect("a time"),
        reason: reason.into(),
        by: by.map(Into::into),
    }
}

pub(super) async fn settle(delivery: Delivery, settlement: Settlement) {
    let settled = timeout(SOON, delivery.settle(settlement)).await;
    settled.expect("an answer").expect("it is settled");
}

pub(super) async fn next(deliveries: &mut Deliveries) -> Delivery {
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        Ok(Some(Err(error))) => panic!("the subscription failed: {error}"),
        Ok(None) => panic!("the subscription ended"),
        Err(_) => panic!("no delivery within {SOON:?}"),
    }
}

/// Acknowledges the next deliveries, which must have these bodies.
pub(super) async fn take(deliveries: &mut Deliveries, bodies: &[&str]) {
    for expected in bodies {
        let delivery = next(deliveries).await;
        assert_eq!(body(&delivery), *expected);
        settle(delivery, Settlement::Ack).await;
    }
}

/// Acknowledges the next deliveries, which must have these bodies, in this order if the engine keeps one for
/// what went to different places.
pub(super) async fn take_all(case: &Case, deliveries: &mut Deliveries, bodies: &[&str]) {
    if !case.one.features().shares_partitions {
        return take(deliveries, bodies).await;
    }
    let mut taken = Vec::new();
    for _ in bodies {
        let delivery = next(deliveries).await;
        taken.push(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    taken.sort();
    let mut expected = bodies.to_vec();
    expected.sort_unstable();
    assert_eq!(taken, expected);
}

/// Nothing more comes.
pub(super) async fn none(deliveries: &mut Deliveries) {
    if let Ok(delivery) = timeout(QUIET, deliveries.next()).await {
        panic!("a delivery that should not come: {delivery:?}");
    }
}
