//! AsyncAPI 3: how documents are written, and how everybody's are read.
//!
//! What AsyncAPI has no word for stands under `x-tidings`, which other tools pass over.
//! <https://www.asyncapi.com/docs/reference/specification/v3.0.0>

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Body, Contract, Deprecation, Document, DocumentError, Example, MessageKind};
use crate::schema::{at, bundled, hoisted};

/// The version that is written.
const VERSION: &str = "3.0.0";
/// What AsyncAPI has no word for.
const OWN: &str = "x-tidings";

/// The documents as one. A document of a system says at each operation which service it belongs to.
pub(super) fn written(documents: &[Document], system: Option<&str>) -> Value {
    let mut parts = Parts::default();
    for document in documents {
        for (contract, is_sent) in both(document) {
            parts.add(document, contract, is_sent, system.is_some());
        }
    }
    let (title, version, description) = match (system, documents) {
        (None, [one]) => (&*one.service, &*one.version, one.description.clone()),
        (title, all) => {
            let names: Vec<&str> = all.iter().map(|it| &*it.service).collect();
            let version = all.first().map_or("0.0.0", |it| &it.version);
            let title = title.unwrap_or("system");
            (
                title,
                version,
                Some(format!("The services {}.", names.join(", "))),
            )
        }
    };
    let mut info = json!({ "title": title, "version": version });
    if let Some(description) = description {
        info["description"] = description.into();
    }
    json!({
        "asyncapi": VERSION,
        "info": info,
        "defaultContentType": "application/json",
        "channels": parts.channels,
        "operations": parts.operations,
        "components": { "messages": parts.messages, "schemas": parts.schemas },
    })
}

fn both(document: &Document) -> impl Iterator<Item = (&Contract, bool)> {
    let sent = document.sends.iter().map(|it| (it, true));
    sent.chain(document.receives.iter().map(|it| (it, false)))
}

#[derive(Default)]
struct Parts {
    channels: BTreeMap<String, Value>,
    operations: BTreeMap<String, Value>,
    messages: BTreeMap<String, Value>,
    schemas: BTreeMap<String, Value>,
}

impl Parts {
    fn add(&mut self, document: &Document, contract: &Contract, is_sent: bool, of_system: bool) {
        let message = self.message(contract, is_sent, of_system.then_some(&*document.service));
        let channel = self.channel(contract, &message);
        let action = if is_sent { "send" } else { "receive" };
        let operation = format!("{action}.{}", contract.name);
        let operation = match of_system {
            true => format!("{}.{operation}", document.service),
            false => operation,
        };
        let channel = format!("#/channels/{}", escaped(&channel));
        let mut written = json!({
            "action": action,
            "channel": { "$ref": channel },
            "messages": [{ "$ref": format!("{channel}/messages/{}", escaped(&message)) }],
        });
        let mut own = Map::new();
        if of_system {
            own.insert("service".to_owned(), document.service.clone().into());
            written["tags"] = json!([{ "name": document.service }]);
        }
        let texts = [
            ("queue", &contract.queue),
            ("deadLetters", &contract.dead_letters),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                own.insert(key.to_owned(), text.clone().into());
            }
        }
        for (key, texts) in [("older", &contract.older), ("uses", &contract.uses)] {
            if !texts.is_empty() {
                own.insert(key.to_owned(), texts.clone().into());
            }
        }
        if let Some(acknowledges) = contract.acknowledges {
            written["bindings"] =
                json!({ "amqp": { "ack": acknowledges, "bindingVersion": "0.3.0" } });
        }
        if !own.is_empty() {
            written[OWN] = Value::Object(own);
        }
        self.operations.insert(operation, written);
    }

    /// Its name among the messages. In the document of a system what a consumer reads is a message of its own, unless it
    /// is just what is sent.
    fn message(&mut self, contract: &Contract, is_sent: bool, reader: Option<&str>) -> String {
        let mut name = contract.name.clone();
        let mut written = self.described(contract, &name);
        if let (Some(reader), false) = (reader, is_sent)
            && self
                .messages
                .get(&name)
                .is_some_and(|it| it["payload"] != written["payload"])
        {
            name = format!("{name}@{reader}");
            written = self.described(contract, &name);
        }
        let known = self.messages.entry(name.clone());
        let known = known.or_insert_with(|| written.clone());
        if is_sent && *known != written {
            // Who sends it says what it is.
            *known = written;
        }
        name
    }

    fn described(&mut self, contract: &Contract, name: &str) -> Value {
        let mut message = json!({
            "name": contract.name,
            "contentType": content_type(&contract.body),
            "headers": { "type": "object" },
        });
        message["bindings"] = json!({
            "amqp": { "messageType": contract.name, "bindingVersion": "0.3.0" },
        });
        if let Some(title) = &contract.title {
            message["title"] = title.clone().into();
        }
        if let Some(description) = &contract.description {
            message["summary"] = description.lines().next().unwrap_or_default().into();
            message["description"] = description.clone().into();
        }
        match &contract.body {
            Body::Json(schema) => {
                let (schema, definitions) = hoisted(schema.clone(), name);
                self.schemas.extend(definitions);
                message["payload"] = schema;
            }
            Body::Avro(schema) => {
                message["payload"] = json!({ "schemaFormat": AVRO, "schema": schema });
            }
            Body::Protobuf { file, .. } => {
                message["payload"] = json!({ "schemaFormat": PROTOBUF, "schema": file });
            }
            Body::Other(format) => {
                message["payload"] = json!({ "schemaFormat": format, "schema": {} });
            }
            Body::Unsaid => {}
        }
        if !contract.examples.is_empty() {
            let examples = contract.examples.iter().map(|it| match &it.name {
                Some(name) => json!({ "name": name, "payload": it.body }),
                None => json!({ "payload": it.body }),
            });
            message["examples"] = examples.collect();
        }
        let mut own = Map::new();
        own.insert("kind".to_owned(), word(contract.kind).into());
        if let Body::Protobuf { message, .. } = &contract.body {
            own.insert("protobufMessage".to_owned(), message.clone().into());
        }
        if let Some(bytes) = contract.body_bytes_max {
            own.insert("bodyBytesMax".to_owned(), bytes.into());
        }
        if !contract.sensitive.is_empty() {
            own.insert("sensitive".to_owned(), contract.sensitive.clone().into());
        }
        if let Some(it) = &contract.deprecated {
            let mut ends = json!({ "since": it.since });
            for (key, text) in [("until", &it.until), ("instead", &it.instead)] {
                if let Some(text) = text {
                    ends[key] = text.clone().into();
                }
            }
            own.insert("deprecated".to_owned(), ends);
        }
        message[OWN] = Value::Object(own);
        message
    }

    fn channel(&mut self, contract: &Contract, message: &str) -> String {
        let address = &contract.address;
        let channel = self.channels.entry(address.clone()).or_insert_with(|| {
            let bindings = match contract.kind {
                MessageKind::Event => json!({
                    "amqp": {
                        "is": "routingKey",
                        "exchange": { "name": address, "type": "fanout", "durable": true, "autoDelete": false },
                        "bindingVersion": "0.3.0",
                    },
                    "kafka": { "topic": address, "bindingVersion": "0.5.0" },
                    "sns": { "name": address, "bindingVersion": "0.1.0" },
                }),
                MessageKind::Command | MessageKind::Reply => json!({
                    "amqp": {
                        "is": "queue",
                        "queue": { "name": address, "durable": true, "exclusive": false, "autoDelete": false },
                        "bindingVersion": "0.3.0",
                    },
                    "kafka": { "topic": address, "bindingVersion": "0.5.0" },
                }),
            };
            json!({ "address": address, "messages": {}, "bindings": bindings })
        });
        let reference = format!("#/components/messages/{}", escaped(message));
        channel["messages"][message] = json!({ "$ref": reference });
        address.clone()
    }
}

/// A key in a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

const fn word(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Event => "event",
        MessageKind::Command => "command",
        MessageKind::Reply => "reply",
    }
}

/// What a document says that anybody wrote. Operations that say whose they are make a document each.
pub(super) fn read(root: &Value) -> Result<Vec<Document>, DocumentError> {
    let version = root["asyncapi"].as_str().ok_or_else(|| {
        DocumentError::new("this is not an AsyncAPI document: it has no `asyncapi: 3.0.0`")
    })?;
    if !version.starts_with("3.") {
        return Err(DocumentError::new(format!(
            "this is an AsyncAPI document of version {version}, and 3.x is read: convert it with \
             `asyncapi convert FILE --target-version 3.0.0`"
        )));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let info = &root["info"];
    let service = text(&info["title"])
        .ok_or_else(|| DocumentError::new("`info.title` is missing: it names the service"))?;
    let version = text(&info["version"]).unwrap_or_default();
    let mut documents: Vec<Document> = Vec::new();
    for (id, operation) in root["operations"].as_object().into_iter().flatten() {
        let wrong = |what: String| DocumentError::new(format!("the operation `{id}`: {what}"));
        let operation = followed(root, operation).map_err(wrong)?;
        let channel = followed(root, &operation["channel"]).map_err(wrong)?;
        let messages: Vec<&Value> = match (&operation["messages"], &channel["messages"]) {
            (Value::Array(some), _) => some.iter().collect(),
            (_, Value::Object(all)) => all.values().collect(),
            _ => {
                return Err(wrong(
                    "neither it nor its channel names messages".to_owned(),
                ));
            }
        };
        for message in messages {
            let key = message["$ref"]
                .as_str()
                .and_then(|it| it.rsplit('/').next());
            let key = key.map(|it| it.replace("~1", "/").replace("~0", "~"));
            let message = followed(root, message).map_err(wrong)?;
            let contract = contract(root, operation, channel, message, key).map_err(wrong)?;
            let owner = operation[OWN]["service"].as_str().unwrap_or(&service);
            let known = documents.iter().position(|it| it.service == owner);
            let known = known.unwrap_or_else(|| {
                documents.push(Document::new(owner, &*version));
                documents.len() - 1
            });
            let document = &mut documents[known];
            match operation["action"].as_str() {
                Some("send") => document.sends.push(contract),
                Some("receive") => document.receives.push(contract),
                _ => return Err(wrong("its `action` must be `send` or `receive`".to_owned())),
            }
        }
    }
    if documents.is_empty() {
        documents.push(Document::new(&service, version));
    }
    for document in &mut documents {
        if document.service == service {
            document.description = text(&info["description"]);
        }
        for all in [&mut document.sends, &mut document.receives] {
            all.sort_by(|one, other| one.name.cmp(&other.name));
        }
    }
    documents.sort_by(|one, other| one.service.cmp(&other.service));
    Ok(documents)
}

/// What a reference leads to, and what that leads to.
fn followed<'a>(root: &'a Value, mut value: &'a Value) -> Result<&'a Value, String> {
    for _ in 0..16 {
        let Some(pointer) = value["$ref"].as_str() else {
            return Ok(value);
        };
        value = at(root, pointer).ok_or_else(|| {
            format!(
                "`$ref` leads to `{pointer}`, which is not in the document; put all parts into one file (bundle it)"
            )
        })?;
    }
    Err("its `$ref` leads from one to the next without an end".to_owned())
}

fn contract(
    root: &Value,
    operation: &Value,
    channel: &Value,
    message: &Value,
    key: Option<String>,
) -> Result<Contract, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(text).collect()
    };
    let name = text(&message["name"]).or(key);
    let name = name.ok_or("a message of it has no `name`")?;
    let own = &message[OWN];
    let is_queue =
        channel["bindings"]["amqp"]["is"] == "queue" || !channel["bindings"]["sqs"].is_null();
    let kind = match own["kind"].as_str() {
        Some("command") => MessageKind::Command,
        Some("reply") => MessageKind::Reply,
        None if is_queue => MessageKind::Command,
        _ => MessageKind::Event,
    };
    let mut contract = Contract::new(
        &name,
        kind,
        text(&channel["address"]).unwrap_or(name.clone()),
    );
    contract.title = text(&message["title"]);
    contract.description = text(&message["description"]).or(text(&message["summary"]));
    contract.body = body(root, &message["payload"], text(&own["protobufMessage"]))?;
    let examples = message["examples"].as_array().into_iter().flatten();
    contract.examples = examples
        .filter(|it| !it["payload"].is_null())
        .map(|it| Example {
            name: text(&it["name"]),
            body: it["payload"].clone(),
        })
        .collect();
    contract.body_bytes_max = own["bodyBytesMax"].as_u64();
    contract.sensitive = texts(&own["sensitive"]);
    contract.deprecated = text(&own["deprecated"]["since"]).map(|since| Deprecation {
        since,
        until: text(&own["deprecated"]["until"]),
        instead: text(&own["deprecated"]["instead"]),
    });
    contract.older = texts(&operation[OWN]["older"]);
    contract.uses = texts(&operation[OWN]["uses"]);
    contract.queue = text(&operation[OWN]["queue"]);
    contract.dead_letters = text(&operation[OWN]["deadLetters"]);
    let amqp = &operation["bindings"]["amqp"];
    contract.acknowledges = amqp["ack"].as_bool();
    Ok(contract)
}

/// How AsyncAPI calls schemas in Avro.
const AVRO: &str = "application/vnd.apache.avro+json;version=1.9.0";
/// And in Protocol Buffers.
const PROTOBUF: &str = "application/vnd.google.protobuf;version=3";

fn content_type(body: &Body) -> &'static str {
    match body {
        Body::Avro(_) => "application/avro",
        Body::Protobuf { .. } => "application/protobuf",
        _ => "application/json",
    }
}

/// A payload is a schema, or says first in which format its schema is.
fn body(root: &Value, payload: &Value, proto: Option<String>) -> Result<Body, String> {
    if payload.is_null() {
        return Ok(Body::Unsaid);
    }
    let payload = followed(root, payload)?;
    let schema = match payload["schemaFormat"].as_str() {
        None => payload,
        Some(format) if format.contains("schema+json") || format.contains("asyncapi") => {
            followed(root, &payload["schema"])?
        }
        Some(format) if format.contains("avro") => {
            let schema = followed(root, &payload["schema"])?;
            let is_there = schema.is_string() || schema.is_array() || schema.get("type").is_some();
            return Ok(match is_there {
                true => Body::Avro(schema.clone()),
                false => Body::Other(format.to_owned()),
            });
        }
        Some(format) => {
            let file = payload["schema"]
                .as_str()
                .filter(|_| format.contains("protobuf"));
            return Ok(match file {
                Some(file) => Body::protobuf(file, proto.as_deref())?,
                None => Body::Other(format.to_owned()),
            });
        }
    };
    Ok(Body::Json(bundled(root, schema)?))
}
