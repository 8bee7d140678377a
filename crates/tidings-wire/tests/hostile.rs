//! Bytes of peers that are broken or hostile: an error with the right code, never a panic, and no
//! memory for what is only announced.

use bytes::{BufMut, Bytes, BytesMut};
use tidings_wire::*;

const FRAME_MAX: u32 = 4096;

fn frame(kind: u8, channel: u16, payload: &[u8], end: u8) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.put_u8(end);
    out
}

fn nested_table(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| {
        let mut table = vec![1, b'n', b'F'];
        table.extend((inner.len() as u32).to_be_bytes());
        table.extend(inner);
        table
    })
}

fn method(class_id: u16, method_id: u16, arguments: &[u8]) -> Vec<u8> {
    let mut payload = [class_id.to_be_bytes(), method_id.to_be_bytes()].concat();
    payload.extend(arguments);
    payload
}

/// The arguments of `connection.start` with this table.
fn start(table: &[u8]) -> Vec<u8> {
    let mut arguments = vec![0, 9];
    arguments.extend((table.len() as u32).to_be_bytes());
    arguments.extend(table);
    arguments.extend([0; 8]);
    method(10, 10, &arguments)
}

#[test]
fn malformed_frames_are_refused_with_the_code_of_the_specification() {
    let check = |what: &str, mut bytes: BytesMut, code: u16| {
        let refused = decode_frame(&mut bytes, FRAME_MAX).map_err(|error| error.code());
        assert_eq!(refused, Err(code), "{what}");
    };
    check("unknown type", frame(4, 1, b"", 0xce), 501);
    check("wrong end", frame(3, 1, b"body", 0xcd), 501);
    check("too long", frame(3, 1, &[0; 4089], 0xce), 501);
    check(
        "announces 4 GiB",
        {
            let mut huge = BytesMut::new();
            huge.put_slice(&[3, 0, 1, 255, 255, 255, 255]);
            huge
        },
        501,
    );
    check("heartbeat on a channel", frame(8, 1, b"", 0xce), 501);
    check("heartbeat with a payload", frame(8, 0, b"x", 0xce), 501);
    check("method without ids", frame(1, 1, &[0, 60], 0xce), 501);
    check(
        "unknown class",
        frame(1, 1, &method(70, 10, &[]), 0xce),
        540,
    );
    check(
        "unknown method",
        frame(1, 1, &method(60, 41, &[]), 0xce),
        540,
    );
    check(
        "truncated method",
        frame(1, 1, &method(60, 80, &[0; 7]), 0xce),
        502,
    );
    check(
        "string over the end",
        frame(1, 1, &method(10, 40, &[9, b'/']), 0xce),
        502,
    );
    check(
        "long string over the end",
        frame(1, 1, &method(10, 20, &[255; 5]), 0xce),
        502,
    );
    check(
        "truncated header",
        frame(2, 1, &[0, 60, 0, 0, 0], 0xce),
        502,
    );
    for (what, table) in [
        ("unknown type in a table", &[1, b'n', b'?'][..]),
        (
            "type of the specification that RabbitMQ does not know",
            &[1, b'n', b'L', 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("name over the end of a table", &[9, b'n']),
        ("name without a value", &[1, b'n']),
        ("value over the end of a table", &[1, b'n', b'I', 0]),
        ("nested table over the end", &[1, b'n', b'F', 0, 0, 0, 9]),
        (
            "nested array of half a value",
            &[1, b'n', b'A', 0, 0, 0, 1, b'I'],
        ),
        ("33 levels", &nested_table(33)),
    ] {
        check(what, frame(1, 0, &start(table), 0xce), 502);
    }
    let mut deep = frame(1, 0, &start(&nested_table(32)), 0xce);
    assert!(
        decode_frame(&mut deep, FRAME_MAX).is_ok(),
        "32 levels are fine"
    );
}

#[test]
fn an_error_names_the_method_it_is_about() {
    let mut bytes = frame(1, 1, &method(60, 80, &[0; 7]), 0xce);
    let error = decode_frame(&mut bytes, FRAME_MAX).expect_err("truncated");
    assert_eq!((error.class_id(), error.method_id()), (60, 80));
    assert!(error.to_string().starts_with("SYNTAX_ERROR - "), "{error}");
}

#[test]
fn a_frame_is_waited_for_until_its_last_byte() {
    let mut whole = BytesMut::new();
    encode_publish(
        &mut whole,
        1,
        "x",
        "k",
        true,
        &[0, 0],
        &[7; 5000],
        FRAME_MAX,
    )
    .expect("short");
    let mut arrived = BytesMut::new();
    let mut assembler = Assembler::new(10_000);
    let mut commands = Vec::new();
    let mut frames = 0;
    for byte in whole {
        arrived.put_u8(byte);
        while let Some(frame) = decode_frame(&mut arrived, FRAME_MAX).expect("well formed") {
            frames += 1;
            commands.extend(assembler.push(frame.payload).expect("in order"));
        }
    }
    assert_eq!(frames, 4, "method, header, and a body of two frames");
    let [
        Command {
            content: Some(content),
            ..
        },
    ] = &commands[..]
    else {
        panic!("one command with content, not {commands:?}");
    };
    assert_eq!(content.body, vec![7; 5000]);
}

fn header(body_bytes: u64, properties: &'static [u8]) -> Payload {
    Payload::Header {
        class_id: 60,
        body_bytes,
        properties: Bytes::from_static(properties),
    }
}

#[test]
fn content_out_of_order_is_refused() {
    let publish = || Payload::Method(BasicPublish::default().into());
    let ack = || Payload::Method(BasicAck::default().into());
    let body = |bytes: &'static [u8]| Payload::Body(Bytes::from_static(bytes));
    let check = |what: &str, payloads: Vec<Payload>, code: u16| {
        let mut assembler = Assembler::new(100);
        let refused = payloads
            .into_iter()
            .find_map(|payload| assembler.push(payload).err())
            .map(|error| error.code());
        assert_eq!(refused, Some(code), "{what}");
    };
    check("header first", vec![header(0, &[0, 0])], 505);
    check("body first", vec![body(b"x")], 505);
    check("no header", vec![publish(), ack()], 505);
    check("no body", vec![publish(), header(1, &[0, 0]), ack()], 505);
    check(
        "body too long",
        vec![publish(), header(1, &[0, 0]), body(b"xy")],
        505,
    );
    let other_class = Payload::Header {
        class_id: 10,
        body_bytes: 0,
        properties: Bytes::from_static(&[0, 0]),
    };
    check("header of another class", vec![publish(), other_class], 505);
    check("no properties", vec![publish(), header(0, &[])], 502);
    check("unknown property", vec![publish(), header(0, &[0, 2])], 502);
    check(
        "truncated property",
        vec![publish(), header(0, &[128, 0, 9, b'a'])],
        502,
    );
    check(
        "bytes behind properties",
        vec![publish(), header(0, &[0, 0, 0])],
        502,
    );
    check(
        "malformed headers",
        vec![publish(), header(0, &[32, 0, 0, 0, 0, 1, 9])],
        502,
    );
}

#[test]
fn a_body_over_the_limit_is_thrown_away_and_the_channel_goes_on() {
    let mut assembler = Assembler::new(3);
    let frames = [
        Payload::Method(BasicPublish::default().into()),
        header(4, &[0, 0]),
        Payload::Body(Bytes::from_static(b"12")),
        Payload::Heartbeat,
        Payload::Body(Bytes::from_static(b"34")),
    ];
    let commands: Vec<_> = frames
        .into_iter()
        .filter_map(|payload| assembler.push(payload).expect("in order"))
        .collect();
    let content = commands[0].content.as_ref().expect("it is a publish");
    assert!(content.is_too_large() && content.body.is_empty());
    let next = assembler.push(Payload::Method(BasicAck::default().into()));
    assert!(matches!(next, Ok(Some(_))));
}

#[test]
fn the_protocol_header_is_known_from_its_first_wrong_byte() {
    let check = |bytes: &[u8], expected: HeaderCheck, left: usize| {
        let mut buffer = BytesMut::from(bytes);
        assert_eq!(check_protocol_header(&mut buffer), expected, "{bytes:?}");
        assert_eq!(buffer.len(), left);
    };
    check(b"", HeaderCheck::Incomplete, 0);
    check(b"AMQP\0\0", HeaderCheck::Incomplete, 6);
    check(b"AMQP\0\0\x09\x01more", HeaderCheck::Accepted, 4);
    check(b"AMQP\x01\x01\0\x09", HeaderCheck::Accepted, 0);
    check(b"AMQP\0\x01\0\0", HeaderCheck::OtherVersion, 8);
    check(b"GET / HTTP/1.1", HeaderCheck::NotAmqp, 14);
    check(&[22, 3, 1], HeaderCheck::NotAmqp, 3);
}

/// xorshift: the same bytes for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(0x7163_6964_6e67_7321);
    for _ in 0..20_000 {
        let mut wire = mutated(&mut random);
        let mut assembler = Assembler::new(64);
        while let Ok(Some(frame)) = decode_frame(&mut wire, FRAME_MAX) {
            if let Payload::Header { properties, .. } = &frame.payload
                && let Ok(properties) = Properties::parse(properties.clone())
            {
                let _ = properties.decode();
                let _ = properties.headers().map(|table| table.iter().count());
            }
            let _ = assembler.push(frame.payload);
        }
    }
}

/// A valid conversation with some bytes changed, so that the deeper layers are reached too.
fn mutated(random: &mut Random) -> BytesMut {
    let mut wire = BytesMut::new();
    let methods = Method::all();
    encode_method(&mut wire, 1, &methods[random.below(methods.len())]);
    let properties = BasicProperties {
        headers: Some(Table::parse(nested_table(3).into()).expect("well formed")),
        message_id: Some(ShortStr::from_static("id")),
        ..BasicProperties::default()
    };
    let properties = properties.encode();
    encode_publish(
        &mut wire,
        1,
        "x",
        "k",
        true,
        properties.as_bytes(),
        b"{}",
        FRAME_MAX,
    )
    .expect("short names");
    for _ in 0..=random.below(4) {
        let at = random.below(wire.len());
        wire[at] = random.next() as u8;
    }
    let kept = random.below(wire.len()) + 1;
    wire.truncate(kept);
    wire
}

/// A delivery of `body`, with a text and another value among its headers.
fn delivery(body: &[u8]) -> BytesMut {
    let mut properties = BytesMut::new();
    let lent = LentProperties {
        content_type: Some(b"text/plain"),
        delivery_mode: Some(2),
        message_id: Some(b"\xff"),
        timestamp: Some(7),
        ..LentProperties::default()
    };
    encode_properties(&mut properties, &lent, |headers| {
        headers.push_str("text", "t")?;
        headers.push_display("shown", 12)?;
        headers.push_value("flag", &Value::Bool(true))
    })
    .expect("short names");
    let mut out = BytesMut::new();
    encode_deliver(
        &mut out,
        3,
        b"tag",
        9,
        true,
        b"x",
        b"rk",
        &properties,
        body,
        FRAME_MAX,
    )
    .expect("short names");
    out
}

#[test]
fn a_delivery_that_came_whole_is_what_its_frames_are_one_by_one() {
    for body in [&b""[..], b"body"] {
        let mut bytes = delivery(body);
        let mut frames = bytes.clone();
        bytes.put_slice(b"next");
        let whole = WholeDelivery::find(&bytes, FRAME_MAX).expect("whole");
        assert_eq!(whole.channel(), 3);
        let delivered = whole.take(&mut bytes);
        assert_eq!(&bytes[..], b"next");
        let mut assembler = Assembler::new(1000);
        let mut command = None;
        while let Some(frame) = decode_frame(&mut frames, FRAME_MAX).expect("frames") {
            command = assembler.push(frame.payload).expect("in order");
        }
        let command = command.expect("a command");
        let Method::BasicDeliver(deliver) = command.method else {
            panic!("another method: {:?}", command.method);
        };
        assert_eq!(deliver.delivery_tag, delivered.delivery_tag);
        assert_eq!(deliver.redelivered, delivered.redelivered);
        assert_eq!(command.content, Some(delivered.content.clone()));
        let lent = delivered.content.properties.lend();
        let all = delivered.content.properties.decode();
        assert_eq!(lent.message_id, all.message_id.as_deref());
        assert_eq!(lent.timestamp, all.timestamp);
        let headers: Vec<_> = lent.headers.iter().collect();
        let expected: [(&[u8], Lent<'_>); 3] = [
            (b"text", Lent::Text(b"t")),
            (b"shown", Lent::Text(b"12")),
            (b"flag", Lent::Other(Value::Bool(true))),
        ];
        assert_eq!(headers, expected);
    }
}

/// The slow way says what is wrong with it, or waits for the rest.
#[test]
fn a_delivery_that_is_broken_or_not_complete_is_never_taken_whole() {
    let good = delivery(b"body");
    for bytes in 0..good.len() {
        assert!(
            WholeDelivery::find(&good[..bytes], FRAME_MAX).is_none(),
            "{bytes} bytes"
        );
    }
    for at in 0..good.len() {
        for value in [0, 1, 60, 0xce, 0xff] {
            let mut broken = good.clone();
            broken[at] = value;
            let Some(whole) = WholeDelivery::find(&broken, FRAME_MAX) else {
                continue;
            };
            let mut frames = broken.clone();
            let taken = whole.take(&mut broken);
            let mut assembler = Assembler::new(1000);
            let mut command = None;
            // What follows the delivery may be out of place; that is for the next look.
            while command.is_none() {
                let frame = decode_frame(&mut frames, FRAME_MAX).expect("frames");
                let frame = frame.expect("complete");
                assert_eq!(frame.channel, whole.channel());
                command = assembler.push(frame.payload).expect("in order");
            }
            let content = command.and_then(|it| it.content);
            assert_eq!(content, Some(taken.content), "byte {at} is {value}");
        }
    }
    assert!(
        WholeDelivery::find(&good, 20).is_none(),
        "longer than agreed"
    );
}
