//! What has to be done now and then: watching the outbox, and forgetting old claims.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Store, throttle::Throttle};

/// How often the outbox is measured.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How often the log repeats that the outbox is stuck.
const ALARM_EVERY: Duration = Duration::from_secs(30);
/// How often old claims are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How many claims one transaction deletes, so that it is short.
const FORGET_COUNT_MAX: usize = 1000;

/// Measures the outbox, and warns when its oldest message is older than `alarm`.
pub(crate) async fn watch(
    service: String,
    store: Arc<dyn Store>,
    alarm: Duration,
    stop: CancellationToken,
) {
    let unsent = gauge!("tidings_outbox_unsent", "service" => service.clone());
    let oldest = gauge!("tidings_outbox_oldest_age_seconds", "service" => service.clone());
    let mut warnings = Throttle::new(ALARM_EVERY);
    let mut tick = interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let stats = match store.outbox_stats().await {
            Ok(stats) => stats,
            Err(error) => {
                debug!("the outbox was not measured: {error}");
                continue;
            }
        };
        unsent.set(stats.unsent as f64);
        oldest.set(stats.oldest_age.as_secs_f64());
        if stats.oldest_age > alarm && warnings.allows() {
            warn!(
                service,
                "{} messages wait in the outbox, the oldest for {} s: is the broker there, and \
                 does somebody listen to them?",
                stats.unsent,
                stats.oldest_age.as_secs()
            );
        }
    }
}

/// Deletes claims that are older than `window`, in small batches.
pub(crate) async fn forget(store: Arc<dyn Store>, window: Duration, stop: CancellationToken) {
    let mut tick = interval(FORGET_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        loop {
            match store.forget_claims(window, FORGET_COUNT_MAX).await {
                Ok(count) if count >= FORGET_COUNT_MAX as u64 && !stop.is_cancelled() => {
                    tokio::task::yield_now().await;
                }
                Ok(_) => break,
                Err(error) => {
                    debug!("old claims were not deleted, it is tried again: {error}");
                    break;
                }
            }
        }
    }
}
