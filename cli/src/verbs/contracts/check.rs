//! `tidings contracts check`: whether services understand each other, what is likely a mistake, and whom a change breaks.

use std::{collections::BTreeMap, path::PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use tidings_contracts::{
    Document,
    check::{self, Finding, Severity},
};
use tidings_registry::Subjects;

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Page, Report, counted},
    verbs::contracts::{
        files::{Documents, load},
        registry::{SchemaRegistry, subjects},
    },
};

/// Says whether services understand each other, what is likely a mistake and, with a baseline, whom a change breaks.
///
/// Each service's document says what it sends as it is written, and what it receives as it is read. The four mistakes are
/// looked for as well: an event that is a command in disguise, a queue without dead letters, a consumer that does not
/// acknowledge, bodies near or over their budget.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    documents: Documents,

    /// What is deployed: a file, a folder that `record` wrote, or a URL
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,

    /// Which side of a change is checked
    #[arg(long, value_enum, default_value = "full")]
    rule: Rule,

    /// A schema registry with what is deployed, `http://user:password@registry:8081`
    #[arg(long, value_name = "URL")]
    registry: Option<String>,

    /// How its subjects are called: `topic`, `message` or `topic-message`
    #[arg(long, value_name = "WAY", default_value = "topic", requires = "registry", value_parser = subjects)]
    subject: Subjects,

    /// Warnings are errors
    #[arg(long)]
    strict: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts check asyncapi/
  tidings contracts check asyncapi/ --baseline published/
  tidings contracts check asyncapi/ --registry http://registry:8081
  tidings contracts check http://127.0.0.1:8080/asyncapi.json --baseline published/
  tidings contracts check orders.yaml billing.json --json | jq '.findings[].what'

As JSON: {services, findings: [{severity, rule, message, service, consumer?, field?, what, todo}]}.
Exit code 1 if there is an error (TDG-9071), with --strict also for warnings.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    /// Consumers of now read messages of before: consumers are deployed first
    Backward,
    /// Consumers of before read messages of now: senders are deployed first
    Forward,
    /// Both: services are deployed in any order
    Full,
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    services: Vec<&'a str>,
    findings: &'a [Finding],
}

impl Report for Checked<'_> {
    fn tell(&self, page: &mut Page) {
        tell(page, self.findings);
        let services = counted(self.services.len() as u64, "service", "services");
        match self.findings.is_empty() {
            true => page.line(format!("{services}: nothing is wrong")),
            false => page.line(format!(
                "\n{services}: {}",
                counted(self.findings.len() as u64, "finding", "findings")
            )),
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let now = self.documents.load().await?;
        let mut findings = check::system(&now);
        findings.extend(check::lints(&now));
        if let Some(baseline) = &self.baseline {
            let before = load(std::slice::from_ref(baseline)).await?;
            findings.extend(check::changes(&before, &now, self.rule.into()));
        }
        if let Some(url) = &self.registry {
            findings.extend(self.registered(url, &now).await?);
        }
        findings.sort_by_key(|it| it.severity);
        show(frame, &now, &findings, self.strict)
    }
}

impl Args {
    /// What is sent beside what the registry has.
    async fn registered(&self, url: &str, now: &[Document]) -> anyhow::Result<Vec<Finding>> {
        let registry = SchemaRegistry::open(url, self.subject)?;
        let mut known = BTreeMap::new();
        let (events, _) = registry.events(now)?;
        for event in events {
            let latest = registry.latest(&event).await?;
            known.insert(&event.contract.name, latest);
        }
        Ok(check::registered(now, self.rule.into(), |contract| {
            known.get(&contract.name)
        }))
    }
}

impl From<Rule> for check::Rule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Backward => check::Rule::Backward,
            Rule::Forward => check::Rule::Forward,
            Rule::Full => check::Rule::Full,
        }
    }
}

/// Writes findings down for people.
pub(super) fn tell(page: &mut Page, findings: &[Finding]) {
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        page.line(format!("{severity}: {}", finding.what));
        page.line(format!("  {}", finding.todo));
    }
}

/// Shows the findings, and ends with a problem if they have an error.
pub(super) fn show(
    frame: &Frame,
    documents: &[Document],
    findings: &[Finding],
    strict: bool,
) -> anyhow::Result<Ended> {
    frame.out.show(&Checked {
        services: documents.iter().map(|it| &*it.service).collect(),
        findings,
    })?;
    Ok(failed(frame, findings, strict))
}

/// Whether findings are a problem, which is told then.
pub(super) fn failed(frame: &Frame, findings: &[Finding], strict: bool) -> Ended {
    let errors = findings
        .iter()
        .filter(|it| strict || it.severity == Severity::Error);
    match errors.count() as u64 {
        0 => Ended::Done,
        count => {
            let what = counted(count, "finding", "findings");
            let error = Code::ContractFinding.of(format!("the contracts have {what} to mend"));
            frame.out.note(&format!("tidings: {error}"));
            Ended::Problem
        }
    }
}
