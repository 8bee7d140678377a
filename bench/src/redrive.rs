//! How fast dead letters are sent to their consumer again, and what a letter costs when there are many.
//!
//! | peer | what it does |
//! | --- | --- |
//! | redrive | the job: fetches letters, reads their headers, publishes each with the number of its redrive, removes what was confirmed, looks whether it comes back |
//! | raw client | takes the same messages out of the same queue, publishes them as they are, acknowledges what was confirmed |
//!
//! The job keeps no record: what it did stands in the messages' headers. So there is no database in this.
//! Nobody receives meanwhile. After each turn the dead letters' queue must be empty, and each letter must
//! be in the consumer's queue once.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use jiff::Timestamp;
use tidings::{
    Attempt, Envelope, MessageId, Outgoing, Queue, Topology, Transport, dead_letter,
    dead_letter_queue,
    dead_letters::{DeadLetters, Selection},
};
use tidings_amqp::Amqp;

use crate::{
    amqp,
    machine::Machine,
    peers::{self, Peer, Tidings},
    report::Report,
};

const QUEUE: &str = "bench.thing-noted.v1";
const BODY_BYTES: usize = 256;
/// How many letters are made at a time.
const STEP: u64 = 1000;
/// How many a page of a list has.
const PAGE: usize = 100;
/// How many the raw client has under way.
const WINDOW: u16 = 1000;

/// Redriving dead letters.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many letters there are; several times for several sizes.
    #[arg(long, default_values_t = [10_000, 100_000])]
    letters: Vec<u64>,
    /// Rounds; in each, the job and the raw client have their turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many letters the job sends at a time; its own default if not given.
    #[arg(long)]
    batch: Option<usize>,
    /// Also on RabbitMQ: on the one that is installed, which is started, or on `--rabbitmq-url`.
    #[arg(long)]
    rabbitmq: bool,
    /// The RabbitMQ to use, for example `amqp://guest:guest@127.0.0.1:5672/`.
    #[arg(long)]
    rabbitmq_url: Option<String>,
    /// The program of the broker in the box; by default the one beside this program.
    #[arg(long)]
    tidings: Option<PathBuf>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let settings = BTreeMap::from([
        (
            "body",
            format!("{BODY_BYTES} bytes, persistent, with the headers of a dead letter"),
        ),
        ("rounds", options.rounds.to_string()),
        (
            "batch",
            options
                .batch
                .map_or("as by default".into(), |it| it.to_string()),
        ),
    ]);
    let mut report = Report::new(Machine::look()?, settings);
    let program = peers::sibling(options.tidings.as_deref(), "tidings-broker")?;
    let tidings = Tidings::start(&program)?;
    let mut server = None;
    let url = match (&options.rabbitmq_url, options.rabbitmq) {
        (Some(url), _) => Some(url.clone()),
        (None, true) => {
            let started = tidings_testing::servers::RabbitMq::start()?;
            Some(server.insert(started).url())
        }
        (None, false) => None,
    };
    let rabbitmq = url.map(|url| peers::rabbitmq_as_it_is(&url));
    for round in 1..=options.rounds {
        for broker in [Some(&tidings.peer), rabbitmq.as_ref()]
            .into_iter()
            .flatten()
        {
            for &letters in &options.letters {
                turns(options, round, broker, letters, &mut report).await?;
            }
        }
    }
    report.finish(options.json.as_deref())
}

/// A turn of each, who begins changing from round to round.
async fn turns(
    options: &Options,
    round: usize,
    broker: &Peer,
    letters: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    for turn in 0..2 {
        let is_job = (round + turn) % 2 == 1;
        bury(&broker.url, letters).await?;
        if is_job {
            look(broker, round, letters, report).await?;
        }
        let peer = if is_job { "redrive" } else { "raw client" };
        let took = match is_job {
            true => job(&broker.url, letters, options.batch).await?,
            false => bare(&broker.url, letters).await?,
        };
        check(&broker.url, letters).await?;
        let mut note = |what: &str, figure: f64| {
            let job = format!("{}, {letters} letters: {what}", broker.name);
            eprintln!("round {round}: {job}: {peer}: {figure:.0}");
            report.add(&job, peer, broker.durability, figure);
        };
        note("letters /s", letters as f64 / took.wall.as_secs_f64());
        note(
            "ns of CPU per letter",
            took.cpu.as_nanos() as f64 / letters as f64,
        );
        note("KiB more in memory at most", took.grown_kib as f64);
    }
    Ok(())
}

/// What an operator waits for who looks at them: all in groups, all in pages, and the last one.
async fn look(
    broker: &Peer,
    round: usize,
    letters: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let dead = DeadLetters::new(Amqp::connect(&broker.url).await?, QUEUE);
    for what in ["groups", "list", "show the last"] {
        let watch = Watch::start()?;
        let seen = match what {
            "groups" => dead.groups(&Selection::all()).await?.count,
            "list" => pages(&dead).await?,
            _ => {
                dead.show(&id_of(letters - 1)).await?;
                letters
            }
        };
        let took = watch.stop()?;
        ensure!(seen == letters, "{what}: {seen} letters were seen");
        let job = format!("{}, {letters} letters: {what}: ms", broker.name);
        let milliseconds = took.wall.as_secs_f64() * 1000.0;
        eprintln!(
            "round {round}: {job}: {milliseconds:.0}, {} KiB more",
            took.grown_kib
        );
        report.add(&job, "dead letters", broker.durability, milliseconds);
    }
    Ok(())
}

async fn pages(dead: &DeadLetters) -> anyhow::Result<u64> {
    let mut listing = dead.list(&Selection::all()).await?;
    let mut seen = 0;
    loop {
        let page = listing.next_page(PAGE).await?;
        if page.is_empty() {
            break;
        }
        seen += page.len() as u64;
    }
    listing.end().await?;
    Ok(seen)
}

struct Took {
    wall: Duration,
    /// User and system time of this process.
    cpu: Duration,
    /// How much more memory it had at most than before.
    grown_kib: u64,
}

/// Something that is measured.
struct Watch {
    began: Instant,
    cpu: Duration,
    kib: u64,
}

impl Watch {
    fn start() -> anyhow::Result<Self> {
        // From here on the kernel looks for a new maximum.
        std::fs::write("/proc/self/clear_refs", "5")
            .context("cannot begin anew with the memory")?;
        Ok(Self {
            began: Instant::now(),
            cpu: cpu(),
            kib: memory("VmRSS:")?,
        })
    }

    fn stop(&self) -> anyhow::Result<Took> {
        Ok(Took {
            wall: self.began.elapsed(),
            cpu: cpu().saturating_sub(self.cpu),
            grown_kib: memory("VmHWM:")?.saturating_sub(self.kib),
        })
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(time.tv_sec.unsigned_abs(), nanoseconds)
}

fn memory(line: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let value = lines.find_map(|it| it.strip_prefix(line)?.trim().strip_suffix(" kB"));
    Ok(value.context("no such line about memory")?.parse()?)
}

async fn job(url: &str, letters: u64, batch: Option<usize>) -> anyhow::Result<Took> {
    let dead = DeadLetters::new(Amqp::connect(url).await?, QUEUE);
    let watch = Watch::start()?;
    let redrive = dead.redrive(Selection::all()).unlimited();
    let redrive = match batch {
        Some(batch) => redrive.batch(batch),
        None => redrive,
    };
    // It waits for what comes back, which is no work.
    let report = redrive.settle(Duration::ZERO).run(|_| {}).await?;
    let took = watch.stop()?;
    ensure!(report.sent == letters, "it sent {}", report.sent);
    Ok(took)
}

async fn bare(url: &str, letters: u64) -> anyhow::Result<Took> {
    let url = url.to_owned();
    let raw = move || {
        let watch = Watch::start()?;
        amqp::forward(&url, &dead_letter_queue(QUEUE), QUEUE, letters, WINDOW)?;
        watch.stop()
    };
    tokio::task::spawn_blocking(raw).await?
}

/// Each letter is in the consumer's queue once, and none is left. Empties that.
async fn check(url: &str, letters: u64) -> anyhow::Result<()> {
    let url = url.to_owned();
    let look = move || {
        let left = amqp::depth(&url, &dead_letter_queue(QUEUE))?;
        ensure!(left == 0, "{left} letters are left");
        let mut seen = vec![0_u8; usize::try_from(letters)?];
        amqp::drain(&url, QUEUE, WINDOW, letters, |body| {
            let number = std::str::from_utf8(&body[..10]).unwrap_or_default();
            if let Some(count) = number.parse().ok().and_then(|it: usize| seen.get_mut(it)) {
                *count += 1;
            }
        })?;
        let more = amqp::depth(&url, QUEUE)?;
        ensure!(more == 0, "{more} messages more than letters were sent");
        ensure!(seen.iter().all(|count| *count == 1), "not each came once");
        Ok(())
    };
    tokio::task::spawn_blocking(look).await?
}

/// Puts letters beside the consumer's queue, as a consumer gives them up.
async fn bury(url: &str, letters: u64) -> anyhow::Result<()> {
    let engine = Amqp::connect(url).await?;
    engine
        .declare(&Topology::new().queue(Queue::new(QUEUE)))
        .await?;
    for first in (0..letters).step_by(STEP as usize) {
        let step = (first..letters.min(first + STEP)).map(letter).collect();
        for outcome in engine.publish(step).await {
            outcome.map_err(|error| anyhow!("a letter was not taken: {error}"))?;
        }
    }
    engine.close().await;
    Ok(())
}

fn id_of(number: u64) -> String {
    format!("01930000-0000-7000-8000-{number:012}")
}

fn letter(number: u64) -> Outgoing {
    let mut body = format!("{number:010}").into_bytes();
    body.resize(BODY_BYTES, b'x');
    let envelope = Envelope {
        id: Some(MessageId::new(id_of(number))),
        source: "bench".into(),
        time: Some(Timestamp::now()),
        correlation_id: Some("01930000-0000-7000-8000-000000000000".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        key: Some(format!("{:010}", number % 1000).into()),
        ..Envelope::new("thing-noted.v1", body)
    };
    let attempt = Attempt {
        at: Timestamp::now(),
        reason: format!("the bank answered 503 to the request {number}"),
        by: Some("bench-1".into()),
    };
    dead_letter(&envelope, QUEUE, 1, &[attempt])
}
