//! The thread that writes: group commit, new segments, recycling and compaction.
//!
//! One round takes everything that was appended meanwhile, writes it in batches, syncs once, and
//! reports how far the log is durable. The next segment is filled with zeros beside, by a thread of
//! its own, long before it is needed.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidings_broker_core::{MessageId, QueueId, Record};

use crate::batch::{self, BATCH_BYTES_MAX};
use crate::codec;
use crate::dir::{Dir, SEGMENT_HEADER_BYTES, SegmentHeader, Spare};
use crate::live::Live;
use crate::recovery::{State, place};
use crate::shared::{Shared, Work};
use crate::{Event, LogError, Options};

mod compaction;

/// The size of the first segment of a log: small, so that starting is quick.
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Of a segment, at most this is kept for removals when the disk is full.
const RESERVE_BYTES_MAX: u64 = 1 << 20;
/// A larger buffer is given back to the system after use.
const SPENT_BYTES_MAX: usize = 4 << 20;
/// How soon a full disk is tried again, and the making of a segment looked after.
const RETRY_DELAY: Duration = Duration::from_millis(200);

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
    retry_at: Option<Instant>,
    /// How far the oldest segment has been compacted.
    compacted: u64,
    /// The batch being put together.
    batch: Vec<u8>,
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
        Ok(Self {
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
            retry_at: None,
            compacted: 0,
            batch: Vec::new(),
        })
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
                Next::Making(_) => Some(RETRY_DELAY),
                Next::None if self.shared.is_full() => Some(RETRY_DELAY),
                Next::None | Next::Ready(_) => None,
            };
            match self.shared.take(&mut spent, timeout) {
                Work::Records(records, lsn) => {
                    compacting = self.compact(records.len() as u64)?;
                    self.write_records(&records)?;
                    self.sync()?;
                    self.shared.set_durable(lsn);
                    (self.on_event)(Event::Durable(lsn));
                    if records.capacity() <= SPENT_BYTES_MAX {
                        spent = records;
                    }
                }
                Work::Nothing => {
                    compacting = self.compact(0)?;
                    self.sync()?;
                }
                Work::Close => {
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

    /// Cuts the records into batches and writes them.
    fn write_records(&mut self, records: &[u8]) -> Result<(), LogError> {
        let small = usize::try_from(self.options.segment_bytes_max / 4).unwrap_or(usize::MAX);
        let batch_bytes_max = BATCH_BYTES_MAX.min(small);
        let mut start = 0;
        let mut end = 0;
        for record in batch::records(records) {
            let (offset, record) = record.map_err(|_| unreadable())?;
            let record_end = offset + record.len();
            if record_end - start > batch_bytes_max && end > start {
                self.write_batch(&records[start..end])?;
                start = end;
            }
            end = record_end;
        }
        if end > start {
            self.write_batch(&records[start..end])
        } else {
            Ok(())
        }
    }

    /// Writes one batch, into a new segment if the current one is full.
    fn write_batch(&mut self, payload: &[u8]) -> Result<(), LogError> {
        let bytes = batch::stride(payload.len()) as u64;
        if self.current.end + bytes > self.current.size {
            self.roll(bytes)?;
        }
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
            self.write_batch(&[])?;
            self.witnessed = self.last_filled;
        }
        Ok(())
    }

    /// Goes on in a new segment with room for at least `bytes`.
    fn roll(&mut self, bytes: u64) -> Result<(), LogError> {
        self.sync()?;
        let (message, queue) = self.live.next_ids();
        let record = Record::Ids {
            next_message: MessageId(message),
            next_queue: QueueId(queue),
        };
        let mut ids = Vec::new();
        batch::add(&mut ids, |out| codec::encode(&record, out));
        let overhead = (SEGMENT_HEADER_BYTES + batch::stride(ids.len())) as u64;
        let spare = self.take_next(bytes + overhead)?;
        let header = SegmentHeader {
            number: self.current.number + 1,
            first: self.sequence,
        };
        let started = start_segment(&self.dir, spare, header)?;
        let full = std::mem::replace(&mut self.current, started);
        let (number, path, size, end) = (full.number, full.path, full.size, full.end);
        self.closed.push_back(Closed {
            number,
            path,
            size,
            end,
        });
        self.write_batch(&ids)
    }

    /// The next segment, when it must be there: waits until it is made, and on a full disk until
    /// there is room for it.
    fn take_next(&mut self, bytes: u64) -> Result<Spare, LogError> {
        loop {
            match std::mem::replace(&mut self.next, Next::None) {
                Next::Ready(spare) if spare.size >= bytes => return Ok(spare),
                Next::Ready(_) | Next::None => self.make_next(bytes)?,
                Next::Making(thread) => match self.made(thread) {
                    Err(error) if error.is_disk_full() && !self.shared.is_closing() => {
                        std::thread::sleep(RETRY_DELAY);
                    }
                    made => self.next = Next::Ready(made?),
                },
            }
        }
    }

    /// Starts to make the next segment, twice as large as this one until they are large enough.
    fn make_next(&mut self, bytes_min: u64) -> Result<(), LogError> {
        let size = match self.shared.is_full() {
            true => FIRST_SEGMENT_BYTES.min(self.options.segment_bytes_max),
            false => (self.current.size * 2).min(self.options.segment_bytes_max),
        };
        let (path, size) = (self.dir.spare_path(), size.max(bytes_min));
        let thread = std::thread::Builder::new().name("broker-log-segment".to_owned());
        let thread = thread.spawn(move || Spare::create(&path, size));
        let thread =
            thread.map_err(|e| LogError::io("make a segment in", &self.current.path, e))?;
        self.next = Next::Making(thread);
        Ok(())
    }

    /// What became of making a segment; notes whether the disk is full.
    fn made(&mut self, thread: JoinHandle<Result<Spare, LogError>>) -> Result<Spare, LogError> {
        let panicked = |_| Err(LogError::internal("making a segment panicked"));
        let made = thread.join().unwrap_or_else(panicked);
        match &made {
            Ok(_) => self.note_full(false),
            Err(error) if error.is_disk_full() => {
                self.retry_at = Some(Instant::now() + RETRY_DELAY);
                self.note_full(true);
            }
            Err(_) => {}
        }
        made
    }

    fn note_full(&mut self, full: bool) {
        let before = self.shared.is_full();
        self.shared.set_room(full.then(|| self.room()));
        match (before, full) {
            (false, true) => (self.on_event)(Event::DiskFull),
            (true, false) => (self.on_event)(Event::DiskRoomy),
            _ => {}
        }
    }

    /// Bytes that new things may take in this segment when there is no other: a part is kept for
    /// removals, which free space in the end.
    fn room(&self) -> usize {
        let reserve = RESERVE_BYTES_MAX.min(self.current.size / 4);
        let room = self.current.size.saturating_sub(self.current.end + reserve);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Sees to it that there is a next segment before this one is full.
    fn look_after_next(&mut self) -> Result<(), LogError> {
        if let Next::Making(thread) = &self.next
            && thread.is_finished()
            && let Next::Making(thread) = std::mem::replace(&mut self.next, Next::None)
        {
            match self.made(thread) {
                Ok(spare) => self.next = Next::Ready(spare),
                Err(error) if error.is_disk_full() => {}
                Err(error) => return Err(error),
            }
        }
        if let Next::Ready(_) = self.next {
            return Ok(());
        }
        if self.shared.is_full() {
            self.shared.set_room(Some(self.room()));
        }
        let due = self.retry_at.is_none_or(|at| at <= Instant::now());
        let needed = self.shared.is_full() || self.current.end > self.current.size / 2;
        match self.next {
            Next::None if due && needed => self.make_next(0),
            _ => Ok(()),
        }
    }

    /// Lets go of the oldest segments as far as nothing in them is alive. One becomes the next
    /// segment, if none is there and it has the right size.
    fn release_dead(&mut self) -> Result<(), LogError> {
        while let Some(oldest) = self.closed.front()
            && self.live.usage(oldest.number).records == 0
        {
            let reusable = oldest.size == self.options.segment_bytes_max || self.shared.is_full();
            match self.next {
                Next::None if reusable => {
                    let spare = self.dir.spare_path();
                    let reuse = || {
                        fs::rename(&oldest.path, &spare)?;
                        OpenOptions::new().read(true).write(true).open(&spare)
                    };
                    let file = reuse().map_err(|e| LogError::io("reuse", &oldest.path, e))?;
                    self.next = Next::Ready(Spare {
                        file,
                        size: oldest.size,
                    });
                    self.note_full(false);
                }
                _ => fs::remove_file(&oldest.path)
                    .map_err(|e| LogError::io("remove", &oldest.path, e))?,
            }
            // Before the next one goes: a power cut must not leave a gap in the numbers.
            self.dir.sync()?;
            self.closed.pop_front();
            self.compacted = 0;
        }
        Ok(())
    }
}

fn unreadable() -> LogError {
    LogError::internal("a record that was just written cannot be read")
}

/// Makes the spare file the segment `header` says. It gets its name when its start is on stable
/// storage, and the name is on stable storage when this returns.
fn start_segment(dir: &Dir, spare: Spare, header: SegmentHeader) -> Result<Current, LogError> {
    let path = dir.segment_path(header.number);
    let start = || {
        spare.file.write_all_at(&header.encode(dir.salt), 0)?;
        spare.file.sync_data()?;
        fs::rename(dir.spare_path(), &path)
    };
    start().map_err(|e| LogError::io("start the segment", &path, e))?;
    dir.sync()?;
    let end = SEGMENT_HEADER_BYTES as u64;
    Ok(Current {
        number: header.number,
        path,
        file: spare.file,
        size: spare.size,
        end,
    })
}
