//! How much the toolkit itself costs per message: `cargo run --release -p tidings --example handler_cost`.
//!
//! The broker is in the process, so what is left is routing, decoding, the layers, order per key
//! and settlement; then the same with a store, and with the outbox and its relay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};
use tidings::{Outgoing, Transport, prelude::*, serve};
use tidings_memory::MemoryTransport;
use tidings_sqlite::SqliteStore;
use tokio::sync::Notify;

#[derive(Serialize, Deserialize, Event)]
#[event(key = "account", id = "number")]
struct MoneyDeposited {
    account: u64,
    number: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(unrouted = "drop")]
struct BalanceChanged {
    account: u64,
}

/// Counts down, and says when it is done.
#[derive(Clone)]
struct Countdown(Arc<(AtomicU64, Notify)>);

impl Countdown {
    fn count(&self) {
        if self.0.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.1.notify_one();
        }
    }
}

async fn count(_: MoneyDeposited, State(left): State<Countdown>) -> Result<()> {
    left.count();
    Ok(())
}

async fn answer(deposit: MoneyDeposited, State(left): State<Countdown>) -> Result<BalanceChanged> {
    left.count();
    Ok(BalanceChanged {
        account: deposit.account,
    })
}

async fn run(name: &str, router: Router, messages: u64) -> Result<()> {
    let transport = MemoryTransport::new();
    let left = Countdown(Arc::new((messages.into(), Notify::new())));
    transport.declare(&router.topology()).await?;
    for number in 0..messages {
        let message = Outgoing::new(&MoneyDeposited {
            account: number % 1000,
            number,
        })?;
        transport.publish(vec![message]).await.remove(0)?;
    }
    let started = Instant::now();
    let (done, router) = (left.clone(), router.with_state(left));
    let done = async move { done.0.1.notified().await };
    serve(transport, router)
        .with_graceful_shutdown(done)
        .await?;
    let each = started.elapsed() / messages as u32;
    println!(
        "{name}: {each:?} per message, {:.0} per second",
        1.0 / each.as_secs_f64()
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    run("no store", Router::new("bank").on(count), 200_000).await?;
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(folder.path().join("inbox.db")).await?;
    let router = Router::new("bank")
        .on(count)
        .transactional(store)
        .concurrency(256);
    run("inbox in SQLite", router, 50_000).await?;
    let store = SqliteStore::open(folder.path().join("outbox.db")).await?;
    let router = Router::new("bank")
        .on(answer)
        .transactional(store)
        .concurrency(256);
    run("inbox, outbox and relay", router, 50_000).await
}
