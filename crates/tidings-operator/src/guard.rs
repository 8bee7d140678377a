//! Who may ask. All of it is decided by the head of a request, before its body is read.
//!
//! A browser is the way by which a stranger reaches loopback: a page may send requests to `127.0.0.1`, or have
//! its own name point there (DNS rebinding). So a request must have a header that a page may only set after
//! a preflight (which is refused as any `OPTIONS` is), must have no `Origin`, and on loopback must be for
//! loopback.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, ORIGIN},
    http::request::Parts,
};

use crate::{Token, limits::REQUEST_BYTES_MAX};

/// Where what only looks is asked, and what changes something.
pub(crate) const LOOK_PATH: &str = "/v1/look";
pub(crate) const CHANGE_PATH: &str = "/v1/change";

/// What says that the request is made by a program that means it.
pub(crate) const OPERATOR_HEADER: HeaderName = HeaderName::from_static("tidings-operator");
pub(crate) const OPERATOR_VERSION: &str = "1";

/// What a browser says of where a request comes from.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whom the endpoint lets in.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) token: Option<Token>,
    pub(crate) is_loopback: bool,
    pub(crate) look_only: bool,
}

/// Why a request is not let in.
pub(crate) type Refusal = (StatusCode, &'static str);

impl Guard {
    /// Whether the request may be read. True if it may change something.
    pub(crate) fn admit(&self, head: &Parts) -> Result<bool, Refusal> {
        let header = |name: &HeaderName| head.headers.get(name).map(|it| it.as_bytes());
        if head.headers.contains_key(ORIGIN) || head.headers.contains_key(FETCH_SITE) {
            return Err((StatusCode::FORBIDDEN, "browsers are not served here"));
        }
        let mut hosts = head.headers.get_all(HOST).iter();
        let (host, more) = (hosts.next(), hosts.next());
        let host = host
            .and_then(|it| it.to_str().ok())
            .filter(|_| more.is_none());
        if self.is_loopback && !host.is_some_and(is_loopback_host) {
            return Err((
                StatusCode::FORBIDDEN,
                "the `Host` is not this machine's own; use 127.0.0.1 or localhost",
            ));
        }
        let changes = match head.uri.path() {
            LOOK_PATH => false,
            CHANGE_PATH => true,
            _ => {
                return Err((
                    StatusCode::NOT_FOUND,
                    "this is an operator endpoint of Tidings",
                ));
            }
        };
        if head.method != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only POST is served here"));
        }
        if header(&OPERATOR_HEADER) != Some(OPERATOR_VERSION.as_bytes()) {
            return Err((
                StatusCode::FORBIDDEN,
                "the header `tidings-operator: 1` is missing, or of another version",
            ));
        }
        if let Some(token) = &self.token {
            let said = header(&AUTHORIZATION).and_then(|it| it.strip_prefix(b"Bearer "));
            if !said.is_some_and(|said| token.is(said)) {
                return Err((
                    StatusCode::UNAUTHORIZED,
                    "the operator token is missing or wrong",
                ));
            }
        }
        if header(&CONTENT_TYPE) != Some(b"application/json") {
            return Err((
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send `application/json`",
            ));
        }
        let length = header(&CONTENT_LENGTH).and_then(|it| str::from_utf8(it).ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > REQUEST_BYTES_MAX as u64) {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "the request is too large"));
        }
        if changes && self.look_only {
            return Err((StatusCode::FORBIDDEN, "this endpoint only lets look"));
        }
        Ok(changes)
    }
}

/// Whether a `Host` is one that only this machine means by itself. A name that somebody else's DNS may let
/// point here is not.
fn is_loopback_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return ip.is_loopback();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    name.eq_ignore_ascii_case("localhost") && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopbacks_own_names_are_loopback() {
        let check = |host, expected| assert_eq!(is_loopback_host(host), expected, "{host}");
        check("127.0.0.1:7070", true);
        check("127.0.0.1", true);
        check("127.1.2.3:1", true);
        check("localhost:7070", true);
        check("LOCALHOST", true);
        check("[::1]:7070", true);
        check("[::1]", true);
        check("", false);
        check("evil.example", false);
        check("localhost.evil.example:7070", false);
        check("127.0.0.1.evil.example", false);
        check("10.0.0.1:7070", false);
        check("localhost:7070@evil.example", false);
        check("0.0.0.0:7070", false);
    }
}
