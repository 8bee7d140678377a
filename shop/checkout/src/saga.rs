//! The way of an order: stock, then money, then the decision, then parcel and goods.
//!
//! Stock is asked for first because it is cheaper to undo than money: an order that is sold out is never
//! charged. The order's own service has the last word (`confirm-order`): it keeps the deadline, and an order
//! that it has cancelled meanwhile is not confirmed. That is the pivot; what comes after it is only done,
//! never refused.
//!
//! While stock and money are waited for, the order may be cancelled at its deadline. Then everything is
//! undone at once, whatever a bank that is down may still think about.

use std::{collections::BTreeMap, pin::pin};

use futures_util::future::{Either, select};
use shop_contracts::{
    OrderCancelled, OrderItem, OrderPlaced,
    commands::{
        BookParcel, CancelCharge, CancelOrder, ChargeCard, ConfirmOrder, RefundCard, ReleaseStock,
        ReserveStock, ShipStock,
    },
};
use tidings::{Saga, StepError};

/// The signal that the order was cancelled by somebody else.
pub(crate) const ORDER_CANCELLED: &str = "order-cancelled";

/// The most different products of an order. The shop has fewer; an order with more comes from a stranger
/// and cannot be had. It bounds what the saga has to keep.
const PRODUCTS_MAX: usize = 100;

/// Leads an order to its end. An order that ends badly is cancelled when everything is undone.
pub async fn checkout(order: OrderPlaced, saga: Saga) -> Result<(), CancelOrder> {
    let order_id = order.order_id.clone();
    let cancel = |reason: String| CancelOrder {
        order_id: order_id.clone(),
        reason,
    };
    let cancelled = saga.signal::<OrderCancelled>(ORDER_CANCELLED);
    let items = items(&order.items).map_err(cancel)?;
    match select(pin!(take(&order, items, &saga)), cancelled).await {
        Either::Left((taken, _)) => taken.map_err(|why| cancel(why.to_string()))?,
        Either::Right((cancelled, _)) => return Err(cancel(cancelled.reason)),
    }

    let confirm = ConfirmOrder {
        order_id: order_id.clone(),
    };
    let confirmed = saga.step("confirm-order", confirm).pivot().await;
    confirmed.map_err(|why| cancel(why.to_string()))?;

    let goods = ShipStock {
        order_id: order_id.clone(),
    };
    let parcel = BookParcel {
        order_id: order_id.clone(),
    };
    let goods = saga.step("ship-stock", goods).no_undo();
    let parcel = saga.step("book-parcel", parcel).no_undo();
    // Nobody refuses these. If somebody did, an operator would have to look: the saga would be stuck.
    let sent = saga.all((goods, parcel)).await;
    sent.map_err(|why| cancel(why.to_string()))?;
    Ok(())
}

/// Puts the goods aside and takes the money.
async fn take(
    order: &OrderPlaced,
    items: BTreeMap<String, u32>,
    saga: &Saga,
) -> Result<(), StepError> {
    let order_id = &order.order_id;
    let release = ReleaseStock {
        order_id: order_id.clone(),
    };
    let reserve = ReserveStock {
        order_id: order_id.clone(),
        items,
    };
    saga.step("reserve-stock", reserve)
        .cancel(release.clone())
        .undo(move |()| release.clone())
        .await?;

    let refund = RefundCard {
        order_id: order_id.clone(),
    };
    let cancel = CancelCharge {
        order_id: order_id.clone(),
        amount: order.amount,
    };
    saga.step("charge-card", ChargeCard::from(order.clone()))
        .cancel(cancel)
        .undo(move |_| refund.clone())
        .await?;
    Ok(())
}

/// How many of each product.
fn items(items: &[OrderItem]) -> Result<BTreeMap<String, u32>, String> {
    let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
    for item in items {
        // The limits of an order are narrower.
        let quantity = wanted.entry(item.sku.clone()).or_default();
        *quantity = quantity.saturating_add(item.quantity);
    }
    match wanted.len() {
        0..=PRODUCTS_MAX => Ok(wanted),
        many => Err(format!(
            "it names {many} different products, and at most {PRODUCTS_MAX} can be had together"
        )),
    }
}

#[cfg(test)]
mod tests {
    use shop_contracts::{ITEM_QUANTITY_MAX, ORDER_ITEMS_MAX};
    use tidings::Message;

    use super::*;

    fn line(sku: &str, quantity: u32) -> OrderItem {
        OrderItem {
            sku: sku.into(),
            quantity,
        }
    }

    #[test]
    fn what_an_order_needs_is_counted_by_product_and_can_be_sent() {
        let mugs = vec![line("MUG-ENAMEL", ITEM_QUANTITY_MAX); ORDER_ITEMS_MAX - 1];
        let lines = [mugs, vec![line("LAMP-BRASS", 1)]].concat();
        let items = items(&lines).unwrap();
        let mugs = ITEM_QUANTITY_MAX * (ORDER_ITEMS_MAX as u32 - 1);
        let expected = [
            ("LAMP-BRASS".to_owned(), 1),
            ("MUG-ENAMEL".to_owned(), mugs),
        ];
        assert_eq!(items, expected.into());
        let order_id = "o-1".to_owned();
        let command = ReserveStock { order_id, items };
        let body = serde_json::to_string(&command).unwrap();
        assert_eq!(
            serde_json::from_str::<ReserveStock>(&body).unwrap(),
            command
        );
    }

    #[test]
    fn the_most_products_of_an_order_fit_into_a_command() {
        let sku = |number: usize| format!("{}{number:03}", "\\".repeat(125));
        let lines: Vec<_> = (0..PRODUCTS_MAX).map(|it| line(&sku(it), 1)).collect();
        let command = ReserveStock {
            order_id: "o-1".into(),
            items: items(&lines).unwrap(),
        };
        let bytes = serde_json::to_vec(&command).unwrap().len();
        assert!(bytes < ReserveStock::BODY_BYTES_MAX / 2, "{bytes}");
        let lines = [lines, vec![line("one more", 1)]].concat();
        let why = items(&lines).unwrap_err();
        assert!(why.contains("101 different products"), "{why}");
    }
}
