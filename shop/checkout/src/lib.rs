//! Checkout: leads an order through inventory, payment and shipping by a saga (`--checkout
//! orchestration`).
//!
//! It knows no product, no bank and no parcel: it tells the others what to do, in which order, and what to
//! undo if an order cannot be had. The way of an order is one function, [`checkout`]. Its state is the
//! sagas' journals, in its database.
//!
//! It runs in choreography as well: there it starts nothing, and ends what it has begun before the shop
//! changed its style.

mod saga;

use shop_contracts::{
    CheckoutStyle, OrderCancelled, OrderPlaced,
    commands::{
        BookParcel, CancelCharge, ChargeCard, ConfirmOrder, RefundCard, ReleaseStock, ReserveStock,
        ShipStock,
    },
};
use shop_kit::{Database, Service, StoreError};
use tidings::{Router, Sagas, Topology, event_map::EventMap};

pub use saga::checkout;

/// Its name, and that of its sagas.
const NAME: &str = "checkout";

/// Opens checkout's database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database, style: CheckoutStyle) -> Result<Service, StoreError> {
    let db = database.open(NAME, &[]).await?;
    let messages = messages(style).transactional(db.store());
    Ok(Service {
        name: NAME,
        http: axum::Router::new(),
        messages: Some(messages),
        db: Some(db),
    })
}

/// Its sagas, one for each order.
pub fn sagas() -> Sagas<OrderPlaced> {
    Sagas::new(NAME, |order: &OrderPlaced| order.order_id.clone())
        .version(1, checkout)
        .sends::<ReserveStock>()
        .sends::<ReleaseStock>()
        .sends::<ChargeCard>()
        .sends::<CancelCharge>()
        .sends::<RefundCard>()
        .sends::<ConfirmOrder>()
        .sends::<ShipStock>()
        .sends::<BookParcel>()
}

/// The shape of the consumer: what it handles and how it retries.
fn messages(style: CheckoutStyle) -> Router {
    let of_order = |cancelled: &OrderCancelled| cancelled.order_id.clone();
    let router = Router::new(NAME)
        .saga(sagas())
        .saga_signal_if_started(NAME, saga::ORDER_CANCELLED, of_order)
        .retry(shop_kit::retry());
    match style {
        CheckoutStyle::Choreography => router.unsubscribed(),
        CheckoutStyle::Orchestration => router,
    }
}

/// The queues and delays it needs on the broker, exactly as the service declares them. Whoever
/// starts the shop declares them before the first order, so that messages wait there for a service
/// that has never run.
pub fn topology(style: CheckoutStyle) -> Topology {
    messages(style).topology().without_delays()
}

/// What it handles and sends in orchestration, from its types.
pub fn event_map() -> EventMap {
    EventMap::of([&messages(CheckoutStyle::Orchestration)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_declared_beforehand_is_what_the_service_declares() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        for style in [CheckoutStyle::Choreography, CheckoutStyle::Orchestration] {
            let service = service(&database, style).await.unwrap();
            let served = service.messages.unwrap().topology();
            assert_eq!(topology(style), served);
            assert!(!served.queues.is_empty());
        }
    }
}
