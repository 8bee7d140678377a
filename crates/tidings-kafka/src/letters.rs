//! Dead letters for operators: a log is read while nobody else does, and what is taken out of it is written down.
//!
//! Dead letters of `Q` are a topic `Q.dead` of one partition. Who [holds](Hold) it is the only member of the consumer group
//! of that name, so Kafka itself keeps others out and takes the partition away from who is gone. Looking changes nothing.
//!
//! Nothing can be taken out of the middle of a log. So which offsets are *removed* is a record in the topic of
//! subscriptions ([`Change::Removed`]), which never expires, unlike a group's committed offsets; everybody who reads the
//! topic passes over them. When a hold ends, what is removed at the front of the log is deleted from it, where the
//! user may do that.

mod hold;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, NewTopic, TopicReplication},
    consumer::Consumer,
};
use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetterAccess, Destination, Envelope, HeldLetters,
    Outgoing, PublishError, PublishErrorKind, RECORD_QUEUE, RECORDED_COUNT_MAX, TransportError,
    Unrouted,
};
use tokio::time::timeout;
use tracing::debug;

use crate::{
    Shared, bindings, bindings::Change, client::passing, publisher::MESSAGE_BYTES_MAX,
    topology::LOOK_TIMEOUT, window::Progress,
};

use hold::Hold;

/// How long a cluster that does not answer yet is waited for.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

type Outcome = Result<(), PublishError>;

/// Access over a transport's connections.
pub(crate) struct Access {
    pub(crate) shared: Arc<Shared>,
}

impl DeadLetterAccess for Access {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        Box::pin(async move {
            self.shared.letters_are_there(queue).await?;
            let hold = Hold::start(&self.shared, queue).await?;
            Ok(Box::new(hold) as Box<dyn HeldLetters>)
        })
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        Box::pin(async move {
            self.shared.letters_are_there(queue).await?;
            let name = queue.to_owned();
            let counted = self.shared.look(move |shared| shared.count_letters(&name));
            counted.await.map_err(failed)
        })
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let way = match self.shared.way_back(consumer).await {
                Ok(way) => way,
                Err(error) => return all_failed(batch.len(), &error),
            };
            let to = |envelope: &Envelope| way.queue_for(consumer, envelope.key.as_deref());
            self.shared.publish_to(to, batch).await
        })
    }

    fn put<'a>(&'a self, queue: &'a str, batch: Vec<Envelope>) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let is_record = queue == RECORD_QUEUE;
            if is_record && let Err(error) = self.shared.make_record().await {
                return all_failed(batch.len(), &error);
            }
            let outcomes = self.shared.publish_to(|_| queue.to_owned(), batch).await;
            if is_record {
                self.shared.cut_record().await;
            }
            outcomes
        })
    }
}

/// Where what is sent back goes.
enum Way {
    Queue,
    /// The partitions of a group, and those of the topics that they share.
    Group {
        partitions: i32,
        of_topics: i32,
    },
}

impl Way {
    /// The queue that gets what has this key: of a group, the partition that gets the key's other messages.
    fn queue_for(&self, consumer: &str, key: Option<&str>) -> String {
        match (self, key) {
            (Self::Queue, _) => consumer.to_owned(),
            (Self::Group { .. }, None) => format!("{consumer}.any"),
            (
                Self::Group {
                    partitions,
                    of_topics,
                },
                Some(key),
            ) => {
                let number = partition_of(key.as_bytes(), *of_topics) % partitions;
                format!("{consumer}.{number}of{partitions}")
            }
        }
    }
}

impl Shared {
    /// Says whether letters can be read there, with all that was removed from them known.
    async fn letters_are_there(self: &Arc<Self>, queue: &str) -> Result<(), AccessError> {
        match timeout(CONNECT_TIME_MAX, self.status.reached()).await {
            Ok(reached) => reached.map_err(failed)?,
            Err(_) => return Err(unavailable("Kafka cannot be reached; see whether it runs")),
        }
        if self.status.is_down() {
            self.look_again();
            return Err(unavailable("there is no connection to Kafka"));
        }
        if !self.has_topic(queue).await.map_err(failed)? {
            let why = format!("there is no queue `{queue}`");
            return Err(AccessError::new(AccessErrorKind::Missing, why));
        }
        let partitions = self.ends(queue).await.map_err(failed)?.len();
        if partitions != 1 {
            return Err(AccessError::new(
                AccessErrorKind::Refused,
                format!(
                    "topic `{queue}` has {partitions} partitions: dead letters are kept in order, in one; make it anew \
                     with a single partition"
                ),
            ));
        }
        let end = self.ends(bindings::TOPIC).await.map_err(failed)?;
        let read = self.bindings.read_until(end.get(&0).copied().unwrap_or(0));
        let too_long = |_| unavailable("what was removed cannot be read yet");
        timeout(LOOK_TIMEOUT, read).await.map_err(too_long)
    }

    /// How many letters there are without those that are held.
    fn count_letters(&self, queue: &str) -> Result<u64, TransportError> {
        let failed = |error| {
            passing(
                &format!("the letters of `{queue}` cannot be counted"),
                &error,
            )
        };
        let group = self.consumer_of(queue).map_err(failed)?;
        let watermarks = group.fetch_watermarks(queue, 0, LOOK_TIMEOUT);
        let (first, end) = watermarks.map_err(failed)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(queue, 0);
        let committed = group.committed_offsets(list, LOOK_TIMEOUT);
        let (mut from, mut before) = (first, Progress::default());
        for element in committed.map_err(failed)?.elements() {
            if let Offset::Offset(offset) = element.offset() {
                from = from.max(offset);
                before = Progress::parse(offset, element.metadata());
            }
        }
        if self.receivers(queue).map_err(failed)? > 0 {
            from = from.max(before.handed_out);
        }
        let gone = self.bindings.removed(queue).with(before.settled);
        Ok(u64::try_from(end - from - gone.count(from, end)).unwrap_or(0))
    }

    /// How many members the group of a queue has.
    pub(crate) fn receivers(&self, queue: &str) -> rdkafka::error::KafkaResult<usize> {
        let groups = self.looker.fetch_group_list(Some(queue), LOOK_TIMEOUT)?;
        let members = groups.groups().iter().filter(|it| it.name() == queue);
        Ok(members.map(|it| it.members().len()).sum())
    }

    async fn way_back(self: &Arc<Self>, consumer: &str) -> Result<Way, AccessError> {
        if self.has_topic(consumer).await.map_err(failed)? {
            return Ok(Way::Queue);
        }
        let Some((partitions, topics)) = self.bindings.group(consumer) else {
            let why = format!("there is no queue and no ordered group `{consumer}`");
            return Err(AccessError::new(AccessErrorKind::Missing, why));
        };
        let mut of_topics = partitions;
        if let Some(topic) = topics.first() {
            let ends = self.ends(topic).await.map_err(failed)?;
            of_topics = i32::try_from(ends.len()).unwrap_or(partitions).max(1);
        }
        Ok(Way::Group {
            partitions,
            of_topics,
        })
    }

    async fn publish_to(
        self: &Arc<Self>,
        queue_for: impl Fn(&Envelope) -> String,
        batch: Vec<Envelope>,
    ) -> Vec<Outcome> {
        let messages = batch.into_iter().map(|envelope| Outgoing {
            destination: Destination::Queue(queue_for(&envelope).into()),
            unrouted: Unrouted::Hold,
            envelope,
        });
        self.publish(messages.collect()).await
    }

    /// Makes the topic of the record, if it is not there.
    async fn make_record(self: &Arc<Self>) -> Result<(), AccessError> {
        if self.has_topic(RECORD_QUEUE).await.map_err(failed)? {
            return Ok(());
        }
        let replicas = self.address.replication.map_or(-1, i32::from);
        let max_bytes = MESSAGE_BYTES_MAX.to_string();
        let mut topic = NewTopic::new(RECORD_QUEUE, 1, TopicReplication::Fixed(replicas))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("max.message.bytes", &max_bytes);
        if let Some(in_sync) = &self.address.min_insync {
            topic = topic.set("min.insync.replicas", in_sync);
        }
        self.create(&[topic]).await.map_err(failed)
    }

    /// Takes the oldest out of the record if it has more than it keeps.
    async fn cut_record(self: &Arc<Self>) {
        if let Ok(ends) = self.ends(RECORD_QUEUE).await {
            let end = ends.get(&0).copied().unwrap_or(0);
            self.delete_before(RECORD_QUEUE, end - i64::from(RECORDED_COUNT_MAX))
                .await;
        }
    }

    /// Writes down that the letters at these offsets are removed, and waits until that was read back.
    async fn write_removed(
        self: &Arc<Self>,
        queue: &str,
        offsets: &[i64],
    ) -> Result<(), AccessError> {
        let ranges = crate::ranges::Ranges::default();
        let ranges = ranges.with(offsets.iter().map(|offset| (*offset, offset + 1)));
        let change = Change::Removed {
            queue: queue.to_owned(),
            ranges: ranges.iter().collect(),
        };
        self.write(change).await.map_err(failed)
    }

    /// Deletes what is before an offset of the only partition. A user who may not do that leaves it there.
    async fn delete_before(&self, topic: &str, offset: i64) {
        let mut list = TopicPartitionList::new();
        if offset <= 0
            || list
                .add_partition_offset(topic, 0, Offset::Offset(offset))
                .is_err()
        {
            return;
        }
        let options = AdminOptions::new().request_timeout(Some(LOOK_TIMEOUT));
        match self.admin.delete_records(&list, &options).await {
            Ok(deleted) => debug!(topic, ?deleted, "deleted what was removed at the front"),
            Err(error) => debug!(topic, %error, "what was removed stays in the log"),
        }
    }
}

impl bindings::Bindings {
    /// Of an ordered group that was declared: into how many partitions (the most, if it was declared with several
    /// numbers), and the topics that these share.
    pub(crate) fn group(&self, name: &str) -> Option<(i32, Vec<String>)> {
        let prefix = format!("{name}.of");
        let mut found: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        for subscriber in self.subscribers_from(&prefix) {
            let count = subscriber
                .strip_prefix(&prefix)
                .and_then(|it| it.parse().ok());
            if let Some(count) = count.filter(|count| *count > 0) {
                found.insert(count, self.of_queue(&subscriber).into_keys().collect());
            }
        }
        found.pop_last()
    }
}

/// Which of `count` partitions Java's default partitioner, and the one used here, takes for a key.
fn partition_of(key: &[u8], count: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) % count
}

/// As Kafka's own clients hash keys.
fn murmur2(bytes: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = chunk
            .iter()
            .rev()
            .fold(0, |k: u32, byte| (k << 8) | u32::from(*byte));
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        hash ^= rest
            .iter()
            .rev()
            .fold(0, |k: u32, byte| (k << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

fn unavailable(why: &str) -> AccessError {
    AccessError::new(AccessErrorKind::Unavailable, why)
}

fn failed(error: TransportError) -> AccessError {
    let kind = match error.is_temporary() {
        true => AccessErrorKind::Unavailable,
        false => AccessErrorKind::Refused,
    };
    AccessError::new(kind, error.to_string())
}

fn all_failed(count: usize, error: &AccessError) -> Vec<Outcome> {
    let kind = match error.kind() {
        AccessErrorKind::Unavailable | AccessErrorKind::Busy => PublishErrorKind::Unavailable,
        AccessErrorKind::Missing => PublishErrorKind::Unroutable,
        _ => PublishErrorKind::Refused,
    };
    let each = |_| Err(PublishError::new(kind, error.to_string()));
    (0..count).map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hashed_as_by_kafkas_own_clients() {
        // From the tests of Apache Kafka (`UtilsTest.testMurmur2`).
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }
}
