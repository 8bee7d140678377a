//! A backlog that is longer than memory: messages go away from the middle of their queues, and are
//! brought back before their turn comes.
//!
//! Only what the store has goes away, and only what others are before. Whoever drives the broker says
//! when memory is short ([`Broker::send_away`]), reads what an [`Effect::Fetch`] asks for, and brings
//! it ([`Broker::fetched`]). Until then such a queue delivers nothing, and all others go on. What
//! needs no look at a message, to purge or to expire without dead letters, does not bring it back.

use std::sync::Arc;

use super::Broker;
use crate::slab::Key;
use crate::{ChannelId, DeathReason, Effect, Message, MessageId, QueueId, Record, Refusal};

impl Broker {
    /// Lets go of the contents of messages whose turn is not soon, until about so many bytes of bodies
    /// are free; tells of how many it did. Queues take turns. What several queues have is free when
    /// the last of them has let go of it.
    pub fn send_away(&mut self, bytes: u64) -> u64 {
        let mut sent = 0;
        // Each queue once at most.
        for _ in 0..self.queue_ids.len() {
            let next = self.queue_ids.range(self.next_to_send..).next();
            let next = next.or_else(|| self.queue_ids.first_key_value());
            let Some((&id, &key)) = next else {
                break;
            };
            self.next_to_send = QueueId(id.0 + 1);
            let queue = self.queues.get_mut(key).expect("ids lead to queues");
            sent += queue.backlog.send_away(bytes - sent);
            if sent >= bytes {
                break;
            }
        }
        sent
    }

    /// Messages that an [`Effect::Fetch`] asked for, in that order. Those that have left their queue
    /// meanwhile are passed over.
    ///
    /// # Errors
    ///
    /// A message that was asked for, still waits, and did not come: the store has lost it. The broker
    /// cannot go on with that queue.
    pub fn fetched(
        &mut self,
        queue: QueueId,
        asked: &[MessageId],
        messages: Vec<(MessageId, Arc<Message>)>,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), MessageId> {
        let Some(&key) = self.queue_ids.get(&queue) else {
            return Ok(());
        };
        let found = self.queues.get_mut(key).expect("ids lead to queues");
        found.is_fetching = false;
        for (id, message) in messages {
            found.backlog.bring_back(id, message);
        }
        if let Some(lost) = asked.iter().find(|id| found.backlog.is_away(**id)) {
            return Err(*lost);
        }
        self.drop_overflow(key, now, out);
        self.pump(key, now, out);
        self.bury(now, out);
        Ok(())
    }

    /// What has to be read out of the store before [`Broker::get`] can be answered: the queue, and
    /// messages of it for [`Broker::fetched`]. Expires what is due, as `get` does.
    ///
    /// # Errors
    ///
    /// As `get`.
    pub fn fetch_for_get(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Option<(QueueId, Vec<MessageId>)>, Refusal> {
        let key = self.queue_key(channel, queue)?;
        self.drop_expired(key, usize::MAX, now, out);
        self.bury(now, out);
        let queue = self.queues.get(key).expect("just found");
        let is_away = queue.backlog.is_head_away();
        Ok(is_away.then(|| (queue.id, queue.backlog.wanted())))
    }

    /// Asks for what is away and will be wanted soon.
    pub(super) fn fetch(&mut self, key: Key, out: &mut Vec<Effect>) {
        let Some(queue) = self.queues.get_mut(key).filter(|it| !it.is_fetching) else {
            return;
        };
        let messages = queue.backlog.wanted();
        if messages.is_empty() {
            return;
        }
        queue.is_fetching = true;
        out.push(Effect::Fetch {
            queue: queue.id,
            messages,
        });
    }

    /// Ends the message at the head of a queue. One that is away and is to become a dead letter is
    /// asked for first: then it says that it did not.
    pub(super) fn kill_head(
        &mut self,
        key: Key,
        reason: DeathReason,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(queue) = self.queues.get_mut(key) else {
            return false;
        };
        if let Some(entry) = queue.backlog.pop() {
            self.kill(key, entry, reason, now, out);
            return true;
        }
        if queue.rules.dead_letter_exchange.is_some() {
            self.fetch(key, out);
            return false;
        }
        let Some(message) = queue.backlog.drop_head() else {
            return false;
        };
        match reason {
            DeathReason::Expired => queue.counters.expired += 1,
            DeathReason::MaxLen => queue.counters.dropped += 1,
            DeathReason::Rejected | DeathReason::DeliveryLimit => queue.counters.rejected += 1,
        }
        let removal = Record::Removed {
            queue: queue.id,
            id: message.id,
        };
        out.extend(message.stored.then_some(Effect::Store(removal)));
        true
    }
}
