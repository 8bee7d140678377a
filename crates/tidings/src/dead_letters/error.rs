//! Errors with a code: each has a page in `docs/errors`.

use std::{error::Error as StdError, fmt};

use crate::{AccessError, AccessErrorKind, StoreError};

/// What an operator has to do something about.
#[derive(Debug)]
pub struct Error {
    code: Code,
    says: String,
}

/// The code of an [`Error`], and the name of its page in `docs/errors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// `TDG-2001`: the engine gives no access to dead letters.
    NoAccess,
    /// `TDG-2002`: there is no such queue of dead letters.
    Missing,
    /// `TDG-2003`: somebody else holds the letters.
    Busy,
    /// `TDG-2004`: looking would use the letters up.
    UsesUp,
    /// `TDG-2005`: the broker or the database cannot be reached.
    Unavailable,
    /// `TDG-2006`: the broker refuses.
    Refused,
    /// `TDG-2007`: there is no such letter.
    NoLetter,
    /// `TDG-2008`: a letter cannot be edited so.
    NoEdit,
    /// `TDG-2009`: what was sent was not taken.
    NotTaken,
    /// `TDG-2010`: a redrive stopped because too many letters came back.
    Stopped,
    /// `TDG-2011`: the consumer does not take messages of a letter's name.
    NameNotTaken,
}

impl Code {
    /// All codes.
    pub const ALL: &'static [Self] = &[
        Self::NoAccess,
        Self::Missing,
        Self::Busy,
        Self::UsesUp,
        Self::Unavailable,
        Self::Refused,
        Self::NoLetter,
        Self::NoEdit,
        Self::NotTaken,
        Self::Stopped,
        Self::NameNotTaken,
    ];

    /// As it is written: `TDG-2001`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAccess => "TDG-2001",
            Self::Missing => "TDG-2002",
            Self::Busy => "TDG-2003",
            Self::UsesUp => "TDG-2004",
            Self::Unavailable => "TDG-2005",
            Self::Refused => "TDG-2006",
            Self::NoLetter => "TDG-2007",
            Self::NoEdit => "TDG-2008",
            Self::NotTaken => "TDG-2009",
            Self::Stopped => "TDG-2010",
            Self::NameNotTaken => "TDG-2011",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    pub(super) fn new(code: Code, says: impl Into<String>) -> Self {
        Self {
            code,
            says: says.into(),
        }
    }

    /// Which of the errors it is.
    pub fn code(&self) -> Code {
        self.code
    }

    pub(super) fn no_access(engine: &str) -> Self {
        let says = format!(
            "`{engine}` gives no access to dead letters; use the tools of the engine, or connect \
             over AMQP"
        );
        Self::new(Code::NoAccess, says)
    }

    pub(crate) fn name_not_taken(name: &str, consumer: &str) -> Self {
        let says = format!(
            "no handler of `{consumer}` takes `{name}`; redrive the letter to a consumer that does, or \
             discard it"
        );
        Self::new(Code::NameNotTaken, says)
    }

    pub(super) fn nobody_takes(consumer: &str, instead: Option<&str>) -> Self {
        let instead = match instead {
            Some(instead) => format!("redrive it to `{instead}`, where its handler is now"),
            None => "redrive it to another consumer, or discard it".to_owned(),
        };
        let says = format!("nobody receives from `{consumer}` any more; {instead}");
        Self::new(Code::NameNotTaken, says)
    }

    pub(super) fn no_letter(id: &str, consumer: &str) -> Self {
        let says = format!(
            "there is no dead letter `{id}` beside `{consumer}` (any more); list what there is"
        );
        Self::new(Code::NoLetter, says)
    }
}

impl From<AccessError> for Error {
    fn from(error: AccessError) -> Self {
        let (code, what_to_do) = match error.kind() {
            AccessErrorKind::Busy => (Code::Busy, "; try again when that has ended"),
            AccessErrorKind::Missing => (
                Code::Missing,
                "; name a consumer's queue (`payment.order-placed.v1`) or its ordered group \
                 (`payment.ordered`)",
            ),
            AccessErrorKind::UsesUp => (Code::UsesUp, ""),
            AccessErrorKind::Unavailable => (Code::Unavailable, "; try again"),
            _ => (Code::Refused, ""),
        };
        Self::new(code, format!("{error}{what_to_do}"))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let says = format!("the store of the consumer failed: {error}; try again");
        Self::new(Code::Unavailable, says)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.says, self.code)
    }
}

impl StdError for Error {}
