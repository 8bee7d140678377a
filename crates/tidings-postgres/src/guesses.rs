//! How many statements the handlers of a consumer run: a guess, from those before.
//!
//! The first statement of an attempt may be sent behind the last one of the attempt in front of it
//! (see [`ahead`](crate::batch)). Which one is the last is only known afterwards, so it is guessed. A
//! guess that is too high gains nothing; one that is too low costs a statement that is taken back. So
//! the most that were run lately count.

use std::collections::HashMap;

use parking_lot::Mutex;
use tidings_core::InboxEntry;

/// After how many attempts that ran fewer statements the guess is made anew.
const KEPT_FOR: u32 = 32;

#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<Box<str>, Guess>>);

#[derive(Debug, Default)]
struct Guess {
    most: u32,
    /// The most since it was made anew, and how many attempts that was ago.
    most_since: u32,
    since: u32,
}

impl Guesses {
    /// How many statements an attempt with this claim runs, if it is like those before.
    pub(crate) fn of(&self, claim: Option<&InboxEntry>) -> Option<u32> {
        self.0.lock().get(consumer(claim)).map(|guess| guess.most)
    }

    /// An attempt ran so many.
    pub(crate) fn note(&self, claim: Option<&InboxEntry>, statements: u32) {
        let mut guesses = self.0.lock();
        let consumer = consumer(claim);
        let guess = match guesses.get_mut(consumer) {
            Some(guess) => guess,
            None => guesses.entry(consumer.into()).or_default(),
        };
        guess.most = guess.most.max(statements);
        guess.most_since = guess.most_since.max(statements);
        guess.since += 1;
        if guess.since == KEPT_FOR {
            *guess = Guess {
                most: guess.most_since,
                ..Guess::default()
            };
        }
    }
}

/// Work without a message counts as one consumer's.
fn consumer(claim: Option<&InboxEntry>) -> &str {
    claim.map_or("", |entry| &entry.claim.consumer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_lately_count() {
        let guesses = Guesses::default();
        assert_eq!(guesses.of(None), None);
        guesses.note(None, 3);
        assert_eq!(guesses.of(None), Some(3));
        for _ in 0..2 * KEPT_FOR {
            guesses.note(None, 1);
        }
        assert_eq!(guesses.of(None), Some(1));
        guesses.note(None, 2);
        assert_eq!(guesses.of(None), Some(2));
    }
}
