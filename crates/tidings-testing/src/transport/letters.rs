//! Dead letters for operators.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tidings_core::{
    AccessErrorKind, DeadLetter, DeadLetterAccess, Destination, Envelope, Group, HeldLetters,
    LetterPlace, Settlement, Subscription, Topology, Transport, dead_letter, dead_letter_queue,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    partitions::{bodies_of, none_of, receive},
    support::*,
};

/// How often letters are looked at: more often than a quorum queue of RabbitMQ 4 hands out.
const LOOKS: usize = 30;

impl Case {
    /// True if the engine lets operators hold dead letters. Says so if not.
    fn can_hold(&self) -> bool {
        let can = self.one.features().holds_dead_letters;
        assert_eq!(can, self.one.dead_letter_access().is_some());
        if !can {
            eprintln!("  skipped: holding dead letters is not claimed");
        }
        can
    }

    fn letters(&self) -> String {
        dead_letter_queue(&self.queue)
    }

    /// In the order of their bodies, if the engine keeps none.
    fn in_order(&self, mut letters: Vec<DeadLetter>) -> Vec<DeadLetter> {
        if !self.one.features().keeps_order {
            letters.sort_by_key(|letter| letter.envelope.body.to_vec());
        }
        letters
    }

    /// Publishes a dead letter for each of these bodies, as a consumer with a store does.
    async fn bury(&self, bodies: &[&str]) {
        let batch = bodies.iter().map(|body| {
            let mut envelope = text(body);
            envelope.id = Some(format!("id-{body}").into());
            envelope.key = Some("key".into());
            envelope.headers = vec![("note".into(), "kept".into())];
            let history = [attempt("first", None), attempt("refused", Some("me"))];
            dead_letter(&envelope, &self.queue, 2, &history)
        });
        for outcome in self.one.publish(batch.collect()).await {
            outcome.expect("it is published");
        }
    }
}

fn access(transport: &Arc<dyn Transport>) -> &dyn DeadLetterAccess {
    transport.dead_letter_access().expect("it is claimed")
}

/// Holds a queue as soon as whoever had it has given it back.
async fn hold(transport: &Arc<dyn Transport>, queue: &str) -> Box<dyn HeldLetters> {
    let deadline = Instant::now() + SOON;
    loop {
        match access(transport).hold(queue).await {
            Ok(held) => return held,
            Err(error) if error.kind() == AccessErrorKind::Busy && Instant::now() < deadline => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{queue} cannot be held: {error}"),
        }
    }
}

/// All that there is, in steps of `step`.
async fn all(held: &mut Box<dyn HeldLetters>, step: usize) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    loop {
        let next = held.next(step).await.expect("they can be read");
        if next.is_empty() {
            return letters;
        }
        assert!(next.len() <= step, "no more than were asked for");
        letters.extend(next);
    }
}

fn bodies(letters: &[DeadLetter]) -> Vec<String> {
    let bodies = letters.iter().map(|letter| &letter.envelope.body);
    bodies
        .map(|body| String::from_utf8_lossy(body).into_owned())
        .collect()
}

/// The same without what names them in one hold.
fn without_places(letters: Vec<DeadLetter>) -> Vec<DeadLetter> {
    let each = letters.into_iter().map(|mut letter| {
        letter.place = LetterPlace(0);
        letter
    });
    each.collect()
}

pub(super) async fn looking_at_dead_letters_changes_nothing(case: Case) {
    if !case.can_hold() {
        return;
    }
    case.declare().await;
    let mut expected: Vec<String> = (0..40)
        .map(|number| format!("letter {number:02}"))
        .collect();
    let as_str: Vec<&str> = expected.iter().map(String::as_str).collect();
    case.bury(&as_str).await;
    let mut held = hold(&case.one, &case.letters()).await;
    let before = without_places(case.in_order(all(&mut held, 7).await));
    held.release().await.expect("they go back");
    assert_eq!(bodies(&before), expected);
    for look in 0..LOOKS {
        let transport = [&case.one, &case.other][look % 2];
        let mut held = hold(transport, &case.letters()).await;
        // All of them, or the first few.
        let looked = match look % 3 {
            0 => held.next(look + 1).await.expect("they can be read"),
            _ => all(&mut held, look + 1).await,
        };
        if case.one.features().keeps_order || look % 3 > 0 {
            case.assert_came(&bodies(&looked), &expected[..looked.len()]);
        } else {
            assert!(
                looked.len() == look + 1 && bodies(&looked).iter().all(|it| expected.contains(it))
            );
        }
        // Meanwhile consumers go on.
        let new = format!("while looked at {look:02}");
        case.bury(&[&new]).await;
        expected.push(new);
        match look % 2 {
            0 => held.release().await.expect("they go back"),
            _ => drop(held),
        }
    }
    let mut held = hold(&case.one, &case.letters()).await;
    let after = without_places(case.in_order(all(&mut held, 1000).await));
    assert_eq!(bodies(&after), expected);
    assert_eq!(after[..before.len()], before[..], "they are as they were");
    let one = &before[0];
    assert_eq!(one.reason.as_deref(), Some("refused"));
    assert_eq!(one.consumer.as_deref(), Some(&*case.queue));
    assert_eq!((one.failures, one.history.len()), (2, 2));
    assert_eq!(one.envelope.key.as_deref(), Some("key"));
    assert_eq!(one.envelope.headers, [("note".into(), "kept".into())]);
    held.release().await.expect("they go back");
    // And they are still what a plain consumer finds.
    let mut deliveries = case.subscribe_to(&case.one, &case.letters(), 10).await;
    let as_str: Vec<&str> = expected.iter().map(String::as_str).collect();
    case.take(&mut deliveries, &as_str).await;
    none(&mut deliveries).await;
}

pub(super) async fn dead_letters_are_held_by_one_at_a_time(case: Case) {
    if !case.can_hold() {
        return;
    }
    case.declare().await;
    case.bury(&["a", "b"]).await;
    let mut held = hold(&case.one, &case.letters()).await;
    assert_eq!(held.next(1).await.expect("it can be read").len(), 1);
    assert_eq!(held.behind().await.expect("it counts"), 1);
    for transport in [&case.one, &case.other] {
        let refused = access(transport).hold(&case.letters()).await;
        let kind = refused.map(drop).expect_err("it is held").kind();
        assert_eq!(kind, AccessErrorKind::Busy);
    }
    let count = access(&case.other).count(&case.letters()).await;
    assert_eq!(count.expect("it counts"), 1, "without what is held");
    // As when the process of an operator ends.
    case.one.close().await;
    let mut next = hold(&case.other, &case.letters()).await;
    case.assert_came(&bodies(&all(&mut next, 10).await), &["a", "b"]);
    let lost = held.next(1).await;
    drop(held);
    assert!(lost.map_or(true, |letters| letters.is_empty()), "not twice");
    let refused = access(&case.other).hold(&case.letters()).await;
    assert!(refused.is_err(), "a hold that is lost frees nothing");
    next.release().await.expect("they go back");
    let count = access(&case.other).count(&case.letters()).await;
    assert_eq!(count.expect("it counts"), 2);

    let missing = access(&case.other).hold("nobody-declared-this.dead").await;
    let kind = missing.map(drop).expect_err("it is not there").kind();
    assert_eq!(kind, AccessErrorKind::Missing);
    let missing = access(&case.other).count("nobody-declared-this.dead").await;
    let kind = missing.expect_err("it is not there").kind();
    assert_eq!(kind, AccessErrorKind::Missing);
}

pub(super) async fn removed_dead_letters_are_gone_and_the_others_stay(case: Case) {
    if !case.can_hold() {
        return;
    }
    case.declare().await;
    case.bury(&["a", "b", "c", "d", "e"]).await;
    let mut held = hold(&case.one, &case.letters()).await;
    let letters = case.in_order(all(&mut held, 3).await);
    let places = [letters[3].place, letters[1].place];
    held.remove(&places).await.expect("they are taken out");
    held.release().await.expect("the others go back");
    let mut held = hold(&case.other, &case.letters()).await;
    case.assert_came(&bodies(&all(&mut held, 3).await), &["a", "c", "e"]);
    assert_eq!(held.behind().await.expect("it counts"), 0);
    case.bury(&["f"]).await;
    assert_eq!(bodies(&all(&mut held, 3).await), ["f"], "it goes on");
    drop(held);

    // What is put there is behind the others, and the record is made when it is needed.
    let unique = format!("discarded {}", case.queue);
    for queue in [&*case.letters(), tidings_core::RECORD_QUEUE] {
        let outcomes = access(&case.one).put(queue, vec![text(&unique)]).await;
        assert_eq!(kinds(&outcomes), [None]);
    }
    let mut held = hold(&case.one, &case.letters()).await;
    let all_of_them = bodies(&all(&mut held, 100).await);
    case.assert_came(&all_of_them, &["a", "c", "e", "f", &*unique]);
    let mut record = hold(&case.one, tidings_core::RECORD_QUEUE).await;
    assert!(bodies(&all(&mut record, 100).await).contains(&unique));
    for held in [held, record] {
        held.release().await.expect("they go back");
    }
}

pub(super) async fn what_is_sent_back_goes_to_its_queue_or_partition(case: Case) {
    if !case.can_hold() {
        return;
    }
    case.declare().await;
    let batch = vec![text("a"), text("b")];
    let outcomes = access(&case.other).send_back(&case.queue, batch).await;
    assert_eq!(kinds(&outcomes), [None, None]);
    let mut deliveries = case.subscribe(10).await;
    case.take(&mut deliveries, &["a", "b"]).await;

    if case.one.features().partitions_max >= 4 {
        group_takes_its_keys(&case).await;
    }
    let outcomes = access(&case.one)
        .send_back("nobody-declared-this", vec![text("lost")])
        .await;
    let unroutable = tidings_core::PublishErrorKind::Unroutable;
    assert_eq!(kinds(&outcomes), [Some(unroutable)]);
}

async fn group_takes_its_keys(case: &Case) {
    let partitions = NonZeroU16::new(4).expect("not zero");
    let group = Group::new(format!("{}.ordered", case.queue), partitions).topic(case.topic.clone());
    let topology = Topology::new().group(group.clone());
    case.one.declare(&topology).await.expect("it declares");
    let keyed = |body: &str, key: Option<&str>| Envelope {
        key: key.map(Into::into),
        ..text(body)
    };
    if case.one.features().shares_partitions {
        return group_takes_its_keys_where_the_engine_puts_them(case, &group, keyed).await;
    }
    for (key, body) in [(Some("x"), "of x"), (Some("y"), "of y"), (None, "of none")] {
        let batch = vec![keyed(body, key)];
        let outcomes = access(&case.one).send_back(&group.name, batch).await;
        assert_eq!(kinds(&outcomes), [None]);
        // Where its publisher would send it.
        let also = outgoing(
            Destination::Topic(case.topic.clone().into()),
            keyed("also", key),
        );
        case.one.publish(vec![also]).await.remove(0).expect("taken");
        let part = match key {
            Some(key) => group.partition(group.partition_of_slot(tidings_core::slot_of(key))),
            None => group.any(),
        };
        let subscription = Subscription::new(part).ordered();
        let mut deliveries = case.one.subscribe(subscription).await.expect("it is there");
        take(&mut deliveries, &[body, "also"]).await;
    }
}

/// Where the engine has its own places for keys: what is sent back is in the partition that gets the key's other messages,
/// whichever that is.
async fn group_takes_its_keys_where_the_engine_puts_them(
    case: &Case,
    group: &Group,
    keyed: impl Fn(&str, Option<&str>) -> Envelope,
) {
    let keys = ["x", "y", "z", "another", "order-1", "order-2"];
    for key in keys {
        let batch = vec![keyed(key, Some(key))];
        let outcomes = access(&case.one).send_back(&group.name, batch).await;
        assert_eq!(kinds(&outcomes), [None]);
        let topic = Destination::Topic(case.topic.clone().into());
        let also = outgoing(topic, keyed(key, Some(key)));
        case.one.publish(vec![also]).await.remove(0).expect("taken");
    }
    let batch = vec![keyed("of none", None)];
    let outcomes = access(&case.one).send_back(&group.name, batch).await;
    assert_eq!(kinds(&outcomes), [None]);

    if case.one.features().partitions_share_keys {
        let mut parts = receive(case, group).await;
        let mut bodies = bodies_of(&mut parts, keys.len() * 2 + 1).await;
        let mut expected: Vec<&str> = keys.iter().chain(&keys).copied().collect();
        expected.push("of none");
        bodies.sort_unstable();
        expected.sort_unstable();
        assert_eq!(bodies, expected);
        return none_of(&mut parts).await;
    }
    let mut bodies_of_parts = Vec::new();
    for partition in 0..group.partitions.get() {
        let subscription = Subscription::new(group.partition(partition)).ordered();
        let mut deliveries = case.one.subscribe(subscription).await.expect("it is there");
        let mut bodies = Vec::new();
        while let Ok(Some(delivery)) = timeout(QUIET * 10, deliveries.next()).await {
            let delivery = delivery.expect("no error");
            bodies.push(String::from_utf8_lossy(&delivery.envelope.body).into_owned());
            settle(delivery, Settlement::Ack).await;
        }
        bodies_of_parts.push(bodies);
    }
    for key in keys {
        let counts = bodies_of_parts.iter();
        let counts = counts.map(|bodies| bodies.iter().filter(|body| *body == key).count());
        let there: Vec<usize> = counts.filter(|count| *count > 0).collect();
        assert_eq!(there, [2], "both of key {key} are in one partition");
    }
    assert!(
        bodies_of_parts
            .iter()
            .all(|bodies| !bodies.contains(&"of none".to_owned()))
    );
    let subscription = Subscription::new(group.any()).ordered();
    let mut deliveries = case.one.subscribe(subscription).await.expect("it is there");
    take(&mut deliveries, &["of none"]).await;
}
