//! The producer: commits events of many keys, some in one transaction, some undone, and writes down
//! what it committed in the same transaction.
//!
//! The place of an event in its key is counted in the database, so that the order of commits is
//! known whichever instance committed.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use tidings::{MessageId, Producer, ProducerTransaction, Router, State, TransactionHandle};
use tokio::time::sleep;
use uuid::Uuid;

use super::{Surroundings, serve_until_terminated};
use crate::{
    database::{Database, Value},
    messages::{EntryAnswered, EntryMoved, EntryNoted, EntryShelved, KEYS, PRODUCER},
    random::{Random, part},
    trips::{TripAsked, TripEnded},
};

/// How many transactions are under way.
const WRITERS: u64 = 4;

/// Events in one transaction, at most.
const EVENTS_MAX: u64 = 5;

/// Of a thousand transactions, how many are undone at the end.
const UNDONE: u64 = 100;

/// Of a thousand events, how many are of the first key: a long line behind whatever is wrong in it.
const OF_FIRST_KEY: u64 = 250;

/// How often to look how many events there may be.
const QUOTA_EVERY: Duration = Duration::from_millis(50);

/// Shelved events in one transaction.
const SHELVED_STEP: i64 = 500;

/// After a transaction that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The producer's arguments.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    surroundings: Surroundings,
    /// A file that says how many events there may be in all.
    #[arg(long)]
    quota: PathBuf,
    /// Of a thousand events, how many begin a saga.
    #[arg(long, default_value_t = 0)]
    sagas_per_mille: u64,
    /// How many events nobody listens to.
    #[arg(long, default_value_t = 0)]
    shelf: i64,
}

pub(super) async fn run(options: Options) -> Result<()> {
    let surroundings = &options.surroundings;
    let database = surroundings.database("rig_producer").await?;
    let producing = Arc::new(Producing {
        producer: Producer::new(PRODUCER, database.store()),
        database: database.clone(),
        sagas_per_mille: options.sagas_per_mille,
        left: AtomicI64::new(0),
    });
    let seed = part(surroundings.seed, surroundings.instance);
    for writer in 0..WRITERS {
        let random = Random::new(part(seed, u64::from(std::process::id()) << 8 | writer));
        tokio::spawn(Arc::clone(&producing).write(random));
    }
    tokio::spawn(Arc::clone(&producing).watch(options.quota.clone()));
    if options.shelf > 0 {
        tokio::spawn(Arc::clone(&producing).fill_shelf(options.shelf));
    }
    let router = Router::new(PRODUCER)
        .on(answered)
        .on(trip_ended)
        .with_state(database.clone())
        .publishes::<EntryNoted>()
        .publishes::<EntryMoved>()
        .publishes::<EntryShelved>()
        .publishes::<TripAsked>()
        .transactional(database.store());
    // Events are committed from the first moment on, broker or no broker.
    serve_until_terminated(surroundings.transport().await?, vec![router]).await
}

async fn answered(
    event: EntryAnswered,
    State(database): State<Database>,
    id: MessageId,
    mut handle: TransactionHandle,
) -> tidings::Result<()> {
    let values = vec![
        (&*event.consumer).into(),
        (&*event.number).into(),
        Value::Text(id.to_string()),
    ];
    let sql = "insert into answer (consumer, number, message) values ($1, $2, $3)";
    database.execute(&mut handle, sql, values).await?;
    Ok(())
}

async fn trip_ended(
    event: TripEnded,
    State(database): State<Database>,
    mut handle: TransactionHandle,
) -> tidings::Result<()> {
    let values = vec![(&*event.number).into(), (&*event.outcome).into()];
    let sql = "insert into trip_end (number, outcome) values ($1, $2)";
    database.execute(&mut handle, sql, values).await?;
    Ok(())
}

struct Producing {
    producer: Producer,
    database: Database,
    sagas_per_mille: u64,
    /// How many more events there may be, as far as was last seen.
    left: AtomicI64,
}

impl Producing {
    /// Looks how many events there are and may be.
    async fn watch(self: Arc<Self>, quota: PathBuf) {
        loop {
            let allowed = tokio::fs::read_to_string(&quota).await.ok();
            let allowed = allowed.and_then(|text| text.trim().parse::<i64>().ok());
            let committed =
                self.committed("select cast(coalesce(sum(place), 0) as bigint) from counter");
            let left = match (allowed, committed.await) {
                (Some(allowed), Ok(committed)) => allowed - committed,
                _ => 0,
            };
            self.left.store(left, Ordering::Release);
            sleep(QUOTA_EVERY).await;
        }
    }

    async fn committed(&self, sql: &'static str) -> tidings::Result<i64> {
        let transaction = self.producer.transaction();
        let mut handle = transaction.handle();
        let count = self.database.execute(&mut handle, sql, Vec::new()).await?;
        drop(handle);
        transaction.rollback().await;
        Ok(count.unwrap_or_default())
    }

    async fn write(self: Arc<Self>, mut random: Random) {
        loop {
            if self.left.load(Ordering::Acquire) <= 0 {
                sleep(QUOTA_EVERY).await;
                continue;
            }
            let count = 1 + random.below(EVENTS_MAX);
            self.left.fetch_sub(count as i64, Ordering::AcqRel);
            if let Err(error) = self.one_transaction(&mut random, count).await {
                eprintln!("a transaction failed, as it may: {error}");
                sleep(PAUSE).await;
            }
        }
    }

    async fn one_transaction(&self, random: &mut Random, count: u64) -> tidings::Result<()> {
        let mut keys: Vec<u64> = (0..count)
            .map(|_| match random.chance(OF_FIRST_KEY) {
                true => 0,
                false => random.below(KEYS),
            })
            .collect();
        // In one order everywhere, so that no two transactions wait for each other.
        keys.sort_unstable();
        let mut transaction = self.producer.transaction();
        for key in keys {
            self.one_event(&mut transaction, format!("k-{key}"), random)
                .await?;
        }
        match random.chance(UNDONE) {
            true => transaction.rollback().await,
            false => transaction.commit().await?,
        }
        Ok(())
    }

    async fn one_event(
        &self,
        transaction: &mut ProducerTransaction,
        key: String,
        random: &mut Random,
    ) -> tidings::Result<()> {
        let mut handle = transaction.handle();
        let count = "insert into counter (key, place) values ($1, 1)
             on conflict (key) do update set place = counter.place + 1 returning place";
        let place = self
            .database
            .execute(&mut handle, count, vec![(&*key).into()]);
        let place = place.await?.unwrap_or_default();
        let number = Uuid::now_v7().simple().to_string();
        let is_noted = random.chance(500);
        let kind = if is_noted { "noted" } else { "moved" };
        self.enter(&mut handle, &number, &key, place, kind).await?;
        if random.chance(self.sagas_per_mille) {
            let number = Uuid::now_v7().simple().to_string();
            self.enter(&mut handle, &number, "", 0, "trip").await?;
            transaction.publish(&TripAsked { number })?;
        }
        drop(handle);
        match is_noted {
            true => transaction.publish(&EntryNoted { number, key, place }),
            false => transaction.publish(&EntryMoved { number, key, place }),
        }
    }

    async fn enter(
        &self,
        handle: &mut TransactionHandle,
        number: &str,
        key: &str,
        place: i64,
        kind: &str,
    ) -> tidings::Result<()> {
        let sql = "insert into ledger (number, key, place, kind) values ($1, $2, $3, $4)";
        let values = vec![number.into(), key.into(), place.into(), kind.into()];
        self.database.execute(handle, sql, values).await?;
        Ok(())
    }

    async fn fill_shelf(self: Arc<Self>, wanted: i64) {
        loop {
            let there = "select count(*) from ledger where kind = 'shelved'";
            let missing = match self.committed(there).await {
                Ok(there) => wanted - there,
                Err(_) => SHELVED_STEP,
            };
            if missing <= 0 {
                return;
            }
            if let Err(error) = self.shelve(missing.min(SHELVED_STEP)).await {
                eprintln!("a transaction failed, as it may: {error}");
            }
            sleep(PAUSE).await;
        }
    }

    async fn shelve(&self, count: i64) -> tidings::Result<()> {
        let mut transaction = self.producer.transaction();
        for place in 0..count {
            let number = Uuid::now_v7().simple().to_string();
            let key = format!("s-{}", place % 7);
            let mut handle = transaction.handle();
            self.enter(&mut handle, &number, &key, 0, "shelved").await?;
            drop(handle);
            transaction.publish(&EntryShelved { number, key })?;
        }
        transaction.commit().await
    }
}
