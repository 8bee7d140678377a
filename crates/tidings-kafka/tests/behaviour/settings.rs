//! Topics that somebody else made, with settings that keep less than is promised.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use tidings_core::{Transport, TransportError, dead_letter_queue};
use tidings_kafka::PieceState;

use super::*;

/// Has a topic made as somebody else does.
pub(crate) async fn make(url: &str, name: &str, replicas: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, 2, TopicReplication::Fixed(replicas));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let made = admin(url)
        .create_topics([&topic], &AdminOptions::new())
        .await;
    made.expect("an answer")[0].as_ref().expect("it is made");
}

/// The settings of a topic, as Kafka has them.
pub(crate) async fn settings_of(url: &str, name: &str) -> BTreeMap<String, String> {
    let resource = ResourceSpecifier::Topic(name);
    // What is asked of a client that was dropped is never answered.
    let admin = admin(url);
    let answer = admin.describe_configs([&resource], &AdminOptions::new());
    let mut answer = answer.await.expect("an answer");
    let entries = answer.remove(0).expect("it is there").entries.into_iter();
    entries
        .filter_map(|it| Some((it.name, it.value?)))
        .collect()
}

async fn declare(kafka: &Kafka, place: &Place) -> Result<(), TransportError> {
    let queue = Queue::new(place.queue.clone()).topic(place.topic.clone());
    kafka.declare(&Topology::new().queue(queue)).await
}

/// Each is told once, with what to set; a compacted one, which loses messages, is refused.
pub(crate) async fn settings_that_break_a_promise_are_told_or_refused(url: String) {
    let kafka = connect(&url).await;
    for (settings, words) in [
        (("retention.ms", "3600000"), "`retention.ms` to 259200000"),
        (("retention.bytes", "1000000"), "`retention.bytes=-1`"),
        (
            ("unclean.leader.election.enable", "true"),
            "`unclean.leader.election.enable=false`",
        ),
        // Of two partitions that are there, with four in the URL of these tests.
        (
            ("max.message.bytes", "9000000"),
            "2 partitions, and 4 were asked for",
        ),
    ] {
        let place = Place::new();
        make(&url, &place.topic, 1, &[settings]).await;
        let told = || log::told_with(&["TDG-4016", &place.topic, words]);
        for _ in 0..2 {
            declare(&kafka, &place).await.expect("it is used");
            assert_eq!(told(), 1, "{words}");
        }
        assert_eq!(log::told_with(&["TDG-4016", &place.queue]), 0);
        place.publish(&kafka, [1]).await;
    }

    let place = Place::new();
    make(&url, &place.topic, 1, &[("cleanup.policy", "compact")]).await;
    for _ in 0..2 {
        let error = declare(&kafka, &place).await.expect_err("it is refused");
        let said = error.to_string();
        assert!(!error.is_temporary() && said.contains("TDG-4017"), "{said}");
        assert!(
            said.contains(&place.topic) && said.contains("`cleanup.policy=delete`"),
            "{said}"
        );
    }
    // An operator sees the same before a service starts.
    let queue = Queue::new(place.queue.clone()).topic(place.topic.clone());
    let seen = kafka.inspect(&Topology::new().queue(queue)).await;
    for (piece, state) in seen.expect("it is seen") {
        match (&piece.topic, piece.name == place.topic) {
            (None, true) => {
                let PieceState::Differs(why) = state else {
                    panic!("{piece:?}: {state:?}");
                };
                assert!(why.contains("`cleanup.policy=delete`"), "{why}");
            }
            // They are made before topics are looked at.
            (None, false) => assert_eq!(state, PieceState::There, "{piece:?}"),
            (Some(_), _) => assert_eq!(state, PieceState::Missing, "{piece:?}"),
        }
    }
    assert_eq!(log::told_with(&["are not checked"]), 0);
}

/// What the URL asks for is what topics get that are made, and dead letters stay without end.
pub(crate) async fn topics_are_made_with_what_the_url_says(url: String) {
    let options = "retention=86400000&replication=1&min_insync=1";
    let (kafka, place) = (connect_with(&url, options).await, Place::new());
    declare(&kafka, &place).await.expect("it declares");
    let of_topic = settings_of(&url, &place.topic).await;
    assert_eq!(of_topic["retention.ms"], "86400000");
    assert_eq!(of_topic["min.insync.replicas"], "1");
    let dead = dead_letter_queue(&place.queue);
    let of_letters = settings_of(&url, &dead).await;
    assert_eq!(of_letters["retention.ms"], "-1");
    for name in [&place.topic, &place.queue, &dead] {
        assert_eq!(log::told_with(&["TDG-4016", name]), 0, "{name}");
    }
}
