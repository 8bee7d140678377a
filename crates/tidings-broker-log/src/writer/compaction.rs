//! Compaction: when little of the log is alive, what is alive in the oldest segment is written
//! again at the front, so that the segment can go.
//!
//! It begins when more than half of the old segments is dead, and always with the oldest, so that a
//! record is written again at most about once for each time the log has doubled over it; and it does
//! a bounded piece with each round of writing, so that nobody waits for it. Ids order the messages
//! of a queue, not their places in the log.

use std::fs::File;

use super::space::OVERHEAD_BYTES;
use super::{Next, Writer};
use crate::LogError;
use crate::batch;
use crate::codec::{self, Fact};
use crate::dir::SEGMENT_HEADER_BYTES;
use crate::recovery::place;

/// Of the oldest segment, at most this is looked through in one round, unless more was appended.
const COMPACTED_BYTES_MAX: u64 = 1 << 20;

/// What a record that is moved takes besides its own bytes.
const FRAMING_BYTES: u64 = (batch::LENGTH_BYTES + batch::stride(0) + batch::ALIGNMENT) as u64;

impl Writer {
    /// Does one round's piece, if there is anything to do; tells whether there is more. `appended`
    /// bytes wait to be written in this round: compaction keeps up with them.
    pub(super) fn compact(&mut self, appended: u64) -> Result<bool, LogError> {
        if !self.should_compact(appended) {
            return Ok(false);
        }
        self.compact_oldest(COMPACTED_BYTES_MAX.max(2 * appended))
    }

    /// Moves what is alive in the oldest segment into what is held of the current one, if it fits
    /// there. Nothing else may be written to the current one before the next is there.
    pub(super) fn compact_into_what_is_held(&mut self) -> Result<(), LogError> {
        if self.oldest_moves() < self.current.size - self.current.end {
            self.compact_oldest(u64::MAX)?;
        }
        Ok(())
    }

    /// The most bytes that it takes to move what is alive in the oldest segment. Each record may
    /// become a batch of its own.
    fn oldest_moves(&self) -> u64 {
        let Some(oldest) = self.closed.front() else {
            return u64::MAX;
        };
        let usage = self.live.usage(oldest.number);
        if usage.records == 0 {
            return u64::MAX;
        }
        usage.bytes + FRAMING_BYTES * usage.records
    }

    fn compact_oldest(&mut self, budget: u64) -> Result<bool, LogError> {
        let Some(oldest) = self.closed.front() else {
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
            let bytes = batch::read_at(&file, at, end, self.dir.salt)
                .map_err(|e| LogError::io("read", &path, e))?
                .ok_or_else(damaged)?;
            let (header, payload) = batch::read(&bytes, self.dir.salt).ok_or_else(damaged)?;
            let moved = self.still_alive(number, at as usize, payload);
            if !self.has_space_for(&moved) {
                // It goes on when the next segment is there.
                self.compacted = at;
                return Ok(false);
            }
            if !moved.is_empty() {
                self.compacting = true;
                let written = self.write_records(&moved, false);
                self.compacting = false;
                written?;
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

    /// Whether these records can be written without waiting for a segment, and without what appenders
    /// may still append.
    fn has_space_for(&self, moved: &[u8]) -> bool {
        let records = batch::records(moved).count() as u64;
        let bytes = moved.len() as u64 + FRAMING_BYTES * records + OVERHEAD_BYTES;
        let fits = match &self.next {
            Next::Ready(spare) => bytes <= spare.size,
            _ => self.freeing || bytes <= self.unheld(),
        };
        // Unless it is to free a segment on a full disk, it takes of the room as appenders do.
        fits && (self.freeing || self.full || self.shared.claim_room(bytes))
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
            // beside what was accepted already. One that began without enough space would wait for
            // the disk, and the segment would not go.
            let accepted = appended + self.shared.accepted_bytes() as u64 + 2 * FRAMING_BYTES;
            return self.oldest_moves() + accepted < self.unheld();
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
