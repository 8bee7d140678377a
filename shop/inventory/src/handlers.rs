//! What inventory does when something happens or the checkout says so.
//!
//! There are two doors to the same business: an event of an order that nobody leads, and a command of the
//! checkout's saga. What happened is announced through both; the saga gets its answer besides.
//!
//! The row of an order in `reservation` is the fence between the order and its cancellation, which
//! may become known in any order and to two instances at once. Whoever comes first makes the row,
//! in the transaction that moves the stock; on PostgreSQL the other one waits at that row until the
//! first has committed, and then sees what it did.
//!
//! | the row says | `OrderPlaced` | `OrderCancelled` |
//! | --- | --- | --- |
//! | nothing | `RESERVED`, or `REJECTED` if something is missing | `CANCELLED`: nothing is reserved any more |
//! | `RESERVED` | was answered before | `RELEASED`: everything is put back |
//! | `REJECTED`, `RELEASED`, `CANCELLED`, `SHIPPED` | nothing to do, nothing to say | nothing to do |

use std::collections::BTreeMap;

use shop_contracts::{
    OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, StockRejected, StockReleased,
    StockReserved,
    commands::{ReleaseStock, ReserveStock, ShipStock},
    is_led_by_checkout, led_by_checkout, product,
};
use shop_kit::{Row, Statement, Tx, sql};
use tidings::{StepReply, With, prelude::*};

/// How many of the products that are not to be had a refusal names.
const PRODUCTS_NAMED_MAX: usize = 3;

/// Quantities by product; their sums cannot overflow, because an order has limits. The order of products is the same in every transaction, so that two of
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

/// The same from what the checkout asks for.
fn wanted(items: BTreeMap<String, u32>) -> Lines {
    let lines = items.into_iter().filter(|(_, quantity)| *quantity > 0);
    lines
        .map(|(sku, quantity)| (sku, quantity.into()))
        .collect()
}

/// Somebody placed an order, and nobody leads it.
pub(crate) async fn placed(
    order: OrderPlaced,
    mut tx: Tx,
) -> Result<(Option<StockReserved>, Option<StockRejected>)> {
    let put_aside = put_aside(order.order_id, &lines(&order.items), &mut tx).await?;
    Ok((put_aside.reserved, put_aside.rejected))
}

/// The checkout wants what an order needs.
pub(crate) async fn reserve(
    command: ReserveStock,
    mut tx: Tx,
) -> Result<(
    StepReply<()>,
    Option<With<StockReserved>>,
    Option<With<StockRejected>>,
)> {
    let PutAside {
        reply,
        reserved,
        rejected,
    } = put_aside(command.order_id, &wanted(command.items), &mut tx).await?;
    Ok((
        reply,
        reserved.map(led_by_checkout),
        rejected.map(led_by_checkout),
    ))
}

/// What came of putting aside what an order needs.
struct PutAside {
    /// For whoever asked.
    reply: StepReply<()>,
    /// For everybody; neither if it was said before.
    reserved: Option<StockReserved>,
    rejected: Option<StockRejected>,
}

/// All or nothing. A foreign order may name no items: then there is nothing to put aside.
async fn put_aside(order_id: String, lines: &Lines, tx: &mut Tx) -> Result<PutAside> {
    // The stock comes last: on PostgreSQL everybody who wants the same product waits for whoever
    // has just taken some, until that is committed.
    let reserve = reservation(&order_id, lines, "RESERVED")?;
    if tx.execute(reserve).await? == 0 {
        return answered_before(&order_id, tx).await;
    }
    let (mut taken, mut short) = (Vec::new(), Vec::new());
    for line in lines {
        match tx.execute(take(line)).await? {
            0 => short.push(&**line.0),
            _ => taken.push(line),
        }
    }
    if short.is_empty() {
        return Ok(PutAside {
            reply: StepReply::Done(()),
            reserved: Some(StockReserved { order_id }),
            rejected: None,
        });
    }
    for line in taken {
        tx.execute(put_back(line)).await?;
    }
    let reject = sql("update reservation set status = 'REJECTED' where order_id = $1");
    tx.execute(reject.bind(&order_id)).await?;
    let reason = reason(&short);
    Ok(PutAside {
        reply: StepReply::refused(&*reason),
        reserved: None,
        rejected: Some(StockRejected { order_id, reason }),
    })
}

/// It is cancelled, or was answered by the other door, or so long ago that it is not known as a
/// duplicate.
async fn answered_before(order_id: &str, tx: &mut Tx) -> Result<PutAside> {
    let query = sql("select status from reservation where order_id = $1");
    let status: Option<String> = match tx.first(query.bind(order_id)).await? {
        Some(row) => row.get(0)?,
        None => None,
    };
    let reply = match status.as_deref() {
        Some("RESERVED" | "SHIPPED") => StepReply::Done(()),
        Some("REJECTED") => StepReply::refused("not everything is in stock"),
        _ => StepReply::refused("the order was cancelled before"),
    };
    Ok(PutAside {
        reply,
        reserved: None,
        rejected: None,
    })
}

/// Names the first few: an order may have thousands of products, and a message has a limit.
fn reason(short: &[&str]) -> String {
    let named = short.iter().take(PRODUCTS_NAMED_MAX);
    let named = named.map(|sku| match product(sku) {
        Some(product) => format!("not enough {} in stock", product.name),
        None => format!("`{sku}` is not in the catalogue"),
    });
    let mut reason = named.collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = short.len().checked_sub(PRODUCTS_NAMED_MAX) {
        reason.push_str(&format!("; and {more} more products are not to be had"));
    }
    reason
}

/// An order is confirmed. If the checkout leads it, that says when it is to be sent.
pub(crate) async fn confirmed(order: OrderConfirmed, metadata: Metadata, tx: Tx) -> Result<()> {
    match is_led_by_checkout(&metadata) {
        true => Ok(()),
        false => send_off(&order.order_id, tx).await,
    }
}

/// The checkout has the goods of an order sent.
pub(crate) async fn ship(command: ShipStock, tx: Tx) -> Result<()> {
    send_off(&command.order_id, tx).await
}

/// What is paid for leaves the house. Nothing happens if the reservation has ended before.
async fn send_off(order_id: &str, mut tx: Tx) -> Result<()> {
    let end = sql("update reservation set status = 'SHIPPED'
         where order_id = $1 and status = 'RESERVED' returning items");
    let Some(row) = tx.first(end.bind(order_id)).await? else {
        return Ok(());
    };
    for line in &reserved(&row)? {
        tx.execute(send(line)).await?;
    }
    Ok(())
}

/// An order is cancelled, whoever led it.
pub(crate) async fn cancelled(order: OrderCancelled, tx: Tx) -> Result<Option<StockReleased>> {
    give_back(order.order_id, tx).await
}

/// The checkout does not want the goods of an order any more.
pub(crate) async fn release(command: ReleaseStock, tx: Tx) -> Result<Option<StockReleased>> {
    give_back(command.order_id, tx).await
}

/// Puts back what is reserved, or sees to it that nothing will be.
async fn give_back(order_id: String, mut tx: Tx) -> Result<Option<StockReleased>> {
    let end = sql(
        "insert into reservation (order_id, items, status) values ($1, '{}', 'CANCELLED')
         on conflict (order_id) do update set status = 'RELEASED'
         where reservation.status = 'RESERVED'
         returning items, status",
    );
    let row = match tx.first(end.bind(&order_id)).await? {
        Some(row) if row.get::<String>(1)? == "RELEASED" => row,
        // It had ended before, or the order comes later, and finds that it is cancelled.
        Some(_) | None => return Ok(None),
    };
    for line in &reserved(&row)? {
        tx.execute(put_back(line)).await?;
    }
    Ok(Some(StockReleased { order_id }))
}

/// What was put aside, from a row of `items`.
fn reserved(row: &Row) -> Result<Lines> {
    serde_json::from_str(&row.get::<String>(0)?).permanent()
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

fn send((sku, quantity): (&String, &i64)) -> Statement {
    sql(
        "update stock set reserved = reserved - $2, shipped = shipped + $2
         where sku = $1",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_a_few_products_and_counts_the_others() {
        let check = |short: &[&str], expected: &str| assert_eq!(reason(short), expected);
        check(&["GLOBE-ANTIQUE"], "not enough Antique globe in stock");
        check(
            &["GLOBE-ANTIQUE", "a", "b"],
            "not enough Antique globe in stock; `a` is not in the catalogue; \
             `b` is not in the catalogue",
        );
        let many = vec!["x"; 2000];
        let x = "`x` is not in the catalogue";
        let expected = format!("{x}; {x}; {x}; and 1997 more products are not to be had");
        check(&many, &expected);
    }
}
