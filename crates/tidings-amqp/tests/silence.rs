//! Peers that are there and yet are not: a broker that falls silent, and one that is none.

use std::time::Duration;

use bytes::BytesMut;
use tidings_amqp::Amqp;
use tidings_wire::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(30);
const FRAME_MAX: u32 = 131_072;

/// The broker's side of a connection.
struct Peer {
    stream: TcpStream,
    read: BytesMut,
}

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        let accepted = timeout(DEADLINE, listener.accept()).await;
        let (stream, _) = accepted.expect("somebody connects").expect("accepted");
        let mut peer = Self {
            stream,
            read: BytesMut::new(),
        };
        while check_protocol_header(&mut peer.read) != HeaderCheck::Accepted {
            peer.fill().await;
        }
        peer
    }

    async fn fill(&mut self) {
        let reading = timeout(DEADLINE, self.stream.read_buf(&mut self.read)).await;
        let count = reading.expect("something comes").expect("read");
        assert!(count > 0, "the client hung up");
    }

    async fn next(&mut self) -> Payload {
        loop {
            match decode_frame(&mut self.read, FRAME_MAX).expect("AMQP") {
                Some(frame) => return frame.payload,
                None => self.fill().await,
            }
        }
    }

    async fn send(&mut self, method: impl Into<Method>) {
        let mut out = BytesMut::new();
        encode_method(&mut out, 0, &method.into());
        self.stream.write_all(&out).await.expect("written");
    }

    /// Lets the client in, with a heartbeat of one second.
    async fn shake_hands(&mut self) -> Method {
        let start = ConnectionStart {
            mechanisms: "AMQPLAIN PLAIN".into(),
            locales: "en_US".into(),
            ..ConnectionStart::default()
        };
        self.send(start).await;
        let start_ok = self.next().await;
        let tune = ConnectionTune {
            channel_max: 10,
            frame_max: FRAME_MAX,
            heartbeat: 1,
        };
        self.send(tune).await;
        self.next().await;
        self.next().await;
        self.send(ConnectionOpenOk {}).await;
        match start_ok {
            Payload::Method(method) => method,
            other => panic!("`connection.start-ok`, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_broker_is_left_and_connected_to_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("bound");
    let url = format!("amqp://user:word@{place}?heartbeat=60");
    let amqp = Amqp::builder(&url).expect("a URL").name("orders").start();
    let mut first = Peer::accept(&listener).await;
    let Method::ConnectionStartOk(start_ok) = first.shake_hands().await else {
        panic!("a client logs in first");
    };
    assert_eq!(&start_ok.response[..], b"\0user\0word");
    let name = start_ok.client_properties.get("connection_name");
    assert_eq!(name, Some("orders (publishing)".into()));
    // The client keeps its side of the heartbeat; this side says nothing more.
    while first.next().await != Payload::Heartbeat {}
    let mut second = Peer::accept(&listener).await;
    second.shake_hands().await;
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
