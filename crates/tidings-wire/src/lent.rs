//! Properties and headers as slices of the frame they came in, or of what is to be sent: for who reads
//! or writes many and keeps none of it. Nothing is shared, copied or allocated.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    ShortStrTooLong, TableWriter, Value, WireError,
    properties::{DELIVERY_MODE, HEADERS, PRIORITY, TIMESTAMP},
    reader::Reader,
    short_str::Short,
    table::{check_table, check_value, split_long},
};

const CONTENT_TYPE: u16 = 15;
const CORRELATION_ID: u16 = 10;
const MESSAGE_ID: u16 = 7;
const KIND: u16 = 5;
const APP_ID: u16 = 3;

/// The properties that most messages have. Texts need not be UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LentProperties<'a> {
    /// MIME type of the body.
    pub content_type: Option<&'a [u8]>,
    /// The application's headers; none for what is to be sent.
    pub headers: LentTable<'a>,
    /// 2 is persistent, 1 is not.
    pub delivery_mode: Option<u8>,
    /// What a reply or a conversation is known by.
    pub correlation_id: Option<&'a [u8]>,
    /// The application's id of the message.
    pub message_id: Option<&'a [u8]>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The application's name for the kind of message: AMQP's `type`.
    pub kind: Option<&'a [u8]>,
    /// The application that published it.
    pub app_id: Option<&'a [u8]>,
}

impl<'a> LentProperties<'a> {
    /// Reads what [`check`] has accepted.
    pub(crate) fn read(bytes: &'a [u8]) -> Self {
        let mut read = Self::default();
        let Some((flags, mut rest)) = bytes.split_first_chunk::<2>() else {
            return read;
        };
        let flags = u16::from_be_bytes(*flags);
        for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
            let Some((field, after)) = split(bit, rest) else {
                break;
            };
            rest = after;
            match bit {
                CONTENT_TYPE => read.content_type = Some(field),
                HEADERS => read.headers = LentTable(field),
                DELIVERY_MODE => read.delivery_mode = field.first().copied(),
                CORRELATION_ID => read.correlation_id = Some(field),
                MESSAGE_ID => read.message_id = Some(field),
                TIMESTAMP => {
                    read.timestamp = field.first_chunk().map(|it| u64::from_be_bytes(*it));
                }
                KIND => read.kind = Some(field),
                APP_ID => read.app_id = Some(field),
                _ => {}
            }
        }
        read
    }
}

/// A table whose entries are lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LentTable<'a>(&'a [u8]);

/// A value in a [`LentTable`].
#[derive(Debug, Clone, PartialEq)]
pub enum Lent<'a> {
    /// The bytes of a [`Value::LongStr`].
    Text(&'a [u8]),
    /// Any other.
    Other(Value),
}

impl<'a> LentTable<'a> {
    /// The entries in their order.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], Lent<'a>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            // It was checked when it came, so that it cannot fail before the end.
            let (name, value) = split_short(rest)?;
            if let Some(text) = value.strip_prefix(b"S") {
                let (text, after) = split_long(text).ok()?;
                rest = after;
                return Some((name, Lent::Text(text)));
            }
            let after = check_value(value, 0).ok()?;
            rest = after;
            let value = Bytes::copy_from_slice(&value[..value.len() - after.len()]);
            let value = Value::read(&mut Reader::new(&value)).ok()?;
            Some((name, Lent::Other(value)))
        })
    }
}

/// Whether these are properties.
pub(crate) fn check(bytes: &[u8]) -> Result<(), WireError> {
    let too_short = || WireError::syntax("a field is longer than its frame");
    let (flags, mut rest) = bytes.split_first_chunk::<2>().ok_or_else(too_short)?;
    let flags = u16::from_be_bytes(*flags);
    if flags & 0b11 != 0 {
        return Err(WireError::syntax(
            "a message has a property that is unknown",
        ));
    }
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        let (field, after) = split(bit, rest).ok_or_else(too_short)?;
        if bit == HEADERS {
            check_table(field, 0)?;
        }
        rest = after;
    }
    match rest {
        [] => Ok(()),
        _ => Err(WireError::syntax("there are bytes behind the properties")),
    }
}

/// One property, without its length, and what is behind it.
fn split(bit: u16, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    match bit {
        DELIVERY_MODE | PRIORITY => bytes.split_at_checked(1),
        TIMESTAMP => bytes.split_at_checked(8),
        HEADERS => split_long(bytes).ok(),
        _ => split_short(bytes),
    }
}

pub(crate) fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(length.into())
}

/// Appends encoded properties; `headers` writes their table.
///
/// # Errors
///
/// The error of `headers`, or of a text that has more than 255 bytes. What was appended by then stays.
pub fn encode_properties<E: From<ShortStrTooLong>>(
    out: &mut BytesMut,
    properties: &LentProperties<'_>,
    headers: impl FnOnce(&mut TableWriter<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut flags = 1 << HEADERS;
    let flags_at = out.len();
    out.put_u16(0);
    let mut short = |out: &mut BytesMut, bit: u16, text: Option<&[u8]>| {
        let Some(text) = text else {
            return Ok(());
        };
        flags |= 1 << bit;
        Short::of(text).map(|text| text.put(out))
    };
    short(out, CONTENT_TYPE, properties.content_type)?;
    let table_at = out.len();
    out.put_u32(0);
    headers(&mut TableWriter(out))?;
    let table_bytes = (out.len() - table_at - 4) as u32;
    out[table_at..table_at + 4].copy_from_slice(&table_bytes.to_be_bytes());
    let mode = properties.delivery_mode;
    mode.iter().for_each(|mode| out.put_u8(*mode));
    short(out, CORRELATION_ID, properties.correlation_id)?;
    short(out, MESSAGE_ID, properties.message_id)?;
    let timestamp = properties.timestamp;
    timestamp.iter().for_each(|time| out.put_u64(*time));
    short(out, KIND, properties.kind)?;
    short(out, APP_ID, properties.app_id)?;
    flags |= u16::from(mode.is_some()) << DELIVERY_MODE;
    flags |= u16::from(timestamp.is_some()) << TIMESTAMP;
    out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
    Ok(())
}
