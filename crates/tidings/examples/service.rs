//! A whole service in one file: it takes the money for every order that is placed, once.
//!
//! `cargo run -p tidings --example service` runs it on a broker and a store in this process; with
//! `tidings_amqp::Amqp` and `tidings_sqlite::SqliteStore` in their places it runs for real, and
//! nothing else changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::{prelude::*, serve};
use tidings_memory::{MemoryStore, MemoryTransport, Tx};

/// A fact, in the past tense. Its id says when two messages are the same fact.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(topic = "order_events", key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    amount: u32,
}

#[derive(Debug, Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct PaymentSettled {
    order_id: String,
    status: String,
}

/// The bank, behind a circuit breaker: when it is down, it is left alone for a while.
#[derive(Clone)]
struct Gateway {
    breaker: CircuitBreaker,
}

impl Gateway {
    async fn charge(&self, amount: u32, key: MessageId) -> Result<String> {
        let call = async {
            println!("the bank charges {amount}, and knows it by `{key}`");
            Ok::<_, tidings::Error>("AUTHORIZED".to_owned())
        };
        self.breaker.call(call).await
    }
}

/// The message comes first and is the subscription; what is returned is published.
async fn settle(
    order: OrderPlaced,
    key: MessageId,
    State(gateway): State<Gateway>,
    mut tx: Tx,
) -> Result<PaymentSettled> {
    let status = gateway.charge(order.amount, key).await?;
    tx.put(&order.order_id, &status).await?;
    Ok(PaymentSettled {
        order_id: order.order_id,
        status,
    })
}

/// Another service, which listens to the first.
async fn notify(payment: PaymentSettled) -> Result<()> {
    println!("dear customer, {} is {}", payment.order_id, payment.status);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().init();
    let (transport, store) = (MemoryTransport::new(), MemoryStore::new());
    let payment = Router::new("payment")
        .on(settle)
        .transactional(store.clone())
        .retry(Retry::exponential(Duration::from_millis(100)).attempts(5)) // then the dead letters
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .publishes::<OrderPlaced>()
        .with_state(Gateway {
            breaker: CircuitBreaker::new("bank"),
        });
    let notification = Router::new("notification").on(notify);

    // Somebody places an order, twice; the outbox publishes it when it is committed.
    let orders = Producer::new("orders", store);
    for _ in 0..2 {
        let order_id = "o-1".to_owned();
        let order = OrderPlaced {
            order_id,
            amount: 99,
        };
        orders.publish(&order).await?;
    }

    let for_a_second = || tokio::time::sleep(Duration::from_secs(1));
    tokio::try_join!(
        serve(transport.clone(), payment)
            .with_graceful_shutdown(for_a_second())
            .into_future(),
        serve(transport, notification)
            .with_graceful_shutdown(for_a_second())
            .into_future(),
    )?;
    Ok(())
}
