//! Envelopes as messages of SNS and SQS.
//!
//! A message there is a text and at most ten attributes: more of them SNS drops without a word when it delivers
//! a message as it came. So the essential attributes of CloudEvents are attributes (`ce_id`, `ce_type` and so
//! on), and everything else is in one, `tidings-more`, as JSON. A body that is no text of the characters that
//! Amazon takes is in base64, and `tidings-encoding` says so.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tidings_core::{
    Attempt, Envelope, HISTORY_HEADER, MessageId, REASON_HEADER, Received, shortened_history,
    shortened_reason,
};
use tracing::debug;

/// More than these, and SNS drops the message.
pub(crate) const ATTRIBUTES_MAX: usize = 10;
/// The reasons in a history are cut to this many bytes.
const REASON_BYTES_MAX: usize = 1024;

const MORE: &str = "tidings-more";
const ENCODING: &str = "tidings-encoding";
const BASE64: &str = "base64";
/// There is no body: Amazon takes no message without a text.
const EMPTY: &str = "empty";

/// A message on its way out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) body: String,
    pub(crate) attributes: Vec<(&'static str, String)>,
}

impl Sent {
    /// What Amazon counts against its limits.
    pub(crate) fn bytes(&self) -> usize {
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(name, value)| name.len() + "String".len() + value.len());
        self.body.len() + attributes.sum::<usize>()
    }
}

/// What is in the attribute for everything else.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct More<'a> {
    /// Attributes of CloudEvents, by their names there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ce: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// A message for the wire.
pub(crate) fn encode(envelope: &Envelope) -> Sent {
    let mut more = More::default();
    let mut attributes: Vec<(&'static str, String)> = Vec::with_capacity(ATTRIBUTES_MAX);
    let time = envelope.time.map(|time| time.to_string());
    let essential = [
        ("ce_id", envelope.id.as_ref().map(MessageId::as_str)),
        ("ce_type", Some(&*envelope.name)),
        ("ce_source", Some(&*envelope.source)),
        ("ce_time", time.as_deref()),
        ("ce_partitionkey", envelope.key.as_deref()),
        ("content-type", Some(&*envelope.content_type)),
    ];
    attributes.push(("ce_specversion", "1.0".to_owned()));
    for (name, value) in essential {
        match value {
            Some("") if matches!(name, "ce_id" | "ce_partitionkey") => {
                more.ce.push((name.into(), "".into()));
            }
            None | Some("") => {}
            Some(value) if value.chars().all(is_taken) => attributes.push((name, value.to_owned())),
            Some(value) => more.ce.push((name.into(), value.into())),
        }
    }
    for (name, value) in [
        ("ce_correlationid", envelope.correlation_id.as_deref()),
        ("ce_causationid", envelope.causation_id.as_deref()),
        ("ce_traceparent", envelope.traceparent.as_deref()),
    ] {
        if let Some(value) = value {
            more.ce.push((name.into(), value.into()));
        }
    }
    let mut reason = None;
    for (name, value) in &envelope.headers {
        let value = match &**name {
            REASON_HEADER => {
                let short = shortened_reason(value, REASON_BYTES_MAX);
                reason = Some(as_text(&short)).filter(|reason| !reason.is_empty());
                short
            }
            HISTORY_HEADER if value.len() > REASON_BYTES_MAX => {
                shortened_history(value, REASON_BYTES_MAX)
            }
            _ => Cow::Borrowed(&**value),
        };
        more.headers.push(((&**name).into(), value));
    }
    if let Some(reason) = reason {
        attributes.push((REASON_HEADER, reason));
    }
    let (body, encoding) = text_of(&envelope.body);
    if let Some(encoding) = encoding {
        attributes.push((ENCODING, encoding.to_owned()));
    }
    if more != More::default() {
        // Texts and nothing else: this cannot fail.
        let json = serde_json::to_string(&more).unwrap_or_default();
        attributes.push((MORE, escaped(&json)));
    }
    debug_assert!(attributes.len() <= ATTRIBUTES_MAX);
    Sent { body, attributes }
}

/// A body as a text that Amazon takes, and how it was made one.
fn text_of(body: &[u8]) -> (String, Option<&'static str>) {
    match str::from_utf8(body) {
        Ok("") => ("-".to_owned(), Some(EMPTY)),
        Ok(text) if text.chars().all(is_taken) => (text.to_owned(), None),
        _ => (STANDARD.encode(body), Some(BASE64)),
    }
}

/// The characters that Amazon takes.
fn is_taken(char: char) -> bool {
    matches!(char, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

/// JSON with the characters that Amazon does not take written as escapes; in JSON they are in texts only.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for char in json.chars() {
        if is_taken(char) {
            escaped.push(char);
        } else {
            escaped.push_str(&format!("\\u{:04x}", u32::from(char)));
        }
    }
    escaped
}

/// A text for people.
fn as_text(reason: &str) -> String {
    reason
        .chars()
        .map(|char| if is_taken(char) { char } else { '\u{FFFD}' })
        .collect()
}

pub(crate) fn history_as_json(history: &[Attempt]) -> String {
    tidings_core::history_as_json(history, REASON_BYTES_MAX)
}

/// Reads a message, of whatever program it comes from.
pub(crate) fn decode<'a>(
    body: &str,
    attributes: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Received {
    let mut received = Received::new(Vec::new());
    let mut encoding = None;
    let mut more = None;
    for (name, value) in attributes {
        match (name, value) {
            (_, None) => debug!(attribute = name, "left out: it is no text"),
            (ENCODING, value) => encoding = value,
            (MORE, value) => more = value,
            // It stands in the others, too.
            (REASON_HEADER, _) => {}
            (name, Some(value)) => received.attribute(name, value),
        }
    }
    match more.map(serde_json::from_str::<More<'_>>) {
        Some(Ok(more)) => {
            for (name, value) in more.ce.iter().chain(&more.headers) {
                received.attribute(name, value);
            }
        }
        Some(Err(error)) => debug!(%error, "left out: `{MORE}` is not what this toolkit writes"),
        None => {}
    }
    received.envelope.body = match encoding {
        Some(EMPTY) => Vec::new().into(),
        // What does not decode is what its sender meant.
        Some(BASE64) => STANDARD
            .decode(body)
            .unwrap_or_else(|_| body.as_bytes().to_vec())
            .into(),
        _ => body.as_bytes().to_vec().into(),
    };
    received
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tidings_core::{FAILURES_HEADER, dead_letter};

    use super::*;

    fn again(sent: &Sent) -> Received {
        let attributes = sent.attributes.iter();
        decode(
            &sent.body,
            attributes.map(|(name, value)| (*name, Some(&**value))),
        )
    }

    fn envelope() -> Envelope {
        let mut envelope = Envelope::new("order-placed.v1", "{}");
        envelope.id = Some("order-placed.v1/1".into());
        envelope.source = "orders".into();
        envelope.time = Some("2026-01-02T03:04:05.123456Z".parse().expect("a time"));
        envelope.key = Some("1 \u{1F600}".into());
        envelope.correlation_id = Some("conversation".into());
        envelope.causation_id = Some("cause".into());
        envelope.traceparent = Some("00-ab-cd-01".into());
        let headers = ["tenant", "tenant", "odd"]
            .into_iter()
            .zip(["t", "u", "\u{1}\u{FFFF}\""]);
        envelope.headers = headers
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        envelope
    }

    #[test]
    fn an_envelope_comes_back_as_it_was_sent() {
        let mut empty = Envelope::new("", "");
        empty.content_type = "".into();
        let mut odd = envelope();
        odd.key = Some("\u{2}".into());
        odd.id = Some("".into());
        for body in [
            &b""[..],
            b"-",
            b"text \xf0\x9f\x98\x80",
            b"\x00\xff",
            b"\x07",
        ] {
            for mut envelope in [envelope(), empty.clone(), odd.clone()] {
                envelope.body = body.to_vec().into();
                let sent = encode(&envelope);
                assert!(sent.body.chars().all(is_taken) && !sent.body.is_empty());
                for (name, value) in &sent.attributes {
                    assert!(!value.is_empty() && value.chars().all(is_taken), "{name}");
                }
                let received = again(&sent);
                assert_eq!(received.envelope, envelope);
                assert_eq!((received.failures, received.history), (0, vec![]));
            }
        }
    }

    #[test]
    fn there_are_never_more_attributes_than_sns_delivers() {
        let mut full = envelope();
        full.key = Some("k".into());
        full.body = b"\xff".to_vec().into();
        full.headers = (0..30)
            .map(|it| (format!("h{it}").into(), "v".into()))
            .collect();
        let sent = encode(&full);
        assert!(sent.attributes.len() < ATTRIBUTES_MAX);
        assert_eq!(again(&sent).envelope, full);
        let letter = dead_letter(&full, "q", 1, &[attempt("no".into())]);
        let sent = encode(&letter.envelope);
        assert_eq!(sent.attributes.len(), ATTRIBUTES_MAX);
        assert!(sent.attributes.contains(&(REASON_HEADER, "no".into())));
    }

    #[test]
    fn what_a_foreign_program_sent_is_read_too() {
        let attributes = [
            ("ce_id", Some("id")),
            ("ce_time", Some("soon")),
            ("binary", None),
            ("tenant", Some("t")),
            (MORE, Some("no JSON")),
            (ENCODING, Some(BASE64)),
            (FAILURES_HEADER, Some("many")),
        ];
        let received = decode("no base64!", attributes.into_iter());
        assert_eq!(received.envelope.id, Some("id".into()));
        assert_eq!((received.envelope.time, received.failures), (None, 0));
        assert_eq!(received.envelope.headers, [("tenant".into(), "t".into())]);
        assert_eq!(received.envelope.body, "no base64!");
    }

    fn attempt(reason: String) -> Attempt {
        Attempt {
            at: Timestamp::UNIX_EPOCH,
            reason,
            by: None,
        }
    }

    #[test]
    fn a_dead_letter_is_the_message_with_its_history_and_reasons_are_cut() {
        let history = vec![attempt("ö\u{0}".repeat(100_000)); 10];
        let letter = dead_letter(&envelope(), "q", 12, &history);
        let received = again(&encode(&letter.envelope));
        assert_eq!(received.envelope, envelope());
        assert_eq!((received.failures, received.history.len()), (12, 10));
        for attempt in &received.history {
            assert!(attempt.reason.len() <= REASON_BYTES_MAX && attempt.reason.ends_with('…'));
        }
    }
}
