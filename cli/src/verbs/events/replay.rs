//! `tidings events replay`: sends events of a service's past to one consumer, or has it begin earlier in a log of Kafka's.

#[cfg(feature = "kafka")]
mod on_kafka;

use std::{collections::BTreeMap, num::NonZeroU16, str::FromStr, time::Duration};

use anyhow::bail;
use jiff::Timestamp;
use serde::Serialize;
use tidings::{
    Group,
    replay::{Progress, Replay, Start},
};

use crate::{
    frame::{Ended, Frame, Usage},
    out::{Page, Report, counted},
    places::Access,
};

/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Sends events that a service has kept (`keep_events`) to one consumer, and to nobody else.
///
/// The consumer's queue must be there: start the consumer once, so that it is declared. What the
/// consumer has handled already has no effect again, as long as its inbox remembers it (7 days, if
/// the service says nothing else). A replay that was stopped goes on where it was when it is started
/// again.
///
/// With `--topic` it is what a topic of Kafka still has that the consumer gets, from where you say: nothing is sent, the
/// consumer's place in the topic moves. Stop the consumer before.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The consumer's queue, `loyalty.order-confirmed.v1`; or its ordered group, `loyalty.ordered`
    #[arg(long, value_name = "QUEUE")]
    to: String,

    /// Where to begin: `beginning`, a time as `2026-02-01T00:00:00Z`, after a position of the log, or with `--topic` at offsets,
    /// by partition (`0:1200,1:980`)
    #[arg(long, value_name = "POINT", default_value = "beginning")]
    from: From,

    /// How many events a second at most
    #[arg(long, value_name = "COUNT", default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// The events to send (repeatable); those whose name the queue's name ends with when not given
    #[arg(long, value_name = "NAME")]
    event: Vec<String>,

    /// How many partitions the ordered group has; needs `--event`
    #[arg(long, value_name = "COUNT", requires = "event",
        value_parser = clap::value_parser!(u16).range(1..=64))]
    partitions: Option<u16>,

    /// Begin anew, if an earlier replay to this queue was not finished
    #[arg(long)]
    restart: bool,

    /// The topic of Kafka whose messages the consumer is to get
    #[arg(long, value_name = "TOPIC", help_heading = "From a topic of Kafka",
        conflicts_with_all = ["rate", "event", "partitions", "restart"])]
    topic: Option<String>,

    /// The consumer has never started: its queue is made
    #[arg(long, requires = "topic", help_heading = "From a topic of Kafka")]
    #[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "read where there is Kafka"))]
    new: bool,

    /// The consumer has received of the topic before, and is to get it again
    #[arg(long, requires = "topic", help_heading = "From a topic of Kafka")]
    #[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "read where there is Kafka"))]
    reset: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidings events replay --service orders --to loyalty.order-confirmed.v1
  tidings events replay --service orders --to loyalty.order-confirmed.v1 --from 2026-02-01T00:00:00Z --rate 2000
  tidings events replay --service orders --to ledger.ordered --partitions 16 --event order-placed.v1
  tidings events replays                              how far replays are
  tidings events replay --broker kafka://kafka:9092 --topic order_events --to loyalty.order-confirmed.v1 --new

`--service` names whose events are sent; a consumer that needs events of several services needs a replay of each.

As JSON:
  {service, to, sent, passedOver, notSent, position, until}
  with --topic: {topic, to, messages, partitions: [{partition, from, until}]}
`notSent` counts events that could not be read or that the broker can never take; then the exit code is 1.";

/// Where to begin.
#[derive(Debug, Clone)]
enum From {
    Start(Start),
    /// Of a topic, by partition.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "read where there is Kafka"))]
    Offsets(BTreeMap<i32, i64>),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "beginning" {
            return Ok(Self::Start(Start::Beginning));
        }
        if let Ok(position) = text.parse::<i64>() {
            return Ok(Self::Start(Start::After(position)));
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::Start(Start::Time(time)));
        }
        let offsets = text.split(',').map(|part| {
            let (partition, offset) = part.split_once(':')?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        });
        offsets.collect::<Option<_>>().map(Self::Offsets).ok_or_else(|| {
            "write `beginning`, a time as `2026-02-01T00:00:00Z`, a position of the log, or offsets of partitions as `0:1200,1:980`"
                .into()
        })
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        if self.topic.is_some() {
            return self.run_on_kafka(frame).await;
        }
        let replay = self.replay()?;
        frame.not_through_an_endpoint("a replay", "--database URL --broker URL")?;
        let database = frame.only(Access::Change).await?;
        let amqp = frame.broker().await?;
        let bar = frame.progress(0, "replaying");
        bar.enable_steady_tick(DRAW_EVERY);
        let mut first = None;
        let run = replay.run(&*database.store, &amqp, |progress| {
            let first = *first.get_or_insert(progress.position);
            let span = |position: i64| (position - first).max(0).unsigned_abs();
            bar.set_length(span(progress.until));
            bar.set_position(span(progress.position));
            if let Some(trouble) = &progress.trouble {
                frame.out.note(&format!("waiting: {trouble}"));
            }
        });
        let ended = run.await;
        bar.finish_and_clear();
        let progress = ended?;
        if progress.sent + progress.passed_over + progress.not_sent == 0 {
            frame.out.note(&format!(
                "`{}` has kept no events from there on; does it keep them (`keep_events`)?",
                database.service
            ));
        }
        let report = Replayed::new(database.service, &progress);
        frame.out.show(&report)?;
        Ok(match progress.not_sent {
            0 => Ended::Done,
            _ => Ended::Problem,
        })
    }

    #[cfg(not(feature = "kafka"))]
    async fn run_on_kafka(self, _: &Frame) -> anyhow::Result<Ended> {
        bail!(Usage::new(
            "this build of `tidings` cannot use Kafka, which `--topic` is about; build it with `--features kafka`"
        ))
    }

    fn replay(self) -> anyhow::Result<Replay> {
        let From::Start(start) = self.from else {
            bail!(Usage::new("offsets are those of a topic of Kafka: say which with `--topic TOPIC`"));
        };
        let replay = match self.partitions.and_then(NonZeroU16::new) {
            None if self.to.ends_with(".ordered") => bail!(Usage::new(
                "an ordered group has partitions: say how many with `--partitions COUNT`, and which \
                 events with `--event NAME`"
            )),
            None => Replay::to(self.to),
            Some(partitions) => Replay::to_group(Group::new(self.to, partitions)),
        };
        let replay = self.event.into_iter().fold(replay, Replay::event);
        let replay = replay.from(start).rate(self.rate);
        Ok(match self.restart {
            true => replay.restart(),
            false => replay,
        })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed {
    service: String,
    to: String,
    sent: u64,
    passed_over: u64,
    not_sent: u64,
    position: i64,
    until: i64,
}

impl Replayed {
    fn new(service: String, progress: &Progress) -> Self {
        Self {
            service,
            to: progress.to.clone(),
            sent: progress.sent,
            passed_over: progress.passed_over,
            not_sent: progress.not_sent,
            position: progress.position,
            until: progress.until,
        }
    }
}

impl Report for Replayed {
    fn tell(&self, page: &mut Page) {
        page.line(format!(
            "{} sent to `{}`; {} passed over",
            counted(
                self.sent,
                &format!("event of `{}` was", self.service),
                &format!("events of `{}` were", self.service)
            ),
            self.to,
            counted(
                self.passed_over,
                "of another kind or time was",
                "of other kinds or times were"
            )
        ));
        if self.not_sent > 0 {
            page.line(counted(
                self.not_sent,
                "could not be sent; it is named on stderr",
                "could not be sent; each is named on stderr",
            ));
        }
    }
}
