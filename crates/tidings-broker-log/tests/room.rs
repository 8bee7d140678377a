//! What the core says that a record needs is enough for the log.

mod common;

use common::*;
use tidings_broker_core::*;
use tidings_broker_log::Log;

fn value(random: &mut Random, depth: u64) -> Value {
    let text = |random: &mut Random| "v".repeat(random.below(40) as usize);
    match random.below(if depth == 0 { 8 } else { 10 }) {
        0 => Value::Void,
        1 => Value::Bool(true),
        2 => Value::Int(random.next() as i64),
        3 => Value::Float(0.5),
        4 => Value::Decimal(3, -1),
        5 => Value::str(&text(random)),
        6 => Value::Bytes(text(random).into()),
        7 => Value::Timestamp(random.next()),
        8 => Value::Array(
            (0..random.below(5))
                .map(|_| value(random, depth - 1))
                .collect(),
        ),
        _ => Value::Table(arguments(random, depth - 1)),
    }
}

fn arguments(random: &mut Random, depth: u64) -> Table {
    (0..random.below(6)).fold(Table::new(), |table, _| {
        let name = "n".repeat(random.below(20) as usize);
        table.with(&name, value(random, depth))
    })
}

/// A command that records something new, of any shape.
fn command(random: &mut Random, broker: &mut Broker, channel: ChannelId, out: &mut Vec<Effect>) {
    let number = random.below(40);
    let done = match random.below(6) {
        0 => {
            let mut arguments = arguments(random, 2);
            if random.below(2) == 0 {
                arguments = arguments
                    .with("x-dead-letter-exchange", Value::str("amq.fanout"))
                    .with("x-max-length", Value::Int(2));
            }
            let declare = QueueDeclare {
                name: format!("queue {number}").into(),
                durable: true,
                arguments,
                ..Default::default()
            };
            broker.declare_queue(channel, declare, 0, out).map(drop)
        }
        1 => {
            let declare = ExchangeDeclare {
                name: format!("exchange {number}").into(),
                kind: "headers".into(),
                durable: true,
                arguments: arguments(random, 2),
                ..Default::default()
            };
            broker.declare_exchange(declare, out)
        }
        2 => {
            let binding = Binding {
                source: "amq.fanout".into(),
                destination: format!("queue {number}").into(),
                routing_key: "k".repeat(random.below(256) as usize).into(),
                arguments: arguments(random, 2),
            };
            match broker.bind_queue(channel, binding, out) {
                // It closes nothing here.
                Err(refusal) if refusal.code == ReplyCode::NotFound => Ok(()),
                done => done,
            }
        }
        _ => {
            let keys = (0..random.below(4)).map(|at| format!("queue {at}").into());
            let message = Message {
                persistent: true,
                cc: keys.collect(),
                properties: "p".repeat(random.below(50) as usize).into(),
                expiration: (random.below(2) == 0).then_some(1),
                ..Message::new(
                    if random.below(2) == 0 {
                        ""
                    } else {
                        "amq.fanout"
                    },
                    format!("queue {number}"),
                    "b".repeat(random.below(300) as usize),
                )
            };
            broker.publish(channel, message, &[], 0, out).map(drop)
        }
    };
    match done {
        Ok(()) => {}
        // Declared anew with other arguments.
        Err(refusal) if refusal.code == ReplyCode::PreconditionFailed => {}
        Err(refusal) => panic!("{refusal}"),
    }
}

#[test]
fn a_record_never_needs_more_room_than_the_core_says() {
    for seed in 1..=5 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut broker = Broker::new(Options::default());
        let channel = broker.open_channel(ConnectionId(1), 1);
        let mut recorded = 0;
        for _ in 0..200 {
            let mut out = Vec::new();
            broker.set_room(1 << 20);
            command(&mut random, &mut broker, channel, &mut out);
            broker.tick(10, &mut out);
            let said = (1 << 20) - broker.room();
            let records: Vec<&Record> = out
                .iter()
                .filter_map(|effect| match effect {
                    Effect::Store(record) => Some(record),
                    _ => None,
                })
                .collect();
            recorded += records.len();
            let needed = Log::needed(records.iter().copied());
            assert!(
                needed <= said,
                "seed {seed}: {needed} > {said}: {records:?}"
            );
        }
        assert!(recorded > 100, "{recorded} records");
    }
}
