//! Contracts of services: what flows between them, and whether a change breaks somebody, known before it is merged.
//!
//! | what | where |
//! | --- | --- |
//! | JSON Schema and AsyncAPI 3 documents from types | [`Contracts`], [`Document`] |
//! | whether a reader understands all that a writer may write | [`compat`] |
//! | whether a system understands itself, and what a change breaks for whom | [`check`] |
//! | what a consumer really reads, found by its own decoding | [`probe`] |
//! | Pact V4, from and to Pact's own tools | [`pact`] |
//! | what really flows, compared with documents; a first document for who has none | [`observed`] |
//! | what is deployed, as files; the test that nothing changed unseen | [`published`] |
//!
//! Everything here works on documents and on bodies that it is given, not on running services: nothing needs a broker or a database.

pub mod catalogue;
pub mod check;
pub mod compat;
mod document;
mod formats;
pub mod observed;
pub mod pact;
pub mod probe;
pub mod published;
pub mod schema;
mod types;

pub use document::{
    Body, Contract, Deprecation, Document, DocumentError, Example, MessageKind, family,
};
pub use types::Contracts;
