//! Finding the batches of a segment again behind damage.
//!
//! A batch is recognised by its magic and its two checksums, which are salted, at any multiple of the
//! alignment. Whether it belongs to the segment its sequence number tells: a file may have been a
//! segment before, and behind the end lies what was written then. Those numbers are all lower than that of the
//! segment's first batch, and within a segment they grow. So it takes a lower bound, and the header has
//! it; without the header the segments before have one, or the batch that stands where the first one must.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Lost;
use crate::LogError;
use crate::batch::{self, ALIGNMENT, HEADER_BYTES};
use crate::dir::{SEGMENT_HEADER_BYTES, SegmentHeader};

/// What is known of a segment from elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Its batches have this sequence number or higher ones.
    pub(super) first: Option<u64>,
    /// With which sequence number the next segment begins.
    pub(super) next: Option<u64>,
    /// It is the one that was written to last, and may end with an unfinished write.
    pub(super) is_last: bool,
}

/// What was found of a segment.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where batches follow on each other.
    pub(super) runs: Vec<Range<usize>>,
    pub(super) batches: u64,
    /// The sequence number behind the last one.
    pub(super) next: Option<u64>,
    pub(super) losses: Vec<(Range<usize>, Lost)>,
    pub(super) torn: Option<Tear>,
}

/// A write that was not finished.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tear {
    pub(super) at: usize,
    pub(super) is_shortened: bool,
}

/// A whole batch, of this use of the file or an earlier one.
#[derive(Debug, Clone, Copy)]
struct Whole {
    at: usize,
    end: usize,
    sequence: u64,
    synced: u64,
}

/// With which sequence number each segment begins, where that can be told from the segment itself.
pub(super) fn starts(segments: &[(u64, PathBuf)], salt: u64) -> Result<Vec<Option<u64>>, LogError> {
    let start = |(number, path): &(u64, PathBuf)| {
        first_of(*number, path, salt).map_err(|e| LogError::io("read", path, e))
    };
    segments.iter().map(start).collect()
}

fn first_of(number: u64, path: &Path, salt: u64) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let first = SEGMENT_HEADER_BYTES as u64;
    if size >= first {
        let mut header = [0; SEGMENT_HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let header = SegmentHeader::decode(&header, salt).filter(|it| it.number == number);
        if let Some(header) = header {
            return Ok(Some(header.first));
        }
    }
    if number == 1 {
        return Ok(Some(1));
    }
    if size < first + HEADER_BYTES as u64 {
        return Ok(None);
    }
    let batch = batch::read_at(&file, first, size, salt)?;
    let header = batch.and_then(|batch| batch::read(&batch, salt).map(|(header, _)| header));
    Ok(header.map(|header| header.sequence))
}

/// Finds the batches of a segment.
pub(super) fn read(data: &[u8], salt: u64, bounds: Bounds) -> Found {
    let whole = whole_batches(data, salt, bounds.next);
    let Some(first) = bounds.first.or_else(|| proven_first(&whole, bounds.next)) else {
        let all = SEGMENT_HEADER_BYTES.min(data.len())..data.len();
        let losses = vec![(all, Lost::Unproven)];
        return Found {
            losses,
            ..Found::default()
        };
    };
    let ours = of_this_use(&whole, first);
    let synced = ours.last().map_or(0, |last| last.synced);
    let mut found = Found::default();
    let (mut at, mut expected) = (SEGMENT_HEADER_BYTES.min(data.len()), first);
    for batch in ours {
        let is_gap = batch.at > at || batch.sequence > expected;
        if is_gap && bounds.is_last && synced < expected {
            // Nothing behind says that what is missing was ever synced: a start cuts all of it off.
            found.torn = Some(Tear {
                at,
                is_shortened: false,
            });
            break;
        }
        if is_gap {
            let missing = Lost::Batches(batch.sequence - expected);
            found.losses.push((at..batch.at, missing));
        }
        match found.runs.last_mut() {
            Some(run) if !is_gap => run.end = batch.end,
            _ => found.runs.push(batch.at..batch.end),
        }
        found.batches += 1;
        (at, expected) = (batch.end, batch.sequence + 1);
    }
    match bounds.next {
        _ if bounds.is_last => found.torn = found.torn.or_else(|| tear(data, at, salt, expected)),
        Some(next) if next > expected => {
            let missing = Lost::Batches(next - expected);
            found.losses.push((at.min(data.len())..data.len(), missing));
        }
        _ => {}
    }
    found.next = Some(expected);
    found
}

/// The batches in these bytes, which are whole: where each begins, and its payload.
pub(super) fn payloads(
    data: &[u8],
    run: Range<usize>,
    salt: u64,
) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = run.start;
    std::iter::from_fn(move || {
        if at >= run.end {
            return None;
        }
        let here = at;
        // It was whole a moment ago; should the file have changed since, the rest is not there.
        let (header, payload) = batch::read(data.get(at..)?, salt)?;
        at += header.stride();
        Some((here, payload))
    })
}

/// Every whole batch, up to the last one before `next`.
fn whole_batches(data: &[u8], salt: u64, next: Option<u64>) -> Vec<Whole> {
    let mut whole = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(rest) = data.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) {
        let Some((header, _)) = batch::read(rest, salt) else {
            at += ALIGNMENT;
            continue;
        };
        let end = (at + header.stride()).min(data.len());
        whole.push(Whole {
            at,
            end,
            sequence: header.sequence,
            synced: header.synced,
        });
        at = end;
        if next == Some(header.sequence + 1) {
            break;
        }
    }
    whole
}

fn of_this_use(whole: &[Whole], first: u64) -> Vec<Whole> {
    let mut expected = first;
    let mut ours = whole.to_vec();
    ours.retain(|batch| {
        let is_ours = batch.sequence >= expected;
        if is_ours {
            expected = batch.sequence + 1;
        }
        is_ours
    });
    ours
}

/// Where the batches of a segment begin of which nothing else tells it: the first one is found, if what
/// follows on it shows that it is not from an earlier use. Either older ones come behind, or the last
/// one is that before the next segment.
fn proven_first(whole: &[Whole], next: Option<u64>) -> Option<u64> {
    let first = whole.first()?;
    let falls = whole
        .windows(2)
        .any(|pair| pair[1].sequence < pair[0].sequence);
    let ends = whole.last().map(|last| last.sequence + 1) == next;
    (falls || (next.is_some() && ends)).then_some(first.sequence)
}

/// The unfinished write that begins where the last batch ends, if its header is there.
fn tear(data: &[u8], at: usize, salt: u64, expected: u64) -> Option<Tear> {
    let header = batch::peek(data.get(at..)?, salt)?;
    (header.sequence >= expected).then(|| Tear {
        at,
        is_shortened: at + HEADER_BYTES + header.length > data.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 7;

    /// A segment with these batches, as (sequence, synced), each with a payload of 8 bytes.
    fn segment(batches: &[(u64, u64)]) -> Vec<u8> {
        let mut data = vec![0; SEGMENT_HEADER_BYTES];
        for (sequence, synced) in batches {
            let mut batch = Vec::new();
            batch::begin(&mut batch);
            batch.extend_from_slice(&[1; 8]);
            batch::seal(&mut batch, *sequence, *synced, SALT);
            data.extend_from_slice(&batch);
        }
        data
    }

    const STRIDE: usize = batch::stride(8);

    fn at(index: usize) -> usize {
        SEGMENT_HEADER_BYTES + index * STRIDE
    }

    fn damaged(mut data: Vec<u8>, index: usize) -> Vec<u8> {
        data[at(index) + HEADER_BYTES] ^= 1;
        data
    }

    /// From which batch to which one they follow on each other without a gap.
    fn runs(found: &Found) -> Vec<(usize, usize)> {
        let index = |offset: usize| (offset - SEGMENT_HEADER_BYTES) / STRIDE;
        let runs = found.runs.iter();
        runs.map(|run| (index(run.start), index(run.end))).collect()
    }

    fn bounds(first: Option<u64>, next: Option<u64>) -> Bounds {
        Bounds {
            first,
            next,
            is_last: false,
        }
    }

    #[test]
    fn what_an_earlier_use_of_the_file_left_is_not_of_the_segment() {
        let data = segment(&[(20, 19), (21, 20), (22, 21), (5, 4), (6, 5)]);
        let found = read(&data, SALT, bounds(Some(20), Some(23)));
        assert_eq!(runs(&found), [(0, 3)]);
        assert!(found.losses.is_empty(), "{:?}", found.losses);
        // The last one is damaged: the older ones behind do not take its place.
        let found = read(&damaged(data, 2), SALT, bounds(Some(20), Some(23)));
        assert_eq!(runs(&found), [(0, 2)]);
        assert_eq!(found.losses, [(at(2)..at(5), Lost::Batches(1))]);
    }

    #[test]
    fn without_a_bound_only_what_is_proven_to_be_of_the_segment_is_taken() {
        let check = |batches: &[(u64, u64)], next, expected: Option<u64>| {
            let found = read(&segment(batches), SALT, bounds(None, next));
            assert_eq!(found.next, expected, "{batches:?} before {next:?}");
        };
        check(&[(20, 19), (21, 20)], Some(22), Some(22));
        check(&[(20, 19), (21, 20)], Some(30), None);
        check(&[(20, 19), (21, 20)], None, None);
        check(&[(20, 19), (21, 20), (5, 4)], None, Some(22));
        check(&[], None, None);
    }

    #[test]
    fn behind_a_gap_in_the_last_segment_only_a_witness_makes_it_damage() {
        let last = Bounds {
            first: Some(1),
            next: None,
            is_last: true,
        };
        let torn = damaged(segment(&[(1, 0), (2, 1), (3, 1)]), 1);
        let found = read(&torn, SALT, last);
        assert_eq!(found.torn.map(|torn| torn.at), Some(at(1)));
        assert_eq!(runs(&found), [(0, 1)]);
        let witnessed = damaged(segment(&[(1, 0), (2, 1), (3, 2)]), 1);
        let found = read(&witnessed, SALT, last);
        assert!(found.torn.is_none());
        assert_eq!(found.losses, [(at(1)..at(2), Lost::Batches(1))]);
        assert_eq!(runs(&found), [(0, 1), (2, 3)]);
        // And a torn one behind damage.
        let both = segment(&[(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)]);
        let found = read(&damaged(damaged(both, 1), 3), SALT, last);
        assert_eq!(found.torn.map(|torn| torn.at), Some(at(3)));
        assert_eq!(runs(&found), [(0, 1), (2, 3)]);
    }
}
