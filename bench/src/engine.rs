//! What the toolkit's transports cost: publishing and receiving over each, beside the engine's own client.
//!
//! Both publish the same messages, with the same headers, to one topic with as much under way, each waiting for the
//! engine's confirms. Then both receive all of them, each from a queue of its own that subscribes to that topic, with the
//! same prefetch, and acknowledge each. The client is this process, so its CPU time is the client's. The clock of
//! publishing runs to the last confirm, that of receiving from the first message to the last. Each message must come
//! once to each.
//!
//! What stands beside them: on RabbitMQ the raw client on `tidings-wire` that drives every broker here, and lapin; on
//! Kafka librdkafka with the settings of the adapter; on SNS and SQS Amazon's SDK.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "kafka")]
mod kafka;
mod rabbitmq;
mod turn;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use tidings::{Queue, Topology, Transport};
use tidings_amqp::Amqp;

use crate::{
    machine::Machine,
    report::Report,
    servers::{Asked, Server},
};
use turn::{Count, Message, Took};

/// Publishing and receiving over an engine's transport, beside the engine's own client.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    engine: Asked,
    /// Messages that each publishes in a round; each receives those of all.
    #[arg(long, default_value_t = 50_000)]
    messages: u64,
    /// Rounds; in each, everybody has a turn.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Messages that are published at once.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Batches that are under way.
    #[arg(long, default_value_t = 4)]
    window: usize,
    /// Deliveries that are out.
    #[arg(long, default_value_t = 1000)]
    prefetch: u16,
    /// Only this one of them, for a profile: `toolkit`, `raw client`, ...
    #[arg(long)]
    only: Option<String>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How much is under way.
#[derive(Debug, Clone, Copy)]
struct Load {
    batch: usize,
    window: usize,
    prefetch: u16,
}

/// The engine's own client.
enum Raw {
    RabbitMq(rabbitmq::Raw),
    #[cfg(feature = "kafka")]
    Kafka(kafka::Raw),
    #[cfg(feature = "aws")]
    Aws(aws::Raw),
}

const TOOLKIT: &str = "toolkit";

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // As the transport's own: the SDK needs it where nothing is optimised.
        .thread_stack_size(16 * 1024 * 1024)
        .enable_all()
        .build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let server = options.engine.start()?.context(
        "say which engine: `--rabbitmq`, `--cluster`, `--kafka` or `--aws` (`bench broker` measures the broker in the \
         box)",
    )?;
    let settings = BTreeMap::from([
        ("engine", options.engine.name().to_owned()),
        ("messages of a turn", options.messages.to_string()),
        ("body", format!("{} bytes", turn::BODY_BYTES)),
        (
            "under way",
            format!("{} batches of {}", options.window, options.batch),
        ),
        ("prefetch", options.prefetch.to_string()),
        ("rounds", format!("{}, in turns", options.rounds)),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let load = Load {
        batch: options.batch,
        window: options.window,
        prefetch: options.prefetch,
    };
    let raw = Raw::new(&server, load)?;
    let transport = transport(&server).await?;
    let peers: Vec<&str> = std::iter::once(TOOLKIT)
        .chain(raw.names().iter().copied())
        .filter(|peer| options.only.as_deref().is_none_or(|only| only == *peer))
        .collect();
    for round in 1..=options.rounds {
        let bench = Round {
            round,
            messages: options.messages,
            load,
            peers: &peers,
        };
        bench.run(&*transport, &raw, &mut report).await?;
    }
    transport.close().await;
    report.finish(options.json.as_deref())
}

/// One round, with a topic and queues of its own.
struct Round<'a> {
    round: u64,
    messages: u64,
    load: Load,
    peers: &'a [&'a str],
}

impl Round<'_> {
    async fn run(
        &self,
        transport: &dyn Transport,
        raw: &Raw,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let topic = format!("bench-{}", self.round);
        let queue = |peer: &str| format!("bench.{}.{}", self.round, peer.replace(' ', "-"));
        let mut topology = Topology::new();
        for peer in self.peers {
            topology = topology.queue(Queue::new(queue(peer)).topic(topic.clone()));
        }
        transport.declare(&topology).await?;
        // Who begins changes from round to round.
        let turns = |turn: usize| self.peers[(self.round as usize + turn) % self.peers.len()];
        for turn in 0..self.peers.len() {
            let peer = turns(turn);
            let number = self.peers.iter().position(|it| *it == peer);
            let first = number.unwrap_or_default() as u64 * self.messages;
            let messages = turn::messages(first, self.messages)?;
            let took = match peer {
                TOOLKIT => turn::publish(transport, &topic, messages, self.load).await?,
                _ => raw.publish(peer, &topic, messages).await?,
            };
            self.note(report, "publish", peer, raw, took);
        }
        for turn in 0..self.peers.len() {
            let peer = turns(turn);
            let count = Count::new(self.messages * self.peers.len() as u64);
            let took = match peer {
                TOOLKIT => turn::receive(transport, queue(peer), &count, self.load).await?,
                _ => raw.receive(peer, &topic, &queue(peer), &count).await?,
            };
            self.note(report, "receive", peer, raw, took);
        }
        Ok(())
    }

    fn note(&self, report: &mut Report, job: &str, peer: &str, raw: &Raw, took: Took) {
        let (round, durability) = (self.round, raw.durability());
        let (rate, cpu) = (1e9 / took.wall, took.cpu);
        eprintln!("round {round}: {job}: {peer}: {rate:.0} /s, {cpu:.0} ns of CPU");
        report.add(&format!("{job}, messages /s"), peer, durability, rate);
        let job = format!("{job}, ns of CPU per message");
        report.add(&job, peer, durability, cpu);
    }
}

/// How the toolkit reaches it.
async fn transport(server: &Server) -> anyhow::Result<Arc<dyn Transport>> {
    Ok(match server {
        Server::RabbitMq(rabbitmq) => Arc::new(Amqp::connect(&rabbitmq.url()).await?),
        // All at one node, as the raw client is, so that both are as far from the queues' leaders.
        Server::Cluster(cluster) => {
            let url = format!("{}/?queues=quorum", cluster.url_of(0));
            Arc::new(Amqp::connect(&url).await?)
        }
        #[cfg(feature = "kafka")]
        Server::Kafka(kafka) => Arc::new(tidings_kafka::Kafka::connect(&kafka.url()).await?),
        #[cfg(feature = "aws")]
        Server::Aws(aws) => Arc::new(tidings_aws::Aws::connect(&aws.url()).await?),
        #[cfg(not(all(feature = "aws", feature = "kafka")))]
        _ => anyhow::bail!("{NOT_BUILT}"),
    })
}

#[cfg(not(all(feature = "aws", feature = "kafka")))]
const NOT_BUILT: &str = "this build cannot reach that engine; build it with its feature, or run `cargo xtask bench`, \
                         which does";

impl Raw {
    fn new(server: &Server, load: Load) -> anyhow::Result<Self> {
        Ok(match server {
            Server::RabbitMq(rabbitmq) => {
                Self::RabbitMq(rabbitmq::Raw::new(rabbitmq.url(), "D1", load))
            }
            Server::Cluster(cluster) => {
                Self::RabbitMq(rabbitmq::Raw::new(cluster.url_of(0), "D2", load))
            }
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => Self::Kafka(kafka::Raw::new(kafka.port(), load)),
            #[cfg(feature = "aws")]
            Server::Aws(aws) => Self::Aws(aws::Raw::new(&aws.endpoint(), load)),
            #[cfg(not(all(feature = "aws", feature = "kafka")))]
            _ => anyhow::bail!("{NOT_BUILT}"),
        })
    }

    /// Who stands beside the toolkit.
    fn names(&self) -> &'static [&'static str] {
        match self {
            Self::RabbitMq(_) => &rabbitmq::PEERS,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => &kafka::PEERS,
            #[cfg(feature = "aws")]
            Self::Aws(_) => &["raw client"],
        }
    }

    /// What a confirm of the engine is worth: a node of Kafka confirms from the page cache, as a classic queue of RabbitMQ.
    fn durability(&self) -> &'static str {
        match self {
            Self::RabbitMq(raw) => raw.durability,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => "D1",
            #[cfg(feature = "aws")]
            Self::Aws(_) => "D1",
        }
    }

    async fn publish(
        &self,
        peer: &str,
        topic: &str,
        messages: Vec<Message>,
    ) -> anyhow::Result<Took> {
        match self {
            Self::RabbitMq(raw) => raw.publish(peer, topic, messages).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(raw) => raw.publish(topic, messages).await,
            #[cfg(feature = "aws")]
            Self::Aws(raw) => raw.publish(topic, messages).await,
        }
    }

    /// Receives from `queue`, which subscribes to `topic`.
    async fn receive(
        &self,
        peer: &str,
        topic: &str,
        queue: &str,
        count: &Arc<Count>,
    ) -> anyhow::Result<Took> {
        let _ = topic;
        match self {
            Self::RabbitMq(raw) => raw.receive(peer, queue, count).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(raw) => raw.receive(peer, topic, queue, count).await,
            #[cfg(feature = "aws")]
            Self::Aws(raw) => raw.receive(queue, count).await,
        }
    }
}
