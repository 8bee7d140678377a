//! Sets of offsets as ranges: what was taken out of a log in which nothing can be taken out.

use std::collections::BTreeMap;

/// A set of offsets; ranges that touch are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// The offset after the last one of each range, by its first.
    ends: BTreeMap<i64, i64>,
}

impl Ranges {
    /// Adds the offsets from `from` on and below `to`.
    pub(crate) fn insert(&mut self, mut from: i64, mut to: i64) {
        if from >= to {
            return;
        }
        if let Some((&before, &end)) = self.ends.range(..=from).next_back()
            && end >= from
        {
            from = before;
            to = to.max(end);
        }
        while let Some((&next, &end)) = self.ends.range(from..=to).next() {
            self.ends.remove(&next);
            to = to.max(end);
        }
        self.ends.insert(from, to);
    }

    /// The same with what is in `others`.
    pub(crate) fn with(mut self, others: impl IntoIterator<Item = (i64, i64)>) -> Self {
        for (from, to) in others {
            self.insert(from, to);
        }
        self
    }

    /// Each range, ascending: its first offset and the one after its last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.ends.iter().map(|(from, to)| (*from, *to))
    }

    /// How many offsets from `from` on and below `to` are in it.
    pub(crate) fn count(&self, from: i64, to: i64) -> i64 {
        let clipped = self
            .iter()
            .map(|(first, end)| end.min(to) - first.max(from));
        clipped.filter(|count| *count > 0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let ranges = Ranges::default().with([(5, 7), (1, 2), (9, 12), (3, 3), (7, 8)]);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 2), (5, 8), (9, 12)]);
        assert_eq!((ranges.count(0, 100), ranges.count(6, 10)), (7, 3));
        let ranges = ranges.with([(2, 9), (20, 21), (0, 30), (4, 5)]);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, 30)]);
    }
}
