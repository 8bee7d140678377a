//! Attempts that share a transaction.
//!
//! All their claims are written in one statement, then one after the other is polled, each in a
//! savepoint, then their outbox rows are written in one statement, and all is committed.
//!
//! ```text
//! begin, claims │ savepoint, first statement … │ savepoint, first statement … │ outbox, commit
//! ```
//!
//! What stands between two bars is sent at once. So is the first statement of an attempt, with what is
//! probably the last one of the attempt in front of it ([`ahead`]). One that fails is undone to its
//! savepoint, and its claim is taken back. One that awaits something else goes on in its own task: with nothing written
//! it comes back when it wants its transaction. In the middle of its transaction it is undone, so
//! that the others are committed, and tried again in a transaction of its own.

mod ahead;
mod end;

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    future::poll_fn,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use futures_util::future::join;
use tidings_core::{
    BoxError, Claim, Commit, Committed, InboxEntry, Outgoing, RecordId, StoreError, WorkError,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use self::{
    ahead::{Started, Turns},
    end::COMMIT_MAX,
};
use crate::{
    PostgresTransaction, Shared, commit,
    connection::Connection,
    error::{Error, copy, explain},
    handover::{BEGIN_SHARED, Handover, Lent, Line, outlived},
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

/// The connection is of no use any more, and with it the transaction.
struct Broken;

/// A transaction that attempts share.
struct Batch<'a> {
    shared: &'a Arc<Shared>,
    connection: Arc<Connection>,
    _unless_panic: GivenUpByPanic,
    /// There is only one attempt, which needs no savepoint.
    is_alone: bool,
    line: Arc<Line>,
    /// How its outbox rows are written.
    writing: outbox::Writing,
    /// All claims were free, and no two are the same.
    all_free: bool,
    /// Else those that are written, and that nobody has used yet.
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
    let prepared = timeout(SILENT_MAX, outbox::Writing::prepare(shared, &connection)).await;
    let writing = match prepared.unwrap_or(Err(Error::Silent)) {
        Ok(writing) => writing,
        Err(error) => {
            connection.discard();
            refuse(attempts, &explain("begin a transaction", error));
            return Next::Go;
        }
    };
    let mut batch = Batch {
        shared,
        _unless_panic: GivenUpByPanic(Arc::clone(&connection)),
        connection,
        is_alone: attempts.len() == 1,
        line: Arc::new(Line::new(attempts.len() > 1)),
        writing,
        all_free: false,
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
    let mut turns = Turns::new(attempts);
    while let Some(started) = turns.next(&mut batch) {
        if batch.run(started, &mut turns).await.is_err() {
            return batch.break_off(turns);
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
    async fn claim(&mut self, mut claims: Vec<&Claim>) -> Result<(), StoreError> {
        if claims.is_empty() {
            return Ok(());
        }
        let begin = match self.is_alone {
            true => "begin",
            false => BEGIN_SHARED,
        };
        claims.sort_unstable();
        let same = claims.chunk_by(|one, other| one == other);
        let twice = same.filter(|same| same.len() > 1);
        self.twice = twice.map(|same| (same[0].clone(), same.len())).collect();
        let count = claims.len();
        let attempted = "write claims";
        let connection = Arc::clone(&self.connection);
        let begun = join(
            connection.run(begin),
            inbox::write_claims(&connection, claims),
        );
        let limit = match self.is_alone {
            true => COMMIT_MAX,
            false => SILENT_MAX,
        };
        // The message may be handled elsewhere at this moment. Others do not wait for that.
        let begun = self.wait(begun, self.patience(), limit).await;
        let (begun, free) = begun.map_err(|error| explain(attempted, error))?;
        begun.map_err(|error| explain(attempted, error))?;
        let free = free.map_err(|error| explain(attempted, error))?;
        self.all_free = free.len() == count;
        if !self.all_free {
            self.free = inbox::claims_of(&free).map_err(|error| explain(attempted, error))?;
        }
        self.line.began();
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

    async fn run(&mut self, mut started: Started, turns: &mut Turns) -> Result<(), Broken> {
        started.handover.turn();
        let since = Instant::now();
        let (patience, mut timer, mut is_patient) = (self.patience(), None, true);
        let reached = poll_fn(|task| {
            let reached = match started.reached.take() {
                Some(reached) => Poll::Ready(reached),
                None => self.poll(&mut started, task),
            };
            // Most have nothing to wait for.
            if reached.is_pending()
                && is_patient
                && timer
                    .get_or_insert_with(|| Box::pin(sleep(patience)))
                    .as_mut()
                    .poll(task)
                    .is_ready()
            {
                is_patient = false;
                self.step_aside();
            }
            if reached.is_pending() && started.has_sent_all() {
                turns.look_ahead(self, task);
            }
            reached
        });
        let reached = reached.await;
        let Started {
            attempt,
            handover,
            is_claimed,
            ..
        } = started;
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
        let undone = Undo {
            handover: &handover,
            claim: claim.as_ref().filter(|_| is_claimed),
        };
        // Only one that is alone may have had the client.
        let is_still_lent =
            self.is_alone && transaction.is_err() && Arc::strong_count(&self.connection) > 2;
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
                let statements = match is_outbox_only(&commit) {
                    true => lent.sent,
                    false => u32::MAX, // None of them is the last.
                };
                self.shared.guesses.note(claim.as_ref(), statements);
                let written = self.write(commit, &lent, &handover, &locked).await;
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

    /// Polls the attempt whose turn it is.
    fn poll(&self, started: &mut Started, task: &mut task::Context<'_>) -> Poll<Reached> {
        let polled = started.poll(self.shared, task);
        if polled.is_ready() || started.handover.is_running() {
            return polled;
        }
        // It has begun its transaction, and awaits something else.
        if self.is_alone || started.attempt.claim.is_none() {
            self.step_aside();
            self.left(started.attempt.claim.as_ref());
            return Poll::Pending;
        }
        Poll::Ready(Reached::Left)
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
        &self,
        mut commit: Commit,
        lent: &Lent,
        handover: &Handover,
        locked: &HashSet<RecordId>,
    ) -> Result<(Committed, Vec<Outgoing>), StoreError> {
        if lent.is_unsure && !lent.has_failed {
            let check = async {
                self.send(handover.prelude().0).await?;
                self.connection.execute("select", &[]).await
            };
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
            false => self.write_rest(&commit, handover, locked).await?,
        };
        Ok((committed, outbox))
    }

    async fn write_rest(
        &self,
        commit: &Commit,
        handover: &Handover,
        locked: &HashSet<RecordId>,
    ) -> Result<Committed, StoreError> {
        let connection = &self.connection;
        let begun = self.send(handover.prelude().0).await;
        begun.map_err(|error| explain("begin a transaction", error))?;
        commit::write_but_outbox(connection, self.shared, locked, commit).await
    }

    async fn send(&self, statements: Option<String>) -> Result<(), Error> {
        match statements {
            Some(statements) => self.connection.run(&statements).await,
            None => Ok(()),
        }
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
        let back = self.send(undo.handover.undoing());
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
    handover: &'a Handover,
    claim: Option<&'a InboxEntry>,
}
