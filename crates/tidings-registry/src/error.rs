//! Why a registry did not do what it was asked.

use std::fmt;

/// A registry that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    kind: Kind,
    what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It does not answer, or says that it cannot now.
    Away,
    /// It has no such schema, version or subject.
    Unknown,
    /// It takes no such schema, allows no such change of one, or does not let this program in.
    Refused,
}

impl RegistryError {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
        }
    }

    /// Whether the same may do later: nobody answers, or somebody who cannot now.
    pub fn is_temporary(&self) -> bool {
        self.kind == Kind::Away
    }

    /// Whether there is no such schema.
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for RegistryError {}
