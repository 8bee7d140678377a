//! `tidings`: the command for whoever operates services.
//!
//! Data go to stdout, as tables for people or as JSON (`--json`); all else goes to stderr. The exit
//! code is 0 when it is done, 1 when a problem was found or it could not be done, 2 when the command
//! was used wrongly.
//!
//! A verb is one file in [`verbs`] and a line there. It gets a [`Frame`], which opens databases,
//! reaches the broker and prints; it knows no service.

mod code;
mod examples;
mod frame;
mod mask;
mod message;
mod out;
mod places;
mod verbs;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use crate::{
    frame::{Ended, Frame, Options, Usage},
    verbs::Verb,
};

/// Looks at and operates event-driven services: what waits, what is stuck, and why.
///
/// It works on the databases and the broker of services, while they run; or through the operator endpoint of
/// a running service.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    options: Options,
}

const EXAMPLES: &str = "\
Examples:
  tidings doctor --database sqlite://data/db       what is wrong, and what to do about it
  tidings sagas list --stuck                       with TIDINGS_DATABASE set
  tidings doctor --at http://127.0.0.1:7070        through the operator endpoint of a running service
  tidings explain TDG-9001                         what an error means
  tidings completions bash > /etc/bash_completion.d/tidings

Data go to stdout, all else to stderr. Exit code: 0 done, 1 found a problem, 2 wrong usage.";

/// The broker in the box frees messages on other threads than made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long work that blocks a thread is waited for in the end.
const END_TIME_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = examples::spread(Cli::command());
    let Cli { verb, options } = match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(verb, options) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Problem) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tidings: {}", out::plain(&format!("{error:#}")));
            match error.is::<Usage>() {
                true => ExitCode::from(2),
                false => ExitCode::from(1),
            }
        }
    }
}

fn run(verb: Verb, options: Options) -> anyhow::Result<Ended> {
    // The broker has its own word on logs.
    if !matches!(verb, Verb::Broker(_)) {
        Frame::init_logs();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(Box::pin(verb.run(&Frame::new(options))));
    // Not for ever: one who prints may wait for a reader that reads no more.
    runtime.shutdown_timeout(END_TIME_MAX);
    ended
}
