//! Why something could not be declared, and what to do about it.

use tidings_core::TransportError;
use tidings_wire::{ShortStr, reply};

use crate::session::Closed;

/// Why a declaration failed.
#[derive(Debug)]
pub(crate) enum DeclareError {
    /// What is wrong with a name.
    Name(String),
    Closed {
        what: String,
        closed: Closed,
    },
    /// A queue of dead letters is there with another type.
    OtherType {
        queue: ShortStr,
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
                     `tidings topology apply` by a user who may"
                ))
            }
            other => other,
        }
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::Name(reason) => TransportError::fatal(reason),
            Self::OtherType { queue, closed } => Self::Closed {
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
                    reply::ACCESS_REFUSED => {
                        "grant the user of the broker's URL the permission to configure, write \
                         and read it"
                    }
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
