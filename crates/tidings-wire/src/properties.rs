//! The 14 properties of a message.
//!
//! A broker keeps [`Properties`], the bytes as they came, and looks at the few it needs. Who makes
//! or reads many of them uses [`BasicProperties`].

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    LentProperties, ShortStr, Table, WireError, lent,
    reader::{Field, Reader},
    writer::Writer,
};

pub(crate) const HEADERS: u16 = 13;
pub(crate) const DELIVERY_MODE: u16 = 12;
pub(crate) const PRIORITY: u16 = 11;
pub(crate) const TIMESTAMP: u16 = 6;

/// Encoded properties, checked and kept as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties(Bytes);

impl Default for Properties {
    fn default() -> Self {
        Self(Bytes::from_static(&[0, 0]))
    }
}

macro_rules! properties {
    ($($(#[$doc:meta])* $bit:literal $name:ident: $type:ty,)*) => {
        /// All properties, each there or not.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct BasicProperties {
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        impl BasicProperties {
            fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                let flags = read_flags(reader)?;
                let mut properties = Self::default();
                $(if flags & (1 << $bit) != 0 {
                    properties.$name = Some(reader.field()?);
                })*
                Ok(properties)
            }

            /// Appends the encoded properties.
            pub fn encode_into(&self, out: &mut BytesMut) {
                let mut flags = 0;
                $(flags |= u16::from(self.$name.is_some()) << $bit;)*
                out.put_u16(flags);
                let mut writer = Writer::new(out);
                $(if let Some(value) = &self.$name {
                    writer.field(value);
                })*
            }
        }

        impl Properties {
            $($(#[$doc])* pub fn $name(&self) -> Option<$type> {
                self.get($bit)
            })*
        }
    };
}

properties! {
    /// MIME type of the body.
    15 content_type: ShortStr,
    /// MIME encoding of the body.
    14 content_encoding: ShortStr,
    /// The application's headers.
    13 headers: Table,
    /// 2 is persistent, 1 is not.
    12 delivery_mode: u8,
    /// 0 to 9, or to 255 on RabbitMQ.
    11 priority: u8,
    /// What a reply or a conversation is known by.
    10 correlation_id: ShortStr,
    /// Where a reply goes.
    9 reply_to: ShortStr,
    /// Milliseconds to live, as text.
    8 expiration: ShortStr,
    /// The application's id of the message.
    7 message_id: ShortStr,
    /// Seconds since 1970.
    6 timestamp: u64,
    /// The application's name for the kind of message: AMQP's `type`.
    5 kind: ShortStr,
    /// The user who published it.
    4 user_id: ShortStr,
    /// The application that published it.
    3 app_id: ShortStr,
    /// Reserved; RabbitMQ carries it along.
    2 cluster_id: ShortStr,
}

impl BasicProperties {
    /// Decodes what a header frame carries.
    ///
    /// # Errors
    ///
    /// 502 for bytes that are not properties.
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let properties = Self::read(&mut reader)?;
        ended(&reader)?;
        Ok(properties)
    }

    /// The encoded properties.
    pub fn encode(&self) -> Properties {
        let mut out = BytesMut::new();
        self.encode_into(&mut out);
        Properties(out.freeze())
    }
}

impl Properties {
    /// Takes the bytes of a header frame when they are properties.
    ///
    /// # Errors
    ///
    /// 502 for bytes that are not.
    pub fn parse(bytes: Bytes) -> Result<Self, WireError> {
        lent::check(&bytes)?;
        Ok(Self(bytes))
    }

    /// For bytes that were [checked](lent::check).
    pub(crate) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// All of them at once, without a share in the frame they came in.
    pub fn lend(&self) -> LentProperties<'_> {
        LentProperties::read(&self.0)
    }

    /// The bytes as they came.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// All of them at once.
    pub fn decode(&self) -> BasicProperties {
        // They were checked when they came in, so that nothing is hidden by the default.
        BasicProperties::decode(&self.0).unwrap_or_default()
    }

    fn get<F: Field>(&self, wanted: u16) -> Option<F> {
        let mut reader = Reader::new(&self.0);
        let flags = read_flags(&mut reader).ok()?;
        if flags & (1 << wanted) == 0 {
            return None;
        }
        for bit in (wanted + 1..16).rev().filter(|bit| flags & (1 << bit) != 0) {
            skip(&mut reader, bit).ok()?;
        }
        reader.field().ok()
    }
}

/// Steps over one property without looking at it.
fn skip(reader: &mut Reader<'_>, bit: u16) -> Result<(), WireError> {
    let bytes = match bit {
        DELIVERY_MODE | PRIORITY => 1,
        TIMESTAMP => 8,
        HEADERS => reader.field::<u32>()? as usize,
        _ => reader.field::<u8>()?.into(),
    };
    reader.skip(bytes)
}

fn read_flags(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    let flags: u16 = reader.field()?;
    if flags & 0b11 != 0 {
        return Err(WireError::syntax(
            "a message has a property that is unknown",
        ));
    }
    Ok(flags)
}

fn ended(reader: &Reader<'_>) -> Result<(), WireError> {
    if reader.is_empty() {
        return Ok(());
    }
    Err(WireError::syntax("there are bytes behind the properties"))
}
