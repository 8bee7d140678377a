//! The HTTP server of this process: the services' routes, the probes, and problem details for
//! everything else.

use std::{future::IntoFuture, net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow};
use axum::{Router, http::Uri};
use shop_kit::{Problem, Service};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::probes::{self, Probes};

/// How long requests under way may take to finish once the process is told to stop. A stream of
/// events does not finish by itself.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

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
    services
        .iter()
        .fold(probes::routes(probes), |router, service| {
            router.merge(service.http.clone())
        })
        .fallback(nothing_here)
        .method_not_allowed_fallback(|| async {
            Problem::wrong_method("this path answers to other methods; see /openapi.json")
        })
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
    routes: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let server = axum::serve(listener, routes)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(FINISH_TIMEOUT).await;
    };
    tokio::select! {
        ended = server => ended.context("the HTTP server stopped"),
        () = too_late => Ok(()),
    }
}
