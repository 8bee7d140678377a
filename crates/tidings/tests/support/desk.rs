//! A handler of batches that a test watches and holds up: it books deposits, many at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tidings::{Batch, Error, HandlerOptions, prelude::*, tower};
use tidings_sqlite::Tx;
use tokio::sync::watch;

use super::{Database, MoneyDeposited, Running, broker::Broker, deposit, outgoing, until, write};

/// What the handler was given, and whether it may go on.
#[derive(Clone)]
pub(crate) struct Desk {
    batches: Arc<Mutex<Vec<Vec<u64>>>>,
    is_open: watch::Sender<bool>,
    arrived: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
}

impl Desk {
    /// Batches wait in it until it is opened.
    pub(crate) fn closed() -> Self {
        Self {
            batches: Arc::default(),
            is_open: watch::Sender::new(false),
            arrived: Arc::default(),
            given_up: Arc::default(),
        }
    }

    pub(crate) fn open() -> Self {
        let desk = Self::closed();
        desk.set_open(true);
        desk
    }

    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }

    /// The numbers in each batch that began, in order.
    pub(crate) fn batches(&self) -> Vec<Vec<u64>> {
        self.batches.lock().clone()
    }

    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.batches.lock().iter().map(Vec::len).collect()
    }

    /// How many attempts began that came so far, in a batch or before one.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    /// How often the handler began and was dropped before its end.
    pub(crate) fn given_up(&self) -> usize {
        self.given_up.load(Ordering::SeqCst)
    }

    /// A handler of batches begins: what it got, and for as long as it does not say how it ended.
    pub(crate) async fn take(&self, numbers: impl Iterator<Item = u64>) -> Unfinished {
        self.batches.lock().push(numbers.collect());
        let unfinished = Unfinished(Some(Arc::clone(&self.given_up)));
        let mut is_open = self.is_open.subscribe();
        let _ = is_open.wait_for(|is_open| *is_open).await;
        unfinished
    }

    /// Publishes deposit 0, which the closed desk begins with at once, then these, and waits until
    /// they have come.
    pub(crate) async fn gather(&self, broker: &Broker, deposits: &[MoneyDeposited]) {
        self.gather_behind(broker, 0, deposits).await;
    }

    /// The same behind another one.
    pub(crate) async fn gather_behind(
        &self,
        broker: &Broker,
        first: u64,
        deposits: &[MoneyDeposited],
    ) {
        broker.publish_raw(outgoing(&deposit("first", first)));
        until("the first one begins alone", async || {
            self.batches().contains(&vec![first])
        })
        .await;
        let before = self.arrived();
        for deposit in deposits {
            broker.publish_raw(outgoing(deposit));
        }
        until("all have come", async || {
            self.arrived() == before + deposits.len()
        })
        .await;
    }
}

/// A handler that did not end yet.
pub(crate) struct Unfinished(Option<Arc<AtomicUsize>>);

impl Unfinished {
    pub(crate) fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(given_up) = &self.0 {
            given_up.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Books deposits. One into the account `bad` is an error, into `panic` a panic, and into `hang` takes
/// for ever.
pub(crate) async fn record(
    deposits: Batch<MoneyDeposited>,
    State(desk): State<Desk>,
    mut tx: Tx,
) -> Result<()> {
    let unfinished = desk.take(deposits.iter().map(|it| it.number)).await;
    let has = |account| deposits.iter().any(|deposit| deposit.account == account);
    // Not in the middle of its transaction, which would keep the writer from others.
    if has("hang") {
        std::future::pending::<()>().await;
    }
    for deposit in &deposits {
        write(&mut tx, deposit).await?;
    }
    if has("bad") {
        return Err(Error::msg("the account is bad"));
    }
    assert!(!has("panic"), "the account is worse");
    unfinished.end();
    Ok(())
}

/// A router for it, which counts what comes.
pub(crate) fn router(database: &Database, desk: &Desk, options: HandlerOptions) -> Router {
    let (state, arrived) = (desk.clone(), Arc::clone(&desk.arrived));
    Router::new("bank")
        .on_with(record, options)
        .transactional(database.store.clone())
        .layer(tower::util::MapRequestLayer::new(
            move |context: Context| {
                arrived.fetch_add(1, Ordering::SeqCst);
                context
            },
        ))
        .with_state(state)
}

pub(crate) async fn start(broker: &Broker, database: &Database, desk: &Desk) -> Running {
    Running::start(broker, router(database, desk, HandlerOptions::new())).await
}

/// Into accounts of their own.
pub(crate) fn deposits(numbers: impl IntoIterator<Item = u64>) -> Vec<MoneyDeposited> {
    let numbers = numbers.into_iter();
    numbers.map(|number| deposit(number, number)).collect()
}

/// Waits until all is handled or dead, and says which numbers were booked, sorted.
pub(crate) async fn booked(broker: &Broker, database: &Database) -> Vec<u64> {
    until("all is settled", async || {
        broker.is_settled() && database.is_quiet().await
    })
    .await;
    let effects = database.effects().await;
    let mut numbers: Vec<u64> = effects.into_iter().map(|(_, number)| number).collect();
    numbers.sort_unstable();
    numbers
}
