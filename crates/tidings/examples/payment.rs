//! Payment: takes the money for every order that is placed, once.

use std::time::Duration;

use tidings::prelude::*;
use tidings_amqp::Amqp;
use tidings_sqlite::{SqliteStore, Tx};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    /// Money is counted in whole cents.
    amount_cents: i64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
#[serde(rename_all = "camelCase")]
struct PaymentSettled {
    order_id: String,
}

/// The signature is the contract: it handles the one and publishes the other.
async fn settle(order: OrderPlaced, key: MessageId, mut tx: Tx) -> Result<PaymentSettled> {
    let OrderPlaced {
        order_id,
        amount_cents,
    } = order;
    println!("charging {amount_cents} cents for {order_id}, known to the bank as `{key}`");
    let insert = "insert into payment (order_id, cents) values (?1, ?2)";
    tx.execute(insert, (order_id.clone(), amount_cents)).await?;
    Ok(PaymentSettled { order_id })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://localhost".into());
    let store = SqliteStore::open("payment.db").await?;
    let table = "create table payment (order_id text primary key, cents integer)";
    store.migrate(&[("1", table)]).await?;
    let router = Router::new("payment")
        .on(settle)
        .transactional(store)
        .retry(Retry::exponential(Duration::from_millis(100)).attempts(5));
    let ctrl_c = async { drop(tokio::signal::ctrl_c().await) };
    let service = serve(Amqp::connect(&url).await?, router);
    Ok(service.with_graceful_shutdown(ctrl_c).await?)
}
