//! What appenders and the writer share: the buffer between them, and how far the writer has come.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidings_broker_core::Record;

use crate::{AppendError, LogError, Lsn, batch, codec};

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
    /// While the disk is full: bytes that records of new things may still take.
    room: usize,
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

    /// Adds all of the records, or none.
    pub(crate) fn append<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<Lsn, AppendError> {
        let mut buffer = self.buffer.lock();
        while buffer.bytes.len() >= self.bytes_max && self.failure.get().is_none() {
            self.emptied.wait(&mut buffer);
        }
        if let Some(failure) = self.failure() {
            return Err(AppendError::Failed(failure));
        }
        let before = buffer.bytes.len();
        let (mut count, mut new_bytes) = (0, 0);
        for record in records {
            let start = buffer.bytes.len();
            batch::add(&mut buffer.bytes, |out| codec::encode(record, out));
            count += 1;
            if !frees_space(record) {
                new_bytes += buffer.bytes.len() - start;
            }
        }
        if self.is_full() && new_bytes > 0 {
            if new_bytes > buffer.room {
                buffer.bytes.truncate(before);
                return Err(AppendError::DiskFull);
            }
            buffer.room -= new_bytes;
        }
        if count == 0 {
            return Ok(Lsn::default());
        }
        buffer.appended += count;
        let lsn = Lsn(buffer.appended);
        if buffer.waiting {
            buffer.waiting = false;
            self.filled.notify_one();
        }
        Ok(lsn)
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

    /// Says how many bytes of new things may still come, or that there is no need to count.
    pub(crate) fn set_room(&self, room: Option<usize>) {
        let mut buffer = self.buffer.lock();
        buffer.room = room.unwrap_or(0).saturating_sub(buffer.bytes.len());
        self.full.store(room.is_some(), Ordering::Release);
    }

    pub(crate) fn failure(&self) -> Option<Arc<LogError>> {
        self.failure.get().cloned()
    }

    pub(crate) fn fail(&self, failure: Arc<LogError>) {
        // The first failure is the one that counts.
        let _ = self.failure.set(failure);
        let _guard = self.buffer.lock();
        self.emptied.notify_all();
    }

    pub(crate) fn finish(&self) {
        self.buffer.lock().closing = true;
        self.filled.notify_one();
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffer.lock().bytes.is_empty()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.buffer.lock().closing
    }
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
