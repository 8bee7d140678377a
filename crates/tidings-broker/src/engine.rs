//! The one place where things happen: the core and the log behind one lock, and everybody who waits
//! for them.
//!
//! A command runs under the lock: the log says how much room it has, the core changes if that is
//! enough, its records are appended to the log in the same order, and its deliveries go to the
//! connections' outbound queues. Nobody waits there for a sync, but for a log whose buffer is full or
//! whose next segment is being made. The log's own thread says when records are durable; replies and
//! confirms that need it wait in their connection.

mod signals;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tidings_broker_core::{
    self as core, ConnectionId, Effect, MessageId, QueueId, Record, Refusal,
};
use tidings_broker_log::{AppendError, Log, Lsn, Reader};
use tidings_wire::Properties;

pub(crate) use self::signals::Signals;
use crate::Error;
use crate::admission::Admission;
use crate::backlogs::{self, Backlogs, Read};
use crate::meter::Meter;
use crate::options::Options;
use crate::outbound::{Item, Outbound};
use crate::pending::Pending;
use crate::translate;

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) meter: Arc<Meter>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) admission: Arc<Admission>,
    engine: Mutex<Engine>,
    signals: Arc<Signals>,
}

/// The core and the log.
#[derive(Debug)]
pub(crate) struct Engine {
    core: core::Broker,
    log: Option<Log>,
    connections: HashMap<ConnectionId, Arc<Outbound>>,
    next_connection: u64,
    effects: Vec<Effect>,
    deadline: Option<u64>,
    outbound_bytes_max: usize,
    backlogs: Backlogs,
}

/// Why a command did not happen, or cannot be confirmed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The core refused it, or had no room for it; nothing has changed.
    Refused(Refusal),
    /// The log has failed: whether it happened will be seen at the next start. It must not be
    /// confirmed.
    Log(AppendError),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Refused(refusal)
    }
}

impl Shared {
    /// Opens the log, if there is one, and brings back what it holds.
    pub(crate) fn open(options: Options) -> Result<Arc<Shared>, Error> {
        let signals = Arc::new(Signals::default());
        let meter = Arc::new(Meter::default());
        let mut core = core::Broker::new(core::Options {
            decode_headers,
            name_bits: |_| random_bits(),
            queues_max: options.limits.queues_max,
            exchanges_max: options.limits.exchanges_max,
            bindings_max: options.limits.bindings_max,
            ..core::Options::default()
        });
        let mut backlogs = Backlogs::new(options.limits.memory_bytes_max);
        let log = match &options.data {
            None => None,
            Some(dir) => {
                let on_event = {
                    let signals = signals.clone();
                    move |event| signals.on_log(event)
                };
                let (log, recovered) = Log::open(dir, Default::default(), on_event)
                    .map_err(|error| Error::log(&error))?;
                if let Some((file, offset)) = &recovered.torn {
                    tracing::warn!(file = %file.display(), offset, "cut off an unfinished write that was never confirmed");
                }
                let records = recovered.records.len();
                restore(&mut core, &meter, &mut backlogs, recovered.records);
                tracing::info!(dir = %dir.display(), records, "recovered");
                Some(log)
            }
        };
        let engine = Engine {
            core,
            log,
            connections: HashMap::new(),
            next_connection: 1,
            effects: Vec::new(),
            deadline: None,
            outbound_bytes_max: options.limits.outbound_bytes_max,
            backlogs,
        };
        let shared = Arc::new(Shared {
            pending: Arc::new(Pending::new(&options.limits)),
            admission: Admission::new(&options.limits),
            options,
            meter,
            engine: Mutex::new(engine),
            signals,
        });
        backlogs::start(&shared)?;
        shared.lock().expire();
        Ok(shared)
    }

    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// The engine. Hold it for a bounded number of commands, never across an `await`.
    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked {
            engine: self.engine.lock(),
            shared: self,
        }
    }

    /// Registers a connection.
    pub(crate) fn connect(&self, cancel_notify: bool) -> Arc<Outbound> {
        let mut engine = self.engine.lock();
        let id = ConnectionId(engine.next_connection);
        engine.next_connection += 1;
        let outbound = Arc::new(Outbound::new(id, cancel_notify));
        engine.connections.insert(id, outbound.clone());
        outbound
    }

    /// Whether publishers have to wait, and why: in RabbitMQ's words.
    pub(crate) fn alarm(&self) -> Option<&'static str> {
        if self.is_disk_full() {
            return Some("low on disk");
        }
        let limit = self.options.limits.memory_bytes_max;
        let before = self.signals.memory_full.load(Ordering::Relaxed);
        // What peers hold is theirs to free, and has caps of its own.
        let accepted = self.meter.bytes().saturating_sub(self.pending.metered());
        // It goes at nine tenths, so that it does not flicker.
        let full = accepted > if before { limit / 10 * 9 } else { limit };
        if full != before && self.signals.memory_full.swap(full, Ordering::Relaxed) != full {
            self.tell_memory_alarm(full, accepted);
            self.signals.changed.notify_one();
        }
        full.then_some("low on memory")
    }

    fn tell_memory_alarm(&self, full: bool, in_queues: u64) {
        let limit = self.options.limits.memory_bytes_max;
        let in_unfinished_bodies = self.pending.in_bodies();
        let in_transactions = self.pending.in_transactions();
        if full {
            tracing::warn!(
                in_queues,
                limit,
                in_unfinished_bodies,
                in_transactions,
                "messages in queues hold more memory than `memory_bytes_max`: publishers have to \
                 wait until consumers have taken some"
            );
        } else {
            tracing::warn!(
                in_queues,
                limit,
                in_unfinished_bodies,
                in_transactions,
                "messages in queues hold less memory again: publishers go on"
            );
        }
    }

    /// Whether the log refuses messages for want of disk space.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.signals.disk_full.load(Ordering::Relaxed)
    }

    /// Wakes every connection, to look at alarms.
    pub(crate) fn wake_all(&self) {
        for outbound in self.engine.lock().connections.values() {
            outbound.wake();
        }
    }

    /// Syncs and closes the log. Nothing durable can happen afterwards.
    pub(crate) fn close_log(&self) -> Result<(), Error> {
        let log = self.engine.lock().log.take();
        match log {
            Some(log) => log.close().map_err(|error| Error::log(&error)),
            None => Ok(()),
        }
    }
}

/// The engine, for as long as somebody holds it.
pub(crate) struct Locked<'a> {
    engine: MutexGuard<'a, Engine>,
    shared: &'a Shared,
}

impl Locked<'_> {
    /// Runs a command that needs no room in the log for itself, stores its records, lets `reply`
    /// answer, and then hands out its deliveries.
    ///
    /// `reply` gets the position in the log at which the command is durable.
    pub(crate) fn run<T>(
        &mut self,
        command: impl FnOnce(&mut core::Broker, &mut Vec<Effect>) -> Result<T, Refusal>,
        reply: impl FnOnce(T, Lsn),
    ) -> Result<(), Trouble> {
        self.run_with_room(0, command, reply)
    }

    /// The same for a command that is refused by the core if there is no room for what it records;
    /// that has at most `bytes`.
    pub(crate) fn run_with_room<T>(
        &mut self,
        bytes: usize,
        command: impl FnOnce(&mut core::Broker, &mut Vec<Effect>) -> Result<T, Refusal>,
        reply: impl FnOnce(T, Lsn),
    ) -> Result<(), Trouble> {
        let engine = &mut *self.engine;
        engine.find_room(bytes);
        let done = match command(&mut engine.core, &mut engine.effects) {
            Ok(done) => done,
            Err(refusal) => return Err(engine.refused(refusal)),
        };
        let stored = engine.store(&self.shared.signals);
        if let Ok(lsn) = stored {
            reply(done, lsn);
        }
        engine.deliver();
        engine
            .backlogs
            .spare_memory(&mut engine.core, &self.shared.meter);
        self.note_deadline();
        stored.map(|_| ()).map_err(Trouble::Log)
    }

    /// Runs a command that cannot be refused and needs no answer. A failing log is known elsewhere.
    pub(crate) fn apply(&mut self, command: impl FnOnce(&mut core::Broker, &mut Vec<Effect>)) {
        let _ = self.run(
            |core, out| {
                command(core, out);
                Ok(())
            },
            |(), _| (),
        );
    }

    /// Only looks.
    pub(crate) fn core(&self) -> &core::Broker {
        &self.engine.core
    }

    /// Opens a channel.
    pub(crate) fn open_channel(
        &mut self,
        connection: ConnectionId,
        number: u16,
    ) -> core::ChannelId {
        self.engine.core.open_channel(connection, number)
    }

    /// The connection is gone, with its channels, consumers and exclusive queues.
    pub(crate) fn disconnect(&mut self, connection: ConnectionId) {
        if self.engine.connections.remove(&connection).is_some() {
            self.apply(|core, out| core.close_connection(connection, now(), out));
        }
    }

    /// Brings back what was read for a queue.
    pub(crate) fn fetched(&mut self, queue: QueueId, asked: &[MessageId], read: Read) {
        let meter = self.shared.meter.clone();
        let messages = match read {
            Ok(messages) => messages,
            // It is closed, or known to have failed.
            Err(_) if self.engine.log.is_none() || self.shared.signals.failure().is_some() => {
                return;
            }
            Err(error) => return self.shared.signals.fail(error.to_string()),
        };
        let weighed = messages.into_iter();
        let weighed = weighed.map(|(id, message)| (id, meter.weighed_message(message)));
        let weighed = weighed.collect();
        let mut lost = None;
        self.apply(|core, out| lost = core.fetched(queue, asked, weighed, now(), out).err());
        if let Some(lost) = lost {
            let why = format!("message {} waits in a queue and is not in the log", lost.0);
            tracing::error!("{why}, please report this");
            self.shared.signals.fail(why);
        }
    }

    /// Reads what a `basic.get` needs, if that is not in memory. Everybody waits meanwhile: who has so
    /// long a backlog and cares consumes it.
    pub(crate) fn bring_for_get(
        &mut self,
        channel: core::ChannelId,
        queue: &[u8],
    ) -> Result<(), Trouble> {
        loop {
            let mut asked = None;
            let command = |core: &mut core::Broker, out: &mut Vec<Effect>| {
                asked = core.fetch_for_get(channel, queue, now(), out)?;
                Ok(())
            };
            self.run(command, |(), _| ())?;
            let reader = self.engine.log.as_ref().map(Log::reader);
            let (Some((queue, messages)), Some(reader)) = (asked, reader) else {
                return Ok(());
            };
            let read = reader.read(messages.clone());
            if let Err(failed) = &read {
                let failed = AppendError::Failed(failed.clone());
                self.fetched(queue, &messages, read);
                return Err(Trouble::Log(failed));
            }
            self.fetched(queue, &messages, read);
        }
    }

    /// How messages are read back.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.engine.log.as_ref().map(Log::reader)
    }

    pub(crate) fn backlogs(&self) -> &Backlogs {
        &self.engine.backlogs
    }

    /// The connection has room for deliveries again.
    pub(crate) fn resume(&mut self, connection: ConnectionId) {
        self.apply(|core, out| core.resume_connection(connection, now(), out));
    }

    /// Does what is due; gives when to come again.
    pub(crate) fn expire(&mut self) -> Option<u64> {
        self.apply(|core, out| core.tick(now(), out));
        self.engine.deadline
    }

    fn note_deadline(&mut self) {
        let next = if self.engine.can_bury_soon() {
            Some(0)
        } else {
            self.engine.core.next_deadline()
        };
        let earlier = next.is_some_and(|next| self.engine.deadline.is_none_or(|old| next < old));
        self.engine.deadline = next;
        if earlier {
            self.shared.signals.deadline.notify_one();
        }
    }
}

impl Engine {
    /// Tells the core how much room the log has: `bytes`, or what a message needs that waits to be
    /// buried, unless the disk is full.
    fn find_room(&mut self, bytes: usize) {
        let Some(log) = &self.log else {
            return;
        };
        let bytes = bytes.max(self.core.waits_for_room().unwrap_or(0));
        // A log that has failed takes nothing.
        self.core.set_room(log.room(bytes).unwrap_or(0));
    }

    /// A command was refused, and needs none of the room that was found.
    fn refused(&mut self, refusal: Refusal) -> Trouble {
        let released = self.log.as_ref().map(|log| log.append_all([]));
        match released {
            Some(Err(failed)) if refusal.is_no_room() => Trouble::Log(failed),
            _ => Trouble::Refused(refusal),
        }
    }

    /// Whether a message waits to be buried for which there will be room without anybody's help.
    fn can_bury_soon(&self) -> bool {
        let log = self.log.as_ref().filter(|log| log.failure().is_none());
        log.is_some_and(|log| !log.is_full()) && self.core.waits_for_room().is_some()
    }

    /// Appends the records among the effects, all or none. Gives the position of the last, or zero.
    fn store(&mut self, signals: &Signals) -> Result<Lsn, AppendError> {
        let Some(log) = &self.log else {
            return Ok(Lsn(0));
        };
        let records = self.effects.iter().filter_map(|effect| match effect {
            Effect::Store(record) => Some(record),
            _ => None,
        });
        let payload = |record: &Record| match record {
            Record::Enqueued { message, .. } => message.properties.len() + message.body.len(),
            _ => 0,
        };
        let bytes = records.clone().map(payload).sum::<usize>() as u64;
        let stored = log.append_all(records);
        if let Err(error @ (AppendError::DiskFull | AppendError::Unreadable)) = &stored {
            // The core took it, and the log did not: from here on they would differ.
            tracing::error!("the log did not take what was admitted, please report this: {error}");
            signals.fail(error.to_string());
        }
        if let (Ok(lsn), 1..) = (&stored, bytes) {
            signals.appended(bytes, *lsn);
        }
        stored
    }

    /// Hands deliveries to their connections, run by run.
    fn deliver(&mut self) {
        let mut run: Vec<Item> = Vec::new();
        let mut to: Option<&Arc<Outbound>> = None;
        let mut overfull: Vec<ConnectionId> = Vec::new();
        let mut flush = |to: Option<&Arc<Outbound>>, run: &mut Vec<Item>| {
            if let (Some(outbound), false) = (to, run.is_empty())
                && outbound.push(run.drain(..)) > self.outbound_bytes_max
                && !outbound.set_paused()
            {
                overfull.push(outbound.id);
            }
        };
        for effect in self.effects.drain(..) {
            let (connection, item) = match effect {
                Effect::Store(_) => continue,
                Effect::Fetch { queue, messages } => {
                    self.backlogs.fetch(queue, messages);
                    continue;
                }
                Effect::Deliver(delivery) => (delivery.connection, Item::Deliver(delivery)),
                Effect::CancelConsumer {
                    connection,
                    channel,
                    consumer_tag,
                } => (
                    connection,
                    Item::Cancel {
                        channel,
                        consumer_tag,
                    },
                ),
            };
            if to.is_none_or(|to| to.id != connection) {
                flush(to, &mut run);
                to = self.connections.get(&connection);
            }
            if to.is_some_and(|to| to.understands(&item)) {
                run.push(item);
            }
        }
        flush(to, &mut run);
        for connection in overfull {
            self.core.pause_connection(connection);
        }
    }
}

/// Brings back what the log held, and says what of it is not as it was stored.
fn restore(
    core: &mut core::Broker,
    meter: &Arc<Meter>,
    backlogs: &mut Backlogs,
    records: Vec<Record>,
) {
    /// Enough to see what is the matter.
    const WARNINGS_MAX: usize = 100;
    let mut notes = 0;
    for record in records {
        let note = core.restore(meter.weighed(record), now());
        backlogs.spare_memory(core, meter);
        let Some(note) = note else {
            continue;
        };
        notes += 1;
        if notes <= WARNINGS_MAX {
            tracing::warn!("{note}");
        }
    }
    if notes > WARNINGS_MAX {
        let more = notes - WARNINGS_MAX;
        tracing::warn!("{more} more things in the data folder are not as they were stored");
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Bits that nobody can guess.
fn random_bits() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random numbers");
    u128::from_ne_bytes(bytes)
}

fn decode_headers(properties: &Bytes) -> core::Table {
    let properties = Properties::parse(properties.clone()).unwrap_or_default();
    properties
        .headers()
        .map(|headers| translate::table(&headers))
        .unwrap_or_default()
}
