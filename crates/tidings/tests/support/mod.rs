//! A service under test: a scripted broker, a real SQLite database, and a running router.

#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod bank;
pub(crate) mod broker;
pub(crate) mod checkout;
pub(crate) mod desk;
pub(crate) mod letters;
pub(crate) mod metrics;
pub(crate) mod outage;
pub(crate) mod outside;
pub(crate) mod teller;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tidings::{
    Command, Event, InboxQuery, InboxState, IntoRouters, Outgoing, Router, Store, Transport, serve,
};
use tidings_sqlite::SqliteStore;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// The event that most tests are about.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(key = "account", id = "number")]
pub(crate) struct MoneyDeposited {
    pub(crate) account: String,
    pub(crate) number: u64,
}

/// What a handler of it sends on.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(key = "account")]
pub(crate) struct BalanceChanged {
    pub(crate) account: String,
    pub(crate) number: u64,
}

/// An event without a key and without an identity.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
pub(crate) struct LetterWritten {
    pub(crate) text: String,
}

/// A command.
#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "archive")]
pub(crate) struct StoreLetter {
    pub(crate) text: String,
}

pub(crate) fn deposit(account: impl ToString, number: u64) -> MoneyDeposited {
    MoneyDeposited {
        account: account.to_string(),
        number,
    }
}

/// A database of its own, deleted with the value.
pub(crate) struct Database {
    pub(crate) store: SqliteStore,
    _folder: Option<tempfile::TempDir>,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Self::at(folder.path().join("test.db")).await;
        Self {
            _folder: Some(folder),
            ..database
        }
    }

    /// The one in this file, which stays.
    pub(crate) async fn at(file: impl Into<std::path::PathBuf>) -> Self {
        let store = SqliteStore::open(file.into()).await.expect("it opens");
        let table = "create table effect (number integer not null, account text not null)";
        store
            .migrate(&[("effect", table)])
            .await
            .expect("it migrates");
        Self {
            store,
            _folder: None,
        }
    }

    /// How many messages wait in the store or are dead there.
    pub(crate) async fn rows(&self, state: InboxState) -> usize {
        let query = InboxQuery {
            state: Some(state),
            limit: 10_000,
            ..InboxQuery::default()
        };
        let rows = self.store.deferred().list(&query).await;
        rows.expect("it lists").len()
    }

    /// True if nothing waits in the store.
    pub(crate) async fn is_quiet(&self) -> bool {
        self.rows(InboxState::Deferred).await + self.rows(InboxState::Parked).await == 0
    }

    /// What handlers wrote, in the order they did.
    pub(crate) async fn effects(&self) -> Vec<(String, u64)> {
        self.store
            .read(|connection| {
                let sql = "select account, number from effect order by rowid";
                let mut statement = connection.prepare(sql)?;
                let rows = statement
                    .query_map((), |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
                rows.collect()
            })
            .await
            .expect("it reads")
    }
}

/// Writes what a handler did.
pub(crate) async fn write(
    tx: &mut tidings_sqlite::Tx,
    deposit: &MoneyDeposited,
) -> Result<(), tidings::StoreError> {
    let row = (deposit.account.clone(), deposit.number as i64);
    tx.execute("insert into effect (account, number) values (?1, ?2)", row)
        .await?;
    Ok(())
}

/// A service that runs until it is stopped.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    service: JoinHandle<Result<(), tidings::ServeError>>,
}

impl Running {
    /// Starts a service and waits until it has subscribed.
    pub(crate) async fn start<T: Transport + Clone>(transport: &T, router: Router) -> Self {
        Self::start_all(transport, [router]).await
    }

    /// Starts several services and waits until all have subscribed.
    pub(crate) async fn start_all<T: Transport + Clone>(
        transport: &T,
        routers: impl IntoRouters,
    ) -> Self {
        let log = tracing_subscriber::fmt().with_test_writer();
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = log.with_env_filter(filter).try_init();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = serve(transport.clone(), routers).with_graceful_shutdown(stopped);
        let ready = service.ready();
        let service = tokio::spawn(service.into_future());
        tokio::time::timeout(DEADLINE, ready)
            .await
            .expect("the service becomes ready");
        Self { stop, service }
    }

    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("it runs");
        let stopped = tokio::time::timeout(DEADLINE, self.service).await;
        stopped
            .expect("it stops in time")
            .expect("no panic")
            .expect("no error");
    }

    /// Stops it as a crash does: nothing is finished.
    pub(crate) async fn crash(self) {
        self.service.abort();
        let _ = self.service.await;
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn until<C>(what: &'static str, condition: C) -> impl Future<Output = ()>
where
    C: AsyncFn() -> bool,
{
    let location = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + DEADLINE;
        while !condition().await {
            assert!(
                Instant::now() < deadline,
                "waited in vain at {location}: {what}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A message as a service would publish it, with its id.
pub(crate) fn outgoing<M: tidings::Message>(message: &M) -> Outgoing {
    Outgoing::new(message).expect("it is small")
}

/// A generator of random numbers that a seed reproduces (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(Arc<std::sync::atomic::AtomicU64>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(seed.into()))
    }

    /// A number below `limit`.
    pub(crate) fn below(&self, limit: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, std::sync::atomic::Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
