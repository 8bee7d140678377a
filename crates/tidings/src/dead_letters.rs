//! Dead letters as an operation: looking at them, mending them, and sending them again.
//!
//! A consumer's dead letters stand beside its queue, on the broker, oldest first. Nothing here is a
//! store of its own: what an operator did is in the letters' headers, so that an operation that was
//! cut off anywhere is begun again with the same words. Whoever looks *holds* the letters, so that
//! two operators wait for each other; consumers go on, and new letters come behind the others.
//!
//! ```no_run
//! # async fn example(transport: std::sync::Arc<dyn tidings::Transport>) -> Result<(), tidings::dead_letters::Error> {
//! use tidings::dead_letters::{DeadLetters, Selection};
//!
//! let letters = DeadLetters::new(transport, "payment.order-placed.v1");
//! for group in letters.groups(&Selection::all()).await?.groups {
//!     println!("{:>6} {} {}", group.count, group.name, group.fingerprint.pattern);
//! }
//! let report = letters.redrive(Selection::all()).run(|_| {}).await?;
//! println!("{} sent, {} came back", report.sent, report.came_back);
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! One operator at a time holds a queue. Of a queue of any length, this process has at most one batch
//! or page in memory (and 8 bytes per letter of a redrive that came back or stays); the broker has
//! what is held. A letter in the middle is reached by fetching all before it: an operation reads the
//! queue once, and a redrive that takes longer reads what stays once more in each of its passes, at
//! most a tenth of the time.

mod audit;
mod error;
mod fingerprint;
mod groups;
mod letter;
mod listing;
mod mend;
mod pace;
mod redrive;
mod selection;
mod walk;
mod watch;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

pub use self::{
    audit::{Audit, EDITS_HEADER, RECORDED_HEADER, Recorded, WHY_BYTES_MAX},
    error::{Code, Error},
    fingerprint::Fingerprint,
    groups::{GROUPS_MAX, Group, Groups},
    letter::{JOB_HEADER, Letter},
    listing::Listing,
    mend::{BODY_BYTES_MAX, Discarded, Edited, FOLLOWERS_MAX},
    redrive::{CAME_BACK_MIN, Event, Outcome, Redrive, Report, Stopped},
    selection::Selection,
};
use crate::{
    AccessErrorKind, DeadLetterAccess, HeldLetters, InboxQuery, InboxState, RECORD_QUEUE, Store,
    StoreError, Topology, Transport, dead_letter_queue,
};

/// How long an operation waits for another one to give back the letters.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it asks.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The dead letters of one queue or ordered group.
pub struct DeadLetters {
    transport: Arc<dyn Transport>,
    /// What they are beside.
    consumer: Box<str>,
    /// The queue that they are in.
    queue: Box<str>,
    store: Option<Arc<dyn Store>>,
    patience: Duration,
}

impl DeadLetters {
    /// Those beside the queue (`payment.order-placed.v1`) or the ordered group (`payment.ordered`)
    /// of a consumer.
    pub fn new(transport: impl Transport, consumer: &str) -> Self {
        Self {
            transport: Arc::new(transport),
            consumer: consumer.into(),
            queue: dead_letter_queue(consumer).into(),
            store: None,
            patience: PATIENCE,
        }
    }

    /// The record of letters that were discarded, and of earlier versions of those that were edited,
    /// of all consumers. To redrive one of these, say [`to`](Redrive::to) whom.
    pub fn record(transport: impl Transport) -> Self {
        Self {
            queue: RECORD_QUEUE.into(),
            ..Self::new(transport, RECORD_QUEUE)
        }
    }

    /// Gives it the consumer's store, so that discarding a letter lets later messages of its key go on
    /// that are parked behind it, and a redrive knows which messages the consumer takes.
    pub fn store(mut self, store: impl Into<Arc<dyn Store>>) -> Self {
        self.store = Some(store.into());
        self
    }

    /// How long an operation waits while somebody else holds the letters. Default: 30 seconds.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// What the letters are beside.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// How many letters there are, without those that somebody holds at the moment.
    ///
    /// # Errors
    ///
    /// When the queue is not there or the broker does not answer.
    pub async fn count(&self) -> Result<u64, Error> {
        Ok(self.access()?.count(&self.queue).await?)
    }

    /// Begins to list letters, oldest first. Others wait until the listing is dropped or ended.
    ///
    /// # Errors
    ///
    /// When the letters cannot be held.
    pub async fn list(&self, selection: &Selection) -> Result<Listing, Error> {
        let held = self.hold().await?;
        Ok(Listing::new(held, &self.consumer, selection.clone()))
    }

    /// Letters by consumer, message name and fingerprint of the reason; those with most letters first.
    ///
    /// # Errors
    ///
    /// When the letters cannot be held or read.
    pub async fn groups(&self, selection: &Selection) -> Result<Groups, Error> {
        groups::collect(self.list(selection).await?).await
    }

    /// The first letter with this [`id`](Letter::id).
    ///
    /// # Errors
    ///
    /// [`Code::NoLetter`] if there is none; when the letters cannot be held or read.
    pub async fn show(&self, id: &str) -> Result<Letter, Error> {
        let mut listing = self.list(&Selection::all().id(id)).await?;
        let found = listing.next_page(1).await?.pop();
        listing.end().await?;
        found.ok_or_else(|| Error::no_letter(id, &self.consumer))
    }

    /// Describes a redrive: letters are sent to their consumer again.
    pub fn redrive(&self, selection: Selection) -> Redrive<'_> {
        Redrive::new(self, selection)
    }

    fn access(&self) -> Result<&dyn DeadLetterAccess, Error> {
        let access = self.transport.dead_letter_access();
        access.ok_or_else(|| Error::no_access(self.transport.features().engine))
    }

    /// Holds the letters, as soon as nobody else does.
    async fn hold(&self) -> Result<Box<dyn HeldLetters>, Error> {
        let access = self.access()?;
        let deadline = Instant::now() + self.patience;
        loop {
            match access.hold(&self.queue).await {
                Err(error)
                    if error.kind() == AccessErrorKind::Busy && Instant::now() < deadline =>
                {
                    sleep(ASK_EVERY).await;
                }
                held => return Ok(held?),
            }
        }
    }
}

/// What there may be dead letters beside: the queues and ordered groups of a topology
/// (`router.topology()`).
pub fn consumers_of(topology: &Topology) -> Vec<String> {
    let queues = topology.queues.iter().filter(|queue| !queue.is_ephemeral);
    let queues = queues.map(|queue| queue.name.to_string());
    let groups = topology.groups.iter().map(|group| group.name.to_string());
    queues.chain(groups).collect()
}

/// What there are dead letters beside, as far as a store of the consumers knows: it does not know
/// of messages that could not be read. Reads at most 100,000 rows.
///
/// # Errors
///
/// When the database does not answer.
pub async fn consumers_in(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    const PAGES_MAX: usize = 100;
    let mut found = BTreeSet::new();
    let mut query = InboxQuery {
        state: Some(InboxState::Dead),
        limit: 1000,
        ..InboxQuery::default()
    };
    for _ in 0..PAGES_MAX {
        let rows = store.deferred().list(&query).await?;
        let Some(last) = rows.last() else {
            break;
        };
        query.after = Some(last.number);
        let names = rows.into_iter().map(|row| match row.order {
            Some(order) => String::from(order.group),
            None => row.claim.consumer.into(),
        });
        found.extend(names);
    }
    Ok(found.into_iter().collect())
}
