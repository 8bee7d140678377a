//! Why a log cannot be opened, or stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// Why a log cannot be opened, or stopped. The text says what was attempted and what to do.
#[derive(Debug)]
pub struct LogError {
    kind: Kind,
    text: String,
    source: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Io,
    InUse,
    NewerVersion,
    Damaged,
    Internal,
    /// It is closed.
    Closed,
}

impl LogError {
    pub(crate) fn io(attempt: &str, path: &Path, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; let this user write there, or choose another folder"
            }
            io::ErrorKind::StorageFull => "; free some disk space",
            _ => "",
        };
        let text = format!("cannot {attempt} `{}`{advice}", path.display());
        Self {
            kind: Kind::Io,
            text,
            source: Some(source),
        }
    }

    pub(crate) fn in_use(dir: &Path, holder: &str) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` is in use by another process{holder}; stop it, or choose another \
             folder"
        );
        Self {
            kind: Kind::InUse,
            text,
            source: None,
        }
    }

    pub(crate) fn newer(dir: &Path, found: u32, known: u32) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` was made by a newer version (format {found}, this version knows up \
             to {known}); upgrade, or choose another folder"
        );
        Self {
            kind: Kind::NewerVersion,
            text,
            source: None,
        }
    }

    pub(crate) fn damaged(file: PathBuf, offset: u64, what: &str) -> Self {
        let file = file.display();
        let text = format!(
            "`{file}` is damaged at offset {offset}: {what}; restore the folder from a copy, or \
             move it away to start empty"
        );
        Self {
            kind: Kind::Damaged,
            text,
            source: None,
        }
    }

    /// A mistake of this crate, found before it could do harm.
    pub(crate) fn closed() -> Self {
        Self {
            kind: Kind::Closed,
            text: "the log is closed".to_owned(),
            source: None,
        }
    }

    pub(crate) fn internal(what: &str) -> Self {
        let text =
            format!("the log stopped because of a mistake in it: {what}; please report this");
        Self {
            kind: Kind::Internal,
            text,
            source: None,
        }
    }

    /// Whether another process has the log open.
    pub fn is_in_use(&self) -> bool {
        self.kind == Kind::InUse
    }

    /// Whether the log was made by a newer version of this program.
    pub fn is_newer_version(&self) -> bool {
        self.kind == Kind::NewerVersion
    }

    /// Whether bytes that had been on stable storage are not what they were.
    pub fn is_damaged(&self) -> bool {
        self.kind == Kind::Damaged
    }

    /// Whether the disk was full.
    pub fn is_disk_full(&self) -> bool {
        self.source.as_ref().is_some_and(is_full)
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone)]
pub enum AppendError {
    /// The disk is full. The record was not taken; later ones may be.
    DiskFull,
    /// A record could not be read back, because its arguments are nested deeper than
    /// [`Table::DEPTH_MAX`](tidings_broker_core::Table::DEPTH_MAX). None of the records was taken.
    Unreadable,
    /// The log has failed for good.
    Failed(Arc<LogError>),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiskFull => f.write_str("cannot store a message: the disk is full"),
            Self::Unreadable => f.write_str(
                "cannot store a record: its arguments are nested deeper than can be read back",
            ),
            Self::Failed(_) => f.write_str("cannot store anything: the log has failed"),
        }
    }
}

impl std::error::Error for AppendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DiskFull | Self::Unreadable => None,
            Self::Failed(error) => Some(error),
        }
    }
}
