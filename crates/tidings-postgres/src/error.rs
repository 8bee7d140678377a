//! What PostgreSQL's failures mean: for whoever has to mend them, and for whoever may try again.

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
            let advice = refused.code().map_or("", |code| advice(&code));
            format!("{}{advice}", refused.message())
        }
        error => error.to_string(),
    };
    let message = format!("cannot {attempted}: {why}");
    match kind_of(error) {
        Kind::Unavailable => StoreError::unavailable(message),
        Kind::Conflict => StoreError::conflict(message),
        Kind::Invalid => StoreError::invalid(message),
        Kind::Other => StoreError::new(message),
    }
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
    match error {
        // A connection that was lost in the middle of an answer is a protocol error to the driver.
        Error::Io(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::Protocol(_)
        | Error::BeginFailed => Kind::Unavailable,
        Error::Encode(_) => Kind::Invalid,
        Error::Database(refused) => refused
            .code()
            .map_or(Kind::Other, |code| kind_of_code(&code)),
        _ => Kind::Other,
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
