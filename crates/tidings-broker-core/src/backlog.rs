//! The messages of a queue that wait for delivery, in order.
//!
//! New messages join at the back and leave at the front. A message that comes back goes to where it
//! was: since ids grow and messages leave from the front, everything that was out is older than
//! everything that never left, so returned messages are a sorted set before the line. No operation
//! grows with the length of the line, which is kept in [pieces](Pieces).

mod pieces;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::pieces::Pieces;

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

/// A message that left without having been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) id: MessageId,
    /// It is in the store, under this queue.
    pub(crate) stored: bool,
}

/// One line for each priority that some message has; nearly always one.
#[derive(Debug)]
pub(crate) struct Backlog {
    priority_max: u8,
    /// Messages of a piece.
    piece: usize,
    /// By priority, ascending. Only the last one may be empty, and only if there is no other: it is
    /// kept for the next message.
    lines: Vec<(u8, Line)>,
    len: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Line {
    returned: BTreeMap<MessageId, Entry>,
    fresh: Pieces,
}

impl Backlog {
    pub(crate) fn new(priority_max: u8, piece: usize) -> Self {
        Self {
            priority_max,
            piece: piece.max(1),
            lines: Vec::new(),
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
        let priority = entry.message.priority.min(self.priority_max);
        if self.len == 0
            && let Some((empty, _)) = self.lines.first_mut()
        {
            *empty = priority;
        }
        let at = match self.lines.binary_search_by_key(&priority, |(it, _)| *it) {
            Ok(at) => at,
            Err(at) => {
                let line = Line {
                    returned: BTreeMap::new(),
                    fresh: Pieces::new(self.piece),
                };
                self.lines.insert(at, (priority, line));
                at
            }
        };
        &mut self.lines[at].1
    }

    /// Adds the newest message.
    pub(crate) fn push(&mut self, entry: Entry) {
        let bytes = entry.bytes();
        self.line(&entry).fresh.push(entry);
        self.len += 1;
        self.bytes += bytes;
    }

    /// Puts a message that was taken back to where it was.
    pub(crate) fn put_back(&mut self, entry: Entry) {
        let bytes = entry.bytes();
        self.line(&entry).returned.insert(entry.id, entry);
        self.len += 1;
        self.bytes += bytes;
    }

    /// Adds a message found in a store, wherever its id belongs; again does nothing.
    pub(crate) fn restore(&mut self, entry: Entry) -> bool {
        let bytes = entry.bytes();
        let is_new = self.line(&entry).fresh.insert(entry);
        if is_new {
            self.len += 1;
            self.bytes += bytes;
        }
        is_new
    }

    /// Takes out a message that was restored.
    pub(crate) fn unrestore(&mut self, id: MessageId) -> bool {
        let found = (0..).zip(&mut self.lines);
        let found = found.map(|(at, (_, line))| (at, line.fresh.remove(id)));
        let Some((at, bytes)) = found.filter_map(|(at, bytes)| Some((at, bytes?))).next() else {
            return false;
        };
        self.took(at, bytes);
        true
    }

    /// When the message to be delivered next expires; `u64::MAX` is never.
    pub(crate) fn head_expires_at(&self) -> Option<u64> {
        let (_, line) = self.lines.last()?;
        match line.returned.first_key_value() {
            Some((_, entry)) => Some(entry.expires_at),
            None => line.fresh.head_expires_at(),
        }
    }

    /// Whether the message to be delivered next has to be brought back first.
    pub(crate) fn is_head_away(&self) -> bool {
        let line = self.lines.last().map(|(_, line)| line);
        line.is_some_and(|line| line.returned.is_empty() && line.fresh.is_head_away())
    }

    /// Takes the message to be delivered next, unless it is away.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let at = self.lines.len().checked_sub(1)?;
        let line = &mut self.lines[at].1;
        let entry = match line.returned.pop_first() {
            Some((_, entry)) => entry,
            None => line.fresh.pop()?,
        };
        self.took(at, entry.bytes());
        Some(entry)
    }

    /// Takes the message that would be delivered next out without looking at it.
    pub(crate) fn drop_head(&mut self) -> Option<Unread> {
        if let Some(entry) = self.pop() {
            return Some(Unread {
                id: entry.id,
                stored: entry.stored,
            });
        }
        let at = self.lines.len().checked_sub(1)?;
        let away = self.lines[at].1.fresh.pop_away()?;
        self.took(at, away.bytes.into());
        Some(Unread {
            id: away.id,
            stored: true,
        })
    }

    /// Sends messages away that others are before, as far as the store has them, until so many bytes
    /// are let go of; tells how many were.
    pub(crate) fn send_away(&mut self, bytes: u64) -> u64 {
        let mut sent = 0;
        for (_, line) in &mut self.lines {
            sent += line.fresh.send_away(bytes.saturating_sub(sent));
        }
        sent
    }

    /// What is to be brought back, if that is to be soon: the ids in their order.
    pub(crate) fn wanted(&self) -> Vec<MessageId> {
        let line = self.lines.last().map(|(_, line)| line);
        line.map_or_else(Vec::new, |line| line.fresh.wanted())
    }

    /// A message that was away is here again; false if it is not waited for.
    pub(crate) fn bring_back(&mut self, id: MessageId, message: Arc<Message>) -> bool {
        let mut lines = self.lines.iter_mut();
        lines.any(|(_, line)| line.fresh.bring_back(id, &message))
    }

    /// Whether a message is here only as something that is away.
    pub(crate) fn is_away(&self, id: MessageId) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|(_, line)| line.fresh.is_away(id))
    }

    /// A message was taken out of a line.
    fn took(&mut self, at: usize, bytes: u64) {
        self.len -= 1;
        self.bytes -= bytes;
        let line = &self.lines[at].1;
        if self.lines.len() > 1 && line.returned.is_empty() && line.fresh.is_empty() {
            self.lines.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 1024;

    fn entry(id: u64, priority: u8) -> Entry {
        let body = vec![0; id as usize % 7];
        let message = Message {
            priority,
            ..Message::new("", "", body)
        };
        Entry {
            id: MessageId(id),
            message: Arc::new(message),
            expires_at: u64::MAX,
            returns: 0,
            redelivered: false,
            stored: true,
        }
    }

    /// Numbers that look random, the same ones each time.
    fn dice(seed: &mut u64, end: u64) -> u64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 29)) % end
    }

    /// The same as a plain list, whatever is done.
    #[test]
    fn it_is_a_list_by_priority_and_id() {
        const PRIORITY_MAX: u8 = 3;
        for round in 0..24 {
            let mut seed = round;
            let priorities = if round % 2 == 0 { 1 } else { 6 };
            let mut backlog = Backlog::new(PRIORITY_MAX, [PIECE, 5][round as usize / 2 % 2]);
            // Of each: its priority, the other way round, and its id.
            let mut model: BTreeMap<(u8, u64), Entry> = BTreeMap::new();
            let mut out: Vec<Entry> = Vec::new();
            let key = |entry: &Entry| {
                let priority = entry.message.priority.min(PRIORITY_MAX);
                (u8::MAX - priority, entry.id.0)
            };
            // What a store has comes before everything else, in any order.
            for _ in 0..5_000 {
                let new = entry(dice(&mut seed, 6_000), dice(&mut seed, priorities) as u8);
                let known = (0..=PRIORITY_MAX).map(|it| (u8::MAX - it, new.id.0));
                let is_known = known.into_iter().any(|it| model.contains_key(&it));
                match dice(&mut seed, 40) {
                    0..10 => {
                        assert_eq!(backlog.unrestore(new.id), is_known);
                        model.retain(|(_, id), _| *id != new.id.0);
                    }
                    10 => drop(backlog.send_away(dice(&mut seed, 100_000))),
                    // One id has one priority.
                    _ if is_known && !model.contains_key(&key(&new)) => {}
                    _ => {
                        model.entry(key(&new)).or_insert_with(|| new.clone());
                        assert_eq!(backlog.restore(new), !is_known);
                    }
                }
            }
            let mut next = 10_000;
            for step in 0..60_000 {
                // It fills, empties, and fills again.
                let fills = (step / 10_000) % 2 == 0;
                match dice(&mut seed, 1_000) {
                    0..50 if !out.is_empty() => {
                        let at = dice(&mut seed, out.len() as u64) as usize;
                        let back = out.swap_remove(at);
                        model.insert(key(&back), back.clone());
                        backlog.put_back(back);
                    }
                    50 => drop(backlog.send_away(dice(&mut seed, 1_000_000))),
                    51..60 => {
                        let dropped = backlog.drop_head().map(|it| it.id.0);
                        assert_eq!(dropped, model.pop_first().map(|((_, id), _)| id));
                    }
                    chance if (chance < 650) == fills => {
                        let new = entry(next, dice(&mut seed, priorities) as u8);
                        next += 1;
                        model.insert(key(&new), new.clone());
                        backlog.push(new);
                    }
                    _ => {
                        if backlog.is_head_away() {
                            fetch(&mut backlog, &model);
                        }
                        let popped = backlog.pop();
                        let first = model.pop_first();
                        assert_eq!(
                            popped.as_ref().map(key),
                            first.as_ref().map(|(key, _)| *key)
                        );
                        let popped = popped.zip(first).map(|(popped, (_, known))| {
                            assert_eq!(popped.message, known.message);
                            popped
                        });
                        out.extend(popped.filter(|_| dice(&mut seed, 3) == 0));
                    }
                }
                assert_eq!(backlog.len(), model.len());
                assert_eq!(backlog.is_empty(), model.is_empty());
            }
            assert_eq!(
                backlog.bytes(),
                model.values().map(Entry::bytes).sum::<u64>()
            );
            while !model.is_empty() {
                if backlog.is_head_away() {
                    fetch(&mut backlog, &model);
                }
                let popped = backlog.pop().expect("it is here");
                assert_eq!(
                    Some(key(&popped)),
                    model.pop_first().map(|(first, _)| first)
                );
            }
            assert!(backlog.is_empty() && backlog.head_expires_at().is_none());
        }
    }

    /// Brings back what is wanted; the model is the store.
    fn fetch(backlog: &mut Backlog, model: &BTreeMap<(u8, u64), Entry>) {
        let wanted = backlog.wanted();
        assert!(!wanted.is_empty() && wanted.len() <= PIECE / 2);
        for id in wanted {
            assert!(backlog.is_away(id));
            let known = model
                .values()
                .find(|entry| entry.id == id)
                .expect("it is stored");
            assert!(backlog.bring_back(id, Arc::clone(&known.message)));
            assert!(!backlog.is_away(id) && !backlog.bring_back(id, Arc::clone(&known.message)));
        }
        assert!(!backlog.is_head_away());
    }

    /// Of a long backlog, its beginning and its end are in memory.
    #[test]
    fn what_is_in_the_middle_goes_away() {
        let mut backlog = Backlog::new(0, PIECE);
        for id in 0..100_000 {
            backlog.push(entry(id, 0));
        }
        let here = |backlog: &Backlog| {
            let lines = backlog.lines.iter();
            lines.map(|(_, line)| line.fresh.here()).sum::<usize>()
        };
        assert_eq!(here(&backlog), 100_000);
        while backlog.send_away(u64::MAX) > 0 {}
        assert!(here(&backlog) <= 2 * PIECE, "{}", here(&backlog));
        assert_eq!((backlog.len(), backlog.wanted().len()), (100_000, 0));
        // It is asked for a while before it is needed.
        for _ in 0..PIECE - PIECE / 4 {
            backlog.pop().expect("it is here");
        }
        assert_eq!(backlog.wanted().first(), Some(&MessageId(PIECE as u64)));
        // What the store does not have stays.
        let mut backlog = Backlog::new(0, PIECE);
        for id in 0..10_000 {
            let stored = id % 5_000 != 0;
            backlog.push(Entry {
                stored,
                ..entry(id, 0)
            });
        }
        while backlog.send_away(u64::MAX) > 0 {}
        assert!(here(&backlog) <= 4 * PIECE);
    }

    /// What a queue once held costs nothing any more, and priorities that nobody uses never did.
    #[test]
    fn an_emptied_line_gives_its_memory_back() {
        let capacity = |backlog: &Backlog| {
            let lines = backlog.lines.iter().map(|(_, line)| line.fresh.capacity());
            (backlog.lines.len(), lines.sum::<usize>())
        };
        let mut backlog = Backlog::new(u8::MAX, PIECE);
        assert_eq!(capacity(&backlog), (0, 0));
        for id in 0..100_000 {
            backlog.push(entry(id, (id % 200) as u8));
        }
        let (lines, full) = capacity(&backlog);
        assert!(lines == 200 && full >= 100_000);
        while backlog.pop().is_some() {}
        let (lines, left) = capacity(&backlog);
        assert!(lines == 1 && left <= PIECE, "{lines} lines for {left}");
    }
}
