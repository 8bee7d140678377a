//! The claim check for large bodies: the body goes to a store, the message carries a reference.
//!
//! It never touches a message or a transaction: who sends puts the body first, and who receives gets
//! it by the reference. It never deletes what is younger than a retention.
//!
//! A message is thin: its body is limited to 64 KiB
//! ([`BODY_BYTES_MAX`](tidings_core::Message::BODY_BYTES_MAX)), because it is written to an outbox,
//! a broker and perhaps an inbox, and copied once for each consumer. What is larger is checked in
//! like luggage: [`Bodies::put`] gives an [`Attachment`] when the body is on stable storage, the
//! message carries that, and [`Bodies::get`] gives the body for it, compared with its checksum.
//!
//! ```
//! use tidings_claim_check::{Attachment, Bodies};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct PhotoTaken { album: String, photo: Attachment }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().join("bodies");
//! let bodies = Bodies::folder(folder).await?;
//! let photo = bodies.put(vec![7; 1_000_000]).await?; // durable from here on
//! let event = PhotoTaken { album: "summer".into(), photo };
//! assert!(serde_json::to_vec(&event)?.len() < 300);
//!
//! let photo = bodies.get(&event.photo).await?;
//! assert_eq!(photo.len(), 1_000_000);
//! # Ok(())
//! # }
//! ```
//!
//! What it does not do: encrypt, compress, or hide the reference from the message's type. A body
//! whose message was never committed stays until it is pruned.

mod attachment;
mod bodies;
mod error;
mod folder;
mod measure;
#[cfg(feature = "s3")]
mod s3;
mod store;

pub use attachment::{Attachment, BodyId, StoreId};
pub use bodies::Bodies;
pub use error::{Code, Error};
pub use folder::FolderBodies;
pub use measure::BodyReader;
#[cfg(feature = "s3")]
pub use s3::{S3Bodies, S3Options};
pub use store::{Before, BodyStore, BoxRead, Pruned};

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => Err(std::io::Error::other(ended)),
    }
}
