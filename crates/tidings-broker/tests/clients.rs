//! Clients that know nothing of this broker: lapin and amqprs, unmodified.

mod support;

use futures_util::StreamExt;
use support::broker;
use tidings_broker::{Broker, Options, User};
use tokio::sync::mpsc;

#[tokio::test]
async fn lapin_publishes_with_confirms_and_consumes() {
    use lapin::options::*;
    use lapin::types::{AMQPValue, FieldTable};
    use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

    let broker = broker().await;
    let url = broker.amqp_url();
    let connection = Connection::connect(&url, ConnectionProperties::default());
    let connection = connection.await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-dead-letter-exchange".into(),
        AMQPValue::LongString("".into()),
    );
    channel
        .queue_declare("orders".into(), durable, arguments)
        .await
        .expect("declared");

    for number in 0..100_u8 {
        let confirm = channel
            .basic_publish(
                "".into(),
                "orders".into(),
                BasicPublishOptions {
                    mandatory: true,
                    ..Default::default()
                },
                &[number],
                BasicProperties::default().with_delivery_mode(2),
            )
            .await
            .expect("published");
        assert_eq!(confirm.await.expect("confirmed"), Confirmation::Ack(None));
    }
    let unroutable = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let properties = BasicProperties::default();
    let confirm =
        channel.basic_publish("".into(), "nobody".into(), unroutable, b"back", properties);
    match confirm.await.expect("published").await.expect("confirmed") {
        Confirmation::Ack(Some(returned)) => assert_eq!(returned.delivery.data, b"back"),
        other => panic!("it should come back, not {other:?}"),
    }

    channel
        .basic_qos(10, BasicQosOptions::default())
        .await
        .expect("prefetch");
    let mut consumer = channel
        .basic_consume(
            "orders".into(),
            "c".into(),
            Default::default(),
            Default::default(),
        )
        .await
        .expect("consuming");
    for number in 0..100_u8 {
        let delivery = consumer
            .next()
            .await
            .expect("a delivery")
            .expect("no error");
        assert_eq!(delivery.data, [number]);
        delivery
            .ack(BasicAckOptions::default())
            .await
            .expect("acknowledged");
    }
    connection.close(200, "bye".into()).await.expect("closed");
    broker.shutdown().await.expect("stopped");
}

#[tokio::test]
async fn amqprs_consumes_what_it_published() {
    use amqprs::BasicProperties;
    use amqprs::channel::*;
    use amqprs::connection::{Connection, OpenConnectionArguments};

    let options = Options::ephemeral().users([User::new("alice", "s3cret")]);
    let broker = Broker::start(options).await.expect("a free port");
    let addr = broker.amqp_addr();
    let login = |password| {
        OpenConnectionArguments::new(&addr.ip().to_string(), addr.port(), "alice", password)
    };
    assert!(Connection::open(&login("wrong")).await.is_err());
    let connection = Connection::open(&login("s3cret")).await.expect("connected");
    let channel = connection.open_channel(None).await.expect("a channel");
    let exchange = ExchangeDeclareArguments::new("events", "topic");
    channel.exchange_declare(exchange).await.expect("declared");
    let (queue, _, _) = channel
        .queue_declare(QueueDeclareArguments::exclusive_server_named())
        .await
        .expect("declared")
        .expect("waited for");
    let bind = QueueBindArguments::new(&queue, "events", "order.*");
    channel.queue_bind(bind).await.expect("bound");
    let consume = BasicConsumeArguments::new(&queue, "me");
    let (_tag, mut received) = channel.basic_consume_rx(consume).await.expect("consuming");
    for number in 0..100_u8 {
        for key in ["order.placed", "payment.settled"] {
            let publish = BasicPublishArguments::new("events", key);
            let body = vec![number];
            let published = channel.basic_publish(BasicProperties::default(), body, publish);
            published.await.expect("published");
        }
        let message = received.recv().await.expect("a message");
        assert_eq!(message.content, Some(vec![number]));
        let tag = message.deliver.expect("a delivery").delivery_tag();
        channel
            .basic_ack(BasicAckArguments::new(tag, false))
            .await
            .expect("acknowledged");
    }
    channel.close().await.expect("closed");
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn many_lapin_consumers_share_the_work_once_each() {
    use lapin::options::*;
    use lapin::{BasicProperties, Connection, ConnectionProperties};

    const MESSAGES: usize = 2000;
    let broker = broker().await;
    let (sender, mut received) = mpsc::channel(MESSAGES);
    let url = broker.amqp_url();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let connection = Connection::connect(&url, ConnectionProperties::default());
        let connection = connection.await.expect("connected");
        let channel = connection.create_channel().await.expect("a channel");
        let declared = channel.queue_declare("work".into(), Default::default(), Default::default());
        declared.await.expect("declared");
        channel
            .basic_qos(20, BasicQosOptions::default())
            .await
            .expect("prefetch");
        let mut consumer = channel
            .basic_consume(
                "work".into(),
                "".into(),
                Default::default(),
                Default::default(),
            )
            .await
            .expect("consuming");
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let number = u32::from_be_bytes(delivery.data[..].try_into().expect("a number"));
                delivery
                    .ack(BasicAckOptions::default())
                    .await
                    .expect("acknowledged");
                sender.send(number).await.expect("the test listens");
            }
        });
        connections.push(connection);
    }
    let channel = connections[0].create_channel().await.expect("a channel");
    for number in 0..MESSAGES as u32 {
        let (options, properties) = (Default::default(), BasicProperties::default());
        let body = number.to_be_bytes();
        let published = channel.basic_publish("".into(), "work".into(), options, &body, properties);
        published.await.expect("published");
    }
    let mut seen = std::collections::HashSet::new();
    while seen.len() < MESSAGES {
        assert!(
            seen.insert(received.recv().await.expect("a message")),
            "none twice"
        );
    }
}
