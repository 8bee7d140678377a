//! Attempts that share a transaction.
//!
//! All their claims are written in one statement, then one after the other is polled, each in a
//! savepoint, then their outbox rows are written in one statement, and all is committed.
//!
//! ```text
//! begin, claims │ savepoint, first statement … │ savepoint, first statement … │ outbox, commit
//! ```
//!
//! What stands between two bars is sent at once. One that fails is undone to its savepoint, and its
//! claim is taken back. One that awaits something else goes on in its own task: with nothing written
//! it comes back when it wants its transaction. In the middle of its transaction it is undone, so
//! that the others are committed, and tried again in a transaction of its own.

mod end;

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    future::poll_fn,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use futures_util::future::join;
use tidings_core::{
    BoxError, Claim, Commit, Committed, InboxEntry, Outgoing, RecordId, Refusal, StoreError,
    WorkError,
};
use tokio::{
    sync::oneshot,
    task::coop::unconstrained,
    time::{Instant, sleep, timeout},
};

use self::end::COMMIT_MAX;
use crate::{
    PostgresTransaction, Shared, commit,
    connection::Connection,
    error::{Error, copy, explain},
    handover::{Handover, Lent, outlived},
    inbox, outbox,
    runner::{self, Attempt, Ran},
};

/// How long an attempt may take. If a consumer's attempts are longer, one after the other, they get
/// transactions of their own.
const BUSY_MAX: Duration = Duration::from_millis(100);

/// How long the database may take for a statement before another runner takes over, which may have a
/// better connection, or other rows to lock: for one that is alone, and for many.
const PATIENCE_ALONE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the database has for what it does at once, or not at all: then the connection is given
/// up.
const SILENT_MAX: Duration = Duration::from_secs(10);

const SAVE: &str = "savepoint attempt";
const UNDO: &str = "rollback to savepoint attempt";

/// While others wait to be committed with it, a statement of a handler waits no longer for a lock. (Two
/// batches of two processes that want each other's rows would wait for the database to notice, a second
/// by default.)
const BEGIN_SHARED: &str = "begin; set local lock_timeout = '20ms'";
const BEGIN_SHARED_AND_SAVE: &str = "begin; set local lock_timeout = '20ms'; savepoint attempt";

/// The connection is of no use any more, and with it the transaction.
struct Broken;

/// A transaction that attempts share.
struct Batch<'a> {
    shared: &'a Arc<Shared>,
    connection: Arc<Connection>,
    _unless_panic: GivenUpByPanic,
    /// There is only one attempt, which needs no savepoint.
    is_alone: bool,
    has_begun: bool,
    /// Claims that are written, and that nobody has used yet.
    free: HashSet<Claim>,
    /// How many attempts still wait that have the same claim as another one.
    twice: HashMap<Claim, usize>,
    outbox: Vec<Outgoing>,
    ended: Vec<Ended>,
    has_stepped_aside: AtomicBool,
}

/// No connection goes back in the middle of a transaction because of a bug here.
struct GivenUpByPanic(Arc<Connection>);

impl Drop for GivenUpByPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.discard();
        }
    }
}

/// An attempt that is over; what is told if the transaction commits.
struct Ended {
    reply: oneshot::Sender<Ran>,
    outcome: Result<Committed, WorkError>,
}

/// How far an attempt got.
enum Reached {
    Ended(Result<Commit, BoxError>),
    /// It awaits something else, and has not begun its transaction.
    Elsewhere,
    /// The same in the middle of its transaction.
    Left,
    /// Nobody waits for it any more.
    Dropped,
}

/// What a runner does after a batch.
pub(crate) enum Next {
    Go,
    /// Another runner has taken its place.
    End,
}

/// Runs attempts in one transaction.
pub(crate) async fn run_together(shared: &Arc<Shared>, mut attempts: Vec<Attempt>) -> Next {
    attempts.retain(|attempt| !attempt.reply.is_closed());
    if attempts.is_empty() {
        return Next::Go;
    }
    let connection = match shared.pool.get().await {
        Ok(connection) => Arc::new(connection),
        Err(error) => {
            refuse(attempts, &explain("begin a transaction", error));
            return Next::Go;
        }
    };
    // Else the commit would overtake the first outbox rows of a connection.
    let prepared = timeout(SILENT_MAX, outbox::prepare_write(&connection)).await;
    if let Err(error) = prepared.unwrap_or(Err(Error::Silent)) {
        connection.discard();
        refuse(attempts, &explain("begin a transaction", error));
        return Next::Go;
    }
    let mut batch = Batch {
        shared,
        _unless_panic: GivenUpByPanic(Arc::clone(&connection)),
        connection,
        is_alone: attempts.len() == 1,
        has_begun: false,
        free: HashSet::new(),
        twice: HashMap::new(),
        outbox: Vec::new(),
        ended: Vec::with_capacity(attempts.len()),
        has_stepped_aside: AtomicBool::new(false),
    };
    let claims = attempts.iter().filter_map(|attempt| attempt.claim.as_ref());
    let claims = claims.map(|entry| &entry.claim).collect();
    if let Err(error) = batch.claim(claims).await {
        batch.roll_back().await;
        match batch.is_alone || error.is_unavailable() {
            true => refuse(attempts, &error),
            // One of them may be to blame, and nothing of them has begun.
            false => runner::put_back(shared, attempts),
        }
        return batch.next();
    }
    let (since, count) = (Instant::now(), attempts.len());
    let mut attempts = attempts.into_iter();
    while let Some(attempt) = attempts.next() {
        if batch.run(attempt).await.is_err() {
            return batch.break_off(attempts.collect());
        }
    }
    if !batch.has_stepped_aside() {
        shared.runners.took(since.elapsed(), count);
    }
    batch.end().await
}

/// Nothing of them was tried.
fn refuse(attempts: Vec<Attempt>, why: &StoreError) {
    for attempt in attempts {
        let refused = Err(WorkError::NotBegun(copy(why)));
        let _ = attempt.reply.send(Ran::Ended(refused));
    }
}

impl Batch<'_> {
    /// Begins, and writes the claims of all messages.
    async fn claim(&mut self, claims: Vec<&Claim>) -> Result<(), StoreError> {
        if claims.is_empty() {
            return Ok(());
        }
        let begin = match self.is_alone {
            true => "begin",
            false => BEGIN_SHARED,
        };
        let mut seen = HashMap::with_capacity(claims.len());
        for claim in &claims {
            *seen.entry(*claim).or_insert(0) += 1;
        }
        let twice = seen.into_iter().filter(|(_, count)| *count > 1);
        self.twice = twice.map(|(claim, count)| (claim.clone(), count)).collect();
        let attempted = "write claims";
        let connection = Arc::clone(&self.connection);
        let begun = join(connection.run(begin), inbox::claim(&connection, claims));
        let limit = match self.is_alone {
            true => COMMIT_MAX,
            false => SILENT_MAX,
        };
        // The message may be handled elsewhere at this moment. Others do not wait for that.
        let begun = self.wait(begun, self.patience(), limit).await;
        let (begun, free) = begun.map_err(|error| explain(attempted, error))?;
        begun.map_err(|error| explain(attempted, error))?;
        self.free = free.map_err(|error| explain(attempted, error))?;
        self.has_begun = true;
        Ok(())
    }

    /// Waits for the database; after `patience` no more attempts wait with it.
    async fn wait<T>(
        &self,
        work: impl Future<Output = T>,
        patience: Duration,
        limit: Duration,
    ) -> Result<T, Error> {
        let mut work = pin!(work);
        if let Ok(done) = timeout(patience, work.as_mut()).await {
            return Ok(done);
        }
        self.step_aside();
        timeout(limit, work).await.map_err(|_| Error::Silent)
    }

    fn patience(&self) -> Duration {
        match self.is_alone {
            true => PATIENCE_ALONE,
            false => PATIENCE,
        }
    }

    async fn run(&mut self, mut attempt: Attempt) -> Result<(), Broken> {
        if let Some(entry) = &attempt.claim
            && let Some(waiting) = self.twice.get_mut(&entry.claim)
        {
            *waiting -= 1;
        }
        let is_claimed = match &attempt.claim {
            Some(entry) if !self.free.remove(&entry.claim) => {
                let why = Refusal::Known;
                self.tell(attempt.reply, Ok(Committed::Refused { entry: 0, why }));
                return Ok(());
            }
            claim => claim.is_some(),
        };
        let prelude = match (self.has_begun, self.is_alone) {
            (true, true) => None,
            (true, false) => Some(SAVE),
            (false, true) => Some("begin"),
            (false, false) => Some(BEGIN_SHARED_AND_SAVE),
        };
        let is_free = self.is_alone && attempt.claim.is_none();
        let handover = Arc::new(Handover::new(&self.connection, is_free, prelude));
        let since = Instant::now();
        let mut patience = Some(Box::pin(sleep(self.patience())));
        let reached = poll_fn(|task| {
            let reached = self.poll(&mut attempt, &handover, task);
            if reached.is_pending()
                && let Some(timer) = &mut patience
                && timer.as_mut().poll(task).is_ready()
            {
                patience = None;
                self.step_aside();
            }
            reached
        });
        let reached = reached.await;
        if !matches!(reached, Reached::Elsewhere) {
            self.note(attempt.claim.as_ref(), since.elapsed());
        }
        // What it has not finished ends before the transaction is looked at.
        let Attempt {
            slot,
            claim,
            future,
            reply,
        } = attempt;
        let future = match reached {
            Reached::Elsewhere => Some(future),
            _ => {
                // It may panic once more.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                None
            }
        };
        let transaction = slot.take();
        let lent = handover.close();
        let is_used = prelude.is_some() && lent.prelude.is_none();
        self.has_begun |= is_used;
        let mut undone = Undo {
            is_used,
            claim: claim.as_ref().filter(|_| is_claimed),
        };
        let is_still_lent = transaction.is_err() && Arc::strong_count(&self.connection) > 2;
        if lent.running > 0 || is_still_lent {
            // A statement that was not waited for may still be sent, whenever it likes.
            self.left(claim.as_ref());
            let error = transaction.err().unwrap_or_else(outlived);
            self.tell(reply, Err(WorkError::Store(error)));
            return Err(Broken);
        }
        if lent.wants_own {
            self.left(claim.as_ref());
        }
        let ended = match reached {
            Reached::Ended(ended) => ended,
            Reached::Elsewhere => {
                self.undo(undone).await?;
                let future = future.unwrap_or_else(|| unreachable!("it goes on"));
                let _ = reply.send(Ran::Elsewhere(claim, future));
                return Ok(());
            }
            Reached::Left => {
                self.left(claim.as_ref());
                self.undo(undone).await?;
                let why = StoreError::conflict(
                    "the handler awaits something else in the middle of its transaction while \
                     others wait to be committed with it; it is tried again alone",
                );
                self.tell(reply, Err(WorkError::Store(why)));
                return Ok(());
            }
            Reached::Dropped => return self.undo(undone).await,
        };
        let written = match (ended, transaction) {
            (Err(error), _) => Err(WorkError::Failed(error)),
            (Ok(_), Err(error)) => Err(WorkError::Store(error)),
            (Ok(commit), Ok(transaction)) => {
                let transaction = transaction
                    .map(|transaction| transaction as Box<dyn Any>)
                    .and_then(|transaction| transaction.downcast::<PostgresTransaction>().ok());
                let locked = transaction.map_or_else(HashSet::new, |own| own.into_locked());
                undone.is_used |= lent.prelude.is_some() && !is_outbox_only(&commit);
                let written = self.write(commit, lent, &locked).await;
                written.map_err(WorkError::Store)
            }
        };
        let outcome = match written {
            Ok((Committed::Done, outbox)) => {
                self.outbox.extend(outbox);
                Ok(Committed::Done)
            }
            Ok((Committed::Refused { entry, why }, _)) => {
                let entry = entry + usize::from(claim.is_some());
                Ok(Committed::Refused { entry, why })
            }
            Err(error) => Err(error),
        };
        let is_kept = matches!(outcome, Ok(Committed::Done));
        self.tell(reply, outcome);
        match is_kept {
            true => Ok(()),
            false => self.undo(undone).await,
        }
    }

    /// Polls an attempt; gives it the transaction when it wants it.
    fn poll(
        &mut self,
        attempt: &mut Attempt,
        handover: &Arc<Handover>,
        task: &mut task::Context<'_>,
    ) -> Poll<Reached> {
        let mut is_lent = attempt.slot.is_used();
        loop {
            if attempt.reply.poll_closed(task).is_ready() {
                return Poll::Ready(Reached::Dropped);
            }
            // Without a budget: what is ready is not to look as if it had to be awaited.
            let future = &mut unconstrained(attempt.future.as_mut());
            let polled = AssertUnwindSafe(|| Pin::new(future).poll(task));
            match catch_unwind(polled) {
                Ok(Poll::Ready(ended)) => return Poll::Ready(Reached::Ended(ended)),
                Err(_) => {
                    let why = "the attempt panicked; see the log for where";
                    return Poll::Ready(Reached::Ended(Err(why.into())));
                }
                Ok(Poll::Pending) if attempt.slot.is_wanted(task) => {
                    let (shared, handover) = (Arc::clone(self.shared), Arc::clone(handover));
                    let begun = PostgresTransaction::in_batch(shared, handover);
                    attempt.slot.put(Box::new(begun));
                    is_lent = true;
                }
                Ok(Poll::Pending) if handover.is_running() => return Poll::Pending,
                Ok(Poll::Pending) if !is_lent => return Poll::Ready(Reached::Elsewhere),
                Ok(Poll::Pending) if self.is_alone || attempt.claim.is_none() => {
                    self.step_aside();
                    self.left(attempt.claim.as_ref());
                    return Poll::Pending;
                }
                Ok(Poll::Pending) => return Poll::Ready(Reached::Left),
            }
        }
    }

    /// The runner waits for somebody, so that another one takes its place.
    fn step_aside(&self) {
        if !self.has_stepped_aside.swap(true, Ordering::Relaxed) {
            runner::replace(self.shared);
        }
    }

    fn has_stepped_aside(&self) -> bool {
        self.has_stepped_aside.load(Ordering::Relaxed)
    }

    fn left(&self, claim: Option<&InboxEntry>) {
        if self.shared.habits.left(claim) {
            tracing::info!(
                consumer = claim.map(|entry| &*entry.claim.consumer),
                "the handler awaits something else in the middle of its transaction, or uses the \
                 driver's client, so from now on its attempts have transactions of their own; do \
                 slow work before the first use of `Tx`"
            );
        }
    }

    fn note(&self, claim: Option<&InboxEntry>, took: Duration) {
        if self.shared.habits.ended(claim, took > BUSY_MAX) {
            tracing::info!(
                consumer = claim.map(|entry| &*entry.claim.consumer),
                "the handler again and again took more than {BUSY_MAX:?} (now {took:?}), so from \
                 now on its attempts have transactions of their own"
            );
        }
    }

    fn tell(&mut self, reply: oneshot::Sender<Ran>, outcome: Result<Committed, WorkError>) {
        self.ended.push(Ended { reply, outcome });
    }

    /// Writes what is not written for all together; gives the messages, which are.
    async fn write(
        &mut self,
        mut commit: Commit,
        lent: Lent,
        locked: &HashSet<RecordId>,
    ) -> Result<(Committed, Vec<Outgoing>), StoreError> {
        if lent.is_unsure && !lent.has_failed {
            let check = self.connection.execute("select", &[]);
            let check = timeout(SILENT_MAX, check).await;
            check
                .map_err(|_| explain("commit a transaction", Error::Silent))?
                .map_err(|error| explain("commit a transaction", error))?;
        }
        if lent.has_failed {
            return Err(StoreError::new(
                "cannot commit a transaction: an error of a statement before was ignored, return \
                 it instead",
            ));
        }
        let outbox = mem::take(&mut commit.outbox);
        if let Some(message) = outbox.iter().find(|message| !outbox::is_storable(message)) {
            return Err(StoreError::invalid(format!(
                "cannot write the outbox: message `{}` has a NUL character in its metadata, which \
                 PostgreSQL cannot hold in a text",
                message.envelope.name
            )));
        }
        let committed = match is_outbox_only(&commit) {
            true => Committed::Done,
            false => self.write_rest(&commit, lent.prelude, locked).await?,
        };
        Ok((committed, outbox))
    }

    async fn write_rest(
        &mut self,
        commit: &Commit,
        prelude: Option<&'static str>,
        locked: &HashSet<RecordId>,
    ) -> Result<Committed, StoreError> {
        let connection = &self.connection;
        if let Some(prelude) = prelude {
            let begun = connection.run(prelude).await;
            begun.map_err(|error| explain("begin a transaction", error))?;
            self.has_begun = true;
        }
        if let Some(entry) = inbox::write_plain(connection, commit).await? {
            let why = Refusal::Known;
            return Ok(Committed::Refused { entry, why });
        }
        commit::write_rest(connection, self.shared, locked, commit).await
    }

    /// Undoes an attempt, so that the others can go on.
    async fn undo(&mut self, undo: Undo<'_>) -> Result<(), Broken> {
        if self.is_alone {
            return Ok(()); // The whole transaction is.
        }
        let connection = &self.connection;
        let mut claim = undo.claim.map(|entry| &entry.claim);
        // Another delivery of the same message comes later, and uses it.
        if let Some(again) =
            claim.filter(|claim| self.twice.get(claim).is_some_and(|left| *left > 0))
        {
            self.free.insert(again.clone());
            claim = None;
        }
        let back = async {
            match undo.is_used {
                true => connection.run(UNDO).await,
                false => Ok(()),
            }
        };
        let unclaim = async {
            match claim {
                Some(claim) => inbox::unclaim(connection, claim).await,
                None => Ok(()),
            }
        };
        match timeout(SILENT_MAX, join(back, unclaim)).await {
            Ok((Ok(()), Ok(()))) => Ok(()),
            Ok((Err(error), _) | (_, Err(error))) => {
                tracing::debug!("{}", explain("undo an attempt", error));
                Err(Broken)
            }
            Err(_) => Err(Broken),
        }
    }
}

fn is_outbox_only(commit: &Commit) -> bool {
    commit.inbox.is_empty() && commit.records.is_empty()
}

/// What is undone of an attempt.
struct Undo<'a> {
    /// Its savepoint is there.
    is_used: bool,
    claim: Option<&'a InboxEntry>,
}
