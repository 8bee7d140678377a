//! JSON Schema of a type, and of a document: self-contained, so that it can be compared, stored and sent alone.
//!
//! All schemas are of draft 7: AsyncAPI builds on it, and registries and validators of all languages read it.

use percent_encoding::percent_decode_str;
use schemars::{
    JsonSchema,
    generate::{Contract, SchemaSettings},
};
use serde_json::{Map, Value};

/// Where definitions stand in a schema of draft 7.
const DEFINITIONS: &str = "definitions";

/// The keywords whose values are data, whatever they look like.
pub(crate) const DATA: [&str; 4] = ["const", "enum", "default", "examples"];

/// What bodies of `T` are like when they are written.
pub fn written<T: JsonSchema>() -> Value {
    of::<T>(Contract::Serialize)
}

/// What bodies `T` can be read from.
pub fn read<T: JsonSchema>() -> Value {
    of::<T>(Contract::Deserialize)
}

/// Everything stands where it is used, so that a message's schema can be read on its own; only a type that contains
/// itself is referred to.
fn of<T: JsonSchema>(contract: Contract) -> Value {
    let settings = SchemaSettings::draft07().with(|it| {
        it.contract = contract;
        it.inline_subschemas = true;
        it.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    schema.to_value()
}

/// Whether a schema, a part of `root`, says that there may be a field: `customer.email`, `items[].sku`.
pub(crate) fn declares(root: &Value, schema: &Value, field: &str) -> bool {
    if let Some(target) = schema["$ref"]
        .as_str()
        .and_then(|pointer| at(root, pointer))
    {
        return declares(root, target, field);
    }
    let parts = ["allOf", "anyOf", "oneOf"]
        .iter()
        .filter_map(|key| schema[*key].as_array());
    if parts.flatten().any(|part| declares(root, part, field)) {
        return true;
    }
    let (first, rest) = match field.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (field, None),
    };
    let (name, is_list) = match first.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (first, false),
    };
    let found = schema["properties"].get(name);
    let found = found.map(|it| if is_list { &it["items"] } else { it });
    found.is_some_and(|found| rest.is_none_or(|rest| declares(root, found, rest)))
}

/// A path as findings write it, of the names of its steps, of which items of a list have none: `items[].sku`.
pub(crate) fn dotted<'a>(steps: impl IntoIterator<Item = Option<&'a str>>) -> String {
    steps
        .into_iter()
        .fold(String::new(), |text, step| match step {
            None => text + "[]",
            Some(name) if text.is_empty() => name.to_owned(),
            Some(name) => text + "." + name,
        })
}

/// The part of `document` that `pointer` (`#/components/schemas/Money`) leads to.
pub(crate) fn at<'a>(document: &'a Value, pointer: &str) -> Option<&'a Value> {
    let path = pointer.strip_prefix('#')?;
    // A reference is a URI: what is not allowed there is written as percent and two digits.
    document.pointer(&percent_decode_str(path).decode_utf8_lossy())
}

/// The schema with what it refers to in `document` as definitions of its own.
///
/// # Errors
///
/// The reference that leads nowhere, or out of the document.
pub(crate) fn bundled(document: &Value, schema: &Value) -> Result<Value, String> {
    let mut definitions = Map::new();
    let mut bundled = moved(document, schema, &mut definitions)?;
    if let (false, Value::Object(object)) = (definitions.is_empty(), &mut bundled) {
        object.insert(DEFINITIONS.to_owned(), Value::Object(definitions));
    }
    Ok(bundled)
}

/// A schema that is nothing but a reference is replaced by what it refers to; other references lead to `definitions`.
fn moved(
    document: &Value,
    schema: &Value,
    definitions: &mut Map<String, Value>,
) -> Result<Value, String> {
    match schema {
        Value::Object(object) => {
            let mut all = Map::new();
            for (key, value) in object {
                let value = match (key.as_str(), value) {
                    ("$ref", Value::String(pointer)) => {
                        Value::String(defined(document, pointer, definitions)?)
                    }
                    // They were part of the schema, and are reached by their references.
                    (DEFINITIONS | "$defs", _) => continue,
                    (key, data) if DATA.contains(&key) => data.clone(),
                    _ => moved(document, value, definitions)?,
                };
                all.insert(key.clone(), value);
            }
            Ok(Value::Object(all))
        }
        Value::Array(items) => {
            let items = items
                .iter()
                .map(|item| moved(document, item, definitions))
                .collect::<Result<_, _>>()?;
            Ok(Value::Array(items))
        }
        other => Ok(other.clone()),
    }
}

fn defined(
    document: &Value,
    pointer: &str,
    definitions: &mut Map<String, Value>,
) -> Result<String, String> {
    let target = at(document, pointer).ok_or_else(|| {
        format!(
            "`$ref` leads to `{pointer}`, which is not in the document; put all parts into one file (bundle it)"
        )
    })?;
    let name: String = pointer
        .trim_start_matches("#/")
        .trim_start_matches("components/schemas/")
        .trim_start_matches("definitions/")
        .trim_start_matches("$defs/")
        .replace(['/', '~', '%'], ".");
    if !definitions.contains_key(&name) {
        // It is known before it is filled: it may contain itself.
        definitions.insert(name.clone(), Value::Bool(true));
        let filled = moved(document, target, definitions)?;
        definitions.insert(name.clone(), filled);
    }
    Ok(format!("#/{DEFINITIONS}/{name}"))
}

/// Takes the definitions out of a schema and leads its references to `PREFIX.NAME` among a document's components.
pub(crate) fn hoisted(mut schema: Value, prefix: &str) -> (Value, Vec<(String, Value)>) {
    let definitions = match &mut schema {
        Value::Object(object) => object.remove(DEFINITIONS),
        _ => None,
    };
    let Some(Value::Object(definitions)) = definitions else {
        return (schema, Vec::new());
    };
    lead(&mut schema, prefix);
    let hoisted = definitions.into_iter().map(|(name, mut it)| {
        lead(&mut it, prefix);
        (format!("{prefix}.{name}"), it)
    });
    (schema, hoisted.collect())
}

fn lead(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(pointer) if key == "$ref" => {
                        if let Some(name) = pointer.strip_prefix("#/definitions/") {
                            *pointer = format!("#/components/schemas/{prefix}.{name}");
                        }
                    }
                    _ if DATA.contains(&key.as_str()) => {}
                    _ => lead(value, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| lead(item, prefix)),
        _ => {}
    }
}
