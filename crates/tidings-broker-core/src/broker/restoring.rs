//! Replaying what a store kept.

use std::sync::Arc;

use super::Broker;
use super::publishing::expiry;
use super::topology::{ALTERNATE, alternate_fault};
use crate::backlog::Entry;
use crate::exchange::{Index, Target};
use crate::queue::{Queue, Rules, text};
use crate::slab::Key;
use crate::{
    BindingEnd, BindingRecord, ExchangeDeclare, Message, MessageId, NAME_BYTES_MAX, QueueDeclare,
    QueueId, Record,
};

impl Broker {
    /// Replays one record of a store. All records come before the first command, in the order they
    /// were made or that [`Record`] allows. Facts about things that are not there are ignored.
    ///
    /// A restored message counts as redelivered, since nobody knows who saw it before. The lease of
    /// a queue with `x-expires` starts anew.
    ///
    /// An earlier version may have stored what this one refuses: an argument or a routing key that is
    /// too long. The queue and its messages are kept, the argument is left aside, and the key is
    /// replaced by the one the message had before it was dead-lettered. Gives what was left aside or
    /// replaced, in words for the operator.
    pub fn restore(&mut self, record: Record, now: u64) -> Option<String> {
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
                return self.restore_exchange(declare);
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
                return self.restore_queue(queue, declare, now);
            }
            Record::QueueDeleted { queue } => {
                if let Some(&key) = self.queue_ids.get(&queue) {
                    self.remove_queue(key, &mut Vec::new());
                }
            }
            Record::Bound(binding) => return self.restore_binding(&binding),
            Record::Unbound(binding) => self.unrestore_binding(&binding),
            Record::Enqueued {
                id,
                at,
                queues,
                message,
            } => {
                self.next_message = self.next_message.max(id.0 + 1);
                let (message, note) = with_possible_key(message);
                for queue in queues.as_slice() {
                    self.restore_message(*queue, id, at, &message);
                }
                return note;
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
        None
    }

    fn restore_exchange(&mut self, declare: ExchangeDeclare) -> Option<String> {
        let name = text(&declare.name).into_owned();
        let Some(index) = Index::new(&declare.kind) else {
            // It cannot have been stored by this version or an older one.
            let kind = text(&declare.kind);
            return Some(format!(
                "exchange `{name}` is left out: its type `{kind}` is not known"
            ));
        };
        if self.exchange_names.contains_key(&declare.name) {
            return None;
        }
        let fault = alternate_fault(&declare.arguments);
        self.create_exchange(declare, index);
        fault.map(|why| {
            format!(
                "`{ALTERNATE}` of exchange `{name}` has no effect: {why}; delete the exchange and \
                 declare it anew"
            )
        })
    }

    fn restore_binding(&mut self, binding: &BindingRecord) -> Option<String> {
        let (source, target) = self.ends(binding)?;
        let (key, arguments) = (&binding.routing_key, &binding.arguments);
        // It was accepted once; should it be refused now, it could never match.
        let refusal = self
            .add_binding(source, target, key, arguments, &mut Vec::new())
            .err()?;
        let (source, key) = (text(&binding.source), text(key));
        Some(format!(
            "a binding of exchange `{source}` with the key `{key}` is left out: {refusal}"
        ))
    }

    fn unrestore_binding(&mut self, binding: &BindingRecord) {
        if let Some((source, target)) = self.ends(binding) {
            let (key, arguments) = (&binding.routing_key, &binding.arguments);
            self.remove_binding(source, target, key, arguments, &mut Vec::new());
        }
    }

    fn restore_queue(&mut self, id: QueueId, declare: QueueDeclare, now: u64) -> Option<String> {
        self.next_queue = self.next_queue.max(id.0 + 1);
        if self.queue_names.contains_key(&declare.name) {
            return None;
        }
        let (rules, faults) = Rules::restored(&declare.arguments);
        let note = (!faults.is_empty()).then(|| {
            let faults: Vec<String> = faults
                .iter()
                .map(|(argument, why)| format!("`{argument}`: {why}"))
                .collect();
            format!(
                "queue `{}` is kept, but arguments that an earlier version accepted have no effect \
                 ({}); delete the queue and declare it anew",
                text(&declare.name),
                faults.join(", ")
            )
        });
        let key = self.add_queue(Queue::new(
            id,
            declare,
            None,
            rules,
            self.options.messages_per_piece,
            now,
        ));
        self.arm(key);
        note
    }

    fn ends(&self, binding: &BindingRecord) -> Option<(Key, Target)> {
        let source = *self.exchange_names.get(&binding.source)?;
        let target = match &binding.destination {
            BindingEnd::Queue(id) => Target::Queue(*self.queue_ids.get(id)?),
            BindingEnd::Exchange(name) => Target::Exchange(*self.exchange_names.get(name)?),
        };
        Some((source, target))
    }

    fn restore_message(&mut self, queue: QueueId, id: MessageId, at: u64, message: &Arc<Message>) {
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

/// The message with a routing key that can be delivered. An earlier version dead-lettered with keys
/// that were too long: then the key it had come with before is the best that is known of it.
fn with_possible_key(message: Arc<Message>) -> (Arc<Message>, Option<String>) {
    let bytes = message.routing_key.len();
    if bytes <= NAME_BYTES_MAX {
        return (message, None);
    }
    let deaths = message.deaths.as_deref();
    let before = deaths
        .into_iter()
        .flat_map(|deaths| &deaths.entries)
        .filter_map(|death| death.routing_keys.first())
        .find(|key| key.len() <= NAME_BYTES_MAX);
    let routing_key = before.cloned().unwrap_or_default();
    let note = format!(
        "a message has a routing key of {bytes} bytes, at most {NAME_BYTES_MAX} are possible; it goes \
         on with the key `{}`, as before it was dead-lettered",
        text(&routing_key)
    );
    let message = Message {
        routing_key,
        ..Message::clone(&message)
    };
    (Arc::new(message), Some(note))
}
