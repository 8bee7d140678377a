//! Compaction: when little of the log is alive, what is alive in the oldest segment is written
//! again at the front, so that the segment can go.
//!
//! It begins when more than half of the old segments is dead, and always with the oldest, so that a
//! record is written again at most about once for each time the log has doubled over it; and it does
//! a bounded piece with each round of writing, so that nobody waits for it. Ids order the messages
//! of a queue, not their places in the log.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Writer;
use crate::LogError;
use crate::batch;
use crate::codec::{self, Fact};
use crate::dir::SEGMENT_HEADER_BYTES;
use crate::recovery::place;

/// Of the oldest segment, at most this is looked through in one round, unless more was appended.
const COMPACTED_BYTES_MAX: u64 = 1 << 20;

impl Writer {
    /// Does one round's piece, if there is anything to do; tells whether there is more. `appended`
    /// bytes wait to be written in this round: compaction keeps up with them.
    pub(super) fn compact(&mut self, appended: u64) -> Result<bool, LogError> {
        let budget = COMPACTED_BYTES_MAX.max(2 * appended);
        let Some(oldest) = self
            .closed
            .front()
            .filter(|_| self.should_compact(appended))
        else {
            return Ok(false);
        };
        let (number, path, end) = (oldest.number, oldest.path.clone(), oldest.end);
        let file = File::open(&path).map_err(|e| LogError::io("read", &path, e))?;
        let mut at = self.compacted.max(SEGMENT_HEADER_BYTES as u64);
        let start = at;
        while at < end && at - start < budget {
            let damaged = || {
                let what = "a batch that was synced is unreadable";
                LogError::damaged(path.clone(), at, what)
            };
            let bytes = read_batch(&file, at, end, self.dir.salt)
                .map_err(|e| LogError::io("read", &path, e))?
                .ok_or_else(damaged)?;
            let (header, payload) = batch::read(&bytes, self.dir.salt).ok_or_else(damaged)?;
            let moved = self.still_alive(number, at as usize, payload);
            if !moved.is_empty() {
                self.write_records(&moved)?;
            }
            at += header.stride() as u64;
        }
        self.compacted = at;
        if at >= end && self.live.usage(number).records > 0 {
            return Err(LogError::internal(
                "a record that is alive is not where it was written",
            ));
        }
        Ok(at < end || self.closed.len() > 1)
    }

    fn should_compact(&self, appended: u64) -> bool {
        let Some(oldest) = self.closed.front() else {
            return false;
        };
        let in_oldest = self.live.usage(oldest.number);
        if in_oldest.records == 0 {
            return false;
        }
        if self.full {
            // Freeing this segment is worth what is left of the current one, if that suffices
            // beside what was accepted already.
            // Each record may become a batch of its own. One that began without enough space would
            // wait for the disk, and the segment would not go.
            let framing = (batch::LENGTH_BYTES + batch::stride(0) + batch::ALIGNMENT) as u64;
            let moved = in_oldest.bytes + framing * in_oldest.records;
            let accepted = appended + self.shared.accepted_bytes() as u64 + 2 * framing;
            return moved + accepted < self.current.size - self.current.end;
        }
        let old: u64 = self.closed.iter().map(|closed| closed.end).sum();
        let alive = self.live.bytes() - self.live.usage(self.current.number).bytes;
        old > 2 * alive + self.current.size
    }

    /// The records of a batch that are alive, as they are to be written again.
    fn still_alive(&self, segment: u64, batch: usize, payload: &[u8]) -> Vec<u8> {
        let mut moved = Vec::new();
        for record in batch::records(payload) {
            let Ok((offset, encoded)) = record else {
                continue;
            };
            let place = place(segment, batch, offset, encoded);
            match codec::fact(encoded) {
                Ok(Fact::Enqueued(id, _)) => {
                    if let Some(queues) = self.live.queues_of(id, place) {
                        batch::add(&mut moved, |out| codec::reencode(encoded, id, &queues, out));
                    }
                }
                Ok(Fact::Declared(topic)) if self.live.keeps(&topic, place) => {
                    batch::add(&mut moved, |out| out.extend_from_slice(encoded));
                }
                _ => {}
            }
        }
        moved
    }
}

/// Reads the batch at an offset, without trusting the length it claims.
fn read_batch(file: &File, at: u64, end: u64, salt: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; batch::HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    let Some(header) = batch::peek(&bytes, salt) else {
        return Ok(None);
    };
    if at + header.stride() as u64 > end {
        return Ok(None);
    }
    bytes.resize(header.stride(), 0);
    file.read_exact_at(
        &mut bytes[batch::HEADER_BYTES..],
        at + batch::HEADER_BYTES as u64,
    )?;
    Ok(Some(bytes))
}
