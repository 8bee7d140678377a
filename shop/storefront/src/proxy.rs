//! Passes API calls on to the processes where their services run, so that the page needs to know
//! one address only.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, header, uri::PathAndQuery},
    response::Response,
    routing::any,
};
use shop_kit::{BaseUrl, HttpClient, Problem};

/// How long to wait for the head of an answer. The rest, a stream of events say, takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Headers that are about one connection only.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::HOST,
];

/// A service that runs in another process.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// Its name.
    pub service: &'static str,
    /// Where its paths begin.
    pub paths: &'static [&'static str],
    /// Where it listens; `None` if nobody said.
    pub at: Option<BaseUrl>,
}

#[derive(Clone)]
struct Proxy {
    service: &'static str,
    at: Option<BaseUrl>,
    http: HttpClient,
}

pub(crate) fn routes(elsewhere: Vec<Elsewhere>) -> Router {
    let http = HttpClient::default();
    elsewhere
        .into_iter()
        .fold(Router::new(), |router, Elsewhere { service, paths, at }| {
            let proxy = Proxy {
                service,
                at,
                http: http.clone(),
            };
            let routes = paths.iter().fold(Router::new(), |routes, path| {
                routes
                    .route(path, any(pass_on))
                    .route(&format!("{path}/{{*rest}}"), any(pass_on))
            });
            router.merge(routes.with_state(proxy))
        })
}

async fn pass_on(State(proxy): State<Proxy>, request: Request) -> Result<Response, Problem> {
    let service = proxy.service;
    let Some(at) = &proxy.at else {
        return Err(Problem::unavailable(format_args!(
            "`{service}` does not run in this process; say where it does: \
             `--api {service}=http://host:port`"
        )));
    };
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    parts.uri = at
        .join(path)
        .map_err(|error| Problem::malformed(format_args!("the path means nothing: {error}")))?;
    strip(&mut parts.headers);
    let answer = proxy.http.send(Request::from_parts(parts, body));
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(mut response)) => {
            strip(response.headers_mut());
            Ok(response.map(Body::new))
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, service, url = %at, "a service does not answer");
            Err(Problem::bad_gateway(format_args!(
                "`{service}` does not answer at {at}"
            )))
        }
        Err(_) => Err(Problem::bad_gateway(format_args!(
            "`{service}` at {at} took longer than {ANSWER_TIMEOUT:?}"
        ))),
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}
