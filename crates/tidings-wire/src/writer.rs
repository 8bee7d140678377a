//! Writes fields to a buffer.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{ShortStr, Table};

/// A buffer that packs consecutive bits into octets, lowest bit first.
pub(crate) struct Writer<'a> {
    pub(crate) out: &'a mut BytesMut,
    bits_used: u8,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut BytesMut) -> Self {
        Self { out, bits_used: 0 }
    }

    pub(crate) fn field(&mut self, field: &impl Put) {
        field.put(self);
    }
}

/// A type that a method's field can have.
pub(crate) trait Put {
    fn put(&self, writer: &mut Writer<'_>);
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Put for $number {
            fn put(&self, writer: &mut Writer<'_>) {
                writer.bits_used = 0;
                writer.out.put_slice(&self.to_be_bytes());
            }
        }
    )*};
}

numbers!(u8 u16 u32 u64);

impl Put for bool {
    fn put(&self, writer: &mut Writer<'_>) {
        if writer.bits_used.is_multiple_of(8) {
            writer.out.put_u8(0);
            writer.bits_used = 0;
        }
        if let Some(octet) = writer.out.last_mut() {
            *octet |= u8::from(*self) << writer.bits_used;
        }
        writer.bits_used += 1;
    }
}

impl Put for ShortStr {
    fn put(&self, writer: &mut Writer<'_>) {
        writer.bits_used = 0;
        self.borrowed().put(writer.out);
    }
}

impl Put for Bytes {
    fn put(&self, writer: &mut Writer<'_>) {
        // A longer one would not fit into any frame.
        (self.len() as u32).put(writer);
        writer.out.put_slice(self);
    }
}

impl Put for Table {
    fn put(&self, writer: &mut Writer<'_>) {
        self.as_bytes().put(writer);
    }
}
