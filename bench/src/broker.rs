//! Confirmed durable publishes, alone and with a consumer that acknowledges: every peer in turn,
//! round after round, through the same client.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    amqp,
    machine::Machine,
    peers::{self, Peer, Tidings},
    perftest,
    report::Report,
};

/// Confirmed publish, and publish + consume.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// RabbitMQ to stand beside, for example `amqp://guest:guest@127.0.0.1:5672/`; without it one is
    /// started if it is installed.
    #[arg(long)]
    rabbitmq: Option<String>,
    /// Rounds; in each every peer has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per turn.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Bytes per body.
    #[arg(long, default_value_t = 256)]
    body_bytes: usize,
    /// Publishes that may wait for their confirm.
    #[arg(long, default_value_t = 1000)]
    window: usize,
    /// Drive with RabbitMQ's PerfTest, whose jars are in this folder, instead of our raw client.
    #[arg(long)]
    perftest: Option<PathBuf>,
    /// The program of the broker in the box; by default the one beside this program.
    #[arg(long)]
    tidings: Option<PathBuf>,
    /// Where to write the figures as JSON.
    #[arg(long, default_value = "bench/broker.json")]
    json: PathBuf,
}

/// What a turn does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// Publish persistent messages to a durable queue, with confirms.
    Publish,
    /// The same, with a consumer that acknowledges every hundredth with `multiple`.
    PublishAndConsume,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seconds: u64,
    pub(crate) body_bytes: usize,
    pub(crate) window: usize,
}

impl Load {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let load = Load {
        seconds: options.seconds,
        body_bytes: options.body_bytes,
        window: options.window,
    };
    let tool = if options.perftest.is_some() {
        "PerfTest"
    } else {
        "raw client"
    };
    let settings = BTreeMap::from([
        ("client", tool.to_owned()),
        ("body", format!("{} bytes, persistent", load.body_bytes)),
        ("confirm window", load.window.to_string()),
        (
            "turn",
            format!(
                "{} s, {} rounds, peers interleaved",
                load.seconds, options.rounds
            ),
        ),
    ]);
    let mut report = Report::new(Machine::look()?, settings);

    let tidings = Tidings::start(&peers::sibling(
        options.tidings.as_deref(),
        "tidings-broker",
    )?)?;
    let mut rabbitmq_server = None;
    let rabbitmq = match &options.rabbitmq {
        Some(url) => Some(url.clone()),
        None => match tidings_testing::servers::RabbitMq::start() {
            Ok(server) => Some(rabbitmq_server.insert(server).url()),
            Err(error) => {
                eprintln!("absent: RabbitMQ ({error:#})");
                None
            }
        },
    };
    let mut peers: Vec<&Peer> = vec![&tidings.peer];
    let rabbitmq = rabbitmq.map(|url| peers::rabbitmq(&url));
    peers.extend(rabbitmq.iter().flatten());

    for round in 1..=options.rounds {
        for (name, job) in [
            ("confirmed publish", Job::Publish),
            ("publish + consume", Job::PublishAndConsume),
        ] {
            for peer in &peers {
                let queue = format!("bench-{round}-{job:?}-{}", peer.queue_type.unwrap_or("own"));
                let rate = match &options.perftest {
                    Some(lib) => perftest::run(lib, peer, &queue, job, &load)?,
                    None => amqp::run(peer, &queue, job, &load)?,
                };
                amqp::delete_queue(peer, &queue)?;
                eprintln!("round {round}: {name:20} {:17} {rate:>9.0}", peer.name);
                report.add(name, peer.name, peer.durability, rate);
            }
        }
    }
    report.print();
    report.write(&options.json)
}
