//! Payment alone, with the bank over real HTTP behind a gate that can hold its requests and lose its
//! answers.
#![allow(dead_code, reason = "each test uses its part of it")]

pub(crate) mod gate;
mod saga;

use serde::Deserialize;
use shop_contracts::{CheckoutStyle, Money, OrderCancelled, OrderPlaced, OrderStatus};
use shop_kit::{BaseUrl, Database, Service};
use shop_testing::{OneService, get};
use tidings::{Envelope, Message, Outgoing};

pub(crate) use shop_testing::until;

use gate::Gate;

const TOPICS: [&str; 3] = [
    "payment-authorized.v1",
    "payment-declined.v1",
    "payment-refunded.v1",
];

pub(crate) struct World {
    pub(crate) gate: Gate,
    bank: Service,
    pub(crate) service: OneService,
    style: CheckoutStyle,
}

impl World {
    /// Everything new, and payment running; nobody leads.
    pub(crate) async fn new(database: Database) -> Self {
        Self::in_style(database, CheckoutStyle::Choreography).await
    }

    /// The same; in orchestration with a saga that wants the money of each order that is placed, and gives
    /// up when it is told to.
    pub(crate) async fn in_style(database: Database, style: CheckoutStyle) -> Self {
        let bank = shop_bank::service(&database).await.unwrap();
        let gate = Gate::serve(bank.http.clone()).await;
        let url = BaseUrl::of_address(gate.address()).unwrap();
        let make = move || {
            let (database, url) = (database.clone(), url.clone());
            Box::pin(async move { shop_payment::service(&database, url, style).await.unwrap() })
                as _
        };
        let service = OneService::run(shop_payment::topology(style), &TOPICS, make).await;
        if style == CheckoutStyle::Orchestration {
            saga::start(service.connect()).await;
        }
        Self {
            gate,
            bank,
            service,
            style,
        }
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
        self.service.publish(Outgoing::new(&order).unwrap()).await;
    }

    /// The order is cancelled; if it is led, its saga gives up.
    pub(crate) async fn cancel(&self, order_id: &str) {
        if self.style == CheckoutStyle::Orchestration {
            let order_id = order_id.to_owned();
            let given_up = Outgoing::new(&saga::OrderAbandoned { order_id }).unwrap();
            return self.service.publish(given_up).await;
        }
        let cancelled = OrderCancelled {
            order_id: order_id.to_owned(),
            reason: "it took too long".to_owned(),
            email: None,
        };
        self.service
            .publish(Outgoing::new(&cancelled).unwrap())
            .await;
    }

    /// Publishes a body to `order_events` as a foreign program does: without any metadata.
    pub(crate) async fn publish_bare(&self, body: impl Into<String>) {
        let mut envelope = Envelope::new("", body.into());
        envelope.content_type = "".into();
        self.service
            .publish(Outgoing {
                destination: OrderPlaced::DESTINATION,
                unrouted: OrderPlaced::UNROUTED,
                envelope,
            })
            .await;
    }

    /// Status and amount of a payment; `None` if payment knows no such order.
    pub(crate) async fn payment(&self, order_id: &str) -> Option<(String, String)> {
        let order_id = order_id.replace('%', "%25").replace(' ', "%20");
        let path = format!("/payments/{order_id}");
        let payment: Answered = self.service.get(&path).await?;
        Some((payment.status, payment.amount.to_string()))
    }

    /// The kinds of the ledger's entries about an order.
    pub(crate) async fn ledger(&self, order_id: &str) -> Vec<String> {
        let order_id = order_id.replace('%', "%25").replace(' ', "%20");
        let path = format!("/bank/ledger?orderId={order_id}");
        let entries: Vec<Entry> = get(&self.bank.http, &path).await.unwrap();
        entries.into_iter().map(|entry| entry.kind).collect()
    }

    /// The reasons of everything that payment has said and that has a reason.
    pub(crate) fn said_reasons(&self) -> Vec<String> {
        let said = self.service.said().into_iter();
        let reasons = said.filter_map(|(_, body)| Some(body["reason"].as_str()?.to_owned()));
        reasons.collect()
    }

    /// Waits until a payment has this status.
    pub(crate) async fn until_status(&self, order_id: &str, expected: &str) {
        until(&format!("the payment to be {expected}"), async || {
            let payment = self.payment(order_id).await;
            payment.is_some_and(|(status, _)| status == expected)
        })
        .await;
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
