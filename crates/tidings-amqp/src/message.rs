//! Envelopes as AMQP messages: CloudEvents in binary mode, and the history of what failed.
//!
//! Attributes are application headers (`cloudEvents:id`) and, where AMQP has a property of the
//! same meaning, that too. When reading, the header wins; the prefix `cloudEvents_`, which JMS
//! programs have to use, is known as well.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use tidings_core::{Attempt, Delivery, Envelope, MessageId};
use tidings_wire::{BasicProperties, Properties, ShortStr, ShortStrTooLong, Table, Value};

const PERSISTENT: u8 = 2;

/// How many failed deliveries are remembered, of however many there were: the first and the
/// latest.
const HISTORY_MAX: usize = 10;
/// A longer reason is cut: headers have to fit into one frame.
const REASON_BYTES_MAX: usize = 4 * 1024;

const FAILURES: &str = "tidings-failures";
const HISTORY: &str = "tidings-history";
const REASON: &str = "tidings-reason";
const QUEUE: &str = "tidings-queue";
const OURS: [&str; 4] = [FAILURES, HISTORY, REASON, QUEUE];

/// The properties of a message on its way out.
pub(crate) fn properties_of(envelope: &Envelope) -> Result<BasicProperties, ShortStrTooLong> {
    let mut headers = Table::builder();
    let mut attribute = |name: &str, value: Option<&str>| match value {
        Some(value) if !value.is_empty() => headers.push_str(name, value).map(drop),
        _ => Ok(()),
    };
    let id = envelope.id.as_ref().map(MessageId::as_str);
    attribute("cloudEvents:specversion", Some("1.0"))?;
    attribute("cloudEvents:id", id)?;
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
    attribute("cloudEvents:traceparent", envelope.traceparent.as_deref())?;
    for (name, value) in &envelope.headers {
        headers.push_str(name, value)?;
    }
    Ok(BasicProperties {
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
    })
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
}

/// Reads a delivery, of whatever program it comes from.
pub(crate) fn read(properties: &Properties, body: Bytes) -> Received {
    let properties = properties.decode();
    let mut envelope = Envelope::new(Cow::Borrowed(""), body);
    envelope.content_type = Cow::Borrowed("");
    let mut received = Received {
        envelope,
        history: Vec::new(),
        failures: 0,
    };
    for (name, value) in properties.headers.iter().flat_map(Table::iter) {
        received.read_header(&name.to_str_lossy(), &value);
    }
    received.read_properties(&properties);
    received
}

impl Received {
    fn read_header(&mut self, name: &str, value: &Value) {
        if name == FAILURES {
            let failures = value.as_i64().and_then(|count| u32::try_from(count).ok());
            self.failures = failures.unwrap_or_default();
            return;
        }
        let Some(text) = value.as_str() else {
            return;
        };
        let envelope = &mut self.envelope;
        let attribute = name
            .strip_prefix("cloudEvents")
            .and_then(|rest| rest.strip_prefix([':', '_']));
        match attribute {
            Some("id") => envelope.id = Some(text.into()),
            Some("type") => envelope.name = Cow::Owned(text.into()),
            Some("source") => envelope.source = Cow::Owned(text.into()),
            // A time that is none is left out: nothing rests on it.
            Some("time") => envelope.time = text.parse().ok(),
            Some("partitionkey") => envelope.key = Some(text.into()),
            Some("correlationid") => envelope.correlation_id = Some(text.into()),
            Some("causationid") => envelope.causation_id = Some(text.into()),
            Some("traceparent") => envelope.traceparent = Some(text.into()),
            Some("specversion") => {}
            _ if name == HISTORY => {
                // Foreign programs may write anything there; the count stands for itself.
                self.history = serde_json::from_str(text).unwrap_or_default();
            }
            // What the transport and the broker wrote on earlier deliveries is not the message's.
            _ if OURS.contains(&name) || is_of_broker(name) => {}
            _ => envelope.headers.push((name.into(), text.into())),
        }
    }

    /// What no header said.
    fn read_properties(&mut self, properties: &BasicProperties) {
        let envelope = &mut self.envelope;
        let owned =
            |text: &Option<ShortStr>| text.as_ref().map(|it| it.to_str_lossy().into_owned());
        if envelope.id.is_none() {
            envelope.id = owned(&properties.message_id).map(MessageId::new);
        }
        if let ("", Some(name)) = (&*envelope.name, owned(&properties.kind)) {
            envelope.name = Cow::Owned(name);
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
    }
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
/// * the broker's own `x-death` unless it is for good (a retry would look like a loop to it).
pub(crate) fn properties_of_copy(
    original: &Properties,
    delivery: &Delivery,
    copy_for: CopyFor<'_>,
) -> BasicProperties {
    let mut properties = original.decode();
    let mut headers = Table::builder();
    for (name, value) in properties.headers.iter().flat_map(Table::iter) {
        if !is_dropped(&name.to_str_lossy(), copy_for) {
            headers.push(&name, &value);
        }
    }
    let mut push = |name: &'static str, value: Value| {
        headers.push(&ShortStr::from_static(name), &value);
    };
    if let CopyFor::Retry(attempt) | CopyFor::DeadLetters(attempt) = copy_for {
        let attempt = shortened(attempt);
        let failures = i64::from(delivery.failures.saturating_add(1));
        push(FAILURES, failures.into());
        push(HISTORY, history_with(&delivery.history, &attempt).into());
        if let CopyFor::DeadLetters(_) = copy_for {
            push(REASON, attempt.reason.into());
            push(QUEUE, (&*delivery.queue).into());
        }
    }
    properties.headers = Some(headers.build());
    properties.delivery_mode = Some(PERSISTENT);
    properties.expiration = None;
    properties.user_id = None;
    properties
}

fn is_dropped(header: &str, copy_for: CopyFor<'_>) -> bool {
    let is_replaced = !matches!(copy_for, CopyFor::Later) && OURS.contains(&header);
    let is_final = matches!(copy_for, CopyFor::DeadLetters(_));
    is_replaced || matches!(header, "CC" | "BCC") || (!is_final && is_of_broker(header))
}

/// What a broker adds when it moves a message out of a queue by itself.
fn is_of_broker(header: &str) -> bool {
    ["x-death", "x-first-death-", "x-last-death-"]
        .iter()
        .any(|prefix| header.starts_with(prefix))
}

/// The history with one more attempt, as JSON: the first attempt and the latest ones.
fn history_with(history: &[Attempt], attempt: &Attempt) -> String {
    let first = history.iter().take(1);
    let latest = history.len().saturating_sub(HISTORY_MAX - 2).max(1);
    let latest = history.get(latest..).unwrap_or_default();
    let attempts: Vec<Attempt> = first.chain(latest).map(shortened).collect();
    let attempts: Vec<&Attempt> = attempts.iter().chain([attempt]).collect();
    // Times, texts and nothing else: this cannot fail.
    serde_json::to_string(&attempts).unwrap_or_default()
}

fn shortened(attempt: &Attempt) -> Attempt {
    let mut attempt = attempt.clone();
    if attempt.reason.len() > REASON_BYTES_MAX {
        let mut end = REASON_BYTES_MAX;
        while !attempt.reason.is_char_boundary(end) {
            end -= 1;
        }
        attempt.reason.truncate(end);
        attempt.reason.push('…');
    }
    attempt
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidings_core::{BoxFuture, Settlement, Settler, TransportError};

    use super::*;

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
        let properties = properties_of(&envelope).expect("short names");
        assert_eq!(properties.delivery_mode, Some(2));
        assert_eq!(properties.timestamp, Some(1_767_323_045));
        let received = read(&properties.encode(), envelope.body.clone());
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
        assert_eq!((&*envelope.content_type, envelope.headers), ("", vec![]));
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
    }

    /// A copy, delivered again.
    fn again(original: &Properties, copy_for: CopyFor<'_>) -> (BasicProperties, Received) {
        let received = read(original, Bytes::new());
        let mut delivery = Delivery::new(received.envelope, "q".into(), 1, Arc::new(Nobody));
        delivery.history = received.history;
        delivery.failures = received.failures;
        let copy = properties_of_copy(original, &delivery, copy_for);
        let received = read(&copy.encode(), Bytes::new());
        (copy, received)
    }

    #[test]
    fn a_copy_keeps_everything_but_what_would_harm_it() {
        let headers: Table = [
            (ShortStr::from_static("number"), Value::I32(7)),
            (ShortStr::from_static("CC"), Value::from("elsewhere")),
            (ShortStr::from_static("x-death"), Value::Void),
            (
                ShortStr::from_static(REASON),
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
        assert_eq!(headers.get(FAILURES), Some(Value::I64(1)));
        let dropped = ["CC", "x-death", REASON];
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
        assert_eq!(headers.get(REASON), Some("failure 25".into()));
        assert_eq!(headers.get(QUEUE), Some("q".into()));
    }

    #[test]
    fn reasons_without_end_are_cut() {
        let mut long = attempt(1);
        long.reason = "ö".repeat(100_000);
        let mut properties = Properties::default();
        for _ in 0..12 {
            let (copy, _) = again(&properties, CopyFor::DeadLetters(&long));
            properties = copy.encode();
        }
        assert!(properties.as_bytes().len() < 64 * 1024);
    }
}
