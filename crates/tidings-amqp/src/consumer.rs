//! Receiving from a queue: one channel per subscription and connection, and a stream that goes on
//! over all of them.
//!
//! Deliveries are handed on by the reading task and decoded where they are used. What was delivered
//! on a connection that is gone is thrown away there: the broker delivers it again, and nobody
//! could acknowledge it any more.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use parking_lot::Mutex;
use tidings_core::{
    BoxFuture, Delivery, PublishError, PublishErrorKind, Settlement, Settler, Subscription,
    TransportError, dead_letter_queue,
};
use tidings_wire::{
    BasicCancel, BasicConsume, BasicNack, BasicQos, Command, Content, Method, Properties, ShortStr,
    encode_ack, encode_method, reply,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    Shared, link,
    link::Backoff,
    message::{self, CopyFor},
    publisher::Item,
    session::{Channel, Closed, Flush, Inbound, Session},
};

const CONSUMER_TAG: ShortStr = ShortStr::from_static("tidings");

/// A delivery before it is decoded.
struct Raw {
    tag: u64,
    redelivered: bool,
    content: Content,
}

/// What one connection delivers.
struct Source {
    raws: mpsc::Receiver<Raw>,
    consumer: Arc<Consumer>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.raws.close();
        while let Ok(raw) = self.raws.try_recv() {
            self.consumer.give_back(raw.tag);
        }
    }
}

/// The stream of a subscription.
pub(crate) struct Deliveries {
    sources: mpsc::Receiver<Result<Source, TransportError>>,
    source: Option<Source>,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(source) = &mut self.source {
                match ready!(source.raws.poll_recv(cx)) {
                    Some(raw) if !source.consumer.is_ended() => {
                        return Poll::Ready(Some(Ok(source.consumer.deliver(raw))));
                    }
                    Some(_) => {}
                    None => self.source = None,
                }
                continue;
            }
            match ready!(self.sources.poll_recv(cx)) {
                Some(Ok(source)) => self.source = Some(source),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

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
        sources: sender,
    };
    shared.around.tasks.spawn(keeper.run());
    match sources.recv().await {
        Some(Ok(source)) => Ok(Deliveries {
            sources,
            source: Some(source),
        }),
        Some(Err(error)) => Err(error),
        None => Err(link::closed()),
    }
}

/// The task that keeps a subscription alive.
struct Keeper {
    shared: Weak<Shared>,
    stop: CancellationToken,
    name: ShortStr,
    queue: Arc<str>,
    prefetch: u16,
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
        loop {
            let started = tokio::select! {
                started = self.start() => started,
                () = self.sources.closed() => return,
            };
            match started {
                Ok((channel, source)) => {
                    backoff = Backoff::default();
                    if !self.serve(channel, source).await {
                        return;
                    }
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
    async fn start(&self) -> Result<(Channel, Source), TransportError> {
        let shared = self.shared.upgrade().ok_or_else(link::closed)?;
        let session = shared.consuming().up().await?;
        let closed = match self.consume(&shared, &session).await {
            Ok(started) => return Ok(started),
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

    async fn consume(
        &self,
        shared: &Arc<Shared>,
        session: &Arc<Session>,
    ) -> Result<(Channel, Source), Closed> {
        // No delivery beyond the prefetch count can come, so that there is always room.
        let (sender, raws) = mpsc::channel(self.prefetch.into());
        let mut consumer = None;
        let channel = Channel::open(session, |id| {
            let it = consumer.insert(Arc::new(Consumer {
                id,
                session: Arc::clone(session),
                shared: Arc::downgrade(shared),
                queue: Arc::clone(&self.queue),
                unsettled: Mutex::default(),
                ended: CancellationToken::new(),
                settled: Notify::new(),
            }));
            Box::new(Incoming {
                consumer: Arc::clone(it),
                raws: Some(sender),
            })
        })
        .await?;
        let Some(consumer) = consumer else {
            return Err(session.end());
        };
        let qos = BasicQos {
            prefetch_count: self.prefetch,
            ..BasicQos::default()
        };
        channel.call(&qos).await?;
        let consume = BasicConsume {
            queue: self.name.clone(),
            consumer_tag: CONSUMER_TAG,
            ..BasicConsume::default()
        };
        channel.call(&consume).await?;
        Ok((channel, Source { raws, consumer }))
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
                () = consumer.ended.cancelled() => return true,
                () = self.sources.closed() => {}
            }
        }
        // What is out can still be settled; what was not handed out goes back to the queue.
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
    raws: Option<mpsc::Sender<Raw>>,
}

impl Inbound for Incoming {
    fn receive(&mut self, command: Command) {
        match (command.method, command.content) {
            (Method::BasicDeliver(deliver), Some(content)) => {
                let tag = deliver.delivery_tag;
                let entry = Entry::Out(content.properties.clone());
                self.consumer.unsettled.lock().entries.insert(tag, entry);
                if content.is_too_large() {
                    error!(
                        queue = %self.consumer.queue,
                        "a message of {} bytes is too large; the broker moves it to the dead letters",
                        content.body_bytes
                    );
                    return self.consumer.refuse(tag, false);
                }
                let raw = Raw {
                    tag,
                    redelivered: deliver.redelivered,
                    content,
                };
                let sent = self.raws.as_ref().map(|raws| raws.try_send(raw));
                if !matches!(sent, Some(Ok(()))) {
                    // The stream was dropped.
                    self.consumer.give_back(tag);
                }
            }
            (Method::BasicCancel(_), _) => {
                let queue = &self.consumer.queue;
                warn!(%queue, "the broker ended the subscription; subscribing again");
                self.raws = None;
                self.consumer.ended.cancel();
            }
            _ => {}
        }
    }

    fn closed(&mut self, closed: &Closed) {
        if !closed.is_connection {
            let queue = &self.consumer.queue;
            warn!(%queue, reason = %closed.reason, "the broker closed a subscription's channel");
        }
        self.raws = None;
        self.consumer.ended.cancel();
    }
}

/// A subscription on one connection: settles what came from it.
struct Consumer {
    id: u16,
    session: Arc<Session>,
    shared: Weak<Shared>,
    queue: Arc<str>,
    unsettled: Mutex<Unsettled>,
    /// The channel or its subscription is gone: nothing can be settled any more.
    ended: CancellationToken,
    settled: Notify,
}

/// The deliveries that the broker waits for, by their tags. No more than the prefetch count.
#[derive(Default)]
struct Unsettled {
    entries: BTreeMap<u64, Entry>,
    /// Settled ones that the broker has not been told of.
    to_ack: Vec<u64>,
}

enum Entry {
    /// The properties are kept for a copy.
    Out(Properties),
    /// Settled; the broker will be told soon.
    Acked,
}

impl Unsettled {
    /// Writes the acknowledgements: one for all settled ones below the lowest that is out, one
    /// each for the others.
    fn write_acks(&mut self, channel: u16, out: &mut BytesMut) {
        let (mut count, mut through) = (0, 0);
        while let Some(lowest) = self.entries.first_entry()
            && matches!(lowest.get(), Entry::Acked)
        {
            (count, through) = (count + 1, *lowest.key());
            lowest.remove();
        }
        if count > 0 {
            encode_ack(out, channel, through, count > 1);
        }
        for tag in self.to_ack.drain(..).filter(|tag| *tag > through) {
            if self.entries.remove(&tag).is_some() {
                encode_ack(out, channel, tag, false);
            }
        }
    }
}

impl Flush for Consumer {
    fn flush(&self, out: &mut BytesMut) {
        let mut unsettled = self.unsettled.lock();
        if self.is_ended() {
            return;
        }
        unsettled.write_acks(self.id, out);
        let all = unsettled.entries.is_empty();
        drop(unsettled);
        if all {
            self.settled.notify_waiters();
        }
    }
}

impl Consumer {
    fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    fn deliver(self: &Arc<Self>, raw: Raw) -> Delivery {
        let received = message::read(&raw.content.properties, raw.content.body);
        let settler = Arc::clone(self) as Arc<dyn Settler>;
        let queue = Arc::clone(&self.queue);
        let mut delivery = Delivery::new(received.envelope, queue, raw.tag, settler);
        delivery.redelivered = raw.redelivered;
        delivery.history = received.history;
        delivery.failures = received.failures;
        delivery
    }

    async fn all_settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.unsettled.lock().entries.is_empty() {
                return;
            }
            settled.await;
        }
    }

    fn stale(&self) -> TransportError {
        TransportError::temporary(format!(
            "the connection that this delivery of queue `{}` came from is gone; the broker will \
             deliver it again",
            self.queue
        ))
    }

    /// Tells the broker, with whatever else there is to tell, at the next write.
    fn ack(self: &Arc<Self>, tag: u64) -> Result<(), TransportError> {
        let is_first = {
            let mut unsettled = self.unsettled.lock();
            match unsettled.entries.get_mut(&tag) {
                Some(entry @ Entry::Out(_)) if !self.is_ended() => *entry = Entry::Acked,
                _ => return Err(self.stale()),
            }
            unsettled.to_ack.push(tag);
            unsettled.to_ack.len() == 1
        };
        if is_first {
            self.session.flush_soon(Arc::clone(self) as Arc<dyn Flush>);
        }
        Ok(())
    }

    /// Back into the queue, for whoever is there.
    fn give_back(&self, tag: u64) {
        self.refuse(tag, true);
    }

    fn refuse(&self, tag: u64, requeue: bool) {
        let mut unsettled = self.unsettled.lock();
        match unsettled.entries.get(&tag) {
            Some(Entry::Out(_)) if !self.is_ended() => drop(unsettled.entries.remove(&tag)),
            _ => return,
        }
        let nack = BasicNack {
            delivery_tag: tag,
            multiple: false,
            requeue,
        };
        self.session.send(|out| encode_method(out, self.id, &nack));
        if unsettled.entries.is_empty() {
            self.settled.notify_waiters();
        }
    }

    /// Publishes a copy until the broker has it, then acknowledges the original.
    async fn copy(
        self: &Arc<Self>,
        delivery: &Delivery,
        copy_for: CopyFor<'_>,
        delay: Duration,
    ) -> Result<(), TransportError> {
        let tag = delivery.tag();
        let original = match self.unsettled.lock().entries.get(&tag) {
            Some(Entry::Out(properties)) => properties.clone(),
            _ => return Err(self.stale()),
        };
        let properties = message::properties_of_copy(&original, delivery, copy_for).encode();
        let mut backoff = Backoff::default();
        loop {
            let target = match copy_for {
                CopyFor::DeadLetters(_) => Target::Queue(dead_letter_queue(&self.queue)),
                _ if delay.is_zero() => Target::Queue(self.queue.to_string()),
                _ => Target::Later(delay),
            };
            let body = delivery.envelope.body.clone();
            let failure = tokio::select! {
                outcome = self.try_copy(target, properties.clone(), body) => match outcome {
                    Ok(()) => return self.ack(tag),
                    Err(failure) => failure,
                },
                () = self.ended.cancelled() => return Err(self.stale()),
            };
            if failure.is_final && !self.session.is_ended() {
                // The broker does not take the copy at all, but it can move its own original.
                error!(
                    queue = %self.queue,
                    "the copy of a message cannot be published; the broker moves the original to \
                     the dead letters without a history: {}",
                    failure.reason
                );
                self.refuse(tag, false);
                return Ok(());
            }
            if failure.is_temporary {
                debug!(queue = %self.queue, "a copy waits: {}", failure.reason);
            } else {
                warn!(queue = %self.queue, "a copy waits: {}", failure.reason);
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.ended.cancelled() => return Err(self.stale()),
            }
        }
    }

    async fn try_copy(
        &self,
        target: Target,
        properties: Properties,
        body: Bytes,
    ) -> Result<(), CopyFailure> {
        let shared = self.shared.upgrade().ok_or_else(link::closed)?;
        let queue = match target {
            Target::Queue(queue) => queue,
            Target::Later(delay) => shared.retry_queue(&self.queue, delay).await?,
        };
        let copy = Item::Copy {
            queue,
            properties,
            body,
        };
        match shared.publish_items(vec![copy]).await.pop() {
            Some(Err(error)) => {
                if error.kind() == PublishErrorKind::Unroutable {
                    shared.restore(&self.queue).await;
                }
                Err(error.into())
            }
            _ => Ok(()),
        }
    }
}

/// Where a copy goes.
enum Target {
    Queue(String),
    /// Back to its own queue after a delay.
    Later(Duration),
}

struct CopyFailure {
    /// Trying again cannot help.
    is_final: bool,
    /// There is no connection for now.
    is_temporary: bool,
    reason: String,
}

impl From<TransportError> for CopyFailure {
    fn from(error: TransportError) -> Self {
        Self {
            is_final: !error.is_temporary(),
            is_temporary: error.is_temporary(),
            reason: error.to_string(),
        }
    }
}

impl From<PublishError> for CopyFailure {
    fn from(error: PublishError) -> Self {
        Self {
            is_final: error.kind() == PublishErrorKind::Invalid,
            is_temporary: error.kind() == PublishErrorKind::Unavailable,
            reason: error.to_string(),
        }
    }
}

impl Settler for Consumer {
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async move {
            match settlement {
                Settlement::Ack => self.ack(delivery.tag()),
                Settlement::Retry { delay, attempt } => {
                    self.copy(&delivery, CopyFor::Retry(&attempt), delay).await
                }
                Settlement::Defer { delay } => self.copy(&delivery, CopyFor::Later, delay).await,
                Settlement::DeadLetter { attempt } => {
                    let copy_for = CopyFor::DeadLetters(&attempt);
                    self.copy(&delivery, copy_for, Duration::ZERO).await
                }
            }
        })
    }
}
