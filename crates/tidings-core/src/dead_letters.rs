//! The port for operators of dead letters: what a transport may offer beyond publishing and
//! subscribing ([`Transport::dead_letter_access`](crate::Transport::dead_letter_access)).
//!
//! Whoever looks at dead letters *holds* them: they are taken from their queue one after the other, in
//! order, and nobody else gets them meanwhile. What was not removed goes back to its place when the
//! hold ends, however it ends, so looking loses nothing and changes no order. Letters that come while
//! a queue is held go behind the others, as always.

use std::{error::Error as StdError, fmt, time::Duration};

use crate::{Attempt, BoxError, BoxFuture, Envelope, PublishError};

/// Where letters that an operator discarded, and the earlier versions of those that were edited, are
/// kept: the newest [`RECORDED_COUNT_MAX`] of them, of all consumers together. It is read like any
/// queue of dead letters.
pub const RECORD_QUEUE: &str = "tidings.discarded";

/// How many letters the [`RECORD_QUEUE`] keeps; then the oldest makes room.
pub const RECORDED_COUNT_MAX: u32 = 10_000;

/// Access to dead letters, for operators.
pub trait DeadLetterAccess: Send + Sync {
    /// Holds the letters in `queue` (the dead letters themselves:
    /// [`dead_letter_queue`](crate::dead_letter_queue)). Only one at a time can, of all processes.
    ///
    /// # Errors
    ///
    /// [`Busy`](AccessErrorKind::Busy) while somebody else does; [`Missing`](AccessErrorKind::Missing)
    /// if there is no such queue. While the broker cannot be reached:
    /// [`Unavailable`](AccessErrorKind::Unavailable), at once.
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>>;

    /// How many letters are in `queue`, without those that somebody holds.
    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>>;

    /// Publishes `batch`, in order, to the consumer that dead letters are beside: `consumer` is the
    /// name of a queue or of an ordered group, whose partitions get what their slots say. One outcome
    /// per message, as [`Transport::publish`](crate::Transport::publish).
    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>>;

    /// Puts `batch` into `queue`, or the [`RECORD_QUEUE`] (which is made if it is not there), behind
    /// what is there already. One outcome per message.
    fn put<'a>(
        &'a self,
        queue: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>>;
}

/// Letters that are held. Dropped, it gives back what it holds, a moment later.
pub trait HeldLetters: Send {
    /// The next letters, in order, at most `count`: fewer if there are no more, or if they are large.
    /// None if there are no more for now. They stay held, but not in this process's memory.
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>>;

    /// Takes letters out of the queue for good. Resolves when the broker has done so.
    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>>;

    /// How many letters are behind those that are held.
    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>>;

    /// Gives everything back that was not removed. Resolves when it is in its old place, and the next
    /// one may hold the queue.
    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>>;
}

/// Names a letter within one hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterPlace(pub u64);

/// A dead letter as a transport read it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its name within the hold.
    pub place: LetterPlace,
    /// Metadata and body, without what is in the fields below.
    pub envelope: Envelope,
    /// Why it is one; what the broker says if it moved the message by itself.
    pub reason: Option<Box<str>>,
    /// The queue it came from, or the ordered group, if it says so.
    pub consumer: Option<Box<str>>,
    /// How many attempts failed.
    pub failures: u32,
    /// Those attempts; bounded.
    pub history: Vec<Attempt>,
}

impl DeadLetter {
    /// For transports: a letter about which nothing else is known yet.
    pub fn new(place: LetterPlace, envelope: Envelope) -> Self {
        Self {
            place,
            envelope,
            reason: None,
            consumer: None,
            failures: 0,
            history: Vec::new(),
        }
    }
}

/// Dead letters could not be reached.
#[derive(Debug)]
pub struct AccessError {
    kind: AccessErrorKind,
    message: String,
    source: Option<BoxError>,
}

/// Why dead letters could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessErrorKind {
    /// The broker is not there, or the hold was lost: what was held is back in its place. Try again.
    Unavailable,
    /// Somebody else holds them. Try again later.
    Busy,
    /// There is no such queue.
    Missing,
    /// The queue counts how often a message was handed out and has a limit, and looking on would use
    /// it up.
    UsesUp,
    /// Somebody must mend something: a permission, a password, a closed transport.
    Refused,
}

impl AccessError {
    /// An error of this kind. The message says what to do.
    pub fn new(kind: AccessErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to do about it.
    pub fn kind(&self) -> AccessErrorKind {
        self.kind
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for AccessError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// How long letters should be held at most: RabbitMQ takes them back after 30 minutes, with an error.
pub const HOLD_TIME_MAX: Duration = Duration::from_secs(10 * 60);
