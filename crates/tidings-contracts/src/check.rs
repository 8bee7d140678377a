//! Whether the services of a system understand each other, and whom a change breaks.
//!
//! | function | what it compares |
//! | --- | --- |
//! | [`system`] | what each service sends with what each consumer of it reads, as they are now |
//! | [`changes`] | the documents of before, which are deployed, with those of now, which are to be |
//! | [`registered`] | what is sent with what a schema registry has |
//! | [`lints`] | each message with the four mistakes: an event that is a command in disguise, no dead letters, no acknowledgement, bodies that are too large |
//!
//! A rolling deployment runs both versions of a service side by side, and queues, outboxes, dead letters and kept events
//! hold messages of the old one for days. So a change of a sender must be understood by the consumers that are deployed
//! ([`Rule::Forward`]), and a change of a consumer must understand what was sent before ([`Rule::Backward`]).

pub(crate) mod lints;
mod registered;

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use crate::{
    compat::{Break, What},
    document::{Contract, Document, MessageKind, family},
    formats::{self, Side},
    schema,
};

pub use lints::lints;
pub use registered::{Registered, registered};

/// Something that is wrong with contracts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of finding it is, for programs: `sender-changed`, `consumer-changed`, `mismatch`, ...
    pub rule: &'static str,
    /// The message that it is about.
    pub message: String,
    /// The service that has to act.
    pub service: String,
    /// The consumer that is broken, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// The field, if it is one: `items[].quantity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, as a sentence.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Messages will not be understood, or are lost for somebody.
    Error,
    /// It may be meant.
    Warning,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}. {}", self.what, self.todo)
    }
}

/// Which side of a change is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// Consumers of now understand messages of before: consumers are deployed first.
    Backward,
    /// Consumers of before understand messages of now: senders are deployed first.
    Forward,
    /// Both: services are deployed in any order.
    #[default]
    Full,
}

impl Rule {
    const fn is_backward(self) -> bool {
        matches!(self, Self::Backward | Self::Full)
    }

    const fn is_forward(self) -> bool {
        matches!(self, Self::Forward | Self::Full)
    }
}

/// Whether the services understand each other.
pub fn system(documents: &[Document]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (sender, sent) in sent(documents) {
        for (reader, read) in received(documents, &sent.name) {
            if sent.address != read.address {
                found.push(Finding {
                    what: format!(
                        "`{}` sends `{}` to `{}`, and `{}` receives it from `{}`",
                        sender.service, sent.name, sent.address, reader.service, read.address
                    ),
                    todo: "Agree on one topic".to_owned(),
                    ..about("mismatch", sender, sent, Some(reader))
                });
            }
            for it in breaks(sent, read) {
                found.push(Finding {
                    field: field(&it),
                    what: format!(
                        "`{}` cannot read all that `{}` sends as `{}`: {it}",
                        reader.service, sender.service, sent.name
                    ),
                    todo: mend(&it, sent),
                    ..about("mismatch", sender, sent, Some(reader))
                });
            }
        }
        for (reader, read) in received(documents, &sent.name) {
            // One sender that writes it is enough: others may know less.
            let is_written = |path: &str| {
                let mut all = self::sent(documents).filter(|(_, it)| it.name == sent.name);
                all.any(|(_, it)| declares(it, path))
            };
            let unwritten = read.uses.iter().filter(|it| !is_written(it));
            found.extend(unwritten.map(|path| Finding {
                rule: "mismatch",
                ..unused(sender, sent, path, reader)
            }));
        }
        if sent.kind == MessageKind::Command && received(documents, &sent.name).next().is_none() {
            found.push(Finding {
                severity: Severity::Warning,
                what: format!(
                    "`{}` sends the command `{}`, and no document says who carries it out",
                    sender.service, sent.name
                ),
                todo: "Check the documents of all services together".to_owned(),
                ..about("unheard", sender, sent, None)
            });
        }
    }
    found
}

/// Whom the changes from `before` to `now` break. What was broken before is not told again.
pub fn changes(before: &[Document], now: &[Document], rule: Rule) -> Vec<Finding> {
    let mut found = Vec::new();
    if rule.is_forward() {
        for (sender, sent) in sent(before) {
            if let Some(document) = now.iter().find(|it| it.service == sender.service) {
                match document.sent(&sent.name) {
                    Some(new) => sender_changed(before, (document, sent, new), &mut found),
                    None => not_sent(before, now, (document, sent), &mut found),
                }
            }
        }
    }
    if rule.is_backward() {
        for document in now {
            let deployed = before.iter().find(|it| it.service == document.service);
            for read in &document.receives {
                let old = deployed.and_then(|it| it.received(&read.name));
                consumer_changed(before, (document, read, old), &mut found);
            }
        }
    }
    found
}

/// A sender writes something else: do those who are deployed read it?
fn sender_changed(
    before: &[Document],
    (sender, old, new): (&Document, &Contract, &Contract),
    found: &mut Vec<Finding>,
) {
    if old.address != new.address {
        found.push(Finding {
            what: format!(
                "`{}` went from `{}` to `{}`, where none of its consumers listens",
                new.name, old.address, new.address
            ),
            todo: "Give it a new version, and send both until everybody has moved".to_owned(),
            ..about("sender-changed", sender, new, None)
        });
    }
    let mut told = BTreeSet::new();
    for (reader, read) in received(before, &new.name) {
        let known = breaks(old, read);
        for it in breaks(new, read)
            .into_iter()
            .filter(|it| !known.contains(it))
        {
            told.insert(it.path.clone());
            found.push(Finding {
                field: field(&it),
                what: format!(
                    "`{}` {} cannot read `{}` as `{}` {} writes it: {it}",
                    reader.service, reader.version, new.name, sender.service, sender.version
                ),
                todo: mend(&it, new),
                ..about("sender-changed", sender, new, Some(reader))
            });
        }
    }
    // Consumers of which there is no document read what was promised.
    for it in breaks(new, old)
        .into_iter()
        .filter(|it| !told.contains(&it.path))
    {
        found.push(Finding {
            field: field(&it),
            what: format!(
                "the shape of `{}` changed without a new version: {} now: {it}",
                new.name, sender.service
            ),
            todo: mend(&it, new),
            ..about("shape-changed", sender, new, None)
        });
    }
    for (reader, read) in received(before, &new.name) {
        for path in read
            .uses
            .iter()
            .filter(|it| declares(old, it) && !declares(new, it))
        {
            if !is_told(found, new, path, reader) {
                told.insert(path.clone());
                found.push(unused(sender, new, path, reader));
            }
        }
    }
    for path in gone(old, new).into_iter().filter(|it| !told.contains(it)) {
        let already = found.iter().any(|it| {
            it.message == new.name && it.field.as_deref() == Some(&path) && it.consumer.is_none()
        });
        if !already {
            found.push(Finding {
                severity: Severity::Warning,
                field: Some(path.clone()),
                what: format!(
                    "`{path}` of `{}` is not written any more; no consumer says that it uses it",
                    new.name
                ),
                todo: "Others may: keep it until you know".to_owned(),
                ..about("shape-changed", sender, new, None)
            });
        }
    }
}

/// Whether this is told of this consumer.
fn is_told(found: &[Finding], contract: &Contract, path: &str, reader: &Document) -> bool {
    found.iter().any(|it| {
        it.message == contract.name
            && it.field.as_deref() == Some(path)
            && it.consumer.as_ref() == Some(&reader.service)
    })
}

/// A field that a consumer uses when it is there, and that is never there.
fn unused(sender: &Document, sent: &Contract, path: &str, reader: &Document) -> Finding {
    Finding {
        field: Some(path.to_owned()),
        what: format!(
            "`{}` {} uses `{path}` of `{}`, and `{}` {} never writes it",
            reader.service, reader.version, sent.name, sender.service, sender.version
        ),
        todo: mend(
            &Break {
                path: path.to_owned(),
                what: What::Missing,
            },
            sent,
        ),
        ..about("sender-changed", sender, sent, Some(reader))
    }
}

/// Whether the message may have this field.
fn declares(contract: &Contract, path: &str) -> bool {
    // What is not known is not missed.
    let fields = contract.body.fields(Side::Sender);
    fields.is_none_or(|schema| schema::declares(&schema, &schema, path))
}

/// A sender has stopped to send something.
fn not_sent(
    before: &[Document],
    now: &[Document],
    (sender, old): (&Document, &Contract),
    found: &mut Vec<Finding>,
) {
    if now.iter().any(|it| it.sent(&old.name).is_some()) {
        // Another service says it.
        return;
    }
    let newer = sender.sends.iter().find(|it| {
        let (name, version) = it.family();
        name == old.family().0 && version > old.family().1
    });
    for (reader, _) in received(before, &old.name) {
        if newer.is_some_and(|newer| reader.received(&newer.name).is_some()) {
            continue;
        }
        let todo = match newer {
            Some(newer) => format!(
                "Send both `{}` and `{}` until `{}` reads the new one",
                old.name, newer.name, reader.service
            ),
            None => format!("Send it until `{}` does without it", reader.service),
        };
        found.push(Finding {
            what: format!(
                "`{}` {} does not send `{}` any more, and `{}` {} waits for it",
                sender.service, sender.version, old.name, reader.service, reader.version
            ),
            todo,
            ..about("sender-changed", sender, old, Some(reader))
        });
    }
}

/// A consumer reads something else: does it read what waits for it?
fn consumer_changed(
    before: &[Document],
    (reader, new, old): (&Document, &Contract, Option<&Contract>),
    found: &mut Vec<Finding>,
) {
    let senders = sent(before).filter(|(_, it)| it.name == new.name);
    for (sender, sent) in senders {
        let known = old.map(|old| breaks(sent, old)).unwrap_or_default();
        for it in breaks(sent, new)
            .into_iter()
            .filter(|it| !known.contains(it))
        {
            found.push(Finding {
                field: field(&it),
                service: reader.service.clone(),
                what: format!(
                    "`{}` {} cannot read `{}` as `{}` {} wrote it, and such messages still wait: {it}",
                    reader.service, reader.version, new.name, sender.service, sender.version
                ),
                todo: match it.what {
                    What::Missing | What::Optional => {
                        "Give the field a default (`#[serde(default)]`), or make it an `Option`"
                            .to_owned()
                    }
                    _ => format!(
                        "Read both, or give the message a new version and an upcaster (`.upcast::<Old, New>()`) for `{}`",
                        new.name
                    ),
                },
                ..about("consumer-changed", reader, new, Some(reader))
            });
        }
    }
}

/// What of the one is not read by the other.
fn breaks(written: &Contract, read: &Contract) -> Vec<Break> {
    formats::breaks(&written.body, &read.body)
}

/// The fields that were written and are not any more, outer ones only.
fn gone(old: &Contract, new: &Contract) -> Vec<String> {
    let fields = |contract: &Contract| {
        let fields = contract.body.fields(Side::Sender);
        fields.map(|it| it.into_owned())
    };
    let (Some(old), Some(new)) = (fields(old), fields(new)) else {
        return Vec::new();
    };
    let names = |schema: &serde_json::Value| -> BTreeSet<String> {
        let properties = schema["properties"].as_object();
        properties
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect()
    };
    names(&old).difference(&names(&new)).cloned().collect()
}

fn sent(documents: &[Document]) -> impl Iterator<Item = (&Document, &Contract)> {
    let all = documents.iter();
    all.flat_map(|document| document.sends.iter().map(move |it| (document, it)))
}

fn received<'a>(
    documents: &'a [Document],
    name: &str,
) -> impl Iterator<Item = (&'a Document, &'a Contract)> {
    let all = documents.iter();
    all.filter_map(move |document| Some((document, document.received(name)?)))
}

/// The parts of a finding that do not depend on what it is.
fn about(
    rule: &'static str,
    service: &Document,
    contract: &Contract,
    consumer: Option<&Document>,
) -> Finding {
    Finding {
        severity: Severity::Error,
        rule,
        message: contract.name.clone(),
        service: service.service.clone(),
        consumer: consumer.map(|it| it.service.clone()),
        field: None,
        what: String::new(),
        todo: String::new(),
    }
}

fn field(it: &Break) -> Option<String> {
    (!it.path.is_empty()).then(|| it.path.clone())
}

/// What a sender can do.
fn mend(it: &Break, sent: &Contract) -> String {
    let (name, version) = family(&sent.name);
    let next = format!("{name}.v{}", version.unwrap_or(1) + 1);
    let both = format!(
        "send it as `{next}` beside `{}` until everybody reads the new one",
        sent.name
    );
    match it.what {
        What::Missing | What::Optional => {
            format!("Keep `{}` in `{}`, or {both}", it.path, sent.name)
        }
        What::Unclear { .. } => "Say it in words that can be compared".to_owned(),
        _ => format!("Keep what it was, or {both}"),
    }
}
