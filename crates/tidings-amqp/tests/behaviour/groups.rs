//! What the transport does with ordered groups when partitions change hands, processes and brokers
//! die, and what is there is not what was expected.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use tidings_amqp::Amqp;
use tidings_core::{
    Deliveries, Delivery, Group, Outgoing, PublishErrorKind, Queue, Settlement, Subscription,
    Topology, Transport, dead_letter_queue,
};
use tidings_wire::BasicProperties;

use super::{
    connect,
    failures::{Server, Wire},
    id, next, publish_all,
    raw::Raw,
    subscribe, to_queue, to_topic, unique, within,
};

/// A group of one topic.
pub(super) struct Case {
    pub(super) topic: String,
    pub(super) group: Group,
}

impl Case {
    pub(super) async fn declare(amqp: &Amqp, partitions: u16) -> Self {
        let topic = unique("topic");
        let partitions = NonZeroU16::new(partitions).expect("not zero");
        let group = Group::new(unique("bank"), partitions).topic(topic.clone());
        let topology = Topology::new().group(group.clone());
        amqp.declare(&topology).await.expect("declared");
        Self { topic, group }
    }

    /// The next `count` messages of each of `keys` keys, one key after the other.
    pub(super) fn messages(&self, keys: u64, numbers: std::ops::Range<u64>) -> Vec<Outgoing> {
        let message = |number| (0..keys).map(move |key| self.message(key, number));
        numbers.flat_map(message).collect()
    }

    fn message(&self, key: u64, number: u64) -> Outgoing {
        keyed(to_topic(&self.topic, format!("{key}/{number}")), key)
    }
}

fn keyed(mut message: Outgoing, key: u64) -> Outgoing {
    message.envelope.key = Some(key.to_string().into());
    message
}

pub(super) async fn ordered(amqp: &Amqp, queue: &str, prefetch: u16) -> Deliveries {
    let prefetch = NonZeroU16::new(prefetch).expect("not zero");
    let subscription = Subscription::new(queue.to_owned())
        .prefetch(prefetch)
        .ordered();
    within("a subscription", amqp.subscribe(subscription))
        .await
        .expect("the partition is there")
}

/// What was handled, by key: each message after the one before it.
#[derive(Default)]
pub(crate) struct Ledger {
    next: HashMap<String, u64>,
    pub(crate) count: u64,
}

impl Ledger {
    /// True if it had not been handled before.
    #[track_caller]
    pub(crate) fn handle(&mut self, id: &str) -> bool {
        let (key, number) = id.split_once('/').expect("ours");
        let number: u64 = number.parse().expect("a number");
        let next = self.next.entry(key.to_owned()).or_default();
        assert!(number <= *next, "{id} came before {key}/{next}");
        let is_new = number == *next;
        if is_new {
            *next += 1;
            self.count += 1;
        }
        is_new
    }
}

/// Numbers that differ from each other, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        let Self(state) = self;
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 33) % limit
    }
}

/// Handlers as the toolkit runs them: several messages are out, of each key the first is done first.
#[derive(Default)]
struct Hand {
    out: VecDeque<Delivery>,
}

impl Hand {
    /// Handles one of those that are out: any that is the first of its key.
    fn pick(&mut self, dice: &mut Dice) -> Option<Delivery> {
        let len = self.out.len() as u64;
        let any = (len > 0).then(|| dice.below(len) as usize)?;
        let key = self.out[any].envelope.key.clone();
        let first = self.out.iter().position(|it| it.envelope.key == key)?;
        self.out.remove(first)
    }
}

/// A second subscription waits while the first receives; then the first is dropped with deliveries
/// out, and so on, while messages are published.
pub(crate) async fn a_partition_changes_hands_under_load(url: String) {
    hands_change(url, false).await;
}

/// A quorum queue of RabbitMQ may forget acknowledgements that came right before their channel ended: then what was handled
/// comes again, still in its place.
pub(crate) async fn a_partition_of_a_quorum_queue_changes_hands_under_load(url: String) {
    hands_change(url, true).await;
}

async fn hands_change(url: String, forgets: bool) {
    const KEYS: u64 = 8;
    const OF_EACH: u64 = 400;
    const PREFETCH: u64 = 20;
    let (one, other) = (connect(&url).await, connect(&url).await);
    let publisher = connect(&url).await;
    let case = Case::declare(&one, 1).await;
    let queue = case.group.partition(0);
    let publishing = tokio::spawn(async move {
        for round in 0..OF_EACH / 10 {
            publish_all(
                &publisher,
                case.messages(KEYS, round * 10..(round + 1) * 10),
            )
            .await;
        }
    });

    let (mut ledger, mut dice) = (Ledger::default(), Dice(7));
    let mut deliveries = ordered(&one, &queue, PREFETCH as u16).await;
    let mut came_again = 0;
    for hand_over in 0_u32.. {
        let waiting = [&other, &one][hand_over as usize % 2];
        let waiting = ordered(waiting, &queue, PREFETCH as u16).await;
        let mut hand = Hand::default();
        for _ in 0..40 + dice.below(60) {
            if ledger.count + hand.out.len() as u64 >= KEYS * OF_EACH {
                break;
            }
            let delivery = next(&mut deliveries).await;
            assert!(
                came_again == 0 || delivery.redelivered,
                "what was given back comes first"
            );
            came_again = u64::saturating_sub(came_again, 1);
            hand.out.push_back(delivery);
            while hand.out.len() as u64 > dice.below(PREFETCH) {
                let delivery = hand.pick(&mut dice).expect("one is out");
                let id = id(&delivery);
                delivery.settle(Settlement::Ack).await.expect("settled");
                let is_new = ledger.handle(&id);
                assert!(is_new || forgets, "{id} was acknowledged, and came again");
            }
        }
        drop(deliveries);
        came_again = hand.out.len() as u64;
        for delivery in hand.out {
            assert!(delivery.is_stale(), "it is somebody else's now");
            if dice.below(2) == 0 {
                let settled = delivery.settle(Settlement::Ack).await;
                let error = settled.expect_err("it is somebody else's now");
                assert!(error.is_temporary(), "{error}");
            }
        }
        deliveries = waiting;
        if ledger.count == KEYS * OF_EACH {
            assert!(hand_over >= 20, "only {hand_over} times");
            break;
        }
    }
    within("the publisher", publishing)
        .await
        .expect("published");
    while forgets
        && let Ok(Some(again)) =
            tokio::time::timeout(Duration::from_secs(1), deliveries.next()).await
    {
        assert!(!ledger.handle(&id(&again.expect("a delivery"))));
    }
    super::expect_nothing(&mut deliveries).await;
}

/// What is settled right before a stream is dropped is told to the broker before the channel closes.
pub(crate) async fn what_was_settled_before_a_stream_is_dropped_stays_settled(url: String) {
    const ROUNDS: u64 = 100;
    const OF_EACH: u64 = 10;
    let (one, other) = (connect(&url).await, connect(&url).await);
    let case = Case::declare(&one, 1).await;
    let queue = case.group.partition(0);
    publish_all(&one, case.messages(1, 0..ROUNDS * OF_EACH)).await;
    let mut number = 0;
    for round in 0..ROUNDS {
        let amqp = [&one, &other][round as usize % 2];
        let mut deliveries = ordered(amqp, &queue, 100).await;
        let mut out = Vec::new();
        for _ in 0..OF_EACH {
            out.push(next(&mut deliveries).await);
        }
        for delivery in out {
            assert_eq!(id(&delivery), format!("0/{number}"));
            delivery.settle(Settlement::Ack).await.expect("settled");
            number += 1;
        }
    }
    super::expect_nothing(&mut ordered(&one, &queue, 1).await).await;
}

/// One is given back alone while later ones are out, and comes again; then the connection ends. Next time they come as they
/// were published.
pub(crate) async fn what_was_given_back_alone_keeps_its_place(url: String) {
    let publisher = connect(&url).await;
    let case = Case::declare(&publisher, 1).await;
    let queue = case.group.partition(0);
    publish_all(&publisher, case.messages(1, 0..6)).await;
    let amqp = connect(&url).await;
    let mut deliveries = ordered(&amqp, &queue, 4).await;
    let mut out = Vec::new();
    for _ in 0..4 {
        out.push(next(&mut deliveries).await);
    }
    drop(out.remove(0));
    let again = next(&mut deliveries).await;
    assert_eq!((&*id(&again), again.redelivered), ("0/0", true));
    amqp.close().await;
    drop((out, again));
    let mut deliveries = ordered(&publisher, &queue, 4).await;
    for number in 0..6 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(id(&delivery), format!("0/{number}"));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
}

/// More often than a quorum queue of RabbitMQ 4 delivers a message before it gives up (20 times).
pub(crate) async fn many_crashes_lose_nothing_and_keep_the_order(url: String) {
    many_crashes(url, true).await;
}

/// The same where what is given back alone takes along all that is out: so all of it is out when the connection ends.
pub(crate) async fn many_crashes_with_all_out_keep_the_order(url: String) {
    many_crashes(url, false).await;
}

async fn many_crashes(url: String, gives_back: bool) {
    const CRASHES: u64 = 21;
    const KEYS: u64 = 5;
    const OF_EACH: u64 = 200;
    let publisher = connect(&url).await;
    let case = Case::declare(&publisher, 1).await;
    let queue = case.group.partition(0);
    publish_all(&publisher, case.messages(KEYS, 0..OF_EACH)).await;
    let mut wire = Wire::to(&url).await;
    let (mut ledger, mut dice) = (Ledger::default(), Dice(3));
    for _ in 0..CRASHES {
        let amqp = connect(&wire.url).await;
        let mut deliveries = ordered(&amqp, &queue, 100).await;
        let mut hand = Hand::default();
        // The first of all are never handled, so that they are delivered each time.
        for _ in 0..60 {
            hand.out.push_back(next(&mut deliveries).await);
        }
        let held = hand.pick(&mut Dice(0)).expect("one");
        let is_other = |it: &Delivery| it.envelope.key != held.envelope.key;
        let (others, aside): (VecDeque<_>, VecDeque<_>) = hand.out.into_iter().partition(is_other);
        hand.out = others;
        let aside = Some(aside).filter(|_| !gives_back);
        for _ in 0..dice.below(20) {
            let Some(delivery) = hand.pick(&mut dice) else {
                break;
            };
            ledger.handle(&id(&delivery));
            delivery.settle(Settlement::Ack).await.expect("settled");
        }
        wire.cut().await;
        within("the loss to be noticed", async {
            while !held.is_stale() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        drop(aside);
        let settled = held.settle(Settlement::Ack).await;
        let error = settled.expect_err("its connection is gone");
        assert!(error.is_temporary(), "{error}");
        wire.mend().await;
    }
    let mut deliveries = ordered(&publisher, &queue, 100).await;
    while ledger.count < KEYS * OF_EACH {
        let delivery = next(&mut deliveries).await;
        ledger.handle(&id(&delivery));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    super::expect_nothing(&mut deliveries).await;
}

/// The partitions are full, and some messages are out, when the broker dies.
pub(crate) async fn a_killed_broker_keeps_the_order_of_its_partitions(mut server: impl Server) {
    const KEYS: u64 = 20;
    const OF_EACH: u64 = 100;
    let amqp = connect(&server.url()).await;
    let case = Case::declare(&amqp, 4).await;
    let mut parts = Vec::new();
    for partition in 0..4 {
        parts.push(ordered(&amqp, &case.group.partition(partition), 20).await);
    }
    for round in 0..OF_EACH / 10 {
        publish_all(&amqp, case.messages(KEYS, round * 10..(round + 1) * 10)).await;
    }
    let mut ledger = Ledger::default();
    let mut out = Vec::new();
    for part in &mut parts {
        for number in 0..15 {
            let delivery = next(part).await;
            if number < 10 {
                ledger.handle(&id(&delivery));
                delivery.settle(Settlement::Ack).await.expect("settled");
            } else {
                out.push(delivery);
            }
        }
    }
    server.stop().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.start().await;
    within("the deliveries to be stale", async {
        while out.iter().any(|it| !it.is_stale()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    while ledger.count < KEYS * OF_EACH {
        let each = parts.iter_mut().map(StreamExt::next);
        let (delivery, ..) = within("a delivery", futures_util::future::select_all(each)).await;
        let delivery = delivery.expect("the stream goes on").expect("no error");
        // What was delivered when the connection broke may be settled too late.
        let id = id(&delivery);
        if delivery.settle(Settlement::Ack).await.is_ok() {
            ledger.handle(&id);
        }
    }
    amqp.close().await;
}

pub(crate) async fn a_queue_that_is_no_partition_is_refused(url: String) {
    let amqp = connect(&url).await;
    let mut raw = Raw::connect(&url).await;
    let group = Group::new(unique("bank"), const { NonZeroU16::new(2).unwrap() });
    let dead = dead_letter_queue(&group.name);
    let arguments = [
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-routing-key", dead.as_str().into()),
    ];
    raw.declare_queue(&group.partition(1), &arguments).await;
    let topology = Topology::new().group(group.clone());
    let declared = within("an answer", amqp.declare(&topology)).await;
    let error = declared.expect_err("two could receive from it at once");
    let text = error.to_string();
    assert!(!error.is_temporary(), "{text}");
    for part in [&group.partition(1), "it exists but differs; delete it"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains("single-active-consumer"), "{text}");
    raw.delete_queue(&group.partition(1)).await;
    amqp.declare(&topology).await.expect("declared");
}

/// Who sends commands does not know of the group: it would go on to fill the queue.
pub(crate) async fn a_queue_that_was_there_before_its_group_is_refused(url: String) {
    let amqp = connect(&url).await;
    let command = unique("bank.book.v1");
    let before = Topology::new().queue(Queue::new(command.clone()));
    amqp.declare(&before).await.expect("declared");
    publish_all(&amqp, vec![keyed(to_queue(&command, "1/0"), 1)]).await;
    let group = Group::new(unique("bank"), const { NonZeroU16::new(2).unwrap() });
    let group = group.command(command.clone());
    let topology = Topology::new().group(group.clone());
    // In a process of its own, that knows nothing of the queue.
    let consumer = connect(&url).await;
    let declared = within("an answer", consumer.declare(&topology)).await;
    let error = declared.expect_err("its messages would be left behind");
    assert!(
        !error.is_temporary() && error.to_string().contains(&command),
        "{error}"
    );
    Raw::connect(&url).await.delete_queue(&command).await;
    consumer.declare(&topology).await.expect("declared");
    // The publisher knew the queue; it finds out that it has become a group's command.
    let outcome = amqp
        .publish(vec![keyed(to_queue(&command, "1/0"), 1)])
        .await;
    let kind = outcome[0].as_ref().map_err(|error| error.kind());
    assert_eq!(kind.err(), Some(PublishErrorKind::Unroutable));
    publish_all(&amqp, vec![keyed(to_queue(&command, "1/0"), 1)]).await;
}

pub(crate) async fn others_of_a_topic_see_no_difference(url: String) {
    let amqp = connect(&url).await;
    let case = Case::declare(&amqp, 2).await;
    let mut raw = Raw::connect(&url).await;
    let foreign = unique("foreign");
    raw.declare_queue(&foreign, &[]).await;
    raw.bind(&foreign, &case.topic).await;
    publish_all(
        &amqp,
        vec![case.message(1, 0), to_topic(&case.topic, "-/0")],
    )
    .await;
    let mut deliveries = subscribe(&amqp, &foreign, 10).await;
    for expected in ["1/0", "-/0"] {
        assert_eq!(id(&next(&mut deliveries).await), expected);
    }
    // Who knows nothing of slots may say what it likes.
    let mut any = ordered(&amqp, &case.group.any(), 10).await;
    let delivery = next(&mut any).await;
    assert_eq!(id(&delivery), "-/0");
    delivery.settle(Settlement::Ack).await.expect("settled");
    for key in ["", "orders.eu", "tidings.slot.64"] {
        let properties = BasicProperties::default();
        raw.publish(&case.topic, key, &properties, key.as_bytes())
            .await;
        let delivery = next(&mut any).await;
        assert_eq!(delivery.envelope.body, key);
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
}

pub(crate) async fn a_deleted_partition_is_declared_again(url: String) {
    let amqp = connect(&url).await;
    let case = Case::declare(&amqp, 2).await;
    let keys: Vec<u64> = (0..20).collect();
    let mut raw = Raw::connect(&url).await;
    for queue in [
        case.group.partition(0),
        case.group.partition(1),
        case.group.any(),
    ] {
        let mut deliveries = ordered(&amqp, &queue, 100).await;
        raw.delete_queue(&queue).await;
        // None of its messages goes elsewhere when it is there again.
        within("the queue with its bindings", async {
            let mut number = 0;
            loop {
                let mut batch: Vec<_> = keys.iter().map(|key| case.message(*key, number)).collect();
                batch.push(to_topic(&case.topic, format!("-/{number}")));
                amqp.publish(batch).await;
                number += 1;
                let soon = Duration::from_millis(100);
                if let Ok(delivery) = tokio::time::timeout(soon, deliveries.next()).await {
                    return delivery.expect("the stream goes on").expect("a delivery");
                }
            }
        })
        .await;
    }
}

pub(crate) async fn a_command_finds_its_group_whenever_that_comes(url: String) {
    let (sender, consumer) = (connect(&url).await, connect(&url).await);
    let command = unique("bank.book.v1");
    let batch = |numbers: std::ops::Range<u64>| {
        let message = |number| keyed(to_queue(&command, format!("1/{number}")), 1);
        numbers.map(message).collect::<Vec<_>>()
    };
    let kinds = async |sender: &Amqp| {
        let outcomes = within("outcomes", sender.publish(batch(0..2))).await;
        let kinds = outcomes
            .into_iter()
            .map(|it| it.map_err(|it| it.kind()).err());
        kinds.collect::<Vec<_>>()
    };
    let unroutable = vec![Some(PublishErrorKind::Unroutable); 2];
    assert_eq!(kinds(&sender).await, unroutable, "nobody is there");
    let group = Group::new(unique("bank"), const { NonZeroU16::new(4).unwrap() });
    let group = group.command(command.clone());
    let topology = Topology::new().group(group.clone());
    consumer.declare(&topology).await.expect("declared");
    publish_all(&sender, batch(0..5)).await;
    publish_all(&consumer, batch(5..10)).await;
    publish_all(&sender, batch(10..15)).await;
    let slot = tidings_core::slot_of("1");
    let queue = group.partition(group.partition_of_slot(slot));
    let mut deliveries = ordered(&consumer, &queue, 100).await;
    let mut ledger = Ledger::default();
    for _ in 0..15 {
        let delivery = next(&mut deliveries).await;
        assert!(ledger.handle(&id(&delivery)));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }

    // Its exchange vanishes, and comes back.
    let mut raw = Raw::connect(&url).await;
    raw.delete_exchange(&format!("{command}.slot")).await;
    within("the sender to find out", async {
        while kinds(&sender).await != unroutable {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    consumer.declare(&topology).await.expect("declared");
    publish_all(&sender, batch(15..16)).await;
    assert_eq!(id(&next(&mut deliveries).await), "1/15");
}

/// A lost connection keeps nothing from being declared and received again.
pub(crate) async fn a_cut_connection_leaves_stale_deliveries_and_goes_on(url: String) {
    let mut wire = Wire::to(&url).await;
    let amqp = Arc::new(connect(&wire.url).await);
    let case = Case::declare(&amqp, 1).await;
    let queue = case.group.partition(0);
    publish_all(&amqp, case.messages(1, 0..10)).await;
    let mut deliveries = ordered(&amqp, &queue, 5).await;
    let mut out = Vec::new();
    for _ in 0..5 {
        out.push(next(&mut deliveries).await);
    }
    // Nobody is connected, and all is gone when they are again.
    wire.cut().await;
    let mut raw = Raw::connect(&url).await;
    raw.delete_exchange(&case.group.name).await;
    wire.mend().await;
    let mut ledger = Ledger::default();
    while ledger.count < 10 {
        let delivery = next(&mut deliveries).await;
        ledger.handle(&id(&delivery));
        delivery.settle(Settlement::Ack).await.expect("settled");
        for old in out.drain(..) {
            assert!(old.is_stale(), "its connection is gone");
        }
    }
    super::failures::publish_at_last(&amqp, case.message(1, 10)).await;
    assert_eq!(id(&next(&mut deliveries).await), "1/10");
}
