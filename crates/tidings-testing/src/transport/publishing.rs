//! Declaring and publishing.

use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use tidings_core::{
    Destination, Envelope, MessageId, PublishErrorKind, Queue, Settlement, Topology,
};
use tokio::time::timeout;

use super::support::*;

pub(super) async fn a_message_comes_as_it_went(case: Case) {
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
    let mut expected = vec![&bare, &full, &bare, &full];
    for _ in 0..4 {
        let delivery = next(&mut deliveries).await;
        // Where order is kept for a key only, the ones may come before the others.
        let is_it = |it: &&Envelope| it.key == delivery.envelope.key;
        let at = match case.one.features().shares_partitions {
            true => expected.iter().position(is_it).expect("one of them"),
            false => 0,
        };
        let envelope = expected.remove(at);
        assert_eq!(in_order(&delivery.envelope), in_order(envelope));
        assert_eq!(*delivery.queue, *case.queue);
        assert_eq!((delivery.failures, delivery.history.len()), (0, 0));
        assert!(!delivery.redelivered);
        settle(delivery, Settlement::Ack).await;
    }
}

/// Headers may come in another order: RabbitMQ 4 sorts them.
fn in_order(envelope: &Envelope) -> Envelope {
    let mut envelope = envelope.clone();
    envelope.headers.sort();
    envelope
}

pub(super) async fn every_queue_of_a_topic_gets_each_message(case: Case) {
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
    take_all(&case, &mut deliveries, &["to all", "to one"]).await;
    let mut deliveries = case.subscribe_to(&case.one, &second, 10).await;
    take(&mut deliveries, &["to all"]).await;
    none(&mut deliveries).await;
}

pub(super) async fn a_queue_gets_messages_in_the_order_they_were_published(case: Case) {
    case.declare().await;
    let numbers: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    for batch in numbers.chunks(60) {
        case.publish(batch).await;
    }
    let mut deliveries = case.subscribe(50).await;
    case.take(&mut deliveries, &numbers).await;
    none(&mut deliveries).await;
}

pub(super) async fn each_message_of_a_batch_has_its_own_outcome(case: Case) {
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
        .into_iter()
        .enumerate()
        .map(|(number, destination)| outgoing(destination, text(&number.to_string())));
    let outcomes = case.one.publish(batch.collect()).await;
    assert_eq!(outcomes.len(), 6, "one outcome per message");
    let kinds = kinds(&outcomes);
    for routable in [0, 2, 5] {
        assert_eq!(kinds[routable], None, "message {routable}");
    }
    if case.one.features().reports_unroutable {
        for unroutable in [1, 3, 4] {
            let kind = Some(PublishErrorKind::Unroutable);
            assert_eq!(kinds[unroutable], kind, "message {unroutable}");
        }
    } else {
        eprintln!("  not asked: whether what no queue wants is reported is not claimed");
    }
    let mut deliveries = case.subscribe(10).await;
    take_all(&case, &mut deliveries, &["0", "2", "5"]).await;
    assert!(
        case.one.publish(Vec::new()).await.is_empty(),
        "nothing in, nothing out"
    );
}

pub(super) async fn declaring_again_changes_nothing(case: Case) {
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

pub(super) async fn a_queue_that_leaves_a_topic_keeps_what_it_has_and_gets_no_more(case: Case) {
    case.declare().await;
    let second = Queue::new(format!("{}.second", case.queue)).topic(case.topic.clone());
    let leaving = Topology::new()
        .queue(Queue::new(case.queue.clone()).leaves(case.topic.clone()))
        .queue(second.clone());
    case.publish(&["before"]).await;
    // As often as somebody starts, and whether it was subscribed or not.
    for transport in [&case.one, &case.other, &case.one] {
        transport.declare(&leaving).await.expect("it declares");
    }
    case.publish(&["after"]).await;
    let outcome = case.publish_one(case.to_queue(), text("by name")).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(10).await;
    take_all(&case, &mut deliveries, &["before", "by name"]).await;
    none(&mut deliveries).await;
    let mut others = case.subscribe_to(&case.other, &second.name, 10).await;
    take(&mut others, &["after"]).await;

    // And it may come back.
    case.declare().await;
    case.publish(&["again"]).await;
    take(&mut deliveries, &["again"]).await;
}

pub(super) async fn large_bodies_and_large_batches_go_through(case: Case) {
    case.declare().await;
    let bytes_max = case.one.features().body_bytes_max.unwrap_or(usize::MAX);
    let large = Envelope::new("large.v1", vec![7; bytes_max.min(3 * 1024 * 1024)]);
    let outcome = case.publish_one(case.to_topic(), large.clone()).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(500).await;
    let delivery = next(&mut deliveries).await;
    assert!(
        delivery.envelope.body == large.body,
        "the body is what it was"
    );
    settle(delivery, Settlement::Ack).await;
    let many: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    case.publish(&many).await;
    case.take(&mut deliveries, &many).await;
}

pub(super) async fn a_closed_transport_takes_nothing(case: Case) {
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

pub(super) async fn a_full_queue_refuses_and_the_others_take(
    case: Case,
    limit: impl AsyncFn(&str, usize),
) {
    case.declare().await;
    let full = format!("{}.full", case.queue);
    let shared = format!("{}.shared", case.topic);
    let topology = Topology::new()
        .queue(Queue::new(full.clone()).topic(shared.clone()))
        .queue(Queue::new(case.queue.clone()).topic(shared.clone()));
    case.one.declare(&topology).await.expect("it declares");
    limit(&full, 1).await;
    let to_full = Destination::Queue(full.clone().into());
    let first = case.publish_one(to_full.clone(), text("it fits")).await;
    first.expect("there is room for one");

    let nowhere = Destination::Queue(format!("{}.nowhere", case.queue).into());
    let batch = [
        (case.to_queue(), "a"),
        (to_full.clone(), "refused"),
        (case.to_topic(), "b"),
        (nowhere, "unroutable"),
        (to_full.clone(), "refused"),
        (case.to_queue(), "c"),
    ];
    let batch = batch.map(|(to, body)| outgoing(to, text(body)));
    let outcomes = case.one.publish(batch.into()).await;
    let mut kinds = kinds(&outcomes);
    if !case.one.features().reports_unroutable {
        kinds[3] = Some(PublishErrorKind::Unroutable);
    }
    let refused = Some(PublishErrorKind::Refused);
    let unroutable = Some(PublishErrorKind::Unroutable);
    let expected = [None, refused, None, unroutable, refused, None];
    assert_eq!(kinds, expected, "each message has its own outcome");
    let mut deliveries = case.subscribe(10).await;
    take(&mut deliveries, &["a", "b", "c"]).await;

    // One queue of a topic is full: it may be in the other, and publishing it again is safe.
    let to_both = Destination::Topic(shared.into());
    let outcome = case.publish_one(to_both.clone(), text("to both")).await;
    let kind = outcome.expect_err("a queue that wants it is full").kind();
    assert_eq!(kind, PublishErrorKind::Refused);

    let mut from_full = case.subscribe_to(&case.one, &full, 10).await;
    take(&mut from_full, &["it fits"]).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while case
        .publish_one(to_both.clone(), text("again"))
        .await
        .is_err()
    {
        let is_late = tokio::time::Instant::now() >= deadline;
        assert!(!is_late, "there is room again, but it still refuses");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    take(&mut from_full, &["again"]).await;
}
