//! Reading messages back while the log is open, for backlogs that are longer than memory.
//!
//! The writer's thread does it, since it knows where they are, and nothing moves meanwhile. It reads whole
//! batches, whose checksums it checks; messages that wait together mostly lie together.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidings_broker_core::{Message, MessageId, Record};

use super::Writer;
use crate::LogError;
use crate::batch::{self, ALIGNMENT, BATCH_BYTES_MAX, HEADER_BYTES, LENGTH_BYTES};
use crate::codec::decode;
use crate::dir::SEGMENT_HEADER_BYTES;
use crate::live::Place;

impl Writer {
    /// Answers who wants to read, as far as what they want is written.
    pub(super) fn serve_reads(&mut self) {
        self.reads.extend(self.shared.take_reads());
        for read in std::mem::take(&mut self.reads) {
            let is_written = |id: &MessageId| self.live.place_of(*id).is_some();
            if read.appended > self.written_through && !read.ids.iter().all(is_written) {
                self.reads.push(read);
                continue;
            }
            // Whoever does not wait any more does not need it.
            let _ = read.reply.send(self.messages(&read.ids));
        }
    }

    /// The messages of these ids that are alive.
    fn messages(&self, ids: &[MessageId]) -> Result<Vec<(MessageId, Arc<Message>)>, Arc<LogError>> {
        let mut open: Option<Segment> = None;
        let mut messages = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(place) = self.live.place_of(*id) else {
                continue;
            };
            let segment = match open.take().filter(|it| it.number == place.segment) {
                Some(segment) => segment,
                None => Segment::open(place.segment, self.path_of(place.segment)?)?,
            };
            let segment = open.insert(segment);
            let message = segment.message(*id, place, self.dir.salt)?;
            messages.push((*id, message));
        }
        Ok(messages)
    }

    fn path_of(&self, segment: u64) -> Result<PathBuf, LogError> {
        if segment == self.current.number {
            return Ok(self.current.path.clone());
        }
        let found = self.closed.iter().find(|closed| closed.number == segment);
        let found = found.map(|closed| closed.path.clone());
        found.ok_or_else(|| LogError::internal("a message is in a segment that is not there"))
    }
}

/// A segment with the batch of it that was read last.
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    start: u64,
    batch: Vec<u8>,
}

impl Segment {
    fn open(number: u64, path: PathBuf) -> Result<Self, LogError> {
        let file = File::open(&path).map_err(|e| LogError::io("read", &path, e))?;
        Ok(Self {
            number,
            path,
            file,
            start: 0,
            batch: Vec::new(),
        })
    }

    fn message(
        &mut self,
        id: MessageId,
        place: Place,
        salt: u64,
    ) -> Result<Arc<Message>, LogError> {
        if !self.has(place) {
            self.find(place, salt)?;
        }
        let at = (place.offset - self.start) as usize;
        let record = self.batch.get(at..at + place.bytes as usize);
        let record = record.map(|record| decode(Bytes::copy_from_slice(record)));
        match record {
            Some(Ok(Record::Enqueued {
                id: found, message, ..
            })) if found == id => Ok(message),
            _ => Err(damaged(&self.path, place)),
        }
    }

    /// Whether the batch that was read last has what lies there.
    fn has(&self, place: Place) -> bool {
        let end = self.start + self.batch.len() as u64;
        self.start < place.offset && place.offset + u64::from(place.bytes) <= end
    }

    /// Reads the batch in which a record lies.
    fn find(&mut self, place: Place, salt: u64) -> Result<(), LogError> {
        // What comes next mostly lies next.
        let next = self.start + self.batch.len() as u64;
        if !self.batch.is_empty()
            && next < place.offset
            && self.read(next, salt)?
            && self.has(place)
        {
            return Ok(());
        }
        // A large record is alone in its batch, and the first of one lies there too.
        let first = place
            .offset
            .checked_sub((HEADER_BYTES + LENGTH_BYTES) as u64);
        if let Some(first) = first.filter(|it| *it >= SEGMENT_HEADER_BYTES as u64)
            && self.read(first, salt)?
            && self.has(place)
        {
            return Ok(());
        }
        let reach = (BATCH_BYTES_MAX + HEADER_BYTES) as u64;
        let from = place
            .offset
            .saturating_sub(reach)
            .max(SEGMENT_HEADER_BYTES as u64);
        let from = from.next_multiple_of(ALIGNMENT as u64);
        let mut before = vec![0; place.offset.saturating_sub(from) as usize];
        self.read_at(&mut before, from)?;
        let starts = (0..before.len()).step_by(ALIGNMENT).rev();
        for at in starts.filter(|at| before.len() - at >= HEADER_BYTES) {
            if batch::peek(&before[at..], salt).is_some() {
                let is_it = self.read(from + at as u64, salt)? && self.has(place);
                return match is_it {
                    true => Ok(()),
                    false => Err(damaged(&self.path, place)),
                };
            }
        }
        Err(damaged(&self.path, place))
    }

    /// Reads the batch that begins there; false if there is none, or a damaged one.
    fn read(&mut self, start: u64, salt: u64) -> Result<bool, LogError> {
        let mut header = [0; HEADER_BYTES];
        if !self.read_at(&mut header, start)? {
            return Ok(false);
        }
        let Some(header) = batch::peek(&header, salt) else {
            return Ok(false);
        };
        let mut bytes = std::mem::take(&mut self.batch);
        bytes.clear();
        bytes.resize(header.stride(), 0);
        let is_whole = self.read_at(&mut bytes, start)? && batch::read(&bytes, salt).is_some();
        if is_whole {
            (self.start, self.batch) = (start, bytes);
        }
        Ok(is_whole)
    }

    /// Fills the buffer; false if the file ends before.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<bool, LogError> {
        match self.file.read_exact_at(buffer, at) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(LogError::io("read", &self.path, error)),
        }
    }
}

fn damaged(path: &Path, place: Place) -> LogError {
    LogError::damaged(
        path.to_owned(),
        place.offset,
        "a message that waits cannot be read",
    )
}
