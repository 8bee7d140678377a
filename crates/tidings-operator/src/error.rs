//! What can go wrong, on both sides. Each kind has a code with a page in `docs/errors`.

use std::fmt;

/// The endpoint cannot start, or a client cannot use it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Token,
    Listen,
    Unreachable,
    Refused,
    Impossible,
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Everybody could use it.
    pub(crate) fn open(message: impl Into<String>) -> Self {
        Self::new(Kind::Open, message)
    }

    pub(crate) fn token(message: impl Into<String>) -> Self {
        Self::new(Kind::Token, message)
    }

    pub(crate) fn listen(message: impl Into<String>) -> Self {
        Self::new(Kind::Listen, message)
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// An operation that the endpoint does not have.
    pub fn impossible(message: impl Into<String>) -> Self {
        Self::new(Kind::Impossible, message)
    }

    /// The endpoint does not answer: trying again may help.
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// The endpoint does not let this client do this.
    pub fn is_refused(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// Its code, with a page in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self.kind {
            Kind::Open => "TDG-8001",
            Kind::Token => "TDG-8002",
            Kind::Listen => "TDG-8003",
            Kind::Unreachable => "TDG-8004",
            Kind::Refused => "TDG-8005",
            Kind::Impossible => "TDG-8006",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code())
    }
}

impl std::error::Error for Error {}
