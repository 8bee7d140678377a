//! The broker's side of a connection, which does what a test wants, however wrong that is.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{collections::HashMap, time::Duration};

use bytes::BytesMut;
use tidings_wire::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const FRAME_MAX: u32 = 131_072;

pub(crate) struct Peer {
    stream: TcpStream,
    read: BytesMut,
    /// How much was published on each channel since it was opened.
    published: HashMap<u16, u64>,
    /// How many channels were put into confirm mode.
    pub(crate) confirm_channels: u32,
}

/// A message that the client published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) channel: u16,
    pub(crate) tag: u64,
    /// The how many-eth channel in confirm mode it is, from 1.
    pub(crate) confirm_channel: u32,
}

impl Peer {
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let accepted = timeout(DEADLINE, listener.accept()).await;
        let (stream, _) = accepted.expect("somebody connects").expect("accepted");
        let mut peer = Self {
            stream,
            read: BytesMut::new(),
            published: HashMap::new(),
            confirm_channels: 0,
        };
        while check_protocol_header(&mut peer.read) != HeaderCheck::Accepted {
            assert!(peer.fill().await, "the client hung up");
        }
        peer
    }

    /// False when the client has hung up.
    async fn fill(&mut self) -> bool {
        let reading = timeout(DEADLINE, self.stream.read_buf(&mut self.read)).await;
        reading
            .expect("something comes")
            .is_ok_and(|count| count > 0)
    }

    /// The next frame, if the client has not hung up.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            match decode_frame(&mut self.read, FRAME_MAX).expect("AMQP") {
                Some(frame) => return Some(frame),
                None if self.fill().await => {}
                None => return None,
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Frame {
        self.frame().await.expect("the client is there")
    }

    /// What a client that is gone does not get is nobody's loss.
    pub(crate) async fn send(&mut self, channel: u16, method: impl Into<Method>) {
        let mut out = BytesMut::new();
        encode_method(&mut out, channel, &method.into());
        let _ = self.stream.write_all(&out).await;
    }

    pub(crate) async fn confirm(&mut self, publish: Publish, multiple: bool) {
        let ack = BasicAck {
            delivery_tag: publish.tag,
            multiple,
        };
        self.send(publish.channel, ack).await;
    }

    /// Hands out a message without a body, with the tag 1.
    pub(crate) async fn deliver(&mut self, channel: u16, consumer_tag: ShortStr) {
        let mut out = BytesMut::new();
        let deliver = BasicDeliver {
            consumer_tag,
            delivery_tag: 1,
            ..BasicDeliver::default()
        };
        encode_method(&mut out, channel, &Method::from(deliver));
        let properties = Properties::default();
        encode_content(&mut out, channel, properties.as_bytes(), b"", FRAME_MAX);
        let _ = self.stream.write_all(&out).await;
    }

    /// Lets the client in, with a heartbeat of so many seconds.
    pub(crate) async fn shake_hands(&mut self, heartbeat: u16) -> Method {
        let start = ConnectionStart {
            mechanisms: "AMQPLAIN PLAIN".into(),
            locales: "en_US".into(),
            ..ConnectionStart::default()
        };
        self.send(0, start).await;
        let start_ok = self.next().await.payload;
        let tune = ConnectionTune {
            channel_max: 10,
            frame_max: FRAME_MAX,
            heartbeat,
        };
        self.send(0, tune).await;
        self.next().await;
        self.next().await;
        self.send(0, ConnectionOpenOk {}).await;
        match start_ok {
            Payload::Method(method) => method,
            other => panic!("`connection.start-ok`, not {other:?}"),
        }
    }

    /// The size of the body of what was just published.
    pub(crate) async fn body_bytes(&mut self) -> usize {
        match self.next().await.payload {
            Payload::Header { body_bytes, .. } => body_bytes as usize,
            other => panic!("a header, not {other:?}"),
        }
    }

    /// The next message that the client publishes; all else is answered as a broker would. `None`
    /// when the client has hung up.
    pub(crate) async fn published(&mut self) -> Option<Publish> {
        loop {
            let Frame { channel, payload } = self.frame().await?;
            let Payload::Method(method) = payload else {
                continue;
            };
            match method {
                Method::BasicPublish(_) => {
                    let tag = self.published.entry(channel).or_default();
                    *tag += 1;
                    return Some(Publish {
                        channel,
                        tag: *tag,
                        confirm_channel: self.confirm_channels,
                    });
                }
                Method::ChannelOpen(_) => {
                    self.published.insert(channel, 0);
                    self.send(channel, ChannelOpenOk::default()).await;
                }
                Method::ChannelClose(_) => self.send(channel, ChannelCloseOk {}).await,
                Method::ConfirmSelect(_) => {
                    self.confirm_channels += 1;
                    self.send(channel, ConfirmSelectOk {}).await;
                }
                // It is asked whether an ordered group takes a queue's messages: none does.
                Method::ExchangeDeclare(declare) if declare.passive => {
                    let close = ChannelClose {
                        reply_code: reply::NOT_FOUND,
                        reply_text: ShortStr::from_static("there is no such exchange"),
                        ..ChannelClose::default()
                    };
                    self.send(channel, close).await;
                }
                Method::ConnectionClose(_) => self.send(0, ConnectionCloseOk {}).await,
                _ => {}
            }
        }
    }
}
