//! Attempts that run where the data is: the future of a handler is polled on the writer's own thread.
//!
//! A handler that only uses its `Tx` is done there without a change of thread: the claim of its
//! message, and in a savepoint its statements and its outbox rows, follow one another. One that awaits
//! something else goes on in its own task: with nothing written it comes back when it wants its
//! transaction. In the middle of its transaction it is undone, so that the others are committed, and
//! tried again with nothing before it; then it keeps the writer, as any [`Session`] does.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    task::{self, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::Connection;
use tidings_core::{
    BoxError, Commit, Committed, InboxEntry, StoreError, TransactionSlot, Work, WorkError,
    WorkFuture,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};

use crate::{
    Shared, SqliteStore,
    error::{self, Failure},
    inbox,
    own::Own,
    transaction::{Begun, SqliteTransaction, gone, take_postponed, write_commit},
    writer::{Job, Session, Unit},
};

/// How long a handler may take on the writer's thread, while all other writes wait.
const BUSY_MAX: Duration = Duration::from_millis(10);

/// An attempt on its way to the writer.
pub(crate) struct Attempt {
    slot: Arc<TransactionSlot>,
    claim: Option<InboxEntry>,
    future: WorkFuture,
    /// What the future's timers and sockets belong to.
    runtime: Handle,
    shared: Arc<Shared>,
    reply: oneshot::Sender<Ran>,
}

/// What became of an attempt on the writer's thread.
pub(crate) enum Ran {
    Ended(Result<Committed, WorkError>),
    /// It awaits something else, and nothing is written.
    Elsewhere(Option<InboxEntry>, WorkFuture),
    /// The same in the middle of its transaction, which goes on as a [`Session`].
    Held(WorkFuture),
}

/// Runs `work` on the writer's thread, as far as that goes.
pub(crate) async fn run(store: &SqliteStore, work: Work) -> Result<Committed, WorkError> {
    let shared = &store.0;
    let (slot, mut claim, mut future) = work.into_parts();
    slot.put_when_wanted();
    let (mut has_begun, has_claim) = (false, claim.is_some());
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
            runtime: Handle::current(),
            shared: Arc::clone(shared),
            reply,
        };
        let not_begun = |error| match has_begun {
            false => WorkError::NotBegun(error),
            true => WorkError::Store(error),
        };
        let sent = shared.send(Job::Attempt(Box::new(attempt))).await;
        sent.map_err(not_begun)?;
        match ran.await {
            Ok(Ran::Ended(Err(WorkError::NotBegun(error)))) => return Err(not_begun(error)),
            Ok(Ran::Ended(outcome)) => return outcome,
            Ok(Ran::Held(future)) => {
                // The claim, if there is one, is written already.
                let settled = Work::settle(store, &slot, None, future.await).await?;
                return Ok(after_claim(settled, has_claim));
            }
            Ok(Ran::Elsewhere(back, unfinished)) => (claim, future) = (back, unfinished),
            Err(_) => return Err(WorkError::Store(gone())),
        }
        if !has_begun {
            shared.habits.began(claim.as_ref(), true);
        }
        (has_begun, is_elsewhere) = (true, true);
    }
}

/// What became of a commit, whose entries follow that of the claim if there is one.
fn after_claim(committed: Committed, has_claim: bool) -> Committed {
    match committed {
        Committed::Refused { entry, why } => Committed::Refused {
            entry: entry + usize::from(has_claim),
            why,
        },
        Committed::Done => Committed::Done,
    }
}

thread_local! {
    /// The attempt whose transaction runs on this thread, and the writer's connection.
    static HERE: RefCell<Option<(Arc<Handover>, Rc<Connection>)>> = const { RefCell::new(None) };
}

/// A transaction on the writer's thread: its statements run at once as long as its handler is there
/// too. When the handler leaves, they go through a [`Session`].
#[derive(Default)]
pub(crate) struct Handover {
    left: Mutex<Option<Result<Begun, Failure>>>,
    changed: Notify,
}

impl Handover {
    /// The connection, if this is the thread where the transaction runs.
    pub(crate) fn here(&self) -> Option<Rc<Connection>> {
        HERE.with_borrow(|here| {
            let here = here.as_ref();
            let (_, connection) = here.filter(|(own, _)| std::ptr::eq(&**own, self))?;
            Some(Rc::clone(connection))
        })
    }

    /// The session that the transaction goes on as, once its handler has left the writer's thread.
    pub(crate) async fn session(&self) -> Result<Begun, StoreError> {
        loop {
            let left = self.left.lock().take();
            match left {
                Some(Ok(begun)) => return Ok(begun),
                Some(Err(why)) => {
                    let error = why.error();
                    self.leave(Err(why)); // For whoever asks again.
                    return Err(error);
                }
                None => {}
            }
            self.changed.notified().await;
        }
    }

    fn leave(&self, left: Result<Begun, Failure>) {
        *self.left.lock() = Some(left);
        self.changed.notify_one();
    }
}

/// Says that this thread is where a transaction runs, until it is dropped.
struct Entered;

impl Entered {
    fn new(handover: &Arc<Handover>, connection: &Rc<Connection>) -> Self {
        HERE.set(Some((Arc::clone(handover), Rc::clone(connection))));
        Self
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

/// How far an attempt got on the writer's thread.
pub(crate) enum Reached {
    /// To its end: this is to be kept or undone, and then told.
    Ended(Unit),
    /// Nothing of it stays.
    Gone,
    /// It holds the writer.
    Holds(Session),
}

impl Attempt {
    pub(crate) fn refuse(self, why: StoreError) {
        let _ = self.reply.send(Ran::Ended(Err(WorkError::NotBegun(why))));
    }

    /// Whether nobody's commit may depend on how it ends.
    pub(crate) fn is_apart(&self) -> bool {
        self.shared.habits.leaves(self.claim.as_ref())
    }

    /// Runs in a part of the outer transaction, which the caller ends. If `others_wait` to be committed
    /// with it, it cannot stay away in the middle of its transaction.
    pub(crate) fn run(
        mut self,
        connection: &Rc<Connection>,
        own: &mut Own<'_>,
        others_wait: bool,
    ) -> Reached {
        if self.reply.is_closed() {
            return Reached::Gone; // Nobody waited for it any more.
        }
        match self.write_claim(own) {
            Ok(None) => {}
            Ok(Some(refused)) => return self.end(Ok(refused), false),
            Err(error) => return self.end(Err(WorkError::NotBegun(error)), false),
        }
        let task = &mut task::Context::from_waker(Waker::noop());
        let runtime = self.runtime.clone();
        let _in_runtime = runtime.enter();
        let mut transaction = None;
        let since = Instant::now();
        let ended = loop {
            match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(task))) {
                Ok(Poll::Ready(ended)) => break ended,
                Err(_) => break Err("the attempt panicked; see the log for where".into()),
                Ok(Poll::Pending) if self.slot.is_wanted(task) => {
                    if let Err(error) = self.save(own) {
                        return self.end(Err(WorkError::Store(error)), false);
                    }
                    let handover = Arc::new(Handover::default());
                    transaction =
                        Some((Entered::new(&handover, connection), Arc::clone(&handover)));
                    let begun = SqliteTransaction::here(Arc::clone(&self.shared), handover);
                    self.slot.put(Box::new(begun));
                }
                Ok(Poll::Pending) => {
                    return self.leave(transaction.map(|(_, handover)| handover), others_wait);
                }
            }
        };
        self.note(since.elapsed());
        if let Some((_, handover)) = transaction {
            handover.leave(Err(Failure::new(
                "the handler has returned; a transaction cannot outlive it",
            )));
        }
        self.finish(connection, own, ended)
    }

    /// How long its handler kept the thread.
    fn note(&self, took: Duration) {
        let claim = self.claim.as_ref();
        if self.shared.habits.ended(claim, took > BUSY_MAX) {
            tracing::warn!(
                consumer = claim.map(|entry| &*entry.claim.consumer),
                "the handler was again and again busy for more than {BUSY_MAX:?} without awaiting \
                 anything but its `Tx` (now {took:?}); from now on it runs in a task of its own, \
                 which is slower for this handler and keeps the writer free between its statements"
            );
        }
    }

    /// What it writes from now on can be undone.
    fn save(&self, own: &mut Own<'_>) -> Result<(), StoreError> {
        own.save()
            .map_err(|error| error::explain(&self.shared.path, "begin to write", &error))
    }

    fn write_claim(&self, own: &mut Own<'_>) -> Result<Option<Committed>, StoreError> {
        let Some(entry) = &self.claim else {
            return Ok(None);
        };
        if let Some(why) = inbox::misuse(entry) {
            return Err(StoreError::new(why));
        }
        let refusal = own
            .claim(entry)
            .map_err(|error| error::explain(&self.shared.path, "write to the inbox", &error))?;
        Ok(refusal.map(|why| Committed::Refused { entry: 0, why }))
    }

    /// It awaits what this thread cannot give.
    fn leave(self, transaction: Option<Arc<Handover>>, others_wait: bool) -> Reached {
        let Some(handover) = transaction else {
            let _ = self.reply.send(Ran::Elsewhere(self.claim, self.future));
            return Reached::Gone;
        };
        if let Some(entry) = &self.claim {
            if self.shared.habits.left(Some(entry)) {
                tracing::info!(
                    consumer = &*entry.claim.consumer,
                    "the handler awaits something else in the middle of its transaction, so from \
                     now on its attempts share no commit with others; do slow work before the first \
                     use of `Tx`"
                );
            }
            if others_wait {
                let why = "the handler awaits something else in the middle of its transaction while \
                           others wait to be committed with it; it is tried again alone";
                let why = Failure::conflict(why);
                let error = WorkError::Store(why.error());
                handover.leave(Err(why));
                return self.end(Err(error), false);
            }
        }
        let (begun, session) = Begun::new(None);
        handover.leave(Ok(begun));
        // If nobody waits for it any more, its transaction is dropped with it.
        let _ = self.reply.send(Ran::Held(self.future));
        Reached::Holds(session)
    }

    fn finish(
        self,
        connection: &Connection,
        own: &mut Own<'_>,
        ended: Result<Commit, BoxError>,
    ) -> Reached {
        let transaction = self.slot.take();
        let commit = match (ended, transaction) {
            (Err(error), _) => return self.end(Err(WorkError::Failed(error)), false),
            (Ok(_), Err(error)) => return self.end(Err(WorkError::Store(error)), false),
            (Ok(commit), Ok(transaction)) => {
                let postponed = take_postponed(transaction);
                let has_more = !commit.is_empty() || !postponed.is_empty();
                let written = match has_more {
                    true => self
                        .save(own)
                        .and_then(|()| write_commit(&self.shared, connection, postponed, &commit)),
                    false => Ok(Committed::Done),
                };
                written.map(|committed| (committed, !commit.outbox.is_empty()))
            }
        };
        match commit {
            Ok((refused @ Committed::Refused { .. }, _)) => {
                let refused = after_claim(refused, self.claim.is_some());
                self.end(Ok(refused), false)
            }
            Ok((Committed::Done, sends)) => self.end(Ok(Committed::Done), sends),
            Err(error) => self.end(Err(WorkError::Store(error)), false),
        }
    }

    fn end(self, outcome: Result<Committed, WorkError>, sends: bool) -> Reached {
        let Self { shared, reply, .. } = self;
        Reached::Ended(Unit {
            keep: matches!(outcome, Ok(Committed::Done)),
            done: Box::new(move |durable| {
                if durable.is_ok() && sends {
                    shared.wake_relays();
                }
                let outcome = durable.map_err(WorkError::Store).and(outcome);
                let _ = reply.send(Ran::Ended(outcome));
            }),
        })
    }
}
