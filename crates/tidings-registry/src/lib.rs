//! Schema registries that speak Confluent's API: their client, their subjects, and the five bytes before a body.
//!
//! It never writes a schema unless it is told to ([`Registry::register`]), knows neither messages nor transports, and shows no
//! password of its URL.
//!
//! Confluent's registry, Apicurio (`/apis/ccompat/v7`), Karapace and Redpanda have this API. A *subject* is a name
//! under which a registry keeps the versions of one schema, a *schema id* a number that is a schema's for ever.
//!
//! ```
//! use bytes::Bytes;
//! use tidings_registry::wire;
//!
//! let framed = wire::frame(7, b"{}");
//! assert_eq!(framed[..], [0, 0, 0, 0, 7, b'{', b'}']);
//! assert_eq!(wire::unframe(&framed), Some((7, Bytes::from_static(b"{}"))));
//! assert_eq!(wire::unframe(&Bytes::from_static(b"{}")), None);
//! ```

mod client;
mod error;
mod subjects;
pub mod wire;

use std::{fmt, sync::Arc};

pub use client::Registry;
pub use error::RegistryError;
pub use subjects::Subjects;

/// What language a schema is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// JSON Schema, of bodies in JSON.
    Json,
    /// Avro, of bodies in Avro's binary encoding.
    Avro,
    /// Protocol Buffers.
    Protobuf,
}

impl Language {
    /// As registries write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Language::Json => "JSON",
            Language::Avro => "AVRO",
            Language::Protobuf => "PROTOBUF",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A schema as a registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema {
    /// What it is written in.
    pub language: Language,
    /// The schema.
    pub text: Arc<str>,
}

impl Schema {
    /// A schema that contains all that it refers to.
    pub fn new(language: Language, text: impl Into<Arc<str>>) -> Self {
        Self {
            language,
            text: text.into(),
        }
    }
}

/// A schema under its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The number that bodies carry.
    pub id: u32,
    /// Which version of its subject it is.
    pub version: u32,
    /// The schema.
    pub schema: Schema,
}
