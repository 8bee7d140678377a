//! A batch: what one write puts into a segment, under one checksum.
//!
//! ```text
//! magic 4 | header crc 4 | length 4 | payload crc 4 | sequence 8 | synced 8
//! payload: records, each length 4 + bytes
//! padding to a multiple of 8
//! ```
//!
//! Sequence numbers count all batches of a log, so what an earlier life of a recycled file left
//! behind cannot be mistaken for the continuation. `synced` is the last batch known to be on stable
//! storage when this one was written: a batch that cannot be read although a later one says that it
//! was synced is damage; without such a witness it is the unfinished end of a crash. The checksums are
//! salted with a secret of the log, so that no client can plant batches inside message bodies; the
//! header has one of its own, so that looking for batches never means to sum up what is none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::codec::Malformed;

pub(crate) const HEADER_BYTES: usize = 32;
/// Every batch begins at a multiple of this.
pub(crate) const ALIGNMENT: usize = 8;
/// Records are gathered into batches of about this size: what one checksum covers, and what
/// compaction reads at once. Several fit into the smallest segment, so that any segment that becomes
/// free is of use. A larger record is a batch of its own.
pub(crate) const BATCH_BYTES_MAX: usize = 256 << 10;

const MAGIC: u32 = 0x5442_4c31;
/// What stands before each record.
pub(crate) const LENGTH_BYTES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) synced: u64,
    /// Bytes of the payload.
    pub(crate) length: usize,
}

impl Header {
    /// Bytes from the start of this batch to the start of the next.
    pub(crate) const fn stride(&self) -> usize {
        stride(self.length)
    }
}

/// Bytes a batch with such a payload takes in a segment.
pub(crate) const fn stride(length: usize) -> usize {
    (HEADER_BYTES + length).next_multiple_of(ALIGNMENT)
}

/// Starts a batch in an empty buffer; the payload follows.
pub(crate) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER_BYTES, 0);
}

/// Adds one record to the payload, written by `encode`.
pub(crate) fn add(payload: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let at = payload.len();
    payload.resize(at + LENGTH_BYTES, 0);
    encode(payload);
    let length = (payload.len() - at - LENGTH_BYTES) as u32;
    payload[at..at + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// Fills in the header and the padding.
pub(crate) fn seal(buffer: &mut Vec<u8>, sequence: u64, synced: u64, salt: u64) {
    let length = buffer.len() - HEADER_BYTES;
    buffer.resize(stride(length), 0);
    let crc = checksum(&[&buffer[HEADER_BYTES..HEADER_BYTES + length]], salt);
    buffer[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    buffer[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    buffer[12..16].copy_from_slice(&crc.to_le_bytes());
    buffer[16..24].copy_from_slice(&sequence.to_le_bytes());
    buffer[24..32].copy_from_slice(&synced.to_le_bytes());
    let crc = checksum(&[&buffer[8..HEADER_BYTES]], salt);
    buffer[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// CRC-32 of the salt and the parts.
pub(crate) fn checksum(parts: &[&[u8]], salt: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The batch at the start of `bytes`, if a whole and undamaged one is there.
pub(crate) fn read(bytes: &[u8], salt: u64) -> Option<(Header, &[u8])> {
    let header = peek(bytes, salt)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length)?;
    let crc = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
    (checksum(&[payload], salt) == crc).then_some((header, payload))
}

/// Reads the batch at an offset of a file, of which what counts ends at `end`; does not trust the length
/// that it claims. Gives bytes for [`read`], if there is a header.
pub(crate) fn read_at(file: &File, at: u64, end: u64, salt: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    let Some(header) = peek(&bytes, salt) else {
        return Ok(None);
    };
    if at + header.stride() as u64 > end {
        return Ok(None);
    }
    bytes.resize(header.stride(), 0);
    file.read_exact_at(&mut bytes[HEADER_BYTES..], at + HEADER_BYTES as u64)?;
    Ok(Some(bytes))
}

/// The header at the start of `bytes`, if an undamaged one is there; its payload may not be.
pub(crate) fn peek(bytes: &[u8], salt: u64) -> Option<Header> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if word(0) != MAGIC || word(4) != checksum(&[&header[8..]], salt) {
        return None;
    }
    Some(Header {
        length: word(8) as usize,
        sequence: number(16),
        synced: number(24),
    })
}

/// The records of a payload: the offset of each in it, and its bytes.
pub(crate) fn records(payload: &[u8]) -> impl Iterator<Item = Result<(usize, &[u8]), Malformed>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == payload.len() {
            return None;
        }
        let start = at + LENGTH_BYTES;
        let length = payload
            .get(at..start)
            .map(|length| u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize);
        let record = length.and_then(|length| payload.get(start..start + length));
        let Some(record) = record else {
            at = payload.len();
            return Some(Err(Malformed));
        };
        at = start + record.len();
        Some(Ok((start, record)))
    })
}
