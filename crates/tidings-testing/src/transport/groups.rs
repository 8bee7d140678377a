//! Ordered groups: where messages go, and who receives a partition.
//!
//! Asked only of engines that claim partitions. Which key goes to which partition is the engine's
//! choice; that it is the same one every time, whoever publishes, is not, unless the engine keeps the order of a key over
//! all partitions ([`Features::partitions_share_keys`](tidings_core::Features::partitions_share_keys)).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidings_core::{
    Delivery, Destination, Group, SLOT_COUNT, Settlement, Topology, dead_letter, dead_letter_queue,
};
use tokio::time::timeout;

use super::{partitions::*, support::*};

/// How many partitions the group of a case about routing has.
const PARTITIONS: u16 = 4;

pub(super) async fn more_partitions_than_claimed_are_refused(case: Case) {
    let claimed = case.one.features().partitions_max;
    assert!(claimed <= SLOT_COUNT, "there are no more slots");
    let name = name_of_group(&case);
    let group = Group::new(name.clone(), count(claimed + 1)).topic(case.topic.clone());
    let topology = Topology::new().group(group);
    let declared = timeout(SOON, case.one.declare(&topology)).await;
    let error = declared
        .expect("an answer")
        .expect_err("these are too many");
    assert!(!error.is_temporary(), "waiting does not mend it: {error}");
    assert!(
        error.to_string().contains(&name),
        "the group is named: {error}"
    );
}

pub(super) async fn a_key_goes_to_one_partition_and_each_gets_some(case: Case) {
    let Some(group) = group(&case, PARTITIONS) else {
        return;
    };
    declare(&case, &group).await;
    let keys: Vec<String> = (0..64).map(|key| format!("key-{key}")).collect();
    let message = |key: &String| outgoing(case.to_topic(), keyed(key, key));
    for key in &keys {
        publish(&case.one, vec![message(key)]).await;
    }
    publish(&case.one, keys.iter().map(message).collect()).await;
    publish(&case.other, keys.iter().map(message).collect()).await;

    let mut parts = receive(&case, &group).await;
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..keys.len() * 3 {
        let delivery = next_of(&mut parts).await;
        let queues = seen.entry(body(&delivery)).or_default();
        queues.push(delivery.queue.to_string());
        settle(delivery, Settlement::Ack).await;
    }
    let mut used = BTreeSet::new();
    let share_keys = case.one.features().partitions_share_keys;
    for (key, queues) in seen {
        assert!(
            queues.len() == 3 && (share_keys || queues.iter().all(|it| *it == queues[0])),
            "three messages of `{key}`, in {queues:?}"
        );
        used.extend(queues);
    }
    if share_keys {
        return none_of(&mut parts).await;
    }
    let partitions: BTreeSet<String> = (0..PARTITIONS).map(|it| group.partition(it)).collect();
    assert_eq!(
        used, partitions,
        "each gets some of 64 keys, nothing else does"
    );
}

/// Whatever an engine does with partitions: while a message of a key is out, no other partition gets one of that key, over
/// whichever connection. Other keys go on.
pub(super) async fn a_key_is_with_one_partition_at_a_time(case: Case) {
    const KEYS: usize = 8;
    const EACH: usize = 6;
    const OUT_MAX: usize = 6;
    let Some(group) = group(&case, 2) else {
        return;
    };
    declare(&case, &group).await;
    let all = (0..EACH).flat_map(|number| (0..KEYS).map(move |key| (key, number)));
    let message = |(key, number): (usize, usize)| {
        let key = format!("key-{key}");
        outgoing(case.to_topic(), keyed(&key, &number.to_string()))
    };
    publish(&case.one, all.map(message).collect()).await;
    let mut parts = vec![
        ordered(&case.one, &group.partition(0), 10).await,
        ordered(&case.other, &group.partition(1), 10).await,
    ];
    let mut came: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut out: VecDeque<(String, Delivery)> = VecDeque::new();
    while came.values().map(Vec::len).sum::<usize>() < KEYS * EACH {
        // What is left may all be of keys that are out: an engine may keep it until they are settled.
        let can_come = (0..KEYS).map(|key| format!("key-{key}")).any(|key| {
            came.get(&key).is_none_or(|it| it.len() < EACH) && out.iter().all(|(it, _)| *it != key)
        });
        if out.len() == OUT_MAX || !can_come {
            let (_, oldest) = out.pop_front().expect("some are out");
            settle(oldest, Settlement::Ack).await;
            continue;
        }
        let delivery = next_of(&mut parts).await;
        let key = delivery.envelope.key.clone().expect("its key").to_string();
        let elsewhere =
            |(other, it): &(String, Delivery)| *other == key && it.queue != delivery.queue;
        assert!(!out.iter().any(elsewhere), "`{key}` is out elsewhere");
        let number = body(&delivery).parse().expect("a number");
        came.entry(key.clone()).or_default().push(number);
        out.push_back((key, delivery));
    }
    for (_, delivery) in out {
        settle(delivery, Settlement::Ack).await;
    }
    none_of(&mut parts).await;
    assert_eq!(came.len(), KEYS);
    for (key, numbers) in came {
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5], "of `{key}`");
    }
}

pub(super) async fn what_has_no_key_goes_to_any(case: Case) {
    let Some(group) = group(&case, PARTITIONS) else {
        return;
    };
    let group = group.command(case.queue.clone());
    declare(&case, &group).await;
    let batch = [
        (case.to_topic(), "a"),
        (case.to_queue(), "b"),
        (case.to_topic(), "c"),
    ];
    let batch = batch.map(|(to, body)| outgoing(to, text(body)));
    publish(&case.one, batch.into()).await;
    publish(
        &case.one,
        vec![outgoing(case.to_topic(), keyed("key", "keyed"))],
    )
    .await;
    if case.one.features().shares_partitions {
        // It may come from any of them.
        let mut parts = receive(&case, &group).await;
        let mut bodies = bodies_of(&mut parts, 4).await;
        bodies.sort();
        assert_eq!(bodies, ["a", "b", "c", "keyed"]);
        return none_of(&mut parts).await;
    }
    let mut any = ordered(&case.one, &group.any(), 10).await;
    for expected in ["a", "b", "c"] {
        let delivery = next(&mut any).await;
        assert_eq!(
            (body(&delivery).as_str(), &*delivery.queue),
            (expected, &*group.any())
        );
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut any).await;
    drop(any);
    let mut parts = receive(&case, &group).await;
    let delivery = next_of(&mut parts).await;
    assert_eq!(body(&delivery), "keyed");
    settle(delivery, Settlement::Ack).await;
    none_of(&mut parts).await;
}

/// Types have topics of their own, commands none; an order of all of them is what a group is for.
pub(super) async fn all_types_of_a_key_come_in_the_order_they_were_published(case: Case) {
    const ROUNDS: usize = 12;
    let Some(group) = group(&case, PARTITIONS) else {
        return;
    };
    let second = format!("{}.second", case.topic);
    let group = group.topic(second.clone()).command(case.queue.clone());
    declare(&case, &group).await;
    let destinations = [
        case.to_topic(),
        Destination::Topic(second.into()),
        case.to_queue(),
    ];
    // Whoever publishes need not know of the group.
    for publisher in [&case.one, &case.other] {
        for key in ["x", "y", "z"] {
            let message = |number: usize| {
                let to = destinations[number % 3].clone();
                outgoing(to, keyed(key, &number.to_string()))
            };
            publish(publisher, (0..ROUNDS).map(message).collect()).await;
            for number in ROUNDS..ROUNDS * 2 {
                publish(publisher, vec![message(number)]).await;
            }
        }
    }
    let mut parts = receive(&case, &group).await;
    let mut seen: BTreeMap<String, (BTreeSet<String>, Vec<String>)> = BTreeMap::new();
    for _ in 0..2 * 3 * ROUNDS * 2 {
        let delivery = next_of(&mut parts).await;
        let key = delivery.envelope.key.clone().expect("its key");
        let (queues, bodies) = seen.entry(key.to_string()).or_default();
        queues.insert(delivery.queue.to_string());
        bodies.push(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    none_of(&mut parts).await;
    let numbers = (0..ROUNDS * 2).chain(0..ROUNDS * 2);
    // An engine that keeps no order between destinations keeps it within each.
    let apart = if case.one.features().shares_partitions {
        3
    } else {
        1
    };
    for (key, (queues, bodies)) in seen {
        let share_keys = case.one.features().partitions_share_keys;
        assert!(share_keys || queues.len() == 1, "`{key}` is in {queues:?}");
        let bodies = bodies.iter().map(|body| body.parse().expect("a number"));
        for to in 0..apart {
            let came: Vec<usize> = bodies.clone().filter(|it| it % apart == to).collect();
            let went: Vec<usize> = numbers.clone().filter(|it| it % apart == to).collect();
            assert_eq!(came, went, "`{key}` to {to}");
        }
    }
}

pub(super) async fn groups_and_queues_of_a_topic_get_each_message(case: Case) {
    let Some(one) = group(&case, 1) else {
        return;
    };
    let other = Group::new(format!("{}2", one.name), count(2)).topic(case.topic.clone());
    let topology = case.topology().group(one.clone()).group(other.clone());
    case.one.declare(&topology).await.expect("it declares");
    publish(
        &case.one,
        vec![outgoing(case.to_topic(), keyed("key", "to all"))],
    )
    .await;
    publish(
        &case.one,
        vec![outgoing(case.to_queue(), keyed("key", "to one"))],
    )
    .await;
    let mut deliveries = case.subscribe(10).await;
    take_all(&case, &mut deliveries, &["to all", "to one"]).await;
    for group in [one, other] {
        let mut parts = receive(&case, &group).await;
        let delivery = next_of(&mut parts).await;
        assert_eq!(body(&delivery), "to all");
        settle(delivery, Settlement::Ack).await;
        none_of(&mut parts).await;
    }
}

pub(super) async fn declaring_a_group_again_takes_nothing_away(case: Case) {
    let Some(group) = group(&case, 2) else {
        return;
    };
    let group = group.command(case.queue.clone());
    declare(&case, &group).await;
    for (to, body) in [(case.to_topic(), "event"), (case.to_queue(), "command")] {
        publish(&case.one, vec![outgoing(to, keyed("key", body))]).await;
    }
    declare(&case, &group).await;
    let topology = Topology::new().group(group.clone());
    let again = case.other.declare(&topology).await;
    again.expect("another may declare it too");
    for (to, body) in [(case.to_topic(), "event 2"), (case.to_queue(), "command 2")] {
        publish(&case.one, vec![outgoing(to, keyed("key", body))]).await;
    }
    let mut parts = receive(&case, &group).await;
    let mut bodies = bodies_of(&mut parts, 4).await;
    if case.one.features().shares_partitions {
        // Each in its order; the sort keeps it.
        bodies.sort_by_key(|body| body.starts_with("command"));
        assert_eq!(bodies, ["event", "event 2", "command", "command 2"]);
    } else {
        assert_eq!(bodies, ["event", "command", "event 2", "command 2"]);
    }
    none_of(&mut parts).await;

    // One that takes something more adds to it.
    let second = format!("{}.second", case.topic);
    let more = Group::new(group.name.clone(), group.partitions).topic(second.clone());
    let more = Topology::new().group(more);
    case.other.declare(&more).await.expect("it declares");
    let to = [Destination::Topic(second.into()), case.to_topic()];
    let batch = to.map(|to| outgoing(to, keyed("key", "more")));
    publish(&case.one, batch.into()).await;
    for _ in 0..2 {
        let delivery = next_of(&mut parts).await;
        assert_eq!(body(&delivery), "more");
        settle(delivery, Settlement::Ack).await;
    }
    none_of(&mut parts).await;
}

pub(super) async fn one_subscription_at_a_time_receives_a_partition(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    publish_keyed(&case, &["a", "b", "c", "d", "e", "f"]).await;
    let mut first = ordered(&case.one, &queue, 3).await;
    let a = next(&mut first).await;
    let b = next(&mut first).await;
    let c = next(&mut first).await;
    // Over another connection, over the same one, and one that ends before its turn comes.
    let mut second = ordered(&case.other, &queue, 10).await;
    let mut waits = ordered(&case.one, &queue, 10).await;
    let gives_up = ordered(&case.other, &queue, 10).await;
    none(&mut second).await;
    none(&mut waits).await;
    drop(gives_up);
    settle(b, Settlement::Ack).await;
    let d = next(&mut first).await;
    assert_eq!(body(&d), "d");
    none(&mut second).await;
    drop(waits);

    drop(first);
    for expected in ["a", "c", "d"] {
        let delivery = next(&mut second).await;
        assert_eq!(
            (body(&delivery).as_str(), delivery.redelivered),
            (expected, true),
            "what was out comes first, in its old order"
        );
        assert_eq!(delivery.failures, 0, "nothing was tried");
        settle(delivery, Settlement::Ack).await;
    }
    take(&mut second, &["e", "f"]).await;
    none(&mut second).await;
    drop([a, c, d]);
    none(&mut second).await;
}

pub(super) async fn a_partition_goes_on_elsewhere_when_its_connection_closes(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    publish_keyed(&case, &["a", "b", "c", "d"]).await;
    let mut first = ordered(&case.one, &queue, 3).await;
    let mut second = ordered(&case.other, &queue, 10).await;
    let a = next(&mut first).await;
    let b = next(&mut first).await;
    settle(a, Settlement::Ack).await;
    let c = next(&mut first).await;
    none(&mut second).await;
    case.one.close().await;
    assert!(b.is_stale() && c.is_stale(), "their connection is gone");
    for expected in ["b", "c"] {
        let delivery = next(&mut second).await;
        assert_eq!(
            (body(&delivery).as_str(), delivery.redelivered),
            (expected, true)
        );
        settle(delivery, Settlement::Ack).await;
    }
    take(&mut second, &["d"]).await;
    none(&mut second).await;
    let late = timeout(SOON, b.settle(Settlement::Ack)).await;
    assert!(late.expect("an answer").is_err(), "its connection is gone");
}

pub(super) async fn a_delivery_of_a_dropped_ordered_stream_is_stale(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    publish_keyed(&case, &["a", "b", "c", "d"]).await;
    let mut first = ordered(&case.one, &queue, 4).await;
    let mut gone = Vec::new();
    for _ in 0..4 {
        gone.push(next(&mut first).await);
    }
    assert!(!gone.iter().any(Delivery::is_stale));
    drop(first);
    assert!(gone.iter().all(Delivery::is_stale), "from the moment on");

    // Somebody else has them now. What is done with the stale ones does nothing to these.
    let mut second = ordered(&case.one, &queue, 10).await;
    let mut again = Vec::new();
    for _ in 0..4 {
        again.push(next(&mut second).await);
    }
    let late = [
        Some(Settlement::Ack),
        Some(Settlement::Requeue),
        Some(Settlement::DeadLetter {
            attempt: attempt("late", None),
        }),
        None,
    ];
    for (delivery, settlement) in gone.into_iter().zip(late) {
        assert!(delivery.is_stale());
        let Some(settlement) = settlement else {
            drop(delivery);
            continue;
        };
        let what = format!("{settlement:?}");
        let settled = timeout(SOON, delivery.settle(settlement)).await;
        let error = settled.expect("an answer").expect_err(&what);
        assert!(error.is_temporary(), "it comes again by itself: {error}");
    }
    none(&mut second).await;
    assert!(!again.iter().any(Delivery::is_stale));
    for (delivery, expected) in again.into_iter().zip(["a", "b", "c", "d"]) {
        assert_eq!(
            (body(&delivery).as_str(), delivery.redelivered),
            (expected, true)
        );
        settle(delivery, Settlement::Ack).await;
    }
    none(&mut second).await;
    let dead = dead_letter_queue(&name_of_group(&case));
    let mut dead = case.subscribe_to(&case.one, &dead, 1).await;
    none(&mut dead).await;
}

/// With a stream of its own for each, as instances that take turns have.
pub(super) async fn a_partition_passes_from_hand_to_hand_and_keeps_its_order(case: Case) {
    const MESSAGES: usize = 60;
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    let bodies: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    publish_keyed(&case, &bodies).await;
    let mut settled = Vec::new();
    for turn in 0.. {
        let transport = if turn % 2 == 0 {
            &case.one
        } else {
            &case.other
        };
        let mut deliveries = ordered(transport, &queue, 10).await;
        for _ in 0..turn % 4 {
            if settled.len() == MESSAGES {
                return assert_eq!(settled, bodies);
            }
            let delivery = next(&mut deliveries).await;
            settled.push(body(&delivery));
            settle(delivery, Settlement::Ack).await;
        }
        if settled.len() + 2 < MESSAGES {
            // Two more are out when it ends, and come again.
            let out = [next(&mut deliveries).await, next(&mut deliveries).await];
            drop(deliveries);
            drop(out);
        }
    }
}

/// What came back keeps its order when a subscription that takes fewer has come and gone. RabbitMQ's
/// quorum queues hand out what came back in the order in which it did: an adapter there asks the
/// broker for the same number always, and holds back what is beyond the prefetch itself.
pub(super) async fn a_partition_keeps_its_order_whatever_the_prefetch(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    let bodies = ["a", "b", "c", "d", "e", "f"];
    publish_keyed(&case, &bodies).await;
    for prefetch in [4, 1, 2, 1, 3] {
        let mut deliveries = ordered(&case.one, &queue, prefetch).await;
        let mut out = Vec::new();
        for expected in &bodies[..usize::from(prefetch)] {
            let delivery = next(&mut deliveries).await;
            assert_eq!(body(&delivery), *expected, "at a prefetch of {prefetch}");
            out.push(delivery);
        }
        drop(deliveries);
    }
    let mut deliveries = ordered(&case.other, &queue, 10).await;
    take(&mut deliveries, &bodies).await;
    none(&mut deliveries).await;
}

pub(super) async fn what_is_given_back_comes_first_in_its_partition(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    publish_keyed(&case, &["a", "b"]).await;
    let mut deliveries = ordered(&case.one, &queue, 1).await;
    for number in 0..6 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), "a", "it is in its old place");
        assert_eq!(delivery.redelivered, number > 0);
        assert_eq!(delivery.failures, 0, "nothing was tried");
        match number % 2 {
            0 => settle(delivery, Settlement::Requeue).await,
            _ => drop(delivery),
        }
    }
    take(&mut deliveries, &["a", "b"]).await;
    none(&mut deliveries).await;
}

pub(super) async fn no_more_than_the_prefetch_is_out_of_a_partition(case: Case) {
    let Some(queue) = one_partition(&case).await else {
        return;
    };
    publish_keyed(&case, &["a", "b", "c", "d"]).await;
    let mut deliveries = ordered(&case.one, &queue, 2).await;
    let first = next(&mut deliveries).await;
    let second = next(&mut deliveries).await;
    none(&mut deliveries).await;
    settle(second, Settlement::Ack).await;
    let third = next(&mut deliveries).await;
    assert_eq!(body(&third), "c");
    none(&mut deliveries).await;
    settle(first, Settlement::Ack).await;
    settle(third, Settlement::Ack).await;
    take(&mut deliveries, &["d"]).await;
}

pub(super) async fn a_dead_letter_of_a_group_is_beside_its_name(case: Case) {
    let Some(group) = group(&case, 2) else {
        return;
    };
    declare(&case, &group).await;
    let mut poison = keyed("key", "poison");
    poison.id = Some("id".into());
    poison.headers = vec![("tenant".into(), "a".into())];
    let without_key = text("poison too");
    let batch = [&poison, &without_key].map(|it| outgoing(case.to_topic(), it.clone()));
    publish(&case.one, batch.into()).await;
    let mut parts = receive(&case, &group).await;
    let history = [attempt("field `amount` is missing", Some("i"))];
    for _ in 0..2 {
        let delivery = next_of(&mut parts).await;
        let attempt = history[0].clone();
        settle(delivery, Settlement::DeadLetter { attempt }).await;
    }
    none_of(&mut parts).await;
    // One that a consumer with a store sends through its outbox.
    let sent = dead_letter(&poison, &group.name, 1, &history);
    publish(&case.one, vec![sent]).await;
    none_of(&mut parts).await;

    let beside = dead_letter_queue(&group.name);
    let mut dead = case.subscribe_to(&case.other, &beside, 10).await;
    let mut with_key = 0;
    for _ in 0..3 {
        let delivery = next(&mut dead).await;
        match delivery.envelope.key {
            Some(_) => {
                assert_eq!(*delivery.envelope, poison);
                with_key += 1;
            }
            None => assert_eq!(*delivery.envelope, without_key),
        }
        assert_eq!(delivery.failures, 1);
        assert_eq!(delivery.history, history);
        settle(delivery, Settlement::Ack).await;
    }
    assert_eq!(with_key, 2, "the settled one and the sent one");
    none(&mut dead).await;
}

pub(super) async fn the_longest_names_of_a_group_can_be_used(case: Case) {
    let Some(short) = group(&case, 2) else {
        return;
    };
    let bytes = case.one.features().name_bytes_max.min(NAME_BYTES_TRIED_MAX);
    let added = ["0of2", "any", "dead"].map(str::len).into_iter().max();
    let pad = bytes - short.name.len() - 1 - added.expect("there are some");
    let name = format!("{}{}", short.name, "x".repeat(pad));
    let group = Group::new(name, count(2)).topic(case.topic.clone());
    declare(&case, &group).await;
    let batch = [keyed("key", "long"), text("long")];
    let batch = batch.map(|envelope| outgoing(case.to_topic(), envelope));
    publish(&case.one, batch.into()).await;
    let mut parts = receive(&case, &group).await;
    for _ in 0..2 {
        let attempt = attempt("once", None);
        let delivery = next_of(&mut parts).await;
        settle(delivery, Settlement::DeadLetter { attempt }).await;
    }
    let dead = dead_letter_queue(&group.name);
    let mut dead = case.subscribe_to(&case.one, &dead, 2).await;
    take(&mut dead, &["long", "long"]).await;
}
