//! The raw client that drives every peer: blocking sockets, the codec of `tidings-wire`, nothing
//! else, so that the client costs as little as it can and costs the same for everybody.
//!
//! Every turn is checked: what was confirmed must be in the queue, what was published must come to
//! the consumer.

mod forward;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use tidings_wire::{
    BasicAck, BasicConsume, BasicProperties, BasicQos, ChannelOpen, ConfirmSelect, ConnectionOpen,
    ConnectionStartOk, ConnectionTuneOk, EncodeMethod, ExchangeDeclare, Frame, Method,
    PROTOCOL_HEADER, Payload, Properties, QueueBind, QueueDeclare, QueueDelete, ShortStr, Table,
    decode_frame, encode_ack, encode_method, encode_publish,
};

pub(crate) use forward::forward;

use crate::{
    broker::{Job, Load},
    peers::Peer,
};

const CHANNEL: u16 = 1;
const FRAME_BYTES_MAX: u32 = 131_072;
const PREFETCH: u16 = 1000;
const ACK_EVERY: u64 = 100;
/// How long a peer may take to hand over what it has confirmed.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long a consumer waits for more before it looks whether it is done.
const POLL: Duration = Duration::from_millis(5);

/// One turn of one peer; returns messages per second.
pub(crate) fn run(peer: &Peer, queue: &str, job: Job, load: &Load) -> anyhow::Result<f64> {
    let mut client = Client::connect(&peer.url)?;
    client.declare(queue, peer.queue_type, false)?;
    match job {
        Job::Publish => {
            let started = Instant::now();
            let published = client.publish_for(queue, load)?;
            let rate = published as f64 / started.elapsed().as_secs_f64();
            client.expect_depth(queue, peer, published)?;
            Ok(rate)
        }
        Job::PublishAndConsume => {
            let goal = Arc::new(AtomicU64::new(u64::MAX));
            let consumer = {
                let goal = Arc::clone(&goal);
                let (mut client, queue) = (Client::connect(&peer.url)?, queue.to_owned());
                thread::spawn(move || client.consume(&queue, &goal))
            };
            let started = Instant::now();
            let published = client.publish_for(queue, load)?;
            goal.store(published, Ordering::Release);
            consumer
                .join()
                .map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
            Ok(published as f64 / started.elapsed().as_secs_f64())
        }
    }
}

/// Takes `count` messages out of a queue and shows each body to `see`, acknowledging every hundredth
/// with `multiple`.
pub(crate) fn drain(
    url: &str,
    queue: &str,
    prefetch: u16,
    count: u64,
    mut see: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let mut client = Client::connect(url)?;
    client.subscribe(queue, prefetch)?;
    let (mut seen, mut acked) = (0, 0);
    let mut last_came = Instant::now();
    while seen < count {
        ensure!(
            last_came.elapsed() < DRAIN_MAX,
            "only {seen} of {count} messages came"
        );
        client.read()?;
        while let Some(Frame { payload, .. }) = decode_frame(&mut client.received, FRAME_BYTES_MAX)?
        {
            match payload {
                Payload::Body(body) => {
                    seen += 1;
                    see(&body);
                }
                Payload::Method(Method::BasicDeliver(_)) => last_came = Instant::now(),
                Payload::Method(method) => bail!("{method:?} instead of a delivery"),
                Payload::Header { .. } | Payload::Heartbeat => {}
            }
        }
        if seen - acked >= ACK_EVERY || seen == count {
            encode_ack(&mut client.out, CHANNEL, seen, true);
            client.flush()?;
            acked = seen;
        }
    }
    Ok(())
}

/// Makes durable queues that get what is published to the exchange of this name.
pub(crate) fn fan_out(url: &str, exchange: &str, queues: &[&str]) -> anyhow::Result<()> {
    let mut client = Client::connect(url)?;
    client.ask(&ExchangeDeclare {
        exchange: short(exchange)?,
        kind: ShortStr::from_static("fanout"),
        durable: true,
        ..Default::default()
    })?;
    for queue in queues {
        client.declare(queue, None, false)?;
        client.ask(&QueueBind {
            queue: short(queue)?,
            exchange: short(exchange)?,
            ..Default::default()
        })?;
    }
    Ok(())
}

/// Publishes `count` persistent messages with confirms, each to the exchange and key that `to` says
/// for its number; never more than `window` unconfirmed.
pub(crate) fn publish<'a>(
    url: &str,
    count: u64,
    window: usize,
    body: &[u8],
    to: impl Fn(u64) -> (&'a str, &'a str),
) -> anyhow::Result<()> {
    let mut client = Client::connect(url)?;
    let persistent = persistent();
    let mut number = 0;
    client.publish_while(window, || {
        let next = (number < count).then(|| Sending {
            to: to(number),
            properties: persistent.clone(),
            body,
        });
        number += 1;
        next
    })?;
    Ok(())
}

/// Publishes to an exchange with confirms, never more than `window` unconfirmed: properties and bodies.
pub(crate) fn publish_all<'a>(
    url: &str,
    exchange: &'a str,
    window: usize,
    mut next: impl FnMut() -> Option<(Properties, &'a [u8])>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(url)?;
    client.publish_while(window, || {
        let (properties, body) = next()?;
        Some(Sending {
            to: (exchange, ""),
            properties,
            body,
        })
    })?;
    Ok(())
}

/// A message on its way out.
struct Sending<'a> {
    /// The exchange and the key.
    to: (&'a str, &'a str),
    properties: Properties,
    body: &'a [u8],
}

fn persistent() -> Properties {
    BasicProperties {
        delivery_mode: Some(2),
        ..Default::default()
    }
    .encode()
}

/// How many messages wait in a queue.
pub(crate) fn depth(url: &str, queue: &str) -> anyhow::Result<u32> {
    Client::connect(url)?.declare(queue, None, true)
}

/// Removes a turn's queue.
pub(crate) fn delete_queue(peer: &Peer, queue: &str) -> anyhow::Result<()> {
    let mut client = Client::connect(&peer.url)?;
    client.ask(&QueueDelete {
        queue: short(queue)?,
        ..Default::default()
    })?;
    Ok(())
}

struct Client {
    stream: TcpStream,
    received: BytesMut,
    out: BytesMut,
}

impl Client {
    fn connect(url: &str) -> anyhow::Result<Self> {
        let rest = url
            .strip_prefix("amqp://")
            .context("only amqp:// URLs are driven")?;
        let (credentials, rest) = rest.split_once('@').unwrap_or(("guest:guest", rest));
        let (user, password) = credentials
            .split_once(':')
            .context("no password in the URL")?;
        let (address, _) = rest.split_once('/').unwrap_or((rest, ""));
        let stream =
            TcpStream::connect(address).with_context(|| format!("no broker at {address}"))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            received: BytesMut::new(),
            out: BytesMut::new(),
        };

        client.out.extend_from_slice(&PROTOCOL_HEADER);
        client.flush()?;
        client.expect("connection.start")?;
        let start_ok = ConnectionStartOk {
            mechanism: ShortStr::from_static("PLAIN"),
            response: Bytes::from(format!("\0{user}\0{password}")),
            locale: ShortStr::from_static("en_US"),
            ..Default::default()
        };
        encode_method(&mut client.out, 0, &start_ok);
        client.flush()?;
        client.expect("connection.tune")?;
        let tune_ok = ConnectionTuneOk {
            channel_max: 8,
            frame_max: FRAME_BYTES_MAX,
            heartbeat: 0,
        };
        encode_method(&mut client.out, 0, &tune_ok);
        let open = ConnectionOpen {
            virtual_host: ShortStr::from_static("/"),
        };
        encode_method(&mut client.out, 0, &open);
        client.flush()?;
        client.expect("connection.open-ok")?;
        client.ask(&ChannelOpen {})?;
        Ok(client)
    }

    /// Declares a durable queue and returns how many messages are in it.
    fn declare(
        &mut self,
        queue: &str,
        queue_type: Option<&str>,
        passive: bool,
    ) -> anyhow::Result<u32> {
        let mut arguments = Table::builder();
        if let Some(queue_type) = queue_type {
            arguments.push_str("x-queue-type", queue_type)?;
        }
        let declare = QueueDeclare {
            queue: short(queue)?,
            durable: true,
            passive,
            arguments: arguments.build(),
            ..Default::default()
        };
        match self.ask(&declare)? {
            Method::QueueDeclareOk(ok) => Ok(ok.message_count),
            other => bail!("`{}` instead of queue.declare-ok", other.name()),
        }
    }

    /// Publishes for the time of the load, never with more than its window unconfirmed; returns how
    /// many were confirmed.
    fn publish_for(&mut self, queue: &str, load: &Load) -> anyhow::Result<u64> {
        let until = Instant::now() + load.time();
        let body = vec![b'x'; load.body_bytes];
        let persistent = persistent();
        self.publish_while(load.window, || {
            (Instant::now() < until).then(|| Sending {
                to: ("", queue),
                properties: persistent.clone(),
                body: &body,
            })
        })
    }

    /// Publishes what `next` says, until it says none and everything is confirmed; returns how many that were.
    fn publish_while<'a>(
        &mut self,
        window: usize,
        mut next: impl FnMut() -> Option<Sending<'a>>,
    ) -> anyhow::Result<u64> {
        self.ask(&ConfirmSelect { no_wait: false })?;
        let mut unconfirmed = BTreeSet::new();
        let mut published = 0;
        let mut on = true;
        loop {
            while on && unconfirmed.len() < window {
                let Some(Sending {
                    to: (exchange, key),
                    properties,
                    body,
                }) = next()
                else {
                    on = false;
                    break;
                };
                encode_publish(
                    &mut self.out,
                    CHANNEL,
                    exchange,
                    key,
                    true,
                    properties.as_bytes(),
                    body,
                    FRAME_BYTES_MAX,
                )?;
                published += 1;
                unconfirmed.insert(published);
            }
            if unconfirmed.is_empty() {
                return Ok(published);
            }
            self.flush()?;
            self.read()?;
            while let Some(method) = self.next_method()? {
                match method {
                    Method::BasicAck(BasicAck {
                        delivery_tag,
                        multiple: true,
                    }) => {
                        unconfirmed = unconfirmed.split_off(&(delivery_tag + 1));
                    }
                    Method::BasicAck(BasicAck {
                        delivery_tag,
                        multiple: false,
                    }) => {
                        unconfirmed.remove(&delivery_tag);
                    }
                    other => bail!("`{}` instead of a confirm: {other:?}", other.name()),
                }
            }
        }
    }

    /// Consumes until as many came as `goal` says, acknowledging every [`ACK_EVERY`]th.
    fn consume(&mut self, queue: &str, goal: &AtomicU64) -> anyhow::Result<()> {
        self.subscribe(queue, PREFETCH)?;
        let (mut consumed, mut acked) = (0, 0);
        let mut last_came = Instant::now();
        loop {
            while let Some(method) = self.next_method()? {
                if let Method::BasicDeliver(deliver) = method {
                    ensure!(!deliver.redelivered, "a message came twice");
                    consumed += 1;
                    last_came = Instant::now();
                }
            }
            let goal = goal.load(Ordering::Acquire);
            if consumed - acked >= ACK_EVERY || (consumed > acked && consumed >= goal) {
                encode_ack(&mut self.out, CHANNEL, consumed, true);
                self.flush()?;
                acked = consumed;
            }
            if consumed >= goal {
                ensure!(
                    consumed == goal,
                    "{consumed} messages came, {goal} were published"
                );
                return Ok(());
            }
            ensure!(
                last_came.elapsed() < DRAIN_MAX,
                "only {consumed} of {goal} messages came"
            );
            self.read()?;
        }
    }

    fn subscribe(&mut self, queue: &str, prefetch_count: u16) -> anyhow::Result<()> {
        self.ask(&BasicQos {
            prefetch_count,
            ..Default::default()
        })?;
        let consume = BasicConsume {
            queue: short(queue)?,
            ..Default::default()
        };
        self.ask(&consume)?;
        self.stream.set_read_timeout(Some(POLL))?;
        Ok(())
    }

    /// Waits until the queue holds `expected` messages: what was confirmed must be there.
    fn expect_depth(&mut self, queue: &str, peer: &Peer, expected: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN_MAX;
        loop {
            let depth = u64::from(self.declare(queue, peer.queue_type, true)?);
            if depth == expected {
                return Ok(());
            }
            ensure!(
                depth < expected && Instant::now() < deadline,
                "{} confirmed {expected} messages but holds {depth}",
                peer.name
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a method and waits for the answer.
    fn ask(&mut self, method: &impl EncodeMethod) -> anyhow::Result<Method> {
        encode_method(&mut self.out, CHANNEL, method);
        self.flush()?;
        self.await_method()
    }

    fn await_method(&mut self) -> anyhow::Result<Method> {
        loop {
            if let Some(method) = self.next_method()? {
                return Ok(method);
            }
            self.read()?;
        }
    }

    fn expect(&mut self, name: &str) -> anyhow::Result<()> {
        let method = self.await_method()?;
        ensure!(method.name() == name, "{method:?} instead of `{name}`");
        Ok(())
    }

    /// The next method among the bytes received; contents are passed over.
    fn next_method(&mut self) -> anyhow::Result<Option<Method>> {
        while let Some(Frame { payload, .. }) = decode_frame(&mut self.received, FRAME_BYTES_MAX)? {
            match payload {
                Payload::Method(Method::ChannelClose(close)) => bail!("{close:?}"),
                Payload::Method(Method::ConnectionClose(close)) => bail!("{close:?}"),
                Payload::Method(method) => return Ok(Some(method)),
                Payload::Header { .. } | Payload::Body(_) | Payload::Heartbeat => {}
            }
        }
        Ok(None)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads what has come; nothing within [`POLL`] is no error for a consumer.
    fn read(&mut self) -> anyhow::Result<()> {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(count) => self.received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn short(text: &str) -> anyhow::Result<ShortStr> {
    Ok(ShortStr::try_from(text)?)
}
