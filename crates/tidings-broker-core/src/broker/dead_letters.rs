//! How a message dies in a queue, and where it goes then.
//!
//! A death may cause others (the dead-letter queue may be full), so the dying wait in line, and the
//! command that caused them buries them one after the other before it ends. The record that removes
//! a message follows the record of its new place, so a crash between the two leaves both, not none.
//!
//! While the store has no room for the new place, a message waits in that line, and those behind it
//! wait with it. It has left its queue, but the store still has it there: after a restart it lies in
//! that queue again, and dies again.

use std::sync::Arc;

use super::Broker;
use crate::backlog::Entry;
use crate::slab::Key;
use crate::{Death, DeathReason, Deaths, Effect, Message, Record};

/// A message on its way to a dead-letter exchange.
#[derive(Debug)]
pub(super) struct Dying {
    exchange: bytes::Bytes,
    message: Message,
    reason: DeathReason,
    /// Removes it from the queue it died in, if it was stored there.
    removal: Option<Record>,
    /// What the store needs for it, at most, as far as it was found out.
    pub(super) room: usize,
}

impl Broker {
    /// Ends a message that was taken out of the queue's backlog or was out with a consumer.
    pub(super) fn kill(
        &mut self,
        key: Key,
        entry: Entry,
        reason: DeathReason,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        let removal = entry.stored.then_some(Record::Removed {
            queue: queue.id,
            id: entry.id,
        });
        if queue.rules.dead_letter_exchange.is_some() {
            queue.counters.dead_lettered += 1;
            self.dead_letter(key, entry.message, reason, removal, now);
            return;
        }
        match reason {
            DeathReason::Expired => queue.counters.expired += 1,
            DeathReason::MaxLen => queue.counters.dropped += 1,
            DeathReason::Rejected | DeathReason::DeliveryLimit => queue.counters.rejected += 1,
        }
        out.extend(removal.map(Effect::Store));
    }

    /// Puts the message in line for the dead-letter exchange, if the queue has one.
    pub(super) fn dead_letter(
        &mut self,
        key: Key,
        message: Arc<Message>,
        reason: DeathReason,
        removal: Option<Record>,
        now: u64,
    ) {
        let Some(queue) = self.queues.get(key) else {
            return;
        };
        let Some(exchange) = queue.rules.dead_letter_exchange.clone() else {
            return;
        };
        let death = Death {
            queue: queue.name.clone(),
            reason,
            count: 1,
            time: now,
            exchange: message.exchange.clone(),
            routing_keys: [&message.routing_key]
                .into_iter()
                .chain(&*message.cc)
                .cloned()
                .collect(),
            original_expiration: message.expiration,
        };
        let (routing_key, cc) = match queue.rules.dead_letter_key.clone() {
            Some(key) => (key, Box::default()),
            None => (message.routing_key.clone(), message.cc.clone()),
        };
        let message = Message {
            exchange: exchange.clone(),
            routing_key,
            cc,
            expiration: None,
            deaths: Some(Arc::new(Deaths::record(message.deaths.as_deref(), death))),
            ..Message::clone(&message)
        };
        self.dying.push_back(Dying {
            exchange,
            message,
            reason,
            removal,
            room: 0,
        });
    }

    /// Publishes the dying to their dead-letter exchanges, as far as the store has room.
    pub(super) fn bury(&mut self, now: u64, out: &mut Vec<Effect>) {
        while let Some(mut dying) = self.dying.pop_front() {
            let queues = self.graves(&dying);
            dying.room = self.room_for(&dying.message, &queues);
            if self.check_room(dying.room).is_err() {
                self.dying.push_front(dying);
                return;
            }
            self.distribute(Arc::new(dying.message), &queues, now, out);
            out.extend(dying.removal.map(Effect::Store));
        }
    }

    /// The queues that a dying message goes to.
    fn graves(&mut self, dying: &Dying) -> Vec<Key> {
        let mut queues = Vec::new();
        if let Some(&exchange) = self.exchange_names.get(&dying.exchange) {
            self.route(exchange, &dying.message, &[], &mut queues);
        }
        if dying.reason != DeathReason::Rejected
            && let Some(deaths) = &dying.message.deaths
        {
            queues.retain(|key| {
                let queue = self.queues.get(*key).expect("routes lead to queues");
                !deaths.is_cycle(&queue.name)
            });
        }
        queues
    }
}
