//! What orders does when something happens.

use jiff::Timestamp;
use shop_contracts::{
    EmailSent, OrderCancelled, OrderConfirmed, OrderPlaced, PaymentAuthorized, PaymentDeclined,
    PaymentRefunded, PointsAwarded, ShipmentBooked, StockRejected, StockReleased, StockReserved,
};
use shop_kit::Tx;
use tidings::prelude::*;

use crate::{
    NAME,
    orders::{self, Answer, Decision, Known},
};

/// At most one of the two.
type Decided = (Option<OrderConfirmed>, Option<OrderCancelled>);

/// An order of this shop was stored together with the event; one that a foreign program placed
/// becomes known now, and may have been answered before.
pub(crate) async fn adopt(order: OrderPlaced, metadata: Metadata, mut tx: Tx) -> Result<Decided> {
    if metadata.source == NAME {
        return Ok((None, None));
    }
    let adopted = tx.run(orders::adopt(&order)).await?.into_first();
    let Some(row) = adopted else {
        return Ok((None, None));
    };
    let placed = orders::happened(&order.order_id, "OrderPlaced", Timestamp::now());
    tx.later(vec![placed]).await?;
    decide(order.order_id, Known::from_row(&row)?, &mut tx).await
}

pub(crate) async fn payment_authorized(
    event: PaymentAuthorized,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Payment { refused: None };
    answered(event.order_id, "PaymentAuthorized", &answer, &metadata, tx).await
}

pub(crate) async fn payment_declined(
    event: PaymentDeclined,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Payment {
        refused: Some(event.reason),
    };
    answered(event.order_id, "PaymentDeclined", &answer, &metadata, tx).await
}

pub(crate) async fn stock_reserved(
    event: StockReserved,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Stock { refused: None };
    answered(event.order_id, "StockReserved", &answer, &metadata, tx).await
}

pub(crate) async fn stock_rejected(
    event: StockRejected,
    metadata: Metadata,
    tx: Tx,
) -> Result<Decided> {
    let answer = Answer::Stock {
        refused: Some(event.reason),
    };
    answered(event.order_id, "StockRejected", &answer, &metadata, tx).await
}

async fn answered(
    order_id: String,
    event: &'static str,
    answer: &Answer,
    metadata: &Metadata,
    mut tx: Tx,
) -> Result<Decided> {
    let outcome = tx.run(orders::answered(&order_id, answer)).await?;
    let happened = orders::happened(&order_id, event, time(metadata));
    tx.later(vec![happened]).await?;
    match outcome.into_first() {
        Some(row) => decide(order_id, Known::from_row(&row)?, &mut tx).await,
        None => Ok((None, None)),
    }
}

/// Once it was placed and both have answered.
async fn decide(order_id: String, known: Known, tx: &mut Tx) -> Result<Decided> {
    let Some(decision) = known.decision() else {
        return Ok((None, None));
    };
    let event = match decision {
        Decision::Confirm { .. } => "OrderConfirmed",
        Decision::Cancel { .. } => "OrderCancelled",
    };
    let statements = vec![
        orders::decided(&order_id, decision.status()),
        orders::happened(&order_id, event, Timestamp::now()),
    ];
    tx.later(statements).await?;
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

/// Events that only the timeline shows.
macro_rules! noted {
    ($($handler:ident: $event:ident;)*) => {$(
        pub(crate) async fn $handler(event: $event, metadata: Metadata, mut tx: Tx) -> Result<()> {
            let at = time(&metadata);
            tx.later(vec![orders::happened(&event.order_id, stringify!($event), at)]).await?;
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
