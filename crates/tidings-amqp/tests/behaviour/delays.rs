//! Messages that wait in the broker until they are tried again.

use std::time::{Duration, Instant};

use tidings_amqp::Amqp;
use tidings_core::{
    Delivery, FAILURES_HEADER, HISTORY_HEADER, Queue, Settlement, Topology, Transport,
    dead_letter_queue,
};
use tidings_wire::{BasicProperties, ShortStr, Value};
use tokio::time::sleep;

use super::{
    attempt, connect, expect_nothing,
    failures::{Server, publish_at_last},
    id, next, publish_all,
    raw::Raw,
    subscribe, to_queue, topology, unique, within,
};

const DELAY: Duration = Duration::from_millis(500);

async fn declare_with_delay(amqp: &Amqp, queue: &str, delay: Duration) {
    let queue = Queue::new(queue.to_owned()).delay(delay);
    let topology = Topology::new().queue(queue);
    within("the declaration", amqp.declare(&topology))
        .await
        .expect("declared");
}

async fn retry_after(delay: Duration, delivery: Delivery) {
    let attempt = attempt("not yet");
    let settling = delivery.settle(Settlement::Retry { delay, attempt });
    within("the copy", settling).await.expect("settled");
}

fn reasons(delivery: &Delivery) -> Vec<&str> {
    let reasons = delivery.history.iter().map(|attempt| &*attempt.reason);
    reasons.collect()
}

pub(crate) async fn all_consumers_wait_on_one_ladder_and_keep_their_order(url: String) {
    let amqp = connect(&url).await;
    let queues = [unique("first"), unique("second")];
    // Rounded up to the next step.
    let delay = Duration::from_millis(400);
    for queue in &queues {
        declare_with_delay(&amqp, queue, delay).await;
        let batch = (0..40).map(|number| to_queue(queue, number.to_string()));
        publish_all(&amqp, batch.collect()).await;
    }
    let mut raw = Raw::connect(&url).await;
    assert!(raw.count("tidings.delay.500").await.is_some());
    for name in ["retry.400", "retry.500"] {
        let own = format!("{}.{name}", queues[0]);
        assert_eq!(Raw::connect(&url).await.count(&own).await, None, "{own}");
    }

    let mut streams = Vec::new();
    for queue in &queues {
        let mut deliveries = subscribe(&amqp, queue, 50).await;
        for number in 0..40 {
            let delivery = next(&mut deliveries).await;
            match number % 2 {
                0 => retry_after(delay, delivery).await,
                _ => {
                    let defer = Settlement::Defer { delay };
                    delivery.settle(defer).await.expect("settled");
                }
            }
        }
        streams.push(deliveries);
    }
    let last = Instant::now();
    for deliveries in &mut streams {
        for number in 0..40 {
            let delivery = next(deliveries).await;
            assert_eq!(id(&delivery), number.to_string());
            let failed: &[&str] = if number % 2 == 0 { &["not yet"] } else { &[] };
            assert_eq!(reasons(&delivery), failed);
            assert_eq!(delivery.failures as usize, failed.len());
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
    }
    // The last of them was sent to it at `last` or before.
    assert!(last.elapsed() >= DELAY - Duration::from_millis(100));
    for deliveries in &mut streams {
        expect_nothing(deliveries).await;
    }
}

pub(crate) async fn a_retry_whose_queue_was_deleted_is_kept_and_holds_up_nobody(url: String) {
    let (gone, stays) = (unique("gone"), unique("stays"));
    let amqp = connect(&url).await;
    declare_with_delay(&amqp, &stays, DELAY).await;
    // On a transport of its own: one that is there would declare the queue again.
    let leaving = connect(&url).await;
    declare_with_delay(&leaving, &gone, DELAY).await;
    let lost = unique("message");
    publish_all(&leaving, vec![to_queue(&gone, lost.clone())]).await;
    let delivery = next(&mut subscribe(&leaving, &gone, 1).await).await;
    retry_after(DELAY, delivery).await;
    leaving.close().await;
    let mut raw = Raw::connect(&url).await;
    raw.delete_queue(&gone).await;

    // Behind it on the same step.
    let batch = (0..3).map(|number| to_queue(&stays, number.to_string()));
    publish_all(&amqp, batch.collect()).await;
    let mut deliveries = subscribe(&amqp, &stays, 3).await;
    for _ in 0..3 {
        retry_after(DELAY, next(&mut deliveries).await).await;
    }
    for number in 0..3 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(id(&delivery), number.to_string());
        delivery.settle(Settlement::Ack).await.expect("settled");
    }

    let mut undeliverable = subscribe(&amqp, "tidings.undeliverable", 10).await;
    let found = within("the message", async {
        loop {
            let delivery = next(&mut undeliverable).await;
            if id(&delivery) == lost {
                break delivery;
            }
            // Of an earlier run.
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
    });
    let found = found.await;
    assert_eq!((found.failures, reasons(&found)), (1, vec!["not yet"]));
    found.settle(Settlement::Ack).await.expect("settled");
}

/// Nobody else uses this step.
const UNUSED: Duration = Duration::from_secs(1_800);
const UNUSED_QUEUE: &str = "tidings.delay.1800000";

pub(crate) async fn a_failure_that_passes_is_not_a_dead_letter_while_its_delay_is_missing(
    url: String,
) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    // The queue is a foreign one, so that its delays are declared when they are needed.
    let mut raw = Raw::connect(&url).await;
    let dead = dead_letter_queue(&queue);
    raw.declare_queue(&queue, &[]).await;
    raw.declare_queue(&dead, &[]).await;
    // Somebody has made another queue of that name: it cannot be declared.
    raw.declare_queue(UNUSED_QUEUE, &[]).await;
    publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
    let mut deliveries = subscribe(&amqp, &queue, 1).await;
    let retry = || Settlement::Retry {
        delay: UNUSED,
        attempt: attempt("not yet"),
    };
    // Who gives up half-way gives the message back.
    let mut settling = Box::pin(next(&mut deliveries).await.settle(retry()));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut settling).await;
    assert!(early.is_err(), "it has nowhere to wait: {early:?}");
    drop(settling);
    let delivery = next(&mut deliveries).await;
    assert!(delivery.redelivered && delivery.failures == 0);

    let mut settling = tokio::spawn(delivery.settle(retry()));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut settling).await;
    assert!(early.is_err(), "it has nowhere to wait: {early:?}");
    assert_eq!(raw.count(&dead).await, Some(0));
    raw.delete_queue(UNUSED_QUEUE).await;
    let settled = within("the copy", settling).await.expect("no panic");
    settled.expect("settled");
    assert_eq!(raw.count(&dead).await, Some(0));
    assert_eq!(raw.count(UNUSED_QUEUE).await, Some(1), "it waits");

    // Whatever somebody deletes of it is made again.
    for (deletes_exchange, waiting) in [(true, 2), (false, 1)] {
        if deletes_exchange {
            raw.delete_exchange(UNUSED_QUEUE).await;
        } else {
            raw.delete_queue(UNUSED_QUEUE).await;
        }
        publish_at_last(&amqp, to_queue(&queue, "next")).await;
        let settling = next(&mut deliveries).await.settle(retry());
        within("the copy", settling).await.expect("settled");
        assert_eq!(raw.count(UNUSED_QUEUE).await, Some(waiting));
    }
    raw.delete_exchange(UNUSED_QUEUE).await;
    raw.delete_queue(UNUSED_QUEUE).await;
    expect_nothing(&mut deliveries).await;
}

/// Each queue had queues of its own for its delays, before they shared a ladder.
pub(crate) async fn what_an_earlier_version_left_waiting_comes_back(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let mut raw = Raw::connect(&url).await;
    let waiting = format!("{queue}.retry.500");
    let arguments = [
        ("x-dead-letter-exchange", Value::from("")),
        ("x-dead-letter-routing-key", Value::from(&*queue)),
        ("x-queue-type", Value::from("quorum")),
        ("x-dead-letter-strategy", Value::from("at-least-once")),
        ("x-overflow", Value::from("reject-publish")),
        ("x-message-ttl", Value::I64(500)),
    ];
    raw.declare_queue(&waiting, &arguments).await;
    let history = r#"[{"at":"1970-01-01T00:00:00Z","reason":"long ago"}]"#;
    let headers = [
        (ShortStr::from_static(FAILURES_HEADER), Value::I64(1)),
        (ShortStr::from_static(HISTORY_HEADER), Value::from(history)),
    ];
    let properties = BasicProperties {
        headers: Some(headers.into_iter().collect()),
        delivery_mode: Some(2),
        ..BasicProperties::default()
    };
    raw.publish("", &waiting, &properties, b"{}").await;
    let delivery = next(&mut subscribe(&amqp, &queue, 1).await).await;
    assert_eq!(
        (delivery.failures, reasons(&delivery)),
        (1, vec!["long ago"])
    );
    delivery.settle(Settlement::Ack).await.expect("settled");
    raw.delete_queue(&waiting).await;
}

/// What waits is on the disk: the broker is killed and started again, and all comes back.
pub(crate) async fn a_killed_broker_keeps_the_retries_that_wait(mut server: impl Server) {
    const COUNT: usize = 200;
    let delay = Duration::from_secs(2);
    let queue = unique("queue");
    let amqp = connect(&server.url()).await;
    declare_with_delay(&amqp, &queue, delay).await;
    // RabbitMQ writes down the names of new quorum queues half a second late (decision 0013).
    sleep(Duration::from_secs(2)).await;
    let batch = (0..COUNT).map(|number| to_queue(&queue, number.to_string()));
    publish_all(&amqp, batch.collect()).await;
    let mut deliveries = subscribe(&amqp, &queue, 100).await;
    for _ in 0..COUNT {
        retry_after(delay, next(&mut deliveries).await).await;
    }
    server.stop().await;
    server.start().await;
    let mut missing: Vec<bool> = vec![true; COUNT];
    while missing.contains(&true) {
        let delivery = next(&mut deliveries).await;
        let number: usize = id(&delivery).parse().expect("a number");
        // One whose acknowledgement the kill swallowed is here twice, once as it was.
        if delivery.failures == 1 {
            assert_eq!(reasons(&delivery), ["not yet"]);
            missing[number] = false;
        }
        match delivery.settle(Settlement::Ack).await {
            Ok(()) => {}
            Err(error) => assert!(error.is_temporary(), "{error}"),
        }
    }
    amqp.close().await;
}
