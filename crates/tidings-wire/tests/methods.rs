//! Methods, properties and tables: what is written is what is read, and what the specification
//! says it looks like.

use bytes::{Bytes, BytesMut};
use tidings_wire::*;

const FRAME_MAX: u32 = 131_072;

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

fn sample_table() -> Table {
    let mut nested = Table::builder();
    nested.push(&short("deep"), &Value::Bool(true));
    let values = [
        Value::Bool(false),
        Value::I8(-1),
        Value::U8(255),
        Value::I16(-300),
        Value::U16(60_000),
        Value::I32(-70_000),
        Value::U32(4_000_000_000),
        Value::I64(i64::MIN),
        Value::F32(1.5),
        Value::F64(-2.25),
        Value::Decimal {
            scale: 2,
            value: 9_999,
        },
        Value::from("text"),
        Value::Timestamp(1_700_000_000),
        Value::Table(nested.build()),
        Value::Void,
        Value::Bytes(Bytes::from_static(&[0, 255])),
    ];
    let array = Value::Array(values.iter().cloned().collect());
    values
        .into_iter()
        .chain([array])
        .map(|value| (short("same name, on purpose"), value))
        .collect()
}

/// Every method with something in each of its fields.
fn samples() -> Vec<Method> {
    let mut samples = Method::all();
    for method in &mut samples {
        fill(method);
    }
    samples
}

/// Fills the methods that have bits, tables or strings of both kinds.
fn fill(method: &mut Method) {
    let text = ShortStr::try_from("n".repeat(255)).expect("255 bytes fit");
    match method {
        Method::ConnectionStart(m) => {
            (m.version_major, m.version_minor) = (0, 9);
            m.server_properties = sample_table();
            m.mechanisms = Bytes::from_static(b"PLAIN AMQPLAIN");
            m.locales = Bytes::from_static(b"en_US");
        }
        Method::ConnectionTune(m) => {
            (m.channel_max, m.frame_max, m.heartbeat) = (2047, FRAME_MAX, 60);
        }
        Method::ConnectionClose(m) => {
            (m.reply_code, m.class_id, m.method_id) = (540, 60, 40);
            m.reply_text = text;
        }
        Method::AccessRequest(m) => {
            m.realm = text;
            (m.exclusive, m.active, m.read) = (true, true, true);
        }
        Method::ExchangeDeclare(m) => {
            (m.exchange, m.kind) = (text, short("fanout"));
            (m.durable, m.no_wait) = (true, true);
            m.arguments = sample_table();
        }
        Method::QueueDeclareOk(m) => {
            m.queue = text;
            (m.message_count, m.consumer_count) = (u32::MAX, 7);
        }
        Method::BasicConsume(m) => {
            (m.queue, m.consumer_tag) = (text.clone(), text);
            (m.no_local, m.exclusive) = (true, true);
            m.arguments = sample_table();
        }
        Method::BasicDeliver(m) => {
            (m.delivery_tag, m.redelivered) = (u64::MAX, true);
            (m.consumer_tag, m.exchange, m.routing_key) = (text.clone(), text.clone(), text);
        }
        Method::BasicGetOk(m) => {
            (m.delivery_tag, m.redelivered, m.message_count) = (3, true, 9);
        }
        Method::BasicNack(m) => {
            (m.delivery_tag, m.multiple, m.requeue) = (1 << 40, false, true);
        }
        _ => {}
    }
}

#[test]
fn every_method_comes_back_as_it_was_written() {
    let samples = samples();
    assert_eq!(samples.len(), 66, "RabbitMQ's dialect has 66 methods");
    for method in samples {
        let mut wire = BytesMut::new();
        encode_method(&mut wire, 7, &method);
        let frame = decode_frame(&mut wire, FRAME_MAX).expect("decodes");
        let expected = Frame {
            channel: 7,
            payload: Payload::Method(method.clone()),
        };
        assert_eq!(frame, Some(expected), "{}", method.name());
        assert!(wire.is_empty(), "{} left bytes", method.name());
    }
}

#[test]
fn methods_look_as_the_specification_says() {
    let check = |method: Method, expected: &[u8]| {
        let mut wire = BytesMut::new();
        encode_method(&mut wire, 1, &method);
        let arguments = &wire[11..wire.len() - 1];
        assert_eq!(arguments, expected, "{}", method.name());
        assert_eq!(wire[..3], [1, 0, 1], "a method frame on channel 1");
        assert_eq!(wire[7..9], method.class_id().to_be_bytes());
        assert_eq!(wire[9..11], method.method_id().to_be_bytes());
        assert_eq!(wire[wire.len() - 1], 0xce);
    };
    let open = ConnectionOpen {
        virtual_host: short("/"),
    };
    check(open.into(), &[1, b'/', 0, 0]);
    check(ChannelOpen {}.into(), &[0]);
    check(ChannelOpenOk {}.into(), &[0, 0, 0, 0]);
    let declare = QueueDeclare {
        queue: short("q"),
        durable: true,
        auto_delete: true,
        arguments: [(short("a"), Value::I32(1))].into_iter().collect(),
        ..QueueDeclare::default()
    };
    let table = [0, 0, 0, 7, 1, b'a', b'I', 0, 0, 0, 1];
    check(
        declare.into(),
        &[&[0, 0, 1, b'q', 0b0000_1010][..], &table].concat(),
    );
    let publish = BasicPublish {
        exchange: short("e"),
        routing_key: short("rk"),
        immediate: true,
        ..BasicPublish::default()
    };
    check(publish.into(), &[0, 0, 1, b'e', 2, b'r', b'k', 0b0000_0010]);
    let nack = BasicNack {
        delivery_tag: 258,
        multiple: true,
        requeue: true,
    };
    check(nack.into(), &[0, 0, 0, 0, 0, 0, 1, 2, 0b0000_0011]);
}

#[test]
fn the_hot_encoders_write_what_the_general_one_does() {
    let (mut hot, mut general) = (BytesMut::new(), BytesMut::new());
    let properties = Properties::default();
    encode_publish(&mut hot, 3, "x", "k", true, &[0, 0], b"body", FRAME_MAX).expect("short names");
    let publish = BasicPublish {
        exchange: short("x"),
        routing_key: short("k"),
        mandatory: true,
        immediate: false,
    };
    encode_method(&mut general, 3, &publish);
    encode_content(&mut general, 3, &[0, 0], b"body", FRAME_MAX);

    let (tag, exchange, key) = (short("tag"), short("x"), short("k"));
    encode_deliver(
        &mut hot,
        3,
        &tag,
        9,
        true,
        &exchange,
        &key,
        properties.as_bytes(),
        b"",
        FRAME_MAX,
    )
    .expect("short names");
    let deliver = BasicDeliver {
        consumer_tag: tag,
        delivery_tag: 9,
        redelivered: true,
        exchange,
        routing_key: key,
    };
    encode_method(&mut general, 3, &deliver);
    encode_content(&mut general, 3, properties.as_bytes(), b"", FRAME_MAX);

    encode_ack(&mut hot, 3, 9, true);
    let ack = BasicAck {
        delivery_tag: 9,
        multiple: true,
    };
    encode_method(&mut general, 3, &ack);
    assert_eq!(hot, general);
}

#[test]
fn a_name_that_is_too_long_is_refused_and_nothing_is_written() {
    let mut out = BytesMut::new();
    let long = "n".repeat(256);
    let refused = encode_publish(&mut out, 1, "", &long, true, &[0, 0], b"", FRAME_MAX);
    assert_eq!(refused, Err(ShortStrTooLong { bytes: 256 }));
    assert!(out.is_empty());
    for at in 0..3 {
        let mut names = [&b"n"[..]; 3];
        names[at] = long.as_bytes();
        let [tag, exchange, key] = names;
        let refused = encode_deliver(
            &mut out,
            1,
            tag,
            1,
            false,
            exchange,
            key,
            &[0, 0],
            b"",
            FRAME_MAX,
        );
        assert_eq!(refused, Err(ShortStrTooLong { bytes: 256 }));
        assert!(out.is_empty());
    }
    assert!(ShortStr::try_from(long.as_str()).is_err());
    assert!(Table::builder().push_str(&long, "").is_err());
    let truncated = ShortStr::truncated(&"ö".repeat(200));
    assert_eq!(truncated.len(), 254, "cut at a character");
}

#[test]
fn tables_keep_order_duplicates_and_types() {
    let table = sample_table();
    let again = Table::parse(table.as_bytes().clone()).expect("well formed");
    assert_eq!(again.iter().count(), 17);
    let rebuilt: Table = again.iter().collect();
    assert_eq!(rebuilt.as_bytes(), table.as_bytes());
    let tags: Vec<u8> = again.iter().map(|(_, value)| value.tag()).collect();
    assert_eq!(tags, b"tbBsuIilfdDSTFVxA");
}

#[test]
fn properties_are_read_one_by_one_or_all_at_once() {
    let all = BasicProperties {
        content_type: Some(short("application/json")),
        content_encoding: Some(short("identity")),
        headers: Some(sample_table()),
        delivery_mode: Some(2),
        priority: Some(9),
        correlation_id: Some(short("correlation")),
        reply_to: Some(short("reply")),
        expiration: Some(short("60000")),
        message_id: Some(short("id")),
        timestamp: Some(1_700_000_000),
        kind: Some(short("order-placed.v1")),
        user_id: Some(short("guest")),
        app_id: Some(short("orders")),
        cluster_id: Some(short("")),
    };
    let encoded = all.encode();
    assert_eq!(encoded.as_bytes()[..2], [0b1111_1111, 0b1111_1100]);
    let properties = Properties::parse(encoded.as_bytes().clone()).expect("well formed");
    assert_eq!(properties.decode(), all);
    assert_eq!(properties.content_type(), all.content_type);
    assert_eq!(properties.headers(), all.headers);
    assert_eq!(properties.delivery_mode(), Some(2));
    assert_eq!(properties.expiration(), all.expiration);
    assert_eq!(properties.timestamp(), all.timestamp);
    assert_eq!(properties.cluster_id(), all.cluster_id);

    let few = BasicProperties {
        delivery_mode: Some(2),
        app_id: Some(short("a")),
        ..BasicProperties::default()
    };
    let few = few.encode();
    assert_eq!(few.as_bytes()[..], [0b0001_0000, 0b0000_1000, 2, 1, b'a']);
    assert_eq!(few.headers(), None);
    assert_eq!(few.app_id(), Some(short("a")));
}
