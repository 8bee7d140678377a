//! Whether a reader understands everything that a writer may write, by their JSON Schemas.
//!
//! The writer's schema is taken at its word: it writes the properties that it declares and no others, unless
//! `additionalProperties` says what others there are. A reader takes what its schema validates, so a property that it
//! does not know does not disturb it unless it says `"additionalProperties": false`. What a reader's schema says in a
//! way that is not understood here ([`What::Unclear`]) is never passed over: the two are compatible only if the
//! writer says exactly the same. `oneOf` is taken as `anyOf`: programs read a body as the first variant that fits.
//!
//! ```
//! use serde_json::json;
//! use tidings_contracts::compat;
//!
//! let writer = json!({"type": "object", "properties": {"orderId": {"type": "integer"}}, "required": ["orderId"]});
//! let reader = json!({"type": "object", "properties": {"orderId": {"type": "string"}}, "required": ["orderId"]});
//! let found = compat::breaks(&writer, &reader);
//! assert_eq!(found[0].to_string(), "`orderId` is written as an integer and read as a text");
//! ```

mod cases;

use std::fmt;

use serde_json::Value;

use crate::schema::DATA;
use cases::{Additional, Case, Object, cases};

/// Something that a writer may write and a reader does not understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Where in the body: `customer.email`, `items[].quantity`; empty for the body itself.
    pub path: String,
    /// What it is.
    pub what: What,
}

/// What a reader does not understand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// The reader needs a field that is never written.
    Missing,
    /// The reader needs a field that may be left out.
    Optional,
    /// The reader refuses fields that it does not know, and this is one.
    Unknown,
    /// It is written as something that the reader does not read: `an integer`, `a text`.
    Kind {
        /// What is written.
        written: String,
        /// What is read.
        read: String,
    },
    /// It is written with values that are beyond what the reader takes.
    Beyond {
        /// What is written: `a number from 0`.
        written: String,
        /// What is read: `a number from 1 to 10`.
        read: String,
    },
    /// The reader's or the writer's schema says something that is not understood here.
    Unclear {
        /// The keywords: `not`, `if`.
        keywords: String,
    },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str("the body")?,
            path => write!(f, "`{path}`")?,
        }
        match &self.what {
            What::Missing => {
                f.write_str(" is never written, and read as a field that must be there")
            }
            What::Optional => {
                f.write_str(" may be left out, and is read as a field that must be there")
            }
            What::Unknown => {
                f.write_str(" is written, and the reader refuses fields that it does not know")
            }
            What::Kind { written, read } | What::Beyond { written, read } => {
                write!(f, " is written as {written} and read as {read}")
            }
            What::Unclear { keywords } => write!(
                f,
                " cannot be compared, because of {keywords}: say it by `type`, `properties`, `required`, `enum` or `oneOf`"
            ),
        }
    }
}

/// What the writer may write and the reader does not understand; nothing if all of it is understood.
///
/// Both schemas contain all that they refer to. What is found is reported once for each place.
pub fn breaks(writer: &Value, reader: &Value) -> Vec<Break> {
    let (writer, reader) = (&without_words(writer), &without_words(reader));
    let mut comparison = Comparison {
        writer,
        reader,
        same_definitions: writer.get("definitions") == reader.get("definitions"),
        under_way: Vec::new(),
    };
    comparison.schemas(writer, reader, "")
}

struct Comparison<'a> {
    writer: &'a Value,
    reader: &'a Value,
    /// What is equal is the same only if it refers to the same.
    same_definitions: bool,
    /// Pairs that are being compared, so that a type that contains itself ends.
    under_way: Vec<(Value, Value)>,
}

impl Comparison<'_> {
    fn schemas(&mut self, written: &Value, read: &Value, path: &str) -> Vec<Break> {
        let pair = (written.clone(), read.clone());
        if self.under_way.contains(&pair) {
            return Vec::new();
        }
        self.under_way.push(pair);
        let found = self.all_cases(written, read, path);
        self.under_way.pop();
        found
    }

    fn all_cases(&mut self, written: &Value, read: &Value, path: &str) -> Vec<Break> {
        if written == read && self.same_definitions {
            return Vec::new();
        }
        let takes = |value: &Value| takes(self.reader, read, value);
        let written = cases(self.writer, written);
        let (constants, written): (Vec<Case>, Vec<Case>) = written
            .into_iter()
            .partition(|it| matches!(it, Case::Constant(_)));
        // Single values are for a validator.
        let constants = constants.into_iter().filter(|it| match it {
            Case::Constant(value) => !takes(value),
            _ => true,
        });
        let written: Vec<Case> = constants.chain(written).collect();
        let read = cases(self.reader, read);
        let mut found = Vec::new();
        for case in &written {
            for it in self.case(case, &read, path) {
                if !found.contains(&it) {
                    found.push(it);
                }
            }
        }
        found
    }

    /// What of one case nobody reads. If several cases nearly do, that of the one that comes nearest.
    fn case(&mut self, written: &Case, read: &[Case], path: &str) -> Vec<Break> {
        if read.iter().any(|it| matches!(it, Case::Anything)) || read.contains(written) {
            return Vec::new();
        }
        if *written == Case::Boolean && reads_both(read) {
            return Vec::new();
        }
        let mut nearest: Option<Vec<Break>> = None;
        for it in read {
            let Some(found) = self.against(written, it, path) else {
                continue;
            };
            if found.is_empty() {
                return found;
            }
            let nearer = |known: &Vec<Break>| distance(&found, path) < distance(known, path);
            if nearest.as_ref().is_none_or(nearer) {
                nearest = Some(found);
            }
        }
        nearest.unwrap_or_else(|| {
            let what = What::Kind {
                written: written.to_string(),
                read: words(read),
            };
            vec![at(path, what)]
        })
    }

    /// What of one case the other does not read; `None` if they are different things.
    fn against(&mut self, written: &Case, read: &Case, path: &str) -> Option<Vec<Break>> {
        let beyond = |fits: bool| match fits {
            true => Vec::new(),
            false => vec![at(
                path,
                What::Beyond {
                    written: written.to_string(),
                    read: read.to_string(),
                },
            )],
        };
        Some(match (written, read) {
            (_, Case::Unclear(keywords)) | (Case::Unclear(keywords), _) => {
                let keywords = keywords.clone();
                vec![at(path, What::Unclear { keywords })]
            }
            (Case::Number(written), Case::Number(read)) => {
                let whole = written.whole || !read.whole;
                beyond(
                    whole
                        && read.range.contains(&written.range)
                        && read.steps.iter().all(|it| written.steps.contains(it)),
                )
            }
            (Case::Text(written), Case::Text(read)) => beyond(
                read.length.holds(&written.length)
                    && read.patterns.iter().all(|it| written.patterns.contains(it))
                    && (read.format.is_none() || read.format == written.format),
            ),
            (Case::Array(written), Case::Array(read)) => {
                let mut found =
                    beyond(read.length.holds(&written.length) && (written.unique || !read.unique));
                if written.length.end != Some(0.0) {
                    found.extend(self.schemas(&written.items, &read.items, &format!("{path}[]")));
                }
                found
            }
            (Case::Object(written), Case::Object(read)) => self.objects(written, read, path),
            // The same kind of value, of which one side has only some.
            (
                Case::Text(_) | Case::Constant(Value::String(_)),
                Case::Constant(Value::String(_)),
            )
            | (
                Case::Number(_) | Case::Constant(Value::Number(_)),
                Case::Constant(Value::Number(_)),
            )
            | (Case::Constant(Value::String(_)), Case::Text(_))
            | (Case::Constant(Value::Number(_)), Case::Number(_))
            | (Case::Boolean, Case::Constant(Value::Bool(_))) => beyond(false),
            _ => return None,
        })
    }

    fn objects(&mut self, written: &Object, read: &Object, path: &str) -> Vec<Break> {
        let mut found = Vec::new();
        for (name, schema) in &read.properties {
            let path = below(path, name);
            let is_needed = read.required.contains(name);
            let other = written.properties.get(name);
            let others = match (&other, &written.additional) {
                (Some(schema), _) => Some(*schema),
                (None, Additional::Of(schema)) => Some(schema),
                (None, _) => None,
            };
            match (other, is_needed) {
                (None, true) => found.push(at(&path, What::Missing)),
                (Some(_), true) if !written.required.contains(name) => {
                    found.push(at(&path, What::Optional));
                }
                _ => {}
            }
            if let Some(others) = others {
                found.extend(self.schemas(others, schema, &path));
            }
        }
        // Fields that must be there and of which nothing else is said.
        for name in &read.required {
            if !read.properties.contains_key(name) && !written.required.contains(name) {
                let what = match written.properties.contains_key(name) {
                    true => What::Optional,
                    false => What::Missing,
                };
                found.push(at(&below(path, name), what));
            }
        }
        let extra = written.properties.iter();
        for (name, schema) in extra.filter(|(name, _)| !read.properties.contains_key(*name)) {
            let path = below(path, name);
            match &read.additional {
                Additional::Passed => {}
                Additional::Refused => found.push(at(&path, What::Unknown)),
                Additional::Of(others) => found.extend(self.schemas(schema, others, &path)),
            }
        }
        if let Additional::Of(others) = &written.additional {
            let path = below(path, "*");
            match &read.additional {
                Additional::Passed => {}
                Additional::Refused => found.push(at(&path, What::Unknown)),
                Additional::Of(read) => found.extend(self.schemas(others, read, &path)),
            }
        }
        found
    }
}

/// How far a case is from being read: one that differs only deeper down, or in a number, is nearer than one that is told
/// apart by a constant.
fn distance(found: &[Break], path: &str) -> (usize, usize) {
    let told_apart = found.iter().filter(|it| {
        it.path != path
            && matches!(&it.what, What::Beyond { written, .. } | What::Kind { written, .. } if written.starts_with('`'))
    });
    (told_apart.count(), found.len())
}

/// The schema without what is for people only.
fn without_words(schema: &Value) -> Value {
    match schema {
        Value::Object(object) => {
            let said = object.iter().filter(|(key, value)| {
                let words = ["title", "description", "$comment"].contains(&key.as_str());
                !(words && value.is_string())
            });
            let said = said.map(|(key, value)| match DATA.contains(&key.as_str()) {
                true => (key.clone(), value.clone()),
                false => (key.clone(), without_words(value)),
            });
            Value::Object(said.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_words).collect()),
        other => other.clone(),
    }
}

/// Whether a part of a schema takes a value, as a validator sees it.
fn takes(root: &Value, part: &Value, value: &Value) -> bool {
    let mut part = part.clone();
    if let (Some(definitions), Value::Object(object)) = (root.get("definitions"), &mut part) {
        object.insert("definitions".to_owned(), definitions.clone());
    }
    let validator = jsonschema::draft7::options().should_validate_formats(true);
    validator.build(&part).is_ok_and(|it| it.is_valid(value))
}

pub(crate) fn at(path: &str, what: What) -> Break {
    Break {
        path: path.to_owned(),
        what,
    }
}

/// The path of what `name` is called within `path`.
pub(crate) fn below(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

fn reads_both(read: &[Case]) -> bool {
    let reads = |value: bool| read.contains(&Case::Constant(Value::Bool(value)));
    reads(true) && reads(false)
}

/// What is read, for people: `a text or null`.
fn words(read: &[Case]) -> String {
    let mut words: Vec<String> = Vec::new();
    for it in read.iter().map(Case::to_string) {
        if !words.contains(&it) {
            words.push(it);
        }
    }
    match words.as_slice() {
        [] => "nothing".to_owned(),
        all => all.join(" or "),
    }
}
