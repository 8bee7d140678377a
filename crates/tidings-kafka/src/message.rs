//! Envelopes as Kafka records: CloudEvents in binary mode, and the history of what failed.
//!
//! Attributes are headers `ce_…`, as CloudEvents' binding for Kafka has them, and the media type of the body is
//! the header `content-type`. The key of a record is the attribute `partitionkey`. Other headers are as they
//! are; a value that is not UTF-8 is no text and left out.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use tidings_core::{
    Attempt, Envelope, HISTORY_HEADER, MessageId, REASON_HEADER, Received, shortened_history,
    shortened_reason,
};
use tracing::debug;

/// The reasons in a history are cut to this many bytes.
const REASON_BYTES_MAX: usize = 4 * 1024;

/// The headers of a message on its way out.
pub(crate) fn headers_of(envelope: &Envelope) -> OwnedHeaders {
    let time = envelope.time.map(|time| time.to_string());
    let attributes = [
        ("ce_specversion", Some("1.0")),
        ("ce_id", envelope.id.as_ref().map(MessageId::as_str)),
        ("ce_type", Some(&*envelope.name)),
        ("ce_source", Some(&*envelope.source)),
        ("ce_time", time.as_deref()),
        ("ce_partitionkey", envelope.key.as_deref()),
        ("ce_correlationid", envelope.correlation_id.as_deref()),
        ("ce_causationid", envelope.causation_id.as_deref()),
        ("ce_traceparent", envelope.traceparent.as_deref()),
        ("content-type", Some(&*envelope.content_type)),
    ];
    let mut headers = OwnedHeaders::new_with_capacity(attributes.len() + envelope.headers.len());
    let mut push = |key: &str, value: &str| {
        let all = std::mem::take(&mut headers);
        headers = all.insert(Header {
            key,
            value: Some(value),
        });
    };
    for (name, value) in attributes {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            push(name, value);
        }
    }
    for (name, value) in &envelope.headers {
        match &**name {
            REASON_HEADER => push(name, &shortened_reason(value, REASON_BYTES_MAX)),
            HISTORY_HEADER if value.len() > REASON_BYTES_MAX => {
                push(name, &shortened_history(value, REASON_BYTES_MAX))
            }
            _ => push(name, value),
        }
    }
    headers
}

pub(crate) fn history_as_json(history: &[Attempt]) -> String {
    tidings_core::history_as_json(history, REASON_BYTES_MAX)
}

/// Reads a record, of whatever program it comes from.
pub(crate) fn read(record: &BorrowedMessage<'_>) -> Received {
    let body = Bytes::copy_from_slice(record.payload().unwrap_or_default());
    let headers = record.headers().into_iter().flat_map(Headers::iter);
    let headers = headers.map(|header| (header.key, header.value));
    from_parts(record.key(), headers, body)
}

fn from_parts<'a>(
    key: Option<&[u8]>,
    headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    body: Bytes,
) -> Received {
    let mut received = Received::new(body);
    for (name, value) in headers {
        match str::from_utf8(value.unwrap_or_default()) {
            Ok(text) => received.attribute(name, text),
            Err(_) => debug!(header = name, "left out: it is not UTF-8"),
        }
    }
    let envelope = &mut received.envelope;
    if envelope.key.is_none() {
        let key = key.and_then(|key| str::from_utf8(key).ok());
        envelope.key = key.map(Into::into);
    }
    received
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tidings_core::{FAILURES_HEADER, dead_letter};

    use super::*;

    fn again(envelope: &Envelope) -> Received {
        let headers = headers_of(envelope);
        let key = envelope.key.as_deref().map(str::as_bytes);
        let headers = headers.iter().map(|header| (header.key, header.value));
        from_parts(key, headers, envelope.body.clone())
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
        envelope.headers = vec![("tenant".into(), "t".into()), ("tenant".into(), "u".into())];
        envelope
    }

    #[test]
    fn an_envelope_comes_back_as_it_was_sent() {
        let mut empty = Envelope::new("", "");
        empty.content_type = "".into();
        for envelope in [envelope(), empty] {
            let received = again(&envelope);
            assert_eq!(received.envelope, envelope);
            assert_eq!((received.failures, received.history), (0, vec![]));
        }
    }

    #[test]
    fn what_a_foreign_program_sent_is_read_too() {
        let headers = [
            ("ce_id", Some(&b"id"[..])),
            ("ce_id", Some(b"other")),
            ("ce_time", Some(b"soon")),
            ("binary", Some(b"\xff")),
            ("nothing", None),
            (FAILURES_HEADER, Some(b"many")),
        ];
        let received = from_parts(Some(b"k"), headers.into_iter(), Bytes::new());
        assert_eq!(received.envelope.id, Some("id".into()));
        assert_eq!(received.envelope.key.as_deref(), Some("k"));
        assert_eq!((received.envelope.time, received.failures), (None, 0));
        assert_eq!(received.envelope.headers, [("nothing".into(), "".into())]);
        let keyless = from_parts(Some(b"\xff"), [].into_iter(), Bytes::new());
        assert_eq!(keyless.envelope.key, None);
    }

    #[test]
    fn a_dead_letter_is_the_message_with_its_history_and_reasons_are_cut() {
        let attempt = |reason: String| Attempt {
            at: Timestamp::UNIX_EPOCH,
            reason,
            by: None,
        };
        let history = vec![attempt("ö".repeat(100_000)); 10];
        let letter = dead_letter(&envelope(), "q", 12, &history);
        let received = again(&letter.envelope);
        assert_eq!(received.envelope, envelope());
        assert_eq!((received.failures, received.history.len()), (12, 10));
        for attempt in &received.history {
            assert!(attempt.reason.len() <= REASON_BYTES_MAX && attempt.reason.ends_with('…'));
        }
        let short = vec![attempt("no".into())];
        let letter = dead_letter(&envelope(), "q", 1, &short);
        assert_eq!(again(&letter.envelope).history, short);
    }
}
