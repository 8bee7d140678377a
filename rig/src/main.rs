//! The rig: runs services on a real broker and a real database, breaks everything under them as a
//! seed says, and compares the books afterwards.
//!
//! One program plays all parts: the supervisor, and the services and the broker that it starts as
//! processes of their own. It asks neither the toolkit nor the services whether all went well, but
//! reads their tables and the broker's queues.

mod books;
mod broker;
mod database;
mod faults;
mod leg;
mod messages;
mod parts;
mod proxy;
mod random;
mod run;
mod stack;
mod tally;
mod trips;
mod witness;
mod world;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    parts::Part,
    run::{Plan, Run},
    stack::Stack,
};

const EXAMPLES: &str = "\
Examples:
  cargo xtask rig                                     a minute on SQLite and the broker in the box
  cargo xtask rig --stack postgres+rabbitmq           the same on PostgreSQL and RabbitMQ
  cargo xtask rig --stack postgres+kafka              the same on PostgreSQL and Kafka
  cargo xtask rig --messages 100000 --faults 500 --shelf 100000 --sagas 50000 --away 120
  cargo xtask rig --messages 50000 --sagas 50000 --faults 300 --kills
  cargo xtask rig --resume target/rig/FOLDER          go on with a run that was ended
  cargo xtask rig --resume target/rig/FOLDER --leg 3  one leg of it again

Stacks: sqlite or postgres, and behind a + embedded, rabbitmq, rabbitmq-cluster, kafka (built with
`--features kafka`) or aws (`--features aws`). The exit code is 1 if a promise was broken. The seed repeats the faults and what is wrong with which message; how the
processes' own threads run does not come from it.";

/// Attacks the promises P1 to P4, P6 and P7 on one stack, and prints what became of them.
#[derive(Parser)]
#[command(name = "cargo xtask rig", bin_name = "cargo xtask rig", after_help = EXAMPLES)]
struct Cli {
    /// Which database and which broker.
    #[arg(long, default_value = "sqlite+embedded")]
    stack: Stack,

    /// How many events are committed.
    #[arg(long, default_value_t = 4000)]
    messages: u64,

    /// How many faults there are meanwhile.
    #[arg(long, default_value_t = 40)]
    faults: u64,

    /// Of the faults only `kill -9` of the services, the broker and the database.
    #[arg(long)]
    kills: bool,

    /// How many events are committed that nobody listens to until the end.
    #[arg(long, default_value_t = 2000)]
    shelf: u64,

    /// How many sagas are begun meanwhile, about: each event begins one with this chance, so at most as
    /// many as there are events.
    #[arg(long, default_value_t = 1000)]
    sagas: u64,

    /// For how many seconds all consumers are away in the first leg while three tenths of its events
    /// are committed: how old the backlog is behind which retries must not queue.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    away: u64,

    /// Which faults and messages; without it, another one each time.
    #[arg(long)]
    seed: Option<u64>,

    /// Where the run is kept. Default: a new folder in `target/rig`.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Goes on with the run in this folder; it knows its stack, its numbers and its seed.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["stack", "messages", "faults", "kills", "shelf", "sagas", "away", "seed", "folder"])]
    resume: Option<PathBuf>,

    /// Runs only this leg, counted from 0, and writes down nothing.
    #[arg(long, value_name = "N")]
    leg: Option<u64>,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// One process of a run; the supervisor starts it.
    #[command(hide = true, subcommand)]
    Part(Part),
}

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> Result<bool> {
        if let Some(Role::Part(part)) = self.role {
            play(part)?;
            return Ok(true);
        }
        let run = match &self.resume {
            Some(folder) => Run::resume(folder)?,
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = u64::from(now.unwrap_or_default().subsec_micros());
                let seed = self.seed.unwrap_or(now);
                let plan = Plan {
                    stack: self.stack.to_string(),
                    seed,
                    messages: self.messages,
                    faults: self.faults,
                    only_kills: self.kills,
                    shelf: self.shelf,
                    sagas: self.sagas,
                    away: self.away,
                };
                let folder = self.folder.clone();
                let folder = folder.unwrap_or_else(|| Run::new_folder(self.stack, seed));
                Run::new(plan, folder)?
            }
        };
        run.go(self.leg)
    }
}

fn play(part: Part) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(part.run())
}
