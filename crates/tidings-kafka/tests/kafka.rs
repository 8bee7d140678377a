//! The transport on a real Kafka.

mod behaviour;

use behaviour::{connect, handing_over, looking, outages, processes};
use tidings_testing::servers::{Kafka, kafka_url};

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
async fn it_keeps_the_contract_of_a_transport() {
    let url = kafka_url();
    tidings_testing::transport::conformance(async || connect(&url).await).await;
}
