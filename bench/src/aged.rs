//! What a long life costs: the jobs of `floors`, by the toolkit, on empty tables and on such that
//! have been in use for long, in turns.
//!
//! The long life is an inbox full of messages that were handled within the window, an outbox that
//! filled while its relay was away, and on PostgreSQL somebody who reads for hours: a snapshot of the
//! same database that is held from before the first turn to after the last, so that nothing that is
//! removed meanwhile goes away. (SQLite keeps its whole write-ahead log for one, in which every read
//! has to look: nobody should hold one there. `--snapshot true` shows it.)
//!
//! A handler has one more kind of turn, in which old rows are forgotten all the while.
//!
//! The ids of old rows are below those of new ones, as those that the toolkit makes are (UUID 7).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tidings::Store;
use tidings_postgres::tokio_postgres::{self, NoTls};
use tidings_sqlite::rusqlite;
use tidings_testing::servers::Postgres;
use tokio::task::JoinHandle;

use crate::{
    floors::{Job, World, toolkit},
    machine::Machine,
    report::Report,
};

const CONSUMER: &str = "floor.thing-noted.v1";

/// The age of the oldest old row; a handler remembers for a week.
const OLDEST: Duration = Duration::from_secs(6 * 24 * 3600);

/// What is older than this is forgotten in the turns in which something is.
const FORGOTTEN: Duration = Duration::from_secs(3 * 24 * 3600);

/// Rows that are forgotten at once: as many as the toolkit's upkeep does.
const FORGET_COUNT: usize = 1000;

/// Old rows made by one statement.
const STEP: u64 = 500_000;

/// What a long life costs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Messages that the inbox remembers.
    #[arg(long, default_value_t = 16_000_000)]
    rows: u64,
    /// Messages that wait in the outbox when a relay comes back.
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u64,
    /// Messages of a turn of a handler; five times as many of the inbox alone.
    #[arg(long, default_value_t = 40_000)]
    messages: u64,
    /// Rounds; in each, empty and old tables have their turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// PostgreSQL instead of SQLite; one is started from what is installed.
    #[arg(long)]
    postgres: bool,
    /// Whether somebody reads for hours; by default on PostgreSQL alone.
    #[arg(long)]
    snapshot: Option<bool>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(std::env::current_dir()?)?;
    let folder = folder.path();
    let postgres = match options.postgres {
        true => Some(Postgres::start()?),
        false => None,
    };
    let has_snapshot = options.snapshot.unwrap_or(options.postgres);
    // Two databases: a snapshot holds up what is removed in its own.
    let database = |name| postgres.as_ref().map(|it| it.database(name)).transpose();
    let (empty, old) = (database("empty")?, database("old")?);
    let settings = BTreeMap::from([
        (
            "database",
            match options.postgres {
                true => "PostgreSQL",
                false => "SQLite",
            }
            .to_owned(),
        ),
        ("old rows of the inbox", options.rows.to_string()),
        (
            "outbox when a relay comes back",
            options.backlog.to_string(),
        ),
        ("messages of a turn", options.messages.to_string()),
        ("rounds", options.rounds.to_string()),
        ("a snapshot is held", has_snapshot.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let aged = World::new(old.as_deref(), folder, "aged").await?;
    age(&aged, options.rows).await?;
    let snapshot = match has_snapshot {
        false => None,
        true => Some(Snapshot::hold(old.as_deref(), folder).await?),
    };
    for round in 1..=options.rounds {
        for (job, name) in Job::ALL {
            // Who begins changes, so that what one leaves behind does not always meet the same.
            for turn in 0..2 {
                let is_aged = (round + turn) % 2 == 0;
                let run = format!("z{round}{}", if is_aged { "a" } else { "e" });
                let (who, rate) = match is_aged {
                    true => ("old tables", turn_of(job, &aged, options, &run).await?),
                    false => {
                        let name = format!("empty_{round}_{}", job as u8);
                        let world = World::new(empty.as_deref(), folder, &name).await?;
                        ("empty tables", turn_of(job, &world, options, &run).await?)
                    }
                };
                eprintln!("round {round}: {name}: {who}: {rate:.0}/s");
                report.add(name, who, "D2", rate);
            }
        }
        let run = format!("z{round}f");
        let forgetting = Forgetting::start(&aged);
        let rate = turn_of(Job::Handler, &aged, options, &run).await?;
        let forgotten = forgetting.stop().await?;
        let (_, name) = Job::ALL[0];
        let who = "old tables, while old rows are forgotten";
        eprintln!("round {round}: {name}: {who}: {rate:.0}/s, {forgotten:.0}/s forgotten");
        report.add(name, who, "D2", rate);
        report.add("rows forgotten", "while a handler runs", "D2", forgotten);
    }
    drop(snapshot);
    report.finish(options.json.as_deref())
}

/// How many messages per second.
async fn turn_of(job: Job, world: &World, options: &Options, run: &str) -> anyhow::Result<f64> {
    let count = match job {
        Job::Handler => options.messages,
        Job::Inbox => options.messages * 5,
        Job::Relay => options.backlog,
    };
    let took = toolkit(job, world, count, run).await?;
    if job != Job::Relay {
        // Ids begin with the run: from there to the next text that does not.
        let of_run = format!(
            "tidings_inbox where consumer = '{CONSUMER}' and message > '{run}-' and message < '{run}.'"
        );
        let handled = world.count(&of_run).await?;
        ensure!(handled == count, "{handled} of {count} were handled");
    }
    if job == Job::Handler {
        world.empty_outbox().await?;
    }
    Ok(count as f64 / took.as_secs_f64())
}

/// Fills the inbox.
async fn age(world: &World, rows: u64) -> anyhow::Result<()> {
    let bar = ProgressBar::new(rows).with_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
    )?);
    bar.set_message("messages that were handled");
    for first in (1..=rows).step_by(STEP as usize) {
        let last = rows.min(first + STEP - 1);
        let each = OLDEST.as_secs_f64() / rows as f64;
        let sql = match world {
            World::Sqlite(..) => format!(
                "with recursive number (value) as (
                     select {first} union all select value + 1 from number where value < {last}
                 )
                 insert into tidings_inbox (consumer, message, changed_at)
                 select '{CONSUMER}', printf('01930000-0000-7000-8000-%012d', value),
                     unixepoch() * 1000 - cast(({rows} - value) * {each} * 1000 as integer)
                 from number"
            ),
            World::Postgres(..) => format!(
                "insert into tidings_inbox (consumer, message, claimed_at)
                 select '{CONSUMER}',
                     '01930000-0000-7000-8000-' || lpad(value::text, 12, '0'),
                     now() - ({rows} - value) * interval '{each} seconds'
                 from generate_series({first}, {last}) as value"
            ),
        };
        world.run(&sql).await?;
        bar.set_position(last);
    }
    bar.set_message("statistics");
    if let World::Postgres(..) = world {
        world.run("vacuum analyze tidings_inbox").await?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Somebody who reads for hours.
enum Snapshot {
    Sqlite(#[expect(dead_code, reason = "held")] rusqlite::Connection),
    Postgres(#[expect(dead_code, reason = "held")] tokio_postgres::Client),
}

impl Snapshot {
    async fn hold(url: Option<&str>, folder: &Path) -> anyhow::Result<Self> {
        let Some(url) = url else {
            let connection = rusqlite::Connection::open(folder.join("aged.db"))?;
            connection.execute_batch("begin; select count(*) from thing")?;
            return Ok(Self::Sqlite(connection));
        };
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let begin = "begin isolation level repeatable read; select count(*) from pg_class";
        client.batch_execute(begin).await?;
        Ok(Self::Postgres(client))
    }
}

/// Forgets old rows, one batch after the other.
struct Forgetting {
    task: JoinHandle<anyhow::Result<()>>,
    /// How many rows, and since when until when.
    count: Arc<AtomicU64>,
    began: Instant,
    ended: Arc<OnceLock<Instant>>,
}

impl Forgetting {
    fn start(world: &World) -> Self {
        let store = world.store();
        let (count, ended): (Arc<AtomicU64>, Arc<OnceLock<Instant>>) = Default::default();
        let (counts, ends) = (Arc::clone(&count), Arc::clone(&ended));
        let task = tokio::spawn(async move {
            loop {
                match forget(&*store).await? {
                    0 => break,
                    forgotten => counts.fetch_add(forgotten, Ordering::AcqRel),
                };
            }
            ends.get_or_init(Instant::now);
            Ok(())
        });
        Self {
            task,
            count,
            began: Instant::now(),
            ended,
        }
    }

    /// How many rows per second were forgotten, until none was left or the handler was done.
    async fn stop(self) -> anyhow::Result<f64> {
        let until = *self.ended.get_or_init(Instant::now);
        if self.task.is_finished() {
            self.task.await??;
        } else {
            self.task.abort();
        }
        let count = self.count.load(Ordering::Acquire);
        Ok(count as f64 / (until - self.began).as_secs_f64())
    }
}

async fn forget(store: &dyn Store) -> anyhow::Result<u64> {
    let forgotten = store.forget(CONSUMER, FORGOTTEN, FORGET_COUNT).await;
    forgotten
        .map_err(|error| anyhow!("{error}"))
        .context("forgetting old rows")
}
