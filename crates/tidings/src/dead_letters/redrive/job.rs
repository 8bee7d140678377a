//! A redrive that runs: it walks through the letters, sends what is selected, and looks whether it
//! comes back.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::info;

use super::{Event, Outcome, Redrive, Report, Stopped};
use crate::{
    LetterPlace, PublishError, PublishErrorKind,
    dead_letters::{
        error::{Code, Error},
        letter::Letter,
        mend::not_taken,
        pace::Pace,
        walk::{Step, Walk},
        watch::Watch,
    },
    handlers::{Taken, taken_at},
    hash_of_key,
};

/// How long to wait when nothing was taken, and how often in a row.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
const REFUSALS_MAX: u32 = 60;
/// How long others have at least to take the letters up, when the job makes room for them.
const ROOM_FOR_OTHERS: Duration = Duration::from_millis(200);
/// How often to look, at the end, whether all that were sent have come back.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many letters are read at a time to see whether they came back.
const PROBE: usize = 256;
/// How many letters that stay or came back are remembered, at 8 bytes and some.
const TOLD_MAX: usize = 1_000_000;

pub(super) struct Job<'a, F> {
    redrive: &'a Redrive<'a>,
    on: F,
    walk: Walk<'a>,
    report: Report,
    pace: Pace,
    watch: Watch,
    began: Instant,
    /// Selected letters that were read in this pass and not sent yet.
    pending: VecDeque<Letter>,
    /// The pass has read all letters.
    is_through: bool,
    /// Keys of letters that stay, in this pass.
    staying: HashSet<u64>,
    /// What was told of letters that are seen again in every pass.
    told: HashSet<u64>,
    /// How many came back of those that this run sent.
    fresh: u64,
    refusals: u32,
    /// What is taken where they are sent.
    taken: Taken,
}

impl<'a, F: FnMut(Event<'_>)> Job<'a, F> {
    pub(super) async fn begin(redrive: &'a Redrive<'a>, on: F) -> Result<Self, Error> {
        let taken = match &redrive.letters.store {
            Some(store) if !redrive.is_unchecked => taken_at(&**store, &redrive.to).await?,
            _ => Taken::Any,
        };
        let walk = Walk::begin(redrive.letters).await?;
        let report = Report {
            job: redrive.job.clone(),
            total: walk.left(),
            ..Report::default()
        };
        if !redrive.is_dry {
            let (job, to) = (&*redrive.job, &*redrive.to);
            info!(job, to, letters = report.total, "redriving dead letters");
        }
        Ok(Self {
            redrive,
            on,
            walk,
            report,
            pace: Pace {
                rate: redrive.rate,
                ramp: redrive.ramp,
            },
            watch: Watch::new(redrive.stop_above),
            began: Instant::now(),
            pending: VecDeque::new(),
            is_through: false,
            staying: HashSet::new(),
            told: HashSet::new(),
            fresh: 0,
            refusals: 0,
            taken,
        })
    }

    pub(super) async fn run(mut self) -> Result<Report, Error> {
        while self.report.stopped.is_none() {
            if !self.is_through && self.pending.len() < self.redrive.batch_size() {
                self.read().await?;
            }
            if self.pending.is_empty() {
                if self.is_through {
                    break;
                }
            } else if self.redrive.is_dry {
                self.would_send();
            } else {
                self.send_or_wait().await?;
            }
            if self.walk.is_too_long() {
                self.end_pass().await?;
            }
        }
        self.see_the_end().await?;
        let Report { job, sent, .. } = &self.report;
        info!(job = &**job, sent, "the redrive has ended");
        Ok(self.report)
    }

    async fn read(&mut self) -> Result<(), Error> {
        match self.walk.next(self.redrive.batch_size()).await? {
            Step::Letters(letters) => {
                for letter in letters {
                    self.sort(letter)?;
                }
            }
            Step::Restarted => self.forget_pass(),
            Step::End => self.is_through = true,
        }
        Ok(())
    }

    /// Decides what to do with a letter.
    fn sort(&mut self, letter: Letter) -> Result<(), Error> {
        if letter.job() == Some(&*self.redrive.job) {
            self.came_back(&letter)?;
            return Ok(());
        }
        let key = letter.envelope.key.as_deref().map(hash_of_key);
        let key = key.filter(|_| self.redrive.keeps_order);
        if !self.redrive.selection.contains(&letter) {
            self.report.passed_over += 1;
            return self.stays(key);
        }
        if key.is_some_and(|key| self.staying.contains(&key)) {
            self.report.kept_back += 1;
            return self.tell_once(&letter, Outcome::KeptBack).map(drop);
        }
        if let Some(error) = self.refuses(&letter) {
            return self.not_sent(&letter, error.to_string());
        }
        self.pending.push_back(letter);
        Ok(())
    }

    /// Why a letter would not be taken.
    fn refuses(&self, letter: &Letter) -> Option<Error> {
        let (name, to) = (&*letter.envelope.name, &*self.redrive.to);
        match &self.taken {
            Taken::Any => None,
            Taken::Only(names) if name.is_empty() || names.contains(name) => None,
            Taken::Only(_) => Some(Error::name_not_taken(name, to)),
            Taken::Nothing { instead } => Some(Error::nobody_takes(to, instead.as_deref())),
        }
    }

    fn would_send(&mut self) {
        for letter in std::mem::take(&mut self.pending) {
            self.report.sent += 1;
            self.tell(&letter, Outcome::WouldSend);
        }
        (self.on)(Event::Progress(&self.report));
    }

    async fn send_or_wait(&mut self) -> Result<(), Error> {
        let now = self.began.elapsed();
        let room = self.pace.allowed(now).saturating_sub(self.report.sent);
        if room > 0 {
            self.send(usize::try_from(room).unwrap_or(usize::MAX))
                .await?;
            return self.look_whether_to_stop().await;
        }
        let mut pause = self.pace.wait(self.report.sent, now);
        if self.walk.is_long() {
            self.end_pass().await?;
            pause = pause.max(ROOM_FOR_OTHERS);
        }
        sleep(pause).await;
        Ok(())
    }

    /// Sends the next ones, and takes out those that are confirmed.
    async fn send(&mut self, room: usize) -> Result<(), Error> {
        let batch = self.take_batch(room.min(self.redrive.batch_size()));
        let job = &self.redrive.job;
        let envelopes = batch.iter().map(|letter| letter.to_send(job)).collect();
        let access = self.redrive.letters.access()?;
        let outcomes = access.send_back(&self.redrive.to, envelopes).await;
        let (mut sent, mut again) = (Vec::new(), Vec::new());
        let (mut gone, mut refused) = (None, None);
        for (letter, outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => sent.push(letter),
                Err(error) => match error.kind() {
                    PublishErrorKind::Invalid => self.not_sent(&letter, error.to_string())?,
                    PublishErrorKind::Unroutable => gone = Some(error),
                    _ => {
                        again.push(letter);
                        refused = Some(error);
                    }
                },
            }
        }
        again
            .into_iter()
            .rev()
            .for_each(|it| self.pending.push_front(it));
        let places: Vec<LetterPlace> = sent.iter().map(|letter| letter.place).collect();
        if self.walk.remove(&places).await? {
            self.report.sent += sent.len() as u64;
            sent.iter().for_each(|it| self.tell(it, Outcome::Sent));
        } else {
            self.forget_pass();
        }
        (self.on)(Event::Progress(&self.report));
        match (gone, refused) {
            (Some(error), _) => Err(not_taken(&self.redrive.to, &error)),
            (None, Some(error)) => self.pause_after(&error).await,
            (None, None) => {
                self.refusals = 0;
                Ok(())
            }
        }
    }

    /// The first of those that wait; of a key that order is kept by, one: the next one goes when this
    /// one is there.
    fn take_batch(&mut self, count: usize) -> Vec<Letter> {
        let mut keys = HashSet::new();
        let mut batch = Vec::new();
        while batch.len() < count
            && let Some(letter) = self.pending.front()
        {
            let key = letter.envelope.key.as_deref();
            let key = key.filter(|_| self.redrive.keeps_order);
            if key.is_some_and(|key| !keys.insert(hash_of_key(key))) {
                break;
            }
            batch.extend(self.pending.pop_front());
        }
        batch
    }

    async fn pause_after(&mut self, error: &PublishError) -> Result<(), Error> {
        self.refusals += 1;
        if self.refusals > REFUSALS_MAX {
            return Err(not_taken(&self.redrive.to, error));
        }
        info!("the redrive waits: {error}");
        sleep(REFUSED_PAUSE).await;
        Ok(())
    }

    fn not_sent(&mut self, letter: &Letter, why: String) -> Result<(), Error> {
        self.report.not_sent += 1;
        let key = letter.envelope.key.as_deref().map(hash_of_key);
        self.stays(key)?;
        self.tell_once(letter, Outcome::NotSent { why }).map(drop)
    }

    /// If so many letters have come that it may be these, reads them.
    async fn look_whether_to_stop(&mut self) -> Result<(), Error> {
        let came = self.walk.came().await;
        if self.redrive.stop_above.is_none() {
            return Ok(());
        }
        let began = self.began.elapsed();
        if !self.watch.suspects(came, self.report.sent, began) {
            return Ok(());
        }
        self.probe().await?;
        let now = self.began.elapsed();
        self.watch.has_read(came, self.fresh, began, now);
        self.stop_if_too_many();
        Ok(())
    }

    fn stop_if_too_many(&mut self) {
        let (came_back, sent) = (self.fresh, self.report.sent);
        if let Some(limit) = self.redrive.stop_above
            && self.watch.is_too_many(came_back, sent)
        {
            self.report.stopped = Some(Stopped {
                came_back,
                sent,
                limit,
            });
        }
    }

    /// Reads to the end of the queue, and ends the pass.
    async fn probe(&mut self) -> Result<(), Error> {
        loop {
            let letters = match self.walk.next(PROBE).await? {
                Step::Letters(letters) => letters,
                Step::Restarted => continue,
                Step::End => break,
            };
            for letter in letters {
                if letter.job() == Some(&*self.redrive.job) {
                    self.came_back(&letter)?;
                }
            }
        }
        while let Some(letters) = self.walk.read_on(PROBE).await?
            && !letters.is_empty()
        {
            for letter in letters {
                if letter.job() == Some(&*self.redrive.job) && self.came_back(&letter)? {
                    self.fresh += 1;
                }
            }
        }
        self.end_pass().await
    }

    /// Waits for what comes back of the last ones: as long as was asked for, or until all are back.
    async fn see_the_end(&mut self) -> Result<(), Error> {
        let is_over = self.redrive.is_dry || self.report.sent == 0 || self.report.stopped.is_some();
        self.walk.pause().await?;
        if is_over {
            return Ok(());
        }
        let deadline = Instant::now() + self.redrive.settle;
        // With so many that came, all that were sent may be among them.
        let mut enough = self.report.sent;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(LOOK_EVERY.min(left)).await;
            let is_over = Instant::now() >= deadline;
            let came = match self.redrive.letters.count().await {
                Ok(count) => count.saturating_sub(self.walk.left()),
                // It may be back before the end.
                Err(error) if !is_over && error.code() == Code::Unavailable => continue,
                Err(error) => return Err(error),
            };
            if came >= enough || (is_over && came > 0) {
                self.read_what_came().await?;
                enough = came + self.report.sent.saturating_sub(self.fresh);
            }
            if is_over || self.fresh >= self.report.sent {
                break;
            }
        }
        (self.on)(Event::Progress(&self.report));
        Ok(())
    }

    async fn read_what_came(&mut self) -> Result<(), Error> {
        // The counts of the last pass stand.
        let (kept_back, not_sent) = (self.report.kept_back, self.report.not_sent);
        let passed_over = self.report.passed_over;
        self.probe().await?;
        self.report.kept_back = kept_back;
        self.report.not_sent = not_sent;
        self.report.passed_over = passed_over;
        self.stop_if_too_many();
        Ok(())
    }

    async fn end_pass(&mut self) -> Result<(), Error> {
        self.forget_pass();
        self.walk.pause().await
    }

    /// What was read is back in the queue.
    fn forget_pass(&mut self) {
        self.pending.clear();
        self.staying.clear();
        self.is_through = false;
        self.report.kept_back = 0;
        self.report.not_sent = 0;
        self.report.passed_over = 0;
        if self.redrive.is_dry {
            self.report.sent = 0;
        }
    }

    fn stays(&mut self, key: Option<u64>) -> Result<(), Error> {
        self.staying.extend(key);
        check_room(self.staying.len())
    }

    /// True if it was not known yet.
    fn came_back(&mut self, letter: &Letter) -> Result<bool, Error> {
        let is_new = self.tell_once(letter, Outcome::CameBack)?;
        self.report.came_back += u64::from(is_new);
        Ok(is_new)
    }

    fn tell(&mut self, letter: &Letter, outcome: Outcome) {
        (self.on)(Event::Letter { letter, outcome });
    }

    /// Tells what is seen again in each pass.
    fn tell_once(&mut self, letter: &Letter, outcome: Outcome) -> Result<bool, Error> {
        let what = std::mem::discriminant(&outcome);
        let name = format!("{what:?} {} {}", letter.number, letter.id);
        let is_new = self.told.insert(hash_of_key(&name));
        check_room(self.told.len())?;
        if is_new {
            self.tell(letter, outcome);
        }
        Ok(is_new)
    }
}

fn check_room(count: usize) -> Result<(), Error> {
    if count <= TOLD_MAX {
        return Ok(());
    }
    let says = format!(
        "more than {TOLD_MAX} letters stay or came back; redrive fewer at a time, by name, \
         fingerprint or time"
    );
    Err(Error::new(Code::Stopped, says))
}
