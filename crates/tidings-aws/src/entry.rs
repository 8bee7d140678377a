//! A message on its way out: what it is ordered by, what a second copy of it is known by, and which messages go in
//! one call.
//!
//! The message group is the key. A dead letter has a group of its own instead: of a group SQS hands out nothing more
//! while one of its messages is out, and an operator wants to see more than the first ten letters of a key.

use std::{collections::HashMap, time::Duration};

use tidings_core::{Destination, Envelope, MessageId, RECORD_QUEUE, REDRIVE_HEADER, REPLAY_HEADER};

use crate::{
    message::Sent,
    names::{group_of, hash_of},
};

/// How many messages one call takes.
pub(crate) const CALL_MESSAGES_MAX: usize = 10;
/// The group of what has neither key nor id.
const NO_GROUP: &str = "-";
/// What the groups of dead letters begin with.
const LETTER_GROUP: &str = "tidings-letter-";
/// What the names of queues of dead letters end with ([`tidings_core::dead_letter_queue`]).
const LETTERS_SUFFIX: &str = ".dead";

/// A message to be sent.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Which one it is.
    pub(crate) index: usize,
    /// What it is ordered by and known by; nothing for a standard queue.
    pub(crate) ordered: Option<Ordered>,
    pub(crate) sent: Sent,
    pub(crate) delay: Duration,
    /// Whether it is a dead letter.
    pub(crate) is_letter: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ordered {
    pub(crate) group: String,
    pub(crate) duplicate_of: String,
}

impl Ordered {
    /// What a message is ordered by and known by where it goes.
    pub(crate) fn of(destination: &Destination, envelope: &Envelope) -> Self {
        let duplicate_of = duplicate_of(destination, envelope);
        let is_letter = matches!(destination, Destination::Queue(name) if is_of_letters(name));
        let group = match is_letter {
            true => letter_group(&duplicate_of),
            false => group(envelope),
        };
        Self {
            group,
            duplicate_of,
        }
    }

    /// It is no duplicate of another message with its id.
    fn apart(&mut self, by: &str) {
        self.duplicate_of = hash_of(&[&self.duplicate_of, by]);
        if is_letter_group(&self.group) {
            self.group = letter_group(&self.duplicate_of);
        }
    }
}

/// Whether a queue is one of dead letters.
pub(crate) fn is_of_letters(queue: &str) -> bool {
    queue == RECORD_QUEUE || queue.ends_with(LETTERS_SUFFIX)
}

/// The group of a dead letter: its own, so that it holds up no other letter while somebody has it.
pub(crate) fn letter_group(duplicate_of: &str) -> String {
    format!("{LETTER_GROUP}{duplicate_of}")
}

/// Whether a dead letter has a group of its own.
pub(crate) fn is_letter_group(group: &str) -> bool {
    group.starts_with(LETTER_GROUP)
}

impl Entry {
    /// It is to come after a delay.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// It is no duplicate of another message with its id.
    pub(crate) fn apart(mut self, by: &str) -> Self {
        if let Some(ordered) = &mut self.ordered {
            ordered.apart(by);
        }
        self
    }

    pub(crate) fn group(&self) -> Option<&str> {
        self.ordered.as_ref().map(|ordered| &*ordered.group)
    }
}

/// What a message is ordered by.
fn group(envelope: &Envelope) -> String {
    match (&envelope.key, &envelope.id) {
        (Some(key), _) => group_of(key),
        (None, Some(id)) => group_of(id.as_str()),
        (None, None) => NO_GROUP.to_owned(),
    }
}

/// What a second copy of a message is known by within five minutes: the same message to the same place. One that is
/// sent again on purpose (a redrive, a replay) is another.
fn duplicate_of(destination: &Destination, envelope: &Envelope) -> String {
    let Some(id) = envelope.id.as_ref().map(MessageId::as_str) else {
        return uuid::Uuid::new_v4().simple().to_string();
    };
    let (kind, name) = match destination {
        Destination::Topic(name) => ("topic", name),
        Destination::Queue(name) => ("queue", name),
    };
    let again = [REDRIVE_HEADER, REPLAY_HEADER].map(|name| envelope.header(name).unwrap_or("-"));
    hash_of(&[kind, name, id, again[0], again[1]])
}

/// In each round at most one message of each group, in their order.
pub(crate) fn rounds(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut rounds: Vec<Vec<Entry>> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for entry in entries {
        let round = match entry.group() {
            None => 0,
            Some(group) => {
                let next = seen.entry(group.to_owned()).or_default();
                *next += 1;
                *next - 1
            }
        };
        if rounds.len() <= round {
            rounds.resize_with(round + 1, Vec::new);
        }
        rounds[round].push(entry);
    }
    rounds
}

/// As many as one call takes.
pub(crate) fn calls(entries: Vec<Entry>, bytes_max: usize) -> Vec<Vec<Entry>> {
    let mut calls: Vec<Vec<Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let more = entry.sent.bytes();
        match calls.last_mut() {
            Some(call) if call.len() < CALL_MESSAGES_MAX && bytes + more <= bytes_max => {
                bytes += more;
                call.push(entry);
            }
            _ => {
                bytes = more;
                calls.push(vec![entry]);
            }
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: usize, group: &str, bytes: usize) -> Entry {
        Entry {
            index,
            ordered: Some(Ordered {
                group: group.to_owned(),
                duplicate_of: index.to_string(),
            }),
            is_letter: false,
            sent: Sent {
                body: "x".repeat(bytes),
                attributes: Vec::new(),
            },
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_round_has_one_message_of_each_group_and_keeps_their_order() {
        let groups = ["a", "b", "a", "c", "a", "b"];
        let entries = groups.iter().enumerate();
        let entries = entries
            .map(|(index, group)| entry(index, group, 1))
            .collect();
        let rounds: Vec<Vec<usize>> = rounds(entries)
            .iter()
            .map(|round| round.iter().map(|entry| entry.index).collect())
            .collect();
        assert_eq!(rounds, [vec![0, 1, 3], vec![2, 5], vec![4]]);
    }

    #[test]
    fn a_call_is_within_its_limits() {
        let sizes = |entries: Vec<Entry>, bytes_max| -> Vec<usize> {
            let calls = calls(entries, bytes_max);
            calls.iter().map(Vec::len).collect()
        };
        let many = |count: usize, bytes| (0..count).map(|it| entry(it, "g", bytes)).collect();
        assert_eq!(sizes(many(25, 1), 1000), [10, 10, 5]);
        assert_eq!(sizes(many(5, 400), 1000), [2, 2, 1]);
        assert_eq!(sizes(many(2, 1000), 1000), [1, 1]);
    }

    #[test]
    fn the_same_message_to_the_same_place_is_a_duplicate_unless_it_is_sent_again_on_purpose() {
        let topic = Destination::Topic("t".into());
        let mut envelope = Envelope::new("n.v1", "");
        assert_ne!(
            duplicate_of(&topic, &envelope),
            duplicate_of(&topic, &envelope),
            "without an id nobody knows"
        );
        envelope.id = Some("1".into());
        let first = duplicate_of(&topic, &envelope);
        assert_eq!(duplicate_of(&topic, &envelope), first);
        assert_ne!(
            duplicate_of(&Destination::Queue("t".into()), &envelope),
            first
        );
        envelope.headers = vec![(REDRIVE_HEADER.into(), "1".into())];
        let redriven = duplicate_of(&topic, &envelope);
        envelope.headers = vec![(REDRIVE_HEADER.into(), "2".into())];
        assert_ne!(redriven, first);
        assert_ne!(duplicate_of(&topic, &envelope), redriven);
    }

    #[test]
    fn each_dead_letter_has_a_group_of_its_own() {
        let mut envelope = Envelope::new("n.v1", "");
        envelope.id = Some("1".into());
        envelope.key = Some("k".into());
        let of = |queue: &str| Ordered::of(&Destination::Queue(queue.to_owned().into()), &envelope);
        assert_eq!(of("q").group, "k");
        for queue in [&*tidings_core::dead_letter_queue("q"), RECORD_QUEUE] {
            let letter = of(queue);
            assert!(is_letter_group(&letter.group) && letter.group.len() <= 128);
            assert_eq!(of(queue), letter, "sent again, it is the same one");
            let mut other = of(queue);
            other.apart("meant");
            assert!(is_letter_group(&other.group));
            assert_ne!(
                (other.group, other.duplicate_of),
                (letter.group, letter.duplicate_of)
            );
        }
    }
}
