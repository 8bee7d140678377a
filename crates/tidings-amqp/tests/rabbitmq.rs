//! The transport on RabbitMQ.

mod behaviour;
// Each of the two uses a part of it.
#[allow(dead_code)]
mod versions;

use std::time::Duration;

use behaviour::{
    behaviours, connect, delays, failures, groups, letters, next, processes, publish_all,
    subscribe, to_queue, topology, unique, within,
};
use futures_util::StreamExt;
use tidings_amqp::Amqp;
use tidings_core::{Settlement, Subscription, Transport, dead_letter_queue};
use tidings_testing::foreign::workspace;
use tidings_testing::servers::{RabbitMq, rabbitmq_url};
use tokio::time::{Instant, timeout};

behaviours! {
    of crate::behaviour, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    a_topic_reaches_each_queue_once_and_in_order
    what_no_queue_wants_is_named_among_thousands
    one_id_to_two_destinations_has_two_outcomes
    many_callers_publish_at_once
    a_large_body_comes_back_whole
    a_retry_comes_back_with_its_history
    acknowledgements_out_of_order_settle_what_they_name
    a_dropped_subscription_gives_back_what_it_did_not_hand_out
    refusals_say_what_to_do
}

behaviours! {
    of crate::behaviour::failures, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    a_cut_connection_is_mended_and_nothing_is_lost
    who_waits_for_a_confirm_when_the_connection_breaks_is_told
    a_broker_that_is_not_there_yet_is_waited_for
    a_deleted_queue_is_declared_again_and_subscribed
    a_deleted_topic_is_declared_again
    what_cannot_be_declared_again_stops_nothing_else
    a_foreign_message_is_copied_as_it_came
}

behaviours! {
    of crate::behaviour::settling, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    what_is_requeued_or_dropped_comes_again_at_once
    a_queue_that_counts_deliveries_says_how_many_there_were
    a_dead_letter_waits_for_room_in_its_queue
    a_refusal_is_never_overtaken_by_an_acknowledgement
    a_foreign_message_is_read_as_what_it_says_it_is
    what_amqp_cannot_carry_harms_nothing_else
}

behaviours! {
    of crate::behaviour::letters, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    queues_of_dead_letters_are_classic
    queues_of_dead_letters_that_are_there_are_used_as_they_are
    queues_of_consumers_that_are_there_are_used_as_they_are
    a_queue_that_loses_dead_letters_is_refused
    looking_uses_up_nothing_whatever_type_queues_have
}

behaviours! {
    of crate::behaviour::types, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    new_queues_are_of_the_type_that_the_url_says
    queues_of_another_type_stay_as_they_are
}

behaviours! {
    of crate::behaviour::looking, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    a_look_says_how_full_queues_are_and_changes_nothing
}

behaviours! {
    of crate::behaviour::delays, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    all_consumers_wait_on_one_ladder_and_keep_their_order
    a_retry_whose_queue_was_deleted_is_kept_and_holds_up_nobody
    a_failure_that_passes_is_not_a_dead_letter_while_its_delay_is_missing
    what_an_earlier_version_left_waiting_comes_back
}

behaviours! {
    of crate::behaviour::groups, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    a_partition_changes_hands_under_load
    what_was_settled_before_a_stream_is_dropped_stays_settled
    many_crashes_lose_nothing_and_keep_the_order
    many_crashes_with_all_out_keep_the_order
    what_was_given_back_alone_keeps_its_place
    a_queue_that_is_no_partition_is_refused
    a_queue_that_was_there_before_its_group_is_refused
    others_of_a_topic_see_no_difference
    a_deleted_partition_is_declared_again
    a_command_finds_its_group_whenever_that_comes
    a_cut_connection_leaves_stale_deliveries_and_goes_on
}

behaviours! {
    of crate::behaviour::processes, on async { rabbitmq_url() };
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    a_killed_consumer_leaves_its_partition_in_order
    a_frozen_consumer_wakes_up_with_stale_deliveries
}

/// The same where a service makes quorum queues, as it does on a cluster.
mod quorum {
    use crate::behaviour::{behaviours, conformance};
    use tidings_testing::servers::rabbitmq_url;

    fn url() -> String {
        format!("{}/?queues=quorum", rabbitmq_url())
    }

    behaviours! {
        of crate::behaviour, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        a_topic_reaches_each_queue_once_and_in_order
        many_callers_publish_at_once
        a_retry_comes_back_with_its_history
        a_dropped_subscription_gives_back_what_it_did_not_hand_out
    }

    behaviours! {
        of crate::behaviour::failures, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        a_cut_connection_is_mended_and_nothing_is_lost
        a_deleted_queue_is_declared_again_and_subscribed
        a_foreign_message_is_copied_as_it_came
    }

    behaviours! {
        of crate::behaviour::settling, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        what_is_requeued_or_dropped_comes_again_at_once
        a_dead_letter_waits_for_room_in_its_queue
        a_refusal_is_never_overtaken_by_an_acknowledgement
    }

    behaviours! {
        of crate::behaviour::letters, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        queues_of_dead_letters_that_are_there_are_used_as_they_are
        queues_of_consumers_that_are_there_are_used_as_they_are
        a_queue_that_loses_dead_letters_is_refused
        looking_uses_up_nothing_whatever_type_queues_have
    }

    behaviours! {
        of crate::behaviour::groups, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        a_partition_of_a_quorum_queue_changes_hands_under_load
        what_was_settled_before_a_stream_is_dropped_stays_settled
        many_crashes_with_all_out_keep_the_order
        what_was_given_back_alone_keeps_its_place
        a_deleted_partition_is_declared_again
        a_cut_connection_leaves_stale_deliveries_and_goes_on
    }

    behaviours! {
        of crate::behaviour::processes, on async { url() };
        #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
        a_killed_consumer_leaves_its_partition_in_order
        a_frozen_consumer_wakes_up_with_stale_deliveries
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: run `cargo xtask test`"]
    async fn it_keeps_the_contract_of_a_transport() {
        conformance(&url()).await;
    }
}

/// Not a test, but the process that another test kills. Does nothing unless that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_of_a_test() {
    processes::consumer_of_a_test().await;
}

/// One that is killed and comes back with what was on its disk. It blocks the thread of its test,
/// but not those that the transport runs on.
struct Killed(RabbitMq);

impl failures::Server for Killed {
    fn url(&self) -> String {
        self.0.url()
    }

    async fn stop(&mut self) {
        self.0.kill9();
    }

    async fn start(&mut self) {
        self.0.restart().expect("it starts again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_restart_of_the_broker_loses_nothing_and_needs_nobody() {
    let server = Killed(RabbitMq::start().expect("it starts"));
    failures::a_restart_of_the_broker_loses_nothing_and_needs_nobody(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_killed_broker_keeps_the_retries_that_wait() {
    let server = Killed(RabbitMq::start().expect("it starts"));
    delays::a_killed_broker_keeps_the_retries_that_wait(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_killed_broker_keeps_the_order_of_its_partitions() {
    let server = Killed(RabbitMq::start().expect("it starts"));
    groups::a_killed_broker_keeps_the_order_of_its_partitions(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn it_keeps_the_contract_of_a_transport() {
    behaviour::conformance(&rabbitmq_url()).await;
}

/// A RabbitMQ that takes only clients with a certificate of its authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_client_shows_its_certificate_to_a_broker_that_asks_for_one() {
    let tls = workspace().join("crates/tidings-amqp/tests/tls");
    let file = |name: &str| tls.join(name);
    let (authority, certificate) = (file("authority.pem"), file("certificate.pem"));
    let server = RabbitMq::start_with_tls(&authority, &certificate, &file("key.pem"));
    let server = server.expect("it starts");
    let (port, authority) = (server.tls_port().expect("it has one"), authority.display());
    let url = format!("amqps://guest:guest@localhost:{port}?cacertfile={authority}");

    let (shown, key) = (file("client.pem"), file("client-key.pem"));
    let shown = format!(
        "{url}&certfile={}&keyfile={}",
        shown.display(),
        key.display()
    );
    let amqp = connect(&shown).await;
    let queue = unique("queue");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
    next(&mut subscribe(&amqp, &queue, 1).await).await;
    amqp.close().await;

    for refused in [
        url.clone(),
        // A server's: it says itself that it is none of a client.
        format!(
            "{url}&certfile={}&keyfile={}",
            certificate.display(),
            file("key.pem").display()
        ),
    ] {
        let connecting = within("an answer", Amqp::connect(&refused));
        let error = connecting.await.expect_err("it is not taken").to_string();
        assert!(error.contains("`certfile=...`"), "{error}");
    }
}

/// The table is in docs/guide/rabbitmq.md; what it says of clusters is in `cluster.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn versions_differ_as_the_guide_says() {
    let server = RabbitMq::start().expect("it starts");
    versions::headers_come_as_the_guide_says(server.url()).await;
    versions::what_is_given_back_often_is_where_the_guide_says(server.url()).await;
}

/// The virtual host makes quorum queues of what does not say its type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn dead_letters_are_safe_where_queues_are_quorum_queues() {
    let server = RabbitMq::start().expect("it starts");
    let ctl = |args: &[&str]| server.ctl(args).expect("it does it");
    ctl(&["add_vhost", "quorum", "--default-queue-type", "quorum"]);
    ctl(&["set_permissions", "-p", "quorum", "guest", ".*", ".*", ".*"]);
    let limit = r#"{"delivery-limit": 3}"#;
    ctl(&[
        "set_policy",
        "-p",
        "quorum",
        "limit",
        "limited",
        limit,
        "--apply-to",
        "queues",
    ]);
    let url = format!("{}/quorum", server.url());
    letters::queues_of_dead_letters_that_are_there_are_used_as_they_are(url.clone()).await;
    letters::queues_of_consumers_that_are_there_are_used_as_they_are(url.clone()).await;
    letters::looking_uses_up_nothing_whatever_type_queues_have(url.clone()).await;
    let queue = what_is_handed_out_too_often_is_a_dead_letter(url).await;
    let types = ctl(&["list_queues", "-p", "quorum", "name", "type"]);
    let type_of = |queue: &str| {
        let mut lines = types.lines().map(|line| line.split_whitespace());
        lines.find_map(|mut line| (line.next() == Some(queue)).then(|| line.next()))
    };
    assert_eq!(type_of(&queue), Some(Some("quorum")), "{types}");
    let dead = dead_letter_queue(&queue);
    assert_eq!(type_of(&dead), Some(Some("classic")), "{types}");
}

/// A queue that counts deliveries, with a limit of three: what a consumer gives back more often is not lost, but a dead
/// letter that says why. Returns the queue.
async fn what_is_handed_out_too_often_is_a_dead_letter(url: String) -> String {
    let amqp = connect(&url).await;
    let queue = unique("limited");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    publish_all(&amqp, vec![to_queue(&queue, "1")]).await;
    let subscription = Subscription::new(queue.clone());
    let mut deliveries = amqp.subscribe(subscription).await.expect("subscribed");
    let dead = dead_letter_queue(&queue);
    let access = amqp.dead_letter_access().expect("it has one");
    let deadline = Instant::now() + Duration::from_secs(20);
    while access.count(&dead).await.expect("it counts") == 0 {
        assert!(Instant::now() < deadline, "it is nowhere");
        let soon = Duration::from_millis(200);
        if let Ok(Some(delivery)) = timeout(soon, deliveries.next()).await {
            let delivery = delivery.expect("a delivery");
            delivery.settle(Settlement::Requeue).await.expect("settled");
        }
    }
    let mut held = access.hold(&dead).await.expect("it is held");
    let letters = held.next(10).await.expect("it is read");
    let why = letters[0].reason.as_deref();
    assert_eq!(why, Some("the broker moved it: delivery_limit"));
    assert_eq!(letters[0].consumer.as_deref(), Some(&*queue));
    held.release().await.expect("it is back");
    queue
}
