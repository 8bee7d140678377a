//! What a client is told when it does something wrong: the code, the text, and whether the channel
//! or the whole connection closes. The texts are RabbitMQ's, because people and programs look for
//! them.

mod support;

use support::*;
use tidings_wire::*;

/// What was done before, the wrong thing, and what comes of it.
struct Row {
    before: Vec<Method>,
    wrong: Method,
    code: u16,
    text: &'static str,
}

fn row(before: Vec<Method>, wrong: impl Into<Method>, code: u16, text: &'static str) -> Row {
    Row {
        before,
        wrong: wrong.into(),
        code,
        text,
    }
}

async fn check(row: Row) {
    let broker = broker().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    for method in row.before {
        let name = method.name();
        let answer = client.call(1, method).await;
        assert!(
            !matches!(answer, Method::ChannelClose(_)),
            "{name} is fine: {answer:?}"
        );
    }
    let culprit = (row.wrong.class_id(), row.wrong.method_id());
    let name = row.wrong.name();
    client.send(1, &row.wrong).await;
    if row.wrong.has_content() {
        let mut out = bytes::BytesMut::new();
        encode_content(&mut out, 1, &[0, 0], b"body", 131_072);
        client.write(&out).await;
    }
    let (channel, closed) = client.next().await.expect("a close");
    let hard = reply::is_hard(row.code);
    let (code, text, of) = match closed.method {
        Method::ChannelClose(c) if !hard && channel == 1 => {
            (c.reply_code, c.reply_text, (c.class_id, c.method_id))
        }
        Method::ConnectionClose(c) if hard && channel == 0 => {
            (c.reply_code, c.reply_text, (c.class_id, c.method_id))
        }
        other => panic!("{name}: expected {} to close, got {other:?}", row.code),
    };
    assert_eq!((code, of), (row.code, culprit), "{name}: {text}");
    assert!(
        text.to_str_lossy().contains(row.text),
        "{name}: `{text}` has `{}`",
        row.text
    );
    if hard {
        client.send(0, &ConnectionCloseOk {}).await;
        assert!(
            client.next().await.is_none(),
            "{name}: the connection has ended"
        );
    } else {
        client.send(1, &ChannelCloseOk {}).await;
        assert!(
            client.is_alive(1).await,
            "{name}: the number can be used again"
        );
    }
    assert!(Client::connect(broker.amqp_addr()).await.is_alive(2).await);
}

fn exchange(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange: short(name),
        kind: short(kind),
        ..Default::default()
    }
}

fn bind(queue: &str, exchange: &str) -> QueueBind {
    QueueBind {
        queue: short(queue),
        exchange: short(exchange),
        ..Default::default()
    }
}

fn publish(exchange: &str) -> BasicPublish {
    BasicPublish {
        exchange: short(exchange),
        ..Default::default()
    }
}

fn consume(queue: &str) -> BasicConsume {
    BasicConsume {
        queue: short(queue),
        consumer_tag: short("c"),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let passive = QueueDeclare {
        passive: true,
        ..queue("nope")
    };
    let no_queue = "NOT_FOUND - no queue 'nope' in vhost '/'";
    let no_exchange = "NOT_FOUND - no exchange 'nope' in vhost '/'";
    for row in [
        row(vec![], passive, 404, no_queue),
        row(
            vec![],
            ExchangeDeclare {
                passive: true,
                ..exchange("nope", "")
            },
            404,
            no_exchange,
        ),
        row(vec![], publish("nope"), 404, no_exchange),
        row(vec![], consume("nope"), 404, no_queue),
        row(
            vec![],
            BasicGet {
                queue: short("nope"),
                no_ack: true,
            },
            404,
            no_queue,
        ),
        row(
            vec![],
            QueuePurge {
                queue: short("nope"),
                no_wait: false,
            },
            404,
            no_queue,
        ),
        row(vec![], bind("nope", "amq.direct"), 404, no_queue),
        row(vec![queue("q").into()], bind("q", "nope"), 404, no_exchange),
        row(vec![], consume(""), 404, "no previously declared queue"),
    ] {
        check(row).await;
    }
}

#[tokio::test]
async fn what_differs_or_is_in_use_is_406() {
    let durable = QueueDeclare {
        durable: true,
        ..queue("q")
    };
    let ttl = |ms: i32| queue_with("q", &[("x-message-ttl", Value::I32(ms))]);
    let tag = |delivery_tag| BasicAck {
        delivery_tag,
        multiple: false,
    };
    for row in [
        row(
            vec![queue("q").into()],
            durable,
            406,
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': \
             received 'true' but current is 'false'",
        ),
        row(
            vec![ttl(1).into()],
            ttl(2),
            406,
            "inequivalent arg 'x-message-ttl' for queue 'q'",
        ),
        row(vec![], ttl(-1), 406, "x-message-ttl"),
        row(
            vec![],
            queue_with("q", &[("x-message-ttl", text("soon"))]),
            406,
            "x-message-ttl",
        ),
        row(
            vec![],
            queue_with("q", &[("x-overflow", text("burst"))]),
            406,
            "x-overflow",
        ),
        row(
            vec![],
            queue_with("q", &[("x-dead-letter-strategy", text("at-least-once"))]),
            406,
            "invalid arg 'x-dead-letter-strategy' for queue 'q' in vhost '/': only quorum queues \
             have it",
        ),
        row(
            vec![exchange("x", "direct").into()],
            exchange("x", "fanout"),
            406,
            "inequivalent arg 'type' for exchange 'x' in vhost '/'",
        ),
        row(
            vec![queue("q").into(), consume("q").into()],
            QueueDelete {
                queue: short("q"),
                if_unused: true,
                ..Default::default()
            },
            406,
            "queue 'q' in vhost '/' in use",
        ),
        row(
            vec![
                exchange("x", "direct").into(),
                queue("q").into(),
                bind("q", "x").into(),
            ],
            ExchangeDelete {
                exchange: short("x"),
                if_unused: true,
                no_wait: false,
            },
            406,
            "exchange 'x' in vhost '/' in use",
        ),
        row(
            vec![],
            tag(7),
            406,
            "PRECONDITION_FAILED - unknown delivery tag 7",
        ),
        row(
            vec![],
            BasicReject {
                delivery_tag: 1,
                requeue: true,
            },
            406,
            "unknown delivery tag 1",
        ),
        row(vec![], TxCommit {}, 406, "channel is not transactional"),
        row(vec![], TxRollback {}, 406, "channel is not transactional"),
        row(
            vec![ConfirmSelect { no_wait: false }.into()],
            TxSelect {},
            406,
            "cannot switch from confirm to tx mode",
        ),
        row(
            vec![TxSelect {}.into()],
            ConfirmSelect { no_wait: false },
            406,
            "cannot switch from tx to confirm mode",
        ),
    ] {
        check(row).await;
    }
}

#[tokio::test]
async fn what_is_reserved_is_403() {
    let exclusive = BasicConsume {
        exclusive: true,
        consumer_tag: short("d"),
        ..consume("q")
    };
    for row in [
        row(
            vec![],
            queue("amq.mine"),
            403,
            "contains reserved prefix 'amq.*'",
        ),
        row(
            vec![],
            exchange("amq.mine", "direct"),
            403,
            "contains reserved prefix 'amq.*'",
        ),
        row(
            vec![queue("q").into()],
            bind("q", ""),
            403,
            "ACCESS_REFUSED",
        ),
        row(
            vec![],
            ExchangeDelete {
                exchange: short("amq.direct"),
                ..Default::default()
            },
            403,
            "ACCESS_REFUSED",
        ),
        row(
            vec![
                ExchangeDeclare {
                    internal: true,
                    ..exchange("x", "direct")
                }
                .into(),
            ],
            publish("x"),
            403,
            "cannot publish to internal exchange 'x' in vhost '/'",
        ),
        row(
            vec![queue("q").into(), consume("q").into()],
            exclusive,
            403,
            "queue 'q' in vhost '/' in exclusive use",
        ),
    ] {
        check(row).await;
    }
}

#[tokio::test]
async fn what_the_protocol_forbids_closes_the_connection() {
    let reused = || vec![queue("q").into(), consume("q").into()];
    for row in [
        row(vec![], ChannelOpen {}, 504, "second 'channel.open' seen"),
        row(
            reused(),
            consume("q"),
            530,
            "attempt to reuse consumer tag 'c'",
        ),
        row(
            vec![],
            BasicPublish {
                immediate: true,
                ..publish("")
            },
            540,
            "immediate=true",
        ),
        row(
            vec![],
            BasicQos {
                prefetch_size: 1,
                ..Default::default()
            },
            540,
            "prefetch_size!=0 (1)",
        ),
        row(
            vec![],
            BasicRecover { requeue: false },
            540,
            "requeue=false",
        ),
        row(vec![], ChannelFlow { active: false }, 540, "active=false"),
        row(vec![], QueueDeclareOk::default(), 503, "COMMAND_INVALID"),
    ] {
        check(row).await;
    }
}

#[tokio::test]
async fn a_queue_that_is_exclusive_to_another_connection_is_405() {
    let broker = broker().await;
    let mut owner = Client::connect(broker.amqp_addr()).await;
    owner
        .declare(QueueDeclare {
            exclusive: true,
            ..queue("mine")
        })
        .await;
    let locked =
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'";
    let attempts: [Method; 5] = [
        QueueDeclare {
            passive: true,
            ..queue("mine")
        }
        .into(),
        QueueDeclare {
            exclusive: true,
            ..queue("mine")
        }
        .into(),
        consume("mine").into(),
        QueueDelete {
            queue: short("mine"),
            ..Default::default()
        }
        .into(),
        BasicGet {
            queue: short("mine"),
            no_ack: true,
        }
        .into(),
    ];
    for attempt in attempts {
        let mut other = Client::connect(broker.amqp_addr()).await;
        let name = attempt.name();
        match other.call(1, attempt).await {
            Method::ChannelClose(close) => {
                assert_eq!(close.reply_code, 405, "{name}");
                assert!(
                    close.reply_text.to_str_lossy().starts_with(locked),
                    "{name}"
                );
            }
            answer => panic!("{name} was answered {answer:?}"),
        }
    }
    owner.close().await;
    let mut other = Client::connect(broker.amqp_addr()).await;
    assert_eq!(
        other.declare(queue("mine")).await.message_count,
        0,
        "it went with its connection"
    );
}

#[tokio::test]
async fn a_channel_that_is_not_open_is_504() {
    let broker = broker().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    let Method::ConnectionClose(close) = client.call(7, queue("q")).await else {
        panic!("closed")
    };
    assert_eq!(close.reply_code, reply::CHANNEL_ERROR);
    assert_eq!(close.reply_text, "CHANNEL_ERROR - expected 'channel.open'");
}

#[tokio::test]
async fn what_follows_on_a_closed_channel_is_ignored_until_both_agree() {
    let broker = broker().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.publish(1, "nope", "", b"closes the channel").await;
    client.publish(1, "nope", "", b"is ignored").await;
    client.send(1, &queue("ignored")).await;
    let Some(Method::ChannelClose(close)) = client.hear().await else {
        panic!("closed")
    };
    assert_eq!(close.reply_code, 404);
    client.send(1, &ChannelCloseOk {}).await;
    client.open(1).await;
    let passive = QueueDeclare {
        passive: true,
        ..queue("ignored")
    };
    let Method::ChannelClose(close) = client.call(1, passive).await else {
        panic!("closed")
    };
    assert_eq!(close.reply_code, 404);
}

#[tokio::test]
async fn a_message_that_is_wrong_in_itself_is_406() {
    let with = |change: fn(&mut BasicProperties)| {
        let mut properties = BasicProperties::default();
        change(&mut properties);
        properties
    };
    for (properties, text) in [
        (
            with(|p| p.expiration = Some(short("soon"))),
            "invalid expiration 'soon'",
        ),
        (
            with(|p| p.expiration = Some(short("-1"))),
            "invalid expiration '-1'",
        ),
        (
            with(|p| p.user_id = Some(short("alice"))),
            "user_id property set to 'alice' but authenticated user was 'guest'",
        ),
        (
            with(|p| p.headers = Some(table(&[("CC", Value::I32(1))]))),
            "'CC' must be an array",
        ),
    ] {
        let broker = broker().await;
        let mut client = Client::connect(broker.amqp_addr()).await;
        client
            .publish_with(1, "", "q", false, &properties, b"")
            .await;
        let Some(Method::ChannelClose(close)) = client.hear().await else {
            panic!("{text}")
        };
        assert_eq!(close.reply_code, 406, "{text}");
        assert!(
            close.reply_text.to_str_lossy().contains(text),
            "{}",
            close.reply_text
        );
    }
}

/// RabbitMQ refuses the wrong types, too; names that are too long it accepts, and fails when it has to
/// write them.
#[tokio::test]
async fn names_in_arguments_that_cannot_be_names_are_406() {
    let long = || text(&"n".repeat(256));
    let too_long = "it must have at most 255 bytes";
    const EXCHANGE: &str = "x-dead-letter-exchange";
    let dead = (EXCHANGE, text("dead"));
    let declare = |entries: &[(&'static str, Value)]| queue_with("q", entries);
    let alternate = |value| ExchangeDeclare {
        arguments: table(&[("alternate-exchange", value)]),
        ..exchange("x", "direct")
    };
    let key = "x-dead-letter-routing-key";
    let invalid_key = "invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/'";
    for row in [
        row(
            vec![],
            declare(&[dead.clone(), (key, long())]),
            406,
            too_long,
        ),
        row(
            vec![],
            declare(&[dead.clone(), (key, long())]),
            406,
            invalid_key,
        ),
        row(
            vec![],
            declare(&[dead, (key, Value::I32(1))]),
            406,
            "it must be a string",
        ),
        row(vec![], declare(&[(EXCHANGE, long())]), 406, too_long),
        row(
            vec![],
            declare(&[(EXCHANGE, Value::Void)]),
            406,
            "it must be a string",
        ),
        row(vec![], alternate(long()), 406, too_long),
        row(
            vec![],
            alternate(Value::Bool(true)),
            406,
            "it must be a string",
        ),
    ] {
        check(row).await;
    }
}
