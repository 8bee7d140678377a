//! What the toolkit costs a handler without a store, beside the raw client.
//!
//! All take the same messages out of the same queue of the broker in the box, in turns and with the
//! same prefetch: the raw client with blocking sockets and `tidings-wire`, which reads no more than it
//! must; the clients that services use without a toolkit ([`clients`]); the toolkit with `serve`
//! over `tidings-amqp` and a handler that counts. The broker is a process of its own, so that this
//! one's CPU time is the consumer's. Another kind of turn has no broker at all: an engine that costs
//! nothing hands out the same messages, and what is left is the toolkit itself.
//!
//! The clock runs from the first message to the last. Each message must be seen once.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use jiff::Timestamp;
use tidings::{
    Destination, Envelope, MessageId, Outgoing, Router, State, Transport, Unrouted, prelude::*,
    serve,
};
use tidings_amqp::Amqp;
use tokio::sync::{Notify, oneshot};

use crate::{
    amqp, clients,
    feed::Feed,
    machine::Machine,
    peers::{self, Tidings},
    report::Report,
};

pub(crate) const QUEUE: &str = "bench.thing-noted.v1";

/// Bytes of a body.
const BODY_BYTES: usize = 256;

/// Messages that are published at once.
const STEP: u64 = 1000;

/// Nothing may stand still for so long.
const STILL_MAX: Duration = Duration::from_secs(120);

/// What the toolkit costs a handler without a store.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Messages of a turn.
    #[arg(long, default_value_t = 300_000)]
    messages: u64,
    /// Rounds; in each, everybody has a turn.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// The program of the broker in the box; by default the one beside this program.
    #[arg(long)]
    tidings: Option<PathBuf>,
    /// Only the toolkit with an engine that costs nothing, for a profile.
    #[arg(long)]
    alone: bool,
    /// Only this one of them, for a profile.
    #[arg(long, value_parser = PEERS)]
    only: Option<String>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Its number comes first, so that the raw client finds it as well.
#[derive(Serialize, Deserialize, Event)]
#[event(name = "thing-noted.v1", key = "number")]
struct ThingNoted {
    number: String,
    text: String,
}

/// How the toolkit is set up.
struct Setting {
    name: &'static str,
    /// `None`: as it is by default.
    concurrency: Option<u16>,
    /// What the toolkit asks for then, and the raw client with it.
    prefetch: u16,
}

const SETTINGS: [Setting; 2] = [
    Setting {
        name: "default options (prefetch 256)",
        concurrency: None,
        prefetch: 256,
    },
    Setting {
        name: "concurrency 256 (prefetch 1024)",
        concurrency: Some(256),
        prefetch: 1024,
    },
];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let settings = BTreeMap::from([
        ("messages of a turn", options.messages.to_string()),
        ("body", format!("{BODY_BYTES} bytes, persistent")),
        ("rounds", options.rounds.to_string()),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let broker = match options.alone {
        true => None,
        false => {
            let program = peers::sibling(options.tidings.as_deref(), "tidings-broker")?;
            Some(Tidings::start(&program)?)
        }
    };
    for round in 1..=options.rounds {
        if let Some(broker) = &broker {
            for setting in &SETTINGS {
                let url = &broker.peer.url;
                beside_others(url, options, round, setting, &mut report).await?;
            }
        }
        for setting in &SETTINGS {
            let took = alone(options, setting).await?;
            let job = format!("no broker, ns per message, {}", setting.name);
            note(&mut report, round, &job, "toolkit", took.wall);
            let job = format!("no broker, ns of CPU per message, {}", setting.name);
            note(&mut report, round, &job, "toolkit", took.cpu);
        }
    }
    report.finish(options.json.as_deref())
}

fn note(report: &mut Report, round: usize, job: &str, peer: &str, figure: f64) {
    eprintln!("round {round}: {job}: {peer}: {figure:.0}");
    report.add(job, peer, "D2", figure);
}

/// Who takes the messages out of the queue.
const PEERS: [&str; 4] = ["toolkit", "raw client", "lapin", "amqprs"];

/// A turn of each, who begins changing from round to round.
async fn beside_others(
    url: &str,
    options: &Options,
    round: usize,
    setting: &Setting,
    report: &mut Report,
) -> anyhow::Result<()> {
    for turn in 0..PEERS.len() {
        let peer = PEERS[(round + turn) % PEERS.len()];
        if options.only.as_ref().is_some_and(|only| only != peer) {
            continue;
        }
        fill(url, options.messages)?;
        let count = Count::new(options.messages);
        let took = match peer {
            "toolkit" => over_amqp(url, setting, &count).await?,
            "lapin" => clients::lapin(url, setting.prefetch, count).await?,
            "amqprs" => clients::amqprs(url, setting.prefetch, count).await?,
            _ => bare(url, setting, count).await?,
        };
        let url = url.to_owned();
        let left = tokio::task::spawn_blocking(move || amqp::depth(&url, QUEUE)).await??;
        ensure!(left == 0, "{peer} left {left} messages");
        let job = format!("messages /s, {}", setting.name);
        note(report, round, &job, peer, 1e9 / took.wall);
        let job = format!("ns of CPU per message, {}", setting.name);
        note(report, round, &job, peer, took.cpu);
    }
    Ok(())
}

/// What a message took, in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    wall: f64,
    /// User and system time of this process.
    cpu: f64,
}

/// Counts messages, each of which may come once.
pub(crate) struct Count {
    expected: u64,
    seen: AtomicU64,
    each: Vec<AtomicBool>,
    is_twice: AtomicBool,
    began: OnceLock<(Instant, Duration)>,
    ended: OnceLock<(Instant, Duration)>,
    is_over: Notify,
}

impl Count {
    fn new(expected: u64) -> Arc<Self> {
        Arc::new(Self {
            expected,
            seen: AtomicU64::new(0),
            each: (0..expected).map(|_| AtomicBool::new(false)).collect(),
            is_twice: AtomicBool::new(false),
            began: OnceLock::new(),
            ended: OnceLock::new(),
            is_over: Notify::new(),
        })
    }

    /// `number` as text: decimal digits.
    fn see(&self, number: &[u8]) {
        let digits = number.iter().map(|digit| u64::from(digit - b'0'));
        let number = digits.fold(0, |number, digit| number * 10 + digit);
        let first = self
            .each
            .get(number as usize)
            .is_some_and(|seen| !seen.swap(true, Ordering::Relaxed));
        if !first {
            self.is_twice.store(true, Ordering::Relaxed);
        }
        let seen = self.seen.fetch_add(1, Ordering::AcqRel);
        if seen == 0 {
            let _ = self.began.set((Instant::now(), cpu()));
        }
        if seen + 1 == self.expected {
            let _ = self.ended.set((Instant::now(), cpu()));
            self.is_over.notify_one();
        }
    }

    /// A message's body, read as a handler gets it.
    pub(crate) fn see_body(&self, body: &[u8]) -> anyhow::Result<()> {
        let thing: ThingNoted = serde_json::from_slice(body)?;
        self.see(thing.number.as_bytes());
        Ok(())
    }

    /// All have been seen.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.get().is_some()
    }

    async fn over(&self) -> anyhow::Result<Took> {
        let in_time = tokio::time::timeout(STILL_MAX, self.is_over.notified()).await;
        let seen = self.seen.load(Ordering::Acquire);
        in_time.with_context(|| format!("{seen} of {} messages came", self.expected))?;
        self.took()
    }

    pub(crate) fn took(&self) -> anyhow::Result<Took> {
        ensure!(
            !self.is_twice.load(Ordering::Relaxed),
            "a message came twice"
        );
        let (began, cpu_before) = self.began.get().context("nothing came")?;
        let (ended, cpu_after) = self.ended.get().context("messages are missing")?;
        let each = |time: Duration| time.as_nanos() as f64 / self.expected as f64;
        Ok(Took {
            wall: each(*ended - *began),
            cpu: each(*cpu_after - *cpu_before),
        })
    }
}

/// User and system time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

async fn count(thing: ThingNoted, State(count): State<Arc<Count>>) -> tidings::Result<()> {
    count.see(thing.number.as_bytes());
    Ok(())
}

/// `{"number":"0000000042","text":"xxx..."}`
fn body(number: u64) -> anyhow::Result<Vec<u8>> {
    let mut thing = ThingNoted {
        number: format!("{number:010}"),
        text: String::new(),
    };
    let bare = serde_json::to_vec(&thing)?.len();
    thing.text = "x".repeat(BODY_BYTES - bare);
    Ok(serde_json::to_vec(&thing)?)
}

/// Where the raw client finds the number.
fn number_in(body: &[u8]) -> &[u8] {
    const BEFORE: usize = br#"{"number":""#.len();
    &body[BEFORE..BEFORE + 10]
}

/// As a service's relay would have sent it.
fn envelope(number: u64) -> anyhow::Result<Envelope> {
    let key: Box<str> = format!("{number:010}").into();
    Ok(Envelope {
        id: Some(MessageId::new(format!(
            "01930000-0000-7000-8000-{number:012}"
        ))),
        source: "bench".into(),
        time: Some(Timestamp::now()),
        correlation_id: Some("01930000-0000-7000-8000-000000000000".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        key: Some(key),
        ..Envelope::new("thing-noted.v1", body(number)?)
    })
}

fn router(setting: &Setting, count: &Arc<Count>) -> Router {
    let router = Router::new("bench")
        .on(self::count)
        .with_state(Arc::clone(count));
    match setting.concurrency {
        Some(concurrency) => router.concurrency(concurrency),
        None => router,
    }
}

/// Publishes a turn's messages into the queue, which is declared if it is not there; from threads of
/// its own, which a profile can tell from the consumer's.
fn fill(url: &str, messages: u64) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime
        .worker_threads(2)
        .thread_name("fill")
        .enable_all()
        .build()?;
    let url = url.to_owned();
    let filling = runtime.spawn(async move { publish(&url, messages).await });
    let waiting = std::thread::spawn(move || runtime.block_on(filling));
    waiting
        .join()
        .map_err(|_| anyhow!("publishing panicked"))??
}

async fn publish(url: &str, messages: u64) -> anyhow::Result<()> {
    let amqp = Amqp::connect(url).await?;
    let service = serve(Feed::of(Vec::new()), router(&SETTINGS[0], &Count::new(0)));
    amqp.declare(&service.topology()).await?;
    for first in (0..messages).step_by(STEP as usize) {
        let step: anyhow::Result<Vec<Outgoing>> = (first..messages.min(first + STEP))
            .map(|number| {
                Ok(Outgoing {
                    destination: Destination::Queue(QUEUE.into()),
                    unrouted: Unrouted::Hold,
                    envelope: envelope(number)?,
                })
            })
            .collect();
        for outcome in amqp.publish(step?).await {
            outcome?;
        }
    }
    amqp.close().await;
    Ok(())
}

async fn bare(url: &str, setting: &Setting, count: Arc<Count>) -> anyhow::Result<Took> {
    let (url, messages, prefetch) = (url.to_owned(), count.expected, setting.prefetch);
    let raw = move || {
        amqp::drain(&url, QUEUE, prefetch, messages, |body| {
            count.see(number_in(body));
        })?;
        count.took()
    };
    tokio::task::spawn_blocking(raw).await?
}

async fn over_amqp(url: &str, setting: &Setting, count: &Arc<Count>) -> anyhow::Result<Took> {
    let engine = Amqp::connect(url).await?;
    serving(engine, setting, count).await
}

async fn serving(
    engine: impl Transport,
    setting: &Setting,
    count: &Arc<Count>,
) -> anyhow::Result<Took> {
    let (stop, stopped) = oneshot::channel();
    let service =
        serve(engine, router(setting, count)).with_graceful_shutdown(async { drop(stopped.await) });
    let mut serving = tokio::spawn(service.into_future());
    let took = tokio::select! {
        took = count.over() => took?,
        ended = &mut serving => bail!("the service ended: {ended:?}"),
    };
    let _ = stop.send(());
    serving.await??;
    Ok(took)
}

/// With an engine that costs nothing.
async fn alone(options: &Options, setting: &Setting) -> anyhow::Result<Took> {
    let count = Count::new(options.messages);
    let envelopes: anyhow::Result<Vec<_>> = (0..options.messages).map(envelope).collect();
    serving(Feed::of(envelopes?), setting, &count).await
}
