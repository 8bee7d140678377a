//! A redrive: letters are sent to their consumer again, as a job.
//!
//! Each letter is published to the consumer and confirmed before it is taken out of the dead letters,
//! so a job that dies loses nothing. The message carries the number of its redrive, which reopens its
//! dead row in the consumer's inbox once, so a letter that was sent and not taken out may be sent
//! again. It also carries the job's name: what comes back under it is not sent again by that job.
//! There is nothing else to remember, so a job goes on after a crash when it is run again with the
//! same name and selection.

mod job;

use std::{num::NonZeroU32, time::Duration};

use super::{
    DeadLetters,
    error::{Code, Error},
    letter::Letter,
    selection::Selection,
};

/// Fewer letters that come back do not stop a job.
pub const CAME_BACK_MIN: u64 = 10;

const BATCH: usize = 100;
/// Without a limit of the rate: each batch waits for the broker a few times.
const BATCH_UNLIMITED: usize = 500;
const BATCH_MAX: usize = 1000;
const RATE: NonZeroU32 = NonZeroU32::new(500).unwrap();
const RAMP: Duration = Duration::from_secs(10);
const STOP_ABOVE: f64 = 0.2;
const SETTLE: Duration = Duration::from_secs(2);

/// How letters are sent again; made by [`DeadLetters::redrive`].
pub struct Redrive<'a> {
    letters: &'a DeadLetters,
    selection: Selection,
    to: Box<str>,
    job: Box<str>,
    is_dry: bool,
    batch: Option<usize>,
    rate: Option<NonZeroU32>,
    ramp: Duration,
    stop_above: Option<f64>,
    settle: Duration,
    keeps_order: bool,
    is_unchecked: bool,
}

impl<'a> Redrive<'a> {
    pub(super) fn new(letters: &'a DeadLetters, selection: Selection) -> Self {
        Self {
            letters,
            selection,
            to: letters.consumer().into(),
            job: uuid::Uuid::now_v7().simple().to_string().into(),
            is_dry: false,
            batch: None,
            rate: Some(RATE),
            ramp: RAMP,
            stop_above: Some(STOP_ABOVE),
            settle: SETTLE,
            // As the toolkit names them.
            keeps_order: letters.consumer().ends_with(".ordered"),
            is_unchecked: false,
        }
    }

    /// The job's name. To go on with a job that died, give its name again. Default: a new one.
    pub fn job(mut self, name: &str) -> Self {
        self.job = name.into();
        self
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.job
    }

    /// Sends to another queue or ordered group than the letters are beside: to one that takes an older
    /// version by an upcast, for example.
    pub fn to(mut self, consumer: &str) -> Self {
        self.to = consumer.into();
        self
    }

    /// Sends nothing, and says what it would send.
    pub fn dry_run(mut self) -> Self {
        self.is_dry = true;
        self
    }

    /// How many letters are sent at a time, at most 1000. Default: 100, and 500 without a limit of the
    /// rate.
    pub fn batch(mut self, letters: usize) -> Self {
        self.batch = Some(letters.clamp(1, BATCH_MAX));
        self
    }

    fn batch_size(&self) -> usize {
        let default = self.rate.map_or(BATCH_UNLIMITED, |_| BATCH);
        self.batch.unwrap_or(default)
    }

    /// How many letters are sent in a second, once the [ramp](Self::ramp) is over. Default: 500.
    pub fn rate(mut self, letters: NonZeroU32) -> Self {
        self.rate = Some(letters);
        self
    }

    /// Sends as fast as the broker takes it, from the beginning.
    pub fn unlimited(mut self) -> Self {
        self.rate = None;
        self
    }

    /// How long it takes to come from a twentieth of the rate to the whole of it. Default: 10 seconds.
    pub fn ramp(mut self, time: Duration) -> Self {
        self.ramp = time;
        self
    }

    /// Stops when more than this part of the messages that were sent have come back as dead letters,
    /// and at least [`CAME_BACK_MIN`]. A message that is tried again for minutes comes back after
    /// that. Default: 0.2.
    pub fn stop_above(mut self, part: f64) -> Self {
        self.stop_above = Some(part);
        self
    }

    /// Goes on however many come back.
    pub fn never_stop(mut self) -> Self {
        self.stop_above = None;
        self
    }

    /// How long to wait, after the last letter, for what comes back; when all have come back, no
    /// longer. A consumer that is slow needs more. Default: 2 seconds.
    pub fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// Whether a letter stays while an earlier one of its key does, because it is not among the
    /// selected ones or could not be sent. Default: yes for ordered groups.
    pub fn keep_order(mut self, keeps: bool) -> Self {
        self.keeps_order = keeps;
        self
    }

    /// Sends also letters whose name the consumer does not take. By default they stay
    /// ([`Outcome::NotSent`]), if the [store](DeadLetters::store) that was given is the consumer's, which has the
    /// names that it takes. A consumer that gets one nevertheless makes it a dead letter again.
    pub fn unchecked(mut self) -> Self {
        self.is_unchecked = true;
        self
    }

    /// Runs the job over the letters that are there now; those that come later are not sent. `on` is
    /// told what becomes of each, and how far it is. Dropped, the job ends where it is.
    ///
    /// # Errors
    ///
    /// When the letters cannot be held, or the broker is away for more than five minutes;
    /// [`Code::NotTaken`] when the consumer's queue is gone or takes nothing for a minute. What was
    /// sent stays sent, and all else is still there. A job that stops because too much comes back is
    /// no error: [`Report::stopped`].
    pub async fn run(self, on: impl FnMut(Event<'_>)) -> Result<Report, Error> {
        job::Job::begin(&self, on).await?.run().await
    }
}

/// What a job says while it runs.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What became of a letter. One that comes back is told of twice.
    Letter {
        /// Which letter.
        letter: &'a Letter,
        /// What became of it.
        outcome: Outcome,
    },
    /// How far it is; after each batch.
    Progress(&'a Report),
}

/// What became of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It would be sent, if this were no dry run.
    WouldSend,
    /// The consumer's queue has it, and the dead letters do not any more.
    Sent,
    /// It is a dead letter again; its reason is the letter's.
    CameBack,
    /// It stays because an earlier letter of its key does.
    KeptBack,
    /// It cannot be sent as it is, and stays.
    NotSent {
        /// Why.
        why: String,
    },
}

/// What a job has done.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Its name.
    pub job: Box<str>,
    /// How many letters there were when it began.
    pub total: u64,
    /// How many were sent; of a dry run, would be. A letter that was sent twice, because the broker was
    /// killed and forgot that it had been taken out, counts twice.
    pub sent: u64,
    /// How many have come back so far, also of an earlier run of the job.
    pub came_back: u64,
    /// How many stay because an earlier letter of their key does.
    pub kept_back: u64,
    /// How many cannot be sent as they are.
    pub not_sent: u64,
    /// How many are not among the selected ones.
    pub passed_over: u64,
    /// Why it ended before it was through, if it did.
    pub stopped: Option<Stopped>,
}

/// Too many letters came back.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stopped {
    /// How many came back.
    pub came_back: u64,
    /// Of how many that were sent.
    pub sent: u64,
    /// Which part was the limit.
    pub limit: f64,
}

impl Report {
    /// The error that an operator has to know of, if the job stopped.
    pub fn error(&self) -> Option<Error> {
        let stopped = self.stopped.as_ref()?;
        let says = format!(
            "the redrive `{}` stopped: {} of {} messages came back, which is more than {} in 100; \
             see why (`dead-letters groups`), mend it, and redrive the rest",
            self.job,
            stopped.came_back,
            stopped.sent,
            stopped.limit * 100.0
        );
        Some(Error::new(Code::Stopped, says))
    }
}
