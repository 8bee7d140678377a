//! The broker under attack: how each engine is started behind proxies, reached, killed, and started again.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tidings_testing::servers::{AwsEmulator, Kafka, Process, RabbitMq, RabbitMqCluster, free_port};

use crate::{
    proxy::{Proxies, Proxy},
    random::Random,
    stack,
    witness::Witness,
    world::READY_MAX,
};

/// Nodes of a cluster.
const NODES: usize = 3;

/// Nobody looks at them; the SDK wants some.
pub(crate) const AWS_CREDENTIALS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "rig"),
    ("AWS_SECRET_ACCESS_KEY", "rig"),
];

/// A broker of one of the engines.
pub(crate) enum Broker {
    /// The broker in the box, in a process of its own.
    Embedded {
        port: u16,
        data: PathBuf,
        process: Option<Process>,
    },
    RabbitMq(RabbitMq),
    Cluster {
        cluster: RabbitMqCluster,
        down: Down,
    },
    Kafka(Kafka),
    Aws(AwsEmulator),
}

/// Which nodes of a cluster do not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Down {
    None,
    One(usize),
    All,
}

impl Broker {
    /// Starts it, with a proxy in front of each of its nodes.
    pub(crate) async fn start(engine: stack::Broker, folder: &Path) -> Result<(Self, Proxies)> {
        let mut broker = match engine {
            stack::Broker::Embedded => Self::Embedded {
                port: free_port()?,
                data: folder.join("broker"),
                process: None,
            },
            stack::Broker::RabbitMq => Self::RabbitMq(RabbitMq::start()?),
            stack::Broker::RabbitMqCluster => Self::Cluster {
                cluster: RabbitMqCluster::start(NODES)?,
                down: Down::None,
            },
            stack::Broker::Kafka => {
                let from = free_port()?;
                let kafka = Kafka::start_behind(from)?;
                let proxy = Proxy::start_at(from, kafka.port()).await?;
                return Ok((Self::Kafka(kafka), Proxies(vec![proxy])));
            }
            stack::Broker::Aws => Self::Aws(AwsEmulator::start()?),
        };
        if let Self::Embedded { .. } = broker {
            broker.restart()?;
        }
        let mut proxies = Vec::new();
        for port in broker.ports() {
            proxies.push(Proxy::start(port).await?);
        }
        Ok((broker, Proxies(proxies)))
    }

    /// The ports at which clients reach its nodes.
    fn ports(&self) -> Vec<u16> {
        match self {
            Self::Embedded { port, .. } => vec![*port],
            Self::RabbitMq(rabbitmq) => vec![rabbitmq.port()],
            Self::Cluster { cluster, .. } => (0..NODES).map(|node| cluster.port_of(node)).collect(),
            Self::Kafka(kafka) => vec![kafka.port()],
            Self::Aws(aws) => vec![aws.port()],
        }
    }

    /// What the parts connect with, through the proxies. Who is silent is to be missed while a fault lasts.
    pub(crate) fn url(&self, proxies: &Proxies) -> String {
        let places = proxies.0.iter();
        let places: Vec<_> = places
            .map(|proxy| format!("127.0.0.1:{}", proxy.port()))
            .collect();
        let places = places.join(",");
        match self {
            Self::Embedded { .. } | Self::RabbitMq(_) | Self::Cluster { .. } => {
                format!("amqp://guest:guest@{places}/?heartbeat=2")
            }
            Self::Kafka(_) => format!("kafka://{places}?session_timeout=3000"),
            Self::Aws(_) => {
                format!("aws://eu-central-1?endpoint=http://{places}&visibility=6&wait=2")
            }
        }
    }

    /// What else the parts need to connect.
    pub(crate) fn env(&self) -> impl IntoIterator<Item = (&'static str, &'static str)> {
        match self {
            Self::Aws(_) => AWS_CREDENTIALS.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The supervisor's own connection, past the proxies.
    pub(crate) async fn witness(&self) -> Result<Witness> {
        match self {
            Self::Embedded { port, .. } => Witness::over_amqp(&amqp_url(*port)).await,
            Self::RabbitMq(rabbitmq) => Witness::over_amqp(&rabbitmq.url()).await,
            Self::Cluster { cluster, down } => {
                let mut running = (0..NODES).filter(|node| *down != Down::One(*node));
                let node = running.next().context("a cluster has nodes")?;
                Witness::over_amqp(&cluster.url_of(node)).await
            }
            Self::Kafka(kafka) => Witness::over_kafka(kafka.direct_port()).await,
            Self::Aws(aws) => Witness::over_aws(&aws.endpoint()),
        }
    }

    /// `kill -9` on all of it.
    pub(crate) fn kill9(&mut self) {
        match self {
            Self::Embedded { process, .. } => drop(process.take()),
            Self::RabbitMq(rabbitmq) => rabbitmq.kill9(),
            Self::Cluster { cluster, down } => {
                cluster.kill9_all();
                *down = Down::All;
            }
            Self::Kafka(kafka) => kafka.kill9(),
            Self::Aws(aws) => aws.kill9(),
        }
    }

    /// `kill -9` on one node of several. Says which.
    pub(crate) fn kill9_node(&mut self, random: &mut Random) -> Result<usize> {
        let Self::Cluster { cluster, down } = self else {
            bail!("this broker has no node that could be killed alone");
        };
        let node = random.below(NODES as u64) as usize;
        cluster.kill9(node);
        *down = Down::One(node);
        Ok(node)
    }

    /// What an operator of a cluster of RabbitMQ does when a quorum queue is left without a leader: calls an election.
    /// Says for which queues.
    pub(crate) fn elect_leaders(&self) -> Result<Vec<String>> {
        let Self::Cluster { cluster, .. } = self else {
            return Ok(Vec::new());
        };
        let left = cluster.leaderless()?;
        left.iter().try_for_each(|queue| cluster.elect(queue))?;
        Ok(left)
    }

    /// Starts what was killed on its old data and ports, and returns when it answers.
    pub(crate) fn restart(&mut self) -> Result<()> {
        match self {
            Self::Embedded {
                port,
                data,
                process,
            } => {
                drop(process.take());
                let listen = SocketAddr::from(([127, 0, 0, 1], *port));
                let mut command = Process::command(std::env::current_exe()?);
                command.args(["part", "broker", "--listen", &listen.to_string(), "--data"]);
                command.arg(data);
                let mut started = Process::start(command)?;
                started.wait_for_line(READY_MAX, |line| line == "ready")?;
                *process = Some(started);
                Ok(())
            }
            Self::RabbitMq(rabbitmq) => rabbitmq.restart(),
            Self::Cluster { cluster, down } => match std::mem::replace(down, Down::None) {
                Down::None => Ok(()),
                Down::One(node) => cluster.restart(node),
                Down::All => cluster.restart_all(),
            },
            Self::Kafka(kafka) => kafka.restart(),
            Self::Aws(aws) => aws.restart(),
        }
    }
}

fn amqp_url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}")
}
