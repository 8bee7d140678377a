//! Inventory alone, and what is asked of it.
#![allow(dead_code, reason = "each test uses its part of it")]

use serde::{Deserialize, Serialize};
use shop_contracts::{
    CheckoutStyle, Money, OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, OrderStatus,
};
use shop_kit::{Database, sql};
use shop_testing::OneService;
use tidings::{Message, Outgoing};

pub(crate) use shop_testing::until;

const TOPICS: [&str; 3] = [
    "stock-reserved.v1",
    "stock-rejected.v1",
    "stock-released.v1",
];

pub(crate) struct World {
    pub(crate) service: OneService,
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
        let make = move || {
            let database = database.clone();
            Box::pin(async move {
                shop_inventory::service(&database, CheckoutStyle::default())
                    .await
                    .unwrap()
            }) as _
        };
        let service = OneService::run(
            shop_inventory::topology(CheckoutStyle::default()),
            &TOPICS,
            make,
        )
        .await;
        Self { service }
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
        self.service.publish(outgoing).await;
    }

    /// What inventory says about itself of an order.
    pub(crate) async fn reservation(&self, order_id: &str) -> Option<String> {
        let query = sql("select status from reservation where order_id = $1");
        let db = self.service.db();
        let rows = db.read(query.bind(order_id)).await.unwrap();
        rows.first().map(|row| row.get(0).unwrap())
    }

    pub(crate) async fn stock(&self, sku: &str) -> Stock {
        let stock = self.service.get(&format!("/stock/{sku}")).await;
        stock.unwrap()
    }

    /// Waits until a reservation has this status.
    pub(crate) async fn until_status(&self, order_id: &str, expected: &str) {
        until(&format!("the reservation to be {expected}"), async || {
            self.reservation(order_id).await.as_deref() == Some(expected)
        })
        .await;
    }

    /// Waits until everything is handled and said. None of it may be a dead letter.
    pub(crate) async fn until_quiet(&self) {
        self.service.until_quiet().await;
        assert_eq!(self.service.dead_letters(), [""; 0]);
    }
}
