//! A schema registry, as the verbs of contracts use it: which events have a subject there, and what is under it.

use std::collections::BTreeMap;

use tidings_contracts::{Body, Contract, Document, MessageKind, check::Registered};
use tidings_registry::{Language, Registry, RegistryError, Schema, Subjects};

use crate::{code::Code, frame::Usage};

/// A registry, and how the subjects of events are called there.
pub(super) struct SchemaRegistry {
    registry: Registry,
    subjects: Subjects,
}

/// An event with its subject.
pub(super) struct Registrable<'a> {
    pub(super) contract: &'a Contract,
    pub(super) subject: String,
    pub(super) schema: Schema,
}

impl SchemaRegistry {
    pub(super) fn open(url: &str, subjects: Subjects) -> anyhow::Result<Self> {
        let registry = Registry::new(url).map_err(wrong)?;
        Ok(Self { registry, subjects })
    }

    /// The events that these services send, each once, with what can be registered of them; and the names of those of which
    /// nothing can.
    pub(super) fn events<'a>(
        &self,
        documents: &'a [Document],
    ) -> anyhow::Result<(Vec<Registrable<'a>>, Vec<&'a str>)> {
        let mut by_subject: BTreeMap<String, &Contract> = BTreeMap::new();
        let (mut all, mut without) = (Vec::new(), Vec::new());
        let sent = documents.iter().flat_map(|it| &it.sends);
        for contract in sent.filter(|it| it.kind == MessageKind::Event) {
            let Some(schema) = schema_of(&contract.body) else {
                without.push(&*contract.name);
                continue;
            };
            let subject = self.subjects.subject(&contract.address, &contract.name);
            match by_subject.get(&subject) {
                Some(known) if known.name != contract.name => {
                    anyhow::bail!(Usage::new(format!(
                        "`{}` and `{}` would both be `{subject}`: say `--subject message` or `--subject topic-message`, and \
                         `schema_subject` in the broker's URL alike",
                        known.name, contract.name
                    )));
                }
                Some(known) if known.body != contract.body => {
                    anyhow::bail!(Usage::new(format!(
                        "two services send `{}` by different schemas, and a registry has one: name the document of one of them",
                        contract.name
                    )));
                }
                Some(_) => continue,
                None => {}
            }
            by_subject.insert(subject.clone(), contract);
            all.push(Registrable {
                contract,
                subject,
                schema,
            });
        }
        Ok((all, without))
    }

    /// What is under the subject of an event now.
    pub(super) async fn latest(&self, event: &Registrable<'_>) -> anyhow::Result<Registered> {
        let subject = event.subject.clone();
        let version = match self.registry.latest(&subject).await {
            Ok(version) => version,
            Err(error) if error.is_unknown() => {
                return Ok(Registered {
                    subject,
                    latest: None,
                });
            }
            Err(error) => return Err(wrong(error)),
        };
        let body = body_of(&version.schema, &event.contract.body).map_err(|error| {
            Code::SchemaRegistry.of(format!(
                "version {} of `{subject}` cannot be compared: {error}",
                version.version
            ))
        })?;
        Ok(Registered {
            subject,
            latest: Some((version.version, body)),
        })
    }

    /// Registers an event's schema: its id, and whether it was there before.
    pub(super) async fn register(&self, event: &Registrable<'_>) -> anyhow::Result<(u32, bool)> {
        match self.registry.id(&event.subject, &event.schema).await {
            Ok(id) => return Ok((id, true)),
            Err(error) if error.is_unknown() => {}
            Err(error) => return Err(wrong(error)),
        }
        let id = self.registry.register(&event.subject, &event.schema).await;
        Ok((id.map_err(wrong)?, false))
    }
}

/// Takes `topic`, `message` or `topic-message`.
pub(super) fn subjects(text: &str) -> Result<Subjects, String> {
    text.parse()
}

fn wrong(error: RegistryError) -> anyhow::Error {
    Code::SchemaRegistry.of(error)
}

fn schema_of(body: &Body) -> Option<Schema> {
    match body {
        Body::Json(schema) => Some(Schema::new(Language::Json, schema.to_string())),
        Body::Avro(schema) => Some(Schema::new(Language::Avro, schema.to_string())),
        Body::Protobuf { file, .. } => Some(Schema::new(Language::Protobuf, file.as_str())),
        Body::Other(_) | Body::Unsaid => None,
    }
}

/// What a registry's schema describes. A file of Protocol Buffers may have several messages: it is the one of ours.
fn body_of(schema: &Schema, ours: &Body) -> Result<Body, String> {
    let json = || serde_json::from_str(&schema.text).map_err(|error| error.to_string());
    match (schema.language, ours) {
        (Language::Json, _) => json().map(Body::Json),
        (Language::Avro, _) => json().map(Body::Avro),
        (Language::Protobuf, Body::Protobuf { message, .. }) => {
            Body::protobuf(&schema.text, Some(message))
        }
        (Language::Protobuf, _) => Body::protobuf(&schema.text, None),
    }
}
