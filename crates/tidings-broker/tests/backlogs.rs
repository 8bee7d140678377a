//! Backlogs that are longer than the memory that messages may take: nobody has to wait for their
//! consumer, they come back in order and whole, and others go on meanwhile.

mod support;

use std::net::SocketAddr;

use support::lasting::*;
use support::program::Program;
use support::*;
use tidings_broker::{Broker, Handle, Limits, Options};
use tidings_wire::*;

/// A fifth of what the messages below take.
const MEMORY_BYTES: u64 = 6_000_000;
const MESSAGES: u32 = 50_000;
const BODY_BYTES: usize = 200;

async fn small(data: &std::path::Path) -> Handle {
    let limits = Limits {
        memory_bytes_max: MEMORY_BYTES,
        ..Limits::default()
    };
    let options = Options::durable(data).limits(limits);
    Broker::start(options).await.expect("it starts")
}

fn body(number: u32) -> Vec<u8> {
    let mut body = format!("{number:08}").into_bytes();
    body.resize(BODY_BYTES, b'.');
    body
}

fn number(body: &[u8]) -> u32 {
    let text = std::str::from_utf8(&body[..8]).expect("text");
    text.parse().expect("a number")
}

/// Publishes messages with these numbers, persistent and confirmed.
async fn publish(addr: SocketAddr, queue: &str, numbers: std::ops::Range<u32>) {
    let mut client = Client::connect(addr).await;
    done(&mut client, ConfirmSelect::default()).await;
    let count = u64::from(numbers.end - numbers.start);
    let mut confirmed = 0;
    let mut sent = 0;
    for at in numbers {
        client
            .publish_with(1, "", queue, true, &persistent(None), &body(at))
            .await;
        sent += 1;
        while sent - confirmed > 500 || (sent == count && confirmed < count) {
            match client.hear().await {
                Some(Method::BasicAck(ack)) => confirmed = ack.delivery_tag,
                other => panic!("expected a confirm, got {other:?}"),
            }
        }
    }
    client.close().await;
}

async fn declare(addr: SocketAddr, queue: QueueDeclare) {
    let mut client = Client::connect(addr).await;
    client.declare(durable(queue)).await;
    client.close().await;
}

/// Consumes these, in their order, and acknowledges them.
async fn consume(addr: SocketAddr, queue: &str, numbers: std::ops::Range<u32>) {
    let mut client = Client::connect(addr).await;
    let qos = BasicQos {
        prefetch_count: 300,
        ..Default::default()
    };
    done(&mut client, qos).await;
    client.consume(1, queue, false).await;
    for (at, expected) in numbers.clone().enumerate() {
        let (deliver, content) = client.delivery().await;
        assert_eq!(number(&content.body), expected);
        assert_eq!(content.body.len(), BODY_BYTES);
        if at % 100 == 99 || expected + 1 == numbers.end {
            let ack = BasicAck {
                delivery_tag: deliver.delivery_tag,
                multiple: true,
            };
            client.send(1, &ack).await;
        }
    }
    // Whatever else was delivered goes back.
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_is_longer_than_memory_stops_nobody_and_comes_back_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = small(folder.path()).await;
    let addr = broker.amqp_addr();
    declare(addr, queue("long")).await;
    declare(addr, queue("other")).await;
    publish(addr, "long", 0..MESSAGES).await;
    // Others are not concerned.
    publish(addr, "other", 0..1_000).await;
    consume(addr, "other", 0..1_000).await;
    let mut client = Client::connect(addr).await;
    assert_eq!(client.ready("long").await, MESSAGES);
    // One at a time, too; and what comes back goes to its place.
    for expected in 0..2_000 {
        let (got, content) = client.get("long", expected % 2 == 0).await.expect("one");
        assert_eq!(number(&content.body), expected);
        if expected % 2 == 1 {
            let ack = BasicAck {
                delivery_tag: got.delivery_tag,
                multiple: false,
            };
            client.send(1, &ack).await;
        }
    }
    client.get("long", false).await.expect("one");
    client.close().await;
    // It is published to while it is consumed.
    let (_, ()) = tokio::join!(
        publish(addr, "long", MESSAGES..MESSAGES + 5_000),
        consume(addr, "long", 2_000..MESSAGES),
    );
    // And purged while the most of it is away.
    publish(addr, "long", MESSAGES + 5_000..MESSAGES + 30_000).await;
    let mut client = Client::connect(addr).await;
    let purge = QueuePurge {
        queue: short("long"),
        no_wait: false,
    };
    match client.call(1, purge).await {
        Method::QueuePurgeOk(ok) => assert_eq!(ok.message_count, 30_000),
        other => panic!("expected purge-ok, got {other:?}"),
    }
    publish(addr, "long", 0..10).await;
    consume(addr, "long", 0..10).await;
    client.close().await;
    broker.shutdown().await.expect("a clean stop");
    assert_eq!(
        records(folder.path()).len(),
        1 + 2,
        "only the queues are left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_is_longer_than_memory_survives_a_kill_and_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::start_with_memory(folder.path(), 6);
    declare(program.addr, queue("long")).await;
    publish(program.addr, "long", 0..MESSAGES).await;
    consume(program.addr, "long", 0..7_000).await;
    // A confirm says that what was acknowledged before is on the disk, too.
    declare(program.addr, queue("other")).await;
    publish(program.addr, "other", 0..1).await;
    program.kill();
    // It does not fit into memory at the start either.
    let program = Program::start_with_memory(folder.path(), 6);
    publish(program.addr, "other", 1..1_000).await;
    consume(program.addr, "other", 0..1_000).await;
    consume(program.addr, "long", 7_000..MESSAGES).await;
    program.kill();
}

/// What expires while it is away: without dead letters it goes, with them it is read before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_while_it_is_away_becomes_a_dead_letter_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = small(folder.path()).await;
    let addr = broker.amqp_addr();
    let ttl = ("x-message-ttl", Value::I32(8_000));
    let dead = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("grave")),
    ];
    declare(addr, queue("grave")).await;
    declare(addr, queue_with("gone", std::slice::from_ref(&ttl))).await;
    declare(addr, queue_with("dies", &[&[ttl][..], &dead].concat())).await;
    publish(addr, "gone", 0..20_000).await;
    publish(addr, "dies", 0..20_000).await;
    let mut client = Client::connect(addr).await;
    client.wait_ready("grave", 20_000).await;
    client.wait_ready("gone", 0).await;
    client.close().await;
    consume(addr, "grave", 0..20_000).await;
    broker.shutdown().await.expect("a clean stop");
}

/// How much memory a backlog takes, and how fast it grows and comes back. In release, on a quiet machine:
/// `BACKLOG=10000000 cargo test --release -p tidings-broker --test backlogs -- --ignored --nocapture how_much`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it in release, on a quiet machine"]
async fn how_much_a_backlog_takes_and_how_fast_it_is() {
    let count = std::env::var("BACKLOG").map_or(1_000_000, |it| it.parse().expect("a number"));
    let folder = tempfile::tempdir_in(std::env::current_dir().expect("a folder"));
    let folder = folder.expect("a folder");
    let memory = |program: &Program| {
        let status = format!("/proc/{}/status", program.child.id());
        let status = std::fs::read_to_string(status).expect("it runs");
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("it says so").trim().to_owned()
        };
        format!("{} now, {} at most", line("VmRSS:"), line("VmHWM:"))
    };
    let rate = |count: u32, since: std::time::Instant| {
        f64::from(count) / since.elapsed().as_secs_f64() / 1000.0
    };
    let program = Program::start_with_memory(folder.path(), 128);
    declare(program.addr, queue("long")).await;
    let tenth = count / 10;
    for part in 0..10 {
        let since = std::time::Instant::now();
        publish(program.addr, "long", part * tenth..(part + 1) * tenth).await;
        let rate = rate(tenth, since);
        println!("published {rate:.0} k/s; {}", memory(&program));
    }
    program.kill();
    let since = std::time::Instant::now();
    let program = Program::start_with_memory(folder.path(), 128);
    consume(program.addr, "long", 0..1).await;
    println!(
        "started, and one delivered, in {:?}; {}",
        since.elapsed(),
        memory(&program)
    );
    let since = std::time::Instant::now();
    consume(program.addr, "long", 1..count).await;
    println!(
        "consumed {:.0} k/s; {}",
        rate(count, since),
        memory(&program)
    );
    program.kill();
}
