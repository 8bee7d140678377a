//! What has to be done now and then: watching the outbox and what waits, forgetting messages that were
//! handled long ago, and dropping old events of the log.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    OutboxStats, SEGMENTS_PER_RETENTION, Store, control, handling::Handling, throttle::Throttle,
};

/// How often the outbox is measured.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How often handlers are looked after: so much longer may what waits in the store grow beyond its
/// limit, and so long may an operator's pause take to arrive.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the log repeats that the outbox is stuck.
const ALARM_EVERY: Duration = Duration::from_secs(30);
/// How often old rows are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether events of the log are old, if they are kept for long: at least, and
/// at most. In between, as often as a segment lasts.
const DROP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How many rows one transaction deletes, so that it is short.
const FORGET_COUNT_MAX: usize = 1000;
/// How much longer than such a transaction took is left to others before the next one.
const FORGET_PAUSE: u32 = 3;

/// Measures the outbox, and warns when its oldest message that could be sent is older than `alarm`.
pub(crate) async fn watch_outbox(
    service: String,
    store: Arc<dyn Store>,
    alarm: Duration,
    stop: CancellationToken,
) {
    let named = |name: &'static str| gauge!(name, "service" => service.clone());
    let unsent = named("tidings_outbox_unsent");
    let oldest = named("tidings_outbox_oldest_age_seconds");
    let held = named("tidings_outbox_held");
    let oldest_held = named("tidings_outbox_oldest_held_age_seconds");
    let set_aside = named("tidings_outbox_set_aside");
    let mut warnings = Throttle::new(ALARM_EVERY);
    let mut tick = interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let stats = match store.outbox().stats().await {
            Ok(stats) => stats,
            Err(error) => {
                debug!("the outbox was not measured: {error}");
                continue;
            }
        };
        unsent.set(stats.ready as f64);
        oldest.set(stats.oldest_ready_age.as_secs_f64());
        held.set(stats.held as f64);
        oldest_held.set(stats.oldest_held_age.as_secs_f64());
        set_aside.set(stats.set_aside as f64);
        if stats.oldest_ready_age > alarm && warnings.allows() {
            warn_of(&service, &stats);
        }
    }
}

fn warn_of(service: &str, stats: &OutboxStats) {
    let more = if stats.ready >= OutboxStats::COUNT_MAX {
        "or more "
    } else {
        ""
    };
    warn!(
        service,
        "{} {more}messages wait in the outbox, the oldest for {} s: is the broker there?",
        stats.ready,
        stats.oldest_ready_age.as_secs()
    );
}

/// Looks whether an operator paused handlers, and counts their messages that wait in the store: a
/// handler for which `count_max` or more wait receives nothing until a tenth of them are done.
pub(crate) async fn watch_handlers(
    store: Arc<dyn Store>,
    consumer: String,
    handlings: Vec<Arc<Handling>>,
    count_max: u64,
    stop: CancellationToken,
) {
    let names: Vec<Box<str>> = handlings.iter().map(|it| (*it.queue).into()).collect();
    let mut states = vec![Watched::default(); handlings.len()];
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let paused = match control::are_paused(&*store, &consumer, &names).await {
            Ok(paused) => paused,
            Err(error) => {
                debug!("it was not asked which handlers are paused: {error}");
                continue;
            }
        };
        for ((handling, state), is_paused) in handlings.iter().zip(&mut states).zip(paused) {
            state.pause(handling, is_paused);
            match store.deferred().waiting(&handling.queue, count_max).await {
                Ok(waiting) => state.count(handling, waiting, count_max),
                Err(error) => {
                    debug!(queue = %handling.queue, "what waits was not counted: {error}")
                }
            }
        }
    }
}

/// What was seen of a handler the last time.
#[derive(Debug, Clone, Default)]
struct Watched {
    is_paused: bool,
    is_full: bool,
}

impl Watched {
    fn pause(&mut self, handling: &Handling, is_paused: bool) {
        handling.gate.hold(is_paused);
        let queue = &handling.queue;
        match (std::mem::replace(&mut self.is_paused, is_paused), is_paused) {
            (false, true) => warn!(%queue, "the handler is paused by an operator"),
            (true, false) => info!(%queue, "the handler goes on"),
            _ => {}
        }
    }

    fn count(&mut self, handling: &Handling, waiting: u64, count_max: u64) {
        handling.counts.waiting.set(waiting as f64);
        let few_enough = count_max - count_max / 10;
        let is_full = waiting >= count_max || (self.is_full && waiting > few_enough);
        handling.gate.set_full(is_full);
        let queue = &handling.queue;
        match (std::mem::replace(&mut self.is_full, is_full), is_full) {
            (false, true) => warn!(
                %queue,
                "{waiting} messages wait in the store (`deferred_count_max`): nothing more is \
                 received until some of them are done"
            ),
            (true, false) => info!(%queue, "{waiting} messages wait in the store: receiving again"),
            _ => {}
        }
    }
}

/// Deletes rows of messages that were handled longer ago than `window`, in small batches.
pub(crate) async fn forget(
    store: Arc<dyn Store>,
    consumers: Vec<Box<str>>,
    window: Duration,
    stop: CancellationToken,
) {
    let mut tick = interval(FORGET_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        for consumer in &consumers {
            while !stop.is_cancelled() {
                let began = Instant::now();
                match store.forget(consumer, window, FORGET_COUNT_MAX).await {
                    Ok(count) if count >= FORGET_COUNT_MAX as u64 => {
                        let pause = sleep(began.elapsed() * FORGET_PAUSE);
                        stop.run_until_cancelled(pause).await;
                    }
                    Ok(_) => break,
                    Err(error) => {
                        debug!("old rows were not deleted, it is tried again: {error}");
                        break;
                    }
                }
            }
        }
    }
}

/// Drops segments of the log whose events are older than they are to be kept.
pub(crate) async fn drop_old_events(store: Arc<dyn Store>, stop: CancellationToken) {
    let log = || Some((store.log()?, store.log()?.kept()?));
    while let Some((log, retention)) = log() {
        match log.drop_older(retention).await {
            Ok(0) => {}
            Ok(segments) => info!(segments, "old events of the log were dropped"),
            Err(error) => debug!("old events were not dropped, it is tried again: {error}"),
        }
        let every = (retention / SEGMENTS_PER_RETENTION).clamp(DROP_EVERY.0, DROP_EVERY.1);
        if stop.run_until_cancelled(sleep(every)).await.is_none() {
            return;
        }
    }
    stop.cancelled().await;
}
