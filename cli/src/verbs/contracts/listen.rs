//! `tidings contracts listen`: what really flows, compared with what documents say; a first document for who has none.
//!
//! Topics are watched as `tidings events tail` does, through a queue of its own. What waits in a queue is looked at as dead
//! letters are: held for as long as it takes, and given back to its place.

use std::{path::PathBuf, pin::pin, time::Duration};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use tidings::{Envelope, Transport as _};
use tidings_amqp::{Amqp, QueueDepth, Tailed};
use tidings_contracts::{
    check::Finding,
    observed::{Heard, Observed, Seen},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::{
    code::Code,
    frame::{Ended, Frame, Usage, sleep_until, time},
    out::{Cell, Page, Report, counted, should_be_zero},
    verbs::{
        contracts::{
            check::{failed, tell},
            files::{load, write},
        },
        events::topics,
    },
};

/// How long is listened when nothing is said.
const LENGTH: Duration = Duration::from_secs(30);
/// How many messages of a queue are looked at when nothing is said: they are held together.
const HELD_MAX: u64 = 10_000;
/// How many of them are asked for at once.
const HELD_STEP: usize = 256;

/// Listens to messages of programs in any language, and says what is wrong with them.
///
/// It watches topics (fanout exchanges on AMQP) through a queue of its own that is deleted when it ends, and takes nothing
/// from anybody; or looks at what waits in a queue from which nobody receives, and gives it back. With documents each body is compared with
/// the schemas of who sends and of who reads it. Without, it finds what can be found: names that are commands, messages without an id,
/// large bodies; and --write makes a first AsyncAPI document of what it heard. No value of a body is shown or written.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topics, `order_events` or `order_*`; all from which services receive, as their databases know (`--database`), when
    /// none is given
    #[arg(value_name = "TOPIC", conflicts_with = "queue")]
    topic: Vec<String>,

    /// A queue instead: what waits in it is looked at, and given back to its place
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,

    /// AsyncAPI 3 documents of those who send and receive there: files, folders, or URLs (repeatable)
    #[arg(long, value_name = "PATH")]
    document: Vec<PathBuf>,

    /// End after so long; 30 seconds if neither this nor --count is given
    #[arg(long = "for", value_name = "TIME", value_parser = time, conflicts_with = "queue")]
    length: Option<Duration>,

    /// End after so many messages
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Write an AsyncAPI 3 document of what was heard, with schemas of what the bodies have in common
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// The service that the written document is of
    #[arg(long, value_name = "NAME", default_value = "heard", requires = "write")]
    title: String,

    /// Warnings are errors
    #[arg(long)]
    strict: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts listen order_events --for 1m
  tidings contracts listen order_events --document asyncapi/ --count 100
  tidings contracts listen order_events payment_events --for 10m --write heard.asyncapi.json --title legacy
  tidings contracts listen --queue audit --document asyncapi/ --json | jq '.findings[].what'

A message without a name is taken for the one that the documents send to its topic. A queue must be one from which nobody
receives, so that nobody waits for what is looked at; a topic from which no service receives, as with `tidings events tail`.

As JSON: {messages: [{name, address, count, bytesAverage, bytesMax, withoutId, withoutKey, notJson, sources, checkedBy,
unchecked?}], missed, findings: [{severity, rule, message, service, consumer?, field?, what, todo}], written?}.
Exit code 1 if there is an error (TDG-9071), with --strict also for warnings; and if nothing came, or less than --count.";

#[derive(Debug, Serialize)]
struct Listened<'a> {
    messages: Vec<&'a Seen>,
    /// How many came and were not looked at, since they came faster.
    missed: u64,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<PathBuf>,
}

impl Report for Listened<'_> {
    fn tell(&self, page: &mut Page) {
        if !self.messages.is_empty() {
            let headings = [
                "MESSAGE",
                "AT",
                "COUNT",
                "AVERAGE",
                "LARGEST",
                "NO ID",
                "NO KEY",
                "CHECKED BY",
            ];
            let rows = self.messages.iter().map(|it| -> Vec<Cell> {
                let name = if it.name.is_empty() {
                    "(no name)"
                } else {
                    &it.name
                };
                let checked = match (it.checked_by.as_slice(), &it.unchecked) {
                    ([], None) => "nothing".to_owned(),
                    ([], Some(why)) => format!("nothing: {why}"),
                    (all, None) => all.join(", "),
                    (all, Some(why)) => format!("{}; {why}", all.join(", ")),
                };
                vec![
                    name.into(),
                    (&it.address).into(),
                    it.count.to_string().into(),
                    it.bytes_average.to_string().into(),
                    it.bytes_max.to_string().into(),
                    should_be_zero(it.without_id),
                    it.without_key.to_string().into(),
                    checked.into(),
                ]
            });
            page.table(&headings, &rows.collect::<Vec<_>>());
            page.line("");
        }
        tell(page, self.findings);
        match self.findings.is_empty() {
            true => page.line("nothing is wrong with what was heard"),
            false => page.line(format!(
                "\n{}",
                counted(self.findings.len() as u64, "finding", "findings")
            )),
        }
        if let Some(file) = &self.written {
            page.line(format!(
                "wrote {}: read it before you rely on it",
                file.display()
            ));
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let documents = load(&self.document).await?;
        let topics = match &self.queue {
            Some(_) => Vec::new(),
            None => topics::chosen(frame, &self.topic).await?,
        };
        let amqp = frame.amqp("listening").await?;
        let mut listening = Listening {
            frame,
            observed: Observed::new(&documents),
            bar: frame.progress(self.count.unwrap_or(0), "listening"),
            came: 0,
            missed: 0,
            count: self.count,
        };
        let listened = match &self.queue {
            Some(queue) => listening.look_at_queue(&amqp, queue).await,
            None => listening.hear_topics(&amqp, &topics, self.length).await,
        };
        listening.bar.finish_and_clear();
        amqp.close().await;
        listened?;
        let Listening {
            observed,
            came,
            missed,
            ..
        } = listening;
        if let Some(file) = self.write.as_ref().filter(|_| came > 0) {
            write(file, &observed.document(&self.title).to_json())?;
        }
        let mut findings = observed.findings();
        findings.sort_by_key(|it| it.severity);
        frame.out.show(&Listened {
            messages: observed.seen().collect(),
            missed,
            findings: &findings,
            written: self.write.filter(|_| came > 0),
        })?;
        let ended = failed(frame, &findings, self.strict);
        match self.count {
            _ if came == 0 => {
                frame.out.note("no message came, so nothing was checked");
                Ok(Ended::Problem)
            }
            Some(count) if came < count => {
                let messages = counted(count, "message", "messages");
                frame.out.note(&format!("{came} of {messages} came"));
                Ok(Ended::Problem)
            }
            _ => Ok(ended),
        }
    }
}

struct Listening<'a> {
    frame: &'a Frame,
    observed: Observed,
    bar: ProgressBar,
    came: u64,
    missed: u64,
    count: Option<u64>,
}

impl Listening<'_> {
    async fn hear_topics(
        &mut self,
        amqp: &Amqp,
        topics: &[String],
        length: Option<Duration>,
    ) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        let mut tailing = topics::watch(amqp, topics).await?;
        self.frame
            .out
            .note(&format!("listening to {}", topics.join(", ")));
        let length = length.or(self.count.is_none().then_some(LENGTH));
        let until = length.map(|length| Instant::now() + length);
        let mut ended = pin!(async {
            tokio::select! {
                () = sleep_until(until) => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        while self.count.is_none_or(|count| self.came < count) {
            // First, since messages may come without an end.
            tokio::select! {
                biased;
                () = &mut ended => break,
                seen = tailing.next() => self.see(seen.map_err(|error| Code::Tail.of(error))?),
            }
        }
        Ok(())
    }

    fn see(&mut self, seen: Tailed) {
        match seen {
                Tailed::Message { topic, envelope } => self.add(&topic, &envelope, true),
                Tailed::Dropped { count } => {
                    self.missed += count;
                    self.frame.out.note(&counted(
                        count,
                        "message is missed: it came faster than it was looked at",
                        "messages are missed: they came faster than they were looked at",
                    ));
                }
                Tailed::QueueFull => self.frame.out.note(&format!(
                    "messages are missed, and nobody counts them: more than {} wait on the broker, which drops the \
                     oldest",
                    Amqp::TAIL_QUEUE_COUNT_MAX
                )),
                Tailed::Reconnected => self.frame.out.note(
                    "listening again: the connection was lost, and messages meanwhile were missed",
                ),
                // Of a later version.
                _ => {}
            }
    }

    async fn look_at_queue(&mut self, amqp: &Amqp, queue: &str) -> anyhow::Result<()> {
        let depths = self.frame.depths(amqp, &[queue]).await?;
        let depth: Option<QueueDepth> = depths.into_iter().next().flatten();
        if let Some(receivers) = depth.and_then(|it| it.receivers).filter(|it| *it > 0) {
            bail!(Usage::new(format!(
                "{} from `{queue}`, and would wait for what is looked at: listen to the topics that lead there \
                 instead, or bind a queue of your own to them",
                counted(receivers.into(), "consumer receives", "consumers receive")
            )));
        }
        let access = amqp.dead_letter_access();
        let access = access.context("this broker lets nobody look at a queue")?;
        let failed = |error| Code::Tail.of(error);
        let mut held = access.hold(queue).await.map_err(failed)?;
        let left = self.count.unwrap_or(HELD_MAX);
        self.bar
            .set_length(depth.map_or(left, |it| left.min(it.ready.into())));
        let looked = async {
            while self.came < left {
                let step = usize::try_from(left - self.came)
                    .unwrap_or(HELD_STEP)
                    .min(HELD_STEP);
                let letters = held.next(step).await?;
                if letters.is_empty() {
                    return Ok(0);
                }
                for letter in &letters {
                    // Who sent it to the queue is not seen, so it may be a command.
                    self.add(queue, &letter.envelope, false);
                }
            }
            held.behind().await
        };
        let behind = looked.await;
        // Whatever came of it, it goes back.
        let released = held.release().await;
        let behind = behind.map_err(failed)?;
        released.map_err(failed)?;
        if behind > 0 && self.count.is_none() {
            self.frame.out.note(&format!(
                "{behind} more wait in `{queue}` and were not looked at: `--count`"
            ));
        }
        Ok(())
    }

    fn add(&mut self, address: &str, envelope: &Envelope, is_event: bool) {
        let mut heard = Heard::event(address, &envelope.name, &envelope.body);
        heard.is_event = is_event;
        heard.source = &envelope.source;
        heard.has_id = envelope.id.is_some();
        heard.has_key = envelope.key.is_some();
        self.observed.add(&heard);
        self.came += 1;
        if self.count.is_none() {
            self.bar.set_length(self.came);
        }
        self.bar.inc(1);
    }
}
