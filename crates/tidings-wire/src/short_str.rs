//! Short strings: at most 255 bytes, not necessarily UTF-8.

use std::{borrow::Cow, error::Error as StdError, fmt, ops::Deref};

use bytes::{BufMut, Bytes, BytesMut};

/// AMQP's short string: at most 255 bytes, which RabbitMQ does not require to be UTF-8.
///
/// Cloning is cheap. Compares with `&str` and `&[u8]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShortStr(Bytes);

impl ShortStr {
    /// The longest a short string can be.
    pub const BYTES_MAX: usize = 255;

    /// A constant.
    ///
    /// # Panics
    ///
    /// When it has more than 255 bytes; in a `const`, that is at compile time.
    pub const fn from_static(text: &'static str) -> Self {
        assert!(
            text.len() <= Self::BYTES_MAX,
            "a short string has at most 255 bytes"
        );
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// As much of `text` as fits, cut at a character: for reply texts.
    pub fn truncated(text: &str) -> Self {
        let mut end = text.len().min(Self::BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(Bytes::copy_from_slice(&text.as_bytes()[..end]))
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The text, with what is not UTF-8 replaced.
    pub fn to_str_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The bytes, shared.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    pub(crate) fn borrowed(&self) -> Short<'_> {
        Short {
            // By construction it is not longer.
            length: self.0.len() as u8,
            text: &self.0,
        }
    }
}

/// A borrowed short string, whose length fits the octet that is written before it. Every short string
/// is written by [`Short::put`], so that none can be longer than it says.
pub(crate) struct Short<'a> {
    length: u8,
    text: &'a [u8],
}

impl<'a> Short<'a> {
    pub(crate) fn of(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, ShortStrTooLong> {
        let text = text.as_ref();
        let bytes = text.len();
        let length = u8::try_from(bytes).map_err(|_| ShortStrTooLong { bytes })?;
        Ok(Self { length, text })
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.length);
        out.put_slice(self.text);
    }
}

impl Deref for ShortStr {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_str_lossy(), f)
    }
}

impl fmt::Display for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_str_lossy())
    }
}

impl PartialEq<str> for ShortStr {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for ShortStr {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl TryFrom<Bytes> for ShortStr {
    type Error = ShortStrTooLong;

    fn try_from(bytes: Bytes) -> Result<Self, ShortStrTooLong> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(ShortStrTooLong { bytes: bytes.len() });
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for ShortStr {
    type Error = ShortStrTooLong;

    fn try_from(text: String) -> Result<Self, ShortStrTooLong> {
        Bytes::from(text).try_into()
    }
}

impl TryFrom<&str> for ShortStr {
    type Error = ShortStrTooLong;

    fn try_from(text: &str) -> Result<Self, ShortStrTooLong> {
        Bytes::copy_from_slice(text.as_bytes()).try_into()
    }
}

/// A name that has more than 255 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortStrTooLong {
    /// How many it has.
    pub bytes: usize,
}

impl fmt::Display for ShortStrTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a name or short value in AMQP has at most {} bytes, this one has {}",
            ShortStr::BYTES_MAX,
            self.bytes
        )
    }
}

impl StdError for ShortStrTooLong {}
