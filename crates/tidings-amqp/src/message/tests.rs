//! What goes out comes back, and copies keep what they should.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tidings_core::{
    Attempt, BoxFuture, Delivery, Envelope, Settlement, Settler, TransportError, dead_letter,
};
use tidings_wire::{BasicProperties, ShortStr, Table, Value};

use super::{received::Received, *};

/// What fits into a frame of RabbitMQ's.
const ENOUGH: usize = 131_072 - 32;

fn envelope() -> Envelope {
    let mut envelope = Envelope::new("order-placed.v1", "{}");
    envelope.id = Some("order-placed.v1/1".into());
    envelope.source = "orders".into();
    envelope.time = Some("2026-01-02T03:04:05Z".parse().expect("a time"));
    envelope.key = Some("1".into());
    envelope.correlation_id = Some("conversation".into());
    envelope.causation_id = Some("cause".into());
    envelope.traceparent = Some("00-ab-cd-01".into());
    envelope.headers = vec![("tenant".into(), "t".into())];
    envelope
}

fn properties_of(envelope: &Envelope, bytes_max: usize) -> Result<Properties, String> {
    let mut out = BytesMut::new();
    put_properties(&mut out, envelope, bytes_max)?;
    Properties::parse(out.freeze()).map_err(|error| error.to_string())
}

fn attempt(number: usize) -> Attempt {
    Attempt {
        at: Timestamp::UNIX_EPOCH,
        reason: format!("failure {number}"),
        by: None,
    }
}

#[test]
fn an_envelope_comes_back_as_it_was_sent() {
    let envelope = envelope();
    let properties = properties_of(&envelope, ENOUGH).expect("short names");
    let decoded = properties.decode();
    assert_eq!(decoded.delivery_mode, Some(2));
    assert_eq!(decoded.timestamp, Some(1_767_323_045));
    let received = read(&properties, envelope.body.clone());
    assert_eq!(received.envelope, envelope);
    assert_eq!((received.failures, received.history), (0, vec![]));
}

#[test]
fn what_a_foreign_program_says_in_properties_is_read_too() {
    let properties = BasicProperties {
        message_id: Some(ShortStr::from_static("id")),
        kind: Some(ShortStr::from_static("order-placed.v1")),
        app_id: Some(ShortStr::from_static("node")),
        headers: Some(
            [
                (
                    ShortStr::from_static("cloudEvents_partitionkey"),
                    "k".into(),
                ),
                (ShortStr::from_static("number"), Value::I32(1)),
            ]
            .into_iter()
            .collect(),
        ),
        ..BasicProperties::default()
    };
    let envelope = read(&properties.encode(), Bytes::new()).envelope;
    assert_eq!(envelope.id, Some("id".into()));
    assert_eq!(
        (&*envelope.name, &*envelope.source),
        ("order-placed.v1", "node")
    );
    assert_eq!(envelope.key.as_deref(), Some("k"));
    let headers = vec![("number".into(), "1".into())];
    assert_eq!((&*envelope.content_type, envelope.headers), ("", headers));
    let nothing = read(&Properties::default(), Bytes::new()).envelope;
    assert_eq!((nothing.id, &*nothing.name), (None, ""));
}

struct Nobody;

impl Settler for Nobody {
    fn settle(
        self: Arc<Self>,
        _: Delivery,
        _: Settlement,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        Box::pin(async { Ok(()) })
    }

    fn dropped(&self, _: u64) {}

    fn is_stale(&self, _: u64) -> bool {
        false
    }
}

/// A copy, delivered again.
fn again(original: &Properties, copy_for: CopyFor<'_>) -> (BasicProperties, Received) {
    let copy = properties_of_copy(original, &delivery(original), copy_for, ENOUGH);
    let received = read(&copy, Bytes::new());
    (copy.decode(), received)
}

fn delivery(properties: &Properties) -> Delivery {
    let received = read(properties, Bytes::new());
    let mut delivery = Delivery::new(received.envelope, "q".into(), 1, Arc::new(Nobody));
    delivery.history = received.history;
    delivery.failures = received.failures;
    delivery
}

#[test]
fn a_copy_keeps_everything_but_what_would_harm_it() {
    let headers: Table = [
        (ShortStr::from_static("number"), Value::I32(7)),
        (ShortStr::from_static("CC"), Value::from("elsewhere")),
        (ShortStr::from_static("x-death"), Value::Void),
        (
            ShortStr::from_static(REASON_HEADER),
            Value::from("of an earlier life"),
        ),
    ]
    .into_iter()
    .collect();
    let original = BasicProperties {
        headers: Some(headers),
        expiration: Some(ShortStr::from_static("1000")),
        user_id: Some(ShortStr::from_static("somebody")),
        reply_to: Some(ShortStr::from_static("answers")),
        ..BasicProperties::default()
    };
    let (copy, received) = again(&original.encode(), CopyFor::Retry(&attempt(1)));
    let headers = copy.headers.expect("there are some");
    assert_eq!(headers.get("number"), Some(Value::I32(7)));
    assert_eq!(headers.get(FAILURES_HEADER), Some(Value::I64(1)));
    let dropped = ["CC", "x-death", REASON_HEADER];
    assert!(dropped.iter().all(|name| headers.get(name).is_none()));
    assert_eq!((copy.expiration, copy.user_id), (None, None));
    assert_eq!(copy.reply_to, original.reply_to);
    assert_eq!((received.failures, received.history), (1, vec![attempt(1)]));
}

#[test]
fn waiting_for_an_earlier_message_is_no_failure() {
    let (failed, _) = again(&Properties::default(), CopyFor::Retry(&attempt(1)));
    let (_, received) = again(&failed.encode(), CopyFor::Later);
    assert_eq!((received.failures, received.history), (1, vec![attempt(1)]));
}

#[test]
fn the_history_keeps_the_first_and_the_latest_attempts() {
    let mut properties = Properties::default();
    for number in 1..=24 {
        let (copy, _) = again(&properties, CopyFor::Retry(&attempt(number)));
        properties = copy.encode();
    }
    let (copy, received) = again(&properties, CopyFor::DeadLetters(&attempt(25), "q"));
    let expected: Vec<_> = [1].into_iter().chain(17..=25).map(attempt).collect();
    assert_eq!((received.failures, received.history), (25, expected));
    let headers = copy.headers.expect("there are some");
    assert_eq!(headers.get(REASON_HEADER), Some("failure 25".into()));
    assert_eq!(headers.get(QUEUE_HEADER), Some("q".into()));
}

#[test]
fn reasons_without_end_are_cut_to_what_fits() {
    // Each byte of it is six in JSON.
    for long in ["ö".repeat(100_000), "\u{1}".repeat(100_000)] {
        let long = Attempt {
            reason: long,
            ..attempt(1)
        };
        let mut properties = Properties::default();
        for _ in 0..12 {
            let (copy, received) = again(&properties, CopyFor::DeadLetters(&long, "q"));
            properties = copy.encode();
            assert!(properties.as_bytes().len() <= ENOUGH);
            assert!(received.history.iter().all(|it| it.reason.ends_with('…')));
        }
        let received = read(&properties, Bytes::new());
        assert_eq!((received.failures, received.history.len()), (12, 10));

        let envelope = envelope();
        let history = vec![long; 10];
        let letter = dead_letter(&envelope, "q", 10, &history);
        let properties = properties_of(&letter.envelope, ENOUGH).expect("it fits");
        assert!(properties.as_bytes().len() <= ENOUGH);
        let received = read(&properties, Bytes::new());
        assert_eq!((received.failures, received.history.len()), (10, 10));
    }
}

#[test]
fn a_dead_letter_from_an_outbox_reads_as_one_from_a_settlement() {
    let sent = properties_of(&envelope(), ENOUGH).expect("short names");
    let (settled, expected) = again(&sent, CopyFor::DeadLetters(&attempt(1), "q"));
    let letter = dead_letter(&envelope(), "q", 1, &[attempt(1)]);
    let stored = properties_of(&letter.envelope, ENOUGH).expect("short names");
    let received = read(&stored, Bytes::new());
    assert_eq!(received.envelope, expected.envelope);
    assert_eq!(
        (received.failures, &received.history),
        (1, &expected.history)
    );
    assert_eq!(expected.history, [attempt(1)]);
    // Other programs find the same headers, of the same types.
    let (settled, stored) = (settled.headers, stored.decode().headers);
    let (settled, stored) = (settled.expect("headers"), stored.expect("headers"));
    for name in OURS {
        assert!(stored.get(name).is_some(), "{name}");
        assert_eq!(stored.get(name), settled.get(name), "{name}");
    }
}

#[test]
fn a_bare_type_is_a_name_only_if_it_looks_like_one() {
    let check = |kind: &'static str, specversion: bool, name: &str, header: Option<&str>| {
        let mut headers = Table::builder();
        if specversion {
            headers
                .push_str("cloudEvents_specversion", "1.0")
                .expect("short");
        }
        let properties = BasicProperties {
            kind: Some(ShortStr::from_static(kind)),
            headers: Some(headers.build()),
            ..BasicProperties::default()
        };
        let envelope = read(&properties.encode(), Bytes::new()).envelope;
        assert_eq!(envelope.name, name, "{kind}");
        assert_eq!(envelope.header("amqp:type"), header, "{kind}");

        // The same after it waited in a store.
        let kept = properties_of(&envelope, ENOUGH).expect("short names");
        assert_eq!(read(&kept, Bytes::new()).envelope, envelope);
    };
    check("order-placed.v1", false, "order-placed.v1", None);
    check("order-cancelled.v12", false, "order-cancelled.v12", None);
    check("com.example.order", true, "com.example.order", None);
    for other in [
        "x",
        "OrderPlaced",
        "order.v",
        ".v1",
        "order.v1.2",
        "Order.v1",
    ] {
        check(other, false, "", Some(other));
    }
    check("", false, "", None);
}

#[test]
fn a_header_is_no_attribute_and_an_attribute_comes_first() {
    let mut envelope = envelope();
    let forged = [
        ("cloudEvents:id", "other"),
        ("cloudEvents:type", "other.v1"),
    ];
    for (name, value) in forged {
        envelope.headers.push((name.into(), value.into()));
    }
    let properties = properties_of(&envelope, ENOUGH).expect("short names");
    let received = read(&properties, Bytes::new()).envelope;
    assert_eq!((received.id, received.name), (envelope.id, envelope.name));
    assert_eq!(received.headers, [("tenant".into(), "t".into())]);
}

#[test]
fn the_count_of_deliveries_is_the_queues_and_goes_with_no_copy() {
    let headers = [(ShortStr::from_static(DELIVERY_COUNT), Value::I64(2))];
    let original = BasicProperties {
        headers: Some(headers.into_iter().collect()),
        ..BasicProperties::default()
    };
    let original = original.encode();
    let received = read(&original, Bytes::new());
    assert_eq!(received.delivered_before, Some(2));
    assert_eq!(received.envelope.headers, []);
    let (_, copied) = again(&original, CopyFor::Later);
    assert_eq!(copied.delivered_before, None);
}

#[test]
fn what_amqp_cannot_carry_is_said() {
    let check = |change: &dyn Fn(&mut Envelope), expected: &str| {
        let mut envelope = envelope();
        change(&mut envelope);
        let error = properties_of(&envelope, ENOUGH).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    };
    let header = |name: &str| (Box::from(name), Box::from("v"));
    let long = "n".repeat(256);
    check(&|it| it.headers.push(header(&long)), "header is too long");
    check(&|it| it.headers.push(header("CC")), "`CC`");
    check(&|it| it.headers.push(header("BCC")), "`BCC`");
    check(&|it| it.content_type = long.clone().into(), "content type");
    // These it can.
    let mut odd = envelope();
    odd.id = Some("\0\n\u{1F600}".repeat(100).into());
    odd.key = Some("\0".into());
    odd.name = long.clone().into();
    odd.headers.push(("\0".into(), "\0".into()));
    let properties = properties_of(&odd, ENOUGH).expect("it can");
    assert_eq!(read(&properties, odd.body.clone()).envelope, odd);
}
