//! Going through the letters that are there, once, while some are taken out and others come.
//!
//! How many letters there are is counted at the beginning; what comes later is behind those and is
//! not walked to. A walk may let go of the letters and take them up again (a *pass*): then it begins
//! at the front, where what was not taken out stands as before.
//!
//! A broker that was killed may have forgotten that letters were taken out (RabbitMQ writes that down
//! later), and then they stand at the front again. So after a lost connection the letters are counted
//! anew, less those that are known to have come since: the last ones must not be left out for them.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use super::{
    DeadLetters,
    error::{Code, Error},
    letter::Letter,
};
use crate::{AccessError, AccessErrorKind, HOLD_TIME_MAX, HeldLetters, LetterPlace};

/// How long a broker that is away is waited for.
const AWAY_MAX: Duration = Duration::from_secs(5 * 60);
/// How often it is asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long a pass lasts at least before it makes room for others...
const PASS_MIN: Duration = Duration::from_secs(5);
/// ... and how many times as long as what was read in it took, so that reading it again costs little.
const PASS_SHARE: u32 = 10;

/// How often letters that are missing are looked for again, and after which time.
const SHORTFALLS_MAX: u32 = 3;
const SHORTFALL_PAUSE: Duration = Duration::from_millis(300);

/// What comes next.
pub(super) enum Step {
    Letters(Vec<Letter>),
    /// The connection was lost, or something is missing: a new pass begins at the front.
    Restarted,
    /// There are no more of those that were there at first.
    End,
}

pub(super) struct Walk<'a> {
    letters: &'a DeadLetters,
    /// `None` between two passes.
    held: Option<Box<dyn HeldLetters>>,
    /// How many of the letters that were there at first may be there still.
    left: u64,
    /// How many were read, and how many of those taken out, in this pass.
    read: u64,
    removed: u64,
    /// How many came since the walk began, when that was last looked at.
    came: u64,
    /// The connection was lost: `left` may be too few.
    is_uncertain: bool,
    /// How often there were fewer than there must be.
    shortfalls: u32,
    pass_began: Instant,
    reading: Duration,
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(letters: &'a DeadLetters) -> Result<Self, Error> {
        let mut held = letters.hold().await?;
        let left = held.behind().await?;
        Ok(Self {
            letters,
            held: Some(held),
            left,
            read: 0,
            removed: 0,
            came: 0,
            is_uncertain: false,
            shortfalls: 0,
            pass_began: Instant::now(),
            reading: Duration::ZERO,
        })
    }

    /// How many of the letters that were there at first may be there still.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next letters, at most `count`.
    pub(super) async fn next(&mut self, count: usize) -> Result<Step, Error> {
        // Of those that were there at first, this pass has read all but so many.
        let ahead = self.left - (self.read - self.removed).min(self.left);
        if ahead == 0 {
            return Ok(Step::End);
        }
        let count = usize::try_from(ahead).unwrap_or(count).min(count);
        match self.read_on(count).await? {
            Some(letters) if letters.is_empty() => self.fall_short().await,
            Some(letters) => Ok(Step::Letters(letters)),
            None => Ok(Step::Restarted),
        }
    }

    /// Some are missing: another process that held them may have died just now, and the broker puts
    /// them back; or somebody took them out.
    async fn fall_short(&mut self) -> Result<Step, Error> {
        self.shortfalls += 1;
        if self.shortfalls > SHORTFALLS_MAX {
            self.left = self.read - self.removed;
            return Ok(Step::End);
        }
        self.pause().await?;
        sleep(SHORTFALL_PAUSE).await;
        Ok(Step::Restarted)
    }

    /// The next letters, also those that came later. `None` if the connection was lost.
    pub(super) async fn read_on(&mut self, count: usize) -> Result<Option<Vec<Letter>>, Error> {
        let began = Instant::now();
        let held = self.held().await?;
        let letters = match held.next(count).await {
            Ok(letters) => letters,
            Err(error) => return self.lost(error).map(|()| None),
        };
        self.read += letters.len() as u64;
        self.reading += began.elapsed();
        let consumer = self.letters.consumer();
        let letters = letters.into_iter();
        Ok(Some(letters.map(|it| Letter::new(it, consumer)).collect()))
    }

    /// Takes letters out. False if the connection was lost: perhaps they are there still.
    pub(super) async fn remove(&mut self, places: &[LetterPlace]) -> Result<bool, Error> {
        let Some(held) = &mut self.held else {
            return Ok(false);
        };
        if let Err(error) = held.remove(places).await {
            return self.lost(error).map(|()| false);
        }
        self.removed += places.len() as u64;
        self.left = self.left.saturating_sub(places.len() as u64);
        Ok(true)
    }

    /// How many letters came since the walk began; zero if that cannot be told.
    pub(super) async fn came(&mut self) -> u64 {
        let Some(held) = &mut self.held else {
            return 0;
        };
        if let Ok(behind) = held.behind().await {
            self.came = (behind + self.read - self.removed).saturating_sub(self.left);
        }
        self.came
    }

    /// True if others who want to look should get their turn, or the broker would take all back.
    pub(super) fn is_long(&self) -> bool {
        let lasts = (PASS_MIN + self.reading * PASS_SHARE).min(HOLD_TIME_MAX);
        self.held.is_some() && self.pass_began.elapsed() > lasts
    }

    /// True if the broker would soon take all back.
    pub(super) fn is_too_long(&self) -> bool {
        self.held.is_some() && self.pass_began.elapsed() > HOLD_TIME_MAX
    }

    /// Ends a pass: the letters are back in their places.
    pub(super) async fn pause(&mut self) -> Result<(), Error> {
        (self.read, self.removed) = (0, 0);
        if let Some(held) = self.held.take()
            && let Err(error) = held.release().await
        {
            self.lost(error)?;
        }
        Ok(())
    }

    /// What is held; begins a pass if none is under way.
    async fn held(&mut self) -> Result<&mut Box<dyn HeldLetters>, Error> {
        if self.held.is_none() {
            let mut held = self.take_up().await?;
            if self.is_uncertain {
                let there = held.behind().await?;
                self.left = self.left.max(there.saturating_sub(self.came));
                self.is_uncertain = false;
            }
            (self.read, self.removed, self.reading) = (0, 0, Duration::ZERO);
            self.pass_began = Instant::now();
            self.held = Some(held);
        }
        let closed = || Error::new(Code::Unavailable, "the letters are not held");
        self.held.as_mut().ok_or_else(closed)
    }

    /// Waits for the broker, and for others who look.
    async fn take_up(&self) -> Result<Box<dyn HeldLetters>, Error> {
        let deadline = Instant::now() + AWAY_MAX;
        loop {
            let error = match self.letters.hold().await {
                Ok(held) => return Ok(held),
                Err(error) => error,
            };
            let passes = matches!(error.code(), Code::Busy | Code::Unavailable);
            if !passes || Instant::now() >= deadline {
                return Err(error);
            }
            info!("waiting: {error}");
            sleep(ASK_EVERY).await;
        }
    }

    /// The pass has ended by itself.
    fn lost(&mut self, error: AccessError) -> Result<(), Error> {
        self.held = None;
        self.is_uncertain = true;
        (self.read, self.removed) = (0, 0);
        match error.kind() {
            AccessErrorKind::Unavailable => {
                info!("going on from the front: {error}");
                Ok(())
            }
            _ => Err(error.into()),
        }
    }
}
