//! One hold of a queue of dead letters: what was received of it, and a task that keeps it and the lock.
//!
//! The task renews for how long everything is hidden, the lock before the letters, and gives everything back when the
//! hold ends, however it ends: released, dropped, or with its transport. Only a process that dies gives nothing
//! back; then SQS shows the letters again, and frees the lock after that ([`Times`]).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tidings_adapter::Backoff;
use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetter, HeldLetters, LetterPlace, Received,
};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tracing::debug;

use super::{lock::Lock, unavailable};
use crate::{
    Shared,
    client::{Trouble, trouble},
    entry::{CALL_MESSAGES_MAX, is_letter_group},
    topology::QueueAt,
    work::{self, Receive},
};

/// How many calls for letters are under way at once.
const CALLS_AT_ONCE: usize = 16;
/// How many letters may be held: so many can be renewed in time.
const HELD_MAX: usize = 20_000;
/// How many bytes of bodies come at once.
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// How long a receive waits if SQS says that there are letters and gave none.
const WAIT: Duration = Duration::from_secs(1);

/// For how long things are hidden while they are held: as long as a process that has died keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) letters: Duration,
    /// Longer than the letters, so that whoever holds next finds them all.
    pub(super) lock: Duration,
    /// How often both are renewed.
    renewal: Duration,
}

impl Times {
    /// Of a URL's `visibility`. Never more than half a minute, for which operators wait for each other.
    pub(super) fn of(visibility: Duration) -> Self {
        let most = visibility.as_secs().clamp(3, 30);
        Self {
            letters: Duration::from_secs(most * 2 / 3),
            lock: Duration::from_secs(most - most.div_ceil(10)),
            renewal: Duration::from_secs(most) / 6,
        }
    }
}

/// Letters that are held.
pub(super) struct Hold(Arc<Inner>);

/// What a hold and its task share.
pub(crate) struct Inner {
    shared: Arc<Shared>,
    queue: Box<str>,
    at: QueueAt,
    times: Times,
    lock: Lock,
    state: Mutex<State>,
    ended: Notify,
    /// Only one receives at a time, and nothing is given back meanwhile.
    receiving: tokio::sync::Mutex<()>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<u64, Held>,
    last_place: u64,
    is_over: bool,
}

/// A letter that nobody else gets.
#[derive(Clone)]
struct Held {
    receipt: Arc<str>,
    /// Others may get it from then on.
    until: Instant,
}

/// What a receive brought.
struct Letter {
    receipt: Arc<str>,
    received: Received,
    /// What it is sorted by: when it was sent, and as which one.
    sent: (u64, usize, Box<str>),
    /// Others may get it from then on.
    until: Instant,
}

impl Hold {
    pub(super) async fn start(
        shared: &Arc<Shared>,
        queue: &str,
        at: QueueAt,
    ) -> Result<Self, AccessError> {
        let times = Times::of(shared.address.visibility);
        let lock = Lock::take(shared, queue, times.lock).await?;
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            queue: queue.into(),
            at,
            times,
            lock,
            state: Mutex::default(),
            ended: Notify::new(),
            receiving: tokio::sync::Mutex::default(),
            keeper: Mutex::default(),
        });
        let kept = Arc::clone(&inner);
        *inner.keeper.lock() = Some(tokio::spawn(async move { kept.keep().await }));
        let mut holds = shared.holds.lock();
        holds.retain(|hold| hold.strong_count() > 0);
        holds.push(Arc::downgrade(&inner));
        drop(holds);
        if shared.status.is_closed() {
            inner.end();
        }
        Ok(Self(inner))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl HeldLetters for Hold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        let inner = Arc::clone(&self.0);
        // A receive that is cut off would hide what it brings.
        let next = tokio::spawn(async move { inner.next(count.max(1)).await });
        Box::pin(async move { next.await.unwrap_or_else(|_| Err(self.0.lost())) })
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        Box::pin(self.0.remove(places))
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        Box::pin(async {
            self.0.holds()?;
            let counted = self.0.shared.count(&self.0.at).await;
            let counts = counted.map_err(|why| self.0.refused(why))?;
            Ok(counts.visible.into())
        })
    }

    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        Box::pin(async move {
            self.0.end();
            self.0.has_ended().await;
            Ok(())
        })
    }
}

impl Inner {
    /// Ends the hold; its task gives everything back.
    pub(crate) fn end(&self) {
        self.state.lock().is_over = true;
        self.ended.notify_one();
    }

    /// Waits until everything was given back.
    pub(crate) async fn has_ended(&self) {
        let keeper = self.keeper.lock().take();
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
    }

    fn lost(&self) -> AccessError {
        unavailable(format!(
            "the letters of `{}` are held no more; what was not removed is in its place",
            self.queue
        ))
    }

    fn refused(&self, why: Trouble) -> AccessError {
        self.shared.refused(&self.queue, why)
    }

    /// Says whether everything is surely this one's.
    fn holds(&self) -> Result<(), AccessError> {
        let now = Instant::now();
        let state = self.state.lock();
        let is_ours = !state.is_over
            && now < self.lock.until()
            && state.held.values().all(|letter| now < letter.until);
        is_ours.then_some(()).ok_or_else(|| self.lost())
    }

    async fn keep(&self) {
        while !self.state.lock().is_over {
            if timeout(self.times.renewal, self.ended.notified())
                .await
                .is_ok()
            {
                continue;
            }
            if let Err(error) = self.renew().await {
                debug!(queue = &*self.queue, %error, "letters are held no more");
                self.state.lock().is_over = true;
            }
        }
        self.give_back().await;
    }

    async fn renew(&self) -> Result<(), AccessError> {
        self.lock.renew(&self.shared).await?;
        let all: Vec<(u64, Held)> = {
            let state = self.state.lock();
            let held = state.held.iter();
            held.map(|(place, letter)| (*place, letter.clone()))
                .collect()
        };
        let calls = stream::iter(in_calls(&all));
        let mut done = calls
            .map(|some| self.renew_some(some))
            .buffer_unordered(CALLS_AT_ONCE);
        while let Some(done) = done.next().await {
            done?;
        }
        self.holds()
    }

    async fn renew_some(&self, some: Vec<(u64, Held)>) -> Result<(), AccessError> {
        let receipts: Vec<&str> = some.iter().map(|(_, letter)| &*letter.receipt).collect();
        let (asked, hidden) = (Instant::now(), self.times.letters);
        let changed = work::change_visibility(&self.shared, &self.at.url, &receipts, hidden);
        let failed = match changed.await {
            Ok(failed) => failed,
            Err(why) if why.passes() => {
                self.shared.note(&why);
                return Ok(());
            }
            Err(why) => return Err(self.refused(why)),
        };
        let mut state = self.state.lock();
        for (at, (place, _)) in some.iter().enumerate() {
            let why = failed.iter().find(|(failed, _)| *failed == at);
            let Some(letter) = state.held.get_mut(place) else {
                continue; // It was removed meanwhile.
            };
            match why.map(|(_, why)| why) {
                None => letter.until = asked + hidden,
                Some(why) if why.passes() => {}
                Some(_) => return Err(self.lost()),
            }
        }
        Ok(())
    }

    async fn give_back(&self) {
        let _nothing_comes = self.receiving.lock().await;
        let held = std::mem::take(&mut self.state.lock().held);
        let receipts: Vec<&str> = held.values().map(|letter| &*letter.receipt).collect();
        for some in receipts.chunks(CALL_MESSAGES_MAX) {
            // What fails is visible again by itself, before the lock is free.
            let back = work::change_visibility(&self.shared, &self.at.url, some, Duration::ZERO);
            if let Err(why) = back.await {
                self.shared.note(&why);
            }
        }
        self.lock.release(&self.shared).await;
    }

    async fn next(&self, count: usize) -> Result<Vec<DeadLetter>, AccessError> {
        let _alone = self.receiving.lock().await;
        let mut found: Vec<(Letter, u64)> = Vec::new();
        let (mut bytes, mut wait) = (0, Duration::ZERO);
        while found.len() < count && bytes < BYTES_AT_ONCE {
            let more = CALL_MESSAGES_MAX.min(count - found.len());
            let letters = match self.receive(more, wait).await {
                Ok(letters) => letters,
                Err(error) if found.is_empty() => return Err(error),
                // It comes with the next call.
                Err(_) => break,
            };
            let (letters, received) = letters;
            if received == 0 {
                let is_enough = !found.is_empty() || !wait.is_zero();
                if is_enough || !self.are_there_more().await? {
                    break;
                }
                wait = WAIT;
            }
            for letter in letters {
                bytes += letter.received.envelope.body.len();
                let place = self.place(&letter)?;
                found.push((letter, place));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.sent.cmp(&other.sent));
        let letters = found.into_iter();
        Ok(letters.map(|(letter, place)| letter.named(place)).collect())
    }

    async fn are_there_more(&self) -> Result<bool, AccessError> {
        let counts = self.shared.count(&self.at).await;
        Ok(counts.map_err(|why| self.refused(why))?.visible > 0)
    }

    /// Keeps a letter that came now; an error if the hold has ended.
    fn place(&self, letter: &Letter) -> Result<u64, AccessError> {
        let mut state = self.state.lock();
        state.last_place += 1;
        let place = state.last_place;
        let held = Held {
            receipt: Arc::clone(&letter.receipt),
            until: letter.until,
        };
        state.held.insert(place, held);
        // What came too late is given back by the task, which waits for this.
        let is_over = state.is_over;
        drop(state);
        (!is_over).then_some(place).ok_or_else(|| self.lost())
    }

    /// One receive: what may be handed out of it, and how many it brought.
    async fn receive(
        &self,
        count: usize,
        wait: Duration,
    ) -> Result<(Vec<Letter>, usize), AccessError> {
        self.holds()?;
        if self.state.lock().held.len() + count > HELD_MAX {
            return Err(AccessError::new(
                AccessErrorKind::Refused,
                format!(
                    "{HELD_MAX} letters of `{}` are held, which is as many as can be; discard or redrive some of these \
                     before you look at the others",
                    self.queue
                ),
            ));
        }
        if self.lock.until() < Instant::now() + self.times.letters + wait {
            self.lock.renew(&self.shared).await?;
        }
        let receive = Receive {
            count,
            wait,
            hidden: self.times.letters,
        };
        let until = Instant::now() + self.times.letters;
        let messages = work::receive_messages(&self.shared, &self.at.url, receive).await;
        let messages = messages.map_err(|why| self.refused(why))?;
        let received = messages.len();
        let mut letters = Vec::with_capacity(received);
        for message in messages {
            let group = system(&message, &MessageSystemAttributeName::MessageGroupId);
            if group.is_some_and(|group| !is_letter_group(group)) {
                // If that fails it comes again by itself.
                if let Err(error) = self.give_group(message).await {
                    debug!(queue = &*self.queue, %error, "a letter was not moved to a group of its own");
                }
            } else {
                letters.push(Letter::of(message, until));
            }
        }
        Ok((letters, received))
    }

    /// Moves a letter behind the others, with a group of its own; it comes again. Cut off half-way, it is there twice.
    async fn give_group(&self, message: Message) -> Result<(), AccessError> {
        let receipt = message.receipt_handle.unwrap_or_default();
        let of = message.message_id.unwrap_or_default();
        let sqs = &self.shared.clients.sqs;
        let copy = sqs
            .send_message()
            .queue_url(&self.at.url)
            .message_body(message.body.unwrap_or_default())
            .set_message_attributes(message.message_attributes)
            .message_group_id(crate::entry::letter_group(&of))
            .message_deduplication_id(of);
        let moved = async {
            copy.send().await.map_err(trouble)?;
            work::delete_receipts(&self.shared, &self.at.url, &[&receipt]).await
        };
        moved.await.map(drop).map_err(|why| self.refused(why))
    }

    async fn remove(&self, places: &[LetterPlace]) -> Result<(), AccessError> {
        self.holds()?;
        let receipts: Vec<(u64, Arc<str>)> = {
            let state = self.state.lock();
            let held = places.iter().filter_map(|place| {
                let letter = state.held.get(&place.0)?;
                Some((place.0, Arc::clone(&letter.receipt)))
            });
            held.collect()
        };
        let calls = stream::iter(in_calls(&receipts));
        let mut done = calls
            .map(|some| self.remove_some(some))
            .buffer_unordered(CALLS_AT_ONCE);
        while let Some(done) = done.next().await {
            done?;
        }
        Ok(())
    }

    async fn remove_some(&self, mut left: Vec<(u64, Arc<str>)>) -> Result<(), AccessError> {
        let mut backoff = Backoff::default();
        loop {
            let receipts: Vec<&str> = left.iter().map(|(_, receipt)| &**receipt).collect();
            let deleted = work::delete_receipts(&self.shared, &self.at.url, &receipts).await;
            let failed = match deleted {
                Ok(failed) => failed,
                Err(why) if why.passes() => {
                    self.shared.note(&why);
                    (0..left.len()).map(|at| (at, why.clone())).collect()
                }
                Err(why) => return Err(self.refused(why)),
            };
            if failed.iter().any(|(_, why)| !why.passes()) {
                return Err(self.lost());
            }
            let has_failed = |at: usize| failed.iter().any(|(failed, _)| *failed == at);
            let mut again = Vec::with_capacity(failed.len());
            {
                let mut state = self.state.lock();
                for (at, letter) in left.into_iter().enumerate() {
                    if has_failed(at) {
                        again.push(letter);
                    } else {
                        state.held.remove(&letter.0);
                    }
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            left = again;
            backoff.pause().await;
            self.holds()?;
        }
    }
}

impl Letter {
    fn of(message: Message, until: Instant) -> Self {
        let number = |name| system(&message, &name);
        let sent = number(MessageSystemAttributeName::SentTimestamp);
        let sequence = number(MessageSystemAttributeName::SequenceNumber).unwrap_or_default();
        let sent = (
            sent.and_then(|it| it.parse().ok()).unwrap_or_default(),
            sequence.len(),
            sequence.into(),
        );
        Self {
            sent,
            until,
            receipt: message.receipt_handle.clone().unwrap_or_default().into(),
            received: work::received(&message),
        }
    }

    fn named(self, place: u64) -> DeadLetter {
        let received = self.received;
        let mut letter = DeadLetter::new(LetterPlace(place), received.envelope);
        letter.reason = received.reason;
        letter.consumer = received.consumer;
        letter.failures = received.failures;
        letter.history = received.history;
        letter
    }
}

/// As many as one call takes.
fn in_calls<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    all.chunks(CALL_MESSAGES_MAX).map(<[T]>::to_vec).collect()
}

fn system<'a>(message: &'a Message, name: &MessageSystemAttributeName) -> Option<&'a str> {
    let attributes = message.attributes.as_ref()?;
    attributes.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_kept_for_longer_than_the_letters() {
        for seconds in [1, 3, 4, 5, 6, 10, 30, 3600] {
            let times = Times::of(Duration::from_secs(seconds));
            assert!(times.lock.as_secs() <= 27 && times.renewal * 3 <= times.lock);
            assert!(times.lock >= times.letters && times.letters.as_secs() >= 2);
        }
        let usual = Times::of(Duration::from_secs(30));
        assert_eq!((usual.letters.as_secs(), usual.lock.as_secs()), (20, 27));
    }
}
