//! `tidings events map`: puts the event maps of services together, draws them, and says what may be
//! wrong.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::Serialize;
use tidings::event_map::{Emission, EventMap, Finding, ServiceMap, Severity};

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Cell, Page, Report, counted},
};

/// The largest file that is read. A map of a thousand services has about two million bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Puts the event maps of services together, shows them, and says what may be wrong: a command without
/// a target, an event that nobody handles, a cycle without an end.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Event maps as JSON, as programs print them (`shop map --format json`); `-` is stdin.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Print a drawing instead, for other programs; what may be wrong goes to stderr.
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<Format>,
}

const EXAMPLES: &str = "\
Examples:
  shop map --format json > shop.json
  tidings events map shop.json erp.json            who handles and sends what, and what may be wrong
  tidings events map *.json --format svg > map.svg

As JSON: {services, findings: [{severity, about, message}]}; services are as in the guide's page on the
event map. Exit code 1 if something may be wrong (TDG-9041).";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A flowchart, for documents that draw it.
    Mermaid,
    /// A graph for Graphviz.
    Dot,
    /// The map of all services, to be read again.
    Json,
    /// A picture.
    Svg,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    services: &'a [ServiceMap],
    findings: Vec<Found<'a>>,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    severity: &'static str,
    about: &'a str,
    message: &'a str,
}

impl Report for Shown<'_> {
    fn tell(&self, page: &mut Page) {
        let rows: Vec<Vec<Cell>> = self.services.iter().flat_map(rows).collect();
        page.table(&["SERVICE", "HANDLES", "SENDS"], &rows);
        for finding in &self.findings {
            page.line(format!("\n{}: {}", finding.severity, finding.message));
        }
    }
}

/// A line for each thing that a service does.
fn rows(service: &ServiceMap) -> Vec<Vec<Cell>> {
    let row = |what: &str, sends: Vec<&Emission>| {
        let sends: Vec<&str> = sends.into_iter().map(|it| &*it.message).collect();
        vec![
            Cell::from(&service.name),
            Cell::from(what),
            Cell::from(sends.join(", ")),
        ]
    };
    let mut rows = Vec::new();
    if !service.emits.is_empty() {
        rows.push(row("(by itself)", service.emits.iter().collect()));
    }
    for schedule in &service.schedules {
        let when = format!("({}: {})", schedule.name, schedule.when);
        rows.push(row(&when, vec![&schedule.emits]));
    }
    for handler in &service.handlers {
        let saga = handler.saga.as_deref();
        let saga = saga.and_then(|name| service.sagas.iter().find(|it| it.name == name));
        match saga {
            Some(saga) => {
                let what = format!("{} (saga {})", handler.message, saga.name);
                rows.push(row(&what, saga.sends.iter().chain(&saga.ends).collect()));
            }
            None => rows.push(row(&handler.message, handler.emits.iter().collect())),
        }
    }
    rows
}

fn read(file: &Path) -> anyhow::Result<EventMap> {
    let named = file.display();
    let failed = |error: io::Error| Code::EventMapFile.of(format!("cannot read `{named}`: {error}"));
    let source: Box<dyn Read> = match file == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(file).map_err(failed)?),
    };
    let mut json = String::new();
    let mut bounded = source.take(FILE_BYTES_MAX + 1);
    bounded.read_to_string(&mut json).map_err(failed)?;
    if json.len() as u64 > FILE_BYTES_MAX {
        return Err(Code::EventMapFile.of(format!(
            "`{named}` has more than the {FILE_BYTES_MAX} bytes that an event map may have"
        )));
    }
    EventMap::from_json(&json)
        .map_err(|error| Code::EventMapFile.of(format!("cannot read `{named}`: {error}")))
}

const fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let maps = self.files.iter().map(|file| read(file));
        let maps: Vec<EventMap> = maps.collect::<anyhow::Result<_>>()?;
        let map = maps.into_iter().fold(EventMap::default(), EventMap::merge);
        let findings = map.check();
        match self.format {
            None => frame.out.show(&Shown {
                services: map.services(),
                findings: findings
                    .iter()
                    .map(|it| Found {
                        severity: severity(it),
                        about: &it.about,
                        message: &it.message,
                    })
                    .collect(),
            })?,
            Some(format) => {
                let text = match format {
                    Format::Mermaid => map.to_mermaid(),
                    Format::Dot => map.to_dot(),
                    Format::Json => map.to_json(),
                    Format::Svg => map.to_svg("Who handles and sends what"),
                };
                frame.out.bytes(text.as_bytes())?;
                for finding in &findings {
                    frame.out.note(&finding.to_string());
                }
            }
        }
        if findings.is_empty() {
            return Ok(Ended::Done);
        }
        let count = counted(findings.len() as u64, "finding", "findings");
        let error = Code::EventMapFinding.of(format!("the event map has {count}"));
        frame.out.note(&format!("tidings: {error}"));
        Ok(Ended::Problem)
    }
}
