//! What becomes of a partition when the process that receives it is killed or frozen.

use std::time::Duration;

use tidings_amqp::Amqp;
use tidings_core::Settlement;
use tidings_testing::servers::Process;

use super::{
    DEADLINE, connect,
    groups::{Case, Ledger, ordered},
    id, next, publish_all, within,
};

const URL: &str = "TIDINGS_TEST_CONSUMER_URL";
const QUEUE: &str = "TIDINGS_TEST_CONSUMER_QUEUE";
const HOLDS: &str = "TIDINGS_TEST_CONSUMER_HOLDS";

/// A process that receives a partition: this program, started again for `consumer_of_a_test` alone.
fn start_consumer(url: &str, queue: &str, holds: bool) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command = Process::command(program);
    command.args(["--exact", "consumer_of_a_test", "--nocapture"]);
    command.env(URL, url).env(QUEUE, queue);
    if holds {
        command.env(HOLDS, "1");
    }
    Process::start(command).expect("it starts")
}

/// What that process does. Nothing unless it is asked to.
pub(crate) async fn consumer_of_a_test() {
    let (Ok(url), Ok(queue)) = (std::env::var(URL), std::env::var(QUEUE)) else {
        return;
    };
    let amqp = connect(&url).await;
    let mut deliveries = ordered(&amqp, &queue, 100).await;
    if std::env::var(HOLDS).is_err() {
        loop {
            let delivery = next(&mut deliveries).await;
            // As a handler that commits before its message is acknowledged.
            println!("handled {}", id(&delivery));
            delivery.settle(Settlement::Ack).await.expect("settled");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let held = next(&mut deliveries).await;
    println!("holds {}", id(&held));
    within("its end", async {
        while !held.is_stale() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    println!("stale");
    match held.settle(Settlement::Ack).await {
        Err(error) if error.is_temporary() => println!("refused"),
        other => println!("{other:?}"),
    }
    std::future::pending::<()>().await;
}

pub(crate) async fn a_killed_consumer_leaves_its_partition_in_order(url: String) {
    const KEYS: u64 = 5;
    const OF_EACH: u64 = 400;
    let amqp = connect(&url).await;
    let case = Case::declare(&amqp, 1).await;
    let queue = case.group.partition(0);
    publish_all(&amqp, case.messages(KEYS, 0..OF_EACH)).await;
    let mut ledger = Ledger::default();
    for killed in 0..3 {
        let mut process = start_consumer(&url, &queue, false);
        // It has the partition, with many out, before this one waits for it.
        process
            .wait_for_line(DEADLINE, |line| line.contains("handled "))
            .expect("it handles some");
        if killed == 2 {
            return take_the_rest(&amqp, &queue, process, &mut ledger, KEYS * OF_EACH).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        kill(&mut process, &mut ledger);
    }
}

fn kill(process: &mut Process, ledger: &mut Ledger) {
    process.kill9();
    assert!(process.status().is_some(), "it is gone");
    for line in process.stdout() {
        if let Some((_, id)) = line.split_once("handled ") {
            ledger.handle(id);
        }
    }
}

/// Kills the process while this one waits for the partition already, and handles what is left.
async fn take_the_rest(
    amqp: &Amqp,
    queue: &str,
    mut process: Process,
    ledger: &mut Ledger,
    count: u64,
) {
    let mut waiting = ordered(amqp, queue, 100).await;
    super::expect_nothing(&mut waiting).await;
    kill(&mut process, ledger);
    let before = ledger.count;
    while ledger.count < count {
        let delivery = next(&mut waiting).await;
        ledger.handle(&id(&delivery));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    assert!(
        before > 0 && before < count,
        "killed in the middle: {before}"
    );
    super::expect_nothing(&mut waiting).await;
}

pub(crate) async fn a_frozen_consumer_wakes_up_with_stale_deliveries(url: String) {
    let amqp = connect(&url).await;
    let case = Case::declare(&amqp, 1).await;
    let queue = case.group.partition(0);
    publish_all(&amqp, case.messages(1, 0..50)).await;
    let (login, place) = url.split_once('@').expect("a URL with a user");
    let host = place.split('/').next().expect("a host");
    let mut process = start_consumer(&format!("{login}@{host}/%2F?heartbeat=1"), &queue, true);
    process
        .wait_for_line(DEADLINE, |line| line.contains("holds 0/0"))
        .expect("it has the first");
    let mut waiting = ordered(&amqp, &queue, 100).await;
    signal(&process, "STOP");
    let mut ledger = Ledger::default();
    while ledger.count < 50 {
        // The first when the broker has missed its heartbeats.
        let delivery = next(&mut waiting).await;
        ledger.handle(&id(&delivery));
        delivery.settle(Settlement::Ack).await.expect("settled");
    }
    signal(&process, "CONT");
    for expected in ["stale", "refused"] {
        process
            .wait_for_line(DEADLINE, |line| line.ends_with(expected))
            .expect(expected);
    }
    super::expect_nothing(&mut waiting).await;
    process.kill9();
}

fn signal(process: &Process, name: &str) {
    let mut command = std::process::Command::new("kill");
    command.args([format!("-{name}"), process.id().to_string()]);
    assert!(command.status().expect("there is `kill`").success());
}
