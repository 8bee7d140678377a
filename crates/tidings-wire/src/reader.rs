//! Reads fields from a slice of a frame.

use bytes::Bytes;

use crate::{ShortStr, Table, WireError};

/// A place in the payload of a frame. What is read are slices of it.
pub(crate) struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
    bits: u8,
    bits_left: u8,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            at: 0,
            bits: 0,
            bits_left: 0,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// A field; consecutive bits share octets, lowest bit first.
    #[inline]
    pub(crate) fn field<F: Field>(&mut self) -> Result<F, WireError> {
        F::read(self)
    }

    #[inline]
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), WireError> {
        self.advance(count).map(drop)
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.at..);
        self.at = self.bytes.len();
        rest
    }

    #[inline]
    fn advance(&mut self, count: usize) -> Result<std::ops::Range<usize>, WireError> {
        self.bits_left = 0;
        match self.at.checked_add(count) {
            Some(end) if end <= self.bytes.len() => {
                let range = self.at..end;
                self.at = end;
                Ok(range)
            }
            _ => Err(WireError::syntax("a field is longer than its frame")),
        }
    }

    #[inline]
    pub(crate) fn slice(&mut self, count: usize) -> Result<Bytes, WireError> {
        let range = self.advance(count)?;
        // An empty slice shares nothing, and costs nothing.
        Ok(if count == 0 {
            Bytes::new()
        } else {
            self.bytes.slice(range)
        })
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let range = self.advance(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }
}

/// A type that a method's field can have.
pub(crate) trait Field: Sized {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError>;
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Field for $number {
            #[inline]
            fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                reader.array().map(<$number>::from_be_bytes)
            }
        }
    )*};
}

numbers!(u8 u16 u32 u64 i8 i16 i32 i64 f32 f64);

impl Field for bool {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.bits_left == 0 {
            reader.bits = u8::read(reader)?;
            reader.bits_left = 8;
        }
        let bit = reader.bits & 1 == 1;
        reader.bits >>= 1;
        reader.bits_left -= 1;
        Ok(bit)
    }
}

impl Field for ShortStr {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let length = u8::read(reader)?;
        let bytes = reader.slice(length.into())?;
        Self::try_from(bytes).map_err(|error| WireError::syntax(error.to_string()))
    }
}

/// A long string.
impl Field for Bytes {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let length = u32::read(reader)?;
        reader.slice(length as usize)
    }
}

impl Field for Table {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Bytes::read(reader).and_then(Self::parse)
    }
}
