//! What appenders and the writer share: the buffer between them, and how far the writer has come.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidings_broker_core::{Message, MessageId, Record};

use crate::{AppendError, LogError, Lsn, batch, codec};

/// Of the room there is, at most this is promised beyond what was asked for: the rest is for others.
const PROMISED_BYTES: usize = 1 << 20;

/// Messages that somebody waits to read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) ids: Vec<MessageId>,
    /// How many records were appended before.
    pub(crate) appended: u64,
    pub(crate) reply: SyncSender<Messages>,
}

/// What was read.
type Messages = Result<Vec<(MessageId, Arc<Message>)>, Arc<LogError>>;

#[derive(Debug)]
pub(crate) struct Shared {
    buffer: Mutex<Buffer>,
    /// The buffer is no longer empty, or the log is to be closed.
    filled: Condvar,
    /// The buffer was taken, or the log has failed.
    emptied: Condvar,
    bytes_max: usize,
    durable: AtomicU64,
    full: AtomicBool,
    failure: OnceLock<Arc<LogError>>,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Records as the payload of a batch has them.
    bytes: Vec<u8>,
    appended: u64,
    /// Bytes that records of new things may take, so that all that was accepted fits on the disk.
    room: usize,
    /// Bytes of that which were promised to whoever appends next.
    promised: usize,
    /// Bytes that somebody waits for room for.
    wanted: usize,
    /// Who wants to read messages back.
    reads: Vec<Read>,
    /// The writer has not seen yet that there is something to do besides writing.
    poked: bool,
    closing: bool,
    waiting: bool,
}

/// What woke the writer.
#[derive(Debug)]
pub(crate) enum Work {
    /// These records wait; the last has this position.
    Records(Vec<u8>, Lsn),
    /// Nothing came in time.
    Nothing,
    /// The log is to be closed, and nothing waits.
    Close,
}

impl Shared {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            buffer: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            bytes_max,
            durable: AtomicU64::new(0),
            full: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    /// Waits until there is room for `wanted` bytes, or the disk is full; promises them, and some more
    /// if there is more, to whoever appends next.
    pub(crate) fn keep_room(&self, wanted: usize) -> Result<usize, Arc<LogError>> {
        let mut buffer = self.buffer.lock();
        loop {
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if wanted <= buffer.room || self.is_full() {
                buffer.promised = buffer.room.min(wanted.saturating_add(PROMISED_BYTES));
                return Ok(buffer.promised);
            }
            self.ask_for(wanted, &mut buffer);
            self.emptied.wait(&mut buffer);
        }
    }

    /// Makes the writer see to it that there is so much room.
    fn ask_for(&self, wanted: usize, buffer: &mut Buffer) {
        buffer.wanted = buffer.wanted.max(wanted);
        buffer.poked = true;
        self.filled.notify_one();
    }

    /// Reads messages back that are alive; those that are not are left out.
    pub(crate) fn read(
        &self,
        ids: Vec<MessageId>,
    ) -> Result<Vec<(MessageId, Arc<Message>)>, Arc<LogError>> {
        let (reply, answer) = mpsc::sync_channel(1);
        let mut buffer = self.buffer.lock();
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        if buffer.closing {
            return Err(Arc::new(LogError::closed()));
        }
        let appended = buffer.appended;
        buffer.reads.push(Read {
            ids,
            appended,
            reply,
        });
        buffer.poked = true;
        self.filled.notify_one();
        drop(buffer);
        answer.recv().unwrap_or_else(|_| {
            let failure = self.failure();
            Err(failure.unwrap_or_else(|| Arc::new(LogError::closed())))
        })
    }

    pub(crate) fn take_reads(&self) -> Vec<Read> {
        std::mem::take(&mut self.buffer.lock().reads)
    }

    /// Adds all of the records, or none.
    pub(crate) fn append<'a>(
        &self,
        records: impl Iterator<Item = &'a Record> + Clone,
    ) -> Result<Lsn, AppendError> {
        let mut buffer = self.buffer.lock();
        buffer.promised = 0;
        let is_empty = records.clone().next().is_none();
        loop {
            if let Some(failure) = self.failure() {
                return Err(AppendError::Failed(failure));
            }
            if is_empty {
                return Ok(Lsn::default());
            }
            if buffer.bytes.len() < self.bytes_max {
                match buffer.add(records.clone()) {
                    Ok(lsn) => {
                        if std::mem::take(&mut buffer.waiting) {
                            self.filled.notify_one();
                        }
                        return Ok(lsn);
                    }
                    Err(NotAdded::Unreadable) => return Err(AppendError::Unreadable),
                    Err(NotAdded::NoRoom(_)) if self.is_full() => {
                        return Err(AppendError::DiskFull);
                    }
                    Err(NotAdded::NoRoom(wanted)) => self.ask_for(wanted, &mut buffer),
                }
            }
            self.emptied.wait(&mut buffer);
        }
    }

    /// Waits for records; with a time, not longer than that. `spent` is an empty buffer to fill next.
    pub(crate) fn take(&self, spent: &mut Vec<u8>, timeout: Option<Duration>) -> Work {
        let mut buffer = self.buffer.lock();
        loop {
            if !buffer.bytes.is_empty() {
                spent.clear();
                let records = std::mem::replace(&mut buffer.bytes, std::mem::take(spent));
                self.emptied.notify_all();
                return Work::Records(records, Lsn(buffer.appended));
            }
            if buffer.closing {
                return Work::Close;
            }
            if std::mem::take(&mut buffer.poked) {
                return Work::Nothing;
            }
            buffer.waiting = true;
            match timeout {
                None => self.filled.wait(&mut buffer),
                Some(timeout) => {
                    if self.filled.wait_for(&mut buffer, timeout).timed_out() {
                        buffer.waiting = false;
                        return Work::Nothing;
                    }
                }
            }
        }
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn set_durable(&self, lsn: Lsn) {
        self.durable.store(lsn.0, Ordering::Release);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Says how many bytes may come, those included that wait already; gives the bytes that
    /// somebody waits for nevertheless.
    pub(crate) fn set_room(&self, room: usize, full: bool) -> usize {
        let mut buffer = self.buffer.lock();
        let left = room.saturating_sub(buffer.bytes.len());
        buffer.room = left.max(buffer.promised);
        self.full.store(full, Ordering::Release);
        if buffer.wanted <= buffer.room || full {
            buffer.wanted = 0;
            self.emptied.notify_all();
        }
        buffer.wanted
    }

    /// Bytes that were accepted, or promised to be, and are not yet with the writer.
    pub(crate) fn accepted_bytes(&self) -> usize {
        let buffer = self.buffer.lock();
        buffer.bytes.len() + buffer.promised
    }

    /// Takes room for the writer itself, if there is as much that was not promised; it counts until the
    /// room is said anew.
    pub(crate) fn claim_room(&self, bytes: u64) -> bool {
        let mut buffer = self.buffer.lock();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let free = buffer.room.saturating_sub(buffer.promised);
        if bytes <= free {
            buffer.room -= bytes;
        }
        bytes <= free
    }

    /// The records that were accepted and are not yet with the writer.
    pub(crate) fn copy_waiting(&self) -> Vec<u8> {
        self.buffer.lock().bytes.clone()
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffer.lock().bytes.is_empty()
    }

    pub(crate) fn failure(&self) -> Option<Arc<LogError>> {
        self.failure.get().cloned()
    }

    pub(crate) fn fail(&self, failure: Arc<LogError>) {
        // The first failure is the one that counts.
        let _ = self.failure.set(failure);
        // Whoever waits to read waits no more.
        self.buffer.lock().reads.clear();
        self.emptied.notify_all();
    }

    pub(crate) fn finish(&self) {
        self.buffer.lock().closing = true;
        self.filled.notify_one();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.buffer.lock().closing
    }
}

/// Why records were not added to the buffer.
enum NotAdded {
    /// There must be room for this many bytes.
    NoRoom(usize),
    /// One of them could not be read back.
    Unreadable,
}

impl Buffer {
    /// Adds all of the records, or none.
    fn add<'a>(&mut self, records: impl Iterator<Item = &'a Record>) -> Result<Lsn, NotAdded> {
        let before = self.bytes.len();
        let (mut count, mut new_bytes) = (0, 0);
        for record in records {
            let start = self.bytes.len();
            batch::add(&mut self.bytes, |out| codec::encode(record, out));
            // What cannot be read back would make the whole log unreadable.
            if !codec::is_readable(&self.bytes[start + batch::LENGTH_BYTES..]) {
                self.bytes.truncate(before);
                return Err(NotAdded::Unreadable);
            }
            count += 1;
            if !frees_space(record) {
                new_bytes += self.bytes.len() - start;
            }
        }
        if new_bytes > self.room {
            self.bytes.truncate(before);
            return Err(NotAdded::NoRoom(new_bytes));
        }
        self.room -= new_bytes;
        self.appended += count;
        Ok(Lsn(self.appended))
    }
}

/// How much room the records need together.
pub(crate) fn needed<'a>(records: impl IntoIterator<Item = &'a Record>) -> usize {
    let mut encoded = Vec::new();
    for record in records.into_iter().filter(|record| !frees_space(record)) {
        batch::add(&mut encoded, |out| codec::encode(record, out));
    }
    encoded.len()
}

/// Whether the record ends something: such are taken while the disk is full.
const fn frees_space(record: &Record) -> bool {
    matches!(
        record,
        Record::Removed { .. }
            | Record::RemovedMany { .. }
            | Record::Unbound(_)
            | Record::QueueDeleted { .. }
            | Record::ExchangeDeleted { .. }
    )
}
