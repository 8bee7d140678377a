//! Queues of dead letters as they are declared: classic ones, and those that were there before.

use tidings_amqp::{Amqp, PieceMade, PieceState};
use tidings_core::{Group, Topology, Transport, dead_letter_queue};
use tidings_wire::{Method, QueueDeclare, Table, Value, reply};

use super::{Raw, connect, publish_all, to_queue, topology, unique};

/// More often than a quorum queue of RabbitMQ 4 hands out a message.
const LOOKS: usize = 30;

const QUORUM: [(&str, &str); 1] = [("x-queue-type", "quorum")];

fn arguments(words: &[(&str, &str)]) -> Vec<(&'static str, Value)> {
    let named = words.iter().map(|(name, value)| {
        let name: &'static str = (*name).to_owned().leak();
        (name, Value::from(*value))
    });
    named.collect()
}

/// What the broker answers to a declaration with another type.
async fn answer_to_quorum(url: &str, queue: &str) -> String {
    let said = answer_to(url, queue, &arguments(&QUORUM)).await;
    said.expect_err("it differs")
}

/// Whether a queue is there with these arguments; it is made if it is not there at all.
pub(super) async fn answer_to(
    url: &str,
    queue: &str,
    arguments: &[(&'static str, Value)],
) -> Result<(), String> {
    let mut table = Table::builder();
    for (name, value) in arguments {
        table.push_value(name, value).expect("a short name");
    }
    let declare = QueueDeclare {
        queue: queue.try_into().expect("a short name"),
        durable: true,
        arguments: table.build(),
        ..QueueDeclare::default()
    };
    match Raw::connect(url).await.call(1, &declare).await {
        Method::ChannelClose(close) => {
            assert_eq!(close.reply_code, reply::PRECONDITION_FAILED);
            Err(close.reply_text.to_str_lossy().into_owned())
        }
        Method::QueueDeclareOk(_) => Ok(()),
        other => panic!("unexpected: {other:?}"),
    }
}

/// Those that a service makes; and whoever declares them without a type, as older versions did, may.
pub(crate) async fn queues_of_dead_letters_are_classic(url: String) {
    let amqp = connect(&url).await;
    let (queue, group) = (unique("queue"), unique("group"));
    let partitions = std::num::NonZeroU16::MIN;
    let topology = topology(&queue, &[]).group(Group::new(group.clone(), partitions));
    amqp.declare(&topology).await.expect("declared");
    for consumer in [queue, group] {
        let dead = dead_letter_queue(&consumer);
        let said = answer_to_quorum(&url, &dead).await;
        assert!(said.contains("current is"), "{said}");
        assert!(said.contains("classic"), "{said}");
        Raw::connect(&url).await.declare_queue(&dead, &[]).await;
    }
}

/// An older version left queues of dead letters without a type, and some that are quorum queues: the
/// service starts, what is in there can be looked at and sent back, and they stay as they are.
pub(crate) async fn queues_of_dead_letters_that_are_there_are_used_as_they_are(url: String) {
    let mut raw = Raw::connect(&url).await;
    let (plain, quorum, group) = (unique("plain"), unique("quorum"), unique("group"));
    let other = unique("other");
    let counting = arguments(&QUORUM);
    raw.declare_queue(&dead_letter_queue(&plain), &[]).await;
    for consumer in [&quorum, &group] {
        let dead = dead_letter_queue(consumer);
        raw.declare_queue(&dead, &counting).await;
    }
    let amqp = connect(&url).await;
    let partitions = std::num::NonZeroU16::MIN;
    let queues = [&plain, &quorum, &other];
    let wanted = queues.iter().fold(Topology::new(), |wanted, queue| {
        wanted.queue(tidings_core::Queue::new((*queue).clone()))
    });
    let wanted = wanted.group(Group::new(group.clone(), partitions));
    is_used_as_it_is(&amqp, &wanted).await;
    let access = amqp.dead_letter_access().expect("it has one");
    for consumer in [&plain, &quorum, &group, &other] {
        let dead = dead_letter_queue(consumer);
        publish_all(&amqp, vec![to_queue(&dead, "1")]).await;
        let mut held = access.hold(&dead).await.expect("it is held");
        let letters = held.next(10).await.expect("it is read");
        assert_eq!(letters.len(), 1, "{consumer}");
        held.release().await.expect("it is back");
        assert_eq!(access.count(&dead).await.expect("it counts"), 1);
        let envelopes = letters.into_iter().map(|letter| letter.envelope).collect();
        for outcome in access.send_back(consumer, envelopes).await {
            outcome.expect("it is sent back");
        }
    }
    for consumer in [&quorum, &group] {
        Raw::connect(&url)
            .await
            .declare_queue(&dead_letter_queue(consumer), &counting)
            .await;
    }
}

/// Everything is declared, also once more as after a restart; and an operator is told the same: nothing is
/// missing, and nothing is in the way.
pub(super) async fn is_used_as_it_is(amqp: &Amqp, wanted: &Topology) {
    amqp.declare(wanted).await.expect("it is declared");
    amqp.declare(wanted).await.expect("it is declared");
    for (piece, state) in amqp.inspect(wanted).await.expect("it looks") {
        let is_there = !matches!(state, PieceState::Missing | PieceState::Differs(_));
        assert!(is_there, "{piece:?}: {state:?}");
    }
    for (piece, made) in amqp.make(wanted).await.expect("it looks") {
        let is_kept = matches!(made, PieceMade::Kept | PieceMade::Ensured);
        assert!(is_kept, "{piece:?}: {made:?}");
    }
}

/// An operator has made a consumer's queues as quorum queues, or the virtual host does so by default since: the service
/// uses what is there, if it differs in nothing else.
pub(crate) async fn queues_of_consumers_that_are_there_are_used_as_they_are(url: String) {
    let mut raw = Raw::connect(&url).await;
    let (quorum, classic) = (unique("quorum"), unique("classic"));
    let group = Group::new(unique("group"), std::num::NonZeroU16::MIN);
    let declare = async |raw: &mut Raw, queue: &str, dead: &str, queue_type: &str, single: bool| {
        let mut words = vec![("x-dead-letter-exchange", ""), ("x-queue-type", queue_type)];
        let dead = dead_letter_queue(dead);
        words.push(("x-dead-letter-routing-key", &dead));
        let mut arguments = arguments(&words);
        if single {
            arguments.push(("x-single-active-consumer", Value::Bool(true)));
        }
        raw.declare_queue(queue, &arguments).await;
    };
    declare(&mut raw, &quorum, &quorum, "quorum", false).await;
    declare(&mut raw, &classic, &classic, "classic", false).await;
    declare(&mut raw, &group.partition(0), &group.name, "quorum", true).await;
    let amqp = connect(&url).await;
    let wanted = [&quorum, &classic]
        .into_iter()
        .fold(Topology::new(), |wanted, queue| {
            wanted.queue(tidings_core::Queue::new(queue.clone()))
        });
    let wanted = wanted.group(group);
    is_used_as_it_is(&amqp, &wanted).await;
}

/// A quorum queue whose dead letters would go nowhere is not one that a service could use.
pub(crate) async fn a_queue_that_loses_dead_letters_is_refused(url: String) {
    let mut raw = Raw::connect(&url).await;
    let (amqp, other) = (connect(&url).await, unique("other"));
    raw.declare_queue(&other, &arguments(&QUORUM)).await;
    let wanted = topology(&other, &[]);
    let refused = amqp.declare(&wanted).await.expect_err("it differs");
    let said = refused.to_string();
    assert!(said.contains("x-dead-letter-exchange"), "{said}");
    let states = amqp.inspect(&wanted).await.expect("it looks");
    let differs = |(piece, state): &(tidings_amqp::Piece, PieceState)| {
        piece.name == other && matches!(state, PieceState::Differs(_))
    };
    assert!(states.iter().any(differs), "{states:?}");
}

/// In a virtual host whose queues are quorum queues unless they say otherwise, looking uses up nothing.
pub(crate) async fn looking_uses_up_nothing_whatever_type_queues_have(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let dead = dead_letter_queue(&queue);
    let ids = ["1", "2", "3"];
    publish_all(&amqp, ids.map(|id| to_queue(&dead, id)).to_vec()).await;
    let access = amqp.dead_letter_access().expect("it has one");
    for look in 0..LOOKS {
        let mut held = access.hold(&dead).await.expect("it is held");
        let letters = held.next(10).await.expect("they are read");
        let seen = letters
            .iter()
            .filter_map(|it| it.envelope.id.as_ref())
            .map(|it| it.as_str());
        assert!(seen.eq(ids), "look {look}");
        held.release().await.expect("they are back");
    }
}
