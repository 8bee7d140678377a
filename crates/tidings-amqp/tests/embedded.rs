//! The transport on the broker in the box.

mod behaviour;
#[path = "behaviour/hosts.rs"]
mod hosts;

use behaviour::{behaviours, delays, failures, groups, processes};
use tempfile::TempDir;
use tidings_broker::{Broker, Handle, Options};
use tidings_testing::servers::Process;

/// A broker of its own for this test process.
async fn url() -> String {
    static URL: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    URL.get_or_init(|| async {
        // It lives on a runtime of its own: those of the tests end with each of them.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let options = Options::ephemeral().listen(([127, 0, 0, 1], 0));
                let broker = Broker::start(options).await.expect("the broker starts");
                sender
                    .send(broker.amqp_url())
                    .expect("the test waits for it");
                std::future::pending::<()>().await;
            });
        });
        receiver.await.expect("the broker starts")
    })
    .await
    .clone()
}

behaviours! {
    of crate::behaviour, on url();
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
    of crate::behaviour::failures, on url();
    a_cut_connection_is_mended_and_nothing_is_lost
    who_waits_for_a_confirm_when_the_connection_breaks_is_told
    a_broker_that_is_not_there_yet_is_waited_for
    a_deleted_queue_is_declared_again_and_subscribed
    a_deleted_topic_is_declared_again
    what_cannot_be_declared_again_stops_nothing_else
    a_foreign_message_is_copied_as_it_came
}

behaviours! {
    of crate::behaviour::settling, on url();
    what_is_requeued_or_dropped_comes_again_at_once
    a_queue_that_counts_deliveries_says_how_many_there_were
    a_dead_letter_waits_for_room_in_its_queue
    a_refusal_is_never_overtaken_by_an_acknowledgement
    a_foreign_message_is_read_as_what_it_says_it_is
    what_amqp_cannot_carry_harms_nothing_else
}

behaviours! {
    of crate::behaviour::letters, on url();
    queues_of_dead_letters_are_classic
    queues_of_dead_letters_that_are_there_are_used_as_they_are
    queues_of_consumers_that_are_there_are_used_as_they_are
    a_queue_that_loses_dead_letters_is_refused
    looking_uses_up_nothing_whatever_type_queues_have
}

behaviours! {
    of crate::behaviour::types, on url();
    new_queues_are_of_the_type_that_the_url_says
    queues_of_another_type_stay_as_they_are
}

behaviours! {
    of crate::behaviour::looking, on url();
    a_look_says_how_full_queues_are_and_changes_nothing
}

behaviours! {
    of crate::behaviour::delays, on url();
    all_consumers_wait_on_one_ladder_and_keep_their_order
    a_retry_whose_queue_was_deleted_is_kept_and_holds_up_nobody
    a_failure_that_passes_is_not_a_dead_letter_while_its_delay_is_missing
    what_an_earlier_version_left_waiting_comes_back
}

behaviours! {
    of crate::behaviour::groups, on url();
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
    of crate::behaviour::processes, on url();
    a_killed_consumer_leaves_its_partition_in_order
    a_frozen_consumer_wakes_up_with_stale_deliveries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_is_left_for_the_next_host() {
    hosts::a_broker_that_stops_is_left_for_the_next_host().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_of_several_is_enough() {
    hosts::one_host_of_several_is_enough().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_host_refuses_is_said_when_no_other_takes_us() {
    hosts::what_one_host_refuses_is_said_when_no_other_takes_us().await;
}

/// The broker in the box knows the types of queues only by name; a service that asks for one is served all the same.
mod quorum {
    use crate::behaviour::{behaviours, conformance};

    async fn url() -> String {
        format!("{}?queues=quorum", crate::url().await)
    }

    behaviours! {
        of crate::behaviour::groups, on url();
        a_partition_of_a_quorum_queue_changes_hands_under_load
        many_crashes_with_all_out_keep_the_order
        what_was_given_back_alone_keeps_its_place
        a_cut_connection_leaves_stale_deliveries_and_goes_on
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_a_transport() {
        conformance(&url().await).await;
    }
}

#[tokio::test]
async fn the_table_of_engines_says_what_it_can_do() {
    let page = tidings_testing::foreign::documents("engines.md");
    let amqp = behaviour::connect(&url().await).await;
    let features = tidings_core::Transport::features(&amqp);
    for column in ["broker in the box", "RabbitMQ"] {
        tidings_testing::transport::assert_documented(&page, column, &features);
    }
}

/// Not a test, but the process that another test kills. Does nothing unless that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_of_a_test() {
    processes::consumer_of_a_test().await;
}

/// One that stops and comes back with what is in its folder.
struct Stopped {
    folder: TempDir,
    port: u16,
    broker: Option<Handle>,
}

impl failures::Server for Stopped {
    fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    async fn stop(&mut self) {
        let broker = self.broker.take().expect("it runs");
        broker.shutdown().await.expect("it stops");
    }

    async fn start(&mut self) {
        let options = Options::durable(self.folder.path()).listen(([127, 0, 0, 1], self.port));
        self.broker = Some(Broker::start(options).await.expect("it starts"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_broker_loses_nothing_and_needs_nobody() {
    let mut server = Stopped {
        folder: tempfile::tempdir().expect("a folder"),
        port: tidings_testing::servers::free_port().expect("a port"),
        broker: None,
    };
    failures::Server::start(&mut server).await;
    failures::a_restart_of_the_broker_loses_nothing_and_needs_nobody(server).await;
}

/// One in a process of its own: this program, started again for [`broker_of_a_test`] alone.
struct Killed {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

const FOLDER: &str = "TIDINGS_TEST_BROKER_FOLDER";
const PORT: &str = "TIDINGS_TEST_BROKER_PORT";
const READY: &str = "the broker is ready";

impl failures::Server for Killed {
    fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    async fn stop(&mut self) {
        self.process.take().expect("it runs").kill9();
    }

    async fn start(&mut self) {
        let program = std::env::current_exe().expect("this program");
        let mut command = Process::command(program);
        command.args(["--exact", "broker_of_a_test", "--nocapture"]);
        command.env(FOLDER, self.folder.path());
        command.env(PORT, self.port.to_string());
        let mut process = Process::start(command).expect("it starts");
        process
            .wait_for_line(behaviour::DEADLINE, |line| line.contains(READY))
            .expect("it is ready");
        self.process = Some(process);
    }
}

/// Not a test, but the process that another test kills. Does nothing unless that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_of_a_test() {
    let (Ok(folder), Ok(port)) = (std::env::var(FOLDER), std::env::var(PORT)) else {
        return;
    };
    let port: u16 = port.parse().expect("a port");
    let options = Options::durable(folder).listen(([127, 0, 0, 1], port));
    let _broker = Broker::start(options).await.expect("it starts");
    println!("{READY}");
    std::future::pending::<()>().await;
}

async fn one_to_kill() -> Killed {
    let mut server = Killed {
        folder: tempfile::tempdir().expect("a folder"),
        port: tidings_testing::servers::free_port().expect("a port"),
        process: None,
    };
    failures::Server::start(&mut server).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_keeps_the_retries_that_wait() {
    delays::a_killed_broker_keeps_the_retries_that_wait(one_to_kill().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_keeps_the_order_of_its_partitions() {
    groups::a_killed_broker_keeps_the_order_of_its_partitions(one_to_kill().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_a_transport() {
    behaviour::conformance(&url().await).await;
}
