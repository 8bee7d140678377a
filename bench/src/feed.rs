//! An engine that costs next to nothing, so that a figure is the toolkit's own.
//!
//! It makes messages as they are asked for, counts acknowledgements, and confirms what is published
//! at once; or never, so that the relay takes no part.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::stream;
use parking_lot::Mutex;
use tidings::{
    BoxFuture, Deliveries, Delivery, Envelope, Features, MessageId, Outgoing, PublishError,
    Settlement, Settler, Subscription, Topology, Transport, TransportError,
};
use tokio::sync::{Notify, Semaphore};

/// Messages for one consumer.
pub(crate) struct Feed {
    state: Arc<State>,
    confirms: bool,
}

struct State {
    source: Source,
    count: u64,
    given: AtomicU64,
    acknowledged: AtomicU64,
    published: AtomicU64,
    /// What was settled otherwise.
    trouble: Mutex<Option<String>>,
    ended: Mutex<Option<Instant>>,
    is_over: Notify,
    free: Semaphore,
}

enum Source {
    /// All the same but for the id, which begins with a text and ends with the message's number.
    Alike(Box<Envelope>, String),
    These(Mutex<std::vec::IntoIter<Envelope>>),
}

impl Source {
    fn next(&self, number: u64) -> Option<Envelope> {
        match self {
            Self::Alike(envelope, run) => {
                let mut envelope = Envelope::clone(envelope);
                envelope.id = Some(MessageId::new(format!("{run}-{number}")));
                Some(envelope)
            }
            Self::These(envelopes) => envelopes.lock().next(),
        }
    }
}

impl Feed {
    /// `count` messages like `envelope`; their ids begin with `run`.
    pub(crate) fn new(envelope: Envelope, run: &str, count: u64, confirms: bool) -> Self {
        Self::from(
            Source::Alike(Box::new(envelope), run.to_owned()),
            count,
            confirms,
        )
    }

    /// These messages, made beforehand.
    pub(crate) fn of(envelopes: Vec<Envelope>) -> Self {
        let count = envelopes.len() as u64;
        Self::from(
            Source::These(Mutex::new(envelopes.into_iter())),
            count,
            true,
        )
    }

    fn from(source: Source, count: u64, confirms: bool) -> Self {
        let state = State {
            source,
            count,
            given: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            published: AtomicU64::new(0),
            trouble: Mutex::new(None),
            ended: Mutex::new(None),
            is_over: Notify::new(),
            free: Semaphore::new(0),
        };
        Self {
            state: Arc::new(state),
            confirms,
        }
    }

    /// The same feed once more, to watch it.
    pub(crate) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.state))
    }
}

/// What became of a feed.
pub(crate) struct Watch(Arc<State>);

impl Watch {
    /// Waits until all are acknowledged, and says when that was.
    pub(crate) async fn all_acknowledged(&self) -> anyhow::Result<Instant> {
        loop {
            let over = self.0.is_over.notified();
            if let Some(trouble) = self.0.trouble.lock().take() {
                anyhow::bail!(trouble);
            }
            if let Some(at) = *self.0.ended.lock() {
                return Ok(at);
            }
            over.await;
        }
    }

    /// How many messages were published.
    pub(crate) fn published(&self) -> u64 {
        self.0.published.load(Ordering::Acquire)
    }
}

impl Transport for Feed {
    fn features(&self) -> Features {
        let mut features = Features::new("nothing");
        features.delay_max = Duration::MAX;
        features
    }

    fn declare<'a>(&'a self, _: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async { Ok(()) })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        if !self.confirms {
            return Box::pin(std::future::pending());
        }
        let count = batch.len() as u64;
        self.state.published.fetch_add(count, Ordering::AcqRel);
        Box::pin(async move { batch.iter().map(|_| Ok(())).collect() })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        let state = Arc::clone(&self.state);
        state
            .free
            .add_permits(usize::from(subscription.prefetch.get()));
        let queue: Arc<str> = subscription.queue.into();
        let deliveries = stream::unfold((state, queue), |(state, queue)| async move {
            // An error is impossible: nobody closes it.
            if let Ok(permit) = state.free.acquire().await {
                permit.forget();
            }
            let number = state.given.fetch_add(1, Ordering::AcqRel);
            let next = match number < state.count {
                true => state.source.next(number),
                false => None,
            };
            let Some(envelope) = next else {
                return std::future::pending().await;
            };
            let settler = Arc::clone(&state) as Arc<dyn Settler>;
            let delivery = Delivery::new(envelope, Arc::clone(&queue), number, settler);
            Some((Ok(delivery), (state, queue)))
        });
        Box::pin(async { Ok(Box::pin(deliveries) as Deliveries) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Settler for State {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        let trouble = format!("message {}: {settlement:?}", delivery.tag());
        *self.trouble.lock() = Some(trouble);
        self.is_over.notify_waiters();
        Box::pin(std::future::ready(Ok(())))
    }

    fn acknowledge(&self, _: u64) -> Option<Result<(), TransportError>> {
        self.free.add_permits(1);
        if self.acknowledged.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            *self.ended.lock() = Some(Instant::now());
            self.is_over.notify_waiters();
        }
        Some(Ok(()))
    }

    fn dropped(&self, tag: u64) {
        *self.trouble.lock() = Some(format!("message {tag} was given back"));
        self.is_over.notify_waiters();
    }

    fn is_stale(&self, _: u64) -> bool {
        false
    }
}
