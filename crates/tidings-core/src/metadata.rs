//! How a store keeps a message: the body as the bytes it is, all else as one JSON text.
//!
//! Every store writes the same text, so an operator's tools read one format, and a row that an
//! older version wrote is read by a newer one: fields are only ever added. An outbox row says where
//! the message goes as well; an inbox row does not.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::Error as _};

use crate::{Destination, Envelope, MessageId, Outgoing, Unrouted};

/// What is kept of a message beside its body. Short names: there is one per row.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_false")]
    drop_unrouted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    source: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    content_type: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
fn is_false(value: &bool) -> bool {
    !value
}

impl<'a> Metadata<'a> {
    fn of(envelope: &'a Envelope) -> Self {
        let headers = envelope.headers.iter();
        Self {
            topic: None,
            queue: None,
            drop_unrouted: false,
            id: envelope.id.as_ref().map(|id| Cow::Borrowed(id.as_str())),
            name: Cow::Borrowed(&envelope.name),
            source: Cow::Borrowed(&envelope.source),
            time: envelope.time,
            key: envelope.key.as_deref().map(Cow::Borrowed),
            correlation_id: envelope.correlation_id.as_deref().map(Cow::Borrowed),
            causation_id: envelope.causation_id.as_deref().map(Cow::Borrowed),
            traceparent: envelope.traceparent.as_deref().map(Cow::Borrowed),
            content_type: Cow::Borrowed(&envelope.content_type),
            headers: headers
                .map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value)))
                .collect(),
        }
    }

    fn into_envelope(self, body: Bytes) -> Envelope {
        Envelope {
            id: self.id.map(|id| MessageId::new(boxed(id))),
            name: owned(self.name),
            source: owned(self.source),
            time: self.time,
            key: self.key.map(boxed),
            correlation_id: self.correlation_id.map(boxed),
            causation_id: self.causation_id.map(boxed),
            traceparent: self.traceparent.map(boxed),
            content_type: owned(self.content_type),
            headers: self
                .headers
                .into_iter()
                .map(|(name, value)| (boxed(name), boxed(value)))
                .collect(),
            body,
        }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text, numbers and lists always become JSON")
    }
}

fn boxed(text: Cow<'_, str>) -> Box<str> {
    text.into_owned().into_boxed_str()
}

fn owned(text: Cow<'_, str>) -> Cow<'static, str> {
    Cow::Owned(text.into_owned())
}

impl Envelope {
    /// For stores: everything but the body, as a JSON text.
    pub fn to_metadata(&self) -> String {
        Metadata::of(self).to_json()
    }

    /// For stores: the envelope that [`to_metadata`](Self::to_metadata) and its body make.
    ///
    /// # Errors
    ///
    /// When `metadata` was not written by `to_metadata`.
    pub fn from_metadata(metadata: &str, body: Bytes) -> Result<Self, serde_json::Error> {
        let metadata: Metadata<'_> = serde_json::from_str(metadata)?;
        Ok(metadata.into_envelope(body))
    }
}

impl Outgoing {
    /// For stores: everything but the body, as a JSON text.
    pub fn to_metadata(&self) -> String {
        let name = Some(Cow::Borrowed(self.destination.name()));
        let (topic, queue) = match &self.destination {
            Destination::Topic(_) => (name, None),
            Destination::Queue(_) => (None, name),
        };
        let metadata = Metadata {
            topic,
            queue,
            drop_unrouted: self.unrouted == Unrouted::Drop,
            ..Metadata::of(&self.envelope)
        };
        metadata.to_json()
    }

    /// For stores: the message that [`to_metadata`](Self::to_metadata) and its body make.
    ///
    /// # Errors
    ///
    /// When `metadata` was not written by `to_metadata`.
    pub fn from_metadata(metadata: &str, body: Bytes) -> Result<Self, serde_json::Error> {
        let mut metadata: Metadata<'_> = serde_json::from_str(metadata)?;
        Ok(Self {
            destination: match (metadata.topic.take(), metadata.queue.take()) {
                (Some(name), None) => Destination::Topic(owned(name)),
                (None, Some(name)) => Destination::Queue(owned(name)),
                _ => return Err(serde_json::Error::custom("neither `topic` nor `queue`")),
            },
            unrouted: if metadata.drop_unrouted {
                Unrouted::Drop
            } else {
                Unrouted::Hold
            },
            envelope: metadata.into_envelope(body),
        })
    }
}

impl Destination {
    /// For stores: the destination as one text, `topic:order_events` or
    /// `queue:payment.refund-payment.v1`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Topic(name) => format!("topic:{name}"),
            Self::Queue(name) => format!("queue:{name}"),
        }
    }

    /// For stores: the destination that [`to_text`](Self::to_text) wrote. `None` if it did not.
    pub fn from_text(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("topic", name) => Some(Self::Topic(Cow::Owned(name.to_owned()))),
            ("queue", name) => Some(Self::Queue(Cow::Owned(name.to_owned()))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: Outgoing, metadata: &str) {
        assert_eq!(message.to_metadata(), metadata);
        let body = message.envelope.body.clone();
        let back = Outgoing::from_metadata(metadata, body.clone()).expect("it can be read");
        assert_eq!(back, message);
        let metadata = message.envelope.to_metadata();
        let back = Envelope::from_metadata(&metadata, body).expect("it can be read");
        assert_eq!(back, message.envelope);
        let text = message.destination.to_text();
        assert_eq!(Destination::from_text(&text), Some(message.destination));
    }

    #[test]
    fn the_metadata_hold_all_but_the_body_and_says_only_what_is_there() {
        let mut bare = Outgoing {
            destination: Destination::topic("order_events"),
            unrouted: Unrouted::Hold,
            envelope: Envelope::new("order-placed.v1", "{}"),
        };
        check(
            bare.clone(),
            r#"{"topic":"order_events","name":"order-placed.v1","contentType":"application/json"}"#,
        );

        bare.destination = Destination::queue("inventory.reserve-stock.v1");
        bare.unrouted = Unrouted::Drop;
        let envelope = &mut bare.envelope;
        envelope.id = Some("a\"b".into());
        envelope.source = "orders".into();
        envelope.time = Some(Timestamp::from_second(1_700_000_000).expect("a valid time"));
        envelope.key = Some("o-1".into());
        envelope.correlation_id = Some("c".into());
        envelope.causation_id = Some("d".into());
        envelope.traceparent = Some("00-1-2-01".into());
        envelope.headers = vec![("x".into(), "1".into()), ("x".into(), "2".into())];
        check(
            bare,
            concat!(
                r#"{"queue":"inventory.reserve-stock.v1","dropUnrouted":true,"id":"a\"b","#,
                r#""name":"order-placed.v1","source":"orders","time":"2023-11-14T22:13:20Z","#,
                r#""key":"o-1","correlationId":"c","causationId":"d","#,
                r#""traceparent":"00-1-2-01","contentType":"application/json","#,
                r#""headers":[["x","1"],["x","2"]]}"#
            ),
        );
    }

    #[test]
    fn a_field_of_a_newer_version_is_passed_over() {
        let metadata = r#"{"topic":"t","name":"n.v1","new":1}"#;
        let message = Outgoing::from_metadata(metadata, Bytes::new()).expect("readable");
        assert_eq!(message.envelope.name, "n.v1");
    }
}
