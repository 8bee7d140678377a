//! The answers of a bank, and of nobody, as payment reads them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tidings::{Outgoing, Retry, Router, State, Transport};
use tidings_memory::MemoryTransport;

use super::*;

#[test]
fn any_order_id_can_be_an_idempotency_key_and_different_ids_are_different_keys() {
    assert_eq!(header_safe("ORD-123"), "ORD-123");
    assert_eq!(header_safe("10% Ü"), "10%25%20%C3%9C");
    assert_eq!(header_safe(" a"), "%20a");
    assert_eq!(header_safe("%20a"), "%2520a");
}

#[test]
fn the_answers_of_the_bank_are_understood() {
    let read = |text| serde_json::from_str::<Answer>(text);
    let answer = read(r#"{"status":"CHARGED"}"#).unwrap();
    assert!(matches!(answer.status, Status::Charged));
    let answer = read(r#"{"status":"REFUNDED","amount":9.90,"more":1}"#).unwrap();
    assert!(matches!(answer.status, Status::Refunded));
    assert_eq!(answer.amount, Some(Money::from_cents(990)));
    let answer = read(r#"{"status":"NOTHING_TO_REFUND"}"#).unwrap();
    assert!(matches!(answer.status, Status::NothingToRefund));
    let answer = read(r#"{"status":"DECLINED","reason":"no money"}"#).unwrap();
    assert!(matches!(answer.status, Status::Declined));
    assert_eq!(answer.reason.as_deref(), Some("no money"));
    assert!(read(r#"{"status":"MAYBE"}"#).is_err());
}

#[test]
fn a_refusal_says_what_the_bank_says_to_a_person() {
    let said = |body: &str| {
        let refused = BankError::of_status(StatusCode::UNPROCESSABLE_ENTITY, body.as_bytes());
        refused.source().unwrap().to_string()
    };
    assert_eq!(
        said(r#"{"title": "no", "detail": "the account is\nclosed"}"#),
        "it answered 422 Unprocessable Entity: the account is closed"
    );
    assert_eq!(
        said(r#"{"error": "no"}"#),
        r#"it answered 422 Unprocessable Entity: {"error": "no"}"#
    );
}

/// A bank that is not there, and a breaker that opens for a long time at its first failure.
async fn nobody() -> Bank {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = BaseUrl::of_address(listener.local_addr().unwrap()).unwrap();
    drop(listener);
    let breaker = CircuitBreaker::new("bank").failures_max(1);
    Bank::behind(breaker.open_for(Duration::from_secs(3600)), url)
}

#[tokio::test]
async fn a_bank_that_is_left_alone_is_told_from_one_that_did_not_answer() {
    let bank = nobody().await;
    let error = bank.refund("o-1").await.unwrap_err();
    assert!(error.was_asked() && matches!(error, BankError::NoAnswer { .. }));
    let error = bank.refund("o-1").await.unwrap_err();
    assert!(!error.was_asked());
    let source = error.source().unwrap();
    assert!(source.is::<CircuitOpen>(), "{source:?}");
}

#[derive(serde::Serialize, serde::Deserialize, tidings::Event)]
struct Asked {}

async fn ask(
    _: Asked,
    State(bank): State<Bank>,
    State(attempts): State<Arc<AtomicU32>>,
) -> tidings::Result<()> {
    attempts.fetch_add(1, Ordering::SeqCst);
    bank.refund("o-1").await?;
    Ok(())
}

#[tokio::test]
async fn a_message_does_not_become_a_dead_letter_because_the_bank_is_left_alone() {
    let bank = nobody().await;
    bank.refund("o-1").await.unwrap_err();
    let attempts = Arc::new(AtomicU32::new(0));
    let router = Router::new("test")
        .on(ask)
        .retry(Retry::exponential(Duration::from_millis(10)).attempts(1))
        .with_state(bank)
        .with_state(Arc::clone(&attempts));
    let broker = MemoryTransport::new();
    broker.declare(&router.topology()).await.unwrap();
    let mut message = Outgoing::new(&Asked {}).unwrap();
    message.envelope.id = Some("1".into());
    broker.publish(vec![message]).await.remove(0).unwrap();
    let serving = tokio::spawn({
        let serve = tidings::serve(broker.clone(), router);
        async move { serve.await.unwrap() }
    });
    let refused = async {
        while attempts.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), refused).await;
    waited.expect("an attempt that the breaker refuses");
    // The policy gives one attempt, but nothing was tried: the message is where it was.
    assert_eq!(broker.messages("test.asked.v1").len(), 1);
    assert!(broker.dead_letters("test.asked.v1").is_empty());
    serving.abort();
}
