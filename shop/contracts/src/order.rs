//! An order as it is published, by this shop or by anybody who can reach the broker.
//!
//! Every service decodes the same type, so all of them refuse the same bodies, and a message that
//! one refuses is a dead letter for each: nobody charges what another cannot read. What is decoded
//! fits everywhere: every text has a limit and no control characters (PostgreSQL stores no NUL),
//! every number has a limit (so that sums of them cannot overflow), and the status is `CREATED`.

use std::{fmt, ops::RangeInclusive};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};
use tidings::prelude::*;

use crate::Money;

/// The longest order id, in bytes.
pub const ORDER_ID_BYTES_MAX: usize = 64;
/// The longest customer id, in bytes.
pub const CUSTOMER_ID_BYTES_MAX: usize = 128;
/// The longest email address, in bytes: the longest that mail servers take.
pub const EMAIL_BYTES_MAX: usize = 254;
/// The longest token of a card, in bytes.
pub const CARD_BYTES_MAX: usize = 128;
/// The longest code of a product, in bytes.
pub const SKU_BYTES_MAX: usize = 128;
/// The most lines of an order.
pub const ORDER_ITEMS_MAX: usize = 2_000;
/// The most of a product in one line.
pub const ITEM_QUANTITY_MAX: u32 = 1_000_000;

/// How far an order has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum OrderStatus {
    /// Placed; payment and stock are not settled yet.
    Created,
    /// Paid and in stock.
    Confirmed,
    /// Refused, or past its deadline; what was done for it is undone.
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OrderItem {
    /// What, in at most [`SKU_BYTES_MAX`] bytes.
    #[serde(deserialize_with = "sku")]
    pub sku: String,
    /// How many, at most [`ITEM_QUANTITY_MAX`].
    #[serde(deserialize_with = "quantity")]
    pub quantity: u32,
}

/// Somebody placed an order: with this shop, or a foreign program that published it. The first
/// four fields are what everyone sends; the others are `None` or empty in a foreign order.
///
/// Decoding refuses control characters in every text, and what is beyond the limits of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Event)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[event(
    name = "order-placed.v1",
    topic = "order_events",
    key = "order_id",
    id = "order_id"
)]
pub struct OrderPlaced {
    /// Names the order for ever, in 1 to [`ORDER_ID_BYTES_MAX`] bytes. Whoever publishes it again
    /// means the same order.
    #[serde(deserialize_with = "order_id")]
    pub order_id: String,
    /// What it costs: more than zero, at most [`Money::MAX`].
    #[serde(deserialize_with = "Money::deserialize_positive")]
    pub amount: Money,
    /// When it was placed.
    pub timestamp: Timestamp,
    /// `CREATED`, and nothing else: an order that has ended is not placed.
    #[serde(deserialize_with = "created")]
    pub status: OrderStatus,
    /// Who ordered, in at most [`CUSTOMER_ID_BYTES_MAX`] bytes.
    #[serde(default, deserialize_with = "customer_id")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// Where to write to, in at most [`EMAIL_BYTES_MAX`] bytes.
    #[tidings(sensitive)]
    #[serde(default, deserialize_with = "email")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The token of the card to charge, in at most [`CARD_BYTES_MAX`] bytes.
    #[tidings(sensitive)]
    #[serde(default, deserialize_with = "card")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// What was ordered, in at most [`ORDER_ITEMS_MAX`] lines.
    #[serde(default, deserialize_with = "items")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<OrderItem>,
}

fn order_id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    check(
        "orderId",
        1..=ORDER_ID_BYTES_MAX,
        String::deserialize(from)?,
    )
}

fn customer_id<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| check("customerId", 0..=CUSTOMER_ID_BYTES_MAX, text))
        .transpose()
}

fn email<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| check("email", 0..=EMAIL_BYTES_MAX, text))
        .transpose()
}

fn card<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| check("card", 0..=CARD_BYTES_MAX, text))
        .transpose()
}

fn sku<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    check("sku", 0..=SKU_BYTES_MAX, String::deserialize(from)?)
}

fn check<E: de::Error>(
    field: &str,
    bytes: RangeInclusive<usize>,
    text: String,
) -> Result<String, E> {
    if bytes.contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(text);
    }
    Err(E::custom(format_args!(
        "`{field}` must have {} to {} bytes and no control characters",
        bytes.start(),
        bytes.end()
    )))
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let quantity = u32::deserialize(deserializer)?;
    if quantity > ITEM_QUANTITY_MAX {
        return Err(de::Error::custom(format_args!(
            "`quantity` must be at most {ITEM_QUANTITY_MAX}, not {quantity}"
        )));
    }
    Ok(quantity)
}

fn created<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OrderStatus, D::Error> {
    match OrderStatus::deserialize(deserializer)? {
        OrderStatus::Created => Ok(OrderStatus::Created),
        other => Err(de::Error::custom(format_args!(
            "the `status` of an order that is placed must be `CREATED`, not `{}`",
            other.as_str()
        ))),
    }
}

/// Stops at the first line that is too many, whatever follows.
fn items<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OrderItem>, D::Error> {
    struct Items;

    impl<'de> de::Visitor<'de> for Items {
        type Value = Vec<OrderItem>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {ORDER_ITEMS_MAX} lines of an order")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut lines: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = lines.next_element()? {
                if items.len() == ORDER_ITEMS_MAX {
                    return Err(de::Error::custom(format_args!(
                        "`items` may have at most {ORDER_ITEMS_MAX} lines"
                    )));
                }
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(Items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Result<(), &str>) {
        match (serde_json::from_str::<OrderPlaced>(body), expected) {
            (Ok(order), Ok(())) => {
                let again = serde_json::to_string(&order).unwrap();
                assert_eq!(serde_json::from_str::<OrderPlaced>(&again).unwrap(), order);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{body}: {error}"),
            (read, _) => panic!("{body}: {read:?}"),
        }
    }

    /// An order with one field as given.
    fn order_with(field: &str, json: &str) -> String {
        let mut order = serde_json::json!({
            "orderId": "ORD-123",
            "amount": "amount",
            "timestamp": "2026-11-23T12:00:00.5Z",
            "status": "CREATED",
            "somethingNew": [1],
        });
        order[field] = "field".into();
        // A number must come through as it is written.
        order
            .to_string()
            .replace("\"field\"", json)
            .replace("\"amount\":\"amount\"", "\"amount\":99.99")
    }

    #[test]
    fn a_foreign_order_needs_four_fields_and_no_more() {
        check(
            r#"{"orderId": "ORD-123", "amount": 99.99, "timestamp": "2026-11-23T12:00:00.5Z",
                "status": "CREATED"}"#,
            Ok(()),
        );
        check(r#"{"orderId": "ORD-123"}"#, Err("missing field `amount`"));
        check("not json", Err("expected"));
        for field in ["customerId", "email", "card"] {
            check(&order_with(field, "null"), Ok(()));
            check(&order_with(field, "\"\""), Ok(()));
        }
        check(&order_with("items", "[]"), Ok(()));
    }

    #[test]
    fn every_text_has_a_limit_and_no_control_characters() {
        let check_field = |field: &str, around: (&str, &str), bytes_max: usize| {
            let value = |text: &str| format!("{}\"{text}\"{}", around.0, around.1);
            let name = around.0.rsplit('"').nth(1).unwrap_or(field);
            let wrong = format!("`{name}` must have");
            check(&order_with(field, &value(&"x".repeat(bytes_max))), Ok(()));
            check(&order_with(field, &value("Grüße, 10 % \\\" ")), Ok(()));
            let too_long = "x".repeat(bytes_max + 1);
            check(&order_with(field, &value(&too_long)), Err(&wrong));
            let too_long = "ü".repeat(bytes_max / 2 + 1);
            check(&order_with(field, &value(&too_long)), Err(&wrong));
            for control in ["\\u0000", "a\\nb", "\\u007f", "\\u0085"] {
                check(&order_with(field, &value(control)), Err(&wrong));
            }
        };
        check_field("orderId", ("", ""), ORDER_ID_BYTES_MAX);
        check_field("customerId", ("", ""), CUSTOMER_ID_BYTES_MAX);
        check_field("email", ("", ""), EMAIL_BYTES_MAX);
        check_field("card", ("", ""), CARD_BYTES_MAX);
        let line = (r#"[{"quantity": 1, "sku": "#, "}]");
        check_field("items", line, SKU_BYTES_MAX);
        check(
            &order_with("orderId", "\"\""),
            Err("`orderId` must have 1 to 64 bytes"),
        );
    }

    #[test]
    fn an_order_has_a_number_of_lines_and_each_a_quantity_that_can_be_summed() {
        let lines = |count, quantity: &str| {
            let line = format!(r#"{{"sku": "MUG-ENAMEL", "quantity": {quantity}}}"#);
            let lines = vec![line; count].join(",");
            order_with("items", &format!("[{lines}]"))
        };
        check(&lines(ORDER_ITEMS_MAX, "1000000"), Ok(()));
        check(
            &lines(ORDER_ITEMS_MAX + 1, "1"),
            Err("`items` may have at most 2000 lines"),
        );
        check(
            &lines(1, "1000001"),
            Err("`quantity` must be at most 1000000"),
        );
        check(&lines(1, "4294967296"), Err("expected u32"));
        check(&lines(1, "-1"), Err("expected u32"));
        check(&lines(1, "1.5"), Err("expected u32"));
        check(
            &order_with("items", "7"),
            Err("at most 2000 lines of an order"),
        );
    }

    #[test]
    fn only_an_order_that_has_not_ended_is_placed() {
        check(&order_with("status", "\"CREATED\""), Ok(()));
        check(
            &order_with("status", "\"CANCELLED\""),
            Err("not `CANCELLED`"),
        );
        check(
            &order_with("status", "\"CONFIRMED\""),
            Err("not `CONFIRMED`"),
        );
        check(&order_with("status", "\"created\""), Err("unknown variant"));
    }

    #[test]
    fn an_amount_is_exact_positive_and_not_beyond_measure() {
        let amount = |json: &str, expected| {
            let body = order_with("x", "1").replace("99.99", json);
            check(&body, expected);
        };
        for right in [
            "0.01",
            "99.9",
            "99.90",
            "9990e-2",
            "1e13",
            "1E+2",
            "10000000000000.00",
        ] {
            amount(right, Ok(()));
        }
        for zero in ["0", "-0", "0.00", "0e9", "-0.01", "-1", "-1e13"] {
            amount(zero, Err("greater than zero"));
        }
        for fine in ["9.999", "1e-3", "0.001", "1e-999999999"] {
            amount(fine, Err("more than two places"));
        }
        for large in ["10000000000000.01", "1e14", "1e999999999", "-1e300"] {
            amount(large, Err("too large"));
        }
        amount("1e99999999999", Err("number like"));
        amount("\"99.99\"", Err("number like"));
        amount("null", Err("number like"));
        amount(&"9".repeat(100_000), Err("too many digits"));
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
        assert_eq!(OrderPlaced::DESTINATION.name(), "order_events");
    }
}
