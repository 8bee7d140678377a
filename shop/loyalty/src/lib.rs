//! Loyalty: a point for each whole unit of currency of a confirmed order, once.
//!
//! It can be left out of a shop, or added to one that runs: nobody else knows of it.

use axum::{
    Json,
    extract::{Path, State as HttpState},
    routing::get,
};
use shop_contracts::{OrderConfirmed, PointsAwarded};
use shop_kit::{Database, Db, Problem, Service, StoreError, Tx, sql};
use tidings::prelude::*;

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
    let messages = Router::new("loyalty")
        .on(award)
        .transactional(db.store())
        .retry(shop_kit::retry())
        .with_state(db.clone());
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
    tx.later(vec![insert]).await?;
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
