//! Which fields of a body a type really reads, and as what: found by trying.
//!
//! The body of an example is changed in one place at a time, and the type is asked whether it still reads it: without
//! the field, and with values of each kind in its place. So it does not matter how the type reads: by a derive, by hand,
//! by `flatten`, or with limits of its own. A field in whose place everything is read is not read at all.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// A field that a type reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Where it is: `order_id`, then `items`, `0`, `sku`. An item of a list stands for all of them.
    pub path: Vec<Step>,
    /// As what it is read.
    pub kinds: BTreeSet<Kind>,
    /// Whether the body cannot be read without it.
    pub required: bool,
    /// Which texts are read, if not all.
    pub texts: Texts,
}

/// A step into a body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into this property of an object.
    Property(String),
    /// Into the items of a list.
    Items,
}

/// The kinds of JSON values. A number with a fraction is told from one without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean,
    /// A number without a fraction.
    Integer,
    /// A number with a fraction.
    Fraction,
    /// A text.
    Text,
    /// A list.
    List,
    /// An object.
    Object,
}

/// Which texts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// Texts of all kinds, or none.
    Any,
    /// Times as of RFC 3339.
    Times,
    /// Days: `2026-11-28`.
    Days,
    /// UUIDs.
    Uuids,
    /// Numbers.
    Numbers,
    /// Some, and the example is one of them.
    Some,
}

/// The fields of `body` that are read, outer ones first.
///
/// # Errors
///
/// What `reads` says if it does not read the body as it is.
pub fn fields(
    body: &Value,
    reads: &dyn Fn(&Value) -> Result<(), String>,
) -> Result<Vec<Field>, String> {
    reads(body)?;
    let mut found = Vec::new();
    let mut probe = Probe {
        body: body.clone(),
        reads,
        found: &mut found,
    };
    probe.inside(&mut Vec::new());
    Ok(found)
}

struct Probe<'a> {
    body: Value,
    reads: &'a dyn Fn(&Value) -> Result<(), String>,
    found: &'a mut Vec<Field>,
}

impl Probe<'_> {
    /// Looks at all that is inside of what stands at `path`.
    fn inside(&mut self, path: &mut Vec<Step>) {
        match self.at(path).clone() {
            Value::Object(properties) => {
                for name in properties.keys() {
                    path.push(Step::Property(name.clone()));
                    self.place(path);
                    path.pop();
                }
            }
            // What holds for one item holds for all.
            Value::Array(items) if !items.is_empty() => {
                path.push(Step::Items);
                self.place(path);
                path.pop();
            }
            _ => {}
        }
    }

    fn place(&mut self, path: &mut Vec<Step>) {
        let kinds: BTreeSet<Kind> = candidates()
            .into_iter()
            .filter(|(_, values)| values.iter().any(|it| self.reads_with(path, it.clone())))
            .map(|(kind, _)| kind)
            .chain([Kind::of(self.at(path))])
            .collect();
        if kinds.len() == ALL_KINDS {
            return;
        }
        let required = match path.last() {
            Some(Step::Property(_)) => !self.reads_without(path),
            _ => false,
        };
        let texts = match self.at(path) {
            Value::String(_) => self.texts(path),
            _ => Texts::Any,
        };
        self.found.push(Field {
            path: path.clone(),
            kinds,
            required,
            texts,
        });
        self.inside(path);
    }

    fn texts(&self, path: &[Step]) -> Texts {
        let reads = |text: &str| self.reads_with(path, Value::from(text));
        // Several of each kind: one alone may be refused for another reason.
        match () {
            () if reads("tidings") || reads("Other words, 7 of them.") => Texts::Any,
            () if reads("2001-02-03T04:05:06Z") => Texts::Times,
            () if reads("2001-02-03") => Texts::Days,
            () if reads("0f8fad5b-d9cb-469f-a165-70867728950e") => Texts::Uuids,
            () if reads("7") || reads("7.25") => Texts::Numbers,
            () => Texts::Some,
        }
    }

    fn reads_with(&self, path: &[Step], value: Value) -> bool {
        let mut changed = self.body.clone();
        *at_mut(&mut changed, path) = value;
        (self.reads)(&changed).is_ok()
    }

    fn reads_without(&self, path: &[Step]) -> bool {
        let mut changed = self.body.clone();
        if let Some((Step::Property(name), above)) = path.split_last()
            && let Value::Object(properties) = at_mut(&mut changed, above)
        {
            properties.remove(name);
        }
        (self.reads)(&changed).is_ok()
    }

    fn at(&self, path: &[Step]) -> &Value {
        path.iter().fold(&self.body, |value, step| match step {
            Step::Property(name) => &value[name],
            Step::Items => &value[0],
        })
    }
}

fn at_mut<'a>(body: &'a mut Value, path: &[Step]) -> &'a mut Value {
    path.iter().fold(body, |value, step| match step {
        Step::Property(name) => &mut value[name],
        Step::Items => &mut value[0],
    })
}

const ALL_KINDS: usize = 7;

/// Values of each kind. A kind is read if one of them is, since a type may have limits.
fn candidates() -> [(Kind, Vec<Value>); ALL_KINDS] {
    let texts = [
        "tidings",
        "7",
        "7.25",
        "2001-02-03T04:05:06Z",
        "2001-02-03",
        "",
    ];
    [
        (Kind::Null, vec![Value::Null]),
        (Kind::Boolean, vec![json!(true), json!(false)]),
        (
            Kind::Integer,
            vec![json!(7), json!(1), json!(0), json!(1000)],
        ),
        (Kind::Fraction, vec![json!(7.25), json!(0.5)]),
        (Kind::Text, texts.map(Value::from).to_vec()),
        (Kind::List, vec![json!([])]),
        (Kind::Object, vec![json!({})]),
    ]
}

impl Kind {
    /// The kind of a value.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_f64() => Self::Fraction,
            Value::Number(_) => Self::Integer,
            Value::String(_) => Self::Text,
            Value::Array(_) => Self::List,
            Value::Object(_) => Self::Object,
        }
    }
}
