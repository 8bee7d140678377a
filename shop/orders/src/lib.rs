//! Orders: takes them, tells everyone, and joins what the others answer.
//!
//! `POST /orders` waits for nobody: the order and its `OrderPlaced` are committed together, and the
//! answer is `202`. Payment and inventory answer in any order; when both have, the order is
//! confirmed or cancelled. So whoever hears that it is cancelled knows what there is to undo.
//!
//! An order that a foreign program published is adopted: then it can be asked for like any other.

mod handlers;
mod http;
mod live;
mod orders;
mod request;

use shop_contracts::OrderPlaced;
use shop_kit::{Database, Service, StoreError};
use tidings::{Producer, Router, Topology};

/// Its name: who sends its events.
const NAME: &str = "orders";

/// Of an order that was answered but not placed (yet), only the answers are known.
const MIGRATIONS: &[&str] = &["create table orders (
        order_id text primary key,
        status text not null,
        amount bigint,
        customer_id text,
        email text,
        placed_at bigint,
        idempotency_key text unique,
        request text,
        payment text,
        stock text,
        reason text
    );
    create index orders_by_customer on orders (customer_id, placed_at, order_id);
    create table happening (
        order_id text not null,
        event text not null,
        at bigint not null,
        primary key (order_id, event)
    )"];

/// Opens the orders' database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database) -> Result<Service, StoreError> {
    let db = database.open(NAME, MIGRATIONS).await?;
    let messages = messages().transactional(db.store()).with_state(db.clone());
    let producer = Producer::new(NAME, db.store());
    Ok(Service {
        name: NAME,
        http: http::routes(db.clone(), producer),
        messages: Some(messages),
        db: Some(db),
    })
}

/// The shape of the consumer: what it handles, publishes, and how it retries.
fn messages() -> Router {
    Router::new(NAME)
        .on(handlers::adopt)
        .on(handlers::payment_authorized)
        .on(handlers::payment_declined)
        .on(handlers::stock_reserved)
        .on(handlers::stock_rejected)
        .on(handlers::payment_refunded)
        .on(handlers::stock_released)
        .on(handlers::shipment_booked)
        .on(handlers::email_sent)
        .on(handlers::points_awarded)
        .publishes::<OrderPlaced>()
        .retry(shop_kit::retry())
}

/// The topics, queues and delays it needs on the broker, exactly as the service declares them.
/// Whoever starts the shop declares them beforehand, so that answers wait there for a service that
/// has never run.
pub fn topology() -> Topology {
    messages().topology()
}
