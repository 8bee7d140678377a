//! Writing what can be read of a log into a new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidings_broker_core::{Record, Table};

use super::Survey;
use crate::dir::{self, Dir};
use crate::recovery::ids;
use crate::{AppendError, Log, LogError, Options};

impl Survey {
    /// Writes what is alive and can be read into a new log in `into`, a folder that is empty or not there
    /// yet. The log that is looked at stays as it is. Ids and times stay, too, so that messages keep
    /// their order and their age. For queues whose declarations are lost there are others that stand in
    /// for them ([`QueueContents::name`](super::QueueContents::name)), without arguments and bindings.
    ///
    /// No broker takes the new log before it is complete. One that cannot be completed is taken away.
    ///
    /// # Errors
    ///
    /// When nothing is alive that can be read, when the folder is not empty or lies within the one that
    /// is read, and when it cannot be written.
    pub fn salvage(&self, into: &Path) -> Result<(), Arc<LogError>> {
        if self.topology.is_empty() && self.queues.is_empty() {
            let why = "nothing that is alive can be read";
            return Err(Arc::new(LogError::destination(into, why)));
        }
        if is_within(into, self.dir.path()) {
            let why =
                "it lies within the folder that is read, which stays as it is; name another one";
            return Err(Arc::new(LogError::destination(into, why)));
        }
        let written = self.write(Dir::create(into)?, into);
        if written.is_err() {
            // Why it was not written matters more than what is left of it, which no broker takes.
            let _ = dir::discard(into);
        }
        written
    }

    fn write(&self, dir: Dir, into: &Path) -> Result<(), Arc<LogError>> {
        let (log, _) = Log::start(dir, Options::default(), |_| {})?;
        self.copy_to(&log, into)?;
        log.close()?;
        Ok(dir::finish(into)?)
    }

    fn copy_to(&self, log: &Log, into: &Path) -> Result<(), Arc<LogError>> {
        let append = |record: &Record| match log.append(record) {
            Ok(_) => Ok(()),
            Err(AppendError::Failed(error)) => Err(error),
            Err(AppendError::DiskFull) => {
                let full = std::io::ErrorKind::StorageFull.into();
                Err(Arc::new(LogError::io("write to", into, full)))
            }
            Err(AppendError::Unreadable) => Err(Arc::new(LogError::internal(
                "a record that was read cannot be written",
            ))),
        };
        append(&ids(&self.live))?;
        self.topology.iter().try_for_each(&append)?;
        for queue in self.queues.iter().filter(|queue| !queue.is_declared) {
            append(&Record::QueueDeclared {
                queue: queue.id,
                name: queue.name.clone(),
                auto_delete: false,
                arguments: Table::new(),
            })?;
        }
        self.for_each_live(|_, _, record| match record {
            Ok(message @ Record::Enqueued { .. }) => append(&message),
            _ => Ok(()),
        })
    }
}

/// Whether one path leads into the other, which is there.
fn is_within(path: &Path, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else {
        return false;
    };
    let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    // The folders above that are there say where it will be.
    let there = path.ancestors().find_map(|above| above.canonicalize().ok());
    there.is_some_and(|there| there.starts_with(&folder))
}
