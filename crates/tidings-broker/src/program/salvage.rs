//! `salvage DIR --into NEW`: brings what can be read of a broker's folder into a new one.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tidings_broker_core::Record;
use tidings_broker_log::Survey;

use super::Ended;
use super::words::{self, Bound, Hole, Queue, Unfinished, count};

/// Brings what can be read of a damaged folder into a new one, and lists what cannot.
///
/// The folder is not changed; the broker must not be running on it. Afterwards a broker starts on the
/// new one. The exit code is 0 if something was salvaged.
#[derive(Debug, Args)]
pub(super) struct Salvage {
    /// The folder that a broker has as `--data`.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The folder to make: empty, or not there yet.
    #[arg(long, value_name = "NEW")]
    into: PathBuf,

    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// What was salvaged, and what was not. As JSON it is an object with these members in camelCase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    folder: String,
    into: String,
    messages: usize,
    exchanges: u64,
    bindings: u64,
    queues: Vec<Queue>,
    /// The unfinished write that was left out.
    torn: Option<Unfinished>,
    /// What could not be read.
    losses: Vec<Hole>,
    /// Bindings that were left out, since their exchange or queue is lost.
    orphans: Vec<Bound>,
}

impl Salvage {
    pub(super) fn run(&self) -> anyhow::Result<Ended> {
        let survey = words::survey(&self.dir)?;
        survey.salvage(&self.into).context("nothing was salvaged")?;
        let report = Report::new(self, &survey);
        words::print(&report, &report.page(), self.json)?;
        Ok(Ended::Done)
    }
}

impl Report {
    fn new(arguments: &Salvage, survey: &Survey) -> Report {
        let is_exchange = |it: &&Record| matches!(it, Record::ExchangeDeclared { .. });
        let is_binding = |it: &&Record| matches!(it, Record::Bound(_));
        Report {
            folder: arguments.dir.display().to_string(),
            into: arguments.into.display().to_string(),
            messages: survey.messages(),
            exchanges: survey.topology().filter(is_exchange).count() as u64,
            bindings: survey.topology().filter(is_binding).count() as u64,
            queues: survey.queues().iter().map(Queue::new).collect(),
            torn: survey.torn().map(Unfinished::new),
            losses: Hole::all(survey),
            orphans: survey
                .orphans()
                .iter()
                .map(|binding| Bound::new(binding, survey))
                .collect(),
        }
    }

    fn page(&self) -> String {
        let mut page = format!(
            "salvaged from `{}` into `{}`: {}, {}, {}, {}\n",
            self.folder,
            self.into,
            count(self.messages as u64, "message"),
            count(self.queues.len() as u64, "queue"),
            count(self.exchanges, "exchange"),
            count(self.bindings, "binding"),
        );
        for queue in &self.queues {
            page.push_str(&format!("  {}\n", queue.words()));
        }
        if let Some(torn) = &self.torn {
            page.push_str(&format!("\nleft out:\n  {}\n", torn.words()));
        }
        match self.losses.is_empty() {
            true => page.push_str("\neverything could be read\n"),
            false => words::tell_holes(&mut page, &self.losses, &self.orphans),
        }
        page.push_str(&format!(
            "\nstart a broker on it with `--data {}`, and keep `{}` until all is well\n",
            self.into, self.folder
        ));
        page
    }
}
