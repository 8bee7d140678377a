//! The thread that writes: group commit, new segments, recycling and compaction.
//!
//! One round takes everything that was appended meanwhile, writes it in batches, syncs once, and
//! reports how far the log is durable. The next segment is filled with zeros beside, by a thread of
//! its own, long before it is needed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::{self, BATCH_BYTES_MAX};
use crate::dir::{Dir, SegmentHeader, Spare};
use crate::live::Live;
use crate::recovery::{State, place};
use crate::shared::{Read, Shared, Work};
use crate::{Event, LogError, Options};

mod compaction;
mod reading;
mod space;

use space::{OVERHEAD_BYTES, start_segment};

/// The size of the first segment of a log: small, so that starting is quick.
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// A larger buffer is given back to the system after use.
const SPENT_BYTES_MAX: usize = 4 << 20;
/// How soon a full disk is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// How often to see whether the next segment is made.
const MAKING_POLL: Duration = Duration::from_millis(10);

pub(crate) struct Writer {
    dir: Dir,
    options: Options,
    shared: Arc<Shared>,
    on_event: Box<dyn Fn(Event) + Send>,
    live: Live,
    /// Full segments, oldest first.
    closed: VecDeque<Closed>,
    current: Current,
    /// The sequence number of the next batch, and of the last that is on stable storage.
    sequence: u64,
    synced: u64,
    /// The last batch that holds records, and the last such that a later batch witnesses.
    last_filled: u64,
    witnessed: u64,
    next: Next,
    /// When making a segment failed for want of space: not again before then.
    retry_at: Instant,
    /// The last attempt to make a segment failed for want of space.
    full: bool,
    /// How far the oldest segment has been compacted.
    compacted: u64,
    /// The batch being put together.
    batch: Vec<u8>,
    /// The records of this round, and how many bytes of them are written.
    taken: Arc<Vec<u8>>,
    written: usize,
    /// What is written now is to free a segment on a full disk, and may use what is held for that.
    freeing: bool,
    /// The oldest segment is being read, and must stay.
    compacting: bool,
    /// Who wants to read messages that are not written yet.
    reads: Vec<Read>,
    /// How many of the records that were appended are written.
    written_through: u64,
}

/// A segment that is no longer written to.
struct Closed {
    number: u64,
    path: PathBuf,
    size: u64,
    end: u64,
}

/// The segment that is written to.
struct Current {
    number: u64,
    path: PathBuf,
    file: File,
    size: u64,
    end: u64,
}

/// The segment that comes after the current one.
enum Next {
    None,
    Making(JoinHandle<Result<Spare, LogError>>),
    Ready(Spare),
}

impl Writer {
    pub(crate) fn new(
        dir: Dir,
        options: Options,
        state: State,
        shared: Arc<Shared>,
        on_event: Box<dyn Fn(Event) + Send>,
    ) -> Result<Self, LogError> {
        let mut segments = state.segments;
        let mut sequence = state.sequence;
        let current = match segments.pop() {
            Some(last) => {
                let open = OpenOptions::new().read(true).write(true).open(&last.path);
                let file = open.map_err(|e| LogError::io("write to", &last.path, e))?;
                let (number, path, size, end) = (last.number, last.path, last.size, last.end);
                Current {
                    number,
                    path,
                    file,
                    size,
                    end,
                }
            }
            None => {
                let size = FIRST_SEGMENT_BYTES.min(options.segment_bytes_max);
                let spare = Spare::create(&dir.spare_path(), size)?;
                sequence = 1;
                start_segment(
                    &dir,
                    spare,
                    SegmentHeader {
                        number: 1,
                        first: sequence,
                    },
                )?
            }
        };
        // Durable by whatever wrote it, or by this: what is read at start is built upon.
        current
            .file
            .sync_data()
            .map_err(|e| LogError::io("sync", &current.path, e))?;
        let closed = segments.into_iter().map(|found| Closed {
            number: found.number,
            path: found.path,
            size: found.size,
            end: found.end,
        });
        let mut writer = Self {
            closed: closed.collect(),
            dir,
            options,
            shared,
            on_event,
            live: state.live,
            current,
            sequence,
            synced: sequence - 1,
            last_filled: sequence - 1,
            witnessed: sequence - 1,
            next: Next::None,
            retry_at: Instant::now(),
            full: false,
            compacted: 0,
            batch: Vec::new(),
            taken: Arc::default(),
            written: 0,
            freeing: false,
            compacting: false,
            reads: Vec::new(),
            written_through: 0,
        };
        writer.tell_room();
        Ok(writer)
    }

    /// Works until the log is closed or fails.
    pub(crate) fn run(mut self) {
        let panicked = |_| Err(LogError::internal("its thread panicked"));
        let worked = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(panicked);
        if let Err(failure) = worked {
            let failure = Arc::new(failure);
            tracing::error!(
                error = &*failure as &dyn std::error::Error,
                "the log has failed; nothing more is stored until it is opened anew"
            );
            self.shared.fail(failure.clone());
            (self.on_event)(Event::Failed(failure));
        }
        if let Next::Making(thread) = std::mem::replace(&mut self.next, Next::None) {
            // Its result is of no use any more, but it must not outlive the lock.
            let _ = thread.join();
        }
    }

    fn work(&mut self) -> Result<(), LogError> {
        let mut spent = Vec::new();
        let mut compacting = false;
        loop {
            let timeout = match self.next {
                _ if compacting => Some(Duration::ZERO),
                Next::Making(_) => Some(MAKING_POLL),
                Next::None if self.full => Some(RETRY_DELAY),
                Next::None | Next::Ready(_) => None,
            };
            match self.shared.take(&mut spent, timeout) {
                Work::Records(records, lsn) => {
                    let records = Arc::new(records);
                    (self.taken, self.written) = (records.clone(), 0);
                    compacting = self.compact(records.len() as u64)?;
                    self.write_records(&records, true)?;
                    self.written_through = lsn.0;
                    self.serve_reads();
                    self.sync()?;
                    self.shared.set_durable(lsn);
                    (self.on_event)(Event::Durable(lsn));
                    self.taken = Arc::default();
                    spent = Arc::into_inner(records)
                        .filter(|records| records.capacity() <= SPENT_BYTES_MAX)
                        .unwrap_or_default();
                }
                Work::Nothing => {
                    self.serve_reads();
                    compacting = self.compact(0)?;
                    self.sync()?;
                }
                Work::Close => {
                    self.serve_reads();
                    self.bear_witness()?;
                    return self.sync();
                }
            }
            self.release_dead()?;
            self.look_after_next()?;
            if self.shared.is_idle() {
                self.bear_witness()?;
            }
        }
    }

    /// Cuts the records into batches and writes them; they are what was taken in this round, or what
    /// compaction moves.
    fn write_records(&mut self, records: &[u8], are_taken: bool) -> Result<(), LogError> {
        let whole = usize::try_from(self.options.segment_bytes_max / 4).unwrap_or(usize::MAX);
        let mut start = 0;
        let mut end = 0;
        let mut bytes_max = BATCH_BYTES_MAX.min(whole).min(self.fitting());
        for record in batch::records(records) {
            let (offset, record) = record.map_err(|_| unreadable())?;
            let record_end = offset + record.len();
            if record_end - start > bytes_max && end > start {
                self.write_batch(&records[start..end])?;
                start = end;
                if are_taken {
                    self.written = end;
                }
                bytes_max = BATCH_BYTES_MAX.min(whole).min(self.fitting());
            }
            end = record_end;
        }
        if end > start {
            self.write_batch(&records[start..end])
        } else {
            Ok(())
        }
    }

    /// The largest payload that fits into this segment, without what is held of it as long as that is
    /// held; in one that is full, anything.
    fn fitting(&self) -> usize {
        let left = match self.is_holding() {
            true => self.unheld(),
            false => self.current.size - self.current.end,
        };
        let framing = (batch::stride(0) + batch::ALIGNMENT) as u64;
        match left.checked_sub(framing) {
            None | Some(0) => usize::MAX,
            Some(fitting) => usize::try_from(fitting).unwrap_or(usize::MAX),
        }
    }

    /// Writes one batch, into a new segment if the current one is full.
    fn write_batch(&mut self, payload: &[u8]) -> Result<(), LogError> {
        let bytes = batch::stride(payload.len()) as u64;
        if self.reaches_what_is_held(bytes) {
            self.wait_for_next(bytes + OVERHEAD_BYTES)?;
        }
        if self.current.end + bytes > self.current.size {
            self.roll(bytes)?;
        }
        self.put_batch(payload)
    }

    /// Writes one batch into the current segment, where it fits.
    fn put_batch(&mut self, payload: &[u8]) -> Result<(), LogError> {
        let bytes = batch::stride(payload.len()) as u64;
        let at = self.current.end as usize;
        batch::begin(&mut self.batch);
        self.batch.extend_from_slice(payload);
        batch::seal(&mut self.batch, self.sequence, self.synced, self.dir.salt);
        let write = self
            .current
            .file
            .write_all_at(&self.batch, self.current.end);
        write.map_err(|e| LogError::io("write to", &self.current.path, e))?;
        if !payload.is_empty() {
            self.last_filled = self.sequence;
        }
        self.sequence += 1;
        self.current.end += bytes;
        for record in batch::records(payload) {
            let (offset, record) = record.map_err(|_| unreadable())?;
            let place = place(self.current.number, at, offset, record);
            self.live.apply(record, place).map_err(|_| unreadable())?;
        }
        Ok(())
    }

    /// Makes everything written durable. An error here is final: what the kernel failed to write it
    /// may have forgotten, and a second sync would succeed without it.
    fn sync(&mut self) -> Result<(), LogError> {
        if self.synced >= self.last_filled {
            return Ok(());
        }
        self.sync_witness_too()
    }

    /// The same before another segment begins: it says with which sequence number this one ended, so
    /// that an empty batch that is lost from here would look like damage.
    fn sync_witness_too(&mut self) -> Result<(), LogError> {
        if self.synced == self.sequence - 1 {
            return Ok(());
        }
        let sync = self.current.file.sync_data();
        sync.map_err(|e| LogError::io("sync", &self.current.path, e))?;
        self.synced = self.sequence - 1;
        Ok(())
    }

    /// Before resting, writes an empty batch that says that the last one was synced, so that damage
    /// to the last one can be told from an unfinished write. It need not be synced itself.
    fn bear_witness(&mut self) -> Result<(), LogError> {
        let fits = self.current.end + batch::stride(0) as u64 <= self.current.size;
        if self.witnessed < self.last_filled && fits {
            self.put_batch(&[])?;
            self.witnessed = self.last_filled;
        }
        Ok(())
    }
}

fn unreadable() -> LogError {
    LogError::internal("a record that was just written cannot be read")
}
