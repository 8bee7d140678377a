//! The broker's durable store: one log of [`Record`]s in segment files.
//!
//! It never interprets messages, never decides what is durable, and never reports as durable what is
//! not on stable storage: [`Log::append`] is buffered and cheap; one thread writes and syncs
//! everything that gathered while the last sync ran, and only then moves [`Log::durable`] on.
//!
//! Each queue's messages are found again through all crashes: what a crash left unfinished at the end
//! is cut off, damage anywhere before is an error that names the file and the offset. Segments in
//! which nothing is alive are recycled; when little is alive in the log as a whole, what is alive in
//! the oldest segment moves to the front, a bounded piece with each sync.
//!
//! A [`Survey`] says what a folder holds and what is wrong with it, without changing it, and brings what
//! can be read of a damaged one into a new folder.
//!
//! ```
//! use tidings_broker_core::Record;
//! use tidings_broker_log::{Log, Options};
//!
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let (log, recovered) = Log::open(dir, Options::default(), |_event| {})?;
//! assert!(recovered.torn.is_none());
//! let exchange = Record::ExchangeDeclared {
//!     name: "orders".into(),
//!     kind: "fanout".into(),
//!     auto_delete: false,
//!     internal: false,
//!     arguments: Default::default(),
//! };
//! log.append(&exchange)?;
//! log.close()?; // writes and syncs what was appended
//!
//! let (_log, recovered) = Log::open(dir, Options::default(), |_event| {})?;
//! assert!(recovered.records.contains(&exchange));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tidings_broker_core::{Message, MessageId, Record};

mod batch;
mod codec;
mod dir;
mod error;
mod live;
mod recovery;
mod shared;
mod survey;
mod writer;

pub use error::{AppendError, LogError};
pub use survey::{Loss, Lost, QueueContents, Segment, Step, Survey, Torn};

use crate::dir::Dir;
use crate::shared::Shared;
use crate::writer::Writer;

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
    /// The disk is full: messages that no longer fit are refused with [`AppendError::DiskFull`]
    /// until `DiskRoomy`; removals still fit, and free space.
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
    /// What is alive, in the order ids, exchanges, queues, bindings, messages by id; ready for
    /// [`Broker::restore`](tidings_broker_core::Broker::restore).
    pub records: Vec<Record>,
    /// A write that the last process did not finish, and that was therefore never confirmed, was
    /// cut off here: the file and the offset.
    pub torn: Option<(PathBuf, u64)>,
}

/// An open log. Dropping it closes it: what was appended is written and synced first.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// Reads messages back while a log is open, from any thread.
#[derive(Debug, Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    /// The messages of these ids, in that order, as far as they are in some queue. What was appended
    /// before is found, whether it is durable or not. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When the log has failed or is closed, and when a message cannot be read.
    pub fn read(
        &self,
        ids: Vec<MessageId>,
    ) -> Result<Vec<(MessageId, Arc<Message>)>, Arc<LogError>> {
        self.shared.read(ids)
    }
}

impl Log {
    /// Opens or creates the log in `dir`, which no other process may have open.
    ///
    /// # Errors
    ///
    /// When another process has it open, when it is damaged or was made by a newer version, and when
    /// files cannot be read or written.
    pub fn open(
        dir: &Path,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<(Self, Recovered), LogError> {
        Self::start(Dir::open(dir)?, options, on_event)
    }

    fn start(
        dir: Dir,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> Result<(Self, Recovered), LogError> {
        let (state, recovered) = recovery::recover(&dir)?;
        let shared = Arc::new(Shared::new(options.buffer_bytes_max));
        let writer = Writer::new(dir, options, state, shared.clone(), Box::new(on_event))?;
        let spawned = std::thread::Builder::new().name("broker-log".to_owned());
        let writer = spawned
            .spawn(move || writer.run())
            .map_err(|e| LogError::io("start a thread for", Path::new("the log"), e))?;
        Ok((
            Self {
                shared,
                writer: Some(writer),
            },
            recovered,
        ))
    }

    /// How many bytes of records of new things certainly fit; it says no more than a mebibyte beyond
    /// `bytes`. Waits while a segment is made in which `bytes` fit, unless the disk is full: then it
    /// may be fewer.
    ///
    /// The room is kept for the next append, which must not come from another thread and ends
    /// this, even if it appends nothing.
    ///
    /// # Errors
    ///
    /// When the log has failed.
    pub fn room(&self, bytes: usize) -> Result<usize, Arc<LogError>> {
        self.shared.keep_room(bytes)
    }

    /// How many bytes of room these records need together; those that free space need none.
    pub fn needed<'a>(records: impl IntoIterator<Item = &'a Record>) -> usize {
        shared::needed(records)
    }

    /// Adds a record. It is durable when [`Log::durable`] reaches the position given back. Blocks
    /// while more waits for the disk than there may.
    ///
    /// # Errors
    ///
    /// When the log has failed, when the disk is full and this record is not one that frees space, or
    /// when it could not be read back.
    pub fn append(&self, record: &Record) -> Result<Lsn, AppendError> {
        self.shared.append(std::iter::once(record))
    }

    /// Adds the records of one command: all of them, or none. A message that moves from one queue to
    /// another is a record that adds and one that removes; were only the second one taken, because
    /// the disk is full, the message would be lost.
    ///
    /// Gives the position of the last; without any, the position 0, which is always durable.
    ///
    /// # Errors
    ///
    /// As [`Log::append`].
    pub fn append_all<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record, IntoIter: Clone>,
    ) -> Result<Lsn, AppendError> {
        self.shared.append(records.into_iter())
    }

    /// Reads messages back while the log is open.
    pub fn reader(&self) -> Reader {
        Reader {
            shared: self.shared.clone(),
        }
    }

    /// Everything up to here is on stable storage.
    pub fn durable(&self) -> Lsn {
        self.shared.durable()
    }

    /// Whether messages may be refused for want of disk space.
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Why the log has failed, if it has.
    pub fn failure(&self) -> Option<Arc<LogError>> {
        self.shared.failure()
    }

    /// Writes and syncs what was appended, and lets go of the folder.
    ///
    /// # Errors
    ///
    /// When the log has failed: what was not durable may be lost.
    pub fn close(mut self) -> Result<(), Arc<LogError>> {
        self.finish();
        self.failure().map_or(Ok(()), Err)
    }

    fn finish(&mut self) {
        self.shared.finish();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread of the log panicked; what was not yet durable may be lost");
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.finish();
    }
}
