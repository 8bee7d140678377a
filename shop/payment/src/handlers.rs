//! What payment does when something happens. How the order of things is kept: [`record`].

use shop_contracts::{
    Money, OrderCancelled, OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentRefunded,
};
use shop_kit::{Db, Tx};
use tidings::{Error, Permanent, prelude::*};

use crate::{
    bank::{Bank, Decision, Refund},
    record::{self, Status},
};

/// Gives back what was taken for an order that is cancelled. Payment sends it to itself when it
/// finds, with the bank's answer in hand, that the order was cancelled meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[serde(rename_all = "camelCase")]
#[command(target = "payment", key = "order_id", id = "order_id")]
pub(crate) struct RefundPayment {
    order_id: String,
}

/// At most one of these comes of an order.
type Settled = (
    Option<PaymentAuthorized>,
    Option<PaymentDeclined>,
    Option<PaymentRefunded>,
    Option<RefundPayment>,
);

/// The money is asked for before the transaction begins: nothing waits while the bank thinks.
pub(crate) async fn settle(
    order: OrderPlaced,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Settled> {
    match record::status(&db, &order.order_id).await? {
        None | Some(Status::Pending) => {}
        Some(Status::Cancelled) => {
            // A charge may have been under way when its process died.
            let refund = bank.refund(&order.order_id).await?;
            tx.execute(record::amount(&order)).await?;
            let refunded = note(order.order_id, refund, &mut tx).await?;
            return Ok((None, None, refunded, None));
        }
        // It was answered before, so long ago that it is not known as a duplicate.
        Some(Status::Authorized | Status::Declined | Status::Refunded) => {
            return Ok((None, None, None, None));
        }
    }
    let asked = bank
        .charge(&order.order_id, order.amount, order.card.as_deref())
        .await;
    let decision = match asked {
        Ok(decision) => decision,
        Err(error) => {
            if error.was_asked() {
                record::count_attempt(&db, &order).await?;
            }
            return Err(error.into());
        }
    };
    let answered = match decision {
        Decision::Charged => Status::Authorized,
        Decision::Declined(_) => Status::Declined,
    };
    let status = record::settle(&mut tx, &order, answered).await?;
    let order_id = order.order_id;
    Ok(match (decision, status) {
        (Decision::Charged, Status::Authorized) => {
            let amount = order.amount;
            let authorized = PaymentAuthorized { order_id, amount };
            (Some(authorized), None, None, None)
        }
        (Decision::Declined(reason), Status::Declined) => {
            let declined = PaymentDeclined { order_id, reason };
            (None, Some(declined), None, None)
        }
        // The order was cancelled while the bank thought.
        (Decision::Charged, Status::Cancelled) => {
            (None, None, None, Some(RefundPayment { order_id }))
        }
        _ => (None, None, None, None),
    })
}

/// The fence is committed first, and for good: see [`record::fence`].
pub(crate) async fn cancel(
    order: OrderCancelled,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Option<PaymentRefunded>> {
    let status = record::fence(&db, &order.order_id).await?;
    if matches!(status, Status::Declined | Status::Refunded) {
        return Ok(None);
    }
    let refund = bank.refund(&order.order_id).await?;
    if status == Status::Authorized && refund == Refund::Nothing {
        let contradiction = format!(
            "the bank has charged the order `{}`, and now says that there is nothing to give \
             back; compare its ledger with the payment",
            order.order_id
        );
        return Err(Permanent::new(contradiction).into());
    }
    note(order.order_id, refund, &mut tx).await
}

pub(crate) async fn refund(
    command: RefundPayment,
    State(bank): State<Bank>,
    mut tx: Tx,
) -> Result<Option<PaymentRefunded>> {
    let refund = bank.refund(&command.order_id).await?;
    note(command.order_id, refund, &mut tx).await
}

/// Notes what came of a refund. Several may be asked for; the bank gives the money back once, and
/// it is said once.
async fn note(order_id: String, refund: Refund, tx: &mut Tx) -> Result<Option<PaymentRefunded>> {
    let Refund::GivenBack(amount) = refund else {
        return Ok(None);
    };
    let noted = record::refunded(tx, &order_id, amount).await?;
    if noted == Some(Money::ZERO) {
        return Err(Error::msg(format_args!(
            "the bank gave back the money of the order `{order_id}` without saying how much, and \
             the order itself has not come yet"
        )));
    }
    Ok(noted.map(|amount| PaymentRefunded { order_id, amount }))
}
