//! A client that says exactly what a test wants said, and a broker to say it to.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

pub mod lasting;
pub mod program;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidings_broker::{Broker, Handle, Limits, Options};
use tidings_wire::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Nothing in these tests takes longer, unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A broker in memory.
pub async fn broker() -> Handle {
    broker_with(Limits::default()).await
}

/// A broker in memory with these limits.
pub async fn broker_with(limits: Limits) -> Handle {
    let options = Options::ephemeral().limits(limits);
    Broker::start(options).await.expect("a free port")
}

/// A connection at the level of methods.
pub struct Client {
    stream: TcpStream,
    input: BytesMut,
    channels: HashMap<u16, Assembler>,
    frame_max: u32,
}

/// The half that hears, when two tasks share a connection.
pub struct Reader {
    stream: tokio::net::tcp::OwnedReadHalf,
    input: BytesMut,
}

impl Reader {
    /// The next method without content; `None` when the broker is gone.
    pub async fn hear(&mut self) -> Option<Method> {
        loop {
            let frame = decode_frame(&mut self.input, u32::MAX).expect("well-formed");
            match frame.map(|frame| frame.payload) {
                Some(Payload::Method(method)) => return Some(method),
                Some(_) => {}
                None => match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                },
            }
        }
    }
}

/// The half that publishes on channel 1.
pub struct Writer {
    stream: tokio::net::tcp::OwnedWriteHalf,
    out: BytesMut,
}

impl Writer {
    /// An error when the broker is gone.
    pub async fn publish(
        &mut self,
        exchange: &str,
        key: &str,
        properties: &BasicProperties,
        body: &[u8],
    ) -> std::io::Result<()> {
        let (out, properties) = (&mut self.out, properties.encode());
        encode_publish(
            out,
            1,
            exchange,
            key,
            false,
            properties.as_bytes(),
            body,
            131_072,
        )
        .expect("short names");
        self.stream.write_all_buf(out).await
    }
}

/// How a client introduces itself.
#[derive(Clone)]
pub struct Hello {
    pub mechanism: &'static str,
    pub response: Bytes,
    pub capabilities: &'static [&'static str],
    pub tune: Option<ConnectionTuneOk>,
    pub vhost: &'static str,
}

impl Default for Hello {
    fn default() -> Hello {
        Hello {
            mechanism: "PLAIN",
            response: Bytes::from_static(b"\0guest\0guest"),
            capabilities: &[
                "authentication_failure_close",
                "consumer_cancel_notify",
                "connection.blocked",
            ],
            tune: None,
            vhost: "/",
        }
    }
}

impl Client {
    /// Opens a connection and channel 1.
    pub async fn connect(addr: SocketAddr) -> Client {
        let mut client = Client::greet(addr, Hello::default()).await.expect("let in");
        client.open(1).await;
        client
    }

    /// Goes through the handshake; a `connection.close` of the broker or an early end is an error.
    pub async fn greet(addr: SocketAddr, hello: Hello) -> Result<Client, Option<ConnectionClose>> {
        Client::greet_from(addr, Ipv4Addr::LOCALHOST, hello).await
    }

    /// The same from another address of this machine.
    pub async fn greet_from(
        addr: SocketAddr,
        from: Ipv4Addr,
        hello: Hello,
    ) -> Result<Client, Option<ConnectionClose>> {
        let mut client = Client::raw_from(addr, from).await;
        client.write(&PROTOCOL_HEADER).await;
        let Some(Method::ConnectionStart(_)) = client.hear().await else {
            return Err(None);
        };
        let mut capabilities = Table::builder();
        for name in hello.capabilities {
            capabilities.push(&ShortStr::from_static(name), &Value::Bool(true));
        }
        let mut properties = Table::builder();
        let capabilities = Value::Table(capabilities.build());
        properties.push(&ShortStr::from_static("capabilities"), &capabilities);
        let start_ok = ConnectionStartOk {
            client_properties: properties.build(),
            mechanism: ShortStr::from_static(hello.mechanism),
            response: hello.response,
            locale: ShortStr::from_static("en_US"),
        };
        client.send(0, &start_ok).await;
        let tune = match client.hear().await {
            Some(Method::ConnectionTune(tune)) => tune,
            Some(Method::ConnectionClose(close)) => return Err(Some(close)),
            _ => return Err(None),
        };
        let tune_ok = hello.tune.unwrap_or(ConnectionTuneOk {
            channel_max: tune.channel_max,
            frame_max: tune.frame_max,
            heartbeat: 0,
        });
        client.frame_max = tune_ok.frame_max;
        client.send(0, &tune_ok).await;
        let virtual_host = ShortStr::from_static(hello.vhost);
        client.send(0, &ConnectionOpen { virtual_host }).await;
        match client.hear().await {
            Some(Method::ConnectionOpenOk(_)) => Ok(client),
            Some(Method::ConnectionClose(close)) => Err(Some(close)),
            _ => Err(None),
        }
    }

    /// A socket, and nothing said yet.
    pub async fn raw(addr: SocketAddr) -> Client {
        Client::raw_from(addr, Ipv4Addr::LOCALHOST).await
    }

    /// The same from another address of this machine.
    pub async fn raw_from(addr: SocketAddr, from: Ipv4Addr) -> Client {
        let connected = if from == Ipv4Addr::LOCALHOST {
            TcpStream::connect(addr).await
        } else {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind((from, 0).into()).expect("an address");
            socket.connect(addr).await
        };
        let stream = connected.expect("the broker listens");
        stream.set_nodelay(true).expect("a socket");
        Client {
            stream,
            input: BytesMut::new(),
            channels: HashMap::new(),
            frame_max: 131_072,
        }
    }

    /// Two halves for two tasks.
    pub fn split(self) -> (Reader, Writer) {
        let (read, write) = self.stream.into_split();
        let reader = Reader {
            stream: read,
            input: self.input,
        };
        (
            reader,
            Writer {
                stream: write,
                out: BytesMut::new(),
            },
        )
    }

    pub async fn open(&mut self, channel: u16) {
        let Method::ChannelOpenOk(_) = self.call(channel, ChannelOpen {}).await else {
            panic!("channel {channel} was not opened");
        };
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the broker reads");
    }

    /// Writes as much as the broker takes; gives how much that was when it took no more for a
    /// while.
    pub async fn write_until_stuck(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            let write = self.stream.write(&bytes[written..]);
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(Ok(n)) => written += n,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        written
    }

    /// Every byte until the broker hangs up.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = self.stream.read_to_end(&mut bytes);
        // A reset after the last byte is an end, too.
        let _ = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("an end in time");
        bytes
    }

    pub async fn send(&mut self, channel: u16, method: &impl EncodeMethod) {
        let mut out = BytesMut::new();
        encode_method(&mut out, channel, method);
        self.write(&out).await;
    }

    pub async fn publish(&mut self, channel: u16, exchange: &str, key: &str, body: &[u8]) {
        self.publish_with(
            channel,
            exchange,
            key,
            false,
            &BasicProperties::default(),
            body,
        )
        .await;
    }

    pub async fn publish_with(
        &mut self,
        channel: u16,
        exchange: &str,
        key: &str,
        mandatory: bool,
        properties: &BasicProperties,
        body: &[u8],
    ) {
        let mut out = BytesMut::new();
        let publish = BasicPublish {
            exchange: short(exchange),
            routing_key: short(key),
            mandatory,
            immediate: false,
        };
        encode_method(&mut out, channel, &publish);
        encode_content(
            &mut out,
            channel,
            properties.encode().as_bytes(),
            body,
            self.frame_max,
        );
        self.write(&out).await;
    }

    /// The next frame of the broker, heartbeats too; `None` when it has hung up.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = decode_frame(&mut self.input, u32::MAX).expect("well-formed") {
                return Some(frame);
            }
            let read = self.stream.read_buf(&mut self.input);
            match tokio::time::timeout(PATIENCE, read)
                .await
                .expect("an answer in time")
            {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next command of the broker on any channel.
    pub async fn next(&mut self) -> Option<(u16, Command)> {
        loop {
            let Frame { channel, payload } = self.frame().await?;
            let assembler = self
                .channels
                .entry(channel)
                .or_insert_with(|| Assembler::new(1 << 30));
            if let Some(command) = assembler.push(payload).expect("frames in order") {
                return Some((channel, command));
            }
        }
    }

    /// The next method of the broker, without its content.
    pub async fn hear(&mut self) -> Option<Method> {
        self.next().await.map(|(_, command)| command.method)
    }

    /// The next delivery.
    pub async fn delivery(&mut self) -> (BasicDeliver, Content) {
        match self.next().await {
            Some((
                _,
                Command {
                    method: Method::BasicDeliver(deliver),
                    content: Some(content),
                },
            )) => (deliver, content),
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    /// The next delivery, or a heartbeat before it.
    pub async fn delivery_or_heartbeat(&mut self) -> Option<BasicDeliver> {
        let Frame { channel, payload } = self.frame().await.expect("a frame");
        if payload == Payload::Heartbeat {
            return None;
        }
        let assembler = self
            .channels
            .entry(channel)
            .or_insert_with(|| Assembler::new(1 << 30));
        match assembler.push(payload).expect("frames in order")?.method {
            Method::BasicDeliver(deliver) => Some(deliver),
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    /// Says something and hears the answer.
    pub async fn call(&mut self, channel: u16, method: impl EncodeMethod) -> Method {
        self.send(channel, &method).await;
        self.hear().await.expect("an answer, not the end")
    }

    /// Whether the broker still answers on a fresh channel.
    pub async fn is_alive(&mut self, channel: u16) -> bool {
        matches!(
            self.call(channel, ChannelOpen {}).await,
            Method::ChannelOpenOk(_)
        )
    }

    /// Says nothing and hears nothing for a moment: everything sent before has had its effect.
    pub async fn settle(&mut self, channel: u16) {
        let qos = BasicQos {
            prefetch_size: 0,
            prefetch_count: 0,
            global: true,
        };
        let Method::BasicQosOk(_) = self.call(channel, qos).await else {
            panic!("expected qos-ok");
        };
    }

    pub async fn declare(&mut self, queue: QueueDeclare) -> QueueDeclareOk {
        match self.call(1, queue).await {
            Method::QueueDeclareOk(ok) => ok,
            other => panic!("expected declare-ok, got {other:?}"),
        }
    }

    /// Messages ready in a queue.
    pub async fn ready(&mut self, queue: &str) -> u32 {
        self.declare(QueueDeclare {
            queue: short(queue),
            passive: true,
            ..Default::default()
        })
        .await
        .message_count
    }

    /// Waits until a queue has that many messages ready.
    pub async fn wait_ready(&mut self, queue: &str, count: u32) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let ready = self.ready(queue).await;
            if ready == count {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "`{queue}` has {ready}, not {count}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn get(&mut self, queue: &str, no_ack: bool) -> Option<(BasicGetOk, Content)> {
        self.send(
            1,
            &BasicGet {
                queue: short(queue),
                no_ack,
            },
        )
        .await;
        match self.next().await.expect("an answer").1 {
            Command {
                method: Method::BasicGetOk(ok),
                content: Some(content),
            } => Some((ok, content)),
            Command {
                method: Method::BasicGetEmpty(_),
                ..
            } => None,
            other => panic!("expected get-ok or get-empty, got {other:?}"),
        }
    }

    pub async fn consume(&mut self, channel: u16, queue: &str, no_ack: bool) -> ShortStr {
        let consume = BasicConsume {
            queue: short(queue),
            no_ack,
            ..Default::default()
        };
        match self.call(channel, consume).await {
            Method::BasicConsumeOk(ok) => ok.consumer_tag,
            other => panic!("expected consume-ok, got {other:?}"),
        }
    }

    pub async fn close(mut self) {
        let close = ConnectionClose {
            reply_code: 200,
            ..Default::default()
        };
        self.send(0, &close).await;
        while self.next().await.is_some() {}
    }
}

pub fn short(text: &str) -> ShortStr {
    ShortStr::try_from(text).expect("a short text")
}

/// A table of `x-…` arguments.
pub fn table(entries: &[(&'static str, Value)]) -> Table {
    let mut builder = Table::builder();
    for (name, value) in entries {
        builder.push(&ShortStr::from_static(name), value);
    }
    builder.build()
}

pub fn text(text: &str) -> Value {
    Value::LongStr(Bytes::copy_from_slice(text.as_bytes()))
}

pub fn queue(name: &str) -> QueueDeclare {
    QueueDeclare {
        queue: short(name),
        ..Default::default()
    }
}

pub fn queue_with(name: &str, arguments: &[(&'static str, Value)]) -> QueueDeclare {
    QueueDeclare {
        queue: short(name),
        arguments: table(arguments),
        ..Default::default()
    }
}
