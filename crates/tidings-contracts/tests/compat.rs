//! Whether a reader understands a writer: a pair of tests for each rule, and a property that holds them all.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidings_contracts::compat::breaks;

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required })
}

#[track_caller]
fn understood(written: &Value, read: &Value) {
    let found = breaks(written, read);
    assert!(found.is_empty(), "{}", said(&found));
}

#[track_caller]
fn not_understood(written: &Value, read: &Value, expected: &str) {
    assert_eq!(said(&breaks(written, read)), expected);
}

fn said(found: &[tidings_contracts::compat::Break]) -> String {
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    said.join("; ")
}

#[test]
fn a_field_that_is_needed_must_be_written() {
    let reader = object(json!({"id": {"type": "string"}}), &["id"]);
    understood(&object(json!({"id": {"type": "string"}}), &["id"]), &reader);
    not_understood(
        &object(json!({}), &[]),
        &reader,
        "`id` is never written, and read as a field that must be there",
    );
    not_understood(
        &object(json!({"id": {"type": "string"}}), &[]),
        &reader,
        "`id` may be left out, and is read as a field that must be there",
    );
    understood(
        &object(json!({}), &[]),
        &object(json!({"id": {"type": "string"}}), &[]),
    );
}

#[test]
fn a_field_more_disturbs_only_who_refuses_it() {
    let writer = object(
        json!({"id": {"type": "string"}, "note": {"type": "string"}}),
        &["id", "note"],
    );
    let mut reader = object(json!({"id": {"type": "string"}}), &["id"]);
    understood(&writer, &reader);
    reader["additionalProperties"] = false.into();
    not_understood(
        &writer,
        &reader,
        "`note` is written, and the reader refuses fields that it does not know",
    );
    reader["additionalProperties"] = json!({"type": "string"});
    understood(&writer, &reader);
    reader["additionalProperties"] = json!({"type": "integer"});
    not_understood(
        &writer,
        &reader,
        "`note` is written as a text and read as an integer",
    );
}

#[test]
fn a_field_keeps_its_type() {
    let of = |schema: Value| object(json!({"a": schema}), &["a"]);
    let types = ["null", "boolean", "integer", "string", "array", "object"];
    for written in types {
        for read in types {
            let found = breaks(&of(json!({"type": written})), &of(json!({"type": read})));
            assert_eq!(found.is_empty(), written == read, "{written} {read}");
        }
    }
    understood(
        &of(json!({"type": "integer"})),
        &of(json!({"type": "number"})),
    );
    not_understood(
        &of(json!({"type": "number"})),
        &of(json!({"type": "integer"})),
        "`a` is written as a number and read as an integer",
    );
    understood(
        &of(json!({"type": "string"})),
        &of(json!({"type": ["string", "null"]})),
    );
    not_understood(
        &of(json!({"type": ["string", "null"]})),
        &of(json!({"type": "string"})),
        "`a` is written as null and read as a text",
    );
    understood(&of(json!({"type": "string"})), &of(json!(true)));
    not_understood(
        &of(json!(true)),
        &of(json!({"type": "string"})),
        "`a` is written as anything and read as a text",
    );
}

#[test]
fn values_stay_within_what_is_read() {
    for (written, read, fits) in [
        (
            json!({"type": "integer", "minimum": 1}),
            json!({"type": "integer", "minimum": 0}),
            true,
        ),
        (
            json!({"type": "integer", "minimum": 0}),
            json!({"type": "integer", "minimum": 1}),
            false,
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!({"type": "integer", "exclusiveMinimum": 0}),
            true,
        ),
        (
            json!({"type": "number", "minimum": 1}),
            json!({"type": "number", "exclusiveMinimum": 1}),
            false,
        ),
        (
            json!({"type": "integer"}),
            json!({"type": "integer", "maximum": 9}),
            false,
        ),
        (
            json!({"type": "integer", "format": "uint32"}),
            json!({"type": "integer", "format": "int64"}),
            true,
        ),
        (
            json!({"type": "integer", "format": "uint64"}),
            json!({"type": "integer", "format": "int64"}),
            false,
        ),
        (
            json!({"type": "integer", "format": "int32"}),
            json!({"type": "integer", "format": "uint32"}),
            false,
        ),
        (
            json!({"type": "string", "maxLength": 5}),
            json!({"type": "string", "maxLength": 9}),
            true,
        ),
        (
            json!({"type": "string"}),
            json!({"type": "string", "maxLength": 9}),
            false,
        ),
        (
            json!({"type": "string"}),
            json!({"type": "string", "minLength": 1}),
            false,
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!({"type": "string"}),
            true,
        ),
        (
            json!({"type": "string"}),
            json!({"type": "string", "format": "date-time"}),
            false,
        ),
        (
            json!({"type": "string", "pattern": "^a"}),
            json!({"type": "string", "pattern": "^a"}),
            true,
        ),
        (
            json!({"type": "string"}),
            json!({"type": "string", "pattern": "^a"}),
            false,
        ),
        (
            json!({"const": "abc"}),
            json!({"type": "string", "pattern": "^a"}),
            true,
        ),
        (
            json!({"const": "xbc"}),
            json!({"type": "string", "pattern": "^a"}),
            false,
        ),
        (
            json!({"enum": ["a", "b"]}),
            json!({"enum": ["c", "b", "a"]}),
            true,
        ),
        (
            json!({"enum": ["a", "b", "d"]}),
            json!({"enum": ["c", "b", "a"]}),
            false,
        ),
        (json!({"enum": ["a", "b"]}), json!({"type": "string"}), true),
        (
            json!({"type": "string"}),
            json!({"enum": ["a", "b"]}),
            false,
        ),
        (
            json!({"type": "boolean"}),
            json!({"enum": [true, false]}),
            true,
        ),
        (json!({"type": "boolean"}), json!({"const": true}), false),
        (
            json!({"type": "array", "items": {"type": "integer"}}),
            json!({"type": "array", "items": {"type": "number"}}),
            true,
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!({"type": "array", "items": {"type": "number"}}),
            false,
        ),
        (
            json!({"type": "array", "maxItems": 3}),
            json!({"type": "array", "maxItems": 5}),
            true,
        ),
        (
            json!({"type": "array"}),
            json!({"type": "array", "minItems": 1}),
            false,
        ),
        (
            json!({"type": "integer", "multipleOf": 5}),
            json!({"type": "integer", "multipleOf": 5}),
            true,
        ),
        (
            json!({"type": "integer"}),
            json!({"type": "integer", "multipleOf": 5}),
            false,
        ),
    ] {
        let found = breaks(&written, &read);
        assert_eq!(found.is_empty(), fits, "{written} {read}: {}", said(&found));
    }
}

#[test]
fn a_variant_that_is_not_known_is_not_understood() {
    let variant = |name: &str, extra: &str| {
        let properties = json!({"kind": {"const": name}, extra: {"type": "string"}});
        object(properties, &["kind", extra])
    };
    let two = json!({"oneOf": [variant("card", "number"), variant("cash", "till")]});
    let three = json!({"oneOf": [variant("card", "number"), variant("cash", "till"), variant("coupon", "code")]});
    understood(&two, &three);
    not_understood(
        &three,
        &two,
        "`kind` is written as `coupon` and read as `card`; `number` is never written, and read as a field that must be there",
    );
    let renamed = json!({"oneOf": [variant("card", "digits"), variant("cash", "till")]});
    not_understood(
        &renamed,
        &two,
        "`number` is never written, and read as a field that must be there",
    );
}

#[test]
fn what_contains_itself_is_compared() {
    let tree = |of: &str| {
        json!({
            "$ref": "#/definitions/Tree",
            "definitions": {"Tree": {
                "type": "object",
                "properties": {
                    "value": {"type": of},
                    "children": {"type": "array", "items": {"$ref": "#/definitions/Tree"}},
                },
                "required": ["value", "children"],
            }},
        })
    };
    understood(&tree("integer"), &tree("integer"));
    understood(&tree("integer"), &tree("number"));
    not_understood(
        &tree("string"),
        &tree("number"),
        "`value` is written as a text and read as a number",
    );
}

#[test]
fn what_cannot_be_compared_is_never_passed_over() {
    let strange = json!({"type": "object", "patternProperties": {"^x-": {"type": "string"}}});
    understood(&strange, &strange);
    not_understood(
        &json!({"type": "object"}),
        &strange,
        "the body cannot be compared, because of `patternProperties`: say it by `type`, `properties`, `required`, `enum` or `oneOf`",
    );
    // What is only for people does not matter.
    let described = json!({"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "description": "Words."});
    understood(&strange, &described);
}

#[test]
fn parts_that_are_put_together_are_compared_as_one() {
    let text = || json!({"type": "string"});
    let mut flattened = object(json!({"a": text()}), &["a"]);
    flattened["allOf"] = json!([object(json!({"b": text()}), &["b"])]);
    let plain = object(json!({"a": text(), "b": text()}), &["a", "b"]);
    understood(&flattened, &plain);
    understood(&plain, &flattened);
    not_understood(
        &object(json!({"a": text()}), &["a"]),
        &flattened,
        "`b` is never written, and read as a field that must be there",
    );
    not_understood(
        &object(json!({"a": text(), "b": text()}), &["b"]),
        &flattened,
        "`a` may be left out, and is read as a field that must be there",
    );
    for (parts, whole) in [
        (
            json!([{"type": "number", "minimum": 1}, {"type": "integer", "maximum": 5, "minimum": 0}]),
            json!({"type": "integer", "minimum": 1, "maximum": 5}),
        ),
        (
            json!([{"type": "integer", "maximum": 5}, {"type": "number", "maximum": 9, "minimum": 1}]),
            json!({"type": "integer", "minimum": 1, "maximum": 5}),
        ),
        (
            json!([{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]),
            json!({"const": "b"}),
        ),
        (
            json!([{"type": ["string", "null"]}, {"type": "string", "minLength": 1}, {"type": "string", "minLength": 3}]),
            json!({"type": "string", "minLength": 3}),
        ),
        (
            json!([{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "integer"}]),
            json!({"type": "integer"}),
        ),
    ] {
        let parts = json!({ "allOf": parts });
        understood(&parts, &whole);
        understood(&whole, &parts);
    }
    // A part that a reference names.
    let referred = json!({
        "allOf": [{"$ref": "#/definitions/Base"}],
        "properties": {"a": text()},
        "required": ["a"],
        "definitions": {"Base": object(json!({"b": text()}), &["b"])},
    });
    understood(&referred, &plain);
    understood(&plain, &referred);
}

/// A schema of at most this depth.
fn schemas(depth: u32) -> BoxedStrategy<Value> {
    let length = prop_oneof![
        Just(json!({})),
        (0_u8..4).prop_map(|it| json!({"minLength": it})),
        (1_u8..9).prop_map(|it| json!({"maxLength": it})),
    ];
    let range = prop_oneof![
        Just(json!({})),
        (-5..5).prop_map(|it| json!({"minimum": it})),
        (6..20).prop_map(|it| json!({"maximum": it})),
        (-5..5, 6..20).prop_map(|(from, to)| json!({"exclusiveMinimum": from, "maximum": to})),
    ];
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        (prop_oneof![Just("integer"), Just("number")], range)
            .prop_map(|(name, range)| with(json!({"type": name}), &range)),
        length.prop_map(|length| with(json!({"type": "string"}), &length)),
        proptest::sample::subsequence(vec!["a", "b", "c", "d"], 1..4)
            .prop_map(|all| json!({"enum": all})),
        Just(json!({"type": ["string", "null"]})),
        Just(json!({"type": ["integer", "null"]})),
    ];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        let fields = proptest::collection::btree_map("[a-d]", (inner.clone(), any::<bool>()), 0..4);
        let objects = (fields, any::<bool>()).prop_map(|(fields, strict)| {
            let required: Vec<&String> = fields
                .iter()
                .filter(|(_, it)| it.1)
                .map(|(name, _)| name)
                .collect();
            let properties: Value = fields
                .iter()
                .map(|(name, it)| (name.clone(), it.0.clone()))
                .collect::<serde_json::Map<_, _>>()
                .into();
            let mut schema =
                json!({"type": "object", "properties": properties, "required": required});
            if strict {
                schema["additionalProperties"] = false.into();
            }
            schema
        });
        let lists = (inner.clone(), 0_u8..3).prop_map(|(items, least)| {
            let mut schema = json!({"type": "array", "items": items});
            if least > 0 {
                schema["minItems"] = least.into();
            }
            schema
        });
        let variants = (inner.clone(), inner).prop_map(|(one, other)| {
            let variant = |tag: &str, it: Value| {
                object(json!({"kind": {"const": tag}, "it": it}), &["kind", "it"])
            };
            json!({"anyOf": [variant("one", one), variant("other", other)]})
        });
        prop_oneof![3 => objects, 1 => lists, 1 => variants]
    })
    .boxed()
}

fn with(mut schema: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        schema[key] = value.clone();
    }
    schema
}

/// A schema and one that somebody made of it by a few changes.
fn changed() -> impl Strategy<Value = (Value, Value)> {
    let change = (any::<prop::sample::Index>(), schemas(1), 0_u8..6);
    (schemas(3), proptest::collection::vec(change, 0..3)).prop_map(|(schema, changes)| {
        let mut other = schema.clone();
        for (place, new, how) in changes {
            let mut places = Vec::new();
            parts(&other, &mut String::new(), &mut places);
            let place = place.get(&places).clone();
            let part = other.pointer_mut(&place).unwrap();
            match how {
                0 => *part = new,
                1 if part["properties"].is_object() => part["properties"]["e"] = new,
                2 if part["required"].is_array() => part["required"] = json!([]),
                3 if part["properties"].is_object() => {
                    let names: Vec<String> = part["properties"]
                        .as_object()
                        .unwrap()
                        .keys()
                        .cloned()
                        .collect();
                    part["required"] = json!(names);
                }
                4 => {
                    if let Some(object) = part.as_object_mut() {
                        object.remove("additionalProperties");
                        object.remove("maxLength");
                        object.remove("minimum");
                    }
                }
                5 if part["enum"].is_array() => part["enum"] = json!(["a", "b", "e"]),
                _ => {}
            }
        }
        (schema, other)
    })
}

/// The pointers to all schemas in a schema.
fn parts(schema: &Value, path: &mut String, found: &mut Vec<String>) {
    found.push(path.clone());
    let mut inside = |more: String, part: &Value| parts(part, &mut format!("{path}{more}"), found);
    for (name, part) in schema["properties"].as_object().into_iter().flatten() {
        if part.get("const").is_none() {
            inside(format!("/properties/{name}"), part);
        }
    }
    if schema["items"].is_object() {
        inside("/items".to_owned(), &schema["items"]);
    }
    for (index, part) in schema["anyOf"].as_array().into_iter().flatten().enumerate() {
        inside(format!("/anyOf/{index}"), part);
    }
}

/// Bodies by a schema: for each place in it, those at the limits of what it says there, while all else is usual.
fn bodies(schema: &Value) -> Vec<Value> {
    if let Some(all) = schema["enum"].as_array() {
        return all.clone();
    }
    if let Some(value) = schema.get("const") {
        return vec![value.clone()];
    }
    if let Some(all) = schema["anyOf"].as_array() {
        return all.iter().flat_map(bodies).collect();
    }
    let whole = schema["type"] == "integer" || schema["type"][0] == "integer";
    let number = |key: &str| schema[key].as_f64();
    let mut found = match &schema["type"] {
        Value::Array(types) => {
            let mut one = schema.clone();
            one["type"] = types[0].clone();
            let mut all = bodies(&one);
            all.push(Value::Null);
            all
        }
        name if name == "boolean" => vec![json!(true), json!(false)],
        name if name == "string" => {
            let least = schema["minLength"].as_u64().unwrap_or(0);
            let most = schema["maxLength"].as_u64().unwrap_or(40);
            vec![
                "z".repeat(least as usize).into(),
                "z".repeat(most as usize).into(),
                "a".repeat(least.max(1) as usize).into(),
            ]
        }
        name if name == "integer" || name == "number" => {
            let least =
                number("minimum").unwrap_or(number("exclusiveMinimum").map_or(-1e6, |it| it + 1.0));
            let most = number("maximum").unwrap_or(1e6);
            let mut all = vec![json!(least as i64), json!(most as i64)];
            if !whole {
                let above = number("exclusiveMinimum").map_or(least, |it| it + 0.25);
                all.extend([json!(above), json!(above + 0.5)]);
            }
            all
        }
        name if name == "array" => {
            let items = bodies(&schema["items"]);
            let least = schema["minItems"].as_u64().unwrap_or(0).max(1) as usize;
            let mut all: Vec<Value> = items
                .iter()
                .map(|it| Value::Array(vec![it.clone(); least]))
                .collect();
            if schema["minItems"].is_null() {
                all.push(json!([]));
            }
            all
        }
        _ => Vec::new(),
    };
    if let Some(properties) = schema["properties"].as_object() {
        let usual: serde_json::Map<String, Value> = properties
            .iter()
            .map(|(name, it)| (name.clone(), bodies(it)[0].clone()))
            .collect();
        found.push(Value::Object(usual.clone()));
        for (name, part) in properties {
            for value in bodies(part) {
                let mut body = usual.clone();
                body.insert(name.clone(), value);
                found.push(Value::Object(body));
            }
            let required = schema["required"].as_array().unwrap();
            if !required.contains(&json!(name)) {
                let mut body = usual.clone();
                body.remove(name);
                found.push(Value::Object(body));
            }
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The verdict is what a validator says of bodies by the one schema: all of them are read if nothing was found, and
    /// one of them is not if something was.
    #[test]
    fn the_verdict_agrees_with_a_validator((writer, reader) in changed()) {
        let validator = jsonschema::draft7::new(&reader).unwrap();
        let own = jsonschema::draft7::new(&writer).unwrap();
        let all = bodies(&writer);
        for body in &all {
            prop_assert!(own.is_valid(body), "the test writes what is not of its schema: {} {}", body, writer);
        }
        let refused = all.iter().find(|body| !validator.is_valid(body));
        let found = breaks(&writer, &reader);
        match refused {
            Some(body) => prop_assert!(!found.is_empty(), "{} is refused, and nothing was found", body),
            None => prop_assert!(found.is_empty(), "found, and all is read: {}", said(&found)),
        }
    }
}
