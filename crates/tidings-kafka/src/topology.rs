//! Topics for what a service needs, and the subscriptions of its queues.
//!
//! A queue is a topic of its name, for what is sent to it by name, with the dead letters in one beside it. An
//! ordered group has a topic for each of its partitions and one for what goes to none; those have a single Kafka
//! partition each, and receiving it is what makes an instance the one that has the group's partition.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, NewTopic, TopicReplication},
    consumer::Consumer,
    metadata::MetadataTopic,
    types::RDKafkaErrorCode,
};
use tidings_adapter::Backoff;
use tidings_core::{Envelope, Group, Queue, Topology, TransportError, dead_letter_queue};

use crate::{
    Shared,
    bindings::{self, Change},
    client::{self, passing},
    polling::Shape,
    publisher::{MESSAGE_BYTES_MAX, Record, own_record},
};

/// The longest name of a topic that Kafka takes, less `.dead`.
pub(crate) const NAME_BYTES_MAX: usize = 249 - ".dead".len();
/// How long the brokers may take to make topics.
const MAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a look may take before it is tried again.
pub(crate) const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// What is sent to a queue that ends with its process is of no use a day later.
const EPHEMERAL_RETENTION: &str = "86400000";
/// Dead letters stay until somebody looks at them.
const NO_END: &str = "-1";

/// A topic that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    partitions: u16,
    /// `None`: as the brokers have it.
    retention: Option<&'static str>,
    /// More partitions than one would break what is promised: the order of letters, or who has a share of a group.
    is_single: bool,
}

/// A topic as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct There {
    partitions: usize,
    /// Each partition has a leader.
    has_leaders: bool,
}

impl Wanted {
    /// Why it cannot be used as it is, if so.
    pub(crate) fn is_broken_by(&self, there: There) -> Option<String> {
        let count = there.partitions;
        (self.is_single && count > 1).then(|| {
            format!(
                "has {count} partitions and must have one: have it made anew with a single partition, or let the \
                 service make it"
            )
        })
    }
}

/// The name under which the subscriptions of a group are kept; groups that differ in their number of partitions
/// have nothing in common.
fn subscriber(group: &Group) -> String {
    format!("{}.of{}", group.name, group.partitions)
}

/// What a queue is, by its name: a partition of a group (`G.0of4`), or what goes to none (`G.any`).
pub(crate) fn partition_of_group(queue: &str) -> Option<Shape> {
    let (group, last) = queue.rsplit_once('.')?;
    if last == "any" {
        return Some(Shape::Share {
            group: group.to_owned(),
            of: None,
        });
    }
    let (number, count) = last.split_once("of")?;
    let of: (i32, i32) = (number.parse().ok()?, count.parse().ok()?);
    (of.0 >= 0 && of.0 < of.1).then(|| Shape::Share {
        group: format!("{group}.of{}", of.1),
        of: Some(of),
    })
}

/// Beside which name the dead letters of a queue are: partitions of a group have theirs in common.
pub(crate) fn group_of(queue: &str) -> &str {
    match partition_of_group(queue) {
        Some(_) => queue.rsplit_once('.').map_or(queue, |(group, _)| group),
        None => queue,
    }
}

/// The subscriptions of a topology: who subscribes, to which topic, and whether that is of commands.
pub(crate) fn subscriptions_of(topology: &Topology) -> Vec<(String, String, bool)> {
    let mut subscriptions = Vec::new();
    for queue in &topology.queues {
        for topic in &queue.topics {
            subscriptions.push((queue.name.to_string(), topic.to_string(), false));
        }
    }
    for group in &topology.groups {
        let commands = group.commands.iter().map(|command| (command, true));
        let topics = group.topics.iter().map(|topic| (topic, false));
        for (topic, is_own) in topics.chain(commands) {
            subscriptions.push((subscriber(group), topic.to_string(), is_own));
        }
    }
    subscriptions
}

impl Shared {
    /// Declares what a service needs, as often as it takes.
    pub(crate) async fn declare(
        self: &Arc<Self>,
        topology: &Topology,
    ) -> Result<(), TransportError> {
        self.status.reached().await?;
        let wanted = self.topics_of(topology)?;
        let mut backoff = Backoff::default();
        loop {
            let declared = async {
                self.make_topics(&wanted).await?;
                let names = wanted.keys().map(String::as_str);
                self.check_topics(topology, names).await?;
                self.subscribe_queues(topology).await
            };
            match declared.await {
                Ok(()) => break,
                Err(_) if self.status.is_closed() => return Err(tidings_adapter::closed()),
                Err(error) if error.is_temporary() => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
        let ephemeral = topology.queues.iter().filter(|queue| queue.is_ephemeral);
        let ephemeral = ephemeral.map(|queue| queue.name.to_string());
        self.ephemeral.lock().extend(ephemeral);
        Ok(())
    }

    pub(crate) fn topics_of(
        &self,
        topology: &Topology,
    ) -> Result<BTreeMap<String, Wanted>, TransportError> {
        let mut topics = BTreeMap::new();
        let mut add = |name: &str, partitions: u16, retention: Option<&'static str>| {
            check_name(name)?;
            let is_of_group = partition_of_group(name).is_some();
            let wanted = Wanted {
                partitions,
                retention,
                is_single: partitions == 1 && (is_of_group || retention == Some(NO_END)),
            };
            topics.entry(name.to_owned()).or_insert(wanted);
            Ok::<(), TransportError>(())
        };
        let many = self.address.partitions;
        for topic in &topology.topics {
            add(topic, many, None)?;
        }
        for Queue {
            name,
            topics,
            is_ephemeral,
            ..
        } in &topology.queues
        {
            match is_ephemeral {
                true => add(name, 1, Some(EPHEMERAL_RETENTION))?,
                false => {
                    // Members share partitions by their number, whatever comes through them: what is sent to a
                    // queue by name is little where it subscribes to topics, and must not count as much as these.
                    let own = if topics.is_empty() { many } else { 1 };
                    add(name, own, None)?;
                    add(&dead_letter_queue(name), 1, Some(NO_END))?;
                }
            }
            topics.iter().try_for_each(|topic| add(topic, many, None))?;
        }
        for group in &topology.groups {
            let (count, max) = (group.partitions.get(), many.min(tidings_core::SLOT_COUNT));
            if count > max {
                return Err(TransportError::fatal(format!(
                    "the ordered group `{}` has {count} partitions; with topics of {many} partitions Kafka can give \
                     it {max}: take fewer, or put `partitions={count}` into the broker's URL before the topics are made",
                    group.name
                )));
            }
            for partition in 0..count {
                add(&group.partition(partition), 1, None)?;
            }
            add(&group.any(), 1, None)?;
            add(&dead_letter_queue(&group.name), 1, Some(NO_END))?;
            let subscribed = group.topics.iter().chain(&group.commands);
            subscribed
                .into_iter()
                .try_for_each(|topic| add(topic, many, None))?;
        }
        Ok(topics)
    }

    /// Makes the topics that are not there. Those that are there stay as they are (and are [checked](crate::checks)).
    async fn make_topics(
        self: &Arc<Self>,
        wanted: &BTreeMap<String, Wanted>,
    ) -> Result<(), TransportError> {
        let there = self.topics_that_are_there().await?;
        for (name, wanted) in wanted {
            let there = there.get(name).copied();
            if let Some(why) = there.and_then(|there| wanted.is_broken_by(there)) {
                return Err(TransportError::fatal(format!(
                    "topic `{name}` {why} (TDG-4013)"
                )));
            }
        }
        let missing = wanted.iter().filter(|(name, _)| !there.contains_key(*name));
        let missing: Vec<(&String, &Wanted)> = missing.collect();
        if missing.is_empty() {
            return Ok(());
        }
        let replicas = self.address.replication;
        let max_bytes = MESSAGE_BYTES_MAX.to_string();
        let retention = self.address.retention.map(|it| it.as_millis().to_string());
        let topics = missing.iter().map(|(name, wanted)| {
            let replication = TopicReplication::Fixed(replicas.map_or(-1, i32::from));
            let topic = NewTopic::new(name, wanted.partitions.into(), replication);
            let mut topic = topic
                .set("cleanup.policy", "delete")
                .set("max.message.bytes", &max_bytes);
            if let Some(in_sync) = &self.address.min_insync {
                topic = topic.set("min.insync.replicas", in_sync);
            }
            match wanted.retention.or(retention.as_deref()) {
                Some(retention) => topic.set("retention.ms", retention),
                None => topic,
            }
        });
        self.create(&topics.collect::<Vec<_>>()).await?;
        // A topic is of use when each of its partitions has a leader.
        let mut backoff = Backoff::default();
        loop {
            let there = self.topics_that_are_there().await?;
            if missing
                .iter()
                .all(|(name, _)| there.get(*name).is_some_and(|there| there.has_leaders))
            {
                return Ok(());
            }
            backoff.pause().await;
        }
    }

    /// Makes topics; one that is there already is fine.
    pub(crate) async fn create(&self, topics: &[NewTopic<'_>]) -> Result<(), TransportError> {
        let options = AdminOptions::new()
            .operation_timeout(Some(MAKE_TIMEOUT))
            .request_timeout(Some(MAKE_TIMEOUT));
        let results = self.admin.create_topics(topics, &options).await;
        let results = results.map_err(|error| passing("topics cannot be made", &error))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) if client::is_refusal(code) => {
                    return Err(TransportError::fatal(format!(
                        "topic `{topic}` could not be made: {code}; let the user of the broker's URL create topics, \
                         or have it made by a user who may (TDG-4011)"
                    )));
                }
                Err((topic, code)) => {
                    let why = format!("topic `{topic}` could not be made: {code}");
                    return Err(TransportError::temporary(why));
                }
            }
        }
        Ok(())
    }

    /// The topics of the cluster.
    pub(crate) async fn topics_that_are_there(
        self: &Arc<Self>,
    ) -> Result<BTreeMap<String, There>, TransportError> {
        self.look(|shared| {
            let metadata = shared.looker.fetch_metadata(None, LOOK_TIMEOUT);
            let metadata = metadata.map_err(|error| passing("topics cannot be seen", &error))?;
            let topics = metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none());
            let topics = topics.map(|topic| {
                let partitions = topic.partitions();
                let has_leaders =
                    !partitions.is_empty() && partitions.iter().all(|it| it.leader() >= 0);
                let there = There {
                    partitions: partitions.len(),
                    has_leaders,
                };
                (topic.name().to_owned(), there)
            });
            Ok(topics.collect())
        })
        .await
    }

    /// True if there is a topic of that name. One that was there is not looked for again.
    pub(crate) async fn has_topic(self: &Arc<Self>, name: &str) -> Result<bool, TransportError> {
        if self.known.lock().contains(name) {
            return Ok(true);
        }
        if check_name(name).is_err() {
            return Ok(false);
        }
        let topic = name.to_owned();
        let is_there = self
            .look(move |shared| {
                let metadata = shared.looker.fetch_metadata(Some(&topic), LOOK_TIMEOUT);
                let metadata =
                    metadata.map_err(|error| passing("topics cannot be seen", &error))?;
                let found = metadata.topics().iter().find(|it| it.name() == topic);
                may_see(found)?;
                Ok(found.is_some_and(|it| it.error().is_none() && !it.partitions().is_empty()))
            })
            .await?;
        if is_there {
            self.known.lock().insert(name.to_owned());
        }
        Ok(is_there)
    }

    /// Asks the cluster something, on a thread that may be blocked.
    pub(crate) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Self) -> Result<T, TransportError> + Send + 'static,
    ) -> Result<T, TransportError> {
        let shared = Arc::clone(self);
        let asked = tokio::task::spawn_blocking(move || {
            let answer = ask(&shared);
            if answer.is_ok() {
                shared.status.answered();
            }
            answer
        });
        let failed = |error| TransportError::temporary("the look was ended").with_source(error);
        asked.await.map_err(failed)?
    }

    /// Makes the subscriptions that are not there, then ends those that are to be left.
    async fn subscribe_queues(self: &Arc<Self>, topology: &Topology) -> Result<(), TransportError> {
        let is_new =
            |(queue, topic, _): &(String, String, bool)| !self.bindings.is_subscribed(queue, topic);
        for (queue, topic, is_own) in subscriptions_of(topology).into_iter().filter(is_new) {
            // What was sent to a command before anybody received it is for whoever comes first.
            let from = match is_own {
                true => BTreeMap::new(),
                false => self.ends(&topic).await?,
            };
            let change = Change::Subscribe { queue, topic, from };
            self.write(change).await?;
        }
        for queue in &topology.queues {
            for topic in &queue.left {
                if self.bindings.is_subscribed(&queue.name, topic) {
                    let change = Change::Leave {
                        queue: queue.name.to_string(),
                        topic: topic.to_string(),
                        until: self.ends(topic).await?,
                    };
                    self.write(change).await?;
                }
            }
        }
        Ok(())
    }

    /// Where the partitions of a topic end now.
    pub(crate) async fn ends(
        self: &Arc<Self>,
        topic: &str,
    ) -> Result<BTreeMap<i32, i64>, TransportError> {
        let topic = topic.to_owned();
        self.look(move |shared| {
            let failed = |error| {
                passing(
                    &format!("the end of topic `{topic}` cannot be seen"),
                    &error,
                )
            };
            let metadata = shared.looker.fetch_metadata(Some(&topic), LOOK_TIMEOUT);
            let metadata = metadata.map_err(failed)?;
            may_see(metadata.topics().first())?;
            let mut list = TopicPartitionList::new();
            for partition in metadata.topics().iter().flat_map(|it| it.partitions()) {
                let added = list.add_partition_offset(&topic, partition.id(), Offset::End);
                added.map_err(failed)?;
            }
            if list.count() == 0 {
                return Ok(BTreeMap::new());
            }
            let ends = shared
                .looker
                .offsets_for_times(list, LOOK_TIMEOUT)
                .map_err(failed)?;
            let mut offsets = BTreeMap::new();
            for element in ends.elements() {
                element.error().map_err(failed)?;
                if let Offset::Offset(offset) = element.offset() {
                    offsets.insert(element.partition(), offset);
                }
            }
            Ok(offsets)
        })
        .await
    }

    /// Writes changes for who does not wait for that.
    pub(crate) fn recorder(self: &Arc<Self>) -> Box<dyn Fn(Change) + Send + Sync> {
        let shared = Arc::downgrade(self);
        let runtime = tokio::runtime::Handle::current();
        Box::new(move |change| {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            runtime.spawn(async move {
                let mut backoff = Backoff::default();
                while !shared.status.is_closed() && shared.write(change.clone()).await.is_err() {
                    backoff.pause().await;
                }
            });
        })
    }

    /// Writes a change and waits until it was read back.
    pub(crate) async fn write(self: &Arc<Self>, change: Change) -> Result<(), TransportError> {
        let body = serde_json::to_vec(&change).unwrap_or_default();
        let record = Record {
            topic: Arc::from(bindings::TOPIC),
            envelope: Envelope {
                key: Some(change.queue().into()),
                ..Envelope::new("", body)
            },
        };
        let mut outcomes = self.publisher.publish(vec![record]).await;
        outcomes
            .pop()
            .map_or(Ok(()), |outcome| own_record(bindings::TOPIC, outcome))?;
        let end = self.ends(bindings::TOPIC).await?;
        self.bindings
            .read_until(end.get(&0).copied().unwrap_or(0))
            .await;
        Ok(())
    }
}

/// Fails if the user may not see a topic. Of one that is not there, Kafka says the same to who may not make it.
fn may_see(topic: Option<&MetadataTopic>) -> Result<(), TransportError> {
    let forbidden = topic.filter(|it| {
        let code = it.error().map(RDKafkaErrorCode::from);
        code.is_some_and(client::is_forbidden)
    });
    match forbidden {
        Some(topic) => Err(client::may_not("see", topic.name())),
        None => Ok(()),
    }
}

/// What Kafka takes for a topic's name.
fn check_name(name: &str) -> Result<(), TransportError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let bytes = name.len();
    // What is added to a name is within Kafka's own limit.
    if name.is_empty() || bytes > NAME_BYTES_MAX + ".dead".len() {
        return Err(TransportError::fatal(format!(
            "the name `{name}` has {bytes} bytes; Kafka takes 1 to {NAME_BYTES_MAX} here"
        )));
    }
    if !name.bytes().all(is_fine) || name == "." || name == ".." {
        return Err(TransportError::fatal(format!(
            "`{name}` cannot be the name of a topic of Kafka: use letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_groups_are_known_by_their_names() {
        let share = |group: &str, of| {
            let group = group.to_owned();
            Some(Shape::Share { group, of })
        };
        assert_eq!(
            partition_of_group("p.ordered.1of4"),
            share("p.ordered.of4", Some((1, 4)))
        );
        assert_eq!(
            partition_of_group("p.ordered.any"),
            share("p.ordered", None)
        );
        for other in [
            "p.order-placed.v1",
            "p.4of4",
            "p.of4",
            "any",
            "p.-1of4",
            "1of4",
            "p.dead",
        ] {
            assert_eq!(partition_of_group(other), None, "{other}");
        }
        assert_eq!(group_of("p.ordered.1of4"), "p.ordered");
        assert_eq!(group_of("p.ordered.any"), "p.ordered");
        assert_eq!(group_of("p.order-placed.v1"), "p.order-placed.v1");
    }

    #[test]
    fn each_code_has_a_page() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        let table = std::fs::read_to_string(docs.join("README.md")).expect("the table");
        let sources = [
            include_str!("checks.rs"),
            include_str!("client.rs"),
            include_str!("polling.rs"),
            include_str!("replay.rs"),
            include_str!("schemas.rs"),
            include_str!("../../tidings-registry/src/client.rs"),
            include_str!("topology.rs"),
        ];
        let sources = sources.concat();
        for code in [
            "TDG-4010", "TDG-4011", "TDG-4012", "TDG-4013", "TDG-4014", "TDG-4015", "TDG-4016",
            "TDG-4017", "TDG-4018", "TDG-4019", "TDG-4020", "TDG-7001", "TDG-7005", "TDG-7006",
        ] {
            let page = std::fs::read_to_string(docs.join(format!("{code}.md"))).expect("a page");
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            assert!(sources.contains(&format!("({code})")), "{code} is used");
            let row = format!("| [{code}]({code}.md) |");
            assert!(table.contains(&row), "{code}");
        }
    }

    #[test]
    fn names_that_kafka_does_not_take_are_refused() {
        let long = "n".repeat(NAME_BYTES_MAX + 5);
        for fine in ["order_events", "payment.order-placed.v1", &long] {
            assert!(check_name(fine).is_ok(), "{fine}");
        }
        let too_long = format!("{long}n");
        for wrong in ["", ".", "..", "a b", "a/b", "ö", &too_long] {
            let error = check_name(wrong).expect_err(wrong);
            assert!(!error.is_temporary() && error.to_string().contains(wrong));
        }
    }
}
