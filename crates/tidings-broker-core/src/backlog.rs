//! The messages of a queue that wait for delivery, in order.
//!
//! New messages join at the back and leave at the front. A message that comes back goes to where it
//! was: since ids grow and messages leave from the front, everything that was out is older than
//! everything that never left, so returned messages are a sorted set before the line. No operation
//! grows with the length of the line: it is cut into pieces, so that it never moves as a whole, and
//! gives its memory back piece by piece.
//!
//! A piece in the middle may be away: then only the store has its messages, and here stand their ids,
//! sizes and ends. It is brought back before its turn comes.

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

/// A message that only the store has.
#[derive(Debug, Clone, Copy)]
struct Away {
    id: MessageId,
    expires_at: u64,
    bytes: u32,
    redelivered: bool,
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

/// A piece has so many bytes of bodies at most, and one message more; so many are brought back at once.
const PIECE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
enum Piece {
    Here(Here),
    Away(VecDeque<Away>),
}

#[derive(Debug, Default)]
struct Here {
    entries: VecDeque<Entry>,
    bytes: u64,
}

impl Here {
    fn is_full(&self, piece: usize) -> bool {
        self.entries.len() >= piece || self.bytes >= PIECE_BYTES
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }
}

impl Piece {
    fn is_empty(&self) -> bool {
        match self {
            Self::Here(here) => here.entries.is_empty(),
            Self::Away(away) => away.is_empty(),
        }
    }

    fn last_id(&self) -> Option<MessageId> {
        match self {
            Self::Here(here) => here.entries.back().map(|entry| entry.id),
            Self::Away(away) => away.back().map(|away| away.id),
        }
    }
}

/// A line by ids, ascending, in pieces of which none is empty.
#[derive(Debug)]
struct Pieces {
    /// How many messages a piece has at most. Of half as many the store is asked at once, and when a
    /// quarter is left before them.
    piece: usize,
    pieces: VecDeque<Piece>,
    /// The memory of a piece, for the next one: a line that is emptied again and again takes none.
    spare: VecDeque<Entry>,
}

impl Pieces {
    const fn new(piece: usize) -> Self {
        Self {
            piece,
            pieces: VecDeque::new(),
            spare: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn head_expires_at(&self) -> Option<u64> {
        match self.pieces.front()? {
            Piece::Here(here) => here.entries.front().map(|entry| entry.expires_at),
            Piece::Away(away) => away.front().map(|away| away.expires_at),
        }
    }

    fn is_head_away(&self) -> bool {
        matches!(self.pieces.front(), Some(Piece::Away(_)))
    }

    /// Adds an entry behind all others.
    fn push(&mut self, entry: Entry) {
        let is_first = self.pieces.is_empty();
        match self.pieces.back_mut() {
            Some(Piece::Here(last)) if !last.is_full(self.piece) => last.push(entry),
            _ => {
                let mut piece = Here {
                    entries: std::mem::take(&mut self.spare),
                    bytes: 0,
                };
                if !is_first {
                    // A line that has filled a piece will fill another.
                    piece.entries.reserve(self.piece);
                }
                piece.push(entry);
                self.pieces.push_back(Piece::Here(piece));
            }
        }
    }

    /// Takes the first, if it is here.
    fn pop(&mut self) -> Option<Entry> {
        let Piece::Here(first) = self.pieces.front_mut()? else {
            return None;
        };
        let entry = first.entries.pop_front()?;
        first.bytes -= entry.bytes();
        if first.entries.is_empty() {
            self.spare = std::mem::take(&mut first.entries);
            self.pieces.pop_front();
        }
        Some(entry)
    }

    /// Takes the first, if it is away.
    fn pop_away(&mut self) -> Option<Away> {
        let Piece::Away(first) = self.pieces.front_mut()? else {
            return None;
        };
        let away = first.pop_front();
        if first.is_empty() {
            self.pieces.pop_front();
        }
        away
    }

    /// The piece in which an id is, or would be; none if it is behind all.
    fn piece_of(&self, id: MessageId) -> Option<usize> {
        let before = |piece: &Piece| piece.last_id().is_some_and(|last| last < id);
        let at = self.pieces.partition_point(before);
        (at < self.pieces.len()).then_some(at)
    }

    /// Adds an entry where its id belongs; false if it is there already.
    fn insert(&mut self, entry: Entry) -> bool {
        let Some(at) = self.piece_of(entry.id) else {
            self.push(entry);
            return true;
        };
        match &mut self.pieces[at] {
            Piece::Here(here) => {
                let found = here.entries.binary_search_by_key(&entry.id, |it| it.id);
                let Err(place) = found else {
                    return false;
                };
                here.bytes += entry.bytes();
                here.entries.insert(place, entry);
                if here.entries.len() > 2 * self.piece {
                    let entries = here.entries.split_off(self.piece);
                    let bytes = entries.iter().map(Entry::bytes).sum();
                    here.bytes -= bytes;
                    let rest = Piece::Here(Here { entries, bytes });
                    self.pieces.insert(at + 1, rest);
                }
            }
            Piece::Away(away) => {
                let found = away.binary_search_by_key(&entry.id, |it| it.id);
                let Err(place) = found else {
                    return false;
                };
                // Between others that only the store has; it has this one as well.
                away.insert(place, away_of(&entry));
            }
        }
        true
    }

    /// Takes one out, wherever it is; gives its bytes.
    fn remove(&mut self, id: MessageId) -> Option<u64> {
        let at = self.piece_of(id)?;
        let piece = &mut self.pieces[at];
        let bytes = match piece {
            Piece::Here(here) => {
                let found = here.entries.binary_search_by_key(&id, |it| it.id);
                let bytes = here.entries.remove(found.ok()?)?.bytes();
                here.bytes -= bytes;
                bytes
            }
            Piece::Away(away) => {
                let found = away.binary_search_by_key(&id, |it| it.id);
                away.remove(found.ok()?)?.bytes.into()
            }
        };
        if piece.is_empty() {
            self.pieces.remove(at);
        }
        Some(bytes)
    }

    /// Sends full pieces away, those first whose turn comes last. The first piece stays, and the last,
    /// which is not full. (It looks at each piece, some thousands for millions of messages; so it is to
    /// be called once for many messages.)
    fn send_away(&mut self, bytes: u64) -> u64 {
        let mut sent = 0;
        let middle = 1..self.pieces.len().saturating_sub(1);
        for at in middle.rev() {
            if sent >= bytes {
                break;
            }
            let piece = &mut self.pieces[at];
            let Piece::Here(here) = piece else {
                continue;
            };
            let fits = |entry: &Entry| entry.stored && u32::try_from(entry.bytes()).is_ok();
            if here.entries.iter().all(fits) {
                sent += here.bytes + here.entries.len() as u64;
                *piece = Piece::Away(here.entries.iter().map(away_of).collect());
            }
        }
        sent
    }

    /// The first that are away, if they are next or soon will be.
    fn wanted(&self) -> Vec<MessageId> {
        let away = match self.pieces.front() {
            Some(Piece::Here(here)) if here.entries.len() <= self.piece / 4 => self.pieces.get(1),
            first => first,
        };
        let Some(Piece::Away(away)) = away else {
            return Vec::new();
        };
        let mut bytes = 0;
        let mut wanted = Vec::new();
        for it in away.iter().take(self.piece.div_ceil(2)) {
            bytes += u64::from(it.bytes);
            if bytes > PIECE_BYTES && !wanted.is_empty() {
                break;
            }
            wanted.push(it.id);
        }
        wanted
    }

    /// The first piece that is away, and where it is: one of the first two, if it is wanted.
    fn first_away(&mut self) -> Option<(usize, &mut VecDeque<Away>)> {
        let pieces = self.pieces.iter_mut().take(2).enumerate();
        let mut away = pieces.filter_map(|(at, piece)| match piece {
            Piece::Here(_) => None,
            Piece::Away(away) => Some((at, away)),
        });
        away.next()
    }

    fn bring_back(&mut self, id: MessageId, message: &Arc<Message>) -> bool {
        let Some((at, away)) = self.first_away() else {
            return false;
        };
        if away.front().is_none_or(|first| first.id != id) {
            return false;
        }
        let Some(first) = away.pop_front() else {
            return false;
        };
        if away.is_empty() {
            self.pieces.remove(at);
        }
        let entry = Entry {
            id,
            message: Arc::clone(message),
            expires_at: first.expires_at,
            returns: 0,
            redelivered: first.redelivered,
            stored: true,
        };
        match at
            .checked_sub(1)
            .and_then(|before| self.pieces.get_mut(before))
        {
            Some(Piece::Here(here)) => here.push(entry),
            _ => {
                let mut here = Here::default();
                here.push(entry);
                self.pieces.insert(at, Piece::Here(here));
            }
        }
        true
    }

    fn is_away(&self, id: MessageId) -> bool {
        let piece = self.piece_of(id).and_then(|at| self.pieces.get(at));
        match piece {
            Some(Piece::Away(away)) => away.binary_search_by_key(&id, |it| it.id).is_ok(),
            _ => false,
        }
    }
}

fn away_of(entry: &Entry) -> Away {
    Away {
        id: entry.id,
        expires_at: entry.expires_at,
        // Larger ones are not sent away.
        bytes: entry.bytes() as u32,
        redelivered: entry.redelivered,
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
            let pieces = backlog
                .lines
                .iter()
                .flat_map(|(_, line)| &line.fresh.pieces);
            let here = pieces.map(|piece| match piece {
                Piece::Here(here) => here.entries.len(),
                Piece::Away(_) => 0,
            });
            here.sum::<usize>()
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
            let lines = backlog.lines.iter().map(|(_, line)| {
                let pieces = line.fresh.pieces.iter().map(|piece| match piece {
                    Piece::Here(here) => here.entries.capacity(),
                    Piece::Away(away) => away.capacity(),
                });
                pieces.sum::<usize>() + line.fresh.spare.capacity()
            });
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
