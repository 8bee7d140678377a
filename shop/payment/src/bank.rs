//! The bank, called over HTTP: with a timeout, behind a circuit breaker, and with an idempotency
//! key, so that a call whose answer was lost can be made again.
//!
//! Every order has one key, its id. What payment needs of a bank: a charge takes the money of a key
//! once, a refund gives it back once; a refund that finds nothing says so, and a charge with the
//! same key that the bank carries out after that (because it was still under way) is declined. The
//! first decision about a key stands: what was declined is never charged, and what was charged is
//! never declined, even if somebody publishes an order twice with two cards.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde::{Deserialize, Serialize};
use shop_contracts::Money;
use shop_kit::{BaseUrl, HttpClient, HttpError, one_line};
use tidings::{BoxError, CircuitBreaker, CircuitOpen, Permanent};

/// How long to wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How much of a text of the bank (why it declined, what it says of a failure) is passed on.
const BANK_TEXT_BYTES_MAX: usize = 500;
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

/// What the bank decided about a charge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Charged,
    Declined(String),
}

/// What came of a refund.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refund {
    /// The money went back, now or before. How much, if the bank said so.
    GivenBack(Option<Money>),
    /// There was no charge.
    Nothing,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChargeRequest<'a> {
    order_id: &'a str,
    amount: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    card: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefundRequest<'a> {
    order_id: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Status {
    Charged,
    Declined,
    Refunded,
    NothingToRefund,
}

#[derive(Deserialize)]
struct Answer {
    status: Status,
    reason: Option<String>,
    amount: Option<Money>,
}

impl Bank {
    pub(crate) fn new(url: BaseUrl) -> Self {
        let breaker = CircuitBreaker::new("bank")
            .failures_max(FAILURES_MAX)
            .open_for_max(OPEN_FOR_MAX);
        Self::behind(breaker, url)
    }

    fn behind(breaker: CircuitBreaker, url: BaseUrl) -> Self {
        let http = HttpClient::default();
        Self { url, http, breaker }
    }

    /// Takes `amount` for an order. Asked again with the same order, the bank takes it once.
    pub(crate) async fn charge(
        &self,
        order_id: &str,
        amount: Money,
        card: Option<&str>,
    ) -> Result<Decision, BankError> {
        let charge = ChargeRequest {
            order_id,
            amount,
            card,
        };
        let answer = self.ask("/bank/charges", order_id, &charge).await?;
        match answer.status {
            Status::Charged => Ok(Decision::Charged),
            Status::Declined => {
                let reason = answer
                    .reason
                    .as_deref()
                    .unwrap_or("the bank gave no reason");
                Ok(Decision::Declined(one_line(reason, BANK_TEXT_BYTES_MAX)))
            }
            Status::Refunded | Status::NothingToRefund => Err(BankError::Unclear(
                "a charge was answered like a refund".into(),
            )),
        }
    }

    /// Gives back what was taken for an order, once.
    pub(crate) async fn refund(&self, order_id: &str) -> Result<Refund, BankError> {
        let refund = RefundRequest { order_id };
        let answer = self.ask("/bank/refunds", order_id, &refund).await?;
        match answer.status {
            Status::Refunded => Ok(Refund::GivenBack(answer.amount)),
            Status::NothingToRefund => Ok(Refund::Nothing),
            Status::Charged | Status::Declined => Err(BankError::Unclear(
                "a refund was answered like a charge".into(),
            )),
        }
    }

    async fn ask(&self, path: &str, key: &str, body: &impl Serialize) -> Result<Answer, BankError> {
        let request = self.request(path, key, body)?;
        let permit = self.breaker.permit().map_err(BankError::LeftAlone)?;
        let answer = self.http.call(request, ANSWER_BYTES_MAX);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => {
                permit.failed();
                let url = self.url.clone();
                return Err(BankError::NoAnswer { url, source });
            }
            Err(_) => {
                permit.failed();
                return Err(BankError::Late {
                    url: self.url.clone(),
                });
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
            return Err(BankError::of_status(parts.status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| BankError::Unclear(error.into()))
    }

    fn request(
        &self,
        path: &str,
        key: &str,
        body: &impl Serialize,
    ) -> Result<Request<Body>, BankError> {
        let impossible = |error: BoxError| BankError::Impossible(Permanent::new(error));
        let body = serde_json::to_vec(body).map_err(|error| impossible(error.into()))?;
        let uri = self.url.join(path);
        Request::builder()
            .method(Method::POST)
            .uri(uri.map_err(|error| impossible(error.into()))?)
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", header_safe(key))
            .body(Body::from(body))
            .map_err(|error| impossible(error.into()))
    }
}

/// An order id may have characters that a header may not, and spaces at its edges, which a header
/// loses: the key is the id with all of these percent-encoded, so that different ids stay different.
fn header_safe(key: &str) -> String {
    let mut safe = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("%{byte:02X}"));
        }
    }
    safe
}

/// What a body says to a person: the `detail` of a problem (RFC 9457), or all of it.
fn told(body: &[u8]) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    match serde_json::from_slice(body) {
        Ok(Problem { detail }) => detail.into(),
        Err(_) => String::from_utf8_lossy(body),
    }
}

/// Why the bank's decision is not known.
///
/// Whether to ask again is in the sources: a [`Permanent`] among them means that it is of no use, a
/// [`CircuitOpen`] that nothing was tried.
#[derive(Debug)]
pub(crate) enum BankError {
    /// The request could not be made. The bank was not asked.
    Impossible(Permanent),
    /// The bank was down for the requests before this one. It was not asked.
    LeftAlone(CircuitOpen),
    /// The connection failed; the bank may have done what it was asked for.
    NoAnswer { url: BaseUrl, source: HttpError },
    /// The same, with silence.
    Late { url: BaseUrl },
    /// It failed, or asks to come back later.
    Failed { status: StatusCode, text: String },
    /// It refuses this request, now and for ever (4xx).
    Refused(Permanent),
    /// It answered, but not what it was asked.
    Unclear(BoxError),
}

impl BankError {
    fn of_status(status: StatusCode, body: &[u8]) -> Self {
        let text = one_line(&told(body), BANK_TEXT_BYTES_MAX);
        let is_later = matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
        if status.is_client_error() && !is_later {
            return Self::Refused(Permanent::new(format!("it answered {status}: {text}")));
        }
        Self::Failed { status, text }
    }

    /// False if the bank cannot have done anything.
    pub(crate) fn was_asked(&self) -> bool {
        !matches!(self, Self::Impossible(_) | Self::LeftAlone(_))
    }
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible(_) => f.write_str("cannot make a request to the bank"),
            Self::LeftAlone(_) => f.write_str("the bank was not asked"),
            Self::NoAnswer { url, .. } => write!(f, "no answer from the bank at `{url}`"),
            Self::Late { url } => {
                write!(
                    f,
                    "no answer from the bank at `{url}` in {ANSWER_TIMEOUT:?}"
                )
            }
            Self::Failed { status, text } => write!(f, "the bank answered {status}: {text}"),
            Self::Refused(_) => f.write_str("the bank refuses the request"),
            Self::Unclear(_) => f.write_str("the bank's answer is unclear"),
        }
    }
}

impl StdError for BankError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Impossible(source) | Self::Refused(source) => Some(source),
            Self::LeftAlone(source) => Some(source),
            Self::NoAnswer { source, .. } => Some(source),
            Self::Unclear(source) => Some(&**source),
            Self::Late { .. } | Self::Failed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
