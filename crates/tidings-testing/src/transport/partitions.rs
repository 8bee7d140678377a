//! What the cases of ordered groups are made of: a group of the case, and its partitions together.

use std::{num::NonZeroU16, sync::Arc};

use futures_util::{StreamExt, future::select_all};
use tidings_core::{Deliveries, Delivery, Group, Outgoing, Settlement, Topology, Transport};
use tokio::time::timeout;

use super::support::*;

/// The group of the case, of its topic; `None`, and said so, if the engine claims no partitions.
pub(super) fn group(case: &Case, partitions: u16) -> Option<Group> {
    let claimed = case.one.features().partitions_max;
    if claimed == 0 {
        eprintln!("  skipped: partitions are not claimed");
        return None;
    }
    let partitions = count(partitions.min(claimed));
    Some(Group::new(name_of_group(case), partitions).topic(case.topic.clone()))
}

pub(super) fn name_of_group(case: &Case) -> String {
    let (consumer, _) = case.queue.split_once('.').expect("its consumer");
    format!("{consumer}.ordered")
}

pub(super) fn count(partitions: u16) -> NonZeroU16 {
    NonZeroU16::new(partitions).expect("not zero")
}

pub(super) async fn declare(case: &Case, group: &Group) {
    let topology = Topology::new().group(group.clone());
    case.one.declare(&topology).await.expect("it declares");
}

/// Declares a group of a single partition, which gets everything that has a key.
pub(super) async fn one_partition(case: &Case) -> Option<String> {
    let group = group(case, 1)?;
    declare(case, &group).await;
    Some(group.partition(0))
}

pub(super) async fn publish(transport: &Arc<dyn Transport>, batch: Vec<Outgoing>) {
    let count = batch.len();
    let outcomes = transport.publish(batch).await;
    assert_eq!(outcomes.len(), count, "one outcome per message");
    for outcome in outcomes {
        outcome.expect("it is published");
    }
}

/// Publishes to the topic, with one key, as one batch.
pub(super) async fn publish_keyed(case: &Case, bodies: &[&str]) {
    let message = |body: &&str| outgoing(case.to_topic(), keyed("key", body));
    publish(&case.one, bodies.iter().map(message).collect()).await;
}

pub(super) async fn ordered(
    transport: &Arc<dyn Transport>,
    queue: &str,
    prefetch: u16,
) -> Deliveries {
    let subscription = subscription(queue, prefetch).ordered();
    let deliveries = transport.subscribe(subscription).await;
    deliveries.expect("the partition is there")
}

/// Receives from all queues of a group.
pub(super) async fn receive(case: &Case, group: &Group) -> Vec<Deliveries> {
    let mut parts = Vec::new();
    for partition in 0..group.partitions.get() {
        parts.push(ordered(&case.one, &group.partition(partition), 10).await);
    }
    parts.push(ordered(&case.one, &group.any(), 10).await);
    parts
}

/// The next delivery of any of them.
pub(super) async fn next_of(parts: &mut [Deliveries]) -> Delivery {
    match timeout(SOON, select_all(parts.iter_mut().map(|it| it.next()))).await {
        Ok((Some(Ok(delivery)), ..)) => delivery,
        Ok((other, ..)) => panic!("a subscription failed or ended: {other:?}"),
        Err(_) => panic!("no delivery within {SOON:?}"),
    }
}

/// Acknowledges so many of any of them.
pub(super) async fn bodies_of(parts: &mut [Deliveries], count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let delivery = next_of(parts).await;
        bodies.push(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    bodies
}

/// Nothing more comes from any of them.
pub(super) async fn none_of(parts: &mut [Deliveries]) {
    if let Ok((delivery, ..)) =
        timeout(QUIET, select_all(parts.iter_mut().map(|it| it.next()))).await
    {
        panic!("a delivery that should not come: {delivery:?}");
    }
}
