//! `tidings contracts record`: what is deployed from now on, for the next check.

use std::path::PathBuf;

use serde::Serialize;
use tidings_contracts::{
    check::{self, Rule, Severity},
    published,
};

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Page, Report},
    verbs::contracts::{check::show, files::Documents},
};

/// Writes documents down as what is deployed: the baseline of the next check. Run it when a release is out.
///
/// A change that breaks somebody who is deployed is not written, unless you say `--anyway`. Documents of other services in
/// the folder stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    documents: Documents,

    /// The folder with the documents of what is deployed; it is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,

    /// Also if it breaks somebody
    #[arg(long)]
    anyway: bool,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts record asyncapi/ --into published/
  tidings contracts record orders.yaml --into published/ --anyway

As JSON: {services, findings}, as of `check`, if it was not written; else {written: [FILE]}.";

#[derive(Debug, Serialize)]
struct Written {
    written: Vec<PathBuf>,
}

impl Report for Written {
    fn tell(&self, page: &mut Page) {
        for file in &self.written {
            page.line(format!("wrote {}", file.display()));
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let now = self.documents.load().await?;
        let before = published::load(&self.into).map_err(|error| Code::ContractFile.of(error))?;
        let mut findings = check::changes(&before, &now, Rule::Full);
        findings.retain(|it| it.severity == Severity::Error);
        if !findings.is_empty() && !self.anyway {
            return show(frame, &now, &findings, true);
        }
        let written = published::record(&self.into, &now);
        let written = written.map_err(|error| Code::ContractFile.of(error))?;
        frame.out.show(&Written { written })?;
        Ok(Ended::Done)
    }
}
