//! What a world knows of what goes on in it: every operation of its services that is under way, what
//! they published, and what the test wants to go wrong.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tidings_core::{Lease, Outgoing, Store, StoreError};
use tokio::{sync::Notify, time::Instant};

/// Where a service can be made to crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// The handler has returned, nothing of its attempt is committed.
    BeforeCommit,
    /// What the handler sent is committed; the broker has none of it.
    AfterCommitBeforePublish,
    /// The broker has it, and its confirm never arrives: it is still in the outbox.
    AfterPublishBeforeConfirm,
    /// The attempt is committed, its message is not acknowledged.
    AfterHandlerBeforeAck,
}

/// The state that all decorators of a world share.
#[derive(Default)]
pub(super) struct Watch {
    state: Mutex<State>,
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    /// Counts whatever began or ended.
    activity: u64,
    numbers: u64,
    under_way: BTreeMap<u64, Operation>,
    leases: HashMap<Lease, LeasedRow>,
    /// The names under which messages wait in stores, as workers ask for them.
    consumers: HashSet<Box<str>>,
    crash_at: Option<CrashPoint>,
    faults: Faults,
    sent: Vec<Outgoing>,
    /// When messages that wait in the broker are due.
    due: Vec<(String, Instant)>,
}

struct Operation {
    service: u64,
    what: String,
    is_handler: bool,
}

struct LeasedRow {
    service: u64,
    what: String,
    ends: Instant,
}

/// What goes wrong in the broker.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) is_doubling: bool,
    pub(super) is_reordering: bool,
    pub(super) refused: HashSet<String>,
}

/// One run of a service, from its start to its end.
pub(super) struct Life {
    pub(super) service: u64,
    pub(super) watch: Arc<Watch>,
    has_crashed: AtomicBool,
    crash: Notify,
    /// Its relays, with the outboxes of whose lanes the world cannot end the leases.
    relays: Mutex<HashMap<String, Arc<dyn Store>>>,
}

impl Watch {
    pub(super) fn life(self: &Arc<Self>) -> Arc<Life> {
        let mut state = self.state.lock();
        state.numbers += 1;
        Arc::new(Life {
            service: state.numbers,
            watch: Arc::clone(self),
            has_crashed: AtomicBool::new(false),
            crash: Notify::new(),
            relays: Mutex::default(),
        })
    }

    pub(super) fn activity(&self) -> u64 {
        self.state.lock().activity
    }

    /// What is under way, for people; and whether a handler is among it.
    pub(super) fn under_way(&self) -> (Vec<String>, bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.leases.retain(|_, row| row.ends > now);
        let operations = state.under_way.values().map(|it| it.what.clone());
        let rows = state.leases.values().map(|it| it.what.clone());
        let has_handler =
            !state.leases.is_empty() || state.under_way.values().any(|it| it.is_handler);
        (operations.chain(rows).collect(), has_handler)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.state.lock().faults)
    }

    pub(super) fn faults(&self) -> Faults {
        self.state.lock().faults.clone()
    }

    pub(super) fn crash_at(&self, point: Option<CrashPoint>) -> Option<CrashPoint> {
        std::mem::replace(&mut self.state.lock().crash_at, point)
    }

    pub(super) fn armed(&self) -> Option<CrashPoint> {
        self.state.lock().crash_at
    }

    pub(super) fn consumers(&self) -> Vec<Box<str>> {
        self.state.lock().consumers.iter().cloned().collect()
    }

    pub(super) fn record(&self, message: Outgoing) {
        self.state.lock().sent.push(message);
    }

    pub(super) fn sent(&self) -> Vec<Outgoing> {
        self.state.lock().sent.clone()
    }

    pub(super) fn delayed(&self, queue: &str, delay: Duration) {
        if !delay.is_zero() {
            let due = (queue.to_owned(), Instant::now() + delay);
            self.state.lock().due.push(due);
        }
    }

    /// How long until a message that waits in the broker is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.due.retain(|(_, at)| *at > now);
        let first = state.due.iter().map(|(_, at)| *at).min();
        first.map(|at| at - now)
    }

    /// How many messages of a queue wait for their time.
    pub(super) fn delayed_in(&self, queue: &str) -> usize {
        let state = self.state.lock();
        let now = Instant::now();
        let of_queue = state.due.iter().filter(|(of, at)| of == queue && *at > now);
        of_queue.count()
    }
}

impl Life {
    /// Something begins; it is under way until the value is dropped. Never, after a crash.
    pub(super) async fn begin(self: &Arc<Self>, what: impl Into<String>) -> UnderWay {
        self.alive().await;
        self.begun(what, false)
    }

    pub(super) fn begun(self: &Arc<Self>, what: impl Into<String>, is_handler: bool) -> UnderWay {
        let mut state = self.watch.state.lock();
        state.numbers += 1;
        state.activity += 1;
        let number = state.numbers;
        let operation = Operation {
            service: self.service,
            what: what.into(),
            is_handler,
        };
        state.under_way.insert(number, operation);
        UnderWay {
            number,
            life: Arc::clone(self),
        }
    }

    /// Waits for ever once the service has crashed: nothing it does has an effect any more.
    pub(super) async fn alive(&self) {
        if self.has_crashed.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// The service came to `point`: the end of it, if that is where it is to crash.
    pub(super) async fn reach(&self, point: CrashPoint) {
        self.alive().await;
        {
            let mut state = self.watch.state.lock();
            if state.crash_at != Some(point) {
                return;
            }
            state.crash_at = None;
        }
        self.crash();
        std::future::pending::<()>().await;
    }

    pub(super) fn crash(&self) {
        self.has_crashed.store(true, Ordering::SeqCst);
        self.crash.notify_one();
    }

    pub(super) async fn crashed(&self) {
        self.crash.notified().await;
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.has_crashed.load(Ordering::SeqCst)
    }

    /// Nothing of this service is under way any more: it is gone.
    pub(super) fn end(&self) {
        let mut state = self.watch.state.lock();
        state.activity += 1;
        state.under_way.retain(|_, it| it.service != self.service);
        state.leases.retain(|_, it| it.service != self.service);
        drop(state);
        self.watch.changed.notify_one();
    }

    pub(super) fn leased(&self, lease: Lease, what: String, lasts: Duration) {
        let row = LeasedRow {
            service: self.service,
            what,
            ends: Instant::now() + lasts,
        };
        self.watch.state.lock().leases.insert(lease, row);
    }

    pub(super) fn relays_with(&self, relay: &str, store: &Arc<dyn Store>) {
        let mut relays = self.relays.lock();
        relays.insert(relay.to_owned(), Arc::clone(store));
    }

    /// Ends the leases of its relays, as time does on the world's clock.
    pub(super) async fn end_leases(&self) -> Result<(), StoreError> {
        let relays = std::mem::take(&mut *self.relays.lock());
        for (relay, store) in relays {
            store.outbox().release(&relay, None).await?;
        }
        Ok(())
    }

    pub(super) fn asked_for(&self, consumers: &[Box<str>]) {
        let mut state = self.watch.state.lock();
        state.consumers.extend(consumers.iter().cloned());
    }

    pub(super) fn renewed(&self, leases: &[Lease], lasts: Duration) {
        let mut state = self.watch.state.lock();
        for lease in leases {
            if let Some(row) = state.leases.get_mut(lease) {
                row.ends = Instant::now() + lasts;
            }
        }
    }

    pub(super) fn settled(&self, leases: &[Lease]) {
        let mut state = self.watch.state.lock();
        for lease in leases {
            state.leases.remove(lease);
        }
    }
}

/// Something that is under way.
pub(super) struct UnderWay {
    number: u64,
    life: Arc<Life>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let watch = &self.life.watch;
        let mut state = watch.state.lock();
        state.under_way.remove(&self.number);
        state.activity += 1;
        drop(state);
        watch.changed.notify_one();
    }
}
