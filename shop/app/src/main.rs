//! The shop: every service in one process, or any of them in many.
//!
//! This program chooses what the services must not know: which of them run here, on which broker
//! and databases, and where they listen. Data goes to stdout (see [`announce`]), logs to stderr.

mod announce;
mod bounds;
mod broker;
mod cli;
mod http;
mod map;
mod operator;
mod probes;
mod run;
mod services;

use std::process::ExitCode;

/// Many small messages, freed by other threads than made them: what mimalloc is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let (command, options) = cli::Cli::read();
    if let cli::Command::Map(map) = command {
        return match map::print(&map, &options) {
            Ok(code) => code,
            Err(error) => failed(&error),
        };
    }
    cli::start_logging(options.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::from(error).context("cannot start threads")),
    };
    let outcome = runtime.block_on(run::run(options));
    // A mail that is being written, say, may finish; what hangs is left behind.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
