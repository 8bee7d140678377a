//! The thread that is a queue's member of its consumer group: it fetches, commits, and lets partitions come and go.
//!
//! librdkafka wants to be asked all the time, and tells of partitions that come and go only while it is asked. So
//! nothing here waits for a handler, except a partition that is to go elsewhere, for a bounded time. Looking up
//! offsets blocks this thread alone, and a second one commits; handlers go on with what is in the
//! [intake](crate::intake).
//!
//! A queue is a topic of its own, for what is sent to it by name, and the topics that it subscribes to. Its members
//! share the partitions of all of them.
//!
//! A partition of an ordered group is received as a whole by one member. Its own topic has a single partition, and
//! the member that is assigned this one, and only that, receives the share of the group's topics that goes with
//! it: partition `k` of each belongs to partition `k mod n` of the group.

mod hooks;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};
use tidings_adapter::Standing;

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode,
};
use tracing::{debug, error, warn};

use crate::{
    bindings::{self, Bindings, Change, Wanted},
    client,
    intake::{Assigned, Commit, Fetched, Intake, Place},
    message,
    ranges::Ranges,
    window::Progress,
};

use hooks::{Hooks, commit_last};

/// How often what was settled is committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long to ask for messages, when there are none and when some partition rests.
const POLL: Duration = Duration::from_millis(50);
const POLL_SOON: Duration = Duration::from_millis(5);
/// How long nothing is asked for while handlers catch up, before partitions rest. Long enough for handlers that are quick,
/// and no time for who waits to be told of partitions that come and go.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often leases are seen to meanwhile.
const ROOM_WAIT: Duration = Duration::from_millis(2);
/// How many messages are taken over at once.
const BATCH_MAX: usize = 500;
/// How long a look at offsets may take before it is tried again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member that is to leave may take to join.
const JOIN_MAX: Duration = Duration::from_secs(10);
/// How long a member that leaves tries to say how far it is. A member that died while it joined holds the group up
/// for as long as a session lasts.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(60);
/// How long to wait until what failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a queue is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Its own topic, and what it subscribes to.
    Whole,
    /// Partition `of.0` of `of.1` of a group, or what goes to none (`of` is `None`), whose subscriptions are those
    /// of the name `group`.
    Share {
        group: String,
        of: Option<(i32, i32)>,
    },
}

/// A member of a queue's group.
pub(crate) struct Member {
    pub(crate) intake: Arc<Intake>,
    pub(crate) bindings: Arc<Bindings>,
    pub(crate) status: Arc<Standing>,
    pub(crate) shape: Shape,
    pub(crate) handover_timeout: Duration,
    /// How soon a partition that was added is noticed.
    pub(crate) metadata_max_age: Duration,
    /// Writes to the topic of subscriptions, in the background.
    pub(crate) record: Box<dyn Fn(Change) + Send + Sync>,
    /// What was written that way.
    pub(crate) recorded: Mutex<HashSet<Place>>,
}

/// Receives for `member` until nobody needs it. For a thread of its own.
pub(crate) fn run(member: Member, config: ClientConfig) {
    let intake = Arc::clone(&member.intake);
    let context = Arc::new(member);
    let consumer = config.create_with_context::<_, BaseConsumer<Hooks>>(Hooks::new(&context));
    match consumer {
        Ok(consumer) => {
            std::thread::scope(|scope| {
                let (commits, wanted) = mpsc::sync_channel::<()>(1);
                let consumer = &consumer;
                scope.spawn(move || {
                    wanted
                        .iter()
                        .for_each(|()| consumer.context().commit(consumer))
                });
                Polling::new(&context, consumer, commits).run();
            });
            // Leaves the group, and commits what it must: see `rebalance`.
            drop(consumer);
        }
        Err(error) => intake.fail(format!("`{}` cannot be received: {error}", intake.queue)),
    }
    intake.over();
    intake.left();
}

struct Polling<'a> {
    member: &'a Member,
    consumer: &'a BaseConsumer<Hooks>,
    resting: HashSet<Assigned>,
    subscribed: Vec<String>,
    version: Option<u64>,
    commit_at: Instant,
    commits: mpsc::SyncSender<()>,
    /// When to see again which partitions there are.
    look_at: Instant,
}

impl<'a> Polling<'a> {
    fn new(
        member: &'a Member,
        consumer: &'a BaseConsumer<Hooks>,
        commits: mpsc::SyncSender<()>,
    ) -> Self {
        Self {
            member,
            consumer,
            resting: HashSet::new(),
            subscribed: Vec::new(),
            version: None,
            commit_at: Instant::now() + COMMIT_EVERY,
            commits,
            look_at: Instant::now() + member.metadata_max_age,
        }
    }

    fn run(mut self) {
        let member = self.member;
        while !member.intake.is_done(member.handover_timeout) {
            self.follow_subscriptions();
            self.follow_partitions();
            self.fetch();
            self.commit();
            member.intake.stop_waiting();
            self.wait_for_room();
            self.rest();
        }
        self.join_first();
        self.commit_last();
    }

    /// A member that goes while it joins is waited for by all others until its session is over: it joins, and then
    /// leaves.
    fn join_first(&mut self) {
        let deadline = Instant::now() + JOIN_MAX;
        while !self.member.intake.has_joined()
            && !self.member.status.is_down()
            && Instant::now() < deadline
        {
            drop(self.consumer.poll(POLL_SOON));
        }
    }

    /// Says how far it is, before it leaves. While members come and go, the group takes no commit; then it asks
    /// again, and goes through that like the others.
    fn commit_last(&mut self) {
        let deadline = Instant::now() + LAST_COMMIT_MAX;
        while !commit_last(self.member, self.consumer, None) && Instant::now() < deadline {
            // What comes now stays for the next member.
            drop(self.consumer.poll(POLL_SOON));
        }
    }

    /// Joins with the topics of the queue, and again when they have changed.
    fn follow_subscriptions(&mut self) {
        let member = self.member;
        let version = member.bindings.version();
        if self.version == Some(version) {
            return;
        }
        self.version = Some(version);
        member.intake.want(|topic| member.wanted(topic));
        let topics = match member.shape {
            Shape::Whole => member.topics().into_keys().collect(),
            Shape::Share { .. } => vec![member.intake.queue.to_string()],
        };
        if topics != self.subscribed {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            if let Err(error) = self.consumer.subscribe(&names) {
                let queue = &member.intake.queue;
                return member
                    .intake
                    .fail(format!("`{queue}` cannot be received: {error}"));
            }
            self.subscribed = topics;
        } else if let Shape::Share { .. } = member.shape
            && !member.intake.assigned().is_empty()
        {
            // The share may have become another one.
            if let Err(error) = self.consumer.context().assign_share(self.consumer) {
                warn!(queue = %member.intake.queue, %error, "a partition cannot change its share");
            }
        }
    }

    /// Takes partitions that were added to the topics of a group. (librdkafka sees to those of a queue.)
    fn follow_partitions(&mut self) {
        let member = self.member;
        if member.shape == Shape::Whole || Instant::now() < self.look_at {
            return;
        }
        self.look_at = Instant::now() + member.metadata_max_age;
        if !member.status.is_down()
            && !member.intake.assigned().is_empty()
            && let Err(error) = self.consumer.context().extend_share(self.consumer)
        {
            debug!(queue = %member.intake.queue, %error, "cannot see whether partitions were added");
        }
    }

    /// Takes over what is there, at once: what came together is seen together.
    fn fetch(&mut self) {
        let mut fetched = Vec::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut wait = if self.resting.is_empty() {
            POLL
        } else {
            POLL_SOON
        };
        while fetched.len() < BATCH_MAX {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(record)) => {
                    let topic = record.topic();
                    let known = names.iter().find(|name| ***name == *topic).cloned();
                    let name = known.unwrap_or_else(|| {
                        let name = Arc::<str>::from(topic);
                        names.push(Arc::clone(&name));
                        name
                    });
                    let received = message::read(&record);
                    fetched.push(Fetched {
                        place: (name, record.partition()),
                        offset: record.offset(),
                        envelope: Arc::new(received.envelope),
                        history: received.history,
                        failures: received.failures,
                    });
                }
                Some(Err(error)) => self.failed(&error),
            }
            wait = Duration::ZERO;
        }
        if !fetched.is_empty() {
            self.member.status.answered();
            self.know_what_is_wanted(&fetched);
            self.member.intake.put(fetched);
        }
    }

    /// What is not wanted is passed over for good. So it has to be sure that the queue has not just come back to
    /// the topic: whoever declared that may have published since.
    fn know_what_is_wanted(&mut self, fetched: &[Fetched]) {
        let member = self.member;
        self.follow_subscriptions();
        while !member.intake.wants_all(fetched) {
            let end = self
                .consumer
                .fetch_watermarks(bindings::TOPIC, 0, LOOK_TIMEOUT);
            let is_known = end.is_ok_and(|(_, end)| member.bindings.has_read_until(end));
            self.follow_subscriptions();
            if is_known || member.intake.is_done(member.handover_timeout) {
                break;
            }
            std::thread::sleep(POLL_SOON);
        }
    }

    fn failed(&self, error: &KafkaError) {
        let queue = &self.member.intake.queue;
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.seek_what_is_there();
            }
            Some(code) if client::is_refusal(code) => self.member.intake.fail(format!(
                "`{queue}` cannot be received: the user of the broker's URL may not ({error}); allow it to read the \
                 queue's topics and its group `{queue}` (TDG-4015)"
            )),
            Some(RDKafkaErrorCode::AllBrokersDown) => {}
            _ => debug!(%queue, %error, "told while receiving"),
        }
    }

    /// Messages expired before they were received: goes on with the first that is left.
    fn seek_what_is_there(&self) {
        for place in self.member.intake.assigned() {
            let (topic, partition) = (&*place.0, place.1);
            let Some(position) = self.member.intake.position(&place) else {
                continue;
            };
            let looked = self
                .consumer
                .fetch_watermarks(topic, partition, LOOK_TIMEOUT);
            let Ok((first, end)) = looked else { continue };
            if (first..=end).contains(&position) {
                continue;
            }
            say_lost(&self.member.intake.queue, &place, position, first);
            let mut list = TopicPartitionList::new();
            let sought = list.add_partition_offset(topic, partition, Offset::Offset(first));
            let sought = sought.and_then(|()| self.consumer.incremental_unassign(&list));
            if let Err(error) = sought.and_then(|()| self.consumer.incremental_assign(&list)) {
                warn!(topic, partition, %error, "cannot go on behind what expired");
            }
        }
    }

    /// Has what was settled committed once a second, and leases at once when something waits for that. It does
    /// not wait for it.
    fn commit(&mut self) {
        let hooks = self.consumer.context();
        let now = Instant::now();
        let is_due = now >= self.commit_at || self.member.intake.wants_lease();
        if is_due && !hooks.is_busy_committing() {
            self.commit_at = now + COMMIT_EVERY;
            hooks.is_committing.store(true, Ordering::Release);
            // There is room for one, and it was taken.
            let _ = self.commits.try_send(());
        }
    }

    /// Asks for nothing while handlers catch up. A partition that rests loses what librdkafka has fetched ahead of it, and
    /// quick handlers would wait for that again and again.
    fn wait_for_room(&mut self) {
        let member = self.member;
        let until = Instant::now() + PATIENCE;
        while self.resting.is_empty()
            && member.intake.is_full()
            && Instant::now() < until
            && !member.intake.is_done(member.handover_timeout)
        {
            self.commit();
            member.intake.stop_waiting();
            member.intake.wait_for_room(ROOM_WAIT);
        }
    }

    /// Stops fetching where enough waits, and goes on where there is room.
    fn rest(&mut self) {
        let to_rest = self.member.intake.to_rest(&self.resting);
        if to_rest == self.resting {
            return;
        }
        let assigned: HashSet<Place> = self.member.intake.assigned().into_iter().collect();
        let goes_on = self.resting.difference(&to_rest).map(|(place, _)| place);
        let goes_on = list_of_places(goes_on.filter(|place| assigned.contains(*place)));
        if goes_on.count() > 0 {
            // It fails for what has just gone elsewhere, and nothing rests on that.
            let _ = self.consumer.resume(&goes_on);
        }
        let rests = to_rest.difference(&self.resting);
        let rests = list_of_places(rests.map(|(place, _)| place));
        if rests.count() > 0 {
            let (queue, partitions) = (&self.member.intake.queue, rests.count());
            debug!(%queue, partitions, "partitions rest: handlers have enough to do");
            let _ = self.consumer.pause(&rests);
        }
        self.resting = to_rest;
    }
}

fn say_lost(queue: &str, (topic, partition): &Place, position: i64, first: i64) {
    if position < first {
        let lost = first - position;
        error!(
            queue,
            topic = &**topic,
            partition,
            lost,
            "messages expired before they were received: give the topic a longer retention (TDG-4010)"
        );
    } else {
        warn!(
            queue,
            topic = &**topic,
            partition,
            position,
            "the topic was made anew: receiving it from its beginning"
        );
    }
}

fn say_expired(queue: &str, (topic, partition): &Place, position: i64, end: i64) {
    if position < end {
        error!(
            queue,
            topic = &**topic,
            partition,
            position,
            end,
            "the committed offset of the queue is gone: receiving again what is there since it subscribed, as \
             delivered before (TDG-4012)"
        );
    }
}

fn list_of(commits: &[Commit]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for commit in commits {
        let mut element = list.add_partition(&commit.place.0, commit.place.1);
        element.set_offset(Offset::Offset(commit.watermark))?;
        element.set_metadata(&commit.text);
    }
    Ok(list)
}

fn list_of_places<'a>(places: impl IntoIterator<Item = &'a Place>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in places {
        list.add_partition(topic, *partition);
    }
    list
}

impl Member {
    /// The topics of the queue, with what is wanted of each.
    fn topics(&self) -> BTreeMap<String, Wanted> {
        let queue = &*self.intake.queue;
        let mut topics = match &self.shape {
            Shape::Whole => self.bindings.of_queue(queue),
            Shape::Share { group, of: Some(_) } => self.bindings.of_queue(group),
            Shape::Share { of: None, .. } => BTreeMap::new(),
        };
        topics.insert(queue.to_owned(), Wanted::everything());
        topics
    }

    fn wanted(&self, topic: &str) -> Wanted {
        self.topics().remove(topic).unwrap_or_default()
    }

    /// Where to begin with each partition of `list`, and what to tell librdkafka about it.
    fn begin(
        &self,
        consumer: &BaseConsumer<Hooks>,
        list: &TopicPartitionList,
    ) -> KafkaResult<Vec<(Place, i64, Progress, Wanted)>> {
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let committed = consumer.committed_offsets(list.clone(), LOOK_TIMEOUT)?;
        let mut first = list.clone();
        first.set_all_offsets(Offset::Beginning)?;
        let first = consumer.offsets_for_times(first, LOOK_TIMEOUT)?;
        let expired = self.expired(consumer, &committed)?;
        let topics = self.topics();
        let mut begins = Vec::new();
        for element in committed.elements() {
            element.error()?;
            let place: Place = (element.topic().into(), element.partition());
            let wanted = topics.get(element.topic()).cloned().unwrap_or_default();
            let (mut position, mut before) = (wanted.first(place.1), Progress::default());
            if let Offset::Offset(offset) = element.offset() {
                position = position.max(offset);
                before = Progress::parse(offset, element.metadata());
            }
            let end = expired.find_partition(&place.0, place.1);
            if let Some(Offset::Offset(end)) = end.map(|end| end.offset()) {
                before.handed_out = end;
                say_expired(&self.intake.queue, &place, position, end);
            }
            let mut removed = Ranges::default();
            if *place.0 == *self.intake.queue {
                removed = self.bindings.removed(&self.intake.queue);
                let gone = removed.clone().with(before.settled);
                before.settled = gone.iter().collect();
            }
            let left = first.find_partition(&place.0, place.1);
            if let Some(Offset::Offset(left)) = left.map(|left| left.offset())
                && position < left
            {
                // What was taken out is deleted when nothing is before it.
                let is_lost = removed.count(position, left) < left - position;
                if is_lost && matches!(element.offset(), Offset::Offset(_)) {
                    say_lost(&self.intake.queue, &place, position, left);
                }
                position = left;
            }
            debug!(queue = %self.intake.queue, ?place, position, ?before, "begins");
            begins.push((place, position, before, wanted));
        }
        Ok(begins)
    }

    /// Of what there was a committed offset once and is none now, with the ends of these partitions.
    fn expired(
        &self,
        consumer: &BaseConsumer<Hooks>,
        committed: &TopicPartitionList,
    ) -> KafkaResult<TopicPartitionList> {
        let queue = &self.intake.queue;
        let mut expired = TopicPartitionList::new();
        for element in committed.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            if !matches!(element.offset(), Offset::Offset(_))
                && self.bindings.has_committed(queue, topic, partition)
            {
                expired.add_partition_offset(topic, partition, Offset::End)?;
            }
        }
        match expired.count() {
            0 => Ok(expired),
            _ => consumer.offsets_for_times(expired, LOOK_TIMEOUT),
        }
    }

    /// These were committed: what they lease may be handed out, and that there was an offset is written down once.
    fn committed(&self, commits: Vec<Commit>) {
        let queue = &self.intake.queue;
        let mut new: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for Commit { place, .. } in &commits {
            let is_known = self.bindings.has_committed(queue, &place.0, place.1);
            if !is_known && self.recorded.lock().insert(place.clone()) {
                new.entry(place.0.to_string()).or_default().insert(place.1);
            }
        }
        for (topic, partitions) in new {
            (self.record)(Change::Committed {
                queue: queue.to_string(),
                topic,
                partitions,
            });
        }
        self.intake.committed(commits);
    }
}
