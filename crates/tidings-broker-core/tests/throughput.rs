//! How fast the core is, and that a backlog does not make it slower. Run in release:
//! `cargo test --release -p tidings-broker-core --test throughput -- --ignored --nocapture`.

mod common;

use std::time::Instant;

use common::*;
use tidings_broker_core::*;

const MESSAGES: u64 = 1_000_000;

/// Publishes, delivers and acknowledges; gives nanoseconds per message.
fn nanoseconds_per_message(queues: usize, backlog: u64, prefetch: u16) -> u64 {
    let mut rig = Rig::default();
    rig.exchange("x", "topic");
    for at in 0..queues {
        rig.queue(&format!("q{at}"), "");
        rig.bind("x", &format!("q{at}"), &format!("key.{at}"));
    }
    let publish = |rig: &mut Rig, at: u64| {
        let key = ["key.0", "key.1", "key.2", "key.3"][at as usize % queues];
        let message = Message {
            persistent: true,
            ..Message::new(&b"x"[..], key.as_bytes(), &[7; 128][..])
        };
        rig.broker
            .publish(rig.channel, message, &[], 0, &mut rig.out)
            .expect("published");
    };
    for at in 0..backlog {
        publish(&mut rig, at);
    }
    rig.out = Vec::new();
    let channel = rig.open(2, 1);
    rig.qos(channel, prefetch, false);
    for at in 0..queues {
        rig.consume(channel, &format!("q{at}"), &format!("c{at}"));
    }
    let started = Instant::now();
    let mut delivered = 0;
    for at in 0..MESSAGES {
        publish(&mut rig, at);
        if at % 64 != 0 {
            continue;
        }
        let mut last = 0;
        for effect in rig.out.drain(..) {
            if let Effect::Deliver(delivery) = effect {
                last = delivery.delivery_tag;
                delivered += 1;
            }
        }
        if last > 0 {
            rig.ack(channel, last, true);
        }
    }
    assert!(delivered > MESSAGES / 2);
    started.elapsed().as_nanos() as u64 / MESSAGES
}

#[test]
#[ignore = "measures; run it in release"]
fn a_message_costs_the_same_with_and_without_a_backlog() {
    nanoseconds_per_message(1, 0, 200);
    for (queues, backlog, prefetch) in [
        (1, 0, 0),
        (1, 0, 200),
        (4, 0, 200),
        (1, 1_000_000, 200),
        (4, 1_000_000, 200),
    ] {
        let cost = nanoseconds_per_message(queues, backlog, prefetch);
        println!("{queues} queues, backlog {backlog}, prefetch {prefetch}: {cost} ns a message");
    }
}

#[test]
#[ignore = "measures; run it in release"]
fn requeueing_costs_the_same_with_and_without_a_backlog() {
    for backlog in [1_000, 1_000_000] {
        let mut rig = Rig::default();
        rig.queue("q", "");
        for _ in 0..backlog {
            rig.publish("", "q", "m");
        }
        rig.effects();
        let started = Instant::now();
        for _ in 0..100_000 {
            let got = rig.get("q").expect("there");
            rig.nack(rig.channel, got.delivery_tag, false, true);
        }
        println!(
            "backlog {backlog}: {} ns each",
            started.elapsed().as_nanos() / 100_000
        );
    }
}
