//! A message as it is shown: metadata and body, sensitive values hidden.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tidings::{Attempt, Envelope, MessageId};

use crate::{
    mask::Mask,
    out::{Page, one_line},
};

/// A message. As JSON: `{name, id, source?, time?, key?, correlationId?, causationId?, headers, body}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShownMessage {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) causation_id: Option<String>,
    pub(crate) headers: Vec<ShownHeader>,
    /// JSON as it is; what is not JSON is a text.
    pub(crate) body: Box<RawValue>,
}

/// A header. A name may come twice.
#[derive(Debug, Serialize)]
pub(crate) struct ShownHeader {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl ShownMessage {
    pub(crate) fn new(envelope: &Envelope, mask: &Mask) -> Self {
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        let headers = envelope.headers.iter().map(|(name, value)| ShownHeader {
            name: name.to_string(),
            value: match mask.hides(name) {
                true => "***".to_owned(),
                false => value.to_string(),
            },
        });
        Self {
            name: envelope.name.clone().into_owned(),
            id: envelope.id.as_ref().map(MessageId::to_string),
            source: Some(envelope.source.clone().into_owned()).filter(|it| !it.is_empty()),
            time: envelope.time,
            key: text(&envelope.key),
            correlation_id: text(&envelope.correlation_id),
            causation_id: text(&envelope.causation_id),
            headers: headers.collect(),
            body: mask.body(&envelope.name, &envelope.body),
        }
    }

    /// Writes it down for people.
    pub(crate) fn tell(&self, page: &mut Page) {
        let mut field = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                page.line(format!("{name:<15}{}", one_line(value)));
            }
        };
        field("name", Some(&self.name));
        field("id", self.id.as_deref());
        field("source", self.source.as_deref());
        field("time", self.time.map(|it| it.to_string()).as_deref());
        field("key", self.key.as_deref());
        field("correlation id", self.correlation_id.as_deref());
        field("causation id", self.causation_id.as_deref());
        for header in &self.headers {
            field(
                "header",
                Some(&format!("{}: {}", header.name, header.value)),
            );
        }
        field("body", Some(&json_line(&self.body)));
    }
}

/// JSON in one line, whatever white space it has.
pub(crate) fn json_line(json: &RawValue) -> String {
    match json.get().contains('\n') {
        // Line breaks stand between its parts only: in texts they are escaped.
        true => json.get().lines().map(str::trim).collect(),
        false => json.get().to_owned(),
    }
}

/// An attempt that failed. As JSON: `{at, reason, by?}`.
pub(crate) fn tell_attempts(history: &[Attempt], failures: u32, page: &mut Page) {
    for attempt in history {
        let by = attempt.by.as_deref();
        let by = by.map(|by| format!(" (by {by})")).unwrap_or_default();
        page.line(format!(
            "attempt        {} {}{by}",
            attempt.at,
            one_line(&attempt.reason)
        ));
    }
    let forgotten = u64::from(failures).saturating_sub(history.len() as u64);
    if forgotten > 0 && !history.is_empty() {
        page.line(format!("               and {forgotten} more, not kept"));
    }
}
