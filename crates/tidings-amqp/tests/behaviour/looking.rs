//! Looking at queues takes nothing from them.

use tidings_core::{Settlement, Transport};

use super::{connect, id, next, publish_all, subscribe, to_queue, topology, unique};

pub(crate) async fn a_look_says_how_full_queues_are_and_changes_nothing(url: String) {
    let amqp = connect(&url).await;
    let (full, none, empty) = (unique("full"), unique("none"), unique("empty"));
    for queue in [&full, &empty] {
        amqp.declare(&topology(queue, &[])).await.expect("a queue");
    }
    let batch = (0..30).map(|id| to_queue(&full, id.to_string()));
    publish_all(&amqp, batch.collect()).await;
    for _ in 0..30 {
        let looked = amqp.depths(&[&full, &none, &empty, &none, &full]).await;
        let looked = looked.expect("the broker answers");
        let told: Vec<_> = looked
            .iter()
            .map(|it| it.map(|it| (it.ready, it.receivers.expect("it says"))))
            .collect();
        assert_eq!(
            told,
            [Some((30, 0)), None, Some((0, 0)), None, Some((30, 0))]
        );
    }
    let mut deliveries = subscribe(&amqp, &full, 100).await;
    let looked = amqp.depths(&[&full]).await.expect("the broker answers");
    assert_eq!(looked[0].and_then(|it| it.receivers), Some(1));
    for expected in 0..30 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(id(&delivery), expected.to_string(), "none is lost or moved");
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    assert!(
        amqp.depths(&["x".repeat(300)]).await.is_err(),
        "a name that cannot be"
    );
    assert!(
        amqp.depths(&[&empty]).await.is_ok(),
        "and that harms nothing"
    );
}
