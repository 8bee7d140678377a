//! What the memory's adapters offer to tests of services beyond the ports.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tidings_core::{
    Attempt, Claim, Commit, Committed, Destination, Envelope, Expected, Fate, Group, InboxEntry,
    Outgoing, PublishErrorKind, Queue, RecordChange, RecordId, RecordValue, Settlement, Store,
    Subscription, Topology, Transport, Unrouted, Waiting, dead_letter,
};
use tidings_memory::{MemoryStore, MemoryTransport};
use tokio::time::{Instant, timeout};

const QUEUE: &str = "mail.order-placed.v1";
const HOUR: Duration = Duration::from_secs(3600);

async fn broker() -> MemoryTransport {
    let transport = MemoryTransport::new();
    let topology = Topology::new().queue(Queue::new(QUEUE).topic("orders"));
    transport.declare(&topology).await.expect("it declares");
    transport
}

fn outgoing(destination: Destination, body: &str) -> Outgoing {
    Outgoing {
        destination,
        unrouted: Unrouted::Hold,
        envelope: Envelope::new("order-placed.v1", body.to_owned()),
    }
}

fn attempt(reason: &str) -> Attempt {
    Attempt {
        at: Timestamp::from_second(1_700_000_000).expect("a time"),
        reason: reason.into(),
        by: None,
    }
}

fn subscription() -> Subscription {
    Subscription::new(QUEUE).prefetch(NonZeroU16::MIN)
}

#[tokio::test]
async fn a_dead_letter_is_stored_alike_whichever_way_it_came() {
    let transport = broker().await;
    let message = outgoing(Destination::topic("orders"), "{}");
    let history = [attempt("first"), attempt("last")];
    let sent = dead_letter(&message.envelope, QUEUE, 2, &history);
    transport.publish(vec![message, sent]).await;
    let mut deliveries = transport
        .subscribe(subscription())
        .await
        .expect("deliveries");
    let [first, last] = history.clone();
    let retry = Settlement::Retry {
        delay: Duration::ZERO,
        attempt: first,
    };
    for settlement in [retry, Settlement::DeadLetter { attempt: last }] {
        let delivery = deliveries.next().await.expect("a delivery");
        let delivery = delivery.expect("a delivery");
        delivery.settle(settlement).await.expect("it is settled");
    }

    let dead = transport.dead_letters(QUEUE);
    assert_eq!(dead.len(), 2);
    for dead in dead {
        assert_eq!(dead.envelope, Envelope::new("order-placed.v1", "{}"));
        assert_eq!(dead.failures, 2);
        assert_eq!(dead.history, history);
        assert_eq!(dead.reason.as_deref(), Some("last"));
        assert_eq!(dead.dead_from.as_deref(), Some(QUEUE));
    }
}

#[tokio::test]
async fn headers_that_nobody_can_read_say_nothing() {
    let transport = broker().await;
    let mut message = outgoing(Destination::queue(QUEUE), "{}");
    message.envelope.headers = vec![
        ("tidings-failures".into(), "many".into()),
        ("tidings-history".into(), "[1]".into()),
        ("tenant".into(), "a".into()),
    ];
    transport.publish(vec![message]).await;
    let stored = transport.messages(QUEUE).remove(0);
    assert_eq!((stored.failures, stored.history.len()), (0, 0));
    assert_eq!(stored.envelope.headers, [("tenant".into(), "a".into())]);
}

#[tokio::test]
async fn a_limited_queue_counts_what_is_out_and_forgets_nothing() {
    let transport = broker().await;
    let publish = async || {
        let message = outgoing(Destination::topic("orders"), "{}");
        let mut outcomes = transport.publish(vec![message]).await;
        outcomes.remove(0).map_err(|error| error.kind())
    };
    for _ in 0..3 {
        publish().await.expect("there is room");
    }
    assert!(transport.limit(QUEUE, 2));
    assert_eq!(transport.messages(QUEUE).len(), 3, "what is there stays");
    let mut deliveries = transport
        .subscribe(subscription())
        .await
        .expect("deliveries");
    for room in [false, false, true] {
        let outcome = publish().await;
        assert_eq!(outcome.is_ok(), room);
        assert!(room || outcome == Err(PublishErrorKind::Refused));
        let delivery = deliveries.next().await.expect("a delivery");
        let delivery = delivery.expect("a delivery");
        assert_eq!(publish().await, Err(PublishErrorKind::Refused), "it is out");
        let settled = delivery.settle(Settlement::Ack).await;
        settled.expect("it is settled");
    }
    assert!(!transport.limit("unknown", 2));
}

#[tokio::test]
async fn consumers_of_a_deleted_queue_are_told() {
    let transport = broker().await;
    let outcomes = transport.publish(vec![outgoing(Destination::queue(QUEUE), "{}")]);
    outcomes.await.remove(0).expect("it is published");
    let mut waits = transport
        .subscribe(subscription())
        .await
        .expect("deliveries");
    let delivery = waits.next().await.expect("a delivery").expect("a delivery");
    let waits = tokio::spawn(async move { (waits.next().await, waits.next().await) });
    // It may or may not wait already: it must be told in both cases.
    tokio::task::yield_now().await;
    assert!(transport.delete_queue(QUEUE));
    let soon = timeout(Duration::from_secs(10), waits).await;
    let (told, end) = soon.expect("it is told").expect("it does not panic");
    let error = told.expect("it is told").expect_err("the queue is gone");
    assert!(!error.is_temporary());
    assert!(error.to_string().contains(QUEUE), "{error}");
    assert!(end.is_none(), "nothing comes after that");
    assert!(delivery.is_stale());
    assert!(delivery.settle(Settlement::Ack).await.is_err());

    assert!(!transport.delete_queue(QUEUE));
    for to in [Destination::topic("orders"), Destination::queue(QUEUE)] {
        let outcome = transport.publish(vec![outgoing(to, "{}")]).await.remove(0);
        let kind = outcome.expect_err("nobody wants it").kind();
        assert_eq!(kind, PublishErrorKind::Unroutable);
    }
    // Declared again, it is a new one, without the old one's subscriptions to topics.
    let topology = Topology::new().queue(Queue::new(QUEUE));
    transport.declare(&topology).await.expect("it declares");
    assert!(transport.messages(QUEUE).is_empty());
    assert!(transport.subscribe(subscription()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn paused_time_moves_what_waits_in_the_store() {
    let store = MemoryStore::new();
    let started = Instant::now();
    let waiting = Waiting {
        envelope: Arc::new(Envelope::new("order-placed.v1", "{}")),
        due_in: HOUR,
        failures: 1,
        history: Vec::new(),
    };
    let claim = Claim {
        consumer: QUEUE.into(),
        message: "1".into(),
    };
    let record = RecordChange {
        id: RecordId::new("schedule", "1"),
        expected: Expected::Nothing,
        value: Some(RecordValue {
            due: Some(Timestamp::now() + SignedDuration::from_hours(2)),
            ..RecordValue::default()
        }),
    };
    let entry = InboxEntry {
        fate: Fate::Deferred(waiting),
        ..InboxEntry::handled(claim)
    };
    let commit = Commit {
        inbox: vec![entry],
        records: vec![record],
        ..Commit::default()
    };
    let committed = store.commit(commit).await.expect("it commits");
    assert_eq!(committed, Committed::Done);

    let consumers = [QUEUE.into()];
    let due = async || {
        let due = store.deferred();
        let due = due.take_due(&consumers, "worker", HOUR, 10).await;
        due.expect("due messages").len()
    };
    assert_eq!(due().await, 0);
    let next = store.deferred().next_due(&consumers).await;
    tokio::time::sleep(next.expect("an answer").expect("one waits")).await;
    assert_eq!(started.elapsed().as_secs(), 3600);
    assert_eq!(due().await, 1);

    let next = store.records().next_due("schedule").await;
    let next = next.expect("an answer").expect("one waits");
    assert!(next > HOUR - Duration::from_secs(60), "{next:?}");
    tokio::time::sleep(next).await;
    let taken = store.records().take_due("schedule", "worker", HOUR, 10);
    assert_eq!(taken.await.expect("due records").len(), 1);
}

#[tokio::test]
async fn messages_of_the_outbox_are_shown_in_whatever_state() {
    let store = MemoryStore::new();
    let bodies = ["ready", "held", "set aside", "damaged"];
    let commit = Commit {
        outbox: bodies
            .map(|body| outgoing(Destination::topic("orders"), body))
            .into(),
        ..Commit::default()
    };
    store.commit(commit).await.expect("it commits");
    let outbox = store.outbox();
    let lanes = outbox.lease("relay", HOUR).await.expect("lanes").lanes;
    let rows = outbox.next(&lanes, &[], &[], 10).await.expect("rows");
    let rows: Vec<i64> = rows.iter().map(|row| row.position).collect();
    let held = outbox.hold("relay", &rows[1..2], "nobody listens").await;
    held.expect("it is held");
    let set_aside = outbox.set_aside("relay", &rows[2..3], "too large").await;
    set_aside.expect("it is set aside");
    assert!(store.damage_outbox(rows[3]));
    assert!(!store.damage_outbox(i64::MAX));
    let unsent = store.unsent();
    let shown: Vec<&[u8]> = unsent.iter().map(|one| &one.envelope.body[..]).collect();
    assert_eq!(shown, [&b"ready"[..], b"held", b"set aside"]);
}

/// A group of two partitions that is declared, and a connection.
async fn broker_with_group() -> (MemoryTransport, Group) {
    let transport = broker().await;
    let two = NonZeroU16::new(2).expect("not zero");
    let group = Group::new("bank.ordered", two).topic("orders");
    let topology = Topology::new().group(group.clone());
    transport.declare(&topology).await.expect("it declares");
    (transport, group)
}

#[tokio::test]
async fn a_subscription_that_does_not_fit_its_queue_is_refused() {
    let (transport, group) = broker_with_group().await;
    let subscribe = async |subscription| match transport.subscribe(subscription).await {
        Ok(_) => None,
        Err(error) => Some((error.is_temporary(), error.to_string())),
    };
    let part = group.partition(0);
    let (is_temporary, error) = subscribe(Subscription::new(part.clone()))
        .await
        .expect("a partition is received in order");
    assert!(!is_temporary && error.contains(&part), "{error}");
    let (is_temporary, error) = subscribe(Subscription::new(QUEUE).ordered())
        .await
        .expect("a plain queue is not");
    assert!(!is_temporary && error.contains(QUEUE), "{error}");
    for queue in [part, group.any()] {
        assert_eq!(subscribe(Subscription::new(queue).ordered()).await, None);
    }
    assert_eq!(subscribe(subscription()).await, None);
}

#[tokio::test]
async fn a_group_never_takes_over_a_queue_that_is_there() {
    let (transport, group) = broker_with_group().await;
    let taken = Queue::new(group.partition(0).replace("bank", "shop"));
    let topology = Topology::new().queue(taken.clone());
    transport.declare(&topology).await.expect("it declares");
    let other = Group::new("shop.ordered", group.partitions).topic("shop");
    let topology = Topology::new().group(other.clone());
    let error = transport.declare(&topology).await.expect_err("it is taken");
    assert!(!error.is_temporary());
    for name in [&*other.name, &*taken.name] {
        assert!(error.to_string().contains(name), "{error}");
    }
    let missing = Subscription::new(other.any()).ordered();
    assert!(
        transport.subscribe(missing).await.is_err(),
        "nothing of it is there"
    );
}

#[tokio::test]
async fn a_dead_letter_of_a_partition_names_the_group() {
    let (transport, group) = broker_with_group().await;
    let mut message = outgoing(Destination::topic("orders"), "{}");
    message.envelope.key = Some("key".into());
    let sent = dead_letter(&message.envelope, &group.name, 1, &[attempt("last")]);
    for outcome in transport.publish(vec![message, sent]).await {
        outcome.expect("it is published");
    }
    let parts = [group.partition(0), group.partition(1)];
    let mut parts = parts.into_iter();
    let part = parts.find(|it| !transport.messages(it).is_empty());
    let part = part.expect("it is in one of them");
    let subscription = Subscription::new(part).ordered();
    let mut deliveries = transport.subscribe(subscription).await.expect("deliveries");
    let delivery = deliveries.next().await.expect("a delivery");
    let attempt = attempt("last");
    let dead = Settlement::DeadLetter { attempt };
    let settled = delivery.expect("a delivery").settle(dead).await;
    settled.expect("it is settled");
    let dead = transport.dead_letters(&group.name);
    assert_eq!(dead.len(), 2);
    for dead in dead {
        assert_eq!(dead.dead_from.as_deref(), Some(&*group.name));
        assert_eq!((dead.failures, dead.reason.as_deref()), (1, Some("last")));
    }
}

#[tokio::test]
async fn a_partition_that_was_deleted_goes_on_when_it_is_declared_again() {
    let (transport, group) = broker_with_group().await;
    let any = group.any();
    let subscription = Subscription::new(any.clone()).ordered();
    let mut deliveries = transport.subscribe(subscription).await.expect("deliveries");
    // Before the subscription looks at it.
    assert!(transport.delete_queue(&any));
    let topology = Topology::new().group(group);
    transport.declare(&topology).await.expect("it declares");
    let message = outgoing(Destination::topic("orders"), "{}");
    let outcome = transport.publish(vec![message]).await.remove(0);
    outcome.expect("it is published");
    let delivery = timeout(Duration::from_secs(10), deliveries.next()).await;
    let delivery = delivery.expect("it receives").expect("a delivery");
    let settled = delivery.expect("a delivery").settle(Settlement::Ack).await;
    settled.expect("it is settled");
    assert!(transport.messages(&any).is_empty());
}
