//! What it costs to keep the events that a service sends, and how fast they are sent again.
//!
//! | job | peers |
//! | --- | --- |
//! | handler | claim, one insert, one outbox row, with and without a row in the log beside it |
//! | replay | `Replay` from that log into a queue of the broker in the box, without a limit; the raw client, which publishes as many messages of that size from memory |
//!
//! The handler is the one of `bench floors`, with an engine that costs nothing. After a replay as many
//! events as were kept must be in the queue.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tidings::{Queue, Topology, Transport, replay::Replay};
use tidings_amqp::Amqp;

use crate::{
    amqp,
    floors::{self, Job, World, Worlds},
    machine::Machine,
    peers::{self, Tidings},
    report::Report,
};

const QUEUE: &str = "late.thing-kept.v1";
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many the raw client has under way: as many as a replay publishes at a time.
const WINDOW: usize = 500;
const WITHOUT: &str = "handler, events are not kept";
const WITH: &str = "handler, events are kept";

/// Keeping and replaying events.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Events of a turn.
    #[arg(long, default_value_t = 40_000)]
    events: u64,
    /// Rounds; in each, everybody has a turn.
    #[arg(long, default_value_t = 5)]
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

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let worlds = Worlds::start(options.postgres)?;
    let settings = BTreeMap::from([
        ("database", worlds.database().to_owned()),
        ("events of a turn", options.events.to_string()),
        ("rounds", options.rounds.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let program = peers::sibling(options.tidings.as_deref(), "tidings-broker")?;
    let broker = Tidings::start(&program)?;
    for round in 1..=options.rounds {
        for turn in 0..2 {
            let keeps = (round + turn) % 2 == 0;
            let name = format!("replay_{round}_{turn}");
            let world = worlds.open(&name).await?;
            if keeps {
                let store = world.store();
                store.log().context("the store has no log")?.keep(RETENTION);
            }
            let took = floors::toolkit(Job::Handler, &world, options.events, "m").await?;
            let written = world.count("tidings_outbox").await?;
            ensure!(written == options.events, "{written} events were written");
            let peer = if keeps { WITH } else { WITHOUT };
            note(&mut report, round, "messages /s", peer, options, took);
            if keeps {
                replay(&world, &broker, round, options, &mut report).await?;
            }
        }
    }
    report.finish(options.json.as_deref())
}

fn note(
    report: &mut Report,
    round: usize,
    job: &str,
    peer: &str,
    options: &Options,
    took: Duration,
) {
    let rate = options.events as f64 / took.as_secs_f64();
    eprintln!("round {round}: {job}: {peer}: {rate:.0}/s");
    report.add(job, peer, "D2", rate);
}

async fn replay(
    world: &World,
    broker: &Tidings,
    round: usize,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    let url = &broker.peer.url;
    let engine = Amqp::connect(url).await?;
    let topology = Topology::new().queue(Queue::new(QUEUE));
    engine.declare(&topology).await?;
    let began = Instant::now();
    let store = world.store();
    let replay = Replay::to(QUEUE).rate(u32::MAX);
    let ended = replay.run(&*store, &engine, |_| {}).await?;
    let took = began.elapsed();
    ensure!(ended.sent == options.events, "it sent {}", ended.sent);
    engine.close().await;
    note(report, round, "events /s", "replay", options, took);
    drain(url, options.events).await?;

    let (own, count) = (url.clone(), options.events);
    let raw = move || {
        let began = Instant::now();
        // As large as an event with its headers.
        amqp::publish(&own, count, WINDOW, &[b'x'; 256], |_| ("", QUEUE))?;
        anyhow::Ok(began.elapsed())
    };
    let took = tokio::task::spawn_blocking(raw).await??;
    note(report, round, "events /s", "raw client", options, took);
    drain(url, options.events).await
}

/// As many as were sent are there, and no more.
async fn drain(url: &str, count: u64) -> anyhow::Result<()> {
    let url = url.to_owned();
    let drain = move || {
        let there = u64::from(amqp::depth(&url, QUEUE)?);
        ensure!(there == count, "{there} messages in the queue, not {count}");
        amqp::drain(&url, QUEUE, 1000, count, |_| {})
    };
    tokio::task::spawn_blocking(drain).await?
}
