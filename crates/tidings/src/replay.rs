//! Sending events of the past again, to one consumer: to a service that is added later, or that lost
//! what it had.
//!
//! A service that keeps its events ([`Router::keep_events`]) has them in its store's
//! [`Log`]. A [`Replay`] reads them in order from a point and publishes those that the
//! consumer takes into the consumer's own queue, as they were (id, key, time, headers), with the
//! header [`REPLAY_HEADER`]. Nobody else gets them.
//!
//! A run ends where the log ended when it began; what was sent later reached the queue by itself, if
//! the queue was there. So declare the queue first, by starting the service once, and then replay.
//! What is sent twice takes effect once: the consumer's inbox knows messages by their ids.
//!
//! How far it is, is a record: a replay that is killed goes on from there when it is run again. Some
//! of the last second is sent again then.

mod error;
mod job;

use std::{num::NonZeroU32, time::Duration};

use jiff::{SignedDuration, Timestamp};
use metrics::{Counter, counter};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::{
    Destination, Group, Log, LogEntry, LogPage, Outgoing, PublishErrorKind, REPLAY_HEADER, Router,
    Store, StoreError, Transport, Unrouted, slot_of, throttle::Throttle,
};

pub use error::ReplayError;
use job::{Job, Patience};
pub use job::{Progress, list};

/// How many events are read at a time.
const PAGE_COUNT_MAX: usize = 500;
/// How many are sent with one wait for confirms, at least and at most: a tenth of a second's share.
const BATCH_COUNT: (u32, u32) = (1, 500);
/// How often it is written down how far it is.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a broker or a database alone that took nothing: at first, and at most.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often the log repeats that a broker takes nothing.
const TROUBLE_LOG_EVERY: Duration = Duration::from_secs(10);
/// How far apart the order of events and the order of their times may be.
const CLOCK_MARGIN: SignedDuration = SignedDuration::from_secs(60);
/// Events a second, if nobody says otherwise: a fraction of what a consumer with a database handles.
const RATE_DEFAULT: NonZeroU32 = NonZeroU32::new(500).unwrap();

impl Router {
    /// Keeps the events that the service sends for at least `retention`, so that they can be sent
    /// again to a consumer that is added later ([`replay`](crate::replay)). By default none are.
    ///
    /// It costs one more row for each event, in the same transaction. Old ones are dropped by whole
    /// segments while the router is served. It holds for all that is committed through the router's
    /// store in this process, by handlers, [`Producer`](crate::Producer)s and schedules alike, from
    /// when the router has both this and its store: say it before the first event is published.
    pub fn keep_events(mut self, retention: Duration) -> Self {
        self.limits.keep_events = Some(retention);
        self.keep();
        self
    }

    /// Tells the store to keep events, if that was asked for.
    pub(crate) fn keep(&self) {
        let log = self.store.as_ref().and_then(|store| store.log());
        if let (Some(retention), Some(log)) = (self.limits.keep_events, log) {
            log.keep(retention.max(log.kept().unwrap_or_default()));
        }
    }

    /// Fails if it is to keep events and its store cannot.
    pub(crate) fn check_log(&self) -> Result<(), String> {
        let store = self.store.as_ref();
        let has_log = store.is_some_and(|store| store.log().is_some());
        match self.limits.keep_events {
            Some(_) if !has_log => Err(
                "it is to keep its events (`.keep_events(...)`), and its store cannot; take \
                 another store, or keep none"
                    .into(),
            ),
            _ => Ok(()),
        }
    }
}

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Start {
    /// With the oldest event that is kept.
    #[default]
    Beginning,
    /// With the events that were written at this time or later, by the database's clock.
    Time(Timestamp),
    /// With the first event after this position of the log.
    After(i64),
}

/// Events of one service's past that are sent to one consumer.
///
/// ```no_run
/// # async fn example(store: &dyn tidings::Store, transport: &dyn tidings::Transport)
/// # -> Result<(), tidings::replay::ReplayError> {
/// use tidings::replay::{Replay, Start};
///
/// let replay = Replay::to("loyalty.order-confirmed.v1").from(Start::Beginning).rate(1000);
/// let ended = replay.run(store, transport, |progress| println!("{}", progress.sent)).await?;
/// assert!(ended.is_done);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `run`"]
pub struct Replay {
    queue: String,
    group: Option<Group>,
    events: Vec<String>,
    start: Start,
    rate: NonZeroU32,
    restart: bool,
}

impl Replay {
    /// To the queue of a consumer for a kind of event, `loyalty.order-confirmed.v1`: those events are
    /// sent whose name the queue's name ends with.
    ///
    /// There is one replay to a queue at a time, and it has the queue's name.
    pub fn to(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            group: None,
            events: Vec::new(),
            start: Start::Beginning,
            rate: RATE_DEFAULT,
            restart: false,
        }
    }

    /// To an ordered group (`loyalty.ordered`): each event goes to the partition of its key. The
    /// events have to be named with [`event`](Self::event).
    pub fn to_group(group: Group) -> Self {
        Self {
            group: Some(group.clone()),
            ..Self::to(group.name)
        }
    }

    /// Sends events of this name, `order-confirmed.v1`, and of others only if they are named too: a
    /// consumer may take an older version as well ([`Router::upcast`]).
    pub fn event(mut self, name: impl Into<String>) -> Self {
        self.events.push(name.into());
        self
    }

    /// Where it begins (default: [`Start::Beginning`]).
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How many events a second are sent at most (default 500, at least 1).
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        self
    }

    /// Begins anew, if an earlier run did not come to its end. Without this such a run is gone on
    /// with.
    pub fn restart(mut self) -> Self {
        self.restart = true;
        self
    }

    /// Sends them, from `store` (the sender's) to `transport`, and calls `progress` after each batch.
    /// Resolves when everything is confirmed that was in the log at the start.
    ///
    /// While the broker cannot be reached, or refuses messages, it waits and tries again; once it has
    /// begun, it waits for the database as well, for five minutes. If this is dropped or the process
    /// dies, the next run goes on where this one was. A run that is started while another one runs
    /// takes over, and the other one ends with an error.
    ///
    /// # Errors
    ///
    /// When the store keeps no log, the queue does not exist, an unfinished run had another start or
    /// other events, another run took over, events were dropped before they were sent, or the
    /// database does not answer.
    pub async fn run(
        self,
        store: &dyn Store,
        transport: &dyn Transport,
        mut progress: impl FnMut(&Progress) + Send,
    ) -> Result<Progress, ReplayError> {
        let log = store.log().ok_or_else(ReplayError::no_log)?;
        if self.group.is_some() && self.events.is_empty() {
            return Err(ReplayError::no_events(&self.queue));
        }
        let until = log.horizon().await?;
        let (job, is_resumed) = match Job::unfinished(store, &self, until).await? {
            Ok(job) => (job, true),
            Err(expected) => {
                let dropped = log.read(until, until, 0).await?.dropped_until;
                let after = self.first(log, until, dropped).await?;
                let begun = Job::begin(store, &self, expected, after, until, dropped).await?;
                (begun, false)
            }
        };
        info!(
            to = self.queue,
            after = job.progress.position,
            until = job.progress.until,
            is_resumed,
            "replaying events"
        );
        let mut run = Run {
            sent: counter!("tidings_replay_sent_total", "queue" => self.queue.clone()),
            replay: &self,
            store,
            log,
            transport,
            job,
            next_at: Instant::now(),
            saved_at: Instant::now(),
            trouble: Throttle::new(TROUBLE_LOG_EVERY),
        };
        progress(&run.job.progress);
        while run.page(&mut progress).await? {}
        run.job.finish(store).await?;
        progress(&run.job.progress);
        Ok(run.job.progress)
    }

    /// The position after which it begins.
    async fn first(&self, log: &dyn Log, until: i64, dropped: i64) -> Result<i64, ReplayError> {
        match self.start {
            Start::Beginning => Ok(0),
            Start::After(position) if position < dropped => {
                Err(ReplayError::dropped(&self.queue, position, dropped))
            }
            Start::After(position) => Ok(position),
            Start::Time(time) => {
                let time = time.saturating_sub(CLOCK_MARGIN).unwrap_or(Timestamp::MIN);
                Ok(position_of(log, time, until).await?)
            }
        }
    }

    fn takes(&self, name: &str) -> bool {
        match self.events.is_empty() {
            true => {
                let before = self.queue.strip_suffix(name);
                before.is_some_and(|before| before.len() > 1 && before.ends_with('.'))
            }
            false => self.events.iter().any(|event| event == name),
        }
    }

    /// The message for the consumer, if it is one of those that are sent.
    fn message(&self, id: &str, entry: &LogEntry, event: &Outgoing) -> Option<Outgoing> {
        if !self.takes(&event.envelope.name) {
            return None;
        }
        if let Start::Time(time) = self.start
            && entry.written < time
        {
            return None;
        }
        let key = event.envelope.key.as_deref();
        let queue = match (&self.group, key) {
            (None, _) => self.queue.clone(),
            (Some(group), None) => group.any(),
            (Some(group), Some(key)) => group.partition(group.partition_of_slot(slot_of(key))),
        };
        let mut envelope = event.envelope.clone();
        envelope.headers.push((REPLAY_HEADER.into(), id.into()));
        Some(Outgoing {
            destination: Destination::Queue(queue.into()),
            unrouted: Unrouted::Hold,
            envelope,
        })
    }
}

/// The position before the first event that was written at `time` or later, by halving: events are
/// roughly in the order of their times.
async fn position_of(log: &dyn Log, time: Timestamp, until: i64) -> Result<i64, StoreError> {
    let (mut low, mut high) = (0, until);
    while low < high {
        let middle = low + (high - low) / 2;
        let page = log.read(middle, until, 1).await?;
        match page.entries.first() {
            Some(entry) if entry.written < time => low = entry.position,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// A replay that runs.
struct Run<'a> {
    replay: &'a Replay,
    store: &'a dyn Store,
    log: &'a dyn Log,
    transport: &'a dyn Transport,
    job: Job,
    sent: Counter,
    /// When the rate allows the next batch.
    next_at: Instant,
    saved_at: Instant,
    trouble: Throttle,
}

/// A message to send.
struct Item {
    position: i64,
    message: Outgoing,
    /// What lies in the log between the item before it and this one.
    before: Passed,
}

/// Events that are not sent.
#[derive(Default)]
struct Passed {
    over: u64,
    unreadable: u64,
}

impl Passed {
    fn count_in(&self, progress: &mut Progress) {
        progress.passed_over += self.over;
        progress.not_sent += self.unreadable;
    }
}

impl Run<'_> {
    /// Sends the next page. False if there is none.
    async fn page(
        &mut self,
        progress: &mut (impl FnMut(&Progress) + Send),
    ) -> Result<bool, ReplayError> {
        let (after, until) = (self.job.progress.position, self.job.progress.until);
        let page = self.read(after, until).await?;
        self.job.check_dropped(after, page.dropped_until)?;
        let Some(last) = page.entries.last().map(|entry| entry.position) else {
            return Ok(false);
        };
        let (items, after_them) = self.sort_out(&page.entries);
        let batch = (self.replay.rate.get() / 10).clamp(BATCH_COUNT.0, BATCH_COUNT.1);
        for batch in items.chunks(batch as usize) {
            self.send(batch, progress).await?;
            progress(&self.job.progress);
            self.save(false).await?;
        }
        after_them.count_in(&mut self.job.progress);
        self.job.progress.position = last;
        progress(&self.job.progress);
        self.save(false).await?;
        Ok(true)
    }

    async fn read(&self, after: i64, until: i64) -> Result<LogPage, StoreError> {
        let mut patience = Patience::new(&self.replay.queue);
        loop {
            match self.log.read(after, until, PAGE_COUNT_MAX).await {
                Err(error) if error.is_unavailable() => patience.wait(error).await?,
                page => return page,
            }
        }
    }

    /// The messages of a page for the consumer, and what lies behind the last of them.
    fn sort_out(&self, entries: &[LogEntry]) -> (Vec<Item>, Passed) {
        let mut items = Vec::new();
        let mut passed = Passed::default();
        for entry in entries {
            let position = entry.position;
            let event = match &entry.message {
                Ok(event) => event,
                Err(why) => {
                    error!(position, "an event in the log cannot be read: {why}");
                    passed.unreadable += 1;
                    continue;
                }
            };
            match self.replay.message(&self.job.progress.id, entry, event) {
                Some(message) => items.push(Item {
                    position,
                    message,
                    before: std::mem::take(&mut passed),
                }),
                None => passed.over += 1,
            }
        }
        (items, passed)
    }

    /// Sends a batch, as soon as the rate allows it; as often as it takes. What comes after the first
    /// message that was not taken is sent again with it, so that no key's order suffers.
    async fn send(
        &mut self,
        batch: &[Item],
        progress: &mut (impl FnMut(&Progress) + Send),
    ) -> Result<(), ReplayError> {
        let mut left = batch;
        let mut pause = TRY_AGAIN.0;
        while !left.is_empty() {
            self.wait_for_rate(left.len()).await;
            let messages = left.iter().map(|item| item.message.clone()).collect();
            let outcomes = self.transport.publish(messages).await;
            let mut trouble = None;
            for outcome in outcomes.into_iter().take(left.len()) {
                let Some((item, rest)) = left.split_first() else {
                    break;
                };
                match outcome {
                    Ok(()) => {
                        self.job.progress.sent += 1;
                        self.sent.increment(1);
                    }
                    Err(error) if error.kind() == PublishErrorKind::Invalid => {
                        self.job.progress.not_sent += 1;
                        let position = item.position;
                        error!(position, "an event can never be sent as it is: {error}");
                    }
                    Err(error) if error.kind() == PublishErrorKind::Unroutable => {
                        self.save(true).await?;
                        let queue = item.message.destination.name();
                        return Err(ReplayError::no_queue(queue, self.replay.group.is_some()));
                    }
                    Err(error) => {
                        trouble = Some(error.to_string());
                        break;
                    }
                }
                item.before.count_in(&mut self.job.progress);
                self.job.progress.position = item.position;
                left = rest;
            }
            self.job.progress.trouble = trouble;
            if let Some(trouble) = &self.job.progress.trouble {
                if self.trouble.allows() {
                    warn!(to = self.replay.queue, "the replay waits: {trouble}");
                }
                progress(&self.job.progress);
                self.save(false).await?;
                sleep(pause).await;
                pause = (pause * 2).min(TRY_AGAIN.1);
            }
        }
        Ok(())
    }

    async fn wait_for_rate(&mut self, count: usize) {
        sleep_until(self.next_at).await;
        let share = Duration::from_secs(1) * count as u32 / self.replay.rate.get();
        self.next_at = Instant::now() + share;
    }

    /// Writes down how far it is, now or if it is time.
    async fn save(&mut self, now: bool) -> Result<(), ReplayError> {
        if now || self.saved_at.elapsed() >= SAVE_EVERY {
            self.job.save(self.store).await?;
            self.saved_at = Instant::now();
            debug!(to = self.replay.queue, "{:?}", self.job.progress);
        }
        Ok(())
    }
}
