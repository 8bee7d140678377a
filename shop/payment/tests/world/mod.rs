//! Payment on a broker in the process, with the bank over real HTTP behind a gate that can hold
//! its requests and lose its answers. Payment can be killed at any moment, as far as a task can be:
//! it is dropped in the middle of what it does, and only what is committed stays.
#![allow(dead_code, reason = "each test uses its part of it")]

pub(crate) mod gate;

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use shop_contracts::{Money, OrderCancelled, OrderPlaced, OrderStatus};
use shop_kit::{BaseUrl, Database, Db, Service, sql};
use tidings::{Envelope, Message, Outgoing, Queue, Store, Topology, Transport};
use tidings_memory::MemoryTransport;
use tokio::{sync::oneshot, task::JoinHandle};
use tower::ServiceExt;

use gate::Gate;

/// How long anything may take that is waited for.
const SOON: Duration = Duration::from_secs(20);
/// What payment says is collected here.
const SAID: &str = "test.said";
const TOPICS: [&str; 3] = [
    "payment-authorized.v1",
    "payment-declined.v1",
    "payment-refunded.v1",
];

pub(crate) struct World {
    pub(crate) gate: Gate,
    broker: MemoryTransport,
    database: Database,
    bank: Service,
    payment: Option<Payment>,
}

struct Payment {
    http: axum::Router,
    db: Db,
    connection: MemoryTransport,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl World {
    /// Everything new, and payment running.
    pub(crate) async fn new(database: Database) -> Self {
        let bank = shop_bank::service(&database).await.unwrap();
        let gate = Gate::serve(bank.http.clone()).await;
        let broker = MemoryTransport::new();
        let said = TOPICS.into_iter().fold(Queue::new(SAID), Queue::topic);
        let topology = shop_payment::topology().queue(said);
        broker.declare(&topology).await.unwrap();
        let mut world = Self {
            gate,
            broker,
            database,
            bank,
            payment: None,
        };
        world.start().await;
        world
    }

    pub(crate) async fn start(&mut self) {
        let url = BaseUrl::of_address(self.gate.address()).unwrap();
        let service = shop_payment::service(&self.database, url).await.unwrap();
        let connection = self.broker.connect();
        let (stop, stopped) = oneshot::channel();
        let serve = tidings::serve(connection.clone(), service.messages.unwrap())
            .with_graceful_shutdown(async { drop(stopped.await) });
        self.payment = Some(Payment {
            http: service.http,
            db: service.db.unwrap(),
            connection,
            stop,
            serving: tokio::spawn(async move { serve.await.unwrap() }),
        });
    }

    /// Ends payment wherever it is. What it holds unsettled is delivered again.
    pub(crate) async fn kill(&mut self) {
        let payment = self.payment.take().expect("payment runs");
        payment.serving.abort();
        assert!(payment.serving.await.unwrap_err().is_cancelled());
        payment.connection.close().await;
    }

    /// Ends payment in good order.
    pub(crate) async fn stop(mut self) {
        let payment = self.payment.take().expect("payment runs");
        payment.stop.send(()).unwrap();
        payment.serving.await.unwrap();
    }

    /// Makes payment forget which messages it has handled.
    pub(crate) async fn forget_inbox(&self) {
        let db = &self.payment.as_ref().expect("payment runs").db;
        let forget = sql("delete from tidings_inbox");
        assert!(db.write(vec![forget]).await.unwrap()[0].affected > 0);
    }

    pub(crate) async fn place(&self, order_id: &str, card: &str) {
        let order = OrderPlaced {
            order_id: order_id.to_owned(),
            amount: Money::from_cents(9999),
            timestamp: jiff::Timestamp::now(),
            status: OrderStatus::Created,
            customer_id: None,
            email: None,
            card: Some(card.to_owned()),
            items: Vec::new(),
        };
        self.publish(Outgoing::new(&order).unwrap()).await;
    }

    pub(crate) async fn cancel(&self, order_id: &str) {
        let cancelled = OrderCancelled {
            order_id: order_id.to_owned(),
            reason: "it took too long".to_owned(),
            email: None,
        };
        self.publish(Outgoing::new(&cancelled).unwrap()).await;
    }

    /// Publishes a body to `order_events` as a foreign program does: without any metadata.
    pub(crate) async fn publish_bare(&self, body: impl Into<String>) {
        let mut envelope = Envelope::new("", body.into());
        envelope.content_type = "".into();
        self.publish(Outgoing {
            destination: OrderPlaced::DESTINATION,
            unrouted: OrderPlaced::UNROUTED,
            envelope,
        })
        .await;
    }

    async fn publish(&self, message: Outgoing) {
        for outcome in self.broker.publish(vec![message]).await {
            outcome.unwrap();
        }
    }

    /// Status and amount of a payment; `None` if payment knows no such order.
    pub(crate) async fn payment(&self, order_id: &str) -> Option<(String, String)> {
        let payment = self.payment.as_ref().expect("payment runs");
        let order_id = order_id.replace('%', "%25").replace(' ', "%20");
        let payment: Answered = get(&payment.http, &format!("/payments/{order_id}")).await?;
        Some((payment.status, payment.amount.to_string()))
    }

    /// The kinds of the ledger's entries about an order.
    pub(crate) async fn ledger(&self, order_id: &str) -> Vec<String> {
        let order_id = order_id.replace('%', "%25").replace(' ', "%20");
        let path = format!("/bank/ledger?orderId={order_id}");
        let entries: Vec<Entry> = get(&self.bank.http, &path).await.unwrap();
        entries.into_iter().map(|entry| entry.kind).collect()
    }

    /// The names of what payment has said about an order, in the order it was said.
    pub(crate) fn said(&self, order_id: &str) -> Vec<String> {
        // What was published again, because payment was killed before it heard of the confirm, is one
        // message.
        let mut ids = std::collections::HashSet::new();
        let said = self.broker.messages(SAID).into_iter();
        let said = said.filter(|message| ids.insert(message.envelope.id.clone()));
        let about = said.filter(|message| {
            let body: Value = serde_json::from_slice(&message.envelope.body).unwrap();
            body["orderId"] == order_id
        });
        about
            .map(|message| message.envelope.name.trim_end_matches(".v1").to_owned())
            .collect()
    }

    /// The reasons of everything that payment has said and that has a reason.
    pub(crate) fn said_reasons(&self) -> Vec<String> {
        let said = self.broker.messages(SAID).into_iter();
        let reason = said.filter_map(|message| {
            let body: Value = serde_json::from_slice(&message.envelope.body).unwrap();
            Some(body["reason"].as_str()?.to_owned())
        });
        reason.collect()
    }

    /// Waits until a payment has this status.
    pub(crate) async fn until_status(&self, order_id: &str, expected: &str) {
        until(&format!("the payment to be {expected}"), async || {
            let payment = self.payment(order_id).await;
            payment.is_some_and(|(status, _)| status == expected)
        })
        .await;
    }

    /// Waits until everything that payment was told is handled, and all that it said is published.
    pub(crate) async fn until_quiet(&self) {
        let payment = self.payment.as_ref().expect("payment runs");
        until("payment to be done with everything", async || {
            // What a handler says is in the outbox before its message leaves the queue, and a
            // command to payment itself is in the queue before it leaves the outbox.
            let store = payment.db.store();
            self.waiting(&*store).await == 0
                && store.outbox().stats().await.unwrap().ready == 0
                && self.waiting(&*store).await == 0
        })
        .await;
    }

    /// How many messages wait in the broker, and then in the store, where the broker's go to.
    async fn waiting(&self, store: &dyn Store) -> usize {
        let mut waiting = 0;
        for queue in self.queues() {
            waiting += self.broker.messages(&queue.name).len();
            let deferred = store.deferred().waiting(&queue.name, 1000).await;
            waiting += usize::try_from(deferred.unwrap()).unwrap();
        }
        waiting
    }

    /// The reasons of all dead letters.
    pub(crate) fn dead_letters(&self) -> Vec<String> {
        let queues = self.queues();
        let dead = queues
            .iter()
            .flat_map(|queue| self.broker.dead_letters(&queue.name));
        dead.map(|message| message.history.last().unwrap().reason.clone())
            .collect()
    }

    fn queues(&self) -> Vec<Queue> {
        let Topology { queues, .. } = shop_payment::topology();
        queues
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !ready().await {
        assert!(start.elapsed() < SOON, "waited {SOON:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An answer of payment.
#[derive(Deserialize)]
struct Answered {
    status: String,
    amount: Money,
}

/// An entry of the bank's ledger.
#[derive(Deserialize)]
struct Entry {
    kind: String,
}

async fn get<T: DeserializeOwned>(http: &axum::Router, path: &str) -> Option<T> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = http.clone().oneshot(request).await.unwrap();
    let is_ok = answer.status().is_success();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
    is_ok.then(|| serde_json::from_slice(&body.unwrap()).unwrap())
}
