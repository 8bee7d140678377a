//! The port: what a place for bodies has to do.

use std::io;

use jiff::Timestamp;
use tidings_core::BoxFuture;
use tokio::io::AsyncRead;

use crate::{BodyId, StoreId};

/// Bytes that are read piece by piece.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;

/// A place for bodies. `tests/support` of this crate has the suite that every one here passes.
///
/// A store keeps bytes under an id and gives them back. [`Bodies`](crate::Bodies) measures them on
/// their way in and compares them on their way out: a store need not.
pub trait BodyStore: Send + Sync + 'static {
    /// Which place this is, the same for every program on every host that has it.
    fn id(&self) -> &StoreId;

    /// Stores all that `body` has, in memory that does not grow with it.
    ///
    /// When it succeeds, the body is on stable storage and can be read whole. When it fails or is
    /// dropped, nobody ever reads a part of it.
    fn put<'a>(
        &'a self,
        id: BodyId,
        body: &'a mut (dyn AsyncRead + Send + Unpin),
    ) -> BoxFuture<'a, io::Result<()>>;

    /// Opens a body, or returns `None` if the store is there and the body is not.
    ///
    /// A store that is not there (a folder that is no longer mounted) is an error.
    fn open(&self, id: BodyId) -> BoxFuture<'_, io::Result<Option<BoxRead>>>;

    /// Deletes at most `count_max` of what is older than `before`, and nothing that the store did
    /// not make itself.
    fn prune(&self, before: Before, count_max: usize) -> BoxFuture<'_, io::Result<Pruned>>;
}

/// What may be deleted.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Bodies that were put before, by the clock of who put them and by that of the store.
    pub put: Timestamp,
    /// What was left by programs that ended in the middle of a put and that nobody has touched
    /// since, by the clock of the store.
    pub unfinished: Timestamp,
}

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Bodies.
    pub bodies: u64,
    /// What was left by programs that ended in the middle of a put.
    pub unfinished: u64,
    /// Whether there may be more to delete.
    pub more: bool,
}
