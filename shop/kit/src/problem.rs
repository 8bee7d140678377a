//! What goes wrong over HTTP, as RFC 9457 problem details (`application/problem+json`).
//!
//! A problem says what is wrong and what to do. What only an operator should know (an SQL error,
//! say) goes to the log, never into an answer.

use std::fmt;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tidings_core::StoreError;

/// An answer that is not the one that was hoped for.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "status_number")]
    status: StatusCode,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Said in the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u16>,
}

/// When to try again if nothing better is known, in seconds: a database that is started again is
/// there by then.
const RETRY_AFTER_SECONDS: u16 = 2;

/// What is wrong with one part of a request's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Which part, as a JSON pointer: `/items/0/quantity`.
    pub pointer: String,
    /// What is wrong with it, and what would be right.
    pub detail: String,
}

impl FieldError {
    /// Says what is wrong with the part at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// The shop's own kinds of problems, as relative references.
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $kind:literal, $title:literal;)*) => {
        impl Problem {
            $(
                $(#[$doc])*
                pub fn $name(detail: impl fmt::Display) -> Self {
                    Self::new(StatusCode::$status, $kind, $title, detail)
                }
            )*
        }
    };
}

problems! {
    /// The request cannot be read: not JSON, a header that means nothing.
    malformed = BAD_REQUEST, "/problems/malformed", "The request cannot be read";
    /// There is no such thing.
    not_found = NOT_FOUND, "/problems/not-found", "There is no such thing";
    /// No service of this process answers at this path.
    no_route = NOT_FOUND, "/problems/no-route", "Nothing answers here";
    /// There is a thing here, but not with this method.
    wrong_method = METHOD_NOT_ALLOWED, "/problems/wrong-method", "Not with this method";
    /// The request did not come in time.
    too_slow = REQUEST_TIMEOUT, "/problems/too-slow", "The request did not come in time";
    /// The body is larger than anything the shop takes.
    too_large = PAYLOAD_TOO_LARGE, "/problems/too-large", "The body is too large";
    /// The body is not JSON by its own account.
    not_json = UNSUPPORTED_MEDIA_TYPE, "/problems/not-json", "The body must be JSON";
    /// The request can be read but makes no sense here.
    invalid = UNPROCESSABLE_ENTITY, "/problems/invalid", "The request makes no sense";
    /// The idempotency key was used before, for something else.
    key_reused = UNPROCESSABLE_ENTITY, "/problems/key-reused", "The idempotency key was used before";
    /// Too much is going on; later it will work.
    busy = TOO_MANY_REQUESTS, "/problems/busy", "Too much at once";
    /// Something this request needs is not there for now.
    unavailable = SERVICE_UNAVAILABLE, "/problems/unavailable", "Not for now";
    /// Whether this was done is not known: it may have been.
    outcome_unknown = SERVICE_UNAVAILABLE, "/problems/outcome-unknown", "Done or not, it is not known";
    /// Somebody this request was passed on to does not answer.
    bad_gateway = BAD_GATEWAY, "/problems/bad-gateway", "The service behind this does not answer";
    /// The bank simulates a fault.
    bank_fault = INTERNAL_SERVER_ERROR, "/problems/bank-fault", "The bank has a fault";
}

impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl fmt::Display,
    ) -> Self {
        Self {
            kind,
            title,
            status,
            detail: detail.to_string(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// Adds that it is worth trying again in a moment (the header `Retry-After`).
    pub fn retry_soon(mut self) -> Self {
        self.retry_after = Some(RETRY_AFTER_SECONDS);
        self
    }

    /// Adds what is wrong with each part of the body.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

/// The database failed: the cause is logged, the answer says to try again. It does not say that
/// nothing was stored: when a commit fails, nobody knows.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, cause, "a request failed at the database");
        Self::unavailable(
            "the database did not answer this call; try again (a call that changes something may \
             have been done: look first)",
        )
        .retry_soon()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(&self)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn status_number<S: serde::Serializer>(
    status: &StatusCode,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_is_wrong_and_where() {
        let problem =
            Problem::invalid("1 part of the order is wrong").with_errors(vec![FieldError::new(
                "/items/0/quantity",
                "must be at least 1",
            )]);
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"type":"/problems/invalid","title":"The request makes no sense","status":422,"detail":"1 part of the order is wrong","errors":[{"pointer":"/items/0/quantity","detail":"must be at least 1"}]}"#
        );
        let response = problem.into_response();
        assert_eq!(response.status(), 422);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
    }

    #[test]
    fn what_the_database_said_stays_inside() {
        let problem = Problem::from(StoreError::new("disk I/O error at /secret/path"));
        assert_eq!(problem.status(), 503);
        let text = serde_json::to_string(&problem).unwrap();
        assert!(
            !text.contains("secret") && !text.contains("nothing"),
            "{text}"
        );
        assert_eq!(problem.into_response().headers()["retry-after"], "2");
    }
}
