//! The supervisor's own eyes and hands at the broker, past the proxies and with a foreign client, so that
//! what is under attack is not asked about itself.
//!
//! Each engine has its own: lapin on AMQP, librdkafka bare on Kafka, Amazon's SDK bare on SNS and SQS. What they see
//! is the same: queues of dead letters, copies of events to publish once more, a listener that comes late.

mod amqp;
#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "kafka")]
mod kafka;

use std::time::Duration;

use anyhow::{Result, bail};

/// Gets a copy of the newest events, to publish them a second time.
const TAP: &str = "rig.tap";

/// How long the broker may say nothing while it has messages for the supervisor.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// A message as it lies in a queue.
pub(crate) struct Found {
    pub(crate) id: String,
    /// Why it is a dead letter, if it is one.
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// A connection of the supervisor's own.
pub(crate) enum Witness {
    Amqp(Box<amqp::Witness>),
    #[cfg(feature = "kafka")]
    Kafka(kafka::Witness),
    #[cfg(feature = "aws")]
    Aws(aws::Witness),
}

impl Witness {
    pub(crate) async fn over_amqp(url: &str) -> Result<Self> {
        Ok(Self::Amqp(Box::new(amqp::Witness::connect(url).await?)))
    }

    #[cfg(feature = "kafka")]
    pub(crate) async fn over_kafka(port: u16) -> Result<Self> {
        Ok(Self::Kafka(kafka::Witness::connect(port)?))
    }

    #[cfg(not(feature = "kafka"))]
    pub(crate) async fn over_kafka(_port: u16) -> Result<Self> {
        bail!("this build of the rig cannot use Kafka; build it with `--features kafka`")
    }

    #[cfg(feature = "aws")]
    pub(crate) fn over_aws(endpoint: &str) -> Result<Self> {
        Ok(Self::Aws(aws::Witness::connect(endpoint)))
    }

    #[cfg(not(feature = "aws"))]
    pub(crate) fn over_aws(_endpoint: &str) -> Result<Self> {
        bail!("this build of the rig cannot use SNS and SQS; build it with `--features aws`")
    }

    /// Begins to keep copies of the newest events.
    pub(crate) async fn tap(&self, topic: &str) -> Result<()> {
        match self {
            Self::Amqp(amqp) => amqp.tap(topic).await,
            // What was published is in its log.
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Ok(()),
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.listen(TAP, topic).await,
        }
    }

    /// Publishes up to `count` of the newest events of `topic` once more, as they are. Says how many.
    pub(crate) async fn publish_again(&self, topic: &str, count: u64) -> Result<u64> {
        match self {
            Self::Amqp(amqp) => amqp.publish_again(topic, count).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.publish_again(topic, count),
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.publish_again(TAP, topic, count).await,
        }
    }

    /// Lets a stranger listen to `topic` with a queue that is soon full and refuses all others.
    pub(crate) async fn invite_stranger(&self, topic: &str) -> Result<()> {
        match self {
            Self::Amqp(amqp) => amqp.invite_stranger(topic).await,
            #[cfg(any(feature = "aws", feature = "kafka"))]
            _ => bail!("no queue of this broker refuses what is published"),
        }
    }

    /// Sends the stranger away, with the queue.
    pub(crate) async fn dismiss_stranger(&self) -> Result<()> {
        match self {
            Self::Amqp(amqp) => amqp.dismiss_stranger().await,
            #[cfg(any(feature = "aws", feature = "kafka"))]
            _ => bail!("no queue of this broker refuses what is published"),
        }
    }

    /// Begins to listen to a topic that nobody listened to.
    pub(crate) async fn listen(&self, queue: &str, topic: &str) -> Result<()> {
        match self {
            Self::Amqp(amqp) => amqp.listen(queue, topic).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.listen(queue, topic).await,
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.listen(queue, topic).await,
        }
    }

    /// How many messages lie in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u64> {
        match self {
            Self::Amqp(amqp) => amqp.depth(queue).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.depth(queue),
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.depth(queue).await,
        }
    }

    /// Takes everything out of a queue that nobody else reads.
    pub(crate) async fn take_all(&self, queue: &str) -> Result<Vec<Found>> {
        match self {
            Self::Amqp(amqp) => amqp.take_all(queue).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.read_all(queue),
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.take_all(queue).await,
        }
    }

    /// What lies in the queue that listened to a topic from its first message on.
    pub(crate) async fn take_all_of(&self, queue: &str, topic: &str) -> Result<Vec<Found>> {
        match self {
            // A queue that subscribes has nothing of its own but a place in the topic.
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.read_all(topic),
            _ => {
                let _ = topic;
                self.take_all(queue).await
            }
        }
    }
}
