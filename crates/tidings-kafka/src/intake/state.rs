//! What an intake holds, behind its lock: nothing here takes longer than a look and a move.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use tidings_core::{Attempt, Envelope, TransportError};

use super::{End, Next, Place, out::Tagged, partition::Partition};

/// How many bodies may wait in memory, in bytes, before fetching pauses.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many more messages than the prefetch may wait in memory before fetching pauses: enough for the time that the
/// commit of a lease takes.
const WAITING_MORE: usize = 2048;

/// A message as it waits or is out.
#[derive(Debug)]
pub(crate) struct Held {
    /// The assignment of its partition.
    pub(super) assignment: u64,
    pub(super) offset: i64,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
    pub(crate) redelivered: bool,
    /// It was sent to the queue by name, not to a topic.
    pub(crate) is_sent: bool,
    /// What it is ordered by among those that wait.
    pub(super) turn: u64,
}

impl Held {
    /// About as much memory as it takes.
    pub(super) fn bytes(&self) -> usize {
        self.envelope.body.len() + 512
    }

    /// What goes to a handler, while this stays.
    fn copy(&self) -> Self {
        Self {
            envelope: Arc::clone(&self.envelope),
            history: self.history.clone(),
            ..*self
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    /// By their assignments, of which each number is used once.
    pub(super) partitions: BTreeMap<u64, Partition>,
    pub(super) assignments: HashMap<Place, u64>,
    /// May be handed out; in their turns.
    ready: VecDeque<Held>,
    /// Handed out: the message, and the stream that has it.
    pub(super) out: Tagged<(Held, u64)>,
    pub(super) streams: BTreeMap<u64, Stream>,
    last_number: u64,
    /// How many wait, with those that wait for a lease, and their bytes.
    waiting: usize,
    waiting_bytes: usize,
    /// Some partition is leaving.
    is_any_leaving: bool,
    /// A stream has found nothing, and has not been told of anything since.
    is_hungry: bool,
    /// The thread waits for room.
    pub(super) wants_room: bool,
    /// Since when there is no stream.
    pub(super) alone_since: Option<Instant>,
    /// Takes no more streams; everything that is out is stale.
    pub(super) is_over: bool,
    pub(super) has_left: bool,
    pub(super) failure: Option<String>,
}

pub(super) struct Stream {
    pub(super) prefetch: usize,
    pub(super) out: usize,
}

impl State {
    /// Without a stream yet.
    pub(super) fn new() -> Self {
        Self {
            alone_since: Some(Instant::now()),
            ..Self::default()
        }
    }

    /// Whether more waits than the `factor`th part of what may.
    pub(super) fn is_full(&self, factor: usize) -> bool {
        let prefetch: usize = self.streams.values().map(|stream| stream.prefetch).sum();
        self.waiting * factor > prefetch + WAITING_MORE
            || self.waiting_bytes * factor > WAITING_BYTES_MAX
    }

    /// Never the same one again.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Whether a stream has to be told that something has changed.
    #[must_use]
    pub(super) fn take_hungry(&mut self) -> bool {
        std::mem::take(&mut self.is_hungry)
    }

    /// A message came, behind all others.
    pub(super) fn put(&mut self, held: Held) {
        let Some(partition) = self.partitions.get_mut(&held.assignment) else {
            return;
        };
        self.waiting += 1;
        self.waiting_bytes += held.bytes();
        if held.offset < partition.lease {
            self.ready.push_back(held);
        } else {
            partition.unleased.push_back(held);
            partition.unleased_since.get_or_insert_with(Instant::now);
        }
    }

    /// These wait for no lease any more.
    pub(super) fn leased(&mut self, leased: impl IntoIterator<Item = Held>) {
        let turns = |ready: &VecDeque<Held>| ready.back().map(|held| held.turn);
        let mut is_in_turn = true;
        for held in leased {
            is_in_turn &= turns(&self.ready).is_none_or(|last| last < held.turn);
            self.ready.push_back(held);
        }
        if !is_in_turn {
            // Two or a few runs, which it merges.
            self.ready.make_contiguous().sort_by_key(|held| held.turn);
        }
    }

    pub(super) fn hand_out(&mut self, stream: u64) -> Next {
        if self.is_over {
            let failure = self.failure.clone().map(TransportError::fatal);
            return Next::Over(failure);
        }
        let Some(Stream { prefetch, out }) = self.streams.get_mut(&stream) else {
            return Next::Over(None);
        };
        let held = match out < prefetch {
            true => Self::take_ready(&mut self.ready, &self.partitions, self.is_any_leaving),
            false => None,
        };
        let Some(held) = held else {
            self.is_hungry = true;
            return Next::Nothing;
        };
        *out += 1;
        self.waiting -= 1;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(held.bytes());
        if let Some(partition) = self.partitions.get_mut(&held.assignment) {
            partition.window.hand_out(held.offset);
        }
        let copy = held.copy();
        Next::Message(self.out.insert((held, stream)), copy)
    }

    /// The first that may be handed out.
    fn take_ready(
        ready: &mut VecDeque<Held>,
        partitions: &BTreeMap<u64, Partition>,
        is_any_leaving: bool,
    ) -> Option<Held> {
        if !is_any_leaving {
            return ready.pop_front();
        }
        let stays = |held: &Held| {
            let partition = partitions.get(&held.assignment);
            partition.is_some_and(|it| !it.is_leaving)
        };
        let at = ready.iter().position(stays)?;
        ready.remove(at)
    }

    /// Ends what is out; false if it is stale.
    pub(super) fn end(&mut self, tag: u64, end: End) -> bool {
        let Some((mut held, stream)) = self.out.remove(tag) else {
            return false;
        };
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.out -= 1;
        }
        match end {
            End::Settled => {
                if let Some(partition) = self.partitions.get_mut(&held.assignment) {
                    partition.window.settle(held.offset);
                }
                return true;
            }
            End::GivenBack => held.redelivered = true,
            End::Later(attempt) => {
                held.redelivered = false;
                held.turn = self.number();
                if let Some(attempt) = attempt {
                    attempt.add_to(&mut held.history);
                    held.failures = held.failures.saturating_add(1);
                }
            }
        }
        self.waiting += 1;
        self.waiting_bytes += held.bytes();
        let at = self.ready.partition_point(|it| it.turn < held.turn);
        self.ready.insert(at, held);
        true
    }

    /// Nothing more of these is handed out.
    pub(super) fn leave(&mut self, places: &HashSet<Place>) -> HashSet<u64> {
        let assignments = places.iter().filter_map(|it| self.assignments.get(it));
        let assignments: HashSet<u64> = assignments.copied().collect();
        for assignment in &assignments {
            if let Some(partition) = self.partitions.get_mut(assignment) {
                partition.is_leaving = true;
                self.is_any_leaving = true;
            }
        }
        assignments
    }

    /// These have gone, and what is out of them is stale.
    pub(super) fn remove(&mut self, places: &HashSet<Place>) {
        let mut gone = HashSet::new();
        for place in places {
            if let Some(assignment) = self.assignments.remove(place) {
                let partition = self.partitions.remove(&assignment);
                for held in partition.into_iter().flat_map(|it| it.unleased) {
                    self.waiting -= 1;
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(held.bytes());
                }
                gone.insert(assignment);
            }
        }
        let (mut count, mut bytes) = (0, 0);
        self.ready.retain(|held| {
            let is_gone = gone.contains(&held.assignment);
            if is_gone {
                count += 1;
                bytes += held.bytes();
            }
            !is_gone
        });
        self.waiting -= count;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        for (_, stream) in self
            .out
            .take_if(|(held, _)| gone.contains(&held.assignment))
        {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.out -= 1;
            }
        }
        self.is_any_leaving = self.partitions.values().any(|it| it.is_leaving);
    }

    pub(super) fn over(&mut self) {
        self.is_over = true;
        self.ready.clear();
        self.partitions
            .values_mut()
            .for_each(|it| it.unleased.clear());
        (self.waiting, self.waiting_bytes) = (0, 0);
        self.out.take_if(|_| true);
    }
}
