//! A schema as the kinds of values that it takes: every `oneOf`, `anyOf`, list of types and enumeration is taken apart,
//! every `allOf` and `$ref` is put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Map, Value};

use crate::schema::at;

/// More ways than any message has; a schema with more of them is not compared.
const CASES_MAX: usize = 512;
/// Deeper than any message goes: a schema that refers to itself in a circle never ends.
const DEPTH_MAX: usize = 64;

/// What says nothing about which values a schema takes.
const ANNOTATIONS: [&str; 14] = [
    "$comment",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "$defs",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// One kind of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Case {
    Anything,
    Null,
    Boolean,
    Number(Number),
    Text(Text),
    Array(Array),
    Object(Object),
    Constant(Value),
    /// What the schema says cannot be told from it; these are the keywords.
    Unclear(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Number {
    pub(super) whole: bool,
    pub(super) range: Range,
    /// What it is a multiple of.
    pub(super) steps: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Text {
    pub(super) length: Range,
    pub(super) patterns: Vec<String>,
    pub(super) format: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) items: Value,
    pub(super) length: Range,
    pub(super) unique: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) properties: BTreeMap<String, Value>,
    pub(super) required: BTreeSet<String>,
    pub(super) additional: Additional,
}

/// Properties beyond those that are declared.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Additional {
    /// A reader passes over them, a writer writes none.
    Passed,
    Refused,
    /// They are like this.
    Of(Value),
}

/// From a limit to a limit; one that is open is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Range {
    start: Option<f64>,
    start_is_open: bool,
    pub(super) end: Option<f64>,
    end_is_open: bool,
}

/// The kinds of values that `schema`, a part of `root`, takes; none if it takes nothing.
pub(super) fn cases(root: &Value, schema: &Value) -> Vec<Case> {
    match alternatives(root, schema, 0) {
        Ok(all) if all.len() <= CASES_MAX => {
            let mut cases = Vec::new();
            for case in all.iter().flat_map(of_one) {
                if !cases.contains(&case) {
                    cases.push(case);
                }
            }
            cases
        }
        Ok(_) => vec![Case::Unclear("so many alternatives".to_owned())],
        Err(unclear) => vec![Case::Unclear(unclear)],
    }
}

/// The schema as alternatives without any of `$ref`, `allOf`, `anyOf`, `oneOf`.
fn alternatives(
    root: &Value,
    schema: &Value,
    depth: usize,
) -> Result<Vec<Map<String, Value>>, String> {
    let object = match schema {
        Value::Bool(true) => return Ok(vec![Map::new()]),
        Value::Bool(false) => return Ok(Vec::new()),
        Value::Object(object) => object,
        _ => return Err("what is no schema".to_owned()),
    };
    if depth > DEPTH_MAX {
        return Err("a `$ref` in a circle".to_owned());
    }
    let mut base = object.clone();
    let mut all_of = Vec::new();
    if let Some(Value::String(pointer)) = base.remove("$ref") {
        let target =
            at(root, &pointer).ok_or(format!("`$ref` to `{pointer}`, which is nowhere"))?;
        all_of.push(vec![target.clone()]);
    }
    if let Some(Value::Array(parts)) = base.remove("allOf") {
        all_of.extend(parts.into_iter().map(|part| vec![part]));
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(Value::Array(parts)) = base.remove(any) {
            all_of.push(parts);
        }
    }
    base.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()) && !key.starts_with("x-"));
    let mut all = vec![base];
    for any_of in all_of {
        let mut others = Vec::new();
        for part in &any_of {
            others.extend(alternatives(root, part, depth + 1)?);
        }
        let mut both = Vec::new();
        for one in &all {
            for other in &others {
                both.extend(merged(one, other)?);
            }
        }
        if both.len() > CASES_MAX {
            return Err("so many alternatives".to_owned());
        }
        all = both;
    }
    Ok(all)
}

/// What takes the values that both take; `None` if there are none.
fn merged(
    one: &Map<String, Value>,
    other: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, String> {
    let mut both = one.clone();
    for (key, value) in other {
        let Some(known) = one.get(key) else {
            both.insert(key.clone(), value.clone());
            continue;
        };
        if known == value {
            continue;
        }
        let value = match key.as_str() {
            "type" => {
                let types = common_types(&list(known), &list(value));
                if types.is_empty() {
                    return Ok(None);
                }
                Value::Array(types)
            }
            "enum" => {
                let common = list(known);
                let common = common.into_iter().filter(|it| list(value).contains(it));
                Value::Array(common.collect())
            }
            // Different constants.
            "const" => return Ok(None),
            "required" => {
                let mut all = list(known);
                all.extend(
                    list(value)
                        .into_iter()
                        .filter(|it| !list(known).contains(it)),
                );
                Value::Array(all)
            }
            "properties" => Value::Object(properties(known, value)),
            "items" | "additionalProperties" => all_of(known, value),
            "minimum" | "exclusiveMinimum" | "minLength" | "minItems" => larger(known, value),
            "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" => smaller(known, value),
            "pattern" | "multipleOf" => {
                let mut all = list(known);
                all.extend(list(value));
                Value::Array(all)
            }
            "uniqueItems" => Value::Bool(true),
            other => return Err(format!("two of `{other}`")),
        };
        both.insert(key.clone(), value);
    }
    Ok(Some(both))
}

/// One or many, as many.
fn list(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    }
}

fn common_types(one: &[Value], other: &[Value]) -> Vec<Value> {
    let mut common = Vec::new();
    for it in one {
        for also in other {
            let both = match (it.as_str(), also.as_str()) {
                (a, b) if a == b => Some(it),
                (Some("integer"), Some("number")) => Some(it),
                (Some("number"), Some("integer")) => Some(also),
                _ => None,
            };
            if let Some(both) = both
                && !common.contains(both)
            {
                common.push(both.clone());
            }
        }
    }
    common
}

fn properties(one: &Value, other: &Value) -> Map<String, Value> {
    let mut all = one.as_object().cloned().unwrap_or_default();
    for (name, schema) in other.as_object().into_iter().flatten() {
        let schema = match all.get(name) {
            Some(known) if known != schema => all_of(known, schema),
            _ => schema.clone(),
        };
        all.insert(name.clone(), schema);
    }
    all
}

fn all_of(one: &Value, other: &Value) -> Value {
    serde_json::json!({ "allOf": [one, other] })
}

fn smaller(one: &Value, other: &Value) -> Value {
    match one.as_f64() <= other.as_f64() {
        true => one.clone(),
        false => other.clone(),
    }
}

fn larger(one: &Value, other: &Value) -> Value {
    match one.as_f64() >= other.as_f64() {
        true => one.clone(),
        false => other.clone(),
    }
}

/// What belongs to which type: if nothing says which type a schema has, these do.
const KEYWORDS: [(&str, &[&str]); 4] = [
    (
        "object",
        &["properties", "required", "additionalProperties"],
    ),
    ("array", &["items", "minItems", "maxItems", "uniqueItems"]),
    ("string", &["minLength", "maxLength", "pattern", "format"]),
    (
        "number",
        &[
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
        ],
    ),
];

fn of_one(schema: &Map<String, Value>) -> Vec<Case> {
    let is_known = |key: &&String| {
        let key = key.as_str();
        matches!(key, "type" | "enum" | "const")
            || KEYWORDS.iter().any(|(_, keywords)| keywords.contains(&key))
    };
    let unclear: Vec<String> = schema
        .keys()
        .filter(|key| !is_known(key))
        .map(|key| format!("`{key}`"))
        .collect();
    if !unclear.is_empty() {
        return vec![Case::Unclear(unclear.join(", "))];
    }
    if schema.get("items").is_some_and(Value::is_array) {
        return vec![Case::Unclear("`items` as a list".to_owned())];
    }
    let types = match schema.get("type") {
        Some(types) => list(types),
        None => {
            let has = |keywords: &&[&str]| keywords.iter().any(|it| schema.contains_key(*it));
            let meant = KEYWORDS.iter().filter(|(_, keywords)| has(keywords));
            meant.map(|(name, _)| Value::from(*name)).collect()
        }
    };
    let constants = match (schema.get("const"), schema.get("enum")) {
        (Some(one), Some(all)) if !list(all).contains(one) => Some(Vec::new()),
        (Some(one), _) => Some(vec![one.clone()]),
        (None, Some(all)) => Some(list(all)),
        (None, None) => None,
    };
    if let Some(constants) = constants {
        let fits = |it: &Value| types.is_empty() || types.iter().any(|name| is_of(it, name));
        let constants = constants.into_iter().filter(fits);
        return constants.map(Case::Constant).collect();
    }
    if types.is_empty() {
        return vec![Case::Anything];
    }
    types.iter().map(|name| of_type(schema, name)).collect()
}

fn is_of(value: &Value, name: &Value) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => {
            name == "number"
                || (name == "integer" && number.as_f64().is_some_and(|it| it.fract() == 0.0))
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

fn of_type(schema: &Map<String, Value>, name: &Value) -> Case {
    let text = |key: &str| Some(schema.get(key)?.as_str()?.to_owned());
    match name.as_str() {
        Some("null") => Case::Null,
        Some("boolean") => Case::Boolean,
        Some("number") => Case::Number(number(schema, false)),
        Some("integer") => Case::Number(number(schema, true)),
        Some("string") => Case::Text(Text {
            length: Range::of(schema, "minLength", "maxLength"),
            patterns: listed(schema, "pattern")
                .iter()
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
            format: text("format"),
        }),
        Some("array") => Case::Array(Array {
            items: schema.get("items").cloned().unwrap_or(Value::Bool(true)),
            length: Range::of(schema, "minItems", "maxItems"),
            unique: schema.get("uniqueItems") == Some(&Value::Bool(true)),
        }),
        Some("object") => Case::Object(Object {
            properties: schema
                .get("properties")
                .and_then(Value::as_object)
                .map(|all| {
                    all.iter()
                        .map(|(name, it)| (name.clone(), it.clone()))
                        .collect()
                })
                .unwrap_or_default(),
            required: listed(schema, "required")
                .iter()
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
            additional: match schema.get("additionalProperties") {
                None | Some(Value::Bool(true)) => Additional::Passed,
                Some(Value::Bool(false)) => Additional::Refused,
                Some(others) => Additional::Of(others.clone()),
            },
        }),
        _ => Case::Unclear(format!("the type {name}")),
    }
}

fn listed(schema: &Map<String, Value>, key: &str) -> Vec<Value> {
    schema.get(key).map(list).unwrap_or_default()
}

/// The formats of whole numbers say how large they are.
fn number(schema: &Map<String, Value>, whole: bool) -> Number {
    let mut range = Range::of(schema, "minimum", "maximum");
    for (key, value) in [("exclusiveMinimum", true), ("exclusiveMaximum", false)] {
        if let Some(limit) = schema.get(key).and_then(Value::as_f64) {
            range.narrow(limit, value, true);
        }
    }
    if let (true, Some(Value::String(format))) = (whole, schema.get("format")) {
        let bits = |prefix: &str| format.strip_prefix(prefix)?.parse::<i32>().ok();
        if let Some(bits) = bits("uint") {
            range.narrow(0.0, true, false);
            range.narrow(2_f64.powi(bits), false, true);
        } else if let Some(bits) = bits("int") {
            range.narrow(-(2_f64.powi(bits - 1)), true, false);
            range.narrow(2_f64.powi(bits - 1), false, true);
        }
    }
    if whole {
        range.close_whole();
    }
    Number {
        whole,
        range,
        steps: listed(schema, "multipleOf"),
    }
}

impl Range {
    fn of(schema: &Map<String, Value>, start: &str, end: &str) -> Self {
        Self {
            start: schema.get(start).and_then(Value::as_f64),
            end: schema.get(end).and_then(Value::as_f64),
            ..Self::default()
        }
    }

    /// Takes another limit, the stricter of which counts.
    fn narrow(&mut self, limit: f64, is_start: bool, is_open: bool) {
        let (known, known_is_open) = match is_start {
            true => (&mut self.start, &mut self.start_is_open),
            false => (&mut self.end, &mut self.end_is_open),
        };
        let stricter = known.is_none_or(|known| match is_start {
            true => limit > known,
            false => limit < known,
        });
        if stricter {
            (*known, *known_is_open) = (Some(limit), is_open);
        } else if *known == Some(limit) {
            *known_is_open |= is_open;
        }
    }

    /// For whole numbers a limit that is open is the next one inside.
    fn close_whole(&mut self) {
        if let Some(start) = &mut self.start {
            *start = match self.start_is_open && start.fract() == 0.0 {
                true => *start + 1.0,
                false => start.ceil(),
            };
            self.start_is_open = false;
        }
        // The end of 64 bits is no whole number that a double can come near to.
        if let Some(end) = &mut self.end
            && end.abs() < 2_f64.powi(53)
        {
            *end = match self.end_is_open && end.fract() == 0.0 {
                true => *end - 1.0,
                false => end.floor(),
            };
            self.end_is_open = false;
        }
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        let start = match (self.start, other.start) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(its)) => {
                its > own || (its == own && (!self.start_is_open || other.start_is_open))
            }
        };
        let end = match (self.end, other.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(its)) => {
                its < own || (its == own && (!self.end_is_open || other.end_is_open))
            }
        };
        start && end
    }

    /// For lengths, which start with 0.
    pub(super) fn holds(&self, other: &Self) -> bool {
        let from_zero = |range: &Self| Self {
            start: Some(range.start.unwrap_or(0.0)),
            ..*range
        };
        from_zero(self).contains(&from_zero(other))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(start) = self.start {
            let word = if self.start_is_open { "above" } else { "from" };
            write!(f, " {word} {start}")?;
        }
        if let Some(end) = self.end {
            let word = if self.end_is_open { "below" } else { "to" };
            write!(f, " {word} {end}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("anything"),
            Self::Null => f.write_str("null"),
            Self::Boolean => f.write_str("true or false"),
            Self::Number(Number {
                whole,
                range,
                steps,
            }) => {
                f.write_str(if *whole { "an integer" } else { "a number" })?;
                write!(f, "{range}")?;
                steps
                    .iter()
                    .try_for_each(|step| write!(f, " that is a multiple of {step}"))
            }
            Self::Text(text) => {
                f.write_str("a text")?;
                if let Some(format) = &text.format {
                    write!(f, " of the format `{format}`")?;
                }
                if text.length != Range::default() {
                    write!(f, " of{} characters", text.length)?;
                }
                let mut patterns = text.patterns.iter();
                patterns.try_for_each(|pattern| write!(f, " that matches `{pattern}`"))
            }
            Self::Array(array) => {
                f.write_str("a list")?;
                if array.length != Range::default() {
                    write!(f, " of{} items", array.length)?;
                }
                f.write_str(if array.unique {
                    " without equal items"
                } else {
                    ""
                })
            }
            Self::Object(_) => f.write_str("an object"),
            Self::Constant(Value::String(text)) => write!(f, "`{text}`"),
            Self::Constant(value) => write!(f, "{value}"),
            Self::Unclear(keywords) => write!(f, "something with {keywords}"),
        }
    }
}
