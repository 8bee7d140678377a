//! Sagas in a service: what starts one, answers a step, is a signal, or becomes due.
//!
//! A saga is a record of the service's store, with its journal as the body. Answers are taken in
//! batches: the journals of all sagas that they concern are read at once, locked, and written in one
//! commit with what the sagas send. A saga that is stuck, or whose function panics, harms no other.

pub(crate) mod asked;
pub(crate) mod check;
mod child;
mod clock;
pub(crate) mod operator;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use metrics::{counter, histogram};
use parking_lot::RwLock;
use serde_json::value::RawValue;
use tidings_saga::{
    Arrival, Definition, Journal, STEP_HEADER, SagaState, Sagas, Start, StepId, Turn,
};
use tracing::{debug, error, warn};

pub(crate) use asked::answer_checks;
pub(crate) use clock::run;
pub(crate) use watch::watch;

use crate::{
    Batch, Error, Expected, HandlerOptions, IntoMessages, Message, Messages, Metadata, Outgoing,
    Permanent, Record, RecordChange, RecordId, RecordValue, Retry, Router, Sends,
    TransactionHandle,
    event_map::SagaMap,
    steps::{self, StepAnswer},
};

/// The sagas of a router, by name.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<RwLock<HashMap<Box<str>, Kind>>>);

/// Sagas of one kind.
#[derive(Clone)]
struct Kind {
    definition: Arc<Definition>,
    keep: SignedDuration,
    /// The command that starts it, if it is a step of other sagas.
    command: Option<&'static str>,
}

impl Registry {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    /// The sagas as the event map shows them.
    pub(crate) fn on_map(&self) -> Vec<SagaMap> {
        let kinds = self.0.read();
        let definitions = kinds.values().map(|kind| &kind.definition);
        definitions
            .map(|it| SagaMap::new(it.name(), it.sends(), it.ends()))
            .collect()
    }

    /// Takes the sagas of another router of the same consumer.
    #[track_caller]
    pub(crate) fn merge(&self, other: &Self) {
        for (name, kind) in other.0.read().iter() {
            let before = self.0.write().insert(name.clone(), kind.clone());
            assert!(
                before.is_none(),
                "both routers have a saga `{name}`; one is enough"
            );
        }
    }
}

impl Kind {
    fn record_id(&self, key: &str) -> RecordId {
        RecordId::new(kind_of(self.definition.name()), key)
    }

    /// What a turn leaves: a change in the database, and messages.
    fn leave(
        &self,
        key: &str,
        mut turn: Turn,
        expected: Expected,
        now: Timestamp,
    ) -> Result<(RecordChange, Vec<Outgoing>), Error> {
        let body = std::mem::take(&mut turn.body);
        let change = self.change(key, &turn, body, expected, now);
        let mut outgoing = turn.outgoing;
        let conversation = turn.journal.start.correlation_id.as_deref();
        for told in turn.told {
            outgoing.push(steps::told(told, conversation)?);
        }
        Ok((change, outgoing))
    }

    fn change(
        &self,
        key: &str,
        turn: &Turn,
        body: Vec<u8>,
        expected: Expected,
        now: Timestamp,
    ) -> RecordChange {
        let journal = &turn.journal;
        // An ended saga is deleted when it is due.
        let due = match journal.state.is_ended() {
            true => now.saturating_add(self.keep).ok(),
            false => turn.due,
        };
        self.tell(key, turn);
        let saga = self.definition.name().to_owned();
        histogram!("tidings_saga_journal_bytes", "saga" => saga).record(body.len() as f64);
        RecordChange {
            id: self.record_id(key),
            expected,
            value: Some(RecordValue {
                label: journal.state.label().into(),
                due,
                body: body.into(),
            }),
        }
    }

    fn conflict(&self) {
        let saga = self.definition.name().to_owned();
        counter!("tidings_saga_conflicts_total", "saga" => saga).increment(1);
    }

    /// What people should know of a turn.
    fn tell(&self, key: &str, turn: &Turn) {
        let saga = self.definition.name();
        for what in &turn.ignored {
            counter!("tidings_saga_ignored_total", "saga" => saga.to_owned()).increment(1);
            debug!(saga, key, "passed over: {what}");
        }
        for (command, took) in &turn.settled {
            let labels = [("saga", saga.to_owned()), ("command", command.to_string())];
            histogram!("tidings_saga_step_duration_seconds", &labels).record(took.as_secs_f64());
        }
        if turn.late_count > 0 {
            counter!("tidings_saga_late_replies_total", "saga" => saga.to_owned())
                .increment(turn.late_count);
        }
        if turn.is_mismatch {
            counter!("tidings_saga_mismatches_total", "saga" => saga.to_owned()).increment(1);
        }
        if !turn.changed.is_empty() {
            let steps = turn.changed.join("`, `");
            warn!(
                saga,
                key,
                "the commands of `{steps}` say something else than what was sent: does the function \
                 compute them from anything but its message and the replies?"
            );
        }
        match &turn.journal.state {
            SagaState::Stuck { reason, .. } => error!(saga, key, "the saga is stuck: {reason}"),
            state if state.is_ended() => {
                let end = state.label();
                counter!("tidings_sagas_total", "saga" => saga.to_owned(), "end" => end)
                    .increment(1);
            }
            _ => {}
        }
    }
}

/// What the kinds of journals begin with.
const KIND_PREFIX: &str = "saga:";

fn kind_of(saga: &str) -> String {
    format!("{KIND_PREFIX}{saga}")
}

/// What turns leave: messages and records.
#[derive(Default)]
pub(crate) struct Turns {
    outgoing: Vec<Outgoing>,
    records: Vec<RecordChange>,
}

impl Turns {
    fn add(&mut self, (record, outgoing): (RecordChange, Vec<Outgoing>)) {
        self.records.push(record);
        self.outgoing.extend(outgoing);
    }
}

impl IntoMessages for Turns {
    fn sends(_: &mut Vec<Sends>) {}

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        into.now.extend(self.outgoing);
        into.records.extend(self.records);
        Ok(())
    }
}

impl Router {
    /// Runs sagas: each message of this type starts one. Needs a store.
    ///
    /// The targets of the steps answer with [`StepReply`](crate::StepReply) to the queue
    /// `consumer.tidings.step-answer.v1`, which this declares.
    ///
    /// # Panics
    ///
    /// When there are sagas with this name, the message has a handler already, or the saga has no
    /// function.
    #[track_caller]
    pub fn saga<M: Message>(mut self, sagas: Sagas<M>) -> Self {
        let (key_of, keep) = (sagas.key_of(), sagas.kept_for());
        let kind = Kind {
            definition: Arc::new(sagas.define(&self.consumer)),
            keep: SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX),
            command: None,
        };
        let of = Arc::clone(&kind.definition);
        self = self.with_kind(kind.clone());
        let handler = move |messages: Batch<M>, transaction: TransactionHandle| {
            let (kind, key_of) = (kind.clone(), Arc::clone(&key_of));
            async move { start(&kind, &*key_of, messages, transaction).await }
        };
        self = self.on_with(handler, HandlerOptions::of_sagas());
        self.of_saga(&of);
        self
    }

    #[track_caller]
    fn with_kind(self, kind: Kind) -> Self {
        let name: Box<str> = kind.definition.name().into();
        let registry = self.sagas.clone();
        let is_first = registry.is_empty();
        let before = registry.0.write().insert(name.clone(), kind);
        assert!(
            before.is_none(),
            "the router `{}` has two sagas with the name `{name}`",
            self.consumer
        );
        match is_first {
            true => self.answers(registry),
            false => self,
        }
    }

    /// Messages of this type are signals `signal` to sagas `saga`, for
    /// [`Saga::signal`](tidings_saga::Saga::signal). One whose saga is not there yet is tried again, and
    /// in the end a dead letter; one whose saga has ended is passed over.
    ///
    /// # Panics
    ///
    /// When there are no such sagas (call [`saga`](Self::saga) before), or the message has a handler
    /// already.
    #[track_caller]
    pub fn saga_signal<S: Message>(
        self,
        saga: &str,
        signal: impl Into<Box<str>>,
        key: impl Fn(&S) -> String + Send + Sync + 'static,
    ) -> Self {
        self.signals(saga, signal.into(), key, true)
    }

    /// As [`saga_signal`](Self::saga_signal), for events that most sagas do not wait for, or that may be
    /// about none: one whose saga is not there is passed over, counted in `tidings_saga_ignored_total`.
    /// It does not wait for a saga that starts later, so its function must be right without it.
    ///
    /// # Panics
    ///
    /// As [`saga_signal`](Self::saga_signal).
    #[track_caller]
    pub fn saga_signal_if_started<S: Message>(
        self,
        saga: &str,
        signal: impl Into<Box<str>>,
        key: impl Fn(&S) -> String + Send + Sync + 'static,
    ) -> Self {
        self.signals(saga, signal.into(), key, false)
    }

    #[track_caller]
    fn signals<S: Message>(
        self,
        saga: &str,
        signal: Box<str>,
        key: impl Fn(&S) -> String + Send + Sync + 'static,
        must_be_there: bool,
    ) -> Self {
        let kind = self.sagas.0.read().get(saga).cloned();
        let kind = kind.unwrap_or_else(|| {
            panic!(
                "the router `{}` has no saga `{saga}` for the signal; call `.saga(…)` before",
                self.consumer
            )
        });
        let key = Arc::new(key);
        let of = kind.clone();
        let mut router = self.on(move |message: S, mut transaction: TransactionHandle| {
            let (kind, signal, key) = (kind.clone(), signal.clone(), key(&message));
            async move {
                let body = raw(&message)?;
                let arrival = Arrival::Signal { signal, body };
                let arrivals = BTreeMap::from([(key, vec![arrival])]);
                let absent = match must_be_there {
                    true => Absent::Wait,
                    false => Absent::PassOver,
                };
                advance(&kind, arrivals, &mut transaction, absent).await
            }
        });
        router.of_saga(&of.definition);
        router
    }

    /// Says of the handler that was added last that it is a part of a saga, and sends what that sends.
    fn of_saga(&mut self, saga: &Definition) {
        if let Some(route) = self.routes.last_mut() {
            route.saga = Some(saga.name().into());
            let sends = saga.sends().iter().chain(saga.ends());
            route.sends.extend(sends.cloned());
        }
    }

    fn answers(self, registry: Registry) -> Self {
        // What cannot be taken now is taken after the next deployment.
        let retry = Retry::exponential(Duration::from_secs(1))
            .delay_max(Duration::from_secs(60))
            .attempts(10_000);
        self.on_topic(
            None,
            move |answers: Batch<StepAnswer>, transaction: TransactionHandle| {
                let registry = registry.clone();
                async move { answered(&registry, answers, transaction).await }
            },
            HandlerOptions::of_sagas().retry(retry),
        )
    }
}

fn raw(message: &impl serde::Serialize) -> Result<Box<RawValue>, Error> {
    Ok(serde_json::value::to_raw_value(message)?)
}

/// Starts a saga for each message whose key is new.
async fn start<M: Message>(
    kind: &Kind,
    key_of: &(dyn Fn(&M) -> String + Send + Sync),
    messages: Batch<M>,
    mut transaction: TransactionHandle,
) -> Result<Turns, Error> {
    let now = Timestamp::now();
    let mut starts: BTreeMap<String, Start> = BTreeMap::new();
    for (message, metadata) in messages.with_metadata() {
        starts.entry(key_of(&message)).or_insert(Start {
            name: M::NAME.into(),
            id: metadata.message_id().as_str().into(),
            correlation_id: Some(conversation(&metadata)),
            body: raw(&message)?,
        });
    }
    let ids: Vec<RecordId> = starts.keys().map(|key| kind.record_id(key)).collect();
    let found = transaction.get_any().await?.read(&ids).await?;
    let mut turns = Turns::default();
    for ((key, start), found) in starts.into_iter().zip(found) {
        if found.is_some() {
            debug!(saga = kind.definition.name(), key, "it was started before");
            continue;
        }
        let turn = kind.definition.start(&key, start, now);
        turns.add(kind.leave(&key, turn, Expected::Nothing, now)?);
    }
    Ok(turns)
}

fn conversation(metadata: &Metadata) -> Box<str> {
    let correlation_id = metadata.correlation_id.clone();
    correlation_id.unwrap_or_else(|| metadata.message_id().as_str().into())
}

/// Takes answers to steps, of whatever sagas.
async fn answered(
    registry: &Registry,
    answers: Batch<StepAnswer>,
    mut transaction: TransactionHandle,
) -> Result<Turns, Error> {
    let mut arrivals: HashMap<Box<str>, BTreeMap<String, Vec<Arrival>>> = HashMap::new();
    for (answer, metadata) in answers.with_metadata() {
        let step = metadata.header(STEP_HEADER).ok_or_else(|| {
            Permanent::new(format!(
                "an answer has no header `{STEP_HEADER}`, which says to what"
            ))
        })?;
        let StepId {
            saga,
            key,
            run,
            step,
            part,
        } = step.parse().map_err(Permanent::new)?;
        let arrival = match answer.into_answer() {
            Ok(answer) => Arrival::Answer {
                run,
                step,
                part,
                answer,
            },
            Err(reason) => Arrival::DeadLetter {
                run,
                step,
                part,
                reason: reason.into(),
            },
        };
        let of_saga = arrivals.entry(saga).or_default();
        of_saga.entry(key.into()).or_default().push(arrival);
    }
    let mut turns = Turns::default();
    for (saga, arrivals) in arrivals {
        let kind = registry.0.read().get(&saga).cloned();
        let kind = kind.ok_or_else(|| {
            Error::msg(format!(
                "there is no saga `{saga}` in this program (yet, or any more); the answer waits"
            ))
        })?;
        let more = advance(&kind, arrivals, &mut transaction, Absent::Lost).await?;
        turns.outgoing.extend(more.outgoing);
        turns.records.extend(more.records);
    }
    Ok(turns)
}

/// What it means that a saga is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// It may come: what arrived for it is tried again.
    Wait,
    /// What arrived may be about no saga.
    PassOver,
    /// It was there, and should be.
    Lost,
}

/// Gives sagas what has arrived for them.
async fn advance(
    kind: &Kind,
    arrivals: BTreeMap<String, Vec<Arrival>>,
    transaction: &mut TransactionHandle,
    absent: Absent,
) -> Result<Turns, Error> {
    let now = Timestamp::now();
    let saga = kind.definition.name();
    let ids: Vec<RecordId> = arrivals.keys().map(|key| kind.record_id(key)).collect();
    let found = transaction.get_any().await?.read(&ids).await?;
    let mut turns = Turns::default();
    for ((key, arrivals), found) in arrivals.into_iter().zip(found) {
        let Some(record) = found else {
            if absent == Absent::Wait {
                return Err(Error::msg(format!("there is no saga `{saga}/{key}` (yet)")));
            }
            counter!("tidings_saga_ignored_total", "saga" => saga.to_owned())
                .increment(arrivals.len() as u64);
            match absent {
                Absent::Lost => warn!(
                    saga,
                    key, "an answer is passed over: the saga is not there any more"
                ),
                _ => debug!(saga, key, "a signal is passed over: there is no such saga"),
            }
            continue;
        };
        let journal = read(kind, &key, &record).map_err(Error::msg)?;
        let turn = kind.definition.advance(&key, journal, arrivals, now);
        let expected = Expected::Version(record.version);
        turns.add(kind.leave(&key, turn, expected, now)?);
    }
    Ok(turns)
}

/// A journal that this program can go on with.
fn read(kind: &Kind, key: &str, record: &Record) -> Result<Journal, String> {
    let saga = kind.definition.name();
    let journal = Journal::read(&record.value.body).map_err(|error| {
        format!("the journal of the saga `{saga}/{key}` cannot be read: {error}")
    })?;
    let is_known = journal.state.is_ended() || kind.definition.has_version(journal.version);
    match is_known {
        true => Ok(journal),
        false => Err(format!(
            "the saga `{saga}/{key}` was started with the version {} of its function, which this \
             program does not have; keep it as long as such sagas are open: `.version({}, …)`",
            journal.version, journal.version
        )),
    }
}
