//! How many small durable transactions a second one file takes: inbox row, one write, one outbox row.
//!
//! `cargo run --release -p tidings-sqlite --example store_cost -- [tasks] [seconds] [folder]`
//!
//! Prints three ways to do the same: in one step, as a handler does (one statement through its
//! transaction, then the commit), and as a handler after the toolkit's look for a duplicate.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidings_core::{
    Ask, Claim, Commit, Destination, Envelope, InboxEntry, Outgoing, Store, StoreError, Unrouted,
};
use tidings_sqlite::{SqliteStore, SqliteTransaction};

const TABLE: &[(&str, &str)] = &[(
    "0001",
    "create table payment (order_id text primary key, status text)",
)];
const INSERT: &str = "insert into payment (order_id, status) values (?1, 'AUTHORIZED')";

#[derive(Clone, Copy, Debug)]
enum Way {
    OneStep,
    Handler,
    HandlerAfterLook,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let tasks: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let folder = match arguments.next() {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir_in(".")?,
    };
    for way in [Way::OneStep, Way::Handler, Way::HandlerAfterLook] {
        let store = SqliteStore::open(folder.path().join(format!("{way:?}.db"))).await?;
        store.migrate(TABLE).await?;
        let rate = measure(&store, way, tasks, Duration::from_secs(seconds)).await?;
        println!("{way:?}: {rate:.0} transactions/s with {tasks} tasks");
    }
    Ok(())
}

async fn measure(
    store: &SqliteStore,
    way: Way,
    tasks: u64,
    duration: Duration,
) -> Result<f64, StoreError> {
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let (store, done) = (store.clone(), Arc::clone(&done));
        running.spawn(async move {
            let mut number = 0;
            while begun.elapsed() < duration {
                one(&store, way, format!("{task}-{number}")).await?;
                number += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, StoreError>(())
        });
    }
    while let Some(task) = running.join_next().await {
        task.unwrap_or_else(|error| Err(StoreError::new(error.to_string())))?;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

async fn one(store: &SqliteStore, way: Way, order: String) -> Result<(), StoreError> {
    let mut envelope = Envelope::new("payment-settled.v1", vec![b'x'; 128]);
    envelope.id = Some(order.as_str().into());
    envelope.key = Some(order.as_str().into());
    let claim = Claim {
        consumer: "payment.order-placed.v1".into(),
        message: order.as_str().into(),
    };
    let commit = Commit {
        inbox: vec![InboxEntry::handled(claim.clone())],
        outbox: vec![Outgoing {
            destination: Destination::topic("payment_events"),
            unrouted: Unrouted::Hold,
            envelope,
        }],
        ..Commit::default()
    };
    if matches!(way, Way::OneStep) {
        store.commit(commit).await?;
        return Ok(());
    }
    if matches!(way, Way::HandlerAfterLook) {
        store.look(&[Ask { claim, order: None }]).await?;
    }
    let mut transaction = store.begin().await?;
    let own: &mut dyn Any = transaction.as_mut();
    if let Some(own) = own.downcast_mut::<SqliteTransaction>() {
        own.call(move |connection| connection.prepare_cached(INSERT)?.execute((order,)))
            .await?;
    }
    transaction.commit(commit).await?;
    Ok(())
}
