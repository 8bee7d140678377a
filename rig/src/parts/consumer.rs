//! The consumer: two routers over one database, one that competes and one that asks for order; and
//! beside them the [trips].
//!
//! Each handler writes an effect before it does what the nature of its message says: so an effect
//! that should have been undone is there to be found.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tidings::{HandlerOptions, Metadata, PermanentExt, Retry, Router, State, TransactionHandle};
use tokio::time::sleep;

use super::{Surroundings, serve_until_terminated, trips};
use crate::{
    database::Database,
    messages::{EntryAnswered, EntryMoved, EntryNoted, Nature, ORDERED, PLAIN},
    random::Random,
};

/// Into how many partitions the ordered consumer divides its keys.
const PARTITIONS: u16 = 6;

/// Shorter than what a stopped process is stopped for.
const LEASE: Duration = Duration::from_secs(2);

/// The longest that a retry waits before it writes.
const SLOW_MAX: Duration = Duration::from_millis(400);

/// Of a thousand messages, how many wait before they write at their first attempt.
const HESITATES: u64 = 30;

/// The longest that these wait.
const HESITATES_MAX: Duration = Duration::from_millis(100);

pub(super) async fn run(surroundings: Surroundings) -> Result<()> {
    let database = surroundings.database("rig_consumer").await?;
    let transport = surroundings.transport().await?;
    let router = |name: &'static str| {
        let handling = Handling {
            database: database.clone(),
            seed: surroundings.seed,
            consumer: name,
        };
        Router::new(name)
            .with_state(handling)
            .retry(
                Retry::exponential(Duration::from_millis(200))
                    .attempts(12)
                    .fast_attempts(2)
                    .delay_max(Duration::from_secs(2)),
            )
            .lease(LEASE)
            .transactional(database.store())
    };
    let mut routers = vec![
        router(PLAIN)
            .on(noted)
            .on_with(moved, HandlerOptions::new().concurrency(8)),
    ];
    if transport.features().partitions_max >= PARTITIONS {
        println!("ordered");
        routers.push(router(ORDERED).ordered(PARTITIONS).on(noted).on(moved));
    }
    routers.extend(trips::routers(&database, surroundings.seed, LEASE));
    serve_until_terminated(transport, routers).await
}

#[derive(Clone)]
struct Handling {
    database: Database,
    seed: u64,
    consumer: &'static str,
}

async fn noted(
    event: EntryNoted,
    State(handling): State<Handling>,
    handle: TransactionHandle,
    metadata: Metadata,
) -> tidings::Result<EntryAnswered> {
    let EntryNoted { number, key, place } = event;
    handling.handle(number, key, place, handle, metadata).await
}

async fn moved(
    event: EntryMoved,
    State(handling): State<Handling>,
    handle: TransactionHandle,
    metadata: Metadata,
) -> tidings::Result<EntryAnswered> {
    let EntryMoved { number, key, place } = event;
    handling.handle(number, key, place, handle, metadata).await
}

impl Handling {
    async fn handle(
        &self,
        number: String,
        key: String,
        place: i64,
        mut handle: TransactionHandle,
        metadata: Metadata,
    ) -> tidings::Result<EntryAnswered> {
        // A retry takes its time before it writes anything: long enough that a process is stopped with
        // some in hand, whose leases end meanwhile.
        let mut random = Random::new(self.seed ^ place.unsigned_abs());
        if metadata.failures() > 0 {
            sleep(random.between(Duration::ZERO, SLOW_MAX)).await;
        } else if random.chance(HESITATES) {
            // Long enough that the next one of its key would come first, if it were not kept waiting.
            sleep(random.between(Duration::ZERO, HESITATES_MAX)).await;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.unwrap_or_default().as_millis() as i64;
        self.database
            .execute(
                &mut handle,
                "insert into effect (consumer, key, number, place, failures, at, before)
                 values ($1, $2, $3, $4, $5, $6, coalesce(
                     (select max(place) from effect where consumer = $1 and key = $2), 0))",
                vec![
                    self.consumer.into(),
                    (&*key).into(),
                    (&*number).into(),
                    place.into(),
                    i64::from(metadata.failures()).into(),
                    now_ms.into(),
                ],
            )
            .await?;
        drop(handle);
        // Some are slow with a transaction in hand.
        if random.chance(20) {
            sleep(random.between(Duration::ZERO, Duration::from_millis(20))).await;
        }
        match Nature::of(self.seed, self.consumer, &key, place) {
            #[expect(
                clippy::disallowed_methods,
                reason = "to flush nothing is what it is for"
            )]
            Nature::Aborts => std::process::abort(),
            Nature::Poison => Err(std::io::Error::other("it is poison")).permanent()?,
            Nature::Fails(deliveries) if metadata.failures() < deliveries => {
                return Err(tidings::Error::msg("it fails for now"));
            }
            Nature::Fails(_) | Nature::Plain => {}
        }
        Ok(EntryAnswered {
            number,
            key,
            consumer: self.consumer.into(),
        })
    }
}
