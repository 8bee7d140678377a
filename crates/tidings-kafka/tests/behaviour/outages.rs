//! What becomes of everybody when Kafka itself is gone for a while.

use std::time::Instant;

use tidings_core::{PublishErrorKind, Transport};
use tidings_testing::servers::Kafka as Server;

use super::*;

/// Killed under load and started again: nothing is lost, and each key keeps its order.
pub(crate) async fn a_killed_kafka_loses_nothing_and_needs_nobody(mut server: Server) {
    const COUNT: usize = 3000;
    let (publisher, consumer) = (connect(&server.url()).await, connect(&server.url()).await);
    let place = Place::new();
    place.declare(&publisher).await;
    let mut deliveries = place.subscribe(&consumer, 50).await;
    let killing = async {
        let mut away = Duration::ZERO;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let began = Instant::now();
            server = tokio::task::spawn_blocking(move || {
                server.kill9();
                std::thread::sleep(Duration::from_secs(1));
                server.restart().expect("it starts again");
                server
            })
            .await
            .expect("no panic");
            away += began.elapsed();
        }
        (away, server)
    };
    let publishing = publish_all(&publisher, &place, COUNT);
    let receiving = receive_all(&mut deliveries, COUNT);
    let (longest, (), (away, server)) = tokio::join!(publishing, receiving, killing);
    println!("publishing waited for {longest:?} at most, Kafka was away for {away:?}");
    let soon = Duration::from_secs(10);
    assert!(longest < away + soon, "it waits though Kafka is back");
    drop(server);
}

/// Nobody waits for a Kafka that is not there: who publishes is told at once, and who closes can.
pub(crate) async fn closing_does_not_wait_for_a_kafka_that_is_gone(mut server: Server) {
    let (kafka, place) = (connect(&server.url()).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..3).await;
    let mut deliveries = place.subscribe(&kafka, 2).await;
    let held = next_few(&mut deliveries, 2).await;
    server.kill9();
    let deadline = Instant::now() + SOON;
    loop {
        let began = Instant::now();
        let mut outcomes = kafka.publish(vec![place.message(None, 3)]).await;
        let error = outcomes.remove(0).expect_err("there is no Kafka");
        use PublishErrorKind::{Unavailable, Unconfirmed};
        assert!(matches!(error.kind(), Unavailable | Unconfirmed), "{error}");
        if began.elapsed() < Duration::from_millis(100) {
            break;
        }
        assert!(Instant::now() < deadline, "it is never told at once");
    }
    let began = Instant::now();
    kafka.close().await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert!(held.iter().all(Delivery::is_stale));

    server.restart().expect("it starts again");
    let kafka = connect(&server.url()).await;
    let mut deliveries = place.subscribe(&kafka, 10).await;
    let mut again = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut deliveries).await;
        again.push(body(&delivery));
        ack(delivery).await;
    }
    assert_eq!(again, [0, 1, 2]);
}
