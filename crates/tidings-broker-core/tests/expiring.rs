//! Time to live, length limits and dead letters.

mod common;

use common::*;
use tidings_broker_core::*;

/// A queue whose dead letters go to the queue `dead` through the default exchange, or, with a key,
/// to an exchange of that name.
fn with_dead_letters(rig: &mut Rig, queue: &str, exchange: &str, key: Option<&str>, more: &str) {
    let mut arguments = table(more).with("x-dead-letter-exchange", Value::str(exchange));
    if let Some(key) = key {
        arguments = arguments.with("x-dead-letter-routing-key", Value::str(key));
    }
    let declare = QueueDeclare {
        name: bytes(queue),
        durable: true,
        arguments,
        ..QueueDeclare::default()
    };
    rig.broker
        .declare_queue(rig.channel, declare, rig.now, &mut rig.out)
        .expect("declared");
}

fn expiring(queue: &str, body: &str, milliseconds: u64) -> Message {
    Message {
        expiration: Some(milliseconds),
        ..Rig::message("", queue, body)
    }
}

fn deaths(message: &Message) -> Vec<(String, &'static str, u64)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entries = &message.deaths.as_ref().expect("it died").entries;
    entries
        .iter()
        .map(|death| (text(&death.queue), death.reason.as_str(), death.count))
        .collect()
}

#[test]
fn a_message_lives_as_long_as_the_shorter_of_its_own_and_the_queues_time() {
    #[track_caller]
    fn check(queue_ttl: Option<u64>, own: Option<u64>, expected: Option<u64>) {
        let mut rig = Rig::default();
        rig.queue(
            "q",
            &queue_ttl.map_or(String::new(), |ttl| format!("x-message-ttl={ttl}")),
        );
        let message = Message {
            expiration: own,
            ..Rig::message("", "q", "m")
        };
        rig.publish_message(message).expect("published");
        if let Some(expected) = expected.filter(|ttl| *ttl > 0) {
            assert_eq!(rig.broker.next_deadline(), Some(START + expected));
            rig.pass(expected - 1);
            assert_eq!(rig.stats("q").ready, 1);
            rig.pass(1);
        }
        let there = u64::from(expected.is_none());
        assert_eq!(
            (rig.stats("q").ready, rig.stats("q").counters.expired),
            (there, 1 - there)
        );
    }
    check(Some(100), None, Some(100));
    check(None, Some(100), Some(100));
    check(Some(100), Some(50), Some(50));
    check(Some(50), Some(100), Some(50));
    check(Some(0), None, Some(0));
    check(None, Some(0), Some(0));
    check(None, None, None);
}

#[test]
fn many_expired_messages_go_in_steps() {
    let mut rig = Rig::with(Options {
        messages_per_step_max: 10,
        ..Options::default()
    });
    let expired = |rig: &Rig, queue: &str| rig.stats(queue).counters.expired;
    for queue in ["consumed", "filled"] {
        rig.queue(queue, "");
        for at in 0..35 {
            let message = expiring(queue, &at.to_string(), 5);
            rig.publish_message(message).expect("published");
        }
    }
    rig.send("consumed", &["alive"]);
    rig.now += 5;
    rig.seen();
    rig.consume(rig.channel, "consumed", "c");
    assert_eq!(expired(&rig, "consumed"), 10);
    let at_once = expiring("filled", "at once", 0);
    rig.publish_message(at_once).expect("published");
    assert_eq!(expired(&rig, "filled"), 10);
    assert_eq!(rig.seen(), [""; 0]);
    // The broker asks to go on.
    rig.pass(0);
    assert_eq!(rig.seen(), ["c:alive"]);
    assert_eq!(
        (expired(&rig, "consumed"), expired(&rig, "filled")),
        (35, 36)
    );
}

#[test]
fn a_time_of_zero_is_enough_for_a_consumer_who_is_there() {
    let mut rig = Rig::default();
    rig.queue("q", "x-message-ttl=0");
    rig.send("q", &["lost"]);
    let channel = rig.channel;
    rig.qos(channel, 1, false);
    rig.consume(channel, "q", "c");
    rig.send("q", &["taken", "lost too"]);
    assert_eq!(rig.seen(), ["c:taken"]);
    rig.nack(channel, 1, false, true);
    assert_eq!(rig.seen(), [""; 0], "back in the queue, its time is over");
    assert_eq!(rig.stats("q").counters.expired, 3);
}

#[test]
fn messages_expire_from_the_head_and_are_never_delivered_late() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    for (body, time) in [("long", 100), ("short", 10), ("longer", 200)] {
        rig.publish_message(expiring("q", body, time))
            .expect("published");
    }
    rig.pass(50);
    assert_eq!(
        rig.stats("q").ready,
        3,
        "behind one that lives, the dead keep their place"
    );
    rig.now += 60;
    assert_eq!(&rig.get("q").expect("there").message.body[..], b"longer");
    assert_eq!(rig.stats("q").counters.expired, 2);
}

#[test]
fn a_queue_that_nobody_uses_expires() {
    let mut rig = Rig::default();
    rig.queue("q", "x-expires=100");
    rig.send("q", &["m"]);
    rig.pass(60);
    rig.queue("q", "x-expires=100");
    rig.pass(60);
    rig.get("q");
    rig.pass(60);
    let channel = rig.open(2, 1);
    rig.consume(channel, "q", "c");
    rig.pass(1000);
    assert!(rig.has_queue("q"), "it has a consumer");
    rig.broker.close_channel(channel, rig.now, &mut rig.out);
    rig.pass(99);
    assert!(rig.has_queue("q"));
    rig.pass(1);
    assert!(!rig.has_queue("q"));
}

#[test]
fn a_full_queue_drops_its_head_or_turns_new_messages_away() {
    #[track_caller]
    fn check(arguments: &str, sent: &[&str], rejected: &[&str], left: &[&str], dead: &[&str]) {
        let mut rig = Rig::default();
        rig.queue("dead", "");
        with_dead_letters(&mut rig, "q", "", Some("dead"), arguments);
        for body in sent {
            let published = rig.publish("", "q", body);
            assert_eq!(published.queues, 1);
            assert_eq!(
                published.rejected,
                rejected.contains(body),
                "{body} with {arguments}"
            );
            assert_eq!(published.stored, !published.rejected);
        }
        assert_eq!(rig.waiting("q"), left, "{arguments}");
        assert_eq!(rig.waiting("dead"), dead, "{arguments}");
        if let Some(got) = rig.get("dead") {
            assert_eq!(deaths(&got.message), [("q".to_owned(), "maxlen", 1)]);
        }
    }
    let sent = ["1", "22", "333"];
    check("x-max-length=2", &sent, &[], &["22", "333"], &["1"]);
    check("x-max-length=0", &sent, &[], &[], &sent);
    check("x-max-length-bytes=4", &sent, &[], &["333"], &["1", "22"]);
    check(
        "x-max-length=2,x-overflow=drop-head",
        &sent,
        &[],
        &["22", "333"],
        &["1"],
    );
    check(
        "x-max-length=2,x-overflow=reject-publish",
        &sent,
        &["333"],
        &["1", "22"],
        &[],
    );
    check(
        "x-max-length-bytes=4,x-overflow=reject-publish",
        &sent,
        &["333"],
        &["1", "22"],
        &[],
    );
    check(
        "x-max-length=1,x-overflow=reject-publish-dlx",
        &sent,
        &["22", "333"],
        &["1"],
        &["22", "333"],
    );
}

#[test]
fn one_full_queue_does_not_keep_a_message_from_the_others() {
    let mut rig = Rig::default();
    rig.queue("full", "x-max-length=0,x-overflow=reject-publish");
    rig.queue("roomy", "");
    for queue in ["full", "roomy"] {
        rig.bind("amq.fanout", queue, "");
    }
    let published = rig.publish("amq.fanout", "", "m");
    assert_eq!(
        published,
        Published {
            queues: 2,
            rejected: true,
            stored: true
        }
    );
    assert_eq!((rig.stats("full").ready, rig.stats("roomy").ready), (0, 1));
    assert_eq!(rig.stats("full").counters, Counters::default());
}

#[test]
fn a_dead_letter_carries_its_history() {
    let mut rig = Rig::default();
    rig.exchange("grave", "topic");
    rig.queue("dead", "");
    rig.bind("grave", "dead", "#");
    with_dead_letters(&mut rig, "q", "grave", None, "x-message-ttl=1000");
    let message = Message {
        cc: [bytes("copy")].into(),
        ..expiring("q", "m", 50)
    };
    rig.publish_message(message).expect("published");
    rig.pass(50);
    let dead = rig.get("dead").expect("there").message;
    assert_eq!(
        (&dead.exchange[..], &dead.routing_key[..]),
        (&b"grave"[..], &b"q"[..])
    );
    assert_eq!(dead.expiration, None, "it would only die again");
    assert!(dead.persistent);
    let expected = Death {
        queue: bytes("q"),
        reason: DeathReason::Expired,
        count: 1,
        time: START + 50,
        exchange: bytes(""),
        routing_keys: vec![bytes("q"), bytes("copy")],
        original_expiration: Some(50),
    };
    let deaths = dead.deaths.as_ref().expect("it died");
    assert_eq!(deaths.entries, std::slice::from_ref(&expected));
    assert_eq!((deaths.first(), deaths.last()), (&expected, &expected));
}

#[test]
fn rejecting_without_requeueing_dead_letters_with_the_key_the_queue_says() {
    let mut rig = Rig::default();
    rig.queue("dead", "");
    with_dead_letters(&mut rig, "q", "", Some("dead"), "");
    rig.queue("plain", "");
    rig.send("q", &["1", "2"]);
    rig.send("plain", &["3"]);
    for _ in 0..2 {
        rig.get("q");
    }
    rig.nack(rig.channel, 2, true, false);
    assert_eq!(rig.waiting("dead"), ["1", "2"]);
    rig.get("plain");
    rig.nack(rig.channel, 3, false, false);
    let counters = |queue| rig.stats(queue).counters;
    assert_eq!(
        (counters("q").dead_lettered, counters("plain").rejected),
        (2, 1)
    );
}

#[test]
fn a_delay_through_a_queue_that_expires_comes_back_and_is_counted_once_per_queue_and_reason() {
    let mut rig = Rig::default();
    with_dead_letters(&mut rig, "work", "", Some("dead"), "");
    rig.queue("dead", "");
    with_dead_letters(&mut rig, "retry", "", Some("work"), "x-message-ttl=100");
    rig.send("work", &["m"]);
    for round in 0..3 {
        let got = rig.get("work").expect("there");
        if round > 0 {
            assert_eq!(
                deaths(&got.message)[0],
                ("retry".to_owned(), "expired", round)
            );
            assert_eq!(
                got.message.deaths.as_ref().expect("it died").first().queue,
                "retry"
            );
        }
        let again = Message {
            routing_key: bytes("retry"),
            ..Message::clone(&got.message)
        };
        rig.publish_message(again).expect("published");
        rig.ack(rig.channel, got.delivery_tag, false);
        rig.pass(100);
    }
    rig.get("work");
    rig.nack(rig.channel, 4, false, false);
    let dead = rig.get("dead").expect("there").message;
    let expected = [
        ("work".to_owned(), "rejected", 1),
        ("retry".to_owned(), "expired", 3),
    ];
    assert_eq!(deaths(&dead), expected);
}

#[test]
fn a_cycle_in_which_nobody_rejects_ends_and_one_with_a_rejection_goes_on() {
    let mut rig = Rig::default();
    with_dead_letters(&mut rig, "a", "", Some("b"), "x-message-ttl=10");
    with_dead_letters(&mut rig, "b", "", Some("a"), "x-message-ttl=10");
    rig.send("a", &["m"]);
    rig.pass(10);
    assert_eq!((rig.stats("a").ready, rig.stats("b").ready), (0, 1));
    rig.pass(10);
    assert_eq!(
        (rig.stats("a").ready, rig.stats("b").ready),
        (0, 0),
        "round once is enough"
    );
    rig.send("a", &["n"]);
    let got = rig.get("a").expect("there");
    rig.nack(rig.channel, got.delivery_tag, false, false);
    rig.pass(10);
    assert_eq!(
        rig.stats("a").ready,
        1,
        "a consumer had a say in this round"
    );
    // A queue that is its own dead letter queue and always full.
    with_dead_letters(&mut rig, "self", "", Some("self"), "x-max-length=0");
    rig.send("self", &["m"]);
    assert_eq!(rig.stats("self").ready, 0);
}

#[test]
fn a_dead_letter_exchange_that_is_not_there_loses_the_message_but_counts_it() {
    let mut rig = Rig::default();
    with_dead_letters(&mut rig, "q", "missing", None, "x-max-length=0");
    rig.send("q", &["m"]);
    assert_eq!(rig.stats("q").counters.dead_lettered, 1);
}

#[test]
fn a_dead_letter_is_stored_at_its_new_place_before_it_is_removed_from_the_old() {
    let mut rig = Rig::default();
    rig.queue("dead", "");
    with_dead_letters(&mut rig, "q", "", Some("dead"), "x-message-ttl=10");
    rig.send("q", &["m"]);
    rig.effects();
    rig.records.clear();
    rig.pass(10);
    rig.effects();
    assert!(
        matches!(
            rig.records[..],
            [Record::Enqueued { .. }, Record::Removed { .. }]
        ),
        "{:?}",
        rig.records
    );
}

#[test]
fn purging_takes_what_is_ready_and_leaves_what_is_out() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["1", "2", "3"]);
    rig.get("q");
    assert_eq!(
        rig.broker.purge_queue(rig.channel, b"q", &mut rig.out),
        Ok(2)
    );
    rig.nack(rig.channel, 1, false, true);
    assert_eq!(rig.waiting("q"), ["1"]);
    assert_eq!(rig.stats("q").counters.purged, 2);
    refused(
        rig.broker.purge_queue(rig.channel, b"none", &mut rig.out),
        404,
        "no queue 'none'",
    );
}

#[test]
fn only_the_durable_part_survives_a_restart() {
    let mut rig = Rig::default();
    rig.try_exchange("keep", "topic", "d").expect("declared");
    rig.try_exchange("lose", "topic", "").expect("declared");
    rig.queue("q", "x-message-ttl=500");
    rig.try_queue("transient", "").expect("declared");
    for (source, queue) in [
        ("keep", "q"),
        ("lose", "q"),
        ("keep", "transient"),
        ("amq.fanout", "q"),
    ] {
        rig.bind(source, queue, "k");
    }
    rig.bind_exchange("keep", "amq.topic", "#");
    rig.send("q", &["1", "2", "3"]);
    let transient = Message {
        persistent: false,
        ..Rig::message("", "q", "transient")
    };
    assert!(!rig.publish_message(transient).expect("published").stored);
    rig.send("transient", &["4"]);
    let got = rig.get("q").expect("there");
    rig.get("q");
    rig.ack(rig.channel, got.delivery_tag, false);
    rig.now += 100;
    let mut after = rig.restarted();
    assert_eq!(after.waiting("q"), ["2", "3"], "what was out is back");
    let names = |rig: &Rig| rig.broker.exchanges().map(|x| x.name).collect::<Vec<_>>();
    assert!(names(&after).contains(&bytes("keep")) && !names(&after).contains(&bytes("lose")));
    assert!(!after.has_queue("transient"));
    assert_eq!(after.broker.bindings().count(), 3);
    assert!(after.get("q").expect("there").redelivered);
    assert_eq!(after.publish("keep", "k", "5").queues, 1);
    after.pass(399);
    assert_eq!(after.stats("q").counters.expired, 0);
    after.pass(1);
    assert_eq!(
        after.stats("q").counters.expired,
        1,
        "time went on while it was down"
    );
    let (old, new) = (rig.try_queue("new", "d"), after.try_queue("new", "d"));
    old.and(new).expect("declared");
}
