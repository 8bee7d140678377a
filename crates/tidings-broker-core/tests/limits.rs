//! What neither the wire nor a store could hold is refused before anything changes, and what an
//! earlier version accepted is kept as far as it can be.

mod common;

use common::*;
use tidings_broker_core::*;

/// A value within `depth` tables.
fn nested(depth: usize) -> Table {
    (0..depth).fold(Table::new().with("n", Value::Int(1)), |inner, _| {
        Table::new().with("n", Value::Table(inner))
    })
}

fn queue(arguments: Table) -> QueueDeclare {
    QueueDeclare {
        name: bytes("q"),
        durable: true,
        arguments,
        ..QueueDeclare::default()
    }
}

fn exchange(name: &str, arguments: Table) -> ExchangeDeclare {
    ExchangeDeclare {
        name: bytes(name),
        kind: bytes("direct"),
        durable: true,
        arguments,
        ..ExchangeDeclare::default()
    }
}

fn long() -> String {
    "n".repeat(NAME_BYTES_MAX + 1)
}

#[test]
fn arguments_are_nested_up_to_the_limit_and_no_deeper() {
    let mut rig = Rig::default();
    let channel = rig.open(1, 1);
    let Rig { broker, out, .. } = &mut rig;
    let deepest = nested(Table::DEPTH_MAX);
    let binding = |arguments| Binding {
        arguments,
        ..Rig::binding("x", "q", "k", "")
    };
    broker
        .declare_queue(channel, queue(deepest.clone()), 0, out)
        .expect("as deep as can be");
    broker
        .declare_exchange(exchange("x", deepest.clone()), out)
        .expect("as deep as can be");
    broker
        .bind_queue(channel, binding(deepest), out)
        .expect("as deep as can be");
    out.clear();

    let deeper = || nested(Table::DEPTH_MAX + 1);
    let words = "nested deeper than 32 levels";
    let other = QueueDeclare {
        name: bytes("other"),
        ..queue(deeper())
    };
    refused(broker.declare_queue(channel, other, 0, out), 406, words);
    refused(
        broker.declare_exchange(exchange("y", deeper()), out),
        406,
        words,
    );
    refused(
        broker.bind_queue(channel, binding(deeper()), out),
        406,
        words,
    );
    let between = Binding {
        destination: bytes("x"),
        ..binding(deeper())
    };
    refused(broker.bind_exchange(between, out), 406, words);
    assert!(out.is_empty(), "nothing is stored of what was refused");
}

#[test]
fn names_are_no_longer_than_the_wire_has_room_for() {
    let mut rig = Rig::default();
    let channel = rig.open(1, 1);
    rig.queue("q", "");
    let Rig { broker, out, .. } = &mut rig;
    out.clear();
    let words = "it has 256 bytes, at most 255 are possible";
    let other = QueueDeclare {
        name: long().into(),
        ..QueueDeclare::default()
    };
    refused(broker.declare_queue(channel, other, 0, out), 406, words);
    refused(
        broker.declare_exchange(exchange(&long(), Table::new()), out),
        406,
        words,
    );
    let binding = Rig::binding("amq.direct", "q", &long(), "");
    refused(broker.bind_queue(channel, binding, out), 406, words);
    let message = Message::new("", long(), "body");
    refused(broker.publish(channel, message, &[], 0, out), 406, words);
    assert!(out.is_empty(), "nothing is stored of what was refused");
}

#[test]
fn topology_has_limits_and_what_goes_makes_room() {
    let options = Options {
        queues_max: 2,
        exchanges_max: 1,
        bindings_max: 2,
        ..Options::default()
    };
    let mut rig = Rig::with(options);
    rig.queue("a", "");
    rig.queue("b", "");
    let words = "cannot declare queue 'c': queue limit in vhost '/' (2) is reached (`queues_max`)";
    refused(rig.try_queue("c", "d"), 406, words);
    refused(rig.try_queue("", "x"), 406, "`queues_max`");
    let reply = rig.broker.declare_reply_queue(rig.channel, 0, &mut rig.out);
    refused(reply, 406, "`queues_max`");
    rig.queue("a", "");
    rig.try_queue("b", "p").expect("it is there");

    rig.exchange("x", "direct");
    let words = "cannot declare exchange 'y': exchange limit of 1 is reached (`exchanges_max`)";
    refused(rig.try_exchange("y", "direct", ""), 406, words);
    rig.exchange("x", "direct");
    rig.try_exchange("amq.direct", "direct", "d")
        .expect("it is always there");

    let bind = |rig: &mut Rig, queue: &str, key: &str| {
        let binding = Rig::binding("x", queue, key, "");
        rig.broker.bind_queue(rig.channel, binding, &mut rig.out)
    };
    for key in ["1", "2", "1"] {
        bind(&mut rig, "a", key).expect("bound, or bound already");
    }
    let words = "cannot bind 'a' to exchange 'x': binding limit of 2 is reached (`bindings_max`)";
    refused(bind(&mut rig, "a", "3"), 406, words);
    rig.unbind("x", "a", "1");
    rig.unbind("x", "a", "never bound");
    bind(&mut rig, "a", "3").expect("there is room");
    refused(
        bind(&mut rig, "b", "4"),
        406,
        words.split_once(':').expect("two parts").1,
    );

    // Queues and exchanges go with their bindings.
    let deleted = rig
        .broker
        .delete_queue(rig.channel, b"a", false, false, &mut rig.out);
    deleted.expect("deleted");
    rig.queue("c", "");
    for key in ["4", "5"] {
        bind(&mut rig, "c", key).expect("there is room");
    }
    let deleted = rig.broker.delete_exchange(b"x", false, &mut rig.out);
    deleted.expect("deleted");
    rig.exchange("y", "direct");
    for key in ["6", "7"] {
        rig.bind("y", "c", key);
    }
    refused(rig.try_exchange("z", "direct", ""), 406, "`exchanges_max`");
}

#[test]
fn what_a_store_brings_back_is_kept_beyond_the_limits() {
    let mut rig = Rig::with(Options {
        queues_max: 0,
        exchanges_max: 0,
        bindings_max: 0,
        ..Options::default()
    });
    assert_eq!(restored(&mut rig, Table::new()), None);
    let exchange = Record::ExchangeDeclared {
        name: bytes("x"),
        kind: bytes("direct"),
        auto_delete: false,
        internal: false,
        arguments: Table::new(),
    };
    assert_eq!(rig.broker.restore(exchange, 0), None);
    let bound = Record::Bound(BindingRecord {
        source: bytes("x"),
        destination: BindingEnd::Queue(QueueId(1)),
        routing_key: bytes("k"),
        arguments: Table::new(),
    });
    assert_eq!(rig.broker.restore(bound, 0), None);
    assert_eq!(rig.publish("x", "k", "body").queues, 1);
    let again = Rig::binding("x", "old", "k", "");
    let again = rig.broker.bind_queue(rig.channel, again, &mut rig.out);
    again.expect("it is there");
    refused(rig.try_queue("new", "d"), 406, "`queues_max`");
}

/// A queue that an earlier version stored with these arguments.
fn restored(rig: &mut Rig, arguments: Table) -> Option<String> {
    let record = Record::QueueDeclared {
        queue: QueueId(1),
        name: bytes("old"),
        auto_delete: false,
        arguments,
    };
    rig.broker.restore(record, 0)
}

#[test]
fn a_queue_with_an_argument_that_is_no_longer_accepted_is_kept_without_it() {
    let key = ("x-dead-letter-routing-key", Value::str(&long()));
    let exchange = ("x-dead-letter-exchange", Value::str("amq.fanout"));
    let arguments = Table::new()
        .with(exchange.0, exchange.1)
        .with(key.0, key.1)
        .with("x-message-ttl", Value::Int(5));
    let mut rig = Rig::default();
    let note = restored(&mut rig, arguments.clone()).expect("the operator is told");
    assert!(note.contains("queue `old` is kept"), "{note}");
    assert!(note.contains("`x-dead-letter-routing-key`"), "{note}");
    assert!(!note.contains("`x-message-ttl`"), "{note}");
    // What it was declared with is still what a declaration is compared with.
    assert_eq!(rig.stats("old").arguments, arguments);
    rig.queue("dead", "");
    rig.bind("amq.fanout", "dead", "");
    rig.send("old", &["late"]);
    rig.pass(5);
    let got = rig.get("dead").expect("it expired");
    assert_eq!(got.message.routing_key, "old", "its own key");
    assert_eq!(restored(&mut Rig::default(), Table::new()), None);
}

#[test]
fn an_alternate_exchange_that_is_no_longer_accepted_has_no_effect() {
    let record = |alternate| Record::ExchangeDeclared {
        name: bytes("x"),
        kind: bytes("direct"),
        auto_delete: false,
        internal: false,
        arguments: Table::new().with("alternate-exchange", alternate),
    };
    let mut rig = Rig::default();
    let note = rig.broker.restore(record(Value::str(&long())), 0);
    let note = note.expect("the operator is told");
    assert!(
        note.contains("`alternate-exchange` of exchange `x`"),
        "{note}"
    );
    assert_eq!(rig.publish("x", "k", "body").queues, 0);
    let mut rig = Rig::default();
    assert_eq!(rig.broker.restore(record(Value::str("other")), 0), None);
}

#[test]
fn a_message_with_a_key_that_is_too_long_goes_on_with_the_one_before() {
    let death = |keys: &[&str]| Death {
        queue: bytes("q"),
        reason: DeathReason::Rejected,
        count: 1,
        time: 0,
        exchange: bytes(""),
        routing_keys: keys.iter().map(|key| bytes(key)).collect(),
        original_expiration: None,
    };
    let check = |entries: Vec<Death>, expected: &str| {
        let first = (bytes("q"), DeathReason::Rejected);
        let deaths = (!entries.is_empty()).then(|| Deaths { entries, first }.into());
        let message = Message {
            persistent: true,
            deaths,
            ..Message::new("amq.fanout", long(), "body")
        };
        let mut rig = Rig::default();
        restored(&mut rig, Table::new());
        let enqueued = Record::Enqueued {
            id: MessageId(1),
            at: 0,
            queues: Queues::One(QueueId(1)),
            message: message.into(),
        };
        let note = rig
            .broker
            .restore(enqueued, 0)
            .expect("the operator is told");
        assert!(note.contains("256 bytes"), "{note}");
        let got = rig.get("old").expect("it is kept");
        assert_eq!(got.message.routing_key, expected);
    };
    check(vec![death(&["before", "cc"])], "before");
    check(vec![death(&[&long(), "cc"]), death(&["first"])], "first");
    check(vec![death(&[])], "");
    check(vec![], "");
}
