//! Envelopes as AMQP messages: CloudEvents in binary mode, and the history of what failed.
//!
//! Attributes are application headers (`cloudEvents:id`) and, where AMQP has a property of the
//! same meaning, that too. When reading, the header wins; the prefix `cloudEvents_`, which JMS
//! programs have to use, is known as well.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use tidings_core::{
    Attempt, Delivery, Envelope, FAILURES_HEADER, HISTORY_HEADER, MessageId, QUEUE_HEADER,
    REASON_HEADER,
};
use tidings_wire::{
    BasicProperties, Properties, ShortStr, ShortStrTooLong, Table, TableBuilder, Value,
};
use tracing::debug;

use crate::headers::text_of;

const PERSISTENT: u8 = 2;

/// What the transport itself writes about deliveries that failed.
const OURS: [&str; 4] = [FAILURES_HEADER, HISTORY_HEADER, REASON_HEADER, QUEUE_HEADER];
/// The reasons in a history are cut to the first of these lengths, in bytes, with which all headers
/// fit into one frame.
const REASON_BYTES_MAX: [usize; 3] = [4 * 1024, 256, 16];
/// A foreign program's AMQP property `type`, when it is not taken for the message's name.
const FOREIGN_TYPE: &str = "amqp:type";
/// How often a quorum queue has handed a message out before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The properties of a message on its way out, in at most `bytes_max` if the cutting of reasons can
/// bring them there.
///
/// # Errors
///
/// What it is that AMQP cannot carry.
pub(crate) fn properties_of(envelope: &Envelope, bytes_max: usize) -> Result<Properties, String> {
    if envelope.content_type.len() > ShortStr::BYTES_MAX {
        let bytes = envelope.content_type.len();
        return Err(format!(
            "its content type has {bytes} bytes; AMQP takes at most 255"
        ));
    }
    fitting(bytes_max, |reason_bytes_max| {
        let mut headers = Table::builder();
        push_attributes(&mut headers, envelope).map_err(|error| error.to_string())?;
        for (name, value) in &envelope.headers {
            push_header(&mut headers, name, value, reason_bytes_max)?;
        }
        let id = envelope.id.as_ref().map(MessageId::as_str);
        let properties = BasicProperties {
            content_type: short_cow(&envelope.content_type),
            headers: Some(headers.build()),
            delivery_mode: Some(PERSISTENT),
            correlation_id: envelope.correlation_id.as_deref().and_then(short),
            message_id: id.and_then(short),
            timestamp: envelope
                .time
                .and_then(|time| u64::try_from(time.as_second()).ok()),
            kind: short_cow(&envelope.name),
            app_id: short_cow(&envelope.source),
            ..BasicProperties::default()
        };
        Ok(properties.encode())
    })
}

/// What `make` makes with the longest reasons that fit, or else with the shortest.
fn fitting(
    bytes_max: usize,
    make: impl Fn(usize) -> Result<Properties, String>,
) -> Result<Properties, String> {
    let [rest @ .., shortest] = REASON_BYTES_MAX;
    for reason_bytes_max in rest {
        let made = make(reason_bytes_max)?;
        if made.as_bytes().len() <= bytes_max {
            return Ok(made);
        }
    }
    make(shortest)
}

fn push_attributes(headers: &mut TableBuilder, envelope: &Envelope) -> Result<(), ShortStrTooLong> {
    let mut attribute = |name: &str, value: Option<&str>| match value {
        Some(value) if !value.is_empty() => headers.push_str(name, value).map(drop),
        _ => Ok(()),
    };
    attribute("cloudEvents:specversion", Some("1.0"))?;
    attribute(
        "cloudEvents:id",
        envelope.id.as_ref().map(MessageId::as_str),
    )?;
    attribute("cloudEvents:type", Some(&envelope.name))?;
    attribute("cloudEvents:source", Some(&envelope.source))?;
    if let Some(time) = envelope.time {
        attribute("cloudEvents:time", Some(&time.to_string()))?;
    }
    attribute("cloudEvents:partitionkey", envelope.key.as_deref())?;
    attribute(
        "cloudEvents:correlationid",
        envelope.correlation_id.as_deref(),
    )?;
    attribute("cloudEvents:causationid", envelope.causation_id.as_deref())?;
    attribute("cloudEvents:traceparent", envelope.traceparent.as_deref())
}

fn push_header(
    headers: &mut TableBuilder,
    name: &str,
    value: &str,
    reason_bytes_max: usize,
) -> Result<(), String> {
    let pushed = match name {
        // A broker would send copies to the queues that it names, or close the channel.
        "CC" | "BCC" => {
            return Err(format!(
                "its header `{name}` is an instruction to the broker; give it another name"
            ));
        }
        // As a settlement writes it.
        FAILURES_HEADER => match value.parse::<u32>() {
            Ok(failures) => headers.push_value(name, &i64::from(failures).into()),
            Err(_) => headers.push_str(name, value),
        },
        REASON_HEADER => headers.push_str(name, &shortened(value, reason_bytes_max)),
        HISTORY_HEADER => match serde_json::from_str::<Vec<Attempt>>(value) {
            Ok(history) => headers.push_str(name, &history_as_json(&history, reason_bytes_max)),
            Err(_) => headers.push_str(name, value),
        },
        _ => headers.push_str(name, value),
    };
    pushed
        .map(drop)
        .map_err(|error| format!("the name of a header is too long: {error}"))
}

/// A property, unless it is empty or too long for one; its header has it in any case.
fn short(text: &str) -> Option<ShortStr> {
    (!text.is_empty())
        .then(|| ShortStr::try_from(text).ok())
        .flatten()
}

#[expect(
    clippy::ptr_arg,
    reason = "what is borrowed lives for ever, and need not be copied"
)]
fn short_cow(text: &Cow<'static, str>) -> Option<ShortStr> {
    match text {
        Cow::Borrowed("") => None,
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()).try_into().ok(),
        Cow::Owned(text) => short(text),
    }
}

/// What came in.
pub(crate) struct Received {
    pub(crate) envelope: Envelope,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
    /// How often it was handed out before, if its queue counts.
    pub(crate) delivered_before: Option<u32>,
}

/// Reads a delivery, of whatever program it comes from.
pub(crate) fn read(properties: &Properties, body: Bytes) -> Received {
    let properties = properties.decode();
    let mut envelope = Envelope::new(Cow::Borrowed(""), body);
    envelope.content_type = Cow::Borrowed("");
    let mut reading = Reading {
        received: Received {
            envelope,
            history: Vec::new(),
            failures: 0,
            delivered_before: None,
        },
        is_cloud_event: false,
    };
    for (name, value) in properties.headers.iter().flat_map(Table::iter) {
        reading.header(&name.to_str_lossy(), &value);
    }
    reading.properties(&properties);
    reading.received
}

struct Reading {
    received: Received,
    is_cloud_event: bool,
}

impl Reading {
    fn header(&mut self, name: &str, value: &Value) {
        // What the transport and the broker wrote on earlier deliveries is not the message's, and
        // no more is whom else a copy went to.
        if is_of_broker(name) || matches!(name, "CC" | "BCC" | REASON_HEADER | QUEUE_HEADER) {
            return;
        }
        let Some(text) = text_of(value) else {
            debug!(
                header = name,
                "left out: neither text, nor a plain value, nor JSON"
            );
            return;
        };
        let received = &mut self.received;
        match name {
            // Foreign programs may write anything there; the count stands for itself.
            FAILURES_HEADER => received.failures = text.parse().unwrap_or_default(),
            HISTORY_HEADER => received.history = serde_json::from_str(&text).unwrap_or_default(),
            DELIVERY_COUNT => received.delivered_before = text.parse().ok(),
            _ => self.attribute(name, text),
        }
    }

    /// The first of a name counts, so that none that came along as a plain header replaces it.
    fn attribute(&mut self, name: &str, text: Cow<'_, str>) {
        let envelope = &mut self.received.envelope;
        let first = |attribute: &mut Option<Box<str>>, text: Cow<'_, str>| {
            attribute.get_or_insert_with(|| text.into());
        };
        let attribute = name
            .strip_prefix("cloudEvents")
            .and_then(|rest| rest.strip_prefix([':', '_']));
        match attribute {
            Some("id") => {
                envelope.id.get_or_insert_with(|| MessageId::new(text));
            }
            Some("type") if envelope.name.is_empty() => {
                envelope.name = Cow::Owned(text.into_owned());
            }
            Some("source") if envelope.source.is_empty() => {
                envelope.source = Cow::Owned(text.into_owned());
            }
            // A time that is none is left out: nothing rests on it.
            Some("time") if envelope.time.is_none() => envelope.time = text.parse().ok(),
            Some("partitionkey") => first(&mut envelope.key, text),
            Some("correlationid") => first(&mut envelope.correlation_id, text),
            Some("causationid") => first(&mut envelope.causation_id, text),
            Some("traceparent") => first(&mut envelope.traceparent, text),
            Some("specversion") => self.is_cloud_event = true,
            Some("type" | "source" | "time") => {}
            _ => envelope.headers.push((name.into(), text.into())),
        }
    }

    /// What no header said.
    fn properties(&mut self, properties: &BasicProperties) {
        let envelope = &mut self.received.envelope;
        let owned =
            |text: &Option<ShortStr>| text.as_ref().map(|it| it.to_str_lossy().into_owned());
        if envelope.id.is_none() {
            envelope.id = owned(&properties.message_id).map(MessageId::new);
        }
        if let ("", Some(source)) = (&*envelope.source, owned(&properties.app_id)) {
            envelope.source = Cow::Owned(source);
        }
        if envelope.correlation_id.is_none() {
            envelope.correlation_id = owned(&properties.correlation_id).map(Into::into);
        }
        if envelope.time.is_none() {
            let seconds = properties.timestamp.and_then(|it| i64::try_from(it).ok());
            envelope.time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        }
        if let Some(content_type) = owned(&properties.content_type) {
            envelope.content_type = Cow::Owned(content_type);
        }
        if let Some(kind) = owned(&properties.kind) {
            self.kind(kind);
        }
    }

    /// The property `type`. Programs that know nothing of CloudEvents put anything into it, so on
    /// its own it is the message's name only if it has the form of one: a message with the type
    /// `x` is read by its shape and not passed over as another.
    fn kind(&mut self, kind: String) {
        let envelope = &mut self.received.envelope;
        if kind.is_empty() || envelope.name == kind {
            return;
        }
        if envelope.name.is_empty() && (self.is_cloud_event || is_wire_name(&kind)) {
            envelope.name = Cow::Owned(kind);
        } else if envelope.header(FOREIGN_TYPE).is_none() {
            envelope.headers.push((FOREIGN_TYPE.into(), kind.into()));
        }
    }
}

/// True for the form that every name on the wire has: `order-placed.v1`.
fn is_wire_name(text: &str) -> bool {
    let Some((name, version)) = text.rsplit_once(".v") else {
        return false;
    };
    let is_kebab = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.bytes().all(is_kebab)
        && !version.is_empty()
        && version.bytes().all(|byte| byte.is_ascii_digit())
}

/// Why a delivery is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CopyFor<'a> {
    /// It is to be handled later and did not fail.
    Later,
    /// It failed and is to be handled again.
    Retry(&'a Attempt),
    /// It failed for good.
    DeadLetters(&'a Attempt),
}

/// The properties of a copy of `delivery`, whose own are `original`: as they came, whatever program
/// wrote them, with the failure added to the history, and without what would make the broker treat
/// the copy specially:
///
/// * an expiration (a dead letter would vanish when it runs out),
/// * a user id (the broker refuses one that is not ours),
/// * `CC` and `BCC` (the copy is for one queue alone),
/// * a count of deliveries (it begins anew),
/// * the broker's own `x-death` unless it is for good (a retry would look like a loop to it).
///
/// The reasons in the history are cut so that all fits into `bytes_max`, if that is possible.
pub(crate) fn properties_of_copy(
    original: &Properties,
    delivery: &Delivery,
    copy_for: CopyFor<'_>,
    bytes_max: usize,
) -> Properties {
    let mut properties = original.decode();
    properties.delivery_mode = Some(PERSISTENT);
    properties.expiration = None;
    properties.user_id = None;
    let mut kept = Table::builder();
    for (name, value) in properties.headers.iter().flat_map(Table::iter) {
        if !is_dropped(&name.to_str_lossy(), copy_for) {
            kept.push(&name, &value);
        }
    }
    let made = fitting(bytes_max, |reason_bytes_max| {
        let mut headers = kept.clone();
        push_failure(&mut headers, delivery, copy_for, reason_bytes_max);
        let mut properties = properties.clone();
        properties.headers = Some(headers.build());
        Ok(properties.encode())
    });
    made.unwrap_or_else(|_: String| properties.encode())
}

fn push_failure(
    headers: &mut TableBuilder,
    delivery: &Delivery,
    copy_for: CopyFor<'_>,
    reason_bytes_max: usize,
) {
    let (CopyFor::Retry(attempt) | CopyFor::DeadLetters(attempt)) = copy_for else {
        return;
    };
    let mut push = |name: &'static str, value: Value| {
        headers.push(&ShortStr::from_static(name), &value);
    };
    let mut history = delivery.history.clone();
    attempt.clone().add_to(&mut history);
    let failures = i64::from(delivery.failures.saturating_add(1));
    push(FAILURES_HEADER, failures.into());
    push(
        HISTORY_HEADER,
        history_as_json(&history, reason_bytes_max).into(),
    );
    if let CopyFor::DeadLetters(_) = copy_for {
        let reason = shortened(&attempt.reason, reason_bytes_max);
        push(REASON_HEADER, Value::from(&*reason));
        push(QUEUE_HEADER, (&*delivery.queue).into());
    }
}

fn is_dropped(header: &str, copy_for: CopyFor<'_>) -> bool {
    let is_replaced = !matches!(copy_for, CopyFor::Later) && OURS.contains(&header);
    let is_final = matches!(copy_for, CopyFor::DeadLetters(_));
    is_replaced
        || matches!(header, "CC" | "BCC" | DELIVERY_COUNT)
        || (!is_final && is_of_broker(header))
}

/// What a broker adds when it moves a message out of a queue by itself.
fn is_of_broker(header: &str) -> bool {
    ["x-death", "x-first-death-", "x-last-death-"]
        .iter()
        .any(|prefix| header.starts_with(prefix))
}

fn history_as_json(history: &[Attempt], reason_bytes_max: usize) -> String {
    let shorten = |attempt: &Attempt| Attempt {
        reason: shortened(&attempt.reason, reason_bytes_max).into_owned(),
        ..attempt.clone()
    };
    let history: Vec<Attempt> = history.iter().map(shorten).collect();
    // Times, texts and nothing else: this cannot fail.
    serde_json::to_string(&history).unwrap_or_default()
}

/// As much of `reason` as fits, cut at a character.
fn shortened(reason: &str, bytes_max: usize) -> Cow<'_, str> {
    if reason.len() <= bytes_max {
        return Cow::Borrowed(reason);
    }
    let mut end = bytes_max - '…'.len_utf8();
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}…", &reason[..end]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidings_core::{BoxFuture, Settlement, Settler, TransportError, dead_letter};

    use super::*;

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
        let (copy, received) = again(&properties, CopyFor::DeadLetters(&attempt(25)));
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
                let (copy, received) = again(&properties, CopyFor::DeadLetters(&long));
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
        let (settled, expected) = again(&sent, CopyFor::DeadLetters(&attempt(1)));
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
}
