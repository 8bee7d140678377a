//! The messages of a queue that wait for delivery, in order.
//!
//! New messages join at the back and leave at the front. A message that comes back goes to where it
//! was: since ids grow and messages leave from the front, everything that was out is older than
//! everything that never left, so returned messages are a sorted set before the line. No operation
//! grows with the length of the line: it is cut into pieces, so that it never moves as a whole, and
//! gives its memory back piece by piece.

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

/// One line for each priority that some message has; nearly always one.
#[derive(Debug)]
pub(crate) struct Backlog {
    priority_max: u8,
    /// By priority, ascending. Only the last one may be empty, and only if there is no other: it is
    /// kept for the next message.
    lines: Vec<(u8, Line)>,
    len: usize,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Line {
    returned: BTreeMap<MessageId, Entry>,
    fresh: Pieces,
}

impl Backlog {
    pub(crate) const fn new(priority_max: u8) -> Self {
        Self {
            priority_max,
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
                self.lines.insert(at, (priority, Line::default()));
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
        let Some((at, entry)) = found.filter_map(|(at, entry)| Some((at, entry?))).next() else {
            return false;
        };
        self.took(at, &entry);
        true
    }

    /// The message to be delivered next.
    pub(crate) fn head(&self) -> Option<&Entry> {
        let (_, line) = self.lines.last()?;
        match line.returned.first_key_value() {
            Some((_, entry)) => Some(entry),
            None => line.fresh.front(),
        }
    }

    /// Takes the message to be delivered next.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let at = self.lines.len().checked_sub(1)?;
        let line = &mut self.lines[at].1;
        let entry = match line.returned.pop_first() {
            Some((_, entry)) => entry,
            None => line.fresh.pop()?,
        };
        self.took(at, &entry);
        Some(entry)
    }

    /// A message was taken out of a line.
    fn took(&mut self, at: usize, entry: &Entry) {
        self.len -= 1;
        self.bytes -= entry.bytes();
        let line = &self.lines[at].1;
        if self.lines.len() > 1 && line.returned.is_empty() && line.fresh.is_empty() {
            self.lines.remove(at);
        }
    }
}

/// Messages in a piece of a line.
const PIECE: usize = 1024;

/// A line by ids, ascending, in pieces of which none is empty.
#[derive(Debug, Default)]
struct Pieces {
    pieces: VecDeque<VecDeque<Entry>>,
    /// The memory of a piece, for the next one: a line that is emptied again and again takes none.
    spare: VecDeque<Entry>,
}

impl Pieces {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn front(&self) -> Option<&Entry> {
        self.pieces.front()?.front()
    }

    /// Adds an entry behind all others.
    fn push(&mut self, entry: Entry) {
        match self.pieces.back_mut() {
            Some(last) if last.len() < PIECE => last.push_back(entry),
            last => {
                // A line that has filled a piece will fill another.
                let room = if last.is_some() { PIECE } else { 1 };
                let mut piece = std::mem::take(&mut self.spare);
                piece.reserve(room);
                piece.push_back(entry);
                self.pieces.push_back(piece);
            }
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let first = self.pieces.front_mut()?;
        let entry = first.pop_front();
        if first.is_empty() {
            self.spare = self.pieces.pop_front().unwrap_or_default();
        }
        entry
    }

    /// The piece in which an id is, or would be; none if it is behind all.
    fn piece_of(&self, id: MessageId) -> Option<usize> {
        let before = |piece: &VecDeque<Entry>| piece.back().is_some_and(|last| last.id < id);
        let at = self.pieces.partition_point(before);
        (at < self.pieces.len()).then_some(at)
    }

    /// Adds an entry where its id belongs; false if it is there already.
    fn insert(&mut self, entry: Entry) -> bool {
        let Some(at) = self.piece_of(entry.id) else {
            self.push(entry);
            return true;
        };
        let piece = &mut self.pieces[at];
        match piece.binary_search_by_key(&entry.id, |waiting| waiting.id) {
            Ok(_) => return false,
            Err(place) => piece.insert(place, entry),
        }
        if piece.len() > 2 * PIECE {
            let rest = piece.split_off(PIECE);
            self.pieces.insert(at + 1, rest);
        }
        true
    }

    fn remove(&mut self, id: MessageId) -> Option<Entry> {
        let at = self.piece_of(id)?;
        let piece = &mut self.pieces[at];
        let place = piece.binary_search_by_key(&id, |waiting| waiting.id).ok()?;
        let entry = piece.remove(place);
        if piece.is_empty() {
            self.pieces.remove(at);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for round in 0..12 {
            let mut seed = round;
            let priorities = if round % 2 == 0 { 1 } else { 6 };
            let mut backlog = Backlog::new(PRIORITY_MAX);
            // Of each: its priority, the other way round, and its id.
            let mut model: BTreeMap<(u8, u64), u64> = BTreeMap::new();
            let mut out: Vec<Entry> = Vec::new();
            let key = |entry: &Entry| {
                let priority = entry.message.priority.min(PRIORITY_MAX);
                (u8::MAX - priority, entry.id.0)
            };
            // What a store has comes before everything else, in any order.
            for _ in 0..3_000 {
                let new = entry(dice(&mut seed, 4_000), dice(&mut seed, priorities) as u8);
                let known = (0..=PRIORITY_MAX).map(|it| (u8::MAX - it, new.id.0));
                let is_known = known.into_iter().any(|it| model.contains_key(&it));
                match dice(&mut seed, 4) {
                    0 => {
                        assert_eq!(backlog.unrestore(new.id), is_known);
                        model.retain(|(_, id), _| *id != new.id.0);
                    }
                    // One id has one priority.
                    _ if is_known && !model.contains_key(&key(&new)) => {}
                    _ => {
                        model.insert(key(&new), new.bytes());
                        assert_eq!(backlog.restore(new), !is_known);
                    }
                }
            }
            let mut next = 10_000;
            for step in 0..60_000 {
                // It fills, empties, and fills again.
                let fills = (step / 10_000) % 2 == 0;
                match dice(&mut seed, 10) {
                    0 if !out.is_empty() => {
                        let at = dice(&mut seed, out.len() as u64) as usize;
                        let back = out.swap_remove(at);
                        model.insert(key(&back), back.bytes());
                        backlog.put_back(back);
                    }
                    chance if (chance < 7) == fills => {
                        let new = entry(next, dice(&mut seed, priorities) as u8);
                        next += 1;
                        model.insert(key(&new), new.bytes());
                        backlog.push(new);
                    }
                    _ => {
                        let head = backlog.head().map(key);
                        let popped = backlog.pop();
                        let first = model.pop_first().map(|(first, _)| first);
                        assert_eq!((head, popped.as_ref().map(key)), (first, first));
                        out.extend(popped.filter(|_| dice(&mut seed, 3) == 0));
                    }
                }
                assert_eq!(backlog.len(), model.len());
                assert_eq!(backlog.is_empty(), model.is_empty());
            }
            assert_eq!(backlog.bytes(), model.values().sum::<u64>());
            while let Some(entry) = backlog.pop() {
                assert_eq!(Some(key(&entry)), model.pop_first().map(|(first, _)| first));
            }
            assert!(model.is_empty() && backlog.head().is_none());
        }
    }

    /// What a queue once held costs nothing any more, and priorities that nobody uses never did.
    #[test]
    fn an_emptied_line_gives_its_memory_back() {
        let capacity = |backlog: &Backlog| {
            let lines = backlog.lines.iter().map(|(_, line)| {
                let pieces = line.fresh.pieces.iter().map(VecDeque::capacity);
                pieces.sum::<usize>() + line.fresh.spare.capacity()
            });
            (backlog.lines.len(), lines.sum::<usize>())
        };
        let mut backlog = Backlog::new(u8::MAX);
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
