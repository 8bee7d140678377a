//! Between the wire's words and the core's: tables, messages, and the headers that tell of a
//! message's deaths.
//!
//! What a client put into properties and headers comes out byte for byte, unless the broker itself
//! has something to add (`x-death`) or to hide (`BCC`).

use bytes::Bytes;
use tidings_broker_core as core;
use tidings_broker_core::{DeathReason, Deaths, Message};
use tidings_wire::{Array, Properties, ShortStr, Table, Value};

// What the wire accepts, the core and the log can hold. The wire and the core do not know each other,
// so that their limits are compared here; the log has the core's.
const _: () = assert!(tidings_wire::DEPTH_MAX == core::Table::DEPTH_MAX);
const _: () = assert!(ShortStr::BYTES_MAX == core::NAME_BYTES_MAX);

/// The core's view of a table.
pub(crate) fn table(table: &Table) -> core::Table {
    core::Table(
        table
            .iter()
            .map(|(name, item)| (name.as_bytes().clone(), value(item)))
            .collect(),
    )
}

fn value(value: Value) -> core::Value {
    match value {
        Value::Bool(v) => core::Value::Bool(v),
        Value::I8(v) => core::Value::Int(v.into()),
        Value::U8(v) => core::Value::Int(v.into()),
        Value::I16(v) => core::Value::Int(v.into()),
        Value::U16(v) => core::Value::Int(v.into()),
        Value::I32(v) => core::Value::Int(v.into()),
        Value::U32(v) => core::Value::Int(v.into()),
        Value::I64(v) => core::Value::Int(v),
        Value::F32(v) => core::Value::Float(v.into()),
        Value::F64(v) => core::Value::Float(v),
        Value::Decimal { scale, value } => core::Value::Decimal(scale, value as i32),
        Value::LongStr(v) => core::Value::Str(v),
        Value::Array(v) => core::Value::Array(v.iter().map(self::value).collect()),
        Value::Timestamp(v) => core::Value::Timestamp(v),
        Value::Table(v) => core::Value::Table(table(&v)),
        Value::Void => core::Value::Void,
        Value::Bytes(v) => core::Value::Bytes(v),
    }
}

/// What a publisher's properties ask of the broker.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The properties to keep: the publisher's, without `BCC`.
    pub(crate) properties: Bytes,
    pub(crate) cc: Vec<Bytes>,
    pub(crate) bcc: Vec<Bytes>,
    pub(crate) expiration: Option<u64>,
}

/// Reads what matters to routing; an error is the text of a `PRECONDITION_FAILED`.
pub(crate) fn read_properties(properties: &Properties) -> Result<Asked, String> {
    let expiration = properties
        .expiration()
        .map(|text| parse_expiration(&text))
        .transpose()?;
    let headers = properties.headers();
    let (cc, bcc) = match &headers {
        None => (Vec::new(), Vec::new()),
        Some(headers) => (routing_keys(headers, "CC")?, routing_keys(headers, "BCC")?),
    };
    let properties = if bcc.is_empty() {
        properties.as_bytes().clone()
    } else {
        without_header(properties, "BCC")
    };
    Ok(Asked {
        properties,
        cc,
        bcc,
        expiration,
    })
}

/// The longest time to live, as RabbitMQ has it: what fits 32 bits of milliseconds, about 49 days.
const EXPIRATION_MS_MAX: u64 = u32::MAX as u64;

fn parse_expiration(text: &ShortStr) -> Result<u64, String> {
    let milliseconds = text
        .as_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok());
    match milliseconds {
        Some(milliseconds) if milliseconds <= EXPIRATION_MS_MAX => Ok(milliseconds),
        Some(_) => Err(format!(
            "invalid expiration '{text}': it is over {EXPIRATION_MS_MAX} milliseconds"
        )),
        None => Err(format!(
            "invalid expiration '{text}': it is no number of milliseconds"
        )),
    }
}

/// The further routing keys that `CC` or `BCC` ask for.
fn routing_keys(headers: &Table, name: &str) -> Result<Vec<Bytes>, String> {
    let wrong = || format!("invalid message: the header '{name}' must be an array of long strings");
    let keys = match headers.get(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(keys)) => keys,
        Some(_) => return Err(wrong()),
    };
    keys.iter()
        .map(|key| {
            if let Value::LongStr(key) = key {
                Ok(key)
            } else {
                Err(wrong())
            }
        })
        .collect()
}

fn without_header(properties: &Properties, name: &str) -> Bytes {
    let mut all = properties.decode();
    all.headers = all
        .headers
        .map(|headers| rebuilt(&headers, |entry| *entry != name).build());
    all.encode().as_bytes().clone()
}

fn rebuilt(table: &Table, keep: impl Fn(&ShortStr) -> bool) -> tidings_wire::TableBuilder {
    let mut builder = Table::builder();
    for (name, value) in table.iter().filter(|(name, _)| keep(name)) {
        builder.push(&name, &value);
    }
    builder
}

/// The properties a consumer gets: those of the publisher, and what happened to the message since.
pub(crate) fn delivered_properties(message: &Message, delivery_count: Option<u32>) -> Bytes {
    if message.deaths.is_none() && delivery_count.is_none() {
        return message.properties.clone();
    }
    // They were checked when they were published.
    let mut all = Properties::parse(message.properties.clone())
        .unwrap_or_default()
        .decode();
    let headers = all.headers.take().unwrap_or_default();
    let is_ours = |name: &ShortStr| {
        let told = *name == "x-death"
            || name.starts_with(b"x-first-death-")
            || name.starts_with(b"x-last-death-");
        message.deaths.is_some() && (told || (*name == "CC" && message.cc.is_empty()))
            || delivery_count.is_some() && *name == "x-delivery-count"
    };
    let mut builder = rebuilt(&headers, |name| !is_ours(name));
    if let Some(deaths) = &message.deaths {
        all.expiration = None;
        push_deaths(&mut builder, deaths);
    }
    if let Some(count) = delivery_count {
        const NAME: ShortStr = ShortStr::from_static("x-delivery-count");
        builder.push(&NAME, &Value::I64(count.into()));
    }
    all.headers = Some(builder.build());
    all.encode().as_bytes().clone()
}

fn push_deaths(headers: &mut tidings_wire::TableBuilder, deaths: &Deaths) {
    let text = |bytes: &Bytes| Value::LongStr(bytes.clone());
    let reason =
        |reason: DeathReason| Value::LongStr(Bytes::from_static(reason.as_str().as_bytes()));
    let mut history = Array::builder();
    for death in &deaths.entries {
        let mut keys = Array::builder();
        for key in &death.routing_keys {
            keys.push(&text(key));
        }
        let mut entry = Table::builder();
        for (name, value) in [
            ("count", Value::I64(death.count as i64)),
            ("reason", reason(death.reason)),
            ("queue", text(&death.queue)),
            ("time", Value::Timestamp(death.time / 1000)),
            ("exchange", text(&death.exchange)),
            ("routing-keys", Value::Array(keys.build())),
        ] {
            entry.push(&ShortStr::from_static(name), &value);
        }
        if let Some(expiration) = death.original_expiration {
            let value = Value::LongStr(expiration.to_string().into());
            entry.push(&ShortStr::from_static("original-expiration"), &value);
        }
        history.push(&Value::Table(entry.build()));
    }
    let (first, last) = (deaths.first(), deaths.last());
    for (name, value) in [
        ("x-death", Value::Array(history.build())),
        ("x-first-death-exchange", text(&first.exchange)),
        ("x-first-death-queue", text(&first.queue)),
        ("x-first-death-reason", reason(first.reason)),
        ("x-last-death-exchange", text(&last.exchange)),
        ("x-last-death-queue", text(&last.queue)),
        ("x-last-death-reason", reason(last.reason)),
    ] {
        headers.push(&ShortStr::from_static(name), &value);
    }
}
