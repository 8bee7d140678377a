//! The HTTP server of this process: the services' routes, the probes, and problem details for
//! everything else.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::anyhow;
use axum::{
    Router,
    extract::{Request, State},
    http::Uri,
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use shop_kit::{Problem, Service};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    bounds,
    probes::{self, Probes},
    services::Name,
};

/// How long requests under way may take to finish once the process is told to stop. A stream of
/// events does not finish by itself.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes the address. Connections wait until [`serve`].
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            anyhow!(
                "port {} for HTTP is taken by another program; stop it, or choose another address \
                 with `--listen` (port 0 picks a free one)",
                address.port()
            )
        } else {
            anyhow::Error::from(error).context(format!(
                "cannot listen for HTTP on `{address}`; choose another address with `--listen`"
            ))
        }
    })
}

pub(crate) fn routes(services: &[Service], probes: Probes) -> Router {
    let bounded = axum::middleware::from_fn(bounds::keep);
    let own = probes::routes(probes).route_layer(bounded.clone());
    services
        .iter()
        .filter(|service| service.http.has_routes())
        .fold(own, |router, service| {
            let routes = service.http.clone();
            // The storefront passes calls on to services that keep the same bounds themselves, and
            // has a longer one for them.
            router.merge(match service.name {
                name if name == Name::Storefront.as_str() => routes,
                _ => routes.route_layer(bounded.clone()),
            })
        })
        .fallback(nothing_here)
        .method_not_allowed_fallback(|| async {
            Problem::wrong_method("this path answers to other methods; see /openapi.json")
        })
}

/// What answers until the services are opened, and then they.
#[derive(Clone, Default)]
pub(crate) struct Site {
    services: Arc<OnceLock<Router>>,
}

impl Site {
    /// From now on these answer.
    pub(crate) fn open(&self, routes: Router) {
        let _ = self.services.set(routes);
    }

    fn routes(self) -> Router {
        Router::new().fallback(current).with_state(self)
    }
}

async fn current(State(site): State<Site>, request: Request) -> Response {
    if names_nul(request.uri()) {
        let problem = Problem::malformed("nothing has a NUL (`%00`) in its name; leave it out");
        return problem.into_response();
    }
    match site.services.get() {
        Some(services) => match services.clone().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        },
        None if request.uri().path().starts_with("/health/") => probes::starting(request.uri()),
        None => Problem::unavailable("the services are being opened; try again")
            .retry_soon()
            .into_response(),
    }
}

/// No id has a NUL, and PostgreSQL cannot even be asked for one.
fn names_nul(uri: &Uri) -> bool {
    uri.path().contains("%00") || uri.query().is_some_and(|query| query.contains("%00"))
}

async fn nothing_here(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::no_route(format_args!(
        "nothing answers at `{path}`; see /openapi.json"
    ))
}

/// Answers until `stop`, then lets requests under way finish.
pub(crate) async fn serve(
    listener: TcpListener,
    site: Site,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let routes = site.routes();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds::HEAD_TIMEOUT);
    let under_way = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No file handles are left, say: connections that end will bring some.
                tracing::warn!(%error, "a connection for HTTP could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(routes.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = under_way.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection for HTTP ended badly");
            }
        });
    }
    drop(listener);
    let finished = tokio::time::timeout(FINISH_TIMEOUT, under_way.shutdown()).await;
    if finished.is_err() {
        tracing::debug!("connections were still open after {FINISH_TIMEOUT:?}");
    }
    Ok(())
}
