//! What a service does that has an AMQP client and no toolkit: it takes messages out of a queue, reads the
//! body of each as JSON, and acknowledges it. With `lapin`, and with `amqprs`.

use std::sync::Arc;

use amqprs::{
    channel::{BasicAckArguments, BasicConsumeArguments, BasicQosArguments},
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::Context as _;
use futures_util::StreamExt;
use lapin::{
    ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};

use crate::handler::{Count, QUEUE, Took};

pub(crate) async fn lapin(url: &str, prefetch: u16, count: Arc<Count>) -> anyhow::Result<Took> {
    let connection =
        lapin::Connection::connect(url.trim_end_matches('/'), ConnectionProperties::default())
            .await?;
    let channel = connection.create_channel().await?;
    let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
    qos.await?;
    let consuming = channel.basic_consume(
        QUEUE.into(),
        "bench".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = consuming.await?;
    while !count.is_over() {
        let delivery = deliveries.next().await.context("the channel ended")??;
        count.see_body(&delivery.data)?;
        delivery.ack(BasicAckOptions::default()).await?;
    }
    connection.close(200, "done".into()).await?;
    count.took()
}

pub(crate) async fn amqprs(url: &str, prefetch: u16, count: Arc<Count>) -> anyhow::Result<Took> {
    let url: hyper::Uri = url.parse()?;
    let (host, port) = (url.host().unwrap_or_default(), url.port_u16());
    let port = port.context("a URL without a port")?;
    let arguments = OpenConnectionArguments::new(host, port, "guest", "guest");
    let connection = Connection::open(&arguments).await?;
    let channel = connection.open_channel(None).await?;
    let qos = channel.basic_qos(BasicQosArguments::new(0, prefetch, false));
    qos.await?;
    let arguments = BasicConsumeArguments::new(QUEUE, "bench");
    let (_tag, mut deliveries) = channel.basic_consume_rx(arguments).await?;
    while !count.is_over() {
        let message = deliveries.recv().await.context("the channel ended")?;
        count.see_body(&message.content.context("a message without a body")?)?;
        let tag = message.deliver.context("no delivery")?.delivery_tag();
        channel
            .basic_ack(BasicAckArguments::new(tag, false))
            .await?;
    }
    channel.close().await?;
    connection.close().await?;
    count.took()
}
