//! One service of the shop, on a broker in the process and a real database. It can be killed at any
//! moment, as far as a task can be: it is dropped in the middle of what it does, and only what is
//! committed stays.
//!
//! (For handlers alone there is `tidings_testing::TestWorld`, with a clock of its own; this is for
//! what needs a real database, real time, and the service's HTTP.)

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shop_kit::{Db, Service, sql};
use tidings::{Outgoing, Queue, Store, Topology, Transport};
use tidings_memory::MemoryTransport;
use tokio::{sync::oneshot, task::JoinHandle};
use tower::ServiceExt;

/// How long anything may take that is waited for.
pub const SOON: Duration = Duration::from_secs(20);
/// What the service says is collected here.
const SAID: &str = "test.said";

/// A service and its broker.
pub struct OneService {
    make: Box<dyn Fn() -> LocalBoxFuture<'static, Service>>,
    broker: MemoryTransport,
    queues: Vec<Queue>,
    running: Option<Running>,
}

struct Running {
    http: axum::Router,
    db: Db,
    connection: MemoryTransport,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl OneService {
    /// Runs the service that `make` makes, each time it is started. `topology` is what it needs, and
    /// `says` the topics that it publishes to.
    pub async fn run<F>(topology: Topology, says: &[&'static str], make: F) -> Self
    where
        F: Fn() -> LocalBoxFuture<'static, Service> + 'static,
    {
        let broker = MemoryTransport::new();
        let queues = topology.queues.clone();
        let said = says.iter().copied();
        let said = said.fold(Queue::new(SAID), Queue::topic);
        broker.declare(&topology.queue(said)).await.unwrap();
        let mut service = Self {
            make: Box::new(make),
            broker,
            queues,
            running: None,
        };
        service.start().await;
        service
    }

    /// Starts it, at first or again.
    pub async fn start(&mut self) {
        let service = (self.make)().await;
        let connection = self.broker.connect();
        let (stop, stopped) = oneshot::channel();
        let serve = tidings::serve(connection.clone(), service.messages.unwrap())
            .with_graceful_shutdown(async { drop(stopped.await) });
        self.running = Some(Running {
            http: service.http,
            db: service.db.unwrap(),
            connection,
            stop,
            serving: tokio::spawn(async move { serve.await.unwrap() }),
        });
    }

    /// Ends it wherever it is. What it holds unsettled is delivered again.
    pub async fn kill(&mut self) {
        let running = self.running.take().expect("it runs");
        running.serving.abort();
        assert!(running.serving.await.unwrap_err().is_cancelled());
        running.connection.close().await;
    }

    /// Ends it in good order.
    pub async fn stop(mut self) {
        let running = self.running.take().expect("it runs");
        running.stop.send(()).unwrap();
        running.serving.await.unwrap();
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    /// Its database.
    pub fn db(&self) -> &Db {
        &self.running().db
    }

    /// A connection to its broker, for services beside it.
    pub fn connect(&self) -> MemoryTransport {
        self.broker.connect()
    }

    /// Publishes a message of somebody else.
    pub async fn publish(&self, message: Outgoing) {
        for outcome in self.broker.publish(vec![message]).await {
            outcome.unwrap();
        }
    }

    /// What it answers to a call, if it is a success.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        get(&self.running().http, path).await
    }

    /// Makes it forget which messages it has handled.
    pub async fn forget_inbox(&self) {
        let forget = sql("delete from tidings_inbox");
        assert!(self.db().execute(forget).await.unwrap() > 0);
    }

    /// What it has said: the names of messages, without their version, and the bodies.
    pub fn said(&self) -> Vec<(String, Value)> {
        // What was published again, because the service was killed before it heard of the confirm,
        // is one message.
        let mut ids = HashSet::new();
        let said = self.broker.messages(SAID).into_iter();
        let said = said.filter(|message| ids.insert(message.envelope.id.clone()));
        said.map(|message| {
            let body = serde_json::from_slice(&message.envelope.body).unwrap();
            let name = message.envelope.name.trim_end_matches(".v1").to_owned();
            (name, body)
        })
        .collect()
    }

    /// The names of what it has said about an order, in the order it was said.
    pub fn said_of(&self, order_id: &str) -> Vec<String> {
        let said = self.said().into_iter();
        let about = said.filter(|(_, body)| body["orderId"] == order_id);
        about.map(|(name, _)| name).collect()
    }

    /// The reasons of all dead letters.
    pub fn dead_letters(&self) -> Vec<String> {
        let queues = self.queues.iter();
        let dead = queues.flat_map(|queue| self.broker.dead_letters(&queue.name));
        dead.map(|message| message.history.last().unwrap().reason.clone())
            .collect()
    }

    /// Waits until everything that it was told is handled, and all that it said is published.
    pub async fn until_quiet(&self) {
        until("the service to be done with everything", async || {
            // What a handler says is in the outbox before its message leaves the queue, and what it
            // says to itself is in the queue before it leaves the outbox.
            let store = self.db().store();
            self.waiting(&*store).await == 0
                && store.outbox().stats().await.unwrap().ready == 0
                && self.waiting(&*store).await == 0
        })
        .await;
    }

    /// How many messages wait in the broker, and then in the store, where the broker's go to.
    async fn waiting(&self, store: &dyn Store) -> usize {
        let mut waiting = 0;
        for queue in &self.queues {
            waiting += self.broker.messages(&queue.name).len();
            let deferred = store.deferred().waiting(&queue.name, 1000).await;
            waiting += usize::try_from(deferred.unwrap()).unwrap();
        }
        waiting
    }
}

/// What a service answers to a call, if it is a success.
pub async fn get<T: DeserializeOwned>(http: &axum::Router, path: &str) -> Option<T> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = http.clone().oneshot(request).await.unwrap();
    let is_ok = answer.status().is_success();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
    is_ok.then(|| serde_json::from_slice(&body.unwrap()).unwrap())
}

/// Waits for a condition.
pub async fn until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !ready().await {
        assert!(start.elapsed() < SOON, "waited {SOON:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
