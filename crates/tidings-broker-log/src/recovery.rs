//! Opening a log: every segment is read once to learn what is alive, and those that hold something
//! alive a second time to get it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidings_broker_core::{MessageId, QueueId, Record};

use crate::batch::{self, ALIGNMENT};
use crate::codec::{Fact, Malformed, decode, fact};
use crate::dir::{Dir, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::live::{Live, Place};
use crate::{LogError, Recovered};

/// A segment as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// Where its last batch ends.
    pub(crate) end: u64,
}

/// A log as it was found.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) live: Live,
    /// Oldest first; the last is the one to go on with.
    pub(crate) segments: Vec<Found>,
    /// The sequence number of the next batch.
    pub(crate) sequence: u64,
}

/// What lies behind the end of the last segment.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// A write that was not finished: the file, and where it begins.
    torn: Option<(PathBuf, u64)>,
    /// Batches of it that are whole, and must never follow on something else.
    leftovers: Vec<u64>,
}

/// Reads the log. Changes nothing but to wipe out what a crash left behind the end.
pub(crate) fn recover(dir: &Dir) -> Result<(State, Recovered), LogError> {
    // One buffer for all files: fresh memory costs as much as reading.
    let mut data = Vec::new();
    let (state, tail) = learn(dir, &mut data)?;
    let mut records = Vec::with_capacity(state.live.len() + 1);
    read_live(&state, dir.salt, &mut data, |record| records.push(record))?;
    records.sort_unstable_by_key(rank);
    let torn = tail.torn.clone();
    tail.wipe_out()?;
    Ok((state, Recovered { records, torn }))
}

/// What [`recover`] would say, without changing anything.
pub(crate) fn rehearse(dir: &Dir) -> Result<(), LogError> {
    let mut data = Vec::new();
    let (state, _) = learn(dir, &mut data)?;
    read_live(&state, dir.salt, &mut data, |_| {})
}

/// Reads every segment once to learn what is alive.
fn learn(dir: &Dir, data: &mut Vec<u8>) -> Result<(State, Tail), LogError> {
    let mut state = State {
        live: Live::default(),
        segments: Vec::new(),
        sequence: 1,
    };
    let mut tail = Tail::default();
    let listed = dir.segments()?;
    let last = listed.last().map(|(number, _)| *number);
    for (number, path) in listed {
        read_into(data, &path)?;
        let damaged = |offset, what| Err(LogError::damaged(path.clone(), offset, what));
        let header = match SegmentHeader::decode(data, dir.salt) {
            Some(header) if header.number == number => header,
            _ => return damaged(0, "it does not begin like the segment it is named after"),
        };
        match state.segments.last() {
            None => state.sequence = header.first,
            Some(before) if before.number + 1 != number => {
                return damaged(0, "the segment before it is missing");
            }
            Some(before) if header.first != state.sequence => {
                let (path, end) = (before.path.clone(), before.end);
                return Err(LogError::damaged(
                    path,
                    end,
                    "a batch that was synced is unreadable",
                ));
            }
            Some(_) => {}
        }
        let end = read_segment(data, number, &path, dir.salt, &mut state)?;
        if Some(number) == last {
            tail = look_behind(data, end, &path, dir.salt, state.sequence)?;
        }
        let (size, end) = (data.len() as u64, end as u64);
        state.segments.push(Found {
            number,
            path,
            size,
            end,
        });
    }
    state.live.forget_lost_queues();
    Ok((state, tail))
}

/// Takes note of every record of a segment; gives the offset behind its last batch.
fn read_segment(
    data: &[u8],
    number: u64,
    path: &Path,
    salt: u64,
    state: &mut State,
) -> Result<usize, LogError> {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some((header, payload)) = data.get(at..).and_then(|rest| batch::read(rest, salt)) {
        if header.sequence != state.sequence {
            break;
        }
        for record in batch::records(payload) {
            let unknown = |_| LogError::damaged(path.to_owned(), at as u64, UNKNOWN_RECORD);
            let (offset, record) = record.map_err(unknown)?;
            let place = place(number, at, offset, record);
            state.live.apply(record, place).map_err(unknown)?;
        }
        at += header.stride();
        state.sequence += 1;
    }
    Ok(at.min(data.len()))
}

const UNKNOWN_RECORD: &str = "it holds a record that this version does not know";

pub(crate) fn place(segment: u64, batch: usize, offset: usize, record: &[u8]) -> Place {
    let offset = (batch + batch::HEADER_BYTES + offset) as u64;
    Place {
        segment,
        offset,
        bytes: record.len() as u32,
    }
}

/// Looks behind the end of the last segment. Batches there are either the unsynced end of a crash:
/// those are to be wiped out, so that they never follow on something else. Or one of them says that
/// what should stand at the end had been synced: then that is damaged.
fn look_behind(
    data: &[u8],
    end: usize,
    path: &Path,
    salt: u64,
    expected: u64,
) -> Result<Tail, LogError> {
    let ours = |bytes: &[u8]| {
        let header = batch::peek(bytes, salt).filter(|header| header.sequence >= expected)?;
        Some((header, batch::read(bytes, salt).is_some()))
    };
    let mut is_torn = data.get(end..).and_then(ours).is_some();
    let mut leftovers = Vec::new();
    for at in (end..data.len()).step_by(ALIGNMENT) {
        let Some((header, true)) = ours(&data[at..]) else {
            continue;
        };
        if header.synced >= expected {
            let what = "a batch that was synced is unreadable";
            return Err(LogError::damaged(path.to_owned(), end as u64, what));
        }
        leftovers.push(at as u64);
        is_torn = true;
    }
    let torn = is_torn.then(|| (path.to_owned(), end as u64));
    Ok(Tail { torn, leftovers })
}

impl Tail {
    fn wipe_out(self) -> Result<(), LogError> {
        let Some((path, _)) = self.torn.filter(|_| !self.leftovers.is_empty()) else {
            return Ok(());
        };
        let wipe = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            for at in self.leftovers {
                file.write_all_at(&[0; batch::HEADER_BYTES], at)?;
            }
            file.sync_data()
        };
        wipe().map_err(|e| LogError::io("clean up the end of", &path, e))
    }
}

pub(crate) fn read_into(data: &mut Vec<u8>, path: &Path) -> Result<(), LogError> {
    data.clear();
    let read = File::open(path).and_then(|mut file| file.read_to_end(data));
    read.map(drop).map_err(|e| LogError::io("read", path, e))
}

/// Hands on the records that are alive, as they lie in the log, after the ids.
fn read_live(
    state: &State,
    salt: u64,
    data: &mut Vec<u8>,
    mut each: impl FnMut(Record),
) -> Result<(), LogError> {
    let live = &state.live;
    each(ids(live));
    for segment in &state.segments {
        if live.usage(segment.number).records == 0 {
            continue;
        }
        read_into(data, &segment.path)?;
        let mut at = SEGMENT_HEADER_BYTES;
        while at < segment.end as usize {
            let changed = "it changes while it is read";
            let damaged = || LogError::damaged(segment.path.clone(), at as u64, changed);
            let (header, payload) = batch::read(&data[at..], salt).ok_or_else(damaged)?;
            for record in batch::records(payload) {
                let (offset, encoded) = record.map_err(|_| damaged())?;
                let place = place(segment.number, at, offset, encoded);
                let unknown =
                    |_| LogError::damaged(segment.path.clone(), at as u64, UNKNOWN_RECORD);
                let record = alive(live, place, encoded).map_err(unknown)?;
                record.into_iter().for_each(&mut each);
            }
            at += header.stride();
        }
    }
    Ok(())
}

/// The ids that were never given out, as a record.
pub(crate) fn ids(live: &Live) -> Record {
    let (next_message, next_queue) = live.next_ids();
    Record::Ids {
        next_message: MessageId(next_message),
        next_queue: QueueId(next_queue),
    }
}

/// The record at `place`, if it is alive; a message for the queues that it is still in.
pub(crate) fn alive(
    live: &Live,
    place: Place,
    encoded: &[u8],
) -> Result<Option<Record>, Malformed> {
    let decoded = || decode(Bytes::copy_from_slice(encoded));
    match fact(encoded)? {
        Fact::Enqueued(id, _) => {
            let Some(remaining) = live.queues_of(id, place) else {
                return Ok(None);
            };
            let mut record = decoded()?;
            if let Record::Enqueued { queues, .. } = &mut record {
                *queues = remaining;
            }
            Ok(Some(record))
        }
        Fact::Declared(topic) if live.keeps(&topic, place) => decoded().map(Some),
        _ => Ok(None),
    }
}

/// Where a record stands among those that are given back.
fn rank(record: &Record) -> (u8, u64) {
    match record {
        Record::ExchangeDeclared { .. } => (1, 0),
        Record::QueueDeclared { queue, .. } => (2, queue.0),
        Record::Bound(_) => (3, 0),
        Record::Enqueued { id, .. } => (4, id.0),
        _ => (0, 0),
    }
}
