//! What the bank promises about idempotency keys, on SQLite and on PostgreSQL.

use axum::{
    body::Body,
    http::{Request, Response},
};
use serde_json::{Value, json};
use shop_kit::{Database, sql};
use tidings_testing::servers::Postgres;
use tower::ServiceExt;

/// The year 2100, in microseconds.
const LATER: i64 = 4_102_444_800_000_000;

struct Bank(axum::Router);

impl Bank {
    async fn on(database: &Database) -> Self {
        Self(shop_bank::service(database).await.unwrap().http)
    }

    async fn charge(&self, key: &str, order_id: &str, card: &str) -> (u16, Value) {
        let body = json!({"orderId": order_id, "amount": 12.5, "card": card});
        self.post("/bank/charges", key, &body).await
    }

    async fn refund(&self, key: &str, order_id: &str) -> (u16, Value) {
        let body = json!({"orderId": order_id});
        self.post("/bank/refunds", key, &body).await
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Body::from(body.to_string()))
            .unwrap();
        let answer = self.0.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), json_of(answer).await)
    }

    async fn behave(&self, settings: &Value) {
        let request = Request::put("/bank/behaviour")
            .header("content-type", "application/json")
            .body(Body::from(settings.to_string()))
            .unwrap();
        let answer = self.0.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    /// The kinds of the entries about an order, with their keys.
    async fn ledger(&self, order_id: &str) -> Vec<(String, String)> {
        let path = format!("/bank/ledger?orderId={order_id}");
        let request = Request::get(path).body(Body::empty()).unwrap();
        let entries = json_of(self.0.clone().oneshot(request).await.unwrap()).await;
        let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
        let entries = entries.as_array().unwrap().iter();
        entries
            .map(|entry| (text(entry, "kind"), text(entry, "idempotencyKey")))
            .collect()
    }
}

async fn json_of(answer: Response<Body>) -> Value {
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
    serde_json::from_slice(&body.unwrap()).unwrap()
}

fn refunded() -> (u16, Value) {
    (200, json!({"status": "REFUNDED", "amount": 12.5}))
}

fn nothing() -> (u16, Value) {
    (200, json!({"status": "NOTHING_TO_REFUND"}))
}

async fn once_per_key(database: &Database) {
    let bank = Bank::on(database).await;
    let charged = (200, json!({"status": "CHARGED"}));
    assert_eq!(bank.charge("k-1", "o-1", "tok_ok").await, charged);
    assert_eq!(bank.charge("k-1", "o-1", "tok_ok").await, charged);
    assert_eq!(bank.refund("k-1", "o-1").await, refunded());
    assert_eq!(bank.refund("k-1", "o-1").await, refunded());
    assert_eq!(bank.charge("k-1", "o-1", "tok_ok").await, charged);
    let entry = |kind: &str| (kind.to_owned(), "k-1".to_owned());
    assert_eq!(bank.ledger("o-1").await, [entry("charge"), entry("refund")]);

    assert_eq!(bank.charge("k-1", "o-2", "tok_ok").await.0, 422);
    assert_eq!(bank.refund("k-1", "o-2").await.0, 422);
    assert!(bank.ledger("o-2").await.is_empty());
}

async fn a_refund_of_nothing_makes_the_key_void(database: &Database) {
    let bank = Bank::on(database).await;
    assert_eq!(bank.refund("k-3", "o-3").await, nothing());
    assert_eq!(
        bank.charge("k-3", "o-3", "tok_declined").await.1["status"],
        "DECLINED"
    );
    let late = bank.charge("k-3", "o-3", "tok_ok").await;
    assert_eq!((late.0, &late.1["status"]), (200, &json!("DECLINED")));
    assert_eq!(bank.refund("k-3", "o-3").await, nothing());
    assert!(bank.ledger("o-3").await.is_empty());

    // Another key of the same order is another charge.
    assert_eq!(
        bank.charge("k-4", "o-3", "tok_ok").await.1["status"],
        "CHARGED"
    );

    assert_eq!(
        bank.charge("k-5", "o-5", "tok_declined").await.1["status"],
        "DECLINED"
    );
    assert_eq!(bank.refund("k-5", "o-5").await, nothing());
}

/// Both cannot have happened: a charge that stands, and a refund that found nothing.
async fn of_a_charge_and_a_refund_at_once_one_is_first(database: &Database) {
    let bank = Bank::on(database).await;
    for number in 0..100 {
        let (key, order) = (format!("r-{number}"), format!("race-{number}"));
        let (charge, refund) = tokio::join!(
            bank.charge(&key, &order, "tok_ok"),
            bank.refund(&key, &order)
        );
        let kinds = bank.ledger(&order).await.len();
        match charge.1["status"].as_str() {
            Some("CHARGED") => assert_eq!((refund, kinds), (refunded(), 2), "{order}"),
            Some("DECLINED") => assert_eq!((refund, kinds), (nothing(), 0), "{order}"),
            other => panic!("{order}: {other:?} {refund:?}"),
        }
    }
}

/// An order that somebody published twice, with two cards.
async fn the_first_decision_about_a_key_stands(database: &Database) {
    let bank = Bank::on(database).await;
    let charged = (200, json!({"status": "CHARGED"}));
    let declined = (
        200,
        json!({"status": "DECLINED", "reason": "the card was declined"}),
    );
    assert_eq!(bank.charge("k-6", "o-6", "tok_ok").await, charged);
    assert_eq!(bank.charge("k-6", "o-6", "tok_declined").await, charged);
    assert_eq!(bank.charge("k-7", "o-7", "tok_declined").await, declined);
    assert_eq!(bank.charge("k-7", "o-7", "tok_declined").await, declined);
    let other = bank.charge("k-7", "o-7", "tok_ok").await;
    assert_eq!(other.1["status"], "DECLINED", "{other:?}");
    assert!(bank.ledger("o-7").await.is_empty());

    for number in 0..100 {
        let (key, order) = (format!("t-{number}"), format!("two-{number}"));
        let (good, bad) = tokio::join!(
            bank.charge(&key, &order, "tok_ok"),
            bank.charge(&key, &order, "tok_other")
        );
        assert_eq!(good.1["status"], bad.1["status"], "{order}");
        let is_charged = good.1["status"] == "CHARGED";
        assert_eq!(bank.ledger(&order).await.len(), usize::from(is_charged));
    }
}

/// The tables of the first version, which knew no void keys, with a charge.
async fn of_the_first_version(database: &Database) {
    let first = ["create table ledger (
        idempotency_key text not null,
        kind text not null,
        order_id text not null,
        amount bigint not null,
        at bigint not null,
        primary key (idempotency_key, kind)
    );
    create index ledger_by_order on ledger (order_id);
    create table flaky_card (
        idempotency_key text primary key,
        requests bigint not null
    );
    create table behaviour (
        id bigint primary key,
        settings text not null
    )"];
    let db = database.open("bank", &first).await.unwrap();
    let charges = sql(
        "insert into ledger (idempotency_key, kind, order_id, amount, at)
         values ('k-0', 'charge', 'o-0', 1250, 1), ('k-9', 'charge', 'o-9', 1250, $1)",
    )
    .bind(LATER);
    db.execute(charges).await.unwrap();
}

/// The refund of a charge whose clock was ahead, as one that waited for a charge under way.
async fn a_refund_comes_after_its_charge_whatever_the_clock_said(database: &Database) {
    let bank = Bank::on(database).await;
    assert_eq!(bank.refund("k-9", "o-9").await, refunded());
    let entry = |kind: &str| (kind.to_owned(), "k-9".to_owned());
    assert_eq!(bank.ledger("o-9").await, [entry("charge"), entry("refund")]);
}

async fn what_the_first_version_charged_can_be_refunded(database: &Database) {
    let bank = Bank::on(database).await;
    let charged = (200, json!({"status": "CHARGED"}));
    assert_eq!(bank.charge("k-0", "o-0", "tok_ok").await, charged);
    assert_eq!(bank.refund("k-0", "o-0").await, refunded());
    assert_eq!(bank.ledger("o-0").await.len(), 2);
}

/// A refund that is refused leaves no trace, and goes through when the bank gives money back again.
async fn a_bank_can_refuse_refunds(database: &Database) {
    let bank = Bank::on(database).await;
    let charged = (200, json!({"status": "CHARGED"}));
    assert_eq!(bank.charge("k-8", "o-8", "tok_ok").await, charged);
    bank.behave(&json!({"mode": "ok", "refunds": "refused"}))
        .await;
    let (status, refusal) = bank.refund("k-8", "o-8").await;
    assert_eq!(status, 422, "{refusal}");
    assert_eq!(bank.ledger("o-8").await.len(), 1);
    assert_eq!(bank.refund("k-11", "o-8").await, nothing());
    // It is remembered, and charges go on.
    let bank = Bank::on(database).await;
    assert_eq!(bank.refund("k-8", "o-8").await.0, 422);
    assert_eq!(bank.charge("k-8", "o-8", "tok_ok").await, charged);
    bank.behave(&json!({"mode": "ok"})).await;
    assert_eq!(bank.refund("k-8", "o-8").await, refunded());
    // What was given back stays given back.
    bank.behave(&json!({"mode": "ok", "refunds": "refused"}))
        .await;
    assert_eq!(bank.refund("k-8", "o-8").await, refunded());
    bank.behave(&json!({"mode": "ok"})).await;
}

async fn all(database: &Database) {
    of_the_first_version(database).await;
    what_the_first_version_charged_can_be_refunded(database).await;
    a_refund_comes_after_its_charge_whatever_the_clock_said(database).await;
    once_per_key(database).await;
    a_bank_can_refuse_refunds(database).await;
    a_refund_of_nothing_makes_the_key_void(database).await;
    of_a_charge_and_a_refund_at_once_one_is_first(database).await;
    the_first_decision_about_a_key_stands(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_moves_money_once_and_back_once() {
    let folder = tempfile::tempdir().unwrap();
    all(&Database::Sqlite(folder.path().into())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_key_moves_money_once_and_back_once_on_postgresql() {
    let server = Postgres::start().unwrap();
    all(&Database::Postgres(server.url())).await;
}
