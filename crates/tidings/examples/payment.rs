//! Payment: takes the money for every order that is placed, once.

use std::time::Duration;

use tidings::prelude::*;
use tidings_amqp::Amqp;
use tidings_sqlite::{SqliteStore, Tx};

#[derive(Serialize, Deserialize, Event)]
#[event(topic = "order_events", id = "order_id")]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    amount: serde_json::Number,
}

#[derive(Serialize, Deserialize, Event)]
#[serde(rename_all = "camelCase")]
struct PaymentSettled {
    order_id: String,
}

/// The signature is the contract: it handles the one and publishes the other.
async fn settle(order: OrderPlaced, key: MessageId, mut tx: Tx) -> Result<PaymentSettled> {
    let OrderPlaced { order_id, amount } = order;
    println!("charging {amount} for {order_id}, known to the bank as `{key}`");
    let insert = "insert into payment (order_id) values (?1)";
    tx.execute(insert, (order_id.clone(),)).await?;
    Ok(PaymentSettled { order_id })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://localhost".into());
    let store = SqliteStore::open("payment.db").await?;
    let table = "create table payment (order_id text primary key)";
    store.migrate(&[("1", table)]).await?;
    let router = Router::new("payment")
        .on(settle)
        .transactional(store)
        .retry(Retry::exponential(Duration::from_millis(100)).attempts(5));
    let ctrl_c = async { drop(tokio::signal::ctrl_c().await) };
    let service = serve(Amqp::connect(&url).await?, router);
    Ok(service.with_graceful_shutdown(ctrl_c).await?)
}
