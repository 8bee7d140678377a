//! What the toolkit's promises cost: each job beside its floor, the same statements bare through the
//! database's raw driver.
//!
//! | job | the toolkit | the floor |
//! | --- | --- | --- |
//! | handler | claim, one insert, one outbox row, by `serve` from an engine that costs nothing | the three statements |
//! | inbox | the claim alone | claims, in one statement for a commit where the database can |
//! | relay | `serve` empties an outbox into an engine that confirms at once | reads 1,000 rows, removes them |
//!
//! A floor is taken with 1, 8 and 64 messages for one commit. The tables and their indexes are the
//! toolkit's own; on PostgreSQL all of a commit is sent at once. What a turn wrote is counted
//! afterwards.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use futures_util::future::{BoxFuture, join_all};
use tempfile::TempDir;
use tidings::{Envelope, Producer, Router, Store, prelude::*, serve};
use tidings_postgres::{
    PostgresStore,
    tokio_postgres::{self, NoTls},
};
use tidings_sqlite::{SqliteStore, rusqlite};
use tidings_testing::servers::Postgres;
use tokio::{sync::oneshot, time::sleep};

use crate::{
    feed::{Feed, Watch},
    machine::Machine,
    report::Report,
};

/// Rows that the raw relay reads at once: as many as the toolkit's.
const ROUND: i64 = 1000;

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(120);

/// What the toolkit costs beside the bare statements.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Messages of a turn; floors with few messages for a commit take fewer.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
    /// Rounds; in each, the toolkit and the floors have their turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// PostgreSQL instead of SQLite; one is started from what is installed.
    #[arg(long)]
    postgres: bool,
    /// Only these jobs; all if none is named.
    #[arg(long)]
    job: Vec<Job>,
    /// Only the toolkit, without the floors: beside a profiler, or in turns with another version.
    #[arg(long)]
    only_toolkit: bool,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Job {
    Handler,
    Inbox,
    Relay,
}

impl Job {
    pub(crate) const ALL: [(Self, &str); 3] = [
        (Self::Handler, "handler: claim, insert, outbox row"),
        (Self::Inbox, "inbox: claim"),
        (Self::Relay, "relay: read and remove"),
    ];
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-noted.v1", key = "key")]
struct ThingNoted {
    key: String,
}

/// What the handler sends.
#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-kept.v1", key = "key")]
struct ThingKept {
    key: String,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let worlds = Worlds::start(options.postgres)?;
    let settings = BTreeMap::from([
        ("database", worlds.database().to_owned()),
        ("messages of a turn", options.messages.to_string()),
        ("rounds", options.rounds.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let mut number = 0;
    for round in 1..=options.rounds {
        for (job, name) in Job::ALL {
            // `None`: the toolkit.
            let turns: &[Option<u64>] = match job {
                Job::Relay => &[None, Some(1)],
                Job::Handler | Job::Inbox => &[None, Some(64), Some(8), Some(1)],
            };
            if !options.job.is_empty() && !options.job.contains(&job) {
                continue;
            }
            for per_commit in turns {
                if options.only_toolkit && per_commit.is_some() {
                    continue;
                }
                number += 1;
                let schema = format!("floor_{number}");
                let world = worlds.open(&schema).await?;
                let count = match (job, per_commit) {
                    (Job::Relay, _) => options.messages * 10,
                    (Job::Inbox, None | Some(64)) => options.messages * 5,
                    (Job::Handler, None | Some(64)) => options.messages * 2,
                    (_, Some(8)) => options.messages / 2,
                    (_, Some(_)) => options.messages / 8,
                };
                let who = match (job, per_commit) {
                    (_, None) => "toolkit".to_owned(),
                    (Job::Relay, Some(_)) => "raw driver".to_owned(),
                    (_, Some(per_commit)) => format!("raw driver, {per_commit} for a commit"),
                };
                let took = match per_commit {
                    None => toolkit(job, &world, count, "m").await?,
                    Some(per_commit) => world.raw(job, count, *per_commit).await?,
                };
                world.check(job, count).await?;
                let rate = count as f64 / took.as_secs_f64();
                eprintln!("round {round}: {name}: {who}: {rate:.0}/s");
                report.add(name, &who, "D2", rate);
            }
        }
    }
    report.finish(options.json.as_deref())
}

/// Where the databases of a run are, until it ends.
pub(crate) struct Worlds {
    /// Beside where the program was started.
    folder: TempDir,
    postgres: Option<Postgres>,
}

impl Worlds {
    pub(crate) fn start(postgres: bool) -> anyhow::Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir_in(std::env::current_dir()?)?,
            postgres: postgres.then(Postgres::start).transpose()?,
        })
    }

    /// As the settings of a report name it.
    pub(crate) fn database(&self) -> &'static str {
        match self.postgres {
            Some(_) => "PostgreSQL",
            None => "SQLite",
        }
    }

    pub(crate) async fn open(&self, name: &str) -> anyhow::Result<World> {
        let url = self.postgres.as_ref().map(Postgres::url);
        World::new(url.as_deref(), self.folder.path(), name).await
    }
}

/// A database of its own for each turn.
pub(crate) enum World {
    Sqlite(SqliteStore, PathBuf),
    Postgres(PostgresStore, String),
}

const THING: &str = "create table thing (id text primary key, status text not null)";

impl World {
    /// With this name: of a file in `folder`, or of a schema in the database at `url`.
    pub(crate) async fn new(url: Option<&str>, folder: &Path, name: &str) -> anyhow::Result<Self> {
        let Some(url) = url else {
            let file = folder.join(format!("{name}.db"));
            let store = SqliteStore::open(&file).await?;
            store.migrate(&[("1", THING)]).await?;
            return Ok(Self::Sqlite(store, file));
        };
        let store = PostgresStore::connect(url, name).await?;
        store.migrate(&[("1", THING)]).await?;
        let url = format!("{url}?options=-c%20search_path={name}");
        Ok(Self::Postgres(store, url))
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store, _) => store.clone().into(),
            Self::Postgres(store, _) => store.clone().into(),
        }
    }

    /// Statements without parameters.
    pub(crate) async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let sql = sql.to_owned();
        match self {
            Self::Sqlite(_, file) => {
                let file = file.clone();
                let run = move || -> anyhow::Result<()> {
                    let connection = rusqlite::Connection::open(file)?;
                    connection.busy_timeout(STILL_MAX)?;
                    Ok(connection.execute_batch(&sql)?)
                };
                tokio::task::spawn_blocking(run).await?
            }
            Self::Postgres(store, _) => Ok(store.client().await?.batch_execute(&sql).await?),
        }
    }

    /// Leaves nothing in the outbox, not even dead rows.
    pub(crate) async fn empty_outbox(&self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(..) => self.run("delete from tidings_outbox").await,
            Self::Postgres(..) => self.run("truncate tidings_outbox").await,
        }
    }

    /// How many rows a table has, or those of it that fulfil a condition.
    pub(crate) async fn count(&self, table: &str) -> anyhow::Result<u64> {
        let sql = format!("select count(*) from {table}");
        let count: i64 = match self {
            Self::Sqlite(store, _) => {
                let read =
                    store.read(move |connection| connection.query_row(&sql, (), |row| row.get(0)));
                read.await?
            }
            Self::Postgres(store, _) => store
                .client()
                .await?
                .query_one(&sql, &[])
                .await?
                .try_get(0)?,
        };
        Ok(count.unsigned_abs())
    }

    /// What a turn had to write must be there, and nothing else.
    async fn check(&self, job: Job, count: u64) -> anyhow::Result<()> {
        let expected = match job {
            Job::Handler => [count, count, count],
            Job::Inbox => [count, 0, 0],
            Job::Relay => [0, 0, 0],
        };
        for (table, expected) in ["tidings_inbox", "thing", "tidings_outbox"]
            .iter()
            .zip(expected)
        {
            let there = self.count(table).await?;
            ensure!(there == expected, "{there} rows in {table}, not {expected}");
        }
        Ok(())
    }

    /// The bare statements, `per_commit` messages for each commit.
    async fn raw(&self, job: Job, count: u64, per_commit: u64) -> anyhow::Result<Duration> {
        if job == Job::Relay {
            fill(&self.store(), count).await?;
        }
        match self {
            Self::Sqlite(_, file) => {
                let file = file.clone();
                let raw = move || match job {
                    Job::Relay => sqlite::relay(&file),
                    Job::Handler | Job::Inbox => sqlite::handle(&file, job, count, per_commit),
                };
                tokio::task::spawn_blocking(raw).await?
            }
            Self::Postgres(_, url) => match job {
                Job::Relay => postgres::relay(url).await,
                Job::Handler | Job::Inbox => postgres::handle(url, job, count, per_commit).await,
            },
        }
    }
}

/// The same work through `serve`; `run` begins the messages' ids.
pub(crate) async fn toolkit(
    job: Job,
    world: &World,
    count: u64,
    run: &str,
) -> anyhow::Result<Duration> {
    let body = serde_json::to_vec(&ThingNoted { key: "k".into() })?;
    let envelope = Envelope {
        key: Some("k".into()),
        ..Envelope::new("thing-noted.v1", body)
    };
    match job {
        Job::Relay => {
            let feed = Feed::new(envelope, run, 0, true);
            let watch = feed.watch();
            fill(&world.store(), count).await?;
            let router = Router::new("floor").publishes::<ThingKept>();
            let service = Service::start(feed, router.transactional(world.store())).await;
            emptied(world, &watch, count).await?;
            let took = service.began.elapsed();
            service.stop().await?;
            Ok(took)
        }
        Job::Handler | Job::Inbox => {
            let feed = Feed::new(envelope, run, count, false);
            let watch = feed.watch();
            let router = Router::new("floor").transactional(world.store());
            let router = match (job, world) {
                (Job::Inbox, _) => router.on(claim_only),
                (_, World::Sqlite(..)) => router.on(keep_on_sqlite),
                (_, World::Postgres(..)) => router.on(keep_on_postgres),
            };
            let service = Service::start(feed, router).await;
            let ended = tokio::time::timeout(STILL_MAX, watch.all_acknowledged()).await;
            let took = ended.context("it stands still")?? - service.began;
            service.abort();
            Ok(took)
        }
    }
}

async fn claim_only(_: ThingNoted) -> tidings::Result<()> {
    Ok(())
}

async fn keep_on_sqlite(
    thing: ThingNoted,
    id: MessageId,
    mut tx: tidings_sqlite::Tx,
) -> tidings::Result<ThingKept> {
    let insert = "insert into thing (id, status) values (?1, ?2)";
    tx.execute(insert, (id.to_string(), "NEW")).await?;
    Ok(ThingKept { key: thing.key })
}

async fn keep_on_postgres(
    thing: ThingNoted,
    id: MessageId,
    mut tx: tidings_postgres::Tx,
) -> tidings::Result<ThingKept> {
    let insert = "insert into thing (id, status) values ($1, $2)";
    tx.execute(insert, &[&id.as_str(), &"NEW"]).await?;
    Ok(ThingKept { key: thing.key })
}

/// Commits messages to send.
async fn fill(store: &Arc<dyn Store>, count: u64) -> anyhow::Result<()> {
    let producer = Producer::new("floor", Arc::clone(store));
    for first in (0..count).step_by(1000) {
        let commit = async {
            let mut transaction = producer.transaction();
            for number in first..count.min(first + 1000) {
                let key = format!("k-{}", number % 50);
                transaction.publish(&ThingKept { key })?;
            }
            transaction.commit().await
        };
        commit
            .await
            .map_err(|error: tidings::Error| anyhow!("cannot commit: {error}"))?;
    }
    Ok(())
}

/// Waits until everything is published and removed.
async fn emptied(world: &World, watch: &Watch, count: u64) -> anyhow::Result<()> {
    let until = Instant::now() + STILL_MAX;
    while watch.published() < count || world.store().outbox().stats().await?.ready > 0 {
        ensure!(Instant::now() < until, "the relay stands still");
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A service that runs.
struct Service {
    began: Instant,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<Result<(), tidings::ServeError>>,
}

impl Service {
    async fn start(feed: Feed, router: Router) -> Self {
        let (stop, stopped) = oneshot::channel();
        let serve = serve(feed, router).with_graceful_shutdown(async { drop(stopped.await) });
        let ready = serve.ready();
        let began = Instant::now();
        let serving = tokio::spawn(serve.into_future());
        ready.await;
        Self {
            began,
            stop,
            serving,
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        Ok(self.serving.await??)
    }

    /// Without waiting for what it would still send.
    fn abort(self) {
        self.serving.abort();
    }
}

/// What an outbox row says, in the toolkit's words.
const METADATA: &str = r#"{"name":"thing-kept.v1","id":"01930000-0000-7000-8000-000000000000","source":"floor","time":"2026-01-01T00:00:00Z","key":"k","causation_id":"m-1","correlation_id":"m-1","content_type":"application/json","topic":"thing-kept.v1"}"#;
const BODY: &[u8] = br#"{"key":"k"}"#;

/// The bare statements on SQLite, as the toolkit runs them.
mod sqlite {
    use super::{BODY, Duration, Instant, Job, METADATA, Path, ROUND, rusqlite};

    fn open(file: &Path) -> rusqlite::Result<rusqlite::Connection> {
        let connection = rusqlite::Connection::open(file)?;
        connection.execute_batch("pragma synchronous = full")?;
        Ok(connection)
    }

    pub(super) fn handle(
        file: &Path,
        job: Job,
        count: u64,
        per_commit: u64,
    ) -> anyhow::Result<Duration> {
        let mut connection = open(file)?;
        let began = Instant::now();
        for first in (0..count).step_by(per_commit as usize) {
            let transaction = connection.transaction()?;
            for number in first..count.min(first + per_commit) {
                let id = format!("m-{number}");
                transaction
                    .prepare_cached(
                        "insert into tidings_inbox (consumer, message, changed_at)
                         values (?1, ?2, ?3) on conflict do nothing",
                    )?
                    .execute(("floor.thing-noted.v1", &id, 1_800_000_000_000_i64))?;
                if job == Job::Inbox {
                    continue;
                }
                transaction
                    .prepare_cached("insert into thing (id, status) values (?1, ?2)")?
                    .execute((&id, "NEW"))?;
                transaction
                    .prepare_cached(
                        "insert into tidings_outbox
                             (lane, created_at, destination, key_hash, message, body)
                         values (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute((
                        3,
                        1_800_000_000_000_i64,
                        "topic:thing-kept.v1",
                        7_i64,
                        METADATA,
                        BODY,
                    ))?;
            }
            transaction.commit()?;
        }
        Ok(began.elapsed())
    }

    pub(super) fn relay(file: &Path) -> anyhow::Result<Duration> {
        let connection = open(file)?;
        let began = Instant::now();
        loop {
            let rows: Vec<i64> = connection
                .prepare_cached(
                    "select position, message, body, destination from tidings_outbox
                     where state = 0 order by position limit ?1",
                )?
                .query_map((ROUND,), |row| {
                    let _: (String, Vec<u8>, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
                    row.get(0)
                })?
                .collect::<Result<_, _>>()?;
            if rows.is_empty() {
                return Ok(began.elapsed());
            }
            connection.execute_batch("begin immediate")?;
            for position in rows {
                connection
                    .prepare_cached("delete from tidings_outbox where position = ?1")?
                    .execute((position,))?;
            }
            connection.execute_batch("commit")?;
        }
    }
}

/// The bare statements on PostgreSQL.
pub(crate) mod postgres {
    use super::{
        BODY, BoxFuture, Duration, Instant, Job, METADATA, NoTls, ROUND, join_all, tokio_postgres,
    };

    pub(crate) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(super) async fn handle(
        url: &str,
        job: Job,
        count: u64,
        per_commit: u64,
    ) -> anyhow::Result<Duration> {
        let client = &connect(url).await?;
        let claim = client
            .prepare(
                "insert into tidings_inbox (consumer, message)
                 select * from unnest($1::text[], $2::text[])
                 on conflict do nothing returning message",
            )
            .await?;
        let keep = &client
            .prepare("insert into thing (id, status) values ($1, $2)")
            .await?;
        let send = client
            .prepare(
                "insert into tidings_outbox (lane, destination, key_hash, message, body)
                 select 3::smallint, 'topic:thing-kept.v1', 7::bigint, message, body
                 from unnest($1::text[], $2::bytea[]) as row (message, body)",
            )
            .await?;
        let began = Instant::now();
        for first in (0..count).step_by(per_commit as usize) {
            let ids: Vec<String> = (first..count.min(first + per_commit))
                .map(|number| format!("m-{number}"))
                .collect();
            let consumers = vec!["floor.thing-noted.v1"; ids.len()];
            let (messages, bodies) = (vec![METADATA; ids.len()], vec![BODY; ids.len()]);
            type Sent<'a> = BoxFuture<'a, Result<(), tokio_postgres::Error>>;
            let mut sent: Vec<Sent<'_>> = vec![
                Box::pin(client.batch_execute("begin")),
                Box::pin(async { client.query(&claim, &[&consumers, &ids]).await.map(drop) }),
            ];
            if job == Job::Handler {
                sent.extend(ids.iter().map(|id| {
                    Box::pin(async move { client.execute(keep, &[id, &"NEW"]).await.map(drop) })
                        as Sent<'_>
                }));
                sent.push(Box::pin(async {
                    client.execute(&send, &[&messages, &bodies]).await.map(drop)
                }));
            }
            sent.push(Box::pin(client.batch_execute("commit")));
            for outcome in join_all(sent).await {
                outcome?;
            }
        }
        Ok(began.elapsed())
    }

    pub(super) async fn relay(url: &str) -> anyhow::Result<Duration> {
        let client = connect(url).await?;
        let next = client
            .prepare(
                "select position, message, body, destination from tidings_outbox
                 where state = 0 order by position limit $1",
            )
            .await?;
        let remove = client
            .prepare("delete from tidings_outbox where position = any ($1)")
            .await?;
        let began = Instant::now();
        loop {
            let rows = client.query(&next, &[&ROUND]).await?;
            if rows.is_empty() {
                return Ok(began.elapsed());
            }
            let positions: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            client.execute(&remove, &[&positions]).await?;
        }
    }
}
