//! Publishes as fast as a broker confirms, and optionally consumes, with a client that costs next
//! to nothing.
//!
//! `cargo run --release --example flood -- ADDR [MESSAGES] [BODY_BYTES] [WINDOW] [consume]`
//!
//! The queue `flood` is durable and the messages persistent. It prints messages per second.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Instant;

use bytes::BytesMut;
use tidings_wire::*;

type Error = Box<dyn std::error::Error + Send + Sync>;

const FRAME_MAX: u32 = 131_072;

struct Client {
    stream: TcpStream,
    input: BytesMut,
    scratch: Vec<u8>,
}

impl Client {
    fn connect(addr: &str) -> Result<Client, Error> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        let mut client = Client {
            stream,
            input: BytesMut::new(),
            scratch: vec![0; 256 * 1024],
        };
        client.stream.write_all(&PROTOCOL_HEADER)?;
        client.method()?;
        let start_ok = ConnectionStartOk {
            mechanism: ShortStr::from_static("PLAIN"),
            response: b"\0guest\0guest"[..].into(),
            locale: ShortStr::from_static("en_US"),
            ..Default::default()
        };
        client.call(0, &start_ok)?;
        let tune_ok = ConnectionTuneOk {
            channel_max: 2047,
            frame_max: FRAME_MAX,
            heartbeat: 0,
        };
        client.send(0, &tune_ok)?;
        client.call(
            0,
            &ConnectionOpen {
                virtual_host: ShortStr::from_static("/"),
            },
        )?;
        client.call(1, &ChannelOpen {})?;
        Ok(client)
    }

    fn send(&mut self, channel: u16, method: &impl EncodeMethod) -> Result<(), Error> {
        let mut out = BytesMut::new();
        encode_method(&mut out, channel, method);
        Ok(self.stream.write_all(&out)?)
    }

    fn call(&mut self, channel: u16, method: &impl EncodeMethod) -> Result<Method, Error> {
        self.send(channel, method)?;
        self.method()
    }

    fn frame(&mut self) -> Result<Payload, Error> {
        loop {
            if let Some(frame) = decode_frame(&mut self.input, FRAME_MAX)? {
                return Ok(frame.payload);
            }
            match self.stream.read(&mut self.scratch)? {
                0 => return Err("the broker hung up".into()),
                read => self.input.extend_from_slice(&self.scratch[..read]),
            }
        }
    }

    fn method(&mut self) -> Result<Method, Error> {
        loop {
            match self.frame()? {
                Payload::Method(Method::ConnectionClose(close)) => {
                    return Err(close.reply_text.to_string().into());
                }
                Payload::Method(method) => return Ok(method),
                _ => {}
            }
        }
    }
}

fn publish(addr: &str, messages: u64, body: &[u8], window: u64) -> Result<(), Error> {
    let mut client = Client::connect(addr)?;
    client.call(1, &ConfirmSelect { no_wait: false })?;
    let properties = BasicProperties {
        delivery_mode: Some(2),
        ..Default::default()
    }
    .encode();
    let (mut published, mut confirmed) = (0, 0);
    let mut out = BytesMut::new();
    while confirmed < messages {
        while published < messages && published - confirmed < window {
            let properties = properties.as_bytes();
            encode_publish(&mut out, 1, "", "flood", false, properties, body, FRAME_MAX)?;
            published += 1;
        }
        client.stream.write_all(&out)?;
        out.clear();
        // Half a window at a time, so that writes are few.
        while confirmed < messages && published - confirmed > window / 2 {
            let Method::BasicAck(ack) = client.method()? else {
                return Err("not an ack".into());
            };
            confirmed = ack.delivery_tag;
        }
        if published == messages && confirmed < messages {
            let Method::BasicAck(ack) = client.method()? else {
                return Err("not an ack".into());
            };
            confirmed = ack.delivery_tag;
        }
    }
    Ok(())
}

fn consume(addr: &str, messages: u64) -> Result<(), Error> {
    const BATCH: u64 = 100;
    let mut client = Client::connect(addr)?;
    client.call(
        1,
        &BasicQos {
            prefetch_count: 1000,
            ..Default::default()
        },
    )?;
    let queue = ShortStr::from_static("flood");
    client.call(
        1,
        &BasicConsume {
            queue,
            ..Default::default()
        },
    )?;
    let mut received = 0;
    while received < messages {
        if let Payload::Method(Method::BasicDeliver(deliver)) = client.frame()? {
            received += 1;
            if received % BATCH == 0 || received == messages {
                let ack = BasicAck {
                    delivery_tag: deliver.delivery_tag,
                    multiple: true,
                };
                client.send(1, &ack)?;
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| -> Result<u64, Error> {
        Ok(arguments
            .get(index)
            .map_or(Ok(default), |text| text.parse())?)
    };
    let addr = arguments
        .first()
        .map_or("127.0.0.1:5672", String::as_str)
        .to_owned();
    let (messages, bytes, window) = (number(1, 1_000_000)?, number(2, 256)?, number(3, 1000)?);
    let mut client = Client::connect(&addr)?;
    let queue = ShortStr::from_static("flood");
    client.call(
        1,
        &QueueDeclare {
            queue: queue.clone(),
            durable: true,
            ..Default::default()
        },
    )?;
    client.call(
        1,
        &QueuePurge {
            queue,
            no_wait: false,
        },
    )?;

    let consumes = arguments.get(4).is_some_and(|word| word == "consume");
    let (done, finished) = mpsc::sync_channel(2);
    let start = Instant::now();
    if consumes {
        let (addr, done) = (addr.clone(), done.clone());
        std::thread::spawn(move || done.send(("consumed", consume(&addr, messages))));
    }
    std::thread::spawn(move || {
        let body = vec![b'x'; bytes as usize];
        done.send(("confirmed", publish(&addr, messages, &body, window)))
    });
    for (what, result) in finished {
        result?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{what} {messages} messages of {bytes} bytes: {:.0}/s",
            messages as f64 / seconds
        );
    }
    Ok(())
}
