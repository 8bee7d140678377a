//! What `POST /orders` takes, and everything that can be wrong with it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shop_contracts::{Money, OrderItem, OrderPlaced, OrderStatus, product};
use shop_kit::{FieldError, Problem};
use uuid::Uuid;

/// The most lines of an order.
const LINES_MAX: usize = 100;
/// The most of one product in one line.
const QUANTITY_MAX: u32 = 1_000_000;
/// The longest customer id and card token.
const TEXT_BYTES_MAX: usize = 128;
/// The longest email address that mail servers take.
const EMAIL_BYTES_MAX: usize = 254;

/// A request for an order. Written back as JSON it is what an idempotency key stands for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OrderRequest {
    customer_id: String,
    email: String,
    card: String,
    items: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sku: String,
    quantity: i64,
}

impl OrderRequest {
    /// The order, if everything about it is right; else everything that is wrong at once.
    pub(crate) fn into_order(self) -> Result<OrderPlaced, Problem> {
        let mut errors = Vec::new();
        check_text(&self.customer_id, "/customerId", &mut errors);
        check_text(&self.card, "/card", &mut errors);
        if !is_email(&self.email) {
            let detail = "must be an email address like ada@example.org";
            errors.push(FieldError::new("/email", detail));
        }
        let (items, amount) = check_items(self.items, &mut errors);
        if !errors.is_empty() {
            let parts = match errors.len() {
                1 => "1 part of the order is wrong".to_owned(),
                count => format!("{count} parts of the order are wrong"),
            };
            return Err(Problem::invalid(parts).with_errors(errors));
        }
        Ok(OrderPlaced {
            order_id: Uuid::now_v7().to_string(),
            amount,
            timestamp: Timestamp::now(),
            status: OrderStatus::Created,
            customer_id: Some(self.customer_id),
            email: Some(self.email),
            card: Some(self.card),
            items,
        })
    }
}

fn check_items(lines: Vec<Line>, errors: &mut Vec<FieldError>) -> (Vec<OrderItem>, Money) {
    if lines.is_empty() || lines.len() > LINES_MAX {
        let detail = format!("must have 1 to {LINES_MAX} lines");
        errors.push(FieldError::new("/items", detail));
        return (Vec::new(), Money::ZERO);
    }
    let mut items = Vec::with_capacity(lines.len());
    let mut amount = Money::ZERO;
    for (index, Line { sku, quantity }) in lines.into_iter().enumerate() {
        let product = product(&sku);
        if product.is_none() {
            let detail = "is not in the catalogue; see /products";
            errors.push(FieldError::new(format!("/items/{index}/sku"), detail));
        }
        let allowed = u32::try_from(quantity)
            .ok()
            .filter(|quantity| (1..=QUANTITY_MAX).contains(quantity));
        let Some(quantity) = allowed else {
            let detail = format!("must be 1 to {QUANTITY_MAX}");
            errors.push(FieldError::new(format!("/items/{index}/quantity"), detail));
            continue;
        };
        match product.map(|product| product.price.times(quantity)) {
            Some(Some(price)) => amount = amount + price,
            Some(None) => {
                let detail = "costs more than can be counted";
                errors.push(FieldError::new(format!("/items/{index}/quantity"), detail));
            }
            None => {}
        }
        items.push(OrderItem { sku, quantity });
    }
    (items, amount)
}

fn check_text(text: &str, pointer: &str, errors: &mut Vec<FieldError>) {
    let right = (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if !right {
        let detail = format!("must have 1 to {TEXT_BYTES_MAX} bytes and no control characters");
        errors.push(FieldError::new(pointer, detail));
    }
}

/// Plain addresses only: letters, digits and a few signs, with dots between. Whoever has a
/// stranger one has a plainer one too, and every mail server takes these.
fn is_email(text: &str) -> bool {
    let dotted = |text: &str, allowed: fn(u8) -> bool| {
        text.split('.')
            .all(|part| !part.is_empty() && part.bytes().all(allowed))
    };
    let host = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let hyphens = domain
        .split('.')
        .all(|label| label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-'));
    text.len() <= EMAIL_BYTES_MAX
        && local.len() <= 64
        && hyphens
        && dotted(local, name)
        && dotted(domain, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(items: &str) -> OrderRequest {
        let json = format!(
            r#"{{"customerId": "c-1", "email": "ada@example.org", "card": "tok_ok",
                "items": {items}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn the_amount_is_the_sum_of_the_lines() {
        let order = request(
            r#"[{"sku": "TEA-EARL-GREY", "quantity": 2}, {"sku": "LAMP-BRASS", "quantity": 1}]"#,
        );
        assert_eq!(order.into_order().unwrap().amount.to_string(), "117.79");
    }

    #[test]
    fn the_largest_order_can_be_counted() {
        let line = r#"{"sku": "GLOBE-ANTIQUE", "quantity": 1000000}"#;
        let lines = vec![line; LINES_MAX].join(",");
        let order = request(&format!("[{lines}]")).into_order().unwrap();
        assert_eq!(order.amount.to_string(), "48000000000.00");
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let mut order = request(
            r#"[{"sku": "NO-SUCH", "quantity": 0}, {"sku": "LAMP-BRASS", "quantity": -1},
                {"sku": "LAMP-BRASS", "quantity": 1000001}]"#,
        );
        order.email = "ada".into();
        order.customer_id = String::new();
        order.card = "x".repeat(129);
        let problem = serde_json::to_string(&order.into_order().unwrap_err()).unwrap();
        for pointer in [
            "/customerId",
            "/card",
            "/email",
            "/items/0/sku",
            "/items/0/quantity",
            "/items/1/quantity",
            "/items/2/quantity",
        ] {
            assert!(
                problem.contains(&format!("\"{pointer}\"")),
                "{pointer}: {problem}"
            );
        }
    }

    #[test]
    fn an_order_has_between_one_and_a_hundred_lines() {
        assert_eq!(request("[]").into_order().unwrap_err().status(), 422);
        let lines = vec![r#"{"sku": "LAMP-BRASS", "quantity": 1}"#; LINES_MAX + 1].join(",");
        let problem = request(&format!("[{lines}]")).into_order().unwrap_err();
        assert_eq!(problem.status(), 422);
    }

    #[test]
    fn an_email_address_is_plain() {
        for right in [
            "ada@example.org",
            "a.b+c@d-e.example",
            "a@localhost",
            "o'hara@x.y",
        ] {
            assert!(is_email(right), "{right}");
        }
        for wrong in [
            "",
            "ada",
            "@example.org",
            "ada@",
            "a@b@c",
            "a..b@c.d",
            ".a@b.c",
            "a@.b",
            "a b@c.d",
            "a@-b.c",
            "a\n@b.c",
            "ä@b.c",
            "<a@b.c>",
        ] {
            assert!(!is_email(wrong), "{wrong}");
        }
        assert!(!is_email(&format!("{}@b.c", "a".repeat(65))));
        assert!(!is_email(&format!("a@{}.c", "b".repeat(64))));
    }
}
