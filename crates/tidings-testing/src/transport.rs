//! The conformance suite of the port [`Transport`]: what its doc comments promise, as cases that
//! run against every implementation.
//!
//! Each case has topics and queues of its own, with names nobody used before, so the suite can run
//! on a broker that others use too.

use std::{collections::BTreeSet, num::NonZeroU16, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use jiff::Timestamp;
use tidings_core::{
    Attempt, Deliveries, Delivery, Destination, Envelope, MessageId, Outgoing, PublishErrorKind,
    Queue, Settlement, Subscription, Topology, Transport, Unrouted, dead_letter_queue,
};
use tokio::time::{Instant, timeout};

/// The longest that one case may take.
const CASE_MAX: Duration = Duration::from_secs(60);

/// How long to wait for a delivery that must come.
const SOON: Duration = Duration::from_secs(10);

/// How long to wait for one that must not come.
const QUIET: Duration = Duration::from_millis(200);

/// Runs every case. `connect` makes a new connection, always to the same broker. Panics at the
/// first case that fails.
pub async fn conformance<T: Transport>(connect: impl AsyncFn() -> T) {
    macro_rules! run {
        ($($case:ident)*) => {$(
            eprintln!("transport case: {}", stringify!($case).replace('_', " "));
            let case = async {
                let one: Arc<dyn Transport> = Arc::new(connect().await);
                let other: Arc<dyn Transport> = Arc::new(connect().await);
                let case = Case::new(Arc::clone(&one), Arc::clone(&other));
                $case(case).await;
                one.close().await;
                other.close().await;
            };
            if timeout(CASE_MAX, case).await.is_err() {
                panic!("{} took longer than {CASE_MAX:?}", stringify!($case));
            }
        )*};
    }
    run! {
        a_message_comes_as_it_went
        every_queue_of_a_topic_gets_each_message
        a_queue_gets_messages_in_the_order_they_were_published
        each_message_of_a_batch_has_its_own_outcome
        declaring_again_changes_nothing
        a_queue_that_is_not_there_cannot_be_subscribed_to
        large_bodies_and_large_batches_go_through
        no_more_than_the_prefetch_is_out
        consumers_of_a_queue_share_its_messages
        what_a_lost_connection_held_is_delivered_again
        a_dropped_subscription_holds_nothing_back
        a_retry_comes_after_its_delay_with_its_history
        messages_sent_to_one_delay_come_back_in_order
        a_deferred_message_has_not_failed
        the_history_keeps_the_first_and_the_latest_attempts
        a_dead_letter_says_why
        a_closed_transport_takes_nothing
    }
}

/// Two connections, and a queue that subscribes to a topic.
struct Case {
    one: Arc<dyn Transport>,
    other: Arc<dyn Transport>,
    topic: String,
    queue: String,
}

async fn a_message_comes_as_it_went(case: Case) {
    case.declare().await;
    let bare = Envelope {
        content_type: "".into(),
        ..Envelope::new("", "")
    };
    let full = Envelope {
        id: Some(MessageId::new("order-placed.v1/\"o-1\" \u{1F600}")),
        name: "order-placed.v1".into(),
        source: "orders".into(),
        time: Some(Timestamp::from_nanosecond(1_700_000_000_123_456_000).expect("a time")),
        key: Some("o-1".into()),
        correlation_id: Some("correlation".into()),
        causation_id: Some("causation".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        content_type: "application/octet-stream".into(),
        headers: vec![
            ("tenant".into(), "a".into()),
            ("note".into(), "\u{e9}".repeat(300).into()),
        ],
        body: (0..=255).collect::<Vec<u8>>().into(),
    };
    for to in [case.to_topic(), case.to_queue()] {
        for envelope in [&bare, &full] {
            let outcome = case.publish_one(to.clone(), envelope.clone()).await;
            outcome.expect("it is published");
        }
    }
    let mut deliveries = case.subscribe(10).await;
    for envelope in [&bare, &full, &bare, &full] {
        let delivery = next(&mut deliveries).await;
        assert_eq!(*delivery.envelope, *envelope);
        assert_eq!(*delivery.queue, *case.queue);
        assert_eq!((delivery.failures, delivery.history.len()), (0, 0));
        assert!(!delivery.redelivered);
        settle(delivery, Settlement::Ack).await;
    }
}

async fn every_queue_of_a_topic_gets_each_message(case: Case) {
    let second = format!("{}.second", case.queue);
    case.declare().await;
    let topology = Topology::new()
        .topic(case.topic.clone())
        .queue(Queue::new(second.clone()).topic(case.topic.clone()));
    case.other.declare(&topology).await.expect("it declares");
    case.publish(&["to all"]).await;
    let outcome = case.publish_one(case.to_queue(), text("to one")).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(10).await;
    take(&mut deliveries, &["to all", "to one"]).await;
    let mut deliveries = case.subscribe_to(&case.one, &second, 10).await;
    take(&mut deliveries, &["to all"]).await;
    none(&mut deliveries).await;
}

async fn a_queue_gets_messages_in_the_order_they_were_published(case: Case) {
    case.declare().await;
    let numbers: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    for batch in numbers.chunks(60) {
        case.publish(batch).await;
    }
    let mut deliveries = case.subscribe(50).await;
    take(&mut deliveries, &numbers).await;
    none(&mut deliveries).await;
}

async fn each_message_of_a_batch_has_its_own_outcome(case: Case) {
    case.declare().await;
    let nobody = format!("{}.nobody", case.topic);
    let topology = Topology::new().topic(nobody.clone());
    case.one.declare(&topology).await.expect("it declares");
    let destinations = [
        case.to_topic(),
        Destination::Topic(nobody.into()),
        case.to_queue(),
        Destination::Queue(format!("{}.nowhere", case.queue).into()),
        Destination::Topic(format!("{}.undeclared", case.topic).into()),
        case.to_topic(),
    ];
    let batch = destinations
        .iter()
        .enumerate()
        .map(|(number, destination)| Outgoing {
            destination: destination.clone(),
            unrouted: Unrouted::Hold,
            envelope: text(&number.to_string()),
        });
    let outcomes = case.one.publish(batch.collect()).await;
    let kinds = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(|error| error.kind()));
    let unroutable = case.one.features().reports_unroutable;
    let lost = unroutable.then_some(PublishErrorKind::Unroutable);
    let expected = [None, lost, None, lost, lost, None];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
    let mut deliveries = case.subscribe(10).await;
    take(&mut deliveries, &["0", "2", "5"]).await;
    assert!(
        case.one.publish(Vec::new()).await.is_empty(),
        "nothing in, nothing out"
    );
}

async fn declaring_again_changes_nothing(case: Case) {
    case.declare().await;
    case.publish(&["kept"]).await;
    case.declare().await;
    case.other
        .declare(&case.topology())
        .await
        .expect("another may declare it too");
    let mut deliveries = case.subscribe(10).await;
    take(&mut deliveries, &["kept"]).await;
    none(&mut deliveries).await;
}

async fn a_queue_that_is_not_there_cannot_be_subscribed_to(case: Case) {
    let subscription = subscription(&case.queue, 1);
    let error = match case.one.subscribe(subscription).await {
        Err(error) => error,
        Ok(mut deliveries) => match timeout(SOON, deliveries.next()).await {
            Ok(Some(Err(error))) => error,
            other => panic!("it neither fails nor says so: {other:?}"),
        },
    };
    assert!(!error.is_temporary(), "waiting does not mend it: {error}");
    assert!(
        error.to_string().contains(&case.queue),
        "the queue is named: {error}"
    );
}

async fn large_bodies_and_large_batches_go_through(case: Case) {
    case.declare().await;
    let large = Envelope::new("large.v1", vec![7; 3 * 1024 * 1024]);
    let outcome = case.publish_one(case.to_topic(), large.clone()).await;
    outcome.expect("it is published");
    let many: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    case.publish(&many).await;
    let mut deliveries = case.subscribe(500).await;
    let delivery = next(&mut deliveries).await;
    assert!(
        delivery.envelope.body == large.body,
        "the body is what it was"
    );
    settle(delivery, Settlement::Ack).await;
    take(&mut deliveries, &many).await;
}

async fn no_more_than_the_prefetch_is_out(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d", "e"]).await;
    let mut deliveries = case.subscribe(3).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    let third = next(&mut deliveries).await;
    none(&mut deliveries).await;
    settle(second, Settlement::Ack).await;
    let fourth = next(&mut deliveries).await;
    assert_eq!(body(&fourth), "d");
    none(&mut deliveries).await;
    for delivery in [third, first, fourth] {
        settle(delivery, Settlement::Ack).await;
    }
    take(&mut deliveries, &["e"]).await;
}

async fn consumers_of_a_queue_share_its_messages(case: Case) {
    case.declare().await;
    let mut here = case.subscribe(1).await;
    let mut there = case.subscribe_to(&case.other, &case.queue, 1).await;
    case.publish(&["a", "b", "c", "d"]).await;
    let (first, second) = tokio::join!(next(&mut here), next(&mut there));
    let mut seen = vec![body(&first), body(&second)];
    settle(first, Settlement::Ack).await;
    settle(second, Settlement::Ack).await;
    while seen.len() < 4 {
        let delivery = tokio::select! {
            delivery = next(&mut here) => delivery,
            delivery = next(&mut there) => delivery,
        };
        seen.push(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut here).await;
    none(&mut there).await;
    seen.sort();
    assert_eq!(seen, ["a", "b", "c", "d"], "each went to one");
}

async fn what_a_lost_connection_held_is_delivered_again(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d"]).await;
    let mut deliveries = case.subscribe(3).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    let third = next(&mut deliveries).await;
    settle(second, Settlement::Ack).await;
    case.one.close().await;
    let late = timeout(SOON, first.settle(Settlement::Ack))
        .await
        .expect("an answer");
    assert!(late.is_err(), "its connection is gone");
    drop(third);

    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 10).await;
    for (expected, redelivered) in [("a", true), ("c", true)] {
        let delivery = next(&mut deliveries).await;
        assert_eq!(
            body(&delivery),
            expected,
            "what was settled is gone, the rest keeps its place"
        );
        assert_eq!(delivery.redelivered, redelivered);
        assert_eq!(delivery.failures, 0, "a crash is no failure of the message");
        settle(delivery, Settlement::Ack).await;
    }
    take(&mut deliveries, &["d"]).await;
    none(&mut deliveries).await;
}

async fn a_dropped_subscription_holds_nothing_back(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d", "e", "f"]).await;
    let mut deliveries = case.subscribe(4).await;
    let out = next(&mut deliveries).await;
    drop(deliveries);
    let mut deliveries = case.subscribe(10).await;
    let mut rest = BTreeSet::new();
    while rest.len() < 5 {
        let delivery = next(&mut deliveries).await;
        rest.insert(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    assert!(
        rest.iter()
            .map(String::as_str)
            .eq(["b", "c", "d", "e", "f"])
    );
    settle(out, Settlement::Ack).await;
    drop(deliveries);
    case.one.close().await;
    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 10).await;
    none(&mut deliveries).await;
}

async fn a_retry_comes_after_its_delay_with_its_history(case: Case) {
    case.declare().await;
    let mut envelope = text("retried");
    envelope.id = Some("id".into());
    envelope.key = Some("key".into());
    envelope.headers = vec![("tenant".into(), "a".into())];
    let outcome = case.publish_one(case.to_topic(), envelope.clone()).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(1).await;
    let attempts = [
        attempt("the first time", Some("instance 1")),
        attempt("again", None),
    ];
    let delays = if !case.one.features().delay_max.is_zero() {
        [Duration::from_millis(400), Duration::ZERO]
    } else {
        [Duration::ZERO; 2]
    };
    for (number, delay) in delays.into_iter().enumerate() {
        let delivery = next(&mut deliveries).await;
        assert_eq!(delivery.failures as usize, number);
        let due = Instant::now() + delay;
        let attempt = attempts[number].clone();
        settle(delivery, Settlement::Retry { delay, attempt }).await;
        if !delay.is_zero() {
            // It holds up nothing while it waits, even at a prefetch of one.
            case.publish(&["another"]).await;
            take(&mut deliveries, &["another"]).await;
            let mut early = pin!(deliveries.next());
            let wait = due.saturating_duration_since(Instant::now() + QUIET / 4);
            assert!(
                timeout(wait, early.as_mut()).await.is_err(),
                "it comes before its delay"
            );
        }
    }
    let delivery = next(&mut deliveries).await;
    assert_eq!(*delivery.envelope, envelope, "it is the same message");
    assert_eq!(delivery.failures, 2);
    assert_eq!(delivery.history, attempts);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

async fn messages_sent_to_one_delay_come_back_in_order(case: Case) {
    if case.one.features().delay_max.is_zero() {
        return;
    }
    case.declare().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    case.publish(&names).await;
    let mut deliveries = case.subscribe(10).await;
    let delay = Duration::from_millis(300);
    for number in 0..names.len() {
        let delivery = next(&mut deliveries).await;
        let settlement = if number % 2 == 0 {
            let attempt = attempt("wait", None);
            Settlement::Retry { delay, attempt }
        } else {
            Settlement::Defer { delay }
        };
        settle(delivery, settlement).await;
    }
    take(&mut deliveries, &names).await;
}

async fn a_deferred_message_has_not_failed(case: Case) {
    case.declare().await;
    let mut envelope = text("deferred");
    envelope.id = Some("id".into());
    let outcome = case.publish_one(case.to_topic(), envelope.clone()).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(1).await;
    let failed = attempt("once", None);
    let delay = Duration::ZERO;
    let defer = |delivery| settle(delivery, Settlement::Defer { delay });

    let delivery = next(&mut deliveries).await;
    defer(delivery).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!((delivery.failures, delivery.history.len()), (0, 0));
    let attempt = failed.clone();
    settle(delivery, Settlement::Retry { delay, attempt }).await;
    let delivery = next(&mut deliveries).await;
    defer(delivery).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.failures, 1);
    assert_eq!(delivery.history, [failed]);
    assert_eq!(*delivery.envelope, envelope);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

async fn the_history_keeps_the_first_and_the_latest_attempts(case: Case) {
    const FAILURES: u32 = 25;
    case.declare().await;
    case.publish(&["unlucky"]).await;
    let mut deliveries = case.subscribe(1).await;
    for number in 0..FAILURES {
        let delivery = next(&mut deliveries).await;
        let attempt = attempt(&number.to_string(), None);
        let delay = Duration::ZERO;
        settle(delivery, Settlement::Retry { delay, attempt }).await;
    }
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.failures, FAILURES, "all are counted");
    let reasons: Vec<&str> = delivery
        .history
        .iter()
        .map(|attempt| &*attempt.reason)
        .collect();
    assert!(
        reasons.len() < FAILURES as usize,
        "what travels with a message is bounded"
    );
    assert_eq!(reasons.first(), Some(&"0"));
    let latest = (FAILURES - 2..FAILURES).map(|number| number.to_string());
    assert!(
        latest.eq(reasons[reasons.len() - 2..]
            .iter()
            .map(|reason| reason.to_string()))
    );
    settle(delivery, Settlement::Ack).await;
}

async fn a_dead_letter_says_why(case: Case) {
    case.declare().await;
    let mut poison = text("poison");
    poison.id = Some("id".into());
    poison.key = Some("key".into());
    poison.headers = vec![("tenant".into(), "a".into())];
    let outcome = case.publish_one(case.to_topic(), poison.clone()).await;
    outcome.expect("it is published");
    case.publish(&["next"]).await;
    let mut deliveries = case.subscribe(1).await;
    let attempts = [
        attempt("odd", None),
        attempt("field `amount` is missing", Some("i")),
    ];
    let [first, last] = attempts.clone();
    let delivery = next(&mut deliveries).await;
    let delay = Duration::ZERO;
    settle(
        delivery,
        Settlement::Retry {
            delay,
            attempt: first,
        },
    )
    .await;
    take(&mut deliveries, &["next"]).await;
    let delivery = next(&mut deliveries).await;
    settle(delivery, Settlement::DeadLetter { attempt: last }).await;
    none(&mut deliveries).await;

    let dead = dead_letter_queue(&case.queue);
    let mut deliveries = case.subscribe_to(&case.other, &dead, 10).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(
        *delivery.envelope, poison,
        "it can be looked at and sent again as it was"
    );
    assert_eq!(*delivery.queue, *dead);
    assert_eq!(delivery.failures, 2);
    assert_eq!(delivery.history, attempts);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

async fn a_closed_transport_takes_nothing(case: Case) {
    case.declare().await;
    let mut deliveries = case.subscribe(1).await;
    case.one.close().await;
    case.one.close().await;
    let outcome = case.publish_one(case.to_topic(), text("late")).await;
    let kind = outcome.expect_err("it is closed").kind();
    assert_eq!(kind, PublishErrorKind::Unavailable);
    match timeout(SOON, deliveries.next()).await {
        Ok(None | Some(Err(_))) => {}
        other => panic!("its subscriptions end: {other:?}"),
    }
    assert!(
        case.one
            .subscribe(subscription(&case.queue, 1))
            .await
            .is_err()
    );
    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 1).await;
    none(&mut deliveries).await;
}

impl Case {
    fn new(one: Arc<dyn Transport>, other: Arc<dyn Transport>) -> Self {
        let unique = uuid::Uuid::new_v4().simple();
        Self {
            one,
            other,
            topic: format!("topic-{unique}"),
            queue: format!("consumer-{unique}.noted.v1"),
        }
    }

    fn topology(&self) -> Topology {
        Topology::new()
            .topic(self.topic.clone())
            .queue(Queue::new(self.queue.clone()).topic(self.topic.clone()))
    }

    async fn declare(&self) {
        self.one
            .declare(&self.topology())
            .await
            .expect("it declares");
    }

    fn to_topic(&self) -> Destination {
        Destination::Topic(self.topic.clone().into())
    }

    fn to_queue(&self) -> Destination {
        Destination::Queue(self.queue.clone().into())
    }

    async fn publish_one(
        &self,
        destination: Destination,
        envelope: Envelope,
    ) -> Result<(), tidings_core::PublishError> {
        let message = Outgoing {
            destination,
            unrouted: Unrouted::Hold,
            envelope,
        };
        let mut outcomes = self.one.publish(vec![message]).await;
        assert_eq!(outcomes.len(), 1, "one message, one outcome");
        outcomes.remove(0)
    }

    /// Publishes a message for each of `bodies` to the topic, as one batch.
    async fn publish(&self, bodies: &[&str]) {
        let batch = bodies.iter().map(|body| Outgoing {
            destination: self.to_topic(),
            unrouted: Unrouted::Hold,
            envelope: text(body),
        });
        let outcomes = self.one.publish(batch.collect()).await;
        assert_eq!(outcomes.len(), bodies.len(), "one outcome per message");
        for outcome in outcomes {
            outcome.expect("it is published");
        }
    }

    async fn subscribe(&self, prefetch: u16) -> Deliveries {
        self.subscribe_to(&self.one, &self.queue, prefetch).await
    }

    async fn subscribe_to(
        &self,
        transport: &Arc<dyn Transport>,
        queue: &str,
        prefetch: u16,
    ) -> Deliveries {
        let deliveries = transport.subscribe(subscription(queue, prefetch)).await;
        deliveries.expect("the queue is there")
    }
}

fn subscription(queue: &str, prefetch: u16) -> Subscription {
    let prefetch = NonZeroU16::new(prefetch).expect("not zero");
    Subscription::new(queue.to_owned()).prefetch(prefetch)
}

fn text(body: &str) -> Envelope {
    Envelope::new("noted.v1", body.to_owned())
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.envelope.body).into_owned()
}

fn attempt(reason: &str, by: Option<&str>) -> Attempt {
    Attempt {
        at: Timestamp::from_millisecond(1_700_000_000_123).expect("a time"),
        reason: reason.into(),
        by: by.map(Into::into),
    }
}

async fn settle(delivery: Delivery, settlement: Settlement) {
    let settled = timeout(SOON, delivery.settle(settlement)).await;
    settled.expect("an answer").expect("it is settled");
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        Ok(Some(Err(error))) => panic!("the subscription failed: {error}"),
        Ok(None) => panic!("the subscription ended"),
        Err(_) => panic!("no delivery within {SOON:?}"),
    }
}

/// Acknowledges the next deliveries, which must have these bodies.
async fn take(deliveries: &mut Deliveries, bodies: &[&str]) {
    for expected in bodies {
        let delivery = next(deliveries).await;
        assert_eq!(body(&delivery), *expected);
        settle(delivery, Settlement::Ack).await;
    }
}

/// Nothing more comes.
async fn none(deliveries: &mut Deliveries) {
    if let Ok(delivery) = timeout(QUIET, deliveries.next()).await {
        panic!("a delivery that should not come: {delivery:?}");
    }
}
