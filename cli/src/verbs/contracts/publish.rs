//! `tidings contracts publish`: puts pacts to a Pact broker.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;
use tidings_contracts::pact::Pact;

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Page, Report},
    verbs::contracts::{
        files::pacts,
        pact_broker::{PactBroker, Version},
    },
};

/// Puts pacts to a Pact broker, as those of this version of their consumers.
///
/// Their providers, in any language, verify them from there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Pact files; of a folder all that end with `.json`
    #[arg(required = true, value_name = "PACT")]
    pacts: Vec<PathBuf>,

    /// The Pact broker, `https://pacts.example.org`
    #[arg(long, value_name = "URL")]
    to: String,

    /// The version of the consumers, a commit or a number; other pacts need another version
    #[arg(long, value_name = "VERSION")]
    version: String,

    /// The branch that the version is on
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts publish pacts/ --to https://pacts.example.org --version 1.4.0 --branch main

The user and the password of the Pact broker are in its URL, or in PACT_BROKER_USERNAME and PACT_BROKER_PASSWORD; a token is in
PACT_BROKER_TOKEN.

As JSON: {published: [{consumer, provider, version}]}.";

#[derive(Debug, Serialize)]
struct Published {
    published: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    consumer: String,
    provider: String,
    version: String,
}

impl Report for Published {
    fn tell(&self, page: &mut Page) {
        for row in &self.published {
            page.line(format!(
                "published: what `{}` {} expects of `{}`",
                row.consumer, row.version, row.provider
            ));
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let all = self.by_consumer()?;
        let broker = PactBroker::open(&self.to).await?;
        let version = Version {
            number: &self.version,
            branch: self.branch.as_deref(),
        };
        let mut published = Vec::new();
        let mut refused = None;
        for (consumer, pacts) in all {
            if let Err(error) = broker.publish(&consumer, &version, &pacts).await {
                refused = Some(error.context(format!("the pacts of `{consumer}`")));
                break;
            }
            published.extend(pacts.into_iter().map(|(provider, _)| Row {
                consumer: consumer.clone(),
                provider,
                version: self.version.clone(),
            }));
        }
        // Also when a later consumer's are refused: these are there.
        frame.out.show(&Published { published })?;
        refused.map_or(Ok(Ended::Done), Err)
    }

    /// The pacts of each consumer, with their providers.
    fn by_consumer(&self) -> anyhow::Result<BTreeMap<String, Vec<(String, String)>>> {
        let mut all: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for file in pacts(&self.pacts)? {
            let wrong = |what: String| Code::ContractFile.of(format!("{}: {what}", file.display()));
            let text = std::fs::read_to_string(&file).map_err(|error| wrong(error.to_string()))?;
            let pact = Pact::parse(&text, &file.display().to_string());
            let pact = pact.map_err(|error| Code::ContractFile.of(error))?;
            let (consumer, provider) = (pact.consumer(), pact.provider());
            let of_consumer = all.entry(consumer.clone()).or_default();
            if of_consumer.iter().any(|(it, _)| *it == provider) {
                return Err(wrong(format!(
                    "this is a second pact between `{consumer}` and `{provider}`: name one of them"
                )));
            }
            of_consumer.push((provider, text));
        }
        Ok(all)
    }
}
