//! What the connections learn without the engine's lock: what is durable, which alarms there are, and that everything ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidings_broker_log::{Event, Lsn};
use tokio::sync::Notify;

use crate::outbound::Outbound;

/// What the log's thread and the timers tell the connections, without the engine's lock.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    durable: AtomicU64,
    /// Who wants to be woken when the log makes progress; each once.
    waiting: Mutex<Vec<Arc<Outbound>>>,
    pub(super) disk_full: AtomicBool,
    pub(super) memory_full: AtomicBool,
    stopping: AtomicBool,
    failure: OnceLock<String>,
    failed: Notify,
    /// Bytes of messages appended since the start, and how many of them are synced.
    appended_bytes: AtomicU64,
    synced_bytes: AtomicU64,
    /// What `appended_bytes` was at positions of the log that are not yet synced.
    checkpoints: Mutex<VecDeque<(Lsn, u64)>>,
    /// Alarms changed: everybody has to look.
    pub(super) changed: Notify,
    /// The next deadline is earlier than it was.
    pub(crate) deadline: Notify,
}

impl Signals {
    pub(super) fn on_log(&self, event: Event) {
        match event {
            Event::Durable(lsn) => {
                self.durable.store(lsn.0, Ordering::Release);
                let mut checkpoints = self.checkpoints.lock();
                while let Some((at, bytes)) = checkpoints.front().copied()
                    && at <= lsn
                {
                    self.synced_bytes.store(bytes, Ordering::Relaxed);
                    checkpoints.pop_front();
                }
                drop(checkpoints);
                for outbound in self.waiting.lock().drain(..) {
                    outbound.wake();
                }
                return;
            }
            Event::DiskFull => {
                tracing::error!("the disk is full; publishers have to wait");
                self.disk_full.store(true, Ordering::Relaxed);
            }
            Event::DiskRoomy => {
                tracing::info!("the disk has room again");
                self.disk_full.store(false, Ordering::Relaxed);
            }
            Event::Failed(error) => {
                tracing::error!(%error, "the log has failed; nothing can be confirmed any more");
                self.fail(error.to_string());
            }
        }
        self.changed.notify_one();
    }

    /// Ends everything: nothing can be stored any more.
    pub(super) fn fail(&self, why: String) {
        // The first failure is the one that counts.
        let _ = self.failure.set(why);
        self.failed.notify_waiters();
        self.changed.notify_one();
    }

    /// Everything up to here is on stable storage.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Why nothing can be stored any more.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Completes when the log has failed.
    pub(crate) async fn failed(&self) -> String {
        loop {
            let failed = self.failed.notified();
            if let Some(failure) = self.failure() {
                return failure.to_owned();
            }
            failed.await;
        }
    }

    /// Completes when an alarm or the log's fate has changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Asks every connection to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Bytes of messages that wait for the disk.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        let synced = self.synced_bytes.load(Ordering::Relaxed);
        self.appended_bytes
            .load(Ordering::Relaxed)
            .saturating_sub(synced)
    }

    /// Notes that the log holds `bytes` more, up to `lsn`.
    pub(super) fn appended(&self, bytes: u64, lsn: Lsn) {
        /// Fine enough, and few.
        const CHECKPOINT_BYTES: u64 = 64 * 1024;
        let total = self.appended_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut checkpoints = self.checkpoints.lock();
        let before = checkpoints
            .iter()
            .nth_back(1)
            .map_or(0, |(_, bytes)| *bytes);
        match checkpoints.back_mut() {
            Some(last) if last.1 - before < CHECKPOINT_BYTES => *last = (lsn, total),
            _ => checkpoints.push_back((lsn, total)),
        }
    }

    /// Wakes `outbound` at the log's next progress. Look at [`Signals::durable`] once more
    /// afterwards.
    pub(crate) fn wake_when_durable(&self, outbound: &Arc<Outbound>) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|other| other.id == outbound.id) {
            waiting.push(outbound.clone());
        }
    }
}
