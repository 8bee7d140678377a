//! Who runs attempts: tasks that take as many as are ready, and run them in one transaction.
//!
//! Attempts that are ready wait in one queue. A *runner* is a task with a connection: it takes as many
//! as fit into a short time and runs them as a [`batch`](crate::batch). An idle one takes a single
//! attempt at once: nothing waits for company. There is one runner for a store: two would wait for
//! each other's rows, in a circle where handlers change rows that they share. One that waits for a
//! handler which awaits something else does not count.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tidings_core::{
    BoxFuture, Committed, InboxEntry, StoreError, TransactionSlot, Work, WorkError, WorkFuture,
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    PostgresStore, Shared,
    batch::{Next, run_together},
};

/// How many attempts share a transaction at most: PostgreSQL keeps 64 savepoints of a transaction
/// where others see them cheaply.
const ATTEMPTS_MAX: usize = 64;

/// How long the attempts of a transaction may take together, by what they took before: a row that
/// one of them has changed is locked for so long.
const ATTEMPTS_TIME: Duration = Duration::from_millis(10);

/// How long everybody goes alone after a transaction failed as a whole.
const APART: Duration = Duration::from_secs(5);

/// The attempts of a store that wait for its runner.
pub(crate) struct Runners {
    queue: Mutex<Queue>,
    /// How long an attempt takes, in nanoseconds: a moving average.
    pace: AtomicU64,
}

struct Queue {
    waiting: VecDeque<Attempt>,
    /// How many of the first ones are taken one by one.
    singly: usize,
    /// Whether somebody takes what waits.
    has_runner: bool,
    /// Until when everybody goes alone.
    apart: Option<Instant>,
}

impl Runners {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                singly: 0,
                has_runner: false,
                apart: None,
            }),
            pace: AtomicU64::new(200_000),
        }
    }

    /// What a runner does next; `None` ends it.
    fn take(&self) -> Option<Vec<Attempt>> {
        let mut queue = self.queue.lock();
        let pace = Duration::from_nanos(self.pace.load(Ordering::Relaxed).max(1));
        let fitting = ATTEMPTS_TIME.as_nanos() / pace.as_nanos();
        let mut count = usize::try_from(fitting).unwrap_or(ATTEMPTS_MAX);
        if let Some(until) = queue.apart {
            match Instant::now() < until {
                true => count = 1,
                false => queue.apart = None,
            }
        }
        if queue.singly > 0 {
            queue.singly -= 1;
            count = 1;
        }
        let count = count.clamp(1, ATTEMPTS_MAX).min(queue.waiting.len());
        if count == 0 {
            queue.has_runner = false;
            return None;
        }
        Some(queue.waiting.drain(..count).collect())
    }

    pub(crate) fn took(&self, time: Duration, attempts: usize) {
        let each = u64::try_from(time.as_nanos() / attempts.max(1) as u128).unwrap_or(u64::MAX);
        let pace = self.pace.load(Ordering::Relaxed);
        let pace = pace - pace / 8 + each / 8;
        self.pace.store(pace, Ordering::Relaxed);
    }

    pub(crate) fn go_apart(&self) {
        self.queue.lock().apart = Some(Instant::now() + APART);
    }
}

/// Gives an attempt to the runner.
fn send(shared: &Arc<Shared>, attempt: Attempt) {
    let mut queue = shared.runners.queue.lock();
    queue.waiting.push_back(attempt);
    attend(shared, &mut queue);
}

/// Each of these is run for itself, before all others.
pub(crate) fn put_back(shared: &Arc<Shared>, attempts: Vec<Attempt>) {
    let mut queue = shared.runners.queue.lock();
    queue.singly += attempts.len();
    for attempt in attempts.into_iter().rev() {
        queue.waiting.push_front(attempt);
    }
    attend(shared, &mut queue);
}

/// The runner waits for somebody, and takes nothing more: another one takes its place.
pub(crate) fn replace(shared: &Arc<Shared>) {
    let mut queue = shared.runners.queue.lock();
    queue.has_runner = false;
    if !queue.waiting.is_empty() {
        attend(shared, &mut queue);
    }
}

/// Sees to it that there is a runner.
fn attend(shared: &Arc<Shared>, queue: &mut Queue) {
    if !mem::replace(&mut queue.has_runner, true) {
        tokio::spawn(runner(Arc::clone(shared)));
    }
}

fn runner(shared: Arc<Shared>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let _unless_panic = ReplacedAfterPanic(Arc::clone(&shared));
        while let Some(attempts) = shared.runners.take() {
            if let Next::End = run_together(&shared, attempts).await {
                return;
            }
            // Who was told brings the next attempt. Without this the first of them has a commit of its
            // own, while all others come: every second one.
            tokio::task::yield_now().await;
        }
    })
}

/// A runner that ends by a panic is replaced.
struct ReplacedAfterPanic(Arc<Shared>);

impl Drop for ReplacedAfterPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            replace(&self.0);
        }
    }
}

/// An attempt on its way to a runner.
pub(crate) struct Attempt {
    pub(crate) slot: Arc<TransactionSlot>,
    pub(crate) claim: Option<InboxEntry>,
    pub(crate) future: WorkFuture,
    pub(crate) reply: oneshot::Sender<Ran>,
}

/// What became of an attempt there.
pub(crate) enum Ran {
    Ended(Result<Committed, WorkError>),
    /// It awaits something else, and nothing is written.
    Elsewhere(Option<InboxEntry>, WorkFuture),
}

/// Whether runners take such work: one that begins its transaction here, and whose entry in the inbox
/// can be written together with those of others.
pub(crate) fn is_for_runners(shared: &Shared, work: &Work) -> bool {
    let (claim, habits) = (work.claim(), &shared.habits);
    claim.is_none_or(InboxEntry::is_plain)
        && !work.slot().is_used()
        && !habits.leaves(claim)
        && !habits.is_busy(claim)
}

/// Has a runner run `work`, as far as that goes.
pub(crate) async fn run(store: &PostgresStore, work: Work) -> Result<Committed, WorkError> {
    let shared = &store.0;
    let (slot, mut claim, mut future) = work.into_parts();
    slot.put_when_wanted();
    let mut has_begun = false;
    let mut is_elsewhere = shared.habits.begins_elsewhere(claim.as_ref());
    if is_elsewhere && let Some(why) = Work::look(store, claim.as_ref()).await? {
        return Ok(Committed::Refused { entry: 0, why });
    }
    loop {
        if is_elsewhere {
            let (ended, has_waited) = slot.until_wanted(&mut future).await;
            if !has_begun {
                shared.habits.began(claim.as_ref(), has_waited);
            }
            has_begun = true;
            if let Some(ended) = ended {
                return Work::settle(store, &slot, claim, ended).await;
            }
        }
        let (reply, ran) = oneshot::channel();
        let attempt = Attempt {
            slot: Arc::clone(&slot),
            claim,
            future,
            reply,
        };
        send(shared, attempt);
        match ran.await {
            Ok(Ran::Ended(Err(WorkError::NotBegun(error)))) if has_begun => {
                return Err(WorkError::Store(error));
            }
            Ok(Ran::Ended(outcome)) => return outcome,
            Ok(Ran::Elsewhere(back, unfinished)) => (claim, future) = (back, unfinished),
            Err(_) => {
                let ended = StoreError::unavailable("the store has ended before the attempt has");
                return Err(WorkError::Store(ended));
            }
        }
        if !has_begun {
            shared.habits.began(claim.as_ref(), true);
        }
        (has_begun, is_elsewhere) = (true, true);
    }
}
