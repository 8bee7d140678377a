//! Bodies of messages in Avro and in Protocol Buffers, for `format = "avro"` and `format = "protobuf"` beside a message's name.
//!
//! | module | what | feature |
//! | --- | --- | --- |
//! | [`container`] | an Avro body with its schema, as a container file of one record | |
//! | `avro` | messages in Avro, by the crate `apache-avro` | `avro` |
//! | `protobuf` | messages in Protocol Buffers, by the crate `prost` | `protobuf` |
//! | `proto_files` | what a `.proto` file says about a message | `proto-files` |
//!
//! It knows no transport and no registry: a body is what it is wherever it goes.

/// Whether a body is JSON: its content type says so, or it begins like a message in JSON, as after an operator mended it. In Avro
/// nothing begins so, nor in Protocol Buffers: it would be the group of a field 15, and groups are not written any more.
#[cfg(any(feature = "avro", feature = "protobuf"))]
fn looks_like_json(body: &[u8], content_type: &str) -> bool {
    tidings_core::is_json(content_type) || body.trim_ascii_start().starts_with(b"{")
}

#[cfg(feature = "avro")]
pub mod avro;
pub mod container;
#[cfg(feature = "avro")]
mod depth;
#[cfg(feature = "proto-files")]
pub mod proto_files;
#[cfg(feature = "protobuf")]
pub mod protobuf;
