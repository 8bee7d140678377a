//! The program itself: killed without warning, stopped politely, started wrongly.

mod support;

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use support::program::{Program, command};
use support::*;
use tidings_broker_core as core;
use tidings_broker_core::{MessageId, QueueId, Queues, Record};
use tidings_wire::*;

fn fails(arguments: &[&str]) -> Output {
    let output = command(arguments).output().expect("ran");
    assert!(!output.status.success(), "{arguments:?} should fail");
    assert!(output.stdout.is_empty(), "nothing is ready");
    output
}

fn persistent() -> BasicProperties {
    BasicProperties {
        delivery_mode: Some(2),
        ..Default::default()
    }
}

/// Publishes numbers until the broker is gone; gives how many were confirmed.
async fn publish_until_killed(addr: SocketAddr, program: Program, from: u32, enough: u64) -> u32 {
    let mut client = Client::connect(addr).await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    let (mut reader, mut writer) = client.split();
    let publisher = tokio::spawn(async move {
        for number in from.. {
            let body = number.to_be_bytes();
            if writer
                .publish("orders", "", &persistent(), &body)
                .await
                .is_err()
            {
                break;
            }
        }
    });
    let mut program = Some(program);
    let mut confirmed = 0;
    while let Some(method) = reader.hear().await {
        let Method::BasicAck(ack) = method else {
            panic!("expected acks, got {method:?}")
        };
        confirmed = ack.delivery_tag;
        if confirmed >= enough
            && let Some(program) = program.take()
        {
            program.kill();
        }
    }
    assert!(
        program.is_none(),
        "the connection ended before the broker was killed"
    );
    publisher.await.expect("the publisher ended");
    from + u32::try_from(confirmed).expect("few")
}

#[tokio::test]
async fn after_kill_9_everything_confirmed_is_there_with_its_topology() {
    let data = tempfile::tempdir().expect("a folder");
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    let fanout = ExchangeDeclare {
        exchange: short("orders"),
        kind: short("fanout"),
        durable: true,
        ..Default::default()
    };
    client.call(1, fanout.clone()).await;
    let durable = |name| QueueDeclare {
        durable: true,
        ..queue_with(name, &[("x-dead-letter-exchange", text(""))])
    };
    for name in ["a", "b"] {
        client.declare(durable(name)).await;
        let bind = QueueBind {
            queue: short(name),
            exchange: short("orders"),
            ..Default::default()
        };
        client.call(1, bind).await;
    }
    client.declare(queue("transient")).await;
    drop(client);

    let mut program = program;
    let mut confirmed = 0;
    for _ in 0..3 {
        let addr = program.addr;
        confirmed = publish_until_killed(addr, program, confirmed, 500).await;
        program = Program::start(data.path());
        let mut client = Client::connect(program.addr).await;
        for name in ["a", "b"] {
            // Those that were published and not confirmed may be there, too, behind the others.
            let ready = client.declare(durable(name)).await.message_count;
            assert!(ready >= confirmed, "`{name}` has {ready} of {confirmed}");
            for number in 0..confirmed {
                let (got, content) = client.get(name, false).await.expect("a message");
                assert_eq!(content.body[..], number.to_be_bytes());
                assert_eq!(got.exchange, "orders");
                assert_eq!(content.properties.delivery_mode(), Some(2));
            }
            // What is left over goes; what was fetched comes back.
            client
                .call(
                    1,
                    QueuePurge {
                        queue: short(name),
                        no_wait: false,
                    },
                )
                .await;
            client.call(1, BasicRecover { requeue: true }).await;
            assert_eq!(client.ready(name).await, confirmed);
        }
        client.call(1, fanout.clone()).await;
        let passive = QueueDeclare {
            passive: true,
            ..queue("transient")
        };
        assert!(matches!(
            client.call(1, passive).await,
            Method::ChannelClose(_)
        ));
    }
}

#[tokio::test]
async fn what_was_acknowledged_does_not_come_back() {
    let data = tempfile::tempdir().expect("a folder");
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    client
        .declare(QueueDeclare {
            durable: true,
            ..queue("q")
        })
        .await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    for number in 0..10_u8 {
        client
            .publish_with(1, "", "q", false, &persistent(), &[number])
            .await;
        client.hear().await;
    }
    for _ in 0..5 {
        client.get("q", true).await.expect("a message");
    }
    client.publish(1, "", "q", b"not persistent").await;
    client.hear().await;
    // The last confirm of a persistent message covers everything before it.
    client
        .publish_with(1, "", "q", false, &persistent(), &[10])
        .await;
    client.hear().await;
    program.kill();
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(client.ready("q").await, 6);
    for number in 5..11_u8 {
        let (_, content) = client.get("q", true).await.expect("a message");
        assert_eq!(content.body[..], [number]);
    }
}

#[tokio::test]
async fn a_polite_stop_tells_clients_and_exits_with_0() {
    let data = tempfile::tempdir().expect("a folder");
    let mut program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    let pid = program.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("ran")
            .success()
    );
    let Some(Method::ConnectionClose(close)) = client.hear().await else {
        panic!("a close")
    };
    assert_eq!(close.reply_code, 320);
    assert!(
        close.reply_text.starts_with(b"CONNECTION_FORCED"),
        "{}",
        close.reply_text
    );
    client.send(0, &ConnectionCloseOk {}).await;
    assert!(client.hear().await.is_none());
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = program.child.try_wait().expect("asked") {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "it does not stop");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(status.success());
}

#[test]
fn a_start_says_what_of_the_folder_is_not_as_it_was_and_not_without_end() {
    const MESSAGES: u64 = 150;
    let long = "k".repeat(300);
    let arguments = core::Table::new()
        .with("x-dead-letter-exchange", core::Value::str(""))
        .with("x-dead-letter-routing-key", core::Value::str(&long));
    let mut records = vec![Record::QueueDeclared {
        queue: QueueId(1),
        name: "old".into(),
        auto_delete: false,
        arguments,
    }];
    records.extend((1..=MESSAGES).map(|id| {
        Record::Enqueued {
            id: MessageId(id),
            at: 0,
            queues: Queues::One(QueueId(1)),
            message: core::Message {
                persistent: true,
                ..core::Message::new("", long.clone(), "body")
            }
            .into(),
        }
    }));
    let data = tempfile::tempdir().expect("a folder");
    support::lasting::write_folder(data.path(), &records);
    let log = tempfile::NamedTempFile::new().expect("a file");
    let stderr = log.reopen().expect("the same file");
    // What it has to say about the folder it has said when it is ready.
    let program = Program::start_with(data.path(), stderr.into());
    program.kill();
    let log = std::fs::read_to_string(log.path()).expect("text");
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 101, "100 and how many more:\n{log}");
    for words in ["queue `old` is kept", "`x-dead-letter-routing-key`"] {
        assert!(warnings[0].contains(words), "{}", warnings[0]);
    }
    assert!(
        warnings[1].contains("a routing key of 300 bytes"),
        "{}",
        warnings[1]
    );
    assert!(
        warnings[100].contains("51 more things"),
        "{}",
        warnings[100]
    );
}

#[test]
fn a_start_that_fails_says_what_to_do() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().display().to_string();
    let program = Program::start(data.path());
    let taken = program.addr.to_string();
    let port = program.addr.port().to_string();
    let file = data.path().join("file");
    std::fs::write(&file, "not a folder").expect("written");
    let file = file.display().to_string();
    let check = |arguments: &[&str], says: &[&str]| {
        let output = fails(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        for says in says {
            assert!(
                error.contains(says),
                "{arguments:?}: `{error}` has `{says}`"
            );
        }
    };
    check(
        &["--listen", &taken, "--ephemeral"],
        &[&format!("port {port} is taken"), "`--listen`"],
    );
    check(
        &["--listen", "127.0.0.1:0", "--data", &folder],
        &["in use", "`--data`", &folder],
    );
    check(
        &["--listen", "127.0.0.1:0", "--data", &file],
        &["`--data`", &file],
    );
    check(&["--listen", "nonsense"], &["--listen"]);
    check(&["--ephemeral", "--user", "nopassword"], &["NAME:PASSWORD"]);
    let output = fails(&["--ephemeral", "--user", "shop:first,half-of-a-secret"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("user 2 of `--user`"), "{error}");
    assert!(!error.contains("half-of-a-secret"), "{error}");
}

#[test]
fn help_has_examples() {
    let output = command(&["--help"]).output().expect("ran");
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(
        help.contains("Examples:") && help.contains("--ephemeral"),
        "{help}"
    );
}

/// The processor time that a process has used, in hundredths of a second.
#[cfg(target_os = "linux")]
fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    // Field 14 and 15 of the line, of which the name is the second.
    ticks(11) + ticks(12)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_peer_that_does_not_read_costs_no_processor_time() {
    let data = tempfile::tempdir().expect("a folder");
    let program = Program::start(data.path());
    let tune = ConnectionTuneOk {
        frame_max: 131_072,
        heartbeat: 2,
        ..Default::default()
    };
    let hello = Hello {
        tune: Some(tune),
        ..Hello::default()
    };
    let mut deaf = Client::greet(program.addr, hello).await.expect("let in");
    deaf.open(1).await;
    deaf.declare(queue("q")).await;
    deaf.consume(1, "q", true).await;
    let mut publisher = Client::connect(program.addr).await;
    // More than the sockets hold. When some of it stays in the queue, the consumer is paused.
    while publisher.ready("q").await == 0 {
        publisher.publish(1, "", "q", &[0; 100_000]).await;
        publisher.settle(1).await;
    }
    // It is alive, and more than half of its heartbeat passes without a byte for it.
    let beat = async |deaf: &mut Client, times: u32| {
        for _ in 0..times {
            deaf.write(&[8, 0, 0, 0, 0, 0, 0, 0xce]).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    beat(&mut deaf, 3).await;
    let before = processor_time(program.child.id());
    beat(&mut deaf, 4).await;
    let used = processor_time(program.child.id()) - before;
    assert!(used < 20, "{used} hundredths of a second in two seconds");
    // It is still connected, and gets what waits when it reads.
    while publisher.ready("q").await > 0 {
        deaf.delivery_or_heartbeat().await;
    }
}
