//! Segments: starting the next one in time, recycling the dead ones, and what to do on a full disk.
//!
//! What may be appended is always bounded by the space that is there already, in this segment and in
//! the next one. Whoever wants more waits while a segment is made, and is refused when the disk has
//! no room for one. A reserve is left to removals: with it consumers can go on until old segments
//! are dead, and a dead segment becomes the next one without asking the disk for anything.
//!
//! There may be more removals than the reserve has space for. A part of it is therefore held for
//! compaction, and when all but that is used, removals that wait to be written already count: what they
//! remove need not be kept. So the oldest segment dies, or so little in it is alive that it can be
//! moved into what was held, and the removals are written into that segment.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::Instant;

use tidings_broker_core::{MessageId, QueueId, Record};

use super::{Closed, Current, FIRST_SEGMENT_BYTES, Next, RETRY_DELAY, Writer, unreadable};
use crate::batch;
use crate::codec::{self, Fact};
use crate::dir::{Dir, SEGMENT_HEADER_BYTES, SegmentHeader, Spare};
use crate::{Event, LogError};

/// Of a segment, at most this is kept for removals when the disk is full.
const RESERVE_BYTES_MAX: u64 = 4 << 20;
/// A segment's header and first batch, generously.
pub(super) const OVERHEAD_BYTES: u64 = 512;

impl Writer {
    /// Goes on in a new segment with room for at least `bytes`.
    pub(super) fn roll(&mut self, bytes: u64) -> Result<(), LogError> {
        self.sync_witness_too()?;
        let (message, queue) = self.live.next_ids();
        let record = Record::Ids {
            next_message: MessageId(message),
            next_queue: QueueId(queue),
        };
        let mut ids = Vec::new();
        batch::add(&mut ids, |out| codec::encode(&record, out));
        let overhead = (SEGMENT_HEADER_BYTES + batch::stride(ids.len())) as u64;
        self.wait_for_next(bytes + overhead)?;
        let Next::Ready(spare) = std::mem::replace(&mut self.next, Next::None) else {
            return Err(LogError::internal("the next segment is not there"));
        };
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

    /// How much of the current segment is held for compaction until the next one is there.
    fn held(&self) -> u64 {
        reserve(self.current.size) / 2
    }

    /// What is left of the current segment without that.
    pub(super) fn unheld(&self) -> u64 {
        (self.current.size - self.current.end).saturating_sub(self.held())
    }

    /// Whether to write so many bytes would take something of what is held.
    pub(super) fn reaches_what_is_held(&self, bytes: u64) -> bool {
        self.is_holding() && bytes > self.unheld()
    }

    /// Whether a part of the current segment is held.
    pub(super) fn is_holding(&self) -> bool {
        !self.freeing && !matches!(self.next, Next::Ready(_))
    }

    /// Waits until a next segment of this size is there, and on a full disk until something is free.
    pub(super) fn wait_for_next(&mut self, bytes: u64) -> Result<(), LogError> {
        let mut pause = RETRY_DELAY / 32;
        loop {
            // Whoever is to free space by consuming has to read before.
            self.serve_reads();
            match std::mem::replace(&mut self.next, Next::None) {
                Next::Ready(spare) if spare.size >= bytes => {
                    self.next = Next::Ready(spare);
                    return Ok(());
                }
                Next::Ready(_) | Next::None => self.make_next(bytes)?,
                Next::Making(thread) => {
                    let made = self.finish_next(thread);
                    self.tell_room();
                    match made {
                        Err(error) if error.is_disk_full() => {
                            self.free_oldest()?;
                            if matches!(self.next, Next::None) {
                                if self.shared.is_closing() {
                                    return Err(error);
                                }
                                std::thread::sleep(pause);
                                pause = RETRY_DELAY.min(2 * pause);
                            }
                        }
                        made => made?,
                    }
                }
            }
        }
    }

    /// On a full disk, lets go of the oldest segment: what waits to be written says what in it need
    /// not be kept, and what is alive moves into what is held.
    fn free_oldest(&mut self) -> Result<(), LogError> {
        if self.compacting {
            return Ok(());
        }
        // What is alive elsewhere must be there when the segment goes.
        self.sync()?;
        let taken = self.taken.clone();
        if self.forget_removed(&taken[self.written..])? {
            let waiting = self.shared.copy_waiting();
            self.forget_removed(&waiting)?;
        }
        self.release_dead()?;
        if matches!(self.next, Next::None) {
            self.freeing = true;
            let moved = self.compact_into_what_is_held();
            self.freeing = false;
            moved?;
            self.sync()?;
            self.release_dead()?;
        }
        Ok(())
    }

    /// Takes note of removals that are not written yet, up to the first message among the records: that
    /// may have come out of another queue, and what removes it there must not count before it is
    /// written itself. Tells whether there was none.
    fn forget_removed(&mut self, records: &[u8]) -> Result<bool, LogError> {
        for record in batch::records(records) {
            let (_, record) = record.map_err(|_| unreadable())?;
            match codec::fact(record).map_err(|_| unreadable())? {
                Fact::Enqueued(..) => return Ok(false),
                Fact::Declared(_) | Fact::Ids { .. } => {}
                gone => self.live.forget(gone),
            }
        }
        Ok(true)
    }

    /// Starts to make the next segment, twice as large as this one until they are large enough.
    fn make_next(&mut self, bytes_min: u64) -> Result<(), LogError> {
        let size = match self.full {
            true => FIRST_SEGMENT_BYTES.min(self.options.segment_bytes_max),
            false => (self.current.size * 2).min(self.options.segment_bytes_max),
        };
        let (path, size) = (self.dir.spare_path(), size.max(bytes_min));
        let thread = std::thread::Builder::new().name("broker-log-segment".to_owned());
        let thread = thread.spawn(move || Spare::create(&path, size));
        let failed = |e| LogError::io("make a segment beside", &self.current.path, e);
        self.next = Next::Making(thread.map_err(failed)?);
        Ok(())
    }

    /// Takes the segment that was made, or notes that the disk is full.
    fn finish_next(&mut self, thread: JoinHandle<Result<Spare, LogError>>) -> Result<(), LogError> {
        let panicked = |_| Err(LogError::internal("making a segment panicked"));
        match thread.join().unwrap_or_else(panicked) {
            Ok(spare) => {
                self.next = Next::Ready(spare);
                self.full = false;
                Ok(())
            }
            Err(error) => {
                self.full = error.is_disk_full();
                self.retry_at = Instant::now() + RETRY_DELAY;
                Err(error)
            }
        }
    }

    /// Sees to it that there is a next segment before this one is full, and tells appenders how much
    /// they may append.
    pub(super) fn look_after_next(&mut self) -> Result<(), LogError> {
        if let Next::Making(thread) = &self.next
            && thread.is_finished()
            && let Next::Making(thread) = std::mem::replace(&mut self.next, Next::None)
        {
            match self.finish_next(thread) {
                Err(error) if !error.is_disk_full() => return Err(error),
                _ => {}
            }
        }
        let wanted = self.tell_room() as u64;
        // So large that it suffices beside the reserve.
        let size_min = if wanted > 0 {
            2 * (wanted + OVERHEAD_BYTES)
        } else {
            0
        };
        let soon = self.current.end > self.current.size / 2;
        let needed = match &self.next {
            Next::None if self.full => Instant::now() >= self.retry_at,
            Next::None => soon || wanted > 0,
            Next::Ready(spare) => spare.size < size_min,
            Next::Making(_) => false,
        };
        if needed {
            self.make_next(size_min)
        } else {
            Ok(())
        }
    }

    /// Tells appenders how much they may append, and everybody if the disk has become full or roomy.
    /// Gives the bytes that an appender still waits to append.
    pub(super) fn tell_room(&mut self) -> usize {
        let left = self.current.size - self.current.end;
        let (space, last) = match &self.next {
            Next::Ready(spare) => (
                (left + spare.size).saturating_sub(OVERHEAD_BYTES),
                spare.size,
            ),
            Next::None | Next::Making(_) => (left, self.current.size),
        };
        let room = space.saturating_sub(reserve(last));
        let before = self.shared.is_full();
        let wanted = self
            .shared
            .set_room(usize::try_from(room).unwrap_or(usize::MAX), self.full);
        match (before, self.full) {
            (false, true) => (self.on_event)(Event::DiskFull),
            (true, false) => (self.on_event)(Event::DiskRoomy),
            _ => {}
        }
        wanted
    }

    /// Lets go of the oldest segments as far as nothing in them is alive. One becomes the next
    /// segment, if none is there and it has the right size.
    pub(super) fn release_dead(&mut self) -> Result<(), LogError> {
        while let Some(oldest) = self.closed.front()
            && self.live.usage(oldest.number).records == 0
        {
            let reusable = oldest.size == self.options.segment_bytes_max || self.full;
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
                    self.full = false;
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

/// What of a segment is left to removals, of one so large.
fn reserve(segment_bytes: u64) -> u64 {
    RESERVE_BYTES_MAX.min(segment_bytes / 4)
}

/// Makes the spare file the segment `header` says. It gets its name when its start is on stable
/// storage, and the name is on stable storage when this returns.
pub(super) fn start_segment(
    dir: &Dir,
    spare: Spare,
    header: SegmentHeader,
) -> Result<Current, LogError> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidings_broker_core::{Message, Queues};

    use super::*;
    use crate::recovery::recover;
    use crate::shared::Shared;

    fn encoded(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            batch::add(&mut bytes, |out| codec::encode(record, out));
        }
        bytes
    }

    fn message(id: u64) -> Record {
        Record::Enqueued {
            id: MessageId(id),
            at: 0,
            queues: Queues::One(QueueId(1)),
            message: Arc::new(Message::new("", "", "body")),
        }
    }

    fn removed(id: u64) -> Record {
        Record::Removed {
            queue: QueueId(1),
            id: MessageId(id),
        }
    }

    #[test]
    fn a_removal_behind_a_message_does_not_count_before_it_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = Dir::open(folder.path()).expect("free");
        let (state, _) = recover(&dir).expect("empty");
        let shared = Arc::new(Shared::new(1 << 20));
        let options = crate::Options::default();
        let mut writer =
            Writer::new(dir, options, state, shared, Box::new(|_| {})).expect("opened");
        let there = encoded(&[message(1), message(2), message(3)]);
        writer.write_records(&there, false).expect("written");
        // The second one moves: as a new message and a removal.
        let waiting = encoded(&[removed(1), message(4), removed(2), removed(3)]);
        let all = writer.forget_removed(&waiting).expect("well-formed");
        assert!(!all);
        assert_eq!(writer.live.len(), 2, "only the first is gone");
        let all = writer.forget_removed(&encoded(&[removed(3)]));
        assert!(all.expect("well-formed"));
        assert_eq!(writer.live.len(), 1);
    }
}
