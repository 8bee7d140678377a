//! What SQLite's failures mean for whoever has to mend them.

use std::path::Path;

use rusqlite::{Error, ErrorCode};
use tidings_core::StoreError;

use crate::LOCK_WAIT_MAX;

/// `attempted` on the database at `path` failed with `error`.
pub(crate) fn explain(path: &Path, attempted: &str, error: &Error) -> StoreError {
    StoreError::new(text(path, attempted, error))
}

/// The text alone, for a failure that has to be told to many.
pub(crate) fn text(path: &Path, attempted: &str, error: &Error) -> String {
    let path = path.display();
    let advice = match error.sqlite_error_code() {
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
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "it is not an intact SQLite database; restore a backup or name another file".into()
        }
        Some(ErrorCode::AuthorizationForStatementDenied) => {
            "a closure may not begin, commit or roll back: the store does, when the handler is done"
                .into()
        }
        _ => error.to_string(),
    };
    format!("cannot {attempted} in `{path}`: {advice}")
}
