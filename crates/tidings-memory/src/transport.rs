//! Connections to the broker in the process.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, stream};
use parking_lot::Mutex;
use tidings_core::{
    BoxFuture, DeadLetterAccess, Deliveries, Delivery, Features, Outgoing, PublishError,
    PublishErrorKind, SLOT_COUNT, Settlement, Settler, Subscription, Topology, Transport,
    TransportError, dead_letter_queue,
};

use crate::broker::{Broker, Holder, Next, Stored, no_queue};

/// The longest delay of a retry: a year, so that a time can always be reckoned.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Longer names would do; this is what the conformance suite has tried.
const NAME_BYTES_MAX: usize = 255;

/// A connection to a broker that lives in this process.
///
/// [`new`](Self::new) makes a broker and a connection to it, [`connect`](Self::connect) another
/// connection to the same broker; a clone is the same connection. What a connection holds
/// unsettled is delivered again when it is closed or its last clone is dropped.
#[derive(Clone)]
pub struct MemoryTransport(Arc<Connection>);

struct Connection {
    broker: Arc<Mutex<Broker>>,
    number: u64,
    numbers: Arc<AtomicU64>,
    closed: AtomicBool,
}

impl MemoryTransport {
    /// A new, empty broker, and a connection to it.
    pub fn new() -> Self {
        Self::to(Arc::default(), Arc::default())
    }

    /// Another connection to the same broker.
    pub fn connect(&self) -> Self {
        Self::to(Arc::clone(&self.0.broker), Arc::clone(&self.0.numbers))
    }

    /// The messages in `queue`, oldest first: those that wait, those whose retry is delayed, and
    /// those that are out with a consumer.
    pub fn messages(&self, queue: &str) -> Vec<Stored> {
        self.0.broker.lock().messages(queue)
    }

    /// The dead letters beside `queue` or an ordered group of that name, oldest first.
    pub fn dead_letters(&self, queue: &str) -> Vec<Stored> {
        self.messages(&dead_letter_queue(queue))
    }

    /// Limits how many messages `queue` may hold, counting those that are out or delayed: it refuses
    /// what is published beyond ([`PublishErrorKind::Refused`]), as a full queue of a real broker
    /// does. What is there already stays. False if there is no such queue.
    pub fn limit(&self, queue: &str, messages: usize) -> bool {
        self.0.broker.lock().limit(queue, messages)
    }

    /// Deletes `queue` with what is in it, and its subscriptions to topics. Consumers that wait for
    /// its messages get an error, and what is out cannot be settled any more. The dead letters
    /// beside it stay. False if there was no such queue.
    pub fn delete_queue(&self, queue: &str) -> bool {
        self.0.broker.lock().delete(queue)
    }

    /// The broker, and the number of this connection.
    pub(crate) fn parts(&self) -> (Arc<Mutex<Broker>>, u64) {
        (Arc::clone(&self.0.broker), self.0.number)
    }

    fn to(broker: Arc<Mutex<Broker>>, numbers: Arc<AtomicU64>) -> Self {
        Self(Arc::new(Connection {
            broker,
            number: numbers.fetch_add(1, Ordering::Relaxed),
            numbers,
            closed: AtomicBool::new(false),
        }))
    }
}

impl Default for MemoryTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport")
            .field("connection", &self.0.number)
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.broker.lock().disconnect(self.number);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Transport for MemoryTransport {
    fn features(&self) -> Features {
        let mut features = Features::new("memory");
        features.reports_unroutable = true;
        features.delay_max = DELAY_MAX;
        features.counts_deliveries = true;
        features.partitions_max = SLOT_COUNT;
        features.name_bytes_max = NAME_BYTES_MAX;
        features.holds_dead_letters = true;
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            if self.0.is_closed() {
                return Err(closed());
            }
            self.0.broker.lock().declare(topology)
        })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            let mut broker = self.0.broker.lock();
            let publish = |message| {
                if self.0.is_closed() {
                    return Err(PublishError::new(PublishErrorKind::Unavailable, closed()));
                }
                broker.publish(message)
            };
            batch.into_iter().map(publish).collect()
        })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(async move {
            let queue: Arc<str> = subscription.queue.as_ref().into();
            let holder = {
                let mut broker = self.0.broker.lock();
                // Asked under the lock: a connection that closes ends what it finds there.
                if self.0.is_closed() {
                    return Err(closed());
                }
                broker.subscribe(&queue, self.0.number, subscription.is_ordered)?
            };
            let consumer = Consumer {
                connection: Arc::clone(&self.0),
                holder,
                prefetch: usize::from(subscription.prefetch.get()),
                settler: Arc::new(MemorySettler {
                    broker: Arc::clone(&self.0.broker),
                    queue: Arc::clone(&queue),
                    out: AtomicUsize::new(0),
                }),
                queue,
            };
            let deliveries = stream::unfold(Some(consumer), |consumer| async move {
                let consumer = consumer?;
                match consumer.next().await? {
                    Ok(delivery) => Some((Ok(delivery), Some(consumer))),
                    Err(error) => Some((Err(error), None)),
                }
            });
            Ok(Box::pin(deliveries) as Deliveries)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async { self.0.close() }.boxed()
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        Some(self)
    }
}

fn closed() -> TransportError {
    TransportError::fatal("the transport was closed")
}

struct Consumer {
    connection: Arc<Connection>,
    holder: Holder,
    queue: Arc<str>,
    prefetch: usize,
    settler: Arc<MemorySettler>,
}

impl Consumer {
    /// The next delivery; `None` after the connection was closed.
    async fn next(&self) -> Option<Result<Delivery, TransportError>> {
        loop {
            let changes;
            let changed;
            let next = {
                let mut broker = self.connection.broker.lock();
                let Some(queue_changes) = broker.changes(&self.queue) else {
                    return Some(Err(no_queue(&self.queue)));
                };
                changes = queue_changes;
                // Made before looking, so that no change in between is missed.
                changed = changes.notified();
                if self.connection.is_closed() {
                    return None;
                }
                if self.settler.out.load(Ordering::SeqCst) < self.prefetch {
                    broker.take(&self.queue, self.holder)
                } else {
                    Next::Nothing
                }
            };
            match next {
                Next::Message(tag, stored) => return Some(Ok(self.delivery(tag, *stored))),
                Next::DueAt(due) => {
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
                Next::Nothing => changed.await,
            }
        }
    }

    fn delivery(&self, tag: u64, stored: Stored) -> Delivery {
        self.settler.out.fetch_add(1, Ordering::SeqCst);
        let settler = Arc::clone(&self.settler);
        let mut delivery = Delivery::new(stored.envelope, Arc::clone(&self.queue), tag, settler);
        delivery.redelivered = stored.redelivered;
        delivery.delivered_before = Some(stored.delivered_before);
        delivery.history = stored.history;
        delivery.failures = stored.failures;
        delivery
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let mut broker = self.connection.broker.lock();
        broker.unsubscribe(&self.queue, self.holder);
    }
}

struct MemorySettler {
    broker: Arc<Mutex<Broker>>,
    queue: Arc<str>,
    /// How many deliveries of this consumer are out.
    out: AtomicUsize,
}

impl MemorySettler {
    /// False if `tag` is not out any more.
    fn end(&self, tag: u64, settlement: Settlement) -> bool {
        let mut broker = self.broker.lock();
        self.out.fetch_sub(1, Ordering::SeqCst);
        broker.settle(&self.queue, tag, settlement)
    }
}

impl Settler for MemorySettler {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            if self.end(delivery.tag(), settlement) {
                Ok(())
            } else {
                Err(TransportError::temporary(
                    "the connection of this delivery was closed, or its queue deleted, or its \
                     partition given up; if the message is still there, it is delivered again",
                ))
            }
        })
    }

    fn dropped(&self, tag: u64) {
        self.end(tag, Settlement::Requeue);
    }

    fn is_stale(&self, tag: u64) -> bool {
        !self.broker.lock().is_out(&self.queue, tag)
    }
}
