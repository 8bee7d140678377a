//! Clients of RabbitMQ without a toolkit: the raw one, which is blocking sockets and the codec of `tidings-wire`, and
//! lapin as its documents show it.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt, stream};
use lapin::{
    ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tidings_wire::{BasicProperties, Properties, ShortStr, Table};

use super::{
    Load,
    turn::{CONTENT_TYPE, CORRELATION, Count, Message, Moment, NAME, SOURCE, TRACEPARENT, Took},
};
use crate::amqp;

const LAPIN: &str = "lapin";

/// Who stands beside the toolkit.
pub(super) const PEERS: [&str; 2] = ["raw client", LAPIN];

pub(super) struct Raw {
    url: String,
    pub(super) durability: &'static str,
    load: Load,
}

impl Raw {
    pub(super) fn new(url: String, durability: &'static str, load: Load) -> Self {
        Self {
            url,
            durability,
            load,
        }
    }

    pub(super) async fn publish(
        &self,
        peer: &str,
        topic: &str,
        messages: Vec<Message>,
    ) -> anyhow::Result<Took> {
        if peer == LAPIN {
            return self.publish_by_lapin(topic, &messages).await;
        }
        let (url, topic) = (self.url.clone(), topic.to_owned());
        let window = self.load.batch * self.load.window;
        let publishing = move || {
            let count = messages.len() as u64;
            let mut next = messages.iter();
            let began = Moment::now();
            amqp::publish_all(&url, &topic, window, || {
                let message = next.next()?;
                // Names and values of the bench, which are short.
                Some((properties(message).ok()?, &*message.body))
            })?;
            ensure!(next.next().is_none(), "not all were published");
            Ok(began.until(Moment::now(), count))
        };
        tokio::task::spawn_blocking(publishing).await?
    }

    pub(super) async fn receive(
        &self,
        peer: &str,
        queue: &str,
        count: &Arc<Count>,
    ) -> anyhow::Result<Took> {
        if peer == LAPIN {
            return self.receive_by_lapin(queue, count).await;
        }
        let (url, queue, prefetch) = (self.url.clone(), queue.to_owned(), self.load.prefetch);
        let count = Arc::clone(count);
        let draining = move || {
            let mut wrong = Ok(());
            amqp::drain(&url, &queue, prefetch, count.expected(), |body| {
                if let Err(error) = count.see(body) {
                    wrong = Err(error);
                }
            })?;
            wrong?;
            count.took()
        };
        tokio::task::spawn_blocking(draining).await?
    }

    async fn publish_by_lapin(&self, topic: &str, messages: &[Message]) -> anyhow::Result<Took> {
        let connection =
            lapin::Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let began = Moment::now();
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let mut published = stream::iter(messages)
            .map(|message| {
                let published = channel.basic_publish(
                    topic.into(),
                    "".into(),
                    options,
                    &message.body,
                    lapin_properties(message),
                );
                async move { published.await?.await }
            })
            .buffered(self.load.batch * self.load.window);
        while let Some(confirmed) = published.next().await {
            ensure!(confirmed?.is_ack(), "refused");
        }
        drop(published);
        let took = began.until(Moment::now(), messages.len() as u64);
        connection.close(200, "done".into()).await?;
        Ok(took)
    }

    async fn receive_by_lapin(&self, queue: &str, count: &Count) -> anyhow::Result<Took> {
        let connection =
            lapin::Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let qos = channel.basic_qos(self.load.prefetch, BasicQosOptions::default());
        qos.await?;
        let consuming = channel.basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut deliveries = consuming.await?;
        while !count.is_over() {
            let delivery = deliveries.next().await.context("the channel ended")??;
            count.see(&delivery.data)?;
            delivery.ack(BasicAckOptions::default()).await?;
        }
        connection.close(200, "done".into()).await?;
        count.took()
    }
}

/// The headers that the toolkit sends.
fn headers<'a>(message: &'a Message, time: &'a str) -> [(&'static str, &'a str); 8] {
    [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", &message.id),
        ("cloudEvents:type", NAME),
        ("cloudEvents:source", SOURCE),
        ("cloudEvents:time", time),
        ("cloudEvents:partitionkey", &message.key),
        ("cloudEvents:correlationid", CORRELATION),
        ("cloudEvents:traceparent", TRACEPARENT),
    ]
}

fn properties(message: &Message) -> anyhow::Result<Properties> {
    let time = message.time.to_string();
    let mut table = Table::builder();
    for (name, value) in headers(message, &time) {
        table.push_str(name, value)?;
    }
    Ok(BasicProperties {
        content_type: Some(ShortStr::from_static(CONTENT_TYPE)),
        headers: Some(table.build()),
        delivery_mode: Some(2),
        correlation_id: Some(ShortStr::from_static(CORRELATION)),
        message_id: Some(ShortStr::try_from(&*message.id)?),
        timestamp: u64::try_from(message.time.as_second()).ok(),
        kind: Some(ShortStr::from_static(NAME)),
        app_id: Some(ShortStr::from_static(SOURCE)),
        ..Default::default()
    }
    .encode())
}

fn lapin_properties(message: &Message) -> lapin::BasicProperties {
    let time = message.time.to_string();
    let mut table = FieldTable::default();
    for (name, value) in headers(message, &time) {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    lapin::BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_headers(table)
        .with_delivery_mode(2)
        .with_correlation_id(CORRELATION.into())
        .with_message_id((&*message.id).into())
        .with_timestamp(message.time.as_second().unsigned_abs())
        .with_type(NAME.into())
        .with_app_id(SOURCE.into())
}
