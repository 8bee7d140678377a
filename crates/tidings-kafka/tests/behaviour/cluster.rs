//! A cluster of three that loses a leader.

use std::sync::atomic::{AtomicBool, Ordering};

use tidings_core::Transport;
use tidings_testing::servers::KafkaCluster;

use super::*;

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
