//! How deliveries end: in whatever order, half-way, or not at all.

use std::time::Duration;

use futures_util::future::join_all;
use tidings_core::{
    Destination, Envelope, Outgoing, PublishErrorKind, Settlement, Transport, Unrouted,
    dead_letter_queue,
};
use tidings_wire::{Array, BasicProperties, ShortStr, Table, Value};

use super::{
    attempt, connect, expect_nothing, id, next, publish_all, raw::Raw, subscribe, to_queue,
    to_topic, topology, unique, within,
};

pub(crate) async fn what_is_requeued_or_dropped_comes_again_at_once(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    publish_all(&amqp, vec![to_queue(&queue, "1"), to_queue(&queue, "2")]).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let first = next(&mut deliveries).await;
    assert!(!first.redelivered && !first.is_stale());
    first.settle(Settlement::Requeue).await.expect("settled");

    let again = next(&mut deliveries).await;
    assert_eq!((&*id(&again), again.redelivered), ("1", true));
    assert_eq!((again.failures, again.history.len()), (0, 0));
    drop(again);

    // Half-way: the settlement is begun, and nobody waits for its end.
    let again = next(&mut deliveries).await;
    assert_eq!(id(&again), "1");
    drop(again.settle(Settlement::Ack));

    let again = next(&mut deliveries).await;
    assert_eq!((&*id(&again), again.redelivered), ("1", true));
    again.settle(Settlement::Ack).await.expect("settled");
    let second = next(&mut deliveries).await;
    assert_eq!(id(&second), "2");
    amqp.close().await;
    assert!(second.is_stale(), "its connection is gone");
    drop(second);

    // Nothing was settled twice, and nothing was lost.
    let amqp = connect(&url).await;
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    let second = next(&mut deliveries).await;
    assert_eq!(id(&second), "2");
    second.settle(Settlement::Ack).await.expect("settled");
    expect_nothing(&mut deliveries).await;
}

pub(crate) async fn a_queue_that_counts_deliveries_says_how_many_there_were(url: String) {
    let amqp = connect(&url).await;
    let (queue, other) = (unique("queue"), unique("other"));
    let mut raw = Raw::connect(&url).await;
    let quorum = [("x-queue-type", Value::from("quorum"))];
    raw.declare_queue(&queue, &quorum).await;
    amqp.declare(&topology(&other, &[]))
        .await
        .expect("declared");
    publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    for count in 0..3 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(delivery.redelivered, count > 0);
        assert_eq!(delivery.delivered_before.unwrap_or(0), count);
        assert_eq!(delivery.envelope.header("x-delivery-count"), None);
        drop(delivery);
    }
    // A copy begins anew.
    let delay = Duration::ZERO;
    let delivery = next(&mut deliveries).await;
    let settling = delivery.settle(Settlement::Defer { delay });
    within("the copy", settling).await.expect("settled");
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.delivered_before.unwrap_or(0), 0);
    delivery.settle(Settlement::Ack).await.expect("settled");
    raw.delete_queue(&queue).await;
}

/// Those that can have no copy are refused among others that are acknowledged: the broker must see
/// the refusal of a lower tag before an acknowledgement that covers it.
pub(crate) async fn a_refusal_is_never_overtaken_by_an_acknowledgement(url: String) {
    const COUNT: u32 = 120;
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let mut raw = Raw::connect(&url).await;
    // As large as a frame, so that there is no room for a history.
    let large = [(
        ShortStr::from_static("large"),
        Value::from("x".repeat(130_900)),
    )];
    let large = BasicProperties {
        headers: Some(large.into_iter().collect()),
        delivery_mode: Some(2),
        ..BasicProperties::default()
    };
    for number in 0..COUNT {
        if number % 3 == 1 {
            raw.publish("", &queue, &large, b"{}").await;
        } else {
            publish_all(&amqp, vec![to_queue(&queue, number.to_string())]).await;
        }
    }
    let mut deliveries = subscribe(&amqp, &queue, COUNT as u16).await;
    let mut settling = Vec::new();
    for _ in 0..COUNT {
        let delivery = next(&mut deliveries).await;
        let settlement = match delivery.envelope.id {
            Some(_) => Settlement::Ack,
            None => Settlement::DeadLetter {
                attempt: attempt("no"),
            },
        };
        settling.push(delivery.settle(settlement));
    }
    for settled in within("all settlements", join_all(settling)).await {
        settled.expect("settled");
    }
    expect_nothing(&mut deliveries).await;
    let dead = dead_letter_queue(&queue);
    let all_dead = async {
        while raw.count(&dead).await != Some(COUNT / 3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("all dead letters", all_dead).await;
    // With what the broker has added they are larger than a frame, and can be read nevertheless.
    let mut letters = subscribe(&amqp, &dead, 10).await;
    for _ in 0..COUNT / 3 {
        let letter = next(&mut letters).await;
        let large = letter.envelope.header("large").map(str::len);
        assert_eq!(large, Some(130_900));
        letter.settle(Settlement::Ack).await.expect("settled");
    }
    amqp.close().await;
    assert_eq!(raw.count(&queue).await, Some(0));
    assert_eq!(raw.count(&dead).await, Some(0));
}

pub(crate) async fn a_dead_letter_waits_for_room_in_its_queue(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    let dead = dead_letter_queue(&queue);
    let mut raw = Raw::connect(&url).await;
    raw.declare_queue(&queue, &[]).await;
    let limited = [
        ("x-max-length", Value::I32(1)),
        ("x-overflow", Value::from("reject-publish")),
    ];
    raw.declare_queue(&dead, &limited).await;
    publish_all(&amqp, vec![to_queue(&dead, "0"), to_queue(&queue, "1")]).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let attempt = attempt("no");
    let dead_letter = Settlement::DeadLetter { attempt };
    let mut settling = Box::pin(next(&mut deliveries).await.settle(dead_letter));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut settling).await;
    assert!(early.is_err(), "there is no room: {early:?}");
    let mut letters = subscribe(&amqp, &dead, 1).await;
    let first = next(&mut letters).await;
    assert_eq!(id(&first), "0");
    first.settle(Settlement::Ack).await.expect("settled");
    within("the copy", settling).await.expect("settled");
    let letter = next(&mut letters).await;
    assert_eq!((&*id(&letter), letter.failures), ("1", 1));
    letter.settle(Settlement::Ack).await.expect("settled");
}

pub(crate) async fn a_foreign_message_is_read_as_what_it_says_it_is(url: String) {
    let amqp = connect(&url).await;
    let (queue, topic) = (unique("queue"), unique("topic"));
    amqp.declare(&topology(&queue, &[&topic]))
        .await
        .expect("declared");
    let header = |name: &'static str, value: Value| (ShortStr::from_static(name), value);
    let list: Array = [Value::from("a"), Value::I32(1)].into_iter().collect();
    let headers: Table = [
        header("number", Value::I64(7)),
        header("ratio", Value::F64(0.25)),
        header("flag", true.into()),
        header("when", Value::Timestamp(0)),
        header("list", list.into()),
        header("nothing", Value::Void),
    ]
    .into_iter()
    .collect();
    let properties = BasicProperties {
        headers: Some(headers),
        kind: Some(ShortStr::from_static("x")),
        ..BasicProperties::default()
    };
    let mut raw = Raw::connect(&url).await;
    raw.publish(&topic, "", &properties, b"{}").await;
    let named = BasicProperties {
        kind: Some(ShortStr::from_static("order-placed.v1")),
        ..BasicProperties::default()
    };
    raw.publish(&topic, "", &named, b"{}").await;

    let mut deliveries = subscribe(&amqp, &queue, 2).await;
    let delivery = next(&mut deliveries).await;
    let envelope = delivery.envelope.clone();
    assert_eq!(envelope.name, "", "`x` is no name of ours");
    let expected = [
        ("amqp:type", "x"),
        ("number", "7"),
        ("ratio", "0.25"),
        ("flag", "true"),
        ("when", "1970-01-01T00:00:00Z"),
        ("list", r#"["a",1]"#),
    ];
    for (name, value) in expected {
        assert_eq!(envelope.header(name), Some(value), "{name}");
    }
    assert_eq!(envelope.header("nothing"), None);
    delivery.settle(Settlement::Ack).await.expect("settled");
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.envelope.name, "order-placed.v1");
    delivery.settle(Settlement::Ack).await.expect("settled");

    // It waited in a store, and is sent again.
    let kept = Outgoing {
        destination: Destination::Queue(queue.into()),
        unrouted: Unrouted::Hold,
        envelope: Envelope::clone(&envelope),
    };
    publish_all(&amqp, vec![kept]).await;
    // RabbitMQ 4 sorts headers.
    let again = next(&mut deliveries).await;
    let [again, envelope] = [&again.envelope, &envelope].map(|it| {
        let mut envelope = Envelope::clone(it);
        envelope.headers.sort();
        envelope
    });
    assert_eq!(again, envelope);
}

pub(crate) async fn what_amqp_cannot_carry_harms_nothing_else(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let with_header = |name: String, value: String| {
        let mut message = to_queue(&queue, "invalid");
        message.envelope.headers.push((name.into(), value.into()));
        message
    };
    let mut odd_type = to_queue(&queue, "invalid");
    odd_type.envelope.content_type = "t".repeat(300).into();
    let mut odd_id = to_queue(&queue, "\0\n\u{7f}\u{1F600}".repeat(200));
    odd_id.envelope.key = Some("\0".into());
    let batch = vec![
        to_queue(&queue, "first"),
        with_header("n".repeat(300), "v".into()),
        with_header("CC".into(), queue.clone()),
        with_header("BCC".into(), "v".into()),
        with_header("large".into(), "v".repeat(140_000)),
        odd_type,
        to_queue(&"q".repeat(300), "invalid"),
        to_topic(&"t".repeat(300), "invalid"),
        to_topic("line\r\nbreak", "invalid"),
        to_topic("", "invalid"),
        odd_id,
        to_queue(&queue, "last"),
    ];
    let count = batch.len();
    // Others are under way on the same channel all the time.
    let others = (0..40).map(|number| {
        let other = to_queue(&queue, format!("other {number}"));
        publish_all(&amqp, vec![other; 25])
    });
    let (outcomes, _) = within("outcomes", async {
        tokio::join!(amqp.publish(batch), join_all(others))
    })
    .await;
    let kinds: Vec<_> = outcomes
        .into_iter()
        .map(|it| it.map_err(|error| error.kind()))
        .collect();
    let mut expected = vec![Err(PublishErrorKind::Invalid); count];
    for fine in [0, count - 2, count - 1] {
        expected[fine] = Ok(());
    }
    assert_eq!(kinds, expected);
    for name in ["a\nb".to_owned(), String::new(), "q".repeat(251)] {
        let declaring = amqp.declare(&topology(&name, &[])).await;
        let error = declaring.expect_err("no broker has it");
        assert!(!error.is_temporary(), "{error}");
    }
    let longest = format!("{:q<250}", unique("longest"));
    assert_eq!(amqp.features().name_bytes_max, longest.len());
    amqp.declare(&topology(&longest, &[]))
        .await
        .expect("it fits");
    publish_all(&amqp, vec![to_queue(&longest, "1")]).await;
    let delivery = next(&mut subscribe(&amqp, &longest, 1).await).await;
    let attempt = attempt("no");
    let settling = delivery.settle(Settlement::DeadLetter { attempt });
    within("the copy", settling).await.expect("settled");
}
