//! The ports' errors on their way: their kind, and what they say.

use serde::{Deserialize, Serialize};
use tidings_core::{
    AccessError, AccessErrorKind, PublishError, PublishErrorKind, StoreError, TransportError,
};

/// Why something could not be done, as the port says it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            message: message.into(),
        }
    }

    pub(crate) fn into_store(self) -> StoreError {
        match &*self.kind {
            "unavailable" => StoreError::unavailable(self.message),
            "conflict" => StoreError::conflict(self.message),
            "invalid" => StoreError::invalid(self.message),
            _ => StoreError::new(self.message),
        }
    }

    pub(crate) fn into_access(self) -> AccessError {
        let kind = match &*self.kind {
            "unavailable" => AccessErrorKind::Unavailable,
            "busy" => AccessErrorKind::Busy,
            "missing" => AccessErrorKind::Missing,
            "usesUp" => AccessErrorKind::UsesUp,
            _ => AccessErrorKind::Refused,
        };
        AccessError::new(kind, self.message)
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match &*self.kind {
            "unavailable" => TransportError::temporary(self.message),
            _ => TransportError::fatal(self.message),
        }
    }

    pub(crate) fn into_publish(self) -> PublishError {
        let kind = match &*self.kind {
            "unavailable" => PublishErrorKind::Unavailable,
            "unconfirmed" => PublishErrorKind::Unconfirmed,
            "unroutable" => PublishErrorKind::Unroutable,
            "invalid" => PublishErrorKind::Invalid,
            _ => PublishErrorKind::Refused,
        };
        PublishError::new(kind, self.message)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match () {
            () if error.is_unavailable() => "unavailable",
            () if error.is_conflict() => "conflict",
            () if error.is_invalid() => "invalid",
            () => "other",
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        let kind = match error.kind() {
            AccessErrorKind::Unavailable => "unavailable",
            AccessErrorKind::Busy => "busy",
            AccessErrorKind::Missing => "missing",
            AccessErrorKind::UsesUp => "usesUp",
            _ => "refused",
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let kind = if error.is_temporary() {
            "unavailable"
        } else {
            "refused"
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let kind = match error.kind() {
            PublishErrorKind::Unavailable => "unavailable",
            PublishErrorKind::Unconfirmed => "unconfirmed",
            PublishErrorKind::Unroutable => "unroutable",
            PublishErrorKind::Invalid => "invalid",
            _ => "refused",
        };
        Self::new(kind, with_causes(&error))
    }
}

/// An error and its causes in one line: they cannot cross as they are.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some say their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
