//! Letters page by page.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    error::{Code, Error},
    letter::Letter,
    selection::Selection,
};
use crate::{HOLD_TIME_MAX, HeldLetters};

/// How many letters are asked for at once at most. It begins with as many as are wanted, and takes
/// longer steps while none of those that come is among the selected ones.
const STEP_MAX: usize = 256;
/// How many letters a page has at most.
const PAGE_MAX: usize = 1000;

/// Letters that are being listed, and held meanwhile. Dropped, it gives them back.
pub struct Listing {
    held: Box<dyn HeldLetters>,
    consumer: Box<str>,
    selection: Selection,
    began: Instant,
    /// Selected letters that came before they were wanted.
    ready: VecDeque<Letter>,
    step: usize,
}

impl Listing {
    pub(super) fn new(held: Box<dyn HeldLetters>, consumer: &str, selection: Selection) -> Self {
        Self {
            held,
            consumer: consumer.into(),
            selection,
            began: Instant::now(),
            ready: VecDeque::new(),
            step: 1,
        }
    }

    /// The next letters, oldest first, at most `count` (and 1000); none when there are no more.
    ///
    /// # Errors
    ///
    /// When the broker is lost, and 10 minutes after the listing began: others wait for it.
    pub async fn next_page(&mut self, count: usize) -> Result<Vec<Letter>, Error> {
        let count = count.clamp(1, PAGE_MAX);
        while self.ready.len() < count {
            if self.began.elapsed() > HOLD_TIME_MAX {
                let says = format!(
                    "the letters of `{}` were held for longer than {} minutes; list them anew",
                    self.consumer,
                    HOLD_TIME_MAX.as_secs() / 60
                );
                return Err(Error::new(Code::Unavailable, says));
            }
            let wanted = count - self.ready.len();
            let next = self.held.next(wanted.max(self.step).min(STEP_MAX)).await?;
            if next.is_empty() {
                break;
            }
            let before = self.ready.len();
            let letters = next
                .into_iter()
                .map(|letter| Letter::new(letter, &self.consumer));
            self.ready
                .extend(letters.filter(|letter| self.selection.contains(letter)));
            if self.ready.len() == before {
                self.step = (self.step * 2).min(STEP_MAX);
            }
        }
        let count = count.min(self.ready.len());
        Ok(self.ready.drain(..count).collect())
    }

    /// Gives the letters back, and returns when they are in their places.
    ///
    /// # Errors
    ///
    /// When the broker is lost; then it has them back anyway.
    pub async fn end(self) -> Result<(), Error> {
        Ok(self.held.release().await?)
    }
}
