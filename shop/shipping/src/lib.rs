//! Shipping: books a parcel for every confirmed order, once, whoever tells it to.

use axum::{
    Json,
    extract::{Path, State as HttpState},
    routing::get,
};
use shop_contracts::{
    ShipmentBooked,
    commands::{BookParcel, ParcelBooked},
    is_led_by_checkout,
};
use shop_kit::{Database, Db, Problem, Service, StoreError, Tx, sql};
use tidings::{StepReply, Topology, event_map::EventMap, prelude::*};
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
    Router::new("shipping")
        .on(confirmed)
        .on(book)
        .retry(shop_kit::retry())
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

/// What shipping reads of a confirmed order, and no more: the event may change in all else without it.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(name = "order-confirmed.v1", key = "order_id", id = "order_id")]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: String,
}

/// An order is confirmed. If the checkout leads it, that says when its parcel is booked.
async fn confirmed(
    order: OrderConfirmed,
    metadata: Metadata,
    tx: Tx,
) -> Result<Option<ShipmentBooked>> {
    match is_led_by_checkout(&metadata) {
        true => Ok(None),
        false => Ok(parcel(order.order_id, tx).await?.1),
    }
}

/// The checkout wants a parcel for an order.
async fn book(
    command: BookParcel,
    tx: Tx,
) -> Result<(StepReply<ParcelBooked>, Option<ShipmentBooked>)> {
    let (tracking, booked) = parcel(command.order_id, tx).await?;
    Ok((StepReply::Done(ParcelBooked { tracking }), booked))
}

/// The number of an order's parcel, and that it was booked, if it was now.
async fn parcel(order_id: String, mut tx: Tx) -> Result<(String, Option<ShipmentBooked>)> {
    let insert = sql(
        "insert into shipment (order_id, tracking, status) values ($1, $2, 'BOOKED')
         on conflict (order_id) do nothing",
    );
    let tracking = format!("TRK-{:016X}", Uuid::new_v4().as_u64_pair().1);
    if tx.execute(insert.bind(&order_id).bind(&tracking)).await? > 0 {
        let booked = ShipmentBooked {
            order_id,
            tracking: tracking.clone(),
        };
        return Ok((tracking, Some(booked)));
    }
    let query = sql("select tracking from shipment where order_id = $1").bind(&order_id);
    let row = tx.first(query).await?;
    let row = row.ok_or_else(|| StoreError::new("a parcel is booked, and not to be found"))?;
    Ok((row.get(0)?, None))
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
        world.publish(&shop_contracts::OrderConfirmed {
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

    #[tidings::test]
    async fn an_order_that_comes_through_both_doors_has_one_parcel(world: TestWorld) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let service = service(&database).await.unwrap();
        world.run(service.messages.unwrap()).await;
        let confirmed = shop_contracts::OrderConfirmed {
            order_id: "o-1".into(),
            amount: shop_contracts::Money::from_cents(100),
            customer_id: None,
            email: None,
        };
        let mut led = tidings::Outgoing::new(&confirmed).unwrap();
        let header = (shop_contracts::LED_BY.into(), "checkout".into());
        led.envelope.headers.push(header);
        led.envelope.id = Some("led".into());
        world.publish_raw(led);
        world.quiet().await;
        assert_eq!(world.published::<ShipmentBooked>(), []);
        let order_id = "o-1".to_owned();
        world.publish(&BookParcel { order_id });
        world.quiet().await;
        let booked = world.published::<ShipmentBooked>();
        assert_eq!(booked.len(), 1);
        let mut other = confirmed.clone();
        other.order_id = "o-2".into();
        world.publish(&other);
        world.quiet().await;
        let order_id = "o-2".to_owned();
        world.publish(&BookParcel { order_id });
        world.quiet().await;
        assert_eq!(world.published::<ShipmentBooked>().len(), 2);
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
