//! A line of messages in pieces, so that it never moves as a whole, and gives its memory back piece by
//! piece.
//!
//! A piece in the middle may be away: then only the store has its messages, and here stand their ids,
//! sizes and ends. It is brought back before its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Entry;
use crate::{Message, MessageId};

/// A message that only the store has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    pub(super) id: MessageId,
    expires_at: u64,
    pub(super) bytes: u32,
    redelivered: bool,
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
pub(super) struct Pieces {
    /// How many messages a piece has at most. Of half as many the store is asked at once, and when a
    /// quarter is left before them.
    piece: usize,
    pieces: VecDeque<Piece>,
    /// The memory of a piece, for the next one: a line that is emptied again and again takes none.
    spare: VecDeque<Entry>,
}

impl Pieces {
    pub(super) const fn new(piece: usize) -> Self {
        Self {
            piece,
            pieces: VecDeque::new(),
            spare: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn head_expires_at(&self) -> Option<u64> {
        match self.pieces.front()? {
            Piece::Here(here) => here.entries.front().map(|entry| entry.expires_at),
            Piece::Away(away) => away.front().map(|away| away.expires_at),
        }
    }

    pub(super) fn is_head_away(&self) -> bool {
        matches!(self.pieces.front(), Some(Piece::Away(_)))
    }

    /// Adds an entry behind all others.
    pub(super) fn push(&mut self, entry: Entry) {
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
    pub(super) fn pop(&mut self) -> Option<Entry> {
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
    pub(super) fn pop_away(&mut self) -> Option<Away> {
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
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
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
    pub(super) fn remove(&mut self, id: MessageId) -> Option<u64> {
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
    pub(super) fn send_away(&mut self, bytes: u64) -> u64 {
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
    pub(super) fn wanted(&self) -> Vec<MessageId> {
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

    pub(super) fn bring_back(&mut self, id: MessageId, message: &Arc<Message>) -> bool {
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

    pub(super) fn is_away(&self, id: MessageId) -> bool {
        let piece = self.piece_of(id).and_then(|at| self.pieces.get(at));
        match piece {
            Some(Piece::Away(away)) => away.binary_search_by_key(&id, |it| it.id).is_ok(),
            _ => false,
        }
    }
}

#[cfg(test)]
impl Pieces {
    /// How many messages are in memory.
    pub(super) fn here(&self) -> usize {
        let here = self.pieces.iter().map(|piece| match piece {
            Piece::Here(here) => here.entries.len(),
            Piece::Away(_) => 0,
        });
        here.sum()
    }

    /// For how many messages there is memory.
    pub(super) fn capacity(&self) -> usize {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Here(here) => here.entries.capacity(),
            Piece::Away(away) => away.capacity(),
        });
        pieces.sum::<usize>() + self.spare.capacity()
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
