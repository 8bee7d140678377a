//! The four mistakes of event-driven systems, as far as documents show them; and bodies that grow.

use serde_json::Value;

use super::{Finding, Severity, about};
use crate::document::{Contract, Document, MessageKind};

/// How many of the largest fields are named.
const FIELDS_MAX: usize = 3;

/// From which share of its limit on a body is told about.
const NEARLY: u64 = 80;

/// The largest body that passes where nothing is said, in bytes: the toolkit's own limit.
pub(crate) const BYTES_MAX: u64 = 64 * 1024;

/// What to do about the name of an event that is a command.
pub(crate) const NAME_TODO: &str =
    "Rename it, or make it a command: to a queue of the service that carries it out";

/// What to do about a body that is too large.
pub(crate) const LARGE_TODO: &str = "Send ids and a claim check instead, or raise `body_bytes_max`";

/// What is likely a mistake in each of the documents.
pub fn lints(documents: &[Document]) -> Vec<Finding> {
    let mut found = Vec::new();
    for document in documents {
        for contract in &document.sends {
            found.extend(name(document, contract));
            found.extend(size(document, contract));
            found.extend(end(documents, document, contract));
        }
        for contract in &document.receives {
            found.extend(acknowledgement(document, contract));
            found.extend(dead_letters(document, contract));
        }
    }
    found
}

/// A command in disguise.
fn name(document: &Document, contract: &Contract) -> Option<Finding> {
    if contract.kind != MessageKind::Event {
        return None;
    }
    let what = tidings_names::check_past_tense(&contract.name).err()?;
    Some(Finding {
        severity: Severity::Warning,
        what: format!("the event {what}"),
        todo: NAME_TODO.to_owned(),
        ..about("command-like-event", document, contract, None)
    })
}

fn acknowledgement(document: &Document, contract: &Contract) -> Option<Finding> {
    if contract.acknowledges != Some(false) {
        return None;
    }
    Some(Finding {
        what: format!(
            "`{}` receives `{}` without acknowledging: what it has not finished when it stops is lost",
            document.service, contract.name
        ),
        todo: "Acknowledge after the work is done, and say so: `bindings.amqp.ack: true`"
            .to_owned(),
        ..about("no-acknowledgement", document, contract, Some(document))
    })
}

fn dead_letters(document: &Document, contract: &Contract) -> Option<Finding> {
    if contract.dead_letters.is_some() {
        return None;
    }
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "`{}` receives `{}`, and nothing says where a message goes that it cannot handle",
            document.service, contract.name
        ),
        todo: "Give the queue dead letters, and say so: `x-tidings: {deadLetters: NAME}` at the operation".to_owned(),
        ..about("no-dead-letters", document, contract, Some(document))
    })
}

/// The largest example beside the budget of the message.
fn size(document: &Document, contract: &Contract) -> Option<Finding> {
    let budget = contract.body_bytes_max.unwrap_or(BYTES_MAX);
    let largest = contract.examples.iter().max_by_key(|it| bytes(&it.body))?;
    let fields = largest_fields(&largest.body);
    let (severity, what) = over_budget(&contract.name, bytes(&largest.body), budget, &fields)?;
    Some(Finding {
        severity,
        what: format!("an example of {what}"),
        todo: LARGE_TODO.to_owned(),
        ..about("large-payload", document, contract, None)
    })
}

/// Whether a body is over its budget or near it, and what is said then.
pub(crate) fn over_budget(
    name: &str,
    size: u64,
    budget: u64,
    largest: &str,
) -> Option<(Severity, String)> {
    if size.saturating_mul(100) < budget.saturating_mul(NEARLY) {
        return None;
    }
    let severity = match size > budget {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let what =
        format!("`{name}` has {size} bytes, and its budget is {budget}; the most is in {largest}");
    Some((severity, what))
}

fn bytes(body: &Value) -> u64 {
    body.to_string().len() as u64
}

/// The largest fields of a body by name, with their bytes.
pub(crate) fn largest_fields(body: &Value) -> String {
    let Value::Object(fields) = body else {
        return "the body itself".to_owned();
    };
    let mut sizes: Vec<(u64, &String)> =
        fields.iter().map(|(name, it)| (bytes(it), name)).collect();
    sizes.sort_by(|one, other| other.cmp(one));
    let named = sizes.iter().take(FIELDS_MAX);
    let named: Vec<String> = named
        .map(|(size, name)| format!("`{name}` ({size})"))
        .collect();
    named.join(", ")
}

/// A message that ends, and those who still read it.
fn end(documents: &[Document], document: &Document, contract: &Contract) -> Option<Finding> {
    let ends = contract.deprecated.as_ref()?;
    let readers: Vec<&str> = documents
        .iter()
        .filter(|it| it.received(&contract.name).is_some())
        .map(|it| &*it.service)
        .collect();
    if readers.is_empty() {
        return None;
    }
    let until = ends
        .until
        .as_ref()
        .map_or(String::new(), |day| format!(" until {day}"));
    let instead = ends.instead.as_ref();
    Some(Finding {
        severity: Severity::Warning,
        what: format!(
            "`{}` is deprecated since {} and sent{until}; {} still read it",
            contract.name,
            ends.since,
            readers.join(", ")
        ),
        todo: match instead {
            Some(instead) => format!("Read `{instead}` instead"),
            None => "Do without it".to_owned(),
        },
        ..about("deprecated", document, contract, None)
    })
}
