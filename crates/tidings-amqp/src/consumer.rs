//! Receiving from a queue: one channel per subscription and connection, and a stream that goes on
//! over all of them.
//!
//! Deliveries are handed on by the reading task, as many at once as were read at once, and decoded
//! where they are used. What was delivered on a connection that is gone is thrown away there: the broker delivers it again, and nobody
//! could acknowledge it any more.

mod place;
mod room;
mod stream;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tidings_adapter::Backoff;
use tidings_core::{BoxFuture, Delivery, Settlement, Settler, Subscription, TransportError};
use tidings_wire::{
    BasicCancel, BasicConsume, BasicQos, Command, Delivered, Method, Properties, ShortStr, reply,
};
use tokio::sync::{
    Notify,
    mpsc::{self, error::TrySendError},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub(crate) use self::stream::Deliveries;
use self::{
    place::Place,
    room::{Room, WINDOW},
    stream::Source,
};
use crate::{
    Shared,
    copies::Held,
    groups,
    message::{self, CopyFor},
    session::{Channel, Closed, Flush, Inbound, Session, Whole},
    unsettled::{CONSUMER_TAG, Ending, Tell, Unsettled},
};

/// Starts a subscription; resolves when the broker has accepted it once.
pub(crate) async fn subscribe(
    shared: &Arc<Shared>,
    subscription: Subscription,
) -> Result<Deliveries, TransportError> {
    let name = ShortStr::try_from(&*subscription.queue);
    let (sender, mut sources) = mpsc::channel(1);
    let keeper = Keeper {
        shared: Arc::downgrade(shared),
        stop: shared.around.stop.clone(),
        name: name.map_err(|error| TransportError::fatal(error.to_string()))?,
        queue: (&*subscription.queue).into(),
        prefetch: subscription.prefetch.get(),
        is_ordered: subscription.is_ordered,
        sources: sender,
    };
    shared.around.tasks.spawn(keeper.run());
    match sources.recv().await {
        Some(Ok(source)) => Ok(Deliveries::new(sources, source)),
        Some(Err(error)) => Err(error),
        None => Err(tidings_adapter::closed()),
    }
}

/// The task that keeps a subscription alive.
struct Keeper {
    shared: Weak<Shared>,
    stop: CancellationToken,
    name: ShortStr,
    queue: Arc<str>,
    prefetch: u16,
    is_ordered: bool,
    sources: mpsc::Sender<Result<Source, TransportError>>,
}

impl Keeper {
    async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep(&self) {
        let mut backoff = Backoff::default();
        let mut place = Place::default();
        loop {
            let started = tokio::select! {
                biased;
                () = self.sources.closed() => return,
                started = self.start(&mut place) => started,
            };
            match started {
                Ok((channel, source)) => {
                    backoff = Backoff::default();
                    if !self.serve(channel, source).await {
                        return;
                    }
                    place.answered();
                }
                Err(error) if error.is_temporary() => debug!("{error}; subscribing again"),
                Err(error) => {
                    // Nobody listens any more, perhaps.
                    let _ = self.sources.send(Err(error)).await;
                    return;
                }
            }
            backoff.pause().await;
        }
    }

    /// Subscribes on the connection there is, or the next one there will be.
    async fn start(&self, place: &mut Place) -> Result<(Channel, Source), TransportError> {
        let shared = self.shared.upgrade().ok_or_else(tidings_adapter::closed)?;
        let session = place.session(&shared).await?;
        let consume = BasicConsume {
            queue: self.name.clone(),
            consumer_tag: CONSUMER_TAG,
            ..BasicConsume::default()
        };
        let closed = match self.open(&shared, &session).await {
            Ok((channel, source)) => match channel.call(&consume).await {
                Ok(_) => return Ok((channel, source)),
                Err(closed) => {
                    place.unanswered(&shared, &self.queue, &closed);
                    closed
                }
            },
            Err(closed) => closed,
        };
        let queue = &self.queue;
        if closed.passes() {
            return Err(TransportError::temporary(&*closed.reason));
        }
        if closed.code == reply::NOT_FOUND
            && let Some(declared) = shared.declared_about(queue)
        {
            info!(%queue, "the queue is gone; declaring it again");
            shared.declare(declared).await?;
            return Err(TransportError::temporary("the queue was declared again"));
        }
        let advice = match closed.code {
            reply::NOT_FOUND => "declare it first",
            reply::ACCESS_REFUSED => {
                "grant the user of the broker's URL the permission to read it, and see whether \
                 another consumer has it for itself"
            }
            _ => "the broker refused",
        };
        Err(TransportError::fatal(format!(
            "cannot receive from queue `{queue}`: {advice} (the broker said: {})",
            closed.reason
        )))
    }

    /// A channel that is ready to receive.
    async fn open(
        &self,
        shared: &Arc<Shared>,
        session: &Arc<Session>,
    ) -> Result<(Channel, Source), Closed> {
        let room = self.is_ordered && session.making.is_quorum();
        let room = room.then(|| Room::of(self.prefetch));
        let prefetch = room.as_ref().map_or(self.prefetch, |_| WINDOW);
        // No delivery beyond the prefetch count can come, so that there is always room.
        let (sender, batches) = mpsc::channel(prefetch.into());
        let mut consumer = None;
        let channel = Channel::open(session, |id| {
            let it = consumer.insert(Arc::new_cyclic(|me| Consumer {
                me: Weak::clone(me),
                id,
                session: Arc::clone(session),
                shared: Arc::downgrade(shared),
                queue: Arc::clone(&self.queue),
                is_ordered: self.is_ordered,
                room,
                unsettled: Mutex::new(Unsettled::new(prefetch)),
                ended: CancellationToken::new(),
                is_ended: AtomicBool::new(false),
                settled: Notify::new(),
                waiting: AtomicUsize::new(0),
            }));
            Box::new(Incoming {
                consumer: Arc::clone(it),
                waiting_max: prefetch.into(),
                batch: Vec::new(),
                batches: Some(sender),
            })
        })
        .await?;
        let Some(consumer) = consumer else {
            return Err(session.end());
        };
        let qos = BasicQos {
            prefetch_count: prefetch,
            ..BasicQos::default()
        };
        channel.call(&qos).await?;
        Ok((channel, Source::new(batches, consumer)))
    }

    /// Lets the stream have the source. False when the stream is gone, and all is wound down.
    async fn serve(&self, channel: Channel, source: Source) -> bool {
        let consumer = Arc::clone(&source.consumer);
        let handed_over = tokio::select! {
            sent = self.sources.send(Ok(source)) => sent.is_ok(),
            () = consumer.ended.cancelled() => true,
        };
        if handed_over {
            tokio::select! {
                biased;
                () = self.sources.closed() => {}
                () = consumer.ended.cancelled() => return !self.sources.is_closed(),
            }
        }
        if self.is_ordered {
            // A cancellation would let the next subscription receive while these are out. With the
            // channel they go back to their places, and only then it receives.
            consumer.leave();
            drop(channel);
            return false;
        }
        // What is out can still be settled; what was not handed out goes back to the queue. The
        // stream has ended the subscription already; this says when the broker has heard it.
        let cancel = BasicCancel {
            consumer_tag: CONSUMER_TAG,
            no_wait: false,
        };
        if channel.call(&cancel).await.is_ok() {
            tokio::select! {
                () = consumer.all_settled() => {}
                () = consumer.ended.cancelled() => {}
            }
        }
        false
    }
}

/// The reading task's end of a subscription.
struct Incoming {
    consumer: Arc<Consumer>,
    /// The prefetch count: no more may wait for the stream.
    waiting_max: usize,
    /// What has been read and is not handed on yet.
    batch: Vec<Delivered>,
    batches: Option<mpsc::Sender<Vec<Delivered>>>,
}

impl Inbound for Incoming {
    fn receive(&mut self, command: Command) {
        match (command.method, command.content) {
            (Method::BasicDeliver(deliver), Some(content)) => {
                self.deliver(Delivered {
                    delivery_tag: deliver.delivery_tag,
                    redelivered: deliver.redelivered,
                    content,
                });
                self.hand_on();
            }
            (Method::BasicCancel(_), _) => {
                let queue = &self.consumer.queue;
                warn!(%queue, "the broker ended the subscription; subscribing again");
                self.batches = None;
                self.consumer.gone();
            }
            _ => {}
        }
    }

    fn whole(&mut self) -> Option<&mut dyn Whole> {
        Some(self)
    }

    fn closed(&mut self, closed: &Closed) {
        if !closed.is_connection {
            let queue = &self.consumer.queue;
            warn!(%queue, reason = %closed.reason, "the broker closed a subscription's channel");
        }
        self.batches = None;
        self.consumer.gone();
    }
}

impl Whole for Incoming {
    fn deliver(&mut self, delivered: Delivered) {
        let (tag, content) = (delivered.delivery_tag, &delivered.content);
        if content.is_too_large() {
            error!(
                queue = %self.consumer.queue,
                "a message of {} bytes is too large; the broker moves it to the dead letters",
                content.body_bytes
            );
            let properties = content.properties.clone();
            self.consumer.unsettled.lock().insert(tag, properties);
            // It has just come, so that it cannot be stale.
            return drop(self.consumer.end(tag, Ending::Reject));
        }
        self.batch.push(delivered);
    }

    fn hand_on(&mut self) {
        let room = Vec::with_capacity(self.batch.len());
        let mut batch = std::mem::replace(&mut self.batch, room);
        {
            let mut unsettled = self.consumer.unsettled.lock();
            for it in &batch {
                unsettled.insert(it.delivery_tag, it.content.properties.clone());
            }
        }
        let waiting = &self.consumer.waiting;
        let room = self
            .waiting_max
            .saturating_sub(waiting.load(Ordering::Relaxed));
        let beyond = batch.split_off(room.min(batch.len()));
        waiting.fetch_add(batch.len(), Ordering::Relaxed);
        let sent = match &self.batches {
            _ if batch.is_empty() => Ok(()),
            Some(batches) => batches.try_send(batch).map_err(TrySendError::into_inner),
            None => Err(batch),
        };
        // What the broker sent although it must not, or the stream was dropped.
        for it in beyond.iter().chain(sent.err().iter().flatten()) {
            self.consumer.give_back(it.delivery_tag);
        }
    }
}

/// A subscription on one connection: settles what came from it.
pub(crate) struct Consumer {
    me: Weak<Consumer>,
    id: u16,
    pub(crate) session: Arc<Session>,
    pub(crate) shared: Weak<Shared>,
    pub(crate) queue: Arc<str>,
    /// It receives a partition of an ordered group.
    is_ordered: bool,
    /// The partition is a quorum queue.
    room: Option<Room>,
    unsettled: Mutex<Unsettled>,
    /// The channel or its subscription is gone: nothing can be settled any more.
    pub(crate) ended: CancellationToken,
    /// The same, for who looks at each delivery: the token takes a lock to tell.
    is_ended: AtomicBool,
    settled: Notify,
    /// How many deliveries wait for the stream.
    waiting: AtomicUsize,
}

impl Flush for Consumer {
    fn flush(&self, out: &mut BytesMut) {
        let mut unsettled = self.unsettled.lock();
        unsettled.write(self.id, out);
        let all = unsettled.is_empty();
        drop(unsettled);
        if all {
            self.settled.notify_waiters();
        }
    }
}

impl Consumer {
    fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }

    /// Under the lock of what is unsettled: nothing is settled from here on.
    fn set_ended(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.ended.cancel();
        self.room.iter().for_each(Room::wake);
    }

    fn deliver(self: &Arc<Self>, raw: Delivered) -> Delivery {
        self.room.iter().for_each(Room::take);
        let received = message::read(&raw.content.properties, raw.content.body);
        let settler = Arc::clone(self) as Arc<dyn Settler>;
        let queue = Arc::clone(&self.queue);
        let mut delivery = Delivery::new(received.envelope, queue, raw.delivery_tag, settler);
        delivery.redelivered = raw.redelivered;
        // Where both differ, the count is one that a message brought along from another queue.
        let count = received.delivered_before;
        delivery.delivered_before = count.filter(|count| raw.redelivered || *count == 0);
        delivery.history = received.history;
        delivery.failures = received.failures;
        delivery
    }

    /// Dead letters are beside this name.
    pub(crate) fn letters_beside(&self) -> &str {
        match self.is_ordered {
            true => groups::group_of_partition(&self.queue),
            false => &self.queue,
        }
    }

    async fn all_settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.unsettled.lock().is_empty() {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn stale(&self) -> TransportError {
        TransportError::temporary(format!(
            "the connection that this delivery of queue `{}` came from is gone; the broker will \
             deliver it again",
            self.queue
        ))
    }

    /// The properties of a delivery that can still be settled.
    pub(crate) fn properties(&self, tag: u64) -> Option<Properties> {
        let unsettled = self.unsettled.lock();
        let properties = (!self.is_ended()).then(|| unsettled.properties(tag));
        properties.flatten().cloned()
    }

    /// Tells the broker, with whatever else there is to tell, at the next write.
    pub(crate) fn end(&self, tag: u64, ending: Ending) -> Result<(), TransportError> {
        match (&self.room, ending) {
            (Some(_), Ending::Requeue) => return self.give_all_back(tag),
            (Some(room), Ending::Ack) => room.give(),
            _ => {}
        }
        let tell = {
            let mut unsettled = self.unsettled.lock();
            let tell = (!self.is_ended()).then(|| unsettled.settle(tag, ending));
            tell.flatten().ok_or_else(|| self.stale())?
        };
        // Not under the lock, which whoever writes would have to wait for.
        match tell {
            Tell::Ask(true) => self.tell(),
            Tell::Ask(false) => {
                if let Some(me) = self.me.upgrade() {
                    self.session.flush_in_a_moment(me as Arc<dyn Flush>);
                }
            }
            Tell::Hurry => self.session.hurry(),
            Tell::Asked => {}
        }
        Ok(())
    }

    /// The channel or its subscription is gone: nothing more may be written.
    fn gone(&self) {
        let mut unsettled = self.unsettled.lock();
        unsettled.close();
        self.set_ended();
    }

    /// Lets go of a partition: what is not settled is stale. What is, is told before the channel is
    /// closed, which follows.
    fn leave(&self) {
        {
            let _unsettled = self.unsettled.lock();
            self.set_ended();
        }
        // Who settled last may not have come to this yet, so it is asked for once more.
        self.tell();
    }

    /// No more deliveries are wanted. [`Keeper::serve`] waits until there will be none.
    fn cancel(&self) {
        if !self.is_ended() && self.unsettled.lock().cancel() {
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(me) = self.me.upgrade() {
            self.session.flush_soon(me as Arc<dyn Flush>);
        }
    }

    /// Back into the queue, unless it is settled already.
    pub(crate) fn give_back(&self, tag: u64) {
        // What is stale goes back by itself.
        let _ = self.end(tag, Ending::Requeue);
    }
}

impl Settler for Consumer {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        let tag = delivery.tag();
        // From here on, and not from the first poll.
        let held = Held::new(Arc::clone(&self), tag);
        Box::pin(async move {
            match settlement {
                Settlement::Ack => held.end(Ending::Ack),
                Settlement::Requeue => held.end(Ending::Requeue),
                Settlement::Retry { delay, attempt } => {
                    self.copy(&delivery, CopyFor::Retry(&attempt), delay).await
                }
                Settlement::Defer { delay } => self.copy(&delivery, CopyFor::Later, delay).await,
                Settlement::DeadLetter { attempt } => {
                    let copy_for = CopyFor::DeadLetters(&attempt, self.letters_beside());
                    self.copy(&delivery, copy_for, Duration::ZERO).await
                }
            }
        })
    }

    fn acknowledge(&self, tag: u64) -> Option<Result<(), TransportError>> {
        Some(self.end(tag, Ending::Ack))
    }

    fn dropped(&self, tag: u64) {
        self.give_back(tag);
    }

    fn is_stale(&self, tag: u64) -> bool {
        self.is_ended() || self.unsettled.lock().properties(tag).is_none()
    }
}
