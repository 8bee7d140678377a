//! The fields of a body, as rows for people: what a schema says, with its references and alternatives put together.
//!
//! The schema may be anybody's. One that contains itself ends where it comes again, and one that unfolds into more than
//! anybody reads is cut, which is told. What is not understood is named, never passed over.

use serde_json::{Map, Value};

use super::words;
use crate::schema::{at, dotted};

/// More fields than anybody reads in a table.
const FIELDS_MAX: usize = 1_000;
/// More alternatives of one place than anybody reads.
const VARIANTS_MAX: usize = 64;
/// How much of a schema is looked at: parts that are referred to are looked at each time.
const LOOKS_MAX: usize = 20_000;
/// How deep fields, and references to references, may go.
const DEPTH_MAX: usize = 32;

/// A step into the bodies of a schema, which has places that no one body has ([`probe::Step`](crate::probe::Step)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Into this property of an object.
    Property(String),
    /// Into the items of a list.
    Items,
    /// Into the properties of all other names.
    Others,
}

/// A place in a body.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    /// Where it is; the body itself has no steps.
    pub(super) path: Vec<Step>,
    /// What stands there: `text or null`.
    pub(super) kind: String,
    /// Which of those: `1 to 64 characters`.
    pub(super) limits: Vec<String>,
    /// What it means.
    pub(super) description: Option<String>,
    /// Whether it is always there, if what it is part of is.
    pub(super) required: bool,
    /// Whether nothing is said about what stands there.
    pub(super) is_anything: bool,
}

/// All fields of a body.
#[derive(Debug)]
pub(super) struct Fields {
    /// The body itself first, and each field after what it is part of.
    pub(super) all: Vec<Field>,
    /// Whether there are more.
    pub(super) is_cut: bool,
}

/// One of the ways a place may be: what all of these say.
type Variant<'a> = Vec<&'a Map<String, Value>>;

impl Fields {
    /// The fields of bodies by this schema, which contains all that it refers to.
    pub(super) fn of(schema: &Value) -> Self {
        let mut walk = Walk {
            root: schema,
            found: Self {
                all: Vec::new(),
                is_cut: false,
            },
            looks: 0,
            under_way: Vec::new(),
        };
        walk.place(&[vec![schema]], Vec::new(), true);
        walk.found
    }

    /// The field at this place, or the one that stands for all names there.
    pub(super) fn find(&self, path: &[Step]) -> Option<&Field> {
        let exact = self.all.iter().find(|it| it.path == path);
        exact.or_else(|| self.all.iter().find(|it| is_within(path, &it.path)))
    }
}

/// Whether the place is one of those that `pattern` stands for.
pub(super) fn is_within(path: &[Step], pattern: &[Step]) -> bool {
    let fits = |(step, pattern): (&Step, &Step)| {
        step == pattern || matches!((step, pattern), (Step::Property(_), Step::Others))
    };
    path.len() == pattern.len() && path.iter().zip(pattern).all(fits)
}

impl Field {
    /// Where it is, as the comparison writes it: `customer.email`, `items[].quantity`, `prices.*`.
    pub(super) fn dotted(&self) -> String {
        dotted(self.path.iter().map(|step| match step {
            Step::Items => None,
            Step::Others => Some("*"),
            Step::Property(name) => Some(&**name),
        }))
    }

    /// Its own name, and that of all names: `sku`, `*`.
    pub(super) fn name(&self) -> &str {
        let named = self.path.iter().rev().find(|it| **it != Step::Items);
        match named {
            Some(Step::Property(name)) => name,
            Some(_) => "*",
            None => "",
        }
    }

    /// How many fields it is inside of.
    pub(super) fn depth(&self) -> usize {
        let named = self.path.iter().filter(|it| **it != Step::Items);
        named.count().saturating_sub(1)
    }

    /// Whether it is a row of its own: items are told with their list.
    pub(super) fn is_row(&self) -> bool {
        !matches!(self.path.last(), None | Some(Step::Items))
    }
}

struct Walk<'a> {
    root: &'a Value,
    found: Fields,
    looks: usize,
    /// What is being looked into, so that a type that contains itself ends.
    under_way: Vec<&'a Map<String, Value>>,
}

impl<'a> Walk<'a> {
    /// A place, and all that is inside of it. It is as any of `schemas` says, each of which is what several say together.
    fn place(&mut self, schemas: &[Vec<&'a Value>], path: Vec<Step>, required: bool) {
        if self.found.all.len() >= FIELDS_MAX || path.len() > DEPTH_MAX {
            self.found.is_cut = true;
            return;
        }
        let variants = self.variants(schemas);
        let all = schemas.iter().flatten();
        let description = all
            .clone()
            .find_map(|it| self.description(it, DEPTH_MAX))
            .map(str::to_owned);
        let mut field = Field {
            kind: self.kind(&variants, 0),
            limits: words::limits(&variants, ""),
            description,
            required,
            is_anything: variants.iter().all(|it| words::types(it).is_empty()),
            path,
        };
        let comes_again = variants
            .iter()
            .flatten()
            .any(|part| self.is_under_way(part));
        if comes_again {
            field
                .limits
                .push("as the one that it is inside of".to_owned());
        }
        let path = field.path.clone();
        self.found.all.push(field);
        if comes_again {
            return;
        }
        let before = self.under_way.len();
        let parts = variants.iter().flatten().copied();
        self.under_way.extend(parts.filter(|it| has_inside(it)));
        self.inside(&variants, &path);
        self.under_way.truncate(before);
    }

    fn is_under_way(&self, part: &Map<String, Value>) -> bool {
        self.under_way.iter().any(|it| std::ptr::eq(*it, part))
    }

    /// The properties of objects and the items of lists.
    fn inside(&mut self, variants: &[Variant<'a>], path: &[Step]) {
        let objects: Vec<&Variant<'a>> = variants
            .iter()
            .filter(|it| words::types(it).contains(&"object"))
            .collect();
        let mut names: Vec<&String> = Vec::new();
        for part in objects.iter().copied().flatten() {
            let listed = part.get("required").and_then(Value::as_array);
            let needed = listed.into_iter().flatten().filter_map(|it| match it {
                Value::String(name) => Some(name),
                _ => None,
            });
            let properties = part.get("properties").and_then(Value::as_object);
            for name in properties.into_iter().flat_map(Map::keys).chain(needed) {
                if !names.contains(&name) && names.len() < FIELDS_MAX {
                    names.push(name);
                }
            }
        }
        for name in names {
            let of = |part: &&'a Map<String, Value>| part.get("properties")?.get(name);
            let schemas = schemas_of(objects.iter().copied(), of);
            let needs = |part: &&Map<String, Value>| {
                let listed = part.get("required").and_then(Value::as_array);
                listed.is_some_and(|it| it.iter().any(|it| it == name.as_str()))
            };
            let required = objects.iter().all(|it| it.iter().any(needs));
            let path = [path, &[Step::Property(name.clone())]].concat();
            self.place(&schemas, path, required);
        }
        let others = schemas_of(objects.iter().copied(), |part| {
            part.get("additionalProperties").filter(|it| it.is_object())
        });
        if !others.is_empty() {
            let path = [path, &[Step::Others]].concat();
            self.place(&others, path, false);
        }
        let items = schemas_of(variants.iter(), items);
        if !items.is_empty() {
            self.place(&items, [path, &[Step::Items]].concat(), true);
        }
    }

    /// What stands at a place, in words.
    fn kind(&mut self, variants: &[Variant<'a>], depth: usize) -> String {
        let mut kinds: Vec<String> = Vec::new();
        for variant in variants {
            for mut kind in words::kinds(variant, depth > 0) {
                if words::types(variant).contains(&"array") && kind.starts_with("list") {
                    let items = schemas_of([variant], items);
                    if !items.is_empty() && depth < DEPTH_MAX {
                        let items = self.variants(&items);
                        let of = self.kind(&items, depth + 1);
                        kind = format!("{kind} of {of}");
                        let limits = words::limits(&items, "each ");
                        if depth == 0 && !limits.is_empty() {
                            kind = format!("{kind} ({})", limits.join(", "));
                        }
                    }
                }
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        // Null comes last, whatever the order in the schema.
        kinds.sort_by_key(|it| it == "null");
        match kinds.as_slice() {
            [] => "nothing".to_owned(),
            all => all.join(" or "),
        }
    }

    /// The ways that a place may be by any of `schemas`, without any of `$ref`, `allOf`, `anyOf` and `oneOf`.
    fn variants(&mut self, schemas: &[Vec<&'a Value>]) -> Vec<Variant<'a>> {
        let mut all: Vec<Variant<'a>> = Vec::new();
        for together in schemas {
            all.extend(self.all_of(together, 0));
        }
        if all.len() > VARIANTS_MAX {
            self.found.is_cut = true;
            all.truncate(VARIANTS_MAX);
        }
        all
    }

    fn all_of(&mut self, schemas: &[&'a Value], depth: usize) -> Vec<Variant<'a>> {
        let mut all: Vec<Variant<'a>> = vec![Vec::new()];
        for schema in schemas {
            self.looks += 1;
            if self.looks > LOOKS_MAX || depth > DEPTH_MAX {
                self.found.is_cut = true;
                return all;
            }
            let object = match schema {
                Value::Object(object) => object,
                Value::Bool(false) => return Vec::new(),
                _ => continue,
            };
            let mut choices: Vec<Vec<Variant<'a>>> = vec![vec![vec![object]]];
            if let Some(target) = self.target(object) {
                choices.push(self.all_of(&[target], depth + 1));
            }
            for part in list(object, "allOf") {
                choices.push(self.all_of(&[part], depth + 1));
            }
            for any in ["anyOf", "oneOf"] {
                let parts = list(object, any);
                if !parts.is_empty() {
                    let parts = parts.iter().map(|it| self.all_of(&[it], depth + 1));
                    choices.push(parts.collect::<Vec<_>>().concat());
                }
            }
            for choice in choices {
                let both = all.iter().flat_map(|one| {
                    let with = |other: &Variant<'a>| [&**one, other].concat();
                    choice.iter().map(with).collect::<Vec<_>>()
                });
                let both: Vec<Variant<'a>> = both.take(VARIANTS_MAX + 1).collect();
                all = both;
            }
        }
        all
    }

    fn target(&self, object: &Map<String, Value>) -> Option<&'a Value> {
        at(self.root, object.get("$ref")?.as_str()?)
    }

    /// What a schema says that it is; not what one of several alternatives is.
    fn description(&self, schema: &'a Value, depth: usize) -> Option<&'a str> {
        let object = schema.as_object()?;
        if let Some(Value::String(text)) = object.get("description") {
            return Some(text);
        }
        let depth = depth.checked_sub(1)?;
        if let Some(target) = self.target(object) {
            return self.description(target, depth);
        }
        let any = list(object, "anyOf").iter().chain(list(object, "oneOf"));
        let mut any = any.filter(|it| it["type"] != "null");
        match (list(object, "allOf").first(), any.next(), any.next()) {
            (Some(first), _, _) | (None, Some(first), None) => self.description(first, depth),
            _ => None,
        }
    }
}

/// What is said by each of `variants`, those together that one variant says; nothing if a variant says nothing.
fn schemas_of<'a, 'b>(
    variants: impl IntoIterator<Item = &'b Variant<'a>>,
    of: impl Fn(&&'a Map<String, Value>) -> Option<&'a Value>,
) -> Vec<Vec<&'a Value>>
where
    'a: 'b,
{
    let together = variants
        .into_iter()
        .map(|variant| variant.iter().filter_map(&of).collect::<Vec<_>>());
    together.filter(|it| !it.is_empty()).collect()
}

fn items<'a>(part: &&'a Map<String, Value>) -> Option<&'a Value> {
    part.get("items").filter(|it| it.is_object())
}

fn has_inside(part: &Map<String, Value>) -> bool {
    ["properties", "additionalProperties", "items"]
        .iter()
        .any(|it| part.get(*it).is_some_and(Value::is_object))
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    object
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}
