//! Inventory on a broker in the process and a real database. It can be killed at any moment, as far
//! as a task can be: it is dropped in the middle of what it does, and only what is committed stays.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shop_contracts::{Money, OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, OrderStatus};
use shop_kit::{Database, Db, sql};
use tidings::{Message, Outgoing, Queue, Store, Transport};
use tidings_memory::MemoryTransport;
use tokio::{sync::oneshot, task::JoinHandle};
use tower::ServiceExt;

/// How long anything may take that is waited for.
const SOON: Duration = Duration::from_secs(20);
/// What inventory says is collected here.
const SAID: &str = "test.said";
const TOPICS: [&str; 3] = [
    "stock-reserved.v1",
    "stock-rejected.v1",
    "stock-released.v1",
];

pub(crate) struct World {
    broker: MemoryTransport,
    database: Database,
    inventory: Option<Inventory>,
}

struct Inventory {
    http: axum::Router,
    db: Db,
    connection: MemoryTransport,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

/// What there is of a product.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stock {
    pub(crate) available: i64,
    pub(crate) reserved: i64,
    pub(crate) shipped: i64,
}

impl World {
    /// A new broker, and inventory running.
    pub(crate) async fn new(database: Database) -> Self {
        let broker = MemoryTransport::new();
        let said = TOPICS.into_iter().fold(Queue::new(SAID), Queue::topic);
        let topology = shop_inventory::topology().queue(said);
        broker.declare(&topology).await.unwrap();
        let mut world = Self {
            broker,
            database,
            inventory: None,
        };
        world.start().await;
        world
    }

    pub(crate) async fn start(&mut self) {
        let service = shop_inventory::service(&self.database).await.unwrap();
        let connection = self.broker.connect();
        let (stop, stopped) = oneshot::channel();
        let serve = tidings::serve(connection.clone(), service.messages.unwrap())
            .with_graceful_shutdown(async { drop(stopped.await) });
        self.inventory = Some(Inventory {
            http: service.http,
            db: service.db.unwrap(),
            connection,
            stop,
            serving: tokio::spawn(async move { serve.await.unwrap() }),
        });
    }

    /// Ends inventory wherever it is. What it holds unsettled is delivered again.
    pub(crate) async fn kill(&mut self) {
        let inventory = self.inventory.take().expect("inventory runs");
        inventory.serving.abort();
        assert!(inventory.serving.await.unwrap_err().is_cancelled());
        inventory.connection.close().await;
    }

    /// Ends inventory in good order.
    pub(crate) async fn stop(mut self) {
        let inventory = self.inventory.take().expect("inventory runs");
        inventory.stop.send(()).unwrap();
        inventory.serving.await.unwrap();
    }

    fn running(&self) -> &Inventory {
        self.inventory.as_ref().expect("inventory runs")
    }

    pub(crate) async fn place(&self, order_id: &str, items: &[(&str, u32)]) {
        let items = items.iter().map(|(sku, quantity)| OrderItem {
            sku: (*sku).to_owned(),
            quantity: *quantity,
        });
        self.publish(&OrderPlaced {
            order_id: order_id.to_owned(),
            amount: Money::from_cents(9999),
            timestamp: jiff::Timestamp::now(),
            status: OrderStatus::Created,
            customer_id: None,
            email: None,
            card: None,
            items: items.collect(),
        })
        .await;
    }

    pub(crate) async fn cancel(&self, order_id: &str) {
        self.publish(&OrderCancelled {
            order_id: order_id.to_owned(),
            reason: "it took too long".to_owned(),
            email: None,
        })
        .await;
    }

    pub(crate) async fn confirm(&self, order_id: &str) {
        self.publish(&OrderConfirmed {
            order_id: order_id.to_owned(),
            amount: Money::from_cents(9999),
            customer_id: None,
            email: None,
        })
        .await;
    }

    async fn publish<M: Message>(&self, message: &M) {
        // Strangers' messages may be larger than what a service may publish.
        let body = serde_json::to_vec(message).unwrap();
        let mut outgoing = Outgoing {
            destination: M::DESTINATION,
            unrouted: M::UNROUTED,
            envelope: tidings::Envelope::new(M::NAME, body),
        };
        outgoing.envelope.key = message.key().map(|key| key.into_owned().into());
        self.broker.publish(vec![outgoing]).await.remove(0).unwrap();
    }

    /// Makes inventory forget which messages it has handled.
    pub(crate) async fn forget_inbox(&self) {
        let forget = sql("delete from tidings_inbox");
        let forgotten = self.running().db.write(vec![forget]).await.unwrap();
        assert!(forgotten[0].affected > 0);
    }

    /// What inventory says about itself of an order.
    pub(crate) async fn reservation(&self, order_id: &str) -> Option<String> {
        let query = sql("select status from reservation where order_id = $1");
        let rows = self.running().db.read(query.bind(order_id)).await.unwrap();
        rows.first().map(|row| row.get(0).unwrap())
    }

    pub(crate) async fn stock(&self, sku: &str) -> Stock {
        let request = Request::get(format!("/stock/{sku}")).body(Body::empty());
        let http = self.running().http.clone();
        let answer = http.oneshot(request.unwrap()).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
        serde_json::from_slice(&body.unwrap()).unwrap()
    }

    /// The names of what inventory has said about an order, in the order it was said.
    pub(crate) fn said(&self, order_id: &str) -> Vec<String> {
        let about = self.said_of(order_id).into_iter();
        about.map(|(name, _)| name).collect()
    }

    /// The same with the bodies.
    pub(crate) fn said_of(&self, order_id: &str) -> Vec<(String, Value)> {
        // What was published again, because inventory was killed before it heard of the confirm, is
        // one message.
        let mut ids = std::collections::HashSet::new();
        let said = self.broker.messages(SAID).into_iter();
        let said = said.filter(|message| ids.insert(message.envelope.id.clone()));
        let said = said.map(|message| {
            let body: Value = serde_json::from_slice(&message.envelope.body).unwrap();
            let name = message.envelope.name.trim_end_matches(".v1").to_owned();
            (name, body)
        });
        said.filter(|(_, body)| body["orderId"] == order_id)
            .collect()
    }

    /// Waits until a reservation has this status.
    pub(crate) async fn until_status(&self, order_id: &str, expected: &str) {
        until(&format!("the reservation to be {expected}"), async || {
            self.reservation(order_id).await.as_deref() == Some(expected)
        })
        .await;
    }

    /// Waits until everything that inventory was told is handled, and all that it said is published.
    pub(crate) async fn until_quiet(&self) {
        let store = self.running().db.store();
        until("inventory to be done with everything", async || {
            self.waiting(&*store).await == 0 && store.outbox().stats().await.unwrap().ready == 0
        })
        .await;
        let queues = shop_inventory::topology().queues;
        for queue in queues {
            let dead = self.broker.dead_letters(&queue.name);
            assert!(dead.is_empty(), "{dead:?}");
        }
    }

    /// How many messages wait in the broker, and then in the store, where the broker's go to.
    async fn waiting(&self, store: &dyn Store) -> usize {
        let mut waiting = 0;
        for queue in shop_inventory::topology().queues {
            waiting += self.broker.messages(&queue.name).len();
            let deferred = store.deferred().waiting(&queue.name, 1000).await;
            waiting += usize::try_from(deferred.unwrap()).unwrap();
        }
        waiting
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
