//! The first statement of an attempt, sent before its turn: behind what is probably the last
//! statement of the attempt in front of it.
//!
//! A round trip for each statement is most of what an attempt costs. While the database runs the last
//! statement of one attempt, the next ones are polled until they have sent their first. None of them
//! is polled again, and so none sees an answer, before its turn: then everything in front of it has
//! ended, as if nothing had been sent ahead. Only which statement is the last is [guessed](crate::guesses).

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use tidings_core::{Committed, Refusal};
use tokio::{sync::oneshot, task::coop::unconstrained};

use super::{Batch, Reached, is_outbox_only};
use crate::{
    PostgresTransaction, Shared,
    handover::Handover,
    runner::{Attempt, Ran},
};

/// An attempt that has begun.
pub(super) struct Started {
    pub(super) attempt: Attempt,
    pub(super) handover: Arc<Handover>,
    pub(super) is_claimed: bool,
    /// How far it got before its turn, if it sent nothing.
    pub(super) reached: Option<Reached>,
    /// How many statements it probably runs.
    guess: Option<u32>,
}

impl Started {
    /// Polls it; gives it the transaction when it wants it. Pending while a statement runs, or when it
    /// awaits something else after the first one.
    pub(super) fn poll(
        &mut self,
        shared: &Arc<Shared>,
        task: &mut task::Context<'_>,
    ) -> Poll<Reached> {
        let attempt = &mut self.attempt;
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
                    let (shared, handover) = (Arc::clone(shared), Arc::clone(&self.handover));
                    let begun = PostgresTransaction::in_batch(shared, handover);
                    attempt.slot.put(Box::new(begun));
                    is_lent = true;
                }
                Ok(Poll::Pending) if is_lent => return Poll::Pending,
                Ok(Poll::Pending) => return Poll::Ready(Reached::Elsewhere),
            }
        }
    }

    /// Whatever comes next comes from the attempt behind it, if the guess is right.
    pub(super) fn has_sent_all(&self) -> bool {
        match &self.reached {
            None => self
                .guess
                .is_some_and(|guess| self.handover.has_sent(guess)),
            Some(Reached::Ended(Ok(commit))) => is_outbox_only(commit),
            Some(_) => false,
        }
    }

    /// Ends it, and gives who waits for it.
    pub(super) fn close(self) -> oneshot::Sender<Ran> {
        let Attempt {
            slot,
            future,
            reply,
            ..
        } = self.attempt;
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
        let _ = slot.take();
        self.handover.close();
        reply
    }
}

/// Attempts of a batch, in their order.
pub(super) struct Turns {
    /// Those that have not begun.
    waiting: VecDeque<Attempt>,
    /// Those that have begun, and whose turn has not come yet.
    ahead: VecDeque<Started>,
    /// How many of those, the first ones, have sent all that they send before their turn.
    sent: usize,
    /// How often something had been taken back then.
    taken_back: u32,
}

impl Turns {
    pub(super) fn new(attempts: Vec<Attempt>) -> Self {
        Self {
            waiting: attempts.into(),
            ahead: VecDeque::new(),
            sent: 0,
            taken_back: 0,
        }
    }

    /// Those that have begun, and those that have not.
    pub(super) fn into_rest(self) -> (VecDeque<Started>, VecDeque<Attempt>) {
        (self.ahead, self.waiting)
    }

    /// The attempt whose turn it is.
    pub(super) fn next(&mut self, batch: &mut Batch<'_>) -> Option<Started> {
        if let Some(started) = self.ahead.pop_front() {
            self.sent = self.sent.saturating_sub(1);
            return Some(started);
        }
        loop {
            let attempt = self.waiting.pop_front()?;
            if let Some(started) = batch.start(attempt) {
                return Some(started);
            }
        }
    }

    /// Has attempts send their first statement before their turn.
    pub(super) fn look_ahead(&mut self, batch: &mut Batch<'_>, task: &mut task::Context<'_>) {
        let taken_back = batch.line.taken_back();
        if self.taken_back != taken_back {
            (self.sent, self.taken_back) = (0, taken_back);
        }
        while self.sent < self.ahead.len() || self.start(batch) {
            let started = &mut self.ahead[self.sent];
            if started.reached.is_none()
                && !started.handover.is_ahead()
                && let Poll::Ready(reached) = started.poll(batch.shared, task)
            {
                started.reached = Some(reached);
            }
            if !started.has_sent_all() {
                return;
            }
            self.sent += 1;
        }
    }

    /// Starts the next attempt before its turn, if that is possible.
    fn start(&mut self, batch: &mut Batch<'_>) -> bool {
        while let Some(attempt) = self.waiting.pop_front() {
            let claim = attempt.claim.as_ref();
            // What becomes of its message is known when the other delivery of it has ended.
            if claim.is_some_and(|entry| batch.twice.contains_key(&entry.claim)) {
                self.waiting.push_front(attempt);
                return false;
            }
            if let Some(started) = batch.start(attempt) {
                self.ahead.push_back(started);
                return true;
            }
        }
        false
    }
}

impl Batch<'_> {
    /// `None`: its message is known.
    fn start(&mut self, attempt: Attempt) -> Option<Started> {
        if let Some(entry) = &attempt.claim
            && let Some(waiting) = self.twice.get_mut(&entry.claim)
        {
            *waiting -= 1;
        }
        let is_claimed = match &attempt.claim {
            Some(entry) if !self.all_free && !self.free.remove(&entry.claim) => {
                let why = Refusal::Known;
                self.tell(attempt.reply, Ok(Committed::Refused { entry: 0, why }));
                return None;
            }
            claim => claim.is_some(),
        };
        let is_free = self.is_alone && !is_claimed;
        let handover = Handover::new(&self.connection, &self.line, is_free);
        Some(Started {
            guess: self.shared.guesses.of(attempt.claim.as_ref()),
            attempt,
            handover: Arc::new(handover),
            is_claimed,
            reached: None,
        })
    }
}
