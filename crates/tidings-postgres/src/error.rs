//! What PostgreSQL's failures mean for whoever has to mend them.

use sqlx::Error;
use tidings_core::StoreError;

/// `attempted` failed with `error`.
pub(crate) fn explain(attempted: &str, error: &Error) -> StoreError {
    let why = match error {
        Error::Io(error) => format!("the connection to the database failed: {error}"),
        Error::PoolTimedOut => {
            "no connection became free: the database cannot be reached, or `connections_max` \
             transactions take too long"
                .into()
        }
        Error::Database(refused) => {
            let advice = match refused.code().as_deref() {
                Some("40001" | "40P01") => "; it ran into another transaction, try again",
                Some("25P03") => {
                    "; it was held open without a statement for longer than `transaction_idle_max`"
                }
                Some("53100") => "; free some space on the database's disk",
                Some("25006") => "; this server only reads, connect to the primary",
                Some("42501") => "; grant this user what is missing",
                Some("57P01" | "57P02" | "57P03") => "; the server restarts, try again",
                _ => "",
            };
            format!("{}{advice}", refused.message())
        }
        error => error.to_string(),
    };
    StoreError::new(format!("cannot {attempted}: {why}"))
}

/// Whether `error` means that the server is not there yet, or not ready.
pub(crate) fn is_not_there_yet(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::PoolTimedOut => true,
        // It starts, restarts or has no connection left.
        Error::Database(refused) => matches!(
            refused.code().as_deref(),
            Some("57P01" | "57P02" | "57P03" | "53300")
        ),
        _ => false,
    }
}
