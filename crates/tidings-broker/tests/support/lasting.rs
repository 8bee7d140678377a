//! A broker that is stopped and started again on its folder, and what the folder holds.

use std::path::Path;

use tidings_broker::{Broker, Handle, Options};
use tidings_broker_core::Record;
use tidings_broker_log::Log;
use tidings_wire::*;

use super::{Client, short};

/// A broker that keeps its data in this folder.
pub async fn start(data: &Path) -> Handle {
    Broker::start(Options::durable(data))
        .await
        .unwrap_or_else(|error| panic!("the folder opens: {error}"))
}

/// Stops the broker and starts it again on the same folder, with a new client.
pub async fn restart(broker: Handle, client: Client, data: &Path) -> (Handle, Client) {
    client.close().await;
    broker.shutdown().await.expect("a clean stop");
    let broker = start(data).await;
    let client = Client::connect(broker.amqp_addr()).await;
    (broker, client)
}

/// What a log in this folder holds.
pub fn records(data: &Path) -> Vec<Record> {
    let (log, recovered) = Log::open(data, Default::default(), |_| {}).expect("the folder opens");
    log.close().expect("a clean stop");
    recovered.records
}

/// Writes a folder as an earlier version might have left it.
pub fn write_folder(data: &Path, records: &[Record]) {
    let (log, _) = Log::open(data, Default::default(), |_| {}).expect("a new folder");
    log.append_all(records).expect("there is room");
    log.close().expect("a clean stop");
}

pub fn durable(declare: QueueDeclare) -> QueueDeclare {
    QueueDeclare {
        durable: true,
        ..declare
    }
}

/// A durable exchange.
pub fn exchange(name: &str, kind: &str, arguments: Table) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange: short(name),
        kind: short(kind),
        durable: true,
        arguments,
        ..Default::default()
    }
}

pub fn bind(queue: &str, exchange: &str, key: &str, arguments: Table) -> QueueBind {
    QueueBind {
        queue: short(queue),
        exchange: short(exchange),
        routing_key: short(key),
        arguments,
        ..Default::default()
    }
}

pub fn persistent(headers: Option<Table>) -> BasicProperties {
    BasicProperties {
        delivery_mode: Some(2),
        headers,
        ..Default::default()
    }
}

/// Says something whose answer is not a close.
pub async fn done(client: &mut Client, method: impl Into<Method>) {
    let method = method.into();
    let name = method.name();
    let answer = client.call(1, method).await;
    let is_close = matches!(answer, Method::ChannelClose(_) | Method::ConnectionClose(_));
    assert!(!is_close, "{name}: {answer:?}");
}

/// Publishes, and waits for the confirm; the channel is in confirm mode.
pub async fn confirmed(
    client: &mut Client,
    exchange: &str,
    key: &str,
    properties: &BasicProperties,
    body: &[u8],
) {
    client
        .publish_with(1, exchange, key, true, properties, body)
        .await;
    match client.hear().await {
        Some(Method::BasicAck(_)) => {}
        other => panic!("expected a confirm, got {other:?}"),
    }
}
