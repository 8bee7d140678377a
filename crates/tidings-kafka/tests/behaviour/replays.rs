//! Consumers that begin earlier than with what is published next.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidings_core::{REPLAY_HEADER, Subscription, Transport, TransportError};
use tidings_kafka::replay::{Replay, Start};

use super::*;

/// A foreign program publishes to a partition, each message an hour after the one before.
fn publish_hourly(url: &str, topic: &str, partition: i32, numbers: std::ops::Range<usize>) {
    let producer: BaseProducer = foreign(url).create().expect("a producer");
    for number in numbers {
        let body = number.to_string();
        let record = BaseRecord::<(), str>::to(topic).partition(partition);
        let record = record
            .payload(&body)
            .timestamp(hour(number).as_millisecond());
        producer.send(record).expect("it is sent");
    }
    producer.flush(SOON).expect("it is there");
}

/// Hours that are not long ago, or Kafka's retention ends them.
fn hour(number: usize) -> Timestamp {
    static NOW: std::sync::OnceLock<Timestamp> = std::sync::OnceLock::new();
    let now = *NOW.get_or_init(Timestamp::now);
    let seconds = now.as_second() - 40 * 3600 + number as i64 * 3600;
    Timestamp::from_second(seconds).expect("a time")
}

/// Acknowledges what comes until these have come, each once, as a replay or not.
async fn take_these(deliveries: &mut Deliveries, replayed: &[usize], live: &[usize]) {
    let (mut again, mut new) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..replayed.len() + live.len() {
        let delivery = next(deliveries).await;
        assert!(!delivery.redelivered, "{delivery:?}");
        let is_replay = delivery.envelope.header(REPLAY_HEADER).is_some();
        let seen = if is_replay { &mut again } else { &mut new };
        assert!(seen.insert(body(&delivery)), "{delivery:?} came twice");
        ack(delivery).await;
    }
    assert_eq!(again.into_iter().collect::<Vec<_>>(), replayed);
    assert_eq!(new.into_iter().collect::<Vec<_>>(), live);
    none(deliveries).await;
}

async fn replay(kafka: &Kafka, replay: Replay) -> Result<u64, TransportError> {
    let replayed = timeout(SOON, replay.run(kafka)).await;
    replayed.expect("an answer").map(|it| it.count())
}

#[track_caller]
fn is_refused(outcome: Result<u64, TransportError>, words: &str) {
    let error = outcome.expect_err("it is refused");
    assert!(
        !error.is_temporary() && error.to_string().contains(words),
        "{error}"
    );
}

/// From the beginning, from a time, and from offsets, over partitions that are not equally far.
pub(crate) async fn a_new_consumer_begins_where_it_is_told(url: String) {
    let kafka = connect(&url).await;
    let offsets = |offsets: &[(i32, i64)]| Start::Offsets(offsets.iter().copied().collect());
    let later = hour(11) + jiff::SignedDuration::from_secs(1);
    for (start, expected) in [
        (Start::Beginning, (0..14).chain([20]).collect()),
        (Start::Time(hour(8)), vec![8, 9, 10, 11, 12, 13, 20]),
        (Start::Time(later), vec![12, 13, 20]),
        (Start::Time(hour(30)), vec![]),
        (offsets(&[(0, 9), (1, 0)]), vec![9, 10, 11, 12, 13]),
    ] {
        let (there, new) = (Place::new(), Place::new());
        there.declare(&kafka).await;
        publish_hourly(&url, &there.topic, 0, 0..10);
        publish_hourly(&url, &there.topic, 1, 10..14);
        publish_hourly(&url, &there.topic, 3, 20..21);
        let new = Place {
            topic: there.topic,
            ..new
        };
        let of_topic = Replay::of(&new.topic).to(&new.queue).from(start.clone());
        is_refused(replay(&kafka, of_topic.clone()).await, "TDG-7001");
        let count = replay(&kafka, of_topic.new_consumer()).await;
        let count = count.expect("it begins there");
        assert_eq!(count, expected.len() as u64, "{start:?}");
        // What comes meanwhile is no replay. The service declares its queue when it starts.
        new.publish(&kafka, [100]).await;
        new.declare(&kafka).await;
        let mut deliveries = new.subscribe(&kafka, 100).await;
        take_these(&mut deliveries, &expected, &[100]).await;
    }
    let (there, nowhere) = (Place::new(), Place::new());
    there.declare(&kafka).await;
    let wrong = Replay::of(&there.topic).to(&nowhere.queue).new_consumer();
    let wrong = |start| wrong.clone().from(start);
    is_refused(
        replay(&kafka, wrong(offsets(&[(9, 0)]))).await,
        "no partition 9",
    );
    is_refused(
        replay(&kafka, wrong(offsets(&[(0, 1)]))).await,
        "from 0 to 0",
    );
    let no_topic = Replay::of(&nowhere.topic).to(&there.queue);
    is_refused(replay(&kafka, no_topic).await, "no topic");
}

/// Nobody's place moves while he receives, or without being asked for; what waits is never passed over.
pub(crate) async fn a_consumer_is_told_again_only_while_it_rests_and_is_to_be_reset(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    publish_hourly(&url, &place.topic, 0, 0..5);
    let again = Replay::of(&place.topic).to(&place.queue);
    // It has received nothing, and all of it waits: there is nothing from before.
    let count = replay(&kafka, again.clone()).await;
    assert_eq!(count.expect("nobody receives"), 0);
    let late = again.clone().from(Start::Time(hour(3)));
    assert_eq!(replay(&kafka, late).await.expect("nobody receives"), 0);
    let mut deliveries = place.subscribe(&kafka, 3).await;
    let mut held = next_few(&mut deliveries, 3).await;
    ack(held.remove(0)).await;
    ack(held.remove(0)).await;
    let reset = again.clone().reset();
    is_refused(replay(&kafka, reset.clone()).await, "TDG-7005");
    drop(held);
    kafka.close().await;

    let kafka = connect(&url).await;
    is_refused(replay(&kafka, again).await, "TDG-7006");
    let count = replay(&kafka, reset.from(Start::Time(hour(1)))).await;
    assert_eq!(count.expect("it rests"), 1);
    let mut deliveries = place.subscribe(&kafka, 100).await;
    take_these(&mut deliveries, &[1], &[2, 3, 4]).await;
}

/// Each partition of the group gets its share, in order.
pub(crate) async fn an_ordered_group_is_told_again_in_its_partitions(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    let two = NonZeroU16::new(2).expect("not zero");
    let group = Group::new(place.queue.clone(), two).topic(place.topic.clone());
    let topology = Topology::new().group(group.clone());
    kafka.declare(&topology).await.expect("it declares");
    for partition in 0..4 {
        let first = usize::try_from(partition).expect("small") * 10;
        publish_hourly(&url, &place.topic, partition, first..first + 3);
    }
    let receive = async |kafka: &Kafka, number: u16, expected: &[usize], is_replay: bool| {
        let ordered = Subscription::new(group.partition(number)).ordered();
        let mut deliveries = kafka.subscribe(ordered).await.expect("subscribed");
        let mut bodies = Vec::new();
        for _ in expected {
            let delivery = next(&mut deliveries).await;
            let header = delivery.envelope.header(REPLAY_HEADER);
            assert_eq!(header.is_some(), is_replay);
            bodies.push(body(&delivery));
            ack(delivery).await;
        }
        none(&mut deliveries).await;
        for partition in 0..4 {
            let of_it = bodies.iter().filter(|body| *body / 10 == partition);
            assert!(of_it.is_sorted(), "{bodies:?}");
        }
        bodies.sort_unstable();
        assert_eq!(bodies, expected);
    };
    receive(&kafka, 0, &[0, 1, 2, 20, 21, 22], false).await;
    receive(&kafka, 1, &[10, 11, 12, 30, 31, 32], false).await;
    kafka.close().await;

    let kafka = connect(&url).await;
    let offsets = [(0, 1), (3, 2)].into();
    let again = Replay::of(&place.topic).to(&place.queue);
    let again = again.from(Start::Offsets(offsets)).reset();
    assert_eq!(replay(&kafka, again).await.expect("it rests"), 3);
    receive(&kafka, 0, &[1, 2], true).await;
    receive(&kafka, 1, &[32], true).await;
}
