//! What happens because time passes: messages and queues expire, long deliveries go on.

use super::Broker;
use crate::slab::Key;
use crate::{DeathReason, Effect};

impl Broker {
    /// When [`Broker::tick`] is next needed, if at all; it may be at once, or have been before now.
    /// Ask after every command.
    pub fn next_deadline(&self) -> Option<u64> {
        if !self.busy.is_empty() {
            return Some(0);
        }
        self.timers.first().map(|(deadline, _)| *deadline)
    }

    /// Expires what is due and goes on with what did not fit in one step. Calling it too early or
    /// too often does no harm.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Effect>) {
        for _ in 0..self.busy.len() {
            if let Some(key) = self.busy.pop_front() {
                self.pump(key, now, out);
            }
        }
        let mut due = Vec::new();
        while let Some(&(deadline, key)) = self.timers.first()
            && deadline <= now
        {
            self.timers.pop_first();
            due.push(key);
        }
        for key in due {
            let queue = self
                .queues
                .get_mut(key)
                .expect("timers go with their queue");
            queue.timer = None;
            let unused_since = queue.last_used;
            let unused = queue.consumers.is_empty()
                && queue
                    .rules
                    .expires
                    .is_some_and(|idle| unused_since.saturating_add(idle) <= now);
            if unused {
                self.remove_queue(key, out);
                continue;
            }
            self.drop_expired(key, self.options.messages_per_step_max, now, out);
            self.arm(key);
        }
        self.bury(now, out);
    }

    /// Expires at most `max` messages from the head of a queue; gives how many it were. Later ones wait
    /// until they are at the head, as in RabbitMQ: they could not have been delivered before.
    pub(super) fn drop_expired(
        &mut self,
        key: Key,
        max: usize,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> usize {
        for dropped in 0..max {
            let Some(queue) = self.queues.get_mut(key) else {
                return dropped;
            };
            if queue.backlog.head_expires_at().is_none_or(|at| at > now) {
                return dropped;
            }
            if !self.kill_head(key, DeathReason::Expired, now, out) {
                return dropped;
            }
        }
        max
    }

    /// Sees to it that the queue is looked at when its head, or the queue itself, expires. A timer
    /// that is earlier than needed is left alone: finding nothing to do costs less than moving it
    /// with every message.
    pub(super) fn arm(&mut self, key: Key) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        let Some(deadline) = queue.deadline() else {
            return;
        };
        if queue.timer.is_none_or(|timer| deadline < timer) {
            if let Some(timer) = queue.timer.replace(deadline) {
                self.timers.remove(&(timer, key));
            }
            self.timers.insert((deadline, key));
        }
    }
}
