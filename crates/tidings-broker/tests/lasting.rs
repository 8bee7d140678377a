//! What a client declares and sends outlives the process, whatever values it has; and a folder that
//! an earlier version wrote opens, whatever that version accepted.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use support::lasting::*;
use support::*;
use tidings_broker::{Broker, Limits, Options};
use tidings_broker_core as core;
use tidings_broker_core::{MessageId, QueueId, Queues, Record};
use tidings_wire::*;

/// A value in `depth` tables, arrays, or both in turn.
fn nested(depth: usize, is_table: IsTable) -> Table {
    let mut inner = Value::I32(7);
    for level in 0..depth {
        inner = if is_table(level) {
            Value::Table(table(&[("n", inner)]))
        } else {
            Value::Array([inner].into_iter().collect())
        };
    }
    table(&[("x-nested", inner)])
}

/// Tells of a level whether it is a table, or else an array.
type IsTable = fn(usize) -> bool;

const CONTAINERS: [(&str, IsTable); 3] = [
    ("tables", |_| true),
    ("arrays", |_| false),
    ("both", |level| level % 2 == 0),
];

#[tokio::test]
async fn arguments_nested_up_to_the_limit_are_there_after_a_restart() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    done(&mut client, ConfirmSelect::default()).await;
    let cases = || (1..=DEPTH_MAX).flat_map(|depth| CONTAINERS.map(|(of, is)| (depth, of, is)));
    for (depth, of, container) in cases() {
        let (name, arguments) = (format!("{depth} {of}"), nested(depth, container));
        let declare = QueueDeclare {
            arguments: arguments.clone(),
            ..queue(&name)
        };
        done(&mut client, durable(declare)).await;
        done(&mut client, exchange(&name, "direct", arguments.clone())).await;
        done(&mut client, bind(&name, &name, "k", arguments.clone())).await;
        let message = persistent(Some(arguments));
        confirmed(&mut client, &name, "k", &message, b"deep").await;
    }
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    for (depth, of, container) in cases() {
        let (name, arguments) = (format!("{depth} {of}"), nested(depth, container));
        let (got, content) = client.get(&name, true).await.expect("a message");
        assert_eq!(got.exchange, &*name);
        assert_eq!(content.properties.headers(), Some(arguments.clone()));
        // The binding is there, and is the one with these arguments: it can be taken away by them.
        let unbind = QueueUnbind {
            queue: short(&name),
            exchange: short(&name),
            routing_key: short("k"),
            arguments,
        };
        client.publish(1, &name, "k", b"still bound").await;
        client.wait_ready(&name, 1).await;
        done(&mut client, unbind).await;
        client.publish(1, &name, "k", b"no longer").await;
        assert_eq!(client.ready(&name).await, 1, "{name}");
    }
}

#[tokio::test]
async fn arguments_nested_deeper_are_refused_and_the_folder_still_opens() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    for depth in [DEPTH_MAX + 1, DEPTH_MAX + 2, 64, 65, 1000] {
        for (of, container) in CONTAINERS {
            let arguments = nested(depth, container);
            let declare = QueueDeclare {
                arguments: arguments.clone(),
                ..queue("deep")
            };
            let bound = bind("deep", "amq.direct", "k", arguments.clone());
            let between = ExchangeBind {
                source: short("amq.direct"),
                destination: short("amq.fanout"),
                arguments: arguments.clone(),
                ..Default::default()
            };
            let attempts: [Method; 5] = [
                durable(declare).into(),
                exchange("deep", "direct", arguments).into(),
                bound.into(),
                between.into(),
                BasicPublish::default().into(),
            ];
            for attempt in attempts {
                let mut client = Client::connect(broker.amqp_addr()).await;
                client.send(1, &attempt).await;
                if attempt.has_content() {
                    let headers = persistent(Some(nested(depth, container))).encode();
                    let mut content = bytes::BytesMut::new();
                    encode_content(&mut content, 1, headers.as_bytes(), b"", 131_072);
                    client.write(&content).await;
                }
                match client.hear().await.expect("an answer") {
                    Method::ConnectionClose(close) => {
                        assert_eq!(close.reply_code, reply::SYNTAX_ERROR, "{depth} {of}");
                        let text = close.reply_text.to_str_lossy().into_owned();
                        assert!(text.contains("nested deeper than 32 levels"), "{text}");
                    }
                    other => panic!("{depth} {of}: {other:?}"),
                }
            }
        }
    }
    let client = Client::connect(broker.amqp_addr()).await;
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    let passive = QueueDeclare {
        passive: true,
        ..queue("deep")
    };
    assert!(matches!(
        client.call(1, passive).await,
        Method::ChannelClose(close) if close.reply_code == reply::NOT_FOUND
    ));
}

#[tokio::test]
async fn limits_beyond_what_the_log_can_hold_are_refused_at_the_start() {
    let default = Limits::default;
    for (limits, name) in [
        (
            Limits {
                body_bytes_max: (1 << 30) + 1,
                ..default()
            },
            "`body_bytes_max`",
        ),
        (
            Limits {
                frame_max: (256 << 20) + 1,
                ..default()
            },
            "`frame_max`",
        ),
    ] {
        let options = Options::ephemeral().limits(limits);
        let error = Broker::start(options).await.expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_dead_letter_key_of_255_bytes_arrives_whole_after_a_restart_too() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    let key = "k".repeat(255);
    let arguments = [
        ("x-dead-letter-exchange", text("amq.fanout")),
        ("x-dead-letter-routing-key", text(&key)),
    ];
    client.declare(durable(queue_with("q", &arguments))).await;
    client.declare(durable(queue("dead"))).await;
    done(
        &mut client,
        bind("dead", "amq.fanout", "", Table::default()),
    )
    .await;
    client
        .publish_with(1, "", "q", false, &persistent(None), b"rejected")
        .await;
    let (got, _) = client.get("q", false).await.expect("a message");
    let reject = BasicReject {
        delivery_tag: got.delivery_tag,
        requeue: false,
    };
    client.send(1, &reject).await;
    client.wait_ready("dead", 1).await;
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    client.consume(1, "dead", true).await;
    let (deliver, content) = client.delivery().await;
    assert_eq!(deliver.routing_key, &*key);
    assert_eq!(&content.body[..], b"rejected");
}

/// A queue as version 0.1 stored it, with a message in it.
fn old_queue(arguments: core::Table, key: &str) -> Vec<Record> {
    let message = core::Message {
        properties: persistent(None).encode().as_bytes().clone(),
        persistent: true,
        ..core::Message::new("", key.to_owned(), "from before")
    };
    vec![
        Record::QueueDeclared {
            queue: QueueId(1),
            name: "old".into(),
            auto_delete: false,
            arguments,
        },
        Record::Enqueued {
            id: MessageId(1),
            at: 0,
            queues: Queues::One(QueueId(1)),
            message: Arc::new(message),
        },
    ]
}

#[tokio::test]
async fn a_folder_with_a_dead_letter_key_that_is_too_long_opens_and_keeps_the_queue() {
    let data = tempfile::tempdir().expect("a folder");
    let arguments = core::Table::new()
        .with("x-dead-letter-exchange", core::Value::str("amq.fanout"))
        .with(
            "x-dead-letter-routing-key",
            core::Value::str(&"k".repeat(300)),
        );
    write_folder(data.path(), &old_queue(arguments, "old"));
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(queue("dead")).await;
    done(
        &mut client,
        bind("dead", "amq.fanout", "", Table::default()),
    )
    .await;
    let (got, _) = client.get("old", false).await.expect("it was kept");
    let reject = BasicReject {
        delivery_tag: got.delivery_tag,
        requeue: false,
    };
    client.send(1, &reject).await;
    client.wait_ready("dead", 1).await;
    let (got, content) = client.get("dead", true).await.expect("a dead letter");
    assert_eq!(
        (got.routing_key, &content.body[..]),
        (short("old"), &b"from before"[..])
    );
}

#[tokio::test]
async fn a_stored_message_whose_routing_key_is_too_long_gets_its_earlier_one_back() {
    let data = tempfile::tempdir().expect("a folder");
    let mut records = old_queue(core::Table::new(), "");
    let Some(Record::Enqueued { message, .. }) = records.last_mut() else {
        panic!("the message is last")
    };
    *message = Arc::new(core::Message {
        exchange: "amq.fanout".into(),
        routing_key: "k".repeat(300).into(),
        deaths: Some(Arc::new(core::Deaths {
            entries: vec![core::Death {
                queue: "q".into(),
                reason: core::DeathReason::Rejected,
                count: 1,
                time: 0,
                exchange: Bytes::new(),
                routing_keys: vec!["before".into()],
                original_expiration: None,
            }],
            first: ("q".into(), core::DeathReason::Rejected),
        })),
        ..core::Message::clone(message)
    });
    write_folder(data.path(), &records);
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    let (got, _) = client.get("old", false).await.expect("it was kept");
    assert_eq!(got.routing_key, "before");
    client.consume(1, "old", true).await;
    let nack = BasicNack {
        delivery_tag: got.delivery_tag,
        multiple: false,
        requeue: true,
    };
    client.send(1, &nack).await;
    let (deliver, content) = client.delivery().await;
    assert_eq!(deliver.routing_key, "before");
    assert_eq!(&content.body[..], b"from before");
}

/// Numbers that are none, and equal nothing by the rules of arithmetic.
fn no_numbers() -> [Value; 4] {
    [
        Value::F64(f64::NAN),
        Value::F32(f32::NAN),
        Value::F64(f64::from_bits(0x7ff0_0000_0000_0001)),
        Value::Array([Value::F64(f64::NAN)].into_iter().collect()),
    ]
}

#[tokio::test]
async fn a_binding_with_a_number_that_is_none_is_made_once_and_can_be_taken_away() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    done(&mut client, exchange("x", "fanout", Table::default())).await;
    for value in no_numbers() {
        let arguments = table(&[("n", value)]);
        done(&mut client, bind("q", "x", "", arguments.clone())).await;
        done(&mut client, bind("q", "x", "", arguments.clone())).await;
        let unbind = QueueUnbind {
            queue: short("q"),
            exchange: short("x"),
            routing_key: short(""),
            arguments,
        };
        done(&mut client, unbind).await;
        client.publish(1, "x", "", b"to nobody").await;
        assert_eq!(client.ready("q").await, 0, "it was unbound");
    }
}

#[tokio::test]
async fn a_queue_goes_with_its_bindings_even_if_they_have_numbers_that_are_none() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    done(&mut client, exchange("x", "fanout", Table::default())).await;
    for value in no_numbers() {
        let arguments = table(&[("n", value)]);
        done(&mut client, bind("q", "x", "", arguments)).await;
    }
    let delete = QueueDelete {
        queue: short("q"),
        ..Default::default()
    };
    done(&mut client, delete).await;
    client.publish(1, "x", "", b"to nobody").await;
    assert!(client.is_alive(2).await);
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    client.publish(1, "x", "", b"to nobody").await;
    assert!(client.is_alive(2).await);
}

#[tokio::test]
async fn a_binding_taken_away_by_equal_arguments_stays_away() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    // Equal, but not the same bytes in the log.
    let (bound, unbound) = (Value::F64(0.0), Value::F64(-0.0));
    done(
        &mut client,
        bind("q", "amq.fanout", "", table(&[("n", bound)])),
    )
    .await;
    let unbind = QueueUnbind {
        queue: short("q"),
        exchange: short("amq.fanout"),
        routing_key: short(""),
        arguments: table(&[("n", unbound)]),
    };
    done(&mut client, unbind).await;
    client.publish(1, "amq.fanout", "", b"to nobody").await;
    assert_eq!(client.ready("q").await, 0);
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    client.publish(1, "amq.fanout", "", b"to nobody").await;
    assert_eq!(client.ready("q").await, 0, "it did not come back");
}

/// A fanout exchange per delay, a queue behind it in which messages wait, and a direct exchange that
/// all delays share: it leads back to the consumers' queues by their names, and what it cannot route
/// goes to its alternate exchange.
async fn declare_delays(client: &mut Client) {
    let alternate = table(&[("alternate-exchange", text("undeliverable"))]);
    done(
        client,
        exchange("undeliverable", "fanout", Table::default()),
    )
    .await;
    done(client, exchange("back", "direct", alternate)).await;
    done(client, exchange("delay", "fanout", Table::default())).await;
    let waiting = [
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", Value::I32(300)),
        ("x-dead-letter-exchange", text("back")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ];
    client.declare(durable(queue_with("delay", &waiting))).await;
    client.declare(durable(queue("undeliverable"))).await;
    client.declare(durable(queue("work"))).await;
    done(client, bind("delay", "delay", "", Table::default())).await;
    let undeliverable = bind("undeliverable", "undeliverable", "", Table::default());
    done(client, undeliverable).await;
    done(client, bind("work", "back", "work", Table::default())).await;
}

/// What waited is back in its consumer's queue, and what has no queue any more is in the alternate's.
async fn check_delayed(client: &mut Client, body: &[u8]) {
    client.wait_ready("work", 1).await;
    client.wait_ready("undeliverable", 1).await;
    for (queue, key) in [("work", "work"), ("undeliverable", "gone")] {
        let (got, content) = client.get(queue, true).await.expect("a message");
        assert_eq!((got.exchange, got.routing_key), (short("back"), short(key)));
        assert_eq!(&content.body[..], body);
        let headers = content.properties.headers().expect("x-death");
        assert_eq!(headers.get("x-first-death-queue"), Some(text("delay")));
        assert_eq!(headers.get("x-first-death-reason"), Some(text("expired")));
    }
    assert_eq!(client.ready("delay").await, 0);
}

#[tokio::test]
async fn what_waits_for_a_delay_comes_back_by_its_own_key_or_goes_to_the_alternate_exchange() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    declare_delays(&mut client).await;
    done(&mut client, ConfirmSelect::default()).await;
    for key in ["work", "gone"] {
        confirmed(&mut client, "delay", key, &persistent(None), b"before").await;
    }
    check_delayed(&mut client, b"before").await;

    // The messages wait while the broker is away.
    for key in ["work", "gone"] {
        confirmed(
            &mut client,
            "delay",
            key,
            &persistent(None),
            b"over a restart",
        )
        .await;
    }
    let (broker, mut client) = restart(broker, client, data.path()).await;
    check_delayed(&mut client, b"over a restart").await;

    // What was declared is all there, and is the same.
    declare_delays(&mut client).await;
    done(&mut client, ConfirmSelect::default()).await;
    for key in ["work", "gone"] {
        confirmed(&mut client, "delay", key, &persistent(None), b"after").await;
    }
    check_delayed(&mut client, b"after").await;
    // Nothing comes a second time.
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    for queue in ["delay", "work", "undeliverable"] {
        assert_eq!(client.ready(queue).await, 0, "`{queue}`");
    }
    let other = exchange("back", "direct", Table::default());
    assert!(matches!(
        client.call(1, other).await,
        Method::ChannelClose(close) if close.reply_code == reply::PRECONDITION_FAILED
    ));
}

#[tokio::test]
async fn what_expires_while_the_broker_is_away_is_dead_lettered_when_it_is_back() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    declare_delays(&mut client).await;
    client.close().await;
    broker.shutdown().await.expect("a clean stop");
    let is_delay = |record: &Record| match record {
        Record::QueueDeclared { queue, name, .. } if name == "delay" => Some(*queue),
        _ => None,
    };
    let delay = records(data.path()).iter().find_map(is_delay);
    let delay = delay.expect("the queue is there");
    let waiting = [(1, "work"), (2, "gone")].map(|(id, key)| Record::Enqueued {
        id: MessageId(id),
        // Long ago, so that its time is over.
        at: 0,
        queues: Queues::One(delay),
        message: Arc::new(core::Message {
            properties: persistent(None).encode().as_bytes().clone(),
            persistent: true,
            ..core::Message::new("delay", key, "long over")
        }),
    });
    write_folder(data.path(), &waiting);
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    check_delayed(&mut client, b"long over").await;
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    for queue in ["delay", "work", "undeliverable"] {
        assert_eq!(client.ready(queue).await, 0, "`{queue}`");
    }
}
