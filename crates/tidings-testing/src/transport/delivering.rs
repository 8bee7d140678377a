//! Subscribing, and what becomes of deliveries that are not settled.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use tidings_core::Settlement;
use tokio::time::{Instant, timeout};

use super::support::*;

pub(super) async fn a_queue_that_is_not_there_cannot_be_subscribed_to(case: Case) {
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

pub(super) async fn no_more_than_the_prefetch_is_out(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d", "e"]).await;
    let mut deliveries = case.subscribe(3).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    let third = next(&mut deliveries).await;
    let mut came = [&first, &second, &third].map(body).to_vec();
    none(&mut deliveries).await;
    settle(second, Settlement::Ack).await;
    let fourth = next(&mut deliveries).await;
    came.push(body(&fourth));
    none(&mut deliveries).await;
    for delivery in [third, first, fourth] {
        settle(delivery, Settlement::Ack).await;
    }
    let fifth = next(&mut deliveries).await;
    came.push(body(&fifth));
    settle(fifth, Settlement::Ack).await;
    case.assert_came(&came, &["a", "b", "c", "d", "e"]);
}

pub(super) async fn consumers_of_a_queue_share_its_messages(case: Case) {
    case.declare().await;
    if case.one.features().shares_partitions {
        return consumers_of_a_queue_share_its_partitions(&case).await;
    }
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

/// Each has some of them, sooner or later, and no message comes to both.
async fn consumers_of_a_queue_share_its_partitions(case: &Case) {
    let mut here = case.subscribe(10).await;
    let mut there = case.subscribe_to(&case.other, &case.queue, 10).await;
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    let deadline = Instant::now() + SOON;
    for round in 0.. {
        let keys = 0..16;
        let messages = keys.map(|key| {
            let envelope = keyed(&key.to_string(), &format!("{round}.{key}"));
            outgoing(case.to_topic(), envelope)
        });
        for outcome in case.one.publish(messages.collect()).await {
            outcome.expect("it is published");
        }
        let before = seen.each_ref().map(BTreeSet::len);
        let mut missing = 16;
        while missing > 0 {
            let (which, delivery) = tokio::select! {
                delivery = next(&mut here) => (0, delivery),
                delivery = next(&mut there) => (1, delivery),
            };
            // While partitions change hands it may come to the next one, too.
            if !seen.iter().any(|seen| seen.contains(&body(&delivery))) {
                missing -= 1;
            }
            seen[which].insert(body(&delivery));
            settle(delivery, Settlement::Ack).await;
        }
        let after = seen.each_ref().map(BTreeSet::len);
        if (0..2).all(|which| after[which] > before[which]) {
            let to_both = after.iter().sum::<usize>() - before.iter().sum::<usize>() - 16;
            assert_eq!(
                to_both, 0,
                "both have partitions, and no partition is with both"
            );
            break;
        }
        assert!(Instant::now() < deadline, "one has all of them: {after:?}");
    }
    none(&mut here).await;
    none(&mut there).await;
}

pub(super) async fn what_a_lost_connection_held_is_delivered_again(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d"]).await;
    let mut deliveries = case.subscribe(3).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    let third = next(&mut deliveries).await;
    let (held, settled) = ([&first, &third].map(body), body(&second));
    settle(second, Settlement::Ack).await;
    case.one.close().await;
    let late = timeout(SOON, first.settle(Settlement::Ack))
        .await
        .expect("an answer");
    assert!(late.is_err(), "its connection is gone");
    drop(third);

    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 10).await;
    let mut again = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut deliveries).await;
        again.push(body(&delivery));
        if held.contains(&body(&delivery)) {
            assert!(delivery.redelivered);
        }
        assert_eq!(delivery.failures, 0, "a crash is no failure of the message");
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut deliveries).await;
    // What was settled is gone, the rest keeps its place.
    again.insert(1, settled);
    case.assert_came(&again, &["a", "b", "c", "d"]);
}

pub(super) async fn a_dropped_subscription_holds_nothing_back(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d", "e", "f"]).await;
    let mut deliveries = case.subscribe(4).await;
    let out = next(&mut deliveries).await;
    drop(deliveries);
    let mut deliveries = case.subscribe(10).await;
    let mut seen = BTreeSet::from([body(&out)]);
    while seen.len() < 6 {
        let delivery = next(&mut deliveries).await;
        assert_ne!(body(&delivery), body(&out), "it is out");
        seen.insert(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    let all = ["a", "b", "c", "d", "e", "f"];
    assert!(seen.iter().map(String::as_str).eq(all));
    settle(out, Settlement::Ack).await;
    drop(deliveries);
    case.one.close().await;
    let mut deliveries = case.subscribe_to(&case.other, &case.queue, 10).await;
    none(&mut deliveries).await;
}

pub(super) async fn a_delivery_whose_connection_is_gone_is_stale(case: Case) {
    case.declare().await;
    let keeps_order = case.keeps_order();
    case.publish(&["a", "b"][..case.how_many_in_order(2)]).await;
    let mut gone = case.subscribe(1).await;
    let gone_one = next(&mut gone).await;
    let mut deliveries;
    if case.one.features().shares_partitions {
        assert!(!gone_one.is_stale());
        case.one.close().await;
        assert!(gone_one.is_stale(), "it cannot be settled any more");
        deliveries = case.subscribe_to(&case.other, &case.queue, 1).await;
    } else {
        deliveries = case.subscribe_to(&case.other, &case.queue, 1).await;
        let second = next(&mut deliveries).await;
        assert!(!gone_one.is_stale() && !second.is_stale());
        case.one.close().await;
        assert!(gone_one.is_stale(), "it cannot be settled any more");
        assert!(!second.is_stale(), "its own connection is there");
        settle(second, Settlement::Ack).await;
    }

    // Somebody else has it now. What is done with the stale one does nothing to that one.
    let again = next(&mut deliveries).await;
    assert_eq!((body(&again).as_str(), again.redelivered), ("a", true));
    let attempt = attempt("late", None);
    let late = gone_one.settle(Settlement::DeadLetter { attempt });
    let late = timeout(SOON, late).await.expect("an answer");
    assert!(late.is_err(), "its connection is gone");
    assert!(!again.is_stale());
    settle(again, Settlement::Ack).await;
    if case.one.features().shares_partitions && keeps_order {
        take(&mut deliveries, &["b"]).await;
    }
    none(&mut deliveries).await;
}

pub(super) async fn a_dropped_delivery_comes_back_at_once(case: Case) {
    const DROPS: usize = 5;
    case.declare().await;
    let keeps_order = case.keeps_order();
    case.publish(&["a", "b"][..case.how_many_in_order(2)]).await;
    let mut deliveries = case.subscribe(1).await;
    // More often than the prefetch: a dropped delivery does not count as being out.
    for number in 0..DROPS {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), "a", "it is in its old place");
        assert_eq!(delivery.redelivered, number > 0);
        assert_eq!(delivery.failures, 0, "nothing was tried");
        drop(delivery);
    }
    let delivery = next(&mut deliveries).await;
    assert!(delivery.redelivered);
    settle(delivery, Settlement::Ack).await;
    if keeps_order {
        let delivery = next(&mut deliveries).await;
        assert_eq!(
            (body(&delivery).as_str(), delivery.redelivered),
            ("b", false)
        );
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut deliveries).await;
}

/// After its subscription, to another consumer; after its connection, without harm.
pub(super) async fn a_delivery_that_is_dropped_late_comes_back_too(case: Case) {
    case.declare().await;
    case.publish(&["a", "b"]).await;
    let mut deliveries = case.subscribe(2).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    drop(deliveries);
    drop(first);
    let mut there = case.subscribe_to(&case.other, &case.queue, 10).await;
    let again = next(&mut there).await;
    let mut came = vec![body(&again)];
    assert!(again.redelivered);
    settle(again, Settlement::Ack).await;
    if case.one.features().shares_partitions {
        // With its partition, the other one went too.
        assert!(second.is_stale());
    } else {
        none(&mut there).await;
        case.one.close().await;
    }
    let again = next(&mut there).await;
    came.push(body(&again));
    assert!(again.redelivered);
    case.assert_came(&came, &["a", "b"]);
    drop(second);
    assert!(!again.is_stale());
    settle(again, Settlement::Ack).await;
    none(&mut there).await;
}
