//! Which engine is measured: how it is asked for, started, and what its confirms are worth.

use tidings_testing::servers::{AwsEmulator, Kafka, RabbitMq, RabbitMqCluster};

/// Nodes of a cluster.
const NODES: usize = 3;

/// What a process needs that uses the emulator: nobody looks at them, but the SDK wants some.
pub(crate) const AWS_CREDENTIALS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "bench"),
    ("AWS_SECRET_ACCESS_KEY", "bench"),
];

/// The engine, if it is not the broker in the box. It is started from what is installed, or was fetched.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(multiple = false)]
pub(crate) struct Asked {
    /// On a node of RabbitMQ.
    #[arg(long)]
    pub(crate) rabbitmq: bool,
    /// On three nodes of RabbitMQ, with quorum queues.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// On a node of Apache Kafka. What is measured has to be built with `--features kafka`.
    #[arg(long)]
    pub(crate) kafka: bool,
    /// On an emulator of Amazon SNS and SQS. What is measured has to be built with `--features aws`.
    #[arg(long)]
    pub(crate) aws: bool,
}

/// A server that runs until it is dropped.
pub(crate) enum Server {
    RabbitMq(RabbitMq),
    Cluster(RabbitMqCluster),
    Kafka(Kafka),
    Aws(AwsEmulator),
}

impl Asked {
    /// Starts it; nothing for the broker in the box.
    pub(crate) fn start(self) -> anyhow::Result<Option<Server>> {
        Ok(if self.rabbitmq {
            Some(Server::RabbitMq(RabbitMq::start()?))
        } else if self.cluster {
            Some(Server::Cluster(RabbitMqCluster::start(NODES)?))
        } else if self.kafka {
            Some(Server::Kafka(Kafka::start()?))
        } else if self.aws {
            Some(Server::Aws(AwsEmulator::start()?))
        } else {
            None
        })
    }

    /// What it is called in tables.
    pub(crate) fn name(self) -> &'static str {
        if self.rabbitmq {
            "RabbitMQ"
        } else if self.cluster {
            "three nodes of RabbitMQ"
        } else if self.kafka {
            "Apache Kafka"
        } else if self.aws {
            "an emulator of SNS and SQS"
        } else {
            "in the box"
        }
    }
}

impl Server {
    /// Where a service reaches it.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq.url(),
            Self::Cluster(cluster) => cluster.url(),
            Self::Kafka(kafka) => kafka.url(),
            Self::Aws(aws) => aws.url(),
        }
    }
}
