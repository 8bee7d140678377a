//! Pauses between tries.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(3);

/// Pauses that grow from 50 milliseconds to 3 seconds, each a little different so that many do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Pauses; the next time for twice as long.
    pub async fn pause(&mut self) {
        // Between 75 and 125 percent. `RandomState` differs each time it is made.
        let percent = 75 + RandomState::new().hash_one(()) % 51;
        let pause = self.next * percent as u32 / 100;
        self.next = (self.next * 2).min(LONGEST);
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        for expected in [50, 100, 200, 400, 800, 1600, 3000, 3000] {
            let began = Instant::now();
            backoff.pause().await;
            let (paused, expected) = (began.elapsed().as_millis(), expected as u128);
            // The clock of tests goes in whole milliseconds.
            let range = expected * 75 / 100..=expected * 125 / 100 + 1;
            assert!(range.contains(&paused), "{paused} for {expected}");
        }
    }
}
