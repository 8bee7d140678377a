//! What becomes of messages: confirmed, returned, delivered, settled, expired, dead-lettered,
//! counted.

mod support;

use std::time::Duration;

use support::*;
use tidings_broker::{Handle, Limits};
use tidings_wire::*;

async fn start() -> (Handle, Client) {
    let broker = broker().await;
    let client = Client::connect(broker.amqp_addr()).await;
    (broker, client)
}

fn header(content: &Content, name: &str) -> Option<Value> {
    content.properties.headers()?.get(name)
}

#[tokio::test]
async fn properties_and_headers_come_back_byte_for_byte() {
    let (_broker, mut client) = start().await;
    client.declare(queue("q")).await;
    let mut nested = Table::builder();
    nested
        .push(&short("z"), &Value::Void)
        .push(&short("z"), &Value::Bytes(b"\xff"[..].into()));
    let mut headers = Table::builder();
    // Duplicates, an odd order, every kind of number: none of it is the broker's to tidy up.
    for (name, value) in [
        ("b", Value::I8(-1)),
        ("a", Value::U16(7)),
        ("a", Value::I64(7)),
        ("n", Value::Table(nested.build())),
        ("x-death", text("forged")),
        ("f", Value::F64(0.5)),
    ] {
        headers.push(&ShortStr::from_static(name), &value);
    }
    let sent = BasicProperties {
        content_type: Some(short("text/plain")),
        headers: Some(headers.build()),
        delivery_mode: Some(1),
        priority: Some(3),
        correlation_id: Some(short("c")),
        reply_to: Some(short("r")),
        message_id: Some(short("m")),
        timestamp: Some(1),
        kind: Some(short("t")),
        user_id: Some(short("guest")),
        app_id: Some(short("a")),
        cluster_id: Some(short("k")),
        ..Default::default()
    };
    client.publish_with(1, "", "q", false, &sent, b"body").await;
    let (got, content) = client.get("q", true).await.expect("a message");
    assert_eq!(content.properties, sent.encode());
    assert_eq!((got.exchange, got.routing_key), (short(""), short("q")));
    assert!(!got.redelivered);
}

#[tokio::test]
async fn bodies_of_every_size_come_back_whole() {
    let limits = Limits {
        body_bytes_max: 1_000_000,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(queue("q")).await;
    let frame = 131_072 - 8;
    for bytes in [0, 1, frame - 1, frame, frame + 1, 3 * frame, 1_000_000] {
        let body: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
        client.publish(1, "", "q", &body).await;
        let (_, content) = client.get("q", true).await.expect("a message");
        assert!(content.body == body, "a body of {bytes} bytes");
    }
    client.publish(1, "", "q", &vec![0; 1_000_001]).await;
    let Some(Method::ChannelClose(close)) = client.hear().await else {
        panic!("closed")
    };
    assert_eq!(close.reply_code, 406);
    let text = "message size 1000001 is larger than configured max size 1000000";
    assert!(
        close.reply_text.to_str_lossy().ends_with(text),
        "{}",
        close.reply_text
    );
}

#[tokio::test]
async fn every_publication_is_confirmed_once_and_in_order() {
    let (_broker, mut client) = start().await;
    client.declare(queue("q")).await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    const COUNT: u64 = 1000;
    for _ in 0..COUNT {
        client.publish(1, "", "q", b"x").await;
    }
    let mut confirmed = 0;
    while confirmed < COUNT {
        let Some(Method::BasicAck(ack)) = client.hear().await else {
            panic!("an ack")
        };
        assert!(ack.delivery_tag > confirmed);
        assert!(ack.multiple || ack.delivery_tag == confirmed + 1);
        confirmed = ack.delivery_tag;
    }
    assert_eq!(client.ready("q").await, 1000);
}

#[tokio::test]
async fn what_no_queue_wants_is_returned_before_it_is_confirmed() {
    let (_broker, mut client) = start().await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    let properties = BasicProperties {
        message_id: Some(short("m")),
        ..Default::default()
    };
    client
        .publish_with(1, "amq.direct", "nobody", true, &properties, b"back")
        .await;
    let (_, returned) = client.next().await.expect("a return");
    let Method::BasicReturn(method) = returned.method else {
        panic!("a return")
    };
    assert_eq!(
        (method.reply_code, method.reply_text),
        (312, short("NO_ROUTE"))
    );
    assert_eq!(
        (method.exchange, method.routing_key),
        (short("amq.direct"), short("nobody"))
    );
    let content = returned.content.expect("with content");
    assert_eq!(
        (&content.body[..], content.properties.message_id()),
        (&b"back"[..], Some(short("m")))
    );
    let Some(Method::BasicAck(ack)) = client.hear().await else {
        panic!("an ack")
    };
    assert_eq!(ack.delivery_tag, 1);
    client
        .publish(1, "amq.direct", "nobody", b"not mandatory")
        .await;
    let Some(Method::BasicAck(ack)) = client.hear().await else {
        panic!("an ack")
    };
    assert_eq!(ack.delivery_tag, 2);
}

#[tokio::test]
async fn a_full_queue_that_rejects_says_so_with_a_nack() {
    let (_broker, mut client) = start().await;
    let full = [
        ("x-max-length", Value::I32(1)),
        ("x-overflow", text("reject-publish")),
    ];
    client.declare(queue_with("q", &full)).await;
    client.call(1, ConfirmSelect { no_wait: false }).await;
    client.publish(1, "", "q", b"1").await;
    client.publish(1, "", "q", b"2").await;
    let Some(Method::BasicAck(ack)) = client.hear().await else {
        panic!("an ack")
    };
    let Some(Method::BasicNack(nack)) = client.hear().await else {
        panic!("a nack")
    };
    assert_eq!((ack.delivery_tag, nack.delivery_tag), (1, 2));
}

#[tokio::test]
async fn prefetch_holds_back_what_is_over_it() {
    let (_broker, mut client) = start().await;
    client.declare(queue("q")).await;
    for body in ["1", "2", "3"] {
        client.publish(1, "", "q", body.as_bytes()).await;
    }
    client
        .call(
            1,
            BasicQos {
                prefetch_size: 0,
                prefetch_count: 2,
                global: false,
            },
        )
        .await;
    client.consume(1, "q", false).await;
    let (first, _) = client.delivery().await;
    let (second, _) = client.delivery().await;
    assert_eq!((first.delivery_tag, second.delivery_tag), (1, 2));
    assert_eq!(client.ready("q").await, 1, "the third waits");
    client
        .send(
            1,
            &BasicAck {
                delivery_tag: 1,
                multiple: false,
            },
        )
        .await;
    let (third, content) = client.delivery().await;
    assert_eq!((third.delivery_tag, &content.body[..]), (3, &b"3"[..]));
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_back_marked_and_in_order() {
    let (broker, mut client) = start().await;
    client.declare(queue("q")).await;
    for body in ["1", "2", "3"] {
        client.publish(1, "", "q", body.as_bytes()).await;
    }
    let (first, _) = client.get("q", false).await.expect("1");
    client.get("q", false).await.expect("2");
    let nack = BasicNack {
        delivery_tag: first.delivery_tag,
        multiple: false,
        requeue: true,
    };
    client.send(1, &nack).await;
    let (again, content) = client.get("q", false).await.expect("1 again");
    assert!(again.redelivered && content.body == "1");
    client.close().await;

    let mut client = Client::connect(broker.amqp_addr()).await;
    for (body, redelivered) in [("1", true), ("2", true), ("3", false)] {
        let (got, content) = client.get("q", true).await.expect(body);
        assert_eq!(
            (&content.body[..], got.redelivered),
            (body.as_bytes(), redelivered)
        );
    }
}

#[tokio::test]
async fn dead_letters_tell_where_they_come_from() {
    let (_broker, mut client) = start().await;
    client.declare(queue("dead")).await;
    let to_dead = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("dead")),
        ("x-max-length", Value::I32(1)),
    ];
    client.declare(queue_with("q", &to_dead)).await;
    let own = BasicProperties {
        headers: Some(table(&[
            ("own", Value::I32(7)),
            ("x-death", text("forged")),
        ])),
        message_id: Some(short("m")),
        ..Default::default()
    };
    client
        .publish_with(1, "", "q", false, &own, b"rejected")
        .await;
    let (got, _) = client.get("q", false).await.expect("a message");
    client
        .send(
            1,
            &BasicReject {
                delivery_tag: got.delivery_tag,
                requeue: false,
            },
        )
        .await;
    let expiring = BasicProperties {
        expiration: Some(short("1")),
        ..Default::default()
    };
    client
        .publish_with(1, "", "q", false, &expiring, b"expired")
        .await;
    client.wait_ready("dead", 2).await;
    client.publish(1, "", "q", b"maxlen").await;
    client.publish(1, "", "q", b"stays").await;
    client.wait_ready("dead", 3).await;
    for reason in ["rejected", "expired", "maxlen"] {
        let (got, content) = client.get("dead", true).await.expect(reason);
        assert_eq!(
            (&content.body[..], got.routing_key),
            (reason.as_bytes(), short("dead"))
        );
        let Some(Value::Array(deaths)) = header(&content, "x-death") else {
            panic!("{reason}")
        };
        let deaths: Vec<Value> = deaths.iter().collect();
        let [Value::Table(death)] = &deaths[..] else {
            panic!("one death")
        };
        let says = |name: &str| death.get(name);
        assert_eq!(says("reason"), Some(text(reason)));
        assert_eq!(says("queue"), Some(text("q")));
        assert_eq!(says("exchange"), Some(text("")));
        assert_eq!(says("count"), Some(Value::I64(1)));
        assert!(matches!(
            says("time"),
            Some(Value::Timestamp(1_600_000_000..))
        ));
        let Some(Value::Array(keys)) = says("routing-keys") else {
            panic!("routing keys")
        };
        assert_eq!(keys.iter().collect::<Vec<_>>(), [text("q")]);
        for which in ["first", "last"] {
            assert_eq!(
                header(&content, &format!("x-{which}-death-reason")),
                Some(text(reason))
            );
            assert_eq!(
                header(&content, &format!("x-{which}-death-queue")),
                Some(text("q"))
            );
            assert_eq!(
                header(&content, &format!("x-{which}-death-exchange")),
                Some(text(""))
            );
        }
        let original = (reason == "expired").then(|| text("1"));
        assert_eq!(says("original-expiration"), original);
        assert_eq!(content.properties.expiration(), None);
        if reason == "rejected" {
            assert_eq!(header(&content, "own"), Some(Value::I32(7)));
            assert_eq!(content.properties.message_id(), Some(short("m")));
        }
    }
}

#[tokio::test]
async fn a_retry_queue_sends_messages_back_after_their_delay() {
    let (_broker, mut client) = start().await;
    client.declare(queue("work")).await;
    let back = [
        ("x-message-ttl", Value::I32(30)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("work")),
    ];
    client.declare(queue_with("work.retry", &back)).await;
    client.consume(1, "work", true).await;
    let before = std::time::Instant::now();
    client.publish(1, "", "work.retry", b"later").await;
    let (_, content) = client.delivery().await;
    assert!(before.elapsed() >= Duration::from_millis(29));
    assert_eq!(&content.body[..], b"later");
}

#[tokio::test]
async fn queues_go_when_they_are_meant_to() {
    let (broker, mut client) = start().await;
    client
        .declare(QueueDeclare {
            auto_delete: true,
            ..queue("auto")
        })
        .await;
    client
        .declare(queue_with("idle", &[("x-expires", Value::I32(20))]))
        .await;
    let generated = client
        .declare(QueueDeclare {
            exclusive: true,
            ..queue("")
        })
        .await
        .queue;
    assert!(generated.starts_with(b"amq.gen-"), "{generated}");
    let tag = client.consume(1, "auto", true).await;
    assert!(tag.starts_with(b"amq.ctag-"), "{tag}");
    client
        .call(
            1,
            BasicCancel {
                consumer_tag: tag,
                no_wait: false,
            },
        )
        .await;
    let mut other = Client::connect(broker.amqp_addr()).await;
    let mut channel = 1;
    for name in ["auto", "idle"] {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let passive = QueueDeclare {
                passive: true,
                ..queue(name)
            };
            // Asking counts as use, so that one asks less often than it expires.
            tokio::time::sleep(Duration::from_millis(60)).await;
            if let Method::ChannelClose(close) = other.call(channel, passive).await {
                assert_eq!(close.reply_code, 404);
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "`{name}` is still there"
            );
        }
        channel += 1;
        other.open(channel).await;
    }
}

#[tokio::test]
async fn a_consumer_hears_that_its_queue_is_gone_if_it_can() {
    let broker = broker().await;
    let mut capable = Client::connect(broker.amqp_addr()).await;
    let plain = Hello {
        capabilities: &[],
        ..Hello::default()
    };
    let mut plain = Client::greet(broker.amqp_addr(), plain)
        .await
        .expect("let in");
    plain.open(1).await;
    capable.declare(queue("q")).await;
    let tag = capable.consume(1, "q", false).await;
    plain.consume(1, "q", false).await;
    plain
        .send(
            1,
            &QueueDelete {
                queue: short("q"),
                ..Default::default()
            },
        )
        .await;
    let Some(Method::BasicCancel(cancel)) = capable.hear().await else {
        panic!("a cancel")
    };
    assert_eq!((cancel.consumer_tag, cancel.no_wait), (tag, true));
    assert!(matches!(plain.hear().await, Some(Method::QueueDeleteOk(_))));
}

#[tokio::test]
async fn a_transaction_does_everything_or_nothing() {
    let (broker, mut client) = start().await;
    let mut other = Client::connect(broker.amqp_addr()).await;
    client.declare(queue("q")).await;
    client.call(1, TxSelect {}).await;
    client.publish(1, "", "q", b"never").await;
    client.call(1, TxRollback {}).await;
    client.publish(1, "", "q", b"once").await;
    assert_eq!(other.ready("q").await, 0);
    client.call(1, TxCommit {}).await;
    assert_eq!(other.ready("q").await, 1);

    let (got, _) = client.get("q", false).await.expect("a message");
    let ack = BasicAck {
        delivery_tag: got.delivery_tag,
        multiple: false,
    };
    client.send(1, &ack).await;
    client.call(1, TxRollback {}).await;
    client.send(1, &ack).await;
    client.call(1, TxCommit {}).await;
    client.open(2).await;
    client.call(2, TxSelect {}).await;
    let Method::ChannelClose(close) = client.call(2, ack).await else {
        panic!("closed")
    };
    assert_eq!(
        close.reply_text,
        "PRECONDITION_FAILED - unknown delivery tag 1"
    );
    client.close().await;
    assert_eq!(other.ready("q").await, 0, "acknowledged for good");
}

#[tokio::test]
async fn copies_go_where_cc_and_bcc_say_and_bcc_is_not_told() {
    let (_broker, mut client) = start().await;
    for name in ["to", "cc", "bcc"] {
        client.declare(queue(name)).await;
    }
    let list = |name: &str| {
        let mut list = Array::builder();
        list.push(&text(name));
        Value::Array(list.build())
    };
    let headers = table(&[
        ("CC", list("cc")),
        ("BCC", list("bcc")),
        ("k", Value::Bool(true)),
    ]);
    let properties = BasicProperties {
        headers: Some(headers),
        ..Default::default()
    };
    client
        .publish_with(1, "", "to", false, &properties, b"x")
        .await;
    for name in ["to", "cc", "bcc"] {
        let (_, content) = client.get(name, true).await.expect(name);
        assert_eq!(header(&content, "BCC"), None);
        assert_eq!(header(&content, "CC"), Some(list("cc")));
        assert_eq!(header(&content, "k"), Some(Value::Bool(true)));
    }
}

#[tokio::test]
async fn a_slow_reader_costs_no_memory_and_loses_nothing() {
    const BODY: usize = 100_000;
    const COUNT: u32 = 300;
    let limits = Limits {
        outbound_bytes_max: 1_000_000,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut slow = Client::connect(broker.amqp_addr()).await;
    let mut publisher = Client::connect(broker.amqp_addr()).await;
    slow.declare(queue("q")).await;
    slow.consume(1, "q", true).await;
    for index in 0..COUNT {
        let mut body = vec![0; BODY];
        body[..4].copy_from_slice(&index.to_be_bytes());
        publisher.publish(1, "", "q", &body).await;
    }
    publisher.settle(1).await;
    // Sockets hold some megabytes; most of the thirty must still lie in the queue.
    assert!(
        publisher.ready("q").await > COUNT / 3,
        "the consumer was paused"
    );
    for index in 0..COUNT {
        let (_, content) = slow.delivery().await;
        assert_eq!(content.body[..4], index.to_be_bytes());
    }
}

#[tokio::test]
async fn direct_replies_need_no_queue() {
    const REPLIES: &str = "amq.rabbitmq.reply-to";
    let broker = broker().await;
    let mut server = Client::connect(broker.amqp_addr()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    server.declare(queue("rpc")).await;
    server.consume(1, "rpc", true).await;

    let asking = BasicProperties {
        reply_to: Some(short(REPLIES)),
        correlation_id: Some(short("1")),
        ..Default::default()
    };
    client.consume(1, REPLIES, true).await;
    client
        .publish_with(1, "", "rpc", false, &asking, b"question")
        .await;
    let (_, question) = server.delivery().await;
    let reply_to = question.properties.reply_to().expect("where to answer");
    assert!(
        reply_to.starts_with(b"amq.rabbitmq.reply-to."),
        "{reply_to}"
    );
    assert_eq!(question.properties.correlation_id(), Some(short("1")));
    let reply_to = reply_to.as_str().expect("text");
    let consumed = server
        .declare(QueueDeclare {
            passive: true,
            ..queue(reply_to)
        })
        .await;
    assert_eq!(consumed.consumer_count, 1);
    server.publish(1, "", reply_to, b"answer").await;
    assert_eq!(client.delivery().await.1.body, "answer");

    let reply_to = reply_to.to_owned();
    client.close().await;
    server
        .publish_with(
            1,
            "",
            &reply_to,
            true,
            &BasicProperties::default(),
            b"too late",
        )
        .await;
    assert!(matches!(server.hear().await, Some(Method::BasicReturn(_))));

    server
        .publish_with(1, "", "rpc", false, &asking, b"nobody listens")
        .await;
    let Some(Method::ChannelClose(close)) = server.hear().await else {
        panic!("closed")
    };
    assert_eq!(close.reply_code, 406);
    let text = "PRECONDITION_FAILED - fast reply consumer does not exist";
    assert_eq!(close.reply_text, text);
}
