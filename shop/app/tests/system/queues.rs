//! How many messages wait in a queue: one question to the broker, in its own protocol.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use tidings_wire::{
    ChannelOpen, ConnectionOpen, ConnectionStartOk, ConnectionTuneOk, EncodeMethod, Frame, Method,
    PROTOCOL_HEADER, Payload, QueueDeclare, ShortStr, decode_frame, encode_method,
};

const FRAME_BYTES_MAX: u32 = 131_072;

/// The messages that are ready in `queue`, or nothing when there is no such queue.
pub(crate) fn depth(url: &str, queue: &str) -> Result<Option<u32>> {
    let mut client = Client::connect(url)?;
    let declare = QueueDeclare {
        queue: ShortStr::try_from(queue)?,
        passive: true,
        ..Default::default()
    };
    match client.ask(1, &declare)? {
        Method::QueueDeclareOk(ok) => Ok(Some(ok.message_count)),
        Method::ChannelClose(close) if close.reply_code == 404 => Ok(None),
        other => bail!("{other:?} instead of queue.declare-ok"),
    }
}

struct Client {
    stream: TcpStream,
    received: BytesMut,
}

impl Client {
    fn connect(url: &str) -> Result<Client> {
        let address = url
            .strip_prefix("amqp://guest:guest@")
            .context("not a test's broker")?;
        let stream = TcpStream::connect(address.trim_end_matches('/'))?;
        let mut client = Client {
            stream,
            received: BytesMut::new(),
        };
        client.stream.write_all(&PROTOCOL_HEADER)?;
        client.next()?;
        let start_ok = ConnectionStartOk {
            mechanism: ShortStr::from_static("PLAIN"),
            response: Bytes::from_static(b"\0guest\0guest"),
            locale: ShortStr::from_static("en_US"),
            ..Default::default()
        };
        let Method::ConnectionTune(tune) = client.ask(0, &start_ok)? else {
            bail!("the broker lets `guest` not in");
        };
        let (channel_max, frame_max) = (tune.channel_max, tune.frame_max.min(FRAME_BYTES_MAX));
        client.tell(
            0,
            &ConnectionTuneOk {
                channel_max,
                frame_max,
                heartbeat: 0,
            },
        )?;
        client.ask(
            0,
            &ConnectionOpen {
                virtual_host: ShortStr::from_static("/"),
            },
        )?;
        client.ask(1, &ChannelOpen {})?;
        Ok(client)
    }

    fn ask(&mut self, channel: u16, method: &impl EncodeMethod) -> Result<Method> {
        self.tell(channel, method)?;
        self.next()
    }

    fn tell(&mut self, channel: u16, method: &impl EncodeMethod) -> Result<()> {
        let mut out = BytesMut::new();
        encode_method(&mut out, channel, method);
        Ok(self.stream.write_all(&out)?)
    }

    fn next(&mut self) -> Result<Method> {
        loop {
            match decode_frame(&mut self.received, FRAME_BYTES_MAX)? {
                Some(Frame {
                    payload: Payload::Method(method),
                    ..
                }) => return Ok(method),
                Some(_) => {}
                None => {
                    let mut chunk = [0; 4096];
                    let count = self.stream.read(&mut chunk)?;
                    ensure!(count > 0, "the broker closed the connection");
                    self.received.extend_from_slice(&chunk[..count]);
                }
            }
        }
    }
}
