//! All automation of the repository: what a person types and what CI runs are the same commands.

mod ci;
mod deploy;
mod provide;
mod run;
mod scale;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// All automation of the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every test, with real servers where a promise is about a real server.
    Test(test::Args),
    /// All that CI runs: fmt, tidy, clippy, tests, docs, deny.
    Ci(ci::Args),
    /// The rules of this repository that no other tool knows.
    Tidy,
    /// Whether the files in `deploy/` are right; `--build` also runs the steps of the Containerfile.
    Deploy(deploy::Args),
    /// Attacks the promises on one stack: kills, cuts, pauses; `cargo xtask rig --help` says more.
    #[command(disable_help_flag = true)]
    Rig {
        /// Passed on to the rig.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What it takes to run from 100 to 1,000,000 orders per second: measured costs and a simulation (docs/scale.md).
    Scale(scale::Args),
    /// The side-by-side benchmarks of `bench/`, in release mode.
    Bench {
        /// Passed on to the benchmark program; `-- --help` shows what it takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Tidy => tidy::run(),
        Command::Deploy(args) => deploy::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Rig { args } => rig(&args),
        Command::Bench { args } => bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the rig and runs it.
fn rig(args: &[String]) -> anyhow::Result<()> {
    run::succeed(run::cargo(["run", "--locked", "-p", "rig", "--"])?.args(args))
}

/// Builds what is measured and what measures, and measures.
fn bench(args: &[String]) -> anyhow::Result<()> {
    let measured = ["-p", "bench", "-p", "shop", "-p", "tidings-broker"];
    run::succeed(run::cargo(["build", "--release"])?.args(measured))?;
    run::succeed(run::cargo(["run", "--release", "-p", "bench", "--"])?.args(args))
}
