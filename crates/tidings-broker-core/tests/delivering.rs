//! Who gets which message when, and what settling it does.

mod common;

use common::*;
use tidings_broker_core::*;

#[test]
fn consumers_take_turns_and_those_with_a_better_priority_come_first() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    let channel = rig.channel;
    for tag in ["a", "b"] {
        rig.consume(channel, "q", tag);
    }
    rig.send("q", &["1", "2", "3"]);
    assert_eq!(rig.seen(), ["a:1", "b:2", "a:3"]);
    let urgent = rig.open(2, 1);
    rig.qos(urgent, 2, false);
    rig.try_consume(urgent, "q", "u", "", "x-priority=5")
        .expect("consumes");
    rig.send("q", &["4", "5", "6", "7"]);
    assert_eq!(rig.seen(), ["u:4", "u:5", "b:6", "a:7"]);
    rig.ack(urgent, 1, false);
    rig.send("q", &["8", "9"]);
    assert_eq!(rig.seen(), ["u:8", "b:9"]);
    refused(
        rig.try_consume(urgent, "q", "v", "", "x-priority=high"),
        406,
        "x-priority",
    );
}

#[test]
fn prefetch_bounds_what_is_out_per_consumer_and_per_channel() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["1", "2", "3", "4", "5", "6", "7", "8"]);
    let channel = rig.open(2, 1);
    rig.qos(channel, 2, false);
    rig.consume(channel, "q", "a");
    assert_eq!(rig.seen(), ["a:1", "a:2"]);
    rig.qos(channel, 1, false);
    rig.consume(channel, "q", "b");
    assert_eq!(
        rig.seen(),
        ["b:3"],
        "it counts for consumers that start later"
    );
    rig.ack(channel, 1, false);
    assert_eq!(rig.seen(), ["a:4"]);
    rig.qos(channel, 2, true);
    rig.ack(channel, 3, false);
    assert_eq!(
        rig.seen(),
        [""; 0],
        "two are out, and two is the limit of the channel"
    );
    rig.ack(channel, 4, true);
    assert_eq!(rig.seen().len(), 2, "both may have one");
    rig.qos(channel, 3, true);
    assert_eq!(rig.seen().len(), 1, "a higher limit counts at once");
    rig.try_consume(channel, "q", "n", "n", "")
        .expect("consumes");
    assert_eq!(
        rig.seen(),
        ["n:8"],
        "prefetch is no concern of those that do not acknowledge"
    );
    assert_eq!(rig.broker.unacked(channel), 3);
}

#[test]
fn tags_and_exclusivity_of_consumers_are_respected() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.queue("single", "x-single-active-consumer=true");
    let (one, two) = (rig.channel, rig.open(2, 1));
    rig.consume(one, "q", "a");
    refused(
        rig.try_consume(one, "q", "a", "", ""),
        530,
        "attempt to reuse consumer tag 'a'",
    );
    refused(
        rig.try_consume(two, "q", "x", "x", ""),
        403,
        "in exclusive use",
    );
    refused(
        rig.try_consume(two, "single", "x", "x", ""),
        403,
        "in exclusive use",
    );
    refused(
        rig.try_consume(two, "none", "x", "", ""),
        404,
        "no queue 'none'",
    );
    rig.broker
        .cancel(one, b"a", rig.now, &mut rig.out)
        .expect("cancelled");
    rig.try_consume(two, "q", "x", "x", "")
        .expect("nobody else is there");
    refused(
        rig.try_consume(one, "q", "a", "", ""),
        403,
        "queue 'q' in vhost '/' in exclusive use",
    );
    rig.broker.close_channel(two, rig.now, &mut rig.out);
    rig.consume(one, "q", "a");
    let tag = rig.try_consume(one, "q", "", "", "").expect("consumes");
    assert!(tag.starts_with(b"amq.ctag-"));
    rig.broker
        .cancel(one, b"never", rig.now, &mut rig.out)
        .expect("it is not there anyway");
}

#[test]
fn a_single_active_consumer_gets_everything_until_it_leaves() {
    let mut rig = Rig::default();
    rig.queue("q", "x-single-active-consumer=true");
    let (one, two) = (rig.open(2, 1), rig.open(3, 1));
    rig.qos(one, 2, false);
    rig.consume(one, "q", "a");
    rig.consume(two, "q", "b");
    rig.try_consume(two, "q", "c", "", "x-priority=1")
        .expect("consumes");
    rig.send("q", &["1", "2", "3"]);
    assert_eq!(rig.seen(), ["a:1", "a:2"], "the others do not help out");
    rig.broker
        .cancel(one, b"a", rig.now, &mut rig.out)
        .expect("cancelled");
    assert_eq!(
        rig.seen(),
        ["c:3"],
        "what is out stays out; the best of the rest takes over"
    );
    rig.broker.close_channel(one, rig.now, &mut rig.out);
    assert_eq!(rig.seen(), ["c:1*", "c:2*"]);
}

#[test]
fn settling_follows_the_tags() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["1", "2", "3", "4", "5"]);
    let channel = rig.channel;
    rig.consume(channel, "q", "c");
    rig.ack(channel, 2, false);
    rig.ack(channel, 4, true);
    assert_eq!(rig.broker.unacked(channel), 1);
    let mut ack = |tag, multiple| {
        rig.broker
            .ack(channel, tag, multiple, rig.now, &mut rig.out)
    };
    refused(
        ack(2, false),
        406,
        "PRECONDITION_FAILED - unknown delivery tag 2",
    );
    refused(ack(3, true), 406, "unknown delivery tag 3");
    refused(ack(6, false), 406, "unknown delivery tag 6");
    refused(ack(0, false), 406, "unknown delivery tag 0");
    ack(0, true).expect("everything that is out");
    ack(0, true).expect("nothing is out, which is fine");
    let stats = rig.stats("q");
    assert_eq!(
        (stats.counters.acked, stats.unacked, stats.ready),
        (5, 0, 0)
    );
}

#[test]
fn requeued_messages_go_back_to_where_they_were() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["1", "2", "3", "4", "5", "6"]);
    let channel = rig.open(2, 1);
    rig.qos(channel, 4, false);
    rig.consume(channel, "q", "c");
    rig.broker
        .cancel(channel, b"c", rig.now, &mut rig.out)
        .expect("cancelled");
    rig.nack(channel, 3, false, true);
    assert_eq!(rig.waiting("q"), ["3", "5", "6"]);
    rig.nack(channel, 1, false, true);
    assert_eq!(rig.waiting("q"), ["1", "3", "5", "6"]);
    rig.nack(channel, 0, true, true);
    assert_eq!(rig.waiting("q"), ["1", "2", "3", "4", "5", "6"]);
    let got = rig.get("q").expect("there");
    assert!(got.redelivered && got.remaining == 5);
}

#[test]
fn recovering_or_closing_a_channel_puts_back_what_was_out() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    let (one, two) = (rig.open(2, 1), rig.open(2, 2));
    rig.consume(one, "q", "a");
    rig.send("q", &["1", "2"]);
    rig.seen();
    rig.broker
        .recover(one, rig.now, &mut rig.out)
        .expect("recovered");
    assert_eq!(rig.seen(), ["a:1*", "a:2*"]);
    rig.consume(two, "q", "b");
    rig.broker.close_channel(one, rig.now, &mut rig.out);
    assert_eq!(rig.seen(), ["b:1*", "b:2*"]);
    rig.broker
        .close_connection(ConnectionId(2), rig.now, &mut rig.out);
    assert_eq!(
        rig.seen(),
        [""; 0],
        "no channel of the connection is given anything any more"
    );
    assert_eq!(rig.waiting("q"), ["1", "2"]);
    assert_eq!(rig.stats("q").consumers, 0);
}

#[test]
fn a_queue_of_quorum_type_counts_deliveries_and_ends_them_at_the_limit() {
    let mut rig = Rig::default();
    rig.queue("dead", "");
    let arguments = "x-queue-type=quorum,x-delivery-limit=2,\
                     x-dead-letter-exchange=,x-dead-letter-routing-key=dead";
    // The notation of the tests has no empty string; say it in full.
    let mut table = table(arguments);
    table.0.retain(|(name, _)| name != "x-dead-letter-exchange");
    let declare = QueueDeclare {
        name: bytes("q"),
        durable: true,
        arguments: table.with("x-dead-letter-exchange", Value::str("")),
        ..QueueDeclare::default()
    };
    rig.broker
        .declare_queue(rig.channel, declare, rig.now, &mut rig.out)
        .expect("declared");
    rig.send("q", &["m"]);
    for count in [None, Some(1), Some(2)] {
        let got = rig.get("q").expect("there");
        assert_eq!(got.delivery_count, count);
        rig.nack(rig.channel, got.delivery_tag, false, true);
    }
    assert_eq!(rig.get("q"), None);
    let dead = rig.get("dead").expect("there");
    let deaths = dead.message.deaths.clone().expect("it died");
    assert_eq!(deaths.last().reason, DeathReason::DeliveryLimit);
}

#[test]
fn the_last_consumer_takes_an_auto_delete_queue_along() {
    let mut rig = Rig::default();
    rig.try_queue("q", "a").expect("declared");
    let (one, two) = (rig.open(2, 1), rig.open(3, 1));
    rig.consume(one, "q", "a");
    rig.consume(two, "q", "b");
    rig.broker
        .cancel(one, b"a", rig.now, &mut rig.out)
        .expect("cancelled");
    assert!(rig.has_queue("q"));
    rig.send("q", &["m"]);
    rig.broker
        .close_connection(ConnectionId(3), rig.now, &mut rig.out);
    assert!(!rig.has_queue("q"));
    rig.broker
        .close_connection(ConnectionId(2), rig.now, &mut rig.out);
}

#[test]
fn getting_counts_what_is_left_and_is_no_concern_of_prefetch() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    assert_eq!(rig.get("q"), None);
    rig.send("q", &["1", "2", "3"]);
    rig.qos(rig.channel, 1, true);
    for left in [2, 1] {
        assert_eq!(rig.get("q").expect("there").remaining, left);
    }
    let got = rig
        .broker
        .get(rig.channel, b"q", true, rig.now, &mut rig.out);
    assert_eq!(got.expect("it may").expect("there").delivery_tag, 3);
    assert_eq!(rig.broker.unacked(rig.channel), 2);
}

#[test]
fn a_paused_connection_is_given_nothing_and_everything_when_it_goes_on() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    let (one, two) = (rig.open(2, 1), rig.open(3, 1));
    rig.consume(one, "q", "a");
    rig.consume(two, "q", "b");
    rig.broker.pause_connection(ConnectionId(2));
    rig.send("q", &["1", "2"]);
    assert_eq!(rig.seen(), ["b:1", "b:2"]);
    let late = rig.open(2, 2);
    rig.try_consume(late, "q", "late", "n", "")
        .expect("consumes");
    rig.broker.pause_connection(ConnectionId(3));
    rig.send("q", &["3", "4"]);
    assert_eq!(rig.seen(), [""; 0]);
    rig.broker
        .resume_connection(ConnectionId(2), rig.now, &mut rig.out);
    assert_eq!(rig.seen(), ["a:3", "a:4"]);
    rig.send("q", &["5"]);
    assert_eq!(rig.seen().len(), 1);
}

#[test]
fn a_long_backlog_is_delivered_in_steps() {
    let mut rig = Rig::with(Options {
        messages_per_step_max: 10,
        ..Options::default()
    });
    rig.queue("q", "");
    let bodies: Vec<String> = (0..35).map(|at| at.to_string()).collect();
    rig.send("q", &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let channel = rig.channel;
    rig.try_consume(channel, "q", "c", "n", "")
        .expect("consumes");
    assert_eq!(rig.seen().len(), 10);
    rig.send("q", &["35"]);
    assert_eq!(rig.seen().len(), 0, "nothing overtakes what waits");
    let mut steps = Vec::new();
    while rig
        .broker
        .next_deadline()
        .is_some_and(|deadline| deadline <= rig.now)
    {
        rig.broker.tick(rig.now, &mut rig.out);
        steps.push(rig.seen().len());
    }
    assert_eq!(steps.iter().sum::<usize>(), 26, "{steps:?}");
    assert!(steps.iter().all(|step| *step <= 10), "{steps:?}");
}

#[test]
fn messages_of_a_better_priority_are_delivered_first() {
    let mut rig = Rig::default();
    rig.queue("q", "x-max-priority=5");
    for (priority, body) in [(0, "a"), (5, "b"), (9, "c"), (1, "d"), (0, "e")] {
        let message = Message {
            priority,
            ..Rig::message("", "q", body)
        };
        rig.publish_message(message).expect("published");
    }
    let got = rig.get("q").expect("there");
    assert_eq!(&got.message.body[..], b"b");
    rig.nack(rig.channel, got.delivery_tag, false, true);
    assert_eq!(rig.waiting("q"), ["b", "c", "d", "a", "e"]);
}
