//! What PostgreSQL's failures mean: for whoever has to mend them, and for whoever may try again.

use std::{error::Error as StdError, io};

use deadpool_postgres::{HookError, PoolError};
use tidings_core::StoreError;
use tokio_postgres::error::SqlState;

/// A failure of a statement, or of getting a connection for it.
#[derive(Debug)]
pub(crate) enum Error {
    Driver(tokio_postgres::Error),
    /// No connection became free in time.
    NoneFree,
    /// No connection could be made in time.
    Silent,
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        use deadpool_postgres::TimeoutType;
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
                Self::Driver(error)
            }
            PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle) => Self::Silent,
            PoolError::Timeout(TimeoutType::Wait)
            | PoolError::Closed
            | PoolError::NoRuntimeSpecified
            | PoolError::PostCreateHook(_) => Self::NoneFree,
        }
    }
}

impl Error {
    /// The database itself says so, and has undone the transaction if this ended it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Driver(error) if error.as_db_error().is_some())
    }

    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Driver(error) => error.code(),
            Self::NoneFree | Self::Silent => None,
        }
    }
}

/// A statement of a user failed, and the driver's error is the source of what is returned.
pub(crate) fn failed(error: Error) -> StoreError {
    let message = "a statement failed in the database";
    let kind = kind_of(&error);
    let Error::Driver(error) = error else {
        return explain("run a statement", error);
    };
    let failed = match kind {
        Kind::Unavailable => StoreError::unavailable(message),
        Kind::Conflict => StoreError::conflict(message),
        // What a user's statement cannot hold says nothing about the message.
        Kind::Invalid | Kind::Other => StoreError::new(message),
    };
    failed.with_source(error)
}

/// The same once more, without its source.
pub(crate) fn copy(error: &StoreError) -> StoreError {
    let message = error.to_string();
    match error {
        error if error.is_unavailable() => StoreError::unavailable(message),
        error if error.is_conflict() => StoreError::conflict(message),
        error if error.is_invalid() => StoreError::invalid(message),
        _ => StoreError::new(message),
    }
}

/// `attempted` failed with `error`.
pub(crate) fn explain(attempted: &str, error: impl Into<Error>) -> StoreError {
    let error = error.into();
    let why = match &error {
        Error::NoneFree => {
            "no connection became free: `connections_max` transactions take too long".to_owned()
        }
        Error::Silent => "the database does not answer".to_owned(),
        Error::Driver(error) => match (error.as_db_error(), io_error(error)) {
            (Some(refused), _) => {
                format!("{}{}", refused.message(), advice(refused.code().code()))
            }
            (None, Some(error)) => format!("the connection to the database failed: {error}"),
            (None, None) if error.is_closed() => "the connection to the database ended".to_owned(),
            (None, None) => match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        },
    };
    let message = format!("cannot {attempted}: {why}");
    match kind_of(&error) {
        Kind::Unavailable => StoreError::unavailable(message),
        Kind::Conflict => StoreError::conflict(message),
        Kind::Invalid => StoreError::invalid(message),
        Kind::Other => StoreError::new(message),
    }
}

/// The failure of the connection itself: not of what was to be sent, and not of what TLS thinks of the
/// other end, which waiting does not mend.
fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    let io: &io::Error = error.source()?.downcast_ref()?;
    let is_other = matches!(
        io.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
    );
    (!is_other).then_some(io)
}

/// What was to be sent is too long for the protocol.
fn is_too_long(error: &tokio_postgres::Error) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref());
    io.is_some_and(|io: &io::Error| io.kind() == io::ErrorKind::InvalidInput)
}

/// What to do about the error with this SQLSTATE, where the server's message does not say.
fn advice(code: &str) -> &'static str {
    match code {
        "40001" | "40P01" => "; it ran into another transaction, try again",
        "25P02" => "; an error of a statement before was ignored, return it instead",
        "25P03" => "; it was held open without a statement for longer than `transaction_idle_max`",
        "53100" => "; free some space on the database's disk",
        "25006" => "; this server only reads, connect to the primary",
        "42501" => "; grant this user what is missing",
        "57P01" | "57P02" | "57P03" => "; the server restarts, try again",
        _ => "",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Unavailable,
    Conflict,
    Invalid,
}

fn kind_of(error: &Error) -> Kind {
    let Error::Driver(driver) = error else {
        return Kind::Unavailable;
    };
    match error.code() {
        Some(code) => kind_of_code(code.code()),
        None if driver.is_closed() || io_error(driver).is_some() => Kind::Unavailable,
        None if is_too_long(driver) => Kind::Invalid,
        None => Kind::Other,
    }
}

/// What an SQLSTATE of one of this crate's own statements says.
fn kind_of_code(code: &str) -> Kind {
    match code {
        "40001" | "40P01" | "55P03" => Kind::Conflict,
        // A program or an index limit: a text that is too long for a key.
        "54000" => Kind::Invalid,
        // A primary that became a standby: the next connection may reach the new primary.
        "57P01" | "57P02" | "57P03" | "25006" => Kind::Unavailable,
        // Data exceptions: characters and times that it cannot hold.
        code if code.starts_with("22") => Kind::Invalid,
        code if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => {
            Kind::Unavailable
        }
        _ => Kind::Other,
    }
}

/// Whether `error` means that the server is not there yet, or not ready.
pub(crate) fn is_not_there_yet(error: &Error) -> bool {
    match (error, error.code().map(SqlState::code)) {
        // It starts, restarts or has no connection left.
        (_, Some(code)) => matches!(code, "57P01" | "57P02" | "57P03" | "53300"),
        (Error::Driver(driver), None) => driver.is_closed() || io_error(driver).is_some(),
        (Error::NoneFree | Error::Silent, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_to_wait_to_try_again_or_to_give_up() {
        let check = |kind, codes: &[&str]| {
            for code in codes {
                assert_eq!(kind_of_code(code), kind, "{code}");
            }
        };
        check(
            Kind::Unavailable,
            &[
                "08006", "08P01", "57P01", "57P02", "57P03", "53100", "53300", "58030", "25006",
            ],
        );
        check(Kind::Conflict, &["40001", "40P01", "55P03"]);
        check(Kind::Invalid, &["22021", "22P05", "22008", "54000"]);
        check(
            Kind::Other,
            &["23505", "25P02", "25P03", "42P01", "57014", "XX000"],
        );
    }
}
