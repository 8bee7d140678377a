//! The toolkit's [`Transport`] over AMQP 0-9-1: the broker in the box or RabbitMQ, the same code.
//!
//! It never leaves a connection to its user: it connects, waits for a broker that is not there
//! yet, connects again, declares again, subscribes again; and it never says a message is published
//! before the broker has confirmed it.
//!
//! ```no_run
//! use tidings_amqp::Amqp;
//!
//! # async fn example() -> Result<(), tidings_core::TransportError> {
//! let transport = Amqp::connect("amqp://guest:guest@127.0.0.1:5672/").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The URL
//!
//! `amqp://user:password@host:port/vhost?option=value&...`, or `amqps://` for TLS; what is special
//! is percent-encoded. Left out, user and password are `guest`, the port is 5672 (5671), the
//! vhost is `/`. A cluster is named by several of its nodes, `amqp://user:password@host:port,host:port/vhost`
//! (at most 16, each with a port of its own): each connection begins at a random one, so that instances
//! spread, and when it is lost or cannot be made it goes on with the next. All must be nodes of one
//! cluster: brokers that know nothing of each other each have their own queues. Options: `heartbeat` (seconds, default 15, 0 for none), `connection_timeout`
//! (milliseconds for each host, default 10 000, with several hosts 3 000), `declare` (default `true`; with `false` exchanges and
//! queues are not declared, only looked for, and nothing is bound: for users without the permission to configure,
//! for whom `tidings topology apply` makes them), `queues` (`quorum` or `classic`: the type of new queues of
//! consumers; default: `quorum` with several hosts, otherwise what the virtual host has; queues that are there
//! are used as they are), and for TLS `cacertfile`, `certfile`, `keyfile`,
//! `server_name_indication`. The system's authorities are trusted unless `cacertfile` is given.
//!
//! # What it makes on the broker
//!
//! Topic `T` is the durable fanout exchange `T`. Queue `Q` is a durable queue bound to the exchanges
//! of its topics, with dead letters in `Q.dead`. A name has at most 250 bytes and no control
//! characters. No plugin is needed. Metadata are CloudEvents in binary mode, as headers
//! `cloudEvents:...` and as properties.
//!
//! Retries that wait in the broker share one ladder of delays (10, 20, 50, 100, 200, 500 ms, 1, 2, 5,
//! 10, 30 s, 1, 2, 5, 10, 30 min, 1 h; others are rounded up): the quorum queues `tidings.delay.D`
//! (`D` in milliseconds), each behind the fanout exchange of its name. What has waited goes back
//! through the direct exchange `tidings.delayed`; if its queue is gone, into the queue
//! `tidings.undeliverable`, with its history and the queue's name as its routing key. They are made
//! when a [`Queue`](tidings_core::Queue) asks for delays. Earlier versions had a queue
//! `Q.retry.D` for each queue and delay; what is left in one comes back by itself, and when it is
//! empty it may be deleted.
//!
//! An ordered group `G` of `n` partitions is the durable direct exchange `G`, bound to the exchanges of
//! its topics, and the durable queues `G.0ofn` and so on, each with a single active consumer and bound
//! by the routing keys `tidings.slot.K` of its slots. What has another routing key goes by the alternate
//! exchange `G.any` into the queue `G.any`. Dead letters are in `G.dead`. A command `C` that the group
//! takes is the durable fanout exchange `C.slot`, bound to `G`: publishers look whether it is there
//! before they first send to `C`, and send there with the slot; declaring it fails while there is a
//! queue `C`. Messages with a key go to topics with the routing key of their slot, others with an empty
//! one.
//!
//! On a cluster, or with `queues=quorum`, the queues of consumers and of groups are quorum queues with a delivery
//! limit that is never reached; an ordered subscription there holds up to 256 deliveries, and what is given back
//! alone takes along all that is out. Instances of an ordered group must agree on the option. Queues of dead letters are
//! classic queues always.
//!
//! # Foreign programs
//!
//! Headers whose values are numbers, booleans, times, tables or arrays are read as text (tables and
//! arrays as JSON). The AMQP property `type` is the message's name if the message has a CloudEvents
//! header `specversion`, or if it has the form of a name (`order-placed.v1`); any other is kept as
//! the header `amqp:type`, and the message counts as one without a name.
//!
//! # Settling
//!
//! An acknowledgement resolves when it is on its way: AMQP has no answer to one. If the connection
//! is lost before the broker reads it, the broker delivers the message again. A retry or a dead
//! letter resolves when the broker has confirmed the copy and the acknowledgement of the original
//! is on its way; while the copy cannot be published it waits, as long as the original's connection
//! lives. What is dropped unsettled, also half-way through a settlement, goes back to its queue.
//!
//! When an ordered subscription's stream is dropped its channel is closed, so that the broker puts back
//! what is out before the next subscription receives. A cancellation would not wait for that.
//!
//! # Dead letters, for operators
//!
//! [`Transport::dead_letter_access`] fetches letters one by one and holds them unacknowledged. Who holds a
//! queue has an exclusive queue `tidings.held.…`; discarded letters are kept in the durable queue
//! `tidings.discarded`, of at most 10,000 messages.
//!
//! # Watching topics
//!
//! [`Amqp::tail`] has an exclusive queue `tidings.tail.…` that is deleted with it, bound to topics that are
//! there.
//!
//! # Two connections
//!
//! One publishes, one (from the first subscription on) receives: a broker that stops reading from
//! publishers, because its memory is full, would otherwise not read the acknowledgements either
//! that could empty it.
//!
//! A subscription that the broker answers by closing the connection, as RabbitMQ does for a broken quorum queue, gets
//! a third one for itself, so that the others go on.

mod address;
mod consumer;
mod copies;
mod delays;
mod dial;
mod groups;
mod headers;
mod letters;
mod link;
mod looking;
mod message;
mod operating;
mod parts;
mod publisher;
mod publishing;
mod queues;
mod session;
mod tailing;
mod topology;
mod unsettled;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tidings_adapter::Backoff;
use tidings_core::{
    BoxFuture, DeadLetterAccess, Deliveries, Destination, Features, Outgoing, PublishError,
    Subscription, Topology, Transport, TransportError,
};
use tokio::time::timeout;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, warn};

pub use operating::{Deleted, Piece, PieceKind, PieceMade, PieceState};
pub use tailing::{Tailed, Tailing};
pub use tidings_core::QueueDepth;

use crate::{
    address::Address,
    link::{Link, Role, Surroundings},
    publisher::{Item, Outcome},
    publishing::{Publishing, all_unavailable},
    session::{Closed, Session},
    topology::{DeclareError, Declared},
};

/// How long [`Transport::close`] waits for what is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`Transport::publish`] waits for confirms, unless the [`Builder`] says otherwise.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a dead letter may have been handed out before, unless the [`Builder`] says otherwise.
const LOOKS_MAX: u32 = 15;

/// A transport over AMQP. Dropping it ends its connections at once; [`Transport::close`] ends them
/// in good order.
pub struct Amqp {
    // Dropped first, so that nothing is left that could think it were still connected.
    _stop: DropGuard,
    shared: Arc<Shared>,
    letters: letters::Access,
}

/// How to connect; made by [`Amqp::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    address: Address,
    name: String,
    confirm_timeout: Duration,
    looks_max: u32,
}

impl Builder {
    /// The connection's name in the broker's tools. Default: the name of the program.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long [`Transport::publish`] waits for the broker's confirms. What is not confirmed then is
    /// [`Unconfirmed`](tidings_core::PublishErrorKind::Unconfirmed); the broker may have it nevertheless. Default: 30 seconds.
    pub fn confirm_timeout(mut self, time: Duration) -> Self {
        self.confirm_timeout = time;
        self
    }

    /// How often a dead letter may have been handed out, where its queue counts that, before looking
    /// at it is refused: RabbitMQ drops messages of a quorum queue that were handed out more often than
    /// its delivery limit says. Default: 15, which is below the limit of RabbitMQ 4. The toolkit makes
    /// classic queues for dead letters, which do not count; only one that was there with another type does.
    pub fn dead_letter_looks_max(mut self, count: u32) -> Self {
        self.looks_max = count;
        self
    }

    /// Connects, and waits for a broker that is not there yet.
    ///
    /// # Errors
    ///
    /// As [`Amqp::connect`].
    pub async fn connect(self) -> Result<Amqp, TransportError> {
        let amqp = self.start();
        amqp.shared.publishing.up().await?;
        Ok(amqp)
    }

    /// Connects in the background: for a service that has something to do without a broker, too.
    /// What cannot be mended by waiting is in the log, and the error of
    /// [`Transport::declare`] and [`Transport::subscribe`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(self) -> Amqp {
        let stop = CancellationToken::new();
        let around = Surroundings {
            address: Arc::new(self.address),
            name: self.name.into(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: stop.clone(),
        };
        let declared = Arc::new(Mutex::new(Declared::default()));
        let role = Publishing {
            declared: Arc::clone(&declared),
            confirm_timeout: self.confirm_timeout,
        };
        let shared = Shared {
            publishing: Link::start(role, &around),
            consuming: OnceLock::new(),
            apart: Mutex::default(),
            declared,
            around,
            confirm_timeout: self.confirm_timeout,
            looks_max: self.looks_max,
            held: Mutex::default(),
            ways_back: Mutex::default(),
        };
        let shared = Arc::new(shared);
        Amqp {
            _stop: stop.drop_guard(),
            letters: letters::Access {
                shared: Arc::clone(&shared),
            },
            shared,
        }
    }
}

impl Amqp {
    /// Connects to the broker at `url`, and waits for one that is not there yet.
    ///
    /// # Errors
    ///
    /// When waiting does not help: the URL is malformed, the broker refuses user, password or
    /// virtual host, its certificate is not trusted, or what listens there is no AMQP broker.
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
            looks_max: LOOKS_MAX,
        })
    }

    /// True while the broker is there to publish to.
    pub fn is_connected(&self) -> bool {
        self.shared.publishing.now().is_some()
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp")
            .field("address", &self.shared.around.address)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Transport for Amqp {
    fn features(&self) -> Features {
        let mut features = Features::new("AMQP 0-9-1");
        features.durable = true;
        features.reports_unroutable = true;
        features.delay_max = delays::DELAY_MAX;
        features.partitions_max = groups::PARTITIONS_MAX;
        features.name_bytes_max = topology::NAME_BYTES_MAX;
        features.holds_dead_letters = true;
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let wanted = Declared::of(topology).map_err(DeclareError::into_transport)?;
            self.shared.declare_anew(wanted).await
        })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        let items = batch.into_iter().map(Item::message).collect();
        Box::pin(self.shared.publish_items(items))
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(async move {
            let deliveries = consumer::subscribe(&self.shared, subscription).await?;
            Ok(Box::pin(deliveries) as Deliveries)
        })
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
        Box::pin(self.depths(queues))
    }
}

/// What the transport, its links and its subscriptions share.
struct Shared {
    around: Surroundings,
    publishing: Link<Publishing>,
    consuming: OnceLock<Link<Consuming>>,
    /// Connections of single subscriptions.
    apart: Mutex<Vec<Weak<Session>>>,
    declared: Arc<Mutex<Declared>>,
    confirm_timeout: Duration,
    looks_max: u32,
    /// Queues of dead letters that somebody in this process holds.
    held: Mutex<HashSet<String>>,
    /// Where dead letters of a consumer are sent back to: its queue, or its group's exchange.
    ways_back: Mutex<HashMap<String, Destination>>,
}

impl Shared {
    /// The connection for receiving, made when it is first needed.
    fn consuming(&self) -> &Link<Consuming> {
        self.consuming
            .get_or_init(|| Link::start(Consuming, &self.around))
    }

    /// A subscription receives over a connection of its own.
    fn note_apart(&self, session: &Arc<Session>) {
        let mut apart = self.apart.lock();
        apart.retain(|it| it.upgrade().is_some_and(|it| !Arc::ptr_eq(&it, session)));
        apart.push(Arc::downgrade(session));
    }

    /// Everything that was declared about `queue`.
    fn declared_about(&self, queue: &str) -> Option<Declared> {
        self.declared.lock().about(queue)
    }

    /// Declares what a service asks for.
    async fn declare_anew(&self, wanted: Declared) -> Result<(), TransportError> {
        let mut backoff = Backoff::default();
        for command in wanted.commands() {
            loop {
                let up = self.publishing.up().await?;
                let looked = topology::no_queue_of_a_command(&up.session, command).await;
                match looked.map_err(DeclareError::into_transport) {
                    Ok(()) => break,
                    Err(error) if error.is_temporary() => backoff.pause().await,
                    Err(error) => return Err(error),
                }
            }
        }
        self.declare(wanted).await
    }

    /// Declares, and remembers it for the next connection.
    async fn declare(&self, wanted: Declared) -> Result<(), TransportError> {
        let mut backoff = Backoff::default();
        loop {
            let up = self.publishing.up().await?;
            let error = match wanted.declare(&up.session).await {
                Ok(()) => {
                    up.note(&wanted);
                    self.declared.lock().merge(wanted);
                    return Ok(());
                }
                Err(error) => error.into_transport(),
            };
            if !error.is_temporary() {
                return Err(error);
            }
            debug!("{error}; declaring again");
            backoff.pause().await;
        }
    }

    /// The exchange that delays what goes back to `queue`, declared if it was not.
    async fn delay_exchange(&self, queue: &str, delay: Duration) -> Result<String, TransportError> {
        let step_ms = delays::step(delay);
        let exchange = delays::name_of(step_ms);
        let up = self.publishing.up().await?;
        // On this connection: what could not be declared again would close the channel for all.
        let is_known = up.known.lock().contains(&exchange);
        if !is_known || !self.declared.lock().has_delay(queue, step_ms) {
            self.declare(Declared::delay(queue, step_ms)).await?;
        }
        Ok(exchange)
    }

    /// Declares what belongs to `queue` again; somebody deleted it.
    async fn restore(&self, queue: &str) {
        let delays = || self.declared.lock().delays_of(queue);
        if let Some(declared) = self.declared_about(queue).or_else(delays)
            && let Err(error) = self.declare(declared).await
        {
            warn!("{error}");
        }
    }

    async fn publish_items(&self, items: Vec<Item>) -> Vec<Outcome> {
        match self.publishing.now() {
            Some(up) => up.publish(items, self.confirm_timeout).await,
            None => {
                let closed = Closed::lost("there is no connection with the broker");
                all_unavailable(items.len(), &closed)
            }
        }
    }

    async fn close(&self) {
        self.around.closing.cancel();
        let publishing = self.publishing.session();
        let consuming = self.consuming.get().and_then(Link::session);
        let apart: Vec<_> = self.apart.lock().iter().filter_map(Weak::upgrade).collect();
        if let Some(up) = self.publishing.now()
            && timeout(CLOSE_TIMEOUT, up.publisher.landed()).await.is_err()
        {
            warn!("some messages are not confirmed; closing nevertheless");
        }
        // Acknowledgements first: a copy that was confirmed is followed by one.
        for session in consuming.into_iter().chain(apart).chain(publishing) {
            session.close().await;
        }
        self.around.stop.cancel();
        self.around.tasks.close();
        if timeout(CLOSE_TIMEOUT, self.around.tasks.wait())
            .await
            .is_err()
        {
            warn!("the connections did not end in time");
        }
    }
}

/// The connection for receiving. What is set up on it, each subscription sets up for itself.
struct Consuming;

impl Role for Consuming {
    type Up = Arc<Session>;

    const PURPOSE: &'static str = "receiving";

    async fn set_up(&self, session: &Arc<Session>) -> Result<Arc<Session>, Closed> {
        Ok(Arc::clone(session))
    }

    async fn worn_out(&self, _: &Arc<Session>) {
        std::future::pending().await
    }
}
