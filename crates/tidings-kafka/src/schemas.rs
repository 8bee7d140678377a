//! Bodies of events by the schemas of a registry: on the way out the id of its schema is put before a body, on the way in it is
//! taken off.
//!
//! Who receives sees the body that was sent, whatever transport it came by. Only events are written so. What goes to a
//! queue by name (commands, answers, dead letters, what operators send again) is a matter of its sender and its consumer,
//! and as it is; read it may be framed or not.
//!
//! Bodies are in JSON, by JSON Schema: what came by a schema of another language cannot be read.

use std::{collections::HashSet, sync::Arc};

use tidings_core::{Destination, Envelope, PublishError, PublishErrorKind, TransportError};
use tidings_registry::{Language, Registry, RegistryError, Subjects, wire};

use crate::address::{SchemaOptions, malformed};

/// A registry, and how it is used.
#[derive(Debug)]
pub(crate) struct Schemas {
    registry: Registry,
    subjects: Subjects,
    /// Whether events come in without the id of a schema, too.
    accepts_bare: bool,
}

/// Why a body cannot be read.
pub(crate) enum Unread {
    /// The registry has to be asked again.
    Later(RegistryError),
    /// It never will be, as it is.
    Never(String),
}

impl Schemas {
    /// As the URL says; nothing if it names no registry.
    pub(crate) fn of(options: &SchemaOptions) -> Result<Option<Self>, TransportError> {
        let Some(url) = &options.registry else {
            return match options.subjects.is_some() || options.without.is_some() {
                false => Ok(None),
                true => Err(malformed(
                    "the options `schema_subject` and `without_schema` need `schema_registry`",
                )),
            };
        };
        let registry =
            Registry::new(url).map_err(|error| TransportError::fatal(error.to_string()))?;
        let subjects = options.subjects.as_deref().unwrap_or("topic").parse();
        let subjects = subjects.map_err(|_| {
            malformed("the option `schema_subject` is `topic`, `message` or `topic-message`")
        })?;
        let accepts_bare = match options.without.as_deref() {
            None | Some("refuse") => false,
            Some("accept") => true,
            Some(_) => {
                return Err(malformed(
                    "the option `without_schema` is `refuse` or `accept`",
                ));
            }
        };
        Ok(Some(Self {
            registry,
            subjects,
            accepts_bare,
        }))
    }

    /// Writes what goes to topics with the ids of their schemas. If the registry is away, what follows in the same topic waits
    /// as well, so that nothing overtakes; what goes elsewhere does not.
    pub(crate) async fn write<'a>(
        &self,
        messages: impl Iterator<Item = (&'a Destination, &'a mut Envelope)>,
    ) -> Vec<Option<PublishError>> {
        let mut waiting = HashSet::new();
        let mut outcomes = Vec::new();
        for (destination, envelope) in messages {
            let Destination::Topic(topic) = destination else {
                outcomes.push(None);
                continue;
            };
            let written = match waiting.contains(topic) {
                true => Err(PublishError::new(
                    PublishErrorKind::Unconfirmed,
                    "an earlier message of its topic waits for the schema registry",
                )),
                false => self.write_one(topic, envelope).await,
            };
            if let Err(error) = &written
                && error.kind() == PublishErrorKind::Unconfirmed
            {
                waiting.insert(topic);
            }
            outcomes.push(written.err());
        }
        outcomes
    }

    async fn write_one(&self, topic: &str, envelope: &mut Envelope) -> Result<(), PublishError> {
        let refused = |why: String| PublishError::new(PublishErrorKind::Refused, why);
        let subject = self.subjects.subject(topic, &envelope.name);
        if !is_json(&envelope.content_type) {
            return Err(refused(format!(
                "its body is `{}`, and with a schema registry events are in JSON: send it on a connection without \
                 `schema_registry` in the broker's URL (TDG-4018)",
                envelope.content_type
            )));
        }
        let version = match self.registry.known_version(&subject) {
            Some(version) => version,
            None => self.registry.version(&subject).await.map_err(|error| {
                match error.is_temporary() {
                    true => PublishError::new(PublishErrorKind::Unconfirmed, error.to_string()),
                    false if error.is_unknown() => refused(format!(
                        "{error}; register the JSON Schema of `{}` under `{subject}`, and it is sent (TDG-4018)",
                        envelope.name
                    )),
                    false => refused(error.to_string()),
                }
            })?,
        };
        if version.schema.language != Language::Json {
            let (language, id) = (version.schema.language, version.id);
            return Err(refused(format!(
                "its body is in JSON, and schema {id} under `{subject}` is of {language}: give the message another \
                 topic, or register its JSON Schema (TDG-4018)"
            )));
        }
        envelope.body = wire::frame(version.id, &envelope.body);
        Ok(())
    }

    /// The message as it was before it was written with an id. `is_sent` is true of what was sent to its queue by name.
    pub(crate) async fn read(
        &self,
        envelope: &Arc<Envelope>,
        is_sent: bool,
    ) -> Result<Arc<Envelope>, Unread> {
        let Some((id, body)) = wire::unframe(&envelope.body) else {
            return match is_sent || self.accepts_bare {
                true => Ok(Arc::clone(envelope)),
                false => Err(Unread::Never(
                    "the body does not begin with the id of a schema: let its sender write it with the schema registry, or \
                     say `without_schema=accept` in the broker's URL, and redrive it (TDG-4019)"
                        .to_owned(),
                )),
            };
        };
        let schema = match self.registry.known(id) {
            Some(schema) => schema,
            None => self.registry.schema(id).await.map_err(|error| match error.is_unknown() {
                true => Unread::Never(format!(
                    "{error}; the body was written by schema {id}: see that its sender and this service use one registry, \
                     or register the schema there again, and redrive it (TDG-4019)"
                )),
                // What a registry refuses it refuses to all bodies alike.
                false => Unread::Later(error),
            })?,
        };
        if schema.language != Language::Json {
            let language = schema.language;
            return Err(Unread::Never(format!(
                "the body was written by schema {id}, which is of {language}; only bodies by JSON Schema can be read: let its \
                 sender write it so, in a topic of its own (TDG-4019)"
            )));
        }
        let mut bare = Envelope {
            body,
            ..Envelope::clone(envelope)
        };
        if bare.content_type.is_empty() {
            bare.content_type = "application/json".into();
        }
        Ok(Arc::new(bare))
    }
}

/// Whether bodies of this media type are in JSON; one that nobody told is.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    matches!(essence, "" | "application/json") || essence.ends_with("+json")
}
