//! What a service sends, as properties.

use std::borrow::Cow;

use bytes::Bytes;
use tidings_core::{Attempt, Envelope, FAILURES_HEADER, HISTORY_HEADER, MessageId, REASON_HEADER};
use tidings_wire::{BasicProperties, Properties, ShortStr, ShortStrTooLong, Table, TableBuilder};

use super::{PERSISTENT, fitting, history_as_json, shortened};

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
