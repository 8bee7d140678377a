//! What the parts say to each other, and what is wrong with some of it.
//!
//! What becomes of a message is decided by the seed, its key and its place in its key, and by
//! nothing else: so the supervisor knows without asking what had to happen to it.

use std::fmt;

use tidings::prelude::*;

use crate::random::{self, mix};

/// How many keys the events have.
pub(crate) const KEYS: u64 = 40;

/// The consumer whose instances compete.
pub(crate) const PLAIN: &str = "rig-plain";

/// The consumer that asks for order.
pub(crate) const ORDERED: &str = "rig-ordered";

/// The producing service.
pub(crate) const PRODUCER: &str = "rig-producer";

/// The topic of both types of events. It is one topic because a queue that refuses what one topic
/// brings would else let the other topic's events of the same key pass (docs/rig.md).
pub(crate) const TOPIC: &str = "rig-entry";

/// The topic that has no queue until the end.
pub(crate) const SHELF: &str = "rig-shelf";

/// One of two types of events. This one says itself what identifies it.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(
    name = "entry-noted.v1",
    topic = "rig-entry",
    key = "key",
    id = "number"
)]
pub(crate) struct EntryNoted {
    pub(crate) number: String,
    pub(crate) key: String,
    pub(crate) place: i64,
}

/// The other type; its id is whatever the outbox gives it.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(name = "entry-moved.v1", topic = "rig-entry", key = "key")]
pub(crate) struct EntryMoved {
    pub(crate) number: String,
    pub(crate) key: String,
    pub(crate) place: i64,
}

/// What a consumer answers to each event that it handled.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(name = "entry-answered.v1", topic = "rig-answered", key = "key")]
pub(crate) struct EntryAnswered {
    pub(crate) number: String,
    pub(crate) key: String,
    pub(crate) consumer: String,
}

/// An event that nobody listens to until the end.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(
    name = "entry-shelved.v1",
    topic = "rig-shelf",
    key = "key",
    id = "number"
)]
pub(crate) struct EntryShelved {
    pub(crate) number: String,
    pub(crate) key: String,
}

/// What becomes of a message at one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// It is handled.
    Plain,
    /// It is handled after this many failed deliveries.
    Fails(u32),
    /// It can never be handled.
    Poison,
    /// Its handler aborts the process, each time.
    Aborts,
}

impl Nature {
    /// The nature of the message in this `place` of `key`, at `consumer`.
    pub(crate) fn of(seed: u64, consumer: &str, key: &str, place: i64) -> Self {
        let place = place.unsigned_abs();
        let text = consumer.bytes().chain(key.bytes());
        let hash = text.fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
        let hash = random::part(hash, place);
        // The first of each key fails for long, so that all the others of it queue behind it.
        if place == 1 {
            return Self::Fails(5);
        }
        match hash % 10_000 {
            0..=9 => Self::Aborts,
            10..=79 => Self::Poison,
            80..=499 => Self::Fails(1 + (hash >> 32) as u32 % 3),
            _ => Self::Plain,
        }
    }

    /// True if it ends in the dead letters.
    pub(crate) fn is_deadly(self) -> bool {
        matches!(self, Self::Poison | Self::Aborts)
    }
}

impl fmt::Display for Nature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("is handled"),
            Self::Fails(deliveries) => write!(f, "fails {deliveries} times"),
            Self::Poison => f.write_str("can never be handled"),
            Self::Aborts => f.write_str("aborts its process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nature_of_a_message_is_the_same_each_time_and_all_natures_occur() {
        let natures = |seed| -> Vec<Nature> {
            (1..20_000)
                .map(|place| Nature::of(seed, PLAIN, "k-1", place))
                .collect()
        };
        let of_one = natures(1);
        assert_eq!(of_one, natures(1));
        assert_ne!(of_one, natures(2));
        for wanted in [
            Nature::Plain,
            Nature::Fails(1),
            Nature::Poison,
            Nature::Aborts,
        ] {
            assert!(of_one.contains(&wanted), "{wanted:?}");
        }
    }
}
