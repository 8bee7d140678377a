//! What engines claim beyond the contract: shown where it is claimed, not asked where it is not.
//!
//! What no queue wants, and delays, are with the cases of publishing and settling.

use std::time::Duration;

use tidings_core::{
    Destination, Envelope, PublishErrorKind, Queue, Settlement, Topology, dead_letter_queue,
};

use super::support::*;

/// Larger bodies are not tried, whatever is claimed.
const BODY_BYTES_TRIED_MAX: usize = 16 * 1024 * 1024;

pub(super) async fn deliveries_are_counted(case: Case) {
    if !case.one.features().counts_deliveries {
        eprintln!("  skipped: that deliveries are counted is not claimed");
        return;
    }
    case.declare().await;
    case.publish(&["a"]).await;
    // What a consumer that crashed leaves behind is what the count is for.
    let mut deliveries = case.subscribe(1).await;
    let first = next(&mut deliveries).await;
    assert_eq!(first.delivered_before, Some(0));
    case.one.close().await;
    drop(first);
    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 1).await;
    let mut last = Some(0);
    for _ in 0..3 {
        let delivery = next(&mut deliveries).await;
        assert!(delivery.delivered_before > last, "once more than before");
        last = delivery.delivered_before;
        drop(delivery);
    }
    let delivery = next(&mut deliveries).await;
    assert!(delivery.delivered_before > last, "once more than before");
    settle(delivery, Settlement::Ack).await;
    let outcome = case
        .other
        .publish(vec![outgoing(case.to_queue(), text("b"))]);
    outcome.await.remove(0).expect("it is published");
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.delivered_before, Some(0), "each for itself");
    settle(delivery, Settlement::Ack).await;
}

pub(super) async fn the_longest_names_can_be_used(case: Case) {
    let bytes = case.one.features().name_bytes_max;
    assert!(bytes >= 64, "names of services need {bytes} bytes");
    let bytes = bytes.min(NAME_BYTES_TRIED_MAX);
    let pad = |name: &str| format!("{name}{}", "x".repeat(bytes - name.len()));
    let (topic, queue) = (pad(&case.topic), pad(&case.queue));
    let mut wanted = Queue::new(queue.clone()).topic(topic.clone());
    let can_delay = case.can_delay();
    if can_delay {
        wanted = wanted.delay(DELAY);
    }
    let topology = Topology::new().topic(topic.clone()).queue(wanted);
    case.one.declare(&topology).await.expect("it declares");
    let to_topic = Destination::Topic(topic.into());
    let outcome = case.publish_one(to_topic, text("long")).await;
    outcome.expect("it is published");

    let mut deliveries = case.subscribe_to(&case.one, &queue, 1).await;
    let retry = Settlement::Retry {
        delay: if can_delay { DELAY } else { Duration::ZERO },
        attempt: attempt("once", None),
    };
    settle(next(&mut deliveries).await, retry).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(*delivery.queue, *queue);
    let attempt = attempt("twice", None);
    settle(delivery, Settlement::DeadLetter { attempt }).await;
    let dead = dead_letter_queue(&queue);
    let mut deliveries = case.subscribe_to(&case.one, &dead, 1).await;
    take(&mut deliveries, &["long"]).await;
}

pub(super) async fn the_largest_body_goes_through_and_a_larger_one_never(case: Case) {
    let Some(bytes) = case.one.features().body_bytes_max else {
        eprintln!("  skipped: no limit of bodies is claimed");
        return;
    };
    if bytes > BODY_BYTES_TRIED_MAX {
        eprintln!("  skipped: {bytes} bytes are too many to try");
        return;
    }
    case.declare().await;
    let batch = [bytes, bytes + 1, 1].map(|bytes| {
        let envelope = Envelope::new("large.v1", vec![7; bytes]);
        outgoing(case.to_topic(), envelope)
    });
    let outcomes = case.one.publish(batch.into()).await;
    let expected = [None, Some(PublishErrorKind::Invalid), None];
    assert_eq!(kinds(&outcomes), expected);
    let mut deliveries = case.subscribe(2).await;
    let mut came = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut deliveries).await;
        came.push(delivery.envelope.body.len().to_string());
        settle(delivery, Settlement::Ack).await;
    }
    case.assert_came(&came, &[bytes.to_string(), 1.to_string()]);
}
