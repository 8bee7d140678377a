//! Arguments and headers as the broker sees them: AMQP's types, folded to what routing and
//! comparison need.
//!
//! AMQP has eight integer types; two arguments that differ only in the width of an integer are the
//! same argument, so here there is one. Bytes of a message's headers are never rebuilt from these
//! values, so nothing is lost by folding.

use std::fmt;

use bytes::Bytes;

/// The longest a name can be, in bytes: of an exchange, a queue or a consumer, and a routing key. It is
/// what AMQP has room for.
pub const NAME_BYTES_MAX: usize = 255;

/// One value of a table: an argument of a queue, exchange, binding or consumer, or a header.
///
/// Values of different types are never equal. A number that is none (NaN) equals every other such
/// number, so that what was declared with one can be declared again and taken away.
#[derive(Debug, Clone)]
pub enum Value {
    /// No value (`V`); in a binding of a headers exchange it asks only for presence.
    Void,
    /// `t`.
    Bool(bool),
    /// Every integer type; unsigned 64-bit values above `i64::MAX` do not exist on the wire.
    Int(i64),
    /// `f` and `d`.
    Float(f64),
    /// `D`: a scale and an unscaled value.
    Decimal(u8, i32),
    /// `S`: text by convention, any bytes in fact.
    Str(Bytes),
    /// `x`: bytes.
    Bytes(Bytes),
    /// `T`: seconds since the epoch.
    Timestamp(u64),
    /// `A`.
    Array(Vec<Value>),
    /// `F`.
    Table(Table),
}

impl Value {
    /// A string value that owns a copy of `text`.
    pub fn str(text: &str) -> Self {
        Self::Str(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Whether at most `levels` tables and arrays lie within each other here.
    fn fits(&self, levels: usize) -> bool {
        match self {
            Self::Array(values) => levels > 0 && values.iter().all(|value| value.fits(levels - 1)),
            Self::Table(table) => levels > 0 && table.fits(levels - 1),
            _ => true,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Void, Self::Void) => true,
            (Self::Bool(one), Self::Bool(other)) => one == other,
            (Self::Int(one), Self::Int(other)) => one == other,
            (Self::Float(one), Self::Float(other)) => {
                one == other || (one.is_nan() && other.is_nan())
            }
            (Self::Decimal(scale, one), Self::Decimal(other_scale, other)) => {
                scale == other_scale && one == other
            }
            (Self::Str(one), Self::Str(other)) | (Self::Bytes(one), Self::Bytes(other)) => {
                one == other
            }
            (Self::Timestamp(one), Self::Timestamp(other)) => one == other,
            (Self::Array(one), Self::Array(other)) => one == other,
            (Self::Table(one), Self::Table(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Value {}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Void => f.write_str("undefined"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Decimal(scale, v) => write!(f, "{v}e-{scale}"),
            Self::Str(v) | Self::Bytes(v) => f.write_str(&String::from_utf8_lossy(v)),
            Self::Timestamp(v) => write!(f, "{v}"),
            Self::Array(v) => write!(f, "array of {}", v.len()),
            Self::Table(v) => write!(f, "table of {}", v.0.len()),
        }
    }
}

/// Named values in the order they were given. A name given twice keeps its first value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table(pub Vec<(Bytes, Value)>);

impl Table {
    /// How many tables and arrays may lie within each other in a table. Commands whose arguments are
    /// nested deeper are refused, so that a store never has to keep what it could not read back;
    /// servers and stores take their own limit from here.
    pub const DEPTH_MAX: usize = 32;

    /// A table without entries.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value called `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.get_bytes(name.as_bytes())
    }

    pub(crate) fn get_bytes(&self, name: &[u8]) -> Option<&Value> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// Whether it is nested no deeper than [`Table::DEPTH_MAX`].
    pub fn is_within_depth(&self) -> bool {
        self.fits(Self::DEPTH_MAX)
    }

    fn fits(&self, levels: usize) -> bool {
        self.0.iter().all(|(_, value)| value.fits(levels))
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This table with one more entry; for building tables by hand.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0
            .push((Bytes::copy_from_slice(name.as_bytes()), value));
        self
    }
}
