//! Queues and who holds what: the state behind every connection. No waiting happens here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tidings_core::{
    Attempt, Destination, Envelope, Outgoing, PublishError, PublishErrorKind, Settlement, Topology,
    dead_letter_queue,
};
use tokio::{sync::Notify, time::Instant};

/// How many messages a queue holds before it refuses more.
const QUEUE_MESSAGES_MAX: usize = 1_000_000;

/// How many attempts a message's history keeps: the first and the latest ones.
const HISTORY_ATTEMPTS_MAX: usize = 10;

/// A message in a queue.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Metadata and body.
    pub envelope: Envelope,
    /// The deliveries that failed, oldest first (the first and the latest nine).
    pub history: Vec<Attempt>,
    /// How many deliveries failed.
    pub failures: u32,
    /// It was handed out before and came back unsettled.
    pub redelivered: bool,
}

#[derive(Default)]
pub(crate) struct Broker {
    topics: HashMap<String, BTreeSet<Arc<str>>>,
    queues: HashMap<Arc<str>, Queue>,
    /// Names messages in queues and deliveries: what is greater came later.
    counter: u64,
}

#[derive(Default)]
struct Queue {
    /// By the number that each got when it came, which it keeps when it comes back unsettled.
    ready: BTreeMap<u64, Stored>,
    /// By when they are due and the order they were delayed in.
    delayed: BTreeMap<(Instant, u64), Stored>,
    out: HashMap<u64, Out>,
    changed: Arc<Notify>,
}

/// A message that a consumer holds.
struct Out {
    number: u64,
    stored: Stored,
    connection: u64,
}

/// What a consumer finds when it asks for a message.
pub(crate) enum Next {
    Message(u64, Box<Stored>),
    /// Nothing now; something is due then.
    DueAt(Instant),
    Nothing,
}

impl Broker {
    pub(crate) fn declare(&mut self, topology: &Topology) {
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
    }

    pub(crate) fn publish(&mut self, message: Outgoing) -> Result<(), PublishError> {
        let queues: Vec<Arc<str>> = match &message.destination {
            Destination::Topic(topic) => self
                .topics
                .get(&**topic)
                .map(|queues| queues.iter().cloned().collect())
                .unwrap_or_default(),
            Destination::Queue(queue) => self
                .queues
                .get_key_value(&**queue)
                .map(|(name, _)| vec![Arc::clone(name)])
                .unwrap_or_default(),
        };
        if queues.is_empty() {
            return Err(PublishError::new(
                PublishErrorKind::Unroutable,
                format!("no queue wants what is sent to {}", message.destination),
            ));
        }
        for name in &queues {
            if self.queues[name].len() >= QUEUE_MESSAGES_MAX {
                return Err(PublishError::new(
                    PublishErrorKind::Refused,
                    format!("queue `{name}` is full: {QUEUE_MESSAGES_MAX} messages"),
                ));
            }
        }
        for name in queues {
            let stored = Stored {
                envelope: message.envelope.clone(),
                history: Vec::new(),
                failures: 0,
                redelivered: false,
            };
            self.push(&name, stored, Duration::ZERO);
        }
        Ok(())
    }

    /// Takes the next message of `queue` out for a consumer on `connection`.
    pub(crate) fn take(&mut self, queue: &str, connection: u64) -> Next {
        let Some(queue) = self.queues.get_mut(queue) else {
            return Next::Nothing;
        };
        queue.make_due_ready(&mut self.counter);
        self.counter += 1;
        let tag = self.counter;
        if let Some((number, stored)) = queue.ready.pop_first() {
            let out = Out {
                number,
                stored: stored.clone(),
                connection,
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
        let mut stored = out.stored;
        stored.redelivered = false;
        match settlement {
            Settlement::Ack => {}
            Settlement::Retry { delay, attempt } => {
                stored.fail(attempt);
                self.push(queue, stored, delay);
            }
            Settlement::Defer { delay } => self.push(queue, stored, delay),
            Settlement::DeadLetter { attempt } => {
                stored.fail(attempt);
                self.push(&dead_letter_queue(queue), stored, Duration::ZERO);
            }
        }
        self.changed(queue);
        true
    }

    /// Puts what `connection` holds back to where it was.
    pub(crate) fn disconnect(&mut self, connection: u64) {
        for queue in self.queues.values_mut() {
            let held = queue.out.extract_if(|_, out| out.connection == connection);
            for (_, out) in held {
                let redelivered = Stored {
                    redelivered: true,
                    ..out.stored
                };
                queue.ready.insert(out.number, redelivered);
            }
            queue.changed.notify_waiters();
        }
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

    fn len(&self) -> usize {
        self.ready.len() + self.delayed.len() + self.out.len()
    }
}

impl Stored {
    fn fail(&mut self, attempt: Attempt) {
        self.failures += 1;
        self.history.push(attempt);
        if self.history.len() > HISTORY_ATTEMPTS_MAX {
            self.history.remove(1);
        }
    }
}
