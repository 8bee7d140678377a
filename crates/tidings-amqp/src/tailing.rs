//! Watching topics: copies of what is published to them, for somebody who looks and handles nothing.
//!
//! The copies come through a queue of its own, exclusive and deleted with its last receiver, which is bound
//! to the topics and made by nobody else; topics are never made here. Two things are bounded, so that
//! whoever reads slowly harms nobody: the queue, which drops its oldest messages
//! ([`Amqp::TAIL_QUEUE_COUNT_MAX`]), and what was received and not yet read, of which the oldest are dropped
//! and counted. What is received is acknowledged at once, since nothing depends on it.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tidings_adapter::Backoff;
use tidings_core::{Envelope, TransportError};
use tidings_wire::{
    BasicConsume, BasicQos, Command, Content, Method, QueueDeclare, QueueDeclareOk, ShortStr,
    Value, encode_ack, reply,
};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Amqp, Shared, message, parts,
    session::{Channel, Closed, Inbound, Quiet, Session},
    topology::{self, DeclareError},
};

/// How many messages may be on their way at once.
const PREFETCH: u16 = 1000;
/// After how many of them the broker is told that they came.
const ACK_EVERY: u64 = 200;
/// How often to look whether the queue is full.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many bytes of bodies the queue holds.
const QUEUE_BYTES_MAX: i64 = 64 * 1024 * 1024;
/// How much is kept that was received and not yet read.
const UNREAD_COUNT_MAX: usize = 10_000;
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What somebody sees who watches topics.
#[derive(Debug)]
#[non_exhaustive]
pub enum Tailed {
    /// A message that was published.
    Message {
        /// The topic.
        topic: String,
        /// Metadata and body.
        envelope: Box<Envelope>,
    },
    /// So many messages were received and dropped before they were read, the oldest first, because
    /// they were read too slowly.
    Dropped {
        /// How many, since this was last said.
        count: u64,
    },
    /// The queue is full, so that the broker drops the oldest messages; nobody counts them. It is looked at
    /// once a second: one that is full for shorter than that is not told.
    QueueFull,
    /// The connection was lost and is there again; what was published meanwhile was missed.
    Reconnected,
}

/// Messages of topics as they are published, as long as it lives; made by [`Amqp::tail`].
#[derive(Debug)]
pub struct Tailing {
    shelf: Arc<Shelf>,
    _stop: DropGuard,
}

impl Tailing {
    /// The next thing that is seen. May be dropped before it resolves; then nothing is lost.
    ///
    /// # Errors
    ///
    /// When no reconnection mends it: the transport was closed, or the broker refuses.
    pub async fn next(&mut self) -> Result<Tailed, TransportError> {
        loop {
            let filled = self.shelf.filled.notified();
            if let Some(seen) = self.shelf.take() {
                return seen;
            }
            filled.await;
        }
    }

    /// The same, if there is something already.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    pub fn next_now(&mut self) -> Result<Option<Tailed>, TransportError> {
        self.shelf.take().transpose()
    }
}

impl Amqp {
    /// How many messages wait in the queue of [`tail`](Self::tail) at most; then the oldest are dropped.
    /// Bodies of more than 64 MiB together do not fit either.
    pub const TAIL_QUEUE_COUNT_MAX: u32 = 5000;

    /// Watches topics: shows copies of what is published to them from now on, and takes nothing from
    /// anybody. Resolves when the broker sends them.
    ///
    /// While it watches, a message to a topic from which nobody else receives counts as delivered: it is
    /// not reported as unroutable.
    ///
    /// # Errors
    ///
    /// When a topic is not there, or may not be read; nothing was made then.
    pub async fn tail(&self, topics: &[impl AsRef<str>]) -> Result<Tailing, TransportError> {
        let names = topics.iter().map(|topic| {
            let topic = topic.as_ref();
            topology::checked_name("topic", topic, ShortStr::BYTES_MAX)
        });
        let topics = names.collect::<Result<Vec<_>, _>>();
        let shelf = Arc::new(Shelf::default());
        let stop = self.shared.around.stop.child_token();
        let keeper = Keeper {
            shared: Arc::downgrade(&self.shared),
            topics: topics.map_err(DeclareError::into_transport)?,
            shelf: Arc::clone(&shelf),
        };
        let first = keeper.first().await?;
        let stopped = stop.clone();
        self.shared.around.tasks.spawn(async move {
            tokio::select! {
                () = keeper.keep(first) => {}
                () = stopped.cancelled() => keeper.shelf.fail(tidings_adapter::closed()),
            }
        });
        Ok(Tailing {
            shelf,
            _stop: stop.drop_guard(),
        })
    }
}

/// What was received and not yet read.
#[derive(Debug, Default)]
struct Shelf {
    unread: Mutex<Unread>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Unread {
    messages: VecDeque<(ShortStr, Content)>,
    bytes: usize,
    dropped: u64,
    is_full: bool,
    reconnected: bool,
    failed: Option<TransportError>,
}

impl Shelf {
    /// Called by the reading task: does not wait.
    fn put(&self, topic: ShortStr, content: Content) {
        let mut unread = self.unread.lock();
        unread.bytes += content.body.len();
        unread.messages.push_back((topic, content));
        while unread.messages.len() > UNREAD_COUNT_MAX
            || (unread.bytes > UNREAD_BYTES_MAX && unread.messages.len() > 1)
        {
            if let Some((_, oldest)) = unread.messages.pop_front() {
                unread.bytes -= oldest.body.len();
                unread.dropped += 1;
            }
        }
        drop(unread);
        self.filled.notify_one();
    }

    fn say(&self, what: impl FnOnce(&mut Unread)) {
        what(&mut self.unread.lock());
        self.filled.notify_one();
    }

    fn fail(&self, error: TransportError) {
        self.say(|unread| {
            unread.failed.get_or_insert(error);
        });
    }

    fn take(&self) -> Option<Result<Tailed, TransportError>> {
        let mut unread = self.unread.lock();
        if unread.dropped > 0 {
            let count = std::mem::take(&mut unread.dropped);
            return Some(Ok(Tailed::Dropped { count }));
        }
        if std::mem::take(&mut unread.is_full) {
            return Some(Ok(Tailed::QueueFull));
        }
        if let Some((topic, content)) = unread.messages.pop_front() {
            unread.bytes -= content.body.len();
            drop(unread);
            let received = message::read(&content.properties, content.body);
            return Some(Ok(Tailed::Message {
                topic: topic.to_str_lossy().into_owned(),
                envelope: Box::new(received.envelope),
            }));
        }
        if std::mem::take(&mut unread.reconnected) {
            return Some(Ok(Tailed::Reconnected));
        }
        unread.failed.take().map(Err)
    }
}

/// The task that watches over one connection after the other.
struct Keeper {
    shared: Weak<Shared>,
    topics: Vec<ShortStr>,
    shelf: Arc<Shelf>,
}

impl Keeper {
    /// Watches for the first time: a topic that is not there is an error then.
    async fn first(&self) -> Result<Watch, TransportError> {
        let mut backoff = Backoff::default();
        loop {
            match self.start().await {
                Ok(watch) => return Ok(watch),
                Err(why) if why.error.is_temporary() => backoff.pause().await,
                Err(why) => return Err(why.error),
            }
        }
    }

    async fn keep(&self, first: Watch) {
        first.until_lost(&self.shelf).await;
        let mut backoff = Backoff::default();
        loop {
            backoff.pause().await;
            match self.start().await {
                Ok(watch) => {
                    backoff = Backoff::default();
                    self.shelf.say(|unread| unread.reconnected = true);
                    watch.until_lost(&self.shelf).await;
                }
                // The topics come back when a broker that has lost them is told of them again.
                Err(why) if why.error.is_temporary() || why.for_want_of_a_topic => {}
                Err(why) => return self.shelf.fail(why.error),
            }
        }
    }

    async fn start(&self) -> Result<Watch, NotStarted> {
        let shared = self.shared.upgrade().ok_or_else(tidings_adapter::closed)?;
        let session = shared.consuming().up().await?;
        drop(shared);
        let number = RandomState::new().hash_one(std::process::id());
        let queue = ShortStr::truncated(&format!("tidings.tail.{number:016x}"));
        let control = Channel::open(&session, |_| Box::new(Quiet)).await;
        let control = control.map_err(|closed| refused("a channel", &closed))?;
        let declare = QueueDeclare {
            queue: queue.clone(),
            exclusive: true,
            auto_delete: true,
            arguments: parts::table([
                (
                    "x-max-length",
                    Value::I64(Amqp::TAIL_QUEUE_COUNT_MAX.into()),
                ),
                ("x-max-length-bytes", Value::I64(QUEUE_BYTES_MAX)),
                ("x-overflow", Value::from("drop-head")),
            ]),
            ..QueueDeclare::default()
        };
        let declared = control.call(&declare).await;
        declared.map_err(|closed| refused("the queue to watch with", &closed))?;
        let ended = CancellationToken::new();
        let channel = Channel::open(&session, |id| {
            Box::new(Incoming {
                id,
                session: Arc::clone(&session),
                shelf: Arc::clone(&self.shelf),
                ended: ended.clone(),
                received: 0,
            })
        });
        let channel = channel
            .await
            .map_err(|closed| refused("a channel", &closed))?;
        for topic in &self.topics {
            let bind = parts::binding(queue.clone(), topic.clone(), None);
            let bound = control.call(&bind).await;
            bound.map_err(|closed| unbound(topic, &closed))?;
        }
        let qos = BasicQos {
            prefetch_count: PREFETCH,
            ..BasicQos::default()
        };
        let consume = BasicConsume {
            queue: queue.clone(),
            exclusive: true,
            ..BasicConsume::default()
        };
        let prefetched = channel.call(&qos).await;
        prefetched.map_err(|closed| refused("the queue to watch with", &closed))?;
        let consumed = channel.call(&consume).await;
        consumed.map_err(|closed| refused("the queue to watch with", &closed))?;
        Ok(Watch {
            queue,
            control,
            _channel: channel,
            ended,
        })
    }
}

/// Watching on one connection.
struct Watch {
    queue: ShortStr,
    control: Channel,
    _channel: Channel,
    /// The connection, the channel or the queue is gone.
    ended: CancellationToken,
}

impl Watch {
    /// Looks from time to time whether the queue is full, until the connection is lost.
    async fn until_lost(self, shelf: &Shelf) {
        let passive = QueueDeclare {
            passive: true,
            queue: self.queue.clone(),
            ..QueueDeclare::default()
        };
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ended.cancelled() => return,
                _ = look.tick() => {}
            }
            match self.control.call(&passive).await {
                Ok(Method::QueueDeclareOk(QueueDeclareOk { message_count, .. })) => {
                    if message_count >= Amqp::TAIL_QUEUE_COUNT_MAX {
                        shelf.say(|unread| unread.is_full = true);
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// The reading task's end.
struct Incoming {
    id: u16,
    session: Arc<Session>,
    shelf: Arc<Shelf>,
    ended: CancellationToken,
    received: u64,
}

impl Inbound for Incoming {
    fn receive(&mut self, command: Command) {
        match (command.method, command.content) {
            (Method::BasicDeliver(deliver), Some(content)) => {
                self.received += 1;
                if self.received.is_multiple_of(ACK_EVERY) {
                    let (id, tag) = (self.id, deliver.delivery_tag);
                    self.session.send(|out| encode_ack(out, id, tag, true));
                }
                match content.is_too_large() {
                    true => self.shelf.say(|unread| unread.dropped += 1),
                    false => self.shelf.put(deliver.exchange, content),
                }
            }
            (Method::BasicCancel(_), _) => self.ended.cancel(),
            _ => {}
        }
    }

    fn closed(&mut self, _: &Closed) {
        self.ended.cancel();
    }
}

/// Why it does not watch.
struct NotStarted {
    error: TransportError,
    for_want_of_a_topic: bool,
}

impl From<TransportError> for NotStarted {
    fn from(error: TransportError) -> Self {
        Self {
            error,
            for_want_of_a_topic: false,
        }
    }
}

fn unbound(topic: &ShortStr, closed: &Closed) -> NotStarted {
    let name = topic.to_str_lossy();
    if closed.code != reply::NOT_FOUND || closed.passes() {
        return refused(&format!("topic `{name}`"), closed).into();
    }
    let error = TransportError::fatal(format!(
        "there is no topic `{name}` on this broker, and none was made; see that the name is right and \
         that a service that publishes to it or receives from it has run"
    ));
    NotStarted {
        error,
        for_want_of_a_topic: true,
    }
}

fn refused(what: &str, closed: &Closed) -> TransportError {
    if closed.passes() {
        return TransportError::temporary(&*closed.reason);
    }
    let advice = match closed.code {
        reply::ACCESS_REFUSED => {
            "grant the user of the broker's URL the permission to read it, and to configure, write and \
             read `tidings.*`"
        }
        _ => "the broker refused",
    };
    TransportError::fatal(format!(
        "{what} cannot be watched: {advice} (the broker said: {})",
        closed.reason
    ))
}
