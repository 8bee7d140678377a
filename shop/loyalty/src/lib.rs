//! Loyalty: a point for each whole unit of currency of a confirmed order, once.
//!
//! It can be left out of a shop, or added to one that runs: nobody waits for it. Orders only notes in
//! an order's timeline that points were awarded.

use axum::{
    Json,
    extract::{Path, State as HttpState},
    routing::get,
};
use shop_contracts::{Money, PointsAwarded};
use shop_kit::{Database, Db, Problem, Service, StoreError, Tx, sql};
use tidings::{Topology, event_map::EventMap, prelude::*};

const MIGRATIONS: &[&str] = &["create table award (
        order_id text primary key,
        customer_id text not null,
        points bigint not null
    );
    create index award_by_customer on award (customer_id)"];

/// Opens loyalty's database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database) -> Result<Service, StoreError> {
    let db = database.open("loyalty", MIGRATIONS).await?;
    let messages = messages().transactional(db.store()).with_state(db.clone());
    let http = axum::Router::new()
        .route("/loyalty/{customer_id}", get(points))
        .with_state(db.clone());
    Ok(Service {
        name: "loyalty",
        http,
        messages: Some(messages),
        db: Some(db),
    })
}

/// The shape of the consumer: what it handles and how it retries.
fn messages() -> Router {
    Router::new("loyalty").on(award).retry(shop_kit::retry())
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

/// What loyalty reads of a confirmed order, and no more: the event may change in all else without it.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(name = "order-confirmed.v1", key = "order_id", id = "order_id")]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: String,
    /// What it cost.
    pub amount: Money,
    /// Who earns the points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
}

/// Nobody earns points for an order without a customer.
async fn award(order: OrderConfirmed, mut tx: Tx) -> Result<Option<PointsAwarded>> {
    let Some(customer_id) = order.customer_id else {
        return Ok(None);
    };
    let points = order.amount.whole_units();
    let insert = sql(
        "insert into award (order_id, customer_id, points) values ($1, $2, $3)
         on conflict (order_id) do nothing",
    );
    let insert = insert.bind(&order.order_id).bind(&customer_id).bind(points);
    tx.execute(insert).await?;
    Ok(Some(PointsAwarded {
        order_id: order.order_id,
        customer_id,
        points,
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Points {
    customer_id: String,
    points: i64,
}

/// A customer that loyalty has not heard of has no points, which is no error.
async fn points(
    HttpState(db): HttpState<Db>,
    Path(customer_id): Path<String>,
) -> Result<Json<Points>, Problem> {
    let query =
        sql("select cast(coalesce(sum(points), 0) as bigint) from award where customer_id = $1");
    let rows = db.read(query.bind(&customer_id)).await?;
    let points = rows.first().map_or(Ok(0), |row| row.get(0))?;
    Ok(Json(Points {
        customer_id,
        points,
    }))
}

#[cfg(test)]
mod tests {
    use tidings_testing::TestWorld;

    use super::*;

    #[tidings::test]
    async fn a_customer_gets_the_points_of_an_order_once(world: TestWorld) {
        let folder = tempfile::tempdir().unwrap();
        let service = service(&Database::Sqlite(folder.path().into()))
            .await
            .unwrap();
        world.run(service.messages.unwrap()).await;
        world.deliver_twice();
        for (order_id, customer_id) in [("o-1", Some("c-1".to_owned())), ("o-2", None)] {
            world.publish(&shop_contracts::OrderConfirmed {
                order_id: order_id.into(),
                amount: Money::from_cents(9999),
                customer_id,
                email: None,
            });
        }
        world.quiet().await;
        let awarded = world.published::<PointsAwarded>();
        assert!(awarded.len() == 1 && awarded[0].points == 99, "{awarded:?}");
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
