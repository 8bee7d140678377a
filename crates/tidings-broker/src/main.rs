//! `tidings-broker`: the broker as a program.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use tidings_broker::program::{Arguments, Ended};

/// A durable message broker that speaks AMQP 0-9-1 as RabbitMQ does.
///
/// What it confirms is on disk. Any AMQP 0-9-1 client connects unmodified.
#[derive(Parser)]
#[command(name = "tidings-broker", version, after_help = EXAMPLES)]
struct Program {
    #[command(flatten)]
    arguments: Arguments,
}

const EXAMPLES: &str = "\
Examples:
  tidings-broker                                    on 127.0.0.1:5672, data in ./data/broker
  tidings-broker --listen 127.0.0.1:0 --ephemeral   any free port, for a test
  tidings-broker --listen 0.0.0.0:5672 --user shop:s3cret --data /var/lib/tidings
  tidings-broker check /var/lib/tidings             what is in the folder, and what is wrong with it

Stdout says `listening amqp ADDR` and then `ready`; logs go to stderr (RUST_LOG filters them).
Ctrl-C or SIGTERM stops it: connections are closed, the log is synced, the exit code is 0.";

const CHECK: &str = "\
Examples:
  tidings-broker check /var/lib/tidings          what is in the folder, and what is wrong with it
  tidings-broker check /var/lib/tidings --json   the same for programs";

const SALVAGE: &str = "\
Examples:
  tidings-broker salvage /var/lib/tidings --into /var/lib/tidings-salvaged
  tidings-broker --data /var/lib/tidings-salvaged   a broker with what was salvaged";

/// Many small messages, freed by other threads than made them: what mimalloc is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = Program::command()
        .mut_subcommand("check", |check| check.after_help(CHECK))
        .mut_subcommand("salvage", |salvage| salvage.after_help(SALVAGE));
    let Program { arguments } = match Program::from_arg_matches(&command.get_matches()) {
        Ok(program) => program,
        Err(error) => error.exit(),
    };
    arguments.init_logs();
    match run(&arguments) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Problem) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tidings-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(arguments.run())
}
