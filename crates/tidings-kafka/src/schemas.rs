//! Bodies of events by the schemas of a registry: on the way out the id of its schema is put before a body, on the way in it is
//! taken off.
//!
//! Who receives sees the body that was sent, whatever transport it came by. Only events are written so. What goes to a
//! queue by name (commands, answers, dead letters, what operators send again) is a matter of its sender and its consumer,
//! and as it is; read it may be framed or not.
//!
//! A body in Avro has its schema with it everywhere else ([`container`]). Here the schema is left out for its id, and put back
//! when it comes in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use tidings_core::{
    Destination, Envelope, JSON, PublishError, PublishErrorKind, TransportError, essence, is_json,
};
use tidings_formats::{
    container::{self, Container},
    proto_files::ProtoFile,
};
use tidings_registry::{Language, Registry, RegistryError, Schema, Subjects, Version, wire};

use crate::address::{SchemaOptions, malformed};

/// A registry, and how it is used.
#[derive(Debug)]
pub(crate) struct Schemas {
    registry: Registry,
    subjects: Subjects,
    /// Whether events come in without the id of a schema, too.
    accepts_bare: bool,
    /// Where messages stand in the files of schemas, as it is written: of few, since a program has few.
    indices: Mutex<HashMap<(u32, String), Index>>,
}

/// Where a message stands in the file of its schema, as it is written.
type Index = Arc<[u8]>;

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
            indices: Mutex::default(),
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
        let subject = self.subjects.subject(topic, &envelope.name);
        let body = match Format::of(&envelope.content_type) {
            Some(Format::Json) => {
                let version = self
                    .version(&subject, Language::Json, &envelope.name)
                    .await?;
                wire::frame(version.id, &envelope.body)
            }
            Some(Format::Avro) => {
                let container = container::read(&envelope.body);
                let Container { schema, datum } =
                    container.map_err(|error| refused(error.to_string()))?;
                // The one that the body was written by, which need not be the latest: no other reads it.
                let schema = Schema::new(Language::Avro, schema);
                let id = match self.registry.known_id(&subject, &schema) {
                    Some(id) => id,
                    None => {
                        let id = self.registry.id(&subject, &schema).await;
                        id.map_err(|error| {
                            unwritten(error, Language::Avro, &subject, &envelope.name)
                        })?
                    }
                };
                wire::frame(id, datum)
            }
            Some(Format::Protobuf) => {
                let version = self
                    .version(&subject, Language::Protobuf, &envelope.name)
                    .await?;
                let index = self.message_index(&version, &envelope.content_type)?;
                wire::frame(version.id, &[&*index, &*envelope.body].concat())
            }
            None => {
                return Err(refused(format!(
                    "its body is `{}`, and with a schema registry events are in JSON, Avro or Protocol Buffers: send it on a \
                     connection without `schema_registry` in the broker's URL (TDG-4018)",
                    envelope.content_type
                )));
            }
        };
        envelope.body = body;
        Ok(())
    }

    /// The version of a subject by which bodies are written.
    async fn version(
        &self,
        subject: &str,
        language: Language,
        message: &str,
    ) -> Result<Version, PublishError> {
        let version = match self.registry.known_version(subject) {
            Some(version) => version,
            None => {
                let version = self.registry.version(subject).await;
                version.map_err(|error| unwritten(error, language, subject, message))?
            }
        };
        match version.schema.language == language {
            true => Ok(version),
            false => Err(refused(format!(
                "its body is in {}, and schema {} under `{subject}` is of {}: give the message another topic, or register its \
                 {} schema (TDG-4018)",
                written_in(language),
                version.id,
                version.schema.language,
                language
            ))),
        }
    }

    /// Where the message of a body stands in the file of its schema.
    fn message_index(&self, version: &Version, content_type: &str) -> Result<Index, PublishError> {
        let name = proto_of(content_type).ok_or_else(|| {
            refused(format!(
                "its content type, `{content_type}`, does not say which message it is: write \
                 `application/protobuf; proto=package.Message` (TDG-4018)"
            ))
        })?;
        let key = (version.id, name.to_owned());
        if let Some(index) = self.indices.lock().get(&key) {
            return Ok(Arc::clone(index));
        }
        let file = ProtoFile::parse(&version.schema.text)
            .map_err(|error| refused(format!("schema {}: {error} (TDG-4018)", version.id)))?;
        let message = file.message(name).ok_or_else(|| {
            refused(format!(
                "schema {} has no message `{name}`: register the file that has it (TDG-4018)",
                version.id
            ))
        })?;
        let index: Index = wire::message_index(&message.index).into();
        self.indices.lock().insert(key, Arc::clone(&index));
        Ok(index)
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
        let mut bare = Envelope {
            body,
            ..Envelope::clone(envelope)
        };
        let (format, content_type) = match schema.language {
            Language::Json => (Format::Json, JSON),
            Language::Avro => {
                bare.body = container::write(&schema.text, &bare.body).into();
                (Format::Avro, "application/avro")
            }
            Language::Protobuf => {
                let body = wire::without_message_index(&bare.body);
                bare.body = body.ok_or_else(|| {
                    Unread::Never(format!(
                        "the body does not say which message of schema {id} it is, as one in Protocol Buffers does \
                         (TDG-4019)"
                    ))
                })?;
                (Format::Protobuf, "application/protobuf")
            }
        };
        // Other programs call their bodies anything; the schema knows.
        if bare.content_type.is_empty() || Format::of(&bare.content_type) != Some(format) {
            bare.content_type = content_type.into();
        }
        Ok(Arc::new(bare))
    }
}

/// What a body is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Avro,
    Protobuf,
}

impl Format {
    fn of(content_type: &str) -> Option<Self> {
        match essence(content_type) {
            _ if is_json(content_type) => Some(Self::Json),
            "application/avro" => Some(Self::Avro),
            "application/protobuf" | "application/x-protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// Which message a body in Protocol Buffers is.
fn proto_of(content_type: &str) -> Option<&str> {
    let parameters = content_type.split(';').skip(1);
    parameters
        .filter_map(|it| it.trim().strip_prefix("proto="))
        .map(|it| it.trim_matches('"'))
        .next()
}

fn written_in(language: Language) -> &'static str {
    match language {
        Language::Json => "JSON",
        Language::Avro => "Avro",
        Language::Protobuf => "Protocol Buffers",
    }
}

fn refused(why: String) -> PublishError {
    PublishError::new(PublishErrorKind::Refused, why)
}

/// Why a registry has nothing by which a message could be written.
fn unwritten(
    error: RegistryError,
    language: Language,
    subject: &str,
    message: &str,
) -> PublishError {
    if error.is_temporary() {
        return PublishError::new(PublishErrorKind::Unconfirmed, error.to_string());
    }
    if !error.is_unknown() {
        return refused(error.to_string());
    }
    let schema = match language {
        Language::Json => "JSON Schema",
        Language::Avro => "Avro schema",
        Language::Protobuf => "`.proto` file",
    };
    refused(format!(
        "{error}; register the {schema} of `{message}` under `{subject}`, and it is sent (TDG-4018)"
    ))
}
