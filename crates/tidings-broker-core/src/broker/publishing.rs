//! Publishing: from an exchange to queues, and from there to a consumer or into the backlog.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::Broker;
use crate::backlog::Entry;
use crate::exchange::{Index, Target};
use crate::queue::{Overflow, check_name, text};
use crate::slab::Key;
use crate::{
    ChannelId, DeathReason, Effect, Message, MessageId, Published, Queues, Record, Refusal,
    ReplyCode, Table,
};

impl Broker {
    /// `basic.publish`: routes the message to queues and delivers what can be delivered. `bcc` are
    /// further routing keys that no receiver is to see.
    pub fn publish(
        &mut self,
        channel: ChannelId,
        message: Message,
        bcc: &[Bytes],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Published, Refusal> {
        self.channel_mut(channel)?;
        let exchange = self.publishable(&message.exchange)?;
        check_name("routing key", &message.routing_key)?;
        let mut queues = std::mem::take(&mut self.scratch);
        self.route(exchange, &message, bcc, &mut queues);
        let published = self.publish_to(message, &queues, now, out);
        queues.clear();
        self.scratch = queues;
        self.bury(now, out);
        published
    }

    fn publish_to(
        &mut self,
        message: Message,
        queues: &[Key],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Published, Refusal> {
        self.check_room(self.room_for(&message, queues))?;
        Ok(self.distribute(Arc::new(message), queues, now, out))
    }

    /// Whether `basic.publish` to this exchange would be refused, for servers that must answer
    /// before the message's content has arrived.
    pub fn check_publish(&self, exchange: &[u8]) -> Result<(), Refusal> {
        self.publishable(exchange).map(drop)
    }

    pub(super) fn publishable(&self, name: &[u8]) -> Result<Key, Refusal> {
        let key = self.exchange_key(name)?;
        let exchange = self.exchanges.get(key).expect("names lead to exchanges");
        if exchange.internal {
            let (name, vhost) = (text(name), &self.options.vhost);
            let why =
                format_args!("cannot publish to internal exchange '{name}' in vhost '{vhost}'");
            return Err(Refusal::new(ReplyCode::AccessRefused, why));
        }
        Ok(key)
    }

    /// Adds the queues the message goes to, each once.
    pub(super) fn route(
        &mut self,
        exchange: Key,
        message: &Message,
        bcc: &[Bytes],
        queues: &mut Vec<Key>,
    ) {
        if !message.cc.is_empty() || !bcc.is_empty() {
            self.find_route(exchange, message, bcc, queues);
            return;
        }
        let (version, max) = (self.topology_version, self.options.cached_routes_max);
        let source = self.exchanges.get(exchange).expect("a source that exists");
        if let Index::Default = source.index {
            queues.extend(self.queue_names.get(&message.routing_key));
        } else if let Some(known) = source.routes.get(&message.routing_key, version) {
            queues.extend_from_slice(&known);
        } else if self.find_route(exchange, message, bcc, queues) {
            let source = self.exchanges.get_mut(exchange).expect("still there");
            source
                .routes
                .put(&message.routing_key, queues.as_slice().into(), version, max);
        }
    }

    /// Walks the exchanges from `start`, each once. Tells whether the result depends on nothing but
    /// the routing key.
    fn find_route(
        &self,
        start: Key,
        message: &Message,
        bcc: &[Bytes],
        queues: &mut Vec<Key>,
    ) -> bool {
        let mut headers: Option<Table> = None;
        let mut seen_queues = HashSet::new();
        let mut seen = HashSet::from([start]);
        let mut work = vec![start];
        while let Some(key) = work.pop() {
            let exchange = self.exchanges.get(key).expect("bindings lead to exchanges");
            let mut matched = false;
            let mut reach = |target: Target| {
                matched = true;
                match target {
                    Target::Queue(queue) if seen_queues.insert(queue) => queues.push(queue),
                    Target::Exchange(next) if seen.insert(next) => work.push(next),
                    Target::Queue(_) | Target::Exchange(_) => {}
                }
            };
            let keys = || {
                [&message.routing_key]
                    .into_iter()
                    .chain(&*message.cc)
                    .chain(bcc)
            };
            match &exchange.index {
                Index::Default => {
                    let named = keys().filter_map(|key| self.queue_names.get(key));
                    named.for_each(|queue| reach(Target::Queue(*queue)));
                }
                Index::Direct(bound) => {
                    let targets = keys().filter_map(|key| bound.get(key));
                    targets
                        .flat_map(|targets| targets.keys())
                        .for_each(|target| reach(*target));
                }
                Index::Fanout(targets) => targets.keys().for_each(|target| reach(*target)),
                Index::Topic(topics) => keys().for_each(|key| {
                    topics.matches(key, |targets| targets.keys().for_each(|t| reach(*t)));
                }),
                Index::Headers(bindings) if bindings.is_empty() => {}
                Index::Headers(bindings) => {
                    let decode = || (self.options.decode_headers)(&message.properties);
                    let headers = headers.get_or_insert_with(decode);
                    let fitting = bindings.iter().filter(|binding| binding.matches(headers));
                    fitting.for_each(|binding| reach(binding.target()));
                }
            }
            let alternate = exchange.alternate.as_ref().filter(|_| !matched);
            if let Some(next) = alternate.and_then(|name| self.exchange_names.get(name))
                && seen.insert(*next)
            {
                work.push(*next);
            }
        }
        headers.is_none()
    }

    /// Hands a message to the queues it was routed to, for which there is room: one record for all that store it, then a
    /// delivery or a place in the backlog for each.
    pub(super) fn distribute(
        &mut self,
        message: Arc<Message>,
        queues: &[Key],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Published {
        let id = MessageId(self.next_message);
        self.next_message += 1;
        let mut published = Published {
            queues: queues.len(),
            ..Published::default()
        };
        let refusing = |broker: &Self, queue: &Key| broker.refuses(*queue, &message);
        let any_refuses = queues.iter().any(|queue| refusing(self, queue));
        let accepting: Vec<Key>;
        let accepted = if any_refuses {
            published.rejected = true;
            accepting = queues
                .iter()
                .filter(|queue| !refusing(self, queue))
                .copied()
                .collect();
            let full = queues.iter().filter(|queue| refusing(self, queue)).copied();
            for queue in full.collect::<Vec<_>>() {
                self.turn_away(queue, &message, now);
            }
            &accepting[..]
        } else {
            queues
        };
        if message.persistent
            && let Some(stores) = self.stores(accepted)
        {
            published.stored = true;
            let message = message.clone();
            let record = Record::Enqueued {
                id,
                at: now,
                queues: stores,
                message,
            };
            self.store(record, out);
        }
        for queue in accepted {
            self.enqueue(*queue, id, message.clone(), now, out);
        }
        published
    }

    /// The durable ones among the queues.
    fn stores(&self, queues: &[Key]) -> Option<Queues> {
        let durable = |key: &Key| self.queues.get(*key).filter(|queue| queue.survives());
        let mut ids = queues.iter().filter_map(durable).map(|queue| queue.id);
        let first = ids.next()?;
        Some(match ids.next() {
            None => Queues::One(first),
            Some(second) => Queues::Many([first, second].into_iter().chain(ids).collect()),
        })
    }

    /// Whether the queue is full and turns new messages away.
    fn refuses(&self, key: Key, message: &Message) -> bool {
        let queue = self.queues.get(key).expect("routes lead to queues");
        let (count, bytes) = (queue.backlog.len() as u64, queue.backlog.bytes());
        queue.rules.overflow != Overflow::DropHead
            && queue.is_over(count + 1, bytes + message.body.len() as u64)
    }

    fn turn_away(&mut self, key: Key, message: &Arc<Message>, now: u64) {
        let queue = self.queues.get(key).expect("routes lead to queues");
        if queue.rules.overflow == Overflow::RejectPublishDlx {
            self.dead_letter(key, message.clone(), DeathReason::MaxLen, None, now);
        }
    }

    fn enqueue(
        &mut self,
        key: Key,
        id: MessageId,
        message: Arc<Message>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let queue = self.queues.get_mut(key).expect("routes lead to queues");
        queue.counters.published += 1;
        let stored = message.persistent && queue.survives();
        let expires_at = expiry(queue.rules.ttl, &message, now);
        let entry = Entry {
            id,
            message,
            expires_at,
            returns: 0,
            redelivered: false,
            stored,
        };
        if queue.backlog.is_empty() {
            // Even a message that expires at once may go to a consumer who is there.
            if let Some(consumer) = self.next_consumer(key) {
                self.deliver(key, consumer, entry, out);
                return;
            }
        }
        let queue = self.queues.get_mut(key).expect("still there");
        let first = queue.backlog.is_empty();
        queue.backlog.push(entry);
        self.drop_overflow(key, now, out);
        if expires_at <= now {
            // If there are more, the timer comes at once.
            self.drop_expired(key, self.options.messages_per_step_max, now, out);
        }
        if first || expires_at != u64::MAX {
            self.arm(key);
        }
    }

    /// Drops messages from the head until the queue is within its limits.
    pub(super) fn drop_overflow(&mut self, key: Key, now: u64, out: &mut Vec<Effect>) {
        loop {
            let Some(queue) = self.queues.get_mut(key) else {
                return;
            };
            let (count, bytes) = (queue.backlog.len() as u64, queue.backlog.bytes());
            if queue.rules.overflow != Overflow::DropHead || !queue.is_over(count, bytes) {
                return;
            }
            if !self.kill_head(key, DeathReason::MaxLen, now, out) {
                return;
            }
        }
    }
}

/// When a message that arrives now is over: the shorter of its own and the queue's time to live.
pub(super) fn expiry(queue_ttl: Option<u64>, message: &Message, at: u64) -> u64 {
    let ttl = match (queue_ttl, message.expiration) {
        (Some(queue), Some(message)) => queue.min(message),
        (one, other) => one.or(other).unwrap_or(u64::MAX),
    };
    at.saturating_add(ttl)
}
