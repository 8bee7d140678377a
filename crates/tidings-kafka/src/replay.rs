//! Replays: a consumer gets again what a topic still has, from its beginning, a time or offsets on.
//!
//! On Kafka the log itself is the history, so nothing is sent again: it is where a queue begins that moves. That is a record
//! in the topic of subscriptions (`Change::Replay`) and the committed offset of the queue's consumer group, which Kafka
//! takes from somebody who is no member only while the group has none. So nobody loses his place while he receives.
//!
//! A replay never passes over what waits: a queue begins where it is, or earlier. Messages from before come with the header
//! [`REPLAY_HEADER`](tidings_core::REPLAY_HEADER), like those that `tidings::replay` sends.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
};
use tidings_core::{Queue, Topology, TransportError};

use crate::{
    Kafka, Shared,
    bindings::{self, Change},
    client::{Context, passing},
    topology::LOOK_TIMEOUT,
};

/// Where a replay begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest message that the topic still has.
    #[default]
    Beginning,
    /// With the first message of each partition from this time on, by Kafka's own times.
    Time(Timestamp),
    /// With these offsets, by partition. Nothing comes again of a partition that is left out.
    Offsets(BTreeMap<i32, i64>),
}

/// Messages of a topic that a consumer is to get again, or to begin with.
///
/// ```no_run
/// # async fn example(kafka: &tidings_kafka::Kafka) -> Result<(), tidings_core::TransportError> {
/// use tidings_kafka::replay::{Replay, Start};
///
/// let replay = Replay::of("order_events").to("loyalty.order-confirmed.v1").from(Start::Beginning);
/// let replayed = replay.new_consumer().run(kafka).await?;
/// println!("{} messages", replayed.count());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing changes before `run`"]
pub struct Replay {
    topic: String,
    queue: String,
    start: Start,
    is_new: bool,
    resets: bool,
}

/// What a replay has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Of each partition: where the queue begins now, and the offset after the last one that comes as a replay.
    pub partitions: BTreeMap<i32, (i64, i64)>,
}

impl Replayed {
    /// How many offsets come again: as many messages, unless transactions have left gaps.
    pub fn count(&self) -> u64 {
        let of_partition = |(from, until): &(i64, i64)| (until - from).max(0).unsigned_abs();
        self.partitions.values().map(of_partition).sum()
    }
}

impl Replay {
    /// Of what a topic has.
    pub fn of(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            queue: String::new(),
            start: Start::Beginning,
            is_new: false,
            resets: false,
        }
    }

    /// To a queue, or to an ordered group, that subscribes to the topic.
    pub fn to(mut self, queue: impl Into<String>) -> Self {
        self.queue = queue.into();
        self
    }

    /// From where on. Default: the beginning.
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// To a queue whose consumer has never started: it is made, and subscribed to the topic.
    pub fn new_consumer(mut self) -> Self {
        self.is_new = true;
        self
    }

    /// Also to one that has received of the topic before. What it handled, its inbox turns away for as long as it remembers.
    pub fn reset(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Moves where the queue begins. It is received from there when its consumer starts.
    ///
    /// # Errors
    ///
    /// When there is no such topic, or no such queue that subscribes to it (TDG-7001); while somebody receives from the
    /// queue (TDG-7005), or when it has received of the topic and is not to be [reset](Self::reset) (TDG-7006); when the
    /// topic does not have these offsets.
    pub async fn run(self, kafka: &Kafka) -> Result<Replayed, TransportError> {
        kafka.shared.replay(self).await
    }
}

/// A consumer group of the queue's, with its share of the topic's partitions.
struct Part {
    group: String,
    partitions: Vec<i32>,
}

impl Shared {
    async fn replay(self: &Arc<Self>, replay: Replay) -> Result<Replayed, TransportError> {
        let Replay { topic, queue, .. } = &replay;
        self.status.reached().await?;
        if !self.has_topic(topic).await? {
            let why = format!("there is no topic `{topic}`; nothing was replayed");
            return Err(TransportError::fatal(why));
        }
        let end = self.ends(bindings::TOPIC).await?;
        let read = self.bindings.read_until(end.get(&0).copied().unwrap_or(0));
        let late = |_| TransportError::temporary("the subscriptions cannot be read yet");
        tokio::time::timeout(LOOK_TIMEOUT, read)
            .await
            .map_err(late)?;

        let group = self.bindings.group(queue);
        if group.is_none() && replay.is_new {
            let queue = Queue::new(queue.clone()).topic(topic.clone());
            self.declare(&Topology::new().queue(queue)).await?;
        }
        let ends = self.ends(topic).await?;
        let (subscriber, parts) = match group {
            None => {
                let partitions = ends.keys().copied().collect();
                let group = queue.clone();
                (queue.clone(), vec![Part { group, partitions }])
            }
            Some((count, _)) => {
                let part = |number| Part {
                    group: format!("{queue}.{number}of{count}"),
                    partitions: ends
                        .keys()
                        .copied()
                        .filter(|it| it % count == number)
                        .collect(),
                };
                (format!("{queue}.of{count}"), (0..count).map(part).collect())
            }
        };
        if !self.bindings.is_subscribed(&subscriber, topic) {
            return Err(TransportError::fatal(format!(
                "there is no queue `{queue}` that subscribes to `{topic}`: start its consumer once and stop it, or say that it \
                 is new (TDG-7001)"
            )));
        }
        self.look(move |shared| shared.move_begin(&replay, subscriber, &parts, &ends))
            .await?
            .finish(self)
            .await
    }

    /// Finds out where the queue is and where it is to begin, while nobody receives.
    fn move_begin(
        &self,
        replay: &Replay,
        subscriber: String,
        parts: &[Part],
        ends: &BTreeMap<i32, i64>,
    ) -> Result<Moved, TransportError> {
        let Replay { topic, queue, .. } = replay;
        let failed = |error| passing(&format!("where `{queue}` is cannot be seen"), &error);
        let starts = self.starts(replay, ends)?;
        let wanted = self
            .bindings
            .of_queue(&subscriber)
            .remove(topic)
            .unwrap_or_default();
        let mut moved = Moved {
            subscriber,
            topic: topic.clone(),
            replayed: Replayed::default(),
            commits: Vec::new(),
        };
        for part in parts.iter().filter(|part| !part.partitions.is_empty()) {
            let group = &part.group;
            let members = self.receivers(group).map_err(failed)?;
            if members > 0 {
                return Err(TransportError::fatal(format!(
                    "{members} receive from `{group}`: stop the service, and run it again (TDG-7005)"
                )));
            }
            let consumer = self.consumer_of(group).map_err(failed)?;
            let mut list = TopicPartitionList::new();
            for partition in &part.partitions {
                list.add_partition(topic, *partition);
            }
            let committed = consumer
                .committed_offsets(list, LOOK_TIMEOUT)
                .map_err(failed)?;
            let mut commits = TopicPartitionList::new();
            for element in committed.elements() {
                element.error().map_err(failed)?;
                let partition = element.partition();
                let first = wanted.first(partition);
                let is_at = match element.offset() {
                    Offset::Offset(offset) if !replay.resets => {
                        return Err(TransportError::fatal(format!(
                            "`{group}` has received `{topic}` up to offset {offset} of partition {partition}: say that it is \
                             to be reset if it is to get messages again (TDG-7006)"
                        )));
                    }
                    Offset::Offset(offset) => offset.max(first),
                    _ => first,
                };
                let start = starts.get(&partition).copied().unwrap_or(is_at).min(is_at);
                if start < is_at {
                    moved.replayed.partitions.insert(partition, (start, is_at));
                    let added =
                        commits.add_partition_offset(topic, partition, Offset::Offset(start));
                    added.map_err(failed)?;
                }
            }
            moved.commits.push((group.clone(), commits));
        }
        Ok(moved)
    }

    /// Where the replay begins in each partition.
    fn starts(
        &self,
        replay: &Replay,
        ends: &BTreeMap<i32, i64>,
    ) -> Result<BTreeMap<i32, i64>, TransportError> {
        let topic = &replay.topic;
        let look = |what: Offset| {
            let failed =
                |error| passing(&format!("the offsets of `{topic}` cannot be seen"), &error);
            let mut list = TopicPartitionList::new();
            for partition in ends.keys() {
                list.add_partition_offset(topic, *partition, what)
                    .map_err(failed)?;
            }
            let found = self
                .looker
                .offsets_for_times(list, LOOK_TIMEOUT)
                .map_err(failed)?;
            let mut offsets = BTreeMap::new();
            for element in found.elements() {
                element.error().map_err(failed)?;
                let partition = element.partition();
                let end = ends.get(&partition).copied().unwrap_or(0);
                let offset = match element.offset() {
                    Offset::Offset(offset) => offset,
                    // Nothing is that late.
                    _ => end,
                };
                offsets.insert(partition, offset);
            }
            Ok(offsets)
        };
        match &replay.start {
            Start::Beginning => look(Offset::Beginning),
            Start::Time(time) => look(Offset::Offset(time.as_millisecond().max(0))),
            Start::Offsets(offsets) => {
                let first = look(Offset::Beginning)?;
                for (partition, offset) in offsets {
                    let (Some(first), Some(end)) = (first.get(partition), ends.get(partition))
                    else {
                        let why = format!("topic `{topic}` has no partition {partition}");
                        return Err(TransportError::fatal(why));
                    };
                    if !(first..=end).contains(&offset) {
                        return Err(TransportError::fatal(format!(
                            "partition {partition} of `{topic}` has the offsets from {first} to {end}, and not {offset}"
                        )));
                    }
                }
                Ok(offsets.clone())
            }
        }
    }

    /// Who asks in the name of a group, and joins nothing.
    pub(crate) fn consumer_of(
        &self,
        group: &str,
    ) -> rdkafka::error::KafkaResult<BaseConsumer<Context>> {
        let context = Context {
            status: Arc::clone(&self.status),
        };
        let mut config = self.config.clone();
        config.set("group.id", group);
        config.create_with_context(context)
    }
}

/// A queue whose begin is to move.
struct Moved {
    subscriber: String,
    topic: String,
    replayed: Replayed,
    /// By consumer group.
    commits: Vec<(String, TopicPartitionList)>,
}

impl Moved {
    /// Writes it down, then commits it: if this dies in between, it is done again from its beginning.
    async fn finish(self, shared: &Arc<Shared>) -> Result<Replayed, TransportError> {
        if self.replayed.partitions.is_empty() {
            return Ok(self.replayed);
        }
        let partitions = self.replayed.partitions.iter();
        let change = Change::Replay {
            queue: self.subscriber,
            topic: self.topic,
            name: format!("kafka-{}", Timestamp::now()),
            from: partitions
                .clone()
                .map(|(it, (from, _))| (*it, *from))
                .collect(),
            until: partitions.map(|(it, (_, until))| (*it, *until)).collect(),
        };
        shared.write(change).await?;
        let commits = self.commits;
        let commit = move |shared: &Shared| {
            for (group, list) in commits.iter().filter(|(_, list)| list.count() > 0) {
                let failed = |error| {
                    TransportError::fatal(format!(
                        "`{group}` cannot be moved, because somebody has begun to receive from it: stop the service, and run \
                         it again ({error}) (TDG-7005)"
                    ))
                };
                let consumer = shared.consumer_of(group).map_err(failed)?;
                consumer.commit(list, CommitMode::Sync).map_err(failed)?;
            }
            Ok(())
        };
        shared.look(commit).await?;
        Ok(self.replayed)
    }
}
