//! What librdkafka calls while it is asked: partitions come and go. And commits, which go beside that.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tracing::{debug, info, warn};

use super::{AGAIN_AFTER, LOOK_TIMEOUT, Member, Shape, list_of, list_of_places};
use crate::{bindings::Wanted, client, intake::Place, window::Progress};

/// Commits how far `places` are (all, if `None`), which go elsewhere, and waits for the answer. False if it has to be
/// tried again.
pub(super) fn commit_last<C: ConsumerContext>(
    member: &Member,
    consumer: &BaseConsumer<C>,
    places: Option<&HashSet<Place>>,
) -> bool {
    let due = member.intake.last_commits_due(places);
    if due.is_empty() || member.status.is_down() {
        return true;
    }
    match list_of(&due).and_then(|list| consumer.commit(&list, CommitMode::Sync)) {
        Ok(()) => {
            debug!(queue = %member.intake.queue, ?due, "committed what goes elsewhere");
            member.committed(due);
            true
        }
        // What is not committed comes again.
        Err(error) => {
            info!(queue = %member.intake.queue, %error, "what was settled is not committed yet");
            false
        }
    }
}

/// The context of the consumer.
pub(super) struct Hooks {
    member: Arc<Member>,
    /// What a partition of a group has assigned to itself.
    share: Mutex<HashSet<Place>>,
    /// A commit is on its way.
    pub(super) is_committing: AtomicBool,
    /// When the last one failed.
    failed_at: Mutex<Option<Instant>>,
}

impl ClientContext for Hooks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::told(&self.member.status, &error, reason);
    }
}

impl ConsumerContext for Hooks {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let is_assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        self.member.intake.joined();
        let done = match (&self.member.shape, is_assigned) {
            (Shape::Whole, true) => self.assigned(consumer, list),
            (Shape::Whole, false) => {
                let places = places_of(list);
                self.revoked(consumer, &places);
                consumer.incremental_unassign(list)
            }
            // It was told of others, and waits on or goes on.
            (Shape::Share { .. }, true) if list.count() == 0 => consumer.incremental_assign(list),
            (Shape::Share { .. }, true) => self.assign_share(consumer),
            (Shape::Share { .. }, false) => {
                let places = std::mem::take(&mut *self.share.lock());
                self.revoked(consumer, &places);
                consumer.incremental_unassign(&list_of_places(&places))
            }
        };
        if let Err(error) = done {
            warn!(queue = %self.member.intake.queue, %error, "partitions cannot change hands");
        }
    }
}

impl Hooks {
    pub(super) fn new(member: &Arc<Member>) -> Self {
        Self {
            member: Arc::clone(member),
            share: Mutex::default(),
            is_committing: AtomicBool::new(false),
            failed_at: Mutex::default(),
        }
    }

    /// Commits what is due, and again while leases run out meanwhile. It may take as long as a session: while members come
    /// and go, the brokers answer when they have.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>) {
        while self.commit_once(consumer) && self.member.intake.wants_lease() {}
        self.is_committing.store(false, Ordering::Release);
    }

    /// False if it failed.
    fn commit_once(&self, consumer: &BaseConsumer<Self>) -> bool {
        let intake = &self.member.intake;
        let due = intake.commits_due();
        let committed = match due.is_empty() {
            true => Ok(()),
            false => list_of(&due).and_then(|list| consumer.commit(&list, CommitMode::Sync)),
        };
        let failed = committed.err();
        match &failed {
            None => self.member.committed(due),
            Some(error) => debug!(queue = %intake.queue, %error, "not committed yet"),
        }
        *self.failed_at.lock() = failed.as_ref().map(|_| Instant::now());
        failed.is_none()
    }

    /// True if a commit is on its way, or has failed just now.
    pub(super) fn is_busy_committing(&self) -> bool {
        let failed_at = *self.failed_at.lock();
        self.is_committing.load(Ordering::Acquire)
            || failed_at.is_some_and(|at| at.elapsed() < AGAIN_AFTER)
    }

    /// Partitions came: begins with each where the consumer before ended.
    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
    ) -> KafkaResult<()> {
        let begins = self.begin(consumer, list);
        for (place, position, ..) in &begins {
            list.set_partition_offset(&place.0, place.1, Offset::Offset(*position))?;
        }
        self.member.intake.assign(begins);
        // One that rested when it went would rest when it comes back. It fails for those that were not here before.
        let _ = consumer.resume(list);
        consumer.incremental_assign(list)
    }

    /// Asks until there is an answer: without one nobody knows where to begin.
    fn begin(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Vec<(Place, i64, Progress, Wanted)> {
        let member = &self.member;
        loop {
            match member.begin(consumer, list) {
                Ok(begins) => return begins,
                Err(error) => {
                    debug!(queue = %member.intake.queue, %error, "cannot see where to begin yet");
                }
            }
            if member.intake.is_done(member.handover_timeout) || consumer.assignment_lost() {
                return Vec::new();
            }
            std::thread::sleep(AGAIN_AFTER);
        }
    }

    /// Partitions are to go: lets what is out of them end, for a while, and says how far they are.
    fn revoked(&self, consumer: &BaseConsumer<Self>, places: &HashSet<Place>) {
        let member = &self.member;
        debug!(queue = %member.intake.queue, ?places, "partitions are to go");
        if consumer.assignment_lost() {
            // Somebody else has them already.
            info!(queue = %member.intake.queue, partitions = places.len(), "partitions were lost");
        } else {
            let deadline = Instant::now() + member.handover_timeout;
            member.intake.drain(places, deadline);
            commit_last(member, consumer, Some(places));
        }
        member.intake.unassign(places);
    }

    /// Takes the share of the group's topics that goes with the partition of the group.
    pub(super) fn assign_share(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let wanted = loop {
            match self.share(consumer) {
                Ok(wanted) => break wanted,
                Err(error) => {
                    debug!(queue = %self.member.intake.queue, %error, "cannot see the group's topics yet");
                }
            }
            if self.member.intake.is_done(self.member.handover_timeout)
                || consumer.assignment_lost()
            {
                return Ok(());
            }
            std::thread::sleep(AGAIN_AFTER);
        };
        self.take_share(consumer, wanted)
    }

    /// Takes what was added to the topics of the group. What seems to be gone stays: brokers that start know little.
    pub(super) fn extend_share(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let wanted = self.share(consumer)?;
        let had = self.share.lock().clone();
        match had.is_subset(&wanted) && had.len() < wanted.len() {
            true => self.take_share(consumer, wanted),
            false => Ok(()),
        }
    }

    fn take_share(&self, consumer: &BaseConsumer<Self>, wanted: HashSet<Place>) -> KafkaResult<()> {
        let had = self.share.lock().clone();
        let mut new = list_of_places(wanted.difference(&had));
        let gone: HashSet<Place> = had.difference(&wanted).cloned().collect();
        if !gone.is_empty() {
            self.revoked(consumer, &gone);
            consumer.incremental_unassign(&list_of_places(&gone))?;
        }
        *self.share.lock() = wanted;
        self.assigned(consumer, &mut new)
    }

    fn share(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<HashSet<Place>> {
        let Shape::Share { of, .. } = &self.member.shape else {
            return Ok(HashSet::new());
        };
        let own = &*self.member.intake.queue;
        let mut places = HashSet::from([(Arc::from(own), 0)]);
        let Some((number, count)) = *of else {
            return Ok(places);
        };
        for topic in self
            .member
            .topics()
            .into_keys()
            .filter(|topic| topic != own)
        {
            let metadata = consumer.fetch_metadata(Some(&topic), LOOK_TIMEOUT)?;
            let partitions = metadata
                .topics()
                .iter()
                .map(|topic| topic.partitions().len());
            let partitions = partitions.max().unwrap_or(0) as i32;
            let name = Arc::<str>::from(topic);
            let share = (0..partitions).filter(|partition| partition % count == number);
            places.extend(share.map(|partition| (Arc::clone(&name), partition)));
        }
        Ok(places)
    }
}

fn places_of(list: &TopicPartitionList) -> HashSet<Place> {
    let elements = list.elements();
    let places = elements
        .iter()
        .map(|it| (it.topic().into(), it.partition()));
    places.collect()
}
