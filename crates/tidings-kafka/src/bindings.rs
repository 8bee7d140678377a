//! Which queue subscribes to which topic, and from which offset on.
//!
//! Kafka does not know who wants a topic: a consumer names its topics when it joins, and nobody can ask who
//! did so yesterday. But a publisher has to know that *nobody ever* subscribed (the message waits in its outbox
//! then), a queue that leaves a topic keeps what was published before, and a queue that is declared gets what
//! is published from then on, wherever its consumer first starts. So subscriptions are records in a topic of
//! their own, `tidings.bindings`, of one partition, which every transport reads from its beginning and follows.
//! It is written when a subscription is made or ended, and when a queue has committed an offset of a partition for the
//! first time: if there is none later, it has expired, and what the queue had may come again. And when an operator has
//! taken dead letters out of their topic, or has a queue begin earlier.
//!
//! A record is a wish; what it did is what all readers make of it, in the order of the log: who subscribes
//! a queue that is subscribed changes nothing, so of two instances that declare at once the first one counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use serde::{Deserialize, Serialize};
use tidings_adapter::Standing;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{client::Context, ranges::Ranges};

/// The topic of subscriptions.
pub(crate) const TOPIC: &str = "tidings.bindings";
/// How often a queue may have left a topic and come back before the oldest part of it is forgotten.
const RANGES_MAX: usize = 16;

/// A record of the topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// `queue` wants what is in `topic` from these offsets on (by partition; 0 in others).
    Subscribe {
        queue: String,
        topic: String,
        from: BTreeMap<i32, i64>,
    },
    /// `queue` wants nothing from these offsets on.
    Leave {
        queue: String,
        topic: String,
        until: BTreeMap<i32, i64>,
    },
    /// The consumer group `queue` has committed offsets of these partitions.
    Committed {
        queue: String,
        topic: String,
        partitions: BTreeSet<i32>,
    },
    /// `queue`, which is subscribed to `topic`, is to get again what lies between these offsets, as a replay of that name.
    Replay {
        queue: String,
        topic: String,
        name: String,
        from: BTreeMap<i32, i64>,
        until: BTreeMap<i32, i64>,
    },
    /// An operator has taken the letters at these offsets out of `queue` (the first offset and the one after the last
    /// of each range), a topic of one partition.
    Removed {
        queue: String,
        ranges: Vec<(i64, i64)>,
    },
}

impl Change {
    pub(crate) fn queue(&self) -> &str {
        match self {
            Self::Subscribe { queue, .. }
            | Self::Leave { queue, .. }
            | Self::Committed { queue, .. }
            | Self::Replay { queue, .. }
            | Self::Removed { queue, .. } => queue,
        }
    }
}

/// What a queue wants of a topic: everything between two offsets of each partition, several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    ranges: Vec<Range>,
    replays: Vec<Again>,
}

/// What comes as a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Again {
    name: String,
    from: BTreeMap<i32, i64>,
    until: BTreeMap<i32, i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Range {
    from: BTreeMap<i32, i64>,
    /// `None` while the queue is subscribed.
    until: Option<BTreeMap<i32, i64>>,
}

impl Wanted {
    /// All there is: what a queue wants of its own topic.
    pub(crate) fn everything() -> Self {
        Self {
            ranges: vec![Range::default()],
            replays: Vec::new(),
        }
    }

    /// The replay that a message comes with, the latest if there were several.
    pub(crate) fn replay_of(&self, partition: i32, offset: i64) -> Option<&str> {
        let is_in = |again: &&Again| {
            offset >= *again.from.get(&partition).unwrap_or(&i64::MAX)
                && offset < of(&again.until, partition)
        };
        self.replays.iter().rev().find(is_in).map(|it| &*it.name)
    }

    /// The first offset of a partition that is wanted.
    pub(crate) fn first(&self, partition: i32) -> i64 {
        let first = self.ranges.first();
        first.map_or(0, |range| of(&range.from, partition))
    }

    /// The offset after the last one that is wanted, of what was left.
    pub(crate) fn last(&self, partition: i32) -> i64 {
        let until = self.ranges.iter().filter_map(|range| range.until.as_ref());
        until.map(|until| of(until, partition)).max().unwrap_or(0)
    }

    pub(crate) fn contains(&self, partition: i32, offset: i64) -> bool {
        self.ranges.iter().any(|range| {
            let is_before_end = |until| offset < of(until, partition);
            offset >= of(&range.from, partition) && range.until.as_ref().is_none_or(is_before_end)
        })
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        self.ranges
            .last()
            .is_some_and(|range| range.until.is_none())
    }
}

fn of(offsets: &BTreeMap<i32, i64>, partition: i32) -> i64 {
    offsets.get(&partition).copied().unwrap_or(0)
}

/// All subscriptions, as far as they were read.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By queue, then by topic.
    queues: BTreeMap<String, BTreeMap<String, Wanted>>,
    /// How many queues are subscribed, by topic.
    subscribed: BTreeMap<String, usize>,
    /// Of which partitions there were committed offsets, by group, then by topic.
    committed: BTreeMap<String, BTreeMap<String, BTreeSet<i32>>>,
    /// What operators have taken out, by queue.
    removed: BTreeMap<String, Ranges>,
}

impl Table {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Subscribe { queue, topic, from } => {
                let topics = self.queues.entry(queue).or_default();
                let wanted = topics.entry(topic.clone()).or_default();
                if wanted.is_subscribed() {
                    return;
                }
                if wanted.ranges.len() == RANGES_MAX {
                    wanted.ranges.remove(0);
                }
                wanted.ranges.push(Range { from, until: None });
                *self.subscribed.entry(topic).or_default() += 1;
            }
            Change::Leave {
                queue,
                topic,
                until,
            } => {
                let wanted = self
                    .queues
                    .get_mut(&queue)
                    .and_then(|topics| topics.get_mut(&topic));
                let Some(wanted) = wanted.filter(|wanted| wanted.is_subscribed()) else {
                    return;
                };
                if let Some(range) = wanted.ranges.last_mut() {
                    range.until = Some(until);
                }
                if let Some(count) = self.subscribed.get_mut(&topic) {
                    *count -= 1;
                }
            }
            Change::Committed {
                queue,
                topic,
                partitions,
            } => {
                let topics = self.committed.entry(queue).or_default();
                topics.entry(topic).or_default().extend(partitions);
            }
            Change::Replay {
                queue,
                topic,
                name,
                from,
                until,
            } => {
                let topics = self.queues.entry(queue).or_default();
                let wanted = topics.entry(topic).or_default();
                let Some(range) = wanted.ranges.last_mut() else {
                    return;
                };
                for (partition, offset) in &from {
                    let first = range.from.entry(*partition).or_default();
                    *first = (*first).min(*offset);
                }
                if wanted.replays.len() == RANGES_MAX {
                    wanted.replays.remove(0);
                }
                wanted.replays.push(Again { name, from, until });
            }
            Change::Removed { queue, ranges } => {
                let removed = self.removed.entry(queue).or_default();
                ranges
                    .into_iter()
                    .for_each(|(from, to)| removed.insert(from, to));
            }
        }
    }
}

/// The table, kept by a thread of its own.
pub(crate) struct Bindings {
    table: Mutex<Table>,
    /// The offset after the last record that was read.
    read: watch::Sender<i64>,
    /// Counts the changes, for those who follow.
    version: watch::Sender<u64>,
}

impl Bindings {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            read: watch::Sender::new(0),
            version: watch::Sender::new(0),
        })
    }

    /// What a queue wants of which topics.
    pub(crate) fn of_queue(&self, queue: &str) -> BTreeMap<String, Wanted> {
        self.table
            .lock()
            .queues
            .get(queue)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn is_subscribed(&self, queue: &str, topic: &str) -> bool {
        let table = self.table.lock();
        let topics = table.queues.get(queue);
        let wanted = topics.and_then(|topics| topics.get(topic));
        wanted.is_some_and(Wanted::is_subscribed)
    }

    /// True if any queue is subscribed to the topic.
    pub(crate) fn is_wanted(&self, topic: &str) -> bool {
        self.table
            .lock()
            .subscribed
            .get(topic)
            .is_some_and(|count| *count > 0)
    }

    /// True if the group `queue` has ever committed an offset of the partition.
    pub(crate) fn has_committed(&self, queue: &str, topic: &str, partition: i32) -> bool {
        let table = self.table.lock();
        let topics = table.committed.get(queue);
        let partitions = topics.and_then(|topics| topics.get(topic));
        partitions.is_some_and(|partitions| partitions.contains(&partition))
    }

    /// What operators have taken out of a queue.
    pub(crate) fn removed(&self, queue: &str) -> Ranges {
        let table = self.table.lock();
        table.removed.get(queue).cloned().unwrap_or_default()
    }

    /// Who subscribes, or did, with a name that begins so.
    pub(crate) fn subscribers_from(&self, prefix: &str) -> Vec<String> {
        let table = self.table.lock();
        let from = table.queues.range(prefix.to_owned()..);
        let names = from.map(|(name, _)| name.clone());
        names.take_while(|name| name.starts_with(prefix)).collect()
    }

    /// How many changes of subscriptions were seen.
    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    pub(crate) fn has_read_until(&self, offset: i64) -> bool {
        *self.read.borrow() >= offset
    }

    /// Waits until all records before `offset` were read.
    pub(crate) async fn read_until(&self, offset: i64) {
        let mut read = self.read.subscribe();
        let _ = read.wait_for(|read| *read >= offset).await;
    }

    fn take(&self, offset: i64, payload: &[u8]) {
        match serde_json::from_slice::<Change>(payload) {
            Ok(change) => {
                debug!(?change, "a subscription");
                let is_of_subscriptions = matches!(
                    change,
                    Change::Subscribe { .. } | Change::Leave { .. } | Change::Replay { .. }
                );
                self.table.lock().apply(change);
                if is_of_subscriptions {
                    self.version.send_modify(|version| *version += 1);
                }
            }
            Err(error) => {
                warn!(%error, offset, topic = TOPIC, "passed over: it is no subscription")
            }
        }
        self.read.send_replace(offset + 1);
    }
}

/// Reads the topic to its end, says that the transport is up, and follows until it is closed. For a
/// thread of its own.
pub(crate) fn follow(
    consumer: &BaseConsumer<Context>,
    looker: &BaseConsumer<Context>,
    bindings: &Bindings,
    status: &Standing,
) {
    let mut is_assigned = false;
    let mut end = None;
    let mut next_try = Instant::now();
    while !status.is_closed() {
        if !is_assigned {
            let mut from_start = TopicPartitionList::new();
            let position = Offset::Offset(*bindings.read.borrow());
            is_assigned = from_start.add_partition_offset(TOPIC, 0, position).is_ok()
                && consumer.assign(&from_start).is_ok();
        }
        if end.is_none() && Instant::now() >= next_try {
            next_try = Instant::now() + Duration::from_millis(200);
            end = match looker.fetch_watermarks(TOPIC, 0, Duration::from_secs(2)) {
                Ok((_, end)) => Some(end),
                Err(error) => {
                    debug!(%error, "the subscriptions cannot be read yet");
                    None
                }
            };
        }
        // Its errors and logs are read by nobody else.
        let _ = looker.poll(Duration::ZERO);
        match consumer.poll(Duration::from_millis(20)) {
            Some(Ok(record)) => {
                status.answered();
                bindings.take(record.offset(), record.payload().unwrap_or_default());
            }
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                // Somebody made the topic anew, or took its beginning away.
                warn!(topic = TOPIC, "was cut: reading it from its beginning");
                *bindings.table.lock() = Table::default();
                bindings.read.send_replace(0);
                is_assigned = false;
            }
            Some(Err(error)) => debug!(%error, "following the subscriptions"),
            None => {}
        }
        if end.is_some_and(|end| *bindings.read.borrow() >= end) {
            status.up();
            // Asked once: from here on it is followed.
            end = Some(i64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(queue: &str, topic: &str, from: i64) -> Change {
        Change::Subscribe {
            queue: queue.into(),
            topic: topic.into(),
            from: [(0, from)].into(),
        }
    }

    fn leave(queue: &str, topic: &str, until: i64) -> Change {
        Change::Leave {
            queue: queue.into(),
            topic: topic.into(),
            until: [(0, until)].into(),
        }
    }

    fn table(changes: impl IntoIterator<Item = Change>) -> Bindings {
        let bindings = Arc::into_inner(Bindings::new()).expect("nobody else has it");
        for (offset, change) in (0..).zip(changes) {
            let json = serde_json::to_vec(&change).expect("it is JSON");
            bindings.take(offset, &json);
        }
        bindings
    }

    #[test]
    fn of_two_that_subscribe_at_once_the_first_counts() {
        let bindings = table([subscribe("q", "t", 5), subscribe("q", "t", 9)]);
        let wanted = &bindings.of_queue("q")["t"];
        assert_eq!(wanted.first(0), 5);
        assert!(!wanted.contains(0, 4) && wanted.contains(0, 5));
        assert!(
            wanted.contains(1, 0),
            "a partition that came later, from its beginning"
        );
    }

    #[test]
    fn who_leaves_keeps_what_was_there_and_may_come_back() {
        let bindings = table([
            subscribe("q", "t", 5),
            leave("q", "t", 8),
            leave("q", "t", 20),
        ]);
        assert!(!bindings.is_wanted("t") && !bindings.is_subscribed("q", "t"));
        let bindings = table([
            subscribe("q", "t", 5),
            subscribe("other", "t", 0),
            leave("q", "t", 8),
            subscribe("q", "t", 10),
        ]);
        assert!(bindings.is_wanted("t") && bindings.is_subscribed("q", "t"));
        let wanted = &bindings.of_queue("q")["t"];
        let contains: Vec<i64> = (0..12)
            .filter(|offset| wanted.contains(0, *offset))
            .collect();
        assert_eq!(contains, [5, 6, 7, 10, 11]);
        assert_eq!(bindings.of_queue("nobody"), BTreeMap::new());
    }

    #[test]
    fn a_replay_begins_earlier_and_says_so_of_what_is_from_before() {
        let replay = |from: i64, until: i64| Change::Replay {
            queue: "q".into(),
            topic: "t".into(),
            name: format!("from-{from}"),
            from: [(0, from)].into(),
            until: [(0, until)].into(),
        };
        let bindings = table([subscribe("q", "t", 5), replay(2, 5), replay(3, 7)]);
        let wanted = &bindings.of_queue("q")["t"];
        assert_eq!(wanted.first(0), 2);
        let named: Vec<_> = (1..8).map(|it| wanted.replay_of(0, it)).collect();
        let (one, other) = (Some("from-2"), Some("from-3"));
        assert_eq!(named, [None, one, other, other, other, other, None]);
        assert_eq!(wanted.replay_of(1, 3), None, "another partition");
        // To somebody who does not subscribe, there is none.
        let bindings = table([replay(2, 5)]);
        assert!(!bindings.is_wanted("t") && !bindings.is_subscribed("q", "t"));
    }

    #[test]
    fn what_is_no_subscription_is_passed_over() {
        let bindings = table([subscribe("q", "t", 0)]);
        bindings.take(1, b"{\"paint\": {}}");
        bindings.take(2, b"");
        assert_eq!(*bindings.read.borrow(), 3);
        assert!(bindings.is_wanted("t"));
    }

    #[test]
    fn leaving_and_coming_back_without_end_is_bounded() {
        let changes = (0..50).flat_map(|round| {
            [
                subscribe("q", "t", round * 10),
                leave("q", "t", round * 10 + 5),
            ]
        });
        let bindings = table(changes.chain([subscribe("q", "t", 1000)]));
        let wanted = &bindings.of_queue("q")["t"];
        assert_eq!(wanted.ranges.len(), RANGES_MAX);
        assert!(wanted.contains(0, 1000) && wanted.contains(0, 494) && !wanted.contains(0, 4));
    }
}
