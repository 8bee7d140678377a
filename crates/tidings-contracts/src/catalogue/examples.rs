//! Examples as they may be shown, and the paths of what may not.

use serde_json::Value;

use super::fields::Step;

/// What stands for a value that is hidden.
const HIDDEN: &str = "***";

/// A path of `tidings::SensitivePaths`: names with dots between them, `*` for any, and a `\` before what is meant as it
/// stands. Lists have no step of their own.
fn parts(path: &str) -> Vec<Option<String>> {
    if path.is_empty() {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let (mut part, mut is_any) = (String::new(), false);
    let mut characters = path.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => part.extend(characters.next()),
            '.' => {
                parts.push((!is_any).then(|| std::mem::take(&mut part)));
                (part, is_any) = (String::new(), false);
            }
            '*' if part.is_empty() => is_any = true,
            c => part.push(c),
        }
    }
    parts.push((!is_any).then_some(part));
    parts
}

/// The body without the values of its sensitive fields.
pub(super) fn masked(body: &Value, sensitive: &[&str]) -> Value {
    let paths: Vec<Vec<Option<String>>> = sensitive.iter().map(|it| parts(it)).collect();
    let paths: Vec<&[Option<String>]> = paths.iter().map(Vec::as_slice).collect();
    hidden(body, &paths)
}

fn hidden(value: &Value, paths: &[&[Option<String>]]) -> Value {
    if !value.is_null() && paths.iter().any(|it| it.is_empty()) {
        return Value::from(HIDDEN);
    }
    match value {
        Value::Object(object) => {
            let fields = object.iter().map(|(name, value)| {
                let below = paths.iter().filter_map(|path| match path.split_first()? {
                    (Some(part), rest) if part == name => Some(rest),
                    (None, rest) => Some(rest),
                    _ => None,
                });
                (name.clone(), hidden(value, &below.collect::<Vec<_>>()))
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(|it| hidden(it, paths)).collect(),
        other => other.clone(),
    }
}

/// Whether a field is sensitive, by itself or by what it is part of.
pub(super) fn is_sensitive(path: &[Step], sensitive: &[&str]) -> bool {
    let names: Vec<&Step> = path.iter().filter(|it| **it != Step::Items).collect();
    sensitive.iter().any(|it| {
        let parts = parts(it);
        let fits = |(step, part): (&&Step, &Option<String>)| match (step, part) {
            (Step::Property(name), Some(part)) => name == part,
            (_, None) => true,
            (_, Some(_)) => false,
        };
        parts.len() <= names.len() && names.iter().zip(&parts).all(fits)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sensitive_is_hidden_wherever_it_is() {
        let check = |path: &str, body: Value, expected: Value| {
            assert_eq!(masked(&body, &[path]), expected, "{path}");
        };
        check(
            "card",
            json!({"card": 1, "a": {"card": 2}}),
            json!({"card": "***", "a": {"card": 2}}),
        );
        check(
            "a.b",
            json!({"a": [{"b": 1, "c": 2}], "b": 3}),
            json!({"a": [{"b": "***", "c": 2}], "b": 3}),
        );
        check(
            "a.*.b",
            json!({"a": {"x": {"b": 1}, "y": {"b": null}}}),
            json!({"a": {"x": {"b": "***"}, "y": {"b": null}}}),
        );
        check(
            "a\\.b",
            json!({"a.b": 1, "a": {"b": 2}}),
            json!({"a.b": "***", "a": {"b": 2}}),
        );
        check("\\*", json!({"*": 1, "a": 2}), json!({"*": "***", "a": 2}));
        check("", json!([1]), json!("***"));
        check("none", json!({"a": 1}), json!({"a": 1}));
    }
}
