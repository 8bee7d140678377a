//! What is taken at a place, as far as a database knows: at a handler's queue, or in an ordered group.

use std::collections::BTreeSet;

use super::{HandlerRecord, KIND, OrderedGroup, records_of};
use crate::{Store, StoreError, event_map::MessageKind};

/// Which messages are taken at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All are tried there, or it is not known which.
    Any,
    /// Those of these names, and those without one.
    Only(BTreeSet<String>),
    /// Nobody receives there any more; where the handler receives now, if it does.
    Nothing { instead: Option<String> },
}

/// What is taken at the queue or in the group of this name. A record that cannot be read may be about it: then
/// nothing is known.
pub(crate) async fn taken_at(store: &dyn Store, place: &str) -> Result<Taken, StoreError> {
    let records = records_of(store, KIND).await?;
    let records: Result<Vec<_>, _> = records.iter().map(HandlerRecord::read).collect();
    Ok(records.map_or(Taken::Any, |records| taken(&records, place)))
}

fn taken(records: &[HandlerRecord], place: &str) -> Taken {
    let is_there = |ordered: Option<&OrderedGroup>, it: &HandlerRecord| match ordered {
        Some(ordered) => ordered.group == place,
        None => it.consumer == place,
    };
    let was_there = |it: &&HandlerRecord| {
        let mut left = it.left.iter();
        is_there(it.ordered.as_ref(), it) || left.any(|left| is_there(left.ordered.as_ref(), it))
    };
    let now = records.iter().filter(|it| !it.is_gone());
    let there: Vec<_> = now
        .clone()
        .filter(|it| is_there(it.ordered.as_ref(), it))
        .collect();
    if there.is_empty() {
        return match records.iter().any(|it| was_there(&it)) {
            false => Taken::Any,
            true => Taken::Nothing {
                instead: now
                    .filter(was_there)
                    .map(|it| it.dead_letters_beside().to_owned())
                    .next(),
            },
        };
    }
    // Where no topic leads to, there is nobody else to handle a message, and each is tried.
    let has_topic = there.iter().any(|it| it.kind == MessageKind::Event);
    if !has_topic || there.iter().any(|it| it.takes.is_empty()) {
        return Taken::Any;
    }
    let names = there.iter().flat_map(|it| it.takes.iter().cloned());
    Taken::Only(names.collect())
}
