//! Whether the settings of topics keep what is promised: they may have been made by somebody else, or by the brokers'
//! defaults.
//!
//! What cannot be kept is refused at start, what is kept until something else goes wrong is a warning, once for each topic.
//! Who may not see a topic's settings is told nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    admin::{AdminOptions, ConfigEntry, OwnedResourceSpecifier, ResourceSpecifier},
    consumer::Consumer,
};
use tidings_adapter::Backoff;
use tidings_core::{RECORD_QUEUE, Topology, TransportError, dead_letter_queue};
use tracing::{debug, warn};

use crate::{Shared, bindings, client::passing, topology::LOOK_TIMEOUT};

/// How long a topic is to keep messages at least, if the URL does not say: a consumer may be away for a weekend.
const RETENTION_MIN: Duration = Duration::from_secs(3 * 24 * 3600);
/// How many brokers a cluster has in which a single copy is an oversight.
const BROKERS_OF_COPIES: usize = 3;
/// How often settings are asked for before a service starts without having seen them.
const ASKS_MAX: usize = 3;

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It is the log of subscriptions.
    Records,
    /// Dead letters, or what operators discarded.
    Letters,
    /// What is sent to somebody who waits for it.
    Answers,
    Messages,
}

/// A topic as it is.
#[derive(Debug, Clone)]
struct Settings {
    purpose: Purpose,
    policy: String,
    /// Milliseconds and bytes; negative without end.
    retention: (i64, i64),
    /// How many copies have to be there when a message is confirmed.
    in_sync_min: usize,
    has_unclean_leaders: bool,
    partitions: usize,
    /// The fewest copies of a partition.
    replicas: usize,
    brokers: usize,
}

/// What is asked of it.
#[derive(Debug, Clone, Copy)]
struct Asked {
    retention: Duration,
    /// By the URL, or by an ordered group.
    partitions: usize,
}

/// What is wrong with a topic, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Refused(String),
    Told(String),
}

fn findings(topic: &Settings, asked: Asked) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut tell = |is_wrong: bool, what: String| {
        if is_wrong {
            found.push(Finding::Told(what));
        }
    };
    let (time, bytes) = topic.retention;
    let is_short = u128::try_from(time).is_ok_and(|time| time < asked.retention.as_millis());
    let is_limited = time >= 0 || bytes >= 0;
    match topic.purpose {
        Purpose::Letters => tell(
            is_limited,
            "it does not keep dead letters until somebody looks at them: set `retention.ms=-1` and `retention.bytes=-1`"
                .into(),
        ),
        Purpose::Messages => {
            let least = asked.retention.as_millis();
            tell(
                is_short,
                format!(
                    "it keeps messages for {time} ms, and a consumer that is away for longer loses some: set \
                     `retention.ms` to {least} at least, or say with `retention=` in the broker's URL that it is enough"
                ),
            );
            tell(
                bytes >= 0,
                format!(
                    "it keeps {bytes} bytes of a partition, received or not: set `retention.bytes=-1`, and limit it by time"
                ),
            );
        }
        Purpose::Records | Purpose::Answers => {}
    }
    let (replicas, brokers) = (topic.replicas, topic.brokers);
    tell(
        replicas == 1 && brokers >= BROKERS_OF_COPIES,
        format!(
            "it has one copy, on a cluster of {brokers} brokers: what it has is gone with a disk; give it three"
        ),
    );
    tell(
        topic.in_sync_min <= 1 && replicas >= BROKERS_OF_COPIES,
        format!(
            "it has {replicas} copies, and a message may be confirmed when one has it: set `min.insync.replicas=2`"
        ),
    );
    tell(
        topic.has_unclean_leaders,
        "a copy that lacks confirmed messages may become the leader: set `unclean.leader.election.enable=false`".into(),
    );
    tell(
        topic.partitions < asked.partitions,
        format!(
            "it has {} partitions, and {} were asked for: more instances, or partitions of an ordered group, than it \
             has get nothing; add partitions where no order by key matters",
            topic.partitions, asked.partitions
        ),
    );
    if topic.policy.split(',').any(|it| it.trim() == "compact") {
        found.push(Finding::Refused(
            "it is compacted: of messages with one key Kafka keeps the last, whether the others were received or not; set \
             `cleanup.policy=delete`"
                .into(),
        ));
    }
    if topic.purpose == Purpose::Records && is_limited {
        found.push(Finding::Refused(
            "it forgets who subscribes, and what is published then is lost to them: set `retention.ms=-1` and \
             `retention.bytes=-1`"
                .into(),
        ));
    }
    found
}

impl Shared {
    /// Looks at the settings of topics, once at each.
    ///
    /// # Errors
    ///
    /// When one of them cannot keep what is promised.
    pub(crate) async fn check_topics(
        self: &Arc<Self>,
        topology: &Topology,
        names: impl Iterator<Item = &str>,
    ) -> Result<(), TransportError> {
        let checked = self.checked.lock().clone();
        let names = names.chain([bindings::TOPIC]);
        let names: Vec<&str> = names.filter(|name| !checked.contains(*name)).collect();
        let mut refused = None;
        for (name, found) in self.findings_of(topology, names).await? {
            // What is refused is looked at again: somebody may have mended it.
            if !found.iter().any(|it| matches!(it, Finding::Refused(_))) {
                self.checked.lock().insert(name.clone());
            }
            for finding in found {
                match finding {
                    Finding::Told(what) => {
                        warn!(
                            topic = name,
                            "topic `{name}` is there, but {what} (TDG-4016)"
                        );
                    }
                    Finding::Refused(why) => {
                        refused.get_or_insert(format!(
                            "topic `{name}` cannot be used: {why} (TDG-4017)"
                        ));
                    }
                }
            }
        }
        match refused {
            Some(why) => Err(TransportError::fatal(why)),
            None => Ok(()),
        }
    }

    /// What is wrong with each of these topics that is there. Those whose settings cannot be seen are left out.
    pub(crate) async fn findings_of(
        self: &Arc<Self>,
        topology: &Topology,
        names: Vec<&str>,
    ) -> Result<BTreeMap<String, Vec<Finding>>, TransportError> {
        let mut all = BTreeMap::new();
        if names.is_empty() {
            return Ok(all);
        }
        let resources: Vec<_> = names.into_iter().map(ResourceSpecifier::Topic).collect();
        let Some(configs) = self.configs(&resources).await else {
            return Ok(all);
        };
        let copies = self.copies().await?;
        for (name, entries) in configs {
            let Some((partitions, replicas, brokers)) = copies.get(&name).copied() else {
                continue;
            };
            let number = |key| entries.get(key)?.value.as_ref()?.parse::<i64>().ok();
            let text = |key| entries.get(key)?.value.clone();
            let settings = Settings {
                purpose: purpose(topology, &name),
                policy: text("cleanup.policy").unwrap_or_default(),
                retention: (
                    number("retention.ms").unwrap_or(-1),
                    number("retention.bytes").unwrap_or(-1),
                ),
                in_sync_min: number("min.insync.replicas")
                    .and_then(|it| usize::try_from(it).ok())
                    .unwrap_or(usize::MAX),
                has_unclean_leaders: text("unclean.leader.election.enable").as_deref()
                    == Some("true"),
                partitions,
                replicas,
                brokers,
            };
            let found = findings(&settings, self.asked(topology, &name));
            all.insert(name, found);
        }
        Ok(all)
    }

    /// The settings of topics; `None` if they cannot be had. What this user may not see is left out.
    async fn configs(
        &self,
        resources: &[ResourceSpecifier<'_>],
    ) -> Option<BTreeMap<String, HashMap<String, ConfigEntry>>> {
        let options = AdminOptions::new().request_timeout(Some(LOOK_TIMEOUT));
        let mut backoff = Backoff::default();
        for _ in 0..ASKS_MAX {
            let answer = match self.admin.describe_configs(resources, &options).await {
                Ok(answer) => answer,
                Err(error) => {
                    debug!(%error, "the settings of topics cannot be seen yet");
                    backoff.pause().await;
                    continue;
                }
            };
            let mut configs = BTreeMap::new();
            for resource in answer {
                match resource {
                    Ok(resource) => {
                        if let OwnedResourceSpecifier::Topic(name) = resource.specifier {
                            let entries = resource.entries.into_iter();
                            configs.insert(name, entries.map(|it| (it.name.clone(), it)).collect());
                        }
                    }
                    Err(error) => debug!(%error, "the settings of a topic are not checked"),
                }
            }
            return Some(configs);
        }
        warn!("the settings of topics are not checked: Kafka does not tell them");
        None
    }

    /// How many partitions topics have, how many copies these have, and how many brokers there are.
    async fn copies(
        self: &Arc<Self>,
    ) -> Result<BTreeMap<String, (usize, usize, usize)>, TransportError> {
        self.look(|shared| {
            let metadata = shared.looker.fetch_metadata(None, LOOK_TIMEOUT);
            let metadata = metadata.map_err(|error| passing("topics cannot be seen", &error))?;
            let brokers = metadata.brokers().len();
            let topics = metadata.topics().iter().map(|topic| {
                let partitions = topic.partitions();
                let replicas = partitions.iter().map(|it| it.replicas().len()).min();
                let seen = (partitions.len(), replicas.unwrap_or(0), brokers);
                (topic.name().to_owned(), seen)
            });
            Ok(topics.collect())
        })
        .await
    }

    /// What is asked of a topic that somebody made.
    fn asked(&self, topology: &Topology, name: &str) -> Asked {
        let subscribed = topology.queues.iter().flat_map(|queue| &queue.topics);
        let is_shared = subscribed
            .chain(&topology.topics)
            .any(|topic| topic == name);
        let of_url = match self.address.has_partitions && is_shared {
            true => self.address.partitions.into(),
            false => 0,
        };
        let groups = topology.groups.iter();
        let groups = groups.filter(|group| {
            group
                .topics
                .iter()
                .chain(&group.commands)
                .any(|it| it == name)
        });
        let of_group = groups.map(|group| group.partitions.get().into()).max();
        Asked {
            retention: self.address.retention.unwrap_or(RETENTION_MIN),
            partitions: of_group.unwrap_or(0).max(of_url),
        }
    }
}

fn purpose(topology: &Topology, name: &str) -> Purpose {
    let queues = topology.queues.iter();
    let is_letters = queues
        .clone()
        .any(|queue| dead_letter_queue(&queue.name) == name)
        || topology
            .groups
            .iter()
            .any(|group| dead_letter_queue(&group.name) == name);
    match name {
        bindings::TOPIC => Purpose::Records,
        RECORD_QUEUE => Purpose::Letters,
        _ if is_letters => Purpose::Letters,
        _ if queues
            .clone()
            .any(|queue| queue.is_ephemeral && queue.name == name) =>
        {
            Purpose::Answers
        }
        _ => Purpose::Messages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_told_of_when_its_settings_break_a_promise() {
        const DAY: i64 = 24 * 3600 * 1000;
        let good = Settings {
            purpose: Purpose::Messages,
            policy: "delete".into(),
            retention: (7 * DAY, -1),
            in_sync_min: 2,
            has_unclean_leaders: false,
            partitions: 12,
            replicas: 3,
            brokers: 3,
        };
        let check = |change: fn(&mut Settings), refused: &[&str], told: &[&str]| {
            let mut topic = good.clone();
            change(&mut topic);
            let asked = Asked {
                retention: RETENTION_MIN,
                partitions: 12,
            };
            let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
            for finding in findings(&topic, asked) {
                match finding {
                    Finding::Refused(why) => refusals.push(why),
                    Finding::Told(what) => warnings.push(what),
                }
            }
            for (said, words) in [(&refusals, refused), (&warnings, told)] {
                assert_eq!(said.len(), words.len(), "{topic:?}: {said:?}");
                for (said, words) in said.iter().zip(words) {
                    assert!(said.contains(words), "{said}");
                }
            }
        };
        check(|_| (), &[], &[]);
        check(|it| it.retention = (-1, -1), &[], &[]);
        check(
            |it| it.retention.0 = 2 * DAY,
            &[],
            &["`retention.ms` to 259200000"],
        );
        check(
            |it| it.retention.1 = 1 << 30,
            &[],
            &["`retention.bytes=-1`"],
        );
        check(|it| it.policy = "compact".into(), &["compacted"], &[]);
        check(
            |it| it.policy = "delete, compact".into(),
            &["compacted"],
            &[],
        );
        check(|it| it.replicas = 1, &[], &["one copy"]);
        check(|it| it.in_sync_min = 1, &[], &["`min.insync.replicas=2`"]);
        check(|it| it.has_unclean_leaders = true, &[], &["`unclean."]);
        check(|it| it.partitions = 6, &[], &["6 partitions, and 12"]);
        // On one node, one copy is all there can be.
        let alone: fn(&mut Settings) = |it| (it.replicas, it.brokers, it.in_sync_min) = (1, 1, 1);
        check(alone, &[], &[]);
        check(|it| it.purpose = Purpose::Letters, &[], &["dead letters"]);
        check(|it| it.purpose = Purpose::Records, &["who subscribes"], &[]);
        check(
            |it| (it.purpose, it.retention.0) = (Purpose::Answers, 1000),
            &[],
            &[],
        );
    }
}
