//! What inventory does when something happens.

use std::collections::BTreeMap;

use shop_contracts::{
    OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, StockRejected, StockReleased,
    StockReserved, product,
};
use shop_kit::{Db, Statement, Tx, sql};
use tidings::prelude::*;

/// Quantities by product. The order of products is the same in every transaction, so that two of
/// them never wait for each other in a circle.
type Lines = BTreeMap<String, i64>;

fn lines(items: &[OrderItem]) -> Lines {
    let mut lines = Lines::new();
    for item in items {
        *lines.entry(item.sku.clone()).or_default() += i64::from(item.quantity);
    }
    lines.retain(|_, quantity| *quantity > 0);
    lines
}

/// All or nothing. A foreign order may name no items: then there is nothing to put aside.
pub(crate) async fn reserve(
    order: OrderPlaced,
    mut tx: Tx,
) -> Result<(Option<StockReserved>, Option<StockRejected>)> {
    let lines = lines(&order.items);
    let order_id = order.order_id;
    let mut statements: Vec<Statement> = lines.iter().map(take).collect();
    statements.push(reservation(&order_id, &lines, "RESERVED")?);
    let mut outcomes = tx.run_all(statements).await?;
    if outcomes.pop().is_some_and(|outcome| outcome.affected == 0) {
        // Another copy of this service handled the order at the same time: its answer stands, and
        // this transaction ends as a duplicate.
        return Ok((None, None));
    }
    let taken = |outcome: &shop_kit::Outcome| outcome.affected > 0;
    let short: Vec<&String> = lines
        .keys()
        .zip(&outcomes)
        .filter(|(_, outcome)| !taken(outcome))
        .map(|(sku, _)| sku)
        .collect();
    if short.is_empty() {
        return Ok((Some(StockReserved { order_id }), None));
    }
    let mut undo: Vec<Statement> = lines
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| taken(outcome))
        .map(|(line, _)| put_back(line))
        .collect();
    undo.push(
        sql("update reservation set status = 'REJECTED' where order_id = $1").bind(&order_id),
    );
    tx.later(undo).await?;
    let reason = reason(&short);
    Ok((None, Some(StockRejected { order_id, reason })))
}

fn reason(short: &[&String]) -> String {
    let names = short.iter().map(|sku| match product(sku) {
        Some(product) => format!("not enough {} in stock", product.name),
        None => format!("`{sku}` is not in the catalogue"),
    });
    names.collect::<Vec<_>>().join("; ")
}

/// What is paid for leaves the house.
pub(crate) async fn ship(order: OrderConfirmed, State(db): State<Db>, mut tx: Tx) -> Result<()> {
    settle(&db, &mut tx, &order.order_id, "SHIPPED", SEND).await?;
    Ok(())
}

/// Orders cancels only after inventory has answered, so what there is to put back is known.
pub(crate) async fn release(
    order: OrderCancelled,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Option<StockReleased>> {
    let released = settle(&db, &mut tx, &order.order_id, "RELEASED", RELEASE).await?;
    Ok(released.then_some(StockReleased {
        order_id: order.order_id,
    }))
}

/// Both do nothing if the reservation has ended before.
const SEND: &str = "update stock set reserved = reserved - $2, shipped = shipped + $2
     where sku = $1 and exists
         (select 1 from reservation where order_id = $3 and status = 'RESERVED')";
const RELEASE: &str = "update stock set reserved = reserved - $2, available = available + $2
     where sku = $1 and exists
         (select 1 from reservation where order_id = $3 and status = 'RESERVED')";

/// Ends a reservation. False if there is none (any more).
async fn settle(
    db: &Db,
    tx: &mut Tx,
    order_id: &str,
    status: &'static str,
    step: &'static str,
) -> Result<bool> {
    let reserved = sql("select items from reservation where order_id = $1 and status = 'RESERVED'");
    let rows = db.read(reserved.bind(order_id)).await?;
    let Some(row) = rows.first() else {
        return Ok(false);
    };
    let lines: Lines = serde_json::from_str(&row.get::<String>(0)?).permanent()?;
    let steps = lines
        .iter()
        .map(|(sku, quantity)| sql(step).bind(sku).bind(*quantity).bind(order_id));
    let end = sql("update reservation set status = $2 where order_id = $1");
    let end = end.bind(order_id).bind(status);
    tx.later(steps.chain([end]).collect()).await?;
    Ok(true)
}

fn reservation(order_id: &str, lines: &Lines, status: &'static str) -> Result<Statement> {
    let insert = sql(
        "insert into reservation (order_id, items, status) values ($1, $2, $3)
         on conflict (order_id) do nothing",
    );
    let items = serde_json::to_string(lines).permanent()?;
    Ok(insert.bind(order_id).bind(items).bind(status))
}

fn take((sku, quantity): (&String, &i64)) -> Statement {
    sql(
        "update stock set available = available - $2, reserved = reserved + $2
         where sku = $1 and available >= $2",
    )
    .bind(sku)
    .bind(*quantity)
}

fn put_back((sku, quantity): (&String, &i64)) -> Statement {
    sql(
        "update stock set available = available + $2, reserved = reserved - $2
         where sku = $1",
    )
    .bind(sku)
    .bind(*quantity)
}
