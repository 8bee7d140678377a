//! What becomes of a queue when a process that receives from it is killed or frozen.

use tidings_core::{Settlement, Transport};
use tidings_testing::servers::Process;

use super::*;

const URL: &str = "TIDINGS_TEST_CONSUMER_URL";
const QUEUE: &str = "TIDINGS_TEST_CONSUMER_QUEUE";
const SETTLES: &str = "TIDINGS_TEST_CONSUMER_SETTLES";

/// A process that receives: this program, started again for `consumer_of_a_test` alone.
fn start_consumer(url: &str, place: &Place, settles: &str) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command = Process::command(program);
    command.args(["--exact", "consumer_of_a_test", "--nocapture"]);
    command.env(URL, url).env(QUEUE, &place.queue);
    command.env(SETTLES, settles);
    Process::start(command).expect("it starts")
}

/// What that process does: holds ten deliveries, settles those it is told to, and watches the first of the others.
/// Nothing unless it is asked to.
pub(crate) async fn consumer_of_a_test() {
    let (Ok(url), Ok(queue)) = (std::env::var(URL), std::env::var(QUEUE)) else {
        return;
    };
    let kafka = connect(&url).await;
    let place = Place {
        topic: String::new(),
        queue,
    };
    let mut deliveries = place.subscribe(&kafka, 10).await;
    let settles = std::env::var(SETTLES).unwrap_or_default();
    let settles: Vec<usize> = settles
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect();
    let mut held = next_few(&mut deliveries, 10).await;
    println!("holds ten");
    for number in settles {
        let at = held.iter().position(|it| body(it) == number);
        ack(held.remove(at.expect("it is held"))).await;
        println!("settled {number}");
    }
    while !held[0].is_stale() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("stale");
    match held.remove(0).settle(Settlement::Ack).await {
        Err(error) if error.is_temporary() => println!("refused"),
        other => println!("{other:?}"),
    }
    std::future::pending::<()>().await;
}

/// What was settled behind an open message does not come again, and what may have been begun says so.
pub(crate) async fn a_killed_consumer_leaves_what_it_had_not_settled(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..12).await;
    let mut process = start_consumer(&url, &place, "4 3 2");
    let settled = process.wait_for_line(SOON, |line| line.ends_with("settled 2"));
    settled.expect("it settles");
    // Until that is committed, which is done every second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    process.kill9();
    let mut deliveries = place.subscribe(&kafka, 20).await;
    take(
        &mut deliveries,
        [0, 1, 5, 6, 7, 8, 9].map(|body| (body, true)),
    )
    .await;
    for expected in [10, 11] {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), expected);
        ack(delivery).await;
    }
    none(&mut deliveries).await;
}

/// However soon it dies: that they were handed out is known before they are.
pub(crate) async fn a_consumer_that_is_killed_at_once_has_begun_them(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..10).await;
    let mut process = start_consumer(&url, &place, "");
    let holds = process.wait_for_line(SOON, |line| line.ends_with("holds ten"));
    process.kill9();
    holds.expect("it has ten");
    let mut deliveries = place.subscribe(&kafka, 10).await;
    take(&mut deliveries, (0..10).map(|body| (body, true))).await;
    none(&mut deliveries).await;
}

pub(crate) async fn a_frozen_consumer_wakes_up_with_stale_deliveries(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    place.publish(&kafka, 0..20).await;
    let mut process = start_consumer(&url, &place, "");
    let holds = process.wait_for_line(SOON, |line| line.ends_with("holds ten"));
    holds.expect("it has ten");
    signal(&process, "STOP");
    let mut deliveries = place.subscribe(&kafka, 100).await;
    for expected in 0..20 {
        // The first when its session is over.
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), expected);
        ack(delivery).await;
    }
    signal(&process, "CONT");
    for expected in ["stale", "refused"] {
        let line = process.wait_for_line(SOON, |line| line.ends_with(expected));
        line.expect(expected);
    }
    none(&mut deliveries).await;
    process.kill9();
    // Nothing that it said after its time has moved the queue.
    kafka.close().await;
    let kafka = connect(&url).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    none(&mut deliveries).await;
    place.publish(&kafka, [20]).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(body(&delivery), 20);
    ack(delivery).await;
}

fn signal(process: &Process, name: &str) {
    let mut command = std::process::Command::new("kill");
    command.args([format!("-{name}"), process.id().to_string()]);
    assert!(command.status().expect("there is `kill`").success());
}
