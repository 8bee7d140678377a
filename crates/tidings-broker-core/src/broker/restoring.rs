//! Replaying what a store kept.

use super::Broker;
use super::publishing::expiry;
use crate::backlog::Entry;
use crate::exchange::{Index, Target};
use crate::queue::{Queue, Rules};
use crate::slab::Key;
use crate::{BindingEnd, BindingRecord, ExchangeDeclare, MessageId, QueueDeclare, QueueId, Record};

impl Broker {
    /// Replays one record of a store. All records come before the first command, in the order they
    /// were made or that [`Record`] allows. Facts about things that are not there are ignored.
    ///
    /// A restored message counts as redelivered, since nobody knows who saw it before. The lease of
    /// a queue with `x-expires` starts anew.
    pub fn restore(&mut self, record: Record, now: u64) {
        match record {
            Record::ExchangeDeclared {
                name,
                kind,
                auto_delete,
                internal,
                arguments,
            } => {
                let durable = true;
                let plain = ExchangeDeclare {
                    name,
                    kind,
                    durable,
                    ..Default::default()
                };
                let declare = ExchangeDeclare {
                    auto_delete,
                    internal,
                    arguments,
                    ..plain
                };
                self.restore_exchange(declare);
            }
            Record::ExchangeDeleted { name } => {
                let key = self.exchange_names.get(&name).copied();
                self.remove_exchanges(key.into_iter().collect(), &mut Vec::new());
            }
            Record::QueueDeclared {
                queue,
                name,
                auto_delete,
                arguments,
            } => {
                let plain = QueueDeclare {
                    name,
                    durable: true,
                    ..QueueDeclare::default()
                };
                let declare = QueueDeclare {
                    auto_delete,
                    arguments,
                    ..plain
                };
                self.restore_queue(queue, declare, now);
            }
            Record::QueueDeleted { queue } => {
                if let Some(&key) = self.queue_ids.get(&queue) {
                    self.remove_queue(key, &mut Vec::new());
                }
            }
            Record::Bound(binding) => self.restore_binding(&binding),
            Record::Unbound(binding) => self.unrestore_binding(&binding),
            Record::Enqueued {
                id,
                at,
                queues,
                message,
            } => {
                self.next_message = self.next_message.max(id.0 + 1);
                for queue in queues.as_slice() {
                    self.restore_message(*queue, id, at, &message);
                }
            }
            Record::Removed { queue, id } => self.unrestore_message(queue, id),
            Record::RemovedMany { queue, ids } => {
                ids.into_iter()
                    .for_each(|id| self.unrestore_message(queue, id));
            }
            Record::Ids {
                next_message,
                next_queue,
            } => {
                self.next_message = self.next_message.max(next_message.0);
                self.next_queue = self.next_queue.max(next_queue.0);
            }
        }
    }

    fn restore_exchange(&mut self, declare: ExchangeDeclare) {
        // A type that is not known cannot have been stored by this version or an older one.
        if let Some(index) = Index::new(&declare.kind)
            && !self.exchange_names.contains_key(&declare.name)
        {
            self.create_exchange(declare, index);
        }
    }

    fn restore_binding(&mut self, binding: &BindingRecord) {
        if let Some((source, target)) = self.ends(binding) {
            let (key, arguments) = (&binding.routing_key, &binding.arguments);
            // It was accepted once; should it be refused now, it could never match.
            let _ = self.bind(source, target, key, arguments, &mut Vec::new());
        }
    }

    fn unrestore_binding(&mut self, binding: &BindingRecord) {
        if let Some((source, target)) = self.ends(binding) {
            let (key, arguments) = (&binding.routing_key, &binding.arguments);
            self.remove_binding(source, target, key, arguments, &mut Vec::new());
        }
    }

    fn restore_queue(&mut self, id: QueueId, declare: QueueDeclare, now: u64) {
        self.next_queue = self.next_queue.max(id.0 + 1);
        if self.queue_names.contains_key(&declare.name) {
            return;
        }
        // Arguments that were accepted once are accepted again.
        let Ok(rules) = Rules::of(&declare, &self.options.vhost) else {
            return;
        };
        let key = self.add_queue(Queue::new(id, declare, None, rules, now));
        self.arm(key);
    }

    fn ends(&self, binding: &BindingRecord) -> Option<(Key, Target)> {
        let source = *self.exchange_names.get(&binding.source)?;
        let target = match &binding.destination {
            BindingEnd::Queue(id) => Target::Queue(*self.queue_ids.get(id)?),
            BindingEnd::Exchange(name) => Target::Exchange(*self.exchange_names.get(name)?),
        };
        Some((source, target))
    }

    fn restore_message(
        &mut self,
        queue: QueueId,
        id: MessageId,
        at: u64,
        message: &std::sync::Arc<crate::Message>,
    ) {
        let Some(&key) = self.queue_ids.get(&queue) else {
            return;
        };
        let queue = self.queues.get_mut(key).expect("ids lead to queues");
        let expires_at = expiry(queue.rules.ttl, message, at);
        let message = message.clone();
        let entry = Entry {
            id,
            message,
            expires_at,
            returns: 0,
            redelivered: true,
            stored: true,
        };
        if queue.backlog.restore(entry) {
            queue.counters.restored += 1;
        }
        self.arm(key);
    }

    fn unrestore_message(&mut self, queue: QueueId, id: MessageId) {
        self.next_message = self.next_message.max(id.0 + 1);
        let Some(&key) = self.queue_ids.get(&queue) else {
            return;
        };
        let queue = self.queues.get_mut(key).expect("ids lead to queues");
        if queue.backlog.unrestore(id) {
            queue.counters.restored -= 1;
        }
    }
}
