//! How full queues are: what lies between what was committed and the ends of their topics.

use std::{collections::BTreeMap, sync::Arc};

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer};
use tidings_core::{QueueDepth, TransportError};

use crate::{
    Shared,
    bindings::Wanted,
    client::passing,
    polling::Shape,
    ranges::Ranges,
    topology::{LOOK_TIMEOUT, partition_of_group},
    window::Progress,
};

impl Shared {
    pub(crate) async fn depths(
        self: &Arc<Self>,
        queues: &[String],
    ) -> Result<Vec<Option<QueueDepth>>, TransportError> {
        self.status.reached().await?;
        let mut depths = Vec::with_capacity(queues.len());
        for queue in queues {
            let depth = match self.has_topic(queue).await? {
                true => Some(self.depth(queue).await?),
                false => None,
            };
            depths.push(depth);
        }
        Ok(depths)
    }

    async fn depth(self: &Arc<Self>, queue: &str) -> Result<QueueDepth, TransportError> {
        let (mut topics, of) = match partition_of_group(queue) {
            None => (self.bindings.of_queue(queue), None),
            Some(Shape::Share {
                group,
                of: Some(of),
            }) => (self.bindings.of_queue(&group), Some(of)),
            Some(_) => (BTreeMap::new(), None),
        };
        topics.insert(queue.to_owned(), Wanted::everything());
        let mut ends = BTreeMap::new();
        for topic in topics.keys() {
            for (partition, end) in self.ends(topic).await? {
                let is_share = of.is_none_or(|(number, count)| partition % count == number);
                if is_share || topic == queue {
                    ends.insert((topic.clone(), partition), end);
                }
            }
        }
        let queue = queue.to_owned();
        self.look(move |shared| shared.count(&queue, &topics, &ends))
            .await
    }

    fn count(
        &self,
        queue: &str,
        topics: &BTreeMap<String, Wanted>,
        ends: &BTreeMap<(String, i32), i64>,
    ) -> Result<QueueDepth, TransportError> {
        let failed = |error| passing(&format!("the group `{queue}` cannot be seen"), &error);
        let group = self.consumer_of(queue).map_err(failed)?;
        let mut list = TopicPartitionList::new();
        for (topic, partition) in ends.keys() {
            list.add_partition(topic, *partition);
        }
        let committed = group
            .committed_offsets(list, LOOK_TIMEOUT)
            .map_err(failed)?;
        let mut ready = 0;
        for element in committed.elements() {
            let place = (element.topic().to_owned(), element.partition());
            let Some(end) = ends.get(&place) else {
                continue;
            };
            let wanted = topics.get(&place.0).cloned().unwrap_or_default();
            let (from, settled) = match element.offset() {
                Offset::Offset(offset) => {
                    let progress = Progress::parse(offset, element.metadata());
                    (offset, progress.settled)
                }
                _ => (0, Vec::new()),
            };
            let from = from.max(wanted.first(place.1));
            let gone = match place.0 == queue {
                true => self.bindings.removed(queue),
                false => Ranges::default(),
            };
            let to = if wanted.is_subscribed() {
                *end
            } else {
                wanted.last(place.1).min(*end)
            };
            ready += (to - from - gone.with(settled).count(from, to)).max(0);
        }
        let receivers = self.receivers(queue).map_err(failed)?;
        Ok(QueueDepth::new(
            u32::try_from(ready).unwrap_or(u32::MAX),
            Some(u32::try_from(receivers).unwrap_or(u32::MAX)),
        ))
    }
}
