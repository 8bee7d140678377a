//! Running services: from routers to tasks, and back to rest.
//!
//! Every task is held by the future of [`Serve`]; dropping it stops them all. Everything that runs is
//! watched: a task that ends by itself takes the service down with its reason. A graceful shutdown
//! goes downstream: first nothing more is received, then the handlers under way finish, then the
//! relay publishes what they sent.

mod failure;

use std::{
    future::IntoFuture,
    num::NonZeroU16,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, RwLock},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

pub use self::failure::ServeError;
use crate::{
    BoxError, BoxFuture, Deliveries, Router, Store, Subscription, Topology, Transport,
    consumer::Consumer,
    handler::{Effects, panicked},
    handlers,
    handling::{Handles, Handling},
    partitions::Share,
    publish::Sender,
    relay::Relay,
    router::prefetch,
    saga,
    schedule::{Declared, Scheduler, declared},
    steps, telemetry, upkeep,
    worker::Worker,
};

/// How many deliveries of one partition are out.
const PARTITION_PREFETCH: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// What a shutdown leaves the relay at least, when the handlers took all the time there was.
const FLUSH_MIN: Duration = Duration::from_secs(1);

/// How long it may take after that to give up lanes and rows.
const RELEASE_MAX: Duration = Duration::from_secs(1);

/// Runs one router, or several, on `transport` when it is awaited: declares what they need, handles
/// messages, and publishes what their outboxes hold, until it is told to stop
/// ([`with_graceful_shutdown`](Serve::with_graceful_shutdown)).
///
/// It waits while the broker cannot be reached, at the start and later. The transport may be shared
/// with other services of the process (an `Arc`), so it is not closed at the end: who made it may
/// call [`close`](Transport::close).
///
/// # Panics
///
/// When a handler takes something that its router was not given; the message says what to add.
#[track_caller]
pub fn serve<T: Transport>(transport: T, routers: impl IntoRouters) -> Serve {
    let routers = routers.into_routers();
    for router in &routers {
        router.check(); // Not in a closure, which would hide the caller's line.
        router.keep();
    }
    Serve {
        transport: Arc::new(transport),
        routers,
        first: Topology::new(),
        shutdown: Box::pin(std::future::pending()),
        ready: CancellationToken::new(),
    }
}

impl Router {
    /// The store it was given with [`transactional`](Router::transactional), for programs that put
    /// another one around it before they serve it (`tidings-testing` watches it, for example).
    pub fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.as_ref()
    }
}

/// One router or several, for [`serve`].
pub trait IntoRouters {
    /// The routers.
    fn into_routers(self) -> Vec<Router>;
}

impl IntoRouters for Router {
    fn into_routers(self) -> Vec<Router> {
        vec![self]
    }
}

impl IntoRouters for Vec<Router> {
    fn into_routers(self) -> Vec<Router> {
        self
    }
}

impl<const N: usize> IntoRouters for [Router; N] {
    fn into_routers(self) -> Vec<Router> {
        self.into()
    }
}

/// Services that run when it is awaited; from [`serve`].
#[must_use = "a service runs when it is awaited"]
pub struct Serve {
    transport: Arc<dyn Transport>,
    routers: Vec<Router>,
    first: Topology,
    shutdown: BoxFuture<'static, ()>,
    ready: CancellationToken,
}

impl Serve {
    /// Stops in good order when `signal` resolves: receives nothing more, lets the handlers under
    /// way finish, publishes what is in the outbox, all within the longest
    /// [`shutdown_timeout`](Router::shutdown_timeout) of the routers.
    pub fn with_graceful_shutdown<F>(mut self, signal: F) -> Self
    where
        F: Future + Send + 'static,
    {
        self.shutdown = Box::pin(async move {
            signal.await;
        });
        self
    }

    /// Declares `topology` as well, before anything is received or published: the queues of services
    /// that may never have run yet, so that what is announced waits for them there.
    pub fn with_topology(mut self, topology: Topology) -> Self {
        self.first = self.first.merge(topology);
        self
    }

    /// Everything that is going to be declared.
    pub fn topology(&self) -> Topology {
        let all = self.routers.iter().map(Router::topology);
        all.fold(self.first.clone(), Topology::merge)
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
        let topology = self.topology();
        let Self {
            transport,
            routers,
            mut shutdown,
            ready,
            ..
        } = self;
        let names: Vec<_> = routers.iter().map(|router| &*router.consumer).collect();
        let name = names.join(", ");
        let started = tokio::select! {
            () = &mut shutdown => return Ok(()),
            started = subscribe(&*transport, &routers, &topology) => started,
        };
        let (deliveries, unwritten) = started.map_err(|error| ServeError::new(&name, error))?;
        telemetry::describe();
        let mut service = Service::start(&name, &transport, routers, deliveries);
        for report in unwritten {
            let stop = service.stop_upkeep.clone();
            service.keep("the record of handlers", report.keep_writing(stop));
        }
        ready.cancel();
        info!("service `{name}` is ready");

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            ended = service.ended() => Err(ended),
        };
        service.stop().await;
        ended.map_err(|error| ServeError::new(&name, error))
    }
}

/// What routers receive, and what they could not write down about their handlers yet.
type Subscribed = (Vec<Vec<Deliveries>>, Vec<handlers::Report>);

/// Checks what the engine can do and whether open sagas can go on, writes down the handlers, declares, and
/// subscribes.
async fn subscribe(
    transport: &dyn Transport,
    routers: &[Router],
    topology: &Topology,
) -> Result<Subscribed, BoxError> {
    check_features(transport, topology)?;
    for router in routers {
        router.check_log()?;
        saga::check::at_start(router).await?;
    }
    // Before it is declared: an operator may have to do that.
    let unwritten = handlers::write_down(routers).await;
    transport.declare(topology).await?;
    let mut all = Vec::with_capacity(routers.len());
    for router in routers {
        let mut of_router = Vec::with_capacity(router.routes.len());
        for route in router
            .routes
            .iter()
            .filter(|route| router.group_of(route).is_none())
        {
            let subscription = Subscription::new(route.queue.to_string())
                .prefetch(prefetch(router.concurrency_of(route)));
            of_router.push(transport.subscribe(subscription).await?);
        }
        all.push(of_router);
    }
    Ok((all, unwritten))
}

fn check_features(transport: &dyn Transport, topology: &Topology) -> Result<(), BoxError> {
    let features = transport.features();
    let engine = features.engine;
    for group in &topology.groups {
        if group.partitions.get() > features.partitions_max {
            return Err(format!(
                "the ordered group `{}` has {} partitions, and `{engine}` can have {}; take fewer, \
                 or ask for no order",
                group.name, group.partitions, features.partitions_max
            )
            .into());
        }
        let sources = group.topics.len() + group.commands.len();
        if features.shares_partitions && sources > 1 {
            return Err(format!(
                "the ordered group `{}` takes messages from {sources} places (topics {:?}, commands {:?}), and \
                 `{engine}` keeps an order within a topic only; let its events share a topic with \
                 `#[event(topic = \"…\")]`, or ask for order of each handler alone",
                group.name, group.topics, group.commands
            )
            .into());
        }
    }
    for queue in &topology.queues {
        let name = &queue.name;
        if name.len() > features.name_bytes_max {
            return Err(format!(
                "the queue `{name}` has a name of {} bytes, and `{engine}` takes {}; shorten the \
                 router's or the message's",
                name.len(),
                features.name_bytes_max
            )
            .into());
        }
        if let Some(delay) = queue
            .delays
            .iter()
            .find(|delay| **delay > features.delay_max)
        {
            return Err(format!(
                "retries of `{name}` are to wait {delay:?}, and `{engine}` can delay {:?} at most; \
                 give its router a store with `.transactional(store)`, in which they wait, or let \
                 all attempts follow at once with `.retry(Retry::default().attempts(3)\
                 .fast_attempts(3))`",
                features.delay_max
            )
            .into());
        }
    }
    Ok(())
}

type Tasks = JoinSet<Result<(), BoxError>>;

/// The tasks of a service.
struct Service {
    name: String,
    /// Consumers and workers: what handles messages.
    handling: Tasks,
    stop_handling: CancellationToken,
    /// Cancelled when there is no time left for what is being handled.
    cut_off: CancellationToken,
    /// Held by what is handled, wholly by what must be alone.
    /// `None` if nobody has a store: then nobody has to be.
    company: Option<Arc<RwLock<()>>>,
    /// Relays and upkeep.
    upkeep: Tasks,
    stop_upkeep: CancellationToken,
    /// Until when the relays may go on after they were stopped.
    flush_until: Arc<OnceLock<Instant>>,
    shutdown_timeout: Duration,
}

impl Service {
    fn start(
        name: &str,
        transport: &Arc<dyn Transport>,
        routers: Vec<Router>,
        deliveries: Vec<Vec<Deliveries>>,
    ) -> Self {
        let shutdown_timeout = routers.iter().map(|router| router.limits.shutdown_timeout);
        let has_store = routers.iter().any(|router| router.store.is_some());
        let mut service = Self {
            name: name.to_owned(),
            handling: JoinSet::new(),
            stop_handling: CancellationToken::new(),
            cut_off: CancellationToken::new(),
            company: has_store.then(Arc::default),
            upkeep: JoinSet::new(),
            stop_upkeep: CancellationToken::new(),
            flush_until: Arc::default(),
            shutdown_timeout: shutdown_timeout.max().unwrap_or_default(),
        };
        let mut relayed: Vec<Arc<dyn Store>> = Vec::new();
        let declared: Vec<Vec<Declared>> =
            routers.iter().map(|it| declared(&routers, it)).collect();
        let declared = declared.into_iter();
        for ((router, deliveries), declared) in routers.into_iter().zip(deliveries).zip(declared) {
            let instance = format!("{}/{}", router.consumer, Uuid::new_v4().simple());
            if let Some(store) = &router.store
                && !relayed.iter().any(|known| Arc::ptr_eq(known, store))
            {
                relayed.push(Arc::clone(store));
                service.relay(store, transport, &router, &instance);
                service.schedule(store, declared, &instance);
            }
            if let Some(store) = &router.store
                && !router.sagas.is_empty()
            {
                let stop = service.stop_upkeep.clone();
                let clock = saga::run(Arc::clone(store), &router, instance.clone(), stop);
                service.keep("the sagas' clock", clock);
                let stop = service.stop_upkeep.clone();
                let watch = saga::watch(Arc::clone(store), &router, stop);
                service.keep("the sagas' watch", watch);
                let stop = service.stop_upkeep.clone();
                let checks =
                    saga::answer_checks(Arc::clone(store), &router, instance.clone(), stop);
                service.keep("the sagas' checks", checks);
            }
            service.handle(transport, router, deliveries, &instance);
        }
        service
    }

    /// A task of the upkeep.
    fn keep(&mut self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        watch(&mut self.upkeep, &self.stop_upkeep, what, task);
    }

    /// Starts what publishes and measures an outbox.
    fn relay(
        &mut self,
        store: &Arc<dyn Store>,
        transport: &Arc<dyn Transport>,
        router: &Router,
        instance: &str,
    ) {
        let name = router.consumer.to_string();
        let relay = Relay::new(
            &name,
            instance.to_owned(),
            Arc::clone(store),
            Arc::clone(transport),
            router.limits.held_max,
        );
        let (stop, flush_until) = (self.stop_upkeep.clone(), Arc::clone(&self.flush_until));
        self.keep("the relay", async move {
            relay.run(stop, &flush_until).await;
        });
        let alarm = router.limits.outbox_alarm;
        let measuring =
            upkeep::watch_outbox(name, Arc::clone(store), alarm, self.stop_upkeep.clone());
        self.keep("the outbox's watch", measuring);
        if store.log().is_some_and(|log| log.kept().is_some()) {
            let stop = self.stop_upkeep.clone();
            let dropping = upkeep::drop_old_events(Arc::clone(store), stop);
            self.keep("the log's upkeep", dropping);
        }
        let stop = self.stop_upkeep.clone();
        let forgetting = steps::forget(Arc::clone(store), instance.to_owned(), stop);
        self.keep("the removal of old steps", forgetting);
    }

    /// Starts what sends by the clock.
    fn schedule(&mut self, store: &Arc<dyn Store>, declared: Vec<Declared>, instance: &str) {
        let scheduler = Scheduler {
            store: Arc::clone(store),
            instance: instance.to_owned(),
            declared,
        };
        let stop = self.stop_upkeep.clone();
        self.keep("the scheduler", scheduler.run(stop));
    }

    /// Starts the consumers of a router, and the worker for what waits in its store.
    fn handle(
        &mut self,
        transport: &Arc<dyn Transport>,
        mut router: Router,
        deliveries: Vec<Deliveries>,
        instance: &str,
    ) {
        let effects = Arc::new(Effects {
            sender: Sender {
                source: router.consumer.clone(),
                on_send: router.on_send.clone(),
            },
            transport: Arc::clone(transport),
        });
        let states = Arc::new(std::mem::take(&mut router.states));
        let deferred = Arc::new(Notify::new());
        let mut handlings: Vec<Arc<Handling>> = Vec::with_capacity(router.routes.len());
        let mut deliveries = deliveries.into_iter();
        for route in &router.routes {
            let handling = Arc::new(Handling::new(Handles {
                router: &router,
                route,
                effects: &effects,
                states: &states,
                company: self.company.as_ref(),
                instance,
                deferred: &deferred,
            }));
            handlings.push(Arc::clone(&handling));
            if handling.group.is_some() {
                continue;
            }
            let Some(deliveries) = deliveries.next() else {
                continue; // There is one for each handler without a group.
            };
            let consumer = Consumer {
                handling,
                transport: Arc::clone(transport),
                prefetch: prefetch(router.concurrency_of(route)),
            };
            let running = consumer.run(deliveries, self.stop_handling.clone());
            self.receive(async move { Ok(running.await?) });
        }
        let groups = router.groups();
        let (Some(store), Some(company)) = (router.store, self.company.clone()) else {
            return;
        };
        for group in groups {
            let of_group = |it: &&Arc<Handling>| it.group.as_deref() == Some(&*group.name);
            let of_group: Vec<_> = handlings.iter().filter(of_group).cloned().collect();
            let share = Share::new(
                instance,
                group,
                Arc::clone(&store),
                Arc::clone(transport),
                of_group,
                PARTITION_PREFETCH,
            );
            self.receive(share.run(self.stop_handling.clone()));
        }
        let id = instance.to_owned();
        let worker = Worker::new(
            id,
            Arc::clone(&store),
            router.limits.lease,
            &handlings,
            deferred,
            company,
        );
        let working = worker.run(self.stop_handling.clone(), self.cut_off.clone());
        watch(
            &mut self.handling,
            &self.stop_handling,
            "the worker",
            working,
        );
        let consumers = router
            .routes
            .iter()
            .map(|route| (*route.queue).into())
            .collect();
        let forgetting = upkeep::forget(
            Arc::clone(&store),
            consumers,
            router.limits.claim_window,
            self.stop_upkeep.clone(),
        );
        self.keep("the inbox's upkeep", forgetting);
        let counting = upkeep::watch_handlers(
            store,
            router.consumer.to_string(),
            handlings,
            router.limits.deferred_count_max,
            self.stop_upkeep.clone(),
        );
        self.keep("the inbox's watch", counting);
    }

    /// Spawns what receives. What it has under way when it is cut off comes again.
    fn receive(&mut self, receiving: impl Future<Output = Result<(), BoxError>> + Send + 'static) {
        let cut_off = self.cut_off.clone();
        self.handling.spawn(async move {
            tokio::select! {
                ended = receiving => ended,
                () = cut_off.cancelled() => Ok(()),
            }
        });
    }

    /// Why the service cannot go on, once it cannot: one of its tasks has ended.
    async fn ended(&mut self) -> BoxError {
        let ended = tokio::select! {
            Some(ended) = self.handling.join_next() => ended,
            Some(ended) = self.upkeep.join_next() => ended,
            // A service without handlers and without a store.
            else => std::future::pending().await,
        };
        match ended {
            Ok(Ok(())) => "a task ended by itself; this is a bug in `tidings`".into(),
            Ok(Err(error)) => error,
            Err(error) => format!("a task failed: {error}").into(),
        }
    }

    async fn stop(mut self) {
        let deadline = Instant::now() + self.shutdown_timeout;
        self.stop_handling.cancel();
        if timeout_at(deadline, all_of(&mut self.handling))
            .await
            .is_err()
        {
            warn!(
                service = self.name,
                "handlers were still running after the `shutdown_timeout` of {:?}; their messages \
                 come again after the next start",
                self.shutdown_timeout
            );
            self.cut_off.cancel();
            let given_back = timeout_at(deadline + RELEASE_MAX, all_of(&mut self.handling));
            if given_back.await.is_err() {
                self.handling.shutdown().await;
            }
        }
        let flush_until = deadline.max(Instant::now() + FLUSH_MIN);
        let _ = self.flush_until.set(flush_until);
        self.stop_upkeep.cancel();
        let finish = all_of(&mut self.upkeep);
        if timeout_at(flush_until + RELEASE_MAX, finish).await.is_err() {
            self.upkeep.shutdown().await;
        }
    }
}

async fn all_of(tasks: &mut Tasks) {
    while tasks.join_next().await.is_some() {}
}

/// Spawns something that ends only when it is stopped: its end before that, or its panic, is an
/// error.
fn watch(
    tasks: &mut Tasks,
    stop: &CancellationToken,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move {
        match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) if stop.is_cancelled() => Ok(()),
            Ok(()) => Err(format!("{what} ended by itself; this is a bug in `tidings`").into()),
            Err(panic) => Err(panicked(what, &*panic).into()),
        }
    });
}
