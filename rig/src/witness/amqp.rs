//! A witness at a broker that speaks AMQP, with lapin.

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{Found, SILENT_MAX, TAP};

/// How many events the tap keeps.
const TAP_LENGTH: i64 = 300;

/// A listener of somebody else, that is full at once and refuses all others.
const STRANGER: &str = "rig.stranger";

const STRANGER_LENGTH: i64 = 5;

/// A connection of the supervisor's own.
pub(crate) struct Witness {
    // Kept: without it the channel ends.
    _connection: Connection,
    channel: Channel,
}

impl Witness {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        let connection = connection.context("cannot connect the supervisor with the broker")?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(Self {
            _connection: connection,
            channel,
        })
    }

    /// A queue bound to a topic.
    async fn queue(&self, name: &str, topic: &str, arguments: FieldTable) -> Result<()> {
        let options = QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        self.channel
            .queue_declare(name.into(), options, arguments)
            .await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let none = FieldTable::default();
        self.channel
            .exchange_declare(topic.into(), ExchangeKind::Fanout, durable, none.clone())
            .await?;
        let (options, key) = (QueueBindOptions::default(), "".into());
        self.channel
            .queue_bind(name.into(), topic.into(), key, options, none)
            .await?;
        Ok(())
    }

    /// Begins to keep copies of the newest events.
    pub(super) async fn tap(&self, topic: &str) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(TAP_LENGTH));
        self.queue(TAP, topic, arguments).await
    }

    /// Publishes up to `count` events of the tap, which came from `topic`, there once more, as they are. Says how many.
    ///
    /// RabbitMQ 3.10 may never answer on a channel about a queue whose node was away. Whether a message is there then or not,
    /// nothing is wrong with it.
    pub(super) async fn publish_again(&self, topic: &str, count: u64) -> Result<u64> {
        let mut published = 0;
        let publishing = async {
            while published < count && self.publish_one_again(topic).await? {
                published += 1;
            }
            Ok(())
        };
        match timeout(SILENT_MAX, publishing).await {
            Ok(outcome) => outcome.map(|()| published),
            Err(_) => Ok(published),
        }
    }

    /// False if the tap is empty.
    async fn publish_one_again(&self, topic: &str) -> Result<bool> {
        let options = BasicGetOptions { no_ack: true };
        let Some(message) = self.channel.basic_get(TAP.into(), options).await? else {
            return Ok(false);
        };
        let message = message.delivery;
        // Under its routing key, too: by that an ordered group finds the partition.
        let (exchange, key) = (topic.into(), message.routing_key);
        let options = BasicPublishOptions::default();
        let confirm = self
            .channel
            .basic_publish(exchange, key, options, &message.data, message.properties)
            .await?;
        confirm.await?;
        Ok(true)
    }

    /// Lets a stranger listen to `topic` with a queue that is soon full.
    pub(super) async fn invite_stranger(&self, topic: &str) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-max-length".into(),
            AMQPValue::LongLongInt(STRANGER_LENGTH),
        );
        arguments.insert(
            "x-overflow".into(),
            AMQPValue::LongString("reject-publish".into()),
        );
        self.queue(STRANGER, topic, arguments).await
    }

    /// Sends the stranger away, with the queue.
    pub(super) async fn dismiss_stranger(&self) -> Result<()> {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(STRANGER.into(), options).await?;
        Ok(())
    }

    /// Begins to listen to a topic that nobody listened to.
    pub(super) async fn listen(&self, queue: &str, topic: &str) -> Result<()> {
        self.queue(queue, topic, FieldTable::default()).await
    }

    /// How many messages lie in a queue.
    pub(super) async fn depth(&self, queue: &str) -> Result<u64> {
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let queue = self
            .channel
            .queue_declare(queue.into(), options, FieldTable::default());
        Ok(queue.await?.message_count().into())
    }

    /// Takes everything out of a queue that nobody else reads.
    pub(super) async fn take_all(&self, queue: &str) -> Result<Vec<Found>> {
        let count = usize::try_from(self.depth(queue).await?)?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer =
            self.channel
                .basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut consumer = consumer.await?;
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let next = timeout(SILENT_MAX, consumer.next()).await;
            let next = next.with_context(|| {
                format!("`{queue}` has {count} messages and gave {}", found.len())
            })?;
            let Some(message) = next else {
                bail!("the broker ended the supervisor's consumer of `{queue}`");
            };
            let message = message?;
            let id = message.properties.message_id();
            let headers = message.properties.headers().as_ref();
            let reason = headers.and_then(|headers| headers.inner().get("tidings-reason"));
            let reason = match reason {
                Some(AMQPValue::LongString(reason)) => reason.to_string(),
                _ => String::new(),
            };
            found.push(Found {
                id: id.as_ref().map(ToString::to_string).unwrap_or_default(),
                reason,
                body: message.data,
            });
        }
        Ok(found)
    }
}
