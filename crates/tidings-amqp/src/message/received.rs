//! What comes in, as an envelope.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use tidings_core::{
    Attempt, Envelope, FAILURES_HEADER, HISTORY_HEADER, MessageId, QUEUE_HEADER, REASON_HEADER,
};
use tidings_wire::{Lent, LentProperties, Properties};
use tracing::debug;

use super::{DELIVERY_COUNT, is_of_broker};
use crate::headers::text_of;

const JSON: &str = "application/json";

/// A foreign program's AMQP property `type`, when it is not taken for the message's name.
const FOREIGN_TYPE: &str = "amqp:type";

/// What came in.
pub(crate) struct Received {
    pub(crate) envelope: Envelope,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
    /// How often it was handed out before, if its queue counts.
    pub(crate) delivered_before: Option<u32>,
    /// Of a dead letter.
    pub(crate) dead: Dead,
}

/// What a dead letter says of itself.
#[derive(Default)]
pub(crate) struct Dead {
    /// Why it is one, as its consumer wrote.
    pub(crate) reason: Option<String>,
    /// The queue or group it came from, as its consumer wrote.
    pub(crate) consumer: Option<String>,
    /// Why the broker moved it, and from where, if it did so by itself.
    pub(crate) moved: Option<String>,
    pub(crate) moved_from: Option<String>,
}

/// Reads a delivery, of whatever program it comes from.
pub(crate) fn read(properties: &Properties, body: Bytes) -> Received {
    let properties = properties.lend();
    let mut envelope = Envelope::new(Cow::Borrowed(""), body);
    envelope.content_type = Cow::Borrowed("");
    let mut reading = Reading {
        received: Received {
            envelope,
            history: Vec::new(),
            failures: 0,
            delivered_before: None,
            dead: Dead::default(),
        },
        is_cloud_event: false,
    };
    for (name, value) in properties.headers.iter() {
        let text = match &value {
            Lent::Text(text) => str::from_utf8(text).ok().map(Cow::Borrowed),
            Lent::Other(value) => text_of(value),
        };
        match (name.strip_prefix(b"cloudEvents"), text) {
            // What nearly all are.
            (Some([b':' | b'_', attribute @ ..]), Some(text)) => {
                reading.attribute(attribute, name, text);
            }
            (_, text) => reading.header(&String::from_utf8_lossy(name), text),
        }
    }
    reading.properties(&properties);
    reading.received
}

struct Reading {
    received: Received,
    is_cloud_event: bool,
}

impl Reading {
    fn header(&mut self, name: &str, text: Option<Cow<'_, str>>) {
        // What the transport and the broker wrote on earlier deliveries is not the message's, and
        // no more is whom else a copy went to.
        let dead = &mut self.received.dead;
        let of_dead = match name {
            REASON_HEADER => Some(&mut dead.reason),
            QUEUE_HEADER => Some(&mut dead.consumer),
            "x-last-death-reason" | "x-first-death-reason" => Some(&mut dead.moved),
            "x-last-death-queue" | "x-first-death-queue" => Some(&mut dead.moved_from),
            _ => None,
        };
        if let Some(place) = of_dead {
            *place = text.map(Cow::into_owned);
            return;
        }
        if is_of_broker(name) || matches!(name, "CC" | "BCC") {
            return;
        }
        let Some(text) = text else {
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
            _ => received.envelope.headers.push((name.into(), text.into())),
        }
    }

    /// The first of a name counts, so that none that came along as a plain header replaces it.
    fn attribute(&mut self, attribute: &[u8], header: &[u8], text: Cow<'_, str>) {
        let envelope = &mut self.received.envelope;
        let first = |attribute: &mut Option<Box<str>>, text: Cow<'_, str>| {
            attribute.get_or_insert_with(|| text.into());
        };
        match attribute {
            b"id" => {
                envelope.id.get_or_insert_with(|| MessageId::new(text));
            }
            b"type" if envelope.name.is_empty() => {
                envelope.name = Cow::Owned(text.into_owned());
            }
            b"source" if envelope.source.is_empty() => {
                envelope.source = Cow::Owned(text.into_owned());
            }
            // A time that is none is left out: nothing rests on it.
            b"time" if envelope.time.is_none() => envelope.time = text.parse().ok(),
            b"partitionkey" => first(&mut envelope.key, text),
            b"correlationid" => first(&mut envelope.correlation_id, text),
            b"causationid" => first(&mut envelope.causation_id, text),
            b"traceparent" => first(&mut envelope.traceparent, text),
            b"specversion" => self.is_cloud_event = true,
            b"type" | b"source" | b"time" => {}
            _ => {
                let name = String::from_utf8_lossy(header);
                envelope.headers.push((name.into(), text.into()));
            }
        }
    }

    /// What no header said.
    fn properties(&mut self, properties: &LentProperties<'_>) {
        let envelope = &mut self.received.envelope;
        let text = |bytes| String::from_utf8_lossy(bytes);
        if envelope.id.is_none() {
            envelope.id = properties.message_id.map(text).map(MessageId::new);
        }
        if envelope.source.is_empty()
            && let Some(source) = properties.app_id
        {
            envelope.source = Cow::Owned(text(source).into_owned());
        }
        if envelope.correlation_id.is_none() {
            envelope.correlation_id = properties.correlation_id.map(|it| text(it).into());
        }
        if envelope.time.is_none() {
            let seconds = properties.timestamp.and_then(|it| i64::try_from(it).ok());
            envelope.time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
        }
        if let Some(content_type) = properties.content_type {
            envelope.content_type = match content_type == JSON.as_bytes() {
                // What nearly all are.
                true => Cow::Borrowed(JSON),
                false => Cow::Owned(text(content_type).into_owned()),
            };
        }
        if let Some(kind) = properties.kind
            && kind != envelope.name.as_bytes()
        {
            self.kind(&text(kind));
        }
    }

    /// The property `type`. Programs that know nothing of CloudEvents put anything into it, so on
    /// its own it is the message's name only if it has the form of one: a message with the type
    /// `x` is read by its shape and not passed over as another.
    fn kind(&mut self, kind: &str) {
        let envelope = &mut self.received.envelope;
        if kind.is_empty() || envelope.name == kind {
            return;
        }
        if envelope.name.is_empty() && (self.is_cloud_event || is_wire_name(kind)) {
            envelope.name = Cow::Owned(kind.to_owned());
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
