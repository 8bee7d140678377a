//! An Avro body that has its writer's schema with it: an [object container file] of one record.
//!
//! Avro writes no names, so a body cannot be read without the schema that it was written by; and a message is read in places where
//! no registry is: out of a store after months, from a dead letter, on another broker. Every Avro library reads such a
//! file.
//!
//! [object container file]: https://avro.apache.org/docs/1.12.0/specification/#object-container-files
//!
//! ```
//! use tidings_formats::container;
//!
//! let body = container::write(r#""long""#, &[14]);
//! let read = container::read(&body)?;
//! assert_eq!((read.schema, read.datum), (r#""long""#, &[14][..]));
//! # Ok::<(), container::ContainerError>(())
//! ```

use std::fmt;

/// What a container file begins with.
pub const MAGIC: &[u8; 4] = b"Obj\x01";
/// What stands behind the header and behind the block: to be told from data where a file has many blocks. Here it has one.
const MARKER: &[u8; 16] = b"tidings one body";

/// A body taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container<'a> {
    /// The schema that it was written by, as JSON.
    pub schema: &'a str,
    /// The record, in Avro's binary encoding.
    pub datum: &'a [u8],
}

/// A body that is no container file of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerError {
    /// It is no container file, or ends too early.
    Broken(&'static str),
    /// Its record is compressed, and nobody knows how large it becomes: `deflate`.
    Compressed(String),
    /// So many records are in it.
    Many(i64),
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(what) => {
                write!(f, "an Avro body is a container file of one record: {what}")
            }
            Self::Compressed(codec) => write!(
                f,
                "its record is compressed (`{codec}`), which is not read: let its sender write with the codec `null`"
            ),
            Self::Many(count) => write!(f, "it has {count} records, and a message is one"),
        }
    }
}

impl std::error::Error for ContainerError {}

/// A body of this record, by this schema.
pub fn write(schema: &str, datum: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(schema.len() + datum.len() + 96);
    body.extend_from_slice(MAGIC);
    // A map of two entries, in one block.
    put_long(&mut body, 2);
    for (key, value) in [("avro.codec", "null"), ("avro.schema", schema)] {
        put_bytes(&mut body, key.as_bytes());
        put_bytes(&mut body, value.as_bytes());
    }
    put_long(&mut body, 0);
    body.extend_from_slice(MARKER);
    put_long(&mut body, 1);
    put_bytes(&mut body, datum);
    body.extend_from_slice(MARKER);
    body
}

/// Takes a body apart.
///
/// # Errors
///
/// When it is no container file, its records are compressed, or there is not one record in it.
pub fn read(body: &[u8]) -> Result<Container<'_>, ContainerError> {
    let rest = body.strip_prefix(MAGIC);
    let mut rest = rest.ok_or(ContainerError::Broken("it does not begin like one"))?;
    let (mut schema, mut codec) = (None, "null");
    loop {
        let mut count = long(&mut rest)?;
        if count == 0 {
            break;
        }
        if count < 0 {
            // Then the size of the block follows.
            long(&mut rest)?;
            count = count.saturating_neg();
        }
        for _ in 0..count {
            let key = bytes(&mut rest)?;
            let value = bytes(&mut rest)?;
            let value = std::str::from_utf8(value);
            match key {
                b"avro.schema" => schema = value.ok(),
                b"avro.codec" => codec = value.unwrap_or("?"),
                _ => {}
            }
        }
    }
    let schema = schema.ok_or(ContainerError::Broken("there is no schema in it"))?;
    let marker = take(&mut rest, MARKER.len())?;
    if codec != "null" {
        return Err(ContainerError::Compressed(codec.to_owned()));
    }
    if rest.is_empty() {
        return Err(ContainerError::Many(0));
    }
    let count = long(&mut rest)?;
    let datum = bytes(&mut rest)?;
    if count != 1 {
        return Err(ContainerError::Many(count));
    }
    if take(&mut rest, MARKER.len())? != marker {
        return Err(ContainerError::Broken(
            "its block does not end where it says",
        ));
    }
    match rest.is_empty() {
        true => Ok(Container { schema, datum }),
        false => Err(ContainerError::Broken("more follows behind its record")),
    }
}

/// Avro's numbers: zigzag, seven bits at a time, the lowest first.
fn put_long(body: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        body.push((zigzag & 0x7f) as u8 | 0x80);
        zigzag >>= 7;
    }
    body.push(zigzag as u8);
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    put_long(body, bytes.len() as i64);
    body.extend_from_slice(bytes);
}

fn long(rest: &mut &[u8]) -> Result<i64, ContainerError> {
    let mut zigzag = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        zigzag |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed());
        }
    }
    Err(ContainerError::Broken("a number in it is too long"))
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ContainerError> {
    let count = usize::try_from(long(rest)?);
    let count = count.map_err(|_| ContainerError::Broken("a length in it is no length"))?;
    take(rest, count)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], ContainerError> {
    let (taken, left) = rest
        .split_at_checked(count)
        .ok_or(ContainerError::Broken("it ends too early"))?;
    *rest = left;
    Ok(taken)
}
