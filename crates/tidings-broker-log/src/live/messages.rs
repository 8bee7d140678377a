//! Which messages are alive, in which queues, and where their records lie: 16 bytes for each.
//!
//! A backlog may have tens of millions of messages, of which nothing else is in memory here. Ids grow, and
//! messages that came together mostly go together; so what is known of them stands in pages of
//! consecutive ids. A page of which few are left is a list of these, so that a message that stays for
//! long costs little. The queues of a message are one of few sets, of which each is kept once.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use tidings_broker_core::{MessageId, QueueId, Queues};

use super::{IdHasher, Place};

/// Ids of a page.
const PAGE: usize = 1024;
/// A page that has fewer than so many left is a list, and a list that has four times as many a page:
/// at the border nothing goes back and forth.
const FEW: usize = PAGE / 16;

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    segment: u32,
    offset: u32,
    /// Of its record; none has zero, which stands for a message that is not alive.
    bytes: u32,
    /// Its queues, by their place in [`Sets`].
    queues: u32,
}

const VACANT: Slot = Slot {
    segment: 0,
    offset: 0,
    bytes: 0,
    queues: 0,
};

/// In place of a segment: the place is too large for a slot, and stands in [`Messages::far`].
const FAR: u32 = u32::MAX;

#[derive(Debug)]
enum Page {
    Full {
        slots: Box<[Slot; PAGE]>,
        len: usize,
    },
    /// By the ids' places in the page, ascending.
    Few(Vec<(u16, Slot)>),
}

#[derive(Debug, Default)]
pub(super) struct Messages {
    pages: BTreeMap<u64, Page>,
    sets: Sets,
    /// Places beyond 4 GiB of a segment or four thousand million segments.
    far: HashMap<MessageId, Place>,
    len: usize,
}

impl Messages {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Takes note of a message; gives the place of the record that it had before.
    pub(super) fn insert(
        &mut self,
        id: MessageId,
        place: Place,
        queues: &[QueueId],
    ) -> Option<Place> {
        let before = self.take(id);
        let near = (u32::try_from(place.segment), u32::try_from(place.offset));
        let (segment, offset) = match near {
            (Ok(segment), Ok(offset)) if segment != FAR => (segment, offset),
            _ => {
                self.far.insert(id, place);
                (FAR, 0)
            }
        };
        let slot = Slot {
            segment,
            offset,
            bytes: place.bytes,
            queues: self.sets.add(queues),
        };
        let (page, at) = place_of(id);
        let page = self.pages.entry(page).or_insert(Page::Few(Vec::new()));
        page.insert(at, slot);
        self.len += 1;
        before
    }

    /// Takes a message out of a queue. Gives the place of its record if it is in no other.
    pub(super) fn remove(&mut self, id: MessageId, queue: QueueId) -> Option<Place> {
        let (page, at) = place_of(id);
        let slot = self.pages.get_mut(&page)?.get_mut(at)?;
        match self.sets.without(slot.queues, queue) {
            Left::Nothing => self.take(id),
            Left::Set(left) => {
                slot.queues = left;
                None
            }
        }
    }

    /// Where the record of a message lies, and the queues that it is in.
    pub(super) fn get(&self, id: MessageId) -> Option<(Place, Queues)> {
        let (page, at) = place_of(id);
        let slot = self.pages.get(&page)?.get(at)?;
        Some((self.place(id, slot), self.sets.queues(slot.queues)))
    }

    /// Each message: the queues it is in, and the bytes of its record.
    pub(super) fn each(&self) -> impl Iterator<Item = (&[QueueId], u64)> {
        let slots = self.pages.values().flat_map(Page::iter);
        slots.map(|(_, slot)| (self.sets.get(slot.queues), u64::from(slot.bytes)))
    }

    /// Every message that is in one of the queues for which `is_lost` says so, with these queues.
    pub(super) fn lost(&self, is_lost: impl Fn(QueueId) -> bool) -> Vec<(QueueId, MessageId)> {
        let lost = self.sets.having(is_lost);
        if lost.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (number, page) in &self.pages {
            for (at, slot) in page.iter() {
                let queues = lost.get(&slot.queues).into_iter().flatten();
                let id = MessageId(number * PAGE as u64 + at as u64);
                found.extend(queues.map(|queue| (*queue, id)));
            }
        }
        found
    }

    fn take(&mut self, id: MessageId) -> Option<Place> {
        let (number, at) = place_of(id);
        let page = self.pages.get_mut(&number)?;
        let slot = page.remove(at)?;
        if page.is_empty() {
            self.pages.remove(&number);
        }
        self.len -= 1;
        self.sets.release(slot.queues);
        let place = self.place(id, &slot);
        if slot.segment == FAR {
            self.far.remove(&id);
        }
        Some(place)
    }

    fn place(&self, id: MessageId, slot: &Slot) -> Place {
        match slot.segment {
            FAR => self.far[&id],
            segment => Place {
                segment: u64::from(segment),
                offset: u64::from(slot.offset),
                bytes: slot.bytes,
            },
        }
    }
}

/// The page of an id, and its place there.
const fn place_of(id: MessageId) -> (u64, usize) {
    (id.0 / PAGE as u64, (id.0 % PAGE as u64) as usize)
}

impl Page {
    fn insert(&mut self, at: usize, slot: Slot) {
        match self {
            Self::Full { slots, len } => {
                *len += usize::from(slots[at].bytes == 0);
                slots[at] = slot;
            }
            Self::Few(few) => {
                let key = at as u16;
                match few.binary_search_by_key(&key, |(at, _)| *at) {
                    Ok(found) => few[found].1 = slot,
                    Err(found) => few.insert(found, (key, slot)),
                }
                if few.len() >= 4 * FEW {
                    let mut slots = Box::new([VACANT; PAGE]);
                    for (at, slot) in &*few {
                        slots[usize::from(*at)] = *slot;
                    }
                    let len = few.len();
                    *self = Self::Full { slots, len };
                }
            }
        }
    }

    fn get(&self, at: usize) -> Option<&Slot> {
        match self {
            Self::Full { slots, .. } => Some(&slots[at]).filter(|slot| slot.bytes > 0),
            Self::Few(few) => {
                let found = few.binary_search_by_key(&(at as u16), |(at, _)| *at);
                found.ok().map(|found| &few[found].1)
            }
        }
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        match self {
            Self::Full { slots, .. } => Some(&mut slots[at]).filter(|slot| slot.bytes > 0),
            Self::Few(few) => {
                let found = few.binary_search_by_key(&(at as u16), |(at, _)| *at);
                found.ok().map(|found| &mut few[found].1)
            }
        }
    }

    fn remove(&mut self, at: usize) -> Option<Slot> {
        match self {
            Self::Full { slots, len } => {
                let slot = std::mem::replace(&mut slots[at], VACANT);
                if slot.bytes == 0 {
                    return None;
                }
                *len -= 1;
                if *len < FEW {
                    let all = (0..).zip(slots.iter());
                    let few = all.filter(|(_, slot)| slot.bytes > 0);
                    *self = Self::Few(few.map(|(at, slot)| (at, *slot)).collect());
                }
                Some(slot)
            }
            Self::Few(few) => {
                let found = few.binary_search_by_key(&(at as u16), |(at, _)| *at);
                let slot = few.remove(found.ok()?).1;
                if few.capacity() > 4 * few.len() + 8 {
                    few.shrink_to_fit();
                }
                Some(slot)
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Full { len, .. } => *len == 0,
            Self::Few(few) => few.is_empty(),
        }
    }

    fn iter(&self) -> Box<dyn Iterator<Item = (usize, &Slot)> + '_> {
        match self {
            Self::Full { slots, .. } => {
                let all = slots.iter().enumerate();
                Box::new(all.filter(|(_, slot)| slot.bytes > 0))
            }
            Self::Few(few) => Box::new(few.iter().map(|(at, slot)| (usize::from(*at), slot))),
        }
    }
}

/// Sets of queues that messages are in, each once, with how many messages have it.
#[derive(Debug, Default)]
struct Sets {
    sets: Vec<Set>,
    free: Vec<u32>,
    /// Sets of one queue.
    single: HashMap<QueueId, u32, BuildHasherDefault<IdHasher>>,
    /// Sets of several, sorted.
    several: HashMap<Arc<[QueueId]>, u32>,
}

#[derive(Debug)]
struct Set {
    queues: Queues,
    messages: u64,
}

/// What is left of a set without a queue.
enum Left {
    Nothing,
    /// The number of the set that is left, which now has the message.
    Set(u32),
}

impl Sets {
    fn add(&mut self, queues: &[QueueId]) -> u32 {
        if let [one] = queues {
            return self.add_single(*one);
        }
        let mut sorted = queues.to_vec();
        sorted.sort_unstable();
        self.add_sorted(sorted)
    }

    fn add_single(&mut self, queue: QueueId) -> u32 {
        if let Some(known) = self.single.get(&queue) {
            self.sets[*known as usize].messages += 1;
            return *known;
        }
        let number = self.make(Queues::One(queue));
        self.single.insert(queue, number);
        number
    }

    fn add_sorted(&mut self, queues: Vec<QueueId>) -> u32 {
        if let [one] = queues[..] {
            return self.add_single(one);
        }
        if let Some(known) = self.several.get(&*queues) {
            self.sets[*known as usize].messages += 1;
            return *known;
        }
        let queues: Arc<[QueueId]> = queues.into();
        let number = self.make(Queues::Many(Arc::clone(&queues)));
        self.several.insert(queues, number);
        number
    }

    fn make(&mut self, queues: Queues) -> u32 {
        let set = Set {
            queues,
            messages: 1,
        };
        match self.free.pop() {
            Some(number) => {
                self.sets[number as usize] = set;
                number
            }
            None => {
                self.sets.push(set);
                u32::try_from(self.sets.len() - 1).expect("fewer sets than messages with one")
            }
        }
    }

    fn get(&self, number: u32) -> &[QueueId] {
        self.sets[number as usize].queues.as_slice()
    }

    fn queues(&self, number: u32) -> Queues {
        self.sets[number as usize].queues.clone()
    }

    /// A message that has this set leaves a queue. If nothing would be left, it still has the set.
    fn without(&mut self, number: u32, queue: QueueId) -> Left {
        let queues = self.sets[number as usize].queues.as_slice();
        if !queues.contains(&queue) {
            return Left::Set(number);
        }
        if queues.len() == 1 {
            return Left::Nothing;
        }
        let left = queues.iter().filter(|it| **it != queue).copied().collect();
        let left = self.add_sorted(left);
        self.release(number);
        Left::Set(left)
    }

    /// A message has this set no more.
    fn release(&mut self, number: u32) {
        let set = &mut self.sets[number as usize];
        set.messages -= 1;
        if set.messages > 0 {
            return;
        }
        match &set.queues {
            Queues::One(queue) => self.single.remove(queue),
            Queues::Many(queues) => self.several.remove(queues),
        };
        set.queues = Queues::Many(Arc::default());
        self.free.push(number);
    }

    /// The sets in which there is a queue like this, with those queues.
    fn having(&self, is_it: impl Fn(QueueId) -> bool) -> HashMap<u32, Vec<QueueId>> {
        let used = (0..).zip(&self.sets).filter(|(_, set)| set.messages > 0);
        let found = used.filter_map(|(number, set)| {
            let queues = set.queues.as_slice().iter().copied();
            let queues: Vec<QueueId> = queues.filter(|it| is_it(*it)).collect();
            (!queues.is_empty()).then_some((number, queues))
        });
        found.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Numbers that look random, the same ones each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 29)) % end
        }
    }

    fn place(dice: &mut Dice) -> Place {
        let far = [1, 1, 1, u64::from(u32::MAX), 1 << 30][dice.below(5) as usize];
        Place {
            segment: dice.below(4) * far,
            offset: dice.below(1 << 26) * far,
            bytes: 1 + dice.below(1000) as u32,
        }
    }

    /// The same as a plain map, whatever is done.
    #[test]
    fn it_is_a_map_of_messages() {
        for seed in 0..20 {
            let mut dice = Dice(seed);
            let mut messages = Messages::default();
            let mut model: BTreeMap<MessageId, (Place, BTreeSet<QueueId>)> = BTreeMap::new();
            // Some seeds have a few old messages beside many young ones, some all close together.
            let span = [50, 5_000, 1 << 40][seed as usize % 3];
            for step in 0..20_000_u64 {
                let id = match dice.below(3) {
                    0 => MessageId(dice.below(span)),
                    _ => MessageId(step / 2),
                };
                let queue = QueueId(dice.below(5));
                if dice.below(5) < 2 {
                    let queues: BTreeSet<QueueId> = (0..=dice.below(3))
                        .map(|_| QueueId(dice.below(5)))
                        .collect();
                    let place = place(&mut dice);
                    let mut listed: Vec<QueueId> = queues.iter().copied().collect();
                    listed.reverse();
                    let before = messages.insert(id, place, &listed);
                    let known = model.insert(id, (place, queues));
                    assert_eq!(before, known.map(|(place, _)| place));
                } else {
                    let gone = messages.remove(id, queue);
                    let mut expected = None;
                    if let Some((place, queues)) = model.get_mut(&id) {
                        queues.remove(&queue);
                        if queues.is_empty() {
                            expected = Some(*place);
                            model.remove(&id);
                        }
                    }
                    assert_eq!(gone, expected);
                }
                assert_eq!(messages.len(), model.len());
            }
            for (id, (place, queues)) in &model {
                let (found, remaining) = messages.get(*id).expect("it is alive");
                let remaining: BTreeSet<QueueId> = remaining.as_slice().iter().copied().collect();
                assert_eq!((found, &remaining), (*place, queues));
            }
            let is_lost = |queue: QueueId| queue.0.is_multiple_of(2);
            let lost: BTreeSet<_> = messages.lost(is_lost).into_iter().collect();
            let expected = model.iter().flat_map(|(id, (_, queues))| {
                let queues = queues.iter().copied().filter(|it| is_lost(*it));
                queues.map(|queue| (queue, *id))
            });
            assert_eq!(lost, expected.collect());
            // All go, and nothing is left of them.
            let ids: Vec<MessageId> = model.keys().copied().collect();
            for id in ids {
                for queue in 0..5 {
                    messages.remove(id, QueueId(queue));
                }
            }
            assert_eq!(messages.len(), 0);
            assert!(messages.pages.is_empty() && messages.far.is_empty());
            assert!(messages.sets.single.is_empty() && messages.sets.several.is_empty());
            assert_eq!(messages.sets.free.len(), messages.sets.sets.len());
        }
    }

    /// A backlog costs a slot for each message, and what stays of a page a little more.
    #[test]
    fn a_message_costs_a_slot() {
        assert_eq!(size_of::<Slot>(), 16);
        let at = Place {
            segment: 1,
            offset: 1,
            bytes: 1,
        };
        let mut messages = Messages::default();
        let count = 100 * PAGE as u64;
        for id in 0..count {
            messages.insert(MessageId(id), at, &[QueueId(1), QueueId(2)]);
        }
        let full = |messages: &Messages| {
            let pages = messages.pages.values();
            pages
                .filter(|page| matches!(page, Page::Full { .. }))
                .count()
        };
        assert_eq!((full(&messages), messages.pages.len()), (100, 100));
        assert_eq!(messages.sets.sets.len(), 1);
        for id in (0..count).filter(|id| id % 100 > 0) {
            messages.remove(MessageId(id), QueueId(2));
            messages.remove(MessageId(id), QueueId(1));
        }
        assert_eq!((full(&messages), messages.len()), (0, 1024));
        let few = messages.pages.values().map(|page| match page {
            Page::Few(few) => few.capacity(),
            Page::Full { .. } => PAGE,
        });
        assert!(few.sum::<usize>() < 8 * 1024);
    }
}
