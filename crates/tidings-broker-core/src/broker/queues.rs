//! Declaring, deleting and purging queues.

use bytes::Bytes;

use super::topology::refuse_reserved;
use super::{Broker, locked};
use crate::exchange::Target;
use crate::queue::{Queue, Rules, text};
use crate::slab::Key;
use crate::{
    ChannelId, ConnectionId, Effect, MessageId, QueueDeclare, QueueDeclared, QueueId, Record,
    Refusal,
};

/// Ids in one [`Record::RemovedMany`].
const REMOVED_IDS_MAX: usize = 4096;

impl Broker {
    /// `queue.declare`.
    pub fn declare_queue(
        &mut self,
        channel: ChannelId,
        mut declare: QueueDeclare,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<QueueDeclared, Refusal> {
        let connection = self.channel_mut(channel)?.connection;
        let key = if declare.passive {
            self.queue_key(channel, &declare.name)?
        } else if let Some(&key) = self.queue_names.get(&declare.name) {
            self.check_redeclared(key, &declare, connection)?;
            key
        } else {
            refuse_reserved("queue", &declare.name)?;
            let rules = Rules::of(&declare, &self.options.vhost)?;
            self.check_queue_limit(&declare.name)?;
            if declare.name.is_empty() {
                declare.name = self.names.generate("amq.gen-");
            }
            self.create_queue(declare, connection, rules, now, out)?
        };
        let queue = self.queues.get_mut(key).expect("found or made");
        queue.last_used = now;
        let declared = QueueDeclared {
            name: queue.name.clone(),
            messages: queue.backlog.len() as u64,
            consumers: queue.consumers.len() as u64,
        };
        self.channel_mut(channel)?.last_queue = Some(declared.name.clone());
        self.arm(key);
        Ok(declared)
    }

    /// Makes a queue for direct replies, exclusive and gone with its consumer, under a name that
    /// only whoever is told can know; gives the name.
    pub fn declare_reply_queue(
        &mut self,
        channel: ChannelId,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Bytes, Refusal> {
        let connection = self.channel_mut(channel)?.connection;
        self.check_queue_limit(b"amq.rabbitmq.reply-to")?;
        let name = self.names.generate("amq.rabbitmq.reply-to.");
        let declare = QueueDeclare {
            name: name.clone(),
            exclusive: true,
            auto_delete: true,
            ..QueueDeclare::default()
        };
        let rules = Rules::of(&declare, &self.options.vhost)?;
        self.create_queue(declare, connection, rules, now, out)?;
        Ok(name)
    }

    fn check_redeclared(
        &self,
        key: Key,
        declare: &QueueDeclare,
        connection: ConnectionId,
    ) -> Result<(), Refusal> {
        let queue = self.queues.get(key).expect("names lead to queues");
        if queue.owner != declare.exclusive.then_some(connection) {
            return Err(locked(&queue.name, &self.options.vhost));
        }
        queue.check_same(declare, &self.options.vhost)
    }

    fn create_queue(
        &mut self,
        declare: QueueDeclare,
        connection: ConnectionId,
        rules: Rules,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Key, Refusal> {
        let owner = declare.exclusive.then_some(connection);
        let id = QueueId(self.next_queue);
        let queue = Queue::new(
            id,
            declare,
            owner,
            rules,
            self.options.messages_per_piece,
            now,
        );
        if queue.survives() {
            let record = Record::QueueDeclared {
                queue: id,
                name: queue.name.clone(),
                auto_delete: queue.auto_delete,
                arguments: queue.arguments.clone(),
            };
            self.check_room(record.stored_bytes())?;
            self.store(record, out);
        }
        let key = self.add_queue(queue);
        if let Some(owner) = owner {
            self.connections
                .entry(owner)
                .or_default()
                .exclusive_queues
                .insert(key);
        }
        Ok(key)
    }

    pub(super) fn add_queue(&mut self, queue: Queue) -> Key {
        let (name, id, survives) = (queue.name.clone(), queue.id, queue.survives());
        self.next_queue = self.next_queue.max(id.0 + 1);
        let key = self.queues.insert(queue);
        self.queue_names.insert(name, key);
        if survives {
            self.queue_ids.insert(id, key);
        }
        self.topology_version += 1;
        key
    }

    /// `queue.delete`; gives the number of messages that were ready. Deleting what is not there is
    /// fine.
    pub fn delete_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
        out: &mut Vec<Effect>,
    ) -> Result<u64, Refusal> {
        if !name.is_empty() && !self.queue_names.contains_key(name) {
            return self.channel_mut(channel).map(|_| 0);
        }
        let key = self.queue_key(channel, name)?;
        let queue = self.queues.get(key).expect("just found");
        let refuse = |why: &str| {
            let (name, vhost) = (text(&queue.name), &self.options.vhost);
            Refusal::precondition(format_args!("queue '{name}' in vhost '{vhost}' {why}"))
        };
        if if_unused && !queue.consumers.is_empty() {
            return Err(refuse("in use"));
        }
        if if_empty && !queue.backlog.is_empty() {
            return Err(refuse("not empty"));
        }
        let ready = queue.backlog.len() as u64;
        self.remove_queue(key, out);
        Ok(ready)
    }

    /// Deletes a queue: unbinds it, tells its consumers, forgets its messages.
    pub(super) fn remove_queue(&mut self, key: Key, out: &mut Vec<Effect>) {
        let Some(queue) = self.queues.get(key) else {
            return;
        };
        let mut unneeded = Vec::new();
        for (source, routing_key) in queue.incoming.clone() {
            unneeded.extend(self.unbind_all(source, Target::Queue(key), &routing_key, out));
        }
        self.remove_exchanges(unneeded, out);
        let mut queue = self.queues.remove(key).expect("still there");
        self.queue_names.remove(&queue.name);
        self.queue_ids.remove(&queue.id);
        self.topology_version += 1;
        if let Some(deadline) = queue.timer {
            self.timers.remove(&(deadline, key));
        }
        if let Some(connection) = queue
            .owner
            .and_then(|owner| self.connections.get_mut(&owner))
        {
            connection.exclusive_queues.remove(&key);
        }
        for consumer in std::mem::take(&mut queue.consumers).into_values() {
            let Some(consumer) = self.consumers.remove(consumer) else {
                continue;
            };
            let Some(channel) = self.channels.get_mut(consumer.channel) else {
                continue;
            };
            channel.consumers.remove(&consumer.tag);
            out.push(Effect::CancelConsumer {
                connection: channel.connection,
                channel: channel.number,
                consumer_tag: consumer.tag,
            });
        }
        empty(&mut queue, out);
        if queue.survives() {
            out.push(Effect::Store(Record::QueueDeleted { queue: queue.id }));
        }
    }

    /// `queue.purge`; gives the number of messages that were ready.
    pub fn purge_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        out: &mut Vec<Effect>,
    ) -> Result<u64, Refusal> {
        let key = self.queue_key(channel, name)?;
        let queue = self.queues.get_mut(key).expect("just found");
        let count = empty(queue, out);
        queue.counters.purged += count;
        Ok(count)
    }
}

/// Takes out everything that is ready.
fn empty(queue: &mut Queue, out: &mut Vec<Effect>) -> u64 {
    let count = queue.backlog.len() as u64;
    let mut ids = Vec::new();
    let mut flush = |ids: &mut Vec<MessageId>| {
        if !ids.is_empty() {
            let ids = std::mem::take(ids);
            out.push(Effect::Store(Record::RemovedMany {
                queue: queue.id,
                ids,
            }));
        }
    };
    while let Some(message) = queue.backlog.drop_head() {
        if message.stored {
            ids.push(message.id);
        }
        if ids.len() == REMOVED_IDS_MAX {
            flush(&mut ids);
        }
    }
    flush(&mut ids);
    count
}
