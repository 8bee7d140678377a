//! Messages in Protocol Buffers, by the crate [`prost`].
//!
//! A body is the message as it is: its fields have numbers, so it is read without its writer's schema. A type is generated from a
//! `.proto` file (by `prost-build`, with serde's derives beside the generated ones) or written by hand with prost's derives.

use prost::Message;
use serde::de::DeserializeOwned;
use tidings_core::{BodyError, read_json};

use crate::looks_like_json;

/// The MIME type of bodies in Protocol Buffers; a parameter, `proto`, says which message it is.
pub const CONTENT_TYPE: &str = "application/protobuf";

/// A body.
///
/// # Errors
///
/// Never: every value of such a type can be written.
pub fn write<T: Message>(message: &T) -> Result<Vec<u8>, BodyError> {
    Ok(message.encode_to_vec())
}

/// The message of a body, which may be in JSON as well.
///
/// # Errors
///
/// When it is neither.
pub fn read<T: Message + Default + DeserializeOwned>(
    body: &[u8],
    content_type: &str,
) -> Result<T, BodyError> {
    if looks_like_json(body, content_type) {
        return read_json(body);
    }
    T::decode(body).map_err(|error| BodyError::Format {
        format: "Protocol Buffers",
        what: error.to_string(),
    })
}
