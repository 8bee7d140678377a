//! Queues and who holds what: the state behind every connection. No waiting happens here.

mod letters;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tidings_core::{
    Attempt, Destination, Envelope, FAILURES_HEADER, Group, HISTORY_HEADER, Outgoing, PublishError,
    PublishErrorKind, QUEUE_HEADER, REASON_HEADER, SLOT_COUNT, Settlement, Topology,
    TransportError, dead_letter_queue, slot_of,
};
use tokio::{sync::Notify, time::Instant};

/// How many messages a queue holds before it refuses more, unless it was given another limit.
const QUEUE_MESSAGES_MAX: usize = 1_000_000;

/// A message in a queue.
///
/// A dead letter looks the same whether a settlement made it or a consumer with a store published
/// it ([`tidings_core::dead_letter`]): what the headers of the latter say is in the fields here,
/// not in the envelope.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stored {
    /// Metadata and body.
    pub envelope: Envelope,
    /// The deliveries that failed, oldest first (the first and the latest nine).
    pub history: Vec<Attempt>,
    /// How many deliveries failed.
    pub failures: u32,
    /// Why it is a dead letter, if it is one.
    pub reason: Option<Box<str>>,
    /// Which queue it was in before it became a dead letter, if it is one; of a partition, the name
    /// of its group.
    pub dead_from: Option<Box<str>>,
    /// It was handed out before and came back unsettled.
    pub redelivered: bool,
    /// How often it was handed out and came back unsettled, since it was published or retried.
    pub delivered_before: u32,
}

#[derive(Default)]
pub(crate) struct Broker {
    topics: HashMap<String, BTreeSet<Arc<str>>>,
    queues: HashMap<Arc<str>, Queue>,
    /// Every group as it was declared, which may be more than once with different wishes.
    groups: Vec<Group>,
    /// Names messages in queues, deliveries and consumers: what is greater came later.
    counter: u64,
}

struct Queue {
    messages_max: usize,
    /// By the number that each got when it came, which it keeps when it comes back unsettled.
    ready: BTreeMap<u64, Stored>,
    /// By when they are due and the order they were delayed in.
    delayed: BTreeMap<(Instant, u64), Stored>,
    out: HashMap<u64, Out>,
    /// The group it is a part of, if it is.
    group: Option<Arc<str>>,
    /// Who subscribed to this part of a group: the first receives, the others wait.
    consumers: Vec<Holder>,
    /// The operator who holds its messages.
    held_by: Option<Holder>,
    changed: Arc<Notify>,
}

/// Who receives, and over which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) connection: u64,
    pub(crate) consumer: u64,
}

/// A message that a consumer holds.
struct Out {
    number: u64,
    stored: Stored,
    holder: Holder,
}

/// What a consumer finds when it asks for a message.
pub(crate) enum Next {
    Message(u64, Box<Stored>),
    /// Nothing now; something is due then.
    DueAt(Instant),
    Nothing,
}

impl Broker {
    pub(crate) fn declare(&mut self, topology: &Topology) -> Result<(), TransportError> {
        self.check(&topology.groups)?;
        for topic in &topology.topics {
            self.topics.entry(topic.to_string()).or_default();
        }
        for queue in &topology.queues {
            let name: Arc<str> = queue.name.as_ref().into();
            self.queues.entry(Arc::clone(&name)).or_default();
            self.queues
                .entry(dead_letter_queue(&name).into())
                .or_default();
            for topic in &queue.topics {
                let subscribers = self.topics.entry(topic.to_string()).or_default();
                subscribers.insert(Arc::clone(&name));
            }
        }
        for queue in &topology.queues {
            for topic in &queue.left {
                let subscribers = self.topics.entry(topic.to_string()).or_default();
                subscribers.remove(&*queue.name);
            }
        }
        for group in &topology.groups {
            self.declare_group(group);
        }
        Ok(())
    }

    fn check(&self, groups: &[Group]) -> Result<(), TransportError> {
        for group in groups {
            if group.partitions.get() > SLOT_COUNT {
                return Err(TransportError::fatal(format!(
                    "cannot declare the ordered group `{}` with {} partitions: it may have \
                     {SLOT_COUNT} at most",
                    group.name, group.partitions
                )));
            }
            for name in queues_of(group) {
                let is_other = |queue: &Queue| queue.group.as_deref() != Some(&*group.name);
                if self.queues.get(&*name).is_some_and(is_other) {
                    return Err(TransportError::fatal(format!(
                        "cannot declare the ordered group `{}`: its queue `{name}` is there \
                         already and is no part of it; name one of them otherwise",
                        group.name
                    )));
                }
            }
        }
        Ok(())
    }

    fn declare_group(&mut self, group: &Group) {
        let group_name: Arc<str> = group.name.as_ref().into();
        for queue in queues_of(group) {
            let queue = self.queues.entry(queue.into()).or_default();
            queue.group = Some(Arc::clone(&group_name));
        }
        self.queues
            .entry(dead_letter_queue(&group_name).into())
            .or_default();
        for topic in &group.topics {
            self.topics.entry(topic.to_string()).or_default();
        }
        if !self.groups.contains(group) {
            self.groups.push(group.clone());
        }
    }

    pub(crate) fn publish(&mut self, message: Outgoing) -> Result<(), PublishError> {
        let queues = self.queues_for(&message);
        if queues.is_empty() {
            return Err(PublishError::new(
                PublishErrorKind::Unroutable,
                format!("no queue wants what is sent to {}", message.destination),
            ));
        }
        for name in &queues {
            let queue = &self.queues[name];
            if queue.len() >= queue.messages_max {
                return Err(PublishError::new(
                    PublishErrorKind::Refused,
                    format!(
                        "queue `{name}` is full: it may hold {} messages",
                        queue.messages_max
                    ),
                ));
            }
        }
        let stored = Stored::new(message.envelope);
        for name in queues {
            self.push(&name, stored.clone(), Duration::ZERO);
        }
        Ok(())
    }

    /// The queues that want a message, each once.
    fn queues_for(&self, message: &Outgoing) -> BTreeSet<Arc<str>> {
        let mut queues = BTreeSet::new();
        let name = message.destination.name();
        let is_topic = matches!(message.destination, Destination::Topic(_));
        if is_topic {
            queues.extend(self.topics.get(name).into_iter().flatten().cloned());
        } else if let Some((queue, _)) = self.queues.get_key_value(name) {
            queues.insert(Arc::clone(queue));
        }
        for group in &self.groups {
            let wanted = if is_topic {
                &group.topics
            } else {
                &group.commands
            };
            if !wanted.iter().any(|it| it == name) {
                continue;
            }
            let part = match &message.envelope.key {
                Some(key) => group.partition(group.partition_of_slot(slot_of(key))),
                None => group.any(),
            };
            if let Some((part, _)) = self.queues.get_key_value(&*part) {
                queues.insert(Arc::clone(part));
            }
        }
        queues
    }

    /// Adds a consumer of `queue`.
    pub(crate) fn subscribe(
        &mut self,
        queue: &str,
        connection: u64,
        is_ordered: bool,
    ) -> Result<Holder, TransportError> {
        self.counter += 1;
        let holder = Holder {
            connection,
            consumer: self.counter,
        };
        let Some(found) = self.queues.get_mut(queue) else {
            return Err(no_queue(queue));
        };
        match (is_ordered, found.group.is_some()) {
            (true, true) => found.consumers.push(holder),
            (false, false) => {}
            (true, false) => {
                return Err(TransportError::fatal(format!(
                    "queue `{queue}` is no partition of an ordered group: subscribe to it without \
                     `ordered`"
                )));
            }
            (false, true) => {
                return Err(TransportError::fatal(format!(
                    "queue `{queue}` is a partition of an ordered group: subscribe to it with \
                     `ordered`"
                )));
            }
        }
        Ok(holder)
    }

    /// A subscription ended. What an ordered one had out goes back to where it was.
    pub(crate) fn unsubscribe(&mut self, queue: &str, holder: Holder) {
        if let Some(queue) = self.queues.get_mut(queue)
            && queue.group.is_some()
        {
            queue.end(|it| *it == holder);
        }
    }

    /// Takes the next message of `queue` out for a consumer.
    pub(crate) fn take(&mut self, queue: &str, holder: Holder) -> Next {
        let Some(queue) = self.queues.get_mut(queue) else {
            return Next::Nothing;
        };
        if queue.group.is_some() {
            if !queue.consumers.contains(&holder) {
                // The queue was deleted and declared again meanwhile.
                queue.consumers.push(holder);
            }
            if queue.consumers[0] != holder {
                return Next::Nothing;
            }
        }
        queue.make_due_ready(&mut self.counter);
        self.counter += 1;
        let tag = self.counter;
        if let Some((number, stored)) = queue.ready.pop_first() {
            let out = Out {
                number,
                stored: stored.clone(),
                holder,
            };
            queue.out.insert(tag, out);
            return Next::Message(tag, Box::new(stored));
        }
        match queue.delayed.first_key_value() {
            Some((&(due, _), _)) => Next::DueAt(due),
            None => Next::Nothing,
        }
    }

    /// Settles what was taken out under `tag`. False if it is not out (any more).
    pub(crate) fn settle(&mut self, queue: &str, tag: u64, settlement: Settlement) -> bool {
        let Some(out) = self
            .queues
            .get_mut(queue)
            .and_then(|queue| queue.out.remove(&tag))
        else {
            return false;
        };
        match settlement {
            Settlement::Ack => {}
            Settlement::Requeue => self.give_back(queue, out),
            Settlement::Retry { delay, attempt } => {
                self.push(queue, out.stored.failed(attempt), delay);
            }
            Settlement::Defer { delay } => self.push(queue, out.stored.anew(), delay),
            Settlement::DeadLetter { attempt } => {
                let group = self.queues.get(queue).and_then(|it| it.group.clone());
                let of = group.unwrap_or_else(|| queue.into());
                let beside = dead_letter_queue(&of);
                let dead = Stored {
                    reason: Some(attempt.reason.as_str().into()),
                    dead_from: Some((*of).into()),
                    ..out.stored.failed(attempt)
                };
                self.queues.entry(beside.as_str().into()).or_default();
                self.push(&beside, dead, Duration::ZERO);
            }
        }
        self.changed(queue);
        true
    }

    /// True if the message taken out under `tag` can still be settled.
    pub(crate) fn is_out(&self, queue: &str, tag: u64) -> bool {
        let queue = self.queues.get(queue);
        queue.is_some_and(|queue| queue.out.contains_key(&tag))
    }

    /// Ends the subscriptions of `connection`, and puts what it holds back to where it was.
    pub(crate) fn disconnect(&mut self, connection: u64) {
        for queue in self.queues.values_mut() {
            queue.end(|holder| holder.connection == connection);
        }
    }

    /// Limits how many messages `queue` may hold. False if there is no such queue.
    pub(crate) fn limit(&mut self, queue: &str, messages: usize) -> bool {
        let queue = self.queues.get_mut(queue);
        queue.map(|queue| queue.messages_max = messages).is_some()
    }

    /// Deletes a queue with what is in it. False if there was none.
    pub(crate) fn delete(&mut self, queue: &str) -> bool {
        for subscribers in self.topics.values_mut() {
            subscribers.remove(queue);
        }
        let deleted = self.queues.remove(queue);
        deleted
            .map(|queue| queue.changed.notify_waiters())
            .is_some()
    }

    pub(crate) fn messages(&self, queue: &str) -> Vec<Stored> {
        let Some(queue) = self.queues.get(queue) else {
            return Vec::new();
        };
        let out = queue.out.values().map(|out| (out.number, &out.stored));
        let ready = queue.ready.iter().map(|(number, stored)| (*number, stored));
        let delayed = queue.delayed.iter().map(|(key, stored)| (key.1, stored));
        let all: BTreeMap<u64, &Stored> = out.chain(ready).chain(delayed).collect();
        all.into_values().cloned().collect()
    }

    /// What wakes the consumers of `queue`. `None` if there is no such queue.
    pub(crate) fn changes(&self, queue: &str) -> Option<Arc<Notify>> {
        Some(Arc::clone(&self.queues.get(queue)?.changed))
    }

    fn give_back(&mut self, queue: &str, out: Out) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.ready.insert(out.number, out.stored.given_back());
        }
    }

    fn push(&mut self, name: &str, stored: Stored, delay: Duration) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.make_due_ready(&mut self.counter);
            self.counter += 1;
            if delay.is_zero() {
                queue.ready.insert(self.counter, stored);
            } else {
                let due = Instant::now() + delay;
                queue.delayed.insert((due, self.counter), stored);
            }
            queue.changed.notify_waiters();
        }
    }

    fn changed(&self, queue: &str) {
        if let Some(queue) = self.queues.get(queue) {
            queue.changed.notify_waiters();
        }
    }
}

/// The queues that messages of a group are in.
fn queues_of(group: &Group) -> impl Iterator<Item = String> {
    let partitions = 0..group.partitions.get();
    let partitions = partitions.map(|partition| group.partition(partition));
    partitions.chain([group.any()])
}

pub(crate) fn no_queue(queue: &str) -> TransportError {
    TransportError::fatal(format!("there is no queue `{queue}`; declare it first"))
}

impl Queue {
    /// Puts messages whose delay is over behind those that wait.
    fn make_due_ready(&mut self, counter: &mut u64) {
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            *counter += 1;
            self.ready.insert(*counter, first.remove());
        }
    }

    /// These consumers are gone: what they hold goes back to where it was.
    fn end(&mut self, is_gone: impl Fn(&Holder) -> bool) {
        self.consumers.retain(|holder| !is_gone(holder));
        self.held_by.take_if(|holder| is_gone(holder));
        for (_, out) in self.out.extract_if(|_, out| is_gone(&out.holder)) {
            self.ready.insert(out.number, out.stored.given_back());
        }
        self.changed.notify_waiters();
    }

    fn len(&self) -> usize {
        self.ready.len() + self.delayed.len() + self.out.len()
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            messages_max: QUEUE_MESSAGES_MAX,
            ready: BTreeMap::new(),
            delayed: BTreeMap::new(),
            out: HashMap::new(),
            group: None,
            consumers: Vec::new(),
            held_by: None,
            changed: Arc::default(),
        }
    }
}

impl Stored {
    /// A message that was published, with what its headers say of a dead letter.
    fn new(mut envelope: Envelope) -> Self {
        let mut take = |header: &str| {
            let mut values = envelope
                .headers
                .extract_if(.., |(name, _)| **name == *header);
            values.next().map(|(_, value)| value)
        };
        let failures = take(FAILURES_HEADER).and_then(|value| value.parse().ok());
        let history = take(HISTORY_HEADER).and_then(|value| serde_json::from_str(&value).ok());
        let reason = take(REASON_HEADER);
        let dead_from = take(QUEUE_HEADER);
        Self {
            envelope,
            history: history.unwrap_or_default(),
            failures: failures.unwrap_or_default(),
            reason,
            dead_from,
            redelivered: false,
            delivered_before: 0,
        }
    }

    /// As if it had just come into its queue.
    fn anew(self) -> Self {
        Self {
            redelivered: false,
            delivered_before: 0,
            ..self
        }
    }

    /// Came back unsettled.
    fn given_back(self) -> Self {
        Self {
            redelivered: true,
            delivered_before: self.delivered_before.saturating_add(1),
            ..self
        }
    }

    fn failed(self, attempt: Attempt) -> Self {
        let mut failed = self.anew();
        failed.failures = failed.failures.saturating_add(1);
        attempt.add_to(&mut failed.history);
        failed
    }
}
