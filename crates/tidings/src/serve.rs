//! Running a service: from a router to tasks, and back to rest.
//!
//! Every task is held by the future of [`Serve`]; dropping it stops them all. A graceful shutdown
//! goes downstream: first nothing more is received, then the handlers under way finish, then the
//! relay publishes what they sent.

use std::{error::Error as StdError, fmt, future::IntoFuture, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    BoxError, BoxFuture, Deliveries, Router, Store, Subscription, Transport, TransportError,
    consumer::{Consumer, Counts, POSTPONED_LOG_EVERY},
    handler::Effects,
    publish::Sender,
    relay::Relay,
    router::prefetch,
    telemetry,
    throttle::Throttle,
    upkeep,
};

/// What a shutdown leaves the relay at least, when the handlers took all the time there was.
const FLUSH_MIN: Duration = Duration::from_secs(1);

/// Runs `router` on `transport` when it is awaited: declares what it needs, handles messages, and
/// publishes what its outbox holds, until it is told to stop
/// ([`with_graceful_shutdown`](Serve::with_graceful_shutdown)).
///
/// It waits while the broker cannot be reached, at the start and later. The transport may be shared
/// with other services of the process (an `Arc`), so it is not closed at the end: who made it may
/// call [`close`](Transport::close).
///
/// # Panics
///
/// When a handler takes something that the router was not given; the message says what to add.
#[track_caller]
pub fn serve<T: Transport>(transport: T, router: Router) -> Serve {
    router.check();
    Serve {
        transport: Arc::new(transport),
        router,
        shutdown: Box::pin(std::future::pending()),
        ready: CancellationToken::new(),
    }
}

/// A service that runs when it is awaited; from [`serve`].
#[must_use = "a service runs when it is awaited"]
pub struct Serve {
    transport: Arc<dyn Transport>,
    router: Router,
    shutdown: BoxFuture<'static, ()>,
    ready: CancellationToken,
}

impl Serve {
    /// Stops in good order when `signal` resolves: receives nothing more, lets the handlers under
    /// way finish, publishes what is in the outbox, all within the router's
    /// [`shutdown_timeout`](Router::shutdown_timeout).
    pub fn with_graceful_shutdown<F>(mut self, signal: F) -> Self
    where
        F: Future + Send + 'static,
    {
        self.shutdown = Box::pin(async move {
            signal.await;
        });
        self
    }

    /// Resolves when everything is declared and subscribed (for readiness probes, and for tests).
    /// Never, if the service does not come so far.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ready.clone().cancelled_owned()
    }
}

impl IntoFuture for Serve {
    type Output = Result<(), ServeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl Serve {
    async fn run(self) -> Result<(), ServeError> {
        let Self {
            transport,
            router,
            mut shutdown,
            ready,
        } = self;
        let name = router.consumer.to_string();
        let started = tokio::select! {
            () = &mut shutdown => return Ok(()),
            started = subscribe(&*transport, &router) => started,
        };
        let deliveries = started.map_err(|error| ServeError::new(&name, error))?;
        telemetry::describe();
        let mut service = Service::start(transport, router, deliveries);
        ready.cancel();
        info!("service `{name}` is ready");

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            Some(ended) = service.consumers.join_next() => ended.unwrap_or_else(|_| {
                Err(TransportError::fatal("a consumer's task panicked; this is a bug in `tidings`"))
            }),
        };
        service.stop().await;
        ended.map_err(|error| ServeError::new(&name, error.into()))
    }
}

/// Checks what the engine can do, declares, and subscribes.
async fn subscribe(
    transport: &dyn Transport,
    router: &Router,
) -> Result<Vec<Deliveries>, BoxError> {
    let features = transport.features();
    if !features.delayed_retry && !router.retry.delays().is_empty() && !router.routes.is_empty() {
        let engine = features.engine;
        return Err(format!(
            "`{engine}` cannot delay a retry, but the retry policy asks for it; let all attempts \
             follow at once with `.retry(RetryPolicy::default().attempts(3).fast_attempts(3))`"
        )
        .into());
    }
    transport.declare(&router.topology()).await?;
    let mut all = Vec::with_capacity(router.routes.len());
    for route in &router.routes {
        let subscription = Subscription {
            queue: route.queue.to_string().into(),
            prefetch: prefetch(router.concurrency),
        };
        all.push(transport.subscribe(subscription).await?);
    }
    Ok(all)
}

/// The tasks of a service.
struct Service {
    name: String,
    consumers: JoinSet<Result<(), TransportError>>,
    stop_consumers: CancellationToken,
    /// Relay and upkeep.
    outbox: JoinSet<()>,
    stop_outbox: CancellationToken,
    shutdown_timeout: Duration,
}

impl Service {
    fn start(transport: Arc<dyn Transport>, mut router: Router, all: Vec<Deliveries>) -> Self {
        let name = router.consumer.to_string();
        let instance = format!("{name}/{}", Uuid::new_v4().simple());
        let mut service = Self {
            name,
            consumers: JoinSet::new(),
            stop_consumers: CancellationToken::new(),
            outbox: JoinSet::new(),
            stop_outbox: CancellationToken::new(),
            shutdown_timeout: router.limits.shutdown_timeout,
        };
        if let Some(store) = &router.store {
            service.tend(store, &transport, &router, instance.clone());
        }
        let effects = Arc::new(Effects {
            sender: Sender {
                source: router.consumer.clone(),
            },
            transport,
            attempt_timeout: router.limits.attempt_timeout,
        });
        let states = Arc::new(std::mem::take(&mut router.states));
        for (route, deliveries) in router.routes.iter().zip(all) {
            let consumer = Consumer {
                queue: Arc::clone(&route.queue),
                name: route.name,
                is_subscribed: route.topic.is_some(),
                is_ordered: router.is_ordered,
                accept: route.accept,
                service: router.service(route, &effects),
                states: Arc::clone(&states),
                store: router.store.clone(),
                concurrency: router.concurrency.get().into(),
                instance: instance.as_str().into(),
                counts: Counts::new(&route.queue),
                postponed: Mutex::new(Throttle::new(POSTPONED_LOG_EVERY)),
            };
            let stop = service.stop_consumers.clone();
            service.consumers.spawn(consumer.run(deliveries, stop));
        }
        // A service without handlers only publishes; it must not end because nothing is consumed.
        if service.consumers.is_empty() {
            let stop = service.stop_consumers.clone();
            service.consumers.spawn(async move {
                stop.cancelled().await;
                Ok(())
            });
        }
        service
    }

    fn tend(
        &mut self,
        store: &Arc<dyn Store>,
        transport: &Arc<dyn Transport>,
        router: &Router,
        instance: String,
    ) {
        let (name, limits, stop) = (self.name.clone(), router.limits, &self.stop_outbox);
        let relay = Relay::new(&name, instance, Arc::clone(store), Arc::clone(transport));
        self.outbox
            .spawn(relay.run(stop.clone(), limits.shutdown_timeout.max(FLUSH_MIN)));
        let watch = upkeep::watch(name, Arc::clone(store), limits.outbox_alarm, stop.clone());
        self.outbox.spawn(watch);
        let forget = upkeep::forget(Arc::clone(store), limits.claim_window, stop.clone());
        self.outbox.spawn(forget);
    }

    async fn stop(mut self) {
        let deadline = Instant::now() + self.shutdown_timeout;
        self.stop_consumers.cancel();
        let finish = async { while self.consumers.join_next().await.is_some() {} };
        if timeout_at(deadline, finish).await.is_err() {
            warn!(
                service = self.name,
                "handlers were still running after the `shutdown_timeout` of {:?}; their messages \
                 come again after the next start",
                self.shutdown_timeout
            );
            self.consumers.shutdown().await;
        }
        self.stop_outbox.cancel();
        let deadline = deadline.max(Instant::now() + FLUSH_MIN);
        let finish = async { while self.outbox.join_next().await.is_some() {} };
        if timeout_at(deadline, finish).await.is_err() {
            self.outbox.shutdown().await;
        }
    }
}

/// Why a service did not start, or stopped by itself.
#[derive(Debug)]
pub struct ServeError {
    service: String,
    error: BoxError,
}

impl ServeError {
    fn new(service: &str, error: BoxError) -> Self {
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
