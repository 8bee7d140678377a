//! The port to a database: one transaction per attempt, which holds the inbox row, the handler's
//! writes, the outbox rows and the records.
//!
//! The port has parts, each small enough to keep in the head: [`Store`] (transactions and what is
//! known of a message), [`Outbox`] (the relay's side), [`Deferred`] (messages that wait),
//! [`Records`], and for stores that have one the [`Log`] of sent events. The promises P1 (no lost event) and P2 (effects once) rest on commits being atomic,
//! and on outbox rows being removed only after the broker confirmed them.

use std::{any::Any, error::Error as StdError, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    Ask, BoxError, BoxFuture, Deferred, InboxEntry, Log, Outbox, Outgoing, Over, Record,
    RecordChange, RecordId, Records, Refusal, Seen, TransactionSlot,
};

/// A database that belongs to one service.
pub trait Store: Send + Sync + 'static {
    /// Begins a transaction.
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>>;

    /// Commits a [`Commit`] for which no transaction was begun: the same as
    /// [`begin`](Self::begin) and [`Transaction::commit`], in one step.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>>;

    /// Runs pieces of work, each of which may use a transaction, and commits those that succeed.
    /// One outcome each, in their order, told after what it reports is durable. One that fails or is
    /// refused harms no other. (The toolkit's own work catches the panics of handlers.)
    ///
    /// A store may let all of them share one transaction (each in a savepoint) and one disk sync;
    /// the default runs one after the other.
    fn run(&self, batch: Vec<Work>) -> BoxFuture<'_, Vec<Result<Committed, WorkError>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(batch.len());
            for work in batch {
                outcomes.push(work.run_on(self).await);
            }
            outcomes
        })
    }

    /// What is known of messages, in the order they are asked for. Only a read, to save the work
    /// of handlers: the commit decides.
    fn look<'a>(&'a self, asked: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Seen>, StoreError>>;

    /// Deletes rows of messages that `consumer` has handled longer ago than `age`, at most `limit`.
    /// Rows of messages that wait or are dead stay. Returns how many were deleted.
    fn forget<'a>(
        &'a self,
        consumer: &'a str,
        age: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// The relay's side of the outbox.
    fn outbox(&self) -> &dyn Outbox;

    /// Messages that wait.
    fn deferred(&self) -> &dyn Deferred;

    /// What the toolkit keeps between messages.
    fn records(&self) -> &dyn Records;

    /// The events it keeps after they were sent. `None` (the default) if it cannot keep any.
    fn log(&self) -> Option<&dyn Log> {
        None
    }
}

/// One attempt's transaction. Dropping it rolls it back.
pub trait Transaction: Any + Send {
    /// The records with these names, in their order, locked until the transaction ends.
    fn read<'a>(
        &'a mut self,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>>;

    /// Writes what is in `commit`, and commits it together with everything that was written
    /// through this transaction. Resolves when it is durable.
    ///
    /// If the inbox refuses an entry, nothing is written and the answer is
    /// [`Committed::Refused`].
    ///
    /// # Errors
    ///
    /// With [`is_conflict`](StoreError::is_conflict) if a record is not as expected: nothing was
    /// written. Any other error may leave the outcome unknown: look before trying again.
    fn commit(self: Box<Self>, commit: Commit)
    -> BoxFuture<'static, Result<Committed, StoreError>>;

    /// Undoes everything. Resolves when that is done.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What the toolkit adds to a transaction before it commits.
///
/// Within one commit, entries of the inbox name different messages, and changes different records.
/// Entries are written in their order: one that is behind an earlier entry of its key is refused.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// What becomes of the messages that are being handled; empty outside of handlers.
    pub inbox: Vec<InboxEntry>,
    /// The messages to send.
    pub outbox: Vec<Outgoing>,
    /// The records to write.
    pub records: Vec<RecordChange>,
}

impl Commit {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty() && self.outbox.is_empty() && self.records.is_empty()
    }
}

/// One record, and nothing else.
impl From<RecordChange> for Commit {
    fn from(change: RecordChange) -> Self {
        Self {
            records: vec![change],
            ..Self::default()
        }
    }
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// Everything is durable.
    Done,
    /// Nothing was written, because of this entry of [`Commit::inbox`] (there may be more).
    Refused {
        /// Its place in [`Commit::inbox`].
        entry: usize,
        /// Why.
        why: Refusal,
    },
}

impl Committed {
    /// An entry of a message that is known already was refused.
    pub const fn is_known(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                why: Refusal::Known,
                ..
            }
        )
    }
}

/// Something that may use a transaction and says what to commit with it.
pub struct Work {
    slot: Arc<TransactionSlot>,
    claim: Option<InboxEntry>,
    future: WorkFuture,
}

/// What a [`Work`] does. It resolves to what is committed with what it wrote.
pub type WorkFuture = BoxFuture<'static, Result<Commit, BoxError>>;

impl Work {
    /// Work that uses the transaction of `slot`, if it needs one, and resolves to what is committed
    /// with it. An error undoes it.
    pub fn new(
        slot: Arc<TransactionSlot>,
        future: impl Future<Output = Result<Commit, BoxError>> + Send + 'static,
    ) -> Self {
        Self {
            slot,
            claim: None,
            future: Box::pin(future),
        }
    }

    /// The same for a message: `entry` is committed too, before the other entries. Work whose entry
    /// would be refused need not run, and then the outcome is that refusal.
    pub fn claiming(mut self, entry: InboxEntry) -> Self {
        self.claim = Some(entry);
        self
    }

    /// Has `store` run it, as a batch of one.
    ///
    /// # Errors
    ///
    /// The work's own, or the store's.
    pub async fn hand_to<S: Store + ?Sized>(self, store: &S) -> Result<Committed, WorkError> {
        store
            .run(vec![self])
            .await
            .pop()
            .unwrap_or_else(|| Err(no_outcome()))
    }

    /// Has the store of `slot` run work that gives a value besides what is committed. The value is
    /// returned when all is durable.
    ///
    /// # Errors
    ///
    /// The work's own, or the store's.
    pub async fn value_of<T: Send + 'static>(
        slot: Arc<TransactionSlot>,
        future: impl Future<Output = Result<(T, Commit), BoxError>> + Send + 'static,
    ) -> Result<T, WorkError> {
        let store = Arc::clone(slot.store());
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        let work = Self::new(slot, async move {
            let (value, commit) = future.await?;
            *tell.lock() = Some(value);
            Ok(commit)
        });
        work.hand_to(&*store).await?;
        let value = told.lock().take();
        value.ok_or_else(no_outcome)
    }

    /// For stores: where its transaction is.
    pub fn slot(&self) -> &TransactionSlot {
        &self.slot
    }

    /// For stores: the entry of the message.
    pub fn claim(&self) -> Option<&InboxEntry> {
        self.claim.as_ref()
    }

    /// For stores: the slot to put a transaction into, the entry of the message, and the work that
    /// uses the transaction. When the work has resolved, take the transaction out of the slot again,
    /// and commit or undo it.
    pub fn into_parts(self) -> (Arc<TransactionSlot>, Option<InboxEntry>, WorkFuture) {
        (self.slot, self.claim, self.future)
    }

    /// Runs it alone, in a transaction of its own that `store` begins when it is first used.
    ///
    /// # Errors
    ///
    /// The work's own, or the store's.
    pub async fn run_on<S: Store + ?Sized>(self, store: &S) -> Result<Committed, WorkError> {
        if let Some(why) = Self::look(store, self.claim.as_ref()).await? {
            return Ok(Committed::Refused { entry: 0, why });
        }
        let ended = self.future.await;
        Self::settle(store, &self.slot, self.claim, ended).await
    }

    /// For stores: the end of a work that has run in its own task. Commits what it resolved to, or
    /// undoes it.
    ///
    /// # Errors
    ///
    /// The work's own, or the store's.
    pub async fn settle<S: Store + ?Sized>(
        store: &S,
        slot: &TransactionSlot,
        claim: Option<InboxEntry>,
        ended: Result<Commit, BoxError>,
    ) -> Result<Committed, WorkError> {
        let transaction = slot.take();
        let mut commit = match ended {
            Ok(commit) => commit,
            Err(error) => {
                if let Ok(Some(transaction)) = transaction {
                    transaction.rollback().await;
                }
                return Err(WorkError::Failed(error));
            }
        };
        commit.inbox.splice(..0, claim);
        let committed = match transaction {
            Ok(Some(transaction)) => transaction.commit(commit).await,
            Ok(None) => store.commit(commit).await,
            Err(error) => Err(error),
        };
        committed.map_err(WorkError::Store)
    }

    /// For stores: asks the inbox about the message of a work, so that it is not done in vain. A
    /// message that is under a lease is not asked for, since the lease says enough.
    ///
    /// # Errors
    ///
    /// [`WorkError::NotBegun`].
    pub async fn look<S: Store + ?Sized>(
        store: &S,
        claim: Option<&InboxEntry>,
    ) -> Result<Option<Refusal>, WorkError> {
        let Some(entry) = claim else { return Ok(None) };
        if let Over::Lease(_) = entry.over {
            return Ok(None);
        }
        let ask = Ask {
            claim: entry.claim.clone(),
            order: entry.order.clone(),
        };
        let seen = store.look(&[ask]).await.map_err(WorkError::NotBegun)?;
        let seen = seen.into_iter().next().unwrap_or_default();
        Ok(seen.refusal(&entry.over))
    }
}

fn no_outcome() -> WorkError {
    WorkError::Store(StoreError::new("the store gave no outcome for a work"))
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

/// Why a piece of [`Work`] was not committed.
#[derive(Debug)]
pub enum WorkError {
    /// The store could not begin: nothing was tried.
    NotBegun(StoreError),
    /// It failed by itself; everything was undone.
    Failed(BoxError),
    /// The store did not commit it.
    Store(StoreError),
}

impl WorkError {
    /// The error inside.
    pub fn into_inner(self) -> BoxError {
        match self {
            Self::Failed(error) => error,
            Self::NotBegun(error) | Self::Store(error) => Box::new(error),
        }
    }
}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::NotBegun(error) | Self::Store(error) => error.fmt(f),
        }
    }
}

impl StdError for WorkError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) => error.source(),
            Self::NotBegun(error) | Self::Store(error) => error.source(),
        }
    }
}

/// A failure of the database.
#[derive(Debug)]
pub struct StoreError {
    message: String,
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreErrorKind {
    Other,
    Unavailable,
    Conflict,
    Invalid,
}

impl StoreError {
    /// What was attempted and what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind: StoreErrorKind::Other,
            source: None,
        }
    }

    /// The database cannot be reached, or can do nothing for now: nothing is known of whatever was
    /// asked.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: StoreErrorKind::Unavailable,
            ..Self::new(message)
        }
    }

    /// Another transaction was in the way; nothing was written, and trying again may succeed.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self {
            kind: StoreErrorKind::Conflict,
            ..Self::new(message)
        }
    }

    /// The database cannot hold what it was given (a NUL in a text, for example), however often it
    /// is tried.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            kind: StoreErrorKind::Invalid,
            ..Self::new(message)
        }
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The database cannot be reached, or can do nothing for now.
    pub fn is_unavailable(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }

    /// Another transaction was in the way; nothing was written.
    pub fn is_conflict(&self) -> bool {
        self.kind == StoreErrorKind::Conflict
    }

    /// The database cannot hold what it was given.
    pub fn is_invalid(&self) -> bool {
        self.kind == StoreErrorKind::Invalid
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
