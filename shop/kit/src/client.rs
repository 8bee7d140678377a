//! A small HTTP client: payment calls the bank with it, the storefront passes requests on.

use std::{fmt, str::FromStr, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Request, Response, Uri, uri},
};
use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The connections kept open to one host for the next request.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Where a service listens: `http://host:port`, with a path in front of everything if need be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    authority: uri::Authority,
    path: String,
}

impl BaseUrl {
    /// The service that listens at this address.
    ///
    /// # Errors
    ///
    /// Never for an address that a socket has.
    pub fn of_address(address: std::net::SocketAddr) -> Result<Self, String> {
        format!("http://{address}").parse()
    }

    /// This and a path that begins with `/`, as one URI.
    pub fn join(&self, path_and_query: &str) -> Result<Uri, axum::http::Error> {
        Uri::builder()
            .scheme("http")
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path_and_query}", self.path))
            .build()
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = |why| format!("`{text}` is not a URL of a service: {why}");
        let uri: Uri = text
            .parse()
            .map_err(|_| problem("it must look like `http://host:port`"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(problem(
                    "only `http://` is spoken here; put a TLS proxy between",
                ));
            }
            _ => return Err(problem("it must begin with `http://`")),
        }
        if uri.query().is_some() {
            return Err(problem("it must not have a `?`"));
        }
        let authority = uri.authority().ok_or_else(|| problem("it names no host"))?;
        Ok(Self {
            authority: authority.clone(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Sends requests; keeps connections open between them.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpConnector, Body>,
}

impl Default for HttpClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self { client }
    }
}

impl HttpClient {
    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// When nobody answers there, or the connection breaks.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        let response = self.client.request(request).await?;
        Ok(response.map(Body::new))
    }

    /// Sends a request and waits for the whole answer, at most `bytes_max` of it.
    ///
    /// # Errors
    ///
    /// Also when the answer is longer than that.
    pub async fn call(
        &self,
        request: Request<Body>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = self.send(request).await?.into_parts();
        let body = Limited::new(body, bytes_max).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub struct HttpError(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for HttpError {}

impl From<hyper_util::client::legacy::Error> for HttpError {
    fn from(error: hyper_util::client::legacy::Error) -> Self {
        Self(error.into())
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for HttpError {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<BaseUrl>(), expected) {
            (Ok(url), Ok(joined)) => assert_eq!(url.join("/bank/ledger?a=b").unwrap(), joined),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (parsed, _) => panic!("{text}: {parsed:?}"),
        }
    }

    #[test]
    fn a_base_url_goes_in_front_of_every_path() {
        check(
            "http://127.0.0.1:8080",
            Ok("http://127.0.0.1:8080/bank/ledger?a=b"),
        );
        check("http://bank/", Ok("http://bank/bank/ledger?a=b"));
        check(
            "http://host:1/api/",
            Ok("http://host:1/api/bank/ledger?a=b"),
        );
        check("https://bank", Err("TLS proxy"));
        check("bank:8080", Err("must begin with `http://`"));
        check("/bank", Err("must begin with `http://`"));
        check("http://bank?x", Err("must not have a `?`"));
    }
}
