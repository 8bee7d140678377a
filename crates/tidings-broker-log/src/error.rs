//! Why a log cannot be opened, or stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// Why a log cannot be opened, or stopped. The text says what was attempted and what to do.
#[derive(Debug)]
pub struct LogError {
    kind: Kind,
    text: String,
    /// What to do about it, where the text does not say it.
    advice: Option<String>,
    source: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Io,
    InUse,
    NewerVersion,
    Damaged,
    NoLog,
    EmptyFolder,
    Destination,
    Internal,
    /// It is closed.
    Closed,
}

impl LogError {
    pub(crate) fn io(attempt: &str, path: &Path, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; let this user read and write there, or choose another folder"
            }
            io::ErrorKind::StorageFull => "; free some disk space",
            _ => "",
        };
        let text = format!("cannot {attempt} `{}`{advice}", path.display());
        Self {
            source: Some(source),
            ..Self::new(Kind::Io, text)
        }
    }

    const fn new(kind: Kind, text: String) -> Self {
        Self {
            kind,
            text,
            advice: None,
            source: None,
        }
    }

    pub(crate) fn in_use(dir: &Path, holder: &str) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` is in use by another process{holder}; stop it, or choose another \
             folder"
        );
        Self::new(Kind::InUse, text)
    }

    /// Somebody looks at the folder, who needs it as it is.
    pub(crate) fn being_read(dir: &Path) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` is being read by `check` or `salvage`; wait until that has ended, or \
             choose another folder"
        );
        Self::new(Kind::InUse, text)
    }

    /// There is nothing to look at, but `others` files that are none of a log.
    pub(crate) fn no_log(dir: &Path, others: usize) -> Self {
        let dir = dir.display();
        if others == 0 {
            let text = format!("the folder `{dir}` is empty");
            return Self::new(Kind::EmptyFolder, text);
        }
        let text = format!(
            "the folder `{dir}` is not one of a broker: it has neither `FORMAT` nor segments, but \
             {others} other files or folders; name the one that the broker has as `--data`"
        );
        Self::new(Kind::NoLog, text)
    }

    /// What was read cannot be written there.
    pub(crate) fn destination(dir: &Path, why: &str) -> Self {
        let text = format!("cannot salvage into `{}`: {why}", dir.display());
        Self::new(Kind::Destination, text)
    }

    pub(crate) fn newer(dir: &Path, found: u32, known: u32) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` was made by a newer version (format {found}, this version knows up \
             to {known}); upgrade, or choose another folder"
        );
        Self::new(Kind::NewerVersion, text)
    }

    pub(crate) fn damaged(file: PathBuf, offset: u64, what: &str) -> Self {
        let text = format!("`{}` is damaged at offset {offset}: {what}", file.display());
        let dir = file.parent().unwrap_or(&file).display();
        let advice = format!(
            "`tidings-broker check {dir}` says what the folder holds, `tidings-broker salvage {dir} \
             --into NEW` brings out what can be read; or restore the folder from a copy"
        );
        Self {
            advice: Some(advice),
            ..Self::new(Kind::Damaged, text)
        }
    }

    /// The format file cannot be used, without which no checksum can be verified.
    pub(crate) fn format(file: &Path, what: &str) -> Self {
        let text = format!("`{}` is damaged at offset 0: {what}", file.display());
        let advice = "put this file back from any copy of the folder, however old: it is written once and \
                      never changes";
        Self {
            advice: Some(advice.to_owned()),
            ..Self::new(Kind::Damaged, text)
        }
    }

    /// What was being salvaged into this folder is not complete.
    pub(crate) fn unfinished(dir: &Path) -> Self {
        let dir = dir.display();
        let text = format!(
            "the folder `{dir}` holds a part of what was to be salvaged into it: that did not come to an end; \
             remove the folder and salvage again"
        );
        Self::new(Kind::Damaged, text)
    }

    /// The log was closed before what was asked of it.
    pub(crate) fn closed() -> Self {
        Self::new(Kind::Closed, "the log is closed".to_owned())
    }

    /// A mistake of this crate, found before it could do harm.
    pub(crate) fn internal(what: &str) -> Self {
        let text =
            format!("the log stopped because of a mistake in it: {what}; please report this");
        Self::new(Kind::Internal, text)
    }

    /// What happened, without what to do about it.
    pub fn what(&self) -> &str {
        &self.text
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

    /// Whether the folder that was to be looked at is empty.
    pub fn is_empty_folder(&self) -> bool {
        self.kind == Kind::EmptyFolder
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
        f.write_str(&self.text)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
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
