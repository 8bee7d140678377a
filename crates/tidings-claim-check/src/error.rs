//! Errors with a code: each has a page in `docs/errors` that says what happened and what to do.

use std::{error::Error as StdError, fmt, io, time::Duration};

use jiff::Timestamp;
use tidings_core::{BoxError, Permanent};

use crate::{Attachment, StoreId};

/// What can go wrong with a body, by what can be done about it.
///
/// What trying again cannot mend (a body that is missing, damaged or too large) counts as
/// [permanent](tidings_core::is_permanent): returned by a handler, it sends the message to the dead
/// letters at once. Everything else is tried again.
#[derive(Debug)]
pub struct Error {
    code: Code,
    says: String,
    source: Option<BoxError>,
}

/// The code of an [`Error`], and the name of its page in `docs/errors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// `TDG-1001`: the body is not in its store.
    Missing,
    /// `TDG-1002`: the body is in a store that this program was not given.
    OtherStore,
    /// `TDG-1003`: what is stored is not what was put.
    Damaged,
    /// `TDG-1004`: the store failed: a full disk, a permission, a network.
    Unavailable,
    /// `TDG-1005`: the body is larger than a limit.
    TooLarge,
    /// `TDG-1006`: the folder is not the store that was expected.
    NotTheStore,
    /// `TDG-1007`: the body could not be read from where it was to come from.
    Source,
}

impl Code {
    /// All codes.
    pub const ALL: &'static [Code] = &[
        Code::Missing,
        Code::OtherStore,
        Code::Damaged,
        Code::Unavailable,
        Code::TooLarge,
        Code::NotTheStore,
        Code::Source,
    ];

    /// As it is written: `TDG-1001`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Missing => "TDG-1001",
            Code::OtherStore => "TDG-1002",
            Code::Damaged => "TDG-1003",
            Code::Unavailable => "TDG-1004",
            Code::TooLarge => "TDG-1005",
            Code::NotTheStore => "TDG-1006",
            Code::Source => "TDG-1007",
        }
    }

    fn is_permanent(self) -> bool {
        matches!(self, Code::Missing | Code::Damaged | Code::TooLarge)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    fn new(code: Code, says: impl Into<String>) -> Self {
        // It is found in the chain of sources by whoever asks whether to try again.
        let permanent = || BoxError::from(Permanent::new("trying again cannot mend this"));
        Self {
            code,
            says: says.into(),
            source: code.is_permanent().then(permanent),
        }
    }

    /// Which of the errors it is.
    pub fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn missing(attachment: &Attachment, now: Timestamp, keep: Duration) -> Self {
        let (put, days) = (attachment.put_at(), days(keep));
        let why = if put + keep < now {
            format!("it was put at {put} and bodies are kept for {days} days, so it was pruned")
        } else {
            format!(
                "it was put at {put} and should be kept for {days} days, so it was deleted by hand \
                 or by a program that keeps bodies for a shorter time"
            )
        };
        let says = format!(
            "the body `{}` is not in `{}`: {why}; restore it from a backup and redrive the \
             message, or delete the message",
            attachment.claim(),
            attachment.store(),
        );
        Self::new(Code::Missing, says)
    }

    pub(crate) fn other_store(attachment: &Attachment, ours: &[String]) -> Self {
        let says = format!(
            "the body `{}` is in `{}`, and this program has {}; give it the store that the sender \
             has: the same folder, shared by all hosts, or the same bucket",
            attachment.claim(),
            attachment.store(),
            ours.join(", "),
        );
        Self::new(Code::OtherStore, says)
    }

    pub(crate) fn damaged(attachment: &Attachment, how: &str) -> Self {
        let says = format!(
            "the body `{}` in `{}` is damaged: {how}; restore it from a backup and redrive the \
             message",
            attachment.claim(),
            attachment.store(),
        );
        Self::new(Code::Damaged, says)
    }

    pub(crate) fn unavailable(attempted: impl fmt::Display, error: io::Error) -> Self {
        let mut unavailable = Self::new(Code::Unavailable, format!("could not {attempted}"));
        unavailable.source = Some(error.into());
        unavailable
    }

    pub(crate) fn too_large_to_put(bytes_max: u64) -> Self {
        let says = format!(
            "could not put a body of more than {bytes_max} bytes: make it smaller, or raise \
             `body_bytes_max`"
        );
        Self::new(Code::TooLarge, says)
    }

    pub(crate) fn too_large_to_get(attachment: &Attachment, bytes_max: u64) -> Self {
        let says = format!(
            "could not get the body `{}` of {} bytes into memory, where {bytes_max} are allowed: \
             use `read`, which hands it out piece by piece, or raise `get_bytes_max`",
            attachment.claim(),
            attachment.bytes(),
        );
        Self::new(Code::TooLarge, says)
    }

    pub(crate) fn not_the_store(path: &std::path::Path, expected: &StoreId, found: &str) -> Self {
        let says = format!(
            "the folder `{}` is not the store `{expected}` that was expected: {found}; is the \
             shared folder mounted here?",
            path.display(),
        );
        Self::new(Code::NotTheStore, says)
    }

    pub(crate) fn of_source(error: io::Error) -> Self {
        let says = "could not read the body that was to be put";
        let mut of_source = Self::new(Code::Source, says);
        of_source.source = Some(error.into());
        of_source
    }

    /// The error inside an I/O error of a [`BodyReader`](crate::BodyReader), or one about it.
    pub(crate) fn from_reading(attachment: &Attachment, error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => {
                let attempted = format!(
                    "read the body `{}` from `{}`",
                    attachment.claim(),
                    attachment.store()
                );
                Self::unavailable(attempted, error)
            }
        }
    }
}

fn days(keep: Duration) -> u64 {
    keep.as_secs() / (24 * 60 * 60)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.says, self.code)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source: &(dyn StdError + 'static) = &**self.source.as_ref()?;
        Some(source)
    }
}
