//! The codes of what the command finds and of what it cannot do. Each has a page in `docs/errors`.

use std::fmt;

/// A code that starts with `TDG-9`: other crates have other thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// A service's database cannot be used.
    Database,
    /// The broker cannot be reached.
    Broker,
}

impl Code {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: &[Code] = &[Code::Database, Code::Broker];

    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Code::Database => "TDG-9001",
            Code::Broker => "TDG-9002",
        }
    }

    /// An error with this code at its end.
    pub(crate) fn of(self, error: impl fmt::Display) -> anyhow::Error {
        anyhow::anyhow!("{error} ({self})")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
