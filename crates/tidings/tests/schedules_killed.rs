//! Schedules under `kill -9`: a process that sends what is scheduled, and one that hears it in the same
//! process, are killed at random moments and started anew, while messages that are sent once and schedules
//! that missed a day come due. Each occurrence takes effect once, none is lost, what was cancelled never
//! comes, and each rule for what was missed holds.
//!
//! Who is killed when comes from a seed, which is printed; `TIDINGS_TEST_SEED` gives it back.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use support::{Database, Random};
use tidings::{
    Commit, Cron, Expected, InboxState, Missed, Occurrence, RecordChange, RecordId, ScheduleId,
    Store,
    prelude::*,
    schedules::{self, Query},
    serve,
};
use tidings_amqp::Amqp;
use tidings_postgres::PostgresStore;
use tidings_sqlite::Tx;
use tidings_testing::servers::{Process, free_port, postgres_url};

/// Says in a process that it is the one to be killed: where its databases are.
const FOLDER: &str = "TIDINGS_TEST_SCHEDULES_FOLDER";
const BROKER: &str = "TIDINGS_TEST_SCHEDULES_BROKER";
/// The schema of PostgreSQL that holds the schedules; without it they are in SQLite.
const SCHEMA: &str = "TIDINGS_TEST_SCHEDULES_SCHEMA";

const KILLS: u64 = 20;
/// Messages that are sent once, per life.
const ONCE: u64 = 20;
/// The longest that one waits, and of which some are cancelled meanwhile.
const DELAY_MAX_MS: u64 = 4000;
/// The longest that a process lives after it is ready.
const LIFE_MAX_MS: u64 = 400;
const START_MAX: Duration = Duration::from_secs(30);

/// How long the schedules were left alone.
const OUTAGE: SignedDuration = SignedDuration::from_hours(25);
/// 150 in that time: more than share a commit.
const EXPRESSION: &str = "*/10 * * * *";

const KIND: &str = "tidings.schedule";

#[derive(Clone, Serialize, Deserialize, Event)]
struct BellRung {
    name: String,
}

/// Writes down what rang, with the occurrence it was and how many it stands for.
async fn hear(bell: BellRung, metadata: Metadata, mut tx: Tx) -> Result<()> {
    let (planned, stands_for) = match Occurrence::of(&metadata) {
        Some(occurrence) => (occurrence.planned.to_string(), occurrence.missed + 1),
        None => (String::new(), 1),
    };
    let account = format!("{} {planned}", bell.name);
    let row = (account, stands_for as i64);
    let sql = "insert into effect (account, number) values (?1, ?2)";
    tx.execute(sql, row).await?;
    Ok(())
}

/// The databases.
struct World {
    tower: Arc<dyn Store>,
    town: Database,
}

impl World {
    async fn open(folder: &Path, schema: Option<&str>) -> Self {
        let tower: Arc<dyn Store> = match schema {
            None => Database::at(folder.join("tower.db")).await.store.into(),
            Some(schema) => {
                let store = PostgresStore::connect(postgres_url(), schema).await;
                Arc::new(store.expect("PostgreSQL"))
            }
        };
        let town = Database::at(folder.join("town.db")).await;
        Self { tower, town }
    }

    fn routers(&self) -> [Router; 2] {
        let tower = Router::new("tower").publishes::<BellRung>();
        let town = Router::new("town").on(hear);
        [
            tower.transactional(Arc::clone(&self.tower)),
            town.transactional(self.town.store.clone()),
        ]
    }

    /// A schedule that nobody looked after for more than a day: the first occurrence that was missed.
    async fn overdue(&self, name: &str, missed: Missed) -> Timestamp {
        let cron = Cron::new(name, EXPRESSION, "UTC").expect("an expression");
        let producer = Producer::new("tower", Arc::clone(&self.tower));
        let message = BellRung { name: name.into() };
        let made = producer.schedule(cron.missed(missed), &message).await;
        made.expect("it commits");
        let id = RecordId::new(KIND, name);
        let records = self.tower.records();
        let found = records.read(std::slice::from_ref(&id)).await;
        let mut record = found.expect("records").remove(0).expect("a record");
        let body = String::from_utf8(record.value.body.to_vec()).expect("text");
        let (head, rest) = body.split_once('\n').expect("a line");
        let mut head: serde_json::Value = serde_json::from_str(head).expect("JSON");
        let planned = record.value.due.expect("a time");
        let planned = planned.saturating_sub(OUTAGE).expect("a time");
        head["cron"]["planned"] = planned.to_string().into();
        record.value.body = format!("{head}\n{rest}").into();
        record.value.due = Some(planned);
        let commit = Commit {
            records: vec![RecordChange {
                id,
                expected: Expected::Version(record.version),
                value: Some(record.value),
            }],
            ..Commit::default()
        };
        self.tower.commit(commit).await.expect("it commits");
        planned
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests below, which kill it"]
async fn the_services() {
    let (Some(folder), Ok(broker)) = (std::env::var_os(FOLDER), std::env::var(BROKER)) else {
        return;
    };
    let schema = std::env::var(SCHEMA).ok();
    let world = World::open(Path::new(&folder), schema.as_deref()).await;
    let amqp = Amqp::connect(&broker).await.expect("it connects");
    let service = serve(amqp, world.routers());
    let ready = service.ready();
    tokio::spawn(async move {
        ready.await;
        println!("\nready");
    });
    service.await.expect("it runs until it is killed");
}

fn start(folder: &Path, broker: &str, schema: Option<&str>) -> Process {
    let mut command = Process::command(std::env::current_exe().expect("this program"));
    command
        .args(["--ignored", "--nocapture", "--exact", "the_services"])
        .env(FOLDER, folder)
        .env(BROKER, broker);
    if let Some(schema) = schema {
        command.env(SCHEMA, schema);
        command.env(tidings_testing::servers::POSTGRES_URL, postgres_url());
    }
    let mut process = Process::start(command).expect("it starts");
    process
        .wait_for_line(START_MAX, |line| line == "ready")
        .expect("it is ready");
    process
}

/// What was scheduled.
#[derive(Default)]
struct Made {
    once: BTreeSet<String>,
    cancelled: BTreeSet<String>,
    /// The first occurrence of each that recurs.
    recurring: BTreeMap<String, (Missed, Timestamp)>,
}

impl Made {
    /// Schedules more while nobody runs, and cancels some of what waits.
    async fn more(&mut self, world: &World, random: &Random, round: u64) {
        let producer = Producer::new("tower", Arc::clone(&world.tower));
        let mut transaction = producer.transaction();
        for number in 0..ONCE {
            let name = format!("once-{round}-{number}");
            let delay = Duration::from_millis(random.below(DELAY_MAX_MS));
            let message = BellRung { name: name.clone() }.after(delay);
            let message = message.scheduled_as(ScheduleId::new(name.clone()));
            transaction.say(message).expect("it is small");
            self.once.insert(name);
        }
        transaction.commit().await.expect("it commits");
        let names: Vec<String> = self.once.iter().cloned().collect();
        for name in names {
            if random.below(8) == 0 {
                let id = ScheduleId::new(name.clone());
                if producer.cancel(&id).await.expect("an answer") {
                    self.once.remove(&name);
                    self.cancelled.insert(name);
                }
            }
        }
        for missed in [Missed::All, Missed::Once, Missed::Skip] {
            let name = format!("{missed:?}-{round}");
            let first = world.overdue(&name, missed).await;
            self.recurring.insert(name, (missed, first));
        }
    }

    /// Whether nothing is due any more, and everything that was sent was heard.
    async fn is_over(&self, world: &World) -> bool {
        let query = Query {
            limit: 10_000,
            ..Query::default()
        };
        let left = schedules::list(&*world.tower, &query).await;
        let left = left.expect("a list");
        let later = left.iter().all(|it| it.due > Some(Timestamp::now()));
        let outbox = world.tower.outbox().stats().await.expect("it counts");
        left.len() == self.recurring.len() && later && outbox.ready == 0
    }

    /// Compares what was heard with what was scheduled.
    async fn check(&self, world: &World) {
        let mut heard: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
        for (account, stands_for) in world.town.effects().await {
            let (name, planned) = account.split_once(' ').expect("a name and a time");
            let of_name = heard.entry(name.into()).or_default();
            of_name.push((planned.into(), stands_for));
        }
        assert_eq!(world.town.rows(InboxState::Dead).await, 0);
        for name in &self.once {
            let heard = heard.get(name).map_or(0, Vec::len);
            assert_eq!(heard, 1, "{name} is heard once");
        }
        for name in &self.cancelled {
            assert!(!heard.contains_key(name), "{name} was cancelled");
        }
        for (name, (missed, first)) in &self.recurring {
            let mut heard = heard.remove(name).unwrap_or_default();
            heard.sort_unstable();
            let found = schedules::get(&*world.tower, &ScheduleId::new(name.clone())).await;
            let found = found.expect("an answer").expect("it goes on");
            let (last, next) = (found.recurs.expect("it recurs").last, found.due);
            let next = next.expect("a time");
            let all = occurrences(*first, next);
            let distinct: BTreeSet<&String> = heard.iter().map(|(planned, _)| planned).collect();
            assert_eq!(distinct.len(), heard.len(), "{name}: each once");
            let planned: Vec<String> = heard.iter().map(|(planned, _)| planned.clone()).collect();
            match missed {
                Missed::All => assert_eq!(planned, all, "{name}"),
                // Whatever was not sent is told with one that was.
                Missed::Once => {
                    let told: u64 = heard.iter().map(|(_, stands_for)| stands_for).sum();
                    assert_eq!(told, all.len() as u64, "{name}: {heard:?}");
                    assert!(heard.len() <= 3, "{name}: {heard:?}");
                    assert_eq!(planned.last(), all.last(), "{name}");
                }
                // One may have come due in the minute in which it was looked for.
                Missed::Skip => assert!(heard.len() <= 2, "{name}: {heard:?}"),
            }
            let sent = last.map(|it| it.to_string());
            assert_eq!(sent.as_ref(), planned.last(), "{name}");
        }
    }
}

/// The occurrences from one until before another.
fn occurrences(first: Timestamp, end: Timestamp) -> Vec<String> {
    let cron = Cron::new("all", EXPRESSION, "UTC").expect("an expression");
    let next = |time: &Timestamp| cron.next_after(*time);
    let all = std::iter::successors(Some(first), next);
    let all = all.take_while(|it| *it < end);
    all.map(|it| it.to_string()).collect()
}

async fn killed(schema: Option<&str>) {
    let seed = std::env::var("TIDINGS_TEST_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("TIDINGS_TEST_SEED={seed}");
    let random = Random::new(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port().expect("a port");
    let options = tidings_broker::Options::durable(folder.path().join("broker"));
    let options = options.listen((std::net::Ipv4Addr::LOCALHOST, port));
    let broker = tidings_broker::Broker::start(options).await;
    let broker = broker.expect("the broker starts");
    let url = format!("amqp://guest:guest@127.0.0.1:{port}");
    let begin = async || {
        let (folder, url) = (folder.path().to_owned(), url.clone());
        let schema = schema.map(str::to_owned);
        let starting = move || start(&folder, &url, schema.as_deref());
        let started = tokio::task::spawn_blocking(starting).await;
        started.expect("it starts")
    };
    let mut made = Made::default();
    for kill in 0..KILLS {
        let world = World::open(folder.path(), schema).await;
        made.more(&world, &random, kill).await;
        drop(world);
        let mut process = begin().await;
        tokio::time::sleep(Duration::from_millis(random.below(LIFE_MAX_MS))).await;
        assert!(
            process.is_running(),
            "it ended by itself: {:?}",
            process.stdout()
        );
        process.kill9();
    }
    let mut process = begin().await;
    let world = World::open(folder.path(), schema).await;
    let waiting = async {
        while !made.is_over(&world).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // What was published last is heard.
        let mut before = 0;
        loop {
            let heard = world.town.effects().await.len();
            if heard == before && heard > 0 && world.town.is_quiet().await {
                return;
            }
            before = heard;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(90), waiting).await;
    process.kill9();
    made.check(&world).await;
    waited.expect("everything is sent in time");
    println!(
        "{} once, {} cancelled, {} recurring",
        made.once.len(),
        made.cancelled.len(),
        made.recurring.len()
    );
    assert!(made.cancelled.len() > 5 && made.once.len() > 100);
    broker.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_occurrence_takes_effect_once_under_kill_9_on_sqlite() {
    killed(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn each_occurrence_takes_effect_once_under_kill_9_on_postgresql() {
    killed(Some(&format!("schedules_killed_{}", std::process::id()))).await;
}
