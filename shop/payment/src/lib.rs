//! Payment: takes the money for every order that is placed, once, and gives it back when the order
//! is cancelled, in whichever order the two become known.
//!
//! It knows orders only by events and commands of others, and the bank only by HTTP. A declined card is an answer;
//! only a failure to get an answer is an error, and is tried again until the bank has given one.

mod bank;
mod handlers;
mod http;
mod record;

use std::time::Duration;

use shop_contracts::CheckoutStyle;
use shop_kit::{BaseUrl, Database, Service, StoreError};
use tidings::{HandlerOptions, Retry, Router, Topology, event_map::EventMap};

const MIGRATIONS: &[&str] = &["create table payment (
        order_id text primary key,
        amount bigint not null,
        status text not null,
        attempts bigint not null
    )"];

/// A bank may be down for days: an order waits for it rather than becoming a dead letter. With
/// delays of at most ten seconds this is about two weeks.
const ATTEMPTS_MAX: u32 = 120_000;

/// Opens payment's database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(
    database: &Database,
    bank: BaseUrl,
    style: CheckoutStyle,
) -> Result<Service, StoreError> {
    let db = database.open("payment", MIGRATIONS).await?;
    let messages = messages(style)
        .transactional(db.store())
        .with_state(bank::Bank::new(bank))
        .with_state(db.clone());
    Ok(Service {
        name: "payment",
        http: http::routes(db.clone()),
        messages: Some(messages),
        db: Some(db),
    })
}

/// The shape of the consumer: what it handles and how it retries. In orchestration it works off what
/// was placed before, and of what is placed from then on the checkout tells it.
fn messages(style: CheckoutStyle) -> Router {
    let retry = Retry::exponential(Duration::from_millis(200))
        .delay_max(Duration::from_secs(10))
        .attempts(ATTEMPTS_MAX);
    let placed = match style {
        CheckoutStyle::Choreography => HandlerOptions::new(),
        CheckoutStyle::Orchestration => HandlerOptions::new().unsubscribed(),
    };
    Router::new("payment")
        .on_with(handlers::placed, placed)
        .on(handlers::cancelled)
        .on(handlers::charge)
        .on(handlers::cancel)
        .on(handlers::refund)
        .on(handlers::refund_late)
        .retry(retry)
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
            let service = service(&database, "http://127.0.0.1:1".parse().unwrap(), style);
            let served = service.await.unwrap().messages.unwrap().topology();
            assert_eq!(topology(style), served);
            assert!(!served.queues.is_empty());
        }
    }
}
