//! Which queues a message reaches.

mod common;

use common::*;
use tidings_broker_core::*;

/// Binds a queue for each pattern and tells which of them a message with `key` reaches.
fn reached(kind: &str, patterns: &[&str], key: &str) -> Vec<String> {
    let mut rig = Rig::default();
    rig.exchange("x", kind);
    for pattern in patterns {
        rig.queue(&format!("q {pattern}"), "");
        rig.bind("x", &format!("q {pattern}"), pattern);
    }
    rig.publish("x", key, "m");
    let reached = patterns
        .iter()
        .filter(|p| rig.stats(&format!("q {p}")).ready == 1);
    reached.map(|pattern| (*pattern).to_owned()).collect()
}

#[test]
fn each_type_of_exchange_routes_as_it_should() {
    #[track_caller]
    fn check(kind: &str, patterns: &[&str], key: &str, expected: &[&str]) {
        assert_eq!(
            reached(kind, patterns, key),
            expected,
            "{kind} with {key:?}"
        );
    }
    check("direct", &["a", "b", ""], "a", &["a"]);
    check("direct", &["a", "b", ""], "", &[""]);
    check("direct", &["a", "b"], "c", &[]);
    check("fanout", &["a", "b"], "c", &["a", "b"]);
    let patterns = [
        "a.b", "a.*", "a.#", "#", "*", "*.*", "#.b", "a.#.b", "", "#.#", "*.#", "#.a.#",
    ];
    check(
        "topic",
        &patterns,
        "a.b",
        &[
            "a.b", "a.*", "a.#", "#", "*.*", "#.b", "a.#.b", "#.#", "*.#", "#.a.#",
        ],
    );
    check(
        "topic",
        &patterns,
        "a",
        &["a.#", "#", "*", "#.#", "*.#", "#.a.#"],
    );
    check("topic", &patterns, "", &["#", "", "#.#"]);
    check(
        "topic",
        &patterns,
        "a.x.y.b",
        &["a.#", "#", "#.b", "a.#.b", "#.#", "*.#", "#.a.#"],
    );
    check(
        "topic",
        &patterns,
        "b.a",
        &["#", "*.*", "#.#", "*.#", "#.a.#"],
    );
    check(
        "topic",
        &["a..b", "a.*.b", "a.b"],
        "a..b",
        &["a..b", "a.*.b"],
    );
}

/// The definition of topic matching, as plainly as it can be written.
fn topic_matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) => (0..=key.len()).any(|taken| topic_matches(rest, &key[taken..])),
        (["*", rest @ ..], [_, key @ ..]) => topic_matches(rest, key),
        ([word, rest @ ..], [first, key @ ..]) => word == first && topic_matches(rest, key),
        _ => false,
    }
}

#[test]
fn topics_match_as_defined_while_bindings_come_and_go() {
    let mut random = Random(99);
    let mut rig = Rig::default();
    rig.exchange("x", "topic");
    let mut bound: Vec<String> = Vec::new();
    for round in 0..2000 {
        let mut words = |choices: &[&str]| {
            let count = random.below(5);
            let words: Vec<&str> = (0..count).map(|_| *random.pick(choices)).collect();
            words.join(".")
        };
        let (pattern, key) = (words(&["a", "b", "*", "#"]), words(&["a", "b", "c"]));
        let name = format!("q {pattern}");
        if let Some(at) = bound.iter().position(|other| *other == pattern) {
            rig.unbind("x", &name, &pattern);
            bound.swap_remove(at);
        } else {
            rig.queue(&name, "x-max-length=1");
            rig.bind("x", &name, &pattern);
            bound.push(pattern);
        }
        let published = rig.publish("x", &key, "m");
        let split = |text: &str| -> Vec<String> {
            let words = text.split('.').filter(|_| !text.is_empty());
            words.map(str::to_owned).collect()
        };
        let key_words = split(&key);
        let key_words: Vec<&str> = key_words.iter().map(String::as_str).collect();
        let matching = bound.iter().filter(|pattern| {
            let words = split(pattern);
            topic_matches(
                &words.iter().map(String::as_str).collect::<Vec<_>>(),
                &key_words,
            )
        });
        assert_eq!(
            published.queues,
            matching.count(),
            "round {round}, key {key:?}"
        );
    }
}

#[test]
fn many_hashes_in_a_pattern_cost_no_more_than_few() {
    let mut rig = Rig::default();
    rig.exchange("x", "topic");
    rig.queue("q", "");
    let pattern = ["#"; 60].join(".a.");
    rig.bind("x", "q", &pattern);
    let started = std::time::Instant::now();
    // 127 words, the most a key can have; the textbook recursion would not end in a lifetime.
    let key = ["a"; 127].join(".");
    assert_eq!(rig.publish("x", &key, "m").queues, 1);
    let key = ["b"; 127].join(".");
    assert_eq!(rig.publish("x", &key, "m").queues, 0);
    assert!(
        started.elapsed().as_millis() < 500,
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn headers_match_all_or_any_with_or_without_those_that_begin_with_x() {
    #[track_caller]
    fn check(binding: &str, headers: &str, expected: bool) {
        let mut rig = Rig::default();
        rig.exchange("x", "headers");
        rig.queue("q", "");
        let binding_arguments = Rig::binding("x", "q", "", binding);
        rig.broker
            .bind_queue(rig.channel, binding_arguments, &mut rig.out)
            .expect("bound");
        let message = Message {
            properties: bytes(headers),
            ..Rig::message("x", "", "m")
        };
        let published = rig.publish_message(message).expect("published");
        assert_eq!(
            published.queues == 1,
            expected,
            "{binding:?} and {headers:?}"
        );
    }
    check("a=1,b=2", "a=1,b=2,c=3", true);
    check("a=1,b=2", "a=1", false);
    check("a=1,b=2", "a=1,b=3", false);
    check("x-match=all,a=1", "a=1", true);
    check("x-match=any,a=1,b=2", "b=2", true);
    check("x-match=any,a=1,b=2", "b=1", false);
    check("x-match=any", "a=1", false);
    check("x-match=all", "", true);
    check("a", "a=5", true);
    check("a", "b=5", false);
    check("a=1", "a=one", false);
    check("a=1,x-b=2", "a=1", true);
    check("x-match=all-with-x,a=1,x-b=2", "a=1", false);
    check("x-match=all-with-x,a=1,x-b=2", "a=1,x-b=2", true);
    check("x-match=any,x-b=2", "x-b=2", false);
    check("x-match=any-with-x,x-b=2", "x-b=2", true);
}

#[test]
fn a_headers_binding_that_cannot_match_anything_is_refused() {
    let mut rig = Rig::default();
    rig.exchange("x", "headers");
    rig.queue("q", "");
    let mut bind = |arguments| {
        rig.broker.bind_queue(
            rig.channel,
            Rig::binding("x", "q", "", arguments),
            &mut rig.out,
        )
    };
    refused(bind("x-match=some"), 406, "x-match");
    refused(bind("x-match=1"), 406, "x-match");
}

#[test]
fn exchanges_feed_exchanges_in_cycles_too_and_each_queue_gets_one_copy() {
    let mut rig = Rig::default();
    for name in ["a", "b", "c"] {
        rig.exchange(name, "fanout");
    }
    rig.bind_exchange("a", "b", "");
    rig.bind_exchange("b", "c", "");
    rig.bind_exchange("c", "a", "");
    rig.bind_exchange("a", "a", "");
    rig.queue("q", "");
    for source in ["a", "b", "c"] {
        rig.bind(source, "q", "one");
        rig.bind(source, "q", "two");
    }
    rig.queue("r", "");
    rig.bind("c", "r", "");
    assert_eq!(rig.publish("a", "", "m").queues, 2);
    assert_eq!((rig.stats("q").ready, rig.stats("r").ready), (1, 1));
}

#[test]
fn what_matches_nothing_goes_to_the_alternate_exchange() {
    let mut rig = Rig::default();
    rig.try_exchange("x", "direct", "d alternate-exchange=y")
        .expect("declared");
    rig.try_exchange("y", "direct", "d alternate-exchange=z")
        .expect("declared");
    rig.try_exchange("z", "fanout", "d alternate-exchange=x")
        .expect("declared");
    for (exchange, key) in [("x", "1"), ("y", "2"), ("z", "3")] {
        rig.queue(exchange, "");
        rig.bind(exchange, exchange, key);
    }
    for key in ["1", "2", "9"] {
        assert_eq!(rig.publish("x", key, key).queues, 1);
    }
    assert_eq!(rig.waiting("x"), ["1"]);
    assert_eq!(rig.waiting("y"), ["2"]);
    assert_eq!(rig.waiting("z"), ["9"]);
    rig.unbind("z", "z", "3");
    assert_eq!(
        rig.publish("x", "9", "m").queues,
        0,
        "a cycle of alternates ends"
    );
}

#[test]
fn carbon_copies_reach_further_queues_once() {
    let mut rig = Rig::default();
    for name in ["to", "cc", "bcc"] {
        rig.queue(name, "");
    }
    let cc = [bytes("cc"), bytes("to")];
    let message = Message {
        cc: cc.into(),
        ..Rig::message("", "to", "m")
    };
    let bcc = [bytes("bcc"), bytes("nowhere")];
    let published = rig
        .broker
        .publish(rig.channel, message, &bcc, rig.now, &mut rig.out)
        .expect("published");
    assert_eq!(published.queues, 3);
    for name in ["to", "cc", "bcc"] {
        assert_eq!(rig.stats(name).ready, 1);
    }
}

#[test]
fn a_remembered_route_is_forgotten_when_the_topology_changes() {
    let mut rig = Rig::default();
    rig.exchange("x", "topic");
    rig.queue("q", "");
    assert_eq!(rig.publish("x", "k", "m").queues, 0);
    rig.bind("x", "q", "#");
    assert_eq!(rig.publish("x", "k", "m").queues, 1);
    rig.exchange("y", "topic");
    rig.queue("r", "");
    rig.bind_exchange("x", "y", "k");
    assert_eq!(rig.publish("x", "k", "m").queues, 1);
    rig.bind("y", "r", "k");
    assert_eq!(rig.publish("x", "k", "m").queues, 2);
    rig.broker
        .delete_queue(rig.channel, b"q", false, false, &mut rig.out)
        .expect("deleted");
    assert_eq!(rig.publish("x", "k", "m").queues, 1);
    rig.broker
        .delete_exchange(b"y", false, &mut rig.out)
        .expect("deleted");
    assert_eq!(rig.publish("x", "k", "m").queues, 0);
}

#[test]
fn publishing_to_what_is_not_there_or_internal_is_refused() {
    let mut rig = Rig::default();
    rig.try_exchange("in", "fanout", "i").expect("declared");
    let publish = |rig: &mut Rig, name| rig.publish_message(Rig::message(name, "k", "m"));
    refused(
        publish(&mut rig, "nowhere"),
        404,
        "NOT_FOUND - no exchange 'nowhere' in vhost '/'",
    );
    refused(
        publish(&mut rig, "in"),
        403,
        "cannot publish to internal exchange 'in'",
    );
    refused(rig.broker.check_publish(b"in"), 403, "internal");
    rig.exchange("out", "fanout");
    rig.bind_exchange("out", "in", "");
    rig.queue("q", "");
    rig.bind("in", "q", "");
    assert_eq!(rig.publish("out", "", "m").queues, 1);
}
