//! One connection's side of the protocol: frames in, commands to the engine, replies and errors
//! out. No I/O.
//!
//! A turn takes what was read, decodes a bounded number of commands without the engine's lock, and
//! then carries them out under it; one that publishes while the disk is full is held until it is not. An error closes the channel or the whole connection, as its code
//! says; what follows on a closed channel is ignored until the peer has agreed.

mod channel;
mod confirm;
mod methods;
mod publish;
mod reply_to;
mod tx;

use std::sync::Arc;

use bytes::BytesMut;
use tidings_broker_core::{Refusal, ReplyCode};
use tidings_broker_log::{AppendError, Lsn};
use tidings_wire::{
    Assembler, ChannelClose, ChannelCloseOk, ChannelOpenOk, Command, ConnectionBlocked,
    ConnectionClose, ConnectionCloseOk, ConnectionUnblocked, ConnectionUpdateSecretOk,
    EncodeMethod, FRAME_OVERHEAD_BYTES, Method, Payload, ShortStr, WireError, decode_frame, reply,
};

use self::channel::{Channel, Mode};
use self::publish::Publication;
use crate::engine::{Locked, Shared, Trouble};
use crate::handshake::{Agreed, close_method};
use crate::options::UNFINISHED_BYTES;
use crate::outbound::Outbound;
use crate::pending::{Amount, Held, Holder, Of};

/// Commands carried out in one go, so that nobody waits long for the engine.
const TURN_COMMANDS_MAX: usize = 128;

/// A connection after its handshake.
pub(crate) struct Session {
    shared: Arc<Shared>,
    outbound: Arc<Outbound>,
    agreed: Agreed,
    holder: Arc<Holder>,
    channels: Vec<Option<Box<Slot>>>,
    /// Channels whose last frame so far was not the end of a command, to count what they hold.
    unfinished: Vec<u16>,
    state: State,
    /// Commands that were decoded and not yet carried out: between turns none, unless they are held
    /// because the disk is full.
    turn: Vec<(u16, Operation)>,
    /// Something was published, or is about to be: a part of its content came.
    publishes: bool,
    /// Some confirm may not have been sent.
    owes_confirms: bool,
    blocked: bool,
}

/// How far the connection has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Open.
    Running,
    /// `connection.close` was sent; only its answer counts.
    Closing,
    /// The input makes no sense any more; `connection.close` was sent, what comes is thrown away.
    Deaf,
    /// Both sides agreed to end, once everything is written.
    Closed,
}

/// What there is for a channel's number: open or not, frames may arrive.
struct Slot {
    assembler: Assembler,
    /// What the assembler holds.
    held: Held,
    names: publish::Names,
    channel: Option<Channel>,
}

/// A command, as far as it could be prepared without the engine.
enum Operation {
    Publish(Publication),
    Method(Method),
}

/// Why a command closes its channel or the connection. The text begins with the code's name.
#[derive(Debug)]
struct Fail {
    code: u16,
    text: String,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, outbound: Arc<Outbound>, agreed: Agreed) -> Session {
        Session {
            holder: Holder::new(&shared.pending, &outbound),
            shared,
            outbound,
            agreed,
            channels: Vec::new(),
            unfinished: Vec::new(),
            state: State::Running,
            turn: Vec::new(),
            publishes: false,
            owes_confirms: false,
            blocked: false,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether the peer was found to publish while it must not: it is not to be read until the
    /// alarm ends.
    pub(crate) fn is_blocked(&self) -> bool {
        // Of a peer that is told to go only the answer counts.
        self.blocked && self.state == State::Running
    }

    /// Why the connection has to go so that others can go on, if it has.
    pub(crate) fn sent_away(&self) -> Option<WireError> {
        self.holder.sent_away()
    }

    /// Carries out what `input` begins with. Gives whether there may be more in it.
    pub(crate) fn turn(&mut self, input: &mut BytesMut) -> bool {
        if matches!(self.state, State::Deaf | State::Closed) {
            input.clear();
            return false;
        }
        let was_held = !self.turn.is_empty();
        let decoded = if was_held { Ok(()) } else { self.decode(input) };
        let excess = self.count_unfinished();
        if decoded.is_ok() && excess.is_none() && self.is_to_wait_for_the_disk() {
            return true;
        }
        // Behind a turn that was held there is whatever came with it.
        let more = was_held || self.turn.len() == TURN_COMMANDS_MAX;
        let mut turn = std::mem::take(&mut self.turn);
        if !turn.is_empty() {
            let shared = self.shared.clone();
            let mut engine = shared.lock();
            for (number, operation) in turn.drain(..) {
                self.carry_out(&mut engine, number, operation);
            }
        }
        self.turn = turn;
        if let Err(error) = decoded {
            self.close(&error);
            self.state = State::Deaf;
            input.clear();
        } else if let Some(text) = excess {
            self.close(&WireError::new(reply::RESOURCE_ERROR, text));
        }
        if std::mem::take(&mut self.publishes) && self.state == State::Running {
            self.owes_confirms = true;
            self.block_if_alarmed();
        }
        more
    }

    /// Whether the turn publishes while the disk is full. Then it is held, so that its messages are
    /// published when there is room, and not refused.
    fn is_to_wait_for_the_disk(&mut self) -> bool {
        if !self.publishes || self.state != State::Running || !self.shared.is_disk_full() {
            return false;
        }
        self.block_if_alarmed();
        self.blocked
    }

    fn decode(&mut self, input: &mut BytesMut) -> Result<(), WireError> {
        // Some clients count the frame's own bytes wrongly; RabbitMQ forgives that, too.
        let frame_max = self
            .agreed
            .frame_max
            .saturating_add(FRAME_OVERHEAD_BYTES as u32);
        while self.turn.len() < TURN_COMMANDS_MAX {
            let Some(frame) = decode_frame(input, frame_max)? else {
                break;
            };
            let number = frame.channel;
            if self.state != State::Running && number != 0 {
                continue;
            }
            if number > self.agreed.channel_max {
                let text = format!(
                    "channel number {number} is over the negotiated channel_max ({})",
                    self.agreed.channel_max
                );
                return Err(WireError::new(reply::NOT_ALLOWED, text));
            }
            let body_bytes_max = self.shared.options.limits.body_bytes_max;
            let slot = slot(&mut self.channels, number, &self.shared, &self.holder);
            self.publishes |= matches!(frame.payload, Payload::Body(_));
            let command = slot.assembler.push(frame.payload)?;
            let Some(Command { method, content }) = command else {
                if self.unfinished.last() != Some(&number) {
                    self.unfinished.push(number);
                }
                continue;
            };
            slot.held.clear();
            self.publishes |= content.is_some();
            let operation = match (method, content) {
                (Method::BasicPublish(publish), Some(content)) => {
                    let meter = &self.shared.meter;
                    let limit = body_bytes_max;
                    let user = &self.agreed.user;
                    let publication =
                        Publication::prepare(publish, content, &mut slot.names, user, limit, meter);
                    Operation::Publish(publication)
                }
                (method, _) => Operation::Method(method),
            };
            self.turn.push((number, operation));
        }
        Ok(())
    }

    /// Counts what commands hold that are not complete. Gives why that is too much, if it is.
    fn count_unfinished(&mut self) -> Option<String> {
        for number in self.unfinished.drain(..) {
            let slot = self.channels.get_mut(usize::from(number));
            if let Some(slot) = slot
                .and_then(Option::as_mut)
                .filter(|slot| !slot.assembler.is_idle())
            {
                let other = slot.assembler.held_bytes() as u64 + UNFINISHED_BYTES;
                slot.held.set(Amount { metered: 0, other });
            }
        }
        self.holder.excess()
    }

    /// Lets go of everything that will never be accepted, because the connection ends.
    fn free_pending(&mut self) {
        for slot in self.channels.iter_mut().flatten() {
            slot.assembler = Assembler::new(self.shared.options.limits.body_bytes_max);
            slot.held.clear();
            if let Some(channel) = &mut slot.channel
                && matches!(channel.mode, Mode::Tx(_))
            {
                channel.mode = Mode::Plain;
            }
        }
    }

    fn carry_out(&mut self, engine: &mut Locked<'_>, number: u16, operation: Operation) {
        let (class_id, method_id) = match &operation {
            Operation::Publish(_) => (60, 40),
            Operation::Method(method) => (method.class_id(), method.method_id()),
        };
        let result = if self.state != State::Running {
            self.while_closing(operation);
            Ok(())
        } else if number == 0 {
            self.on_connection(engine, operation)
        } else {
            self.on_channel(engine, number, operation)
        };
        if let Err(fail) = result {
            self.fail(engine, number, class_id, method_id, fail);
        }
    }

    /// The peer may still not know that the connection ends.
    fn while_closing(&mut self, operation: Operation) {
        match operation {
            Operation::Method(Method::ConnectionCloseOk(_)) => self.state = State::Closed,
            Operation::Method(Method::ConnectionClose(_)) => {
                self.outbound.reply(0, ConnectionCloseOk {}, Lsn(0));
                self.state = State::Closed;
            }
            _ => {}
        }
    }

    fn on_connection(&mut self, engine: &mut Locked<'_>, operation: Operation) -> Result<(), Fail> {
        match operation {
            Operation::Method(Method::ConnectionClose(_)) => {
                engine.disconnect(self.outbound.id);
                self.outbound.reply(0, ConnectionCloseOk {}, Lsn(0));
                self.state = State::Closed;
                self.free_pending();
                Ok(())
            }
            Operation::Method(Method::ConnectionUpdateSecret(_)) => {
                // Passwords do not expire here: the new one is as good as the old one.
                self.outbound.reply(0, ConnectionUpdateSecretOk {}, Lsn(0));
                Ok(())
            }
            Operation::Method(method) => {
                let text = format!("{} is not expected on channel 0 now", method.name());
                Err(Fail::new(reply::COMMAND_INVALID, text))
            }
            Operation::Publish(_) => Err(Fail::new(
                reply::COMMAND_INVALID,
                "channel 0 cannot publish",
            )),
        }
    }

    fn on_channel(
        &mut self,
        engine: &mut Locked<'_>,
        number: u16,
        operation: Operation,
    ) -> Result<(), Fail> {
        let Some(Some(slot)) = self.channels.get_mut(usize::from(number)) else {
            return Ok(());
        };
        let Some(channel) = &mut slot.channel else {
            return match operation {
                Operation::Method(Method::ChannelOpen(_)) => {
                    let place = self.shared.admission.open_channel();
                    let place = place.map_err(|text| Fail::new(reply::NOT_ALLOWED, text))?;
                    let id = engine.open_channel(self.outbound.id, number);
                    let limits = &self.shared.options.limits;
                    slot.channel = Some(Channel::new(id, number, limits, &self.holder, place));
                    self.outbound.reply(number, ChannelOpenOk {}, Lsn(0));
                    Ok(())
                }
                // The answer to a close that crossed the peer's own.
                Operation::Method(Method::ChannelCloseOk(_)) => Ok(()),
                _ => Err(Fail::new(reply::CHANNEL_ERROR, "expected 'channel.open'")),
            };
        };
        match operation {
            Operation::Method(Method::ChannelClose(_)) => {
                if !channel.closing {
                    let id = channel.id;
                    engine.apply(|core, out| core.close_channel(id, crate::engine::now(), out));
                    slot.channel = None;
                }
                self.outbound.reply(number, ChannelCloseOk {}, Lsn(0));
                Ok(())
            }
            Operation::Method(Method::ChannelCloseOk(_)) if channel.closing => {
                slot.channel = None;
                Ok(())
            }
            _ if channel.closing => Ok(()),
            Operation::Method(method) => channel.on_method(engine, &self.outbound, method),
            Operation::Publish(publication) => {
                channel.on_publish(engine, &self.outbound, publication)
            }
        }
    }

    fn fail(
        &mut self,
        engine: &mut Locked<'_>,
        number: u16,
        class_id: u16,
        method_id: u16,
        fail: Fail,
    ) {
        let Fail { code, text } = fail;
        tracing::debug!(
            connection = self.outbound.id.0,
            channel = number,
            "closed: {text}"
        );
        let reply_text = ShortStr::truncated(&text);
        if reply::is_hard(code) || number == 0 {
            engine.disconnect(self.outbound.id);
            let close = ConnectionClose {
                reply_code: code,
                reply_text,
                class_id,
                method_id,
            };
            self.outbound.reply(0, close, Lsn(0));
            self.state = State::Closing;
            self.free_pending();
            return;
        }
        if let Some(Some(slot)) = self.channels.get_mut(usize::from(number))
            && let Some(channel) = &mut slot.channel
        {
            channel.closing = true;
            // A transaction is over, and frees its memory now.
            channel.mode = Mode::Plain;
            let id = channel.id;
            engine.apply(|core, out| core.close_channel(id, crate::engine::now(), out));
        }
        let close = ChannelClose {
            reply_code: code,
            reply_text,
            class_id,
            method_id,
        };
        self.outbound.reply(number, close, Lsn(0));
    }

    /// Ends the connection from this side.
    pub(crate) fn close(&mut self, error: &WireError) {
        if self.state != State::Running {
            return;
        }
        tracing::info!(connection = self.outbound.id.0, "closed: {error}");
        self.shared.lock().disconnect(self.outbound.id);
        self.outbound.reply(0, close_method(error), Lsn(0));
        self.state = State::Closing;
        self.free_pending();
    }

    /// Tells a publisher that it has to wait, or that it need not any more.
    pub(crate) fn block_if_alarmed(&mut self) {
        let alarm = self.shared.alarm();
        if self.blocked == alarm.is_some() {
            return;
        }
        self.blocked = alarm.is_some();
        if !self.agreed.client.connection_blocked {
            return;
        }
        match alarm {
            Some(reason) => {
                let reason = ShortStr::truncated(reason);
                self.outbound.reply(0, ConnectionBlocked { reason }, Lsn(0));
            }
            None => self.outbound.reply(0, ConnectionUnblocked {}, Lsn(0)),
        }
    }

    /// Confirms what has become durable. Gives whether something still waits for the log.
    pub(crate) fn confirm(&mut self, durable: Lsn) -> bool {
        if !self.owes_confirms {
            return false;
        }
        self.owes_confirms = false;
        for slot in self.channels.iter_mut().flatten() {
            if let Some(channel) = &mut slot.channel {
                self.owes_confirms |= channel.confirm(&self.outbound, durable);
            }
        }
        self.owes_confirms
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.lock().disconnect(self.outbound.id);
    }
}

fn slot<'a>(
    channels: &'a mut Vec<Option<Box<Slot>>>,
    number: u16,
    shared: &Shared,
    holder: &Arc<Holder>,
) -> &'a mut Slot {
    let index = usize::from(number);
    if index >= channels.len() {
        channels.resize_with(index + 1, || None);
    }
    channels[index].get_or_insert_with(|| {
        Box::new(Slot {
            assembler: Assembler::new(shared.options.limits.body_bytes_max),
            held: holder.holds(Of::Body),
            names: publish::Names::default(),
            channel: None,
        })
    })
}

impl Fail {
    fn new(code: u16, text: impl std::fmt::Display) -> Fail {
        Fail {
            code,
            text: format!("{} - {text}", reply::name(code)),
        }
    }

    fn precondition(text: impl std::fmt::Display) -> Fail {
        Fail::new(reply::PRECONDITION_FAILED, text)
    }
}

impl From<Refusal> for Fail {
    fn from(refusal: Refusal) -> Fail {
        Fail {
            code: ReplyCode::code(refusal.code),
            text: refusal.text,
        }
    }
}

impl From<Trouble> for Fail {
    fn from(trouble: Trouble) -> Fail {
        match trouble {
            Trouble::Refused(refusal) => refusal.into(),
            Trouble::Log(error @ (AppendError::DiskFull | AppendError::Unreadable)) => {
                Fail::new(reply::INTERNAL_ERROR, error)
            }
            Trouble::Log(AppendError::Failed(error)) => {
                let text = format!("the broker's log has failed, nothing can be stored: {error}");
                Fail::new(reply::INTERNAL_ERROR, text)
            }
        }
    }
}
