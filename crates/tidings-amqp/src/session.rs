//! One live connection: a task that reads, a task that writes, and the channels between.
//!
//! Nothing here is awaited per message. Who sends encodes straight into the buffer that the writer
//! takes whole, so that whatever was sent while the last write was under way goes out in one. What
//! is read is handed on by plain calls from the reading task.

mod channel;
mod inbound;
mod writing;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tidings_wire::{
    Assembler, ChannelCloseOk, ChannelFlowOk, ConnectionClose, ConnectionCloseOk, EncodeMethod,
    Frame, Method, ShortStr, WholeDelivery, WireError, decode_frame, encode_method, reply,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

pub(crate) use channel::Channel;
pub(crate) use inbound::{Inbound, Quiet, Whole};

use crate::{dial::Dialled, queues::Making};

/// Larger bodies are thrown away; no broker passes such on by default.
pub(crate) const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// How much is read at once, and the least there must be room for. What is delivered keeps the
/// memory it was read into, so that small reads must not take much each.
const READ_BYTES: usize = 64 * 1024;
const READ_BYTES_MIN: usize = 4 * 1024;
/// How much larger than agreed a frame may be that is read. A broker that dead-letters a message adds
/// to its headers, and both RabbitMQ and the broker in the box then send them in one frame, however
/// large: who refused it could never read that queue again.
const FRAME_BYTES_ADDED_MAX: u32 = 64 * 1024;
/// Publishers wait while more than this is yet to be written.
const OUT_BYTES_MAX: usize = 1024 * 1024;
/// How long the last bytes may take to be written.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Why a channel or the connection is no more.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    /// The broker's reply code; 0 if it did not say anything.
    pub(crate) code: u16,
    pub(crate) reason: Arc<str>,
    /// The connection went, and not just a channel for a reason of its own.
    pub(crate) is_connection: bool,
}

impl Closed {
    pub(crate) fn lost(reason: impl Into<Arc<str>>) -> Self {
        Self {
            code: 0,
            reason: reason.into(),
            is_connection: true,
        }
    }

    fn by_broker(code: u16, text: &ShortStr, is_connection: bool) -> Self {
        Self {
            code,
            reason: text.to_str_lossy().into(),
            is_connection,
        }
    }

    /// True if it passes by itself: the connection comes back, and so does the queue's node in a
    /// cluster.
    pub(crate) fn passes(&self) -> bool {
        let of_cluster = ["home node", "is down", "is stopped", "timed out"];
        self.is_connection
            || (self.code == reply::NOT_FOUND
                && of_cluster.iter().any(|it| self.reason.contains(it)))
    }
}

/// Something that has settlements to write before the rest.
pub(crate) trait Flush: Send + Sync {
    fn flush(&self, out: &mut BytesMut);
}

/// One live connection.
pub(crate) struct Session {
    out: Mutex<Out>,
    out_filled: Notify,
    /// There is something that may wait for a moment.
    out_waits: Notify,
    out_taken: Notify,
    channels: Mutex<Channels>,
    pub(crate) frame_bytes_max: u32,
    /// What is made over it.
    pub(crate) making: Making,
    /// The broker takes no messages for now.
    blocked: AtomicBool,
    ended: CancellationToken,
    end: OnceLock<Closed>,
}

#[derive(Default)]
struct Out {
    bytes: BytesMut,
    flushes: Vec<Arc<dyn Flush>>,
    /// The writing task knows that it is to write, and at once.
    is_told: bool,
}

struct Channels {
    /// By channel number; the connection itself is 0.
    slots: Vec<Option<Slot>>,
    channel_max: u16,
    open: bool,
}

struct Slot {
    assembler: Assembler,
    waiting: VecDeque<oneshot::Sender<Result<Method, Closed>>>,
    inbound: Box<dyn Inbound>,
    state: SlotState,
}

enum SlotState {
    Open,
    /// We have closed it and wait for the broker to agree.
    Closing,
    /// The broker has closed it. Its number is taken until its [`Channel`] is dropped, so that
    /// nothing meant for it can end in another.
    Closed(Closed),
}

impl Slot {
    fn new(inbound: Box<dyn Inbound>) -> Self {
        Self {
            assembler: Assembler::new(BODY_BYTES_MAX),
            waiting: VecDeque::new(),
            inbound,
            state: SlotState::Open,
        }
    }

    fn close(&mut self, closed: Closed) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(closed.clone()));
        }
        self.inbound.closed(&closed);
        self.inbound = Box::new(Quiet);
        self.state = SlotState::Closed(closed);
    }
}

impl Session {
    /// Starts the two tasks, in `tasks`; they end with the connection or with `stop`.
    pub(crate) fn start(
        dialled: Dialled,
        making: Making,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let session = Arc::new(Self {
            out: Mutex::default(),
            out_filled: Notify::new(),
            out_waits: Notify::new(),
            out_taken: Notify::new(),
            channels: Mutex::new(Channels {
                slots: vec![Some(Slot::new(Box::new(Quiet)))],
                channel_max: dialled.channel_max,
                open: true,
            }),
            frame_bytes_max: dialled.frame_bytes_max,
            making,
            blocked: AtomicBool::new(false),
            ended: stop.child_token(),
            end: OnceLock::new(),
        });
        let heartbeat = dialled.heartbeat;
        let (reader, read) = (dialled.reader, dialled.read);
        let reading = Arc::clone(&session);
        tasks.spawn(async move {
            let closed = tokio::select! {
                closed = reading.read(reader, read, heartbeat) => closed,
                () = reading.ended.cancelled() => Closed::lost("the connection was closed"),
            };
            reading.finish(closed);
        });
        let writing = Arc::clone(&session);
        tasks.spawn(async move { writing.write(dialled.writer, heartbeat).await });
        session
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// True while the broker takes no messages (an alarm).
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Why it is gone.
    pub(crate) fn end(&self) -> Closed {
        let end = self.end.get().cloned();
        end.unwrap_or_else(|| Closed::lost("the connection was closed"))
    }

    /// Encodes something into the buffer that is written next.
    pub(crate) fn send(&self, encode: impl FnOnce(&mut BytesMut)) {
        let was_told = {
            let mut out = self.out.lock();
            encode(&mut out.bytes);
            std::mem::replace(&mut out.is_told, true)
        };
        if !was_told {
            self.out_filled.notify_one();
        }
    }

    /// Asks for `flush` to be called before the next write. Not to be called again before it was.
    pub(crate) fn flush_soon(&self, flush: Arc<dyn Flush>) {
        let was_told = {
            let mut out = self.out.lock();
            out.flushes.push(flush);
            std::mem::replace(&mut out.is_told, true)
        };
        if !was_told {
            self.out_filled.notify_one();
        }
    }

    /// The same, but the next write may wait for a moment, unless somebody else has something to write.
    pub(crate) fn flush_in_a_moment(&self, flush: Arc<dyn Flush>) {
        self.out.lock().flushes.push(flush);
        self.out_waits.notify_one();
    }

    /// Ends that moment.
    pub(crate) fn hurry(&self) {
        if !std::mem::replace(&mut self.out.lock().is_told, true) {
            self.out_filled.notify_one();
        }
    }

    /// Waits until not too much is yet to be written, or the connection is gone.
    pub(crate) async fn room(&self) {
        loop {
            let taken = self.out_taken.notified();
            if self.out.lock().bytes.len() <= OUT_BYTES_MAX {
                return;
            }
            tokio::select! {
                () = taken => {}
                () = self.ended.cancelled() => return,
            }
        }
    }

    /// Closes the connection in good order: what was sent before is written before.
    pub(crate) async fn close(&self) {
        let close = ConnectionClose {
            reply_code: reply::REPLY_SUCCESS,
            reply_text: ShortStr::from_static("bye"),
            ..ConnectionClose::default()
        };
        // Its reply ends the connection, and with it everything that waits.
        if let Ok(answer) = self.request(0, &close) {
            let _ = timeout(LAST_WRITE, answer).await;
        }
        self.finish(Closed::lost("the connection was closed"));
    }

    /// Sends a method that has a reply.
    fn request(
        &self,
        channel: u16,
        method: &impl EncodeMethod,
    ) -> Result<oneshot::Receiver<Result<Method, Closed>>, Closed> {
        let (sender, receiver) = oneshot::channel();
        let mut channels = self.channels.lock();
        let slot = channels.slots.get_mut(usize::from(channel));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return Err(self.end());
        };
        if let SlotState::Closed(closed) = &slot.state {
            return Err(closed.clone());
        }
        slot.waiting.push_back(sender);
        self.send(|out| encode_method(out, channel, method));
        Ok(receiver)
    }

    fn finish(&self, closed: Closed) {
        let slots = {
            let mut channels = self.channels.lock();
            channels.open = false;
            std::mem::take(&mut channels.slots)
        };
        let closed = self.end.get_or_init(|| closed).clone();
        self.ended.cancel();
        for mut slot in slots.into_iter().flatten() {
            slot.close(closed.clone());
        }
    }

    async fn read(
        &self,
        mut reader: Box<dyn AsyncRead + Send + Unpin>,
        mut buffer: BytesMut,
        heartbeat: Duration,
    ) -> Closed {
        // Silence for two heartbeats is a dead peer.
        let patience = match heartbeat {
            Duration::ZERO => Duration::MAX,
            heartbeat => 2 * heartbeat,
        };
        loop {
            match self.dispatch(&mut buffer) {
                Ok(None) => {}
                Ok(Some(closed)) => return closed,
                Err(error) => return self.protest(&error),
            }
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                buffer.reserve(READ_BYTES);
            }
            match timeout(patience, reader.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Closed::lost("the broker closed the connection"),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Closed::lost(format!("the connection broke: {error}")),
                Err(_) => {
                    return Closed::lost(format!("the broker was silent for {patience:?}"));
                }
            }
        }
    }

    /// The broker sent what it must not.
    fn protest(&self, error: &WireError) -> Closed {
        let close = ConnectionClose {
            reply_code: error.code(),
            reply_text: ShortStr::truncated(&error.to_string()),
            class_id: error.class_id(),
            method_id: error.method_id(),
        };
        self.send(|out| encode_method(out, 0, &close));
        Closed::lost(format!("the broker sent what is not AMQP: {error}"))
    }

    /// Handles every complete frame.
    fn dispatch(&self, buffer: &mut BytesMut) -> Result<Option<Closed>, WireError> {
        let mut channels = self.channels.lock();
        let bytes_max = self.frame_bytes_max.saturating_add(FRAME_BYTES_ADDED_MAX);
        loop {
            if deliver_whole(&mut channels, buffer, bytes_max) {
                continue;
            }
            let Some(Frame { channel, payload }) = decode_frame(buffer, bytes_max)? else {
                break;
            };
            let Some(place) = channels.slots.get_mut(usize::from(channel)) else {
                continue;
            };
            // A frame for a channel that is closed may still have been under way.
            let Some(slot) = place.as_mut() else {
                continue;
            };
            let Some(command) = slot.assembler.push(payload)? else {
                continue;
            };
            match command.method {
                Method::ChannelClose(close) => {
                    match slot.state {
                        SlotState::Open => slot.close(Closed::by_broker(
                            close.reply_code,
                            &close.reply_text,
                            false,
                        )),
                        // Both closed it at once; the reply to ours is still to come.
                        SlotState::Closing | SlotState::Closed(_) => {}
                    }
                    // Only now: after it nothing may be sent on the channel, no settlement either.
                    self.send(|out| encode_method(out, channel, &ChannelCloseOk {}));
                }
                Method::ChannelCloseOk(_) => {
                    if let SlotState::Closing = slot.state {
                        *place = None;
                    }
                }
                _ if !matches!(slot.state, SlotState::Open) => {}
                Method::BasicDeliver(_)
                | Method::BasicReturn(_)
                | Method::BasicGetOk(_)
                | Method::BasicGetEmpty(_)
                | Method::BasicAck(_)
                | Method::BasicNack(_)
                | Method::BasicCancel(_) => slot.inbound.receive(command),
                method if channel == 0 => {
                    if let Some(closed) = self.on_connection_method(method, slot) {
                        return Ok(Some(closed));
                    }
                }
                Method::ChannelFlow(flow) => {
                    let active = flow.active;
                    self.send(|out| encode_method(out, channel, &ChannelFlowOk { active }));
                }
                method => answer(slot, method)?,
            }
        }
        Ok(None)
    }

    fn on_connection_method(&self, method: Method, slot: &mut Slot) -> Option<Closed> {
        match method {
            Method::ConnectionClose(close) => {
                self.send(|out| encode_method(out, 0, &ConnectionCloseOk {}));
                let (code, text) = (close.reply_code, &close.reply_text);
                Some(Closed::by_broker(code, text, true))
            }
            Method::ConnectionCloseOk(ok) => {
                let _ = answer(slot, ok.into());
                Some(Closed::lost("the connection was closed"))
            }
            Method::ConnectionBlocked(blocked) => {
                self.blocked.store(true, Ordering::Relaxed);
                warn!(
                    reason = %blocked.reason,
                    "the broker takes no messages for now; what is published waits"
                );
                None
            }
            Method::ConnectionUnblocked(_) => {
                self.blocked.store(false, Ordering::Relaxed);
                info!("the broker takes messages again");
                None
            }
            method => {
                debug!(method = method.name(), "unasked for, ignored");
                None
            }
        }
    }
}

/// Hands on the deliveries at the front of `buffer` that are like nearly all: whole, and for one channel
/// that is open and takes such. False if there is none.
fn deliver_whole(channels: &mut Channels, buffer: &mut BytesMut, bytes_max: u32) -> bool {
    let Some(mut whole) = WholeDelivery::find(buffer, bytes_max) else {
        return false;
    };
    let channel = whole.channel();
    let slot = channels.slots.get_mut(usize::from(channel));
    let Some(slot) = slot.and_then(Option::as_mut) else {
        return false;
    };
    if !matches!(slot.state, SlotState::Open) || !slot.assembler.is_idle() {
        return false;
    }
    let Some(inbound) = slot.inbound.whole() else {
        return false;
    };
    loop {
        inbound.deliver(whole.take(buffer));
        match WholeDelivery::find(buffer, bytes_max) {
            Some(next) if next.channel() == channel => whole = next,
            _ => break,
        }
    }
    inbound.hand_on();
    true
}

fn answer(slot: &mut Slot, method: Method) -> Result<(), WireError> {
    let name = method.name();
    match slot.waiting.pop_front() {
        Some(waiting) => {
            // Who asked may have given up meanwhile.
            let _ = waiting.send(Ok(method));
            Ok(())
        }
        None => Err(WireError::new(
            reply::COMMAND_INVALID,
            format!("`{name}`, but nothing had been asked"),
        )),
    }
}
