//! Publishing with confirms: many callers, one channel, everything in a pipeline.
//!
//! What is in flight is a queue in the order of the channel's publish numbers, so that a confirm is
//! a step at its front. An unroutable message comes back (`basic.return`) before its confirm, but
//! does not say which publish it was; it is known by its destination and message id. If several in
//! flight share both, all of them count as unroutable: they are the same message, and sending it
//! once more is always safe.
//!
//! A confirm that does not come within the time-out ends the wait of its caller, not the flight: it
//! may come yet, and until then the message counts against the window. When the broker has confirmed
//! later messages for a while, the channel is worn out: what is published next goes to a new one, which
//! begins to count anew, so that no later confirm can be taken for another's. What else is in flight on
//! the old one is confirmed there. A channel of which nothing at all is confirmed for long is given up
//! with all that is in flight.
//!
//! While the broker says that it takes nothing (an alarm), nothing is sent: it would all be taken
//! when the alarm ends, once for each time that somebody tried again.

mod item;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tidings_core::{PublishError, PublishErrorKind};
use tidings_wire::{BasicReturn, Command, ConfirmSelect, Method, ShortStr, encode_publish, reply};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::timeout_at,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(crate) use item::{Item, Way, header_bytes_max};

use crate::session::{BODY_BYTES_MAX, Channel, Closed, Inbound, Session};

/// How many messages may be unconfirmed; more wait.
pub(crate) const IN_FLIGHT_MAX: usize = 8192;
/// How far the oldest unconfirmed message may be behind the newest; then the channel is worn out.
const SPAN_MAX: usize = 64 * IN_FLIGHT_MAX;
/// How many of one batch are sent at a time, so that batches of several callers mix.
const CHUNK_MAX: usize = 256;

pub(crate) type Outcome = Result<(), PublishError>;

/// A batch under way, and the outcomes so far.
struct Batch {
    items: Vec<Item>,
    outcomes: Mutex<Outcomes>,
    missing: AtomicUsize,
    /// How many were sent, or refused; the others wait for room.
    sent: AtomicUsize,
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
            sent: AtomicUsize::new(0),
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
        // The caller may have given up and taken those that were there.
        if let Some(place) = outcomes.list.get_mut(index) {
            *place = Some(outcome);
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = outcomes.done.take()
        {
            let _ = done.send(());
        }
    }

    /// The outcomes; those that are missing are `unconfirmed` if they were sent, or `unsent`.
    fn take(
        &self,
        unconfirmed: impl Fn() -> PublishError,
        unsent: impl Fn() -> PublishError,
    ) -> Vec<Outcome> {
        let list = std::mem::take(&mut self.outcomes.lock().list);
        let sent = self.sent.load(Ordering::Acquire);
        let missing = |index| match index < sent {
            true => Err(unconfirmed()),
            false => Err(unsent()),
        };
        let list = list.into_iter().enumerate();
        list.map(|(index, outcome)| outcome.unwrap_or_else(|| missing(index)))
            .collect()
    }
}

/// A message that the broker has not confirmed yet.
struct Pending {
    batch: Arc<Batch>,
    index: usize,
    /// Why it came back, if it did; its confirm is still to come.
    returned: Option<Box<str>>,
    sent_at: Instant,
}

impl Pending {
    fn item(&self) -> &Item {
        &self.batch.items[self.index]
    }

    fn resolve(self, outcome: Outcome) {
        self.batch.set(self.index, outcome);
    }

    fn confirm(self, taken: bool) {
        let outcome = match &self.returned {
            Some(reason) => Err(PublishError::new(
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
    /// `None` for what was confirmed before others that were sent before it.
    queue: VecDeque<Option<Pending>>,
    /// The publish number of the front of `queue`.
    first: u64,
    /// The highest publish number that was confirmed.
    confirmed: u64,
    /// Since when the front is not confirmed although a later one is.
    passed: Option<Instant>,
    /// When the broker last confirmed or refused something, or was seen blocked.
    heard: Instant,
    closed: Option<Closed>,
}

impl Flight {
    /// True if the oldest message waits for longer than `time` already.
    fn is_late(&self, time: Duration) -> bool {
        let oldest = self.queue.front().and_then(Option::as_ref);
        oldest.is_some_and(|oldest| oldest.sent_at.elapsed() >= time)
    }

    /// True if later ones than the oldest are confirmed for longer than `time` already.
    fn is_passed(&self, time: Duration) -> bool {
        self.passed.is_some_and(|since| since.elapsed() >= time)
    }

    /// True if the broker left all that it got unanswered for longer than `time` already.
    fn is_silent(&self, time: Duration) -> bool {
        self.is_late(time) && self.heard.elapsed() >= time
    }
}

struct Shared {
    flight: Mutex<Flight>,
    window: Semaphore,
    landed: Notify,
    /// The channel is gone, or another one is to be used from now on.
    worn: CancellationToken,
}

/// A channel in confirm mode.
pub(crate) struct Publisher {
    channel: Channel,
    shared: Arc<Shared>,
    confirm_timeout: Duration,
}

impl Publisher {
    pub(crate) async fn open(
        session: &Arc<Session>,
        confirm_timeout: Duration,
    ) -> Result<Self, Closed> {
        let shared = Arc::new(Shared {
            flight: Mutex::new(Flight {
                queue: VecDeque::new(),
                first: 1,
                confirmed: 0,
                passed: None,
                heard: Instant::now(),
                closed: None,
            }),
            window: Semaphore::new(IN_FLIGHT_MAX),
            landed: Notify::new(),
            worn: CancellationToken::new(),
        });
        let inbound = Confirms(Arc::clone(&shared));
        let channel = Channel::open(session, |_| Box::new(inbound)).await?;
        channel.call(&ConfirmSelect::default()).await?;
        Ok(Self {
            channel,
            shared,
            confirm_timeout,
        })
    }

    /// Resolves when another channel is to be used.
    pub(crate) async fn worn(&self) {
        self.shared.worn.cancelled().await;
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

    /// Publishes in order; resolves when each has its outcome, or at the deadline.
    pub(crate) async fn publish(&self, items: Vec<Item>, deadline: Instant) -> Vec<Outcome> {
        if items.is_empty() {
            return Vec::new();
        }
        if self.channel.session.is_blocked() {
            self.shared.flight.lock().heard = Instant::now();
            return items.iter().map(|_| Err(blocked())).collect();
        }
        let (batch, done) = Batch::new(items);
        let confirmed = async {
            self.send_all(&batch).await;
            // The sender is in the batch, and every outcome is set some time.
            let _ = done.await;
        };
        let is_late = timeout_at(deadline.into(), confirmed).await.is_err();
        if is_late {
            self.give_up_lost();
        }
        let lost = || unavailable(&self.lost());
        match is_late {
            true => batch.take(|| unconfirmed(self.confirm_timeout), no_room),
            false => batch.take(lost, lost),
        }
    }

    /// Sends a batch as there is room for it. May be dropped at any time: what was sent keeps its
    /// share of the window until it is confirmed, and what was not has none.
    async fn send_all(&self, batch: &Arc<Batch>) {
        let count = batch.items.len();
        let mut start = 0;
        while start < count {
            let chunk = start..count.min(start + CHUNK_MAX);
            let Ok(permits) = self.shared.window.acquire_many(chunk.len() as u32).await else {
                break;
            };
            self.channel.session.room().await;
            // They come back one by one, with the confirms.
            permits.forget();
            self.send(batch, chunk.clone());
            start = chunk.end;
        }
        if start < count {
            let lost = self.lost();
            for index in start..count {
                batch.set(index, Err(unavailable(&lost)));
            }
        }
    }

    /// Why nothing can be sent.
    fn lost(&self) -> Closed {
        let closed = self.shared.flight.lock().closed.clone();
        closed.unwrap_or_else(|| self.channel.session.end())
    }

    /// Uses the channel no more if a confirm will not come: the broker has confirmed later
    /// messages long since (a broker that comes out of an alarm does not keep to the order; a queue may have no leader), or it is
    /// not blocked and yet confirms nothing for long: RabbitMQ's side of the channel may hang while a node of its cluster
    /// does not answer.
    fn give_up_lost(&self) {
        let is_silent = {
            let mut flight = self.shared.flight.lock();
            if self.channel.session.is_blocked() {
                flight.heard = Instant::now();
            }
            let time = self.confirm_timeout;
            let is_silent = flight.is_silent(2 * time);
            let is_passed = flight.is_late(time) && flight.is_passed(time / 2);
            if !is_silent && !is_passed && flight.queue.len() <= SPAN_MAX {
                return;
            }
            is_silent
        };
        if is_silent {
            let reason = "the broker confirms nothing";
            warn!("{reason}; publishing goes on on a new channel");
            self.shared.close(&Closed::lost(reason));
        } else if !self.shared.worn.is_cancelled() {
            self.shared.worn.cancel();
            warn!(
                "the broker confirmed later messages, but not an earlier one; what is published \
                 next goes to a new channel"
            );
        }
    }

    fn send(&self, batch: &Arc<Batch>, chunk: Range<usize>) {
        self.give_up_lost();
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
        batch.sent.store(chunk.end, Ordering::Release);
        let sent_at = Instant::now();
        let (mut refused, mut scratch) = (Vec::new(), BytesMut::new());
        session.send(|out| {
            for index in chunk {
                match self.encode(&batch.items[index], &mut scratch, out) {
                    Ok(()) => flight.queue.push_back(Some(Pending {
                        batch: Arc::clone(batch),
                        index,
                        returned: None,
                        sent_at,
                    })),
                    Err(reason) => refused.push((index, reason)),
                }
            }
        });
        drop(flight);
        self.shared.window.add_permits(refused.len());
        for (index, reason) in refused {
            let invalid = PublishError::new(PublishErrorKind::Invalid, reason);
            batch.set(index, Err(invalid));
        }
    }

    /// Appends a message, or says why it can never be one.
    fn encode(
        &self,
        item: &Item,
        scratch: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<(), String> {
        let frame_bytes_max = self.channel.session.frame_bytes_max;
        let bytes_max = header_bytes_max(frame_bytes_max);
        let properties = item.properties(scratch, bytes_max)?;
        if properties.len() > bytes_max {
            return Err(format!(
                "its headers have {} bytes, and the broker takes {bytes_max} at most; move what is \
                 large into the body",
                properties.len()
            ));
        }
        let body = item.body();
        if body.len() as u64 > BODY_BYTES_MAX {
            return Err(format!(
                "its body has {} bytes, and at most {BODY_BYTES_MAX} are possible; send a \
                 reference to what is large (a claim check)",
                body.len()
            ));
        }
        encode_publish(
            out,
            self.channel.id,
            &item.exchange(),
            item.routing_key(),
            item.mandatory(),
            properties,
            body,
            frame_bytes_max,
        )
        .map_err(|error| format!("the name of its destination: {error}"))
    }
}

impl Shared {
    /// Nothing more comes from the channel: whoever waits is told so.
    fn close(&self, closed: &Closed) {
        let queue = {
            let mut flight = self.flight.lock();
            flight.closed.get_or_insert_with(|| closed.clone());
            std::mem::take(&mut flight.queue)
        };
        self.window.close();
        self.worn.cancel();
        fail_all(queue, closed);
        self.landed.notify_waiters();
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
        if !closed.is_connection {
            warn!(reason = %closed.reason, "the broker closed the channel for publishing");
        }
        self.0.close(closed);
    }
}

impl Confirms {
    fn confirmed(&self, tag: u64, multiple: bool, taken: bool) {
        let mut flight = self.0.flight.lock();
        let Flight {
            queue,
            first,
            confirmed,
            passed,
            heard,
            ..
        } = &mut *flight;
        let count = queue.len() as u64;
        // Tag 0 with `multiple` means everything so far.
        let named = match (tag.checked_sub(*first), multiple) {
            (_, true) if tag == 0 => 0..count,
            (Some(offset), true) => 0..count.min(offset + 1),
            (Some(offset), false) if offset < count => offset..offset + 1,
            // Of an earlier one, or of one that was never sent.
            _ => 0..0,
        };
        if !named.is_empty() {
            *confirmed = (*confirmed).max(*first + named.end - 1);
            *heard = Instant::now();
        }
        let mut resolved = 0;
        for place in queue.range_mut(named.start as usize..named.end as usize) {
            if let Some(pending) = place.take() {
                pending.confirm(taken);
                resolved += 1;
            }
        }
        while let Some(None) = queue.front() {
            queue.pop_front();
            *first += 1;
            *passed = None;
        }
        if *confirmed > *first && passed.is_none() {
            *passed = Some(Instant::now());
        }
        let is_empty = queue.is_empty();
        drop(flight);
        // Also for those behind one that waits: they hold up nobody.
        self.0.window.add_permits(resolved);
        if is_empty {
            self.0.landed.notify_waiters();
        }
    }

    fn returned(&self, returned: &BasicReturn, id: Option<&ShortStr>) {
        let mut flight = self.0.flight.lock();
        let mut found = false;
        for pending in flight.queue.iter_mut().flatten() {
            if pending.returned.is_none() && pending.item().is_returned_as(returned, id) {
                let text = returned.reply_text.to_str_lossy();
                pending.returned = Some(text.into());
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
fn fail_all(queue: VecDeque<Option<Pending>>, closed: &Closed) {
    let pending: Vec<Pending> = queue.into_iter().flatten().collect();
    let alone = pending.len() == 1;
    for pending in pending {
        let guilty = !closed.is_connection && (alone || is_guilty(pending.item(), closed));
        let is_copy = matches!(pending.item(), Item::Copy { .. });
        let kind = match closed.code {
            // A missing exchange is declared again before the next attempt.
            reply::NOT_FOUND => PublishErrorKind::Unavailable,
            // Where a copy has to go is not its own choice: a permission can be granted.
            reply::ACCESS_REFUSED if guilty && is_copy => PublishErrorKind::Refused,
            _ if guilty => PublishErrorKind::Invalid,
            _ => PublishErrorKind::Unavailable,
        };
        let outcome = match kind {
            PublishErrorKind::Unavailable => unavailable(closed),
            kind => {
                let reason = &closed.reason;
                PublishError::new(kind, format!("the broker does not take it: {reason}"))
            }
        };
        pending.resolve(Err(outcome));
    }
}

/// True if the broker's words are about this message.
fn is_guilty(item: &Item, closed: &Closed) -> bool {
    match closed.code {
        reply::ACCESS_REFUSED | reply::NOT_FOUND => {
            let exchange = item.exchange();
            let exchange = match &*exchange {
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

/// The broker has told us of an alarm.
fn blocked() -> PublishError {
    PublishError::new(
        PublishErrorKind::Refused,
        "the broker takes no messages for now (see its alarms: memory, disk); it can be sent again",
    )
}

/// The broker left it unanswered.
fn unconfirmed(time: Duration) -> PublishError {
    PublishError::new(
        PublishErrorKind::Unconfirmed,
        format!("the broker did not confirm it within {time:?}; it may have it"),
    )
}

/// It was never sent.
fn no_room() -> PublishError {
    PublishError::new(
        PublishErrorKind::Unavailable,
        "it was not sent: the broker does not confirm what was sent before",
    )
}

/// The connection or channel went before the broker answered.
pub(crate) fn unavailable(closed: &Closed) -> PublishError {
    PublishError::new(
        PublishErrorKind::Unavailable,
        format!("the broker did not confirm it: {}", closed.reason),
    )
}
