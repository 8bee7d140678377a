//! What a store knows of consumers' handlers, from the attempts that it ran itself.
//!
//! A store that runs many attempts in one transaction needs to know whose do not fit there: those
//! that await something else in the middle of their transaction, and those that are busy for long.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use crate::InboxEntry;

/// How many attempts of a consumer in a row take long before it counts as busy. So many that it is
/// the handler's doing, and not that of a machine with too much to do.
const STRIKES_MAX: u32 = 8;

/// The habits of consumers' handlers; for stores.
#[derive(Debug, Default)]
pub struct Habits {
    /// There is something in `of`.
    any: AtomicBool,
    of: Mutex<HashMap<Box<str>, Habit>>,
}

#[derive(Debug, Default)]
struct Habit {
    /// How many attempts, the last ones, took long.
    strikes: u32,
    /// It does not share a transaction with others.
    leaves: bool,
    /// The last attempt awaited something else before its transaction.
    begins_elsewhere: bool,
}

impl Habits {
    /// Whether attempts with this claim take long, one after the other.
    pub fn is_busy(&self, claim: Option<&InboxEntry>) -> bool {
        self.has(claim, |habit| habit.strikes >= STRIKES_MAX)
    }

    /// Whether an attempt with this claim has [`left`](Self::left) its transaction.
    pub fn leaves(&self, claim: Option<&InboxEntry>) -> bool {
        self.has(claim, |habit| habit.leaves)
    }

    /// Whether attempts with this claim await something else first. They had better ask the inbox,
    /// and come to the store when they want their transaction.
    pub fn begins_elsewhere(&self, claim: Option<&InboxEntry>) -> bool {
        self.has(claim, |habit| habit.begins_elsewhere)
    }

    /// An attempt has begun, and awaited something else first or did not.
    pub fn began(&self, claim: Option<&InboxEntry>, elsewhere: bool) {
        if let Some(entry) = claim.filter(|_| elsewhere || self.any.load(Ordering::Relaxed)) {
            self.change(entry, |habit| habit.begins_elsewhere = elsewhere);
        }
    }

    /// An attempt could not share a transaction with others: it awaited something else in the middle
    /// of it, for example. True for the first one of a consumer.
    pub fn left(&self, claim: Option<&InboxEntry>) -> bool {
        claim.is_some_and(|entry| {
            self.change(entry, |habit| !std::mem::replace(&mut habit.leaves, true))
        })
    }

    /// An attempt has ended, after long or not. True if its consumer counts as busy from now on.
    pub fn ended(&self, claim: Option<&InboxEntry>, took_long: bool) -> bool {
        let known = claim.filter(|_| took_long || self.any.load(Ordering::Relaxed));
        known.is_some_and(|entry| {
            self.change(entry, |habit| {
                let is_busy = habit.strikes >= STRIKES_MAX;
                habit.strikes = if took_long { habit.strikes + 1 } else { 0 };
                !is_busy && habit.strikes >= STRIKES_MAX
            })
        })
    }

    fn has(&self, claim: Option<&InboxEntry>, habit: impl FnOnce(&Habit) -> bool) -> bool {
        let Some(entry) = claim.filter(|_| self.any.load(Ordering::Relaxed)) else {
            return false;
        };
        self.of.lock().get(&entry.claim.consumer).is_some_and(habit)
    }

    fn change<T>(&self, entry: &InboxEntry, change: impl FnOnce(&mut Habit) -> T) -> T {
        self.any.store(true, Ordering::Relaxed);
        let mut of = self.of.lock();
        match of.get_mut(&entry.claim.consumer) {
            Some(habit) => change(habit),
            None => change(of.entry(entry.claim.consumer.clone()).or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Claim;

    #[test]
    fn who_takes_long_often_in_a_row_is_busy() {
        let habits = Habits::default();
        let of = |consumer: &str| {
            Some(InboxEntry::handled(Claim {
                consumer: consumer.into(),
                message: "1".into(),
            }))
        };
        let (slow, other) = (of("slow"), of("other"));
        for _ in 1..STRIKES_MAX {
            assert!(!habits.ended(slow.as_ref(), true));
        }
        habits.ended(slow.as_ref(), false);
        for _ in 1..STRIKES_MAX {
            assert!(!habits.ended(slow.as_ref(), true));
        }
        assert!(!habits.is_busy(slow.as_ref()));
        assert!(habits.ended(slow.as_ref(), true));
        assert!(habits.is_busy(slow.as_ref()));
        assert!(!habits.ended(slow.as_ref(), true), "it was told before");
        assert!(!habits.is_busy(other.as_ref()));
        assert!(!habits.is_busy(None));
    }

    #[test]
    fn who_left_is_told_once_and_remembered() {
        let habits = Habits::default();
        let entry = InboxEntry::handled(Claim {
            consumer: "c".into(),
            message: "1".into(),
        });
        assert!(!habits.leaves(Some(&entry)));
        assert!(habits.left(Some(&entry)));
        assert!(!habits.left(Some(&entry)));
        assert!(habits.leaves(Some(&entry)));
        habits.began(Some(&entry), true);
        assert!(habits.begins_elsewhere(Some(&entry)));
        habits.began(Some(&entry), false);
        assert!(!habits.begins_elsewhere(Some(&entry)));
    }
}
