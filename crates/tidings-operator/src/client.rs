//! The client: one request, one connection, one answer.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request as HttpRequest, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use tidings_core::{AccessError, AccessErrorKind, StoreError, TransportError};
use tokio::time::timeout;

use crate::{
    Error, RemoteBroker, RemoteStore, Token,
    guard::{CHANGE_PATH, LOOK_PATH, OPERATOR_HEADER, OPERATOR_VERSION},
    limits::WORK_TIME_MAX,
    wire::{Answer, Failure, Request, StoreAsk},
};

/// How long to wait for a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long to wait for an answer: a little longer than the endpoint takes.
const ANSWER_TIME_MAX: Duration = WORK_TIME_MAX.saturating_add(Duration::from_secs(10));
/// How many bytes of an answer are read: a letter may be larger than an answer should be.
const ANSWER_READ_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How much of a refusal is told.
const REFUSAL_CHARS_MAX: usize = 500;

/// What one wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only look: a change is an error that is never sent.
    Look,
    /// Change something, too.
    Change,
}

/// The operator endpoint of a running service.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client<HttpConnector, Full<Bytes>>,
    /// `http://host:port`, with a path in front if a proxy has one.
    base: String,
    authorization: Option<HeaderValue>,
}

impl Remote {
    /// The endpoint at `http://host:port`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// When the URL is not one of an endpoint.
    pub fn new(url: &str, token: Option<&Token>) -> Result<Self, Error> {
        let wrong =
            |why: &str| Error::impossible(format!("not the URL of an operator endpoint: {why}"));
        let uri: Uri = url
            .parse()
            .map_err(|_| wrong("it must look like `http://127.0.0.1:7070`"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "`https://` is not spoken; use a tunnel (`ssh -L 7070:127.0.0.1:7070 host`) and its \
                     `http://` end",
                ));
            }
            _ => return Err(wrong("it must begin with `http://`")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong(
                "it must have no user or password; the token is given apart",
            ));
        }
        if uri.query().is_some() {
            return Err(wrong("it must not have a `?`"));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
        connector.set_nodelay(true);
        let authorization = token.map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.as_str()));
            let mut value = value.unwrap_or_else(|_| unreachable!("a token is ASCII"));
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            shared: Arc::new(Shared {
                client: Client::builder(TokioExecutor::new()).build(connector),
                base: format!("http://{authority}{}", uri.path().trim_end_matches('/')),
                authorization,
            }),
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.shared.base
    }

    /// The services that are operated there, by name.
    ///
    /// # Errors
    ///
    /// When the endpoint does not answer, or does not let this client in.
    pub async fn services(&self) -> Result<Vec<String>, Error> {
        self.call(&Request::Services)
            .await
            .map_err(|error| match error {
                CallError::Endpoint(error) => error,
                CallError::Failed(failure) => Error::refused(failure.message),
            })
    }

    /// The store of one of the services.
    pub fn store(&self, service: impl Into<String>, access: Access) -> RemoteStore {
        RemoteStore::new(self.clone(), service.into(), access)
    }

    /// The services' broker, as far as operators need it.
    pub fn broker(&self) -> RemoteBroker {
        RemoteBroker::new(self.clone())
    }

    pub(crate) async fn ask_store<T: DeserializeOwned>(
        &self,
        service: &str,
        what: StoreAsk,
    ) -> Result<T, StoreError> {
        let service = service.to_owned();
        let request = Request::Store { service, what };
        self.call(&request).await.map_err(CallError::into_store)
    }

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<T, CallError> {
        let Shared {
            client,
            base,
            authorization,
        } = &*self.shared;
        let path = if request.changes() {
            CHANGE_PATH
        } else {
            LOOK_PATH
        };
        let unreachable = |why: String| {
            Error::unreachable(format!(
                "the operator endpoint `{base}` does not answer: {why}"
            ))
        };
        let body = serde_json::to_vec(request).map_err(|error| unreachable(error.to_string()))?;
        let mut http = HttpRequest::post(format!("{base}{path}"))
            .header(CONTENT_TYPE, "application/json")
            .header(OPERATOR_HEADER, OPERATOR_VERSION);
        if let Some(authorization) = authorization {
            http = http.header(AUTHORIZATION, authorization.clone());
        }
        let http = http.body(Full::new(Bytes::from(body)));
        let http = http.map_err(|error| unreachable(error.to_string()))?;
        let answer = async {
            let answer = client
                .request(http)
                .await
                .map_err(|error| unreachable(causes(&error)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_READ_BYTES_MAX).collect().await;
            let body = body.map_err(|error| unreachable(error.to_string()))?;
            Ok::<_, Error>((head.status, body.to_bytes()))
        };
        let answer = timeout(ANSWER_TIME_MAX, answer).await;
        let (status, body) = answer.map_err(|_| {
            unreachable(format!(
                "nothing came in {} seconds",
                ANSWER_TIME_MAX.as_secs()
            ))
        })??;
        if status != StatusCode::OK {
            return Err(self.refusal(status, &body).into());
        }
        match serde_json::from_slice(&body) {
            Ok(Answer::Done(value)) => Ok(value),
            Ok(Answer::Failed(failure)) => Err(CallError::Failed(failure)),
            Err(error) => Err(unreachable(format!(
                "what came is not of this version of Tidings ({error})"
            ))
            .into()),
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        #[derive(serde::Deserialize)]
        struct Said {
            error: String,
        }
        let said = serde_json::from_slice(body).map(|Said { error }| error);
        let said = said.unwrap_or_else(|_| "it is no operator endpoint of Tidings".to_owned());
        let said: String = said.chars().take(REFUSAL_CHARS_MAX).collect();
        let status = status.as_u16();
        let base = &self.shared.base;
        Error::refused(format!("`{base}` refused the request: {said} ({status})"))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("url", &self.shared.base)
            .finish_non_exhaustive()
    }
}

/// Why there is no value.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The endpoint did not do it.
    Endpoint(Error),
    /// The port behind it did not.
    Failed(Failure),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Endpoint(error)
    }
}

impl CallError {
    fn into_store(self) -> StoreError {
        match self {
            Self::Failed(failure) => failure.into_store(),
            Self::Endpoint(error) if error.is_unreachable() => {
                StoreError::unavailable(error.to_string())
            }
            Self::Endpoint(error) => StoreError::new(error.to_string()),
        }
    }

    pub(crate) fn into_access(self) -> AccessError {
        let (kind, error) = match self {
            Self::Failed(failure) => return failure.into_access(),
            Self::Endpoint(error) if error.is_unreachable() => {
                (AccessErrorKind::Unavailable, error)
            }
            Self::Endpoint(error) => (AccessErrorKind::Refused, error),
        };
        AccessError::new(kind, error.to_string())
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::Failed(failure) => failure.into_transport(),
            Self::Endpoint(error) if error.is_unreachable() => {
                TransportError::temporary(error.to_string())
            }
            Self::Endpoint(error) => TransportError::fatal(error.to_string()),
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
