//! The transport on an emulator of SNS and SQS.

mod behaviour;

use behaviour::{letters, outages, policies, receiving, sending};
use tidings_testing::servers::{AwsEmulator, aws_url};

/// Each behaviour as a test of its own, with its name.
macro_rules! behaviours {
    (of $module:ident with $server:expr; $($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "needs SQS: run `cargo xtask test`"]
        async fn $name() {
            $module::$name($server).await;
        }
    )*};
}

/// One that nobody else uses, to kill it or to let it fail.
fn own() -> AwsEmulator {
    AwsEmulator::start().expect("it starts")
}

behaviours! {
    of sending with own();
    an_entry_that_fails_holds_back_its_key_and_nothing_else
    what_amazon_refuses_can_be_sent_later
    a_message_that_is_published_twice_comes_once_while_amazon_remembers
}

behaviours! {
    of sending with aws_url();
    an_eleventh_attribute_is_not_lost
    a_message_beyond_the_limit_is_refused_before_it_is_sent
    a_batch_beyond_the_limit_of_a_call_goes_in_several
    names_that_look_alike_are_different_places
}

behaviours! {
    of receiving with aws_url();
    a_long_handler_keeps_its_message
    a_message_that_is_out_for_too_long_is_somebody_elses
    what_a_crashed_consumer_had_comes_again_in_its_order
    a_standard_queue_delays_a_retry_and_keeps_its_history
}

behaviours! {
    of receiving with own();
    a_message_that_cannot_be_kept_is_stale_in_time
    a_deletion_that_fails_is_tried_again
    a_consumer_that_may_not_receive_says_so_and_ends
    a_queue_that_vanished_is_declared_again
}

behaviours! {
    of letters with aws_url();
    what_an_operator_sends_again_at_once_is_no_duplicate
    letters_of_one_group_are_all_found
    a_hold_lasts_while_its_process_does
    a_look_says_how_full_queues_are
    what_a_group_has_is_counted_once
}

behaviours! {
    of letters with own();
    a_letter_is_removed_although_calls_fail
}

behaviours! {
    of policies with own();
    a_policy_allows_what_a_service_asks_for_and_no_more
}

behaviours! {
    of policies with aws_url();
    what_is_missing_is_seen_and_nothing_is_made
}

behaviours! {
    of outages with own();
    a_killed_engine_loses_nothing_and_needs_nobody
    who_starts_first_waits_for_the_engine
    closing_does_not_wait_for_an_engine_that_is_gone
    who_may_not_is_told_at_the_start
}

/// What does not need order, on queues that keep none.
mod on_standard_queues {
    use super::*;

    fn standard() -> String {
        format!("{}&queues=standard", aws_url())
    }

    behaviours! {
        of sending with standard();
        an_eleventh_attribute_is_not_lost
        a_message_beyond_the_limit_is_refused_before_it_is_sent
        a_batch_beyond_the_limit_of_a_call_goes_in_several
        names_that_look_alike_are_different_places
    }

    behaviours! {
        of letters with standard();
        what_an_operator_sends_again_at_once_is_no_duplicate
        a_hold_lasts_while_its_process_does
        a_look_says_how_full_queues_are
    }

    behaviours! {
        of receiving with own();
        what_a_standard_queue_brings_twice_comes_twice
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs SQS: run `cargo xtask test`"]
    async fn a_killed_engine_loses_nothing_of_standard_queues() {
        outages::a_killed_engine_loses_nothing(own(), "standard").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn it_keeps_the_contract_of_a_transport() {
    keeps_the_contract("fifo").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn standard_queues_keep_the_contract_of_a_transport_that_promises_no_order() {
    keeps_the_contract("standard").await;
}

async fn keeps_the_contract(queues: &str) {
    behaviour::prepare();
    // Nothing is to become visible by itself, and no batch to be late, however slow the machine is.
    let url = format!(
        "{}&wait=1&visibility=20&handover=1&queues={queues}",
        aws_url()
    );
    let connect = async || {
        let builder = tidings_aws::Aws::builder(&url).expect("an URL");
        let patient = builder.confirm_timeout(std::time::Duration::from_secs(55));
        patient.connect().await.expect("it connects")
    };
    tidings_testing::transport::conformance(connect).await;
}

#[tokio::test]
async fn the_table_of_engines_says_what_it_can_do() {
    let page = tidings_testing::foreign::documents("engines.md");
    for (column, queues) in [
        ("SNS and SQS, FIFO", "fifo"),
        ("SNS and SQS, standard", "standard"),
    ] {
        let url = format!(
            "aws://eu-central-1/t?endpoint=http://127.0.0.1:1&account=000000000000&queues={queues}"
        );
        let aws = tidings_aws::Aws::builder(&url)
            .expect("an URL")
            .start()
            .await;
        let features = tidings_core::Transport::features(&aws.expect("it starts"));
        tidings_testing::transport::assert_documented(&page, column, &features);
    }
}
