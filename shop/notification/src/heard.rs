//! What notification reads of the events it hears, and no more: they may change in all else without it.

use shop_contracts::Money;
use tidings::prelude::*;

/// The order will be sent.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(name = "order-confirmed.v1", key = "order_id", id = "order_id")]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: String,
    /// What it cost.
    pub amount: Money,
    /// Where to write to.
    #[tidings(sensitive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// The order will not be sent.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(name = "order-cancelled.v1", key = "order_id", id = "order_id")]
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
