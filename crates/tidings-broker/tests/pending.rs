//! What peers hold and the broker has not accepted, unfinished bodies and open transactions: it is
//! capped, it is freed, and it never holds up others.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use bytes::BytesMut;
use support::program::{Program, command};
use support::*;
use tidings_broker::{Broker, Limits, Options};
use tidings_wire::*;

/// So small that few bytes reach them.
fn limits() -> Limits {
    Limits {
        memory_bytes_max: 1_000_000,
        body_bytes_max: 300_000,
        connection_pending_bytes_max: 1_000_000,
        pending_bytes_max: 2_000_000,
        ..Limits::default()
    }
}

/// A message for `q` in two parts. What the first part holds at the broker is a little less than
/// 200,000 bytes, five of them less than one connection may hold, ten less than all may.
fn body_in_two_parts(channel: u16) -> [BytesMut; 2] {
    let publish = BasicPublish {
        routing_key: short("q"),
        ..Default::default()
    };
    let mut first = BytesMut::new();
    encode_method(&mut first, channel, &publish);
    encode_content(&mut first, channel, &[0, 0], &[0; 200_000], 131_072);
    let frame = 131_072 - FRAME_OVERHEAD_BYTES;
    let rest = first.split_off(first.len() - (200_000 - frame) - FRAME_OVERHEAD_BYTES);
    [first, rest]
}

impl Client {
    /// Begins bodies on these channels, and waits until the broker has got that far.
    async fn begin_bodies(&mut self, channels: std::ops::RangeInclusive<u16>) {
        for channel in channels {
            self.open(channel).await;
            let [first, _] = body_in_two_parts(channel);
            self.write(&first).await;
        }
        self.settle(1).await;
    }

    async fn finish_body(&mut self, channel: u16) {
        let [_, rest] = body_in_two_parts(channel);
        self.write(&rest).await;
    }

    async fn select_tx(&mut self, channel: u16) {
        let selected = self.call(channel, TxSelect {}).await;
        assert!(matches!(selected, Method::TxSelectOk(_)), "{selected:?}");
    }

    /// Publishes 100 kB each, in a transaction that is open.
    async fn publish_in_tx(&mut self, channel: u16, messages: usize) {
        for _ in 0..messages {
            self.publish(channel, "", "q", &[0; 100_000]).await;
        }
    }

    async fn is_closed_by_the_limit(&mut self, limit: &str) {
        match self.hear().await {
            Some(Method::ConnectionClose(close)) => {
                let text = close.reply_text.to_str_lossy();
                assert_eq!(close.reply_code, reply::RESOURCE_ERROR, "{text}");
                assert!(text.contains(limit), "{text}");
            }
            other => panic!("expected the end of the connection, got {other:?}"),
        }
    }
}

/// A client whose messages are confirmed, so that a publisher that has to wait is noticed.
async fn confirming(addr: std::net::SocketAddr) -> Client {
    let mut client = Client::connect(addr).await;
    client.declare(queue("q")).await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    client
}

async fn publishes_freely(client: &mut Client) {
    for _ in 0..3 {
        client.publish(1, "", "q", b"small").await;
        let confirmed = client.hear().await;
        assert!(
            matches!(confirmed, Some(Method::BasicAck(_))),
            "{confirmed:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_hold_up_nobody_and_have_a_limit() {
    let broker = broker_with(limits()).await;
    let mut other = confirming(broker.amqp_addr()).await;
    let mut greedy = Client::connect(broker.amqp_addr()).await;
    let mut patient = Client::connect(broker.amqp_addr()).await;
    for client in [&mut greedy, &mut patient] {
        client.select_tx(1).await;
        client.publish_in_tx(1, 9).await;
        client.settle(1).await;
    }
    publishes_freely(&mut other).await;

    greedy.publish_in_tx(1, 1).await;
    match greedy.hear().await {
        Some(Method::ChannelClose(close)) => {
            let text = close.reply_text.to_str_lossy();
            assert_eq!(close.reply_code, reply::PRECONDITION_FAILED, "{text}");
            assert!(text.contains("`connection_pending_bytes_max`"), "{text}");
        }
        other => panic!("expected the end of the channel, got {other:?}"),
    }
    // Before the answer to the close: what the transaction held is free already.
    greedy.open(2).await;
    greedy.select_tx(2).await;
    greedy.publish_in_tx(2, 9).await;
    let rolled_back = greedy.call(2, TxRollback {}).await;
    assert!(
        matches!(rolled_back, Method::TxRollbackOk(_)),
        "{rolled_back:?}"
    );
    greedy.publish_in_tx(2, 9).await;
    greedy.settle(2).await;
    publishes_freely(&mut other).await;

    let committed = patient.call(1, TxCommit {}).await;
    assert!(matches!(committed, Method::TxCommitOk(_)), "{committed:?}");
    other.wait_ready("q", 6 + 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_settlements_hold_counts_too() {
    let broker = broker_with(limits()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.select_tx(1).await;
    let ack = BasicAck {
        delivery_tag: 0,
        multiple: true,
    };
    let mut acks = BytesMut::new();
    for _ in 0..11_000 {
        encode_method(&mut acks, 1, &ack);
    }
    client.write(&acks).await;
    match client.hear().await {
        Some(Method::ChannelClose(close)) => {
            let text = close.reply_text.to_str_lossy();
            assert!(text.contains("`connection_pending_bytes_max`"), "{text}");
        }
        other => panic!("expected the end of the channel, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_never_finished_hold_up_nobody_and_are_freed() {
    let broker = broker_with(limits()).await;
    let mut other = confirming(broker.amqp_addr()).await;
    // It is what would have to go if anything that is let go of counted on.
    let mut slow = confirming(broker.amqp_addr()).await;
    slow.begin_bodies(2..=2).await;
    for _ in 0..3 {
        let mut greedy = Client::connect(broker.amqp_addr()).await;
        greedy.begin_bodies(2..=6).await;
        publishes_freely(&mut other).await;
        greedy.open(7).await;
        let [first, _] = body_in_two_parts(7);
        greedy.write(&first).await;
        greedy
            .is_closed_by_the_limit("`connection_pending_bytes_max`")
            .await;

        let mut polite = Client::connect(broker.amqp_addr()).await;
        polite.begin_bodies(2..=6).await;
        polite.close().await;

        let mut busy = Client::connect(broker.amqp_addr()).await;
        busy.begin_bodies(2..=4).await;
        for channel in 2..=4 {
            busy.finish_body(channel).await;
        }
        busy.settle(1).await;
        other.wait_ready("q", 3 + 3).await;
        let purge = QueuePurge {
            queue: short("q"),
            no_wait: false,
        };
        other.call(1, purge).await;
    }
    slow.finish_body(2).await;
    other.wait_ready("q", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_limit_of_all_connections_whoever_sends_nothing_more_has_to_go() {
    let broker = broker_with(limits()).await;
    let addr = broker.amqp_addr();
    let mut other = confirming(addr).await;
    let mut early = Client::connect(addr).await;
    early.select_tx(1).await;
    early.publish_in_tx(1, 5).await;
    early.settle(1).await;
    let mut stuck = Client::connect(addr).await;
    stuck.begin_bodies(2..=5).await;
    // It has waited for longer, but goes on.
    early.publish_in_tx(1, 1).await;
    early.settle(1).await;
    let mut late = Client::connect(addr).await;
    late.begin_bodies(2..=5).await;
    stuck.is_closed_by_the_limit("`pending_bytes_max`").await;
    late.finish_body(2).await;
    other.wait_ready("q", 1).await;
    let committed = early.call(1, TxCommit {}).await;
    assert!(matches!(committed, Method::TxCommitOk(_)), "{committed:?}");
    other.wait_ready("q", 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_blocked_in_the_middle_of_a_body_does_not_keep_it_for_good() {
    let broker = broker_with(limits()).await;
    let addr = broker.amqp_addr();
    let mut other = confirming(addr).await;
    for _ in 0..4 {
        other.publish(1, "", "q", &[0; 300_000]).await;
    }
    while !matches!(other.hear().await, Some(Method::ConnectionBlocked(_))) {}
    let mut blocked = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(addr).await;
        let [first, _] = body_in_two_parts(1);
        client.write(&first).await;
        let heard = client.hear().await;
        assert!(
            matches!(heard, Some(Method::ConnectionBlocked(_))),
            "{heard:?}"
        );
        blocked.push(client);
    }
    let mut one_more = Client::connect(addr).await;
    let [first, _] = body_in_two_parts(1);
    one_more.write(&first).await;
    blocked[0]
        .is_closed_by_the_limit("`pending_bytes_max`")
        .await;

    let mut consumer = Client::connect(addr).await;
    let purge = QueuePurge {
        queue: short("q"),
        no_wait: false,
    };
    consumer.call(1, purge).await;
    for client in &mut blocked[1..] {
        let heard = client.hear().await;
        assert!(
            matches!(heard, Some(Method::ConnectionUnblocked(_))),
            "{heard:?}"
        );
    }
    for client in &mut blocked[1..4] {
        client.finish_body(1).await;
    }
    consumer.wait_ready("q", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_contradict_each_other_are_refused_at_start() {
    let check = async |limits, expected: &str| {
        let started = Broker::start(Options::ephemeral().limits(limits)).await;
        let error = started.expect_err("it makes no sense").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let one = Limits {
        body_bytes_max: 500_000,
        ..limits()
    };
    check(one, "one body of `body_bytes_max` (500000) may take").await;
    let all = Limits {
        pending_bytes_max: 999_999,
        ..limits()
    };
    check(all, "`connection_pending_bytes_max` lets one have 1000000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_alarm_says_what_holds_the_memory() {
    let arguments = ["--listen", "127.0.0.1:0", "--ephemeral"];
    let limits = ["--memory-max", "1", "--log-format", "json"];
    let mut child = command(&[&arguments[..], &limits[..]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    let addr = first.strip_prefix("listening amqp ").expect("the address");
    let addr = addr.parse().expect("an address");
    let log = BufReader::new(child.stderr.take().expect("piped"));
    let _program = Program { child, addr };

    let mut holder = Client::connect(addr).await;
    holder.begin_bodies(2..=2).await;
    let mut publisher = Client::connect(addr).await;
    publisher.declare(queue("q")).await;
    for _ in 0..12 {
        publisher.publish(1, "", "q", &[0; 100_000]).await;
    }
    let told = tokio::task::spawn_blocking(move || {
        let mut lines = log.lines().map(|line| line.expect("text"));
        lines.find(|line| line.contains("publishers have to wait"))
    });
    let told = tokio::time::timeout(PATIENCE, told).await.expect("in time");
    let line = told.expect("read").expect("the alarm");
    let number = |name: &str| -> u64 {
        let (_, rest) = line.split_once(&format!("\"{name}\":")).expect(name);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    assert!(number("in_queues") > 1024 * 1024, "{line}");
    assert!(number("in_unfinished_bodies") >= 131_064, "{line}");
    assert_eq!(number("in_transactions"), 0, "{line}");
}
