//! The type of queues that a service makes (`?queues=`), and what it does with those that are there.

use std::num::NonZeroU16;

use tidings_core::{Group, Settlement, Topology, Transport, dead_letter_queue};
use tidings_wire::Value;

use super::{
    connect, id,
    letters::{answer_to, is_used_as_it_is},
    next, publish_all, subscribe, to_queue, topology, unique,
};

fn with_option(url: &str, option: &str) -> String {
    match url.contains("://") && url.matches('/').count() == 2 {
        true => format!("{url}/?queues={option}"),
        false => format!("{url}?queues={option}"),
    }
}

/// The type of a consumer's queue whose dead letters are beside `letters_of`.
async fn type_of(url: &str, queue: &str, letters_of: &str) -> &'static str {
    let dead = dead_letter_queue(letters_of);
    let mut arguments = vec![
        ("x-dead-letter-exchange", Value::from("")),
        ("x-dead-letter-routing-key", Value::from(&*dead)),
    ];
    if queue != letters_of {
        arguments.push(("x-single-active-consumer", Value::Bool(true)));
    }
    let of_type = |queue_type| ("x-queue-type", Value::from(queue_type));
    let classic = [&*arguments, &[of_type("classic")]].concat();
    let limit = ("x-delivery-limit", Value::I32(1_000_000_000));
    let quorum = [&*arguments, &[of_type("quorum"), limit]].concat();
    let answers = (
        answer_to(url, queue, &classic).await,
        answer_to(url, queue, &quorum).await,
    );
    match answers {
        (Ok(()), Err(_)) => "classic",
        (Err(_), Ok(())) => "quorum",
        neither => panic!("{queue}: {neither:?}"),
    }
}

async fn wanted() -> (String, Group, Topology) {
    let (queue, group) = (unique("queue"), unique("group"));
    let group = Group::new(group, NonZeroU16::MIN);
    let wanted = topology(&queue, &[]).group(group.clone());
    (queue, group, wanted)
}

pub(crate) async fn new_queues_are_of_the_type_that_the_url_says(url: String) {
    for option in ["quorum", "classic"] {
        let amqp = connect(&with_option(&url, option)).await;
        let (queue, group, wanted) = wanted().await;
        is_used_as_it_is_after_it_is_made(&amqp, &wanted).await;
        let consumers = [queue.clone(), group.partition(0), group.any()];
        for consumer in consumers {
            let letters_of = [&*queue, &*group.name][usize::from(consumer != queue)];
            assert_eq!(
                type_of(&url, &consumer, letters_of).await,
                option,
                "{consumer}"
            );
        }
        // A look puts letters back in their places, which only classic queues do.
        for letters in [&queue, &*group.name] {
            let classic = [("x-queue-type", Value::from("classic"))];
            let answer = answer_to(&url, &dead_letter_queue(letters), &classic).await;
            answer.expect("it is a classic queue");
        }
    }
}

async fn is_used_as_it_is_after_it_is_made(amqp: &tidings_amqp::Amqp, wanted: &Topology) {
    amqp.declare(wanted).await.expect("declared");
    is_used_as_it_is(amqp, wanted).await;
}

/// A service goes over to a cluster's URL, and back: nothing that is there is made anew or refused, and what is in it is
/// received.
pub(crate) async fn queues_of_another_type_stay_as_they_are(url: String) {
    let plain = url.clone();
    let options = [
        plain,
        with_option(&url, "quorum"),
        with_option(&url, "classic"),
    ];
    for first in &options {
        let (queue, group, wanted) = wanted().await;
        let amqp = connect(first).await;
        amqp.declare(&wanted).await.expect("declared");
        publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
        let consumers = [queue.clone(), group.partition(0)];
        let letters_of = [&*queue, &*group.name];
        let before = [
            type_of(&url, &consumers[0], letters_of[0]).await,
            type_of(&url, &consumers[1], letters_of[1]).await,
        ];
        for second in &options {
            let amqp = connect(second).await;
            is_used_as_it_is(&amqp, &wanted).await;
            for (at, before) in before.into_iter().enumerate() {
                let now = type_of(&url, &consumers[at], letters_of[at]).await;
                assert_eq!(now, before, "{first} {second}");
            }
            let mut deliveries = subscribe(&amqp, &queue, 1).await;
            let delivery = next(&mut deliveries).await;
            assert_eq!(id(&delivery), "1");
            delivery.settle(Settlement::Requeue).await.expect("settled");
            amqp.close().await;
        }
    }
}
