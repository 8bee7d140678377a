//! Random histories against a model: whatever clients do, messages are conserved, order is kept,
//! prefetch holds, nobody who could have a message goes without, and a restart finds what was
//! durable. One seed, one history: `MODEL_SEED=n cargo test --test model` repeats one.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use tidings_broker_core::*;

const STEPS: usize = 400;
const SEEDS: u64 = 60;

/// The queues of every history: (name, arguments, whether nothing but clients takes messages out).
const QUEUES: [(&str, &str, bool); 8] = [
    ("plain", "", true),
    ("transient", "", true),
    ("single", "x-single-active-consumer=true", true),
    ("refuses", "x-max-length=5,x-overflow=reject-publish", true),
    (
        "short",
        "x-max-length=4,x-dead-letter-exchange=grave",
        false,
    ),
    (
        "ttl",
        "x-message-ttl=30,x-dead-letter-exchange=grave",
        false,
    ),
    ("limited", "x-delivery-limit=2", false),
    ("grave", "", false),
];

/// What the model knows of a consumer.
#[derive(Debug)]
struct Consumer {
    channel: usize,
    queue: &'static str,
    no_ack: bool,
    prefetch: u16,
    out: usize,
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    connection: u64,
    prefetch: u16,
    global: u16,
    /// Delivery tag to queue, message number and consumer.
    out: BTreeMap<u64, (&'static str, u64, Option<String>)>,
    last_tag: u64,
}

struct World {
    rig: Rig,
    random: Random,
    channels: Vec<Channel>,
    paused: BTreeSet<u64>,
    consumers: BTreeMap<String, Consumer>,
    /// The message numbers ready in each queue that only clients empty.
    ready: BTreeMap<&'static str, BTreeSet<u64>>,
    /// Messages that were delivered before and came back.
    returned: BTreeSet<(&'static str, u64)>,
    next_message: u64,
    next_consumer: u64,
    next_connection: u64,
}

fn is_plain(queue: &str) -> bool {
    QUEUES
        .iter()
        .any(|(name, _, plain)| *name == queue && *plain)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::with(Options {
            messages_per_step_max: 3,
            messages_per_piece: 2,
            ..Options::default()
        });
        rig.exchange("all", "fanout");
        rig.try_exchange("grave", "topic", "d").expect("declared");
        for (name, arguments, _) in QUEUES {
            let durable = if name == "transient" { "" } else { "d" };
            rig.try_queue(name, &format!("{durable} {arguments}"))
                .expect("declared");
            rig.bind("all", name, "");
        }
        rig.bind("grave", "grave", "#");
        Self {
            rig,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            channels: Vec::new(),
            paused: BTreeSet::new(),
            consumers: BTreeMap::new(),
            ready: QUEUES
                .iter()
                .map(|(name, ..)| (*name, BTreeSet::new()))
                .collect(),
            returned: BTreeSet::new(),
            next_message: 1,
            next_consumer: 1,
            next_connection: 10,
        }
    }

    fn step(&mut self) {
        match self.random.below(21) {
            0..6 => self.publish(),
            6 => self.open_channel(),
            7 => self.close(),
            8..10 => self.consume(),
            10 => self.cancel(),
            11 => self.qos(),
            12 => self.get(),
            13..17 => self.settle(),
            17 => self.recover(),
            18 => self.rig.now += self.random.below(20),
            19 if self.random.chance(2) => {
                // Memory is short.
                self.rig.broker.send_away(u64::MAX);
            }
            _ => self.pause_or_purge(),
        }
        self.observe();
        self.check();
    }

    fn publish(&mut self) {
        let queue = self.random.pick(&QUEUES).0;
        let number = self.next_message;
        self.next_message += 1;
        let to_all = self.random.chance(4);
        let (exchange, key) = if to_all { ("all", "") } else { ("", queue) };
        let message = Message {
            persistent: !self.random.chance(3),
            expiration: (queue == "ttl" && !to_all && self.random.chance(2))
                .then(|| self.random.below(40)),
            ..Rig::message(exchange, key, &number.to_string())
        };
        let targets = QUEUES.iter().map(|(name, ..)| *name);
        let targets: Vec<&str> = targets.filter(|name| to_all || *name == queue).collect();
        let accepting = |name: &&&str| **name != "refuses" || self.ready["refuses"].len() < 5;
        let accepted: Vec<&str> = targets.iter().filter(accepting).copied().collect();
        for name in &accepted {
            self.ready.get_mut(name).expect("known").insert(number);
        }
        let published = self
            .rig
            .publish_message(message.clone())
            .expect("published");
        assert_eq!(published.queues, targets.len());
        assert_eq!(published.rejected, accepted.len() < targets.len());
        let durable = accepted.iter().any(|name| *name != "transient");
        assert_eq!(published.stored, message.persistent && durable);
    }

    fn open_channel(&mut self) {
        if self.channels.len() >= 8 {
            return;
        }
        if self.random.chance(2) {
            self.next_connection += 1;
        }
        let connection = self.next_connection;
        let id = self.rig.open(connection, self.channels.len() as u16 + 1);
        let out = BTreeMap::new();
        self.channels.push(Channel {
            id,
            connection,
            prefetch: 0,
            global: 0,
            out,
            last_tag: 0,
        });
    }

    fn channel(&mut self) -> Option<usize> {
        let count = self.channels.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn close(&mut self) {
        let Some(at) = self.channel().filter(|_| self.random.chance(2)) else {
            return;
        };
        let (id, connection) = (self.channels[at].id, self.channels[at].connection);
        let whole = self.random.chance(3);
        let closed: Vec<usize> = (0..self.channels.len())
            .filter(|other| *other == at || whole && self.channels[*other].connection == connection)
            .collect();
        for at in &closed {
            for (queue, number, _) in std::mem::take(&mut self.channels[*at].out).into_values() {
                self.put_back(queue, number);
            }
        }
        self.consumers
            .retain(|_, consumer| !closed.contains(&consumer.channel));
        let (now, out) = (self.rig.now, &mut self.rig.out);
        match whole {
            true => self
                .rig
                .broker
                .close_connection(ConnectionId(connection), now, out),
            false => self.rig.broker.close_channel(id, now, out),
        }
        if whole {
            self.paused.remove(&connection);
        }
        // Consumers name their channel by its place in the list.
        self.observe();
        for at in closed.into_iter().rev() {
            self.channels.remove(at);
            for consumer in self
                .consumers
                .values_mut()
                .filter(|other| other.channel > at)
            {
                consumer.channel -= 1;
            }
        }
    }

    fn consume(&mut self) {
        let Some(channel) = self.channel() else {
            return;
        };
        let queue = self.random.pick(&QUEUES).0;
        let no_ack = self.random.chance(4);
        let tag = format!("c{}", self.next_consumer);
        self.next_consumer += 1;
        let prefetch = self.channels[channel].prefetch;
        let consumer = Consumer {
            channel,
            queue,
            no_ack,
            prefetch,
            out: 0,
        };
        self.consumers.insert(tag.clone(), consumer);
        let arguments = format!("x-priority={}", self.random.below(2));
        let flags = if no_ack { "n" } else { "" };
        let id = self.channels[channel].id;
        self.rig
            .try_consume(id, queue, &tag, flags, &arguments)
            .expect("consumes");
    }

    fn cancel(&mut self) {
        let tags: Vec<String> = self.consumers.keys().cloned().collect();
        if tags.is_empty() {
            return;
        }
        let tag = self.random.pick(&tags).clone();
        let consumer = self.consumers.remove(&tag).expect("picked");
        let id = self.channels[consumer.channel].id;
        let (now, out) = (self.rig.now, &mut self.rig.out);
        self.rig
            .broker
            .cancel(id, tag.as_bytes(), now, out)
            .expect("cancelled");
    }

    fn qos(&mut self) {
        let Some(at) = self.channel() else { return };
        let (count, global) = (self.random.below(4) as u16, self.random.chance(2));
        let channel = &mut self.channels[at];
        match global {
            true => channel.global = count,
            false => channel.prefetch = count,
        }
        self.rig.qos(self.channels[at].id, count, global);
    }

    fn get(&mut self) {
        let Some(at) = self.channel() else { return };
        let (queue, no_ack) = (self.random.pick(&QUEUES).0, self.random.chance(2));
        let id = self.channels[at].id;
        self.rig.fetch_for_get(id, queue);
        self.observe();
        let channel = &mut self.channels[at];
        let (now, out) = (self.rig.now, &mut self.rig.out);
        let got = self
            .rig
            .broker
            .get(channel.id, queue.as_bytes(), no_ack, now, out);
        let Some(got) = got.expect("it may") else {
            assert!(!is_plain(queue) || self.ready[queue].is_empty());
            return;
        };
        let number = number_of(&got.message);
        channel.last_tag += 1;
        assert_eq!(got.delivery_tag, channel.last_tag);
        if !no_ack {
            channel.out.insert(got.delivery_tag, (queue, number, None));
        }
        self.take(queue, number, got.redelivered);
    }

    fn settle(&mut self) {
        let Some(at) = self.channel() else { return };
        let tags: Vec<u64> = self.channels[at].out.keys().copied().collect();
        if tags.is_empty() {
            return;
        }
        let (tag, multiple) = (*self.random.pick(&tags), self.random.chance(3));
        let verdict = self.random.below(3);
        let settled: Vec<u64> = tags
            .into_iter()
            .filter(|other| *other == tag || multiple && *other < tag)
            .collect();
        for tag in settled {
            let (queue, number, consumer) = self.channels[at].out.remove(&tag).expect("out");
            if let Some(consumer) = consumer.and_then(|tag| self.consumers.get_mut(&tag)) {
                consumer.out -= 1;
            }
            if verdict == 2 {
                self.put_back(queue, number);
            }
        }
        let id = self.channels[at].id;
        match verdict {
            0 => self.rig.ack(id, tag, multiple),
            _ => self.rig.nack(id, tag, multiple, verdict == 2),
        }
    }

    fn recover(&mut self) {
        let Some(at) = self.channel().filter(|_| self.random.chance(3)) else {
            return;
        };
        for (queue, number, consumer) in std::mem::take(&mut self.channels[at].out).into_values() {
            if let Some(consumer) = consumer.and_then(|tag| self.consumers.get_mut(&tag)) {
                consumer.out -= 1;
            }
            self.put_back(queue, number);
        }
        let (now, out) = (self.rig.now, &mut self.rig.out);
        self.rig
            .broker
            .recover(self.channels[at].id, now, out)
            .expect("recovered");
    }

    fn pause_or_purge(&mut self) {
        if self.random.chance(4) {
            let queue = self.random.pick(&QUEUES).0;
            self.ready.get_mut(queue).expect("known").clear();
            let channel = self.rig.channel;
            let purged = self
                .rig
                .broker
                .purge_queue(channel, queue.as_bytes(), &mut self.rig.out);
            purged.expect("purged");
            return;
        }
        let Some(at) = self.channel() else { return };
        let connection = self.channels[at].connection;
        let (now, out) = (self.rig.now, &mut self.rig.out);
        if self.paused.remove(&connection) {
            self.rig
                .broker
                .resume_connection(ConnectionId(connection), now, out);
        } else {
            self.paused.insert(connection);
            self.rig.broker.pause_connection(ConnectionId(connection));
        }
    }

    fn put_back(&mut self, queue: &'static str, number: u64) {
        self.ready.get_mut(queue).expect("known").insert(number);
        self.returned.insert((queue, number));
    }

    /// A message leaves a queue for a client: it is the oldest there.
    fn take(&mut self, queue: &'static str, number: u64, redelivered: bool) {
        let ready = self.ready.get_mut(queue).expect("known");
        if is_plain(queue) {
            let returned = self.returned.contains(&(queue, number));
            assert_eq!(redelivered, returned, "`{queue}` {number}");
            assert_eq!(
                ready.first(),
                Some(&number),
                "the oldest in `{queue}` goes first"
            );
        }
        ready.remove(&number);
    }

    /// Carries on whatever the broker wants to do, and follows it.
    fn observe(&mut self) {
        loop {
            self.rig.fetch();
            for effect in self.rig.effects() {
                let Effect::Deliver(delivery) = effect else {
                    continue;
                };
                let tag = String::from_utf8(delivery.consumer_tag.to_vec()).expect("text");
                let consumer = self
                    .consumers
                    .get_mut(&tag)
                    .expect("only to consumers there are");
                let channel = &mut self.channels[consumer.channel];
                assert!(!self.paused.contains(&channel.connection));
                channel.last_tag += 1;
                assert_eq!(delivery.delivery_tag, channel.last_tag);
                assert_eq!(delivery.connection, ConnectionId(channel.connection));
                let (queue, number) = (consumer.queue, number_of(&delivery.message));
                if !consumer.no_ack {
                    consumer.out += 1;
                    let entry = (queue, number, Some(tag));
                    channel.out.insert(delivery.delivery_tag, entry);
                    let out = channel
                        .out
                        .values()
                        .filter(|(.., tag)| tag.is_some())
                        .count();
                    assert!(channel.global == 0 || out <= usize::from(channel.global));
                }
                self.take(queue, number, delivery.redelivered);
            }
            if self
                .rig
                .broker
                .next_deadline()
                .is_none_or(|deadline| deadline > self.rig.now)
            {
                return;
            }
            self.rig.broker.tick(self.rig.now, &mut self.rig.out);
        }
    }

    fn check(&self) {
        for (name, ..) in QUEUES {
            let stats = self.rig.stats(name);
            let counters = stats.counters;
            assert_eq!(
                counters.published + counters.restored,
                stats.ready + stats.unacked + counters.gone(),
                "conservation in `{name}`: {stats:?}"
            );
            let out = self
                .channels
                .iter()
                .flat_map(|channel| channel.out.values());
            assert_eq!(
                stats.unacked as usize,
                out.filter(|(queue, ..)| *queue == name).count()
            );
            if is_plain(name) {
                assert_eq!(
                    stats.ready as usize,
                    self.ready[name].len(),
                    "ready in `{name}`"
                );
            }
            let consumers = self
                .consumers
                .values()
                .filter(|consumer| consumer.queue == name);
            if stats.ready > 0 && name != "single" {
                let idle = consumers.filter(|consumer| self.has_room(consumer));
                assert_eq!(
                    idle.count(),
                    0,
                    "`{name}` has messages for consumers with room"
                );
            }
        }
        for consumer in self.consumers.values() {
            let prefetch = usize::from(consumer.prefetch);
            assert!(prefetch == 0 || consumer.out <= prefetch, "{consumer:?}");
        }
        for channel in &self.channels {
            assert_eq!(self.rig.broker.unacked(channel.id), channel.out.len());
        }
    }

    fn has_room(&self, consumer: &Consumer) -> bool {
        let channel = &self.channels[consumer.channel];
        let delivered = channel
            .out
            .values()
            .filter(|(_, _, tag)| tag.is_some())
            .count();
        let below = |count: usize, limit: u16| limit == 0 || count < usize::from(limit);
        let room = below(consumer.out, consumer.prefetch) && below(delivered, channel.global);
        !self.paused.contains(&channel.connection) && (consumer.no_ack || room)
    }

    /// Everybody leaves; then a restart must find exactly what is durable, in the same order,
    /// whether it replays the history or what a store keeps of it.
    fn check_restart(mut self) {
        let connections: BTreeSet<u64> = self.channels.iter().map(|c| c.connection).collect();
        for connection in connections {
            let (now, out) = (self.rig.now, &mut self.rig.out);
            self.rig
                .broker
                .close_connection(ConnectionId(connection), now, out);
        }
        self.rig.pass(0);
        let mut replayed = self.rig.restarted();
        let mut kept = Rig {
            now: self.rig.now,
            ..Rig::default()
        };
        for record in compacted(&self.rig.records) {
            kept.broker.restore(record, kept.now);
        }
        for (name, ..) in QUEUES.iter().filter(|(name, ..)| *name != "transient") {
            let expected = self.persistent(name);
            let left = |rig: &mut Rig| {
                rig.pass(0);
                rig.waiting(name)
            };
            assert_eq!(left(&mut replayed), expected, "`{name}` replayed");
            assert_eq!(
                left(&mut kept),
                expected,
                "`{name}` from what a store keeps"
            );
        }
        let bindings = |rig: &Rig| {
            let mut all: Vec<String> = rig.broker.bindings().map(|b| format!("{b:?}")).collect();
            all.sort();
            all
        };
        assert_eq!(bindings(&replayed), bindings(&kept));
        assert_eq!(
            bindings(&kept).len(),
            1,
            "only that of `grave` has two durable ends"
        );
    }

    fn persistent(&mut self, queue: &str) -> Vec<String> {
        let prober = self.rig.open(u64::MAX, 1);
        let mut bodies = Vec::new();
        loop {
            self.rig.fetch_for_get(prober, queue);
            let (now, out) = (self.rig.now, &mut self.rig.out);
            let got = self
                .rig
                .broker
                .get(prober, queue.as_bytes(), false, now, out);
            let Some(got) = got.expect("it may") else {
                return bodies;
            };
            if got.message.persistent {
                bodies.push(number_of(&got.message).to_string());
            }
        }
    }
}

fn number_of(message: &Message) -> u64 {
    std::str::from_utf8(&message.body)
        .expect("text")
        .parse()
        .expect("a number")
}

#[test]
fn whatever_clients_do_messages_are_conserved_in_order_and_survive_a_restart() {
    let given = std::env::var("MODEL_SEED")
        .ok()
        .map(|seed| seed.parse().expect("a number"));
    let seeds = given.map_or(1..SEEDS + 1, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let history = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.check_restart();
        });
        if let Err(panic) = history {
            eprintln!("repeat with MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
