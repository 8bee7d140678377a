//! What a schema says about one place, in words.

use serde_json::{Map, Value};

type Part<'a> = &'a Map<String, Value>;

/// What is told elsewhere, or says nothing about values.
const KNOWN: &[&str] = &[
    "$comment",
    "$id",
    "$ref",
    "$schema",
    "$defs",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "properties",
    "readOnly",
    "required",
    "title",
    "type",
];

/// The types of values that all parts take; none if nothing is said.
pub(super) fn types<'a>(parts: &[Part<'a>]) -> Vec<&'a str> {
    let said = parts.iter().find_map(|it| it.get("type"));
    match said {
        Some(Value::String(one)) => return vec![one],
        Some(Value::Array(all)) => return all.iter().filter_map(Value::as_str).collect(),
        _ => {}
    }
    let values = constants(parts);
    if !values.is_empty() {
        let mut types: Vec<&str> = values.iter().map(|it| type_of(it)).collect();
        types.dedup();
        return types;
    }
    let meant = [
        ("properties", "object"),
        ("required", "object"),
        ("additionalProperties", "object"),
        ("items", "array"),
        ("pattern", "string"),
        ("minLength", "string"),
        ("maxLength", "string"),
        ("minimum", "number"),
        ("maximum", "number"),
    ];
    let meant = meant.iter().filter(|(key, _)| has(parts, key));
    meant.map(|(_, of)| *of).take(1).collect()
}

/// The types in words, of one value or of many.
pub(super) fn kinds(parts: &[Part<'_>], many: bool) -> Vec<String> {
    let types = types(parts);
    if types.is_empty() {
        return vec!["anything".to_owned()];
    }
    let format = text(parts, "format");
    let word = |of: &&str| {
        let (one, all) = match (*of, format) {
            ("string", Some("date-time")) => ("time", "times"),
            ("string", Some("date")) => ("day", "days"),
            ("string", Some("uuid")) => ("UUID", "UUIDs"),
            ("string", _) => ("text", "texts"),
            ("integer", _) => ("integer", "integers"),
            ("number", _) => ("number", "numbers"),
            ("boolean", _) => ("true or false", "true or false"),
            ("array", _) => ("list", "lists"),
            ("object", _) => ("object", "objects"),
            (other, _) => (other, other),
        };
        if many { all } else { one }.to_owned()
    };
    types.iter().map(word).collect()
}

/// Which values of its types a place takes, by any of the variants.
pub(super) fn limits(variants: &[Vec<Part<'_>>], each: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let values: Vec<&Value> = variants.iter().flat_map(|it| constants(it)).collect();
    let mut told: Vec<String> = Vec::new();
    for value in values {
        let value = format!("`{}`", shown(value));
        if !told.contains(&value) {
            told.push(value);
        }
    }
    match told.as_slice() {
        [] => {}
        [one] => all.push(format!("{each}{one}")),
        many => all.push(format!("{each}one of {}", many.join(", "))),
    }
    let objects = variants.iter().filter(|it| types(it).contains(&"object"));
    let objects = objects.count();
    if objects > 1 {
        all.push(format!("{each}one of {objects} shapes"));
    }
    for limit in variants.iter().flat_map(|it| of_one(it)) {
        let limit = format!("{each}{limit}");
        if !all.contains(&limit) {
            all.push(limit);
        }
    }
    all
}

fn of_one(parts: &[Part<'_>]) -> Vec<String> {
    let mut all = Vec::new();
    let number = |key: &str| parts.iter().find_map(|it| it.get(key)).map(shown);
    let range = |least: &str, most: &str, unit: &str| match (number(least), number(most)) {
        (Some(least), Some(most)) if least == most => Some(format!("{least}{unit}")),
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    };
    all.extend(range("minimum", "maximum", ""));
    all.extend(number("exclusiveMinimum").map(|it| format!("more than {it}")));
    all.extend(number("exclusiveMaximum").map(|it| format!("less than {it}")));
    all.extend(number("multipleOf").map(|it| format!("a multiple of {it}")));
    all.extend(range("minLength", "maxLength", " characters"));
    all.extend(range("minItems", "maxItems", " items"));
    all.extend(text(parts, "pattern").map(|it| format!("matches `{it}`")));
    let format = text(parts, "format").filter(|it| !matches!(*it, "date-time" | "date" | "uuid"));
    all.extend(format.map(|it| format!("`{it}`")));
    if has(parts, "default") {
        all.extend(number("default").map(|it| format!("`{it}` if left out")));
    }
    let keys = parts.iter().flat_map(|it| it.keys());
    let unknown: Vec<String> = keys
        .filter(|it| !KNOWN.contains(&it.as_str()) && !it.starts_with("x-"))
        .map(|it| format!("`{it}`"))
        .collect();
    if !unknown.is_empty() {
        all.push(format!("and {}, see the schema", unknown.join(", ")));
    }
    all
}

fn constants<'a>(parts: &[Part<'a>]) -> Vec<&'a Value> {
    let of = |part: &Part<'a>| match (part.get("const"), part.get("enum")) {
        (Some(one), _) => Some(vec![one]),
        (None, Some(Value::Array(all))) => Some(all.iter().collect()),
        _ => None,
    };
    parts.iter().find_map(of).unwrap_or_default()
}

fn has(parts: &[Part<'_>], key: &str) -> bool {
    parts.iter().any(|it| it.contains_key(key))
}

fn text<'a>(parts: &[Part<'a>], key: &str) -> Option<&'a str> {
    parts.iter().find_map(|it| it.get(key)?.as_str())
}

/// A value as people write it: a text without quotes, 5 for 5.0.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => return text.clone(),
        other => other.to_string(),
    };
    match (value.is_number(), text.strip_suffix(".0")) {
        (true, Some(whole)) => whole.to_owned(),
        _ => text,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
