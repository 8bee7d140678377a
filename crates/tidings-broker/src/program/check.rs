//! `check DIR`: says what a broker's folder holds, what is wrong with it, and what a start would do.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tidings_broker_core::Record;
use tidings_broker_log::Survey;

use super::Ended;
use super::words::{self, Bound, Hole, Queue, Unfinished, count, shown, size};

/// Says what a folder holds and what is wrong with it; changes nothing.
///
/// The broker must not be running on it. The exit code is 0 if a start takes the folder as it is, and 1
/// if a start refuses it, or if it is not a broker's.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The folder that a broker has as `--data`.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// What `check` found. As JSON it is an object with these members in camelCase.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    folder: String,
    /// The version of the format; none of an empty folder.
    format: Option<u32>,
    /// Whether a start takes the folder.
    startable: bool,
    /// What a start says, if it refuses the folder.
    refusal: Option<String>,
    segments: Vec<SegmentReport>,
    messages: usize,
    queues: Vec<Queue>,
    exchanges: Vec<Exchange>,
    bindings: Vec<Bound>,
    torn: Option<Unfinished>,
    /// What cannot be read.
    losses: Vec<Hole>,
    /// Bindings whose exchange or queue is lost.
    orphans: Vec<Bound>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SegmentReport {
    number: u64,
    file: String,
    bytes: u64,
    used_bytes: u64,
    batches: u64,
    live_records: u64,
    live_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exchange {
    name: String,
    kind: String,
}

impl Check {
    #[cfg(test)]
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn run(&self) -> anyhow::Result<Ended> {
        let folder = self.dir.display().to_string();
        let report = match words::survey(&self.dir) {
            Ok(survey) => Report::new(folder, &survey),
            Err(error) if error.is_empty_folder() => Report {
                folder,
                startable: true,
                ..Report::default()
            },
            Err(error) => return Err(error.into()),
        };
        words::print(&report, &report.page(), self.json)?;
        Ok(match report.startable {
            true => Ended::Done,
            false => Ended::Problem,
        })
    }
}

impl Report {
    fn new(folder: String, survey: &Survey) -> Report {
        let segments = survey.segments().iter().map(|segment| SegmentReport {
            number: segment.number,
            file: segment.path.display().to_string(),
            bytes: segment.bytes,
            used_bytes: segment.end,
            batches: segment.batches,
            live_records: segment.live_records,
            live_bytes: segment.live_bytes,
        });
        let (mut exchanges, mut bindings) = (Vec::new(), Vec::new());
        for record in survey.topology() {
            match record {
                Record::ExchangeDeclared { name, kind, .. } => exchanges.push(Exchange {
                    name: shown(name),
                    kind: shown(kind),
                }),
                Record::Bound(binding) => bindings.push(Bound::new(binding, survey)),
                _ => {}
            }
        }
        let orphans = survey.orphans().iter();
        Report {
            folder,
            format: Some(survey.format()),
            startable: survey.refusal().is_none(),
            refusal: survey.refusal().map(|error| error.what().to_owned()),
            segments: segments.collect(),
            messages: survey.messages(),
            queues: survey.queues().iter().map(Queue::new).collect(),
            exchanges,
            bindings,
            torn: survey.torn().map(Unfinished::new),
            losses: Hole::all(survey),
            orphans: orphans.map(|it| Bound::new(it, survey)).collect(),
        }
    }

    fn page(&self) -> String {
        let Some(format) = self.format else {
            return format!(
                "folder `{}`: empty\n\nnothing is wrong: a start takes this folder, and begins with \
                 nothing\n",
                self.folder
            );
        };
        let mut page = format!(
            "folder `{}`: format {format}, {}, {}\n",
            self.folder,
            count(self.segments.len() as u64, "segment"),
            count(self.messages as u64, "message"),
        );
        let mut section = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                page.push_str(&format!("\n{title}:\n"));
                lines
                    .iter()
                    .for_each(|line| page.push_str(&format!("  {line}\n")));
            }
        };
        section(
            "segments",
            self.segments.iter().map(SegmentReport::words).collect(),
        );
        section("queues", self.queues.iter().map(Queue::words).collect());
        let exchange = |it: &Exchange| format!("{}: {}", it.name, it.kind);
        section("exchanges", self.exchanges.iter().map(exchange).collect());
        section("bindings", self.bindings.iter().map(Bound::words).collect());
        section(
            "at the end",
            self.torn.iter().map(Unfinished::words).collect(),
        );
        words::tell_holes(&mut page, &self.losses, &self.orphans);
        page.push_str(&self.verdict());
        page
    }

    /// What a start would do, and what to do.
    fn verdict(&self) -> String {
        match &self.refusal {
            None => "\na start takes this folder\n".to_owned(),
            Some(refusal) => format!(
                "\na start refuses this folder: {refusal}\n\nwhat to do: restore the folder from a copy, if \
                 there is a recent one; or bring out what can be read with `salvage {} --into NEW`, and \
                 start on that\n",
                self.folder
            ),
        }
    }
}

impl SegmentReport {
    fn words(&self) -> String {
        let live = match self.live_records {
            0 => "nothing alive".to_owned(),
            records => format!(
                "{} alive, {}",
                count(records, "record"),
                size(self.live_bytes)
            ),
        };
        format!(
            "{}: {}, {} used, {}, {live}",
            self.number,
            size(self.bytes),
            size(self.used_bytes),
            count(self.batches, "batch"),
        )
    }
}
