//! Peers that are there and yet are not: a broker that falls silent, and one that is none.

mod peer;

use peer::{DEADLINE, Peer};
use tidings_amqp::Amqp;
use tidings_wire::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

#[tokio::test]
async fn a_silent_broker_is_left_and_connected_to_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("bound");
    let url = format!("amqp://user:word@{place}?heartbeat=60");
    let amqp = Amqp::builder(&url).expect("a URL").name("orders").start();
    let mut first = Peer::accept(&listener).await;
    let Method::ConnectionStartOk(start_ok) = first.shake_hands(1).await else {
        panic!("a client logs in first");
    };
    assert_eq!(&start_ok.response[..], b"\0user\0word");
    let name = start_ok.client_properties.get("connection_name");
    assert_eq!(name, Some("orders (publishing)".into()));
    // The client keeps its side of the heartbeat; this side says nothing more.
    while first.next().await.payload != Payload::Heartbeat {}
    let mut second = Peer::accept(&listener).await;
    second.shake_hands(1).await;
    assert!(
        !amqp.is_connected(),
        "it is not until its channels are open"
    );
}

#[tokio::test]
async fn what_is_no_broker_is_a_clear_error() {
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "AMQP\x00\x01\x00\x00"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let place = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            stream.write_all(answer.as_bytes()).await.expect("written");
            let mut rest = Vec::new();
            // Until the client goes.
            let _ = stream.read_to_end(&mut rest).await;
        });
        let url = format!("amqp://user:secret@{place}");
        let answer = timeout(DEADLINE, Amqp::connect(&url)).await;
        let error = answer.expect("at once").expect_err("it is no broker");
        assert!(!error.is_temporary(), "{error}");
        let text = error.to_string();
        assert!(text.contains("does not speak AMQP 0-9-1"), "{text}");
        assert!(
            text.contains(&place.to_string()) && !text.contains("secret"),
            "{text}"
        );
        server.await.expect("no panic");
    }
}
