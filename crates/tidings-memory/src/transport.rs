//! Connections to the broker in the process.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, stream};
use parking_lot::Mutex;
use tidings_core::{
    BoxFuture, Deliveries, Delivery, Features, Outgoing, PublishError, PublishErrorKind,
    Settlement, Settler, Subscription, Topology, Transport, TransportError, dead_letter_queue,
};
use tokio::sync::Notify;

use crate::broker::{Broker, Next, Stored};

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

    /// The dead letters beside `queue`, oldest first.
    pub fn dead_letters(&self, queue: &str) -> Vec<Stored> {
        self.messages(&dead_letter_queue(queue))
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
        Features::all("memory").in_memory()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            if self.0.is_closed() {
                return Err(closed());
            }
            self.0.broker.lock().declare(topology);
            Ok(())
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
            if self.0.is_closed() {
                return Err(closed());
            }
            let queue: Arc<str> = subscription.queue.as_ref().into();
            let changes = self.0.broker.lock().changes(&queue).ok_or_else(|| {
                TransportError::fatal(format!("there is no queue `{queue}`; declare it first"))
            })?;
            let consumer = Consumer {
                connection: Arc::clone(&self.0),
                changes: Arc::clone(&changes),
                prefetch: usize::from(subscription.prefetch.get()),
                settler: Arc::new(MemorySettler {
                    broker: Arc::clone(&self.0.broker),
                    out: AtomicUsize::new(0),
                }),
                queue,
            };
            let deliveries = stream::unfold(consumer, |consumer| async move {
                let delivery = consumer.next().await?;
                Some((Ok(delivery), consumer))
            });
            Ok(Box::pin(deliveries) as Deliveries)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async { self.0.close() }.boxed()
    }
}

fn closed() -> TransportError {
    TransportError::fatal("the transport was closed")
}

struct Consumer {
    connection: Arc<Connection>,
    queue: Arc<str>,
    changes: Arc<Notify>,
    prefetch: usize,
    settler: Arc<MemorySettler>,
}

impl Consumer {
    /// The next delivery; `None` after the connection was closed.
    async fn next(&self) -> Option<Delivery> {
        loop {
            // Made before looking, so that no change in between is missed.
            let changed = self.changes.notified();
            if self.connection.is_closed() {
                return None;
            }
            let next = if self.settler.out.load(Ordering::SeqCst) < self.prefetch {
                let mut broker = self.connection.broker.lock();
                broker.take(&self.queue, self.connection.number)
            } else {
                Next::Nothing
            };
            match next {
                Next::Message(tag, stored) => return Some(self.delivery(tag, *stored)),
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
        delivery.history = stored.history;
        delivery.failures = stored.failures;
        delivery
    }
}

struct MemorySettler {
    broker: Arc<Mutex<Broker>>,
    /// How many deliveries of this consumer are out.
    out: AtomicUsize,
}

impl Settler for MemorySettler {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            let mut broker = self.broker.lock();
            self.out.fetch_sub(1, Ordering::SeqCst);
            if broker.settle(&delivery.queue, delivery.tag(), settlement) {
                Ok(())
            } else {
                Err(TransportError::temporary(
                    "the connection of this delivery was closed; it will be delivered again",
                ))
            }
        })
    }
}
