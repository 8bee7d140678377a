//! What becomes of messages that are out: kept hidden, lost, deleted, given back.

use tidings_core::{Attempt, dead_letter_queue};
use tidings_testing::servers::AwsEmulator;

use super::*;

/// Two seconds until somebody else may have it.
const SHORT: &str = "wait=1&visibility=2&handover=1";

pub(crate) async fn a_long_handler_keeps_its_message(url: String) {
    let (one, other) = (
        connect_with(&url, SHORT).await,
        connect_with(&url, SHORT).await,
    );
    let place = Place::new();
    place.declare(&one).await;
    place.publish(&one, &["long", "behind it"]).await;
    let mut here = place.subscribe(&one, 1).await;
    let mut there = place.subscribe(&other, 1).await;
    let (delivery, mut idle) = tokio::select! {
        delivery = next(&mut here) => (delivery, there),
        delivery = next(&mut there) => (delivery, here),
    };
    assert_eq!(body(&delivery), "long");
    none_for(&mut idle, Duration::from_secs(7)).await;
    assert!(!delivery.is_stale());
    settle(delivery, Settlement::Ack).await;
}

pub(crate) async fn a_message_that_is_out_for_too_long_is_somebody_elses(url: String) {
    let one = connect_with(&url, &format!("{SHORT}&handling=3")).await;
    let other = connect_with(&url, SHORT).await;
    let place = Place::new();
    place.declare(&one).await;
    place.publish(&one, &["a", "b"]).await;
    let mut here = place.subscribe(&one, 1).await;
    let delivery = next(&mut here).await;
    drop(here);
    let mut there = place.subscribe(&other, 10).await;
    take(&mut there, &[("a", true), ("b", true)]).await;
    assert!(delivery.is_stale());
    let late = delivery.settle(Settlement::Ack).await;
    assert!(late.expect_err("it is stale").is_temporary());
    none_for(&mut there, Duration::from_secs(3)).await;
}

pub(crate) async fn a_message_that_cannot_be_kept_is_stale_in_time(server: AwsEmulator) {
    let (one, other) = (
        connect_with(&server.url(), SHORT).await,
        connect_with(&server.url(), "wait=1&visibility=30").await,
    );
    let place = Place::new();
    place.declare(&one).await;
    place.publish(&one, &["a"]).await;
    let mut here = place.subscribe(&one, 1).await;
    let delivery = next(&mut here).await;
    assert!(!delivery.is_stale());
    let action = "ChangeMessageVisibilityBatch";
    server
        .fail_calls(action, "InternalError", 1000)
        .expect("told");
    let mut there = place.subscribe(&other, 1).await;
    let again = next(&mut there).await;
    assert!(delivery.is_stale(), "before anybody else had it");
    assert!(again.redelivered && again.delivered_before >= Some(1));
    assert!(delivery.settle(Settlement::Ack).await.is_err());
    settle(again, Settlement::Ack).await;
}

/// A process that ends without a word: its runtime is gone, and with it whoever renews.
pub(crate) async fn what_a_crashed_consumer_had_comes_again_in_its_order(url: String) {
    let aws = connect_with(&url, SHORT).await;
    let place = Place::new();
    place.declare(&aws).await;
    place.publish(&aws, &["a", "b", "c", "d"]).await;
    let queue = place.queue.clone();
    let crashing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let crashed = connect_with(&url, SHORT).await;
            let subscription = Subscription::new(queue);
            let mut deliveries = crashed.subscribe(subscription).await.expect("it is there");
            let (a, b) = (next(&mut deliveries).await, next(&mut deliveries).await);
            assert_eq!((body(&a), body(&b)), ("a".into(), "b".into()));
            std::mem::forget((a, b, deliveries, crashed));
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(|| crashing.join())
        .await
        .expect("it joins")
        .expect("no panic");
    let mut deliveries = place.subscribe(&aws, 10).await;
    let again = ["a", "b", "c", "d"].map(|body| (body, true));
    take(&mut deliveries, &again).await;
    none_for(&mut deliveries, Duration::from_secs(3)).await;
}

pub(crate) async fn a_deletion_that_fails_is_tried_again(server: AwsEmulator) {
    let aws = connect_with(&server.url(), SHORT).await;
    let place = Place::new();
    place.declare(&aws).await;
    place.publish(&aws, &["a", "b"]).await;
    let mut deliveries = place.subscribe(&aws, 10).await;
    let (a, b) = (next(&mut deliveries).await, next(&mut deliveries).await);
    server
        .fail_entries("DeleteMessageBatch", "InternalError", 3, "")
        .expect("told");
    settle(a, Settlement::Ack).await;
    settle(b, Settlement::Ack).await;
    // Longer than it is hidden.
    none_for(&mut deliveries, Duration::from_secs(5)).await;
    // Not only hidden, either.
    aws.close().await;
    let other = connect_with(&server.url(), SHORT).await;
    let mut there = place.subscribe(&other, 10).await;
    none_for(&mut there, Duration::from_secs(4)).await;
}

pub(crate) async fn a_consumer_that_may_not_receive_says_so_and_ends(server: AwsEmulator) {
    let aws = connect(&server.url()).await;
    let place = Place::new();
    place.declare(&aws).await;
    server
        .fail_calls("ReceiveMessage", "AccessDenied", 1)
        .expect("told");
    let mut deliveries = place.subscribe(&aws, 1).await;
    let error = match timeout(SOON, deliveries.next()).await {
        Ok(Some(Err(error))) => error,
        other => panic!("it says so: {other:?}"),
    };
    let text = error.to_string();
    assert!(!error.is_temporary() && text.contains("TDG-4031"), "{text}");
    assert!(text.contains(&place.queue), "{text}");
    assert!(deliveries.next().await.is_none());
}

pub(crate) async fn a_queue_that_vanished_is_declared_again(server: AwsEmulator) {
    let (aws, other) = (connect(&server.url()).await, connect(&server.url()).await);
    let place = Place::new();
    place.declare(&aws).await;
    let gone = "AWS.SimpleQueueService.NonExistentQueue";
    server.fail_calls("ReceiveMessage", gone, 2).expect("told");
    let mut deliveries = place.subscribe(&aws, 1).await;
    place.publish(&aws, &["a"]).await;
    take(&mut deliveries, &[("a", false)]).await;
    // One who never declared it cannot.
    drop(deliveries);
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.fail_calls("ReceiveMessage", gone, 1).expect("told");
    let mut deliveries = place.subscribe(&other, 1).await;
    match timeout(SOON, deliveries.next()).await {
        Ok(Some(Err(error))) => assert!(error.to_string().contains("TDG-4032"), "{error}"),
        other => panic!("it says so: {other:?}"),
    }
}

/// No order, but delays.
pub(crate) async fn a_standard_queue_delays_a_retry_and_keeps_its_history(url: String) {
    let aws = connect_with(&url, &format!("{SHORT}&queues=standard")).await;
    assert_eq!(aws.features().delay_max, Duration::from_secs(900));
    let place = Place::new();
    place.declare(&aws).await;
    place.publish(&aws, &["a"]).await;
    let mut deliveries = place.subscribe(&aws, 1).await;
    let attempt = |reason: &str| Attempt {
        at: "2026-01-02T03:04:05Z".parse().expect("a time"),
        reason: reason.into(),
        by: Some("me".into()),
    };
    let delivery = next(&mut deliveries).await;
    let first = delivery.envelope.clone();
    let due = tokio::time::Instant::now() + Duration::from_millis(1500);
    let delay = Duration::from_millis(1500);
    let retry = Settlement::Retry {
        delay,
        attempt: attempt("once"),
    };
    settle(delivery, retry).await;
    let delivery = next(&mut deliveries).await;
    assert!(tokio::time::Instant::now() >= due, "not before its time");
    assert_eq!(delivery.failures, 1);
    assert_eq!(delivery.history, [attempt("once")]);
    assert_eq!(delivery.envelope, first, "it is the same message");
    let dead = Settlement::DeadLetter {
        attempt: attempt("twice"),
    };
    settle(delivery, dead).await;
    let letters = Subscription::new(dead_letter_queue(&place.queue));
    let mut letters = aws.subscribe(letters).await.expect("it is there");
    let letter = next(&mut letters).await;
    assert_eq!(letter.history, [attempt("once"), attempt("twice")]);
    assert_eq!((letter.failures, &letter.envelope), (2, &first));
    settle(letter, Settlement::Ack).await;
    none_for(&mut deliveries, Duration::from_secs(3)).await;
}

/// Standard queues promise neither order nor that a message comes once; who has a store knows it by its id.
pub(crate) async fn what_a_standard_queue_brings_twice_comes_twice(server: AwsEmulator) {
    const COUNT: usize = 30;
    let aws = connect_with(&server.url(), "wait=1&visibility=20&queues=standard").await;
    let place = Place::new();
    place.declare(&aws).await;
    server.hand_out_twice(COUNT as u32).expect("told");
    for number in 0..COUNT {
        let message = place.message(&number.to_string(), Some("key"), number);
        aws.publish(vec![message]).await.remove(0).expect("taken");
    }
    let mut deliveries = place.subscribe(&aws, 10).await;
    let mut came = Vec::new();
    for _ in 0..=COUNT {
        let delivery = next(&mut deliveries).await;
        came.push(body(&delivery).parse::<usize>().expect("a number"));
        settle(delivery, Settlement::Ack).await;
    }
    none_for(&mut deliveries, QUIET).await;
    assert!(!came.is_sorted(), "in the order of one key: {came:?}");
    came.sort_unstable();
    came.dedup();
    assert!(came.into_iter().eq(0..COUNT), "each, and one twice");
}
