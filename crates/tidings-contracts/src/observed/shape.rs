//! What bodies have in common, as a schema: learned from as many as there are, one after the other.
//!
//! Nothing is kept of what bodies say but the names of their fields: no value gets into a schema. An object with more
//! names than a type has fields is a map, whose names are data, and those are not kept either.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::probe::Kind;

/// More names than this are not the fields of a type: the object is a map.
const NAMES_MAX: usize = 100;

/// What a validator says of texts in a format.
static FORMATS: LazyLock<Vec<(&'static str, Validator)>> = LazyLock::new(|| {
    let of = |format| {
        let options = jsonschema::draft7::options().should_validate_formats(true);
        let validator = options.build(&json!({ "type": "string", "format": format }));
        Some((format, validator.ok()?))
    };
    ["date-time", "date"].into_iter().filter_map(of).collect()
});

/// What stands at one place of all bodies.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    kinds: BTreeSet<Kind>,
    /// The formats that all texts so far have; `None` before the first.
    formats: Option<BTreeSet<&'static str>>,
    /// How many objects there were.
    objects: u64,
    /// Their fields, and how many of them had each.
    fields: BTreeMap<String, (u64, Shape)>,
    /// The values of all names, if there are too many.
    values: Option<Box<Shape>>,
    items: Option<Box<Shape>>,
}

impl Shape {
    /// Learns from one more value.
    pub(super) fn learn(&mut self, value: &Value) {
        self.kinds.insert(Kind::of(value));
        match value {
            Value::String(text) => {
                let known = self.formats.get_or_insert_with(|| {
                    let all = FORMATS.iter().map(|(format, _)| *format);
                    all.chain(["uuid"]).collect()
                });
                known.retain(|format| {
                    let mut all = FORMATS.iter();
                    let by_validator = all.find(|(it, _)| it == format);
                    by_validator.map_or_else(|| is_uuid(text), |(_, it)| it.is_valid(value))
                });
            }
            Value::Array(items) => {
                let shape = self.items.get_or_insert_default();
                items.iter().for_each(|item| shape.learn(item));
            }
            Value::Object(fields) => {
                self.objects += 1;
                for (name, value) in fields {
                    self.field(name, value);
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, name: &str, value: &Value) {
        if let Some(values) = &mut self.values {
            return values.learn(value);
        }
        let (count, shape) = self.fields.entry(name.to_owned()).or_default();
        *count += 1;
        shape.learn(value);
        self.settle();
    }

    /// Makes it a map if it has too many names.
    fn settle(&mut self) {
        if self.values.is_none() && self.fields.len() <= NAMES_MAX {
            return;
        }
        let values = self.values.get_or_insert_default();
        for (_, shape) in std::mem::take(&mut self.fields).into_values() {
            values.merge(shape);
        }
    }

    fn merge(&mut self, other: Self) {
        self.kinds.extend(other.kinds);
        self.formats = match (self.formats.take(), other.formats) {
            (Some(own), Some(others)) => Some(&own & &others),
            (own, others) => own.or(others),
        };
        self.objects += other.objects;
        for (name, (count, shape)) in other.fields {
            let (known, of_name) = self.fields.entry(name).or_default();
            *known += count;
            of_name.merge(shape);
        }
        for (own, others) in [
            (&mut self.values, other.values),
            (&mut self.items, other.items),
        ] {
            if let Some(others) = others {
                own.get_or_insert_default().merge(*others);
            }
        }
        self.settle();
    }

    /// As a schema of draft 7: a field is required if every object had it.
    pub(super) fn schema(&self) -> Value {
        let mut schema = Map::new();
        let types = self.types();
        match types.as_slice() {
            [] => return Value::Bool(true),
            [one] => schema.insert("type".to_owned(), json!(one)),
            several => schema.insert("type".to_owned(), json!(several)),
        };
        let format = self.formats.iter().flatten().next();
        if let Some(format) = format {
            schema.insert("format".to_owned(), json!(format));
        }
        if let Some(items) = &self.items {
            schema.insert("items".to_owned(), items.schema());
        }
        if let Some(values) = &self.values {
            schema.insert("additionalProperties".to_owned(), values.schema());
        } else if self.kinds.contains(&Kind::Object) {
            let properties: Map<String, Value> = self
                .fields
                .iter()
                .map(|(name, (_, shape))| (name.clone(), shape.schema()))
                .collect();
            let required: Vec<&String> = self
                .fields
                .iter()
                .filter(|(_, (count, _))| *count == self.objects)
                .map(|(name, _)| name)
                .collect();
            if !required.is_empty() {
                schema.insert("required".to_owned(), json!(required));
            }
            schema.insert("properties".to_owned(), Value::Object(properties));
        }
        Value::Object(schema)
    }

    fn types(&self) -> Vec<&'static str> {
        let fraction = self.kinds.contains(&Kind::Fraction);
        let all = self.kinds.iter().filter_map(|kind| match kind {
            Kind::Null => Some("null"),
            Kind::Boolean => Some("boolean"),
            Kind::Integer if fraction => None,
            Kind::Integer => Some("integer"),
            Kind::Fraction => Some("number"),
            Kind::Text => Some("string"),
            Kind::List => Some("array"),
            Kind::Object => Some("object"),
        });
        all.collect()
    }
}

/// Draft 7 has no format for it, and validators differ.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|it| it.len()).collect();
    let digits = |it: &&str| it.bytes().all(|it| it.is_ascii_hexdigit());
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_says_what_all_bodies_have_in_common() {
        let check = |bodies: &[Value], expected: Value| {
            let mut shape = Shape::default();
            bodies.iter().for_each(|body| shape.learn(body));
            let schema = shape.schema();
            assert_eq!(schema, expected);
            let validator = jsonschema::draft7::new(&schema).unwrap();
            assert!(bodies.iter().all(|body| validator.is_valid(body)));
        };
        check(&[], json!(true));
        check(&[json!(1), json!(2)], json!({"type": "integer"}));
        check(&[json!(1), json!(2.5)], json!({"type": "number"}));
        check(
            &[json!("a"), json!(null)],
            json!({"type": ["null", "string"]}),
        );
        check(
            &[json!("2026-11-29"), json!("2026-11-30")],
            json!({"type": "string", "format": "date"}),
        );
        check(
            &[json!("2026-11-29"), json!("soon")],
            json!({"type": "string"}),
        );
        check(
            &[json!("2026-11-29T10:00:00Z")],
            json!({"type": "string", "format": "date-time"}),
        );
        check(
            &[json!("0198a7c2-5f0e-7d3a-9a41-2f5c8e7b6d10")],
            json!({"type": "string", "format": "uuid"}),
        );
        check(
            &[
                json!({"a": 1, "b": [{"c": true}]}),
                json!({"a": 2, "b": []}),
            ],
            json!({
                "type": "object",
                "required": ["a", "b"],
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"type": "array", "items": {
                        "type": "object", "required": ["c"], "properties": {"c": {"type": "boolean"}}
                    }},
                },
            }),
        );
        check(
            &[json!({"a": 1}), json!({})],
            json!({"type": "object", "properties": {"a": {"type": "integer"}}}),
        );
    }

    /// Whose names are customers' ids, say: they get into no schema.
    #[test]
    fn an_object_of_very_many_names_is_a_map() {
        let names = (0..=NAMES_MAX).map(|it| (format!("c-{it}"), json!({"points": it})));
        let mut shape = Shape::default();
        shape.learn(&Value::Object(names.collect()));
        shape.learn(&json!({"c-x": {"points": 1.5}}));
        let of_value = json!({
            "type": "object", "required": ["points"], "properties": {"points": {"type": "number"}},
        });
        let expected = json!({"type": "object", "additionalProperties": of_value});
        assert_eq!(shape.schema(), expected);
    }
}
