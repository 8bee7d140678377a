//! Attempts as a store runs them, and what is in the tables afterwards.
//!
//! On a runtime with one thread, works that are given to a store together are in its queue before
//! its runner looks there for the first time. So they share one transaction, if they are expected
//! to take no time: [`World::quicken`].

use std::{error::Error as StdError, sync::Arc};

use tidings_core::{
    BoxError, Claim, Commit, Committed, InboxEntry, MessageId, Outgoing, Refusal, StoreError,
    TransactionSlot, Work, WorkError,
};
use tidings_postgres::{Client, Params, PostgresOptions, PostgresStore, Tx};

use super::{begin, fresh_schema, number, open, until, url};

pub(crate) type Outcome = Result<Committed, WorkError>;

/// As many as share a transaction at most.
pub(crate) const FULL: usize = 64;

const TABLES: &str = "
    create table note (text text primary key);
    create table tally (id int primary key, count bigint not null default 0);
    insert into tally (id) values (1), (2);
    create table part (of text references note (text) deferrable initially deferred)";

/// A store in a schema of its own, with tables for handlers.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) store: PostgresStore,
    schema: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let schema = fresh_schema();
        Self::with(open(&schema).await, schema).await
    }

    /// With one connection: whatever runs in a transaction runs on the same one.
    pub(crate) async fn with_one_connection() -> Self {
        let schema = fresh_schema();
        let options = PostgresOptions::new(url(), &*schema).connections_max(5);
        Self::with(options.connect().await.expect("a store"), schema).await
    }

    async fn with(store: PostgresStore, schema: String) -> Self {
        store.migrate(&[("0001", TABLES)]).await.expect("tables");
        let world = Self { store, schema };
        world.quicken().await;
        world
    }

    /// Another store on the same schema, as another process has.
    pub(crate) async fn another(&self) -> Self {
        let world = Self {
            store: open(&self.schema).await,
            schema: self.schema.clone(),
        };
        world.quicken().await;
        world
    }

    /// Runs attempts that do nothing, until the store takes as many together as it ever does. Many at
    /// a time, so that a moment without the processor says little about each.
    pub(crate) async fn quicken(&self) {
        for _ in 0..40 {
            let idle = (0..FULL).map(|_| {
                let slot = Arc::new(TransactionSlot::new(self.store.clone().into()));
                Work::new(slot, async { Ok(Commit::default()) })
            });
            let outcomes = self.run_all(idle.collect()).await;
            assert!(outcomes.iter().all(is_done), "{outcomes:?}");
        }
    }

    /// An attempt of the consumer `c`.
    pub(crate) fn attempt<F, Fut>(&self, message: &str, handler: F) -> Work
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.attempt_of("c", message, handler)
    }

    /// An attempt at a message, with a handler that takes a `Tx`.
    pub(crate) fn attempt_of<F, Fut>(&self, consumer: &str, message: &str, handler: F) -> Work
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.sending(consumer, message, Vec::new(), handler)
    }

    /// One that also sends messages.
    pub(crate) fn sending<F, Fut>(
        &self,
        consumer: &str,
        message: &str,
        outbox: Vec<Outgoing>,
        handler: F,
    ) -> Work
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let slot = Arc::new(TransactionSlot::new(self.store.clone().into()));
        let handling = handler(Tx::from(slot.handle()));
        let entry = InboxEntry::handled(Claim {
            consumer: consumer.into(),
            message: MessageId::new(message),
        });
        let work = async move {
            handling.await?;
            let commit = Commit::default();
            Ok(Commit { outbox, ..commit })
        };
        Work::new(slot, work).claiming(entry)
    }

    /// An attempt of the consumer `c` that writes the id of its message.
    pub(crate) fn noting(&self, message: &str) -> Work {
        let text = message.to_owned();
        self.attempt(message, |mut tx| async move { note(&mut tx, &text).await })
    }

    /// As many of those.
    pub(crate) fn notings(
        &self,
        prefix: &str,
        numbers: impl IntoIterator<Item = usize>,
    ) -> Vec<Work> {
        let numbers = numbers.into_iter();
        numbers
            .map(|number| self.noting(&format!("{prefix} {number:02}")))
            .collect()
    }

    pub(crate) async fn run(&self, work: Work) -> Outcome {
        work.hand_to(&self.store).await
    }

    pub(crate) async fn run_all(&self, works: Vec<Work>) -> Vec<Outcome> {
        use tidings_core::Store as _;
        self.store.run(works).await
    }

    pub(crate) async fn notes(&self) -> Vec<String> {
        let client = self.store.client().await.expect("a connection");
        let rows = client.query("select text from note order by text", &[]);
        let rows = rows.await.expect("notes");
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub(crate) async fn number(&self, sql: &str, params: Params<'_>) -> i64 {
        number(&self.store, sql, params).await
    }

    /// How many messages of a consumer are claimed.
    pub(crate) async fn claims_of(&self, consumer: &str) -> i64 {
        let sql = "select count(*) from tidings_inbox where consumer = $1";
        self.number(sql, &[&consumer]).await
    }

    /// How many transactions have claimed the messages of `c` whose ids begin so.
    pub(crate) async fn transactions(&self, prefix: &str) -> i64 {
        let sql = "select count(distinct xmin::text) from tidings_inbox
                   where consumer = 'c' and starts_with(message, $1)";
        self.number(sql, &[&prefix]).await
    }

    /// A transaction beside those of attempts that has the row of `tally` with this id.
    pub(crate) async fn hold(&self, id: i32) -> Client {
        let holder = begin(&self.store).await;
        let hold = "select from tally where id = $1 for update";
        holder.query_one(hold, &[&id]).await.expect("the row");
        holder
    }

    /// Waits until a statement waits for a lock.
    pub(crate) async fn until_one_waits(&self) {
        let sql = "select count(*) from pg_stat_activity
                   where application_name = 'tidings ' || $1 and wait_event_type = 'Lock'";
        until("a statement waits for a lock", async || {
            self.number(sql, &[&self.schema]).await > 0
        })
        .await;
    }
}

pub(crate) async fn note(tx: &mut Tx, text: &str) -> Result<(), BoxError> {
    tx.execute("insert into note (text) values ($1)", &[&text])
        .await?;
    Ok(())
}

/// Counts in the row of `tally` with this id, which others may have.
pub(crate) async fn count(tx: &mut Tx, id: i32) -> Result<(), BoxError> {
    let count = "update tally set count = count + 1 where id = $1";
    tx.execute(count, &[&id]).await?;
    Ok(())
}

pub(crate) fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(Committed::Done))
}

pub(crate) fn is_known(outcome: &Outcome) -> bool {
    let known = Committed::Refused {
        entry: 0,
        why: Refusal::Known,
    };
    matches!(outcome, Ok(committed) if *committed == known)
}

/// The work's own failure, which is no conflict.
pub(crate) fn is_failed(outcome: &Outcome) -> bool {
    matches!(outcome, Err(WorkError::Failed(_))) && !is_conflict(outcome)
}

pub(crate) fn is_conflict(outcome: &Outcome) -> bool {
    store_error(outcome).is_some_and(StoreError::is_conflict)
}

/// The store's error, which may be the source of a handler's.
pub(crate) fn store_error(outcome: &Outcome) -> Option<&StoreError> {
    let mut error: &(dyn StdError + 'static) = match outcome {
        Ok(_) => return None,
        Err(WorkError::NotBegun(error) | WorkError::Store(error)) => return Some(error),
        Err(WorkError::Failed(error)) => &**error,
    };
    loop {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        error = error.source()?;
    }
}
