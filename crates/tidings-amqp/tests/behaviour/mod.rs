//! What the transport does on a broker, whichever it is. `rabbitmq.rs` and `embedded.rs` run this.

pub(crate) mod delays;
pub(crate) mod failures;
pub(crate) mod groups;
pub(crate) mod letters;
pub(crate) mod looking;
pub(crate) mod processes;
pub(crate) mod raw;
pub(crate) mod settling;
pub(crate) mod types;

use std::{
    num::NonZeroU16,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use raw::Raw;
use tidings_amqp::Amqp;
use tidings_core::{
    Attempt, Deliveries, Delivery, Destination, Envelope, Outgoing, PublishErrorKind, Queue,
    Settlement, Subscription, Topology, Transport, Unrouted, dead_letter_queue,
};

/// No test waits longer for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A name that no other test and no earlier run used.
pub(crate) fn unique(name: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now();
    let nanos = now
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    format!(
        "{name}.{}.{}.{number}",
        std::process::id(),
        nanos.as_nanos()
    )
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}

pub(crate) async fn connect(url: &str) -> Amqp {
    within("a connection", Amqp::connect(url))
        .await
        .expect("the broker takes us")
}

pub(crate) fn to(destination: Destination, id: impl Into<String>) -> Outgoing {
    let id: String = id.into();
    let mut envelope = Envelope::new("order-placed.v1", format!("{{\"id\":\"{id}\"}}"));
    envelope.id = Some(id.into());
    envelope.source = "tests".into();
    Outgoing {
        destination,
        unrouted: Unrouted::Hold,
        envelope,
    }
}

pub(crate) fn to_topic(topic: &str, id: impl Into<String>) -> Outgoing {
    to(Destination::Topic(topic.to_owned().into()), id)
}

pub(crate) fn to_queue(queue: &str, id: impl Into<String>) -> Outgoing {
    to(Destination::Queue(queue.to_owned().into()), id)
}

pub(crate) fn topology(queue: &str, topics: &[&str]) -> Topology {
    let queue = Queue::new(queue.to_owned());
    let queue = topics
        .iter()
        .fold(queue, |queue, topic| queue.topic(topic.to_string()));
    Topology::new().queue(queue)
}

pub(crate) async fn subscribe(amqp: &Amqp, queue: &str, prefetch: u16) -> Deliveries {
    let subscription = Subscription::new(queue.to_owned());
    let subscription = subscription.prefetch(NonZeroU16::new(prefetch).expect("not zero"));
    within("a subscription", amqp.subscribe(subscription))
        .await
        .expect("the queue is there")
}

pub(crate) async fn next(deliveries: &mut Deliveries) -> Delivery {
    within("a delivery", deliveries.next())
        .await
        .expect("the stream goes on")
        .expect("a delivery, no error")
}

pub(crate) fn id(delivery: &Delivery) -> String {
    let id = delivery.envelope.id.as_ref();
    id.map(ToString::to_string).unwrap_or_default()
}

pub(crate) fn attempt(reason: &str) -> Attempt {
    Attempt {
        at: jiff::Timestamp::UNIX_EPOCH,
        reason: reason.into(),
        by: None,
    }
}

pub(crate) async fn publish_all(amqp: &Amqp, batch: Vec<Outgoing>) {
    for outcome in within("confirms", amqp.publish(batch)).await {
        outcome.expect("confirmed");
    }
}

/// Nothing comes for a while: long enough for what is under way on this machine.
async fn expect_nothing(deliveries: &mut Deliveries) {
    let nothing = tokio::time::timeout(Duration::from_millis(300), deliveries.next()).await;
    assert!(nothing.is_err(), "unexpected: {nothing:?}");
}

pub(crate) async fn a_topic_reaches_each_queue_once_and_in_order(url: String) {
    let amqp = connect(&url).await;
    let (topic, first, second) = (unique("topic"), unique("first"), unique("second"));
    for queue in [&first, &second] {
        amqp.declare(&topology(queue, &[&topic]))
            .await
            .expect("declared");
    }
    let ids: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    publish_all(&amqp, ids.iter().map(|id| to_topic(&topic, id)).collect()).await;
    for queue in [&first, &second] {
        let mut deliveries = subscribe(&amqp, queue, 50).await;
        for expected in &ids {
            let delivery = next(&mut deliveries).await;
            assert_eq!(id(&delivery), *expected);
            assert_eq!(delivery.envelope.name, "order-placed.v1");
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
    }
    amqp.close().await;
    // Everything was acknowledged, or it would be delivered again.
    let amqp = connect(&url).await;
    expect_nothing(&mut subscribe(&amqp, &first, 1).await).await;
}

pub(crate) async fn what_no_queue_wants_is_named_among_thousands(url: String) {
    let amqp = connect(&url).await;
    let (topic, queue, gone) = (unique("topic"), unique("queue"), unique("gone"));
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let batch = (0..3000).map(|number| match number % 10 {
        3 => to_topic(&topic, number.to_string()),
        7 => to_queue(&gone, number.to_string()),
        _ => to_queue(&queue, number.to_string()),
    });
    let outcomes = within("outcomes", amqp.publish(batch.collect())).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        match number % 10 {
            3 | 7 => {
                let kind = outcome.as_ref().map_err(|error| error.kind());
                assert_eq!(kind, Err(PublishErrorKind::Unroutable), "{number}");
            }
            _ => assert!(outcome.is_ok(), "{number}: {outcome:?}"),
        }
    }
    let mut dropped = to_topic(&topic, "nobody minds");
    dropped.unrouted = Unrouted::Drop;
    publish_all(&amqp, vec![dropped]).await;
}

pub(crate) async fn one_id_to_two_destinations_has_two_outcomes(url: String) {
    let amqp = connect(&url).await;
    let (queue, gone) = (unique("queue"), unique("gone"));
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let batch = vec![
        to_queue(&queue, "same"),
        to_queue(&gone, "same"),
        to_queue(&queue, "same"),
    ];
    let outcomes = within("outcomes", amqp.publish(batch)).await;
    let routed: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(routed, [true, false, true]);
}

pub(crate) async fn many_callers_publish_at_once(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let callers = (0..40).map(|caller| {
        let batch = (0..200).map(|number| to_queue(&queue, format!("{caller}/{number}")));
        publish_all(&amqp, batch.collect())
    });
    futures_util::future::join_all(callers).await;
    let mut deliveries = subscribe(&amqp, &queue, 500).await;
    let mut next_of = [0; 40];
    for _ in 0..40 * 200 {
        let delivery = next(&mut deliveries).await;
        let id = id(&delivery);
        let (caller, number) = id.split_once('/').expect("ours");
        let caller: usize = caller.parse().expect("a number");
        assert_eq!(
            number,
            next_of[caller].to_string(),
            "in the order of its caller"
        );
        next_of[caller] += 1;
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
}

pub(crate) async fn a_large_body_comes_back_whole(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let mut message = to_queue(&queue, "large");
    let body: Vec<u8> = (0..1_000_003_u32).map(|byte| (byte % 251) as u8).collect();
    message.envelope.body = body.into();
    publish_all(&amqp, vec![message.clone(), to_queue(&queue, "small")]).await;
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    assert_eq!(*next(&mut deliveries).await.envelope, message.envelope);
    assert_eq!(id(&next(&mut deliveries).await), "small");
}

pub(crate) async fn a_retry_comes_back_with_its_history(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let mut message = to_queue(&queue, "1");
    message.envelope.headers = vec![("tenant".into(), "t".into())];
    publish_all(&amqp, vec![message.clone()]).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let delays = [
        Duration::ZERO,
        Duration::from_millis(200),
        Duration::from_millis(200),
    ];
    for (failures, delay) in delays.into_iter().enumerate() {
        let delivery = next(&mut deliveries).await;
        assert_eq!(delivery.failures as usize, failures);
        let attempt = attempt(&format!("failure {failures}"));
        let started = Instant::now();
        delivery
            .settle(Settlement::Retry { delay, attempt })
            .await
            .expect("settled");
        if failures == 2 {
            let delivery = next(&mut deliveries).await;
            assert!(started.elapsed() >= delay, "it came too early");
            assert_eq!(*delivery.envelope, message.envelope);
            let reasons: Vec<_> = delivery.history.iter().map(|it| &*it.reason).collect();
            assert_eq!(reasons, ["failure 0", "failure 1", "failure 2"]);
            let defer = Settlement::Defer { delay };
            delivery.settle(defer).await.expect("settled");
        }
    }
    let delivery = next(&mut deliveries).await;
    assert_eq!(
        (delivery.failures, delivery.history.len()),
        (3, 3),
        "deferring is no failure"
    );
    let attempt = attempt("for good");
    delivery
        .settle(Settlement::DeadLetter { attempt })
        .await
        .expect("settled");
    let mut dead = subscribe(&amqp, &dead_letter_queue(&queue), 1).await;
    let delivery = next(&mut dead).await;
    assert_eq!(delivery.failures, 4);
    let last = delivery.history.last().map(|it| &*it.reason);
    assert_eq!(last, Some("for good"));
    assert_eq!(*delivery.envelope, message.envelope);
    expect_nothing(&mut deliveries).await;
}

pub(crate) async fn acknowledgements_out_of_order_settle_what_they_name(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let batch = (0..100).map(|number| to_queue(&queue, number.to_string()));
    publish_all(&amqp, batch.collect()).await;
    let mut deliveries = subscribe(&amqp, &queue, 100).await;
    let mut out = Vec::new();
    for _ in 0..100 {
        out.push(next(&mut deliveries).await);
    }
    // From behind, and every seventh not at all.
    let mut kept = Vec::new();
    for delivery in out.into_iter().rev() {
        let number: u32 = id(&delivery).parse().expect("a number");
        if number.is_multiple_of(7) {
            kept.push(delivery);
        } else {
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
    }
    amqp.close().await;
    let amqp = connect(&url).await;
    let mut deliveries = subscribe(&amqp, &queue, 100).await;
    for expected in (0..100).filter(|number: &u32| number.is_multiple_of(7)) {
        let delivery = next(&mut deliveries).await;
        assert_eq!(id(&delivery), expected.to_string());
        assert!(delivery.redelivered);
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    expect_nothing(&mut deliveries).await;
    for stale in kept {
        let error = stale
            .settle(Settlement::Ack)
            .await
            .expect_err("its connection is gone");
        assert!(error.is_temporary(), "{error}");
    }
}

pub(crate) async fn a_dropped_subscription_gives_back_what_it_did_not_hand_out(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let batch = (0..20).map(|number| to_queue(&queue, number.to_string()));
    publish_all(&amqp, batch.collect()).await;
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    let first = next(&mut deliveries).await;
    drop(deliveries);
    let mut deliveries = subscribe(&amqp, &queue, 30).await;
    let mut ids = Vec::new();
    for _ in 0..19 {
        let delivery = next(&mut deliveries).await;
        ids.push(id(&delivery).parse::<u32>().expect("a number"));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..20).collect::<Vec<_>>());
    first
        .settle(Settlement::Ack)
        .await
        .expect("it can still be settled");
    expect_nothing(&mut deliveries).await;
}

pub(crate) async fn refusals_say_what_to_do(url: String) {
    let address = url.split_once('@').expect("with a user").1;
    let (address, _) = address.split_once('/').unwrap_or((address, ""));
    let check = async |url: String, expected: &str| {
        let error = within("an answer", Amqp::connect(&url))
            .await
            .expect_err(&url);
        assert!(!error.is_temporary(), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("secret"), "{text}");
    };
    check(
        format!("amqp://guest:secret@{address}"),
        "check user and password",
    )
    .await;
    check(
        format!("amqp://guest:guest@{address}/nowhere"),
        "virtual host `nowhere`",
    )
    .await;

    let amqp = connect(&url).await;
    let queue = unique("queue");
    let other = Topology::new().topic("amq.direct");
    let error = amqp
        .declare(&other)
        .await
        .expect_err("it is of another type");
    assert!(
        !error.is_temporary() && error.to_string().contains("it exists but differs"),
        "{error}"
    );
    let subscription = Subscription::new(queue.clone());
    let Err(error) = within("an answer", amqp.subscribe(subscription)).await else {
        panic!("there is no such queue");
    };
    assert!(
        !error.is_temporary() && error.to_string().contains("declare it first"),
        "{error}"
    );
    let outcomes = amqp.publish(vec![to_queue(&"q".repeat(300), "long")]).await;
    let kinds: Vec<_> = outcomes
        .into_iter()
        .map(|it| it.map_err(|it| it.kind()))
        .collect();
    assert_eq!(kinds, [Err(PublishErrorKind::Invalid)]);
    // None of it did any harm.
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
}

/// The conformance suite of the port.
pub(crate) async fn conformance(url: &str) {
    let limit = async |queue: &str, messages: usize| limit(url, queue, messages).await;
    tidings_testing::transport::conformance_with_limits(async || connect(url).await, limit).await;
}

/// Puts a queue that refuses what is beyond so many messages in the place of one of the suite's.
async fn limit(url: &str, queue: &str, messages: usize) {
    let mut raw = Raw::connect(url).await;
    raw.delete_queue(queue).await;
    let messages = i64::try_from(messages).expect("not so many");
    let limits = [
        ("x-max-length", messages.into()),
        ("x-overflow", "reject-publish".into()),
    ];
    raw.declare_queue(queue, &limits).await;
    // The suite names its topic after the case, as it does its queue.
    let case = queue
        .strip_prefix("consumer-")
        .and_then(|it| it.split('.').next());
    let case = case.expect("a queue of the suite");
    raw.bind(queue, &format!("topic-{case}.shared")).await;
}

/// One test for each behaviour in `$module`, on the broker at `$url`.
macro_rules! behaviours {
    (of $module:path, on $url:expr; $(#[$attribute:meta])* $($name:ident)*) => {
        behaviours!(@ $module, $url, [$(#[$attribute])*]; $($name)*);
    };
    (@ $module:path, $url:expr, $attributes:tt; $($name:ident)*) => {
        $(behaviours!(@@ $module, $url, $attributes, $name);)*
    };
    (@@ $module:path, $url:expr, [$($attribute:tt)*], $name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $name() {
            use $module as module;
            module::$name($url.await).await;
        }
    };
}
pub(crate) use behaviours;
