//! A command whose records do not fit in the store is refused and changes nothing; what dies in a
//! queue waits for room to be buried.

mod common;

use common::*;
use tidings_broker_core::*;

const WORDS: &str = "the broker's disk is full";

fn full() -> Rig {
    let mut rig = Rig::default();
    rig.exchange("x", "direct");
    rig.queue("q", "");
    rig.broker.set_room(0);
    rig.out.clear();
    rig
}

#[test]
fn a_declaration_without_room_is_refused_and_made_later_as_if_for_the_first_time() {
    let mut rig = full();
    refused(rig.try_queue("late", "d"), 506, WORDS);
    refused(rig.try_exchange("late", "direct", "d"), 506, WORDS);
    let bind = |rig: &mut Rig| {
        let binding = Rig::binding("amq.direct", "q", "k", "");
        rig.broker.bind_queue(rig.channel, binding, &mut rig.out)
    };
    refused(bind(&mut rig), 506, WORDS);
    assert!(rig.out.is_empty());
    assert!(rig.broker.queue(b"late").is_none());
    assert_eq!(rig.broker.bindings().count(), 0);
    // What needs no record needs no room, and neither does what is there.
    rig.try_queue("transient", "").expect("declared");
    rig.try_queue("q", "d").expect("it is there");
    rig.try_exchange("x", "direct", "")
        .expect("it is there and transient");
    assert!(rig.out.is_empty());

    rig.broker.set_room(1000);
    rig.try_queue("late", "d").expect("declared");
    rig.try_exchange("late", "direct", "d").expect("declared");
    bind(&mut rig).expect("bound");
    let records = rig.out.iter();
    let records = records.filter(|effect| matches!(effect, Effect::Store(_)));
    assert_eq!(records.count(), 3, "each is recorded");
    assert!(rig.broker.room() < 1000);
}

#[test]
fn a_binding_that_is_there_is_bound_again_without_room() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.bind("amq.direct", "q", "k");
    rig.broker.set_room(0);
    rig.out.clear();
    rig.bind("amq.direct", "q", "k");
    assert!(rig.out.is_empty());
}

#[test]
fn a_persistent_message_without_room_is_refused_and_a_transient_one_is_not() {
    let mut rig = full();
    let message = || Rig::message("", "q", "body");
    refused(rig.publish_message(message()), 506, WORDS);
    assert_eq!(rig.stats("q").ready, 0);
    let transient = Message {
        persistent: false,
        ..message()
    };
    rig.publish_message(transient).expect("published");
    assert_eq!(rig.stats("q").ready, 1);
    rig.broker.set_room(message().stored_bytes(1) - 1);
    refused(rig.publish_message(message()), 506, WORDS);
    rig.broker.set_room(message().stored_bytes(1));
    rig.publish_message(message()).expect("it fits exactly");
    assert_eq!(rig.broker.room(), 0);
}

#[test]
fn what_dies_without_room_is_buried_when_there_is_some() {
    let mut rig = Rig::default();
    let arguments = "x-dead-letter-exchange=amq.fanout,x-message-ttl=10,x-max-length=2";
    rig.queue("q", arguments);
    rig.queue("dead", "");
    rig.bind("amq.fanout", "dead", "");
    rig.send("q", &["1", "2"]);
    let needed = Rig::message("", "q", "3").stored_bytes(1);
    rig.broker.set_room(needed);
    // The third pushes the first out: there is room for the third alone.
    rig.send("q", &["3"]);
    assert_eq!((rig.stats("q").ready, rig.stats("dead").ready), (2, 0));
    assert!(rig.broker.waits_for_room().is_some());
    rig.out.clear();
    rig.pass(10);
    assert_eq!((rig.stats("q").ready, rig.stats("dead").ready), (0, 0));
    assert!(rig.out.is_empty(), "the store has them where they were");
    // They go in the order in which they died.
    let first = rig.broker.waits_for_room().expect("it waits");
    rig.broker.set_room(first);
    rig.broker.tick(rig.now, &mut rig.out);
    assert_eq!(rig.stats("dead").ready, 1);
    assert_eq!(rig.get("dead").expect("buried").message.body, "1");
    rig.broker.set_room(10_000);
    rig.broker.tick(rig.now, &mut rig.out);
    assert_eq!(rig.get("dead").expect("buried").message.body, "2");
    assert_eq!(rig.get("dead").expect("buried").message.body, "3");
    assert_eq!(rig.broker.waits_for_room(), None);
}

#[test]
fn a_transaction_is_carried_out_as_a_whole_or_refused_as_a_whole() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["there"]);
    let got = rig
        .broker
        .get(rig.channel, b"q", false, 0, &mut rig.out)
        .expect("a queue")
        .expect("a message");
    let ack = Settlement {
        delivery_tag: got.delivery_tag,
        multiple: false,
        requeue: None,
    };
    let good = || (Rig::message("", "q", "good"), Vec::new());
    let cases: [(Vec<Message>, Vec<Settlement>, u16, &str); 5] = [
        (
            vec![Rig::message("nowhere", "q", "")],
            vec![ack],
            404,
            "no exchange 'nowhere'",
        ),
        (
            vec![Rig::message("amq.rabbitmq.trace", "q", "")],
            vec![ack],
            403,
            "internal",
        ),
        (
            vec![Rig::message("", &"k".repeat(256), "")],
            vec![ack],
            406,
            "256 bytes",
        ),
        (vec![], vec![ack, ack], 406, "unknown delivery tag 1"),
        (vec![Rig::message("", "q", "")], vec![ack], 506, WORDS),
    ];
    for (bad, settlements, code, words) in cases {
        // Room for one, not for two.
        let room = if code == 506 {
            good().0.stored_bytes(1)
        } else {
            10_000
        };
        rig.broker.set_room(room);
        rig.out.clear();
        let mut all = vec![good()];
        all.extend(bad.into_iter().map(|message| (message, Vec::new())));
        let committed = rig
            .broker
            .commit(rig.channel, all, &settlements, 0, &mut rig.out);
        refused(committed, code, words);
        assert!(rig.out.is_empty(), "{words}");
        let stats = rig.stats("q");
        assert_eq!((stats.ready, stats.unacked), (0, 1), "{words}");
    }
    rig.broker.set_room(10_000);
    let committed = rig
        .broker
        .commit(rig.channel, vec![good()], &[ack], 0, &mut rig.out)
        .expect("committed");
    assert_eq!(committed.len(), 1);
    let stats = rig.stats("q");
    assert_eq!((stats.ready, stats.unacked), (1, 0));
}
