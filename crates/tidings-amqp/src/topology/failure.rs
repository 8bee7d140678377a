//! Why something could not be declared, and what to do about it.

use tidings_core::TransportError;
use tidings_wire::{ShortStr, reply};

use crate::session::Closed;

/// What a user does who may not declare.
const MAY_NOT: &str = "the user of the broker's URL may not: grant it the permission to configure, write and read \
                       it, or have it made with `tidings topology apply` by a user who may, and add \
                       `?declare=false` to the URL (TDG-4001)";

/// Why a declaration failed.
#[derive(Debug)]
pub(crate) enum DeclareError {
    /// What is wrong with a name.
    Name(String),
    Closed {
        what: String,
        closed: Closed,
    },
    /// A queue is there with another type.
    OtherType {
        queue: ShortStr,
        /// It is one of dead letters.
        is_of_letters: bool,
        closed: Closed,
    },
}

impl DeclareError {
    /// True if the connection was lost, so that it can be tried on the next one.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self, Self::Closed { closed, .. } if closed.is_connection)
    }

    /// What it means when nothing may be declared.
    pub(super) fn only_looked(self) -> Self {
        match self {
            Self::Closed { what, closed }
                if closed.code == reply::NOT_FOUND && !closed.passes() =>
            {
                Self::Name(format!(
                    "{what} is not there, and the broker's URL says `declare=false`: have it made with \
                     `tidings topology apply` by a user who may \
                     (TDG-4002)"
                ))
            }
            other => other,
        }
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::Name(reason) => TransportError::fatal(reason),
            Self::OtherType { queue, closed, .. } => Self::Closed {
                what: format!("queue `{queue}`"),
                closed,
            }
            .into_transport(),
            Self::Closed { what, closed } if closed.passes() => TransportError::temporary(format!(
                "{what} could not be declared: {}",
                closed.reason
            )),
            Self::Closed { what, closed } => {
                let advice = match closed.code {
                    reply::PRECONDITION_FAILED => {
                        "it exists but differs; delete it (after draining it), or give this one \
                         another name"
                    }
                    reply::ACCESS_REFUSED => MAY_NOT,
                    reply::RESOURCE_LOCKED => "another connection has it for itself",
                    _ => "the broker refused",
                };
                TransportError::fatal(format!(
                    "{what} could not be declared: {advice} (the broker said: {})",
                    closed.reason
                ))
            }
        }
    }
}

impl From<Closed> for DeclareError {
    fn from(closed: Closed) -> Self {
        Self::Closed {
            what: "a topic or queue".into(),
            closed,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_code_has_a_page() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        let source = include_str!("failure.rs");
        for code in ["TDG-4001", "TDG-4002"] {
            let page = std::fs::read_to_string(docs.join(format!("{code}.md"))).expect("a page");
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            assert!(source.contains(&format!("({code})")), "{code} is used");
            let table = std::fs::read_to_string(docs.join("README.md")).expect("the table");
            assert!(
                table.contains(&format!("| [{code}]({code}.md) |")),
                "{code}"
            );
        }
    }
}
