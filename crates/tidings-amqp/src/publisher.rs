//! Publishing with confirms: many callers, one channel, everything in a pipeline.
//!
//! What is in flight is a queue in the order of the channel's publish numbers, so that a confirm is
//! a step at its front. An unroutable message comes back (`basic.return`) before its confirm, but
//! does not say which publish it was; it is known by its destination and message id. If several in
//! flight share both, all of them count as unroutable: they are the same message, and sending it
//! once more is always safe.

use std::{
    borrow::Cow,
    collections::VecDeque,
    ops::Range,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tidings_core::{Destination, Outgoing, PublishError, PublishErrorKind, Unrouted};
use tidings_wire::{
    BasicReturn, Command, ConfirmSelect, Method, Properties, ShortStr, ShortStrTooLong,
    encode_publish, reply,
};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    message,
    session::{Channel, Closed, Inbound, Session},
};

/// How many messages may be unconfirmed; more wait.
pub(crate) const IN_FLIGHT_MAX: usize = 8192;
/// How many of one batch are sent at a time, so that batches of several callers mix.
const CHUNK_MAX: usize = 256;
/// What a header frame has beside the properties.
const HEADER_OVERHEAD_BYTES: usize = 32;

pub(crate) type Outcome = Result<(), PublishError>;

/// Something to publish.
pub(crate) enum Item {
    /// What a service sends.
    Message(Outgoing),
    /// A copy of a delivery, to one queue.
    Copy {
        queue: String,
        properties: Properties,
        body: Bytes,
    },
}

impl Item {
    /// The topic it is published to, if it is not for one queue.
    pub(crate) fn topic(&self) -> Option<&str> {
        match self {
            Self::Message(Outgoing {
                destination: Destination::Topic(topic),
                ..
            }) => Some(topic),
            _ => None,
        }
    }

    fn exchange(&self) -> &str {
        self.topic().unwrap_or_default()
    }

    fn routing_key(&self) -> &str {
        match self {
            Self::Message(Outgoing {
                destination: Destination::Queue(queue),
                ..
            }) => queue,
            Self::Message(_) => "",
            Self::Copy { queue, .. } => queue,
        }
    }

    fn body(&self) -> &Bytes {
        match self {
            Self::Message(message) => &message.envelope.body,
            Self::Copy { body, .. } => body,
        }
    }

    fn mandatory(&self) -> bool {
        !matches!(self, Self::Message(message) if message.unrouted == Unrouted::Drop)
    }

    fn encode_properties(&self, out: &mut BytesMut) -> Result<(), ShortStrTooLong> {
        match self {
            Self::Message(message) => message::properties_of(&message.envelope)?.encode_into(out),
            Self::Copy { properties, .. } => out.extend_from_slice(properties.as_bytes()),
        }
        Ok(())
    }

    /// True if this is, as far as can be told, the message that was returned.
    fn is_returned_as(&self, returned: &BasicReturn, id: Option<&ShortStr>) -> bool {
        let own_id: Option<Cow<'_, [u8]>> = match self {
            Self::Message(message) => {
                let id = message
                    .envelope
                    .id
                    .as_ref()
                    .map(|id| id.as_str().as_bytes());
                id.filter(|id| (1..=ShortStr::BYTES_MAX).contains(&id.len()))
                    .map(Cow::Borrowed)
            }
            Self::Copy { properties, .. } => {
                properties.message_id().map(|id| Cow::Owned(id.to_vec()))
            }
        };
        returned.exchange == *self.exchange()
            && returned.routing_key == *self.routing_key()
            && own_id.as_deref() == id.map(|id| &**id)
    }
}

/// A batch under way, and the outcomes so far.
struct Batch {
    items: Vec<Item>,
    outcomes: Mutex<Outcomes>,
    missing: AtomicUsize,
}

struct Outcomes {
    list: Vec<Option<Outcome>>,
    done: Option<oneshot::Sender<()>>,
}

impl Batch {
    fn new(items: Vec<Item>) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let mut list = Vec::new();
        list.resize_with(items.len(), || None);
        let batch = Self {
            missing: AtomicUsize::new(items.len()),
            items,
            outcomes: Mutex::new(Outcomes {
                list,
                done: Some(sender),
            }),
        };
        (Arc::new(batch), receiver)
    }

    fn set(&self, index: usize, outcome: Outcome) {
        let mut outcomes = self.outcomes.lock();
        outcomes.list[index] = Some(outcome);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = outcomes.done.take()
        {
            // The caller may have given up.
            let _ = done.send(());
        }
    }
}

/// A message that the broker has not confirmed yet.
struct Pending {
    batch: Arc<Batch>,
    index: usize,
    state: PendingState,
}

enum PendingState {
    Sent,
    /// It came back; its confirm is still to come.
    Returned(Box<str>),
    /// Confirmed before others that were sent before it.
    Done,
}

impl Pending {
    fn item(&self) -> &Item {
        &self.batch.items[self.index]
    }

    /// Sets the outcome unless it was set before.
    fn resolve(&mut self, outcome: Outcome) {
        if !matches!(self.state, PendingState::Done) {
            self.state = PendingState::Done;
            self.batch.set(self.index, outcome);
        }
    }

    fn confirm(&mut self, taken: bool) {
        let outcome = match &self.state {
            PendingState::Returned(reason) => Err(PublishError::new(
                PublishErrorKind::Unroutable,
                format!("no queue wants it: {reason}"),
            )),
            _ if taken => Ok(()),
            _ => Err(PublishError::new(
                PublishErrorKind::Refused,
                "the broker refused it for now (is a queue full?); it can be sent again",
            )),
        };
        self.resolve(outcome);
    }
}

/// What is in flight on one channel.
struct Flight {
    queue: VecDeque<Pending>,
    /// The publish number of the front of `queue`.
    first: u64,
    scratch: BytesMut,
    closed: Option<Closed>,
}

struct Shared {
    flight: Mutex<Flight>,
    window: Semaphore,
    landed: Notify,
    closed: CancellationToken,
}

/// A channel in confirm mode.
pub(crate) struct Publisher {
    channel: Channel,
    shared: Arc<Shared>,
}

impl Publisher {
    pub(crate) async fn open(session: &Arc<Session>) -> Result<Self, Closed> {
        let shared = Arc::new(Shared {
            flight: Mutex::new(Flight {
                queue: VecDeque::new(),
                first: 1,
                scratch: BytesMut::new(),
                closed: None,
            }),
            window: Semaphore::new(IN_FLIGHT_MAX),
            landed: Notify::new(),
            closed: CancellationToken::new(),
        });
        let inbound = Confirms(Arc::clone(&shared));
        let channel = Channel::open(session, |_| Box::new(inbound)).await?;
        channel.call(&ConfirmSelect::default()).await?;
        Ok(Self { channel, shared })
    }

    /// Resolves when the channel is gone.
    pub(crate) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Resolves when nothing is in flight, or the channel is gone.
    pub(crate) async fn landed(&self) {
        loop {
            let landed = self.shared.landed.notified();
            if self.shared.flight.lock().queue.is_empty() {
                return;
            }
            landed.await;
        }
    }

    /// Publishes in order; resolves when each has its outcome.
    pub(crate) async fn publish(&self, items: Vec<Item>) -> Vec<Outcome> {
        let count = items.len();
        let (batch, done) = Batch::new(items);
        let mut start = 0;
        while start < count {
            let chunk = start..count.min(start + CHUNK_MAX);
            let Ok(permits) = self.shared.window.acquire_many(chunk.len() as u32).await else {
                break;
            };
            // They come back one by one, with the confirms.
            permits.forget();
            self.channel.session.room().await;
            self.send(&batch, chunk.clone());
            start = chunk.end;
        }
        let lost = || {
            let closed = self.shared.flight.lock().closed.clone();
            unavailable(&closed.unwrap_or_else(|| self.channel.session.end()))
        };
        for index in start..count {
            batch.set(index, Err(lost()));
        }
        if count > 0 {
            // The sender is in the batch, and every outcome is set some time.
            let _ = done.await;
        }
        let list = std::mem::take(&mut batch.outcomes.lock().list);
        list.into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    fn send(&self, batch: &Arc<Batch>, chunk: Range<usize>) {
        let session = &self.channel.session;
        let mut flight = self.shared.flight.lock();
        if let Some(closed) = &flight.closed {
            let closed = closed.clone();
            drop(flight);
            for index in chunk {
                batch.set(index, Err(unavailable(&closed)));
            }
            return;
        }
        let Flight { queue, scratch, .. } = &mut *flight;
        let mut refused = Vec::new();
        session.send(|out| {
            for index in chunk {
                match self.encode(&batch.items[index], scratch, out) {
                    Ok(()) => queue.push_back(Pending {
                        batch: Arc::clone(batch),
                        index,
                        state: PendingState::Sent,
                    }),
                    Err(reason) => refused.push((index, reason)),
                }
            }
        });
        drop(flight);
        self.shared.window.add_permits(refused.len());
        for (index, reason) in refused {
            batch.set(
                index,
                Err(PublishError::new(PublishErrorKind::Invalid, reason)),
            );
        }
    }

    fn encode(
        &self,
        item: &Item,
        scratch: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<(), String> {
        let frame_bytes_max = self.channel.session.frame_bytes_max;
        scratch.clear();
        item.encode_properties(scratch)
            .map_err(|error| format!("a header's name is too long: {error}"))?;
        if scratch.len() + HEADER_OVERHEAD_BYTES > frame_bytes_max as usize {
            return Err(format!(
                "its headers have {} bytes, and the broker takes less than {frame_bytes_max}; \
                 move what is large into the body",
                scratch.len()
            ));
        }
        encode_publish(
            out,
            self.channel.id,
            item.exchange(),
            item.routing_key(),
            item.mandatory(),
            scratch,
            item.body(),
            frame_bytes_max,
        )
        .map_err(|error| format!("the name of its destination: {error}"))
    }
}

/// Reads confirms and returns.
struct Confirms(Arc<Shared>);

impl Inbound for Confirms {
    fn receive(&mut self, command: Command) {
        match command.method {
            Method::BasicAck(ack) => self.confirmed(ack.delivery_tag, ack.multiple, true),
            Method::BasicNack(nack) => self.confirmed(nack.delivery_tag, nack.multiple, false),
            Method::BasicReturn(returned) => {
                let id = command.content.and_then(|it| it.properties.message_id());
                self.returned(&returned, id.as_ref());
            }
            _ => {}
        }
    }

    fn closed(&mut self, closed: &Closed) {
        let shared = &self.0;
        let queue = {
            let mut flight = shared.flight.lock();
            flight.closed = Some(closed.clone());
            std::mem::take(&mut flight.queue)
        };
        shared.window.close();
        shared.closed.cancel();
        if !closed.is_connection {
            warn!(reason = %closed.reason, "the broker closed the channel for publishing");
        }
        fail_all(queue, closed);
        shared.landed.notify_waiters();
    }
}

impl Confirms {
    fn confirmed(&self, tag: u64, multiple: bool, taken: bool) {
        let mut flight = self.0.flight.lock();
        let Flight { queue, first, .. } = &mut *flight;
        // Tag 0 with `multiple` means everything so far.
        let last = match (tag, multiple) {
            (0, true) => queue.len(),
            _ => match tag.checked_sub(*first) {
                Some(offset) => queue.len().min(offset as usize + 1),
                None => 0,
            },
        };
        let from = if multiple { 0 } else { last.saturating_sub(1) };
        for pending in queue.range_mut(from..last) {
            pending.confirm(taken);
        }
        let mut landed = 0;
        while let Some(Pending {
            state: PendingState::Done,
            ..
        }) = queue.front()
        {
            queue.pop_front();
            landed += 1;
        }
        *first += landed as u64;
        let is_empty = queue.is_empty();
        drop(flight);
        self.0.window.add_permits(landed);
        if is_empty {
            self.0.landed.notify_waiters();
        }
    }

    fn returned(&self, returned: &BasicReturn, id: Option<&ShortStr>) {
        let mut flight = self.0.flight.lock();
        let mut found = false;
        for pending in &mut flight.queue {
            if matches!(pending.state, PendingState::Sent)
                && pending.item().is_returned_as(returned, id)
            {
                let text = returned.reply_text.to_str_lossy();
                pending.state = PendingState::Returned(text.into());
                found = true;
            }
        }
        if !found {
            warn!(
                exchange = %returned.exchange,
                routing_key = %returned.routing_key,
                "the broker returned a message that is not under way"
            );
        }
    }
}

/// The channel is gone. If it went because of one message, that one is told so, and the others may
/// be sent again.
fn fail_all(queue: VecDeque<Pending>, closed: &Closed) {
    let alone = queue.len() == 1;
    for mut pending in queue {
        let guilty = !closed.is_connection && (alone || is_guilty(pending.item(), closed));
        // A missing exchange is declared again before the next attempt.
        let outcome = if guilty && closed.code != reply::NOT_FOUND {
            PublishError::new(
                PublishErrorKind::Invalid,
                format!("the broker does not take it: {}", closed.reason),
            )
        } else {
            unavailable(closed)
        };
        pending.resolve(Err(outcome));
    }
}

/// True if the broker's words are about this message.
fn is_guilty(item: &Item, closed: &Closed) -> bool {
    match closed.code {
        reply::ACCESS_REFUSED | reply::NOT_FOUND => {
            let exchange = match item.exchange() {
                "" => "amq.default",
                exchange => exchange,
            };
            closed.reason.contains(&format!("'{exchange}'"))
        }
        // "message size 17000000 is larger than configured max size 16777216"
        reply::PRECONDITION_FAILED => {
            let size = item.body().len().to_string();
            closed.reason.split(' ').any(|word| word == size)
        }
        _ => false,
    }
}

/// The connection or channel went before the broker answered.
pub(crate) fn unavailable(closed: &Closed) -> PublishError {
    PublishError::new(
        PublishErrorKind::Unavailable,
        format!("the broker did not confirm it: {}", closed.reason),
    )
}
