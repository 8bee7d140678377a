//! Random arguments and headers through the whole broker and its log: what was sent is what is kept,
//! what is kept is what is compared, and what was published is what is delivered.
//!
//! One seed, one round: `RANDOM_VALUES_SEED=n cargo test --test random_values` repeats one.

mod support;

use bytes::Bytes;
use support::lasting::*;
use support::*;
use tidings_broker_core as core;
use tidings_broker_core::Record;
use tidings_wire::*;

const ROUNDS: u64 = 8;
const TABLES_PER_ROUND: u64 = 24;
/// Of one table, so that it fits a frame.
const TABLE_BYTES_MAX: usize = 60_000;

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, count: u64) -> Bytes {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// Any bytes a name can have: mostly few, now and then as many as there may be.
    fn name(&mut self) -> ShortStr {
        let count = match self.below(8) {
            0 => 255,
            1 => 254,
            2 => 0,
            _ => 1 + self.below(12),
        };
        ShortStr::try_from(self.bytes(count)).expect("255 bytes at most")
    }

    /// The bits of a number: any, or one at an end.
    fn bits(&mut self) -> u64 {
        const ENDS: [u64; 8] = [
            0,
            1,
            u64::MAX,
            i64::MAX as u64,
            i64::MIN as u64,
            0x7ff0_0000_0000_0001,
            0xffff_ffff,
            0x8000_0000,
        ];
        match self.below(3) {
            0 => ENDS[self.below(8) as usize],
            _ => self.next(),
        }
    }

    fn value(&mut self, levels: usize) -> Value {
        let kinds = if levels == 0 { 15 } else { 20 };
        let bits = self.bits();
        match self.below(kinds) {
            0 => Value::Void,
            1 => Value::Bool(bits & 1 == 1),
            2 => Value::I8(bits as i8),
            3 => Value::U8(bits as u8),
            4 => Value::I16(bits as i16),
            5 => Value::U16(bits as u16),
            6 => Value::I32(bits as i32),
            7 => Value::U32(bits as u32),
            8 => Value::I64(bits as i64),
            9 => Value::F32(f32::from_bits(bits as u32)),
            10 => Value::F64(f64::from_bits(bits)),
            11 => Value::Decimal {
                scale: bits as u8,
                value: (bits >> 8) as u32,
            },
            12 => Value::Timestamp(bits),
            13 => Value::LongStr(self.long()),
            14 => Value::Bytes(self.long()),
            15..18 => Value::Table(self.table(levels - 1)),
            _ => Value::Array(self.array(levels - 1)),
        }
    }

    fn long(&mut self) -> Bytes {
        let count = match self.below(6) {
            0 => 0,
            1 => 256 + self.below(3000),
            _ => self.below(40),
        };
        self.bytes(count)
    }

    fn array(&mut self, levels: usize) -> Array {
        let mut array = Array::builder();
        for _ in 0..self.below(4) {
            array.push(&self.value(levels));
        }
        array.build()
    }

    fn table(&mut self, levels: usize) -> Table {
        let mut table = Table::builder();
        for _ in 0..self.below(4) {
            table.push(&self.name(), &self.value(levels));
        }
        table.build()
    }

    /// Random values, and one that is nested as deep as `depth`.
    fn arguments(&mut self, depth: usize) -> Table {
        loop {
            let mut deep = self.value(0);
            for _ in 0..depth {
                deep = if self.below(2) == 0 {
                    Value::Array([self.value(0), deep].into_iter().collect())
                } else {
                    let name = self.name();
                    Value::Table([(name, deep)].into_iter().collect())
                };
            }
            let mut table = Table::builder();
            for _ in 0..self.below(6) {
                // A value of its own, with room for nested ones.
                table.push(&self.name(), &self.value(DEPTH_MAX));
            }
            table.push(&self.name(), &deep);
            let table = table.build();
            if table.as_bytes().len() <= TABLE_BYTES_MAX {
                return table;
            }
        }
    }
}

/// What a broker keeps of a table: all whole numbers have one type, and all others another.
fn widened(table: &Table) -> Table {
    table
        .iter()
        .map(|(name, value)| (name, widened_value(value)))
        .collect()
}

fn widened_value(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.iter().map(widened_value).collect()),
        Value::Table(table) => Value::Table(widened(&table)),
        Value::F32(number) => Value::F64(number.into()),
        other => other.as_i64().map_or(other, Value::I64),
    }
}

/// A table of the log as the wire has it.
fn unfolded(table: &core::Table) -> Table {
    let entry = |(name, value): &(Bytes, core::Value)| {
        let name = ShortStr::try_from(name.clone()).expect("a name as it came");
        (name, unfolded_value(value))
    };
    table.0.iter().map(entry).collect()
}

fn unfolded_value(value: &core::Value) -> Value {
    match value {
        core::Value::Void => Value::Void,
        core::Value::Bool(value) => Value::Bool(*value),
        core::Value::Int(value) => Value::I64(*value),
        core::Value::Float(value) => Value::F64(*value),
        core::Value::Decimal(scale, value) => Value::Decimal {
            scale: *scale,
            value: *value as u32,
        },
        core::Value::Str(value) => Value::LongStr(value.clone()),
        core::Value::Bytes(value) => Value::Bytes(value.clone()),
        core::Value::Timestamp(value) => Value::Timestamp(*value),
        core::Value::Array(values) => Value::Array(values.iter().map(unfolded_value).collect()),
        core::Value::Table(table) => Value::Table(unfolded(table)),
    }
}

/// One queue, with everything that has arguments or headers.
struct Sent {
    name: String,
    key: ShortStr,
    arguments: Table,
    properties: BasicProperties,
}

impl Sent {
    fn random(random: &mut Random, at: u64) -> Sent {
        let depth = 1 + random.below(DEPTH_MAX as u64) as usize;
        let short = |random: &mut Random| Some(random.name());
        let properties = BasicProperties {
            content_type: short(random),
            headers: Some(random.arguments(depth)),
            delivery_mode: Some(2),
            priority: Some(random.next() as u8),
            correlation_id: short(random),
            reply_to: short(random),
            message_id: short(random),
            timestamp: Some(random.bits()),
            kind: short(random),
            app_id: short(random),
            ..Default::default()
        };
        // Line ends are dropped from the names of a binding.
        let key: Vec<u8> = random
            .name()
            .iter()
            .copied()
            .filter(|byte| !b"\r\n".contains(byte))
            .collect();
        Sent {
            name: format!("{at:0>width$}", width = 1 + random.below(255) as usize),
            key: ShortStr::try_from(Bytes::from(key)).expect("a short key"),
            arguments: random.arguments(depth),
            properties,
        }
    }

    async fn send(&self, client: &mut Client) {
        let declare = QueueDeclare {
            arguments: self.arguments.clone(),
            ..queue(&self.name)
        };
        done(client, durable(declare)).await;
        done(
            client,
            exchange(&self.name, "direct", self.arguments.clone()),
        )
        .await;
        done(client, self.bound()).await;
        let ExchangeUnbind {
            destination,
            source,
            routing_key,
            arguments,
            no_wait,
        } = self.between();
        let between = ExchangeBind {
            destination,
            source,
            routing_key,
            no_wait,
            arguments,
        };
        done(client, between).await;
        self.publish(client).await;
    }

    fn bound(&self) -> QueueBind {
        QueueBind {
            routing_key: self.key.clone(),
            ..bind(&self.name, &self.name, "", self.arguments.clone())
        }
    }

    /// A second binding, to an exchange.
    fn between(&self) -> ExchangeUnbind {
        ExchangeUnbind {
            destination: short("amq.fanout"),
            source: short(&self.name),
            routing_key: self.key.clone(),
            no_wait: false,
            arguments: self.arguments.clone(),
        }
    }

    async fn publish(&self, client: &mut Client) {
        let publish = BasicPublish {
            exchange: short(&self.name),
            routing_key: self.key.clone(),
            mandatory: true,
            immediate: false,
        };
        client.send(1, &publish).await;
        let mut content = bytes::BytesMut::new();
        let properties = self.properties.encode();
        encode_content(&mut content, 1, properties.as_bytes(), b"body", 131_072);
        client.write(&content).await;
    }
}

/// What the log holds is what was sent: of the queues, the exchanges and the bindings.
fn check_log(records: &[Record], sent: &[Sent]) {
    let mut compared = 0;
    for record in records {
        let (name, arguments) = match record {
            Record::QueueDeclared {
                name, arguments, ..
            }
            | Record::ExchangeDeclared {
                name, arguments, ..
            } => (name, arguments),
            Record::Bound(binding) => (&binding.source, &binding.arguments),
            _ => continue,
        };
        let sent = sent.iter().find(|sent| sent.name.as_bytes() == name);
        let sent = sent.expect("nothing else was declared");
        assert_eq!(
            unfolded(arguments).as_bytes(),
            widened(&sent.arguments).as_bytes()
        );
        compared += 1;
    }
    assert_eq!(compared, 4 * sent.len());
}

async fn round(seed: u64) {
    let mut random = Random(seed);
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    done(&mut client, ConfirmSelect::default()).await;
    let sent: Vec<Sent> = (0..TABLES_PER_ROUND)
        .map(|at| Sent::random(&mut random, at))
        .collect();
    for sent in &sent {
        sent.send(&mut client).await;
        let confirm = client.hear().await;
        assert!(matches!(confirm, Some(Method::BasicAck(_))), "{confirm:?}");
    }
    client.close().await;
    broker.shutdown().await.expect("a clean stop");
    check_log(&records(data.path()), &sent);

    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    for sent in &sent {
        let (got, content) = client.get(&sent.name, true).await.expect("a message");
        assert_eq!(
            (got.exchange, got.routing_key),
            (short(&sent.name), sent.key.clone())
        );
        assert_eq!(content.properties, sent.properties.encode());
        // The core has the same arguments still: the binding is known by them.
        let QueueBind {
            queue,
            exchange,
            routing_key,
            arguments,
            ..
        } = sent.bound();
        done(&mut client, sent.bound()).await;
        let unbind = QueueUnbind {
            queue,
            exchange,
            routing_key,
            arguments,
        };
        done(&mut client, unbind).await;
        done(&mut client, sent.between()).await;
        sent.publish(&mut client).await;
        let returned = client.hear().await;
        assert!(
            matches!(returned, Some(Method::BasicReturn(_))),
            "{returned:?}"
        );
    }
    client.close().await;
    broker.shutdown().await.expect("a clean stop");
    let left = records(data.path());
    assert!(!left.iter().any(|record| matches!(record, Record::Bound(_))));
}

#[tokio::test]
async fn whatever_a_table_holds_is_kept_compared_and_delivered_as_it_was() {
    let given = std::env::var("RANDOM_VALUES_SEED").ok();
    let given = given.map(|seed| seed.parse::<u64>().expect("a seed is a number"));
    let seeds = given.map_or(1..ROUNDS + 1, |seed| seed..seed + 1);
    for seed in seeds {
        // Shown only when the test fails.
        println!("repeat the last of these with RANDOM_VALUES_SEED={seed}");
        round(seed).await;
    }
}
