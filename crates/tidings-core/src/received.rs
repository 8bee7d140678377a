//! What a transport received: the envelope and what failed before, read from attributes that are texts.
//!
//! The attributes are those of CloudEvents' binary mode, as its binding for Kafka names them (`ce_…`, `content-type`). Any
//! transport whose engine keeps texts beside a body can use it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{
    Attempt, Envelope, FAILURES_HEADER, HISTORY_HEADER, MessageId, QUEUE_HEADER, REASON_HEADER,
};

/// For transports: a message as it came in, of whatever program.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The message.
    pub envelope: Envelope,
    /// Its failed attempts.
    pub history: Vec<Attempt>,
    /// How often it failed.
    pub failures: u32,
    /// Of a dead letter: why it is one.
    pub reason: Option<Box<str>>,
    /// Of a dead letter: whose it is.
    pub consumer: Option<Box<str>>,
}

impl Received {
    /// A message of which only the body is known yet.
    pub fn new(body: impl Into<Bytes>) -> Self {
        let mut envelope = Envelope::new("", body);
        envelope.content_type = Cow::Borrowed("");
        Self {
            envelope,
            history: Vec::new(),
            failures: 0,
            reason: None,
            consumer: None,
        }
    }

    /// Takes an attribute. The first of a name counts, so that none that came along as a plain header replaces it.
    pub fn attribute(&mut self, name: &str, text: &str) {
        const JSON: &str = "application/json";
        let envelope = &mut self.envelope;
        let first = |attribute: &mut Option<Box<str>>| {
            attribute.get_or_insert_with(|| text.into());
        };
        match name {
            "ce_id" => {
                envelope.id.get_or_insert_with(|| MessageId::new(text));
            }
            "ce_type" if envelope.name.is_empty() => envelope.name = Cow::Owned(text.to_owned()),
            "ce_source" if envelope.source.is_empty() => {
                envelope.source = Cow::Owned(text.to_owned());
            }
            // A time that is none is left out: nothing rests on it.
            "ce_time" if envelope.time.is_none() => envelope.time = text.parse().ok(),
            "ce_partitionkey" => first(&mut envelope.key),
            "ce_correlationid" => first(&mut envelope.correlation_id),
            "ce_causationid" => first(&mut envelope.causation_id),
            "ce_traceparent" => first(&mut envelope.traceparent),
            "content-type" if envelope.content_type.is_empty() => {
                envelope.content_type = match text {
                    JSON => Cow::Borrowed(JSON),
                    _ => Cow::Owned(text.to_owned()),
                };
            }
            "ce_specversion" | "ce_type" | "ce_source" | "ce_time" | "content-type" => {}
            // Foreign programs may write anything there; the count stands for itself.
            FAILURES_HEADER => self.failures = text.parse().unwrap_or_default(),
            HISTORY_HEADER => self.history = serde_json::from_str(text).unwrap_or_default(),
            // A message that was one has them no more when it is sent again.
            REASON_HEADER => first(&mut self.reason),
            QUEUE_HEADER => first(&mut self.consumer),
            _ => envelope.headers.push((name.into(), text.into())),
        }
    }
}
