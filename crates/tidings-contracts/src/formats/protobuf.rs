//! Protocol Buffers: a field is known by its number, whatever it is called.
//!
//! What a reader without `optional` does not find it reads as a default, an amount as 0, so such a field counts as one that must be
//! there, as in JSON. Numbers of another size are read as far as they fit: only a wider reader reads all of them
//! ([updating a message](https://protobuf.dev/programming-guides/proto3/#updating)). Beyond those rules, `bool` and enumerations are
//! not read as numbers, which the encoding would allow.

use std::collections::BTreeMap;

use prost_types::field_descriptor_proto::Type;
use serde_json::{Map, Value, json};
use tidings_formats::proto_files::{Presence, ProtoField, ProtoFile, ProtoKind};

use super::{DEPTH_MAX, too_deep};
use crate::compat::{Break, What};

/// The fields of a body, by their names.
///
/// # Errors
///
/// When the file cannot be read, or has no such message.
pub(super) fn fields(file: &str, message: &str) -> Result<Value, String> {
    let file = ProtoFile::parse(file)?;
    let mut definitions = Map::new();
    let mut fields = object(&file, message, &mut vec![], &mut definitions)?;
    if !definitions.is_empty() {
        fields["definitions"] = Value::Object(definitions);
    }
    Ok(fields)
}

fn object(
    file: &ProtoFile,
    name: &str,
    open: &mut Vec<String>,
    definitions: &mut Map<String, Value>,
) -> Result<Value, String> {
    if open.len() > DEPTH_MAX {
        return Ok(json!({ "title": name }));
    }
    if open.iter().any(|it| it == name) {
        definitions.insert(name.to_owned(), Value::Null);
        return Ok(json!({ "$ref": format!("#/definitions/{name}") }));
    }
    let message = file
        .message(name)
        .ok_or_else(|| format!("the `.proto` file has no message `{name}`"))?;
    open.push(name.to_owned());
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in message.fields.values() {
        let described = one(file, field, open, definitions)?;
        if field.presence == Presence::Always {
            required.push(field.name.clone());
        }
        properties.insert(field.name.clone(), described);
    }
    open.pop();
    let title = name.rsplit('.').next().unwrap_or(name);
    let mut object = json!({ "type": "object", "title": title, "properties": properties });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    if definitions.contains_key(name) {
        definitions.insert(name.to_owned(), object.clone());
    }
    Ok(object)
}

fn one(
    file: &ProtoFile,
    field: &ProtoField,
    open: &mut Vec<String>,
    definitions: &mut Map<String, Value>,
) -> Result<Value, String> {
    if let Some((_, value)) = entry(file, field) {
        let value = one(file, &value, open, definitions)?;
        return Ok(json!({ "type": "object", "additionalProperties": value }));
    }
    let value = match &field.kind {
        ProtoKind::Message(name) => object(file, name, open, definitions)?,
        ProtoKind::Enum(name) => {
            let values = file.values(name).into_iter().flatten();
            let names: Vec<&String> = values.map(|(_, name)| name).collect();
            json!({ "type": "string", "enum": names })
        }
        ProtoKind::WellKnown(name) => json!({ "title": name }),
        ProtoKind::Scalar(scalar) => match scalar {
            Type::Double | Type::Float => json!({ "type": "number" }),
            Type::Bool => json!({ "type": "boolean" }),
            Type::String | Type::Bytes => json!({ "type": "string" }),
            _ => json!({ "type": "integer" }),
        },
    };
    Ok(match field.presence {
        Presence::Repeated => json!({ "type": "array", "items": value }),
        _ => value,
    })
}

/// The key and the value of a map.
fn entry(file: &ProtoFile, field: &ProtoField) -> Option<(ProtoField, ProtoField)> {
    let ProtoKind::Message(name) = &field.kind else {
        return None;
    };
    let message = file.message(name).filter(|it| it.is_map_entry)?;
    Some((
        message.fields.get(&1)?.clone(),
        message.fields.get(&2)?.clone(),
    ))
}

/// What of the one message is not read as the other.
///
/// # Errors
///
/// When a file cannot be read, or has no such message.
pub(super) fn breaks(
    (written, written_name): (&str, &str),
    (read, read_name): (&str, &str),
) -> Result<Vec<Break>, String> {
    let (written, read) = (ProtoFile::parse(written)?, ProtoFile::parse(read)?);
    for (file, name) in [(&written, written_name), (&read, read_name)] {
        if file.message(name).is_none() {
            return Err(format!("a `.proto` file without its message `{name}`"));
        }
    }
    let mut comparison = Comparison {
        written: &written,
        read: &read,
        under_way: Vec::new(),
        found: Vec::new(),
    };
    comparison.messages(written_name, read_name, "");
    Ok(comparison.found)
}

struct Comparison<'a> {
    written: &'a ProtoFile,
    read: &'a ProtoFile,
    /// So that a message that contains itself ends.
    under_way: Vec<(String, String)>,
    found: Vec<Break>,
}

impl Comparison<'_> {
    fn messages(&mut self, written: &str, read: &str, path: &str) {
        let pair = (written.to_owned(), read.to_owned());
        let (Some(written), Some(read)) = (self.written.message(written), self.read.message(read))
        else {
            return;
        };
        if self.under_way.contains(&pair) {
            return;
        }
        if self.under_way.len() > DEPTH_MAX {
            return self.add(path, too_deep());
        }
        self.under_way.push(pair);
        for (number, field) in &read.fields {
            let path = match path {
                "" => field.name.clone(),
                path => format!("{path}.{}", field.name),
            };
            let other = written.fields.get(number);
            match (other.map(|it| it.presence), field.presence) {
                (None, Presence::Always) => self.add(&path, What::Missing),
                (Some(Presence::Optional), Presence::Always) => self.add(&path, What::Optional),
                _ => {}
            }
            if let Some(other) = other {
                self.fields(other, field, &path);
            }
        }
        self.under_way.pop();
    }

    fn fields(&mut self, written: &ProtoField, read: &ProtoField, path: &str) {
        let is_list = |it: &ProtoField| it.presence == Presence::Repeated;
        let maps = (entry(self.written, written), entry(self.read, read));
        match maps {
            (Some((key, value)), Some((read_key, read_value))) => {
                self.fields(&key, &read_key, &format!("{path}.*"));
                self.fields(&value, &read_value, &format!("{path}.*"));
            }
            (None, None) if is_list(written) == is_list(read) => {
                let path = match is_list(read) {
                    true => format!("{path}[]"),
                    false => path.to_owned(),
                };
                self.kinds(&written.kind, &read.kind, &path);
            }
            _ => self.add(
                path,
                What::Kind {
                    written: self.words(self.written, written),
                    read: self.words(self.read, read),
                },
            ),
        }
    }

    fn kinds(&mut self, written: &ProtoKind, read: &ProtoKind, path: &str) {
        let fits = match (written, read) {
            (ProtoKind::Message(written), ProtoKind::Message(read)) => {
                return self.messages(written, read, path);
            }
            (ProtoKind::Enum(written), ProtoKind::Enum(read)) => {
                return self.values(written, read, path);
            }
            (ProtoKind::WellKnown(written), ProtoKind::WellKnown(read)) => written == read,
            (ProtoKind::Scalar(written), ProtoKind::Scalar(read)) => reads(*read, *written),
            _ => false,
        };
        if !fits {
            let what = What::Kind {
                written: kind_words(written),
                read: kind_words(read),
            };
            self.add(path, what);
        }
    }

    fn values(&mut self, written: &str, read: &str, path: &str) {
        let empty = BTreeMap::new();
        let written = self.written.values(written).unwrap_or(&empty);
        let read = self.read.values(read).unwrap_or(&empty);
        let unknown: Vec<String> = written
            .iter()
            .filter(|(number, _)| !read.contains_key(number))
            .map(|(number, name)| format!("`{name}` ({number})"))
            .collect();
        if unknown.is_empty() {
            return;
        }
        let known: Vec<String> = read.values().map(|name| format!("`{name}`")).collect();
        let what = What::Beyond {
            written: unknown.join(" or "),
            read: known.join(" or "),
        };
        self.add(path, what);
    }

    fn words(&self, file: &ProtoFile, field: &ProtoField) -> String {
        match (entry(file, field), field.presence) {
            (Some(_), _) => "a map".to_owned(),
            (None, Presence::Repeated) => format!("a list of {}", kind_words(&field.kind)),
            (None, _) => kind_words(&field.kind),
        }
    }

    fn add(&mut self, path: &str, what: What) {
        let found = Break {
            path: path.to_owned(),
            what,
        };
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }
}

/// Whether every value of the one is read as it was written.
fn reads(read: Type, written: Type) -> bool {
    read == written
        || matches!(
            (written, read),
            (Type::Int32, Type::Int64)
                | (Type::Uint32, Type::Uint64 | Type::Int64)
                | (Type::Sint32, Type::Sint64)
                | (Type::String, Type::Bytes)
        )
}

fn kind_words(kind: &ProtoKind) -> String {
    match kind {
        ProtoKind::Scalar(scalar) => {
            let name = scalar.as_str_name();
            format!("`{}`", name.trim_start_matches("TYPE_").to_lowercase())
        }
        ProtoKind::Message(name) | ProtoKind::WellKnown(name) => format!("a message `{name}`"),
        ProtoKind::Enum(name) => format!("an enumeration `{name}`"),
    }
}
