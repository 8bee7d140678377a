//! The services of a world: started, crashed, started again.

use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use parking_lot::Mutex;
use tidings::{IntoRouters, Router, Store, Topology, Transport, serve};
use tidings_memory::MemoryTransport;
use tokio::task::JoinHandle;

use super::{
    CrashPoint, TestWorld,
    broker::{LISTENER, WatchedTransport},
    clock::Known,
    database::WatchedStore,
    watch::Life,
};

/// What a world can run: a router or several; or a function that makes them, plain or async, which
/// can be restarted.
pub trait Start<Kind> {
    /// What makes the routers, each time the service is started. `None` when it cannot again.
    fn into_maker(self) -> Maker;
}

/// Makes the routers of a service.
pub type Maker = Box<dyn FnMut() -> LocalBoxFuture<'static, Option<Vec<Router>>>>;

/// A router that was made already.
pub struct Given;
/// A function that makes one.
pub struct Made;
/// An async function that makes one.
pub struct MadeLater;

impl<R: IntoRouters> Start<Given> for R {
    fn into_maker(self) -> Maker {
        let mut routers = Some(self.into_routers());
        Box::new(move || Box::pin(std::future::ready(routers.take())))
    }
}

impl<F, R> Start<(Made, R)> for F
where
    F: FnMut() -> R + 'static,
    R: IntoRouters,
{
    fn into_maker(mut self) -> Maker {
        Box::new(move || Box::pin(std::future::ready(Some(self().into_routers()))))
    }
}

impl<F, U, R> Start<(MadeLater, U)> for F
where
    F: FnMut() -> U + 'static,
    U: Future<Output = R> + 'static,
    R: IntoRouters,
{
    fn into_maker(mut self) -> Maker {
        Box::new(move || {
            let made = self();
            Box::pin(async move { Some(made.await.into_routers()) })
        })
    }
}

/// A service, running or crashed.
pub(super) struct Running {
    maker: Maker,
    life: Arc<Life>,
    task: JoinHandle<()>,
    ended: Arc<Mutex<Option<String>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestWorld {
    /// Runs a service as [`serve`] does, until the end of the test or a crash. Resolves when it has
    /// subscribed. To [`restart`](Self::restart) it, give a function that makes the router.
    ///
    /// # Panics
    ///
    /// When the service cannot start.
    pub async fn run<Kind>(&self, service: impl Start<Kind>) {
        self.start(service.into_maker()).await;
    }

    async fn start(&self, mut maker: Maker) {
        let routers = maker().await.expect(
            "a service that was given as a router cannot be started again; give `run` a function \
             that makes the router: `world.run(move || router(store.clone()))`",
        );
        let life = self.watch.life();
        let connection = self.broker.connect();
        let routers = self.watched(routers, &life).await;
        let transport = WatchedTransport {
            inner: connection.clone(),
            life: Arc::clone(&life),
        };
        let serving = serve(transport, routers);
        self.prepare(&serving.topology()).await;
        let ready = serving.ready();
        let ended = Arc::new(Mutex::new(None));
        let task = tokio::spawn(live(
            serving.into_future(),
            Arc::clone(&life),
            connection,
            Arc::clone(&ended),
        ));
        let running = Running {
            maker,
            life,
            task,
            ended,
        };
        self.state.lock().running.push(running);
        let failed = async {
            loop {
                if let Err(why) = self.check_services() {
                    panic!("{why}");
                }
                self.pulse.demand();
                self.watch.changed.notified().await;
            }
        };
        tokio::select! {
            () = ready => {}
            () = failed => {}
        }
    }

    /// Puts watched stores around those of the routers; handles that are one stay one.
    async fn watched(&self, routers: Vec<Router>, life: &Arc<Life>) -> Vec<Router> {
        let mut known: Vec<(Arc<dyn Store>, Arc<dyn Store>)> = Vec::new();
        let mut watched = Vec::with_capacity(routers.len());
        for router in routers {
            let Some(store) = router.store().cloned() else {
                watched.push(router);
                continue;
            };
            let before = known.iter().find(|(inner, _)| Arc::ptr_eq(inner, &store));
            let around = match before {
                Some((_, around)) => Arc::clone(around),
                None => {
                    let is_virtual = self.know(&store).await;
                    let around: Arc<dyn Store> = Arc::new(WatchedStore {
                        inner: Arc::clone(&store),
                        life: Arc::clone(life),
                        time: is_virtual.then_some(self.time),
                    });
                    known.push((store, Arc::clone(&around)));
                    around
                }
            };
            watched.push(router.transactional(around));
        }
        watched
    }

    /// Remembers a database, and says whether its clock is the world's.
    async fn know(&self, store: &Arc<dyn Store>) -> bool {
        for known in self.databases() {
            if known.is(store).await.expect("the store answers") {
                return known.is_virtual;
            }
        }
        let known = Known::new(Arc::clone(store)).await;
        let known = known.expect("the store answers");
        let is_virtual = known.is_virtual && !self.is_real_time;
        self.state.lock().databases.push(Arc::new(known));
        is_virtual
    }

    /// Remembers the queues of a service, and listens to what it publishes.
    async fn prepare(&self, topology: &Topology) {
        let listener = topology.topics.iter().cloned();
        let listener = listener.fold(tidings::Queue::new(LISTENER), tidings::Queue::topic);
        let listening = Topology::new().queue(listener);
        let declared = self.broker.declare(&listening).await;
        declared.expect("the broker of the world is not closed");
        let mut state = self.state.lock();
        let queues = topology.queues.iter().map(|queue| queue.name.to_string());
        for queue in queues {
            if !state.queues.contains(&queue) {
                state.queues.push(queue);
            }
        }
        for group in &topology.groups {
            let partitions = (0..group.partitions.get()).map(|number| group.partition(number));
            for queue in partitions.chain([group.any()]) {
                if !state.queues.contains(&queue) {
                    state.queues.push(queue);
                }
            }
        }
    }

    /// Fails if a service has ended by itself.
    pub(super) fn check_services(&self) -> Result<(), String> {
        let state = self.state.lock();
        let ended = state.running.iter().find_map(|it| it.ended.lock().clone());
        ended.map_or(Ok(()), Err)
    }

    /// Services that are about to crash.
    pub(super) fn starting_or_ending(&self) -> Vec<String> {
        let state = self.state.lock();
        let ending = state.running.iter();
        let ending = ending.filter(|it| it.life.has_crashed() && !it.task.is_finished());
        ending
            .map(|_| "a service that crashes".to_owned())
            .collect()
    }

    /// Lets the next service that comes to `point` crash there: its tasks end where they are, its
    /// connection to the broker is cut. Wait for it with [`quiet`](Self::quiet), look at what is
    /// left, and [`restart`](Self::restart). A test that ends before the crash fails.
    pub fn crash_at(&self, point: CrashPoint) {
        self.watch.crash_at(Some(point));
    }

    /// Whether a service has crashed and was not restarted.
    pub fn has_crashed(&self) -> bool {
        let state = self.state.lock();
        state.running.iter().any(|it| it.life.has_crashed())
    }

    /// Lets all services crash, wherever they are.
    pub async fn crash(&self) {
        for running in &self.state.lock().running {
            running.life.crash();
        }
        while !self.starting_or_ending().is_empty() {
            self.pulse.demand();
            self.watch.changed.notified().await;
        }
    }

    /// Starts all services again; those that run crash first. The lanes of an outbox that a relay
    /// had when it crashed are free then, if the database has a clock of its own; in a store on the
    /// world's clock their lease ends after four seconds.
    ///
    /// # Panics
    ///
    /// When a crash was asked for and no service came there; when a service was given as a router
    /// instead of as a function that makes one.
    pub async fn restart(&self) {
        if let Some(point) = self.watch.crash_at(None) {
            panic!("the test asked for a crash at `{point:?}`, and no service came there");
        }
        self.crash().await;
        let crashed = std::mem::take(&mut self.state.lock().running);
        for mut running in crashed {
            let gone: Maker = Box::new(|| Box::pin(std::future::ready(None)));
            let maker = std::mem::replace(&mut running.maker, gone);
            let ended = running.life.end_leases().await;
            ended.expect("the store answers");
            self.start(maker).await;
        }
    }
}

/// From the start of a service to its crash.
async fn live(
    serving: impl Future<Output = Result<(), tidings::ServeError>>,
    life: Arc<Life>,
    connection: MemoryTransport,
    ended: Arc<Mutex<Option<String>>>,
) {
    let has_ended = tokio::select! {
        biased;
        () = life.crashed() => None,
        outcome = serving => Some(outcome),
    };
    // What it was made of is dropped now. Its tasks end with it.
    if let Some(outcome) = has_ended {
        let why = outcome.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
        *ended.lock() = Some(format!("a service has ended by itself: {why}"));
    }
    connection.close().await;
    life.end();
}
