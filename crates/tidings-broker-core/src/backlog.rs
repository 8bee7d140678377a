//! The messages of a queue that wait for delivery, in order.
//!
//! New messages join at the back and leave at the front. A message that comes back goes to where it
//! was: since ids grow and messages leave from the front, everything that was out is older than
//! everything that never left, so returned messages are a sorted set before the line. No operation
//! grows with the length of the line.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::{Message, MessageId};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: MessageId,
    pub(crate) message: Arc<Message>,
    /// `u64::MAX` is never.
    pub(crate) expires_at: u64,
    /// How often it was delivered and came back.
    pub(crate) returns: u32,
    pub(crate) redelivered: bool,
    /// It is in the store, under this queue.
    pub(crate) stored: bool,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.message.body.len() as u64
    }
}

/// One line for each priority the queue knows; nearly always one.
#[derive(Debug)]
pub(crate) struct Backlog {
    lines: Vec<Line>,
    len: usize,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Line {
    returned: BTreeMap<MessageId, Entry>,
    fresh: VecDeque<Entry>,
}

impl Backlog {
    pub(crate) fn new(priority_max: u8) -> Self {
        let lines = (0..=priority_max).map(|_| Line::default()).collect();
        Self {
            lines,
            len: 0,
            bytes: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the bodies.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn line(&mut self, entry: &Entry) -> &mut Line {
        let last = self.lines.len() - 1;
        &mut self.lines[usize::from(entry.message.priority).min(last)]
    }

    /// Adds the newest message.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.len += 1;
        self.bytes += entry.bytes();
        self.line(&entry).fresh.push_back(entry);
    }

    /// Puts a message that was taken back to where it was.
    pub(crate) fn put_back(&mut self, entry: Entry) {
        self.len += 1;
        self.bytes += entry.bytes();
        self.line(&entry).returned.insert(entry.id, entry);
    }

    /// Adds a message found in a store, wherever its id belongs; again does nothing.
    pub(crate) fn restore(&mut self, entry: Entry) -> bool {
        let bytes = entry.bytes();
        let fresh = &mut self.line(&entry).fresh;
        if fresh.back().is_none_or(|last| last.id < entry.id) {
            fresh.push_back(entry);
        } else {
            match fresh.binary_search_by_key(&entry.id, |waiting| waiting.id) {
                Ok(_) => return false,
                Err(at) => fresh.insert(at, entry),
            }
        }
        self.len += 1;
        self.bytes += bytes;
        true
    }

    /// Takes out a message that was restored.
    pub(crate) fn unrestore(&mut self, id: MessageId) -> bool {
        for line in &mut self.lines {
            if let Ok(at) = line.fresh.binary_search_by_key(&id, |waiting| waiting.id) {
                let entry = line.fresh.remove(at).expect("just found");
                self.len -= 1;
                self.bytes -= entry.bytes();
                return true;
            }
        }
        false
    }

    /// The message to be delivered next.
    pub(crate) fn head(&self) -> Option<&Entry> {
        let heads = self.lines.iter().rev().map(|line| {
            line.returned
                .first_key_value()
                .map(|(_, entry)| entry)
                .or_else(|| line.fresh.front())
        });
        heads.flatten().next()
    }

    /// Takes the message to be delivered next.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        if self.len == 0 {
            return None;
        }
        let take = |line: &mut Line| match line.returned.pop_first() {
            Some((_, entry)) => Some(entry),
            None => line.fresh.pop_front(),
        };
        let entry = self.lines.iter_mut().rev().find_map(take)?;
        self.len -= 1;
        self.bytes -= entry.bytes();
        Some(entry)
    }
}
