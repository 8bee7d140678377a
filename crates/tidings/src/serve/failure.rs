//! Why a service does not run.

use std::{error::Error as StdError, fmt};

use crate::BoxError;

/// Why a service did not start, or stopped by itself.
#[derive(Debug)]
pub struct ServeError {
    service: String,
    error: BoxError,
}

impl ServeError {
    pub(super) fn new(service: &str, error: BoxError) -> Self {
        Self {
            service: service.to_owned(),
            error,
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the service `{}` cannot run: {}",
            self.service, self.error
        )
    }
}

impl StdError for ServeError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}
