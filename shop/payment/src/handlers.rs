//! What payment does when something happens or the checkout says so. How the order of things is kept:
//! [`record`].
//!
//! There are two doors to the same business: an event of an order that nobody leads, and a command of the
//! checkout's saga. What happened is announced through both; the saga gets its answer besides.

use std::time::Duration;

use shop_contracts::{
    Money, OrderCancelled, OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentRefunded,
    commands::{CancelCharge, CardCharged, ChargeCard, RefundCard},
    led_by_checkout,
};
use shop_kit::{Db, Tx};
use tidings::{Error, Permanent, StepReply, With, prelude::*};

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

/// What is announced about the money of an order; at most one of these.
#[derive(Default)]
struct Facts {
    authorized: Option<PaymentAuthorized>,
    declined: Option<PaymentDeclined>,
    refunded: Option<PaymentRefunded>,
}

/// What came of asking for the money of an order.
struct Settled {
    /// For whoever asked.
    reply: StepReply<CardCharged>,
    /// For everybody; empty if it was said before.
    facts: Facts,
    /// The order was cancelled while the bank thought, and the money is to go back.
    give_back: Option<RefundPayment>,
}

impl Settled {
    fn with(reply: StepReply<CardCharged>, facts: Facts) -> Self {
        Self {
            reply,
            facts,
            give_back: None,
        }
    }

    fn cancelled(refunded: Option<PaymentRefunded>) -> Self {
        let facts = Facts {
            refunded,
            ..Facts::default()
        };
        Self::with(StepReply::refused("the order was cancelled before"), facts)
    }
}

/// Somebody placed an order, and nobody leads it.
pub(crate) async fn placed(
    order: OrderPlaced,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<(
    Option<PaymentAuthorized>,
    Option<PaymentDeclined>,
    Option<PaymentRefunded>,
    Option<RefundPayment>,
)> {
    let settled = settle(order.into(), &bank, &db, &mut tx).await?;
    let Facts {
        authorized,
        declined,
        refunded,
    } = settled.facts;
    Ok((authorized, declined, refunded, settled.give_back))
}

/// What is announced for the checkout: it decides, and nobody else.
type Led = (
    Option<With<PaymentAuthorized>>,
    Option<With<PaymentDeclined>>,
    Option<PaymentRefunded>,
);

/// The checkout wants the money of an order.
pub(crate) async fn charge(
    command: ChargeCard,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<(StepReply<CardCharged>, Led, Option<RefundPayment>)> {
    let settled = settle(command, &bank, &db, &mut tx).await?;
    let Facts {
        authorized,
        declined,
        refunded,
    } = settled.facts;
    let led = (
        authorized.map(led_by_checkout),
        declined.map(led_by_checkout),
        refunded,
    );
    Ok((settled.reply, led, settled.give_back))
}

/// The money is asked for before the transaction begins: nothing waits while the bank thinks.
async fn settle(charge: ChargeCard, bank: &Bank, db: &Db, tx: &mut Tx) -> Result<Settled> {
    let amount = charge.amount;
    match record::status(db, &charge.order_id).await? {
        None | Some(Status::Pending) => {}
        Some(Status::Cancelled) => {
            // A charge may have been under way when its process died.
            let refund = bank.refund(&charge.order_id).await?;
            tx.execute(record::amount(&charge.order_id, amount)).await?;
            let refunded = note(charge.order_id, refund, tx).await?;
            return Ok(Settled::cancelled(refunded));
        }
        // It was answered before: by the other door, or so long ago that it is not known as a
        // duplicate.
        Some(Status::Authorized) => {
            let charged = StepReply::Done(CardCharged { amount });
            return Ok(Settled::with(charged, Facts::default()));
        }
        Some(Status::Declined) => {
            let declined = StepReply::refused("the card was declined");
            return Ok(Settled::with(declined, Facts::default()));
        }
        Some(Status::Refunded) => return Ok(Settled::cancelled(None)),
    }
    let asked = bank.charge(&charge.order_id, amount, charge.card.as_deref());
    let decision = match asked.await {
        Ok(decision) => decision,
        Err(error) => {
            if error.was_asked() {
                record::count_attempt(db, &charge).await?;
            }
            return Err(error.into());
        }
    };
    let answered = match decision {
        Decision::Charged => Status::Authorized,
        Decision::Declined(_) => Status::Declined,
    };
    let status = record::settle(tx, &charge, answered).await?;
    let order_id = charge.order_id;
    Ok(match (decision, status) {
        (Decision::Charged, Status::Authorized) => {
            let facts = Facts {
                authorized: Some(PaymentAuthorized { order_id, amount }),
                ..Facts::default()
            };
            Settled::with(StepReply::Done(CardCharged { amount }), facts)
        }
        (Decision::Declined(reason), Status::Declined) => {
            let reply = StepReply::refused(&*reason);
            let facts = Facts {
                declined: Some(PaymentDeclined { order_id, reason }),
                ..Facts::default()
            };
            Settled::with(reply, facts)
        }
        // The order was cancelled while the bank thought.
        (Decision::Charged, Status::Cancelled) => Settled {
            give_back: Some(RefundPayment { order_id }),
            ..Settled::cancelled(None)
        },
        _ => Settled::cancelled(None),
    })
}

/// An order is cancelled, whoever led it.
pub(crate) async fn cancelled(
    order: OrderCancelled,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Option<PaymentRefunded>> {
    give_back(order.order_id, None, &bank, &db, &mut tx).await
}

/// A charge that is under way when it is cancelled has ended by then, well or not: it may not take
/// longer at the bank.
const CHARGE_ENDS: Duration = Duration::from_secs(10);

/// The checkout does not want the money any more, and does not know whether it was taken.
///
/// If the bank has the charge in hand at this moment, what came of it is not recorded: the step is
/// cancelled then, and with it all that its handler wrote. So the money is asked back once more when that
/// charge has ended. A bank that keeps to its keys has nothing to give back then.
pub(crate) async fn cancel(
    command: CancelCharge,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<(Option<PaymentRefunded>, With<RefundPayment>)> {
    let order_id = command.order_id.clone();
    let once_more = RefundPayment { order_id }.after(CHARGE_ENDS);
    let amount = Some(command.amount);
    let refunded = give_back(command.order_id, amount, &bank, &db, &mut tx).await?;
    Ok((refunded, once_more))
}

/// The checkout undoes the charge.
pub(crate) async fn refund(
    command: RefundCard,
    State(bank): State<Bank>,
    State(db): State<Db>,
    mut tx: Tx,
) -> Result<Option<PaymentRefunded>> {
    give_back(command.order_id, None, &bank, &db, &mut tx).await
}

/// The fence is committed first, and for good: see [`record::fence`]. `amount` is what was asked for, if
/// that is known here.
async fn give_back(
    order_id: String,
    amount: Option<Money>,
    bank: &Bank,
    db: &Db,
    tx: &mut Tx,
) -> Result<Option<PaymentRefunded>> {
    let status = record::fence(db, &order_id).await?;
    if matches!(status, Status::Declined | Status::Refunded) {
        return Ok(None);
    }
    let refund = bank.refund(&order_id).await?;
    if status == Status::Authorized && refund == Refund::Nothing {
        let contradiction = format!(
            "the bank has charged the order `{order_id}`, and now says that there is nothing to give \
             back; compare its ledger with the payment"
        );
        return Err(Permanent::new(contradiction).into());
    }
    if let Some(amount) = amount {
        tx.execute(record::amount(&order_id, amount)).await?;
    }
    note(order_id, refund, tx).await
}

/// The money of a charge that was found to be cancelled.
pub(crate) async fn refund_late(
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
