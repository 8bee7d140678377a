//! The transport on a real Kafka.

mod behaviour;

use behaviour::{
    cluster, connect, growing, handing_over, letters, looking, losses, outages, processes, replays,
    settings, transactions,
};
use tidings_testing::servers::{Kafka, KafkaCluster, kafka_url};

/// Each behaviour as a test of its own, with its name.
macro_rules! behaviours {
    (of $module:ident; $($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "needs Kafka: run `cargo xtask test`"]
        async fn $name() {
            $module::$name(kafka_url()).await;
        }
    )*};
}

behaviours! {
    of handing_over;
    what_was_settled_is_not_repeated_while_members_come_and_go
    a_partition_that_goes_waits_for_its_handlers
    a_handler_may_take_longer_than_the_poll_interval
    what_rests_goes_on_after_it_was_elsewhere
}

behaviours! {
    of transactions;
    gaps_that_transactions_leave_hold_nothing_up
}

behaviours! {
    of losses;
    committed_offsets_that_expired_are_told_and_nothing_is_left_out
}

behaviours! {
    of letters;
    what_was_removed_stays_away_when_its_group_is_forgotten
}

behaviours! {
    of growing;
    a_partition_that_is_added_is_received
}

behaviours! {
    of replays;
    a_new_consumer_begins_where_it_is_told
    a_consumer_is_told_again_only_while_it_rests_and_is_to_be_reset
    an_ordered_group_is_told_again_in_its_partitions
}

behaviours! {
    of settings;
    settings_that_break_a_promise_are_told_or_refused
    topics_are_made_with_what_the_url_says
}

behaviours! {
    of processes;
    a_killed_consumer_leaves_what_it_had_not_settled
    a_consumer_that_is_killed_at_once_has_begun_them
    a_frozen_consumer_wakes_up_with_stale_deliveries
}

behaviours! {
    of looking;
    a_look_says_how_full_queues_are_and_changes_nothing
    a_topic_of_dead_letters_with_several_partitions_is_refused
}

/// Not a test, but the process that another test kills. Does nothing unless that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_of_a_test() {
    processes::consumer_of_a_test().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn a_killed_kafka_loses_nothing_and_needs_nobody() {
    let server = Kafka::start().expect("it starts");
    outages::a_killed_kafka_loses_nothing_and_needs_nobody(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn closing_does_not_wait_for_a_kafka_that_is_gone() {
    let server = Kafka::start().expect("it starts");
    outages::closing_does_not_wait_for_a_kafka_that_is_gone(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn a_producer_that_cannot_go_on_is_made_anew() {
    let server = Kafka::start().expect("it starts");
    losses::a_producer_that_cannot_go_on_is_made_anew(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn a_leader_that_dies_mid_batch_loses_nothing() {
    let cluster = KafkaCluster::start(3).expect("it starts");
    cluster::a_leader_that_dies_mid_batch_loses_nothing(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn what_only_the_leader_has_is_not_confirmed() {
    let mut cluster = KafkaCluster::start(3).expect("it starts");
    cluster::copies_that_are_too_few_are_told(&cluster.url()).await;
    cluster::what_only_the_leader_has_is_not_confirmed(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn what_is_not_confirmed_holds_up_nothing_else() {
    let mut cluster = KafkaCluster::start(3).expect("it starts");
    cluster::what_is_not_confirmed_holds_up_nothing_else(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kafka: run `cargo xtask test`"]
async fn it_keeps_the_contract_of_a_transport() {
    let url = kafka_url();
    tidings_testing::transport::conformance(async || connect(&url).await).await;
}

#[test]
#[cfg(not(feature = "tls"))]
fn a_build_without_tls_says_how_to_get_it() {
    for url in ["kafkas://h", "kafka://u:p@h?sasl=SCRAM-SHA-256"] {
        let error = tidings_kafka::Kafka::builder(url).expect_err(url);
        assert!(!error.is_temporary(), "{url}");
        assert!(
            error
                .to_string()
                .contains("the feature `tls` of `tidings-kafka`"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_table_of_engines_says_what_it_can_do() {
    let page = tidings_testing::foreign::documents("engines.md");
    let kafka = tidings_kafka::Kafka::builder("kafka://127.0.0.1:1").expect("an URL");
    let features = tidings_core::Transport::features(&kafka.start().expect("it starts"));
    tidings_testing::transport::assert_documented(&page, "Apache Kafka", &features);
}

#[cfg(not(feature = "registry"))]
#[test]
fn a_build_without_schema_registries_says_so() {
    for option in [
        "schema_registry=http://r",
        "schema_subject=topic",
        "without_schema=accept",
    ] {
        let error = tidings_kafka::Kafka::builder(&format!("kafka://h?{option}"));
        let error = error.expect_err("it cannot do that").to_string();
        assert!(error.contains("feature `registry`"), "{error}");
    }
}
