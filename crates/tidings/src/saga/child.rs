//! Sagas that are steps of other sagas: their commands, and what calls them off.
//!
//! The journal of such a saga is the fence of the step that it carries out: its key is the step. So there is
//! one, however often the command comes, and one that is called off before its command came never begins.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tidings_saga::{Arrival, CallOff, ChildSagas, Parent, Part, STEP_HEADER, Start, Step, StepId};

use super::{Kind, Registry, Turns, conversation, raw, read};
use crate::{
    Batch, Error, Expected, HandlerOptions, Metadata, Permanent, REPLY_TO_HEADER, Router,
    TransactionHandle, steps,
};

/// What is asked of a saga by the one whose step it is.
struct Asked {
    parent: Parent,
    part: Part,
    start: Start,
}

impl Router {
    /// Runs sagas that are steps of other sagas: each command of this type starts one, which the other
    /// side sent with [`Draft::child`](tidings_saga::Draft::child). Needs a store.
    ///
    /// The other saga may be one of this router or of any other service. What calls one off comes to the
    /// queue `consumer.tidings.call-off.v1`, which this declares.
    ///
    /// # Panics
    ///
    /// As [`saga`](Self::saga), and when the command is for another consumer.
    #[track_caller]
    pub fn child_saga<C: Step>(self, sagas: ChildSagas<C>) -> Self {
        let keep = SignedDuration::try_from(sagas.kept_for());
        let kind = Kind {
            definition: Arc::new(sagas.define(&self.consumer)),
            keep: keep.unwrap_or(SignedDuration::MAX),
            command: Some(C::NAME),
        };
        let has_children = self.sagas.has_children();
        let of = Arc::clone(&kind.definition);
        let mut router = self.with_kind(kind.clone()).on_with(
            move |commands: Batch<C>, transaction: TransactionHandle| {
                let kind = kind.clone();
                async move { started(&kind, commands, transaction).await }
            },
            HandlerOptions::answering_steps(),
        );
        router.of_saga(&of);
        match has_children {
            true => router,
            false => router.calls_off(),
        }
    }

    fn calls_off(self) -> Self {
        let registry = self.sagas.clone();
        self.on_topic(
            None,
            move |calls: Batch<CallOff>, transaction: TransactionHandle| {
                let registry = registry.clone();
                async move { called_off(&registry, calls, transaction).await }
            },
            HandlerOptions::answering_steps(),
        )
    }
}

impl Registry {
    pub(crate) fn has_children(&self) -> bool {
        self.0.read().values().any(|kind| kind.command.is_some())
    }

    /// Whether there are sagas that this command starts.
    pub(crate) fn is_started_by_command(&self, command: &str) -> bool {
        self.started_by(command).is_some()
    }

    fn started_by(&self, command: &str) -> Option<Kind> {
        let kinds = self.0.read();
        let mut kinds = kinds.values();
        kinds.find(|kind| kind.command == Some(command)).cloned()
    }
}

/// Commands that start sagas.
async fn started<C: Step>(
    kind: &Kind,
    commands: Batch<C>,
    mut transaction: TransactionHandle,
) -> Result<Turns, Error> {
    let mut asked = Vec::new();
    for (command, metadata) in commands.with_metadata() {
        let body = raw(&command)?;
        asked.push(Asked::of(&metadata, C::NAME, body)?);
    }
    ask(kind, asked, &mut transaction).await
}

/// Sagas that are not to be done, or to be undone.
async fn called_off(
    registry: &Registry,
    calls: Batch<CallOff>,
    mut transaction: TransactionHandle,
) -> Result<Turns, Error> {
    let mut of_kinds: BTreeMap<Box<str>, Vec<Asked>> = BTreeMap::new();
    for (CallOff { command }, metadata) in calls.with_metadata() {
        let body = serde_json::value::RawValue::NULL.to_owned();
        let asked = Asked::of(&metadata, &command, body)?;
        of_kinds.entry(command).or_default().push(asked);
    }
    let mut turns = Turns::default();
    for (command, asked) in of_kinds {
        let kind = registry.started_by(&command).ok_or_else(|| {
            Error::msg(format!(
                "there is no saga that `{command}` starts in this program (yet, or any more); what \
                 calls it off waits"
            ))
        })?;
        let more = ask(&kind, asked, &mut transaction).await?;
        turns.outgoing.extend(more.outgoing);
        turns.records.extend(more.records);
    }
    Ok(turns)
}

impl Asked {
    fn of(
        metadata: &Metadata,
        command: &str,
        body: Box<serde_json::value::RawValue>,
    ) -> Result<Self, Error> {
        let headers = (
            metadata.header(STEP_HEADER),
            metadata.header(REPLY_TO_HEADER),
        );
        let (Some(step), Some(reply_to)) = headers else {
            return Err(Permanent::new(format!(
                "`{command}` starts a saga that is a step of another one, but has no headers \
                 `{STEP_HEADER}` and `{REPLY_TO_HEADER}`, which name it; send it as a step"
            ))
            .into());
        };
        let step: StepId = step.parse().map_err(Permanent::new)?;
        Ok(Self {
            parent: Parent::new(&step, reply_to),
            part: step.part,
            start: Start {
                name: command.into(),
                id: metadata.message_id().as_str().into(),
                correlation_id: Some(conversation(metadata)),
                body,
            },
        })
    }
}

/// Does what is asked of sagas of one kind.
async fn ask(
    kind: &Kind,
    asked: Vec<Asked>,
    transaction: &mut TransactionHandle,
) -> Result<Turns, Error> {
    let now = Timestamp::now();
    let mut by_key: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    for asked in asked {
        by_key.entry(asked.parent.key()).or_default().push(asked);
    }
    let ids: Vec<_> = by_key.keys().map(|key| kind.record_id(key)).collect();
    let found = transaction.get_any().await?.read(&ids).await?;
    let mut turns = Turns::default();
    for ((key, asked), found) in by_key.into_iter().zip(found) {
        let mut asked = asked.into_iter();
        let (turn, expected) = match found {
            Some(record) => {
                let journal = read(kind, &key, &record).map_err(Error::msg)?;
                let arrivals = asked.map(|it| Arrival::Parent { part: it.part });
                let turn = kind.definition.advance(&key, journal, arrivals, now);
                (turn, Expected::Version(record.version))
            }
            None => {
                let Some(first) = asked.next() else { continue };
                if first.part == Part::Undo {
                    let conversation = first.start.correlation_id.as_deref();
                    let reason = format!(
                        "the saga `{}/{key}` is not known (any more)",
                        kind.definition.name()
                    );
                    let told = steps::told(first.parent.refuse(reason), conversation)?;
                    turns.outgoing.push(told);
                    continue;
                }
                let mut turn = kind.definition.start_child(first.start, first.parent, now);
                let rest: Vec<_> = asked.map(|it| Arrival::Parent { part: it.part }).collect();
                if !rest.is_empty() {
                    let journal = turn.journal.clone();
                    let next = kind.definition.advance(&key, journal, rest, now);
                    turn = turn.then(next);
                }
                (turn, Expected::Nothing)
            }
        };
        turns.add(kind.leave(&key, turn, expected, now)?);
    }
    Ok(turns)
}
