//! What becomes of everybody when SNS and SQS are gone for a while, or refuse who asks.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use tidings_testing::servers::AwsEmulator;

use super::*;

/// Killed under load and started again: nothing is lost, and each key keeps its order.
pub(crate) async fn a_killed_engine_loses_nothing_and_needs_nobody(server: AwsEmulator) {
    a_killed_engine_loses_nothing(server, "fifo").await;
}

/// The same on queues of a kind; standard ones promise no order.
pub(crate) async fn a_killed_engine_loses_nothing(mut server: AwsEmulator, queues: &str) {
    const COUNT: usize = 600;
    const KEYS: usize = 7;
    let options = format!("wait=1&visibility=3&queues={queues}");
    let (publisher, consumer) = (
        connect_with(&server.url(), &options).await,
        connect_with(&server.url(), &options).await,
    );
    let place = Place::new();
    place.declare(&publisher).await;
    let mut deliveries = place.subscribe(&consumer, 50).await;
    // How many are out says when the engine is killed, and the last ones wait for that: it may be quick, or slow.
    let (out, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let publishing = async {
        for start in (0..COUNT).step_by(20) {
            out.store(start, Ordering::SeqCst);
            while start + 20 == COUNT && kills.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut batch: Vec<usize> = (start..start + 20).collect();
            while !batch.is_empty() {
                let message = |number: &usize| {
                    let key = (number % KEYS).to_string();
                    place.message(&number.to_string(), Some(&key), number)
                };
                let outcomes = publisher.publish(batch.iter().map(message).collect()).await;
                // What was not taken, as a relay does.
                let mut taken = outcomes.iter().map(Result::is_ok);
                batch.retain(|_| !taken.next().expect("an outcome"));
                if !batch.is_empty() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let receiving = async {
        let mut seen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut count = 0;
        while count < COUNT {
            let delivery = next(&mut deliveries).await;
            let number: usize = body(&delivery).parse().expect("a number");
            let of_key = seen.entry(number % KEYS).or_default();
            if !of_key.contains(&number) {
                of_key.push(number);
                count += 1;
            }
            // One that is stale comes again.
            let _ = delivery.settle(Settlement::Ack).await;
        }
        seen
    };
    let killing = async {
        for count in [COUNT / 4, COUNT / 2] {
            while out.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            server = tokio::task::spawn_blocking(move || {
                server.kill9();
                std::thread::sleep(Duration::from_millis(500));
                server.restart().expect("it starts again");
                server
            })
            .await
            .expect("no panic");
            kills.fetch_add(1, Ordering::SeqCst);
        }
        server
    };
    let ((), seen, server) = tokio::join!(publishing, receiving, killing);
    for (key, mut numbers) in seen {
        if !publisher.features().keeps_order {
            numbers.sort_unstable();
        }
        let expected: Vec<usize> = (0..COUNT).filter(|it| it % KEYS == key).collect();
        assert_eq!(numbers, expected, "key {key}");
    }
    drop(server);
}

pub(crate) async fn who_starts_first_waits_for_the_engine(mut server: AwsEmulator) {
    server.stop().expect("it stops");
    let url = server.url();
    let connecting = tokio::spawn(async move { connect(&url).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!connecting.is_finished(), "it waits");
    let _server = tokio::task::spawn_blocking(move || {
        server.restart().expect("it starts");
        server
    })
    .await
    .expect("no panic");
    let aws = timeout(SOON, connecting)
        .await
        .expect("it connects")
        .expect("no panic");
    assert!(aws.is_connected());
}

pub(crate) async fn closing_does_not_wait_for_an_engine_that_is_gone(mut server: AwsEmulator) {
    let aws = connect_with(&server.url(), "wait=20").await;
    let place = Place::new();
    place.declare(&aws).await;
    place.publish(&aws, &["a"]).await;
    let mut deliveries = place.subscribe(&aws, 10).await;
    let delivery = next(&mut deliveries).await;
    server.kill9();
    settle(delivery, Settlement::Ack).await;
    let outcomes = aws.publish(vec![place.message("b", None, "b")]).await;
    assert_eq!(kinds(&outcomes), [Some(PublishErrorKind::Unavailable)]);
    assert!(!aws.is_connected());
    // At once, as it is known by now.
    let start = Instant::now();
    let outcomes = aws.publish(vec![place.message("b", None, "b")]).await;
    assert_eq!(kinds(&outcomes), [Some(PublishErrorKind::Unavailable)]);
    assert!(start.elapsed() < Duration::from_secs(1));
    let start = Instant::now();
    aws.close().await;
    assert!(start.elapsed() < Duration::from_secs(8));
}

pub(crate) async fn who_may_not_is_told_at_the_start(server: AwsEmulator) {
    prepare();
    server
        .fail_calls("GetCallerIdentity", "InvalidClientTokenId", 1)
        .expect("told");
    let error = Aws::connect(&server.url())
        .await
        .expect_err("nobody knows it");
    let text = error.to_string();
    assert!(!error.is_temporary() && text.contains("TDG-4031"), "{text}");

    let aws = connect(&server.url()).await;
    let place = Place::new();
    for (action, code) in [
        ("CreateTopic", "AuthorizationError"),
        ("CreateQueue", "AccessDenied"),
        ("Subscribe", "AuthorizationError"),
    ] {
        server.fail_calls(action, code, 1).expect("told");
        let error = aws.declare(&place.topology()).await.expect_err(action);
        let text = error.to_string();
        assert!(!error.is_temporary() && text.contains("TDG-4031"), "{text}");
        assert!(
            text.contains(&place.queue) || text.contains(&place.topic),
            "{text}"
        );
    }
    // A throttled one waits.
    server
        .fail_calls("Subscribe", "Throttling", 3)
        .expect("told");
    place.declare(&aws).await;
}
