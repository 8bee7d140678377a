//! What orders does when something happens or the checkout says so.
//!
//! An order that nobody leads is decided by the answers of payment and inventory. An answer that was given
//! to the checkout is noted, and decides nothing: the checkout says how the order ends.

use jiff::Timestamp;
use shop_contracts::{
    EmailSent, Money, OrderCancelled, OrderConfirmed, OrderPlaced, OrderStatus, PaymentAuthorized,
    PaymentDeclined, PaymentRefunded, PointsAwarded, ShipmentBooked, StockRejected, StockReleased,
    StockReserved,
    commands::{CancelOrder, ConfirmOrder},
    is_led_by_checkout, led_by_checkout,
};
use shop_kit::Tx;
use tidings::{Error, Permanent, StepReply, With, prelude::*};

use crate::orders::{self, Answer, Decision, Known};

/// The longest order id, as in the contracts; an answer to a longer one answers no order.
const ORDER_ID_BYTES_MAX: usize = 64;

/// At most one of the two.
type Decided = (Option<OrderConfirmed>, Option<OrderCancelled>);

/// An order of this shop was stored together with the event, and is known; one that a foreign
/// program placed becomes known now, and may have been answered before. Who says they sent it does
/// not matter: whatever is charged and reserved has to be known here.
pub(crate) async fn adopt(order: OrderPlaced, mut tx: Tx) -> Result<Decided> {
    match tx.first(orders::adopt(&order)).await? {
        Some(row) => decide(order.order_id, Known::from_row(&row)?, &mut tx).await,
        None => Ok((None, None)),
    }
}

pub(crate) async fn payment_authorized(
    event: PaymentAuthorized,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Payment { refused: None };
    answered(event.order_id, &answer, &metadata, tx).await
}

pub(crate) async fn payment_declined(
    event: PaymentDeclined,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Payment {
        refused: Some(event.reason),
    };
    answered(event.order_id, &answer, &metadata, tx).await
}

pub(crate) async fn stock_reserved(
    event: StockReserved,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Stock { refused: None };
    answered(event.order_id, &answer, &metadata, tx).await
}

pub(crate) async fn stock_rejected(
    event: StockRejected,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Stock {
        refused: Some(event.reason),
    };
    answered(event.order_id, &answer, &metadata, tx).await
}

async fn answered(
    order_id: String,
    answer: &Answer,
    metadata: &Metadata,
    mut tx: Tx,
) -> Result<Decided> {
    check_id(&order_id)?;
    let at = time(metadata);
    let is_led = is_led_by_checkout(metadata);
    let answered = orders::answered(&order_id, answer, is_led, at);
    let row = tx.first(answered).await?;
    match row.map(|row| Known::from_row(&row)).transpose()? {
        Some(order) if !order.has_ended() => decide(order_id, order, &mut tx).await,
        // The order has ended, or the same service has answered before: this decides nothing.
        _ => {
            tx.execute(orders::noted(&order_id, answer.event(), at))
                .await?;
            Ok((None, None))
        }
    }
}

/// No order has such an id, and not every database could keep it.
fn check_id(order_id: &str) -> Result<()> {
    let length = order_id.len();
    if (1..=ORDER_ID_BYTES_MAX).contains(&length) && !order_id.chars().any(char::is_control) {
        return Ok(());
    }
    let why =
        format!("`orderId` must have 1 to {ORDER_ID_BYTES_MAX} bytes and no control characters");
    Err(Permanent::new(why).into())
}

/// Once it was placed, and one has refused or both have accepted.
async fn decide(order_id: String, known: Known, tx: &mut Tx) -> Result<Decided> {
    let Some(decision) = known.decision() else {
        return Ok((None, None));
    };
    tx.execute(orders::decided(&order_id, &decision)).await?;
    Ok(match decision {
        Decision::Confirm { amount } => {
            let (customer_id, email) = (known.customer_id, known.email);
            (
                Some(OrderConfirmed {
                    order_id,
                    amount,
                    customer_id,
                    email,
                }),
                None,
            )
        }
        Decision::Cancel { reason } => {
            let email = known.email;
            (
                None,
                Some(OrderCancelled {
                    order_id,
                    reason,
                    email,
                }),
            )
        }
    })
}

/// The checkout confirms an order. It is refused if the order was cancelled meanwhile: at its deadline.
pub(crate) async fn confirm(
    command: ConfirmOrder,
    mut tx: Tx,
) -> Result<(StepReply<()>, Option<With<OrderConfirmed>>)> {
    let order_id = command.order_id;
    if let Some(row) = tx.first(orders::confirmed(&order_id)).await? {
        let confirmed = OrderConfirmed {
            amount: Money::from_cents(row.get(0)?),
            customer_id: row.get(1)?,
            email: row.get(2)?,
            order_id,
        };
        return Ok((StepReply::Done(()), Some(led_by_checkout(confirmed))));
    }
    let (status, reason) = ended(&order_id, &mut tx).await?;
    let reply = match status == OrderStatus::Confirmed.as_str() {
        true => StepReply::Done(()),
        false => StepReply::refused(reason.unwrap_or_else(|| "the order is cancelled".to_owned())),
    };
    Ok((reply, None))
}

/// The checkout cancels an order, after everything that was done for it is undone.
pub(crate) async fn cancel(command: CancelOrder, mut tx: Tx) -> Result<Option<OrderCancelled>> {
    let order_id = command.order_id;
    let cancelled = orders::cancelled(&order_id, &command.reason);
    let Some(row) = tx.first(cancelled).await? else {
        ended(&order_id, &mut tx).await?;
        return Ok(None);
    };
    Ok(Some(OrderCancelled {
        reason: row.get(0)?,
        email: row.get(1)?,
        order_id,
    }))
}

/// How an order ended, with the reason if it is cancelled.
///
/// # Errors
///
/// When it has not ended, because orders has not heard of it: then the checkout was faster, and the
/// order comes.
async fn ended(order_id: &str, tx: &mut Tx) -> Result<(String, Option<String>)> {
    let known = tx.first(orders::status(order_id)).await?;
    let known = known.map(|row| Ok::<_, Error>((row.get::<String>(0)?, row.get(1)?)));
    match known.transpose()? {
        Some((status, reason)) if status != OrderStatus::Created.as_str() => Ok((status, reason)),
        _ => Err(Error::msg(format_args!(
            "the checkout ends the order `{order_id}`, which orders has not heard of yet"
        ))),
    }
}

/// Events that only the timeline shows.
macro_rules! noted {
    ($($handler:ident: $event:ident;)*) => {$(
        pub(crate) async fn $handler(event: $event, metadata: Metadata, mut tx: Tx) -> Result<()> {
            check_id(&event.order_id)?;
            let at = time(&metadata);
            tx.execute(orders::noted(&event.order_id, stringify!($event), at)).await?;
            Ok(())
        }
    )*};
}

noted! {
    payment_refunded: PaymentRefunded;
    stock_released: StockReleased;
    shipment_booked: ShipmentBooked;
    email_sent: EmailSent;
    points_awarded: PointsAwarded;
}

/// When it happened, as far as its sender says.
fn time(metadata: &Metadata) -> Timestamp {
    metadata.time.unwrap_or_else(Timestamp::now)
}
