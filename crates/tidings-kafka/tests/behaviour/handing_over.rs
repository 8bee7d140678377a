//! Partitions that go from one consumer to another.

use std::collections::BTreeSet;

use tidings_core::{Subscription, Transport};

use super::*;

/// A member that leaves while others come and go still says how far it is.
pub(crate) async fn what_was_settled_is_not_repeated_while_members_come_and_go(url: String) {
    let (one, other) = (connect(&url).await, connect(&url).await);
    for _ in 0..7 {
        let place = Place::new();
        let partition = place.declare_group(&one).await;
        let ordered = || Subscription::new(partition.clone()).ordered();
        let batch = (0..6).map(|body| place.message(Some("key"), body));
        for outcome in one.publish(batch.collect()).await {
            outcome.expect("it is published");
        }
        let mut first = one.subscribe(ordered()).await.expect("subscribed");
        let mut out = next_few(&mut first, 3).await;
        let mut second = other.subscribe(ordered()).await.expect("subscribed");
        let waits = one.subscribe(ordered()).await.expect("subscribed");
        let gives_up = other.subscribe(ordered()).await.expect("subscribed");
        none(&mut second).await;
        drop(gives_up);
        ack(out.remove(1)).await;
        out.push(next(&mut first).await);
        none(&mut second).await;
        drop(waits);
        drop(first);
        let out_before = [0, 2, 3].map(|body| (body, true));
        take(&mut second, out_before).await;
        take(&mut second, [(4, false), (5, false)]).await;
        none(&mut second).await;
    }
}

/// What ends in time is settled, what does not is stale, and comes to the next one: each message is with one.
pub(crate) async fn a_partition_that_goes_waits_for_its_handlers(url: String) {
    const COUNT: usize = 60;
    let options = "handover_timeout=8000";
    let one = connect_with(&url, options).await;
    let other = connect_with(&url, options).await;
    let place = Place::new();
    place.declare(&one).await;
    let batch = (0..COUNT).map(|body| place.message(Some(&body.to_string()), body));
    for outcome in one.publish(batch.collect()).await {
        outcome.expect("it is published");
    }
    let mut here = place.subscribe(&one, 100).await;
    let mut held = next_few(&mut here, COUNT).await;
    let mut there = place.subscribe(&other, 100).await;
    let (in_time, late): (Vec<_>, Vec<_>) =
        held.drain(..).partition(|it| body(it).is_multiple_of(2));
    // For longer than it takes until the partitions are asked for, and not as long as they wait then.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for delivery in in_time {
        ack(delivery).await;
    }
    let first = next(&mut there).await;
    let mut moved = vec![body(&first)];
    assert!(first.redelivered);
    ack(first).await;
    while let Ok(delivery) = timeout(Duration::from_secs(2), there.next()).await {
        let delivery = delivery.expect("a delivery").expect("no error");
        assert!(delivery.redelivered);
        moved.push(body(&delivery));
        ack(delivery).await;
    }
    let mut stale = Vec::new();
    for delivery in late {
        let (number, is_stale) = (body(&delivery), delivery.is_stale());
        let settled = delivery.settle(Settlement::Ack).await;
        assert_eq!(settled.is_err(), is_stale, "{settled:?}");
        if is_stale {
            stale.push(number);
        }
    }
    moved.sort_unstable();
    stale.sort_unstable();
    assert_eq!(
        moved, stale,
        "what was stale here came there, and nothing else"
    );
    assert!(!stale.is_empty() && stale.len() < COUNT / 2, "some went");
    none(&mut here).await;
    none(&mut there).await;
}

/// How long a handler takes is nothing to Kafka: it is not the handler that polls.
pub(crate) async fn a_handler_may_take_longer_than_the_poll_interval(url: String) {
    let options = "handover_timeout=1000&max_poll_interval=4000";
    let (kafka, place) = (connect_with(&url, options).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..2).await;
    let mut deliveries = place.subscribe(&kafka, 1).await;
    let long = next(&mut deliveries).await;
    // Three times as long.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!long.is_stale(), "its partition was taken away");
    ack(long).await;
    take(&mut deliveries, [(1, false)]).await;
    none(&mut deliveries).await;
}

/// Partitions that rest, because enough waits, go on where they go to, and when they come back.
pub(crate) async fn what_rests_goes_on_after_it_was_elsewhere(url: String) {
    const COUNT: usize = 3000;
    let (one, other) = (connect(&url).await, connect(&url).await);
    let place = Place::new();
    place.declare(&one).await;
    let publish = async |numbers: std::ops::Range<usize>| {
        let batch = numbers.map(|body| place.message(Some(&body.to_string()), body));
        for outcome in one.publish(batch.collect()).await {
            outcome.expect("it is published");
        }
    };
    publish(0..COUNT).await;
    let mut here = place.subscribe(&one, 10).await;
    // So many that all partitions rest.
    let first = next(&mut here).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut there = place.subscribe(&other, 10).await;
    // Nothing is taken until some have gone, so they rest when they go.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut seen = BTreeSet::from([body(&first)]);
    // Its partition may be the one that goes.
    let _ = first.settle(Settlement::Ack).await;
    let (at_one, at_other) = tokio::join!(take_all(&mut here), take_all(&mut there));
    assert!(!at_other.is_empty(), "some went");
    seen.extend(at_one.into_iter().chain(at_other));
    assert_eq!(seen.len(), COUNT);
    drop(there);
    other.close().await;
    // Now they come back, and nothing waits.
    publish(COUNT..COUNT + 40).await;
    seen = take_all(&mut here).await;
    assert_eq!(seen, (COUNT..COUNT + 40).collect());
}

/// Receives until nothing has come for a while.
async fn take_all(deliveries: &mut Deliveries) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    while let Ok(delivery) = timeout(Duration::from_secs(5), deliveries.next()).await {
        let delivery = delivery.expect("a delivery").expect("no error");
        seen.insert(body(&delivery));
        let _ = delivery.settle(Settlement::Ack).await;
    }
    seen
}
