//! `redrive`.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use jiff::SignedDuration;
use serde::Serialize;
use tidings::Transport;
use tidings::dead_letters::{self, DeadLetters, Event, Letter, Outcome};

use super::{select::Select, store_of};
use crate::{
    frame::{Ended, Frame},
    out::{Cell, Page, Report, counted, one_line},
    places::Access,
};

/// How many outcomes are told of one by one as JSON.
const OUTCOMES_MAX: usize = 100_000;
/// How many letters that stay or came back are named on a page.
const NAMED_MAX: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Redrive {
    /// The consumer
    consumer: String,
    #[command(flatten)]
    select: Select,
    /// All its letters
    #[arg(long, help_heading = "Which letters")]
    all: bool,
    /// Send nothing, and say what would be sent
    #[arg(long, help_heading = "How to send")]
    dry_run: bool,
    /// Messages per second
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "500",
        help_heading = "How to send"
    )]
    rate: NonZeroU32,
    /// As fast as the broker takes them, from the beginning
    #[arg(long, conflicts_with = "rate", help_heading = "How to send")]
    unlimited: bool,
    /// How long it takes to come to that rate
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, help_heading = "How to send")]
    ramp: Duration,
    /// How many are sent at a time [default: 100, and 500 with --unlimited]
    #[arg(long, value_name = "COUNT", help_heading = "How to send")]
    batch: Option<usize>,
    /// Stop when more than this part of them has come back, in percent; 100 never stops
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "How to send")]
    stop_above: u8,
    /// How long to wait in the end for what comes back; no longer when all is back
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time, help_heading = "How to send")]
    settle: Duration,
    /// Send to another consumer than they are of
    #[arg(long, value_name = "CONSUMER", help_heading = "How to send")]
    to: Option<String>,
    /// Send also what the consumer does not take, as its database (`--database`) says
    #[arg(long, help_heading = "How to send")]
    unchecked: bool,
    /// Go on with this job, which died: with the same letters
    #[arg(long, value_name = "JOB", help_heading = "How to send")]
    job: Option<String>,
}

fn time(text: &str) -> Result<Duration, String> {
    let time: Result<SignedDuration, _> = text.parse();
    let time = time.ok().and_then(|time| Duration::try_from(time).ok());
    time.ok_or_else(|| "not a time (`10s`, `2m`)".to_owned())
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Redriven {
    consumer: String,
    job: String,
    dry_run: bool,
    total: u64,
    sent: u64,
    came_back: u64,
    kept_back: u64,
    not_sent: u64,
    passed_over: u64,
    /// Why it ended before it was through.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
    letters: Vec<Told>,
    /// There were more.
    more: bool,
}

/// What became of a letter.
#[derive(Debug, Serialize)]
struct Told {
    id: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Told {
    fn new(letter: &Letter, outcome: Outcome) -> Self {
        let (outcome, reason) = match outcome {
            Outcome::WouldSend => ("would-send", None),
            Outcome::Sent => ("sent", None),
            Outcome::CameBack => ("came-back", Some(letter.reason.to_string())),
            Outcome::KeptBack => (
                "kept-back",
                Some("an earlier letter of its key stays".to_owned()),
            ),
            Outcome::NotSent { why } => ("not-sent", Some(why)),
            other => ("other", Some(format!("{other:?}"))),
        };
        Self {
            id: letter.id.to_string(),
            outcome,
            reason,
        }
    }
}

impl Report for Redriven {
    fn tell(&self, page: &mut Page) {
        let would = if self.dry_run { "would be " } else { "" };
        page.line(format!(
            "{} of {} of {} {would}sent, {} not selected",
            self.sent,
            counted(self.total, "letter", "letters"),
            self.consumer,
            self.passed_over
        ));
        let mut count = |count: u64, one: &str, many: &str| {
            if count > 0 {
                page.line(counted(count, one, many));
            }
        };
        count(self.came_back, "came back", "came back");
        count(
            self.kept_back,
            "stays behind an earlier letter of its key",
            "stay behind an earlier letter of their key",
        );
        count(self.not_sent, "cannot be sent", "cannot be sent");
        let not_sent = self.letters.iter().filter(|it| it.reason.is_some());
        let row = |it: &Told| -> Vec<Cell> {
            vec![
                (&it.id).into(),
                Cell::warning(it.outcome),
                one_line(it.reason.as_deref().unwrap_or_default()).into(),
            ]
        };
        let rows: Vec<_> = not_sent.take(NAMED_MAX).map(row).collect();
        if !rows.is_empty() {
            page.table(&["ID", "OUTCOME", "REASON"], &rows);
        }
    }
}

impl Redrive {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let selection = self.select.selection_or_all(self.all)?;
        let mut letters = DeadLetters::new(Arc::clone(broker), &self.consumer);
        let to = self.to.as_ref().unwrap_or(&self.consumer);
        if let Some(store) = store_of(frame, to, Access::Look).await? {
            letters = letters.store(store);
        }
        let job = self.describe(letters.redrive(selection));
        let name = job.name().to_owned();
        let bar = frame.progress(letters.count().await?, "redriving");
        let (mut told, mut count) = (Vec::new(), 0);
        let done = job.run(|event| match event {
            Event::Letter { letter, outcome } => {
                count += 1;
                if told.len() < OUTCOMES_MAX {
                    told.push(Told::new(letter, outcome));
                }
            }
            Event::Progress(report) => bar.set_position(report.sent + report.passed_over),
            _ => {}
        });
        let done = done.await;
        bar.finish_and_clear();
        let done = done.inspect_err(|_| {
            let how = "what was sent stays sent; to go on, run it again with";
            frame.out.note(&format!("{how} `--job {name}`"));
        })?;
        let stopped = done.error().map(|error| error.to_string());
        if let Some(stopped) = &stopped {
            frame.out.note(stopped);
        }
        let is_none_meant = done.total > 0 && done.passed_over == done.total;
        if is_none_meant {
            frame.out.note("none of the letters is among those that were selected; list what there is");
        }
        let is_well = stopped.is_none()
            && !is_none_meant
            && done.came_back + done.not_sent + done.kept_back == 0;
        frame.out.show(&Redriven {
            consumer: self.consumer,
            job: name,
            dry_run: self.dry_run,
            total: done.total,
            sent: done.sent,
            came_back: done.came_back,
            kept_back: done.kept_back,
            not_sent: done.not_sent,
            passed_over: done.passed_over,
            stopped,
            more: count > told.len(),
            letters: told,
        })?;
        Ok(if is_well { Ended::Done } else { Ended::Problem })
    }

    fn describe<'a>(&self, mut job: dead_letters::Redrive<'a>) -> dead_letters::Redrive<'a> {
        job = job.ramp(self.ramp).settle(self.settle);
        if let Some(batch) = self.batch {
            job = job.batch(batch);
        }
        job = match self.unlimited {
            true => job.unlimited(),
            false => job.rate(self.rate),
        };
        job = match self.stop_above {
            100 => job.never_stop(),
            percent => job.stop_above(f64::from(percent) / 100.0),
        };
        if let Some(to) = &self.to {
            job = job.to(to);
        }
        if let Some(name) = &self.job {
            job = job.job(name);
        }
        if self.unchecked {
            job = job.unchecked();
        }
        match self.dry_run {
            true => job.dry_run(),
            false => job,
        }
    }
}
