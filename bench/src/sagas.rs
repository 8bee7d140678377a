//! What the manager of sagas does in a second, and what a mountain of timers costs the others.
//!
//! | job | the toolkit | the floor |
//! | --- | --- | --- |
//! | steps | `serve` runs sagas of three steps; the driver is the engine and answers every command at once | the same rows bare: claim, journal read and written, command; read and removed again |
//! | timers | sagas whose timers were due an hour ago; meanwhile others start and end, one after the other | |
//!
//! A saga is four transitions: its start and three answers. Each is a claim, a journal and a message, and each
//! message is published and its row removed. The floor does just that, 64 transitions for one commit, with
//! journals of the same size, and removes 1,000 messages at a time. What a turn left is counted afterwards.

mod driver;
mod floor;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use jiff::{SignedDuration, Timestamp};
use tidings::{
    Commit, Expected, Outgoing, RecordChange, RecordId, RecordValue, Router, Saga, Sagas,
    prelude::*,
    sagas::{Answer, Arrival, Definition, Part, Start, Turn},
    serve,
};
use tokio::{sync::oneshot, time::sleep};

use crate::{
    floors::{World, Worlds},
    machine::Machine,
    report::Report,
};
use driver::Driver;

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(300);

/// How many answers a saga gets.
pub(crate) const STEPS: u64 = 3;

/// How long ago the timers were due.
const OVERDUE: SignedDuration = SignedDuration::from_hours(1);

/// Between two sagas that live while timers fire.
const LIVE_EVERY: Duration = Duration::from_millis(10);

/// What sagas cost.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Sagas of a turn, each with three steps.
    #[arg(long, default_value_t = 10_000)]
    sagas: u64,
    /// Timers that are due at once; 0 for none.
    #[arg(long, default_value_t = 100_000)]
    timers: u64,
    /// Rounds; in each, the toolkit and the floor have their turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// PostgreSQL instead of SQLite; one is started from what is installed.
    #[arg(long)]
    postgres: bool,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "errand-begun.v1", id = "id", key = "id")]
struct ErrandBegun {
    id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "errand-ended.v1", id = "id", key = "id")]
struct ErrandEnded {
    id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(name = "rest-begun.v1", id = "id", key = "id")]
struct RestBegun {
    id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(name = "do-errand.v1", target = "errands", reply = ())]
struct DoErrand {
    id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(name = "undo-errand.v1", target = "errands", reply = ())]
struct UndoErrand {
    id: String,
}

async fn errand(begun: ErrandBegun, saga: Saga) -> Result<ErrandEnded, ErrandEnded> {
    for step in ["first", "second", "third"] {
        let id = begun.id.clone();
        let step = saga.step(step, DoErrand { id: id.clone() });
        let done = step.undo(move |()| UndoErrand { id: id.clone() }).await;
        if done.is_err() {
            return Err(ErrandEnded { id: begun.id });
        }
    }
    Ok(ErrandEnded { id: begun.id })
}

async fn rest(begun: RestBegun, saga: Saga) -> Result<ErrandEnded, ErrandEnded> {
    saga.timer("rest", Duration::from_secs(1)).await;
    Ok(ErrandEnded { id: begun.id })
}

fn errands() -> Sagas<ErrandBegun> {
    Sagas::new("errand", |it: &ErrandBegun| it.id.clone()).version(1, errand)
}

fn rests() -> Sagas<RestBegun> {
    Sagas::new("rest", |it: &RestBegun| it.id.clone()).version(1, rest)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let worlds = Worlds::start(options.postgres)?;
    let settings = BTreeMap::from([
        ("database", worlds.database().to_owned()),
        ("sagas of a turn", options.sagas.to_string()),
        ("timers", options.timers.to_string()),
        ("rounds", options.rounds.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let bodies = journals()?;
    for round in 1..=options.rounds {
        let world = |name: &str| format!("sagas_{name}_{round}");
        let steps = options.sagas * STEPS;
        let turn = worlds.open(&world("toolkit")).await?;
        let took = toolkit(&turn, options.sagas).await?;
        add(&mut report, round, "steps", "toolkit", steps, took);
        let turn = worlds.open(&world("floor")).await?;
        let took = floor::run(&turn, options.sagas, &bodies).await?;
        add(
            &mut report,
            round,
            "steps",
            "raw driver, 64 for a commit",
            steps,
            took,
        );
        if options.timers > 0 {
            let turn = worlds.open(&world("timers")).await?;
            let took = timers(&turn, options.timers).await?;
            add(
                &mut report,
                round,
                "timers",
                "toolkit",
                options.timers,
                took,
            );
        }
    }
    report.finish(options.json.as_deref())
}

fn add(report: &mut Report, round: usize, job: &str, who: &str, count: u64, took: Duration) {
    let rate = count as f64 / took.as_secs_f64();
    eprintln!("round {round}: {job}: {who}: {rate:.0}/s ({count} in {took:.2?})");
    report.add(job, who, "D2", rate);
}

/// The journal of a saga after its start and after each answer.
fn journals() -> anyhow::Result<Vec<Vec<u8>>> {
    let definition = errands().define("bench");
    let id = "m-1000".to_owned();
    let mut turn = begin(
        &definition,
        &ErrandBegun { id: id.clone() },
        Timestamp::now(),
    )?;
    let mut bodies = vec![turn.journal.write()];
    for step in ["first", "second", "third"] {
        let arrival = Arrival::Answer {
            run: 0,
            step: step.into(),
            part: Part::Do,
            answer: Answer::Done(serde_json::value::to_raw_value(&())?),
        };
        turn = definition.advance(&id, turn.journal, [arrival], Timestamp::now());
        bodies.push(turn.journal.write());
    }
    ensure!(
        turn.journal.state.label() == "completed",
        "it is over after three steps"
    );
    Ok(bodies)
}

fn begin<M: Message>(definition: &Definition, message: &M, now: Timestamp) -> anyhow::Result<Turn> {
    let start = Start::of(message).map_err(|error| anyhow::anyhow!("{error}"))?;
    let key = message.key().unwrap_or_default().into_owned();
    Ok(definition.start(&key, start, now))
}

/// Sagas from their first message to their last.
async fn toolkit(world: &World, sagas: u64) -> anyhow::Result<Duration> {
    let driver = Driver::default();
    for number in 0..sagas {
        let id = format!("m-{number}");
        driver.send("bench.errand-begun.v1", envelope(&ErrandBegun { id })?);
    }
    let router = Router::new("bench")
        .saga(errands())
        .transactional(world.store());
    let service = Service::start(&driver, router).await;
    driver.until_ended(sagas, STILL_MAX).await?;
    let took = service.began.elapsed();
    service.stop().await?;
    driver.check(sagas)?;
    let completed = "tidings_record where kind = 'saga:errand' and label = 'completed'";
    check(world, completed, sagas).await?;
    check(world, "tidings_inbox", sagas * (STEPS + 1)).await?;
    check(world, "tidings_outbox", 0).await?;
    ensure!(
        driver.answered() == sagas * STEPS,
        "each step was asked for once"
    );
    Ok(took)
}

async fn check(world: &World, table: &str, expected: u64) -> anyhow::Result<()> {
    let there = world.count(table).await?;
    ensure!(there == expected, "{there} rows in {table}, not {expected}");
    Ok(())
}

fn envelope<M: Message>(message: &M) -> anyhow::Result<tidings::Envelope> {
    let outgoing = Outgoing::new(message).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(outgoing.envelope)
}

/// Timers that were due long ago, while other sagas start and end.
async fn timers(world: &World, timers: u64) -> anyhow::Result<Duration> {
    write_overdue(world, timers).await?;
    let driver = Driver::default();
    let router = Router::new("bench")
        .saga(rests())
        .saga(errands())
        .transactional(world.store());
    let service = Service::start(&driver, router).await;
    let mut live = Vec::new();
    while driver.ended() < timers + live.len() as u64 {
        ensure!(service.began.elapsed() < STILL_MAX, "timers stand still");
        let id = format!("live-{}", live.len());
        let asked = Instant::now();
        driver.send(
            "bench.errand-begun.v1",
            envelope(&ErrandBegun { id: id.clone() })?,
        );
        driver.until_over(&id, STILL_MAX).await?;
        live.push(asked.elapsed());
        sleep(LIVE_EVERY).await;
    }
    let took = service.began.elapsed();
    service.stop().await?;
    driver.check(timers + live.len() as u64)?;
    let completed = "tidings_record where kind = 'saga:rest' and label = 'completed'";
    check(world, completed, timers).await?;
    live.sort_unstable();
    let (middle, last) = (live.get(live.len() / 2), live.last());
    eprintln!(
        "timers: {} live sagas of three steps meanwhile: median {:.1?}, slowest {:.1?}",
        live.len(),
        middle.copied().unwrap_or_default(),
        last.copied().unwrap_or_default()
    );
    Ok(took)
}

async fn write_overdue(world: &World, count: u64) -> anyhow::Result<()> {
    let definition = rests().define("bench");
    let began = Timestamp::now() - OVERDUE;
    for first in (0..count).step_by(500) {
        let mut records = Vec::new();
        for number in first..count.min(first + 500) {
            let id = format!("rest-{number}");
            let turn = begin(&definition, &RestBegun { id: id.clone() }, began)?;
            records.push(RecordChange {
                id: RecordId::new("saga:rest", id),
                expected: Expected::Nothing,
                value: Some(RecordValue {
                    label: turn.journal.state.label().into(),
                    due: turn.due,
                    body: turn.journal.write().into(),
                }),
            });
        }
        let commit = Commit {
            records,
            ..Commit::default()
        };
        world.store().commit(commit).await?;
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
    async fn start(driver: &Driver, router: Router) -> Self {
        let (stop, stopped) = oneshot::channel();
        let serve =
            serve(driver.clone(), router).with_graceful_shutdown(async { drop(stopped.await) });
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
}
