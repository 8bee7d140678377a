//! A broker on a bench: commands in few words, effects as short texts.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tidings_broker_core::*;

/// A broker, a clock to turn, and the effects that were not looked at yet.
pub struct Rig {
    pub broker: Broker,
    pub now: u64,
    pub out: Vec<Effect>,
    /// Every record so far.
    pub records: Vec<Record>,
    /// A channel of connection 1.
    pub channel: ChannelId,
}

/// Time starts here, so that subtracting from it is not below zero.
pub const START: u64 = 1_000_000;

impl Default for Rig {
    fn default() -> Self {
        Self::with(Options {
            decode_headers,
            ..Options::default()
        })
    }
}

/// Headers of a test message: `name=value` separated by commas; a number is an integer.
pub fn decode_headers(properties: &Bytes) -> Table {
    let text = std::str::from_utf8(properties).expect("tests write text");
    table(text)
}

/// A table in the same notation; `name` alone is a name with no value.
pub fn table(text: &str) -> Table {
    let mut table = Table::new();
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        table = table.with(
            name,
            match (value, value.parse::<i64>()) {
                ("", _) => Value::Void,
                ("true", _) => Value::Bool(true),
                (_, Ok(number)) => Value::Int(number),
                (text, _) => Value::str(text),
            },
        );
    }
    table
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Rig {
    pub fn with(options: Options) -> Self {
        let mut broker = Broker::new(options);
        let channel = broker.open_channel(ConnectionId(1), 1);
        Self {
            broker,
            now: START,
            out: Vec::new(),
            records: Vec::new(),
            channel,
        }
    }

    pub fn open(&mut self, connection: u64, number: u16) -> ChannelId {
        self.broker.open_channel(ConnectionId(connection), number)
    }

    pub fn exchange(&mut self, name: &str, kind: &str) {
        self.try_exchange(name, kind, "").expect("declared");
    }

    /// `flags`: `d`urable, `a`uto-delete, `i`nternal, `p`assive, then a space and arguments.
    pub fn try_exchange(&mut self, name: &str, kind: &str, flags: &str) -> Result<(), Refusal> {
        let (flags, arguments) = flags.split_once(' ').unwrap_or((flags, ""));
        let declare = ExchangeDeclare {
            name: bytes(name),
            kind: bytes(kind),
            passive: flags.contains('p'),
            durable: flags.contains('d'),
            auto_delete: flags.contains('a'),
            internal: flags.contains('i'),
            arguments: table(arguments),
        };
        self.broker.declare_exchange(declare, &mut self.out)
    }

    pub fn queue(&mut self, name: &str, arguments: &str) {
        self.try_queue(name, &format!("d {arguments}"))
            .expect("declared");
    }

    /// `flags`: `d`urable, `a`uto-delete, e`x`clusive, `p`assive, then a space and arguments.
    pub fn try_queue(&mut self, name: &str, flags: &str) -> Result<QueueDeclared, Refusal> {
        self.try_queue_on(self.channel, name, flags)
    }

    pub fn try_queue_on(
        &mut self,
        channel: ChannelId,
        name: &str,
        flags: &str,
    ) -> Result<QueueDeclared, Refusal> {
        let (flags, arguments) = flags.split_once(' ').unwrap_or((flags, ""));
        let declare = QueueDeclare {
            name: bytes(name),
            passive: flags.contains('p'),
            durable: flags.contains('d'),
            exclusive: flags.contains('x'),
            auto_delete: flags.contains('a'),
            arguments: table(arguments),
        };
        self.broker
            .declare_queue(channel, declare, self.now, &mut self.out)
    }

    pub fn binding(source: &str, destination: &str, key: &str, arguments: &str) -> Binding {
        Binding {
            source: bytes(source),
            destination: bytes(destination),
            routing_key: bytes(key),
            arguments: table(arguments),
        }
    }

    pub fn bind(&mut self, source: &str, queue: &str, key: &str) {
        let binding = Self::binding(source, queue, key, "");
        self.broker
            .bind_queue(self.channel, binding, &mut self.out)
            .expect("bound");
    }

    pub fn bind_exchange(&mut self, source: &str, destination: &str, key: &str) {
        let binding = Self::binding(source, destination, key, "");
        self.broker
            .bind_exchange(binding, &mut self.out)
            .expect("bound");
    }

    pub fn unbind(&mut self, source: &str, queue: &str, key: &str) {
        let binding = Self::binding(source, queue, key, "");
        self.broker
            .unbind_queue(self.channel, binding, &mut self.out)
            .expect("unbound");
    }

    /// Publishes a persistent message.
    pub fn publish(&mut self, exchange: &str, key: &str, body: &str) -> Published {
        self.publish_message(Self::message(exchange, key, body))
            .expect("published")
    }

    pub fn message(exchange: &str, key: &str, body: &str) -> Message {
        Message {
            persistent: true,
            ..Message::new(bytes(exchange), bytes(key), bytes(body))
        }
    }

    pub fn publish_message(&mut self, message: Message) -> Result<Published, Refusal> {
        self.broker
            .publish(self.channel, message, &[], self.now, &mut self.out)
    }

    /// Publishes the bodies to a queue, one after the other.
    pub fn send(&mut self, queue: &str, bodies: &[&str]) {
        for body in bodies {
            self.publish("", queue, body);
        }
    }

    pub fn consume(&mut self, channel: ChannelId, queue: &str, tag: &str) {
        self.try_consume(channel, queue, tag, "", "")
            .expect("consumes");
    }

    /// `flags`: `n`o-ack, e`x`clusive.
    pub fn try_consume(
        &mut self,
        channel: ChannelId,
        queue: &str,
        tag: &str,
        flags: &str,
        arguments: &str,
    ) -> Result<Bytes, Refusal> {
        let consume = Consume {
            queue: bytes(queue),
            consumer_tag: bytes(tag),
            no_ack: flags.contains('n'),
            exclusive: flags.contains('x'),
            arguments: table(arguments),
        };
        self.broker
            .consume(channel, consume, self.now, &mut self.out)
    }

    pub fn qos(&mut self, channel: ChannelId, count: u16, global: bool) {
        self.broker
            .qos(channel, count, global, self.now, &mut self.out)
            .expect("set");
    }

    pub fn get(&mut self, queue: &str) -> Option<Got> {
        self.broker
            .get(
                self.channel,
                queue.as_bytes(),
                false,
                self.now,
                &mut self.out,
            )
            .expect("it may")
    }

    pub fn ack(&mut self, channel: ChannelId, tag: u64, multiple: bool) {
        self.broker
            .ack(channel, tag, multiple, self.now, &mut self.out)
            .expect("acked");
    }

    pub fn nack(&mut self, channel: ChannelId, tag: u64, multiple: bool, requeue: bool) {
        self.broker
            .nack(channel, tag, multiple, requeue, self.now, &mut self.out)
            .expect("nacked");
    }

    /// Turns the clock and lets the broker do what is due, as often as it asks for.
    pub fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        while self
            .broker
            .next_deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.broker.tick(self.now, &mut self.out);
        }
    }

    /// A message of the store.
    fn stored(&self, id: MessageId) -> Option<(MessageId, Arc<Message>)> {
        let effects = self.out.iter().filter_map(|effect| match effect {
            Effect::Store(record) => Some(record),
            _ => None,
        });
        let mut all = effects.chain(&self.records);
        all.find_map(|record| match record {
            Record::Enqueued {
                id: other, message, ..
            } if *other == id => Some((id, message.clone())),
            _ => None,
        })
    }

    /// Answers what was asked of the store, until nothing is.
    pub fn fetch(&mut self) {
        let asks = |effect: &Effect| matches!(effect, Effect::Fetch { .. });
        while let Some(at) = self.out.iter().position(asks) {
            let Effect::Fetch { queue, messages } = self.out.remove(at) else {
                continue;
            };
            self.bring(queue, &messages);
        }
    }

    pub fn bring(&mut self, queue: QueueId, asked: &[MessageId]) {
        let found = asked.iter().filter_map(|id| self.stored(*id)).collect();
        let brought = self
            .broker
            .fetched(queue, asked, found, self.now, &mut self.out);
        brought.expect("the store has it");
    }

    /// Brings back what has to be there for a `basic.get`.
    pub fn fetch_for_get(&mut self, channel: ChannelId, queue: &str) {
        while let Some((queue, messages)) = self
            .broker
            .fetch_for_get(channel, queue.as_bytes(), self.now, &mut self.out)
            .expect("it may")
        {
            self.bring(queue, &messages);
        }
    }

    /// Takes all effects; records are kept aside.
    pub fn effects(&mut self) -> Vec<Effect> {
        let effects = std::mem::take(&mut self.out);
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::Store(record) => Some(record.clone()),
            _ => None,
        });
        self.records.extend(records);
        effects
    }

    /// The deliveries since the last time as `consumer:body`, with `*` if redelivered, and
    /// cancellations as `consumer cancelled`.
    pub fn seen(&mut self) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let shown = self
            .effects()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Deliver(delivery) => {
                    let mark = if delivery.redelivered { "*" } else { "" };
                    let (tag, body) = (text(&delivery.consumer_tag), text(&delivery.message.body));
                    Some(format!("{tag}:{body}{mark}"))
                }
                Effect::CancelConsumer { consumer_tag, .. } => {
                    Some(format!("{} cancelled", text(&consumer_tag)))
                }
                Effect::Store(_) | Effect::Fetch { .. } => None,
            });
        shown.collect()
    }

    /// The bodies waiting in a queue, in order, by fetching and putting them back.
    pub fn waiting(&mut self, queue: &str) -> Vec<String> {
        let prober = self.broker.open_channel(ConnectionId(u64::MAX), 1);
        let mut bodies = Vec::new();
        self.fetch_for_get(prober, queue);
        while let Some(got) = self
            .broker
            .get(prober, queue.as_bytes(), false, self.now, &mut self.out)
            .expect("it may")
        {
            bodies.push(String::from_utf8_lossy(&got.message.body).into_owned());
            self.fetch_for_get(prober, queue);
        }
        self.broker.close_channel(prober, self.now, &mut self.out);
        bodies
    }

    pub fn stats(&self, queue: &str) -> QueueStats {
        self.broker
            .queue(queue.as_bytes())
            .unwrap_or_else(|| panic!("there is a queue `{queue}`"))
    }

    pub fn has_queue(&self, queue: &str) -> bool {
        self.broker.queue(queue.as_bytes()).is_some()
    }

    /// A new broker from what was stored.
    pub fn restarted(&mut self) -> Self {
        self.effects();
        let mut rig = Self {
            now: self.now,
            ..Self::default()
        };
        for record in &self.records {
            rig.broker.restore(record.clone(), rig.now);
        }
        rig.records.clone_from(&self.records);
        rig
    }
}

/// Refused with this code and a text with these words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, code: u16, words: &str) {
    let refusal = result.expect_err("it is refused");
    assert_eq!(refusal.code.code(), code, "{refusal}");
    assert!(refusal.text.contains(words), "{refusal}");
}

/// A small generator: one seed, one history.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// What a store keeps: nothing that cancels out, in the order [`Record`] promises.
pub fn compacted(records: &[Record]) -> Vec<Record> {
    let mut exchanges = BTreeMap::new();
    let mut queues = BTreeMap::new();
    let mut bindings = Vec::new();
    let mut messages: BTreeMap<MessageId, (Record, BTreeSet<QueueId>)> = BTreeMap::new();
    for record in records {
        let mut remove = |queue: &QueueId, id: &MessageId| {
            let Some((_, left)) = messages.get_mut(id) else {
                return;
            };
            left.remove(queue);
            if left.is_empty() {
                messages.remove(id);
            }
        };
        match record {
            Record::ExchangeDeclared { name, .. } => drop(exchanges.insert(name.clone(), record)),
            Record::ExchangeDeleted { name } => drop(exchanges.remove(name)),
            Record::QueueDeclared { queue, .. } => drop(queues.insert(*queue, record)),
            Record::QueueDeleted { queue } => drop(queues.remove(queue)),
            Record::Bound(binding) => bindings.push(binding.clone()),
            Record::Unbound(binding) => bindings.retain(|bound| bound != binding),
            Record::Enqueued { id, queues, .. } => {
                let left = queues.as_slice().iter().copied().collect();
                messages.insert(*id, (record.clone(), left));
            }
            Record::Removed { queue, id } => remove(queue, id),
            Record::RemovedMany { queue, ids } => ids.iter().for_each(|id| remove(queue, id)),
            Record::Ids { .. } => {}
        }
    }
    let messages = messages.into_values().map(|(mut record, left)| {
        if let Record::Enqueued { queues, .. } = &mut record {
            *queues = Queues::Many(left.into_iter().collect());
        }
        record
    });
    let topology = exchanges.into_values().chain(queues.into_values()).cloned();
    topology
        .chain(bindings.into_iter().map(Record::Bound))
        .chain(messages)
        .collect()
}
