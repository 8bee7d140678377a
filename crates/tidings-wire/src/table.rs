//! Field tables and arrays: kept as the bytes they came as, checked once, read lazily.
//!
//! The types are RabbitMQ's (`t b B s u I i l f d D S A T F V x`), which are not quite the
//! specification's.

use std::fmt::{Display, Write as _};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{ShortStr, ShortStrTooLong, WireError, reader::Reader, short_str::Short};

/// How many tables and arrays may lie within each other in a table.
pub const DEPTH_MAX: usize = 32;

/// A field table, as its bytes without the length before them. Order and duplicates are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table(Bytes);

/// A field array, as its bytes without the length before them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Array(Bytes);

/// A value in a table or an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: `value` shifted by `scale` decimal places.
    Decimal {
        /// How many digits are behind the point.
        scale: u8,
        /// All digits.
        value: u32,
    },
    /// `S`: text or bytes.
    LongStr(Bytes),
    /// `A`
    Array(Array),
    /// `T`: seconds since 1970.
    Timestamp(u64),
    /// `F`
    Table(Table),
    /// `V`
    Void,
    /// `x`
    Bytes(Bytes),
}

impl Value {
    /// The text of a [`LongStr`](Self::LongStr) that is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::LongStr(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value of any whole number that fits.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match *self {
            Self::I8(value) => value.into(),
            Self::U8(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I64(value) => value,
            _ => return None,
        })
    }

    /// The type's letter on the wire.
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Bool(_) => b't',
            Self::I8(_) => b'b',
            Self::U8(_) => b'B',
            Self::I16(_) => b's',
            Self::U16(_) => b'u',
            Self::I32(_) => b'I',
            Self::U32(_) => b'i',
            Self::I64(_) => b'l',
            Self::F32(_) => b'f',
            Self::F64(_) => b'd',
            Self::Decimal { .. } => b'D',
            Self::LongStr(_) => b'S',
            Self::Array(_) => b'A',
            Self::Timestamp(_) => b'T',
            Self::Table(_) => b'F',
            Self::Void => b'V',
            Self::Bytes(_) => b'x',
        }
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.tag());
        match self {
            Self::Bool(value) => out.put_u8((*value).into()),
            Self::I8(value) => out.put_i8(*value),
            Self::U8(value) => out.put_u8(*value),
            Self::I16(value) => out.put_i16(*value),
            Self::U16(value) => out.put_u16(*value),
            Self::I32(value) => out.put_i32(*value),
            Self::U32(value) => out.put_u32(*value),
            Self::I64(value) => out.put_i64(*value),
            Self::F32(value) => out.put_f32(*value),
            Self::F64(value) => out.put_f64(*value),
            Self::Decimal { scale, value } => {
                out.put_u8(*scale);
                out.put_u32(*value);
            }
            Self::Timestamp(value) => out.put_u64(*value),
            Self::Void => {}
            Self::LongStr(bytes)
            | Self::Bytes(bytes)
            | Self::Array(Array(bytes))
            | Self::Table(Table(bytes)) => put_long(out, bytes),
        }
    }

    /// Reads a value that [`check_value`] has accepted. Nested tables are not checked again.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match reader.field::<u8>()? {
            b't' => Self::Bool(reader.field::<u8>()? != 0),
            b'b' => Self::I8(reader.field()?),
            b'B' => Self::U8(reader.field()?),
            b's' => Self::I16(reader.field()?),
            b'u' => Self::U16(reader.field()?),
            b'I' => Self::I32(reader.field()?),
            b'i' => Self::U32(reader.field()?),
            b'l' => Self::I64(reader.field()?),
            b'f' => Self::F32(reader.field()?),
            b'd' => Self::F64(reader.field()?),
            b'D' => Self::Decimal {
                scale: reader.field()?,
                value: reader.field()?,
            },
            b'S' => Self::LongStr(reader.field()?),
            b'A' => Self::Array(Array(reader.field()?)),
            b'T' => Self::Timestamp(reader.field()?),
            b'F' => Self::Table(Table(reader.field()?)),
            b'V' => Self::Void,
            b'x' => Self::Bytes(reader.field()?),
            tag => return Err(unknown_type(tag)),
        })
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::I64(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::LongStr(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::LongStr(value.into())
    }
}

impl From<&ShortStr> for Value {
    fn from(value: &ShortStr) -> Self {
        Self::LongStr(value.as_bytes().clone())
    }
}

impl From<Table> for Value {
    fn from(value: Table) -> Self {
        Self::Table(value)
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Self::Array(value)
    }
}

impl Table {
    /// Takes the bytes of a table, without the length before them, when they are one.
    ///
    /// # Errors
    ///
    /// 502 for bytes that are not a table, or one nested deeper than [`DEPTH_MAX`].
    pub fn parse(bytes: Bytes) -> Result<Self, WireError> {
        check_table(&bytes, 0)?;
        Ok(Self(bytes))
    }

    /// Starts an empty table.
    pub fn builder() -> TableBuilder {
        TableBuilder::default()
    }

    /// The bytes, without the length before them.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries in their order.
    pub fn iter(&self) -> impl Iterator<Item = (ShortStr, Value)> + '_ {
        let mut reader = Reader::new(&self.0);
        std::iter::from_fn(move || {
            // Checked by `parse`, or made by the builder: it cannot fail before the end.
            let name = (!reader.is_empty()).then(|| reader.field())?.ok()?;
            Some((name, Value::read(&mut reader).ok()?))
        })
    }

    /// The first value with this name.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }
}

impl FromIterator<(ShortStr, Value)> for Table {
    fn from_iter<I: IntoIterator<Item = (ShortStr, Value)>>(entries: I) -> Self {
        let mut builder = TableBuilder::default();
        for (name, value) in entries {
            builder.push(&name, &value);
        }
        builder.build()
    }
}

impl Array {
    /// Starts an empty array.
    pub fn builder() -> ArrayBuilder {
        ArrayBuilder::default()
    }

    /// The values in their order.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut reader = Reader::new(&self.0);
        std::iter::from_fn(move || (!reader.is_empty()).then(|| Value::read(&mut reader))?.ok())
    }
}

impl FromIterator<Value> for Array {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        let mut builder = ArrayBuilder::default();
        for value in values {
            builder.push(&value);
        }
        builder.build()
    }
}

/// Makes a [`Table`].
///
/// ```
/// use tidings_wire::{ShortStr, Table, Value};
///
/// let mut table = Table::builder();
/// table.push(&ShortStr::from_static("x-message-ttl"), &Value::I32(5_000));
/// table.push_str("x-dead-letter-exchange", "")?;
/// assert_eq!(table.build().get("x-message-ttl"), Some(Value::I32(5_000)));
/// # Ok::<(), tidings_wire::ShortStrTooLong>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TableBuilder(BytesMut);

impl TableBuilder {
    /// Appends an entry.
    pub fn push(&mut self, name: &ShortStr, value: &Value) -> &mut Self {
        name.borrowed().put(&mut self.0);
        value.put(&mut self.0);
        self
    }

    /// Appends any value under a name that is not yet a [`ShortStr`].
    ///
    /// # Errors
    ///
    /// When the name has more than 255 bytes; nothing is appended then.
    pub fn push_value(&mut self, name: &str, value: &Value) -> Result<&mut Self, ShortStrTooLong> {
        TableWriter(&mut self.0).push_value(name, value)?;
        Ok(self)
    }

    /// Appends a text, without a copy in between.
    ///
    /// # Errors
    ///
    /// When the name has more than 255 bytes; nothing is appended then.
    pub fn push_str(&mut self, name: &str, value: &str) -> Result<&mut Self, ShortStrTooLong> {
        TableWriter(&mut self.0).push_str(name, value)?;
        Ok(self)
    }

    /// The table.
    pub fn build(self) -> Table {
        Table(self.0.freeze())
    }
}

/// Appends entries of a table to what is sent ([`encode_properties`](crate::encode_properties)).
#[derive(Debug)]
pub struct TableWriter<'a>(pub(crate) &'a mut BytesMut);

impl TableWriter<'_> {
    /// Appends any value.
    ///
    /// # Errors
    ///
    /// When the name has more than 255 bytes; nothing is appended then.
    pub fn push_value(&mut self, name: &str, value: &Value) -> Result<(), ShortStrTooLong> {
        Short::of(name)?.put(self.0);
        value.put(self.0);
        Ok(())
    }

    /// Appends a text.
    ///
    /// # Errors
    ///
    /// When the name has more than 255 bytes; nothing is appended then.
    pub fn push_str(&mut self, name: &str, value: &str) -> Result<(), ShortStrTooLong> {
        Short::of(name)?.put(self.0);
        self.0.put_u8(b'S');
        put_long(self.0, value.as_bytes());
        Ok(())
    }

    /// Appends what displays as a text.
    ///
    /// # Errors
    ///
    /// When the name has more than 255 bytes; nothing is appended then.
    pub fn push_display(&mut self, name: &str, value: impl Display) -> Result<(), ShortStrTooLong> {
        Short::of(name)?.put(self.0);
        self.0.put_u8(b'S');
        let length_at = self.0.len();
        self.0.put_u32(0);
        // Its memory grows, so that this cannot fail.
        let _ = write!(self.0, "{value}");
        let length = (self.0.len() - length_at - 4) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

/// Makes an [`Array`].
#[derive(Debug, Clone, Default)]
pub struct ArrayBuilder(BytesMut);

impl ArrayBuilder {
    /// Appends a value.
    pub fn push(&mut self, value: &Value) -> &mut Self {
        value.put(&mut self.0);
        self
    }

    /// The array.
    pub fn build(self) -> Array {
        Array(self.0.freeze())
    }
}

fn put_long(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn unknown_type(tag: u8) -> WireError {
    WireError::syntax(format!(
        "a table has a value of unknown type `{}`",
        tag.escape_ascii()
    ))
}

pub(crate) fn check_table(mut bytes: &[u8], depth: usize) -> Result<(), WireError> {
    while let Some((&name_bytes, rest)) = bytes.split_first() {
        bytes = check_value(skip(rest, name_bytes.into())?, depth)?;
    }
    Ok(())
}

fn check_array(mut bytes: &[u8], depth: usize) -> Result<(), WireError> {
    while !bytes.is_empty() {
        bytes = check_value(bytes, depth)?;
    }
    Ok(())
}

/// Checks one value and returns what is behind it.
pub(crate) fn check_value(bytes: &[u8], depth: usize) -> Result<&[u8], WireError> {
    let Some((&tag, rest)) = bytes.split_first() else {
        return Err(WireError::syntax("a table ends in the middle of an entry"));
    };
    match tag {
        b'V' => Ok(rest),
        b't' | b'b' | b'B' => skip(rest, 1),
        b's' | b'u' => skip(rest, 2),
        b'I' | b'i' | b'f' => skip(rest, 4),
        b'D' => skip(rest, 5),
        b'l' | b'd' | b'T' => skip(rest, 8),
        b'S' | b'x' => split_long(rest).map(|(_, rest)| rest),
        b'F' | b'A' if depth >= DEPTH_MAX => Err(WireError::syntax(format!(
            "a table is nested deeper than {DEPTH_MAX} levels"
        ))),
        b'F' => {
            let (table, rest) = split_long(rest)?;
            check_table(table, depth + 1).map(|()| rest)
        }
        b'A' => {
            let (array, rest) = split_long(rest)?;
            check_array(array, depth + 1).map(|()| rest)
        }
        _ => Err(unknown_type(tag)),
    }
}

fn skip(bytes: &[u8], count: usize) -> Result<&[u8], WireError> {
    bytes
        .get(count..)
        .ok_or_else(|| WireError::syntax("a table ends in the middle of an entry"))
}

pub(crate) fn split_long(bytes: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    bytes
        .split_first_chunk::<4>()
        .and_then(|(length, rest)| rest.split_at_checked(u32::from_be_bytes(*length) as usize))
        .ok_or_else(|| WireError::syntax("a table ends in the middle of an entry"))
}
