//! The body of a message: what it is written in, and why one cannot be read.
//!
//! Every message can be read from JSON, whatever it is written in: so a body that waits while a message changes its format is
//! still read, and an operator mends any dead letter as text.

use std::{borrow::Cow, fmt};

use serde::{Serialize, de::DeserializeOwned};

/// The MIME type of bodies in JSON.
pub const JSON: &str = "application/json";

/// A schema by which bodies are written that are not in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodySchema {
    /// Avro: the schema as JSON, with all that it refers to.
    Avro(Cow<'static, str>),
    /// Protocol Buffers.
    Protobuf {
        /// The text of the `.proto` file, which refers to no other but those of Google's well-known types.
        file: Cow<'static, str>,
        /// The full name of the message in it: `shop.v1.OrderPlaced`.
        message: Cow<'static, str>,
    },
}

/// A body that cannot be written or read.
#[derive(Debug)]
pub enum BodyError {
    /// JSON that is none, or none of this message.
    Json(serde_json::Error),
    /// Of another format.
    Format {
        /// What it is written in: `Avro`.
        format: &'static str,
        /// What is wrong with it. It may say which value it found.
        what: String,
    },
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => error.fmt(f),
            Self::Format { what, .. } => f.write_str(what),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json(error) => Some(error),
            Self::Format { .. } => None,
        }
    }
}

impl BodyError {
    /// What the body was taken for: `JSON`, `Avro`.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Json(_) => "JSON",
            Self::Format { format, .. } => format,
        }
    }
}

/// A message as JSON.
///
/// # Errors
///
/// When its type cannot be JSON.
pub fn write_json<M: Serialize>(message: &M) -> Result<Vec<u8>, BodyError> {
    serde_json::to_vec(message).map_err(BodyError::Json)
}

/// A message from JSON.
///
/// # Errors
///
/// When it is none, or none of this type.
pub fn read_json<M: DeserializeOwned>(body: &[u8]) -> Result<M, BodyError> {
    serde_json::from_slice(body).map_err(BodyError::Json)
}

/// Whether bodies of this MIME type are in JSON; one that nobody told is.
pub fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    essence.is_empty() || essence == JSON || essence.ends_with("+json")
}

/// A MIME type without its parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}
