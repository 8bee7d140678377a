//! Letters page by page.

use tokio::time::Instant;

use super::{
    error::{Code, Error},
    letter::Letter,
    selection::Selection,
};
use crate::{HOLD_TIME_MAX, HeldLetters};

/// How many letters are asked for at once, so that few are in memory when few are wanted.
const STEP: usize = 64;
/// How many letters a page has at most.
const PAGE_MAX: usize = 1000;

/// Letters that are being listed, and held meanwhile. Dropped, it gives them back.
pub struct Listing {
    held: Box<dyn HeldLetters>,
    consumer: Box<str>,
    selection: Selection,
    began: Instant,
}

impl Listing {
    pub(super) fn new(held: Box<dyn HeldLetters>, consumer: &str, selection: Selection) -> Self {
        Self {
            held,
            consumer: consumer.into(),
            selection,
            began: Instant::now(),
        }
    }

    /// The next letters, oldest first, at most `count` (and 1000); none when there are no more.
    ///
    /// # Errors
    ///
    /// When the broker is lost, and 10 minutes after the listing began: others wait for it.
    pub async fn next_page(&mut self, count: usize) -> Result<Vec<Letter>, Error> {
        let count = count.clamp(1, PAGE_MAX);
        let mut page = Vec::new();
        while page.len() < count {
            if self.began.elapsed() > HOLD_TIME_MAX {
                let says = format!(
                    "the letters of `{}` were held for longer than {} minutes; list them anew",
                    self.consumer,
                    HOLD_TIME_MAX.as_secs() / 60
                );
                return Err(Error::new(Code::Unavailable, says));
            }
            let next = self.held.next(STEP.min(count - page.len())).await?;
            if next.is_empty() {
                break;
            }
            let letters = next
                .into_iter()
                .map(|letter| Letter::new(letter, &self.consumer));
            page.extend(letters.filter(|letter| self.selection.contains(letter)));
        }
        Ok(page)
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
