//! A database in the process: inbox, outbox and values by name.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tidings_core::{
    BoxFuture, Claim, Commit, Committed, Context, Error, FromContext, Lane, OutboxRow, OutboxStats,
    Outgoing, Provided, Store, StoreError, Transaction, TransactionHandle,
};
use tokio::{
    sync::{OwnedMutexGuard, watch},
    time::Instant,
};

type Values = BTreeMap<String, serde_json::Value>;

/// A database that lives in this process. Cloning gives the same one.
///
/// It keeps values by name, written through [`Tx`]: enough for a test to see that a handler's
/// effects and its messages stand and fall together. Transactions run one at a time, from their
/// first value to their commit.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    data: Mutex<Data>,
    /// Held by the transaction that runs.
    turn: Arc<tokio::sync::Mutex<()>>,
    commits: watch::Sender<u64>,
    commits_seen: AtomicU64,
}

#[derive(Default)]
struct Data {
    values: Values,
    inbox: HashMap<Claim, Instant>,
    outbox: BTreeMap<i64, Row>,
    position: i64,
    lanes: HashMap<Lane, (String, Instant)>,
}

struct Row {
    message: Outgoing,
    lane: Lane,
    written: Instant,
    deferred_until: Option<Instant>,
}

impl MemoryStore {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// The committed value of `name`.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let value = self.0.data.lock().values.get(name).cloned();
        read(name, value)
    }

    /// The names of all committed values.
    pub fn names(&self) -> Vec<String> {
        self.0.data.lock().values.keys().cloned().collect()
    }

    /// The messages in the outbox, in order.
    pub fn outbox(&self) -> Vec<Outgoing> {
        let data = self.0.data.lock();
        data.outbox
            .values()
            .map(|row| row.message.clone())
            .collect()
    }
}

impl From<MemoryStore> for Arc<dyn Store> {
    fn from(store: MemoryStore) -> Self {
        Arc::new(store)
    }
}

fn read<T: DeserializeOwned>(
    name: &str,
    value: Option<serde_json::Value>,
) -> Result<Option<T>, StoreError> {
    value
        .map(serde_json::from_value)
        .transpose()
        .map_err(|error| {
            StoreError::new(format!("`{name}` holds another type than is asked for"))
                .with_source(error)
        })
}

impl Shared {
    /// Commits `commit` and `values` together, or nothing.
    fn commit(&self, commit: Commit, values: Values) -> Committed {
        let now = Instant::now();
        let mut data = self.data.lock();
        if let Some(claim) = commit.claim {
            if data.inbox.contains_key(&claim) {
                return Committed::Duplicate;
            }
            data.inbox.insert(claim, now);
        }
        data.values.extend(values);
        let wake = !commit.outbox.is_empty();
        for message in commit.outbox {
            data.position += 1;
            let row = Row {
                lane: Lane::of_message(&message),
                message,
                written: now,
                deferred_until: None,
            };
            let position = data.position;
            data.outbox.insert(position, row);
        }
        drop(data);
        if wake {
            self.commits.send_modify(|commits| *commits += 1);
        }
        Committed::Done
    }
}

impl Store for MemoryStore {
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn Transaction>, StoreError>> {
        let transaction = MemoryTransaction {
            shared: Arc::clone(&self.0),
            values: Values::new(),
            turn: None,
        };
        Box::pin(async move { Ok(Box::new(transaction) as Box<dyn Transaction>) })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Box::pin(async move { Ok(self.0.commit(commit, Values::new())) })
    }

    fn is_claimed<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.0.data.lock().inbox.contains_key(claim)) })
    }

    fn lease_lanes<'a>(
        &'a self,
        relay: &'a str,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Vec<Lane>, StoreError>> {
        Box::pin(async move {
            let now = Instant::now();
            let lanes = &mut self.0.data.lock().lanes;
            let free = |lane: &Lane| match lanes.get(lane) {
                Some((holder, until)) => holder == relay || *until <= now,
                None => true,
            };
            let leased: Vec<Lane> = (0..Lane::COUNT).map(Lane).filter(free).collect();
            for lane in &leased {
                lanes.insert(*lane, (relay.to_owned(), now + lease));
            }
            Ok(leased)
        })
    }

    fn release_lanes<'a>(&'a self, relay: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let lanes = &mut self.0.data.lock().lanes;
            lanes.retain(|_, (holder, _)| holder != relay);
            Ok(())
        })
    }

    fn unsent<'a>(
        &'a self,
        lanes: &'a [Lane],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(async move {
            let now = Instant::now();
            let data = self.0.data.lock();
            let rows = data.outbox.iter().filter(|(_, row)| {
                lanes.contains(&row.lane) && row.deferred_until.is_none_or(|until| until <= now)
            });
            let rows = rows.take(limit).map(|(position, row)| OutboxRow {
                position: *position,
                message: row.message.clone(),
            });
            Ok(rows.collect())
        })
    }

    fn defer<'a>(
        &'a self,
        positions: &'a [i64],
        delay: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let until = Instant::now() + delay;
            let outbox = &mut self.0.data.lock().outbox;
            for position in positions {
                if let Some(row) = outbox.get_mut(position) {
                    row.deferred_until = Some(until);
                }
            }
            Ok(())
        })
    }

    fn sent<'a>(&'a self, positions: &'a [i64]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let outbox = &mut self.0.data.lock().outbox;
            for position in positions {
                outbox.remove(position);
            }
            Ok(())
        })
    }

    fn committed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut commits = self.0.commits.subscribe();
            loop {
                let now = *commits.borrow_and_update();
                if self.0.commits_seen.swap(now, Ordering::Relaxed) != now {
                    return;
                }
                // An error is impossible: `self` holds the sender.
                let _ = commits.changed().await;
            }
        })
    }

    fn outbox_stats(&self) -> BoxFuture<'_, Result<OutboxStats, StoreError>> {
        Box::pin(async move {
            let data = self.0.data.lock();
            let oldest = data.outbox.values().next();
            Ok(OutboxStats {
                unsent: data.outbox.len() as u64,
                oldest_age: oldest.map_or(Duration::ZERO, |row| row.written.elapsed()),
            })
        })
    }

    fn forget_claims(&self, age: Duration, limit: usize) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let inbox = &mut self.0.data.lock().inbox;
            let old: Vec<Claim> = inbox
                .iter()
                .filter(|(_, claimed)| claimed.elapsed() > age)
                .take(limit)
                .map(|(claim, _)| claim.clone())
                .collect();
            for claim in &old {
                inbox.remove(claim);
            }
            Ok(old.len() as u64)
        })
    }
}

/// A transaction on a [`MemoryStore`].
pub struct MemoryTransaction {
    shared: Arc<Shared>,
    values: Values,
    turn: Option<OwnedMutexGuard<()>>,
}

impl MemoryTransaction {
    /// The value of `name` as this transaction sees it. Waits for other transactions to end.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub async fn get<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, StoreError> {
        self.begin().await;
        let own = self.values.get(name).cloned();
        let value = own.or_else(|| self.shared.data.lock().values.get(name).cloned());
        read(name, value)
    }

    /// Writes the value of `name`. Waits for other transactions to end.
    ///
    /// # Errors
    ///
    /// When `value` cannot be written as JSON.
    pub async fn put<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), StoreError> {
        let value = serde_json::to_value(value).map_err(|error| {
            StoreError::new(format!("the value of `{name}` cannot be JSON")).with_source(error)
        })?;
        self.begin().await;
        self.values.insert(name.to_owned(), value);
        Ok(())
    }

    async fn begin(&mut self) {
        if self.turn.is_none() {
            self.turn = Some(Arc::clone(&self.shared.turn).lock_owned().await);
        }
    }
}

impl Transaction for MemoryTransaction {
    fn commit(
        self: Box<Self>,
        commit: Commit,
    ) -> BoxFuture<'static, Result<Committed, StoreError>> {
        Box::pin(async move { Ok(self.shared.commit(commit, self.values)) })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { drop(self) })
    }
}

/// The transaction of the attempt, as an argument of a handler.
///
/// ```
/// # async fn handler(mut tx: tidings_memory::Tx) -> Result<(), tidings_core::StoreError> {
/// let points: u32 = tx.get("points/c-1").await?.unwrap_or(0);
/// tx.put("points/c-1", &(points + 10)).await?;
/// # Ok(()) }
/// ```
pub struct Tx(TransactionHandle);

impl Tx {
    /// The value of `name` as this transaction sees it.
    ///
    /// # Errors
    ///
    /// When it is there but is no `T`.
    pub async fn get<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, StoreError> {
        self.0.get::<MemoryTransaction>().await?.get(name).await
    }

    /// Writes the value of `name`.
    ///
    /// # Errors
    ///
    /// When `value` cannot be written as JSON.
    pub async fn put<T: Serialize + Sync>(
        &mut self,
        name: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let transaction = self.0.get::<MemoryTransaction>().await?;
        transaction.put(name, value).await
    }
}

impl From<TransactionHandle> for Tx {
    fn from(handle: TransactionHandle) -> Self {
        Self(handle)
    }
}

impl FromContext for Tx {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move { TransactionHandle::from_context(context).await.map(Self) })
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        TransactionHandle::check(provided)
    }
}
