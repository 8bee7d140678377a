//! The events of the shop. They are thin: ids, status, and the few facts a listener acts on.
//!
//! Each carries the order id as its key (so that what happens to one order stays in order) and as
//! its identity (so that the same fact, told twice, is one message).

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};
use tidings::prelude::*;

use crate::Money;

/// The longest order id, also one that a foreign program made up.
const ORDER_ID_BYTES_MAX: usize = 64;

/// How far an order has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum OrderStatus {
    /// Placed; payment and stock are not settled yet.
    Created,
    /// Paid and in stock.
    Confirmed,
    /// Not paid or not in stock; everything done for it has been undone.
    Cancelled,
}

impl OrderStatus {
    /// The word for it, as in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "CREATED",
            Self::Confirmed => "CONFIRMED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderItem {
    /// What.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// Somebody placed an order: with this shop, or a foreign program that published it. The first
/// four fields are what everyone sends; the others are `None` or empty in a foreign order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(
    name = "order-placed.v1",
    topic = "order_events",
    key = "order_id",
    id = "order_id"
)]
pub struct OrderPlaced {
    /// Names the order for ever. Whoever publishes it again means the same order.
    #[serde(deserialize_with = "order_id")]
    pub order_id: String,
    /// What it costs.
    #[serde(deserialize_with = "Money::deserialize_positive")]
    pub amount: Money,
    /// When it was placed.
    pub timestamp: Timestamp,
    /// `CREATED`.
    pub status: OrderStatus,
    /// Who ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// Where to write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The token of the card to charge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// What was ordered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<OrderItem>,
}

fn order_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let length = id.len();
    if length == 0 || length > ORDER_ID_BYTES_MAX || id.chars().any(char::is_control) {
        return Err(de::Error::custom(format_args!(
            "`orderId` must have 1 to {ORDER_ID_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(id)
}

/// The bank took the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
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
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct StockReserved {
    /// The order.
    pub order_id: String,
}

/// Something in the order is not to be had; nothing has been put aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
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
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct StockReleased {
    /// The order.
    pub order_id: String,
}

/// Paid and in stock: the order will be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// The order will not be sent. Payment and inventory have both answered before this is said, so
/// what there is to undo is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
#[event(key = "order_id", id = "order_id")]
pub struct OrderCancelled {
    /// The order.
    pub order_id: String,
    /// Why, for people.
    pub reason: String,
    /// Where to write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// A parcel is on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
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

    fn check(body: &str, expected: Result<&str, &str>) {
        match (serde_json::from_str::<OrderPlaced>(body), expected) {
            (Ok(order), Ok(id)) => assert_eq!(order.order_id, id),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{body}: {error}"),
            (read, _) => panic!("{body}: {read:?}"),
        }
    }

    #[test]
    fn a_foreign_order_needs_four_fields_and_no_more() {
        let order = |id: &str, amount: &str| {
            format!(
                r#"{{"orderId": {id}, "amount": {amount}, "timestamp": "2026-11-23T12:00:00.5Z",
                    "status": "CREATED", "somethingNew": [1]}}"#
            )
        };
        check(&order("\"ORD-123\"", "99.99"), Ok("ORD-123"));
        check(&order("\"\"", "99.99"), Err("orderId"));
        check(&order("\"a\\u0000b\"", "99.99"), Err("orderId"));
        check(&order("\"ORD-123\"", "0"), Err("greater than zero"));
        check(&order("\"ORD-123\"", "-1"), Err("greater than zero"));
        check(&order("\"ORD-123\"", "9.999"), Err("more than two places"));
        check(r#"{"orderId": "ORD-123"}"#, Err("missing field `amount`"));
        check("not json", Err("expected"));
    }

    #[test]
    fn an_order_of_the_shop_is_plain_camel_case_json() {
        let order = OrderPlaced {
            order_id: "o-1".into(),
            amount: Money::from_cents(2580),
            timestamp: "2026-11-23T12:00:00Z".parse().unwrap(),
            status: OrderStatus::Created,
            customer_id: Some("c-1".into()),
            email: None,
            card: None,
            items: vec![OrderItem {
                sku: "mug".into(),
                quantity: 2,
            }],
        };
        assert_eq!(
            serde_json::to_string(&order).unwrap(),
            r#"{"orderId":"o-1","amount":25.80,"timestamp":"2026-11-23T12:00:00Z","status":"CREATED","customerId":"c-1","items":[{"sku":"mug","quantity":2}]}"#
        );
    }

    #[test]
    fn the_same_fact_told_twice_is_one_message() {
        let fact = StockReserved {
            order_id: "o-1".into(),
        };
        assert_eq!(fact.identity().as_deref(), Some("o-1"));
        assert_eq!(fact.key().as_deref(), Some("o-1"));
        assert_eq!(StockReserved::NAME, "stock-reserved.v1");
        assert_eq!(OrderPlaced::DESTINATION.name(), "order_events");
    }
}
