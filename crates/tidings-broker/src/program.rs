//! The broker as a program: its command line, and its life from the first line on stdout to the
//! last sync; and what may be done with a folder on which it does not run. `tidings-broker` and `tidings
//! broker` are both this.
//!
//! Data on stdout (`listening amqp ADDR`, then `ready`), everything else on stderr.

use std::{future::Future, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use crate::{Broker, Limits, Options, User};

mod check;
mod limits;
mod salvage;
mod words;

// No doc comment: it would replace the description of the command that has these arguments.
#[allow(missing_docs)]
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    act: Option<Act>,

    /// Where to listen for AMQP; port 0 picks a free one and prints it.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:5672",
        env = "TIDINGS_AMQP_LISTEN"
    )]
    listen: SocketAddr,

    /// Where durable queues and messages are kept.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./data/broker",
        env = "TIDINGS_DATA"
    )]
    data: PathBuf,

    /// Keep everything in memory; nothing survives the process.
    #[arg(long, conflicts_with = "data")]
    ephemeral: bool,

    /// Let this user in from anywhere (repeatable); replaces the default `guest`, which is for
    /// loopback only.
    #[arg(
        long,
        value_name = "NAME:PASSWORD",
        env = "TIDINGS_USERS",
        value_delimiter = ','
    )]
    user: Vec<String>,

    /// The heartbeat proposed to clients, in seconds; 0 proposes none.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    heartbeat: u16,

    /// Megabytes that messages in queues take in memory; longer backlogs are read back from the disk.
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    memory_max: u64,

    #[command(flatten)]
    limits: limits::LimitArguments,

    /// How logs look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

// What is done with a folder instead of running a broker on it. No doc comment here either.
#[derive(Debug, Subcommand)]
enum Act {
    Check(check::Check),
    Salvage(salvage::Salvage),
}

/// How the program ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It is done: exit code 0.
    Done,
    /// A problem was found, and told: exit code 1.
    Problem,
}

/// How logs look.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Arguments {
    /// Runs the broker until Ctrl-C or SIGTERM, or until it can store nothing more; or checks or
    /// salvages a folder.
    ///
    /// # Errors
    ///
    /// When it cannot start, has to stop, or cannot stop in good order; when a folder cannot be read, or
    /// nothing of it can be salvaged.
    pub async fn run(&self) -> anyhow::Result<Ended> {
        match &self.act {
            Some(Act::Check(check)) => check.run(),
            Some(Act::Salvage(salvage)) => salvage.run(),
            None => self.serve().await.map(|()| Ended::Done),
        }
    }

    async fn serve(&self) -> anyhow::Result<()> {
        let options = self.options()?;
        let stopped = stop_signal()?;
        let broker = Broker::start(options).await?;
        // A script that has stopped reading is no reason to stop.
        let lines = format!("listening amqp {}\nready\n", broker.amqp_addr());
        let _ = std::io::stdout().write_all(lines.as_bytes());
        let failure = tokio::select! {
            () = stopped => None,
            failure = broker.failed() => Some(failure),
        };
        tracing::info!("stopping");
        let stopped = broker.shutdown().await;
        match failure {
            Some(failure) => anyhow::bail!(
                "stopped because nothing can be stored any more: {failure}; what was confirmed is \
                 safe, start again when the disk works"
            ),
            None => Ok(stopped?),
        }
    }

    fn options(&self) -> anyhow::Result<Options> {
        let options = if self.ephemeral {
            Options::ephemeral()
        } else {
            Options::durable(self.data.clone())
        };
        let limits = Limits {
            heartbeat: Duration::from_secs(self.heartbeat.into()),
            memory_bytes_max: self.memory_max.saturating_mul(1024 * 1024),
            ..self.limits.limits()
        };
        let options = options.listen(self.listen).limits(limits);
        if self.user.is_empty() {
            return Ok(options);
        }
        let users = self.user.iter().enumerate().map(|(at, text)| {
            // What it is instead may be a password.
            let (name, password) = text.split_once(':').ok_or_else(|| {
                anyhow::anyhow!(
                    "user {} of `--user` or `TIDINGS_USERS` does not look like `NAME:PASSWORD`; \
                     commas separate users, so that a password cannot have one",
                    at + 1
                )
            })?;
            Ok(User::new(name, password))
        });
        Ok(options.users(users.collect::<anyhow::Result<Vec<_>>>()?))
    }

    /// Sends logs to stderr, filtered by `RUST_LOG` (default: `info`).
    pub fn init_logs(&self) {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => logs.init(),
            LogFormat::Json => logs.json().init(),
        }
    }
}

/// Completes on Ctrl-C or SIGTERM. Registered before anything starts, so that no signal is missed.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    /// A command that has the broker as a verb, and options of its own for all verbs.
    #[derive(Debug, Parser)]
    struct Outer {
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        verb: Verb,
    }

    #[derive(Debug, Subcommand)]
    enum Verb {
        Broker(Inner),
    }

    /// Runs the broker in the box.
    #[derive(Debug, Args)]
    struct Inner {
        #[command(flatten)]
        program: Arguments,
    }

    #[test]
    fn a_command_can_have_the_broker_as_a_verb_with_all_that_belongs_to_it() {
        let mut command = Outer::command();
        command.build();
        let broker = command.find_subcommand("broker").expect("a verb");
        let about = broker.get_about().expect("a description").to_string();
        assert_eq!(about, "Runs the broker in the box");
        let parse = |line: &str| Outer::try_parse_from(line.split(' '));
        for line in [
            "tidings broker check data --json",
            "tidings --json broker check data",
        ] {
            let Outer { json, verb } = parse(line).expect("it is understood");
            let Verb::Broker(Inner { program }) = verb;
            let Some(Act::Check(check)) = program.act else {
                panic!("{line}: {:?}", program.act);
            };
            assert!(json && check.is_json(), "{line}");
        }
        let Verb::Broker(Inner { program }) = parse("tidings broker --ephemeral")
            .expect("it is understood")
            .verb;
        assert!(program.ephemeral && program.act.is_none());
        // What belongs to a running broker is not passed over in silence.
        let mixed = parse("tidings broker --ephemeral check data");
        assert!(mixed.is_err(), "{mixed:?}");
    }
}
