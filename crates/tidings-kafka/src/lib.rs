//! The toolkit's [`Transport`] over Apache Kafka.
//!
//! It waits for brokers that are not there yet, goes on through their restarts, never says a message is published
//! before all replicas in sync have it, and settles message by message although Kafka keeps one offset per
//! partition.
//!
//! ```no_run
//! use tidings_kafka::Kafka;
//!
//! # async fn example() -> Result<(), tidings_core::TransportError> {
//! let transport = Kafka::connect("kafka://127.0.0.1:9092").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The URL
//!
//! `kafka://user:password@host:port,host:port?option=value&...`, or `kafkas://` for TLS, which needs the feature
//! `tls` of this crate; what is special is percent-encoded. The port is 9092 if it is left out. A user means
//! SASL, by `PLAIN` or what the option `sasl` says (`SCRAM-SHA-256`, `SCRAM-SHA-512`: with the feature `tls`).
//! Options: `partitions` (of a topic that is made, default 12), `replication` (of a topic that is made; default:
//! the cluster's), `min_insync` (how many copies have to be there before a message of a topic that is made is confirmed;
//! default: 2 with a `replication` of 3 or more, else the cluster's), `retention` (milliseconds that a topic keeps messages: one
//! that is made for so long, default the cluster's; one that is there for less is told of, default three days),
//! `session_timeout` (milliseconds until the partitions of a silent instance go to others,
//! default 10 000), `handover_timeout` (milliseconds that a partition which is to go elsewhere waits for what is
//! still being handled, default 5 000), `max_poll_interval` (milliseconds that the thread which receives may be stuck
//! before its partitions go to others, default 300 000 or more; how long handlers take does not count),
//! `metadata_max_age` (milliseconds until a partition that was added to a topic is noticed, default 60 000), and for TLS
//! `cacertfile`, `certfile`, `keyfile`.
//!
//! # A schema registry
//!
//! With the feature `registry` and the option `schema_registry=http://user:password@host:8081` the bodies of events begin with the
//! id of their schema, as Confluent's clients write and read them (`docs/guide/schema-registry.md`). The schema is the one under the
//! subject `TOPIC-value`; `schema_subject` may be `message` or `topic-message` for topics of several types. An
//! event that comes without an id becomes a dead letter, unless `without_schema=accept` is said.
//!
//! # What it makes in the cluster
//!
//! Topic `T` is the Kafka topic `T`. Queue `Q` is the Kafka topic `Q`, for what is sent to it by name, and the
//! consumer group `Q`, with dead letters in the topic `Q.dead`, which keeps them without end. What `Q`
//! subscribes to, and from which offset on, is a record in the topic `tidings.bindings`. Topics that are there
//! are used as they are, if their settings can keep what is promised: a compacted topic is refused, and what weakens a promise
//! is a warning (`docs/errors/TDG-4016.md`). Metadata are CloudEvents in binary mode: headers `ce_…` and `content-type`, and the
//! record's key. A name has at most 244 of the bytes that Kafka takes: letters, digits, `.`, `_` and `-`.
//!
//! A message with a key goes to the partition that Java's default partitioner chooses, so programs with other
//! clients agree. One without goes to any; one without key and id to the first.
//!
//! An ordered group `G` of `n` partitions has the topics `G.0ofn` and so on, and `G.any`, each with a single
//! partition. Who receives `G.iofn` has partition `k` of each topic of the group, for all `k` with `k mod n = i`. What has
//! no key is in one of these like the rest; `G.any` gets only what is sent to it by name.
//!
//! # Settling
//!
//! An acknowledgement is noted at once and committed within a second, or when the partition goes elsewhere. A
//! crash in between means that the message comes again. What is given back, or retried, is handed out again from
//! memory; after a crash it comes from Kafka, without the attempts that were counted since. What comes after a
//! crash is `redelivered` if it may have been handed out before (some that was not is said to be, too).
//!
//! Kafka delays nothing: [`Features::delay_max`] is zero, so a consumer that retries later needs a store.
//!
//! # Replays
//!
//! A consumer that is added later may begin with what a topic still has, and one that lost its database may get it again
//! ([`replay`]). Nothing is sent for that: where the queue begins moves.
//!
//! # Dead letters
//!
//! Operators hold, read, send back and remove them ([`Transport::dead_letter_access`]). Who holds a queue is the only
//! member of its consumer group; the broker calls a holder gone when its session is over. What was removed is a
//! record in `tidings.bindings`, and deleted from the topic when nothing is left before it, if the user may do that.
//! Who deletes such a topic and has it made anew leaves records of what was removed that hide the first letters in it: let
//! nobody do that.
//!
//! # What it does not do
//!
//! No order between topics. A queue that ends with its process leaves its topic behind if the process is killed. Headers
//! whose values are no text are left out of what is received.

mod address;
mod bindings;
mod checks;
mod client;
mod depths;
mod intake;
mod letters;
mod message;
mod plan;
mod polling;
mod publisher;
mod ranges;
mod receiving;
pub mod replay;
#[cfg_attr(not(feature = "registry"), path = "no_schemas.rs")]
mod schemas;
mod topology;
mod window;

pub use tidings_adapter::{Piece, PieceKind, PieceState};

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::BaseConsumer,
    error::KafkaError,
};
use tidings_adapter::{Backoff, Standing};
use tidings_core::{
    BoxFuture, DeadLetterAccess, Deliveries, Destination, Features, Outgoing, PublishError,
    PublishErrorKind, QueueDepth, Subscription, Topology, Transport, TransportError,
};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    address::Address,
    bindings::Bindings,
    client::Context,
    intake::Intake,
    letters::Access,
    publisher::{Publisher, Record},
};

/// How long [`Transport::close`] waits for what is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often librdkafka is asked for what it has to say, at the start.
const LISTEN_EVERY: Duration = Duration::from_millis(50);
/// How long [`Transport::publish`] waits for confirms, unless the [`Builder`] says otherwise.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// A transport over Kafka. Dropping it ends its consumers; [`Transport::close`] does that in good order.
pub struct Kafka {
    shared: Arc<Shared>,
    letters: Access,
}

/// How to connect; made by [`Kafka::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    address: Address,
    name: String,
    confirm_timeout: Duration,
}

impl Builder {
    /// The client's name in the brokers' logs and quotas. Default: the name of the program.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long [`Transport::publish`] waits for confirms. What is not confirmed then is
    /// [`Unconfirmed`](PublishErrorKind::Unconfirmed); the brokers may have it nevertheless. Default: 30 seconds.
    pub fn confirm_timeout(mut self, time: Duration) -> Self {
        self.confirm_timeout = time;
        self
    }

    /// Connects, and waits for brokers that are not there yet.
    ///
    /// # Errors
    ///
    /// As [`Kafka::connect`].
    pub async fn connect(self) -> Result<Kafka, TransportError> {
        let kafka = self.start()?;
        kafka.shared.status.reached().await?;
        Ok(kafka)
    }

    /// Connects in the background: for a service that has something to do without a broker, too.
    /// What cannot be mended by waiting is in the log, and the error of
    /// [`Transport::declare`] and [`Transport::subscribe`].
    ///
    /// # Errors
    ///
    /// When librdkafka does not take the settings, for example because a file of certificates is not there.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<Kafka, TransportError> {
        let status = Arc::new(Standing::new("Kafka"));
        let address = self.address.clone();
        let refused = |error: KafkaError| {
            let why = address.without_password(&error.to_string());
            TransportError::fatal(format!(
                "librdkafka refuses the settings of the broker's URL: {why}"
            ))
        };
        let config = self.address.client_config(&self.name);
        let context = Context {
            status: Arc::clone(&status),
        };
        let mut for_looks = config.clone();
        // Nothing is committed in its name, but a consumer has to have one.
        for_looks
            .set("group.id", bindings::TOPIC)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error");
        let looker: BaseConsumer<Context> = for_looks
            .create_with_context(context.clone())
            .map_err(refused)?;
        let follower: BaseConsumer<Context> = for_looks
            .create_with_context(context.clone())
            .map_err(refused)?;
        let admin: AdminClient<Context> = config.create_with_context(context).map_err(refused)?;
        let publisher = Publisher::new(config.clone(), Arc::clone(&status), self.confirm_timeout);
        let shared = Arc::new(Shared {
            address: self.address,
            config,
            status,
            bindings: Bindings::new(),
            looker,
            admin,
            publisher,
            known: Mutex::default(),
            checked: Mutex::default(),
            ephemeral: Mutex::default(),
            intakes: Mutex::default(),
            holds: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&shared).begin(follower));
        let letters = Access {
            shared: Arc::clone(&shared),
        };
        Ok(Kafka { shared, letters })
    }
}

impl Kafka {
    /// Connects to the cluster at `url`, and waits for one that is not there yet.
    ///
    /// # Errors
    ///
    /// When waiting does not help: the URL is malformed, the brokers refuse user and password, or their
    /// certificate is not trusted.
    pub async fn connect(url: &str) -> Result<Self, TransportError> {
        Self::builder(url)?.connect().await
    }

    /// Starts to describe a connection.
    ///
    /// # Errors
    ///
    /// When the URL is malformed.
    pub fn builder(url: &str) -> Result<Builder, TransportError> {
        Ok(Builder {
            address: Address::parse(url)?,
            name: tidings_adapter::program_name(),
            confirm_timeout: CONFIRM_TIMEOUT,
        })
    }

    /// True while brokers are there to publish to.
    pub fn is_connected(&self) -> bool {
        self.shared.status.is_connected()
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("address", &self.shared.address)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Transport for Kafka {
    fn features(&self) -> Features {
        let mut features = Features::new("Apache Kafka");
        features.durable = true;
        features.reports_unroutable = true;
        features.shares_partitions = true;
        features.holds_dead_letters = true;
        features.partitions_max = self.shared.address.partitions.min(tidings_core::SLOT_COUNT);
        features.name_bytes_max = topology::NAME_BYTES_MAX;
        features.body_bytes_max = Some(publisher::BODY_BYTES_MAX);
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(self.shared.declare(topology))
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(self.shared.publish(batch))
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(receiving::subscribe(&self.shared, subscription))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.close())
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        Some(&self.letters)
    }

    fn queue_depths<'a>(
        &'a self,
        queues: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<QueueDepth>>, TransportError>> {
        Box::pin(self.shared.depths(queues))
    }
}

/// What the transport and its subscriptions share.
struct Shared {
    address: Address,
    config: ClientConfig,
    status: Arc<Standing>,
    bindings: Arc<Bindings>,
    /// Answers questions about topics and offsets. Not who follows the subscriptions: a broker answers nothing else
    /// on a connection on which somebody waits for records.
    looker: BaseConsumer<Context>,
    admin: AdminClient<Context>,
    publisher: Publisher,
    /// Topics that were there.
    known: Mutex<BTreeSet<String>>,
    /// Topics whose settings were looked at.
    checked: Mutex<BTreeSet<String>>,
    /// Queues that end with this transport.
    ephemeral: Mutex<HashSet<String>>,
    intakes: Mutex<Vec<Arc<Intake>>>,
    /// Queues whose dead letters are held here.
    holds: Mutex<HashSet<String>>,
}

impl Shared {
    /// Waits for the cluster, and begins to follow the subscriptions.
    async fn begin(self: Arc<Self>, follower: BaseConsumer<Context>) {
        let replicas = self.address.replication.map_or(-1, i32::from);
        let mut topic = NewTopic::new(bindings::TOPIC, 1, TopicReplication::Fixed(replicas))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1");
        if let Some(in_sync) = &self.address.min_insync {
            topic = topic.set("min.insync.replicas", in_sync);
        }
        let mut backoff = Backoff::default();
        while !self.status.is_closed() {
            let asked = async {
                Ok(match self.has_topic(bindings::TOPIC).await? {
                    true => true,
                    false => {
                        self.create(std::slice::from_ref(&topic)).await?;
                        false
                    }
                })
            };
            match self.listening(asked).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.is_temporary() => debug!(%error, "waiting for Kafka"),
                Err(error) => self.status.refused(error.to_string()),
            }
            if self.status.is_refused() {
                return;
            }
            backoff.pause().await;
        }
        let shared = Arc::clone(&self);
        let thread = std::thread::Builder::new().name("kafka bindings".into());
        let started = thread.spawn(move || {
            bindings::follow(&follower, &shared.looker, &shared.bindings, &shared.status);
        });
        if let Err(error) = started {
            self.status
                .refused(format!("no thread can be started: {error}"));
        }
    }

    /// Waits for an answer, and hears meanwhile what librdkafka has to say: before anybody follows the subscriptions,
    /// nobody else asks it. That it is not let in, for example.
    async fn listening<T>(
        &self,
        asked: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        tokio::pin!(asked);
        loop {
            let answer = timeout(LISTEN_EVERY, &mut asked).await;
            while self.looker.poll(Duration::ZERO).is_some() {}
            match answer {
                Ok(answer) => return answer,
                Err(_) if self.status.is_refused() => {
                    return Err(TransportError::temporary("it is not let in"));
                }
                Err(_) => {}
            }
        }
    }

    /// How a queue is received.
    fn consumer_config(&self, group: &str) -> ClientConfig {
        let mut config = self.config.clone();
        let session = self.address.session_timeout.as_millis();
        let interval = self.address.max_poll_interval().as_millis();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            // How soon members notice that one has come or gone.
            .set("heartbeat.interval.ms", "500")
            // It is not the handlers who ask for messages: a thread does, all the time.
            .set("max.poll.interval.ms", interval.to_string())
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "250")
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.min.messages", "2000")
            .set("queued.max.messages.kbytes", "16384");
        config
    }

    async fn publish(self: &Arc<Self>, mut batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        if !self.status.is_connected() {
            self.look_again();
            let none = || {
                PublishError::new(
                    PublishErrorKind::Unavailable,
                    "there is no connection to Kafka",
                )
            };
            return batch.iter().map(|_| Err(none())).collect();
        }
        let mut routes: Vec<Result<Arc<str>, PublishError>> = Vec::with_capacity(batch.len());
        for (index, message) in batch.iter().enumerate() {
            let before = index
                .checked_sub(1)
                .map(|before| &batch[before].destination);
            let route = match routes.last() {
                // Most batches go to one place.
                Some(Ok(last)) if before == Some(&message.destination) => Ok(Arc::clone(last)),
                _ => self.route(&message.destination).await,
            };
            routes.push(route);
        }
        if let Some(schemas) = &self.address.schemas {
            // What goes nowhere needs no schema.
            let (found, messages): (Vec<_>, Vec<_>) = routes
                .iter_mut()
                .zip(&mut batch)
                .filter(|(route, _)| route.is_ok())
                .map(|(route, message)| (route, (&message.destination, &mut message.envelope)))
                .unzip();
            let refusals = schemas.write(messages.into_iter()).await;
            for (route, refusal) in found.into_iter().zip(refusals) {
                if let Some(refusal) = refusal {
                    *route = Err(refusal);
                }
            }
        }
        let mut records = Vec::with_capacity(batch.len());
        let mut outcomes = Vec::with_capacity(batch.len());
        for (message, route) in batch.into_iter().zip(routes) {
            match route {
                Ok(topic) => {
                    let envelope = message.envelope;
                    records.push(Record { topic, envelope });
                    outcomes.push(None);
                }
                Err(error) => outcomes.push(Some(error)),
            }
        }
        let mut published = self.publisher.publish(records).await.into_iter();
        let missing = || {
            Err(PublishError::new(
                PublishErrorKind::Unavailable,
                "it was not sent",
            ))
        };
        let outcomes = outcomes.into_iter().map(|error| match error {
            Some(error) => Err(error),
            None => published.next().unwrap_or_else(missing),
        });
        let outcomes: Vec<Result<(), PublishError>> = outcomes.collect();
        let is_gone = |outcome: &Result<(), PublishError>| {
            let kind = outcome.as_ref().err().map(PublishError::kind);
            kind == Some(PublishErrorKind::Unroutable)
        };
        if outcomes.iter().any(is_gone) {
            // A topic that was there may have been deleted.
            self.known.lock().clear();
        }
        outcomes
    }

    async fn publish_one(self: &Arc<Self>, message: Outgoing) -> Result<(), PublishError> {
        self.publish(vec![message]).await.pop().unwrap_or(Ok(()))
    }

    /// The topic for a destination, if anybody wants what goes there.
    async fn route(self: &Arc<Self>, destination: &Destination) -> Result<Arc<str>, PublishError> {
        let (name, why) = match destination {
            Destination::Topic(topic) if self.bindings.is_wanted(topic) => {
                return Ok(Arc::from(&**topic));
            }
            Destination::Topic(topic) => {
                // Somebody may have subscribed just now.
                let end = self.ends(bindings::TOPIC).await.map_err(unroutable)?;
                let read = self.bindings.read_until(end.get(&0).copied().unwrap_or(0));
                let _ = timeout(topology::LOOK_TIMEOUT, read).await;
                if self.bindings.is_wanted(topic) {
                    return Ok(Arc::from(&**topic));
                }
                (topic, "no queue subscribes to the topic")
            }
            Destination::Queue(queue) => {
                if self.has_topic(queue).await.map_err(unroutable)? {
                    return Ok(Arc::from(&**queue));
                }
                (queue, "there is no queue")
            }
        };
        let kind = PublishErrorKind::Unroutable;
        Err(PublishError::new(kind, format!("{why} `{name}`")))
    }

    /// Asks whether a broker answers, if none did.
    fn look_again(self: &Arc<Self>) {
        if self.status.is_down() && !self.status.is_closed() {
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                let _ = shared.ends(bindings::TOPIC).await;
            });
        }
    }

    /// Ends what is received, and who follows.
    fn stop(&self) {
        self.status.close();
        for intake in self.intakes.lock().iter() {
            intake.over();
        }
    }

    async fn close(self: &Arc<Self>) {
        let was_closed = self.status.is_closed();
        let ephemeral: Vec<String> = self.ephemeral.lock().drain().collect();
        self.stop();
        let intakes = std::mem::take(&mut *self.intakes.lock());
        let left = async {
            for intake in &intakes {
                intake.wait_until_left().await;
            }
            let shared = Arc::clone(self);
            let closed = tokio::task::spawn_blocking(move || shared.publisher.close(CLOSE_TIMEOUT));
            let _ = closed.await;
            if !ephemeral.is_empty() && !was_closed {
                let names: Vec<&str> = ephemeral.iter().map(String::as_str).collect();
                let options = AdminOptions::new().request_timeout(Some(CLOSE_TIMEOUT));
                let _ = self.admin.delete_topics(&names, &options).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, left).await.is_err() {
            warn!(
                "Kafka did not let go in {CLOSE_TIMEOUT:?}; what was settled last may come again"
            );
        }
    }
}

/// Why nobody knows where a message goes.
fn unroutable(error: TransportError) -> PublishError {
    let kind = match error.is_temporary() {
        true => PublishErrorKind::Unavailable,
        false => PublishErrorKind::Refused,
    };
    PublishError::new(kind, error.to_string())
}
