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

/// Builds the rig, with what its stack needs, and runs it.
fn rig(args: &[String]) -> anyhow::Result<()> {
    let mut command = run::cargo(["run", "--locked", "-p", "rig"])?;
    for engine in engines_in(&stack_of(args)) {
        command.args(["--features", engine]);
    }
    run::succeed(command.arg("--").args(args))
}

/// What names the stack: the arguments, or the plan of the run that is to go on.
fn stack_of(args: &[String]) -> String {
    let resumed = args.iter().position(|arg| arg == "--resume");
    let folder = resumed.and_then(|at| args.get(at + 1));
    let plan = folder.map(|folder| std::path::Path::new(folder).join("plan.json"));
    let plan = plan.and_then(|plan| std::fs::read_to_string(plan).ok());
    plan.unwrap_or_else(|| args.join(" "))
}

/// Builds what is measured and what measures, and measures.
fn bench(args: &[String]) -> anyhow::Result<()> {
    let measured = ["-p", "bench", "-p", "shop", "-p", "tidings-broker"];
    let mut build = run::cargo(["build", "--release"])?;
    build.args(measured);
    for engine in engines_in(&args.join(" ")) {
        build.args(["--features", &format!("bench/{engine},shop/{engine}")]);
    }
    run::succeed(&mut build)?;
    // What was built, since `cargo run` would build its dependencies anew with fewer features.
    let bench = run::target()?.join("release/bench");
    // For the emulator of SNS and SQS, which looks at none, but the SDK wants some.
    let credentials = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "bench"));
    run::succeed(run::program(bench)?.envs(credentials).args(args))
}

/// The engines that are named and that only a feature builds.
fn engines_in(text: &str) -> impl Iterator<Item = &'static str> {
    ["kafka", "aws"]
        .into_iter()
        .filter(move |engine| text.contains(engine))
}
