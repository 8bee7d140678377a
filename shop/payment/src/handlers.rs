//! What payment does when something happens.

use shop_contracts::{
    Money, OrderCancelled, OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentRefunded,
};
use shop_kit::{Db, Statement, StoreError, Tx, sql};
use tidings::prelude::*;

use crate::bank::{Bank, BankError, Decision};

/// The money is asked for before the transaction begins: nothing waits while the bank thinks.
pub(crate) async fn settle(
    order: OrderPlaced,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<(Option<PaymentAuthorized>, Option<PaymentDeclined>)> {
    let asked = bank
        .charge(&order.order_id, order.amount, order.card.as_deref())
        .await;
    let decision = match asked {
        Ok(decision) => decision,
        Err(error) => {
            count_attempt(&db, &order, &error).await?;
            return Err(error.into());
        }
    };
    let status = match decision {
        Decision::Charged => "AUTHORIZED",
        Decision::Declined(_) => "DECLINED",
    };
    tx.later(vec![attempt(&order, status)]).await?;
    let order_id = order.order_id;
    Ok(match decision {
        Decision::Charged => (
            Some(PaymentAuthorized {
                order_id,
                amount: order.amount,
            }),
            None,
        ),
        Decision::Declined(reason) => (None, Some(PaymentDeclined { order_id, reason })),
    })
}

/// An attempt that failed is counted in a transaction of its own, because the handler's is undone.
async fn count_attempt(db: &Db, order: &OrderPlaced, error: &BankError) -> Result<(), StoreError> {
    if error.asked {
        db.write(vec![attempt(order, "PENDING")]).await?;
    }
    Ok(())
}

/// A payment that is settled stays as it is.
fn attempt(order: &OrderPlaced, status: &str) -> Statement {
    sql(
        "insert into payment (order_id, amount, status, attempts) values ($1, $2, $3, 1)
         on conflict (order_id) do update
         set attempts = payment.attempts + 1, status = excluded.status
         where payment.status = 'PENDING'",
    )
    .bind(&order.order_id)
    .bind(order.amount.cents())
    .bind(status)
}

/// Orders cancels only after payment has answered, so what there is to give back is known.
pub(crate) async fn give_back(
    order: OrderCancelled,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Option<PaymentRefunded>> {
    let authorized =
        sql("select amount from payment where order_id = $1 and status = 'AUTHORIZED'");
    let rows = db.read(authorized.bind(&order.order_id)).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let amount = Money::from_cents(row.get(0)?);
    bank.refund(&order.order_id).await?;
    let refund = sql("update payment set status = 'REFUNDED' where order_id = $1");
    tx.later(vec![refund.bind(&order.order_id)]).await?;
    Ok(Some(PaymentRefunded {
        order_id: order.order_id,
        amount,
    }))
}
