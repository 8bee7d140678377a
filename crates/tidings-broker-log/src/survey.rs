//! Looking at a log without opening it: what it holds, what of it cannot be read, and what a start would
//! say. Nothing is written, and no broker can have the folder open meanwhile.
//!
//! A start refuses a log in which anything is missing that had been on stable storage. This reads on
//! behind what is missing, as far as batches are found again ([`scan`]), and knows what follows from
//! what is lost: a message whose queue is not known any more is still there, for a queue that stands
//! in; a binding whose ends are not there is not. What can be read may be [salvaged](Survey::salvage).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidings_broker_core::{BindingEnd, BindingRecord, QueueId, Queues, Record};

use crate::LogError;
use crate::batch;
use crate::codec::{Fact, Topic, fact};
use crate::dir::{Dir, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::live::Live;
use crate::recovery::{alive, place, read_into, rehearse};

mod salvage;
mod scan;

/// A log that is looked at, and kept from being opened as long as this lives.
#[derive(Debug)]
pub struct Survey {
    dir: Dir,
    live: Live,
    segments: Vec<Segment>,
    losses: Vec<Loss>,
    torn: Option<Torn>,
    refusal: Option<LogError>,
    topology: Vec<Record>,
    orphans: Vec<BindingRecord>,
    queues: Vec<QueueContents>,
}

/// A segment, as far as it can be read.
#[derive(Debug)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// The size of the file.
    pub bytes: u64,
    /// Where its last readable batch ends.
    pub end: u64,
    /// How many batches can be read.
    pub batches: u64,
    /// How many of its records are alive.
    pub live_records: u64,
    /// The bytes of those.
    pub live_bytes: u64,
    /// Where batches follow on each other without a gap.
    runs: Vec<Range<usize>>,
}

/// Something that had been on stable storage and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The segment in which it is, or would be.
    pub segment: u64,
    /// From which byte of the segment to which.
    pub bytes: Range<u64>,
    /// What is lost.
    pub lost: Lost,
}

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// All segments from this one to the one with the number `last`: their files are not there.
    Segments {
        /// The last of them.
        last: u64,
    },
    /// The header of the segment: damaged, or that of another one. No message is lost by that.
    Header,
    /// So many batches; each holds at least one record, or none.
    Batches(u64),
    /// One record: its bytes are as they were written, and this version does not understand them.
    Record,
    /// All that is in the segment: nothing tells it from what an earlier use of the file left behind.
    Unproven,
}

/// A write that was not finished. A start cuts it off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The segment in which it is.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// Where it begins.
    pub at: u64,
    /// The file ends within it. A crash does not do that, since files have their size before they are
    /// written to: somebody shortened it, and what was behind is gone.
    pub is_shortened: bool,
}

/// A queue, and what of it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueContents {
    /// Its id.
    pub id: QueueId,
    /// Its name; if its declaration is lost, that of the queue that stands in for it.
    pub name: Bytes,
    /// Whether its declaration is there.
    pub is_declared: bool,
    /// The name that a lost declaration had, if one of its messages tells it.
    pub lost_name: Option<Bytes>,
    /// How many messages it has.
    pub messages: u64,
    /// The bytes of their records.
    pub bytes: u64,
}

/// How far a survey has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It reads one segment after the other to learn what is alive.
    Reading {
        /// How many it has read.
        done: usize,
        /// How many there are.
        of: usize,
    },
    /// It gets what is alive.
    Decoding,
    /// It does what a start would do.
    Rehearsing,
}

impl Survey {
    /// Looks at the log in `dir`, which no process may have open.
    ///
    /// # Errors
    ///
    /// When a process has it open, when there is no log, when it was made by a newer version, when the
    /// file `FORMAT` is damaged, and when files cannot be read. Damage within segments is none.
    pub fn open(dir: &Path, mut progress: impl FnMut(Step)) -> Result<Self, LogError> {
        let mut survey = Self {
            dir: Dir::look(dir)?,
            live: Live::default(),
            segments: Vec::new(),
            losses: Vec::new(),
            torn: None,
            refusal: None,
            topology: Vec::new(),
            orphans: Vec::new(),
            queues: Vec::new(),
        };
        let deleted = survey.scan(&mut progress)?;
        progress(Step::Decoding);
        survey.decode(deleted)?;
        for segment in &mut survey.segments {
            let usage = survey.live.usage(segment.number);
            (segment.live_records, segment.live_bytes) = (usage.records, usage.bytes);
        }
        progress(Step::Rehearsing);
        match rehearse(&survey.dir) {
            Ok(()) => {}
            Err(error) if error.is_damaged() => survey.refusal = Some(error),
            Err(error) => return Err(error),
        }
        Ok(survey)
    }

    /// The version of the log's format.
    pub const fn format(&self) -> u32 {
        self.dir.version
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What cannot be read, oldest first.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// The write that was not finished, if there is one.
    pub const fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// What [`Log::open`](crate::Log::open) would say, if it would refuse this log.
    pub const fn refusal(&self) -> Option<&LogError> {
        self.refusal.as_ref()
    }

    /// The exchanges and bindings that are there.
    pub fn topology(&self) -> impl Iterator<Item = &Record> {
        self.topology
            .iter()
            .filter(|record| !matches!(record, Record::QueueDeclared { .. }))
    }

    /// The bindings that can be read although an end of them is lost.
    pub fn orphans(&self) -> &[BindingRecord] {
        &self.orphans
    }

    /// The queues with what is in them, by their ids.
    pub fn queues(&self) -> &[QueueContents] {
        &self.queues
    }

    /// How many messages can be read; one that is in several queues counts once.
    pub fn messages(&self) -> usize {
        self.live.messages().count()
    }

    /// Reads all segments, damaged as they may be. Gives the queues that were deleted.
    fn scan(&mut self, progress: &mut impl FnMut(Step)) -> Result<HashSet<QueueId>, LogError> {
        let mut deleted = HashSet::new();
        let listed = self.dir.segments()?;
        let starts = scan::starts(&listed, self.dir.salt)?;
        // The sequence number of the next batch, and the number of the segment before.
        let mut expected = None;
        let mut before: Option<u64> = None;
        let mut data = Vec::new();
        for (index, (number, path)) in listed.iter().enumerate() {
            progress(Step::Reading {
                done: index,
                of: listed.len(),
            });
            let number = *number;
            if let Some(before) = before
                && number > before + 1
            {
                let last = number - 1;
                self.lose(before + 1, 0..0, Lost::Segments { last });
            }
            before = Some(number);
            read_into(&mut data, path)?;
            let header = SegmentHeader::decode(&data, self.dir.salt);
            if header.is_none_or(|header| header.number != number) {
                let header = 0..SEGMENT_HEADER_BYTES.min(data.len());
                self.lose(number, header, Lost::Header);
            }
            let next = listed.get(index + 1);
            let bounds = scan::Bounds {
                first: expected.max(starts[index]),
                // Of one that is missing nobody knows where it began.
                next: next
                    .filter(|next| next.0 == number + 1)
                    .and(starts.get(index + 1).copied().flatten()),
                is_last: next.is_none(),
            };
            let found = scan::read(&data, self.dir.salt, bounds);
            expected = found.next.or(expected);
            for (bytes, lost) in found.losses {
                self.lose(number, bytes, lost);
            }
            for run in &found.runs {
                self.learn(&data, number, run.clone(), &mut deleted);
            }
            self.torn = found.torn.map(|torn| Torn {
                segment: number,
                path: path.clone(),
                at: torn.at as u64,
                is_shortened: torn.is_shortened,
            });
            self.segments.push(Segment {
                number,
                path: path.clone(),
                bytes: data.len() as u64,
                end: found.runs.last().map_or(0, |run| run.end) as u64,
                batches: found.batches,
                live_records: 0,
                live_bytes: 0,
                runs: found.runs,
            });
        }
        Ok(deleted)
    }

    fn lose(&mut self, segment: u64, bytes: Range<usize>, lost: Lost) {
        let bytes = bytes.start as u64..bytes.end as u64;
        self.losses.push(Loss {
            segment,
            bytes,
            lost,
        });
    }

    /// Takes note of the records of batches that follow on each other.
    fn learn(
        &mut self,
        data: &[u8],
        segment: u64,
        run: Range<usize>,
        deleted: &mut HashSet<QueueId>,
    ) {
        for (at, payload) in scan::payloads(data, run, self.dir.salt) {
            for record in batch::records(payload) {
                let start = at + batch::HEADER_BYTES;
                let Ok((offset, encoded)) = record else {
                    self.lose(segment, start..start + payload.len(), Lost::Record);
                    continue;
                };
                if let Ok(Fact::Deleted(Topic::Queue(queue))) = fact(encoded) {
                    deleted.insert(queue);
                }
                let place = place(segment, at, offset, encoded);
                if self.live.apply(encoded, place).is_err() {
                    let bytes = start + offset..start + offset + encoded.len();
                    self.lose(segment, bytes, Lost::Record);
                }
            }
        }
    }

    /// Gets what is alive: the topology itself, of messages only their number and size. What lies in
    /// queues that were deleted is not.
    fn decode(&mut self, mut deleted: HashSet<QueueId>) -> Result<(), LogError> {
        let mut unknown = Vec::new();
        let mut topology = Vec::new();
        let mut told = HashMap::new();
        self.for_each_live(|segment, bytes, record| {
            match record {
                Err(fact) => unknown.push((segment, bytes, fact)),
                Ok(record @ Record::Enqueued { .. }) => note_name(&record, &mut told),
                Ok(record) => topology.push(record),
            }
            Ok::<(), LogError>(())
        })?;
        for (segment, range, fact) in unknown {
            self.lose(segment, range, Lost::Record);
            self.forget(fact);
        }
        self.losses
            .sort_by_key(|loss| (loss.segment, loss.bytes.start));
        for queue in superseded(&topology) {
            self.live.forget(Fact::Deleted(Topic::Queue(queue)));
            deleted.insert(queue);
        }
        let is_deleted = |record: &Record| match record {
            Record::QueueDeclared { queue, .. } => deleted.contains(queue),
            _ => false,
        };
        topology.retain(|record| !is_deleted(record));
        match self.losses.is_empty() {
            // As a start does it: each queue that is not known was deleted.
            true => self.live.forget_lost_queues(),
            false => self.live.forget_queues(|queue| deleted.contains(&queue)),
        }
        self.topology = topology;
        self.set_orphans_aside();
        self.count_queues(&told);
        Ok(())
    }

    /// Does away with what a record says that is alive and that nobody can understand.
    fn forget(&mut self, fact: Fact) {
        match fact {
            Fact::Enqueued(id, queues) => {
                for queue in queues.as_slice() {
                    self.live.forget(Fact::Removed(*queue, id));
                }
            }
            Fact::Declared(topic) => self.live.forget(Fact::Deleted(topic)),
            _ => {}
        }
    }

    /// Hands on what is alive, as it lies in the log: the segment, the bytes in it, and the record; or what
    /// kind of record it is, if it cannot be understood.
    fn for_each_live<E: From<LogError>>(
        &self,
        mut each: impl FnMut(u64, Range<usize>, Result<Record, Fact>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = Vec::new();
        for segment in &self.segments {
            if self.live.usage(segment.number).records == 0 {
                continue;
            }
            read_into(&mut data, &segment.path)?;
            for run in &segment.runs {
                for (at, payload) in scan::payloads(&data, run.clone(), self.dir.salt) {
                    for (offset, encoded) in batch::records(payload).flatten() {
                        let start = at + batch::HEADER_BYTES + offset;
                        let place = place(segment.number, at, offset, encoded);
                        let record = match alive(&self.live, place, encoded) {
                            Ok(None) => continue,
                            Ok(Some(record)) => Ok(record),
                            Err(_) => match fact(encoded) {
                                Ok(fact) => Err(fact),
                                // It was listed when it was first read.
                                Err(_) => continue,
                            },
                        };
                        each(segment.number, start..start + encoded.len(), record)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes the bindings out of the topology that a broker could not make.
    fn set_orphans_aside(&mut self) {
        let queues = self.live.known_queues();
        let name = |record: &Record| match record {
            Record::ExchangeDeclared { name, .. } => Some(name.clone()),
            _ => None,
        };
        let exchanges: HashSet<Bytes> = self.topology.iter().filter_map(name).collect();
        // Those that every broker has are not declared, and nobody else may use their names.
        let has = |name: &Bytes| name.starts_with(b"amq.") || exchanges.contains(name);
        let (mut kept, mut orphans) = (Vec::new(), Vec::new());
        for record in self.topology.drain(..) {
            match record {
                Record::Bound(binding) => {
                    let has_end = match &binding.destination {
                        BindingEnd::Queue(queue) => queues.contains(queue),
                        BindingEnd::Exchange(name) => has(name),
                    };
                    match has_end && has(&binding.source) {
                        true => kept.push(Record::Bound(binding)),
                        false => orphans.push(binding),
                    }
                }
                other => kept.push(other),
            }
        }
        (self.topology, self.orphans) = (kept, orphans);
    }

    fn count_queues(&mut self, told: &HashMap<QueueId, Bytes>) {
        let mut queues: BTreeMap<QueueId, QueueContents> = BTreeMap::new();
        let mut names = HashSet::new();
        for record in &self.topology {
            if let Record::QueueDeclared { queue, name, .. } = record {
                names.insert(name.clone());
                let contents = QueueContents {
                    id: *queue,
                    name: name.clone(),
                    is_declared: true,
                    lost_name: None,
                    messages: 0,
                    bytes: 0,
                };
                queues.insert(*queue, contents);
            }
        }
        for (ids, bytes) in self.live.messages() {
            for id in ids {
                let contents = queues.entry(*id).or_insert_with(|| QueueContents {
                    id: *id,
                    name: stand_in(*id, &names),
                    is_declared: false,
                    lost_name: told.get(id).cloned(),
                    messages: 0,
                    bytes: 0,
                });
                contents.messages += 1;
                contents.bytes += bytes;
            }
        }
        self.queues = queues.into_values().collect();
    }
}

/// Of queues with the same name, all but the newest. They were deleted before that one was declared, even
/// if the record that says so is lost.
fn superseded(topology: &[Record]) -> Vec<QueueId> {
    let mut newest: HashMap<&Bytes, QueueId> = HashMap::new();
    let mut superseded = Vec::new();
    for record in topology {
        if let Record::QueueDeclared { queue, name, .. } = record {
            let known = newest.entry(name).or_insert(*queue);
            if *known != *queue {
                superseded.push((*known).min(*queue));
                *known = (*known).max(*queue);
            }
        }
    }
    superseded
}

/// The name of the queue that stands in for one whose declaration is lost.
fn stand_in(queue: QueueId, names: &HashSet<Bytes>) -> Bytes {
    let mut name = format!("salvaged-queue-{}", queue.0);
    while names.contains(name.as_bytes()) {
        name.push('-');
    }
    name.into()
}

/// What was published to the default exchange, with one routing key, went to the queue of that name.
fn note_name(record: &Record, told: &mut HashMap<QueueId, Bytes>) {
    if let Record::Enqueued {
        queues: Queues::One(queue),
        message,
        ..
    } = record
        && message.exchange.is_empty()
        && message.cc.is_empty()
        && !told.contains_key(queue)
    {
        // Not a slice of the record, which would be kept with it.
        told.insert(*queue, Bytes::copy_from_slice(&message.routing_key));
    }
}

#[cfg(test)]
mod tests;
