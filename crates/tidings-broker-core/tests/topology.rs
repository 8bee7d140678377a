//! Declaring, deleting and binding, and what is refused.

mod common;

use common::*;
use tidings_broker_core::*;

#[test]
fn exchanges_are_declared_once_and_compared_afterwards() {
    let mut rig = Rig::default();
    rig.try_exchange("x", "topic", "da alternate-exchange=y")
        .expect("declared");
    let mut check =
        |kind, flags, code, words| refused(rig.try_exchange("x", kind, flags), code, words);
    check(
        "fanout",
        "da alternate-exchange=y",
        406,
        "inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'topic'",
    );
    check(
        "topic",
        "a alternate-exchange=y",
        406,
        "inequivalent arg 'durable'",
    );
    check(
        "topic",
        "d alternate-exchange=y",
        406,
        "inequivalent arg 'auto_delete'",
    );
    check(
        "topic",
        "dai alternate-exchange=y",
        406,
        "inequivalent arg 'internal'",
    );
    check("topic", "da", 406, "inequivalent arg 'alternate-exchange'");
    check("nonsense", "da", 406, "unknown exchange type 'nonsense'");
    rig.try_exchange("x", "topic", "da alternate-exchange=y")
        .expect("the same again");
    rig.try_exchange("x", "", "p").expect("it is there");
    refused(
        rig.try_exchange("z", "topic", "p"),
        404,
        "no exchange 'z' in vhost '/'",
    );
    refused(
        rig.try_exchange("amq.mine", "topic", ""),
        403,
        "reserved prefix 'amq.*'",
    );
    refused(rig.try_exchange("", "direct", "d"), 403, "default exchange");
    refused(
        rig.try_exchange("w", "direct", " alternate-exchange=1"),
        406,
        "alternate-exchange",
    );
    for (name, kind) in [
        ("amq.direct", "direct"),
        ("amq.match", "headers"),
        ("amq.topic", "topic"),
    ] {
        rig.try_exchange(name, kind, "d")
            .expect("it is predeclared");
    }
}

#[test]
fn exchanges_go_when_asked_or_with_their_last_binding() {
    let mut rig = Rig::default();
    rig.try_exchange("auto", "fanout", "a").expect("declared");
    rig.try_exchange("before", "fanout", "a").expect("declared");
    rig.bind_exchange("before", "auto", "");
    rig.queue("q", "");
    rig.bind("auto", "q", "1");
    rig.bind("auto", "q", "2");
    refused(
        rig.broker.delete_exchange(b"auto", true, &mut rig.out),
        406,
        "in use",
    );
    rig.unbind("auto", "q", "1");
    rig.try_exchange("auto", "", "p")
        .expect("one binding is left");
    rig.unbind("auto", "q", "2");
    refused(rig.try_exchange("auto", "", "p"), 404, "auto");
    refused(rig.try_exchange("before", "", "p"), 404, "before");
    for name in ["amq.direct", "amq.rabbitmq.trace"] {
        refused(
            rig.broker
                .delete_exchange(name.as_bytes(), false, &mut rig.out),
            403,
            "system",
        );
    }
    refused(
        rig.broker.delete_exchange(b"", false, &mut rig.out),
        403,
        "default exchange",
    );
    rig.broker
        .delete_exchange(b"never", false, &mut rig.out)
        .expect("it is not there anyway");
    assert_eq!(rig.broker.bindings().count(), 0);
}

#[test]
fn queues_are_declared_once_and_compared_afterwards() {
    let mut rig = Rig::default();
    rig.try_queue("q", "d x-message-ttl=5,x-max-length=3")
        .expect("declared");
    rig.send("q", &["one", "two"]);
    let again = rig
        .try_queue("q", "d x-max-length=3,x-message-ttl=5,x-unknown=1")
        .expect("the same");
    assert_eq!(
        again,
        QueueDeclared {
            name: bytes("q"),
            messages: 2,
            consumers: 0
        }
    );
    let mut check = |flags, words| refused(rig.try_queue("q", flags), 406, words);
    check(
        " x-message-ttl=5,x-max-length=3",
        "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'",
    );
    check(
        "da x-message-ttl=5,x-max-length=3",
        "inequivalent arg 'auto_delete'",
    );
    check(
        "d x-max-length=3",
        "inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but current is the value '5'",
    );
    check("d x-message-ttl=6,x-max-length=3", "received the value '6'");
    check(
        "d x-message-ttl=5,x-max-length=3,x-queue-type=quorum",
        "inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the value 'quorum' but current is none",
    );
    check(
        "d x-message-ttl=5,x-max-length=3,x-expires=1",
        "inequivalent arg 'x-expires'",
    );
    refused(
        rig.try_queue("q", "dx x-message-ttl=5,x-max-length=3"),
        405,
        "RESOURCE_LOCKED",
    );
    refused(
        rig.try_queue("none", "p"),
        404,
        "NOT_FOUND - no queue 'none' in vhost '/'",
    );
    refused(
        rig.try_queue("amq.mine", ""),
        403,
        "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
    );
    assert_eq!(rig.try_queue("q", "p").expect("it is there").messages, 2);
    // No type and the classic one are the same, whichever was said first.
    let classic = "d x-message-ttl=5,x-max-length=3,x-queue-type=classic";
    assert_eq!(rig.try_queue("q", classic).expect("the same").messages, 2);
    rig.try_queue("c", "d x-queue-type=classic").expect("new");
    rig.try_queue("c", "d").expect("the same");
}

#[test]
fn arguments_of_queues_are_checked_before_anything_is_made() {
    #[track_caller]
    fn check(flags: &str, code: u16, words: &str) {
        let mut rig = Rig::default();
        refused(rig.try_queue("q", flags), code, words);
        assert!(!rig.has_queue("q") && rig.out.is_empty());
    }
    check(
        "d x-message-ttl=-1",
        406,
        "invalid arg 'x-message-ttl' for queue 'q' in vhost '/'",
    );
    check("d x-message-ttl=soon", 406, "it must be an integer");
    check("d x-message-ttl=4294967296", 406, "too large");
    check("d x-expires=0", 406, "it must be positive");
    check("d x-max-length=-1", 406, "x-max-length");
    check("d x-max-length-bytes=much", 406, "x-max-length-bytes");
    check("d x-max-priority=256", 406, "x-max-priority");
    check("d x-overflow=explode", 406, "x-overflow");
    check("d x-dead-letter-exchange=5", 406, "it must be a string");
    check(
        "d x-dead-letter-routing-key=k",
        406,
        "routing_key_but_no_dlx_defined",
    );
    check("d x-single-active-consumer=1", 406, "it must be a boolean");
    check("d x-queue-type=circular", 406, "x-queue-type");
    check("d x-queue-type=stream", 540, "no streams");
    check(" x-queue-type=quorum", 406, "non-durable");
    check("dx x-queue-type=quorum", 406, "exclusive");
    check("d x-consumer-timeout=1000", 406, "no consumer timeouts");
    check("d x-max-age=1h", 406, "only streams");
    let mut rig = Rig::default();
    rig.try_queue(
        "q",
        "d x-queue-mode=lazy,x-queue-version=2,x-queue-type=classic,x-mine=1,x-max-priority=255",
    )
    .expect("all fine");
}

#[test]
fn an_exclusive_queue_belongs_to_its_connection_and_goes_with_it() {
    let mut rig = Rig::default();
    let (mine, other) = (rig.open(2, 1), rig.open(3, 1));
    rig.try_queue_on(mine, "q", "dx").expect("declared");
    rig.try_queue_on(mine, "q", "dx").expect("its own");
    refused(
        rig.try_queue_on(mine, "q", "d"),
        405,
        "RESOURCE_LOCKED - cannot obtain exclusive access",
    );
    refused(
        rig.try_queue_on(other, "q", "p"),
        405,
        "locked queue 'q' in vhost '/'",
    );
    refused(rig.try_consume(other, "q", "c", "", ""), 405, "locked");
    let out = &mut rig.out;
    refused(
        rig.broker.get(other, b"q", true, rig.now, out),
        405,
        "locked",
    );
    refused(rig.broker.purge_queue(other, b"q", out), 405, "locked");
    refused(
        rig.broker.delete_queue(other, b"q", false, false, out),
        405,
        "locked",
    );
    let binding = Rig::binding("amq.direct", "q", "k", "");
    refused(
        rig.broker.bind_queue(other, binding.clone(), out),
        405,
        "locked",
    );
    rig.broker.bind_queue(mine, binding, out).expect("its own");
    assert_eq!(
        rig.publish("", "q", "m").queues,
        1,
        "anybody may publish to it"
    );
    rig.broker
        .close_connection(ConnectionId(3), rig.now, &mut rig.out);
    assert!(rig.has_queue("q"));
    rig.broker
        .close_connection(ConnectionId(2), rig.now, &mut rig.out);
    assert!(!rig.has_queue("q"));
    rig.effects();
    assert!(
        rig.records.is_empty(),
        "nothing of it was to be stored: {:?}",
        rig.records
    );
}

#[test]
fn a_queue_without_a_name_gets_one_and_an_empty_name_means_it_afterwards() {
    let mut rig = Rig::default();
    refused(
        rig.broker.purge_queue(rig.channel, b"", &mut rig.out),
        404,
        "no previously declared queue",
    );
    let name = rig.try_queue("", "x").expect("declared").name;
    let text = std::str::from_utf8(&name).expect("text").to_owned();
    assert!(text.starts_with("amq.gen-") && text.len() == 30, "{text}");
    assert_ne!(rig.try_queue("", "x").expect("declared").name, name);
    assert_eq!(
        rig.try_queue(&text, "x")
            .expect("redeclared by its owner")
            .name,
        name
    );
    rig.bind("amq.direct", "", "");
    assert_eq!(
        rig.publish("amq.direct", &text, "m").queues,
        1,
        "an empty key means its name then"
    );
    assert_eq!(
        rig.broker.purge_queue(rig.channel, b"", &mut rig.out),
        Ok(1)
    );
    assert_eq!(
        rig.broker
            .delete_queue(rig.channel, b"", false, false, &mut rig.out),
        Ok(0)
    );
}

#[test]
fn queues_are_deleted_only_as_far_as_the_conditions_allow() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.send("q", &["m", "n"]);
    let (channel, other) = (rig.channel, rig.open(2, 7));
    let delete = |rig: &mut Rig, unused, empty| {
        rig.broker
            .delete_queue(channel, b"q", unused, empty, &mut rig.out)
    };
    refused(
        delete(&mut rig, false, true),
        406,
        "queue 'q' in vhost '/' not empty",
    );
    rig.qos(other, 1, false);
    rig.consume(other, "q", "c");
    refused(
        delete(&mut rig, true, false),
        406,
        "queue 'q' in vhost '/' in use",
    );
    rig.seen();
    assert_eq!(delete(&mut rig, false, false), Ok(1));
    assert_eq!(rig.seen(), ["c cancelled"]);
    assert_eq!(
        delete(&mut rig, true, true),
        Ok(0),
        "deleting again is fine"
    );
    rig.ack(other, 1, false);
    refused(
        rig.broker.ack(other, 1, false, rig.now, &mut rig.out),
        406,
        "unknown delivery tag 1",
    );
}

#[test]
fn bindings_are_kept_once_and_need_both_ends() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    rig.bind("amq.topic", "q", "k");
    rig.bind("amq.topic", "q", "k");
    assert_eq!(rig.broker.bindings().count(), 1);
    let bound = rig.broker.bindings().next().expect("one");
    assert_eq!(
        (&bound.source[..], &bound.destination[..]),
        (&b"amq.topic"[..], &b"q"[..])
    );
    rig.unbind("amq.topic", "q", "k");
    rig.unbind("amq.topic", "q", "k");
    assert_eq!(rig.broker.bindings().count(), 0);
    let channel = rig.channel;
    let mut bind = |source, queue| {
        rig.broker
            .bind_queue(channel, Rig::binding(source, queue, "", ""), &mut rig.out)
    };
    refused(bind("none", "q"), 404, "no exchange 'none'");
    refused(bind("amq.topic", "none"), 404, "no queue 'none'");
    refused(bind("", "q"), 403, "default exchange");
    let mut unbind = |source, queue| {
        rig.broker
            .unbind_queue(channel, Rig::binding(source, queue, "", ""), &mut rig.out)
    };
    refused(unbind("none", "q"), 404, "no exchange 'none'");
    refused(unbind("amq.topic", "none"), 404, "no queue 'none'");
}

#[test]
fn a_closed_channel_is_refused_and_never_another_one() {
    let mut rig = Rig::default();
    rig.queue("q", "");
    let channel = rig.open(2, 1);
    rig.broker.close_channel(channel, rig.now, &mut rig.out);
    let successor = rig.open(2, 1);
    assert_ne!(channel, successor);
    refused(
        rig.try_consume(channel, "q", "c", "", ""),
        504,
        "CHANNEL_ERROR",
    );
    refused(
        rig.broker.get(channel, b"q", true, rig.now, &mut rig.out),
        504,
        "not open",
    );
    rig.broker.close_channel(channel, rig.now, &mut rig.out);
    rig.consume(successor, "q", "c");
}
