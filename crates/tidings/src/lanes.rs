//! Order per key: what may be handled now, and what waits behind an earlier message of its key.
//!
//! Each key is a lane. One message of a lane is under way at a time, the others wait in the order
//! they came. When the one under way is to be tried again after a delay, it leaves the process (to
//! a delay queue of the broker), and until it is back whatever comes with its key is sent after
//! it, to the same delay. A lane remembers who is *away* in their order, so that they are handled
//! in that order whichever comes back first.
//!
//! What is away may come back to another instance. So who is away is only believed for a while
//! ([`GRACE`] beyond the delay), and the consumer asks the inbox whether it has been handled.
//!
//! This is a state machine: it knows no clock, no broker and no task.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::MessageId;

/// How much later than its delay a message may come back before its lane goes on without it.
const GRACE: Duration = Duration::from_secs(60);

/// How many messages that are away are remembered in all; about 100 bytes each. Those beyond wait
/// like the others, but their order among themselves is only as they come back.
const AWAY_COUNT_MAX: usize = 100_000;

/// The lanes of one queue. `J` is a message in hand.
pub(crate) struct Lanes<J> {
    lanes: HashMap<Box<str>, Lane<J>>,
    away_count: usize,
}

struct Lane<J> {
    busy: bool,
    waiting: VecDeque<(MessageId, J)>,
    away: VecDeque<Away>,
    /// The delay that the first of those who are away was sent to.
    delay: Duration,
}

struct Away {
    id: MessageId,
    believed_until: Instant,
}

/// What to do with a message of a lane. The lane is busy until it has
/// [`finished`](Lanes::finished).
#[derive(Debug, PartialEq)]
pub(crate) enum Next<J> {
    Handle(J),
    /// Send it after the message `behind`, which is away.
    Defer {
        job: J,
        delay: Duration,
        behind: MessageId,
    },
}

/// How it went.
#[derive(Debug, PartialEq)]
pub(crate) enum End<J> {
    /// It is settled for good: handled, or a dead letter.
    Settled,
    /// It comes again after a delay.
    Retried(Duration),
    /// It was sent after the one that is away.
    Deferred,
    /// It was not sent anywhere, because the one it would have waited for has been handled by
    /// another instance.
    Overtaken { job: J, behind: MessageId },
}

impl<J> Lanes<J> {
    pub(crate) fn new() -> Self {
        Self {
            lanes: HashMap::new(),
            away_count: 0,
        }
    }

    /// A message came.
    pub(crate) fn arrive(
        &mut self,
        key: &str,
        id: &MessageId,
        job: J,
        now: Instant,
    ) -> Option<Next<J>> {
        if !self.lanes.contains_key(key) {
            self.lanes.insert(key.into(), Lane::new());
        }
        let lane = self.lanes.get_mut(key)?;
        lane.waiting.push_back((id.clone(), job));
        self.next(key, now)
    }

    /// The message that the last [`Next`] of this lane was about is done with; says what is next.
    pub(crate) fn finished(
        &mut self,
        key: &str,
        id: &MessageId,
        end: End<J>,
        now: Instant,
    ) -> Option<Next<J>> {
        let lane = self.lanes.get_mut(key)?;
        lane.busy = false;
        match end {
            End::Settled => self.away_count -= lane.returned(id),
            End::Retried(delay) => {
                lane.delay = delay;
                self.away_count -= lane.returned(id);
                self.away_count += 1;
                lane.away.push_front(Away::new(id, delay, now));
            }
            End::Deferred => {}
            End::Overtaken { job, behind } => {
                self.away_count -= lane.returned(&behind);
                lane.waiting.push_front((id.clone(), job));
            }
        }
        self.next(key, now)
    }

    /// Forgets who was away too long, and lanes that are empty.
    pub(crate) fn sweep(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            self.away_count -= lane.forget_lost(now);
        }
        self.lanes.retain(|_, lane| !lane.is_empty());
    }

    /// How many messages in hand wait for another one.
    pub(crate) fn waiting(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    fn next(&mut self, key: &str, now: Instant) -> Option<Next<J>> {
        let lane = self.lanes.get_mut(key)?;
        if lane.busy {
            return None;
        }
        self.away_count -= lane.forget_lost(now);
        let Some((id, job)) = lane.waiting.pop_front() else {
            if lane.is_empty() {
                self.lanes.remove(key);
            }
            return None;
        };
        lane.busy = true;
        let behind = match lane.away.front() {
            Some(first) if first.id != id => first.id.clone(),
            _ => return Some(Next::Handle(job)),
        };
        let delay = lane.delay;
        match lane.away.iter_mut().find(|away| away.id == id) {
            Some(back_too_early) => *back_too_early = Away::new(&id, delay, now),
            None if self.away_count < AWAY_COUNT_MAX => {
                self.away_count += 1;
                lane.away.push_back(Away::new(&id, delay, now));
            }
            None => {}
        }
        Some(Next::Defer { job, delay, behind })
    }
}

impl<J> Lane<J> {
    fn new() -> Self {
        Self {
            busy: false,
            waiting: VecDeque::new(),
            away: VecDeque::new(),
            delay: Duration::ZERO,
        }
    }

    fn is_empty(&self) -> bool {
        !self.busy && self.waiting.is_empty() && self.away.is_empty()
    }

    /// `id` is no longer away. Returns how many entries that were.
    fn returned(&mut self, id: &MessageId) -> usize {
        let before = self.away.len();
        self.away.retain(|away| away.id != *id);
        before - self.away.len()
    }

    fn forget_lost(&mut self, now: Instant) -> usize {
        let before = self.away.len();
        self.away.retain(|away| now < away.believed_until);
        before - self.away.len()
    }
}

impl Away {
    fn new(id: &MessageId, delay: Duration, now: Instant) -> Self {
        Self {
            id: id.clone(),
            believed_until: now + delay + GRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(5);

    /// Lanes of one key, with messages called by their numbers.
    struct Lane1 {
        lanes: Lanes<u32>,
        now: Instant,
    }

    impl Lane1 {
        fn new() -> Self {
            Self {
                lanes: Lanes::new(),
                now: Instant::now(),
            }
        }

        fn arrive(&mut self, number: u32) -> Option<Next<u32>> {
            self.lanes.arrive("k", &id(number), number, self.now)
        }

        fn finished(&mut self, number: u32, end: End<u32>) -> Option<Next<u32>> {
            self.lanes.finished("k", &id(number), end, self.now)
        }
    }

    fn id(number: u32) -> MessageId {
        MessageId::new(number.to_string())
    }

    fn handle(number: u32) -> Option<Next<u32>> {
        Some(Next::Handle(number))
    }

    fn defer(number: u32, behind: u32, delay: Duration) -> Option<Next<u32>> {
        Some(Next::Defer {
            job: number,
            delay,
            behind: id(behind),
        })
    }

    #[test]
    fn messages_of_one_key_are_handled_one_after_the_other() {
        let mut lane = Lane1::new();
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.arrive(2), None);
        assert_eq!(lane.arrive(3), None);
        assert_eq!(lane.finished(1, End::Settled), handle(2));
        assert_eq!(lane.finished(2, End::Settled), handle(3));
        assert_eq!(lane.finished(3, End::Settled), None);
        assert!(lane.lanes.lanes.is_empty(), "an empty lane is forgotten");
    }

    #[test]
    fn later_messages_go_behind_one_that_is_retried_and_come_after_it() {
        let mut lane = Lane1::new();
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.arrive(2), None);
        assert_eq!(lane.finished(1, End::Retried(DELAY)), defer(2, 1, DELAY));
        assert_eq!(lane.finished(2, End::Deferred), None);
        assert_eq!(lane.arrive(3), defer(3, 1, DELAY));
        assert_eq!(lane.finished(3, End::Deferred), None);
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.arrive(2), None);
        assert_eq!(lane.finished(1, End::Settled), handle(2));
        // 4 was sent after 3, so it may not go before it.
        assert_eq!(lane.arrive(4), None);
        assert_eq!(lane.finished(2, End::Settled), defer(4, 3, DELAY));
        assert_eq!(lane.finished(4, End::Deferred), None);
        assert_eq!(lane.arrive(3), handle(3));
        assert_eq!(lane.finished(3, End::Settled), None);
        assert_eq!(lane.arrive(4), handle(4));
        assert_eq!(lane.finished(4, End::Settled), None);
        assert_eq!(lane.lanes.away_count, 0);
    }

    #[test]
    fn a_message_that_comes_back_too_early_follows_to_the_longer_delay() {
        let mut lane = Lane1::new();
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.finished(1, End::Retried(DELAY)), None);
        assert_eq!(lane.arrive(2), defer(2, 1, DELAY));
        assert_eq!(lane.finished(2, End::Deferred), None);
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.finished(1, End::Retried(2 * DELAY)), None);
        assert_eq!(lane.arrive(2), defer(2, 1, 2 * DELAY));
    }

    #[test]
    fn a_lane_goes_on_when_another_instance_handled_the_message_that_was_away() {
        let mut lane = Lane1::new();
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.finished(1, End::Retried(DELAY)), None);
        assert_eq!(lane.arrive(2), defer(2, 1, DELAY));
        let overtaken = End::Overtaken {
            job: 2,
            behind: id(1),
        };
        assert_eq!(lane.finished(2, overtaken), handle(2));
    }

    #[test]
    fn a_lane_goes_on_when_the_message_that_was_away_never_comes_back() {
        let mut lane = Lane1::new();
        assert_eq!(lane.arrive(1), handle(1));
        assert_eq!(lane.finished(1, End::Retried(DELAY)), None);
        lane.now += DELAY + GRACE;
        assert_eq!(lane.arrive(2), handle(2));
        assert_eq!(lane.lanes.away_count, 0);
    }
}
