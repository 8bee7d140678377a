//! Payment over HTTP.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde::Serialize;
use shop_contracts::Money;
use shop_kit::{Db, Problem, sql};

pub(crate) fn routes(db: Db) -> Router {
    Router::new()
        .route("/payments/{order_id}", get(payment))
        .with_state(db)
}

/// `status` is `AUTHORIZED`, `DECLINED` or `REFUNDED`; `PENDING` while the bank gives no answer, and
/// `CANCELLED` if the order was cancelled before anything was taken for it. Then the amount is 0.00
/// until payment has seen the order itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payment {
    order_id: String,
    status: String,
    amount: Money,
    attempts: i64,
}

async fn payment(
    State(db): State<Db>,
    Path(order_id): Path<String>,
) -> Result<Json<Payment>, Problem> {
    let query = sql("select status, amount, attempts from payment where order_id = $1");
    let rows = db.read(query.bind(&order_id)).await?;
    let row = rows.first().ok_or_else(|| {
        Problem::not_found(format_args!("payment knows no order `{order_id}` (yet)"))
    })?;
    Ok(Json(Payment {
        status: row.get(0)?,
        amount: Money::from_cents(row.get(1)?),
        attempts: row.get(2)?,
        order_id,
    }))
}
