//! A connection of a service to the broker in the process, which counts, records, and goes wrong
//! when the test says so.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tidings_core::{
    BoxFuture, DeadLetterAccess, Deliveries, Delivery, Destination, Features, Outgoing,
    PublishError, PublishErrorKind, Queue, Settlement, Settler, Subscription, Topology, Transport,
    TransportError,
};
use tidings_memory::MemoryTransport;

use super::watch::{CrashPoint, Life, UnderWay, Watch};

/// The queue that wants whatever is published, so that nothing is held for want of a listener.
pub(super) const LISTENER: &str = "tidings-testing.listener";

/// Most deliveries that are put into another order together.
const REORDERED_MAX: usize = 10_000;

#[derive(Clone)]
pub(super) struct WatchedTransport {
    pub(super) inner: MemoryTransport,
    pub(super) life: Arc<Life>,
}

impl WatchedTransport {
    /// Sees to it that somebody listens to where `message` goes.
    async fn listen(&self, message: &Outgoing) {
        let topology = match &message.destination {
            Destination::Topic(topic) => {
                Topology::new().queue(Queue::new(LISTENER).topic(topic.clone()))
            }
            Destination::Queue(queue) => Topology::new().queue(Queue::new(queue.clone())),
        };
        // A closed connection says so when it publishes.
        let _ = self.inner.declare(&topology).await;
    }

    async fn publish_one(&self, message: Outgoing) -> Result<(), PublishError> {
        let watch = &self.life.watch;
        let faults = watch.faults();
        if faults.refused.contains(message.destination.name()) {
            let why = format!("the test lets the broker refuse {}", message.destination);
            return Err(PublishError::new(PublishErrorKind::Refused, why));
        }
        self.listen(&message).await;
        publish(&self.inner, watch, &message).await?;
        watch.record(message);
        Ok(())
    }
}

/// Publishes a message, twice if the test wants that.
pub(super) async fn publish(
    broker: &MemoryTransport,
    watch: &Watch,
    message: &Outgoing,
) -> Result<(), PublishError> {
    let copies = if watch.faults().is_doubling { 2 } else { 1 };
    for outcome in broker.publish(vec![message.clone(); copies]).await {
        outcome?;
    }
    Ok(())
}

impl Transport for WatchedTransport {
    fn features(&self) -> Features {
        self.inner.features()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(async move {
            let _under_way = self.life.begin("declaring queues").await;
            self.inner.declare(topology).await
        })
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            let names: Vec<&str> = batch.iter().map(|it| &*it.envelope.name).collect();
            let what = format!("publishing {}", names.join(", "));
            let _under_way = self.life.begin(what).await;
            if !batch.is_empty() {
                self.life.reach(CrashPoint::AfterCommitBeforePublish).await;
            }
            let mut outcomes = Vec::with_capacity(batch.len());
            for message in batch {
                outcomes.push(self.publish_one(message).await);
            }
            if outcomes.iter().any(Result::is_ok) {
                self.life.reach(CrashPoint::AfterPublishBeforeConfirm).await;
            }
            outcomes
        })
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(async move {
            let _under_way = self.life.begin("subscribing").await;
            let is_ordered = subscription.is_ordered;
            let inner = self.inner.subscribe(subscription).await?;
            let life = Arc::clone(&self.life);
            let watched = stream::unfold(inner, move |mut inner| {
                let life = Arc::clone(&life);
                async move {
                    let mut next = vec![inner.next().await?];
                    life.alive().await;
                    // What waits together comes newest first. An ordered partition keeps its order.
                    if life.watch.faults().is_reordering && !is_ordered {
                        while next.len() < REORDERED_MAX
                            && let Some(Some(more)) = inner.next().now_or_never()
                        {
                            next.push(more);
                        }
                        next.reverse();
                    }
                    let next = next.into_iter().map(|next| Ok(watched(&life, next?)));
                    Some((stream::iter(next.collect::<Vec<_>>()), inner))
                }
            });
            Ok(Box::pin(watched.flatten()) as Deliveries)
        })
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        self.inner.dead_letter_access()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// The delivery, under way until it is settled or given back.
fn watched(life: &Arc<Life>, delivery: Delivery) -> Delivery {
    let id = delivery.envelope.id.as_ref();
    let id = id.map_or_else(|| "without an id".to_owned(), |id| format!("`{id}`"));
    let what = format!("a delivery of `{}`: message {id}", delivery.queue);
    let (envelope, queue) = ((*delivery.envelope).clone(), Arc::clone(&delivery.queue));
    let tag = delivery.tag();
    let (redelivered, delivered_before) = (delivery.redelivered, delivery.delivered_before);
    let (history, failures) = (delivery.history.clone(), delivery.failures);
    let settler = WatchedSettler {
        inner: Mutex::new(Some(delivery)),
        life: Arc::clone(life),
        under_way: Mutex::new(Some(life.begun(what, true))),
    };
    let mut copy = Delivery::new(envelope, queue, tag, Arc::new(settler));
    copy.redelivered = redelivered;
    copy.delivered_before = delivered_before;
    copy.history = history;
    copy.failures = failures;
    copy
}

struct WatchedSettler {
    /// `None` once it is settled or given back.
    inner: Mutex<Option<Delivery>>,
    life: Arc<Life>,
    under_way: Mutex<Option<UnderWay>>,
}

impl Settler for WatchedSettler {
    fn settle(
        self: Arc<Self>,
        _: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            if settlement == Settlement::Ack {
                self.life.reach(CrashPoint::AfterHandlerBeforeAck).await;
            }
            self.life.alive().await;
            let Some(delivery) = self.inner.lock().take() else {
                return Ok(()); // It can be settled only once.
            };
            if let Settlement::Retry { delay, .. } | Settlement::Defer { delay } = settlement {
                self.life.watch.delayed(&delivery.queue, delay);
            }
            let settled = delivery.settle(settlement).await;
            self.under_way.lock().take();
            settled
        })
    }

    fn dropped(&self, _: u64) {
        self.inner.lock().take();
        self.under_way.lock().take();
    }

    fn is_stale(&self, _: u64) -> bool {
        let inner = self.inner.lock();
        inner.as_ref().is_none_or(Delivery::is_stale)
    }
}
