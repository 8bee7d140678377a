//! What became of the money of each order: one row, which is also the fence between an order and
//! its cancellation.
//!
//! `OrderCancelled` may come before, while or after `OrderPlaced` is handled, and either may be
//! handled again after the process died anywhere. Every statement here is one step that first locks
//! the row (or makes it), so that of two transactions at the same time, on PostgreSQL too, the
//! later one sees what the earlier one did.
//!
//! (An order that the checkout leads is told by `ChargeCard`, and its end by `CancelCharge` or
//! `RefundCard`, to the same effect.)
//!
//! | the row says | `OrderPlaced` | `OrderCancelled` |
//! | --- | --- | --- |
//! | nothing, or `PENDING` | charges; then `AUTHORIZED` or `DECLINED` | `CANCELLED`, and asks the bank for a refund |
//! | `CANCELLED` | charges nothing, asks for a refund | asks for a refund |
//! | `AUTHORIZED` | was answered before | asks for a refund |
//! | `DECLINED`, `REFUNDED` | was answered before | there is nothing to do |
//!
//! A refund is asked for by the order's key even if no charge is known, because one may have been
//! under way when its process died; `REFUNDED` is said only if money went back. A charge that
//! succeeds while the cancellation is handled finds `CANCELLED` when it is to be recorded, and then
//! payment tells itself to give it back ([`RefundPayment`](crate::handlers::RefundPayment)).

use std::str::FromStr;

use shop_contracts::{Money, commands::ChargeCard};
use shop_kit::{Db, Statement, StoreError, Tx, sql};

/// How far the payment of an order has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The bank has given no answer yet.
    Pending,
    /// The money was taken.
    Authorized,
    /// The bank said no.
    Declined,
    /// The order is cancelled, and as far as is known nothing was taken for it.
    Cancelled,
    /// The order is cancelled, and what was taken for it went back.
    Refunded,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Authorized => "AUTHORIZED",
            Self::Declined => "DECLINED",
            Self::Cancelled => "CANCELLED",
            Self::Refunded => "REFUNDED",
        }
    }
}

impl FromStr for Status {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let all = [
            Self::Pending,
            Self::Authorized,
            Self::Declined,
            Self::Cancelled,
            Self::Refunded,
        ];
        let named = all.into_iter().find(|status| status.as_str() == text);
        named.ok_or_else(|| {
            StoreError::new(format!(
                "a payment has the unknown status `{text}`; was it written by a newer version?"
            ))
        })
    }
}

/// What is committed about an order; `None` if payment has not heard of it.
pub(crate) async fn status(db: &Db, order_id: &str) -> Result<Option<Status>, StoreError> {
    let query = sql("select status from payment where order_id = $1");
    let rows = db.read(query.bind(order_id)).await?;
    let row = rows.first();
    row.map(|row| row.get::<String>(0)?.parse()).transpose()
}

/// Counts an attempt that got no answer, in a transaction of its own because the handler's is
/// undone.
pub(crate) async fn count_attempt(db: &Db, charge: &ChargeCard) -> Result<(), StoreError> {
    db.execute(attempt(charge, Status::Pending)).await?;
    Ok(())
}

/// Records what the bank answered, unless the row is settled; says how the row stands.
pub(crate) async fn settle(
    tx: &mut Tx,
    charge: &ChargeCard,
    answered: Status,
) -> Result<Status, StoreError> {
    one_status(tx.first(attempt(charge, answered)).await?)
}

/// An order that was cancelled before payment heard of it gets its amount now.
fn attempt(charge: &ChargeCard, status: Status) -> Statement {
    sql(
        "insert into payment (order_id, amount, status, attempts) values ($1, $2, $3, 1)
         on conflict (order_id) do update set
             attempts = payment.attempts + 1,
             amount = case when payment.status in ('PENDING', 'CANCELLED')
                 then excluded.amount else payment.amount end,
             status = case when payment.status = 'PENDING'
                 then excluded.status else payment.status end
         returning status",
    )
    .bind(&charge.order_id)
    .bind(charge.amount.cents())
    .bind(status.as_str())
}

/// Forbids the charge of a cancelled order for ever, unless the bank has decided on it; says how
/// the row stands.
///
/// It is committed before the bank is asked for a refund: a charge that begins later sees it, and
/// one that is under way finds it when it is to be recorded.
pub(crate) async fn fence(db: &Db, order_id: &str) -> Result<Status, StoreError> {
    let fence = sql(
        "insert into payment (order_id, amount, status, attempts) values ($1, 0, 'CANCELLED', 0)
         on conflict (order_id) do update set
             status = case when payment.status = 'PENDING'
                 then 'CANCELLED' else payment.status end
         returning status",
    );
    one_status(db.first(fence.bind(order_id)).await?)
}

/// Notes the amount of an order that was cancelled before payment heard of it.
pub(crate) fn amount(order_id: &str, amount: Money) -> Statement {
    sql("update payment set amount = $2 where order_id = $1 and status = 'CANCELLED'")
        .bind(order_id)
        .bind(amount.cents())
}

/// Notes that the money went back, and says how much; `None` if that was noted before. What the
/// bank says about the amount counts more than what was asked for.
pub(crate) async fn refunded(
    tx: &mut Tx,
    order_id: &str,
    amount: Option<Money>,
) -> Result<Option<Money>, StoreError> {
    let refund = sql(
        "update payment set status = 'REFUNDED', amount = coalesce($2, amount)
         where order_id = $1 and status in ('AUTHORIZED', 'CANCELLED')
         returning amount",
    );
    let refund = refund.bind(order_id).bind(amount.map(Money::cents));
    let row = tx.first(refund).await?;
    row.map(|row| row.get(0).map(Money::from_cents)).transpose()
}

fn one_status(row: Option<shop_kit::Row>) -> Result<Status, StoreError> {
    let row = row.ok_or_else(|| StoreError::new("a payment was written, but not returned"))?;
    row.get::<String>(0)?.parse()
}
