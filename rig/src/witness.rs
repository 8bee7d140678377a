//! The supervisor's own eyes and hands at the broker, past the proxy and with a foreign client
//! (lapin), so that what is under attack is not asked about itself.

use anyhow::{Context, Result};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

/// Gets a copy of the newest events, to publish them a second time.
const TAP: &str = "rig.tap";

/// How many events the tap keeps.
const TAP_LENGTH: i64 = 300;

/// A listener of somebody else, that is full at once and refuses all others.
const STRANGER: &str = "rig.stranger";

const STRANGER_LENGTH: i64 = 5;

/// A message as it lies in a queue.
pub(crate) struct Found {
    pub(crate) id: String,
    /// Why it is a dead letter, if it is one.
    pub(crate) reason: String,
    pub(crate) body: Vec<u8>,
}

/// A connection of the supervisor's own.
pub(crate) struct Witness {
    // Kept: without it the channel ends.
    _connection: Connection,
    channel: Channel,
}

impl Witness {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
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
    pub(crate) async fn tap(&self, topic: &str) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(TAP_LENGTH));
        self.queue(TAP, topic, arguments).await
    }

    /// Publishes up to `count` events of the tap once more, as they are. Says how many.
    pub(crate) async fn publish_again(&self, count: u64) -> Result<u64> {
        for published in 0..count {
            let options = BasicGetOptions { no_ack: true };
            let Some(message) = self.channel.basic_get(TAP.into(), options).await? else {
                return Ok(published);
            };
            let message = message.delivery;
            let options = BasicPublishOptions::default();
            self.publish(
                &message.exchange.to_string(),
                options,
                &message.data,
                message.properties,
            )
            .await?;
        }
        Ok(count)
    }

    async fn publish(
        &self,
        exchange: &str,
        options: BasicPublishOptions,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<()> {
        let confirm = self
            .channel
            .basic_publish(exchange.into(), "".into(), options, body, properties)
            .await?;
        confirm.await?;
        Ok(())
    }

    /// Lets a stranger listen to `topic` with a queue that is soon full.
    pub(crate) async fn invite_stranger(&self, topic: &str) -> Result<()> {
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
    pub(crate) async fn dismiss_stranger(&self) -> Result<()> {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(STRANGER.into(), options).await?;
        Ok(())
    }

    /// Begins to listen to a topic that nobody listened to.
    pub(crate) async fn listen(&self, queue: &str, topic: &str) -> Result<()> {
        self.queue(queue, topic, FieldTable::default()).await
    }

    /// How many messages lie in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u64> {
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let queue = self
            .channel
            .queue_declare(queue.into(), options, FieldTable::default());
        Ok(queue.await?.message_count().into())
    }

    /// Takes everything out of a queue.
    pub(crate) async fn take_all(&self, queue: &str) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        loop {
            let options = BasicGetOptions { no_ack: true };
            let Some(message) = self.channel.basic_get(queue.into(), options).await? else {
                return Ok(found);
            };
            let message = message.delivery;
            let id = message.properties.message_id();
            let headers = message.properties.headers().as_ref();
            let reason = headers.and_then(|headers| headers.inner().get("tidings-reason"));
            let reason = match reason {
                Some(AMQPValue::LongString(reason)) => reason.to_string(),
                _ => String::new(),
            };
            found.push(Found {
                reason,
                id: id.as_ref().map(ToString::to_string).unwrap_or_default(),
                body: message.data,
            });
        }
    }
}
