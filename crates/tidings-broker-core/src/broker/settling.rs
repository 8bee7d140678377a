//! Settlement: acknowledging, rejecting, requeueing.

use super::Broker;
use crate::session::Unacked;
use crate::slab::Key;
use crate::{ChannelId, DeathReason, Effect, Record, Refusal};

/// What a client decides about a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Ack,
    Reject,
    Requeue,
}

impl Verdict {
    /// `None` acknowledges; otherwise whether to requeue.
    pub(super) const fn of(requeue: Option<bool>) -> Self {
        match requeue {
            None => Self::Ack,
            Some(true) => Self::Requeue,
            Some(false) => Self::Reject,
        }
    }
}

/// Whom a settlement concerns besides the messages: consumers that may have room again, and queues
/// that got messages back. Both are few, usually one.
#[derive(Debug, Default)]
struct Touched {
    consumers: Vec<Key>,
    queues: Vec<Key>,
}

fn note(list: &mut Vec<Key>, key: Key) {
    if list.last() != Some(&key) && !list.contains(&key) {
        list.push(key);
    }
}

impl Broker {
    /// `basic.ack`. Tag 0 with `multiple` is everything outstanding on the channel.
    pub fn ack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.settle(channel, delivery_tag, multiple, Verdict::Ack, now, out)
    }

    /// `basic.nack`, and `basic.reject` with `multiple` false. With `requeue` the messages go back
    /// to where they were; without, to the dead-letter exchange if there is one.
    pub fn nack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let verdict = Verdict::of(Some(requeue));
        self.settle(channel, delivery_tag, multiple, verdict, now, out)
    }

    /// `basic.recover` with requeue: everything outstanding on the channel goes back to where it
    /// was. (Without requeue it is 540, which is the server's to say.)
    pub fn recover(
        &mut self,
        channel: ChannelId,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.settle(channel, 0, true, Verdict::Requeue, now, out)
    }

    fn settle(
        &mut self,
        channel: ChannelId,
        tag: u64,
        multiple: bool,
        verdict: Verdict,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let unacked = &self.channel_mut(channel)?.unacked;
        let is_all = multiple && tag == 0;
        if !is_all && !unacked.contains(tag) {
            return Err(Refusal::unknown_delivery(tag));
        }
        if multiple {
            let last = if is_all { u64::MAX } else { tag };
            self.settle_through(channel, last, verdict, now, out);
        } else {
            self.settle_single(channel, tag, verdict, now, out);
        }
        Ok(())
    }

    /// Settles all that is out on the channel up to `last`.
    pub(super) fn settle_through(
        &mut self,
        channel: ChannelId,
        last: u64,
        verdict: Verdict,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let mut touched = Touched::default();
        while let Some(unacked) = self
            .channels
            .get_mut(channel.0)
            .and_then(|session| session.unacked.take_first_through(last))
        {
            self.settle_one(channel.0, unacked, verdict, now, &mut touched, out);
        }
        self.after_settlement(channel.0, touched, now, out);
    }

    /// Settles one delivery, if it is out on the channel.
    pub(super) fn settle_single(
        &mut self,
        channel: ChannelId,
        tag: u64,
        verdict: Verdict,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let session = self.channels.get_mut(channel.0);
        let Some(unacked) = session.and_then(|session| session.unacked.take(tag)) else {
            return;
        };
        let mut touched = Touched::default();
        self.settle_one(channel.0, unacked, verdict, now, &mut touched, out);
        self.after_settlement(channel.0, touched, now, out);
    }

    fn settle_one(
        &mut self,
        channel: Key,
        unacked: Unacked,
        verdict: Verdict,
        now: u64,
        touched: &mut Touched,
        out: &mut Vec<Effect>,
    ) {
        let Unacked {
            queue: queue_key,
            queue_id,
            consumer,
            mut entry,
        } = unacked;
        if let Some(key) = consumer {
            if let Some(session) = self.channels.get_mut(channel) {
                session.outstanding -= 1;
            }
            if let Some(consumer) = self.consumers.get_mut(key) {
                consumer.unacked -= 1;
                note(&mut touched.consumers, key);
            }
        }
        let removed = Record::Removed {
            queue: queue_id,
            id: entry.id,
        };
        let Some(queue) = self.queues.get_mut(queue_key) else {
            // The queue was deleted meanwhile, and the message with it.
            out.extend(entry.stored.then_some(Effect::Store(removed)));
            return;
        };
        queue.unacked -= 1;
        match verdict {
            Verdict::Ack => {
                queue.counters.acked += 1;
                out.extend(entry.stored.then_some(Effect::Store(removed)));
            }
            Verdict::Reject => self.kill(queue_key, entry, DeathReason::Rejected, now, out),
            Verdict::Requeue => {
                entry.redelivered = true;
                entry.returns += 1;
                if queue
                    .rules
                    .delivery_limit
                    .is_some_and(|limit| entry.returns > limit)
                {
                    self.kill(queue_key, entry, DeathReason::DeliveryLimit, now, out);
                } else {
                    queue.backlog.put_back(entry);
                    note(&mut touched.queues, queue_key);
                }
            }
        }
    }

    fn after_settlement(
        &mut self,
        channel: Key,
        mut touched: Touched,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        for queue in &touched.queues {
            self.drop_overflow(*queue, now, out);
        }
        for consumer in touched.consumers {
            if self.wake(consumer) {
                let queue = self.consumers.get(consumer).expect("just woken").queue;
                note(&mut touched.queues, queue);
            }
        }
        for queue in touched.queues {
            self.pump(queue, now, out);
        }
        let limited = |session: &crate::session::Channel| session.prefetch_global != 0;
        if self.channels.get(channel).is_some_and(limited) {
            self.wake_channel(channel, now, out);
        }
        self.bury(now, out);
    }

    /// Puts back everything the channel has not settled; gives the queues that got something.
    pub(super) fn requeue_all(
        &mut self,
        channel: Key,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Vec<Key> {
        let mut touched = Touched::default();
        while let Some(unacked) = self
            .channels
            .get_mut(channel)
            .and_then(|c| c.unacked.take_first_through(u64::MAX))
        {
            self.settle_one(channel, unacked, Verdict::Requeue, now, &mut touched, out);
        }
        touched.queues
    }
}
