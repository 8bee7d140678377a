//! How full queues are.

use tidings_core::{QueueDepth, Transport};

use super::*;

pub(crate) async fn a_look_says_how_full_queues_are_and_changes_nothing(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    let nowhere = format!("{}.nowhere", place.queue);
    let queues = [place.queue.clone(), nowhere];
    let look = async |kafka: &Kafka| kafka.queue_depths(&queues).await.expect("it looks");
    let depth = |ready, receivers| [Some(QueueDepth::new(ready, receivers)), None];
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
