//! Consumers: who stands in line at a queue, and what they are given.

use std::cmp::Reverse;

use bytes::Bytes;

use super::Broker;
use crate::backlog::Entry;
use crate::queue::{Queue, text};
use crate::session::{Consumer, Unacked};
use crate::slab::{Key, Slab};
use crate::{ChannelId, Consume, Delivery, Effect, Got, Record, Refusal, ReplyCode, Value};

impl Broker {
    /// `basic.qos`: with `global` for the channel as a whole, at once; otherwise for each consumer
    /// that starts on the channel from now on. 0 is unlimited.
    pub fn qos(
        &mut self,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let session = self.channel_mut(channel)?;
        if global {
            session.prefetch_global = prefetch_count;
            self.wake_channel(channel.0, now, out);
        } else {
            session.prefetch = prefetch_count;
        }
        Ok(())
    }

    /// `basic.consume`; gives the consumer's tag. Deliveries may follow at once: send `consume-ok`
    /// before the effects.
    pub fn consume(
        &mut self,
        channel: ChannelId,
        consume: Consume,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Bytes, Refusal> {
        let session = self.channel_mut(channel)?;
        if session.consumers.contains_key(&consume.consumer_tag) {
            let tag = text(&consume.consumer_tag);
            let why = format_args!("attempt to reuse consumer tag '{tag}'");
            return Err(Refusal::new(ReplyCode::NotAllowed, why));
        }
        let prefetch = session.prefetch;
        let queue_key = self.queue_key(channel, &consume.queue)?;
        let priority = priority(&consume)?;
        self.check_exclusive(queue_key, consume.exclusive)?;
        let tag = match consume.consumer_tag.is_empty() {
            true => self.names.generate("amq.ctag-"),
            false => consume.consumer_tag,
        };
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let key = self.consumers.insert(Consumer {
            channel: channel.0,
            queue: queue_key,
            tag: tag.clone(),
            no_ack: consume.no_ack,
            priority,
            prefetch,
            unacked: 0,
            arrival,
            in_line: false,
        });
        self.channel_mut(channel)?
            .consumers
            .insert(tag.clone(), key);
        let queue = self.queues.get_mut(queue_key).expect("just found");
        queue.consumers.insert(arrival, key);
        queue.exclusive_consumer = consume.exclusive;
        if queue.rules.single_active {
            queue.active.get_or_insert(key);
        }
        self.wake(key);
        self.pump(queue_key, now, out);
        self.bury(now, out);
        Ok(tag)
    }

    fn check_exclusive(&self, key: Key, exclusive: bool) -> Result<(), Refusal> {
        let queue = self.queues.get(key).expect("just found");
        let taken = queue.exclusive_consumer || (exclusive && !queue.consumers.is_empty());
        if taken || (exclusive && queue.rules.single_active) {
            let (name, vhost) = (text(&queue.name), &self.options.vhost);
            let why = format_args!("queue '{name}' in vhost '{vhost}' in exclusive use");
            return Err(Refusal::new(ReplyCode::AccessRefused, why));
        }
        Ok(())
    }

    /// `basic.cancel`: what the consumer has not settled stays with the channel. Cancelling what
    /// is not there is fine.
    pub fn cancel(
        &mut self,
        channel: ChannelId,
        consumer_tag: &[u8],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Some(&key) = self.channel_mut(channel)?.consumers.get(consumer_tag) else {
            return Ok(());
        };
        let queue = self.remove_consumer(key, now);
        self.after_consumer_left(queue, now, out);
        self.bury(now, out);
        Ok(())
    }

    /// Takes the consumer away; gives its queue, which [`Broker::after_consumer_left`] is to see.
    pub(super) fn remove_consumer(&mut self, key: Key, now: u64) -> Key {
        let consumer = self
            .consumers
            .remove(key)
            .expect("channels lead to consumers");
        if let Some(channel) = self.channels.get_mut(consumer.channel) {
            channel.consumers.remove(&consumer.tag);
        }
        let queue = self
            .queues
            .get_mut(consumer.queue)
            .expect("consumers lead to queues");
        queue.consumers.remove(&consumer.arrival);
        if consumer.in_line {
            queue.gone_in_line += 1;
            sweep_line(queue, &self.consumers);
        }
        queue.exclusive_consumer = false;
        queue.last_used = now;
        if queue.active == Some(key) {
            let rank = |key: &&Key| {
                let consumer = self.consumers.get(**key).expect("queues lead to consumers");
                (consumer.priority, Reverse(consumer.arrival))
            };
            queue.active = queue.consumers.values().max_by_key(rank).copied();
        }
        consumer.queue
    }

    /// Deletes the queue if that was its last consumer and it wants to go then; otherwise lets
    /// those who stay have what the one who left could not take.
    pub(super) fn after_consumer_left(&mut self, key: Key, now: u64, out: &mut Vec<Effect>) {
        let Some(queue) = self.queues.get(key) else {
            return;
        };
        if queue.consumers.is_empty() {
            match queue.auto_delete {
                true => self.remove_queue(key, out),
                false => self.arm(key),
            }
            return;
        }
        if let Some(active) = queue.active {
            self.wake(active);
            self.pump(key, now, out);
        }
    }

    /// `basic.get`; `None` is `get-empty`.
    pub fn get(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        no_ack: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Got>, Refusal> {
        let key = self.queue_key(channel, queue)?;
        self.drop_expired(key, usize::MAX, now, out);
        let queue = self.queues.get_mut(key).expect("just found");
        queue.last_used = now;
        if queue.backlog.is_head_away() {
            // Whoever asks for it brings it back before: see `fetch_for_get`.
            let name = text(&queue.name);
            let why = format_args!("the first message of queue '{name}' is not in memory");
            return Err(Refusal::new(ReplyCode::ResourceError, why));
        }
        let got = queue.backlog.pop().map(|entry| {
            let session = self.channels.get_mut(channel.0).expect("just used");
            let delivery_tag = session.next_tag();
            let got = Got {
                delivery_tag,
                redelivered: entry.redelivered,
                delivery_count: delivery_count(queue, &entry),
                remaining: queue.backlog.len() as u64,
                message: entry.message.clone(),
            };
            if let Some(entry) = hand_out(queue, entry, no_ack, out) {
                let (queue, queue_id) = (key, queue.id);
                let unacked = Unacked {
                    queue,
                    queue_id,
                    consumer: None,
                    entry,
                };
                session.unacked.push(delivery_tag, unacked);
            }
            got
        });
        self.fetch(key, out);
        self.arm(key);
        self.bury(now, out);
        Ok(got)
    }

    /// Delivers from the backlog to whoever has room, up to one step's worth; what expired on the way
    /// is a part of that.
    pub(super) fn pump(&mut self, key: Key, now: u64, out: &mut Vec<Effect>) {
        let mut left = self.options.messages_per_step_max;
        loop {
            left -= self.drop_expired(key, left, now, out);
            if left == 0
                || self
                    .queues
                    .get(key)
                    .is_none_or(|queue| queue.backlog.is_empty())
            {
                break;
            }
            let Some(consumer) = self.next_consumer(key) else {
                self.arm(key);
                return;
            };
            let queue = self.queues.get_mut(key).expect("still there");
            let Some(entry) = queue.backlog.pop() else {
                // It goes on when what is away has come back.
                self.fetch(key, out);
                self.arm(key);
                return;
            };
            self.deliver(key, consumer, entry, out);
            left -= 1;
        }
        self.fetch(key, out);
        if self
            .queues
            .get(key)
            .is_some_and(|queue| !queue.backlog.is_empty())
        {
            self.busy.push_back(key);
        }
        self.arm(key);
    }

    /// The consumer whose turn it is: the first in line, at the best priority, that has room. It
    /// moves to the end of the line; those without room leave the line until they are woken.
    pub(super) fn next_consumer(&mut self, key: Key) -> Option<Key> {
        let queue = self.queues.get_mut(key)?;
        if queue.line.len() > 1 {
            // Priorities that nobody has any more.
            queue.line.retain(|_, line| !line.is_empty());
        }
        for line in queue.line.values_mut() {
            while let Some(&first) = line.front() {
                let Some(consumer) = self.consumers.get_mut(first) else {
                    line.pop_front();
                    queue.gone_in_line -= 1;
                    continue;
                };
                if queue.active.is_some_and(|active| active != first) || !consumer.in_line {
                    line.pop_front();
                    continue;
                }
                let channel = self.channels.get(consumer.channel);
                if channel.is_some_and(|channel| channel.has_room_for(consumer)) {
                    if line.len() > 1 {
                        line.rotate_left(1);
                    }
                    return Some(first);
                }
                consumer.in_line = false;
                line.pop_front();
            }
        }
        None
    }

    /// Puts a consumer that may have room again in line. Tells whether that is news to its queue.
    pub(super) fn wake(&mut self, key: Key) -> bool {
        let Some(consumer) = self.consumers.get_mut(key) else {
            return false;
        };
        let channel = self
            .channels
            .get(consumer.channel)
            .expect("a consumer's channel");
        let queue = self
            .queues
            .get_mut(consumer.queue)
            .expect("a consumer's queue");
        let may = queue.active.is_none_or(|active| active == key);
        if consumer.in_line || !may || !channel.has_room_for(consumer) {
            return false;
        }
        consumer.in_line = true;
        queue
            .line
            .entry(Reverse(consumer.priority))
            .or_default()
            .push_back(key);
        true
    }

    /// Wakes every consumer of a channel and delivers to them.
    pub(super) fn wake_channel(&mut self, channel: Key, now: u64, out: &mut Vec<Effect>) {
        let Some(session) = self.channels.get(channel) else {
            return;
        };
        let consumers: Vec<Key> = session.consumers.values().copied().collect();
        for consumer in consumers {
            if self.wake(consumer) {
                let queue = self.consumers.get(consumer).expect("just woken").queue;
                self.pump(queue, now, out);
            }
        }
        self.bury(now, out);
    }

    pub(super) fn deliver(
        &mut self,
        key: Key,
        consumer_key: Key,
        entry: Entry,
        out: &mut Vec<Effect>,
    ) {
        let queue = self.queues.get_mut(key).expect("a queue that exists");
        let consumer = self.consumers.get_mut(consumer_key).expect("just chosen");
        let channel = self
            .channels
            .get_mut(consumer.channel)
            .expect("a consumer's channel");
        let delivery_tag = channel.next_tag();
        out.push(Effect::Deliver(Delivery {
            connection: channel.connection,
            channel: channel.number,
            consumer_tag: consumer.tag.clone(),
            delivery_tag,
            redelivered: entry.redelivered,
            delivery_count: delivery_count(queue, &entry),
            message: entry.message.clone(),
        }));
        if let Some(entry) = hand_out(queue, entry, consumer.no_ack, out) {
            consumer.unacked += 1;
            channel.outstanding += 1;
            let (queue, queue_id, consumer) = (key, queue.id, Some(consumer_key));
            channel.unacked.push(
                delivery_tag,
                Unacked {
                    queue,
                    queue_id,
                    consumer,
                    entry,
                },
            );
        }
    }
}

/// Takes out of the line who is gone, when those are more than the others and not few.
fn sweep_line(queue: &mut Queue, consumers: &Slab<Consumer>) {
    const FEW: usize = 16;
    if queue.gone_in_line <= FEW.max(queue.consumers.len()) {
        return;
    }
    for line in queue.line.values_mut() {
        line.retain(|key| consumers.get(*key).is_some());
    }
    queue.line.retain(|_, line| !line.is_empty());
    queue.gone_in_line = 0;
}

/// Counts a message that leaves the backlog for a client. Without acknowledgement it is settled;
/// otherwise gives it back, to be kept until it is.
fn hand_out(queue: &mut Queue, entry: Entry, no_ack: bool, out: &mut Vec<Effect>) -> Option<Entry> {
    queue.delivered += 1;
    if !no_ack {
        queue.unacked += 1;
        return Some(entry);
    }
    queue.counters.acked += 1;
    if entry.stored {
        out.push(Effect::Store(Record::Removed {
            queue: queue.id,
            id: entry.id,
        }));
    }
    None
}

fn delivery_count(queue: &Queue, entry: &Entry) -> Option<u32> {
    (queue.rules.quorum && entry.returns > 0).then_some(entry.returns)
}

fn priority(consume: &Consume) -> Result<i32, Refusal> {
    let wrong = |value: &Value| {
        Refusal::precondition(format_args!(
            "invalid arg 'x-priority': '{value}' is no integer"
        ))
    };
    match consume.arguments.get("x-priority") {
        None => Ok(0),
        Some(value @ Value::Int(priority)) => i32::try_from(*priority).map_err(|_| wrong(value)),
        Some(value) => Err(wrong(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConnectionId, QueueDeclare};

    /// Consumers that come and go at a queue where nothing happens, each with a priority of its own.
    #[test]
    fn consumers_that_are_gone_leave_nothing_at_an_idle_queue() {
        let mut broker = Broker::new(crate::Options::default());
        let channel = broker.open_channel(ConnectionId(1), 1);
        let mut out = Vec::new();
        let declare = QueueDeclare {
            name: Bytes::from_static(b"q"),
            ..QueueDeclare::default()
        };
        let declared = broker.declare_queue(channel, declare, 0, &mut out);
        declared.expect("declared");
        let mut consume = |broker: &mut Broker, priority: i32| {
            let consume = Consume {
                queue: Bytes::from_static(b"q"),
                arguments: crate::Table::new().with("x-priority", Value::Int(priority.into())),
                ..Consume::default()
            };
            broker
                .consume(channel, consume, 0, &mut out)
                .expect("a tag")
        };
        let stays = consume(&mut broker, 0);
        for priority in 1..10_000 {
            let tag = consume(&mut broker, priority);
            let cancelled = broker.cancel(channel, &tag, 0, &mut Vec::new());
            cancelled.expect("cancelled");
            let queue = broker.queues.iter().next().expect("the queue").1;
            let in_line: usize = queue.line.values().map(|line| line.len()).sum();
            assert!(in_line < 40 && queue.line.len() < 40, "{in_line}");
            assert_eq!(in_line, queue.gone_in_line + 1);
        }
        // Whoever is there still gets what comes, and then only they stand there.
        let message = crate::Message::new("", "q", "body");
        let mut out = Vec::new();
        let published = broker.publish(channel, message, &[], 0, &mut out);
        published.expect("published");
        assert!(matches!(&out[..], [Effect::Deliver(it)] if it.consumer_tag == stays));
        let queue = broker.queues.iter().next().expect("the queue").1;
        assert_eq!((queue.gone_in_line, queue.consumers.len()), (0, 1));
    }
}
