//! The port to a message broker: declare, publish, subscribe.
//!
//! The doc comments are the contract; the conformance suite in `tidings-testing` runs against
//! every implementation. What an engine can do beyond it, or cannot do, is data: [`Features`].

use std::{
    borrow::Cow, error::Error as StdError, fmt, num::NonZeroU16, pin::Pin, sync::Arc,
    time::Duration,
};

use futures_core::Stream;

use crate::{BoxError, BoxFuture, DeadLetterAccess, Delivery, Outgoing, hash_of_key};

/// A message broker, seen by the toolkit.
///
/// A transport owns its connection: after a loss it connects again with backoff, declares what was
/// declared, and its subscriptions go on. No caller has to do anything.
pub trait Transport: Send + Sync + 'static {
    /// What this engine can do.
    fn features(&self) -> Features;

    /// Makes sure that everything in `topology` exists; what already exists as described is left
    /// alone. Each queue gets its dead letters beside it ([`dead_letter_queue`]). Subscriptions that
    /// queues [leave](Queue::leaves) are ended after all others are made.
    ///
    /// Waits while the broker cannot be reached. Declares again by itself after a reconnection.
    ///
    /// # Errors
    ///
    /// When something of that name exists but differs, when a group has more partitions than
    /// [`Features::partitions_max`], or when the user may not declare it.
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>>;

    /// Publishes `batch` in order and resolves when the broker has confirmed or refused each
    /// message: one outcome per message, in the order of the batch. A message that was sent and not
    /// confirmed within a time that the adapter chooses is [`PublishErrorKind::Unconfirmed`]; the
    /// outcomes that did come stay.
    ///
    /// `Ok` means: stored by the broker in every queue that wants it (durable, persistent).
    /// An error means the message may or may not be there; publishing it again is safe because
    /// consumers know it by its id. While there is no connection, every outcome is
    /// [`PublishErrorKind::Unavailable`] at once.
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>>;

    /// Starts to receive from a queue.
    ///
    /// At most `prefetch` deliveries are out unsettled. The stream goes on through reconnections
    /// and ends only when it is dropped, or after an `Err` that no reconnection mends. Dropping it
    /// stops further deliveries; those that are out can still be settled. What it had received and
    /// not handed out goes back to the queue. A partition of a [`Group`] is received otherwise:
    /// [`Subscription::is_ordered`].
    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>>;

    /// Closes the connection in good order, after what is under way has been settled.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Access to dead letters, for operators; `None` if the engine gives none
    /// ([`Features::holds_dead_letters`]).
    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        None
    }

    /// How full these queues are, in their order; `None` for one that is not there. For operators: a
    /// look takes no message and changes nothing. Waits while the broker cannot be reached.
    ///
    /// # Errors
    ///
    /// When the broker refuses the look, or the engine cannot say (the default).
    fn queue_depths<'a>(
        &'a self,
        queues: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<QueueDepth>>, TransportError>> {
        let _ = queues;
        let engine = self.features().engine;
        let why = format!("{engine} cannot say how full queues are");
        Box::pin(std::future::ready(Err(TransportError::fatal(why))))
    }
}

/// A queue as it is seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDepth {
    /// Messages that wait in it; not those that somebody has and has not acknowledged.
    pub ready: u32,
    /// How many receive from it; `None` if the engine does not know. That is not the same as nobody.
    pub receivers: Option<u32>,
}

impl QueueDepth {
    /// For transports: a queue with so many messages and receivers.
    pub const fn new(ready: u32, receivers: Option<u32>) -> Self {
        Self { ready, receivers }
    }
}

/// A transport may be shared by several services of a process.
impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn features(&self) -> Features {
        (**self).features()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        (**self).declare(topology)
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        (**self).publish(batch)
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        (**self).subscribe(subscription)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        (**self).close()
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        (**self).dead_letter_access()
    }

    fn queue_depths<'a>(
        &'a self,
        queues: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<QueueDepth>>, TransportError>> {
        (**self).queue_depths(queues)
    }
}

/// The deliveries of a subscription.
pub type Deliveries = Pin<Box<dyn Stream<Item = Result<Delivery, TransportError>> + Send>>;

/// What an engine can do. An adapter claims nothing that the conformance suite has not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// The engine's name, for people: `AMQP 0-9-1`.
    pub engine: &'static str,
    /// Messages survive a restart of the broker.
    pub durable: bool,
    /// An unroutable publish is reported ([`PublishErrorKind::Unroutable`]).
    pub reports_unroutable: bool,
    /// The longest delay of a [`Settlement::Retry`](crate::Settlement::Retry); zero if the engine
    /// cannot delay.
    pub delay_max: Duration,
    /// The engine says how often it handed a message out
    /// ([`Delivery::delivered_before`](crate::Delivery::delivered_before)), at least of some queues.
    pub counts_deliveries: bool,
    /// How many partitions a [`Group`] may have; zero if the engine keeps no order across instances.
    pub partitions_max: u16,
    /// The longest name of a queue (of a partition too) or topic, in bytes; what the adapter adds
    /// to it comes on top.
    pub name_bytes_max: usize,
    /// The largest body, in bytes; `None` if only the broker's own limit holds.
    pub body_bytes_max: Option<usize>,
    /// A queue's messages come in the order in which they were published, and what comes back takes its old place, as
    /// far as [`shares_partitions`](Self::shares_partitions) says. False if its queues promise no order at all (SQS's
    /// standard queues); then it has no ordered [`Group`]s either.
    pub keeps_order: bool,
    /// A queue is made of partitions of logs that others read too (Kafka), and its consumers share these instead
    /// of single messages. So
    ///
    /// * messages come in the order in which they were published if they went to one topic or queue with one
    ///   key (or with neither key nor id); others need not. An ordered [`Group`] keeps no order between its
    ///   topics and commands;
    /// * what has no key may come from any partition of a group;
    /// * a consumer may get nothing while another one has everything, and what one holds unsettled goes to another
    ///   one when its partition does: when its stream was dropped, or when consumers come and go. Then its
    ///   deliveries are [stale](crate::Delivery::is_stale);
    /// * a message may come [`redelivered`](crate::Delivery::redelivered) after a crash although nobody had it.
    pub shares_partitions: bool,
    /// The partitions of an ordered [`Group`] do not divide its keys: whichever of them is received may get a message, and
    /// all of them get what a single queue has (SQS). The engine itself hands out no message of a key while an earlier one
    /// is out, whoever has that; so what the group keeps in order is the same. Then a partition is only one of so many
    /// that may receive, [`any`](Group::any) gets nothing, and another subscription to a partition does not wait, though it
    /// gets nothing of a key that is out.
    pub partitions_share_keys: bool,
    /// Messages are fetched ahead of the prefetch. One that nobody had may come
    /// [`redelivered`](crate::Delivery::redelivered) when a consumer that had fetched it has ended.
    pub fetches_ahead: bool,
    /// Dead letters can be held, looked at and taken out one by one
    /// ([`Transport::dead_letter_access`]).
    pub holds_dead_letters: bool,
}

impl Features {
    /// An engine that can do nothing beyond the contract; the adapter adds what it can.
    pub const fn new(engine: &'static str) -> Self {
        Self {
            engine,
            durable: false,
            reports_unroutable: false,
            delay_max: Duration::ZERO,
            counts_deliveries: false,
            partitions_max: 0,
            name_bytes_max: 64,
            body_bytes_max: None,
            keeps_order: true,
            shares_partitions: false,
            partitions_share_keys: false,
            fetches_ahead: false,
            holds_dead_letters: false,
        }
    }
}

/// The topics and queues a service needs.
///
/// ```
/// use tidings_core::{Queue, Topology};
///
/// let topology = Topology::new()
///     .topic("order_events")
///     .queue(Queue::new("payment.order-placed.v1").topic("order_events"));
/// assert_eq!(topology.queues.len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topology {
    /// Topics it publishes to (those it subscribes to are named by its queues).
    pub topics: Vec<Cow<'static, str>>,
    /// Queues it receives from.
    pub queues: Vec<Queue>,
    /// Ordered groups it receives from.
    pub groups: Vec<Group>,
}

impl Topology {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a topic to publish to, if it is not there yet.
    pub fn topic(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        let name = name.into();
        if !self.topics.contains(&name) {
            self.topics.push(name);
        }
        self
    }

    /// Adds a queue to receive from, if it is not there yet.
    pub fn queue(mut self, queue: Queue) -> Self {
        if !self.queues.contains(&queue) {
            self.queues.push(queue);
        }
        self
    }

    /// Adds an ordered group to receive from, if it is not there yet.
    pub fn group(mut self, group: Group) -> Self {
        if !self.groups.contains(&group) {
            self.groups.push(group);
        }
        self
    }

    /// Without what retries wait in: for consumers whose messages wait in their stores, when a
    /// router that was not given its store yet is asked for its topology.
    pub fn without_delays(mut self) -> Self {
        for queue in &mut self.queues {
            queue.delays.clear();
        }
        self
    }

    /// Adds everything of another topology.
    pub fn merge(self, other: Self) -> Self {
        let with_topics = other.topics.into_iter().fold(self, Self::topic);
        let with_queues = other.queues.into_iter().fold(with_topics, Self::queue);
        other.groups.into_iter().fold(with_queues, Self::group)
    }
}

/// A queue and what it subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queue {
    /// Its name: `consumer.message-name`, for example `payment.order-placed.v1`.
    pub name: Cow<'static, str>,
    /// The topics whose messages it wants; none for a queue that takes commands.
    pub topics: Vec<Cow<'static, str>>,
    /// Topics that it does not want any more. A subscription that was made before is ended; what is in
    /// the queue stays there.
    pub left: Vec<Cow<'static, str>>,
    /// How long retries of its messages are going to wait in the broker, so that what they wait in
    /// is there before anything fails. Empty for a consumer whose messages wait in its store.
    pub delays: Vec<Duration>,
    /// Whether it is only for the one who declared it, and is deleted some time after that one is
    /// gone: for answers. It has no dead letters.
    pub is_ephemeral: bool,
}

impl Queue {
    /// A queue that takes what is sent to it by name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            topics: Vec::new(),
            left: Vec::new(),
            delays: Vec::new(),
            is_ephemeral: false,
        }
    }

    /// Only for the one who declares it, and deleted some time after that one is gone.
    pub fn ephemeral(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    /// Subscribes it to a topic.
    pub fn topic(mut self, topic: impl Into<Cow<'static, str>>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Ends its subscription to a topic, if it has one. What is in the queue stays there.
    pub fn leaves(mut self, topic: impl Into<Cow<'static, str>>) -> Self {
        self.left.push(topic.into());
        self
    }

    /// Says that retries of its messages are going to wait in the broker for so long.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delays.push(delay);
        self
    }
}

/// How many slots keys fall into. A publisher sends the slot of a message's key along (on AMQP as
/// the routing key `tidings.slot.17`), so that engines without partitions can be given some.
pub const SLOT_COUNT: u16 = 64;

/// The slot of a key.
pub fn slot_of(key: &str) -> u16 {
    (hash_of_key(key) % u64::from(SLOT_COUNT)) as u16
}

/// An ordered group of a consumer: messages with one key, of all the types it takes, go to one
/// partition in the order they were published, whoever publishes them and whether or not that one
/// knows of the group. A partition is received by one subscription at a time
/// ([`Subscription::is_ordered`]). Each partition is a queue: [`partition`](Self::partition) names
/// it. What comes without a key, or from a publisher that knows nothing of slots, goes to one more
/// queue, [`any`](Self::any), which is received like a partition. Dead letters, of `any` too, are
/// beside the group's name ([`dead_letter_queue`]). An engine that keeps the order of a key by itself may do without
/// dividing the keys: [`Features::partitions_share_keys`].
///
/// Other queues and groups that want a message get it as well. Declaring a group again adds topics
/// and commands to it and takes none away. What is to be tried later waits in the consumer's store,
/// so that it keeps its place: no engine is asked to delay messages of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Its name: `payment.ordered`.
    pub name: Cow<'static, str>,
    /// The topics whose messages it wants.
    pub topics: Vec<Cow<'static, str>>,
    /// The queues of commands that go through the group: what is sent to one of them by name. They
    /// need not be there as queues of their own.
    pub commands: Vec<Cow<'static, str>>,
    /// How many partitions it has, at most [`SLOT_COUNT`].
    pub partitions: NonZeroU16,
}

impl Group {
    /// A group that wants nothing yet.
    pub fn new(name: impl Into<Cow<'static, str>>, partitions: NonZeroU16) -> Self {
        Self {
            name: name.into(),
            topics: Vec::new(),
            commands: Vec::new(),
            partitions,
        }
    }

    /// Subscribes it to a topic.
    pub fn topic(mut self, topic: impl Into<Cow<'static, str>>) -> Self {
        let topic = topic.into();
        if !self.topics.contains(&topic) {
            self.topics.push(topic);
        }
        self
    }

    /// Lets it take what is sent to a command's queue.
    pub fn command(mut self, queue: impl Into<Cow<'static, str>>) -> Self {
        self.commands.push(queue.into());
        self
    }

    /// The queue of a partition. The number of partitions is in its name, so that groups that differ
    /// in it never share a queue.
    pub fn partition(&self, partition: u16) -> String {
        format!("{}.{}of{}", self.name, partition, self.partitions)
    }

    /// The queue of what has no slot.
    pub fn any(&self) -> String {
        format!("{}.any", self.name)
    }

    /// The partition that a slot belongs to.
    pub fn partition_of_slot(&self, slot: u16) -> u16 {
        slot % self.partitions.get()
    }
}

/// The name of the dead letters beside `queue`.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dead")
}

/// What to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscription {
    /// From which queue.
    pub queue: Cow<'static, str>,
    /// How many deliveries may be out unsettled.
    pub prefetch: NonZeroU16,
    /// Whether the queue is a partition of a [`Group`], or its [`any`](Group::any). Those are
    /// received by ordered subscriptions only, and other queues by none.
    ///
    /// Then only one subscription at a time gets deliveries, over whichever connection; another one
    /// waits until that ends or its connection is lost. When the stream is dropped, whatever is out
    /// is given back to the queue at once, in its old order and before what came later, whatever the
    /// prefetch of the next subscription. It comes again
    /// [`redelivered`](crate::Delivery::redelivered). The deliveries of the dropped stream are
    /// [stale](crate::Delivery::is_stale) from that moment: settling one is an error that passes,
    /// dropping one does nothing. So finish what runs before, so that the next subscription does
    /// not get later messages while earlier ones are still being handled.
    ///
    /// While the stream lives, a delivery that is given back alone
    /// ([`Requeue`](crate::Settlement::Requeue), or dropped) comes again before what is not out yet,
    /// but after later ones that are: to give back more than one, drop the stream.
    pub is_ordered: bool,
}

impl Subscription {
    /// Receives from `queue`, with 64 deliveries out at most.
    pub fn new(queue: impl Into<Cow<'static, str>>) -> Self {
        Self {
            queue: queue.into(),
            prefetch: const { NonZeroU16::new(64).unwrap() },
            is_ordered: false,
        }
    }

    /// Receives from a partition of a [`Group`], or its [`any`](Group::any).
    pub fn ordered(mut self) -> Self {
        self.is_ordered = true;
        self
    }

    /// How many deliveries may be out unsettled.
    pub fn prefetch(mut self, deliveries: NonZeroU16) -> Self {
        self.prefetch = deliveries;
        self
    }
}

/// A message that was not published, or not known to be.
#[derive(Debug)]
pub struct PublishError {
    kind: PublishErrorKind,
    source: BoxError,
}

/// Why a message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// No connection, or it was lost before the broker answered. Try again.
    Unavailable,
    /// Nobody answered in time whether it is taken, although the broker is there: a queue that it goes to cannot
    /// take it now (it has no leader, or too few replicas), or the schema registry of its topic is away. The broker may
    /// have it. Try again later, beside what goes elsewhere.
    Unconfirmed,
    /// The broker is there and took nothing for now (a full queue, an alarm). Try again later.
    Refused,
    /// No queue wants it. Try again when somebody has subscribed.
    Unroutable,
    /// It can never be published as it is (too large, not allowed).
    Invalid,
}

impl PublishError {
    /// An error of this kind with its cause.
    pub fn new(kind: PublishErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: source.into(),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> PublishErrorKind {
        self.kind
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl StdError for PublishError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

/// A failure of the transport itself.
#[derive(Debug)]
pub struct TransportError {
    temporary: bool,
    message: String,
    source: Option<BoxError>,
}

impl TransportError {
    /// A failure that passes by itself (a lost connection).
    pub fn temporary(message: impl Into<String>) -> Self {
        Self {
            temporary: true,
            message: message.into(),
            source: None,
        }
    }

    /// A failure that somebody must mend (a wrong password, a queue that differs). The message
    /// says how.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self {
            temporary: false,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// True if it passes by itself.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for TransportError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
