//! A broker that does what a test tells it: loses its connection, refuses messages, delivers
//! twice. Queues are in memory, delays are tokio's.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use futures_util::stream;
use parking_lot::Mutex;
use tidings::{
    Attempt, BoxFuture, Deliveries, Delivery, Destination, Envelope, FAILURES_HEADER, Features,
    Group, HISTORY_HEADER, Outgoing, PublishError, PublishErrorKind, Settlement, Settler,
    Subscription, Topology, Transport, TransportError, dead_letter_queue, slot_of,
};
use tokio::{sync::Notify, time::Instant};

#[derive(Clone, Default)]
pub(crate) struct Broker(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

type Judge = Box<dyn FnMut(&Outgoing) -> Option<PublishErrorKind> + Send>;

#[derive(Default)]
struct State {
    bindings: HashMap<String, Vec<String>>,
    groups: Vec<Group>,
    /// Who receives a partition, and who waits to.
    receivers: HashMap<String, Vec<u64>>,
    queues: HashMap<String, Queue>,
    delayed: HashMap<(String, Duration), VecDeque<(Instant, Stored)>>,
    down: bool,
    mute: bool,
    cannot_delay: bool,
    /// Counts connections: a delivery of an earlier one cannot be settled.
    connection: u64,
    next_tag: u64,
    judge: Option<Judge>,
    published: Vec<Outgoing>,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Stored>,
    unsettled: BTreeMap<u64, Stored>,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) envelope: Envelope,
    pub(crate) failures: u32,
    pub(crate) history: Vec<Attempt>,
    pub(crate) redelivered: bool,
}

impl Broker {
    /// Publishes as a foreign program does.
    pub(crate) fn publish_raw(&self, message: Outgoing) {
        self.0.route(message).expect("somebody listens");
    }

    /// Closes the connection, or opens a new one. What was unsettled comes again.
    pub(crate) fn set_down(&self, down: bool) {
        let mut state = self.0.state.lock();
        state.down = down;
        state.connection += 1;
        for queue in state.queues.values_mut() {
            for (_, mut stored) in std::mem::take(&mut queue.unsettled).into_iter().rev() {
                stored.redelivered = true;
                queue.ready.push_front(stored);
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Takes messages, but its confirmations are lost.
    pub(crate) fn set_mute(&self, mute: bool) {
        self.0.state.lock().mute = mute;
    }

    /// Becomes an engine that cannot delay retries.
    pub(crate) fn set_cannot_delay(&self) {
        self.0.state.lock().cannot_delay = true;
    }

    /// Decides over each message that is published from now on: `Some` is the error it gets.
    pub(crate) fn judge(
        &self,
        judge: impl FnMut(&Outgoing) -> Option<PublishErrorKind> + Send + 'static,
    ) {
        self.0.state.lock().judge = Some(Box::new(judge));
    }

    /// Everything that was published and confirmed, in order.
    pub(crate) fn published(&self) -> Vec<Outgoing> {
        self.0.state.lock().published.clone()
    }

    /// Bodies of what was published and confirmed under a name, in order.
    pub(crate) fn published_as<M: tidings::Message>(&self) -> Vec<M> {
        let published = self.published();
        let named = published
            .iter()
            .filter(|message| message.envelope.name == M::NAME);
        named
            .map(|m| serde_json::from_slice(&m.envelope.body).expect("JSON"))
            .collect()
    }

    /// The dead letters beside a queue, whether the broker moved them or the outbox sent them.
    pub(crate) fn dead_letters(&self, queue: &str) -> Vec<Stored> {
        let state = self.0.state.lock();
        let dead = state.queues.get(&dead_letter_queue(queue));
        let dead = dead.map(|queue| queue.ready.iter().cloned()).into_iter();
        dead.flatten()
            .map(Stored::with_history_of_headers)
            .collect()
    }

    /// How many messages are in a queue or out of it.
    pub(crate) fn count(&self, queue: &str) -> usize {
        let state = self.0.state.lock();
        let queue = state.queues.get(queue);
        queue.map_or(0, |queue| queue.ready.len() + queue.unsettled.len())
    }

    /// True if everything was settled: nothing waits, is out, or is delayed.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.0.state.lock();
        state.delayed.values().all(VecDeque::is_empty)
            && state
                .queues
                .iter()
                .filter(|(name, _)| !name.ends_with(".dead"))
                .all(|(_, queue)| queue.ready.is_empty() && queue.unsettled.is_empty())
    }
}

impl Stored {
    fn with_history_of_headers(mut self) -> Self {
        if let Some(history) = self.envelope.header(HISTORY_HEADER) {
            self.history = serde_json::from_str(history).expect("a history");
        }
        if let Some(failures) = self.envelope.header(FAILURES_HEADER) {
            self.failures = failures.parse().expect("a number");
        }
        self
    }
}

impl Transport for Broker {
    fn features(&self) -> Features {
        let mut features = Features::new("a scripted broker");
        features.reports_unroutable = true;
        features.partitions_max = 64;
        features.name_bytes_max = 200;
        if !self.0.state.lock().cannot_delay {
            features.delay_max = Duration::from_secs(24 * 3600);
        }
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        let mut state = self.0.state.lock();
        for topic in &topology.topics {
            state.bindings.entry(topic.to_string()).or_default();
        }
        for queue in &topology.queues {
            state.queues.entry(queue.name.to_string()).or_default();
            state
                .queues
                .entry(dead_letter_queue(&queue.name))
                .or_default();
            for topic in &queue.topics {
                let bound = state.bindings.entry(topic.to_string()).or_default();
                if !bound.contains(&queue.name.to_string()) {
                    bound.push(queue.name.to_string());
                }
            }
        }
        for group in &topology.groups {
            let partitions = (0..group.partitions.get()).map(|it| group.partition(it));
            for queue in partitions.chain([group.any(), dead_letter_queue(&group.name)]) {
                state.queues.entry(queue).or_default();
            }
            if !state.groups.contains(group) {
                state.groups.push(group.clone());
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut outcomes = Vec::with_capacity(batch.len());
            let mut lost = false;
            for message in batch {
                let outcome = match lost {
                    false => self.0.publish(message),
                    true => Err(unavailable()),
                };
                // What was sent after a loss of the connection was not sent.
                lost |= matches!(&outcome, Err(e) if e.kind() == PublishErrorKind::Unavailable);
                outcomes.push(outcome);
            }
            if self.0.state.lock().mute {
                std::future::pending::<()>().await;
            }
            outcomes
        })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        let receiver = Receiver::new(Arc::clone(&self.0), &subscription);
        let deliveries = stream::unfold(receiver, move |receiver| async move {
            let delivery = receiver.next().await;
            Some((Ok(delivery), receiver))
        });
        Box::pin(std::future::ready(Ok(Box::pin(deliveries) as Deliveries)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn unavailable() -> PublishError {
    PublishError::new(PublishErrorKind::Unavailable, "no connection")
}

impl Shared {
    fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let mut state = self.state.lock();
        if state.down {
            return Err(unavailable());
        }
        if let Some(kind) = state.judge.as_mut().and_then(|judge| judge(&message)) {
            return Err(PublishError::new(kind, "the test says so"));
        }
        drop(state);
        let confirmed = message.clone();
        self.route(message)?;
        self.state.lock().published.push(confirmed);
        Ok(())
    }

    fn route(&self, message: Outgoing) -> Result<(), PublishError> {
        let mut state = self.state.lock();
        let mut queues = match &message.destination {
            Destination::Topic(topic) => state.bindings.get(&**topic).cloned().unwrap_or_default(),
            Destination::Queue(queue) => vec![queue.to_string()],
        };
        let name = message.destination.name();
        for group in &state.groups {
            if group
                .topics
                .iter()
                .chain(&group.commands)
                .any(|it| it == name)
            {
                queues.push(match &message.envelope.key {
                    Some(key) => group.partition(group.partition_of_slot(slot_of(key))),
                    None => group.any(),
                });
            }
        }
        let mut routed = false;
        for queue in queues {
            if let Some(queue) = state.queues.get_mut(&queue) {
                routed = true;
                queue.ready.push_back(Stored {
                    envelope: message.envelope.clone(),
                    failures: 0,
                    history: Vec::new(),
                    redelivered: false,
                });
            }
        }
        drop(state);
        self.changed.notify_waiters();
        match routed {
            true => Ok(()),
            false => Err(PublishError::new(PublishErrorKind::Unroutable, "no queue")),
        }
    }

    fn settle(
        self: &Arc<Self>,
        connection: u64,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<(), TransportError> {
        let mut state = self.state.lock();
        if state.connection != connection {
            return Err(TransportError::temporary("the connection was lost"));
        }
        let queue = state.queues.get_mut(&*delivery.queue);
        let stored = queue.and_then(|queue| queue.unsettled.remove(&delivery.tag()));
        let Some(mut stored) = stored else {
            return Err(TransportError::temporary("its partition was given up"));
        };
        match settlement {
            Settlement::Ack => {}
            Settlement::Retry { delay, attempt } => {
                stored.failures += 1;
                stored.history.push(attempt);
                self.delay(&mut state, &delivery.queue, delay, stored);
            }
            Settlement::Defer { delay } => self.delay(&mut state, &delivery.queue, delay, stored),
            Settlement::Requeue => {
                stored.redelivered = true;
                let queue = state.queues.entry(delivery.queue.to_string()).or_default();
                queue.ready.push_front(stored);
            }
            Settlement::DeadLetter { attempt } => {
                stored.failures += 1;
                stored.history.push(attempt);
                let dead = dead_letter_queue(&delivery.queue);
                state
                    .queues
                    .entry(dead)
                    .or_default()
                    .ready
                    .push_back(stored);
            }
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    fn delay(self: &Arc<Self>, state: &mut State, queue: &str, delay: Duration, stored: Stored) {
        let (key, due) = ((queue.to_owned(), delay), Instant::now() + delay);
        state
            .delayed
            .entry(key.clone())
            .or_default()
            .push_back((due, stored));
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let mut state = shared.state.lock();
            let State {
                delayed, queues, ..
            } = &mut *state;
            let waiting = delayed.entry(key.clone()).or_default();
            while waiting
                .front()
                .is_some_and(|(due, _)| *due <= Instant::now())
            {
                let queue = queues.entry(key.0.clone()).or_default();
                queue
                    .ready
                    .extend(waiting.pop_front().map(|(_, stored)| stored));
            }
            drop(state);
            shared.changed.notify_waiters();
        });
    }
}

/// One subscription.
struct Receiver {
    shared: Arc<Shared>,
    number: u64,
    queue: String,
    prefetch: NonZeroU16,
    is_ordered: bool,
}

impl Receiver {
    fn new(shared: Arc<Shared>, subscription: &Subscription) -> Self {
        let mut state = shared.state.lock();
        state.next_tag += 1;
        let receiver = Self {
            number: state.next_tag,
            queue: subscription.queue.to_string(),
            prefetch: subscription.prefetch,
            is_ordered: subscription.is_ordered,
            shared: Arc::clone(&shared),
        };
        let receivers = state.receivers.entry(receiver.queue.clone()).or_default();
        receivers.push(receiver.number);
        drop(state);
        receiver
    }

    async fn next(&self) -> Delivery {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(delivery) = self.take() {
                return delivery;
            }
            changed.await;
        }
    }

    fn take(&self) -> Option<Delivery> {
        let mut state = self.shared.state.lock();
        let (down, connection, tag) = (state.down, state.connection, state.next_tag);
        if self.is_ordered && state.receivers[&self.queue].first() != Some(&self.number) {
            return None;
        }
        let queue = state.queues.get_mut(&self.queue)?;
        if down || queue.unsettled.len() >= usize::from(self.prefetch.get()) {
            return None;
        }
        let stored = queue.ready.pop_front()?;
        queue.unsettled.insert(tag, stored.clone());
        state.next_tag += 1;
        let settler = Arc::new(Connection {
            shared: Arc::clone(&self.shared),
            number: connection,
        });
        let mut delivery = Delivery::new(stored.envelope, (*self.queue).into(), tag, settler);
        delivery.failures = stored.failures;
        delivery.history = stored.history;
        delivery.redelivered = stored.redelivered;
        Some(delivery)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(receivers) = state.receivers.get_mut(&self.queue) {
            receivers.retain(|number| *number != self.number);
        }
        if self.is_ordered
            && let Some(queue) = state.queues.get_mut(&self.queue)
        {
            for (_, mut stored) in std::mem::take(&mut queue.unsettled).into_iter().rev() {
                stored.redelivered = true;
                queue.ready.push_front(stored);
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

/// A connection that deliveries came over.
struct Connection {
    shared: Arc<Shared>,
    number: u64,
}

impl Settler for Connection {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.shared.settle(self.number, &delivery, settlement)
        })
    }

    fn dropped(&self, tag: u64) {
        let mut state = self.shared.state.lock();
        if state.connection != self.number {
            return;
        }
        for queue in state.queues.values_mut() {
            if let Some(mut stored) = queue.unsettled.remove(&tag) {
                stored.redelivered = true;
                queue.ready.push_front(stored);
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    fn is_stale(&self, _: u64) -> bool {
        self.shared.state.lock().connection != self.number
    }
}

impl Broker {
    /// Declares what a service needs, before it runs.
    pub(crate) async fn declare_for(&self, router: &tidings::Router) {
        self.declare(&router.topology()).await.expect("it declares");
    }
}

impl Broker {
    /// How many subscriptions each partition has, or had.
    pub(crate) fn receivers(&self) -> Vec<usize> {
        let state = self.0.state.lock();
        let of_groups = state.receivers.iter();
        let of_groups = of_groups.filter(|(queue, _)| queue.contains(".ordered."));
        of_groups.map(|(_, receivers)| receivers.len()).collect()
    }
}
