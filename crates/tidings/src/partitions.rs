//! Sharing the partitions of an ordered group among the instances of a service.
//!
//! There is no leader. One record per group, in the consumer's store, says which instances there are
//! and which partition belongs to whom. Every instance looks at it once a second, says that it lives,
//! takes what is free up to its share, and gives up what is beyond it: it stops receiving, finishes
//! what runs, and only then writes that the partition is free. An instance whose beat does not change
//! for [`LEASE`], by the observer's own clock, is dead, and its partitions are free; one that could
//! not write its beat for so long stops receiving by itself. No clocks of machines are compared.
//!
//! That one instance at a time receives a partition is also what the broker guards (a single active
//! consumer), and that no message is handled twice or before an earlier one of its key is what the
//! inbox guards: a paused process that wakes up late changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    BoxError, Commit, Expected, Group, RecordChange, RecordId, RecordQuery, RecordValue, Store,
    StoreError, Transport, TransportError, handling::Handling, ordered::Partition,
    throttle::Throttle,
};

/// The kind of the records; their ids are groups' names.
const KIND: &str = "tidings.group";
/// How often an instance says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long an instance that says nothing keeps its partitions.
const LEASE: Duration = Duration::from_secs(5);
/// How often a beat is written again when another instance was faster.
const BEAT_ATTEMPTS_MAX: u32 = 20;

/// What the record says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Shares {
    /// How many partitions the group has.
    partitions: u16,
    /// The instances, with a number that grows while they live.
    instances: BTreeMap<String, u64>,
    /// Queues with the instances that receive them.
    owners: BTreeMap<String, String>,
}

/// The ordered groups that consumers with this database share among their instances, at most `limit`.
///
/// # Errors
///
/// When the database does not answer.
pub async fn ordered_groups(store: &dyn Store, limit: usize) -> Result<Vec<Box<str>>, StoreError> {
    let query = RecordQuery {
        kind: KIND.into(),
        limit,
        ..RecordQuery::default()
    };
    let found = store.records().list(&query).await?;
    Ok(found.into_iter().map(|record| record.id.id).collect())
}

/// The share of one instance in one group.
pub(crate) struct Share {
    instance: String,
    group: Group,
    store: Arc<dyn Store>,
    transport: Arc<dyn Transport>,
    handlings: Arc<[Arc<Handling>]>,
    prefetch: NonZeroU16,
    /// The last beat of each other instance, and when it was first seen.
    seen: HashMap<String, (u64, Instant)>,
    beaten_at: Instant,
    /// The partitions it receives, each with what stops it.
    running: HashMap<String, CancellationToken>,
    tasks: JoinSet<(String, Result<(), TransportError>)>,
    trouble: Throttle,
}

impl Share {
    pub(crate) fn new(
        instance: &str,
        group: Group,
        store: Arc<dyn Store>,
        transport: Arc<dyn Transport>,
        handlings: Vec<Arc<Handling>>,
        prefetch: NonZeroU16,
    ) -> Self {
        Self {
            instance: instance.to_owned(),
            group,
            store,
            transport,
            handlings: handlings.into(),
            prefetch,
            seen: HashMap::new(),
            beaten_at: Instant::now(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            trouble: Throttle::new(Duration::from_secs(5)),
        }
    }

    /// Receives its share until `stop`; then finishes what runs and leaves.
    ///
    /// # Errors
    ///
    /// When the group has another number of partitions, or a subscription ended by itself.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), BoxError> {
        let mut tick = interval(BEAT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((queue, Ok(()))) => drop(self.running.remove(&queue)),
                    Ok((_, Err(error))) => break Err(error.into()),
                    Err(error) => break Err(error.into()),
                },
                _ = tick.tick() => if let Err(error) = self.beat(false).await {
                    break Err(error);
                },
            }
        };
        for stop in self.running.values() {
            stop.cancel();
        }
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok((queue, _)) = ended {
                self.running.remove(&queue);
            }
        }
        // Otherwise its partitions are free when its lease ends.
        if let Err(error) = self.beat(true).await {
            debug!(group = %self.group.name, "did not leave in good order: {error}");
        }
        outcome
    }

    /// Says that it lives, and takes and gives up partitions; or leaves.
    async fn beat(&mut self, is_leaving: bool) -> Result<(), BoxError> {
        for attempt in 1..=BEAT_ATTEMPTS_MAX {
            match self.write_beat(is_leaving).await {
                Ok(shares) => {
                    self.beaten_at = Instant::now();
                    if !is_leaving {
                        self.follow(&shares);
                    }
                    return Ok(());
                }
                Err(BeatError::Fatal(error)) => return Err(error),
                Err(BeatError::Store(error)) if error.is_conflict() => {
                    sleep(Duration::from_millis(u64::from(attempt) * 3)).await;
                }
                Err(BeatError::Store(error)) => {
                    if self.trouble.allows() {
                        warn!(group = %self.group.name, "cannot keep its partitions: {error}");
                    }
                    break;
                }
            }
        }
        if self.beaten_at.elapsed() > LEASE {
            for stop in self.running.values() {
                stop.cancel(); // Others may have them by now.
            }
        }
        Ok(())
    }

    async fn write_beat(&mut self, is_leaving: bool) -> Result<Shares, BeatError> {
        let id = RecordId::new(KIND, &*self.group.name);
        let records = self.store.records().read(std::slice::from_ref(&id)).await?;
        let record = records.into_iter().next().flatten();
        let mut shares = match &record {
            None => Shares {
                partitions: self.group.partitions.get(),
                ..Shares::default()
            },
            Some(record) => serde_json::from_slice(&record.value.body).map_err(|error| {
                let name = &self.group.name;
                BeatError::Fatal(
                    format!("the record of the ordered group `{name}` cannot be read: {error}")
                        .into(),
                )
            })?,
        };
        if shares.partitions != self.group.partitions.get() {
            return Err(BeatError::Fatal(
                format!(
                    "the ordered group `{}` has {} partitions, and this instance asks for {}; a \
                     change would let messages of one key overtake each other: start it with \
                     `.ordered({})`, or give the consumer another name",
                    self.group.name, shares.partitions, self.group.partitions, shares.partitions
                )
                .into(),
            ));
        }
        if self.beaten_at.elapsed() > LEASE && shares.instances.remove(&self.instance).is_some() {
            // It slept: whatever it had may belong to others, and what it runs is being stopped.
            shares
                .owners
                .retain(|queue, owner| *owner != self.instance || self.running.contains_key(queue));
        }
        self.forget_the_dead(&mut shares);
        if is_leaving {
            shares.instances.remove(&self.instance);
            shares.owners.retain(|_, owner| *owner != self.instance);
        } else {
            *shares.instances.entry(self.instance.clone()).or_default() += 1;
            self.take_share(&mut shares);
        }
        let body = serde_json::to_vec(&shares).map_err(|error| BeatError::Fatal(error.into()))?;
        let expected = record.map_or(Expected::Nothing, |it| Expected::Version(it.version));
        let commit = Commit::from(RecordChange {
            id,
            expected,
            value: Some(RecordValue {
                body: body.into(),
                ..RecordValue::default()
            }),
        });
        self.store.commit(commit).await?;
        Ok(shares)
    }

    fn forget_the_dead(&mut self, shares: &mut Shares) {
        let now = Instant::now();
        let (seen, own) = (&mut self.seen, &self.instance);
        shares.instances.retain(|instance, beat| {
            let (last, since) = seen.entry(instance.clone()).or_insert((*beat, now));
            if *last != *beat {
                (*last, *since) = (*beat, now);
            }
            instance == own || now.duration_since(*since) <= LEASE
        });
        seen.retain(|instance, _| shares.instances.contains_key(instance));
        let instances = &shares.instances;
        shares
            .owners
            .retain(|_, owner| instances.contains_key(owner));
    }

    /// Takes free partitions up to its share, and writes down which of its own it has left.
    fn take_share(&self, shares: &mut Shares) {
        let queues = self.queues();
        let fair = queues.len().div_ceil(shares.instances.len().max(1));
        let is_own = |owner: &String| *owner == self.instance;
        // What was taken and left again: its task is gone.
        let stopping = |queue: &String| self.running.get(queue).is_some_and(|it| it.is_cancelled());
        let mut own = shares.owners.values().filter(|owner| is_own(owner)).count();
        if own > fair {
            let left: Vec<String> = shares
                .owners
                .iter()
                .filter(|(queue, owner)| is_own(owner) && !self.running.contains_key(*queue))
                .map(|(queue, _)| queue.clone())
                .take(own - fair)
                .collect();
            for queue in left {
                shares.owners.remove(&queue);
                own -= 1;
            }
        }
        for queue in queues {
            if own < fair && !shares.owners.contains_key(&queue) && !stopping(&queue) {
                shares.owners.insert(queue, self.instance.clone());
                own += 1;
            }
        }
    }

    fn queues(&self) -> Vec<String> {
        let partitions = 0..self.group.partitions.get();
        let partitions = partitions.map(|partition| self.group.partition(partition));
        partitions.chain([self.group.any()]).collect()
    }

    /// Starts what it took, and stops what is beyond its share or no longer its own.
    fn follow(&mut self, shares: &Shares) {
        let is_own = |queue: &String| shares.owners.get(queue) == Some(&self.instance);
        let fair = self.queues().len().div_ceil(shares.instances.len().max(1));
        let own: Vec<String> = shares
            .owners
            .keys()
            .filter(|it| is_own(it))
            .cloned()
            .collect();
        for (queue, stop) in &self.running {
            if !is_own(queue) {
                stop.cancel();
            }
        }
        for queue in own.iter().skip(fair) {
            if let Some(stop) = self.running.get(queue) {
                stop.cancel(); // It is written down as free once nothing of it runs.
            }
        }
        for queue in own.into_iter().take(fair) {
            if self.running.contains_key(&queue) {
                continue;
            }
            info!(queue, "receiving a partition");
            let stop = CancellationToken::new();
            let partition = Partition {
                queue: queue.clone(),
                handlings: Arc::clone(&self.handlings),
                transport: Arc::clone(&self.transport),
                prefetch: self.prefetch,
            };
            self.running.insert(queue.clone(), stop.clone());
            self.tasks.spawn(async move {
                let ended = partition.run(stop).await;
                (queue, ended)
            });
        }
    }
}

enum BeatError {
    /// It cannot go on.
    Fatal(BoxError),
    Store(StoreError),
}

impl From<StoreError> for BeatError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
