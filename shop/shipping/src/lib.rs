//! Shipping: books a parcel for every confirmed order, once.

use axum::{
    Json,
    extract::{Path, State as HttpState},
    routing::get,
};
use shop_contracts::{OrderConfirmed, ShipmentBooked};
use shop_kit::{Database, Db, Problem, Service, StoreError, Tx, sql};
use tidings::{Topology, event_map::EventMap, prelude::*};
use uuid::Uuid;

const MIGRATIONS: &[&str] = &["create table shipment (
        order_id text primary key,
        tracking text not null,
        status text not null
    )"];

/// Opens shipping's database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database) -> Result<Service, StoreError> {
    let db = database.open("shipping", MIGRATIONS).await?;
    let messages = messages().transactional(db.store()).with_state(db.clone());
    let http = axum::Router::new()
        .route("/shipments/{order_id}", get(shipment))
        .with_state(db.clone());
    Ok(Service {
        name: "shipping",
        http,
        messages: Some(messages),
        db: Some(db),
    })
}

/// The shape of the consumer: what it handles and how it retries.
fn messages() -> Router {
    Router::new("shipping").on(book).retry(shop_kit::retry())
}

/// The queues and delays it needs on the broker, exactly as the service declares them. Whoever
/// starts the shop declares them before the first order, so that messages wait there for a service
/// that has never run.
pub fn topology() -> Topology {
    messages().topology().without_delays()
}

/// What it handles and sends, from the types of its handlers.
pub fn event_map() -> EventMap {
    EventMap::of([&messages()])
}

async fn book(order: OrderConfirmed, mut tx: Tx) -> Result<ShipmentBooked> {
    let insert = sql(
        "insert into shipment (order_id, tracking, status) values ($1, $2, 'BOOKED')
         on conflict (order_id) do nothing",
    );
    let tracking = format!("TRK-{:016X}", Uuid::new_v4().as_u64_pair().1);
    tx.execute(insert.bind(&order.order_id).bind(&tracking))
        .await?;
    Ok(ShipmentBooked {
        order_id: order.order_id,
        tracking,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shipment {
    order_id: String,
    tracking: String,
    status: String,
}

async fn shipment(
    HttpState(db): HttpState<Db>,
    Path(order_id): Path<String>,
) -> Result<Json<Shipment>, Problem> {
    let query = sql("select tracking, status from shipment where order_id = $1");
    let rows = db.read(query.bind(&order_id)).await?;
    let row = rows.first().ok_or_else(|| {
        Problem::not_found(format_args!(
            "no parcel is booked for the order `{order_id}` (yet)"
        ))
    })?;
    Ok(Json(Shipment {
        tracking: row.get(0)?,
        status: row.get(1)?,
        order_id,
    }))
}

#[cfg(test)]
mod tests {
    use tidings_testing::{CrashPoint, TestWorld};

    use super::*;

    #[tidings::test]
    async fn a_parcel_is_booked_once_though_the_confirm_was_lost(world: TestWorld) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let router = move || {
            let database = database.clone();
            async move { service(&database).await.unwrap().messages.unwrap() }
        };
        world.run(router).await;
        world.crash_at(CrashPoint::AfterPublishBeforeConfirm);
        world.publish(&OrderConfirmed {
            order_id: "o-1".into(),
            amount: shop_contracts::Money::from_cents(100),
            customer_id: None,
            email: None,
        });
        world.quiet().await;
        world.restart().await;
        world.advance(std::time::Duration::from_secs(60)).await;
        assert!(world.sent().len() > 1, "published again after the crash");
        assert_eq!(world.published::<ShipmentBooked>().len(), 1);
    }

    #[tokio::test]
    async fn what_is_declared_beforehand_is_what_the_service_declares() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let service = service(&database);
        let served = service.await.unwrap().messages.unwrap().topology();
        assert_eq!(topology(), served);
        assert!(!served.queues.is_empty());
    }
}
