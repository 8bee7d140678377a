//! The bank, called over HTTP: with a timeout, behind a circuit breaker, and with an idempotency
//! key, so that a call whose answer was lost can be made again.

use std::{fmt, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde::{Deserialize, Serialize};
use shop_contracts::Money;
use shop_kit::{BaseUrl, HttpClient};
use tidings::CircuitBreaker;

/// How long to wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How often in a row nobody may answer before the bank is left alone for a while.
const FAILURES_MAX: u32 = 10;
/// The longest it is left alone.
const OPEN_FOR_MAX: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Bank {
    url: BaseUrl,
    http: HttpClient,
    breaker: CircuitBreaker,
}

/// What the bank decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Charged,
    Declined(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Charge<'a> {
    order_id: &'a str,
    amount: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    card: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Refund<'a> {
    order_id: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE", tag = "status")]
enum Answer {
    Charged,
    Refunded,
    Declined { reason: String },
}

impl Bank {
    pub(crate) fn new(url: BaseUrl) -> Self {
        Self {
            url,
            http: HttpClient::default(),
            breaker: CircuitBreaker::new("bank")
                .failures_max(FAILURES_MAX)
                .open_for_max(OPEN_FOR_MAX),
        }
    }

    /// Takes `amount` for an order. Asked again with the same order, the bank takes it once.
    pub(crate) async fn charge(
        &self,
        order_id: &str,
        amount: Money,
        card: Option<&str>,
    ) -> Result<Decision, BankError> {
        let charge = Charge {
            order_id,
            amount,
            card,
        };
        match self.ask("/bank/charges", order_id, &charge).await? {
            Answer::Charged => Ok(Decision::Charged),
            Answer::Declined { reason } => Ok(Decision::Declined(reason)),
            Answer::Refunded => Err(BankError::new("the bank answered a charge with a refund")),
        }
    }

    /// Gives back what was taken for an order, once.
    pub(crate) async fn refund(&self, order_id: &str) -> Result<(), BankError> {
        match self
            .ask("/bank/refunds", order_id, &Refund { order_id })
            .await?
        {
            Answer::Refunded => Ok(()),
            Answer::Charged | Answer::Declined { .. } => Err(BankError::new(
                "the bank did not answer a refund with a refund",
            )),
        }
    }

    async fn ask(&self, path: &str, key: &str, body: &impl Serialize) -> Result<Answer, BankError> {
        let request = self.request(path, key, body)?;
        let permit = self.breaker.permit().map_err(|open| BankError {
            asked: false,
            why: open.to_string(),
        })?;
        let answer = self.http.call(request, ANSWER_BYTES_MAX);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                permit.failed();
                return Err(BankError::new(format_args!(
                    "no answer from {}: {error}",
                    self.url
                )));
            }
            Err(_) => {
                permit.failed();
                let why = format_args!("no answer from {} in {ANSWER_TIMEOUT:?}", self.url);
                return Err(BankError::new(why));
            }
        };
        let (parts, body) = answer.into_parts();
        // A failure of one request says nothing about the next; not being there does.
        match parts.status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => permit.failed(),
            _ => permit.succeeded(),
        }
        if parts.status != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            let why = format_args!("the bank answered {}: {text}", parts.status);
            return Err(BankError::new(why));
        }
        serde_json::from_slice(&body)
            .map_err(|error| BankError::new(format_args!("the bank's answer is unclear: {error}")))
    }

    /// An order id may have characters that a header may not: the key is its percent-encoded form.
    fn request(
        &self,
        path: &str,
        key: &str,
        body: &impl Serialize,
    ) -> Result<Request<Body>, BankError> {
        let body = serde_json::to_vec(body).map_err(BankError::new)?;
        let uri = self.url.join(path).map_err(BankError::new)?;
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", header_safe(key))
            .body(Body::from(body))
            .map_err(BankError::new)
    }
}

fn header_safe(key: &str) -> String {
    let mut safe = String::with_capacity(key.len());
    for byte in key.bytes() {
        if (byte.is_ascii_graphic() || byte == b' ') && byte != b'%' {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("%{byte:02X}"));
        }
    }
    safe
}

/// Why the bank gave no answer.
#[derive(Debug)]
pub(crate) struct BankError {
    /// False if the circuit breaker kept the bank from being asked at all.
    pub(crate) asked: bool,
    why: String,
}

impl BankError {
    fn new(why: impl fmt::Display) -> Self {
        Self {
            asked: true,
            why: why.to_string(),
        }
    }
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for BankError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_id_can_be_an_idempotency_key() {
        assert_eq!(header_safe("ORD-123"), "ORD-123");
        assert_eq!(header_safe("10% Ü"), "10%25 %C3%9C");
    }

    #[test]
    fn the_answers_of_the_bank_are_understood() {
        let read = |text| serde_json::from_str::<Answer>(text);
        assert!(matches!(
            read(r#"{"status":"CHARGED"}"#),
            Ok(Answer::Charged)
        ));
        assert!(matches!(
            read(r#"{"status":"REFUNDED"}"#),
            Ok(Answer::Refunded)
        ));
        let declined = read(r#"{"status":"DECLINED","reason":"no money"}"#);
        assert!(matches!(declined, Ok(Answer::Declined { reason }) if reason == "no money"));
        assert!(read(r#"{"status":"MAYBE"}"#).is_err());
    }
}
