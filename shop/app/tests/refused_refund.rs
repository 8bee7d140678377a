//! A bank that refuses a refund: the order is cancelled, its saga is stuck and says why, and an operator sends
//! it on when the bank has changed its mind.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use common::{SOON, Shop, Style, eventually};
use serde_json::{Value, json};
use shop_kit::{Database, Db};
use tidings::sagas::{self, Action, Operation, Query};

/// A bank over real HTTP that takes orders from a test.
#[derive(Clone, Default)]
struct Bank {
    charges: Arc<AtomicBool>,
    refunds: Arc<AtomicBool>,
    refunded: Arc<AtomicU32>,
}

impl Bank {
    async fn serve(&self) -> String {
        let routes = Router::new()
            .route("/bank/charges", post(charge))
            .route("/bank/refunds", post(refund))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        url
    }
}

async fn charge(State(bank): State<Bank>) -> (StatusCode, Json<Value>) {
    match bank.charges.load(Ordering::SeqCst) {
        true => (StatusCode::OK, Json(json!({"status": "CHARGED"}))),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({}))),
    }
}

async fn refund(State(bank): State<Bank>) -> (StatusCode, Json<Value>) {
    if !bank.refunds.load(Ordering::SeqCst) {
        let why = json!({"error": "the account is closed"});
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(why));
    }
    bank.refunded.fetch_add(1, Ordering::SeqCst);
    let back = json!({"status": "REFUNDED", "amount": 12.90});
    (StatusCode::OK, Json(back))
}

/// The sagas of checkout, as an operator's program sees them: in its database.
async fn sagas_of(data: &std::path::Path) -> Db {
    let database = Database::Sqlite(data.join("db"));
    database.open("checkout", &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_is_refused_makes_a_saga_stuck_until_an_operator_sends_it_on() {
    let data = tempfile::tempdir().unwrap();
    let bank = Bank::default();
    let bank_url = bank.serve().await;
    let others = [
        "--services",
        "payment,inventory,checkout",
        "--bank",
        &bank_url,
    ];
    let others = Shop::start(data.path(), &Style::Orchestration.flags(&others));
    let broker = others.amqp_url();
    let orders = |more: [&'static str; 2], broker: &str| {
        let flags = ["--services", "orders,notification", "--broker", broker];
        let flags = [&flags[..], &more].concat();
        Shop::launch(data.path(), &Style::Orchestration.flags(&flags))
    };

    // The bank is down, and orders goes away while the money is waited for.
    let shop = orders(["--order-deadline", "1h"], &broker);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let path = format!("/payments/{order}");
    others
        .until(&path, |payment| payment["attempts"].as_i64() > Some(0))
        .await;
    shop.stop();
    bank.charges.store(true, Ordering::SeqCst);
    others
        .until(&path, |payment| payment["status"] == "AUTHORIZED")
        .await;

    // It comes back without the broker, and cancels what is over its deadline; then the checkout asks.
    let nowhere = format!(
        "amqp://guest:guest@127.0.0.1:{}/",
        tidings_testing::servers::free_port().unwrap()
    );
    let shop = orders(["--order-deadline", "1s"], &nowhere);
    assert_eq!(shop.ended(&order).await["status"], "CANCELLED");
    drop(shop);
    let shop = orders(["--order-deadline", "1s"], &broker);

    let db = sagas_of(data.path()).await;
    let stuck = Query {
        state: Some("stuck".into()),
        ..Query::default()
    };
    let stuck = eventually(SOON, async || {
        let found = sagas::list(&*db.store(), "checkout", &stuck).await.unwrap();
        found.into_iter().next()
    });
    let stuck = stuck.await.expect("no saga is stuck");
    assert_eq!(&*stuck.key, order);
    let why = stuck.state.unwrap().to_string();
    assert!(
        why.contains("what undoes `charge-card` is a dead letter")
            && why.contains("the account is closed"),
        "{why}"
    );
    assert_eq!(bank.refunded.load(Ordering::SeqCst), 0);

    bank.refunds.store(true, Ordering::SeqCst);
    let operation = Operation {
        who: "ann".into(),
        why: "the bank has opened the account again".into(),
        action: Action::Retry,
    };
    sagas::operate(&*db.store(), "checkout", &order, &operation)
        .await
        .unwrap();
    let ended = eventually(SOON, async || {
        let journal = sagas::journal(&*db.store(), "checkout", &order).await;
        let journal = journal.unwrap()?;
        journal.state.is_ended().then_some(journal.state)
    });
    assert_eq!(
        ended.await.map(|it| it.to_string()).as_deref(),
        Some("compensated")
    );
    assert_eq!(bank.refunded.load(Ordering::SeqCst), 1);
    let payment = others.get(&path).await.json;
    assert_eq!(payment["status"], "REFUNDED", "{payment}");
    assert_eq!(others.stock("MUG-ENAMEL").await, [100_000, 0, 0]);
    let order = shop
        .happened(&order, &["PaymentRefunded", "StockReleased"])
        .await;
    assert_eq!(order["status"], "CANCELLED");
    shop.stop();
    others.stop();
}
