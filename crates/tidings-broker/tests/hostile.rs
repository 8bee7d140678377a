//! Peers that are slow, wrong, greedy or malicious: each gets an error, and nobody else notices.

mod support;

use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use support::*;
use tidings_broker::{Broker, Handle, Limits, Options, User};
use tidings_wire::*;

async fn connected() -> (Handle, Client) {
    let broker = broker().await;
    let client = Client::connect(broker.amqp_addr()).await;
    (broker, client)
}

fn frame(kind: u8, channel: u16, payload: &[u8], end: u8) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.put_u8(end);
    out.to_vec()
}

fn encoded(channel: u16, method: &impl EncodeMethod) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_method(&mut out, channel, method);
    out.to_vec()
}

#[tokio::test]
async fn whoever_speaks_another_protocol_is_told_which_one_is_spoken_here() {
    let broker = broker().await;
    for greeting in [
        &b"AMQP\x00\x01\x00\x00"[..],
        b"AMQP\x03\x01\x00\x00",
        b"AMQP\x00\x00\x09\x02",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut client = Client::raw(broker.amqp_addr()).await;
        client.write(greeting).await;
        assert_eq!(client.read_to_end().await, PROTOCOL_HEADER, "{greeting:?}");
    }
    let mut old = Client::raw(broker.amqp_addr()).await;
    old.write(b"AMQP\x01\x01\x00\x09").await;
    assert!(matches!(old.hear().await, Some(Method::ConnectionStart(_))));
}

#[tokio::test]
async fn the_broker_says_what_it_can() {
    let broker = broker().await;
    let mut client = Client::raw(broker.amqp_addr()).await;
    client.write(&PROTOCOL_HEADER).await;
    let Some(Method::ConnectionStart(start)) = client.hear().await else {
        panic!("a start")
    };
    assert_eq!((start.version_major, start.version_minor), (0, 9));
    assert_eq!(start.mechanisms, "PLAIN AMQPLAIN");
    let Some(Value::Table(can)) = start.server_properties.get("capabilities") else {
        panic!("capabilities")
    };
    for name in ["publisher_confirms", "basic.nack", "consumer_cancel_notify"] {
        assert_eq!(can.get(name), Some(Value::Bool(true)), "{name}");
    }
}

#[tokio::test]
async fn only_the_right_credentials_get_in() {
    let alice = User::new("alice", "s3cret");
    let limits = Limits {
        refused_login_delay: Duration::from_millis(1),
        ..Limits::default()
    };
    let options = Options::ephemeral().users([User::guest(), alice]);
    let broker = Broker::start(options.limits(limits)).await.unwrap();
    let amqplain = |password| {
        let login = table(&[("LOGIN", text("alice")), ("PASSWORD", text(password))]);
        login.as_bytes().clone()
    };
    let check = async |mechanism, response: &[u8], expected: Option<u16>| {
        let response = bytes::Bytes::copy_from_slice(response);
        let hello = Hello {
            mechanism,
            response,
            ..Hello::default()
        };
        let got = Client::greet(broker.amqp_addr(), hello.clone()).await;
        let code = got.err().map(|close| close.expect("it is told").reply_code);
        assert_eq!(code, expected, "{mechanism} {:?}", hello.response);
    };
    check("PLAIN", b"\0alice\0s3cret", None).await;
    check("AMQPLAIN", &amqplain("s3cret"), None).await;
    check("PLAIN", b"\0alice\0wrong", Some(403)).await;
    check("PLAIN", b"\0nobody\0s3cret", Some(403)).await;
    check("PLAIN", b"alice", Some(403)).await;
    check("AMQPLAIN", &amqplain("wrong"), Some(403)).await;
    check("AMQPLAIN", b"\xff\xff", Some(403)).await;
    check("EXTERNAL", b"", Some(503)).await;

    // A client that could not understand why is only cut off.
    let response = bytes::Bytes::from_static(b"\0alice\0wrong");
    let plain = Hello {
        capabilities: &[],
        response,
        ..Hello::default()
    };
    assert_eq!(
        Client::greet(broker.amqp_addr(), plain).await.err(),
        Some(None)
    );
}

#[tokio::test]
async fn limits_can_be_lowered_but_not_raised() {
    let broker = broker().await;
    let check = async |channel_max, frame_max, vhost, expected: Option<u16>| {
        let tune = ConnectionTuneOk {
            channel_max,
            frame_max,
            heartbeat: 0,
        };
        let hello = Hello {
            tune: Some(tune),
            vhost,
            ..Hello::default()
        };
        let got = Client::greet(broker.amqp_addr(), hello).await;
        let code = got.err().map(|close| close.expect("it is told").reply_code);
        assert_eq!(
            code, expected,
            "{channel_max} channels, {frame_max} bytes, {vhost}"
        );
    };
    check(0, 0, "/", None).await;
    check(1, 8192, "/", None).await;
    check(2048, 131_072, "/", Some(530)).await;
    check(2047, 131_073, "/", Some(530)).await;
    check(2047, 4095, "/", Some(530)).await;
    check(2047, 1, "/", Some(530)).await;
    check(2047, 131_072, "elsewhere", Some(530)).await;
}

#[tokio::test]
async fn malformed_bytes_close_the_connection_with_the_right_code() {
    let publish = BasicPublish {
        routing_key: short("q"),
        ..Default::default()
    };
    let publish = encoded(1, &publish);
    let header = |channel, class: u16, bytes: u64, flags: &[u8]| {
        let mut payload = BytesMut::new();
        payload.put_u16(class);
        payload.put_u16(0);
        payload.put_u64(bytes);
        payload.put_slice(flags);
        frame(2, channel, &payload, 0xce)
    };
    let body = |channel, bytes: &[u8]| frame(3, channel, bytes, 0xce);
    let deep = {
        let mut table = Table::default();
        for _ in 0..40 {
            let mut outer = Table::builder();
            outer.push(&short("t"), &Value::Table(table));
            table = outer.build();
        }
        encoded(
            1,
            &QueueDeclare {
                arguments: table,
                ..queue("deep")
            },
        )
    };
    let check = async |what: &str, bytes: &[&[u8]], code: u16| {
        let (broker, mut client) = connected().await;
        client.write(&bytes.concat()).await;
        match client.hear().await {
            Some(Method::ConnectionClose(close)) => assert_eq!(close.reply_code, code, "{what}"),
            other => panic!("{what}: expected {code}, got {other:?}"),
        }
        drop(client);
        assert!(
            Client::connect(broker.amqp_addr()).await.is_alive(2).await,
            "{what}"
        );
    };
    check("a bad end", &[&frame(1, 1, &[0, 20, 0, 10, 0], 0xcd)], 501).await;
    check("an unknown type", &[&frame(7, 1, b"", 0xce)], 501).await;
    check("a huge length", &[b"\x01\x00\x01\xff\xff\xff\xff"], 501).await;
    check("a heartbeat on a channel", &[&frame(8, 1, b"", 0xce)], 501).await;
    check(
        "no such method",
        &[&frame(1, 1, &[0, 60, 0, 99], 0xce)],
        540,
    )
    .await;
    check(
        "a cut-off method",
        &[&frame(1, 1, &[0, 60, 0, 20, 0], 0xce)],
        502,
    )
    .await;
    check("a table in a table in a table", &[&deep], 502).await;
    check(
        "a header out of nowhere",
        &[&header(1, 60, 1, &[0, 0])],
        505,
    )
    .await;
    check("a body out of nowhere", &[&body(1, b"x")], 505).await;
    check("a method instead of content", &[&publish, &publish], 505).await;
    check(
        "a body instead of a header",
        &[&publish, &body(1, b"x")],
        505,
    )
    .await;
    check(
        "a header of another class",
        &[&publish, &header(1, 50, 1, &[0, 0])],
        505,
    )
    .await;
    check(
        "too much body",
        &[&publish, &header(1, 60, 1, &[0, 0]), &body(1, b"xx")],
        505,
    )
    .await;
    check(
        "unknown properties",
        &[&publish, &header(1, 60, 1, &[0, 1])],
        502,
    )
    .await;
    check(
        "cut-off properties",
        &[&publish, &header(1, 60, 1, &[0xff, 0xfc])],
        502,
    )
    .await;
    check(
        "a channel too high",
        &[&encoded(3000, &ChannelOpen {})],
        530,
    )
    .await;
}

#[tokio::test]
async fn an_announced_body_reserves_nothing() {
    let (_broker, mut client) = connected().await;
    let publish = BasicPublish {
        routing_key: short("q"),
        ..Default::default()
    };
    let mut out = BytesMut::new();
    encode_method(&mut out, 1, &publish);
    let mut payload = BytesMut::new();
    payload.put_u32(60 << 16);
    payload.put_u64(1 << 63);
    payload.put_u16(0);
    out.put_slice(&frame(2, 1, &payload, 0xce));
    client.write(&out).await;
    assert!(client.is_alive(2).await, "other channels go on meanwhile");
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let (_broker, mut client) = connected().await;
    let mut out = BytesMut::from(&encoded(1, &queue("q"))[..]);
    encode_publish(&mut out, 1, "", "q", false, &[0, 0], b"slowly", 131_072).unwrap();
    for byte in out {
        client.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert!(matches!(
        client.hear().await,
        Some(Method::QueueDeclareOk(_))
    ));
    let (_, content) = client.get("q", true).await.expect("a message");
    assert_eq!(content.body, "slowly");
}

#[tokio::test]
async fn whoever_does_not_shake_hands_in_time_is_dropped() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut silent = Client::raw(broker.amqp_addr()).await;
    let mut halfway = Client::raw(broker.amqp_addr()).await;
    halfway.write(&PROTOCOL_HEADER).await;
    assert!(matches!(
        halfway.hear().await,
        Some(Method::ConnectionStart(_))
    ));
    assert!(silent.frame().await.is_none());
    assert!(halfway.frame().await.is_none());
}

#[tokio::test]
async fn heartbeats_go_both_ways_and_silence_ends_the_connection() {
    let broker = broker().await;
    let tune = ConnectionTuneOk {
        heartbeat: 1,
        ..Default::default()
    };
    let hello = Hello {
        tune: Some(tune),
        ..Hello::default()
    };
    let mut client = Client::greet(broker.amqp_addr(), hello)
        .await
        .expect("let in");
    let start = Instant::now();
    let mut beats = 0;
    while let Some(frame) = client.frame().await {
        assert_eq!(frame.payload, Payload::Heartbeat);
        beats += 1;
        if start.elapsed() < Duration::from_millis(2500) {
            client.write(&[8, 0, 0, 0, 0, 0, 0, 0xce]).await;
        }
    }
    assert!(beats >= 4, "{beats} heartbeats");
    assert!(
        start.elapsed() > Duration::from_millis(4000),
        "it was not silent before"
    );
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_until_another_ends() {
    let broker = broker_with(Limits {
        connections_max: 1,
        ..Limits::default()
    })
    .await;
    let first = Client::connect(broker.amqp_addr()).await;
    assert!(
        Client::greet(broker.amqp_addr(), Hello::default())
            .await
            .is_err()
    );
    first.close().await;
    let deadline = Instant::now() + PATIENCE;
    while Client::greet(broker.amqp_addr(), Hello::default())
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "there is room again");
    }
}

#[tokio::test]
async fn publishers_wait_while_memory_is_full_and_consumers_make_room() {
    let limits = Limits {
        memory_bytes_max: 1_000_000,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut consumer = Client::connect(broker.amqp_addr()).await;
    consumer.declare(queue("q")).await;
    let mut publisher = Client::connect(broker.amqp_addr()).await;
    let mut flood = BytesMut::new();
    for _ in 0..1000 {
        encode_publish(
            &mut flood,
            1,
            "",
            "q",
            false,
            &[0, 0],
            &[0; 100_000],
            131_072,
        )
        .unwrap();
    }
    let flooding = tokio::spawn(async move {
        let written = publisher.write_until_stuck(&flood).await;
        (publisher, written, flood)
    });
    let (mut publisher, written, flood) = flooding.await.expect("it ended");
    assert!(written < flood.len() / 2, "{written} bytes were taken");
    assert!(matches!(
        publisher.hear().await,
        Some(Method::ConnectionBlocked(_))
    ));
    let held = consumer.ready("q").await;
    assert!(held < 100, "{held} messages of 100 kB are held");
    consumer
        .call(
            1,
            QueuePurge {
                queue: short("q"),
                no_wait: false,
            },
        )
        .await;
    assert!(matches!(
        publisher.hear().await,
        Some(Method::ConnectionUnblocked(_))
    ));
}

#[tokio::test]
async fn whoever_never_fetches_replies_is_not_read_any_more() {
    let limits = Limits {
        outbound_bytes_max: 100_000,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    let question = encoded(1, &BasicQos::default()).repeat(1_000_000);
    let written = client.write_until_stuck(&question).await;
    assert!(written < question.len(), "all {written} bytes were taken");
    assert!(Client::connect(broker.amqp_addr()).await.is_alive(2).await);
}

#[tokio::test]
async fn whoever_never_reads_is_dropped_after_the_write_timeout() {
    let limits = Limits {
        write_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut deaf = Client::connect(broker.amqp_addr()).await;
    deaf.declare(QueueDeclare {
        exclusive: true,
        ..queue("mine")
    })
    .await;
    deaf.consume(1, "mine", true).await;
    let mut publisher = Client::connect(broker.amqp_addr()).await;
    publisher.call(1, ConfirmSelect { no_wait: false }).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The exclusive queue goes with the connection; then nobody wants the message.
        let properties = BasicProperties::default();
        publisher
            .publish_with(1, "", "mine", true, &properties, &[0; 100_000])
            .await;
        match publisher.hear().await {
            Some(Method::BasicReturn(_)) => break,
            Some(Method::BasicAck(_)) => assert!(Instant::now() < deadline, "it is still there"),
            other => panic!("unexpected {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_goodbye_arrives_even_if_the_peer_goes_on_writing() {
    let broker = broker().await;
    for _ in 0..20 {
        let mut client = Client::connect(broker.amqp_addr()).await;
        let mut out = BytesMut::from(&encoded(0, &ConnectionClose::default())[..]);
        out.extend_from_slice(&encoded(1, &BasicQos::default()).repeat(10_000));
        client.write(&out).await;
        assert!(matches!(
            client.hear().await,
            Some(Method::ConnectionCloseOk(_))
        ));
        client.write(&encoded(1, &BasicQos::default())).await;
        assert!(client.next().await.is_none());
    }
}

/// The two numbers in a generated name.
fn numbers(name: &str) -> (u64, u64) {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = name.strip_prefix("amq.gen-").expect("a generated name");
    let bits = letters.bytes().rev().fold(0, |bits: u128, letter| {
        let value = LETTERS.iter().position(|other| *other == letter);
        (bits << 6) | value.expect("one of 64 letters") as u128
    });
    ((bits >> 64) as u64, bits as u64)
}

/// What SplitMix64 made this number of.
fn unmixed(number: u64) -> u64 {
    let unshifted = |z: u64, by: u32| (0..64 / by).fold(z, |y, _| z ^ (y >> by));
    let z = unshifted(number, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
    unshifted(unshifted(z, 27).wrapping_mul(0x96de_1b17_3f11_9089), 30)
}

#[tokio::test]
async fn a_generated_name_tells_nothing_of_the_next_one() {
    let (_broker, mut client) = connected().await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let declared = client.declare(queue("")).await.queue;
        let (one, other) = numbers(&declared.to_str_lossy());
        assert!(seen.insert(one) && seen.insert(other), "{declared}");
        let step = unmixed(other).wrapping_sub(unmixed(one));
        assert_ne!(
            step, 0x9e37_79b9_7f4a_7c15,
            "numbers that follow each other"
        );
    }
}
