//! How this process is: `/health/live`, `/health/ready`, `/metrics`; and what it says, `/openapi.json` to its clients,
//! `/asyncapi.json` to other services.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::join_all;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use shop_kit::{Db, Service, sql};

use crate::broker::Connection;

/// How long a database may take to say that it is there.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the metrics tidy up what they measured.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Bounds for every histogram in seconds: from a fast commit to a slow retry.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What the probes look at.
#[derive(Clone)]
pub(crate) struct Probes {
    databases: Vec<(&'static str, Db)>,
    broker: Option<Connection>,
    subscribed: Arc<AtomicBool>,
    metrics: PrometheusHandle,
}

impl Probes {
    pub(crate) fn new(
        services: &[Service],
        broker: &Connection,
        metrics: PrometheusHandle,
    ) -> Self {
        let databases = services
            .iter()
            .filter_map(|service| Some((service.name, service.db.clone()?)))
            .collect();
        let speaks = services.iter().any(|service| service.messages.is_some());
        Self {
            databases,
            broker: speaks.then(|| broker.clone()),
            subscribed: Arc::new(AtomicBool::new(!speaks)),
            metrics,
        }
    }

    /// From now on every service has its queues.
    pub(crate) fn set_subscribed(&self) {
        self.subscribed.store(true, Ordering::Relaxed);
    }
}

/// Makes this process measure itself. Must be called before anything is measured.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(UPKEEP_EVERY);
        loop {
            every.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

pub(crate) fn routes(probes: Probes) -> Router {
    Router::new()
        .route(
            "/health/live",
            get(|| async { Health::of([("process", UP)], []) }),
        )
        .route("/health/ready", get(ready))
        .route("/metrics", get(measured))
        .route("/openapi.json", get(description))
        .route("/asyncapi.json", get(contracts))
        .with_state(probes)
}

const UP: &str = "up";
const DOWN: &str = "down";

const fn state(up: bool) -> &'static str {
    if up { UP } else { DOWN }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    checks: BTreeMap<String, &'static str>,
}

impl Health {
    /// As it is when everything in `needed` is up. What is in `told` is only told.
    fn of<N: Into<String>>(
        needed: impl IntoIterator<Item = (N, &'static str)>,
        told: impl IntoIterator<Item = (N, &'static str)>,
    ) -> Self {
        let named = |(name, state): (N, _)| (name.into(), state);
        let mut checks: BTreeMap<_, _> = needed.into_iter().map(named).collect();
        let up = checks.values().all(|state| *state == UP);
        checks.extend(told.into_iter().map(named));
        Self {
            status: state(up),
            checks,
        }
    }
}

impl IntoResponse for Health {
    fn into_response(self) -> Response {
        let status = match self.status {
            UP => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}

/// The answers of `/health/live` and `/health/ready` while the services are being opened.
pub(crate) fn starting(uri: &Uri) -> Response {
    match uri.path() {
        "/health/live" => Health::of([("process", UP)], []).into_response(),
        _ => Health::of([("services", DOWN)], []).into_response(),
    }
}

/// Ready to answer calls and take orders: the databases of its services answer. The broker may be
/// away: orders are taken all the same, and wait in the outbox, so a load balancer must go on
/// sending them. How the broker is stands beside it.
async fn ready(State(probes): State<Probes>) -> Health {
    let databases = probes.databases.iter().map(async |(service, db)| {
        let there = tokio::time::timeout(DATABASE_TIMEOUT, db.read(sql("select 1"))).await;
        let up = matches!(there, Ok(Ok(_)));
        (format!("database of {service}"), state(up))
    });
    let databases = join_all(databases).await;
    let broker = probes.broker.iter().flat_map(|broker| {
        let subscribed = probes.subscribed.load(Ordering::Relaxed);
        [
            ("broker".to_owned(), state(broker.is_connected())),
            ("subscriptions".to_owned(), state(subscribed)),
        ]
    });
    Health::of(databases, broker)
}

async fn measured(State(probes): State<Probes>) -> impl IntoResponse {
    if let Some(broker) = &probes.broker {
        metrics::gauge!("shop_broker_connected").set(f64::from(u8::from(broker.is_connected())));
    }
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, probes.metrics.render())
}

async fn description() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        include_str!("openapi.json"),
    )
}

/// A test writes it, from the types of the messages (`tests/contracts`).
async fn contracts() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        include_str!("asyncapi.json"),
    )
}
