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
    // The stock comes last: on PostgreSQL everybody who wants the same product waits for whoever
    // has just taken some, until that is committed.
    let mut statements = vec![reservation(&order_id, &lines, "RESERVED")?];
    statements.extend(lines.iter().map(take));
    let mut outcomes = tx.run_all(statements).await?;
    let is_new = outcomes.remove(0).affected > 0;
    let (taken, short): (Vec<_>, Vec<_>) = lines
        .iter()
        .zip(&outcomes)
        .partition(|(_, outcome)| outcome.affected > 0);
    if is_new && short.is_empty() {
        return Ok((Some(StockReserved { order_id }), None));
    }
    let undo = taken.into_iter().map(|(line, _)| put_back(line));
    if !is_new {
        // The order was answered before, so long ago that it is not known as a duplicate.
        tx.later(undo.collect()).await?;
        return Ok((None, None));
    }
    let reject = sql("update reservation set status = 'REJECTED' where order_id = $1");
    tx.later(undo.chain([reject.bind(&order_id)]).collect())
        .await?;
    let reason = reason(short.into_iter().map(|((sku, _), _)| sku));
    Ok((None, Some(StockRejected { order_id, reason })))
}

fn reason<'a>(short: impl Iterator<Item = &'a String>) -> String {
    let names = short.map(|sku| match product(sku) {
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
