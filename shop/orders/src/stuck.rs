//! Orders that wait longer than is usual, for whom, and where to look.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use shop_contracts::CheckoutStyle;
use shop_kit::{Db, Row, Statement, StoreError, sql};

use crate::{
    OrderDeadline,
    deadline::earlier,
    orders::{self, Answers},
};

/// How long an order may wait before it counts as stuck. Answers come within a second; 30 seconds
/// are enough for a service or a broker to be restarted and for a bank that is slow, so what waits
/// longer is worth a look.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The most that are counted: a gauge that shows this much says enough.
const STUCK_COUNT_MAX: u32 = 10_000;

/// An order that waits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stuck {
    pub(crate) order_id: String,
    placed_at: Timestamp,
    /// The services whose answers are missing, separated by commas; if an order is led, the one that is
    /// asked now.
    waits_for: String,
    reason: String,
}

/// Orders are stuck when they were placed then or before.
fn cutoff(deadline: OrderDeadline, now: Timestamp) -> Timestamp {
    earlier(now, STUCK_AFTER.min(deadline.after()))
}

/// How many orders are stuck, up to a maximum.
pub(crate) async fn count(
    db: &Db,
    deadline: OrderDeadline,
    now: Timestamp,
) -> Result<u32, StoreError> {
    let query = sql("select count(*) from
         (select order_id from orders where status = 'CREATED' and placed_at <= $1
          order by placed_at limit $2) as stuck");
    let query = query
        .bind(cutoff(deadline, now).as_microsecond())
        .bind(i64::from(STUCK_COUNT_MAX));
    let rows = db.read(query).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.get(0))?;
    Ok(u32::try_from(count).unwrap_or(STUCK_COUNT_MAX))
}

/// The orders that are stuck, oldest first; those after `after` if that is given.
pub(crate) async fn list(
    db: &Db,
    deadline: OrderDeadline,
    style: CheckoutStyle,
    limit: u32,
    after: Option<&str>,
) -> Result<Vec<Stuck>, StoreError> {
    let now = Timestamp::now();
    let rows = db.read(query(cutoff(deadline, now), limit, after)).await?;
    let stuck = rows.iter().map(|row| stuck(row, deadline, style, now));
    stuck.collect()
}

/// Those from `$1` or before, at most `$2`.
pub(crate) const FIRST_PAGE: &str = "select order_id, placed_at, amount, payment, stock from orders
     where status = 'CREATED' and placed_at <= $1
     order by placed_at, order_id limit $2";

/// The same after the order `$3`, whatever has become of that one.
pub(crate) const NEXT_PAGE: &str = "select order_id, placed_at, amount, payment, stock from orders
     where status = 'CREATED' and placed_at <= $1
       and (placed_at, order_id) > (select placed_at, order_id from orders where order_id = $3)
     order by placed_at, order_id limit $2";

fn query(cutoff: Timestamp, limit: u32, after: Option<&str>) -> Statement {
    let bound = |text| {
        sql(text)
            .bind(cutoff.as_microsecond())
            .bind(i64::from(limit))
    };
    match after {
        None => bound(FIRST_PAGE),
        Some(after) => bound(NEXT_PAGE).bind(after),
    }
}

fn stuck(
    row: &Row,
    deadline: OrderDeadline,
    style: CheckoutStyle,
    now: Timestamp,
) -> Result<Stuck, StoreError> {
    let placed_at = shop_kit::timestamp(row.get(1)?)?;
    let is_placed = row.get::<Option<i64>>(2)?.is_some();
    let answers = Answers {
        payment: row.get(3)?,
        stock: row.get(4)?,
    };
    let order_id: String = row.get(0)?;
    let is_over = placed_at <= deadline.cutoff(now);
    let over = match is_over {
        true => format!("; its deadline of {deadline} is over, it is being cancelled"),
        false => String::new(),
    };
    let mut waits_for = waits_for(is_placed, &answers);
    let reason = match style {
        // Both have answered: only the checkout leaves it at that.
        CheckoutStyle::Choreography if !waits_for.is_empty() => reason(&waits_for, placed_at),
        _ if !is_placed => reason(&waits_for, placed_at),
        _ => {
            let who = led_waits_for(&answers);
            waits_for = vec![who];
            led_reason(&order_id, who, placed_at)
        }
    };
    Ok(Stuck {
        order_id,
        placed_at,
        waits_for: waits_for.join(","),
        reason: reason + &over,
    })
}

/// The checkout asks one after the other, and then decides.
fn led_waits_for(answers: &Answers) -> &'static str {
    match (&answers.stock, &answers.payment) {
        (None, _) => orders::INVENTORY,
        (_, None) => orders::PAYMENT,
        _ => orders::CHECKOUT,
    }
}

fn led_reason(order_id: &str, who: &str, since: Timestamp) -> String {
    let (what, queue) = match who {
        orders::INVENTORY => ("answered the checkout", "inventory.reserve-stock.v1"),
        orders::PAYMENT => ("answered the checkout", "payment.charge-card.v1"),
        _ => ("decided", "checkout.tidings.step-answer.v1"),
    };
    format!(
        "since {since:.0} {who} has not {what}; look whether the services run, at the saga \
         `checkout/{order_id}`, and at the queues `checkout.order-placed.v1` and `{queue}` and their \
         dead letters (`.dead`)"
    )
}

/// An order that was answered but never heard of itself waits for whoever placed it.
fn waits_for(is_placed: bool, answers: &Answers) -> Vec<&'static str> {
    if !is_placed {
        return vec!["orders"];
    }
    let missing = [
        (orders::PAYMENT, &answers.payment),
        (orders::INVENTORY, &answers.stock),
    ];
    let missing = missing.into_iter().filter(|(_, answer)| answer.is_none());
    missing.map(|(service, _)| service).collect()
}

fn reason(waits_for: &[&str], since: Timestamp) -> String {
    let who = waits_for.join(" and ");
    let (have, said) = match waits_for {
        ["orders"] => ("has", "heard of the order itself, only of answers to it"),
        [_] => ("has", "answered"),
        _ => ("have", "answered"),
    };
    let queues = waits_for
        .iter()
        .map(|service| format!("`{service}.order-placed.v1`"));
    let queues = queues.collect::<Vec<_>>().join(" and ");
    format!(
        "since {since:.0} {who} {have} not {said}; look whether the service runs, and at the queue \
         {queues} and its dead letters (`.dead`)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_waits_for_whoever_has_not_answered() {
        let check = |is_placed, payment: Option<&str>, stock: Option<&str>, expected: &str| {
            let answers = Answers {
                payment: payment.map(Into::into),
                stock: stock.map(Into::into),
            };
            assert_eq!(waits_for(is_placed, &answers).join(","), expected);
            let led = match (stock, payment) {
                (None, _) => "inventory",
                (Some(_), None) => "payment",
                (Some(_), Some(_)) => "checkout",
            };
            assert_eq!(led_waits_for(&answers), led);
        };
        check(true, None, None, "payment,inventory");
        check(true, Some("ACCEPTED"), None, "inventory");
        check(true, None, Some("ACCEPTED"), "payment");
        check(false, Some("ACCEPTED"), None, "orders");
        check(true, Some("ACCEPTED"), Some("ACCEPTED"), "");
    }

    #[test]
    fn the_reason_says_since_when_and_where_to_look() {
        let since = "2026-11-23T12:00:00.25Z".parse().unwrap();
        assert_eq!(
            reason(&["payment"], since),
            "since 2026-11-23T12:00:00Z payment has not answered; look whether the service runs, \
             and at the queue `payment.order-placed.v1` and its dead letters (`.dead`)"
        );
        let both = reason(&["payment", "inventory"], since);
        assert!(
            both.contains("payment and inventory have not answered"),
            "{both}"
        );
        let led = led_reason("o-1", "payment", since);
        assert!(
            led.starts_with("since 2026-11-23T12:00:00Z payment has not answered the checkout")
                && led.contains("`checkout/o-1`")
                && led.contains("`payment.charge-card.v1`"),
            "{led}"
        );
    }
}
