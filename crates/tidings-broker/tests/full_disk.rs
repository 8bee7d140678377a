//! A disk that is full: what does not fit is refused or waits and changes nothing, what was confirmed
//! is kept, and everything goes on when there is room again.
//!
//! The program runs on a small file system of its own. A user who may not mount one has to skip these
//! tests, and is told.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::lasting::*;
use support::program::Program;
use support::*;
use tidings_wire::*;

/// A file system of its own, gone with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None if this user may not mount anything.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: this user may not mount a file system");
        }
        mounted.then_some(Self(dir))
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Takes all the space that is left, for somebody else.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("somebody-elses");
        let mut file = std::fs::File::create(&path).expect("a file");
        let chunk = [0; 4096];
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that another test is just starting has a copy of every open file for a moment.
        let deadline = Instant::now() + Duration::from_secs(30);
        let unmount = || Command::new("umount").arg(self.0.path()).output();
        while !unmount().is_ok_and(|output| output.status.success()) {
            assert!(Instant::now() < deadline, "it can be unmounted");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A publisher with confirms, and what it was told of its messages.
struct Publisher {
    client: Client,
    sent: u64,
    told: u64,
    refused: u64,
}

impl Publisher {
    async fn connect(addr: std::net::SocketAddr) -> Publisher {
        Publisher {
            client: confirming(addr).await,
            sent: 0,
            told: 0,
            refused: 0,
        }
    }

    async fn publish(&mut self, queue: &str) {
        self.client
            .publish_with(1, "", queue, true, &persistent(None), &[7; 20_000])
            .await;
        self.sent += 1;
    }

    /// Publishes one message after the other, until the broker asks to wait because its disk is full.
    async fn fill(&mut self, queue: &str) {
        loop {
            self.publish(queue).await;
            while self.told < self.sent {
                if self.hear().await {
                    return;
                }
            }
        }
    }

    /// Waits until it was told of every message; gives how many were confirmed.
    async fn told_of_all(&mut self) -> u32 {
        while self.told < self.sent {
            self.hear().await;
        }
        u32::try_from(self.sent - self.refused).expect("few")
    }

    /// Tells whether it is asked to wait.
    async fn hear(&mut self) -> bool {
        match self.client.hear().await {
            Some(Method::BasicAck(ack)) => self.told = ack.delivery_tag,
            Some(Method::BasicNack(nack)) => {
                self.refused += nack.delivery_tag - self.told;
                self.told = nack.delivery_tag;
            }
            Some(Method::ConnectionBlocked(blocked)) => {
                assert_eq!(blocked.reason, "low on disk");
                return true;
            }
            Some(Method::ConnectionUnblocked(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
        false
    }
}

async fn confirming(addr: std::net::SocketAddr) -> Client {
    let mut client = Client::connect(addr).await;
    done(&mut client, ConfirmSelect::default()).await;
    client
}

/// The refusal of a command for want of space; it ends the connection.
async fn refused(addr: std::net::SocketAddr, method: impl Into<Method>) {
    let mut client = Client::connect(addr).await;
    match client.call(1, method.into()).await {
        Method::ConnectionClose(close) => {
            assert_eq!(close.reply_code, reply::RESOURCE_ERROR);
            assert_eq!(
                close.reply_text,
                "RESOURCE_ERROR - the broker's disk is full"
            );
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Declares queues until there is no room for the record of one with a name of four letters.
async fn declare_until_refused(addr: std::net::SocketAddr) {
    let mut comment = 60_000;
    for at in 0..10_000 {
        let mut client = Client::connect(addr).await;
        let arguments = match comment {
            0 => Table::default(),
            _ => table(&[("x-comment", text(&"c".repeat(comment)))]),
        };
        let declare = QueueDeclare {
            arguments,
            ..queue(&format!("{at:04}"))
        };
        match client.call(1, durable(declare)).await {
            Method::QueueDeclareOk(_) => client.close().await,
            Method::ConnectionClose(_) if comment == 0 => return,
            Method::ConnectionClose(_) => comment /= 2,
            other => panic!("unexpected {other:?}"),
        }
    }
    panic!("there is always room");
}

async fn exists(addr: std::net::SocketAddr, name: &str) -> bool {
    let mut client = Client::connect(addr).await;
    let passive = QueueDeclare {
        passive: true,
        ..queue(name)
    };
    let answer = client.call(1, passive).await;
    client.close().await;
    matches!(answer, Method::QueueDeclareOk(_))
}

fn start(data: &Path) -> Program {
    Program::start(data)
}

#[tokio::test]
async fn what_was_refused_for_want_of_space_is_declared_anew_and_outlives_a_kill() {
    let Some(disk) = SmallDisk::mount("8m") else {
        return;
    };
    let program = start(&disk.data());
    let addr = program.addr;
    let mut publisher = Publisher::connect(addr).await;
    publisher.client.declare(durable(queue("full"))).await;
    let filler = disk.fill();
    publisher.fill("full").await;
    declare_until_refused(addr).await;

    refused(addr, durable(queue("late"))).await;
    refused(addr, exchange("late", "direct", Table::default())).await;
    let bound = || bind("full", "amq.topic", "late", Table::default());
    refused(addr, bound()).await;
    assert!(!exists(addr, "late").await, "it was refused");
    // What is there is there, also for those who declare it again.
    let mut client = Client::connect(addr).await;
    client.declare(durable(queue("full"))).await;
    client.close().await;

    // Who publishes without confirms waits, too, before anything happens with the message.
    let mut plain = Client::connect(addr).await;
    plain
        .publish_with(1, "", "full", false, &persistent(None), b"held")
        .await;
    match plain.hear().await {
        Some(Method::ConnectionBlocked(_)) => {}
        other => panic!("expected to be blocked, got {other:?}"),
    }

    std::fs::remove_file(filler).expect("removed");
    match plain.hear().await {
        Some(Method::ConnectionUnblocked(_)) => {}
        other => panic!("expected to be unblocked, got {other:?}"),
    }
    plain.settle(1).await;
    // The publishers go on by themselves, with what they had sent meanwhile.
    publisher.publish("full").await;
    let confirmed = publisher.told_of_all().await;
    let mut client = confirming(addr).await;
    done(&mut client, durable(queue("late"))).await;
    done(&mut client, exchange("late", "direct", Table::default())).await;
    done(&mut client, bind("late", "late", "k", Table::default())).await;
    done(&mut client, bound()).await;
    confirmed_by(&mut client, "late", "k").await;
    confirmed_by(&mut client, "amq.topic", "late").await;
    confirmed_by(&mut client, "", "late").await;
    program.kill();

    let program = start(&disk.data());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(client.ready("late").await, 2);
    assert_eq!(client.ready("full").await, confirmed + 2);
    client
        .publish(1, "late", "k", b"the binding is there")
        .await;
    client.wait_ready("late", 3).await;
}

async fn confirmed_by(client: &mut Client, exchange: &str, key: &str) {
    support::lasting::confirmed(client, exchange, key, &persistent(None), b"late").await;
}

#[tokio::test]
async fn a_transaction_without_room_publishes_nothing_and_what_is_acknowledged_stays_out() {
    let Some(disk) = SmallDisk::mount("8m") else {
        return;
    };
    let program = start(&disk.data());
    let addr = program.addr;
    let mut publisher = confirming(addr).await;
    publisher.declare(durable(queue("full"))).await;
    publisher.declare(durable(queue("other"))).await;
    confirmed_by(&mut publisher, "", "other").await;

    // Its messages fit one by one, but not all of them. It is sent before anybody is blocked.
    let mut client = Client::connect(addr).await;
    done(&mut client, TxSelect {}).await;
    let (got, _) = client.get("other", false).await.expect("a message");
    let ack = BasicAck {
        delivery_tag: got.delivery_tag,
        multiple: false,
    };
    client.send(1, &ack).await;
    for _ in 0..100 {
        client
            .publish_with(1, "", "other", true, &persistent(None), &[1; 200_000])
            .await;
    }
    match client.call(1, TxCommit {}).await {
        Method::ConnectionClose(close) => assert_eq!(close.reply_code, reply::RESOURCE_ERROR),
        other => panic!("expected a refusal, got {other:?}"),
    }
    let mut client = Client::connect(addr).await;
    client.wait_ready("other", 1).await;
    let (_, content) = client.get("other", false).await.expect("it came back");
    assert_eq!(&content.body[..], b"late");
    program.kill();
    let program = start(&disk.data());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(client.ready("other").await, 1);
}

#[tokio::test]
async fn what_dies_while_the_disk_is_full_is_dead_lettered_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else {
        return;
    };
    let program = start(&disk.data());
    let addr = program.addr;
    let mut publisher = Publisher::connect(addr).await;
    let arguments = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("dead")),
    ];
    let source = durable(queue_with("source", &arguments));
    publisher.client.declare(source).await;
    publisher.client.declare(durable(queue("dead"))).await;
    publisher.client.declare(durable(queue("full"))).await;
    let mut client = confirming(addr).await;
    for _ in 0..3 {
        support::lasting::confirmed(&mut client, "", "source", &persistent(None), &[9; 5000]).await;
    }
    let filler = disk.fill();
    publisher.fill("full").await;
    declare_until_refused(addr).await;

    let mut consumer = Client::connect(addr).await;
    for _ in 0..3 {
        let (got, _) = consumer.get("source", false).await.expect("a message");
        let reject = BasicReject {
            delivery_tag: got.delivery_tag,
            requeue: false,
        };
        consumer.send(1, &reject).await;
    }
    consumer.settle(1).await;
    assert_eq!(consumer.ready("dead").await, 0, "there is no room for them");
    assert_eq!(consumer.ready("source").await, 0, "nobody gets them again");
    program.kill();
    // For the store they are where they were.
    std::fs::remove_file(filler).expect("removed");
    let program = start(&disk.data());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(client.ready("source").await, 3);

    // Now without a kill: they go on by themselves.
    let mut publisher = Publisher::connect(program.addr).await;
    let filler = disk.fill();
    publisher.fill("full").await;
    declare_until_refused(program.addr).await;
    for _ in 0..3 {
        let (got, _) = client.get("source", false).await.expect("a message");
        let reject = BasicReject {
            delivery_tag: got.delivery_tag,
            requeue: false,
        };
        client.send(1, &reject).await;
    }
    client.settle(1).await;
    assert_eq!(client.ready("dead").await, 0, "there is no room for them");
    std::fs::remove_file(filler).expect("removed");
    client.wait_ready("dead", 3).await;
    // What is confirmed now comes after them in the log.
    let mut client = confirming(program.addr).await;
    confirmed_by(&mut client, "", "full").await;
    program.kill();
    let program = start(&disk.data());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(client.ready("dead").await, 3);
    assert_eq!(client.ready("source").await, 0);
}
