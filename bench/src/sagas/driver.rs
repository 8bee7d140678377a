//! An engine that costs next to nothing and plays all targets: it answers each step at once, and notes how
//! sagas end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures_util::stream;
use parking_lot::Mutex;
use tidings::{
    BoxFuture, Deliveries, Delivery, Envelope, Features, MessageId, Outgoing, PublishError,
    REPLY_TO_HEADER, Settlement, Settler, Subscription, Topology, Transport, TransportError,
    sagas::{ANSWER_NAME, STEP_HEADER},
};
use tokio::sync::{Notify, Semaphore};

#[derive(Clone, Default)]
pub(super) struct Driver(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queues: Mutex<HashMap<String, Arc<Queue>>>,
    answered: AtomicU64,
    /// How often each saga said that it is over.
    over: Mutex<HashMap<String, u32>>,
    /// Rung when one is over.
    bell: Notify,
    /// What was settled otherwise than by an acknowledgement.
    trouble: Mutex<Option<String>>,
}

struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    bell: Notify,
    /// How many deliveries may be out.
    free: Semaphore,
    given: AtomicU64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            bell: Notify::new(),
            free: Semaphore::new(0),
            given: AtomicU64::new(0),
        }
    }
}

impl Queue {
    async fn next(&self) -> Envelope {
        loop {
            let rung = self.bell.notified();
            if let Some(envelope) = self.waiting.lock().pop_front() {
                return envelope;
            }
            rung.await;
        }
    }
}

impl Driver {
    /// Puts a message into a queue.
    pub(super) fn send(&self, queue: &str, envelope: Envelope) {
        let queue = self.0.queue(queue);
        queue.waiting.lock().push_back(envelope);
        queue.bell.notify_one();
    }

    /// How many sagas are over.
    pub(super) fn ended(&self) -> u64 {
        self.0.over.lock().len() as u64
    }

    /// How many steps were answered.
    pub(super) fn answered(&self) -> u64 {
        self.0.answered.load(Ordering::Acquire)
    }

    pub(super) async fn until_ended(&self, count: u64, limit: Duration) -> anyhow::Result<()> {
        self.until(limit, || self.ended() >= count).await
    }

    pub(super) async fn until_over(&self, saga: &str, limit: Duration) -> anyhow::Result<()> {
        self.until(limit, || self.0.over.lock().contains_key(saga))
            .await
    }

    async fn until(&self, limit: Duration, holds: impl Fn() -> bool) -> anyhow::Result<()> {
        let waiting = async {
            loop {
                let rung = self.0.bell.notified();
                if let Some(trouble) = self.0.trouble.lock().take() {
                    bail!(trouble);
                }
                if holds() {
                    return Ok(());
                }
                rung.await;
            }
        };
        tokio::time::timeout(limit, waiting)
            .await
            .context("sagas stand still")?
    }

    /// So many sagas are over, each once.
    pub(super) fn check(&self, count: u64) -> anyhow::Result<()> {
        let over = self.0.over.lock();
        let found = over.len() as u64;
        ensure!(found == count, "{found} sagas are over, not {count}");
        let twice = over.iter().find(|(_, times)| **times > 1);
        ensure!(twice.is_none(), "{twice:?} times over");
        Ok(())
    }
}

impl Shared {
    fn queue(&self, name: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(name) {
            return Arc::clone(queue);
        }
        Arc::clone(queues.entry(name.to_owned()).or_default())
    }

    /// The target of a step has done it.
    fn answer(&self, command: &Envelope, step: &str, reply_to: &str) {
        let mut answer = Envelope::new(ANSWER_NAME, r#"{"done":null}"#);
        let id = command.id.as_ref().map(MessageId::as_str);
        answer.id = Some(MessageId::new(format!("reply/{}", id.unwrap_or_default())));
        answer.correlation_id.clone_from(&command.correlation_id);
        answer.headers.push((STEP_HEADER.into(), step.into()));
        let queue = self.queue(reply_to);
        queue.waiting.lock().push_back(answer);
        queue.bell.notify_one();
        self.answered.fetch_add(1, Ordering::AcqRel);
    }

    fn over(&self, event: &Envelope) {
        let key = event.key.as_deref().unwrap_or_default().to_owned();
        *self.over.lock().entry(key).or_default() += 1;
        self.bell.notify_waiters();
    }
}

impl Transport for Driver {
    fn features(&self) -> Features {
        let mut features = Features::new("a driver of sagas");
        features.delay_max = Duration::MAX;
        features
    }

    fn declare<'a>(&'a self, _: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async { Ok(()) })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        for Outgoing { envelope, .. } in &batch {
            match (
                envelope.header(STEP_HEADER),
                envelope.header(REPLY_TO_HEADER),
            ) {
                (Some(step), Some(reply_to)) => self.0.answer(envelope, step, reply_to),
                _ => self.0.over(envelope),
            }
        }
        Box::pin(async move { batch.iter().map(|_| Ok(())).collect() })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        let queue = self.0.queue(&subscription.queue);
        let permits = usize::from(subscription.prefetch.get());
        queue.free.add_permits(permits);
        let name: Arc<str> = subscription.queue.into();
        let shared = Arc::clone(&self.0);
        let deliveries = stream::unfold((shared, queue, name), |(shared, queue, name)| async {
            // An error is impossible: nobody closes it.
            if let Ok(permit) = queue.free.acquire().await {
                permit.forget();
            }
            let envelope = queue.next().await;
            let number = queue.given.fetch_add(1, Ordering::AcqRel);
            let settler = Arc::new(Out {
                shared: Arc::clone(&shared),
                queue: Arc::clone(&queue),
            });
            let delivery = Delivery::new(envelope, Arc::clone(&name), number, settler);
            Some((Ok(delivery), (shared, queue, name)))
        });
        Box::pin(async { Ok(Box::pin(deliveries) as Deliveries) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A delivery that is out.
struct Out {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

impl Settler for Out {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        self.queue.free.add_permits(1);
        if !matches!(settlement, Settlement::Ack) {
            let trouble = format!("message {}: {settlement:?}", delivery.tag());
            *self.shared.trouble.lock() = Some(trouble);
            self.shared.bell.notify_waiters();
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn dropped(&self, _: u64) {
        // Only when the service stops, after everything is over.
        self.queue.free.add_permits(1);
    }

    fn is_stale(&self, _: u64) -> bool {
        false
    }
}
