//! Partitions that are added to a topic while it is in use.

use std::{collections::BTreeSet, time::Instant};

use rdkafka::{
    admin::{AdminOptions, NewPartitions},
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidings_core::{Subscription, Transport};

use super::*;

/// A queue and an ordered group both get what is in it from its beginning, without being started again.
pub(crate) async fn a_partition_that_is_added_is_received(url: String) {
    let options = "handover_timeout=1000&metadata_max_age=1000";
    let (kafka, place) = (connect_with(&url, options).await, Place::new());
    place.declare(&kafka).await;
    let group = Place {
        topic: place.topic.clone(),
        queue: format!("{}.ordered", place.queue),
    };
    let partition = group.declare_group(&kafka).await;
    let mut of_queue = place.subscribe(&kafka, 100).await;
    let ordered = Subscription::new(partition).ordered();
    let mut of_group = kafka.subscribe(ordered).await.expect("subscribed");
    place.publish(&kafka, 0..3).await;
    take(&mut of_queue, (0..3).map(|body| (body, false))).await;
    take(&mut of_group, (0..3).map(|body| (body, false))).await;

    let more = NewPartitions::new(&place.topic, 6);
    let added = admin(&url)
        .create_partitions([&more], &AdminOptions::new())
        .await;
    assert!(added.expect("an answer")[0].is_ok());
    // From somebody who is quicker than those who receive.
    let producer: BaseProducer = foreign(&url).create().expect("a producer");
    let soon = BaseRecord::<(), str>::to(&place.topic).partition(5);
    producer.send(soon.payload("3")).expect("it is sent");
    producer.flush(SOON).expect("it is there");
    // And from us, by key, until one comes to the other.
    let mut numbers = BTreeSet::from([3]);
    let deadline = Instant::now() + SOON;
    while ends(&url, &place.topic, 4).expect("it is there").1 == 0 {
        assert!(Instant::now() < deadline, "no key goes there");
        let next = numbers.len() + 3;
        let batch = next..next + 20;
        let messages = batch
            .clone()
            .map(|it| place.message(Some(&it.to_string()), it));
        for outcome in kafka.publish(messages.collect()).await {
            outcome.expect("it is published");
        }
        numbers.extend(batch);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for deliveries in [&mut of_queue, &mut of_group] {
        let mut missing = numbers.clone();
        while !missing.is_empty() {
            let delivery = next(deliveries).await;
            // One may come twice where it is assigned anew.
            missing.remove(&body(&delivery));
            let _ = delivery.settle(Settlement::Ack).await;
        }
    }
}
