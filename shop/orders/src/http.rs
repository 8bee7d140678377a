//! Orders over HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use shop_contracts::{CheckoutStyle, Money, OrderPlaced, OrderStatus};
use shop_kit::{Db, FieldError, JsonBody, Problem, QueryOf, Row, StoreError, idempotency_key};
use tidings::{Producer, WorkError};
use tokio::time::timeout;

use crate::{
    OrderDeadline, live,
    orders::{self, Order},
    request::OrderRequest,
    stuck,
};

/// How many orders a page has if nobody says otherwise, and at most.
const PAGE_ORDERS: u32 = 20;
const PAGE_ORDERS_MAX: u32 = 100;
/// How long the database may take to store an order.
const DATABASE_MAX: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) db: Db,
    pub(crate) streams: live::Streams,
    producer: Producer,
    deadline: OrderDeadline,
    style: CheckoutStyle,
}

pub(crate) fn routes(
    db: Db,
    producer: Producer,
    deadline: OrderDeadline,
    style: CheckoutStyle,
) -> Router {
    let streams = live::Streams::default();
    Router::new()
        .route("/orders", post(place).get(list))
        .route("/orders/{order_id}", get(find))
        .route("/orders/{order_id}/events", get(live::events))
        .with_state(Orders {
            db,
            streams,
            producer,
            deadline,
            style,
        })
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    order_id: String,
    amount: Money,
    status: OrderStatus,
}

impl IntoResponse for Placed {
    fn into_response(self) -> Response {
        let location = format!("/orders/{}", self.order_id);
        (
            StatusCode::ACCEPTED,
            [(header::LOCATION, location)],
            Json(self),
        )
            .into_response()
    }
}

/// Waits for nothing but the commit of this service's own database.
async fn place(
    State(orders): State<Orders>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<OrderRequest>,
) -> Result<Placed, Problem> {
    let key = idempotency_key(&headers)?;
    let asked = match key {
        Some(_) => Some(serde_json::to_string(&request).map_err(|error| {
            Problem::malformed(format_args!("the order cannot be written down: {error}"))
        })?),
        None => None,
    };
    let order = request.into_order()?;
    match commit(&orders, &order, key.as_deref(), asked.as_deref()).await? {
        None => {
            metrics::counter!("shop_orders_placed_total").increment(1);
            Ok(Placed {
                order_id: order.order_id,
                amount: order.amount,
                status: OrderStatus::Created,
            })
        }
        Some(before) => placed_before(&before, asked.as_deref()),
    }
}

/// The order and its event, together. If the idempotency key was used before, nothing is stored
/// and the order that it placed is the answer; that is read in the same transaction, and told
/// after its commit, because the other request may have been here a moment ago.
///
/// It ends within [`DATABASE_MAX`]. Before the commit has begun it is certain that nothing was
/// stored; from then on it is not, whatever fails.
async fn commit(
    orders: &Orders,
    order: &OrderPlaced,
    key: Option<&str>,
    asked: Option<&str>,
) -> Result<Option<Row>, Problem> {
    let (db, order, may_commit) = (orders.db.clone(), order.clone(), MayCommit::default());
    let (place, with_key) = (orders::place(&order, key, asked), key.map(orders::with_key));
    let still_may = may_commit.clone();
    let write = |handle| async move {
        let mut tx = db.lend(handle);
        let before = match (tx.first(place).await?, with_key) {
            (None, Some(with_key)) => tx.first(with_key).await?,
            // It is stored; nothing can be in the way of a new order without a key.
            _ => None,
        };
        if !still_may.take() {
            return Err(late().into());
        }
        let event = before.is_none().then_some(order);
        Ok((before, event))
    };
    let placing = orders.producer.transaction().run(write);
    match timeout(DATABASE_MAX, placing).await {
        Ok(Ok(before)) => Ok(before),
        Ok(Err(WorkError::Store(error))) if !error.is_conflict() => {
            Err(perhaps_stored(&error, key))
        }
        Ok(Err(error)) => Err(not_stored(&*error.into_inner())),
        Err(_) if may_commit.take() => Err(not_stored(&late())),
        Err(_) => Err(perhaps_stored(&late(), key)),
    }
}

/// Whether an order is still to be committed: whoever takes the right first decides, the work that
/// commits or the customer's request that does not wait any longer.
#[derive(Clone, Default)]
struct MayCommit(Arc<AtomicBool>);

impl MayCommit {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }
}

fn late() -> StoreError {
    StoreError::new(format!("it did not answer within {DATABASE_MAX:?}"))
}

fn not_stored(error: &(dyn std::error::Error + 'static)) -> Problem {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(%error, cause, "the database did not take an order; nothing was stored");
    Problem::unavailable("the database did not take the order; nothing was stored, try again")
        .retry_soon()
}

/// The commit was asked for, and there is no good answer.
fn perhaps_stored(error: &(dyn std::error::Error + 'static), key: Option<&str>) -> Problem {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(%error, cause, "the database did not say whether it committed an order");
    let what_to_do = match key {
        Some(_) => "repeating the call with the same `Idempotency-Key` is safe, and tells",
        None => {
            "look at `GET /orders?customerId=` before you repeat the call; with an \
             `Idempotency-Key` it would be safe to repeat"
        }
    };
    Problem::outcome_unknown(format_args!(
        "the database did not confirm the order; it may have been stored: {what_to_do}"
    ))
    .retry_soon()
}

/// The same key and the same request have the same answer; another request is a mistake.
fn placed_before(before: &Row, asked: Option<&str>) -> Result<Placed, Problem> {
    if before.get::<Option<String>>(2)?.as_deref() != asked {
        return Err(Problem::key_reused(
            "this `Idempotency-Key` has placed another order; use a new key for a new order",
        ));
    }
    Ok(Placed {
        order_id: before.get(0)?,
        amount: Money::from_cents(before.get(1)?),
        status: OrderStatus::Created,
    })
}

async fn find(
    State(orders): State<Orders>,
    Path(order_id): Path<String>,
) -> Result<Json<Order>, Problem> {
    Ok(Json(orders::find(&orders.db, &order_id).await?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    customer_id: Option<String>,
    status: Option<String>,
    limit: Option<u32>,
    before: Option<String>,
    after: Option<String>,
}

/// A customer's orders, newest first, or those that are stuck, oldest first.
async fn list(
    State(orders): State<Orders>,
    QueryOf(page): QueryOf<Page>,
) -> Result<Response, Problem> {
    let limit = page.limit.unwrap_or(PAGE_ORDERS);
    if limit == 0 || limit > PAGE_ORDERS_MAX {
        let detail = format!("must be 1 to {PAGE_ORDERS_MAX}");
        return Err(no_such_page("limit", detail));
    }
    match (&page.customer_id, page.status.as_deref()) {
        (Some(customer_id), None) => of_customer(&orders, customer_id, limit, &page).await,
        (None, Some("stuck")) => stuck(&orders, limit, &page).await,
        (None, Some(_)) => Err(no_such_page("status", "must be `stuck`")),
        (Some(_), Some(_)) => Err(no_such_page(
            "status",
            "cannot be combined with `customerId`",
        )),
        (None, None) => Err(Problem::malformed(
            "say whose orders with `customerId=`, or ask for `status=stuck`",
        )),
    }
}

fn no_such_page(pointer: &str, detail: impl Into<String>) -> Problem {
    Problem::invalid("there is no such page").with_errors(vec![FieldError::new(pointer, detail)])
}

async fn of_customer(
    orders: &Orders,
    customer_id: &str,
    limit: u32,
    page: &Page,
) -> Result<Response, Problem> {
    if page.after.is_some() {
        return Err(no_such_page(
            "after",
            "newest come first here: page on with `before`",
        ));
    }
    let before = page.before.as_deref();
    let found = orders::of_customer(&orders.db, customer_id, limit + 1, before).await?;
    let query = format!("customerId={}", encoded(customer_id));
    Ok(one_page(found, limit, |last| {
        format!("{query}&limit={limit}&before={}", encoded(&last.order_id))
    }))
}

async fn stuck(orders: &Orders, limit: u32, page: &Page) -> Result<Response, Problem> {
    if page.before.is_some() {
        return Err(no_such_page(
            "before",
            "oldest come first here: page on with `after`",
        ));
    }
    let after = page.after.as_deref();
    let found = stuck::list(&orders.db, orders.deadline, orders.style, limit + 1, after).await?;
    Ok(one_page(found, limit, |last| {
        format!(
            "status=stuck&limit={limit}&after={}",
            encoded(&last.order_id)
        )
    }))
}

/// A page of what was `found`, which has one more than the `limit` if there is a next page: then
/// the header `Link` says where, by the query that `next` makes from the last of this one.
fn one_page<T: Serialize>(mut found: Vec<T>, limit: u32, next: impl Fn(&T) -> String) -> Response {
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let link = found
        .last()
        .filter(|_| more)
        .map(|last| format!("</orders?{}>; rel=\"next\"", next(last)));
    let mut response = Json(found).into_response();
    if let Some(link) = link.and_then(|link| link.parse().ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// Percent-encoded, so that it can stand in a query.
fn encoded(text: &str) -> String {
    let mut query = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            query.push(char::from(byte));
        } else {
            query.push_str(&format!("%{byte:02X}"));
        }
    }
    query
}
