//! What held rows cost the others: the relay takes the events of a topic that somebody listens to
//! from an outbox with nothing else in it, and from one with a million held rows, in turns.
//!
//! A turn runs from the first commit to the last event that its handler has seen: through the
//! database, the relay, the broker in the box, and a handler without a store. The handler's count is
//! the check that nothing is missing.
//!
//! On PostgreSQL both outboxes are vacuumed before each turn, as autovacuum does from minute to
//! minute: else the turn measures the dead versions that the turns before it have left, and not the
//! rows that are held.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use tidings::{Producer, Router, State, Store, prelude::*, serve};
use tidings_amqp::Amqp;
use tidings_postgres::PostgresOptions;
use tidings_sqlite::SqliteStore;
use tidings_testing::servers::Postgres;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    machine::Machine,
    peers::{self, Tidings},
    report::Report,
};

/// Events in one transaction of a turn.
const STEP: u64 = 100;

/// Events in one transaction while rows are made that will be held.
const HELD_STEP: u64 = 1000;

/// How many keys the events have.
const KEYS: u64 = 50;

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(120);

/// What rows that nobody wants cost the others.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Events that nobody listens to.
    #[arg(long, default_value_t = 1_000_000)]
    held: u64,
    /// Events of a turn that somebody listens to.
    #[arg(long, default_value_t = 20_000)]
    events: u64,
    /// Rounds; in each, both outboxes have their turn.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// PostgreSQL instead of SQLite; one is started from what is installed.
    #[arg(long)]
    postgres: bool,
    /// The program of the broker in the box; by default the one beside this program.
    #[arg(long)]
    tidings: Option<PathBuf>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-noted.v1", key = "key")]
struct ThingNoted {
    key: String,
}

/// Nobody listens to this one.
#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-missed.v1", key = "key")]
struct ThingMissed {
    key: String,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let broker = Tidings::start(&peers::sibling(
        options.tidings.as_deref(),
        "tidings-broker",
    )?)?;
    let url = &broker.peer.url;
    // Kept until the end.
    let folder = tempfile::tempdir_in(std::env::current_dir()?)?;
    let postgres = match options.postgres {
        true => Some(Postgres::start()?),
        false => None,
    };
    let (server, files) = (postgres.as_ref(), folder.path());
    let free = open(server, files, "free").await?;
    let held = open(server, files, "held").await?;
    hold(url, &held, options.held).await?;

    let database = if options.postgres {
        "PostgreSQL"
    } else {
        "SQLite"
    };
    let settings = BTreeMap::from([
        ("database", database.to_owned()),
        ("held rows", options.held.to_string()),
        ("events of a turn", options.events.to_string()),
        ("rounds", options.rounds.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let with_held = format!("{} rows are held", options.held);
    for round in 1..=options.rounds {
        // Who begins changes, so that what one leaves behind does not always meet the same.
        let mut turns = [("nothing else in it", &free), (&*with_held, &held)];
        if round % 2 == 0 {
            turns.reverse();
        }
        for (outbox, store) in turns {
            if let Some(postgres) = &postgres {
                postgres.sql("vacuum analyze free.tidings_outbox")?;
                postgres.sql("vacuum analyze held.tidings_outbox")?;
            }
            let rate = turn(url, store, options.events).await?;
            eprintln!("round {round}: {outbox}: {rate:.0}/s");
            report.add("commit, relay, handler", outbox, "D2", rate);
        }
    }
    report.finish(options.json.as_deref())
}

async fn open(
    postgres: Option<&Postgres>,
    folder: &Path,
    name: &str,
) -> anyhow::Result<Arc<dyn Store>> {
    if let Some(postgres) = postgres {
        let options = PostgresOptions::new(postgres.url(), name);
        return Ok(Arc::new(options.connect().await?));
    }
    let file = folder.join(format!("{name}.db"));
    Ok(Arc::new(SqliteStore::open(file).await?))
}

/// Commits events that nobody listens to, and waits until the relay holds them.
async fn hold(url: &str, store: &Arc<dyn Store>, count: u64) -> anyhow::Result<()> {
    let bar = ProgressBar::new(count).with_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
    )?);
    bar.set_message("events that nobody wants");
    let service = Service::start(url, store).await?;
    let producer = Producer::new("bench", Arc::clone(store));
    let mut made = 0;
    while made < count {
        let step = HELD_STEP.min(count - made);
        commit(&producer, step, |key| ThingMissed { key }).await?;
        made += step;
        bar.set_position(made);
    }
    bar.set_message("the relay holds them");
    let mut last = (u64::MAX, Instant::now());
    loop {
        let ready = store.outbox().stats().await?.ready;
        if ready == 0 {
            break;
        }
        if ready != last.0 {
            last = (ready, Instant::now());
        }
        anyhow::ensure!(
            last.1.elapsed() < STILL_MAX,
            "{ready} rows or more are neither sent nor held"
        );
        sleep(Duration::from_millis(100)).await;
    }
    bar.finish_and_clear();
    service.stop().await
}

/// Events per second, from the first commit to the last handler.
async fn turn(url: &str, store: &Arc<dyn Store>, events: u64) -> anyhow::Result<f64> {
    let service = Service::start(url, store).await?;
    let producer = Producer::new("bench", Arc::clone(store));
    let began = Instant::now();
    let mut made = 0;
    while made < events {
        let step = STEP.min(events - made);
        commit(&producer, step, |key| ThingNoted { key }).await?;
        made += step;
    }
    let all = async {
        while service.seen.load(Ordering::Acquire) < events {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = timeout(STILL_MAX, all).await;
    let took = began.elapsed();
    let seen = service.seen.load(Ordering::Acquire);
    in_time.with_context(|| format!("{seen} of {events} events came"))?;
    service.stop().await?;
    Ok(events as f64 / took.as_secs_f64())
}

/// Commits this many events in one transaction.
async fn commit<E: Event>(
    producer: &Producer,
    count: u64,
    event: impl Fn(String) -> E,
) -> anyhow::Result<()> {
    let commit = async {
        let mut transaction = producer.transaction();
        for number in 0..count {
            transaction.publish(&event(format!("k-{}", number % KEYS)))?;
        }
        transaction.commit().await
    };
    commit
        .await
        .map_err(|error: tidings::Error| anyhow!("cannot commit: {error}"))
}

/// A service with a relay for one outbox, and a handler that counts.
struct Service {
    seen: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<Result<(), tidings::ServeError>>,
}

impl Service {
    async fn start(url: &str, store: &Arc<dyn Store>) -> anyhow::Result<Self> {
        let seen = Arc::new(AtomicU64::new(0));
        let sends = Router::new("bench")
            .publishes::<ThingNoted>()
            .publishes::<ThingMissed>()
            .transactional(Arc::clone(store));
        let counts = Router::new("bench-counter")
            .on(count)
            .with_state(Arc::clone(&seen));
        let (stop, stopped) = oneshot::channel();
        let serve = serve(Amqp::connect(url).await?, vec![sends, counts])
            .with_graceful_shutdown(async { drop(stopped.await) });
        let ready = serve.ready();
        let serving = tokio::spawn(serve.into_future());
        ready.await;
        Ok(Self {
            seen,
            stop,
            serving,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        Ok(self.serving.await??)
    }
}

async fn count(_event: ThingNoted, State(seen): State<Arc<AtomicU64>>) -> tidings::Result<()> {
    seen.fetch_add(1, Ordering::AcqRel);
    Ok(())
}
