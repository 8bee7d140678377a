//! A cluster of three: what is confirmed, and what becomes of it when a leader is gone.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use tidings_core::{PublishErrorKind, Transport};
use tidings_testing::servers::KafkaCluster;

use super::*;

/// A topic with a single copy, and one whose messages may be confirmed with a single copy, are told of.
pub(crate) async fn copies_that_are_too_few_are_told(url: &str) {
    let kafka = connect_with(url, "replication=3").await;
    for (replicas, words) in [(1, "one copy"), (3, "`min.insync.replicas=2`")] {
        let place = Place::new();
        settings::make(url, &place.topic, replicas, &[]).await;
        place.declare(&kafka).await;
        assert_eq!(log::told_with(&["TDG-4016", &place.topic, words]), 1);
        assert_eq!(log::told_with(&["TDG-4016", &place.queue]), 0);
        let own = settings::settings_of(url, &place.queue).await;
        assert_eq!(own["min.insync.replicas"], "2");
    }
    assert_eq!(log::told_with(&["TDG-4016", "tidings.bindings"]), 0);
    kafka.close().await;
}

/// While the leader of a partition is the only one that runs, it takes messages and nobody is told that they are safe. It
/// looks as if the others were in sync: those that are frozen cannot say otherwise, and without them there is no majority that
/// takes them out.
pub(crate) async fn what_only_the_leader_has_is_not_confirmed(cluster: &mut KafkaCluster) {
    let (url, place) = (cluster.url(), Place::new());
    let kafka = format!("{url}?partitions=1&replication=3");
    let kafka = Kafka::builder(&kafka).expect("an URL");
    let kafka = kafka.confirm_timeout(Duration::from_secs(5));
    let kafka = kafka.connect().await.expect("it connects");
    place.declare(&kafka).await;
    place.publish(&kafka, [0]).await;
    let leader = usize::try_from(leader(&url, &place.topic, 0) - 1).expect("a node");
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    for node in &others {
        cluster.freeze(*node).expect("it is frozen");
    }
    let mut outcomes = kafka.publish(vec![place.message(None, 1)]).await;
    for node in &others {
        cluster.thaw(*node).expect("it goes on");
    }
    let error = outcomes.remove(0).expect_err("only one has it");
    let kind = error.kind();
    use PublishErrorKind::{Unavailable, Unconfirmed};
    assert!(matches!(kind, Unavailable | Unconfirmed), "{error}");
    // As a relay does.
    let deadline = Instant::now() + SOON;
    while let Err(error) = kafka.publish(vec![place.message(None, 1)]).await.remove(0) {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    kafka.close().await;
}

/// A topic whose only node is away: nothing that goes there is confirmed, and nothing that goes elsewhere is delayed, in the
/// same batch or beside it, also when its time is over.
pub(crate) async fn what_is_not_confirmed_holds_up_nothing_else(cluster: &mut KafkaCluster) {
    const TIME: Duration = Duration::from_secs(10);
    let url = cluster.url();
    let (stuck, fine) = (Place::new(), Place::new());
    settings::make(&url, &stuck.topic, 1, &[]).await;
    let kafka = format!("{url}?partitions=1&replication=3");
    let kafka = Kafka::builder(&kafka).expect("an URL");
    let kafka = kafka.confirm_timeout(TIME).connect().await;
    let kafka = kafka.expect("it connects");
    for place in [&stuck, &fine] {
        place.declare(&kafka).await;
        place.publish(&kafka, [0]).await;
    }
    let node = usize::try_from(leader(&url, &stuck.topic, 0) - 1).expect("a node");
    cluster.kill9(node);
    let publish_at_last = async |place: &Place, number: usize| {
        let deadline = Instant::now() + SOON;
        let publish = async || {
            kafka
                .publish(vec![place.message(None, number)])
                .await
                .remove(0)
        };
        while let Err(error) = publish().await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Until another node leads it, if it was this one.
    publish_at_last(&fine, 0).await;

    let both = kafka.publish(vec![stuck.message(None, 1), fine.message(None, 1)]);
    let beside = async {
        let until = Instant::now() + TIME + Duration::from_secs(2);
        while Instant::now() < until {
            let batch = vec![fine.message(None, 2); 3];
            for outcome in kafka.publish(batch).await {
                outcome.expect("it goes elsewhere");
            }
        }
    };
    let (outcomes, ()) = tokio::join!(both, beside);
    let kinds = outcomes.into_iter().map(|it| it.map_err(|it| it.kind()));
    let expected = [Err(PublishErrorKind::Unconfirmed), Ok(())];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
    cluster.restart(node).expect("it starts again");
    publish_at_last(&stuck, 1).await;
    kafka.close().await;
}

/// The leader of a partition is killed while batches are on their way to it: nothing is lost, each key keeps its order,
/// and nobody waits for the dead one to come back.
pub(crate) async fn a_leader_that_dies_mid_batch_loses_nothing(mut cluster: KafkaCluster) {
    const COUNT: usize = 2000;
    let url = cluster.url();
    let options = "handover_timeout=1000&replication=3";
    let publisher = connect_with(&url, options).await;
    let consumer = connect_with(&url, options).await;
    let place = Place::new();
    place.declare(&publisher).await;
    let mut deliveries = place.subscribe(&consumer, 50).await;
    let is_over = AtomicBool::new(false);
    let publishing = async {
        let longest = publish_all(&publisher, &place, COUNT).await;
        is_over.store(true, Ordering::Relaxed);
        longest
    };
    let receiving = receive_all(&mut deliveries, COUNT);
    let killing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let leader = leader(&url, &place.topic, 0);
        cluster.kill9(usize::try_from(leader - 1).expect("a node"));
        assert!(!is_over.load(Ordering::Relaxed), "it was in the middle");
        leader
    };
    let (longest, (), killed) = tokio::join!(publishing, receiving, killing);
    println!("publishing waited for {longest:?} at most");
    assert_ne!(
        leader(&url, &place.topic, 0),
        killed,
        "there is another leader"
    );
    // What was settled on the dead one's watch stays settled.
    consumer.close().await;
    let consumer = connect_with(&url, options).await;
    let mut deliveries = place.subscribe(&consumer, 50).await;
    place.publish(&publisher, [COUNT]).await;
    take(&mut deliveries, [(COUNT, false)]).await;
}

fn leader(url: &str, topic: &str, partition: usize) -> i32 {
    let looker: BaseConsumer = foreign(url).create().expect("a client");
    let metadata = looker.fetch_metadata(Some(topic), SOON).expect("metadata");
    metadata.topics()[0].partitions()[partition].leader()
}
