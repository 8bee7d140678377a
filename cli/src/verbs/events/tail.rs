//! `tidings events tail`: events as they flow. It watches through a queue of its own that ends with it, and
//! takes nothing from anybody.
//!
//! Events that come faster than they are printed are dropped, and told. Printing blocks a thread of its own when
//! nobody reads; receiving goes on beside it.

mod filter;
pub(in crate::verbs) mod topics;

use std::{pin::pin, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tidings::{Envelope, Transport as _};
use tidings_amqp::{Amqp, Tailed, Tailing};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::Instant,
};

use self::filter::Filter;
use crate::{
    code::Code,
    frame::{Ended, Frame, sleep_until, time},
    mask::Mask,
    message::{ShownMessage, json_line},
    out::{Page, Report, counted, one_line},
};

/// How much is printed at once.
const PRINTED_BYTES: usize = 64 * 1024;
/// Shows events as they are published, and takes them from nobody.
///
/// It watches topics (fanout exchanges on AMQP) through a queue of its own that is deleted when it ends, and
/// shows the events whose names are given, or all. `*` stands for any characters. It ends with Ctrl-C, after
/// `--count` events, or after `--for`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The events to show, `order-placed.v1` or `order-*`; all when not given
    #[arg(value_name = "EVENT")]
    event: Vec<String>,

    /// The topic to watch, `order_events` or `order_*` (repeatable); all from which services receive, as
    /// their databases know, when not given
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Only events with this key (repeatable)
    #[arg(long, value_name = "KEY", help_heading = "Which events")]
    key: Vec<String>,

    /// Only events that this service sent (repeatable)
    #[arg(long, value_name = "SERVICE", help_heading = "Which events")]
    from: Vec<String>,

    /// Only events with this text in their body
    #[arg(long, value_name = "TEXT", help_heading = "Which events")]
    text: Option<String>,

    /// End after so many events were shown
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after so long
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    length: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  tidings events tail                                  all topics, with TIDINGS_DATABASE set
  tidings events tail --topic order_events
  tidings events tail 'order-*' --topic order_events --key o-17
  tidings events tail --topic order_events --topic payment_events --from payment --json | jq .message.body
  tidings events tail order-cancelled.v1 --topic order_events --count 1 --for 30s

Topics must be there: none is made. What is published before it says `watching` is not shown. On a terminal
that is slower than the events, or after the connection was lost, some are missed, and that is said on stderr.
While it watches, an event to a topic from which no service receives counts as delivered, so that one is only
watched if it is named; with `--database` never while events to it are held for want of a receiver.

The exit code is 0, also after Ctrl-C; with `--count`, 1 if fewer came in the time that `--for` gives.

As JSON, one document a line:
  {topic, message: {name, id, source?, time?, key?, correlationId?, causationId?, headers, body}}";

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let filter = Filter::new(&self.event, &self.key, &self.from, self.text.as_deref());
        let topics = topics::chosen(frame, &self.topic).await?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        let amqp = frame.amqp("watching events").await?;
        let tailing = topics::watch(&amqp, &topics).await?;
        frame.out.note(&format!("watching {}", topics.join(", ")));
        let until = self.length.map(|length| Instant::now() + length);
        let mut ended = pin!(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = sleep_until(until) => {}
            }
        });
        let mut tail = Tail {
            frame,
            mask: frame.mask().await,
            filter,
            left: self.count,
            printed: Vec::new(),
        };
        let watched = tokio::select! {
            watched = tail.watch(tailing) => watched,
            () = &mut ended => Ok(()),
        };
        amqp.close().await;
        watched?;
        let timed_out = until.is_some_and(|until| Instant::now() >= until);
        match (self.count, tail.left) {
            (Some(count), Some(left)) if left > 0 && timed_out => {
                let came = count - left;
                let events = counted(count, "event", "events");
                frame.out.note(&format!("{came} of {events} came"));
                Ok(Ended::Problem)
            }
            _ => Ok(Ended::Done),
        }
    }
}

struct Tail<'a> {
    frame: &'a Frame,
    mask: &'a Mask,
    filter: Filter,
    /// How many may still be shown.
    left: Option<u64>,
    /// What is to be printed together.
    printed: Vec<u8>,
}

impl Tail<'_> {
    /// Until enough was shown, or nobody reads any more.
    async fn watch(&mut self, mut tailing: Tailing) -> anyhow::Result<()> {
        loop {
            let mut next = Some(tailing.next().await);
            // What is there already is printed together.
            while let Some(seen) = next {
                self.see(seen.map_err(|error| Code::Tail.of(error))?)?;
                if self.left == Some(0) || self.printed.len() > PRINTED_BYTES {
                    break;
                }
                next = tailing.next_now().transpose();
            }
            let printed = std::mem::take(&mut self.printed);
            let out = self.frame.out;
            let is_read = spawn_blocking(move || out.stream(&printed)).await??;
            if !is_read || self.left == Some(0) {
                return Ok(());
            }
        }
    }

    fn see(&mut self, seen: Tailed) -> anyhow::Result<()> {
        match seen {
            Tailed::Message { topic, envelope } if self.filter.wants(&envelope) => {
                let event = Event::new(topic, &envelope, self.mask);
                self.printed.extend(self.frame.out.one_of_many(&event)?);
                self.left = self.left.map(|left| left - 1);
            }
            Tailed::Dropped { count } => self.frame.out.note(&counted(
                count,
                "event is not shown: it came faster than events were printed",
                "events are not shown: they came faster than they were printed",
            )),
            Tailed::QueueFull => self.frame.out.note(&format!(
                "events are missed, and nobody counts them: more than {} wait on the broker, which \
                 drops the oldest",
                Amqp::TAIL_QUEUE_COUNT_MAX
            )),
            Tailed::Reconnected => self
                .frame
                .out
                .note("watching again: the connection was lost, and events meanwhile were missed"),
            // Not wanted, or of a later version.
            _ => {}
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct Event {
    topic: String,
    message: ShownMessage,
}

impl Event {
    fn new(topic: String, envelope: &Envelope, mask: &Mask) -> Self {
        let message = ShownMessage::new(envelope, mask);
        Self { topic, message }
    }
}

impl Report for Event {
    fn tell(&self, page: &mut Page) {
        let Self { topic, message } = self;
        let time = message.time.map(|time| format!("{time:.3}"));
        let dash = |text: Option<&str>| one_line(text.filter(|it| !it.is_empty()).unwrap_or("-"));
        page.fitted(&format!(
            "{}  {}  {}  {}  {}  {}",
            dash(time.as_deref()),
            one_line(topic),
            dash(Some(&message.name)),
            dash(message.key.as_deref()),
            dash(message.id.as_deref()),
            json_line(&message.body)
        ));
    }
}
