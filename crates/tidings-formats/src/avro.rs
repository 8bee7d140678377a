//! Messages in Avro, by the crate [`apache-avro`](apache_avro).
//!
//! A body has its writer's schema with it ([`container`]). It is resolved against the reader's as
//! [Avro's specification](https://avro.apache.org/docs/1.12.0/specification/#schema-resolution) says: by the names of fields, with
//! aliases, defaults and promoted numbers. What was written by the reader's own schema is read without that.
//!
//! Since a body brings its schema along, a stranger may send any: schemas with types that contain themselves, or that are nested
//! deeper than 64 levels, are refused, and so are bodies that unfold to more than 64 MiB, and compressed ones.

use std::{fmt, sync::Arc};

use apache_avro::{
    AvroSchema, Schema, from_value, reader::datum::GenericDatumReader,
    writer::datum::GenericDatumWriter,
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tidings_core::{BodyError, BodySchema, read_json};

use crate::{
    container::{self, Container},
    depth, looks_like_json,
};

/// The MIME type of bodies in Avro, with their schemas.
pub const CONTENT_TYPE: &str = "application/avro";

/// What a body may take in memory, for the whole program, unless [`apache_avro::util::max_allocation_bytes`] was called
/// before: a list of nothing needs no bytes for its items.
const ALLOCATION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many schemas of other writers are remembered for each type: more than there are versions of a message under way.
const WRITERS_MAX: usize = 16;

/// A message in Avro. `format = "avro"` beside its name implements it.
pub trait InAvro {
    /// How its bodies are written and read.
    fn codec() -> &'static Codec;
}

/// How bodies of one type are written and read.
pub struct Codec {
    /// The schema of the type.
    text: String,
    /// Or why nothing can be written or read by it.
    made: Result<Made, String>,
}

struct Made {
    schema: &'static Schema,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    /// Schemas of other writers, by their texts.
    writers: Mutex<Vec<(Box<str>, Arc<Schema>)>>,
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Codec").field(&self.text).finish()
    }
}

impl Codec {
    /// That of a type. It lives as long as the program: make one for each type, as the derives do.
    pub fn of<T: AvroSchema>() -> Self {
        match serde_json::to_string(&T::get_schema()) {
            Ok(text) => Self {
                made: Made::by(&text),
                text,
            },
            Err(error) => Self {
                text: String::new(),
                made: Err(error.to_string()),
            },
        }
    }

    /// The schema that bodies are written by.
    pub fn schema(&self) -> BodySchema {
        BodySchema::Avro(self.text.clone().into())
    }

    fn made(&self) -> Result<&Made, BodyError> {
        self.made
            .as_ref()
            .map_err(|why| wrong(format!("the schema of its type cannot be used: {why}")))
    }

    /// A body.
    ///
    /// # Errors
    ///
    /// When the message does not fit the schema of its type.
    pub fn write<T: Serialize>(&self, message: &T) -> Result<Vec<u8>, BodyError> {
        let made = self.made()?;
        let datum = made.writer.write_ser_to_vec(message).map_err(wrong)?;
        Ok(container::write(&self.text, &datum))
    }

    /// The message of a body, which may be in JSON as well.
    ///
    /// # Errors
    ///
    /// When it is neither, or by a schema that cannot be resolved.
    pub fn read<T: DeserializeOwned>(
        &self,
        body: &[u8],
        content_type: &str,
    ) -> Result<T, BodyError> {
        if !body.starts_with(container::MAGIC) && looks_like_json(body, content_type) {
            return read_json(body);
        }
        let made = self.made()?;
        let container = container::read(body).map_err(wrong)?;
        match container.schema == self.text {
            true => made.read_own(container.datum),
            false => made.read_others(container),
        }
    }
}

impl Made {
    /// From the text, so that it is the one that others have.
    fn by(text: &str) -> Result<Self, String> {
        let said = |error: apache_avro::Error| error.to_string();
        let schema: &'static Schema = Box::leak(Box::new(parsed(text)?));
        Ok(Self {
            schema,
            writer: GenericDatumWriter::builder(schema).build().map_err(said)?,
            reader: GenericDatumReader::builder(schema).build().map_err(said)?,
            writers: Mutex::default(),
        })
    }

    fn read_own<T: DeserializeOwned>(&self, datum: &[u8]) -> Result<T, BodyError> {
        let mut rest = datum;
        let message = self.reader.read_deser(&mut rest).map_err(wrong)?;
        whole(message, rest)
    }

    fn read_others<T: DeserializeOwned>(&self, container: Container<'_>) -> Result<T, BodyError> {
        let writer = self.writer(container.schema).map_err(|error| {
            wrong(format!(
                "the schema that it was written by cannot be used: {error}"
            ))
        })?;
        let reader = GenericDatumReader::builder(&writer)
            .reader_schema(self.schema)
            .build();
        let mut rest = container.datum;
        let value = reader.and_then(|it| it.read_value(&mut rest));
        let message = value
            .and_then(|value| from_value(&value))
            .map_err(|error| {
                wrong(format!(
                    "it was written by another schema, and cannot be read by this one: {error}"
                ))
            })?;
        whole(message, rest)
    }

    /// The schema of another writer.
    fn writer(&self, text: &str) -> Result<Arc<Schema>, String> {
        let known = |writers: &[(Box<str>, Arc<Schema>)]| {
            let found = writers.iter().find(|(it, _)| **it == *text);
            found.map(|(_, schema)| Arc::clone(schema))
        };
        if let Some(schema) = known(&self.writers.lock()) {
            return Ok(schema);
        }
        let schema = Arc::new(parsed(text)?);
        let mut writers = self.writers.lock();
        if known(&writers).is_none() {
            if writers.len() == WRITERS_MAX {
                writers.remove(0);
            }
            writers.push((text.into(), Arc::clone(&schema)));
        }
        Ok(schema)
    }
}

/// The message of a record, behind which nothing is left.
fn whole<T>(message: T, rest: &[u8]) -> Result<T, BodyError> {
    match rest.is_empty() {
        true => Ok(message),
        false => Err(wrong("more follows behind its record")),
    }
}

/// A schema by which bodies can be read, whoever wrote it.
fn parsed(text: &str) -> Result<Schema, String> {
    apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
    let schema = Schema::parse_str(text).map_err(|error| error.to_string())?;
    depth::check(&schema)?;
    Ok(schema)
}

/// The fields of a body in Avro as JSON, for people: by the schema that is in it, whatever message it is. Nothing if it is
/// no body in Avro.
pub fn as_json(body: &[u8]) -> Option<String> {
    let container = container::read(body).ok()?;
    let schema = parsed(container.schema).ok()?;
    let reader = GenericDatumReader::builder(&schema).build().ok()?;
    let value = reader.read_value(&mut &container.datum[..]).ok()?;
    let json = serde_json::Value::try_from(value).ok()?;
    Some(json.to_string())
}

fn wrong(what: impl fmt::Display) -> BodyError {
    BodyError::Format {
        format: "Avro",
        what: what.to_string(),
    }
}
