//! `tidings contracts register`: puts the schemas of events into a schema registry.

use serde::Serialize;
use tidings_registry::Subjects;

use crate::{
    frame::{Ended, Frame},
    out::{Page, Report, counted},
    verbs::contracts::{
        files::Documents,
        registry::{SchemaRegistry, subjects},
    },
};

/// Puts the schemas of the events that services send into a schema registry, as the latest of their subjects.
///
/// To be done before what sends them is deployed. What is there already stays as it is. The registry's own rule of
/// compatibility may refuse a change.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    documents: Documents,

    /// The registry, `http://user:password@registry:8081`
    #[arg(long, value_name = "URL")]
    to: String,

    /// How subjects are called, as `schema_subject` in the broker's URL: `topic`, `message` or `topic-message`
    #[arg(long, value_name = "WAY", default_value = "topic", value_parser = subjects)]
    subject: Subjects,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts register published/ --to http://registry:8081
  tidings contracts register published/ --to http://registry:8081 --subject message

As JSON: {schemas: [{message, subject, id, wasThere}], without: [message]}.";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    schemas: Vec<Row>,
    /// Events whose documents have no schema.
    without: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    message: String,
    subject: String,
    id: u32,
    was_there: bool,
}

impl Report for Done {
    fn tell(&self, page: &mut Page) {
        for row in &self.schemas {
            let did = match row.was_there {
                true => "was there",
                false => "registered",
            };
            page.line(format!(
                "{did}: `{}` under `{}`, as schema {}",
                row.message, row.subject, row.id
            ));
        }
        for name in &self.without {
            page.line(format!("left out: `{name}`, whose document has no schema"));
        }
        if self.schemas.is_empty() {
            page.line("no event that is sent has a schema: nothing is registered");
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let documents = self.documents.load().await?;
        let registry = SchemaRegistry::open(&self.to, self.subject)?;
        let (events, without) = registry.events(&documents)?;
        let mut schemas = Vec::new();
        let mut refused = None;
        for event in &events {
            match registry.register(event).await {
                Ok((id, was_there)) => schemas.push(Row {
                    message: event.contract.name.clone(),
                    subject: event.subject.clone(),
                    id,
                    was_there,
                }),
                Err(error) => {
                    let left = counted((events.len() - schemas.len()) as u64, "schema", "schemas");
                    refused = Some(error.context(format!("{left} not registered")));
                    break;
                }
            }
        }
        // Also when a later one is refused: these are there.
        frame.out.show(&Done {
            schemas,
            without: without.into_iter().map(str::to_owned).collect(),
        })?;
        refused.map_or(Ok(Ended::Done), Err)
    }
}
