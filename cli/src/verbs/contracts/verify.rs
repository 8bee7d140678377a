//! `tidings contracts verify`: whether a provider writes what the pacts of its consumers expect.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tidings_contracts::pact::{Bodies, Outcome, Pact};

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Page, Report, counted},
    verbs::contracts::files::load,
};

/// Compares Pact files with what a provider writes: the examples in its document.
///
/// Pacts of any language and version will do; their messages are verified, calls are told as not tried. A pact's
/// description is the name of a message, or begins with it; for others say which is meant. A provider state is the name of
/// an example.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Pact files; of a folder all that end with `.json`
    #[arg(required = true, value_name = "PACT")]
    pacts: Vec<PathBuf>,

    /// The provider's AsyncAPI 3 document, with examples of what it sends
    #[arg(long, value_name = "DOCUMENT")]
    provider: PathBuf,

    /// Which message a description means; may be repeated
    #[arg(long, value_name = "DESCRIPTION=NAME", value_parser = described)]
    message: Vec<(String, String)>,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts verify pacts/ --provider asyncapi/orders.json
  tidings contracts verify newsletter-orders.json --provider orders.yaml --message 'an order is confirmed=order-confirmed.v1'

Pacts of other providers are passed over, and told. As JSON: {provider, interactions: [{pact, consumer, description,
states, outcome, problems}]} with the outcome kept, broken or untried. Exit code 1 unless all are kept (TDG-9072).";

fn described(text: &str) -> Result<(String, String), String> {
    let (description, name) = text
        .rsplit_once('=')
        .ok_or("write it as `DESCRIPTION=NAME`: 'an order is confirmed=order-confirmed.v1'")?;
    Ok((description.to_owned(), name.to_owned()))
}

#[derive(Debug, Serialize)]
struct Compared {
    provider: String,
    interactions: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    pact: PathBuf,
    consumer: String,
    description: String,
    states: Vec<String>,
    outcome: &'static str,
    problems: Vec<String>,
}

impl Report for Compared {
    fn tell(&self, page: &mut Page) {
        for row in &self.interactions {
            let state = match row.states.first() {
                Some(state) => format!(" ({state})"),
                None => String::new(),
            };
            page.line(format!(
                "{}: `{}` expects `{}`{state} of `{}`",
                row.outcome, row.consumer, row.description, self.provider
            ));
            for problem in &row.problems {
                page.line(format!("  {problem}"));
            }
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let provider = load(std::slice::from_ref(&self.provider)).await?;
        let [provider] = provider.as_slice() else {
            return Err(Code::ContractFile.of(format!(
                "`{}` has {}: name the document of the provider",
                self.provider.display(),
                counted(provider.len() as u64, "document", "documents")
            )));
        };
        let mut bodies = Bodies::of(provider);
        for (description, name) in &self.message {
            bodies = bodies.described(description, name);
        }
        let mut interactions = Vec::new();
        for file in pacts(&self.pacts)? {
            let pact = Pact::load(&file).map_err(|error| Code::ContractFile.of(error))?;
            if pact.provider() != provider.service {
                frame.out.note(&format!(
                    "`{}` is passed over: it is about `{}`",
                    file.display(),
                    pact.provider()
                ));
                continue;
            }
            for it in pact.verify(&bodies).await {
                let (outcome, problems) = match it.outcome {
                    Outcome::Kept => ("kept", Vec::new()),
                    Outcome::Broken(problems) => ("broken", problems),
                    Outcome::Untried(why) => ("untried", vec![why]),
                    _ => ("untried", Vec::new()),
                };
                interactions.push(Row {
                    pact: file.clone(),
                    consumer: pact.consumer(),
                    description: it.description,
                    states: it.states,
                    outcome,
                    problems,
                });
            }
        }
        let kept = interactions.iter().filter(|it| it.outcome == "kept").count();
        let count = interactions.len();
        frame.out.show(&Compared {
            provider: provider.service.clone(),
            interactions,
        })?;
        if count == 0 {
            let error = format!("no pact expects anything of `{}`", provider.service);
            return Err(Code::PactBroken.of(error));
        }
        if kept == count {
            return Ok(Ended::Done);
        }
        let error = Code::PactBroken.of(format!(
            "`{}` keeps {kept} of the {count} expectations",
            provider.service
        ));
        frame.out.note(&format!("tidings: {error}"));
        Ok(Ended::Problem)
    }
}

/// The files, and those in the folders by name.
fn pacts(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let wrong = |error| Code::ContractFile.of(format!("{}: {error}", path.display()));
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(wrong)? {
            let file = entry.map_err(wrong)?.path();
            if file.extension().is_some_and(|it| it == "json") {
                inside.push(file);
            }
        }
        inside.sort();
        if inside.is_empty() {
            return Err(nothing_in(path));
        }
        files.extend(inside);
    }
    Ok(files)
}

fn nothing_in(folder: &Path) -> anyhow::Error {
    Code::ContractFile.of(format!("no pact (`.json`) is in {}", folder.display()))
}
