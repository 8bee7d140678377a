//! What of a partition is settled: from single messages to the one offset that Kafka keeps.
//!
//! Kafka remembers of a partition how far its consumer is: one offset, and a text beside it. Handlers finish in
//! any order. So a *window* holds what was fetched and is not settled up to the first gap. The offset that is
//! committed is that of the first message that is still open, the *watermark*. What is settled behind it stands
//! in the text, as much as fits: whoever gets the partition next does not receive that again.
//!
//! The text also says up to where messages may have been handed out. That is written *before* they are, some
//! hundreds at a time (a *lease* of offsets), so that after a crash the next consumer knows which messages may
//! have been begun: they come `redelivered`. Some of those were not, and that does no harm; the other way
//! round, a message that kills its consumer would never be known for one that comes again.
//!
//! No I/O here: offsets in, offsets out.

use std::collections::VecDeque;

/// How long the text beside a committed offset may be; Kafka's own limit is 4096 by default.
const TEXT_BYTES_MAX: usize = 3000;
/// How the text begins, with the version of what follows.
const TEXT_BEGINS: &str = "tidings1";

/// What a consumer leaves to the next one beside the watermark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Offsets below this may have been handed out.
    pub(crate) handed_out: i64,
    /// Ranges that are settled, ascending: the first offset and the one after the last.
    pub(crate) settled: Vec<(i64, i64)>,
}

impl Progress {
    /// Reads the text beside `watermark`. One that somebody else wrote says nothing.
    pub(crate) fn parse(watermark: i64, text: &str) -> Self {
        let mut words = text.split(' ');
        let nothing = Self {
            handed_out: watermark,
            settled: Vec::new(),
        };
        if words.next() != Some(TEXT_BEGINS) {
            return nothing;
        }
        let mut numbers = words.map(|word| word.parse::<i64>().ok().filter(|number| *number >= 0));
        let Some(Some(ahead)) = numbers.next() else {
            return nothing;
        };
        let mut progress = nothing;
        progress.handed_out = watermark.saturating_add(ahead);
        let mut at = watermark;
        while let (Some(Some(open)), Some(Some(settled))) = (numbers.next(), numbers.next()) {
            let from = at.saturating_add(open);
            at = from.saturating_add(settled);
            progress.settled.push((from, at));
        }
        progress
    }

    /// The text beside `watermark`: how far ahead was handed out, then by turns how many are open and how many
    /// settled. What does not fit is left out from the end: it comes again.
    pub(crate) fn text(&self, watermark: i64) -> String {
        let ahead = (self.handed_out - watermark).max(0);
        let mut text = format!("{TEXT_BEGINS} {ahead}");
        let mut at = watermark;
        for (from, to) in &self.settled {
            let more = format!(" {} {}", from - at, to - from);
            if text.len() + more.len() > TEXT_BYTES_MAX {
                break;
            }
            text += &more;
            at = *to;
        }
        text
    }

    fn is_settled(&self, offset: i64) -> bool {
        let after = self.settled.partition_point(|(from, _)| *from <= offset);
        after > 0 && offset < self.settled[after - 1].1
    }
}

/// What was fetched of a partition and is not settled up to the first gap.
#[derive(Debug)]
pub(crate) struct Window {
    entries: VecDeque<Entry>,
    /// The offset after the last one that was fetched.
    next: i64,
    /// The offset after the last one that was handed out.
    handed_out: i64,
    /// What the consumer before left.
    before: Progress,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    is_settled: bool,
}

/// What to do with a message that was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It was fetched before, or is settled already.
    Not,
    /// Nobody can have seen it.
    New,
    /// Somebody may have begun with it.
    Again,
}

impl Window {
    /// Begins at `position`, with what the consumer before left.
    pub(crate) fn new(position: i64, before: Progress) -> Self {
        Self {
            entries: VecDeque::new(),
            next: position,
            handed_out: position,
            before,
        }
    }

    /// The message at `offset` was fetched.
    pub(crate) fn admit(&mut self, offset: i64, is_wanted: bool) -> Admitted {
        if offset < self.next {
            return Admitted::Not;
        }
        self.next = offset + 1;
        let is_settled = !is_wanted || self.before.is_settled(offset);
        if is_settled && self.entries.is_empty() {
            return Admitted::Not;
        }
        self.entries.push_back(Entry { offset, is_settled });
        match is_settled {
            true => Admitted::Not,
            false if offset < self.before.handed_out => Admitted::Again,
            false => Admitted::New,
        }
    }

    /// The message at `offset` goes to a handler.
    pub(crate) fn hand_out(&mut self, offset: i64) {
        self.handed_out = self.handed_out.max(offset + 1);
    }

    /// The message at `offset` is settled.
    pub(crate) fn settle(&mut self, offset: i64) {
        if let Some(entry) = self.entry(offset) {
            entry.is_settled = true;
        }
        while self.entries.front().is_some_and(|entry| entry.is_settled) {
            self.entries.pop_front();
        }
    }

    fn entry(&mut self, offset: i64) -> Option<&mut Entry> {
        let first = self.entries.front()?.offset;
        // Where it stands if there are no gaps before it.
        let at = usize::try_from(offset - first).ok()?;
        let at = match self.entries.get(at) {
            Some(entry) if entry.offset == offset => at,
            _ => self
                .entries
                .binary_search_by_key(&offset, |entry| entry.offset)
                .ok()?,
        };
        self.entries.get_mut(at)
    }

    /// The offset to commit: the first that is open. Gaps, which transactions leave, do not hold it up.
    pub(crate) fn watermark(&self) -> i64 {
        self.entries.front().map_or(self.next, |entry| entry.offset)
    }

    /// How many messages stand in the window, settled or not.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The offset after the last one that was fetched.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// What to leave to the next consumer, if everything below `leased` may have been handed out meanwhile.
    pub(crate) fn progress(&self, leased: i64) -> Progress {
        let mut settled: Vec<(i64, i64)> = Vec::new();
        let mut is_open = true;
        for entry in &self.entries {
            match settled.last_mut() {
                _ if !entry.is_settled => is_open = true,
                Some(last) if !is_open => last.1 = entry.offset + 1,
                _ => {
                    settled.push((entry.offset, entry.offset + 1));
                    is_open = false;
                }
            }
        }
        // What was not fetched again yet is as the consumer before left it.
        for (from, to) in &self.before.settled {
            if *to > self.next {
                settled.push(((*from).max(self.next), *to));
            }
        }
        Progress {
            handed_out: leased.max(self.handed_out).max(self.before.handed_out),
            settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(offsets: impl IntoIterator<Item = i64>) -> Window {
        let mut window = Window::new(0, Progress::default());
        for offset in offsets {
            assert_eq!(window.admit(offset, true), Admitted::New);
        }
        window
    }

    /// What the next consumer makes of what `window` leaves.
    fn passed_on(window: &Window, leased: i64) -> Window {
        let watermark = window.watermark();
        let text = window.progress(leased).text(watermark);
        Window::new(watermark, Progress::parse(watermark, &text))
    }

    #[test]
    fn the_watermark_is_the_first_that_is_open() {
        let mut window = fetched(0..4);
        window.settle(2);
        window.settle(1);
        assert_eq!((window.watermark(), window.len()), (0, 4));
        window.settle(0);
        assert_eq!((window.watermark(), window.len()), (3, 1));
        window.settle(3);
        assert_eq!((window.watermark(), window.len()), (4, 0));
    }

    #[test]
    fn gaps_hold_nothing_up() {
        let mut window = fetched([3, 4, 7, 20]);
        window.settle(4);
        window.settle(3);
        assert_eq!(window.watermark(), 7);
        window.settle(20);
        window.settle(7);
        assert_eq!(window.watermark(), 21);
    }

    #[test]
    fn the_next_consumer_gets_what_is_open_and_knows_what_was_begun() {
        let mut window = fetched(0..8);
        for offset in 0..6 {
            window.hand_out(offset);
        }
        for offset in [0, 2, 3, 5] {
            window.settle(offset);
        }
        let mut next = passed_on(&window, 0);
        let admitted: Vec<Admitted> = (1..8).map(|offset| next.admit(offset, true)).collect();
        use Admitted::{Again, New, Not};
        assert_eq!(admitted, [Again, Not, Not, Again, Not, New, New]);
        assert_eq!(next.watermark(), 1);
        // With a lease they may all have been begun.
        let mut next = passed_on(&window, 100);
        assert_eq!(next.admit(6, true), Again);
        assert_eq!(next.admit(100, true), New);
    }

    #[test]
    fn what_was_not_fetched_again_is_not_forgotten() {
        let mut window = fetched(0..10);
        (0..10).for_each(|offset| window.hand_out(offset));
        (4..9).for_each(|offset| window.settle(offset));
        let mut second = passed_on(&window, 0);
        assert_eq!(second.admit(0, true), Admitted::Again);
        assert_eq!(second.admit(5, true), Admitted::Not);
        let third = passed_on(&second, 0);
        assert_eq!(third.before.settled, [(5, 6), (6, 9)]);
        assert_eq!(third.before.handed_out, 10);
    }

    #[test]
    fn what_is_not_wanted_is_settled_at_once() {
        let mut window = Window::new(0, Progress::default());
        assert_eq!(window.admit(0, false), Admitted::Not);
        assert_eq!(window.watermark(), 1);
        assert_eq!(window.admit(1, true), Admitted::New);
        assert_eq!(window.admit(2, false), Admitted::Not);
        assert_eq!(window.watermark(), 1);
        window.settle(1);
        assert_eq!(window.watermark(), 3);
    }

    #[test]
    fn a_text_without_end_is_cut_and_a_foreign_one_says_nothing() {
        let mut window = fetched(0..5000);
        (0..5000)
            .filter(|offset| offset % 2 == 1)
            .for_each(|offset| window.settle(offset));
        let text = window.progress(0).text(0);
        assert!(text.len() <= TEXT_BYTES_MAX);
        let parsed = Progress::parse(0, &text);
        assert!(parsed.settled.len() > 500);
        assert!(
            parsed
                .settled
                .iter()
                .all(|(from, to)| from % 2 == 1 && to - from == 1)
        );
        for foreign in [
            "",
            "node-1",
            "tidings1",
            "tidings1 x",
            "tidings1 -1",
            "tidings2 5",
        ] {
            let parsed = Progress::parse(7, foreign);
            assert_eq!(
                (parsed.handed_out, parsed.settled),
                (7, vec![]),
                "{foreign}"
            );
        }
    }

    #[test]
    fn what_comes_twice_is_taken_once() {
        let mut window = fetched(0..3);
        assert_eq!(window.admit(1, true), Admitted::Not);
        assert_eq!(window.admit(3, true), Admitted::New);
        assert_eq!(window.next(), 4);
    }
}
