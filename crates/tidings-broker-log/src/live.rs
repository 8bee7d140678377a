//! What is alive, and where: which records a restart still needs, and in which segments they lie.

mod messages;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hasher;

use tidings_broker_core::{MessageId, QueueId, Queues};

use crate::codec::{Fact, Malformed, Topic, fact};
use messages::Messages;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

/// What of a segment is alive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Live {
    messages: Messages,
    topology: HashMap<Topic, Place>,
    usage: BTreeMap<u64, Usage>,
    bytes: u64,
    next_message: u64,
    next_queue: u64,
}

impl Live {
    /// Takes note of a record that lies at `place`.
    pub(crate) fn apply(&mut self, encoded: &[u8], place: Place) -> Result<(), Malformed> {
        match fact(encoded)? {
            Fact::Enqueued(id, queues) => {
                self.next_message = self.next_message.max(id.0 + 1);
                let before = self.messages.insert(id, place, queues.as_slice());
                self.gain(place);
                before.inspect(|before| self.lose(*before));
            }
            Fact::Declared(topic) => {
                if let Topic::Queue(id) = topic {
                    self.next_queue = self.next_queue.max(id.0 + 1);
                }
                self.gain(place);
                let before = self.topology.insert(topic, place);
                before.inspect(|before| self.lose(*before));
            }
            gone @ (Fact::Removed(..) | Fact::RemovedMany(..) | Fact::Deleted(_)) => {
                self.forget(gone);
            }
            Fact::Ids {
                next_message,
                next_queue,
            } => {
                self.next_message = self.next_message.max(next_message);
                self.next_queue = self.next_queue.max(next_queue);
            }
        }
        Ok(())
    }

    /// Takes note of something that is gone, before its record is written; the record itself then
    /// changes nothing any more.
    pub(crate) fn forget(&mut self, gone: Fact) {
        match gone {
            Fact::Removed(queue, id) => self.remove(queue, id),
            Fact::RemovedMany(queue, ids) => ids.into_iter().for_each(|id| self.remove(queue, id)),
            Fact::Deleted(topic) => {
                let before = self.topology.remove(&topic);
                before.inspect(|before| self.lose(*before));
            }
            Fact::Enqueued(..) | Fact::Declared(_) | Fact::Ids { .. } => {}
        }
    }

    fn remove(&mut self, queue: QueueId, id: MessageId) {
        self.next_message = self.next_message.max(id.0 + 1);
        if let Some(place) = self.messages.remove(id, queue) {
            self.lose(place);
        }
    }

    fn gain(&mut self, place: Place) {
        let usage = self.usage.entry(place.segment).or_default();
        usage.records += 1;
        usage.bytes += u64::from(place.bytes);
        self.bytes += u64::from(place.bytes);
    }

    fn lose(&mut self, place: Place) {
        self.bytes -= u64::from(place.bytes);
        let usage = self
            .usage
            .get_mut(&place.segment)
            .expect("it held a record");
        usage.records -= 1;
        usage.bytes -= u64::from(place.bytes);
        if usage.records == 0 {
            self.usage.remove(&place.segment);
        }
    }

    /// Drops what lies in queues that no longer exist: the messages that were out with consumers
    /// when their queue was deleted.
    pub(crate) fn forget_lost_queues(&mut self) {
        let known = self.known_queues();
        self.forget_queues(|queue| !known.contains(&queue));
    }

    /// The queues that are declared.
    pub(crate) fn known_queues(&self) -> HashSet<QueueId> {
        let known = |topic: &Topic| match topic {
            Topic::Queue(id) => Some(*id),
            _ => None,
        };
        self.topology.keys().filter_map(known).collect()
    }

    /// Drops what lies in these queues.
    pub(crate) fn forget_queues(&mut self, is_gone: impl Fn(QueueId) -> bool) {
        for (queue, id) in self.messages.lost(is_gone) {
            self.remove(queue, id);
        }
    }

    /// Each message: the queues it is in, and the bytes of its record.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&[QueueId], u64)> {
        self.messages.each()
    }

    /// What of a segment is alive.
    pub(crate) fn usage(&self, segment: u64) -> Usage {
        self.usage.get(&segment).copied().unwrap_or_default()
    }

    /// Bytes of all records that are alive.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The lowest ids that were never given out: of messages, of queues.
    pub(crate) const fn next_ids(&self) -> (u64, u64) {
        (self.next_message, self.next_queue)
    }

    /// The queues that the message recorded at `place` is still in, if this record is what keeps it.
    pub(crate) fn queues_of(&self, id: MessageId, place: Place) -> Option<Queues> {
        let (kept, queues) = self.messages.get(id)?;
        (kept == place).then_some(queues)
    }

    /// Where the record of a message lies that is alive.
    pub(crate) fn place_of(&self, id: MessageId) -> Option<Place> {
        self.messages.get(id).map(|(place, _)| place)
    }

    /// How many records are alive.
    pub(crate) fn len(&self) -> usize {
        self.messages.len() + self.topology.len()
    }

    /// Whether the record at `place` is what keeps this part of the topology.
    pub(crate) fn keeps(&self, topic: &Topic, place: Place) -> bool {
        self.topology.get(topic) == Some(&place)
    }
}

/// Ids are given out in order by ourselves: multiplying spreads them well enough.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (id ^ (id >> 32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}
