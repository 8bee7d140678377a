//! Channels and consumers: who gets messages, how many at once, and what they have not settled.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::backlog::Entry;
use crate::slab::Key;
use crate::{ConnectionId, QueueId};

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) connection: ConnectionId,
    pub(crate) number: u16,
    /// The connection does not keep up: nothing is delivered.
    pub(crate) paused: bool,
    pub(crate) last_tag: u64,
    /// For consumers to come; 0 is unlimited.
    pub(crate) prefetch: u16,
    /// For the channel as a whole; 0 is unlimited.
    pub(crate) prefetch_global: u16,
    /// Unsettled deliveries to consumers; what was fetched with `basic.get` does not count.
    pub(crate) outstanding: u32,
    pub(crate) unacked: UnackedList,
    pub(crate) consumers: BTreeMap<Bytes, Key>,
    /// The queue declared last, for commands that leave out the name.
    pub(crate) last_queue: Option<Bytes>,
}

impl Channel {
    pub(crate) fn new(connection: ConnectionId, number: u16, paused: bool) -> Self {
        Self {
            connection,
            number,
            paused,
            last_tag: 0,
            prefetch: 0,
            prefetch_global: 0,
            outstanding: 0,
            unacked: UnackedList::default(),
            consumers: BTreeMap::new(),
            last_queue: None,
        }
    }

    pub(crate) fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// Whether a consumer of this channel may have one more delivery now.
    pub(crate) fn has_room_for(&self, consumer: &Consumer) -> bool {
        let below = |count: u32, max: u16| max == 0 || count < u32::from(max);
        let within_limits = below(consumer.unacked, consumer.prefetch)
            && below(self.outstanding, self.prefetch_global);
        !self.paused && (consumer.no_ack || within_limits)
    }
}

#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) channel: Key,
    pub(crate) queue: Key,
    pub(crate) tag: Bytes,
    pub(crate) no_ack: bool,
    pub(crate) priority: i32,
    /// 0 is unlimited.
    pub(crate) prefetch: u16,
    pub(crate) unacked: u32,
    /// Its place among the queue's consumers, in order of arrival.
    pub(crate) arrival: u64,
    /// It stands in the queue's line of consumers that may have room.
    pub(crate) in_line: bool,
}

/// A delivery that is not settled.
#[derive(Debug)]
pub(crate) struct Unacked {
    pub(crate) queue: Key,
    /// The queue may be gone by the time of settlement; the store still wants its id.
    pub(crate) queue_id: QueueId,
    /// Fetched with `basic.get`, it has none.
    pub(crate) consumer: Option<Key>,
    pub(crate) entry: Entry,
}

/// The unsettled deliveries of a channel by delivery tag. Settling in order is a pop; settling out
/// of order leaves a hole, and holes are swept out when they outnumber the rest.
#[derive(Debug, Default)]
pub(crate) struct UnackedList {
    slots: VecDeque<(u64, Option<Unacked>)>,
    live: usize,
}

impl UnackedList {
    pub(crate) const fn len(&self) -> usize {
        self.live
    }

    /// Adds a delivery with a tag larger than all before.
    pub(crate) fn push(&mut self, tag: u64, unacked: Unacked) {
        self.slots.push_back((tag, Some(unacked)));
        self.live += 1;
    }

    /// Takes the delivery `tag`.
    pub(crate) fn take(&mut self, tag: u64) -> Option<Unacked> {
        let at = match self.slots.front() {
            Some((first, _)) if *first == tag => 0,
            _ => self
                .slots
                .binary_search_by_key(&tag, |(tag, _)| *tag)
                .ok()?,
        };
        let taken = self.slots[at].1.take()?;
        self.live -= 1;
        while self
            .slots
            .front()
            .is_some_and(|(_, unacked)| unacked.is_none())
        {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.live + 32 {
            self.slots.retain(|(_, unacked)| unacked.is_some());
        }
        Some(taken)
    }

    /// Whether `tag` is not settled.
    pub(crate) fn contains(&self, tag: u64) -> bool {
        let at = match self.slots.front() {
            Some((first, _)) if *first == tag => Ok(0),
            _ => self.slots.binary_search_by_key(&tag, |(tag, _)| *tag),
        };
        at.is_ok_and(|at| self.slots[at].1.is_some())
    }

    /// Takes the oldest delivery if its tag is at most `tag`.
    pub(crate) fn take_first_through(&mut self, tag: u64) -> Option<Unacked> {
        loop {
            let (first, _) = self.slots.front()?;
            if *first > tag {
                return None;
            }
            if let (_, Some(unacked)) = self.slots.pop_front()? {
                self.live -= 1;
                return Some(unacked);
            }
        }
    }
}
