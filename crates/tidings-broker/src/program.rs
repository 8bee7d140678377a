//! The broker as a program: its command line, and its life from the first line on stdout to the
//! last sync. `tidings-broker` and `tidings broker` are both this.
//!
//! Data on stdout (`listening amqp ADDR`, then `ready`), everything else on stderr.

use std::{future::Future, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::{Broker, Limits, Options, User};

mod limits;

// No doc comment: it would replace the description of the command that has these arguments.
#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Arguments {
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

/// How logs look.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Arguments {
    /// Runs the broker until Ctrl-C or SIGTERM, or until it can store nothing more.
    ///
    /// # Errors
    ///
    /// When it cannot start, has to stop, or cannot stop in good order.
    pub async fn run(&self) -> anyhow::Result<()> {
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
