//! What SQLite's failures mean for whoever has to mend them.

use std::path::Path;

use rusqlite::{Error, ErrorCode, ffi};
use tidings_core::StoreError;

use crate::LOCK_WAIT_MAX;

/// `attempted` on the database at `path` failed with `error`.
pub(crate) fn explain(path: &Path, attempted: &str, error: &Error) -> StoreError {
    Failure::of(path, attempted, error).error()
}

/// A failure that may have to be told to many, each of whom gets an error of its own.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Unavailable,
    Conflict,
    Invalid,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: Kind::Other,
        }
    }

    /// Another transaction was at fault; nothing was written.
    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Conflict,
            ..Self::new(text)
        }
    }

    pub(crate) fn of(path: &Path, attempted: &str, error: &Error) -> Self {
        let path = path.display();
        Self {
            text: format!("cannot {attempted} in `{path}`: {}", advice(error)),
            kind: kind(error),
        }
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn error(&self) -> StoreError {
        let text = self.text.as_str();
        match self.kind {
            Kind::Other => StoreError::new(text),
            Kind::Unavailable => StoreError::unavailable(text),
            Kind::Conflict => StoreError::conflict(text),
            Kind::Invalid => StoreError::invalid(text),
        }
    }
}

/// A constraint that is violated is the fault of who wrote, and so is whatever is not named here.
fn kind(error: &Error) -> Kind {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory,
        ) => Kind::Unavailable,
        Some(ErrorCode::TooBig) => Kind::Invalid,
        _ => Kind::Other,
    }
}

fn advice(error: &Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full; free some space and try again".into(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!(
            "another process has kept it locked for more than {LOCK_WAIT_MAX:?}; end the \
             transaction that is open there (a database browser, a backup)"
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "it cannot be written; give this user write access to the file and to its folder".into()
        }
        Some(ErrorCode::CannotOpen) => {
            "it cannot be opened; its folder must exist and this user must be able to write it"
                .into()
        }
        Some(ErrorCode::SystemIoFailure) => {
            format!("the disk failed to read or write ({error}); see the system's log")
        }
        Some(ErrorCode::FileLockingProtocolFailed) => {
            "its locks do not work; put it on a local disk".into()
        }
        Some(ErrorCode::OutOfMemory) => "there is no memory left; give this program more".into(),
        Some(ErrorCode::TooBig) => {
            "a value is larger than SQLite can hold; send a reference to what is large".into()
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "it is not an intact SQLite database; restore a backup or name another file".into()
        }
        Some(ErrorCode::AuthorizationForStatementDenied) => {
            "a closure may not begin, commit or roll back: the store does, when the handler is done"
                .into()
        }
        _ => error.to_string(),
    }
}

/// True for a statement that the writer's guard denied.
pub(crate) fn is_denied(error: &Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::AuthorizationForStatementDenied
            || error.extended_code == ffi::SQLITE_CONSTRAINT_COMMITHOOK
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: i32, expected: Kind) {
        let error = Error::SqliteFailure(ffi::Error::new(code), None);
        let failure = Failure::of(Path::new("a.db"), "write", &error);
        assert_eq!(failure.kind, expected, "{}", failure.text);
        let error = failure.error();
        let told = (
            error.is_unavailable(),
            error.is_conflict(),
            error.is_invalid(),
        );
        let unavailable = expected == Kind::Unavailable;
        assert_eq!(told, (unavailable, false, expected == Kind::Invalid));
        assert!(error.to_string().starts_with("cannot write in `a.db`: "));
    }

    #[test]
    fn the_kind_of_an_error_says_whose_fault_it_is() {
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_RECOVERY,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_PROTOCOL,
            ffi::SQLITE_NOMEM,
        ] {
            check(code, Kind::Unavailable);
        }
        check(ffi::SQLITE_TOOBIG, Kind::Invalid);
        for code in [
            ffi::SQLITE_CONSTRAINT_UNIQUE,
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
            ffi::SQLITE_ERROR,
            ffi::SQLITE_MISMATCH,
            ffi::SQLITE_AUTH,
            ffi::SQLITE_CORRUPT,
        ] {
            check(code, Kind::Other);
        }
    }
}
