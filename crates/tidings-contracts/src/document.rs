//! What a service says and hears, as one document: the AsyncAPI document of that service.
//!
//! A document says what *one* service does. What it sends is described as it is written, what it receives as it is
//! read: so each service's document is its own side of the contract, and a consumer that reads three fields of an event
//! promises nothing about the others. Programs that are not made with Tidings take part with documents that somebody
//! wrote, in JSON or in YAML.

mod asyncapi;

use std::{fmt, path::Path};

use serde_json::Value;

pub use tidings::event_map::MessageKind;

/// The AsyncAPI document of one service.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Document {
    /// The service's name.
    pub service: String,
    /// The version of the service, not of its messages: `1.4.2`.
    pub version: String,
    /// What it is, for people.
    pub description: Option<String>,
    /// What it sends, by name.
    pub sends: Vec<Contract>,
    /// What it receives, by name.
    pub receives: Vec<Contract>,
}

/// One message, as one service writes or reads it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Contract {
    /// Its name with its version: `order-placed.v1`.
    pub name: String,
    /// Whether it is an event, a command or a reply.
    pub kind: MessageKind,
    /// Where it goes: the topic of an event, the queue of a command.
    pub address: String,
    /// The queue from which it is received, if the document says so.
    pub queue: Option<String>,
    /// Its title, for people: `OrderPlaced`.
    pub title: Option<String>,
    /// What it means, for people.
    pub description: Option<String>,
    /// Its bodies.
    pub body: Body,
    /// Real bodies, the first of which is the usual one.
    pub examples: Vec<Example>,
    /// Since when it is not to be used any more.
    pub deprecated: Option<Deprecation>,
    /// The largest body, in bytes.
    pub body_bytes_max: Option<u64>,
    /// Older messages that the receiver makes into this one.
    pub older: Vec<String>,
    /// The paths of the fields that are not to be shown.
    pub sensitive: Vec<String>,
    /// The fields that the receiver makes use of when they are there.
    pub uses: Vec<String>,
    /// Whether it is acknowledged after it was handled; nothing if the document does not say.
    pub acknowledges: Option<bool>,
    /// Where it goes if it cannot be handled; nothing if the document does not say.
    pub dead_letters: Option<String>,
}

/// What the bodies of a message are like.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// JSON by this schema, which contains all that it refers to.
    Json(Value),
    /// Avro by this schema, which contains all that it refers to.
    Avro(Value),
    /// Protocol Buffers.
    Protobuf {
        /// The text of the `.proto` file, which can be read alone.
        file: String,
        /// The full name of the message in it.
        message: String,
    },
    /// Something else, which is not compared: `application/raml+yaml;version=1.0`.
    Other(String),
    /// The document does not say.
    Unsaid,
}

/// A body that was really written.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Which case it is, for people and for [provider states](https://docs.pact.io/getting_started/provider_states):
    /// `a foreign order`. The usual one needs none.
    pub name: Option<String>,
    /// The body.
    pub body: Value,
}

/// When a message ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deprecation {
    /// The day since which nobody should begin to use it: `2026-11-01`.
    pub since: String,
    /// The day after which it is not sent any more.
    pub until: Option<String>,
    /// What to use instead: `order-placed.v2`.
    pub instead: Option<String>,
}

/// A document that cannot be read or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    what: String,
}

impl DocumentError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for DocumentError {}

impl Document {
    /// A service of which nothing is known yet.
    pub fn new(service: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            version: version.into(),
            description: None,
            sends: Vec::new(),
            receives: Vec::new(),
        }
    }

    /// What it sends under this name.
    pub fn sent(&self, name: &str) -> Option<&Contract> {
        self.sends.iter().find(|it| it.name == name)
    }

    /// What it receives under this name.
    pub fn received(&self, name: &str) -> Option<&Contract> {
        self.receives.iter().find(|it| it.name == name)
    }

    /// Reads the AsyncAPI 3 document of one service, in JSON or YAML.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and how to mend it; also when it is of several services.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let mut all = Self::parse_all(text)?;
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Ok(one),
            _ => Err(DocumentError::new(
                "this is the document of several services, and that of one is asked for",
            )),
        }
    }

    /// Reads an AsyncAPI 3 document, in JSON or YAML: of one service, or of a whole [system](Self::system).
    ///
    /// # Errors
    ///
    /// What is wrong with it, and how to mend it.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, DocumentError> {
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(json) if text.trim_start().starts_with('{') => {
                return Err(DocumentError::new(format!("this is not JSON: {json}")));
            }
            Err(_) => serde_saphyr::from_str(text).map_err(|yaml| {
                DocumentError::new(format!("this is neither JSON nor YAML: {yaml}"))
            })?,
        };
        asyncapi::read(&value)
    }

    /// Reads the documents in a file, or in all files of a folder that end with `.json`, `.yaml` or `.yml`, in the order
    /// of their names.
    ///
    /// # Errors
    ///
    /// When one cannot be read, with its name.
    pub fn load(path: &Path) -> Result<Vec<Self>, DocumentError> {
        let named = |error: &dyn fmt::Display, path: &Path| {
            DocumentError::new(format!("{}: {error}", path.display()))
        };
        let mut files = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(|error| named(&error, path))? {
                let file = entry.map_err(|error| named(&error, path))?.path();
                let end = file.extension().and_then(|it| it.to_str());
                if file.is_file() && matches!(end, Some("json" | "yaml" | "yml")) {
                    files.push(file);
                }
            }
            files.sort();
            if files.is_empty() {
                return Err(named(
                    &"no AsyncAPI document is in this folder (`.json`, `.yaml` or `.yml`)",
                    path,
                ));
            }
        } else {
            files.push(path.to_owned());
        }
        let mut all = Vec::new();
        for file in &files {
            let text = std::fs::read_to_string(file).map_err(|error| named(&error, file))?;
            all.extend(Self::parse_all(&text).map_err(|error| named(&error, file))?);
        }
        Ok(all)
    }

    /// The document as AsyncAPI 3 in JSON, the same text for the same contracts.
    pub fn to_json(&self) -> String {
        text_of(&asyncapi::written(std::slice::from_ref(self), None))
    }

    /// The documents of all services as one AsyncAPI 3 document of the system: each operation says whose it is.
    pub fn system(title: &str, documents: &[Self]) -> String {
        text_of(&asyncapi::written(documents, Some(title)))
    }
}

pub(crate) fn text_of(value: &Value) -> String {
    // A `Value` can always be written.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

impl Contract {
    /// A message of which only the name and the way are known.
    pub fn new(name: impl Into<String>, kind: MessageKind, address: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            address: address.into(),
            queue: None,
            title: None,
            description: None,
            body: Body::Unsaid,
            examples: Vec::new(),
            deprecated: None,
            body_bytes_max: None,
            older: Vec::new(),
            sensitive: Vec::new(),
            uses: Vec::new(),
            acknowledges: None,
            dead_letters: None,
        }
    }

    /// The name without its version, and the version: `order-placed` and 1 of `order-placed.v1`.
    pub fn family(&self) -> (&str, Option<u32>) {
        family(&self.name)
    }
}

/// The name of a message without its version, and the version.
pub fn family(name: &str) -> (&str, Option<u32>) {
    let version = name.rsplit_once(".v").and_then(|(family, version)| {
        let digits = version.bytes().all(|it| it.is_ascii_digit());
        digits.then(|| Some((family, version.parse().ok()?)))?
    });
    match version {
        Some((family, version)) => (family, Some(version)),
        None => (name, None),
    }
}
