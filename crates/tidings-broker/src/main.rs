//! `tidings-broker`: the broker as a program.
//!
//! Data on stdout (`listening amqp ADDR`, then `ready`), everything else on stderr.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tidings_broker::{Broker, Limits, Options, User};

/// A durable message broker that speaks AMQP 0-9-1 as RabbitMQ does.
///
/// What it confirms is on disk. Any AMQP 0-9-1 client connects unmodified.
#[derive(Parser)]
#[command(name = "tidings-broker", version, after_help = EXAMPLES)]
struct Args {
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

    /// Megabytes of messages in memory above which publishers have to wait.
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    memory_max: u64,

    /// How logs look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  tidings-broker                                    on 127.0.0.1:5672, data in ./data/broker
  tidings-broker --listen 127.0.0.1:0 --ephemeral   any free port, for a test
  tidings-broker --listen 0.0.0.0:5672 --user shop:s3cret --data /var/lib/tidings

Stdout says `listening amqp ADDR` and then `ready`; logs go to stderr (RUST_LOG filters them).
Ctrl-C or SIGTERM stops it: connections are closed, the log is synced, the exit code is 0.";

/// Many small messages, freed by other threads than made them: what mimalloc is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    init_logs(args.log_format);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidings-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let options = options(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
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
    })
}

fn options(args: &Args) -> anyhow::Result<Options> {
    let options = if args.ephemeral {
        Options::ephemeral()
    } else {
        Options::durable(args.data.clone())
    };
    let limits = Limits {
        heartbeat: Duration::from_secs(args.heartbeat.into()),
        memory_bytes_max: args.memory_max.saturating_mul(1024 * 1024),
        ..Limits::default()
    };
    let options = options.listen(args.listen).limits(limits);
    if args.user.is_empty() {
        return Ok(options);
    }
    let users = args.user.iter().map(|text| {
        let (name, password) = text
            .split_once(':')
            .ok_or_else(|| anyhow::anyhow!("`--user {text}` should look like `NAME:PASSWORD`"))?;
        Ok(User::new(name, password))
    });
    Ok(options.users(users.collect::<anyhow::Result<Vec<_>>>()?))
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

fn init_logs(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}
