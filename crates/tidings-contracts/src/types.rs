//! The contracts of a service, from its types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;
use tidings::{
    BodySchema, Message,
    event_map::{Emission, EventMap, HandlerMap, MessageKind, ServiceMap},
};

use tidings_formats::proto_files::ProtoFile;

use crate::{
    document::{Body, Contract, Deprecation, Document, DocumentError, Example},
    formats::Side,
    pact::{Expectations, Expected},
    probe::{self, Step},
    schema,
};

/// What a service says and hears, with the shapes that its types have: its [document](Document), as it is now.
///
/// The [event map](tidings::event_map) says which messages there are, and each needs its type here, so that no
/// message can be forgotten. Only commands of a service to itself may be left out.
///
/// ```
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
/// use tidings::{event_map::EventMap, prelude::*};
/// use tidings_contracts::Contracts;
///
/// /// The money was taken.
/// #[derive(Serialize, Deserialize, Event, JsonSchema)]
/// struct PaymentSettled { order_id: String }
///
/// let router = Router::new("payment").publishes::<PaymentSettled>();
/// let contracts = Contracts::of(EventMap::of([&router]))
///     .version("1.4.0")
///     .message::<PaymentSettled>()
///     .example(&PaymentSettled { order_id: "o-1".to_owned() });
///
/// let document = contracts.document()?;
/// assert_eq!(document.sends[0].description.as_deref(), Some("The money was taken."));
/// assert!(document.to_json().starts_with("{\n  \"asyncapi\": \"3.0.0\""));
/// # Ok::<(), tidings_contracts::DocumentError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Contracts {
    map: EventMap,
    version: String,
    description: Option<String>,
    types: BTreeMap<&'static str, Shape>,
    /// What was given to no type, or was no body: it is told when the document is made.
    wrong: Vec<String>,
}

/// What a type says about its message.
#[derive(Debug, Clone)]
struct Shape {
    written: Body,
    read: Body,
    /// Whether the type reads a body.
    reads: fn(&Value) -> Result<(), String>,
    /// Fields that are of use, though the type reads bodies without them.
    uses: Vec<String>,
    address: String,
    body_bytes_max: u64,
    sensitive: Vec<String>,
    examples: Vec<Example>,
    deprecated: Option<Deprecation>,
}

impl Shape {
    fn reads_field(&self, field: &str) -> bool {
        let fields = self.read.fields(Side::Reader);
        fields.is_some_and(|schema| schema::declares(&schema, &schema, field))
    }
}

impl Contracts {
    /// The contracts of the one service on this map.
    pub fn of(map: EventMap) -> Self {
        Self {
            map,
            version: "0.1.0".to_owned(),
            description: None,
            types: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    /// The version of the service, not of its messages; `env!("CARGO_PKG_VERSION")`, for example. Default: `0.1.0`.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// What the service is, for people.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// The type of a message. What the service sends is described as the type is written, what it receives as the type
    /// is read.
    pub fn message<M: Message + JsonSchema>(mut self) -> Self {
        if M::body_schema().is_some() {
            self.wrong.push(format!(
                "`{}` has a schema of its own format: add it with `message_in_format::<T>()`",
                M::NAME
            ));
        }
        let written = Body::Json(schema::written::<M>());
        self.add::<M>(written, Body::Json(schema::read::<M>()))
    }

    /// The type of a message that is in Avro or Protocol Buffers (`format = "..."` beside its name). It is described by
    /// the schema of its format.
    pub fn message_in_format<M: Message>(mut self) -> Self {
        let body = match M::body_schema() {
            Some(BodySchema::Avro(schema)) => {
                let schema = serde_json::from_str(&schema);
                schema.map(Body::Avro).map_err(|error| error.to_string())
            }
            Some(BodySchema::Protobuf { file, message }) => Body::protobuf(&file, Some(&message)),
            None => Err("it is in JSON: add it with `message::<T>()`".to_owned()),
        };
        match body {
            Ok(body) => self.add::<M>(body.clone(), body),
            Err(error) => {
                self.wrong.push(format!(
                    "`{}` has no schema of its format: {error}",
                    M::NAME
                ));
                self
            }
        }
    }

    fn add<M: Message>(mut self, written: Body, read: Body) -> Self {
        let shape = Shape {
            written,
            read,
            reads: |body| {
                // From text, as it comes: a type may read numbers by their digits.
                let read = serde_json::from_str::<M>(&body.to_string());
                read.map(drop).map_err(|error| error.to_string())
            },
            uses: Vec::new(),
            address: M::DESTINATION.name().to_owned(),
            body_bytes_max: M::BODY_BYTES_MAX as u64,
            sensitive: M::sensitive_paths(),
            examples: Vec::new(),
            deprecated: None,
        };
        self.types.insert(M::NAME, shape);
        self
    }

    /// The usual body of a message, or one more: what the type really writes.
    pub fn example<M: Message>(self, example: &M) -> Self {
        self.add_example(None, example)
    }

    /// The body of a message in a special case, with the name of the case: `a foreign order`. A pact's provider state of
    /// that name is verified with it.
    pub fn example_of<M: Message>(self, case: impl Into<String>, example: &M) -> Self {
        self.add_example(Some(case.into()), example)
    }

    fn add_example<M: Message>(mut self, name: Option<String>, example: &M) -> Self {
        if let Err(error) = self.check_body(example) {
            let what = format!("an example of `{}` cannot be sent: {error}", M::NAME);
            self.wrong.push(what);
        }
        match (serde_json::to_value(example), self.types.get_mut(M::NAME)) {
            (Ok(body), Some(shape)) => shape.examples.push(Example { name, body }),
            (Err(error), _) => {
                let what = format!("an example of `{}` cannot be written: {error}", M::NAME);
                self.wrong.push(what);
            }
            (_, None) => self.wrong.push(format!(
                "an example of `{}` was given before its type: call `message::<T>()` first",
                M::NAME
            )),
        }
        self
    }

    /// Whether an example is written as its schema says: a type that was written by hand may differ from its `.proto` file.
    fn check_body<M: Message>(&self, example: &M) -> Result<(), String> {
        let body = example.to_body().map_err(|error| error.to_string())?;
        match self.types.get(M::NAME).map(|shape| &shape.written) {
            Some(Body::Protobuf { file, message }) => ProtoFile::parse(file)?.check(message, &body),
            _ => Ok(()),
        }
    }

    /// A field that the service makes use of when it is there: `email`, `items[].sku`. A type says which fields a body
    /// cannot be read without; of those that may be left out it does not say whether anybody would miss them if they were
    /// never written again. This says who would.
    pub fn uses<M: Message>(mut self, field: &str) -> Self {
        let wrong = match self.types.get_mut(M::NAME) {
            Some(shape) if shape.reads_field(field) => {
                shape.uses.push(field.to_owned());
                return self;
            }
            Some(_) => format!(
                "`{}` is said to use `{field}`, and has no such field",
                M::NAME
            ),
            None => format!(
                "what is used of `{}` was given before its type: call `message::<T>()` first",
                M::NAME
            ),
        };
        self.wrong.push(wrong);
        self
    }

    /// From when on a message is not to be used any more, and what is used instead.
    pub fn deprecated<M: Message>(mut self, deprecation: Deprecation) -> Self {
        match self.types.get_mut(M::NAME) {
            Some(shape) => shape.deprecated = Some(deprecation),
            None => self.wrong.push(format!(
                "the end of `{}` was given before its type: call `message::<T>()` first",
                M::NAME
            )),
        }
        self
    }

    /// The document of the service.
    ///
    /// # Errors
    ///
    /// When a message on the map has no type here, or a type no message on the map.
    pub fn document(&self) -> Result<Document, DocumentError> {
        let [service] = self.map.services() else {
            let names: Vec<&str> = self.map.services().iter().map(|it| &*it.name).collect();
            return Err(DocumentError::new(format!(
                "contracts are those of one service, and the map has {}: {}",
                names.len(),
                names.join(", ")
            )));
        };
        if let Some(wrong) = self.wrong.first() {
            return Err(DocumentError::new(wrong));
        }
        let mut document = Document::new(&service.name, &self.version);
        document.description = self.description.clone();
        for emission in sent(service) {
            if self.types.contains_key(&*emission.message) || !is_own(service, &emission.message) {
                document.sends.push(self.sent(service, emission)?);
            }
        }
        for handler in &service.handlers {
            // What is made into it is read as well.
            for name in handler.older.iter().chain([&handler.message]) {
                let is_known = self.types.contains_key(&**name);
                let is_new = document.received(name).is_none();
                if is_new && (is_known || !is_own(service, name)) {
                    document
                        .receives
                        .push(self.received(service, handler, name)?);
                }
            }
        }
        document
            .receives
            .sort_by(|one, other| one.name.cmp(&other.name));
        let is_on_map =
            |name: &str| document.sent(name).is_some() || document.received(name).is_some();
        if let Some(unknown) = self.types.keys().find(|name| !is_on_map(name)) {
            return Err(DocumentError::new(format!(
                "`{}` neither sends nor handles `{unknown}`: take its type out of the contracts, or declare what is \
                 sent with `Router::publishes` or `emits`",
                service.name
            )));
        }
        Ok(document)
    }

    /// What the service expects of the messages that this provider sends: of each what the type here reads, found by
    /// [`probe`] with its examples.
    ///
    /// # Errors
    ///
    /// When a message is not handled here, has no example, or its type does not read its example.
    pub fn pact(&self, provider: &str, messages: &[&str]) -> Result<Expectations, DocumentError> {
        let document = self.document()?;
        let mut expected = Vec::new();
        for name in messages {
            let wrong = |what: String| DocumentError::new(format!("`{name}` {what}"));
            let handled = document.received(name);
            let handled = handled.ok_or_else(|| {
                wrong(format!(
                    "is not handled by `{}`, so nothing is expected of it",
                    document.service
                ))
            })?;
            let shape = self.shape(&document.service, name, "handles")?;
            if handled.examples.is_empty() {
                return Err(wrong(
                    "has no example: add one with `.example(&...)`".to_owned(),
                ));
            }
            for example in &handled.examples {
                let fields = probe::fields(&example.body, &shape.reads);
                let mut fields = fields
                    .map_err(|error| wrong(format!("does not read its own example: {error}")))?;
                for field in &mut fields {
                    field.required |= shape.uses.iter().any(|it| *it == dotted(&field.path));
                }
                expected.push(Expected {
                    name: (*name).to_owned(),
                    state: example.name.clone(),
                    example: example.body.clone(),
                    fields,
                });
            }
        }
        Ok(Expectations {
            consumer: document.service,
            provider: provider.to_owned(),
            messages: expected,
        })
    }

    fn shape(&self, service: &str, name: &str, does: &str) -> Result<&Shape, DocumentError> {
        self.types.get(name).ok_or_else(|| {
            DocumentError::new(format!(
                "`{service}` {does} `{name}`, and its contracts do not have the type: add `.message::<T>()`"
            ))
        })
    }

    fn sent(&self, service: &ServiceMap, emission: &Emission) -> Result<Contract, DocumentError> {
        let shape = self.shape(&service.name, &emission.message, "sends")?;
        Ok(self.contract(&emission.message, emission.kind, shape, &shape.written))
    }

    fn received(
        &self,
        service: &ServiceMap,
        handler: &HandlerMap,
        name: &str,
    ) -> Result<Contract, DocumentError> {
        let shape = self.shape(&service.name, name, "handles")?;
        let mut contract = self.contract(name, handler.kind, shape, &shape.read);
        contract.dead_letters = Some(tidings::dead_letter_queue(&handler.queue));
        contract.queue = Some(handler.queue.clone());
        if name == handler.message {
            contract.older = handler.older.clone();
        }
        contract.uses = shape.uses.clone();
        // The toolkit has no other way: a message is acknowledged after its transaction.
        contract.acknowledges = Some(true);
        Ok(contract)
    }

    fn contract(&self, name: &str, kind: MessageKind, shape: &Shape, body: &Body) -> Contract {
        let mut contract = Contract::new(name, kind, &shape.address);
        if let Some(schema) = body.fields(Side::Sender) {
            let text = |key: &str| Some(schema.get(key)?.as_str()?.to_owned());
            contract.title = text("title");
            contract.description = text("description");
        }
        contract.body = body.clone();
        contract.examples = shape.examples.clone();
        contract.deprecated = shape.deprecated.clone();
        contract.body_bytes_max = Some(shape.body_bytes_max);
        contract.sensitive = shape.sensitive.clone();
        contract
    }
}

/// What a service sends, from wherever; replies go back to whoever asked, and are described by the command.
fn sent(service: &ServiceMap) -> Vec<&Emission> {
    let of_handlers = service.handlers.iter().flat_map(|it| &it.emits);
    let of_sagas = service
        .sagas
        .iter()
        .flat_map(|it| it.sends.iter().chain(&it.ends));
    let of_schedules = service.schedules.iter().map(|it| &it.emits);
    let all = of_handlers
        .chain(of_sagas)
        .chain(of_schedules)
        .chain(&service.emits);
    let by_name: BTreeMap<&str, &Emission> = all
        .filter(|it| it.kind != MessageKind::Reply)
        .map(|it| (&*it.message, it))
        .collect();
    by_name.into_values().collect()
}

/// Whether a message is a command of the service to itself, of which no other knows. It may have a type among the
/// contracts, and needs none.
fn is_own(service: &ServiceMap, name: &str) -> bool {
    let sent = sent(service);
    let mut named = sent.iter().filter(|it| it.message == name);
    named.any(|it| it.kind == MessageKind::Command && it.to.as_ref() == Some(&service.name))
}

/// A path as [`Contracts::uses`] has it: `customer.email`, `items[].sku`.
fn dotted(path: &[Step]) -> String {
    crate::schema::dotted(path.iter().map(|step| match step {
        Step::Items => None,
        Step::Property(name) => Some(&**name),
    }))
}
