//! The state machine: every command of AMQP that concerns exchanges, queues and messages.
//!
//! Each command takes the time and a list to add effects to. A refused command changes nothing, also
//! when it is refused because the store has no room for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::exchange::{Exchange, Index, RouteCache, Target};
use crate::names::Names;
use crate::queue::{Queue, text};
use crate::session::{Channel, Consumer};
use crate::slab::{Key, Slab};
use crate::{
    BindingStats, ChannelId, ConnectionId, ExchangeStats, QueueId, QueueStats, Refusal, ReplyCode,
    Table,
};

mod admitting;
mod consuming;
mod dead_letters;
mod fetching;
mod publishing;
mod queues;
mod restoring;
mod sessions;
mod settling;
mod timing;
mod topology;
mod transactions;

/// The exchanges that are always there.
const PREDECLARED: [(&str, &str); 6] = [
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.topic", "topic"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
    ("amq.rabbitmq.trace", "topic"),
];

/// How a broker is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the virtual host, for refusals' texts.
    pub vhost: String,
    /// Decodes the headers of a message from its properties. Called only when a message meets a
    /// headers exchange that has bindings.
    pub decode_headers: fn(&Bytes) -> Table,
    /// Gives the bits of a generated name, of a queue or a consumer, after so many others. By default
    /// that is their number, for tests; a server gives bits that nobody can guess, and other ones in
    /// each process.
    pub name_bits: fn(u64) -> u128,
    /// Routing results remembered per exchange. When it is full it starts anew.
    pub cached_routes_max: usize,
    /// Messages delivered from, or expired in, one queue at a time. The rest follows with the next
    /// [`Broker::tick`], so that a long backlog neither holds up others nor floods a connection
    /// that could have been paused.
    pub messages_per_step_max: usize,
    /// Queues, those for direct replies included. What a store brings back is kept in any case; the
    /// same is true of the next two.
    pub queues_max: usize,
    /// Exchanges besides those that are always there.
    pub exchanges_max: usize,
    /// Bindings besides those of the default exchange.
    pub bindings_max: usize,
    /// How many messages of a backlog are sent away together; of about half as many the store is asked
    /// at a time.
    pub messages_per_piece: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vhost: "/".to_owned(),
            decode_headers: |_| Table::new(),
            name_bits: u128::from,
            cached_routes_max: 4096,
            messages_per_step_max: 512,
            queues_max: usize::MAX,
            exchanges_max: usize::MAX,
            bindings_max: usize::MAX,
            messages_per_piece: 1024,
        }
    }
}

/// One virtual host.
#[derive(Debug)]
pub struct Broker {
    options: Options,
    names: Names,
    exchanges: Slab<Exchange>,
    exchange_names: HashMap<Bytes, Key>,
    /// How many bindings all exchanges have.
    bindings: usize,
    queues: Slab<Queue>,
    queue_names: HashMap<Bytes, Key>,
    /// Queues that are in the store.
    queue_ids: BTreeMap<QueueId, Key>,
    channels: Slab<Channel>,
    consumers: Slab<Consumer>,
    connections: BTreeMap<ConnectionId, Connection>,
    /// When to look at which queue.
    timers: BTreeSet<(u64, Key)>,
    /// Queues that had more to deliver than one step allows.
    busy: VecDeque<Key>,
    /// Messages on their way to a dead-letter exchange; between commands, those that wait for room in
    /// the store.
    dying: VecDeque<dead_letters::Dying>,
    /// Bytes of records of new things that the store has room for.
    room: usize,
    next_message: u64,
    next_queue: u64,
    next_arrival: u64,
    /// The queue whose turn it is to send messages away.
    next_to_send: QueueId,
    /// Counts changes of exchanges, queues and bindings: remembered routes are good for one count.
    topology_version: u64,
    /// An empty list to route into, kept to save an allocation per message.
    scratch: Vec<Key>,
}

#[derive(Debug, Default)]
struct Connection {
    channels: BTreeSet<Key>,
    exclusive_queues: BTreeSet<Key>,
    paused: bool,
}

impl Broker {
    /// A broker with the predeclared exchanges and nothing else.
    pub fn new(options: Options) -> Self {
        let mut broker = Self {
            names: Names::new(options.name_bits),
            options,
            exchanges: Slab::default(),
            exchange_names: HashMap::new(),
            bindings: 0,
            queues: Slab::default(),
            queue_names: HashMap::new(),
            queue_ids: BTreeMap::new(),
            channels: Slab::default(),
            consumers: Slab::default(),
            connections: BTreeMap::new(),
            timers: BTreeSet::new(),
            busy: VecDeque::new(),
            dying: VecDeque::new(),
            room: usize::MAX,
            next_message: 1,
            next_queue: 1,
            next_arrival: 1,
            next_to_send: QueueId(0),
            topology_version: 1,
            scratch: Vec::new(),
        };
        broker.add_exchange(predeclared("", Index::Default));
        for (name, kind) in PREDECLARED {
            let index = Index::new(kind.as_bytes()).expect("a type that is known");
            broker.add_exchange(predeclared(name, index));
        }
        broker
    }

    /// Every queue.
    pub fn queues(&self) -> impl Iterator<Item = QueueStats> {
        self.queues.iter().map(|(_, queue)| queue.stats())
    }

    /// One queue.
    pub fn queue(&self, name: &[u8]) -> Option<QueueStats> {
        let key = self.queue_names.get(name)?;
        self.queues.get(*key).map(Queue::stats)
    }

    /// Every exchange.
    pub fn exchanges(&self) -> impl Iterator<Item = ExchangeStats> {
        self.exchanges.iter().map(|(_, exchange)| ExchangeStats {
            name: exchange.name.clone(),
            kind: exchange.index.kind(),
            durable: exchange.durable,
            auto_delete: exchange.auto_delete,
            internal: exchange.internal,
            arguments: exchange.arguments.clone(),
        })
    }

    /// Every binding, but for those of the default exchange.
    pub fn bindings(&self) -> impl Iterator<Item = BindingStats> {
        self.exchanges.iter().flat_map(move |(_, exchange)| {
            let bound = exchange.bindings.iter();
            bound.flat_map(move |((target, key), arguments)| {
                arguments.iter().map(move |arguments| BindingStats {
                    source: exchange.name.clone(),
                    destination: self.target_name(*target),
                    to_queue: matches!(target, Target::Queue(_)),
                    routing_key: key.clone(),
                    arguments: arguments.clone(),
                })
            })
        })
    }

    /// Deliveries out on the channel and not settled.
    pub fn unacked(&self, channel: ChannelId) -> usize {
        self.channels
            .get(channel.0)
            .map_or(0, |channel| channel.unacked.len())
    }

    /// Whether the delivery is out on the channel and not settled.
    pub fn is_unacked(&self, channel: ChannelId, delivery_tag: u64) -> bool {
        let session = self.channels.get(channel.0);
        session.is_some_and(|session| session.unacked.contains(delivery_tag))
    }

    /// The tag of the latest delivery on the channel; 0 before the first.
    pub fn last_delivery_tag(&self, channel: ChannelId) -> u64 {
        self.channels
            .get(channel.0)
            .map_or(0, |session| session.last_tag)
    }

    fn target_name(&self, target: Target) -> Bytes {
        let name = match target {
            Target::Queue(key) => self.queues.get(key).map(|queue| &queue.name),
            Target::Exchange(key) => self.exchanges.get(key).map(|exchange| &exchange.name),
        };
        name.cloned().unwrap_or_default()
    }

    fn channel_mut(&mut self, channel: ChannelId) -> Result<&mut Channel, Refusal> {
        let closed = || Refusal::new(ReplyCode::ChannelError, "the channel is not open");
        self.channels.get_mut(channel.0).ok_or_else(closed)
    }

    fn exchange_key(&self, name: &[u8]) -> Result<Key, Refusal> {
        self.exchange_names.get(name).copied().ok_or_else(|| {
            let why = format_args!(
                "no exchange '{}' in vhost '{}'",
                text(name),
                self.options.vhost
            );
            Refusal::new(ReplyCode::NotFound, why)
        })
    }

    /// The queue called `name`, or the one declared last on the channel if it is empty.
    fn queue_key(&mut self, channel: ChannelId, name: &[u8]) -> Result<Key, Refusal> {
        let channel = self.channel_mut(channel)?;
        let connection = channel.connection;
        let name = match (name, &channel.last_queue) {
            (b"", Some(last)) => last.clone(),
            (b"", None) => {
                let why = "no previously declared queue on this channel";
                return Err(Refusal::new(ReplyCode::NotFound, why));
            }
            _ => Bytes::copy_from_slice(name),
        };
        let vhost = &self.options.vhost;
        let Some(&key) = self.queue_names.get(&name) else {
            let why = format_args!("no queue '{}' in vhost '{vhost}'", text(&name));
            return Err(Refusal::new(ReplyCode::NotFound, why));
        };
        let queue = self.queues.get(key).expect("names lead to queues");
        match queue.owner {
            Some(owner) if owner != connection => Err(locked(&name, vhost)),
            _ => Ok(key),
        }
    }

    fn add_exchange(&mut self, exchange: Exchange) -> Key {
        let name = exchange.name.clone();
        let key = self.exchanges.insert(exchange);
        self.exchange_names.insert(name, key);
        self.topology_version += 1;
        key
    }
}

fn predeclared(name: &'static str, index: Index) -> Exchange {
    Exchange {
        name: Bytes::from_static(name.as_bytes()),
        durable: true,
        auto_delete: false,
        internal: name.starts_with("amq.rabbitmq."),
        arguments: Table::new(),
        alternate: None,
        index,
        bindings: BTreeMap::new(),
        incoming: BTreeSet::new(),
        routes: RouteCache::default(),
    }
}

fn locked(name: &[u8], vhost: &str) -> Refusal {
    let why = format_args!(
        "cannot obtain exclusive access to locked queue '{}' in vhost '{vhost}'. It could be \
         originally declared on another connection or the exclusive property value does not match \
         that of the original declaration.",
        text(name)
    );
    Refusal::new(ReplyCode::ResourceLocked, why)
}
