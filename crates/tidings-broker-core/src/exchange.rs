//! Exchanges: what is bound to them, and which bindings a message matches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::slab::Key;
use crate::topic::TopicIndex;
use crate::{Refusal, Table, Value};

/// Where a binding leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Queue(Key),
    Exchange(Key),
}

/// Targets, each with the number of bindings that lead to it.
pub(crate) type Targets = BTreeMap<Target, u32>;

#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) name: Bytes,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: Table,
    pub(crate) alternate: Option<Bytes>,
    pub(crate) index: Index,
    /// The bindings from here; one (target, key) may be bound with several arguments.
    pub(crate) bindings: BTreeMap<(Target, Bytes), Vec<Table>>,
    /// The bindings that lead here: source and key.
    pub(crate) incoming: BTreeSet<(Key, Bytes)>,
    pub(crate) routes: RouteCache,
}

/// The bindings in the order the exchange's type asks for them.
#[derive(Debug)]
pub(crate) enum Index {
    /// Every queue is bound with its name.
    Default,
    Direct(HashMap<Bytes, Targets>),
    Fanout(Targets),
    Topic(TopicIndex),
    Headers(Vec<HeadersBinding>),
}

#[derive(Debug)]
pub(crate) struct HeadersBinding {
    target: Target,
    key: Bytes,
    arguments: Table,
    mode: MatchMode,
}

/// Which queues a routing key leads to, remembered until the topology changes.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    version: u64,
    queues: HashMap<Bytes, Arc<[Key]>>,
}

impl RouteCache {
    pub(crate) fn get(&self, key: &[u8], version: u64) -> Option<Arc<[Key]>> {
        if self.version == version {
            self.queues.get(key).cloned()
        } else {
            None
        }
    }

    pub(crate) fn put(&mut self, key: &[u8], queues: Arc<[Key]>, version: u64, max: usize) {
        if self.version != version || self.queues.len() >= max {
            self.queues.clear();
            self.version = version;
        }
        // A copy: the key is a slice of somebody's read buffer.
        self.queues.insert(Bytes::copy_from_slice(key), queues);
    }
}

impl Index {
    pub(crate) fn new(kind: &[u8]) -> Option<Self> {
        match kind {
            b"direct" => Some(Self::Direct(HashMap::new())),
            b"fanout" => Some(Self::Fanout(Targets::new())),
            b"topic" => Some(Self::Topic(TopicIndex::default())),
            b"headers" => Some(Self::Headers(Vec::new())),
            _ => None,
        }
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Default | Self::Direct(_) => "direct",
            Self::Fanout(_) => "fanout",
            Self::Topic(_) => "topic",
            Self::Headers(_) => "headers",
        }
    }

    fn insert(&mut self, target: Target, key: &Bytes, arguments: &Table, mode: MatchMode) {
        let targets = match self {
            Self::Default => return,
            Self::Direct(keys) => keys.entry(key.clone()).or_default(),
            Self::Fanout(targets) => targets,
            Self::Topic(topics) => topics.targets_mut(key),
            Self::Headers(bindings) => {
                let (key, arguments) = (key.clone(), arguments.clone());
                bindings.push(HeadersBinding {
                    target,
                    key,
                    arguments,
                    mode,
                });
                return;
            }
        };
        *targets.entry(target).or_default() += 1;
    }

    fn remove(&mut self, target: Target, key: &Bytes, arguments: &Table) {
        match self {
            Self::Default => {}
            Self::Direct(keys) => {
                if let Some(targets) = keys.get_mut(key) {
                    release(targets, target);
                    if targets.is_empty() {
                        keys.remove(key);
                    }
                }
            }
            Self::Fanout(targets) => release(targets, target),
            Self::Topic(topics) => topics.shrink(key, |targets| release(targets, target)),
            Self::Headers(bindings) => bindings.retain(|binding| {
                binding.target != target || binding.key != key || binding.arguments != *arguments
            }),
        }
    }
}

fn release(targets: &mut Targets, target: Target) {
    if let Some(count) = targets.get_mut(&target) {
        *count -= 1;
        if *count == 0 {
            targets.remove(&target);
        }
    }
}

impl Exchange {
    /// Whether this very binding is there.
    pub(crate) fn is_bound(&self, target: Target, key: &Bytes, arguments: &Table) -> bool {
        let same = self.bindings.get(&(target, key.clone()));
        same.is_some_and(|same| same.contains(arguments))
    }

    /// Adds a binding that is not there.
    pub(crate) fn bind(
        &mut self,
        target: Target,
        key: &Bytes,
        arguments: &Table,
    ) -> Result<(), Refusal> {
        let mode = match self.index {
            Index::Headers(_) => MatchMode::of(arguments)?,
            _ => MatchMode::default(),
        };
        let same = self.bindings.entry((target, key.clone())).or_default();
        same.push(arguments.clone());
        self.index.insert(target, key, arguments, mode);
        Ok(())
    }

    /// Takes a binding away, if it is there. Gives the arguments it was made with: they are equal to
    /// `arguments`, but a store may write them in other bytes.
    pub(crate) fn unbind(
        &mut self,
        target: Target,
        key: &Bytes,
        arguments: &Table,
    ) -> Option<Table> {
        let entry = (target, key.clone());
        let same = self.bindings.get_mut(&entry)?;
        let at = same.iter().position(|bound| bound == arguments)?;
        let bound = same.remove(at);
        if same.is_empty() {
            self.bindings.remove(&entry);
        }
        self.index.remove(target, key, &bound);
        Some(bound)
    }

    /// Whether any binding leads from here to `target` with `key`.
    pub(crate) fn leads_to(&self, target: Target, key: &Bytes) -> bool {
        self.bindings.contains_key(&(target, key.clone()))
    }
}

/// How the arguments of a binding of a headers exchange are compared with a message's headers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MatchMode {
    any: bool,
    /// Whether arguments that begin with `x-` take part.
    with_x: bool,
}

impl MatchMode {
    fn of(arguments: &Table) -> Result<Self, Refusal> {
        let (any, with_x) = match arguments.get("x-match") {
            None => (false, false),
            Some(Value::Str(mode)) if mode == "all" => (false, false),
            Some(Value::Str(mode)) if mode == "any" => (true, false),
            Some(Value::Str(mode)) if mode == "all-with-x" => (false, true),
            Some(Value::Str(mode)) if mode == "any-with-x" => (true, true),
            Some(other) => {
                return Err(Refusal::precondition(format_args!(
                    "invalid x-match field value '{other}'; expected all, any, all-with-x or \
                     any-with-x"
                )));
            }
        };
        Ok(Self { any, with_x })
    }
}

impl HeadersBinding {
    pub(crate) const fn target(&self) -> Target {
        self.target
    }

    pub(crate) fn matches(&self, headers: &Table) -> bool {
        let mut asked = self.arguments.0.iter().filter(|(name, _)| {
            name != "x-match" && (self.mode.with_x || !name.starts_with(b"x-"))
        });
        let fits = |(name, wanted): &(Bytes, Value)| match headers.get_bytes(name) {
            None => false,
            Some(_) if *wanted == Value::Void => true,
            Some(value) => value == wanted,
        };
        if self.mode.any {
            asked.any(fits)
        } else {
            asked.all(fits)
        }
    }
}
