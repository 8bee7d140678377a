//! [Pact](https://pact.io) V4: what a consumer expects of the messages of a provider, as a file that Pact's tools of
//! all languages read.
//!
//! A consumer's expectations come from its own types and examples ([`Contracts::pact`](crate::Contracts::pact)): a
//! field is in the pact if the consumer cannot read a body without it, or says that it
//! [uses](crate::Contracts::uses) it, and as what it reads it is a matching rule. A provider verifies pacts with bodies
//! that its own types wrote, without a broker and without a network (`verify`, feature `pact`).
//!
//! The description of an interaction is the name of the message: `order-confirmed.v1`. A provider state is the name of an
//! [example](crate::Example).

#[cfg(feature = "pact")]
mod verify;

use serde_json::{Map, Value, json};

use crate::probe::{Field, Kind, Step, Texts};

#[cfg(feature = "pact")]
pub use verify::{Bodies, Outcome, Pact, PactError, Verified};

/// What one consumer expects of one provider.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Expectations {
    /// The consumer's name.
    pub consumer: String,
    /// The provider's name.
    pub provider: String,
    /// The messages that it expects.
    pub messages: Vec<Expected>,
}

/// A message that a consumer expects.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Expected {
    /// Its name.
    pub name: String,
    /// The case in which the provider sends it, if it is not the usual one.
    pub state: Option<String>,
    /// The body of the consumer's test.
    pub example: Value,
    /// What the consumer reads of it.
    pub fields: Vec<Field>,
}

impl Expectations {
    /// The pact, as text for a file. The same expectations are the same text.
    pub fn to_pact(&self) -> String {
        let interactions: Vec<Value> = self.messages.iter().map(Expected::interaction).collect();
        crate::document::text_of(&json!({
            "consumer": { "name": self.consumer },
            "provider": { "name": self.provider },
            "interactions": interactions,
            "metadata": { "pactSpecification": { "version": "4.0" } },
        }))
    }

    /// The name that Pact's tools give to its file.
    pub fn file_name(&self) -> String {
        format!("{}-{}.json", self.consumer, self.provider)
    }
}

impl Expected {
    fn interaction(&self) -> Value {
        let mut contents = match &self.example {
            Value::Object(_) => json!({}),
            other => other.clone(),
        };
        let mut rules = Map::new();
        for field in self.needed() {
            copy(&self.example, &mut contents, &field.path);
            if let Some(rule) = rule(field) {
                let rule = json!({ "combine": "AND", "matchers": [rule] });
                rules.insert(path_of(&field.path), rule);
            }
        }
        let mut interaction = json!({
            "type": "Asynchronous/Messages",
            "description": self.name,
            "pending": false,
            "contents": {
                "content": contents,
                "contentType": "application/json",
                "encoded": false,
            },
            "matchingRules": { "body": rules },
            "metadata": { "contentType": "application/json" },
        });
        if let Some(state) = &self.state {
            interaction["providerStates"] = json!([{ "name": state }]);
        }
        interaction
    }

    /// The fields that must be there, and are not inside of one that may be left out.
    fn needed(&self) -> impl Iterator<Item = &Field> {
        let left_out = |path: &[Step]| {
            let mut all = self.fields.iter();
            all.any(|it| {
                let is_property = matches!(it.path.last(), Some(Step::Property(_)));
                is_property && !it.required && path.starts_with(&it.path)
            })
        };
        self.fields.iter().filter(move |it| !left_out(&it.path))
    }
}

/// Copies what stands at `path`, and the first item of each list on the way.
fn copy(from: &Value, to: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        match from {
            Value::Object(_) if to.is_object() => {}
            Value::Object(_) => *to = json!({}),
            Value::Array(_) if to.is_array() => {}
            Value::Array(_) => *to = json!([]),
            other => *to = other.clone(),
        }
        return;
    };
    match step {
        Step::Property(name) => {
            let to = to
                .as_object_mut()
                .map(|it| it.entry(name).or_insert(Value::Null));
            if let (Some(from), Some(to)) = (from.get(name), to) {
                copy(from, to, rest);
            }
        }
        Step::Items => {
            if let (Some(from), Some(to)) = (from.get(0), to.as_array_mut()) {
                if to.is_empty() {
                    to.push(Value::Null);
                }
                copy(from, &mut to[0], rest);
            }
        }
    }
}

/// A path as Pact writes it: `$.items[*].sku`.
fn path_of(path: &[Step]) -> String {
    path.iter().fold("$".to_owned(), |text, step| match step {
        Step::Items => text + "[*]",
        Step::Property(name) => {
            let plain = name
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_');
            match plain && !name.is_empty() {
                true => text + "." + name,
                false => format!("{text}['{name}']"),
            }
        }
    })
}

/// RFC 3339, as strictly as everybody writes it.
const TIMES: &str = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$";
const DAYS: &str = r"^\d{4}-\d{2}-\d{2}$";
const UUIDS: &str = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$";
const NUMBERS: &str = r"^-?\d+(\.\d+)?$";

/// The rule by which the provider's value is compared; `None` if it must be equal to the consumer's.
fn rule(field: &Field) -> Option<Value> {
    let reads = |kind: Kind| field.kinds.contains(&kind);
    let regex = |regex: &str| json!({ "match": "regex", "regex": regex });
    Some(match field.texts {
        Texts::Times => regex(TIMES),
        Texts::Days => regex(DAYS),
        Texts::Uuids => regex(UUIDS),
        Texts::Numbers => regex(NUMBERS),
        Texts::Some => return None,
        Texts::Any if reads(Kind::Fraction) => json!({ "match": "number" }),
        Texts::Any if reads(Kind::Integer) => json!({ "match": "integer" }),
        Texts::Any if reads(Kind::List) => json!({ "match": "type", "min": 0 }),
        Texts::Any => json!({ "match": "type" }),
    })
}
