//! The five bytes that say by which schema a body is written: a zero, and the schema's id.
//!
//! Behind them, a body in Protocol Buffers says first which message of its file it is.
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

/// What stands before a body in Protocol Buffers: where its message stands in its file, as a count and so many numbers, of
/// which the first message alone is written as a zero.
pub fn message_index(index: &[i32]) -> Vec<u8> {
    if index == [0] {
        return vec![0];
    }
    let count = i32::try_from(index.len()).unwrap_or(i32::MAX);
    let mut bytes = Vec::new();
    for &number in std::iter::once(&count).chain(index) {
        let mut zigzag = ((number << 1) ^ (number >> 31)).cast_unsigned();
        while zigzag >= 0x80 {
            bytes.push((zigzag & 0x7f) as u8 | 0x80);
            zigzag >>= 7;
        }
        bytes.push(zigzag as u8);
    }
    bytes
}

/// A body in Protocol Buffers without the place of its message; `None` if it has none.
pub fn without_message_index(body: &Bytes) -> Option<Bytes> {
    let mut rest = &body[..];
    let count = zigzag(&mut rest)?;
    if !(0..=INDEX_MAX).contains(&count) {
        return None;
    }
    for _ in 0..count {
        zigzag(&mut rest)?;
    }
    Some(body.slice(body.len() - rest.len()..))
}

/// How deep messages may stand in one another.
const INDEX_MAX: i64 = 100;

fn zigzag(rest: &mut &[u8]) -> Option<i64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    None
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
    fn the_place_of_a_message_is_a_count_and_numbers() {
        let check = |index: &[i32], bytes: &[u8]| {
            assert_eq!(message_index(index), bytes, "{index:?}");
            let body = Bytes::from([bytes, b"body"].concat());
            assert_eq!(without_message_index(&body), Some("body".into()));
        };
        check(&[0], &[0]);
        check(&[1], &[2, 2]);
        check(&[1, 0, 70], &[6, 2, 0, 0x8c, 1]);
        for wrong in [&[][..], &[2], &[1], &[0xff; 12]] {
            assert_eq!(without_message_index(&Bytes::copy_from_slice(wrong)), None);
        }
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
