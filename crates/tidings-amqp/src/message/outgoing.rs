//! What a service sends, as properties.

use bytes::BytesMut;
use tidings_core::{
    Attempt, Envelope, FAILURES_HEADER, HISTORY_HEADER, MessageId, REASON_HEADER, history_as_json,
    shortened_reason,
};
use tidings_wire::{LentProperties, ShortStr, ShortStrTooLong, TableWriter, encode_properties};

use super::{PERSISTENT, REASON_BYTES_MAX};

/// Writes the properties of a message on its way out, in at most `bytes_max` if the cutting of reasons
/// can bring them there.
///
/// # Errors
///
/// What it is that AMQP cannot carry. What `out` holds then means nothing.
pub(crate) fn put_properties(
    out: &mut BytesMut,
    envelope: &Envelope,
    bytes_max: usize,
) -> Result<(), String> {
    if envelope.content_type.len() > ShortStr::BYTES_MAX {
        let bytes = envelope.content_type.len();
        return Err(format!(
            "its content type has {bytes} bytes; AMQP takes at most 255"
        ));
    }
    let id = envelope.id.as_ref().map(MessageId::as_str);
    let time = envelope.time.map(|time| u64::try_from(time.as_second()));
    let properties = LentProperties {
        content_type: short(&envelope.content_type),
        delivery_mode: Some(PERSISTENT),
        correlation_id: envelope.correlation_id.as_deref().and_then(short),
        message_id: id.and_then(short),
        timestamp: time.and_then(Result::ok),
        kind: short(&envelope.name),
        app_id: short(&envelope.source),
        ..LentProperties::default()
    };
    let at = out.len();
    for reason_bytes_max in REASON_BYTES_MAX {
        out.truncate(at);
        encode_properties(out, &properties, |headers| {
            push_attributes(headers, envelope)?;
            for (name, value) in &envelope.headers {
                push_header(headers, name, value, reason_bytes_max)?;
            }
            Ok::<(), NotSendable>(())
        })
        .map_err(|NotSendable(why)| why)?;
        if out.len() - at <= bytes_max {
            break;
        }
    }
    Ok(())
}

/// Why AMQP cannot carry something.
struct NotSendable(String);

impl From<ShortStrTooLong> for NotSendable {
    fn from(error: ShortStrTooLong) -> Self {
        Self(format!("the name of a header is too long: {error}"))
    }
}

fn push_attributes(
    headers: &mut TableWriter<'_>,
    envelope: &Envelope,
) -> Result<(), ShortStrTooLong> {
    let mut attribute = |name: &str, value: Option<&str>| match value {
        Some(value) if !value.is_empty() => headers.push_str(name, value),
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
        headers.push_display("cloudEvents:time", time)?;
    }
    let mut attribute = |name: &str, value: Option<&str>| match value {
        Some(value) if !value.is_empty() => headers.push_str(name, value),
        _ => Ok(()),
    };
    attribute("cloudEvents:partitionkey", envelope.key.as_deref())?;
    attribute(
        "cloudEvents:correlationid",
        envelope.correlation_id.as_deref(),
    )?;
    attribute("cloudEvents:causationid", envelope.causation_id.as_deref())?;
    attribute("cloudEvents:traceparent", envelope.traceparent.as_deref())
}

fn push_header(
    headers: &mut TableWriter<'_>,
    name: &str,
    value: &str,
    reason_bytes_max: usize,
) -> Result<(), NotSendable> {
    let pushed = match name {
        // A broker would send copies to the queues that it names, or close the channel.
        "CC" | "BCC" => {
            return Err(NotSendable(format!(
                "its header `{name}` is an instruction to the broker; give it another name"
            )));
        }
        // As a settlement writes it.
        FAILURES_HEADER => match value.parse::<u32>() {
            Ok(failures) => headers.push_value(name, &i64::from(failures).into()),
            Err(_) => headers.push_str(name, value),
        },
        REASON_HEADER => headers.push_str(name, &shortened_reason(value, reason_bytes_max)),
        HISTORY_HEADER => match serde_json::from_str::<Vec<Attempt>>(value) {
            Ok(history) => headers.push_str(name, &history_as_json(&history, reason_bytes_max)),
            Err(_) => headers.push_str(name, value),
        },
        _ => headers.push_str(name, value),
    };
    Ok(pushed?)
}

/// A property, unless it is empty or too long for one; its header has it in any case.
fn short(text: &str) -> Option<&[u8]> {
    (1..=ShortStr::BYTES_MAX)
        .contains(&text.len())
        .then_some(text.as_bytes())
}
