//! The endpoint: one request a connection, each bounded in time and size.
//!
//! Connections are not kept for further requests, so that one that does nothing is nobody's, and ends by the
//! time that its one request may take.

use std::{
    collections::HashMap, convert::Infallible, fmt, net::SocketAddr, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request as HttpRequest, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use parking_lot::Mutex;
use tidings_core::{Store, Transport};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    Error, Token,
    dispatch::{Operated, failed},
    guard::{Guard, Refusal},
    holds::Holds,
    limits::{
        CONNECTION_TIME_MAX, CONNECTIONS_MAX, FINISH_TIME_MAX, HEAD_TIME_MAX, REQUEST_BYTES_MAX,
        REQUEST_TIME_MAX, WORK_TIME_MAX,
    },
    wire::{Failure, Request},
};

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often forgotten holds are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// How often it is logged that somebody is not let in.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What an operator may see of this process, and who may.
pub struct Operator {
    services: HashMap<String, Arc<dyn Store>>,
    broker: Arc<dyn Transport>,
    token: Option<Token>,
    look_only: bool,
}

impl Operator {
    /// An endpoint that reaches dead letters and queues through the services' broker.
    pub fn new(broker: impl Transport) -> Self {
        Self {
            services: HashMap::new(),
            broker: Arc::new(broker),
            token: None,
            look_only: false,
        }
    }

    /// Adds a service of this process, and its store.
    pub fn service(mut self, name: impl Into<String>, store: impl Into<Arc<dyn Store>>) -> Self {
        self.services.insert(name.into(), store.into());
        self
    }

    /// Only whoever knows this token is let in. Needed on an address that is not loopback.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Nothing can be changed through the endpoint.
    pub fn look_only(mut self) -> Self {
        self.look_only = true;
        self
    }

    /// Takes the address. Connections wait until [`Endpoint::serve`].
    ///
    /// # Errors
    ///
    /// When the address is not loopback and there is no token, or cannot be taken.
    pub async fn listen(self, address: SocketAddr) -> Result<Endpoint, Error> {
        let is_loopback = address.ip().is_loopback();
        if !is_loopback && self.token.is_none() {
            return Err(Error::open(format!(
                "the operator endpoint would be open to the network at `{address}`: give it a token, or \
                 have it listen on loopback (127.0.0.1) and reach it through a tunnel"
            )));
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::listen(format!(
                "the operator endpoint cannot listen at `{address}`: {error}"
            ))
        })?;
        let local = listener.local_addr().map_err(|error| {
            Error::listen(format!("the operator endpoint has no address: {error}"))
        })?;
        Ok(Endpoint {
            listener,
            address: local,
            shared: Shared {
                guard: Guard {
                    token: self.token,
                    is_loopback,
                    look_only: self.look_only,
                },
                operated: Operated {
                    services: self.services,
                    broker: self.broker,
                    holds: Holds::default(),
                },
                complained: Mutex::default(),
            },
        })
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator")
            .field("services", &self.services.keys())
            .field("token", &self.token)
            .field("look_only", &self.look_only)
            .finish_non_exhaustive()
    }
}

/// An endpoint that has its address.
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    shared: Shared,
}

struct Shared {
    guard: Guard,
    operated: Operated,
    complained: Mutex<Option<Instant>>,
}

impl Endpoint {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a service, as [`Operator::service`]: for a process that takes its addresses before it opens
    /// its stores.
    pub fn service(mut self, name: impl Into<String>, store: impl Into<Arc<dyn Store>>) -> Self {
        self.shared
            .operated
            .services
            .insert(name.into(), store.into());
        self
    }

    /// Answers until `stop` resolves; then lets requests under way finish, and gives back what is held.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self {
            listener, shared, ..
        } = self;
        let shared = Arc::new(shared);
        let under_way = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tidy = interval(TIDY_EVERY);
        let mut stop = std::pin::pin!(stop);
        loop {
            let accept = async {
                // Cannot be closed: it is ours.
                let room = Arc::clone(&room).acquire_owned().await;
                (listener.accept().await, room)
            };
            let (accepted, room) = tokio::select! {
                accepted = accept => accepted,
                _ = tidy.tick() => {
                    shared.operated.holds.give_back_idle();
                    while connections.try_join_next().is_some() {}
                    continue;
                }
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = under_way.watch(connection(stream, peer, &shared));
                    connections.spawn(async move {
                        let _room = room;
                        match timeout(CONNECTION_TIME_MAX, connection).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => {
                                debug!(%error, "an operator's connection ended badly")
                            }
                            Err(_) => debug!("an operator's connection took too long"),
                        }
                    });
                }
                Err(error) => {
                    // No file handles are left, say: connections that end will bring some.
                    warn!(%error, "an operator's connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        if timeout(FINISH_TIME_MAX, under_way.shutdown())
            .await
            .is_err()
        {
            debug!("an operator's requests were still under way after {FINISH_TIME_MAX:?}");
        }
        connections.shutdown().await;
        for held in shared.operated.holds.take_all().await {
            if let Err(error) = held.release().await {
                debug!(%error, "letters go back with the connection");
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + use<> {
    let _ = stream.set_nodelay(true);
    let shared = Arc::clone(shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.respond(request, peer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .keep_alive(false);
    http.serve_connection(TokioIo::new(stream), service)
}

impl Shared {
    async fn respond(
        &self,
        request: HttpRequest<Incoming>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        match self.answer(request, peer).await {
            Ok(answer) => response(StatusCode::OK, answer),
            Err((status, why)) => {
                if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
                    self.complain(peer, why);
                }
                let said = serde_json::json!({ "error": why });
                response(status, said.to_string().into_bytes())
            }
        }
    }

    async fn answer(
        &self,
        request: HttpRequest<Incoming>,
        peer: SocketAddr,
    ) -> Result<Vec<u8>, Refusal> {
        let (head, body) = request.into_parts();
        let may_change = self.guard.admit(&head)?;
        let body = Limited::new(body, REQUEST_BYTES_MAX).collect();
        let body = match timeout(REQUEST_TIME_MAX, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                return Err((
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the request is too large, or broke off",
                ));
            }
            Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the request took too long")),
        };
        let Ok(request) = serde_json::from_slice::<Request>(&body) else {
            return Err((
                StatusCode::BAD_REQUEST,
                "this endpoint does not know what is asked; its version and the command's differ",
            ));
        };
        drop(body);
        match (request.changes(), may_change) {
            (true, false) => {
                return Err((StatusCode::FORBIDDEN, "a change is asked where one looks"));
            }
            (true, true) => info!(%peer, what = request.name(), "an operator changes something"),
            (false, _) => debug!(%peer, what = request.name(), "an operator looks"),
        }
        let answer = timeout(WORK_TIME_MAX, self.operated.answer(request)).await;
        Ok(answer.unwrap_or_else(|_| {
            let why = format!("the service did not answer within {WORK_TIME_MAX:?}");
            failed(Failure::new("unavailable", why))
        }))
    }

    /// Says that somebody is not let in, not more often than [`COMPLAIN_EVERY`].
    fn complain(&self, peer: SocketAddr, why: &str) {
        let mut complained = self.complained.lock();
        if complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            *complained = Some(Instant::now());
            warn!(%peer, why, "the operator endpoint has refused a request");
        }
    }
}

fn response(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
