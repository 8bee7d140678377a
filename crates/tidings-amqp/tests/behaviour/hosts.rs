//! Several hosts in one URL.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tidings_amqp::Amqp;
use tidings_broker::{Broker, Handle, Options};
use tidings_core::{Settlement, Transport};
use tidings_testing::servers::free_port;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use crate::behaviour::{
    connect, failures::publish_at_last, id, next, publish_all, subscribe, to_topic, topology,
    unique, within,
};

/// Each connection has an order of its own: often enough that each host comes first.
const CONNECTIONS: usize = 12;

async fn broker(port: u16) -> Handle {
    let options = Options::ephemeral().listen(([127, 0, 0, 1], port));
    Broker::start(options).await.expect("it starts")
}

fn url(ports: &[u16], options: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|it| format!("127.0.0.1:{it}")).collect();
    format!("amqp://guest:guest@{}/{options}", hosts.join(","))
}

/// Who listens at a port and is no broker; gone with the tasks.
async fn stranger(answer: Option<&'static [u8]>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut all = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            if let Some(answer) = answer {
                let mut header = [0; 8];
                let _ = stream.read_exact(&mut header).await;
                let _ = stream.write_all(answer).await;
            }
            all.push(stream);
        }
    });
    (address, tasks)
}

/// Only one of two runs at a time. What was declared is declared at the other, what is published comes there, and
/// the subscription receives it.
pub(crate) async fn a_broker_that_stops_is_left_for_the_next_host() {
    let ports = [free_port().expect("a port"), free_port().expect("a port")];
    let mut running = broker(ports[0]).await;
    let amqp = connect(&url(&ports, "")).await;
    let (queue, topic) = (unique("queue"), unique("topic"));
    let wanted = topology(&queue, &[&topic]);
    amqp.declare(&wanted).await.expect("declared");
    let mut deliveries = subscribe(&amqp, &queue, 10).await;
    for round in 0..4 {
        publish_at_last(&amqp, to_topic(&topic, round.to_string())).await;
        let delivery = next(&mut deliveries).await;
        assert_eq!(id(&delivery), round.to_string());
        delivery.settle(Settlement::Ack).await.expect("settled");
        running.shutdown().await.expect("it stops");
        running = broker(ports[(round + 1) % 2]).await;
    }
    amqp.close().await;
}

/// One is gone, one does not answer, one speaks something else: the fourth is found, in whatever order they are asked.
pub(crate) async fn one_host_of_several_is_enough() {
    let broker = broker(0).await;
    let gone = free_port().expect("a port");
    let (silent, _silent) = stranger(None).await;
    let (other, _other) = stranger(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    let ports = [gone, silent.port(), other.port(), broker.amqp_addr().port()];
    let url = url(&ports, "?connection_timeout=300");
    let (queue, topic) = (unique("queue"), unique("topic"));
    for _ in 0..CONNECTIONS {
        let started = Instant::now();
        let amqp = connect(&url).await;
        // One round, in which one host uses up its time.
        assert!(started.elapsed() < Duration::from_secs(3), "{started:?}");
        amqp.declare(&topology(&queue, &[&topic]))
            .await
            .expect("declared");
        publish_all(&amqp, vec![to_topic(&topic, "1")]).await;
        amqp.close().await;
    }
}

/// Nobody takes us, and one of them for a reason that waiting does not change: that is the answer, at once.
pub(crate) async fn what_one_host_refuses_is_said_when_no_other_takes_us() {
    let broker = broker(0).await;
    let gone = free_port().expect("a port");
    let there = broker.amqp_addr().port();
    for _ in 0..CONNECTIONS {
        let hosts = format!("127.0.0.1:{gone},127.0.0.1:{there}");
        let url = format!("amqp://guest:secret@{hosts}");
        let error = within("an answer", Amqp::connect(&url))
            .await
            .expect_err("the password is wrong");
        let said = format!("{error}");
        assert!(!error.is_temporary(), "{said}");
        let expected = format!("the broker at `127.0.0.1:{there}` refused the user");
        assert!(said.contains(&expected), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}
