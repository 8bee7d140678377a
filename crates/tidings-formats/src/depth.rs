//! How deep a body in Avro can be, by its schema.
//!
//! Avro's library reads a body by calling itself for each level, and its schema comes with it: a type that contains itself, in a
//! body of a few bytes, would use up the stack, which ends the process. So schemas are looked at first.

use std::collections::{BTreeMap, BTreeSet};

use apache_avro::{Schema, schema::NamespaceRef};

/// Deeper than any message.
const DEPTH_MAX: usize = 64;

/// Refuses a schema by which a body could be deeper than messages are.
///
/// # Errors
///
/// Which type contains itself, or that types are nested too deep.
pub(crate) fn check(schema: &Schema) -> Result<(), String> {
    let mut walk = Walk::default();
    let depth = walk.depth(schema, None)?;
    match depth <= DEPTH_MAX {
        true => Ok(()),
        false => Err(format!(
            "it is nested {depth} levels deep, and at most {DEPTH_MAX} are read"
        )),
    }
}

#[derive(Default)]
struct Walk {
    /// Named types whose end has not come.
    open: BTreeSet<String>,
    known: BTreeMap<String, usize>,
}

impl Walk {
    fn depth(&mut self, schema: &Schema, namespace: NamespaceRef<'_>) -> Result<usize, String> {
        let below = match schema {
            Schema::Array(array) => self.depth(&array.items, namespace)?,
            Schema::Map(map) => self.depth(&map.types, namespace)?,
            Schema::Union(union) => self.deepest(union.variants(), namespace)?,
            Schema::Record(record) => {
                let name = record.name.fully_qualified_name(namespace);
                let full = name.fullname(None);
                self.open.insert(full.clone());
                let fields = record.fields.iter().map(|field| &field.schema);
                let below = self.deepest(fields, name.namespace())?;
                self.open.remove(&full);
                self.known.insert(full, below + 1);
                below
            }
            Schema::Ref { name } => {
                let full = name.fullname(namespace);
                if self.open.contains(&full) {
                    return Err(format!(
                        "it has a type that contains itself, `{full}`, which is not read"
                    ));
                }
                // Enumerations and the like have no depth.
                return Ok(self.known.get(&full).copied().unwrap_or(1));
            }
            _ => 0,
        };
        Ok(below + 1)
    }

    fn deepest<'a>(
        &mut self,
        schemas: impl IntoIterator<Item = &'a Schema>,
        namespace: NamespaceRef<'_>,
    ) -> Result<usize, String> {
        let mut deepest = 0;
        for schema in schemas {
            deepest = deepest.max(self.depth(schema, namespace)?);
        }
        Ok(deepest)
    }
}
