//! `tidings contracts verify`: whether a provider writes what the pacts of its consumers expect.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};
use tidings_contracts::pact::{Bodies, Outcome, Pact, Verified};

use crate::{
    code::Code,
    frame::{Ended, Frame, Usage},
    out::{Page, Report, counted},
    verbs::contracts::{
        files::{load, pacts, url},
        pact_broker::{Fetched, PactBroker, Verdict, Version, Wanted},
    },
};

/// Compares pacts, in files or at a Pact broker, with what a provider writes: the examples in its document.
///
/// Pacts of any language and version will do; their messages are verified, calls are told as not tried. A pact's
/// description is the name of a message, or begins with it; for others say which is meant. A provider state is the name of
/// an example.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Pact files; of a folder all that end with `.json`; or the URL of a Pact broker, which says what is to be verified, or
    /// of one pact there
    #[arg(required = true, value_name = "PACT")]
    pacts: Vec<PathBuf>,

    /// The provider's AsyncAPI 3 document, with examples of what it sends
    #[arg(long, value_name = "DOCUMENT")]
    provider: PathBuf,

    /// What pacts call the provider, if that is not the title of its document
    #[arg(long, value_name = "NAME")]
    provider_name: Option<String>,

    /// Which message a description means; may be repeated
    #[arg(long, value_name = "DESCRIPTION=NAME", value_parser = described)]
    message: Vec<(String, String)>,

    /// Which consumers' versions: a selector as Pact brokers have them, `{"mainBranch": true}` (repeatable); the latest of
    /// each consumer if none is given
    #[arg(long, value_name = "JSON", value_parser = selector, help_heading = "With a Pact broker")]
    selector: Vec<Value>,

    /// The branch that the provider is on: what the branch has never kept is pending, and told without being a problem
    #[arg(long, value_name = "BRANCH", help_heading = "With a Pact broker")]
    branch: Option<String>,

    /// Tell the Pact broker what became of the pacts, as the results of this version of the provider
    #[arg(long, value_name = "VERSION", help_heading = "With a Pact broker")]
    publish: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts verify pacts/ --provider asyncapi/orders.json
  tidings contracts verify newsletter-orders.json --provider orders.yaml --message 'an order is confirmed=order-confirmed.v1'
  tidings contracts verify https://pacts.example.org --provider orders.yaml --branch main --publish 1.4.0

Pacts of other providers are passed over, and told. The user and the password of a Pact broker are in its URL, or in
PACT_BROKER_USERNAME and PACT_BROKER_PASSWORD; a token is in PACT_BROKER_TOKEN.

As JSON: {provider, interactions: [{pact, consumer, description, states, pending?, outcome, problems}]} with the outcome
kept, broken or untried. Exit code 1 unless all are kept that are not pending (TDG-9072).";

fn selector(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err("write it as an object of JSON: `{\"mainBranch\": true}`".to_owned()),
    }
}

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
    pact: String,
    consumer: String,
    description: String,
    states: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
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
            let pending = if row.pending { " (pending)" } else { "" };
            page.line(format!(
                "{}{pending}: `{}` expects `{}`{state} of `{}`",
                row.outcome, row.consumer, row.description, self.provider
            ));
            for problem in &row.problems {
                page.line(format!("  {problem}"));
            }
        }
    }
}

/// A pact, and where it comes from.
struct Source {
    from: String,
    pact: Pact,
    /// As the Pact broker gave it.
    fetched: Option<Fetched>,
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let broker = self.broker().await?;
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
        let name = self.provider_name.as_deref().unwrap_or(&provider.service);
        let sources = match &broker {
            Some(broker) => self.fetched(broker, name).await?,
            None => self.read()?,
        };
        let mut interactions = Vec::new();
        let mut verdicts = Vec::new();
        for Source {
            from,
            pact,
            fetched,
        } in sources
        {
            if pact.provider() != name {
                let provider = pact.provider();
                frame.out.note(&format!(
                    "`{from}` is passed over: it is about `{provider}`"
                ));
                continue;
            }
            let is_pending = fetched.as_ref().is_some_and(|it| it.is_pending);
            let verified = pact.verify(&bodies).await.into_iter();
            let rows: Vec<Row> = verified
                .map(|it| Row::new(&from, &pact.consumer(), is_pending, it))
                .collect();
            if let Some(fetched) = fetched {
                let verdict = verdict(&fetched.pact, &rows);
                verdicts.push((fetched, verdict));
            }
            interactions.extend(rows);
        }
        let ended = show(frame, name, interactions)?;
        if let (Some(broker), Some(number)) = (broker, &self.publish) {
            let version = Version {
                number,
                branch: self.branch.as_deref(),
            };
            broker.report(&version, &verdicts).await?;
            let pacts = counted(verdicts.len() as u64, "pact", "pacts");
            frame.out.note(&format!(
                "the Pact broker knows what became of {pacts} with `{name}` {number}"
            ));
        }
        Ok(ended)
    }

    /// The Pact broker, if one is named.
    async fn broker(&self) -> anyhow::Result<Option<PactBroker>> {
        let only_there = [
            ("--selector", !self.selector.is_empty()),
            ("--branch", self.branch.is_some()),
            ("--publish", self.publish.is_some()),
        ];
        let given = only_there.iter().find(|(_, is_given)| *is_given);
        let urls = self.pacts.iter().filter_map(|it| url(it));
        match (urls.collect::<Vec<_>>().as_slice(), given) {
            ([], None) => Ok(None),
            ([], Some((option, _))) => {
                anyhow::bail!(Usage::new(format!(
                    "`{option}` is for pacts of a Pact broker: give its URL instead of files"
                )))
            }
            ([url], _) if self.pacts.len() == 1 => {
                let broker = PactBroker::open(url).await?;
                if broker.is_pact() && !self.selector.is_empty() {
                    anyhow::bail!(Usage::new(
                        "`--selector` is for the URL of a Pact broker, and this is that of one pact"
                    ));
                }
                if broker.is_pact() && self.publish.is_none() && self.branch.is_some() {
                    anyhow::bail!(Usage::new(
                        "for one pact `--branch` is only told with `--publish`"
                    ));
                }
                Ok(Some(broker))
            }
            _ => anyhow::bail!(Usage::new(
                "give one URL, of a Pact broker or of a pact, and nothing beside it; or only files and folders"
            )),
        }
    }

    fn read(&self) -> anyhow::Result<Vec<Source>> {
        let read = |file: PathBuf| {
            let pact = Pact::load(&file).map_err(|error| Code::ContractFile.of(error))?;
            Ok(Source {
                from: file.display().to_string(),
                pact,
                fetched: None,
            })
        };
        pacts(&self.pacts)?.into_iter().map(read).collect()
    }

    async fn fetched(&self, broker: &PactBroker, name: &str) -> anyhow::Result<Vec<Source>> {
        let wanted = Wanted {
            provider: name,
            selectors: &self.selector,
            branch: self.branch.as_deref(),
        };
        let parsed = |fetched: Fetched| {
            let from = fetched.from.clone();
            let pact = Pact::parse(&fetched.pact.to_string(), &from);
            Ok(Source {
                pact: pact.map_err(|error| Code::ContractFile.of(error))?,
                from,
                fetched: Some(fetched),
            })
        };
        let fetched = broker.pacts(&wanted).await?;
        fetched.into_iter().map(parsed).collect()
    }
}

/// What the Pact broker is told about a pact.
fn verdict(pact: &Value, rows: &[Row]) -> Verdict {
    let listed = pact["interactions"]
        .as_array()
        .or(pact["messages"].as_array());
    let results = rows.iter().enumerate().map(|(number, row)| {
        let mismatches = row.problems.iter();
        let mismatches: Vec<Value> = mismatches.map(|it| json!({ "description": it })).collect();
        let mut result = json!({
            "interactionDescription": row.description,
            "success": row.is_kept(),
            "mismatches": mismatches,
        });
        // The broker's own name for it.
        let id = listed.and_then(|it| it.get(number)?["_id"].as_str());
        if let Some(id) = id {
            result["interactionId"] = id.into();
        }
        result
    });
    Verdict {
        results: results.collect(),
        is_kept: rows.iter().all(Row::is_kept),
    }
}

impl Row {
    fn new(pact: &str, consumer: &str, pending: bool, verified: Verified) -> Self {
        let (outcome, problems) = match verified.outcome {
            Outcome::Kept => ("kept", Vec::new()),
            Outcome::Broken(problems) => ("broken", problems),
            Outcome::Untried(why) => ("untried", vec![why]),
            _ => ("untried", Vec::new()),
        };
        Self {
            pact: pact.to_owned(),
            consumer: consumer.to_owned(),
            description: verified.description,
            states: verified.states,
            pending,
            outcome,
            problems,
        }
    }

    fn is_kept(&self) -> bool {
        self.outcome == "kept"
    }
}

fn show(frame: &Frame, provider: &str, interactions: Vec<Row>) -> anyhow::Result<Ended> {
    let is_nothing = interactions.is_empty();
    let kept = interactions.iter().filter(|it| it.is_kept()).count();
    let is_pending = |it: &&Row| it.pending && !it.is_kept();
    let pending = interactions.iter().filter(is_pending).count();
    let count = interactions.len() - pending;
    frame.out.show(&Compared {
        provider: provider.to_owned(),
        interactions,
    })?;
    if is_nothing {
        let error = format!("no pact expects anything of `{provider}`");
        return Err(Code::PactBroken.of(error));
    }
    if kept == count {
        return Ok(Ended::Done);
    }
    let error = Code::PactBroken.of(format!(
        "`{provider}` keeps {kept} of the {count} expectations"
    ));
    frame.out.note(&format!("tidings: {error}"));
    Ok(Ended::Problem)
}
