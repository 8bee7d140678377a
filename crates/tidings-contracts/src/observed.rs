//! What really flows, compared with what documents say: of systems whose programs nobody can ask, in any language.
//!
//! Whoever listens tells [`Observed`] of each message. It counts, remembers the largest, and compares each body with the
//! schema of who sends it and of each who reads it. Without documents it learns what bodies have in common, which is a
//! first [`document`](Observed::document) for a team that has none.
//!
//! No value of a body is kept or told, since it may be somebody's: findings name places and kinds, documents have no
//! examples.

mod shape;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jsonschema::Validator;
use serde::Serialize;
use serde_json::Value;

use self::shape::Shape;
use crate::{
    check::{
        Finding, Severity,
        lints::{BYTES_MAX, LARGE_TODO, NAME_TODO, largest_fields, over_budget},
    },
    document::{Body, Contract, Document, MessageKind},
};

/// How many different problems of one message are kept; further ones are counted.
const PROBLEMS_MAX: usize = 50;
/// How many different names are kept; messages of further ones are counted together.
const NAMES_MAX: usize = 1_000;
/// The name under which messages are counted whose own has no more room.
const OTHERS: &str = "(others)";

/// A message that was heard.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Heard<'a> {
    /// The topic or the queue.
    pub address: &'a str,
    /// Its name with its version; empty if it has none.
    pub name: &'a str,
    /// Whether it is an event: others are not asked for the past tense.
    pub is_event: bool,
    /// Who sent it, if it says so.
    pub source: &'a str,
    /// Whether it has an id.
    pub has_id: bool,
    /// Whether it has a key.
    pub has_key: bool,
    /// Its body.
    pub body: &'a [u8],
}

impl<'a> Heard<'a> {
    /// An event of which only this is known.
    pub const fn event(address: &'a str, name: &'a str, body: &'a [u8]) -> Self {
        Self {
            address,
            name,
            is_event: true,
            source: "",
            has_id: false,
            has_key: false,
            body,
        }
    }
}

/// What was heard so far.
#[derive(Debug, Default)]
pub struct Observed {
    documents: Vec<Document>,
    seen: BTreeMap<(String, String), Seen>,
}

/// What was heard of one message at one address.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Seen {
    /// Its name; empty if it has none.
    pub name: String,
    /// The topic or the queue.
    pub address: String,
    /// How often it came.
    pub count: u64,
    /// The average body, in bytes.
    pub bytes_average: u64,
    /// The largest body, in bytes.
    pub bytes_max: u64,
    /// How many came without an id.
    pub without_id: u64,
    /// How many came without a key.
    pub without_key: u64,
    /// How many bodies were no JSON.
    pub not_json: u64,
    /// Who sent it, as the messages say.
    pub sources: BTreeSet<String>,
    /// The services by whose schemas its bodies were checked.
    pub checked_by: Vec<String>,
    /// Why its bodies were not checked, if there is a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
    #[serde(skip)]
    is_event: bool,
    #[serde(skip)]
    bytes: u64,
    #[serde(skip)]
    largest: String,
    #[serde(skip)]
    shape: Shape,
    #[serde(skip)]
    sides: Vec<Side>,
    #[serde(skip)]
    limit: Option<u64>,
    #[serde(skip)]
    is_documented: bool,
}

/// One service's schema, and what was not as it says.
#[derive(Debug, Clone)]
struct Side {
    service: String,
    is_sender: bool,
    schema: Arc<Validator>,
    problems: BTreeMap<(String, String), Problem>,
    further: u64,
}

#[derive(Debug, Clone)]
struct Problem {
    count: u64,
    /// Where it was the first time, as a JSON pointer.
    first: String,
}

impl Observed {
    /// Compares with these documents; with none it only learns.
    pub fn new(documents: &[Document]) -> Self {
        Self {
            documents: documents.to_vec(),
            seen: BTreeMap::new(),
        }
    }

    /// One more message.
    pub fn add(&mut self, heard: &Heard<'_>) {
        let is_full = self.seen.len() >= NAMES_MAX;
        let mut key = (heard.address.to_owned(), heard.name.to_owned());
        if is_full && !self.seen.contains_key(&key) {
            key = (String::new(), OTHERS.to_owned());
        }
        let documents = &self.documents;
        let seen = self.seen.entry(key).or_insert_with_key(|(address, name)| {
            Seen::new(documents, address, name, heard.is_event)
        });
        seen.add(heard);
    }

    /// What was heard, by address and name.
    pub fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.seen.values()
    }

    /// What is wrong with it.
    pub fn findings(&self) -> Vec<Finding> {
        let has_documents = !self.documents.is_empty();
        let all = self.seen.values();
        all.flat_map(|it| it.findings(has_documents)).collect()
    }

    /// A document of all that was heard, as one service sends it, with a schema of what the bodies have in common. It is
    /// a start: what came only sometimes may be left out, and what came always is required.
    pub fn document(&self, service: &str) -> Document {
        let mut document = Document::new(service, "0.1.0");
        document.description = Some("What was heard; read it before you rely on it.".to_owned());
        for seen in self.seen.values().filter(|it| it.name != OTHERS) {
            let kind = match seen.is_event {
                true => MessageKind::Event,
                false => MessageKind::Command,
            };
            let mut contract = Contract::new(seen.called(), kind, &seen.address);
            contract.body = match seen.not_json {
                0 => Body::Json(seen.shape.schema()),
                _ => Body::Unsaid,
            };
            document.sends.push(contract);
        }
        document
    }
}

/// The contracts that a message is compared with: those of its name, or, if it has none, those of the one message that is
/// sent to the topic, or that is received from the queue.
fn contracts<'a>(
    documents: &'a [Document],
    address: &str,
    name: &str,
) -> Vec<(&'a Document, &'a Contract, bool)> {
    let all = || {
        documents.iter().flat_map(|document| {
            let sent = document.sends.iter().map(move |it| (document, it, true));
            let received = document
                .receives
                .iter()
                .map(move |it| (document, it, false));
            sent.chain(received)
        })
    };
    if !name.is_empty() {
        return all().filter(|(_, it, _)| it.name == name).collect();
    }
    let is_there = |it: &Contract| it.address == address || it.queue.as_deref() == Some(address);
    let there: Vec<_> = all().filter(|(_, it, _)| is_there(it)).collect();
    let names: BTreeSet<&str> = there.iter().map(|(_, it, _)| &*it.name).collect();
    match names.len() {
        1 => there,
        _ => Vec::new(),
    }
}

impl Seen {
    fn new(documents: &[Document], address: &str, name: &str, is_event: bool) -> Self {
        let mut seen = Self {
            name: name.to_owned(),
            address: address.to_owned(),
            is_event,
            ..Self::default()
        };
        for (document, contract, is_sender) in contracts(documents, address, name) {
            seen.is_documented = true;
            if is_sender && let Some(bytes) = contract.body_bytes_max {
                seen.limit = Some(seen.limit.map_or(bytes, |it| it.max(bytes)));
            }
            let schema = match &contract.body {
                Body::Json(schema) => schema,
                body @ (Body::Avro(_) | Body::Protobuf { .. } | Body::Other(_)) => {
                    let format = body.format();
                    seen.unchecked = Some(format!("`{}` has it as {format}", document.service));
                    continue;
                }
                Body::Unsaid => {
                    seen.unchecked = Some(format!("`{}` has no schema of it", document.service));
                    continue;
                }
            };
            let options = jsonschema::draft7::options().should_validate_formats(true);
            match options.build(schema) {
                Ok(schema) => {
                    seen.checked_by.push(document.service.clone());
                    seen.sides.push(Side {
                        service: document.service.clone(),
                        is_sender,
                        schema: schema.into(),
                        problems: BTreeMap::new(),
                        further: 0,
                    });
                }
                Err(error) => {
                    let service = &document.service;
                    seen.unchecked =
                        Some(format!("the schema of `{service}` cannot be used: {error}"));
                }
            }
        }
        seen
    }

    fn add(&mut self, heard: &Heard<'_>) {
        let bytes = heard.body.len() as u64;
        self.count += 1;
        self.bytes += bytes;
        self.bytes_average = self.bytes / self.count;
        self.without_id += u64::from(!heard.has_id);
        self.without_key += u64::from(!heard.has_key);
        if !heard.source.is_empty() && self.sources.len() < NAMES_MAX {
            self.sources.insert(heard.source.to_owned());
        }
        let is_largest = bytes > self.bytes_max;
        self.bytes_max = self.bytes_max.max(bytes);
        let Ok(body) = serde_json::from_slice::<Value>(heard.body) else {
            if is_largest {
                "the body itself, which is no JSON".clone_into(&mut self.largest);
            }
            self.not_json += 1;
            return;
        };
        if is_largest {
            self.largest = largest_fields(&body);
        }
        // What has no name in common has no shape in common.
        if self.name != OTHERS {
            self.shape.learn(&body);
        }
        for side in &mut self.sides {
            side.compare(&body);
        }
    }

    /// What it is called in a document and in findings: a message without a name by where it goes.
    fn called(&self) -> &str {
        match &*self.name {
            "" => &self.address,
            name => name,
        }
    }

    fn findings(&self, has_documents: bool) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut tell = |severity, rule, what: String, todo: &str| {
            found.push(Finding {
                severity,
                rule,
                message: self.called().to_owned(),
                service: self.senders(),
                consumer: None,
                field: None,
                what,
                todo: todo.to_owned(),
            });
        };
        let (name, address) = (self.called(), &self.address);
        let of = |part: u64| format!("{part} of {}", self.count);
        if self.is_event
            && !self.name.is_empty()
            && self.name != OTHERS
            && let Err(what) = tidings_names::check_past_tense(&self.name)
        {
            tell(
                Severity::Warning,
                "command-like-event",
                format!("the event {what}"),
                NAME_TODO,
            );
        }
        if self.name.is_empty() {
            tell(
                Severity::Warning,
                "no-name",
                format!(
                    "messages at `{address}` have no name: who reads them takes each for the same"
                ),
                "Name them: the header `cloudEvents:type`, or AMQP's property `type`",
            );
        }
        if self.without_id > 0 {
            tell(
                Severity::Warning,
                "no-id",
                format!(
                    "`{name}`: {} came without an id, so a consumer cannot tell that one came twice",
                    of(self.without_id)
                ),
                "Give each its id: the header `cloudEvents:id`, or AMQP's property `message-id`",
            );
        }
        if self.without_key > 0 && self.without_key < self.count {
            tell(
                Severity::Warning,
                "no-key",
                format!(
                    "`{name}`: {} came without a key, the others with one",
                    of(self.without_key)
                ),
                "Give all of them the key of what they are about, or their order is not kept",
            );
        }
        if let Some((severity, what)) = over_budget(
            name,
            self.bytes_max,
            self.limit.unwrap_or(BYTES_MAX),
            &self.largest,
        ) {
            tell(
                severity,
                "large-payload",
                format!("a body of {what}"),
                LARGE_TODO,
            );
        }
        if self.not_json > 0 && self.unchecked.is_none() {
            let (severity, who) = match self.checked_by.as_slice() {
                [] => (Severity::Warning, String::new()),
                all => (
                    Severity::Error,
                    format!(", as which {} have it", all.join(", ")),
                ),
            };
            tell(
                severity,
                "not-json",
                format!("`{name}`: {} were no JSON{who}", of(self.not_json)),
                "See who sends them; a consumer can only put them aside",
            );
        }
        if has_documents && !self.is_documented && self.name != OTHERS {
            let what = match self.name.is_empty() {
                true => format!(
                    "messages without a name come at `{address}`, and no document says that there is one message there"
                ),
                false => format!("`{name}` comes at `{address}`, and no document has it"),
            };
            tell(
                Severity::Warning,
                "undocumented",
                what,
                "Ask its sender for a document, or begin one with `--write`",
            );
        }
        found.extend(self.sides.iter().flat_map(|side| side.findings(self)));
        found
    }

    /// Who has to act, as far as the messages say.
    fn senders(&self) -> String {
        let documented = self.sides.iter().filter(|it| it.is_sender);
        let documented: Vec<&str> = documented.map(|it| &*it.service).collect();
        match (documented.is_empty(), self.sources.is_empty()) {
            (false, _) => documented.join(", "),
            (true, false) => self.sources.iter().cloned().collect::<Vec<_>>().join(", "),
            (true, true) => "unknown".to_owned(),
        }
    }
}

impl Side {
    fn compare(&mut self, body: &Value) {
        let mut told = BTreeSet::new();
        for error in self.schema.iter_errors(body) {
            let first = error.instance_path().to_string();
            let problem = (dotted(&first), error.masked().to_string());
            // Several items of one list are one body all the same.
            if !told.insert(problem.clone()) {
                continue;
            }
            let is_full = self.problems.len() >= PROBLEMS_MAX;
            if is_full && !self.problems.contains_key(&problem) {
                self.further += 1;
                continue;
            }
            let known = self.problems.entry(problem);
            known.or_insert(Problem { count: 0, first }).count += 1;
        }
    }

    fn findings(&self, seen: &Seen) -> Vec<Finding> {
        let (service, name) = (&self.service, seen.called());
        let of_this = |field: Option<String>, what: String| Finding {
            severity: Severity::Error,
            rule: "body-differs",
            message: name.to_owned(),
            service: seen.senders(),
            consumer: (!self.is_sender).then(|| service.clone()),
            field,
            what,
            todo: match self.is_sender {
                true => format!("Mend the sender, or what the document of `{service}` says"),
                false => format!("Send what `{service}` reads, or send a new version beside it"),
            },
        };
        let mut found: Vec<Finding> = self
            .problems
            .iter()
            .map(|((path, what), problem)| {
                let side = if self.is_sender { "sends" } else { "reads" };
                let place = match &*problem.first {
                    "" => "the body".to_owned(),
                    first => format!("`{first}`"),
                };
                of_this(
                    (!path.is_empty()).then(|| path.clone()),
                    format!(
                        "`{name}` is not as `{service}` {side} it in {} of {}: {place}: {what}",
                        problem.count, seen.count
                    ),
                )
            })
            .collect();
        if self.further > 0 {
            let what = format!(
                "`{name}` differs in {} further ways from what `{service}` says",
                self.further
            );
            found.push(of_this(None, what));
        }
        found
    }
}

/// A JSON pointer as findings write a place, for all items of a list: `items[].quantity` of `/items/0/quantity`.
fn dotted(pointer: &str) -> String {
    let steps = pointer.split('/').skip(1).map(|step| {
        let is_index = !step.is_empty() && step.bytes().all(|it| it.is_ascii_digit());
        (!is_index).then(|| step.replace("~1", "/").replace("~0", "~"))
    });
    let steps: Vec<Option<String>> = steps.collect();
    crate::schema::dotted(steps.iter().map(Option::as_deref))
}
