//! How deliveries end.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::StreamExt;
use tidings_core::{Settlement, dead_letter, dead_letter_queue};
use tokio::time::{Instant, timeout};

use super::support::*;

pub(super) async fn a_requeued_message_comes_back_to_its_place_at_once(case: Case) {
    const TIMES: usize = 5;
    case.declare().await;
    let keeps_order = case.keeps_order();
    case.publish(&["a", "b"][..case.how_many_in_order(2)]).await;
    let mut deliveries = case.subscribe(1).await;
    let failed = attempt("once", None);
    let delivery = next(&mut deliveries).await;
    let retry = Settlement::Retry {
        delay: Duration::ZERO,
        attempt: failed.clone(),
    };
    settle(delivery, retry).await;
    if keeps_order {
        take(&mut deliveries, &["b"]).await;
        case.publish(&["c"]).await;
    }
    for number in 0..TIMES {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), "a", "it is before what came later");
        assert_eq!(delivery.redelivered, number > 0);
        assert_eq!(delivery.failures, 1, "nothing was tried");
        assert_eq!(delivery.history, std::slice::from_ref(&failed));
        settle(delivery, Settlement::Requeue).await;
    }
    let delivery = next(&mut deliveries).await;
    assert!(delivery.redelivered);
    settle(delivery, Settlement::Ack).await;
    if keeps_order {
        let delivery = next(&mut deliveries).await;
        assert_eq!(
            (body(&delivery).as_str(), delivery.redelivered),
            ("c", false)
        );
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut deliveries).await;
}

pub(super) async fn requeued_messages_keep_their_order(case: Case) {
    case.declare().await;
    case.publish(&["a", "b", "c", "d", "e"]).await;
    let mut deliveries = case.subscribe(4).await;
    let mut out = Vec::new();
    for _ in 0..4 {
        out.push(next(&mut deliveries).await);
    }
    drop(deliveries);
    let settled = body(&out[1]);
    let mut given_back = BTreeSet::new();
    for delivery in out {
        if body(&delivery) == settled {
            settle(delivery, Settlement::Ack).await;
        } else {
            given_back.insert(body(&delivery));
            settle(delivery, Settlement::Requeue).await;
        }
    }
    // What was given back is on its way. Its confirm comes back over the same connection, after that.
    case.publish(&["f"]).await;
    let mut there = case.subscribe_to(&case.other, &case.queue, 10).await;
    let mut came = Vec::new();
    for _ in 0..5 {
        let delivery = next(&mut there).await;
        let body = body(&delivery);
        let may_be = delivery.redelivered && case.one.features().fetches_ahead;
        let expected = given_back.contains(&body) || may_be;
        assert_eq!(delivery.redelivered, expected, "{body}");
        came.push(body);
        settle(delivery, Settlement::Ack).await;
    }
    came.insert(1, settled);
    case.assert_came(&came, &["a", "b", "c", "d", "e", "f"]);
    none(&mut there).await;
}

pub(super) async fn a_retry_comes_after_its_delay_with_its_history(case: Case) {
    let delays = if case.can_delay() {
        case.declare_with_delay().await;
        [DELAY, Duration::ZERO]
    } else {
        case.declare().await;
        [Duration::ZERO; 2]
    };
    let mut envelope = text("retried");
    envelope.id = Some("id".into());
    envelope.key = Some("key".into());
    envelope.headers = vec![("tenant".into(), "a".into())];
    let outcome = case.publish_one(case.to_topic(), envelope.clone()).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(1).await;
    let attempts = [
        attempt("the first time", Some("instance 1")),
        attempt("again", None),
    ];
    for (number, delay) in delays.into_iter().enumerate() {
        let delivery = next(&mut deliveries).await;
        assert_eq!(delivery.failures as usize, number);
        let due = Instant::now() + delay;
        let attempt = attempts[number].clone();
        settle(delivery, Settlement::Retry { delay, attempt }).await;
        if !delay.is_zero() {
            // It holds up nothing while it waits, even at a prefetch of one.
            case.publish(&["another"]).await;
            take(&mut deliveries, &["another"]).await;
            let mut early = pin!(deliveries.next());
            let wait = due.saturating_duration_since(Instant::now() + QUIET / 4);
            assert!(
                timeout(wait, early.as_mut()).await.is_err(),
                "it comes before its delay"
            );
        }
    }
    let delivery = next(&mut deliveries).await;
    assert_eq!(*delivery.envelope, envelope, "it is the same message");
    assert_eq!(delivery.failures, 2);
    assert_eq!(delivery.history, attempts);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

pub(super) async fn messages_sent_to_one_delay_come_back_in_order(case: Case) {
    if !case.can_delay() {
        return;
    }
    case.declare_with_delay().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    case.publish(&names).await;
    let mut deliveries = case.subscribe(10).await;
    let delay = DELAY;
    for number in 0..names.len() {
        let delivery = next(&mut deliveries).await;
        let settlement = if number % 2 == 0 {
            let attempt = attempt("wait", None);
            Settlement::Retry { delay, attempt }
        } else {
            Settlement::Defer { delay }
        };
        settle(delivery, settlement).await;
    }
    case.take(&mut deliveries, &names).await;
}

pub(super) async fn a_deferred_message_has_not_failed(case: Case) {
    case.declare().await;
    let mut envelope = text("deferred");
    envelope.id = Some("id".into());
    let outcome = case.publish_one(case.to_topic(), envelope.clone()).await;
    outcome.expect("it is published");
    let mut deliveries = case.subscribe(1).await;
    let failed = attempt("once", None);
    let delay = Duration::ZERO;
    let defer = |delivery| settle(delivery, Settlement::Defer { delay });

    let delivery = next(&mut deliveries).await;
    defer(delivery).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!((delivery.failures, delivery.history.len()), (0, 0));
    let attempt = failed.clone();
    settle(delivery, Settlement::Retry { delay, attempt }).await;
    let delivery = next(&mut deliveries).await;
    defer(delivery).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.failures, 1);
    assert_eq!(delivery.history, [failed]);
    assert_eq!(*delivery.envelope, envelope);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

pub(super) async fn the_history_keeps_the_first_and_the_latest_attempts(case: Case) {
    const FAILURES: u32 = 25;
    case.declare().await;
    case.publish(&["unlucky"]).await;
    let mut deliveries = case.subscribe(1).await;
    for number in 0..FAILURES {
        let delivery = next(&mut deliveries).await;
        let attempt = attempt(&number.to_string(), None);
        let delay = Duration::ZERO;
        settle(delivery, Settlement::Retry { delay, attempt }).await;
    }
    let delivery = next(&mut deliveries).await;
    assert_eq!(delivery.failures, FAILURES, "all are counted");
    let reasons: Vec<&str> = delivery
        .history
        .iter()
        .map(|attempt| &*attempt.reason)
        .collect();
    assert!(
        reasons.len() < FAILURES as usize,
        "what travels with a message is bounded"
    );
    assert_eq!(reasons.first(), Some(&"0"));
    let latest = (FAILURES - 2..FAILURES).map(|number| number.to_string());
    assert!(
        latest.eq(reasons[reasons.len() - 2..]
            .iter()
            .map(|reason| reason.to_string()))
    );
    settle(delivery, Settlement::Ack).await;
}

pub(super) async fn a_dead_letter_says_why(case: Case) {
    case.declare().await;
    let mut poison = text("poison");
    poison.id = Some("id".into());
    poison.key = Some("key".into());
    poison.headers = vec![("tenant".into(), "a".into())];
    let both = [poison.clone(), keyed("key", "next")];
    for envelope in both.into_iter().take(case.how_many_in_order(2)) {
        let outcome = case.publish_one(case.to_topic(), envelope).await;
        outcome.expect("it is published");
    }
    let mut deliveries = case.subscribe(1).await;
    let attempts = [
        attempt("odd", None),
        attempt("field `amount` is missing", Some("i")),
    ];
    let [first, last] = attempts.clone();
    let delivery = next(&mut deliveries).await;
    let delay = Duration::ZERO;
    settle(
        delivery,
        Settlement::Retry {
            delay,
            attempt: first,
        },
    )
    .await;
    if case.keeps_order() {
        take(&mut deliveries, &["next"]).await;
    }
    let delivery = next(&mut deliveries).await;
    settle(delivery, Settlement::DeadLetter { attempt: last }).await;
    none(&mut deliveries).await;

    let dead = dead_letter_queue(&case.queue);
    let mut deliveries = case.subscribe_to(&case.other, &dead, 10).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(
        *delivery.envelope, poison,
        "it can be looked at and sent again as it was"
    );
    assert_eq!(*delivery.queue, *dead);
    assert_eq!(delivery.failures, 2);
    assert_eq!(delivery.history, attempts);
    settle(delivery, Settlement::Ack).await;
    none(&mut deliveries).await;
}

/// A settlement made it, or a consumer with a store sent it through its outbox.
pub(super) async fn a_dead_letter_looks_the_same_whichever_way_it_came(case: Case) {
    case.declare().await;
    let mut poison = text("poison");
    poison.id = Some("id".into());
    poison.key = Some("key".into());
    poison.headers = vec![("tenant".into(), "a".into())];
    let outcome = case.publish_one(case.to_topic(), poison.clone()).await;
    outcome.expect("it is published");
    let attempts = [
        attempt("odd", Some("i")),
        attempt("still odd \u{1F600}", None),
    ];
    let [first, last] = attempts.clone();
    let mut deliveries = case.subscribe(1).await;
    let retry = Settlement::Retry {
        delay: Duration::ZERO,
        attempt: first,
    };
    settle(next(&mut deliveries).await, retry).await;
    let dead = Settlement::DeadLetter { attempt: last };
    settle(next(&mut deliveries).await, dead).await;

    let sent = dead_letter(&poison, &case.queue, 2, &attempts);
    let outcome = case.publish_one(sent.destination, sent.envelope).await;
    outcome.expect("it is published");
    let beside = dead_letter_queue(&case.queue);
    let mut deliveries = case.subscribe_to(&case.other, &beside, 10).await;
    for which in ["settled", "sent"] {
        let delivery = next(&mut deliveries).await;
        assert_eq!(*delivery.envelope, poison, "{which}");
        assert_eq!(delivery.failures, 2, "{which}");
        assert_eq!(delivery.history, attempts, "{which}");
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut deliveries).await;
}
