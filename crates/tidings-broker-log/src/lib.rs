//! The broker's durable store: one log of [`Record`]s in segment files.
//!
//! It never interprets messages, never decides what is durable, and never confirms what is not on
//! stable storage: [`Log::append`] is buffered and cheap, one thread writes and syncs everything
//! that gathered while the last sync ran, and only then moves [`Log::durable`] on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidings_broker_core::Record;

/// A position in the log: how many records were appended up to here since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The largest size of a segment file. Small logs start with smaller ones.
    pub segment_bytes_max: u64,
    /// Appended bytes that may wait for the disk. Beyond, [`Log::append`] blocks.
    pub buffer_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            buffer_bytes_max: 32 << 20,
        }
    }
}

/// What the log reports, from its own thread. The callback must be quick and must not append.
#[derive(Debug, Clone)]
pub enum Event {
    /// Everything up to here is on stable storage.
    Durable(Lsn),
    /// The disk is full: messages are refused with [`AppendError::DiskFull`] until `DiskRoomy`;
    /// removals still fit, and free space.
    DiskFull,
    /// There is room again.
    DiskRoomy,
    /// The log has failed for good: nothing more becomes durable, every append is refused. What was
    /// durable is still there when the log is opened anew.
    Failed(Arc<LogError>),
}

/// What was found when a log was opened.
#[derive(Debug)]
pub struct Recovered {
    /// What is alive, in the order exchanges, queues, bindings, messages by id; ready for
    /// [`Broker::restore`](tidings_broker_core::Broker::restore).
    pub records: Vec<Record>,
    /// A write that the last process did not finish, and that was therefore never confirmed, was
    /// cut off here: the file and the offset.
    pub torn: Option<(PathBuf, u64)>,
}

/// Why a record was not taken.
#[derive(Debug, Clone)]
pub enum AppendError {
    /// The disk is full. The record was not taken; later ones may be.
    DiskFull,
    /// The log has failed for good.
    Failed(Arc<LogError>),
}

/// Why a log cannot be opened, or stopped.
#[derive(Debug)]
pub struct LogError {
    text: String,
}

/// An open log. Dropping it closes it: what was appended is written and synced first.
#[derive(Debug)]
pub struct Log {}

#[allow(unused_variables, clippy::todo)]
impl Log {
    /// Opens or creates the log in `dir`, which no other process may have open.
    pub fn open(
        dir: &Path,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<(Self, Recovered), LogError> {
        todo!()
    }

    /// Adds a record. It is durable when [`Log::durable`] reaches the position given back.
    pub fn append(&self, record: &Record) -> Result<Lsn, AppendError> {
        todo!()
    }

    /// Everything up to here is on stable storage.
    pub fn durable(&self) -> Lsn {
        todo!()
    }

    /// Whether messages are refused for want of disk space.
    pub fn is_full(&self) -> bool {
        todo!()
    }

    /// Why the log has failed, if it has.
    pub fn failure(&self) -> Option<Arc<LogError>> {
        todo!()
    }

    /// Writes and syncs what was appended, marks the log as closed, and lets go of the directory.
    pub fn close(self) -> Result<(), Arc<LogError>> {
        todo!()
    }
}

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for LogError {}
