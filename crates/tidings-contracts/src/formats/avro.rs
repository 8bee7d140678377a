//! Avro: a field is known by its name or an alias, and what is not written needs a default.
//!
//! This is Avro's [resolution](https://avro.apache.org/docs/1.12.0/specification/#schema-resolution) of what was written by one schema
//! with another, for all values at once. Names of types are not compared, as libraries do not, and logical types are passed over.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{DEPTH_MAX, Side, too_deep};
use crate::compat::{Break, What, at, below};

/// A schema with all names looked up.
struct Types {
    root: Kind,
    named: BTreeMap<String, Named>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// `null`, `long`, `string`, …
    Primitive(&'static str),
    Array(Box<Kind>),
    Map(Box<Kind>),
    Union(Vec<Kind>),
    /// By its full name.
    Named(String),
    /// What is no type.
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Named {
    Record {
        doc: Option<String>,
        fields: Vec<Field>,
    },
    Enum {
        symbols: Vec<String>,
        /// Whether a symbol that is not there is read as another.
        has_default: bool,
    },
    Fixed(u64),
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    name: String,
    aliases: Vec<String>,
    kind: Kind,
    has_default: bool,
    doc: Option<String>,
}

const PRIMITIVES: [&str; 8] = [
    "null", "boolean", "int", "long", "float", "double", "bytes", "string",
];

impl Types {
    fn of(schema: &Value) -> Self {
        let mut named = BTreeMap::new();
        let root = kind(schema, "", &mut named);
        Self { root, named }
    }
}

/// The type that a schema is, where names without a namespace are of this one.
fn kind(schema: &Value, namespace: &str, named: &mut BTreeMap<String, Named>) -> Kind {
    let object = match schema {
        Value::String(name) => {
            let primitive = PRIMITIVES.into_iter().find(|it| it == name);
            return primitive
                .map_or_else(|| Kind::Named(full_name(name, namespace)), Kind::Primitive);
        }
        Value::Array(branches) => {
            let branches = branches.iter().map(|it| kind(it, namespace, named));
            return Kind::Union(branches.collect());
        }
        Value::Object(object) => object,
        other => return Kind::Unknown(other.to_string()),
    };
    let inner = |key: &str, named: &mut BTreeMap<String, Named>| {
        let inner = object.get(key).unwrap_or(&Value::Null);
        Box::new(kind(inner, namespace, named))
    };
    let full = object.get("name").and_then(Value::as_str).map(|name| {
        let own = object.get("namespace").and_then(Value::as_str);
        full_name(name, own.unwrap_or(namespace))
    });
    match (object.get("type"), full) {
        (Some(Value::String(word)), Some(full)) => {
            let definition = match word.as_str() {
                "record" | "error" => record(object, &full, named),
                "enum" => Named::Enum {
                    symbols: texts(object.get("symbols")),
                    has_default: object.contains_key("default"),
                },
                "fixed" => Named::Fixed(object.get("size").and_then(Value::as_u64).unwrap_or(0)),
                // A field, for example, is no type.
                _ => return kind(&Value::from(word.as_str()), namespace, named),
            };
            named.insert(full.clone(), definition);
            Kind::Named(full)
        }
        (Some(Value::String(word)), None) => match word.as_str() {
            "array" => Kind::Array(inner("items", named)),
            "map" => Kind::Map(inner("values", named)),
            _ => kind(&Value::from(word.as_str()), namespace, named),
        },
        // A schema may stand where a type's name does.
        (Some(other), _) => kind(other, namespace, named),
        (None, _) => Kind::Unknown(schema.to_string()),
    }
}

fn record(object: &Map<String, Value>, full: &str, named: &mut BTreeMap<String, Named>) -> Named {
    let namespace = full.rsplit_once('.').map_or("", |(it, _)| it);
    let doc = |of: Option<&Value>| of.and_then(Value::as_str).map(str::to_owned);
    let fields = object.get("fields").and_then(Value::as_array);
    let fields = fields.into_iter().flatten().map(|field| Field {
        name: field["name"].as_str().unwrap_or_default().to_owned(),
        aliases: texts(field.get("aliases")),
        kind: kind(&field["type"], namespace, named),
        has_default: field.get("default").is_some(),
        doc: doc(field.get("doc")),
    });
    let fields = fields.collect();
    Named::Record {
        doc: doc(object.get("doc")),
        fields,
    }
}

fn texts(array: Option<&Value>) -> Vec<String> {
    let all = array.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn full_name(name: &str, namespace: &str) -> String {
    match name.contains('.') || namespace.is_empty() {
        true => name.to_owned(),
        false => format!("{namespace}.{name}"),
    }
}

/// The fields of a body as a JSON Schema.
pub(super) fn fields(schema: &Value, side: Side) -> Value {
    let types = Types::of(schema);
    let mut shown = Shown {
        types: &types,
        side,
        open: Vec::new(),
        definitions: Map::new(),
    };
    let mut fields = shown.kind(&types.root);
    if !shown.definitions.is_empty() {
        fields["definitions"] = Value::Object(shown.definitions);
    }
    fields
}

struct Shown<'a> {
    types: &'a Types,
    side: Side,
    /// Types that are being shown, so that one that contains itself ends.
    open: Vec<&'a str>,
    definitions: Map<String, Value>,
}

impl<'a> Shown<'a> {
    fn kind(&mut self, kind: &'a Kind) -> Value {
        match kind {
            Kind::Primitive(name) => match *name {
                "null" => json!({ "type": "null" }),
                "boolean" => json!({ "type": "boolean" }),
                "int" => json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX }),
                "long" => json!({ "type": "integer" }),
                "float" | "double" => json!({ "type": "number" }),
                _ => json!({ "type": "string" }),
            },
            Kind::Array(items) => json!({ "type": "array", "items": self.kind(items) }),
            Kind::Map(values) => {
                json!({ "type": "object", "additionalProperties": self.kind(values) })
            }
            Kind::Union(branches) => {
                let branches: Vec<Value> = branches.iter().map(|it| self.kind(it)).collect();
                json!({ "anyOf": branches })
            }
            Kind::Unknown(what) => json!({ "not": {}, "title": what }),
            Kind::Named(name) if self.open.len() > DEPTH_MAX => json!({ "title": name }),
            Kind::Named(name) if self.open.contains(&name.as_str()) => {
                self.definitions.insert(name.clone(), Value::Null);
                json!({ "$ref": format!("#/definitions/{name}") })
            }
            Kind::Named(name) => match self.types.named.get(name) {
                Some(Named::Record { doc, fields }) => self.record(name, doc.as_ref(), fields),
                Some(Named::Enum { symbols, .. }) => json!({ "type": "string", "enum": symbols }),
                Some(Named::Fixed(_)) => json!({ "type": "string" }),
                None => json!({ "not": {}, "title": name }),
            },
        }
    }

    fn record(&mut self, name: &'a str, doc: Option<&String>, fields: &'a [Field]) -> Value {
        self.open.push(name);
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in fields {
            let mut shown = self.kind(&field.kind);
            if let Some(doc) = &field.doc {
                shown["description"] = doc.clone().into();
            }
            properties.insert(field.name.clone(), shown);
            // A writer always writes it.
            if self.side == Side::Sender || !field.has_default {
                required.push(field.name.as_str());
            }
        }
        self.open.pop();
        let title = name.rsplit('.').next().unwrap_or(name);
        let mut record = json!({ "type": "object", "title": title, "properties": properties });
        if !required.is_empty() {
            record["required"] = required.into();
        }
        if let Some(doc) = doc {
            record["description"] = doc.clone().into();
        }
        if let Some(definition) = self.definitions.get_mut(name) {
            *definition = record.clone();
        }
        record
    }
}

/// What of a body by the one schema is not read by the other.
pub(super) fn breaks(written: &Value, read: &Value) -> Vec<Break> {
    let (written, read) = (Types::of(written), Types::of(read));
    let mut comparison = Comparison {
        written: &written,
        read: &read,
        under_way: Vec::new(),
    };
    comparison.kinds(&written.root, &read.root, "")
}

struct Comparison<'a> {
    written: &'a Types,
    read: &'a Types,
    /// Pairs of records that are being compared, so that one that contains itself ends.
    under_way: Vec<(&'a str, &'a str)>,
}

impl<'a> Comparison<'a> {
    fn kinds(&mut self, written: &'a Kind, read: &'a Kind, path: &str) -> Vec<Break> {
        if let Kind::Union(branches) = written {
            let mut found = Vec::new();
            for it in branches.iter().flat_map(|it| self.kinds(it, read, path)) {
                if !found.contains(&it) {
                    found.push(it);
                }
            }
            return found;
        }
        let one = std::slice::from_ref(read);
        let candidates = match read {
            Kind::Union(branches) => branches,
            _ => one,
        };
        let mut nearest: Option<Vec<Break>> = None;
        for candidate in candidates {
            if let Some(found) = self.against(written, candidate, path)
                && nearest.as_ref().is_none_or(|it| found.len() < it.len())
            {
                nearest = Some(found);
            }
        }
        nearest.unwrap_or_else(|| {
            let what = What::Kind {
                written: words(self.written, written),
                read: words(self.read, read),
            };
            vec![at(path, what)]
        })
    }

    /// What of the one the other does not read; `None` if they are different things.
    fn against(&mut self, written: &'a Kind, read: &'a Kind, path: &str) -> Option<Vec<Break>> {
        match (written, read) {
            (Kind::Primitive(written), Kind::Primitive(read)) => {
                let is_promoted = matches!(
                    (*written, *read),
                    ("int", "long" | "float" | "double")
                        | ("long", "float" | "double")
                        | ("float", "double")
                        | ("string", "bytes")
                        | ("bytes", "string")
                );
                (written == read || is_promoted).then(Vec::new)
            }
            (Kind::Array(written), Kind::Array(read)) => {
                Some(self.kinds(written, read, &format!("{path}[]")))
            }
            (Kind::Map(written), Kind::Map(read)) => {
                Some(self.kinds(written, read, &below(path, "*")))
            }
            (Kind::Named(written), Kind::Named(read)) => self.named(written, read, path),
            _ => None,
        }
    }

    fn named(&mut self, written: &'a str, read: &'a str, path: &str) -> Option<Vec<Break>> {
        let pair = (written, read);
        match (self.written.named.get(written)?, self.read.named.get(read)?) {
            (Named::Record { fields: from, .. }, Named::Record { fields: to, .. }) => {
                if self.under_way.contains(&pair) {
                    return Some(Vec::new());
                }
                if self.under_way.len() > DEPTH_MAX {
                    return Some(vec![at(path, too_deep())]);
                }
                self.under_way.push(pair);
                let found = to
                    .iter()
                    .flat_map(|it| self.field(from, it, path))
                    .collect();
                self.under_way.pop();
                Some(found)
            }
            (
                Named::Enum { symbols: from, .. },
                Named::Enum {
                    symbols: to,
                    has_default,
                },
            ) => {
                let quoted = |all: &mut dyn Iterator<Item = &String>| {
                    let all: Vec<String> = all.map(|it| format!("`{it}`")).collect();
                    all.join(" or ")
                };
                let unknown = quoted(&mut from.iter().filter(|it| !to.contains(it)));
                let what = What::Beyond {
                    written: unknown.clone(),
                    read: quoted(&mut to.iter()),
                };
                let is_read = unknown.is_empty() || *has_default;
                Some(match is_read {
                    true => Vec::new(),
                    false => vec![at(path, what)],
                })
            }
            (Named::Fixed(from), Named::Fixed(to)) => (from == to).then(Vec::new),
            _ => None,
        }
    }

    fn field(&mut self, written: &'a [Field], read: &'a Field, path: &str) -> Vec<Break> {
        let path = below(path, &read.name);
        let names = std::iter::once(&read.name).chain(&read.aliases);
        let found = names
            .flat_map(|name| written.iter().find(|it| it.name == *name))
            .next();
        match found {
            Some(field) => self.kinds(&field.kind, &read.kind, &path),
            None if read.has_default => Vec::new(),
            None => vec![at(&path, What::Missing)],
        }
    }
}

fn words(types: &Types, kind: &Kind) -> String {
    match kind {
        Kind::Primitive(name) => format!("`{name}`"),
        Kind::Array(items) => format!("a list of {}", words(types, items)),
        Kind::Map(values) => format!("a map of {}", words(types, values)),
        Kind::Union(branches) => {
            let branches: Vec<String> = branches.iter().map(|it| words(types, it)).collect();
            branches.join(" or ")
        }
        Kind::Named(name) => match types.named.get(name) {
            Some(Named::Record { .. }) => format!("a record `{name}`"),
            Some(Named::Enum { .. }) => format!("an enumeration `{name}`"),
            Some(Named::Fixed(size)) => format!("{size} bytes"),
            None => format!("`{name}`, which the schema does not define"),
        },
        Kind::Unknown(what) => format!("`{what}`, which is no type"),
    }
}
