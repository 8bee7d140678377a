//! Ordered groups: where the messages of a key go, so that they stay in order.
//!
//! ```text
//!                   routing key                               tidings.slot.0, .4, .8 … ──► G.0of4
//!  topic T ────────┐ `tidings.slot.K`                         tidings.slot.1, .5, .9 … ──► G.1of4
//!  (fanout)        ├────────────────► G (direct exchange) ──┤            …
//!  command C ──────┘                                          tidings.slot.3, .7 …     ──► G.3of4
//!  (fanout `C.slot`)                                          any other key
//!                                                             (alternate exchange G.any) ► G.any
//! ```
//!
//! Who publishes says the slot of the key and knows nothing of groups. To a topic that changes
//! nothing for others: a fanout exchange does not look at routing keys, and hands them on. A command
//! goes to a queue by the default exchange, which needs the queue's name as the routing key; so a
//! group's command has an exchange instead, and who publishes looks whether there is one
//! (`routes.rs`). Its name differs from the queue's, because others have exchanges and queues of the
//! same name that have nothing to do with each other.
//!
//! The queues have a single active consumer, so that the broker itself never lets two subscriptions
//! receive at once.

use std::{collections::BTreeSet, num::NonZeroU16, sync::LazyLock};

use tidings_core::{Group, SLOT_COUNT, dead_letter_queue, slot_of};
use tidings_wire::{ShortStr, Table, Value};

use crate::{
    parts::{Part, binding, exchange, letters, link, of_type, queue, table},
    topology::{DeclareError, NAME_BYTES_MAX, checked_name},
};

/// How many partitions a group can have: each has at least one slot.
pub(crate) const PARTITIONS_MAX: u16 = SLOT_COUNT;

/// The routing keys of the slots.
static SLOT_KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    (0..SLOT_COUNT)
        .map(|slot| format!("tidings.slot.{slot}"))
        .collect()
});

/// The routing key of what has this key; empty without one.
pub(crate) fn slot_key(key: Option<&str>) -> &'static str {
    key.map_or("", |key| &SLOT_KEYS[usize::from(slot_of(key))])
}

/// The exchange that leads what is sent to the queue `command` into a group.
pub(crate) fn command_exchange(command: &str) -> String {
    format!("{command}.slot")
}

/// The dead letters of a partition are beside its group's name.
pub(crate) fn group_of_partition(queue: &str) -> &str {
    queue.rsplit_once('.').map_or(queue, |(group, _)| group)
}

/// What a group wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) topics: BTreeSet<String>,
    pub(crate) commands: BTreeSet<String>,
}

impl Wants {
    pub(crate) fn of(group: &Group) -> Self {
        Self {
            topics: group.topics.iter().map(ToString::to_string).collect(),
            commands: group.commands.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.topics.extend(other.topics);
        self.commands.extend(other.commands);
    }
}

/// Refuses what cannot be kept.
pub(crate) fn check(group: &Group) -> Result<(), DeclareError> {
    if group.partitions.get() <= PARTITIONS_MAX {
        return Ok(());
    }
    Err(DeclareError::Name(format!(
        "the ordered group `{}` has {} partitions; at most {PARTITIONS_MAX} are possible",
        group.name, group.partitions
    )))
}

/// Everything of a group. Its topics have to be there before.
pub(crate) fn parts(
    name: &str,
    partitions: NonZeroU16,
    wants: &Wants,
) -> Result<Vec<Part>, DeclareError> {
    let group = Group::new(name.to_owned(), partitions);
    let dead = dead_letter_queue(name);
    let short = |what, name: &str, bytes_max| checked_name(what, name, bytes_max);
    let direct = short("ordered group", name, NAME_BYTES_MAX)?;
    let any = short("queue", &group.any(), NAME_BYTES_MAX)?;
    let single = table([
        ("x-dead-letter-exchange", Value::from("")),
        ("x-dead-letter-routing-key", Value::from(&*dead)),
        ("x-single-active-consumer", Value::Bool(true)),
    ]);
    let alternate = table([("alternate-exchange", Value::from(&*group.any()))]);
    let mut parts = vec![
        Part::Letters(letters(
            short("queue", &dead, ShortStr::BYTES_MAX)?,
            Table::default(),
        )),
        // Classic ones put back what is given back in its old place, which keeps the order.
        Part::Queue(of_type("classic", &queue(any.clone(), single.clone()))),
        Part::Exchange(exchange(any.clone(), "fanout", Table::default())),
        Part::Binding(binding(any.clone(), any, None)),
        Part::Exchange(exchange(direct.clone(), "direct", alternate)),
    ];
    let mut queues = Vec::new();
    for partition in 0..partitions.get() {
        let name = short("queue", &group.partition(partition), NAME_BYTES_MAX)?;
        parts.push(Part::Queue(of_type(
            "classic",
            &queue(name.clone(), single.clone()),
        )));
        queues.push(name);
    }
    for (slot, key) in (0..SLOT_COUNT).zip(&*SLOT_KEYS) {
        let queue = &queues[usize::from(group.partition_of_slot(slot))];
        let key = ShortStr::truncated(key);
        parts.push(Part::Binding(binding(
            queue.clone(),
            direct.clone(),
            Some(key),
        )));
    }
    // Last: nothing comes before there is a place for it.
    for command in &wants.commands {
        short("queue", command, NAME_BYTES_MAX)?;
        let command = short("exchange", &command_exchange(command), ShortStr::BYTES_MAX)?;
        parts.push(Part::Exchange(exchange(
            command.clone(),
            "fanout",
            Table::default(),
        )));
        parts.push(Part::Link(link(command, direct.clone())));
    }
    for topic in &wants.topics {
        let topic = short("topic", topic, ShortStr::BYTES_MAX)?;
        parts.push(Part::Link(link(topic, direct.clone())));
    }
    Ok(parts)
}
