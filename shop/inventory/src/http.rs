//! Inventory over HTTP: the catalogue with what is available, and each product's stock.

use std::collections::HashMap;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use shop_contracts::{CATALOGUE, Money};
use shop_kit::{Db, FieldError, JsonBody, Problem, Row, StoreError, sql};

/// The most of one product that can arrive at once.
const RESTOCK_QUANTITY_MAX: u32 = 1_000_000;

pub(crate) fn routes(db: Db) -> Router {
    Router::new()
        .route("/products", get(products))
        .route("/stock/{sku}", get(stock))
        .route("/stock/{sku}/restock", post(restock))
        .with_state(db)
}

#[derive(Serialize)]
struct Product {
    sku: &'static str,
    name: &'static str,
    price: Money,
    available: i64,
}

async fn products(State(db): State<Db>) -> Result<Json<Vec<Product>>, Problem> {
    let rows = db.read(sql("select sku, available from stock")).await?;
    let available = rows
        .iter()
        .map(|row| Ok((row.get::<String>(0)?, row.get(1)?)))
        .collect::<Result<HashMap<_, i64>, StoreError>>()?;
    let products = CATALOGUE.iter().map(|product| Product {
        sku: product.sku,
        name: product.name,
        price: product.price,
        available: available.get(product.sku).copied().unwrap_or(0),
    });
    Ok(Json(products.collect()))
}

#[derive(Serialize)]
struct Stock {
    sku: String,
    available: i64,
    reserved: i64,
    shipped: i64,
}

async fn stock(State(db): State<Db>, Path(sku): Path<String>) -> Result<Json<Stock>, Problem> {
    let query = sql("select sku, available, reserved, shipped from stock where sku = $1");
    let rows = db.read(query.bind(&sku)).await?;
    one(rows.first(), &sku)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restock {
    quantity: u32,
}

async fn restock(
    State(db): State<Db>,
    Path(sku): Path<String>,
    JsonBody(Restock { quantity }): JsonBody<Restock>,
) -> Result<Json<Stock>, Problem> {
    if quantity == 0 || quantity > RESTOCK_QUANTITY_MAX {
        let detail = format!("must be 1 to {RESTOCK_QUANTITY_MAX}");
        return Err(Problem::invalid("that much cannot arrive")
            .with_errors(vec![FieldError::new("/quantity", detail)]));
    }
    let add = sql("update stock set available = available + $2 where sku = $1
         returning sku, available, reserved, shipped");
    let add = add.bind(&sku).bind(i64::from(quantity));
    let row = db.first(add).await?;
    one(row.as_ref(), &sku)
}

fn one(row: Option<&Row>, sku: &str) -> Result<Json<Stock>, Problem> {
    let row = row.ok_or_else(|| {
        Problem::not_found(format_args!(
            "no product has the code `{sku}`; see /products"
        ))
    })?;
    Ok(Json(Stock {
        sku: row.get(0)?,
        available: row.get(1)?,
        reserved: row.get(2)?,
        shipped: row.get(3)?,
    }))
}
