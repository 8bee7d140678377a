//! How full queues are.

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use tidings_core::{QueueDepth, Transport, dead_letter_queue};

use super::*;

pub(crate) async fn a_look_says_how_full_queues_are_and_changes_nothing(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    let nowhere = format!("{}.nowhere", place.queue);
    let queues = [place.queue.clone(), nowhere];
    let look = async |kafka: &Kafka| kafka.queue_depths(&queues).await.expect("it looks");
    let depth = |ready, receivers| [Some(QueueDepth::new(ready, Some(receivers))), None];
    assert_eq!(look(&kafka).await, depth(0, 0));
    place.publish(&kafka, 0..5).await;
    assert_eq!(look(&kafka).await, depth(5, 0));
    let mut deliveries = place.subscribe(&kafka, 10).await;
    let mut held = next_few(&mut deliveries, 5).await;
    assert_eq!(look(&kafka).await, depth(5, 1));
    // Out of order: what is settled behind an open one counts as gone.
    for number in [3, 0] {
        let at = held.iter().position(|it| body(it) == number);
        ack(held.remove(at.expect("it is held"))).await;
    }
    kafka.close().await;
    let kafka = connect(&url).await;
    assert_eq!(look(&kafka).await, depth(3, 0));
    let mut deliveries = place.subscribe(&kafka, 10).await;
    take(&mut deliveries, [1, 2, 4].map(|body| (body, true))).await;
    none(&mut deliveries).await;
}

/// A topic that somebody else made is used as it is, if what is promised can be kept with it.
pub(crate) async fn a_topic_of_dead_letters_with_several_partitions_is_refused(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    let dead = dead_letter_queue(&place.queue);
    let topics =
        [&place.topic, &dead].map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(1)));
    let made = admin(&url)
        .create_topics(&topics, &AdminOptions::new())
        .await;
    assert!(made.expect("an answer").iter().all(Result::is_ok));
    let queue = Queue::new(place.queue.clone()).topic(place.topic.clone());
    let topology = Topology::new().queue(queue);
    let error = kafka.declare(&topology).await.expect_err("it is refused");
    assert!(!error.is_temporary());
    let said = error.to_string();
    assert!(said.contains("TDG-4013") && said.contains(&dead), "{said}");
    assert!(said.contains("3 partitions"), "{said}");
}
