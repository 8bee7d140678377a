//! The events of the shop, except the order itself. They are thin: ids, status, and the few facts a
//! listener acts on.
//!
//! Each carries the order id as its key (so that what happens to one order stays in order) and as
//! its identity (so that the same fact, told twice, is one message).

use serde::{Deserialize, Serialize};
use tidings::prelude::*;

use crate::Money;

/// The bank took the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct PaymentAuthorized {
    /// The order it was for.
    pub order_id: String,
    /// How much.
    pub amount: Money,
}

/// The bank said no. That is an answer, not a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct PaymentDeclined {
    /// The order it was for.
    pub order_id: String,
    /// Why, for people.
    pub reason: String,
}

/// The money of a cancelled order went back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct PaymentRefunded {
    /// The order it was for.
    pub order_id: String,
    /// How much.
    pub amount: Money,
}

/// Everything in the order has been put aside for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct StockReserved {
    /// The order.
    pub order_id: String,
}

/// Something in the order is not to be had; nothing has been put aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct StockRejected {
    /// The order.
    pub order_id: String,
    /// Why, for people.
    pub reason: String,
}

/// What was put aside for a cancelled order is for sale again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct StockReleased {
    /// The order.
    pub order_id: String,
}

/// Paid and in stock: the order will be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: String,
    /// What it cost.
    pub amount: Money,
    /// Who ordered; `None` for a foreign order that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// Where to write to.
    #[tidings(sensitive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// The order will not be sent: somebody refused it, or its deadline has passed. Payment and inventory
/// may hear of it before, while or after they handle the order itself; whatever they have done for it
/// is undone, and what they have not done is not done any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct OrderCancelled {
    /// The order.
    pub order_id: String,
    /// Why, for people.
    pub reason: String,
    /// Where to write to.
    #[tidings(sensitive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// A parcel is on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct ShipmentBooked {
    /// The order in it.
    pub order_id: String,
    /// The parcel's number.
    pub tracking: String,
}

/// The customer has been written to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct EmailSent {
    /// The order it is about.
    pub order_id: String,
    /// What stands above it.
    pub subject: String,
}

/// The customer earned loyalty points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct PointsAwarded {
    /// The order they are for.
    pub order_id: String,
    /// Who earned them.
    pub customer_id: String,
    /// How many.
    pub points: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_fact_told_twice_is_one_message() {
        let fact = StockReserved {
            order_id: "o-1".into(),
        };
        assert_eq!(fact.identity().as_deref(), Some("o-1"));
        assert_eq!(fact.key().as_deref(), Some("o-1"));
        assert_eq!(StockReserved::NAME, "stock-reserved.v1");
    }
}
