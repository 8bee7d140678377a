//! Inventory: puts aside what an order needs, all of it or nothing, then ships it or puts it back.
//!
//! Of each product it counts what is available, reserved and shipped; the three always add up to
//! what was there plus what was restocked, because every statement moves between two of them. What a
//! cancelled order needs is not put aside, or put back, in whichever order the two become known.

mod handlers;
mod http;

use shop_contracts::{CATALOGUE, CheckoutStyle};
use shop_kit::{Database, Service, StoreError, Tx, sql};
use tidings::{HandlerOptions, Router, Topology, event_map::EventMap};

const MIGRATIONS: &[&str] = &["create table stock (
        sku text primary key,
        available bigint not null check (available >= 0),
        reserved bigint not null check (reserved >= 0),
        shipped bigint not null check (shipped >= 0)
    );
    create table reservation (
        order_id text primary key,
        items text not null,
        status text not null
    )"];

/// Opens inventory's database, stocks it if it is new, and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database, style: CheckoutStyle) -> Result<Service, StoreError> {
    let db = database.open("inventory", MIGRATIONS).await?;
    db.write(first_stock).await?;
    let messages = messages(style)
        .transactional(db.store())
        .with_state(db.clone());
    Ok(Service {
        name: "inventory",
        http: http::routes(db.clone()),
        messages: Some(messages),
        db: Some(db),
    })
}

async fn first_stock(mut tx: Tx) -> Result<(), StoreError> {
    for product in CATALOGUE {
        let insert = sql(
            "insert into stock (sku, available, reserved, shipped) values ($1, $2, 0, 0)
             on conflict (sku) do nothing",
        );
        let insert = insert.bind(product.sku).bind(product.initial_stock);
        tx.execute(insert).await?;
    }
    Ok(())
}

/// The shape of the consumer: what it handles and how it retries. In orchestration it works off what
/// was placed before, and of what is placed from then on the checkout tells it.
fn messages(style: CheckoutStyle) -> Router {
    let placed = match style {
        CheckoutStyle::Choreography => HandlerOptions::new(),
        CheckoutStyle::Orchestration => HandlerOptions::new().unsubscribed(),
    };
    Router::new("inventory")
        .on_with(handlers::placed, placed)
        .on(handlers::confirmed)
        .on(handlers::cancelled)
        .on(handlers::reserve)
        .on(handlers::ship)
        .on(handlers::release)
        .retry(shop_kit::retry())
}

/// The queues and delays it needs on the broker, exactly as the service declares them. Whoever
/// starts the shop declares them before the first order, so that messages wait there for a service
/// that has never run.
pub fn topology(style: CheckoutStyle) -> Topology {
    messages(style).topology().without_delays()
}

/// What it handles and sends, from the types of its handlers.
pub fn event_map(style: CheckoutStyle) -> EventMap {
    EventMap::of([&messages(style)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_declared_beforehand_is_what_the_service_declares() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        for style in [CheckoutStyle::Choreography, CheckoutStyle::Orchestration] {
            let service = service(&database, style);
            let served = service.await.unwrap().messages.unwrap().topology();
            assert_eq!(topology(style), served);
            assert!(!served.queues.is_empty());
        }
    }
}
