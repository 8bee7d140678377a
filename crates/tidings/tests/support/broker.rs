//! A broker that does what a test tells it: loses its connection, refuses messages, keeps its
//! confirmations to itself.
//!
//! Queues, groups, delays and settlement are those of [`MemoryTransport`], which keeps the contract
//! of the port; here is only what tests script. Several services of a test share one connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tidings::{
    BoxFuture, Deliveries, Delivery, Features, Outgoing, PublishError, PublishErrorKind,
    Settlement, Settler, Subscription, Topology, Transport, TransportError,
};
use tidings_memory::{MemoryTransport, Stored};
use tokio::sync::watch;

#[derive(Clone, Default)]
pub(crate) struct Broker(Arc<Shared>);

struct Shared {
    /// A connection of the test's own, which is never lost.
    queues: MemoryTransport,
    /// The connection of the services, while there is one.
    connection: watch::Sender<Option<MemoryTransport>>,
    script: Mutex<Script>,
}

type Judge = Box<dyn FnMut(&Outgoing) -> Option<PublishErrorKind> + Send>;

#[derive(Default)]
struct Script {
    mute: bool,
    /// Whether a message that is not confirmed says nothing about those behind it.
    keeps_connection: bool,
    cannot_delay: bool,
    shares_partitions: bool,
    judge: Option<Judge>,
    /// The topic of which it confirms nothing.
    silent: Option<&'static str>,
    /// How many messages to that topic each publish had, and how many others.
    batches: Vec<(usize, usize)>,
    published: Vec<Outgoing>,
    /// The names of all queues and partitions that were declared.
    declared: BTreeSet<String>,
    /// How many subscriptions each queue has, or had.
    receivers: BTreeMap<String, usize>,
}

impl Default for Shared {
    fn default() -> Self {
        let queues = MemoryTransport::new();
        Self {
            connection: watch::Sender::new(Some(queues.connect())),
            queues,
            script: Mutex::default(),
        }
    }
}

impl Broker {
    /// Declares what a service needs, before it runs.
    pub(crate) async fn declare_for(&self, router: &tidings::Router) {
        self.declare(&router.topology()).await.expect("it declares");
    }

    /// Publishes as a foreign program does.
    pub(crate) fn publish_raw(&self, message: Outgoing) {
        let outcome = at_once(self.0.queues.publish(vec![message])).remove(0);
        outcome.expect("somebody listens");
    }

    /// Closes the connection, or opens a new one. What was unsettled comes again.
    pub(crate) fn set_down(&self, down: bool) {
        if let Some(lost) = self.0.connection.send_replace(None) {
            at_once(lost.close());
        }
        if !down {
            let next = self.0.queues.connect();
            self.0.connection.send_replace(Some(next));
        }
    }

    /// Takes messages, but its confirmations are lost.
    pub(crate) fn set_mute(&self, mute: bool) {
        self.0.script.lock().mute = mute;
    }

    /// Becomes an engine that cannot delay retries.
    pub(crate) fn set_shares_partitions(&self) {
        self.0.script.lock().shares_partitions = true;
    }

    pub(crate) fn set_cannot_delay(&self) {
        self.0.script.lock().cannot_delay = true;
    }

    /// Decides over each message that is published from now on: `Some` is the error it gets.
    pub(crate) fn judge(
        &self,
        judge: impl FnMut(&Outgoing) -> Option<PublishErrorKind> + Send + 'static,
    ) {
        self.0.script.lock().judge = Some(Box::new(judge));
    }

    /// From now on a message that is judged unavailable is only not confirmed, and the connection is still there: those
    /// behind it are sent.
    pub(crate) fn keep_connection(&self) {
        self.0.script.lock().keeps_connection = true;
    }

    /// Takes nothing that goes to this topic and says nothing of it, as a queue without a leader does: who publishes such
    /// a message waits for a while.
    pub(crate) fn set_silent(&self, topic: Option<&'static str>) {
        self.0.script.lock().silent = topic;
    }

    /// How many messages to the silent topic each publish had, and how many others, while there was one.
    pub(crate) fn batches(&self) -> Vec<(usize, usize)> {
        self.0.script.lock().batches.clone()
    }

    /// Everything that was published and confirmed, in order.
    pub(crate) fn published(&self) -> Vec<Outgoing> {
        self.0.script.lock().published.clone()
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

    /// The dead letters beside a queue or group, whether the broker moved them or the outbox sent
    /// them.
    pub(crate) fn dead_letters(&self, queue: &str) -> Vec<Stored> {
        self.0.queues.dead_letters(queue)
    }

    /// How many messages are in a queue, out of it, or wait to come back to it.
    pub(crate) fn count(&self, queue: &str) -> usize {
        self.0.queues.messages(queue).len()
    }

    /// How many messages of a queue were handed out and came back.
    pub(crate) fn given_back(&self, queue: &str) -> usize {
        let messages = self.0.queues.messages(queue);
        messages
            .iter()
            .filter(|message| message.redelivered)
            .count()
    }

    /// True if everything was settled: nothing waits, is out, or is delayed.
    pub(crate) fn is_settled(&self) -> bool {
        let declared = self.0.script.lock().declared.clone();
        declared.iter().all(|queue| self.count(queue) == 0)
    }

    /// How many subscriptions each partition has, or had.
    pub(crate) fn receivers(&self) -> Vec<usize> {
        let script = self.0.script.lock();
        let receivers = script.receivers.iter();
        let of_groups = receivers.filter(|(queue, _)| queue.contains(".ordered."));
        of_groups.map(|(_, count)| *count).collect()
    }
}

impl Transport for Broker {
    fn features(&self) -> Features {
        let mut features = Features::new("a scripted broker");
        features.reports_unroutable = true;
        features.partitions_max = 64;
        features.name_bytes_max = 200;
        features.shares_partitions = self.0.script.lock().shares_partitions;
        if !self.0.script.lock().cannot_delay {
            features.delay_max = Duration::from_secs(24 * 3600);
        }
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let queues = topology.queues.iter().map(|queue| queue.name.to_string());
            let parts = topology.groups.iter().flat_map(|group| {
                let partitions = (0..group.partitions.get()).map(|it| group.partition(it));
                partitions.chain([group.any()])
            });
            self.0.script.lock().declared.extend(queues.chain(parts));
            let mut connection = self.0.connection.subscribe();
            loop {
                let outcome = connected(&mut connection).await.declare(topology).await;
                if outcome.is_ok() || !was_lost(&connection) {
                    return outcome;
                }
            }
        })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.wait_for_silence(&batch).await;
            let mut outcomes = Vec::with_capacity(batch.len());
            let mut lost = false;
            for message in batch {
                let outcome = match lost {
                    false => self.0.publish(message),
                    true => Err(unavailable()),
                };
                // What was sent after a loss of the connection was not sent.
                lost |= matches!(&outcome, Err(e) if e.kind() == PublishErrorKind::Unavailable)
                    && !self.0.script.lock().keeps_connection;
                outcomes.push(outcome);
            }
            if self.0.script.lock().mute {
                std::future::pending::<()>().await;
            }
            outcomes
        })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(async move {
            let mut receiver = Receiver::new(Arc::clone(&self.0), subscription);
            // While there is no connection, it receives nothing yet.
            if self.0.connection.borrow().is_some() {
                receiver.subscribe().await?;
            }
            let deliveries = stream::unfold(Some(receiver), |receiver| async move {
                let mut receiver = receiver?;
                match receiver.next().await {
                    Ok(delivery) => Some((Ok(delivery), Some(receiver))),
                    Err(error) => Some((Err(error), None)),
                }
            });
            Ok(Box::pin(deliveries) as Deliveries)
        })
    }

    /// Other services of the test go on with the connection.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The answer of the memory's transport, which waits for nothing.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("an answer at once")
}

fn unavailable() -> PublishError {
    PublishError::new(PublishErrorKind::Unavailable, "no connection")
}

/// The connection, as soon as there is one.
async fn connected(connection: &mut watch::Receiver<Option<MemoryTransport>>) -> MemoryTransport {
    let found = connection.wait_for(Option::is_some).await;
    let found = found.ok().and_then(|found| found.clone());
    found.expect("the sender is there, and it is connected")
}

/// True if the connection that was found last is not there any more.
fn was_lost(connection: &watch::Receiver<Option<MemoryTransport>>) -> bool {
    connection.has_changed().expect("the sender is there")
}

/// How long it takes until a message to a silent topic is given up.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(300);

impl Script {
    fn is_silent(&self, message: &Outgoing) -> bool {
        self.silent
            .is_some_and(|topic| message.destination.name() == topic)
    }
}

impl Shared {
    async fn wait_for_silence(&self, batch: &[Outgoing]) {
        let silent = {
            let mut script = self.script.lock();
            if script.silent.is_none() {
                return;
            }
            let silent = batch.iter().filter(|it| script.is_silent(it)).count();
            script.batches.push((silent, batch.len() - silent));
            silent
        };
        if silent > 0 {
            tokio::time::sleep(CONFIRM_TIMEOUT).await;
        }
    }

    fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let Some(connection) = self.connection.borrow().clone() else {
            return Err(unavailable());
        };
        let mut script = self.script.lock();
        if script.is_silent(&message) {
            let kind = PublishErrorKind::Unconfirmed;
            return Err(PublishError::new(kind, "no confirm came"));
        }
        if let Some(kind) = script.judge.as_mut().and_then(|judge| judge(&message)) {
            return Err(PublishError::new(kind, "the test says so"));
        }
        at_once(connection.publish(vec![message.clone()])).remove(0)?;
        script.published.push(message);
        Ok(())
    }
}

/// One subscription, which goes on over every connection.
struct Receiver {
    shared: Arc<Shared>,
    subscription: Subscription,
    connection: watch::Receiver<Option<MemoryTransport>>,
    /// Over the connection that was found last.
    deliveries: Option<Deliveries>,
}

impl Receiver {
    fn new(shared: Arc<Shared>, subscription: Subscription) -> Self {
        let queue = subscription.queue.to_string();
        *shared.script.lock().receivers.entry(queue).or_default() += 1;
        Self {
            connection: shared.connection.subscribe(),
            shared,
            subscription,
            deliveries: None,
        }
    }

    /// Subscribes over the connection, as soon as there is one.
    async fn subscribe(&mut self) -> Result<(), TransportError> {
        loop {
            let connection = connected(&mut self.connection).await;
            match connection.subscribe(self.subscription.clone()).await {
                Ok(deliveries) => {
                    self.deliveries = Some(deliveries);
                    return Ok(());
                }
                Err(_) if was_lost(&self.connection) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn next(&mut self) -> Result<Delivery, TransportError> {
        loop {
            let Some(deliveries) = &mut self.deliveries else {
                self.subscribe().await?;
                continue;
            };
            match deliveries.next().await {
                Some(delivery) => return delivery.map(Handed::out),
                None => self.deliveries = None, // Its connection was lost.
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut script = self.shared.script.lock();
        if let Some(count) = script.receivers.get_mut(&*self.subscription.queue) {
            *count -= 1;
        }
    }
}

/// A delivery of a broker that does not count them, and takes its time to settle them.
struct Handed(Mutex<Option<Delivery>>);

impl Handed {
    fn out(delivery: Delivery) -> Delivery {
        let (envelope, queue) = ((*delivery.envelope).clone(), Arc::clone(&delivery.queue));
        let (redelivered, failures) = (delivery.redelivered, delivery.failures);
        let (tag, history) = (delivery.tag(), delivery.history.clone());
        let settler = Arc::new(Self(Mutex::new(Some(delivery))));
        let mut handed = Delivery::new(envelope, queue, tag, settler);
        handed.redelivered = redelivered;
        handed.failures = failures;
        handed.history = history;
        handed
    }
}

impl Settler for Handed {
    fn settle(
        self: Arc<Self>,
        _: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let delivery = self.0.lock().take();
            delivery
                .expect("it is settled once")
                .settle(settlement)
                .await
        })
    }

    fn dropped(&self, _: u64) {
        let delivery = self.0.lock().take();
        drop(delivery);
    }

    fn is_stale(&self, _: u64) -> bool {
        self.0.lock().as_ref().is_none_or(Delivery::is_stale)
    }
}
