//! One attempt of a broker to hand a message to a consumer, and how it ends.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    BoxFuture, Destination, Envelope, Outgoing, TransportError, Unrouted, dead_letter_queue,
};

/// A message as a consumer got it. It must be settled; one that is dropped unsettled is given back
/// to its queue at once.
pub struct Delivery {
    /// Metadata and body; shared, because handlers keep it while it is being settled.
    pub envelope: Arc<Envelope>,
    /// The queue it came from.
    pub queue: Arc<str>,
    /// The broker has handed this out before, maybe to a consumer that crashed, or that gave it
    /// back.
    pub redelivered: bool,
    /// How often the broker has handed it out before, where the engine counts
    /// ([`Features::counts_deliveries`](crate::Features::counts_deliveries)).
    pub delivered_before: Option<u32>,
    /// The deliveries that failed before this one, oldest first (bounded: [`Attempt::add_to`]).
    /// Empty on the first delivery.
    pub history: Vec<Attempt>,
    /// How many deliveries failed before this one.
    pub failures: u32,
    tag: u64,
    /// `None` once it is settled.
    settler: Option<Arc<dyn Settler>>,
}

impl Delivery {
    /// For transports: a delivery that `settler` settles under `tag`.
    pub fn new(
        envelope: impl Into<Arc<Envelope>>,
        queue: Arc<str>,
        tag: u64,
        settler: Arc<dyn Settler>,
    ) -> Self {
        Self {
            envelope: envelope.into(),
            queue,
            redelivered: false,
            delivered_before: None,
            history: Vec::new(),
            failures: 0,
            tag,
            settler: Some(settler),
        }
    }

    /// Ends this delivery. Resolves when the broker has taken over whatever must not be lost
    /// (a retried or dead-lettered copy is confirmed before the original is acknowledged).
    ///
    /// # Errors
    ///
    /// When the connection is gone. The broker will deliver the message again, so there is nothing
    /// to do but to go on.
    pub fn settle(mut self, settlement: Settlement) -> Settling {
        if settlement == Settlement::Ack {
            return Settling(State::Ack(Some(self)));
        }
        Settling(match self.settler.take() {
            Some(settler) => State::UnderWay(settler.settle(self, settlement)),
            // Only settling takes it, and it takes the delivery too.
            None => State::Ack(None),
        })
    }

    /// True if it cannot be settled any more (its connection is gone, its partition was taken
    /// away), so that somebody else gets it, or has it already: better not to begin with it.
    pub fn is_stale(&self) -> bool {
        self.settler
            .as_ref()
            .is_some_and(|settler| settler.is_stale(self.tag))
    }

    /// For transports: the tag given to [`new`](Self::new).
    pub fn tag(&self) -> u64 {
        self.tag
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            settler.dropped(self.tag);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("envelope", &self.envelope)
            .field("queue", &self.queue)
            .field("redelivered", &self.redelivered)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

/// The end of a delivery: resolves to what [`Delivery::settle`] promises. If it is dropped before, the
/// delivery is given back to its queue, unless it is settled already.
#[must_use = "a delivery whose settling is not awaited is given back"]
pub struct Settling(State);

enum State {
    /// To be acknowledged; `None` once it is.
    Ack(Option<Delivery>),
    UnderWay(BoxFuture<'static, Result<(), TransportError>>),
}

impl Future for Settling {
    type Output = Result<(), TransportError>;

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        let state = &mut self.get_mut().0;
        if let State::Ack(delivery) = state {
            let Some(mut delivery) = delivery.take() else {
                return Poll::Ready(Ok(()));
            };
            let Some(settler) = delivery.settler.take() else {
                return Poll::Ready(Ok(()));
            };
            if let Some(done) = settler.acknowledge(delivery.tag) {
                return Poll::Ready(done);
            }
            *state = State::UnderWay(settler.settle(delivery, Settlement::Ack));
        }
        match state {
            State::UnderWay(settling) => settling.as_mut().poll(task),
            State::Ack(_) => Poll::Ready(Ok(())),
        }
    }
}

/// How a delivery ends. There is no way to drop one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the broker forgets the message.
    Ack,
    /// Deliver it again after `delay`, with `attempt` added to its history.
    Retry {
        /// How long to wait; zero means at once.
        delay: Duration,
        /// What went wrong this time.
        attempt: Attempt,
    },
    /// Deliver it again after `delay` with its history and its count of failures unchanged: nothing
    /// was tried. Messages that are sent to the same `delay` (by this or by
    /// [`Retry`](Self::Retry)) come back in order.
    Defer {
        /// How long to wait.
        delay: Duration,
    },
    /// Put it back where it was, at once and for whoever receives next: nothing was tried. It comes
    /// again [`redelivered`](Delivery::redelivered).
    Requeue,
    /// Move it to the dead letters beside its queue, with `attempt` added to its history.
    DeadLetter {
        /// What went wrong this time.
        attempt: Attempt,
    },
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// Why, for people: the error and its sources.
    pub reason: String,
    /// The instance that tried, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// How many failed attempts are remembered of a message, of however many there were.
const HISTORY_ATTEMPTS_MAX: usize = 10;

impl Attempt {
    /// Adds this attempt to a history, which keeps the first and the latest nine.
    pub fn add_to(self, history: &mut Vec<Self>) {
        history.push(self);
        while history.len() > HISTORY_ATTEMPTS_MAX {
            history.remove(1);
        }
    }
}

/// A history as JSON that was written elsewhere, with its reasons cut as [`history_as_json`] cuts them. What is no history
/// stays as it is.
pub fn shortened_history(json: &str, bytes_max: usize) -> Cow<'_, str> {
    match serde_json::from_str::<Vec<Attempt>>(json) {
        Ok(history) => Cow::Owned(history_as_json(&history, bytes_max)),
        Err(_) => Cow::Borrowed(json),
    }
}

/// A history as it stands in the header [`HISTORY_HEADER`], with each reason cut to `reason_bytes_max` bytes: brokers
/// take headers of a limited size.
pub fn history_as_json(history: &[Attempt], reason_bytes_max: usize) -> String {
    let shorten = |attempt: &Attempt| Attempt {
        reason: shortened_reason(&attempt.reason, reason_bytes_max).into_owned(),
        ..attempt.clone()
    };
    let history: Vec<Attempt> = history.iter().map(shorten).collect();
    // Times, texts and nothing else: this cannot fail.
    serde_json::to_string(&history).unwrap_or_default()
}

/// As much of `reason` as fits into `bytes_max` bytes, cut at a character.
pub fn shortened_reason(reason: &str, bytes_max: usize) -> Cow<'_, str> {
    if reason.len() <= bytes_max {
        return Cow::Borrowed(reason);
    }
    let mut end = bytes_max - '…'.len_utf8();
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}…", &reason[..end]))
}

/// The header that says how many attempts failed.
pub const FAILURES_HEADER: &str = "tidings-failures";
/// The header that lists failed attempts, as JSON.
pub const HISTORY_HEADER: &str = "tidings-history";
/// The header of a dead letter that says why it is one.
pub const REASON_HEADER: &str = "tidings-reason";
/// The header of a dead letter that names the queue it came from.
pub const QUEUE_HEADER: &str = "tidings-queue";
/// The header that numbers the redrives of a dead letter.
pub const REDRIVE_HEADER: &str = "tidings-redrive";

/// The header that names the queue where the sender of a command waits for an answer.
pub const REPLY_TO_HEADER: &str = "tidings-reply-to";

/// The dead letter of a message: what a consumer with a store sends, through its outbox, to the
/// [`dead_letter_queue`] beside `queue`. `history` ends with the attempt that was the last.
pub fn dead_letter(
    envelope: &Envelope,
    queue: &str,
    failures: u32,
    history: &[Attempt],
) -> Outgoing {
    let mut envelope = envelope.clone();
    let ours = [FAILURES_HEADER, HISTORY_HEADER, REASON_HEADER, QUEUE_HEADER];
    envelope
        .headers
        .retain(|(name, _)| !ours.contains(&&**name));
    // Times, texts and nothing else: this cannot fail.
    let as_json = serde_json::to_string(history).unwrap_or_default();
    let reason = history.last().map_or("", |attempt| &attempt.reason);
    let values: [&str; 4] = [&failures.to_string(), &as_json, reason, queue];
    for (name, value) in ours.into_iter().zip(values) {
        envelope.headers.push((name.into(), value.into()));
    }
    Outgoing {
        destination: Destination::Queue(dead_letter_queue(queue).into()),
        unrouted: Unrouted::Hold,
        envelope,
    }
}

/// What a transport implements to settle its deliveries.
pub trait Settler: Send + Sync {
    /// Settles `delivery`. A delivery whose connection is gone is an error, never a settlement of
    /// somebody else's tag.
    fn settle(
        self: Arc<Self>,
        delivery: Delivery,
        settlement: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>>;

    /// Acknowledges the delivery `tag`, if the engine need not wait for that: then nothing has to be kept
    /// of it meanwhile. `None` (the default): [`settle`](Self::settle) does it.
    fn acknowledge(&self, tag: u64) -> Option<Result<(), TransportError>> {
        let _ = tag;
        None
    }

    /// A delivery was dropped without a settlement: gives it back to its queue. Must not block.
    fn dropped(&self, tag: u64);

    /// True if the delivery `tag` cannot be settled any more.
    fn is_stale(&self, tag: u64) -> bool;
}
