//! What the checkout tells the others to do, in orchestration; each is a step of its saga.
//!
//! Each is for one service, which answers. A refusal is an answer with a reason for people. The order's id
//! is the key of all of them; it is what the services remember an order by, whoever leads it, so an order
//! that is told by an event and by a command is charged and reserved once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidings::prelude::*;

use crate::{Money, OrderPlaced};

/// Puts everything in the order aside for it, or nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "inventory", key = "order_id", reply = ())]
pub struct ReserveStock {
    /// The order.
    pub order_id: String,
    /// How many of each product.
    pub items: BTreeMap<String, u32>,
}

/// What was put aside for the order is for sale again; if nothing was, nothing will be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "inventory", key = "order_id", reply = ())]
pub struct ReleaseStock {
    /// The order.
    pub order_id: String,
}

/// What was put aside for the order leaves the house.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "inventory", key = "order_id", reply = ())]
pub struct ShipStock {
    /// The order.
    pub order_id: String,
}

/// Takes the money for the order, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "payment", key = "order_id", reply = CardCharged)]
pub struct ChargeCard {
    /// The order, which is the idempotency key at the bank.
    pub order_id: String,
    /// How much.
    pub amount: Money,
    /// The token of the card.
    #[tidings(sensitive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
}

/// The money was taken: the answer to [`ChargeCard`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CardCharged {
    /// How much.
    pub amount: Money,
}

/// The money of the order is not taken; if it was taken meanwhile, it goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "payment", key = "order_id", reply = ())]
pub struct CancelCharge {
    /// The order.
    pub order_id: String,
    /// How much was asked for.
    pub amount: Money,
}

/// The money that was taken for the order goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "payment", key = "order_id", reply = ())]
pub struct RefundCard {
    /// The order.
    pub order_id: String,
}

/// Ends the order well, unless it is cancelled: that is the only refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "orders", key = "order_id", reply = ())]
pub struct ConfirmOrder {
    /// The order.
    pub order_id: String,
}

/// Ends the order badly, unless it has ended. It is no step: nobody waits for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "orders", key = "order_id", id = "order_id")]
pub struct CancelOrder {
    /// The order.
    pub order_id: String,
    /// Why, for people.
    pub reason: String,
}

/// Books a parcel for the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Command)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[command(target = "shipping", key = "order_id", reply = ParcelBooked)]
pub struct BookParcel {
    /// The order in it.
    pub order_id: String,
}

/// A parcel is booked: the answer to [`BookParcel`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ParcelBooked {
    /// The parcel's number.
    pub tracking: String,
}

/// What payment is asked for by an order that nobody leads.
impl From<OrderPlaced> for ChargeCard {
    fn from(order: OrderPlaced) -> Self {
        Self {
            order_id: order.order_id,
            amount: order.amount,
            card: order.card,
        }
    }
}
