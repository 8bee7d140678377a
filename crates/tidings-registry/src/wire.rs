//! The five bytes that say by which schema a body is written: a zero, and the schema's id.
//!
//! A body in JSON never begins with a zero, so one without these bytes is known for what it is.

use bytes::{BufMut, Bytes, BytesMut};

/// What stands before a body: a zero and four bytes of id.
pub const FRAME_BYTES: usize = 5;

const MAGIC: u8 = 0;

/// Puts the id of its schema before a body.
pub fn frame(id: u32, body: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + body.len());
    framed.put_u8(MAGIC);
    framed.put_u32(id);
    framed.put_slice(body);
    framed.freeze()
}

/// The id before a body, and what follows; `None` if there is no id.
pub fn unframe(framed: &Bytes) -> Option<(u32, Bytes)> {
    let (&magic, rest) = framed.split_first()?;
    let (id, _) = rest.split_first_chunk::<4>()?;
    (magic == MAGIC).then(|| (u32::from_be_bytes(*id), framed.slice(FRAME_BYTES..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_four_bytes_big_endian_behind_a_zero() {
        let framed = frame(0x0102_0304, b"body");
        assert_eq!(framed[..], *b"\0\x01\x02\x03\x04body");
        assert_eq!(unframe(&framed), Some((0x0102_0304, "body".into())));
        assert_eq!(unframe(&frame(u32::MAX, b"")), Some((u32::MAX, "".into())));
    }

    #[test]
    fn what_is_not_framed_is_known_for_that() {
        for body in [
            &b""[..],
            b"\0",
            b"\0\0\0\0",
            b"{\"a\":1}",
            b"\x01\0\0\0\x01",
        ] {
            assert_eq!(unframe(&Bytes::copy_from_slice(body)), None, "{body:?}");
        }
    }
}
