//! The other side of a saga: handlers of its steps, and the fence that keeps each of them once.
//!
//! A command that is a step of a saga carries the step's name. Its handler is like any other; what it
//! returns as a [`StepReply`] goes to the saga. The toolkit keeps a record of each step, the *fence*,
//! in the transaction of what the handler wrote: a command that comes again is answered as before and
//! not carried out twice, one that was cancelled before it came is refused, and an undo undoes once.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidings_saga::{ANSWER_NAME, Answer, Part, STEP_HEADER, StepId, Told};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    Commit, Context, Destination, Envelope, Error, Expected, IntoMessages, Message, MessageId,
    Messages, Outgoing, Permanent, REPLY_TO_HEADER, Record, RecordChange, RecordId, RecordValue,
    Sends, Store, StoreError,
};

/// The kind of the records.
const KIND: &str = "tidings.step";

/// How long a fence is kept: longer than a saga is open.
const KEEP: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

/// How often old fences are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How many fences one transaction deletes.
const FORGET_COUNT_MAX: usize = 1000;
/// How long one that died keeps what it took.
const LEASE: Duration = Duration::from_secs(10);

/// What the handler of a step answers to its saga.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidings::{StepReply, prelude::*};
///
/// #[derive(Serialize, Deserialize, Command)]
/// #[command(target = "inventory")]
/// struct ReserveStock { sku: String }
///
/// #[derive(Serialize, Deserialize)]
/// struct StockReserved { reservation_id: String }
///
/// async fn reserve(command: ReserveStock) -> Result<StepReply<StockReserved>> {
///     if command.sku.is_empty() {
///         return Ok(StepReply::refused("there is no such product"));
///     }
///     Ok(StepReply::Done(StockReserved { reservation_id: "r-1".into() }))
/// }
///
/// let router = Router::new("inventory").on(reserve);
/// ```
///
/// An `Err` of the handler is not an answer: the command is tried again, and in the end it is a dead
/// letter, which makes the saga stuck until an operator has looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepReply<R> {
    /// It is done.
    Done(R),
    /// It is not done. What the handler wrote is kept all the same.
    Refused {
        /// Why, for people.
        reason: String,
        /// The saga may ask again later.
        for_now: bool,
    },
}

impl<R> StepReply<R> {
    /// It is not done, and will not be.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
            for_now: false,
        }
    }

    /// It is not done at the moment; a saga that says `.retry(…)` asks again.
    pub fn refused_for_now(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
            for_now: true,
        }
    }
}

impl<R: Serialize + Send> IntoMessages for StepReply<R> {
    fn sends(_: &mut Vec<Sends>) {}

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        let answer = match self {
            Self::Done(reply) => {
                let reply = serde_json::value::to_raw_value(&reply);
                let reply = reply.map_err(|error| {
                    Permanent::new(format!("the reply cannot be written as JSON: {error}"))
                })?;
                StepAnswer::Done(reply)
            }
            Self::Refused { reason, for_now } => StepAnswer::Refused { reason, for_now },
        };
        into.replies.push(answer.outgoing()?);
        Ok(())
    }

    fn may_reply() -> bool {
        true
    }
}

/// The answer as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum StepAnswer {
    Done(Box<RawValue>),
    Refused {
        reason: String,
        #[serde(default)]
        for_now: bool,
    },
    /// The command is a dead letter.
    Dead {
        reason: String,
    },
}

impl Message for StepAnswer {
    const NAME: &'static str = ANSWER_NAME;
    /// Each goes to the queue of the saga that asked.
    const DESTINATION: Destination = Destination::queue(ANSWER_NAME);
}

impl StepAnswer {
    fn of(answer: Answer) -> Self {
        match answer {
            Answer::Done(reply) => Self::Done(reply),
            Answer::Refused { reason, for_now } => Self::Refused {
                reason: reason.into(),
                for_now,
            },
        }
    }

    /// The message. What a handler answers has a limit of which its author should read as such, and not as
    /// that of a message that it never saw.
    fn outgoing(&self) -> Result<Outgoing, Error> {
        let bytes = serde_json::to_vec(self)?.len();
        if bytes > Self::BODY_BYTES_MAX {
            return Err(Error::from(Permanent::new(format!(
                "the answer to the saga has {bytes} bytes, more than the {} that an answer may have; \
                 answer with a reference to what is large (a claim check) (TDG-3011)",
                Self::BODY_BYTES_MAX
            ))));
        }
        Outgoing::new(self)
    }

    fn nothing() -> Self {
        Self::Done(RawValue::NULL.to_owned())
    }

    /// `Err`: it is a dead letter, for this reason.
    pub(crate) fn into_answer(self) -> Result<Answer, String> {
        match self {
            Self::Done(reply) => Ok(Answer::Done(reply)),
            Self::Refused { reason, for_now } => Ok(Answer::Refused {
                reason: reason.into(),
                for_now,
            }),
            Self::Dead { reason } => Err(reason),
        }
    }
}

/// What is kept of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    answer: StepAnswer,
}

/// What a step's fence says about its command.
pub(crate) enum Fenced {
    /// It is carried out; and this is written with it.
    CarryOut(Writing),
    /// It is not: this is the answer.
    Answer(Outgoing),
}

/// What is written with a step that is carried out.
pub(crate) struct Writing {
    id: RecordId,
    part: Part,
    /// What was there.
    before: Option<Record>,
}

const DONE: &str = "done";
const REFUSED: &str = "refused";
const CANCELLED: &str = "cancelled";
const UNDONE: &str = "undone";

/// Why a handler of batches cannot have a message.
pub(crate) fn no_batch(name: &str) -> String {
    format!(
        "it takes a `Batch`, and `{name}` is a step of sagas: each step has a fence and an answer of its \
         own; take one message instead, or let the command start a saga with `.child_saga(...)` \
         (TDG-3010)"
    )
}

/// Refuses the step of a saga that came to a handler of batches, which would neither keep it once nor
/// answer it: any command can be one, and the sender decides.
pub(crate) fn refuse_batch(envelope: &Envelope) -> Result<(), Permanent> {
    let header = |name| envelope.header(name).is_some();
    match header(STEP_HEADER) && header(REPLY_TO_HEADER) {
        true => Err(Permanent::new(format!(
            "the handler cannot run: {}",
            no_batch(&envelope.name)
        ))),
        false => Ok(()),
    }
}

/// Looks up the fence of a command. `None`: it is no step of a saga.
///
/// # Errors
///
/// When the database does not answer, or the command names no step.
pub(crate) async fn look(
    store: &Arc<dyn Store>,
    context: &Context,
) -> Result<Option<Fenced>, Error> {
    let envelope = context.envelope();
    let (Some(step), Some(_)) = (
        envelope.header(STEP_HEADER),
        envelope.header(REPLY_TO_HEADER),
    ) else {
        return Ok(None);
    };
    let step: StepId = step.parse().map_err(Permanent::new)?;
    let id = RecordId::new(KIND, step.with(Part::Do).to_string());
    let found = store.records().read(std::slice::from_ref(&id)).await?;
    let before = found.into_iter().next().flatten();
    let label = before.as_ref().map(|record| &*record.value.label);
    let answer = match (step.part, label) {
        (Part::Do, None) | (Part::Cancel, None) | (Part::Undo, None | Some(DONE)) => {
            let part = step.part;
            return Ok(Some(Fenced::CarryOut(Writing { id, part, before })));
        }
        (Part::Do | Part::Cancel, Some(DONE | UNDONE | REFUSED)) => kept(before.as_ref())?,
        (Part::Do | Part::Cancel, _) => cancelled(),
        // It was not done, or is undone.
        (Part::Undo, _) => StepAnswer::nothing(),
    };
    Ok(Some(Fenced::Answer(Outgoing::new(&answer)?)))
}

fn cancelled() -> StepAnswer {
    StepAnswer::Refused {
        reason: "it was cancelled before".into(),
        for_now: false,
    }
}

fn kept(record: Option<&Record>) -> Result<StepAnswer, Error> {
    let body = record.map(|record| &*record.value.body).unwrap_or_default();
    let kept: Kept = serde_json::from_slice(body).map_err(|error| {
        StoreError::new(format!("what is kept of a step cannot be read: {error}"))
    })?;
    Ok(kept.answer)
}

impl Writing {
    /// Sees to it that the saga gets an answer.
    pub(crate) fn complete(&self, messages: &mut Messages) -> Result<(), Error> {
        if messages.replies.is_empty() {
            let answer = match self.part {
                Part::Do | Part::Undo => StepAnswer::nothing(),
                Part::Cancel => cancelled(),
            };
            messages.replies.push(Outgoing::new(&answer)?);
        }
        Ok(())
    }

    /// What is kept of the step, after its handler has answered.
    pub(crate) fn add_to(self, commit: &mut Commit) -> Result<(), Error> {
        let is_answer = |message: &&Outgoing| message.envelope.name == ANSWER_NAME;
        let answer = commit.outbox.iter().find(is_answer);
        let Some(answer) = answer else {
            return Ok(());
        };
        let answer: StepAnswer = serde_json::from_slice(&answer.envelope.body)?;
        let label = match (self.part, &answer) {
            // The next command asks anew.
            (_, StepAnswer::Refused { for_now: true, .. } | StepAnswer::Dead { .. })
            | (Part::Undo, StepAnswer::Refused { .. }) => return Ok(()),
            (Part::Do, StepAnswer::Done(_)) => DONE,
            (Part::Do, StepAnswer::Refused { .. }) => REFUSED,
            (Part::Cancel, StepAnswer::Refused { .. }) => CANCELLED,
            // Its handler says that it was done before.
            (Part::Cancel, StepAnswer::Done(_)) => DONE,
            (Part::Undo, StepAnswer::Done(_)) => UNDONE,
        };
        let (expected, body) = match self.before {
            None => {
                let kept = serde_json::to_vec(&Kept { answer })?;
                (Expected::Nothing, kept.into())
            }
            Some(record) => (Expected::Version(record.version), record.value.body),
        };
        commit.records.push(RecordChange {
            id: self.id,
            expected,
            value: Some(RecordValue {
                label: label.into(),
                due: Timestamp::now().saturating_add(KEEP).ok(),
                body,
            }),
        });
        Ok(())
    }
}

/// What a saga that is a step of another one tells it.
pub(crate) fn told(told: Told, conversation: Option<&str>) -> Result<Outgoing, Error> {
    let dead = |reason: String| Outgoing::new(&StepAnswer::Dead { reason });
    let answer = match told.answer {
        // One that is too large, for example, is told as such.
        Ok(answer) => match Outgoing::new(&StepAnswer::of(answer)) {
            Ok(answer) => answer,
            Err(error) => dead(error.to_string())?,
        },
        Err(reason) => dead(reason.into())?,
    };
    let mut answer = answer;
    answer.destination = Destination::Queue(String::from(told.reply_to).into());
    let envelope = &mut answer.envelope;
    envelope.correlation_id = conversation.map(Into::into);
    let step = told.step.to_string().into();
    envelope.headers.push((STEP_HEADER.into(), step));
    Ok(answer)
}

/// Tells a saga that the command of a step is a dead letter.
pub(crate) fn dead(envelope: &Envelope, message: &MessageId, reason: &str) -> Option<Outgoing> {
    let reply_to = envelope.header(REPLY_TO_HEADER)?;
    let step = envelope.header(STEP_HEADER)?;
    let reason = reason.to_owned();
    let mut answer = Outgoing::new(&StepAnswer::Dead { reason }).ok()?;
    answer.destination = Destination::Queue(reply_to.to_owned().into());
    let told = &mut answer.envelope;
    told.id = Some(MessageId::new(format!("reply/{message}/dead")));
    told.time = Some(Timestamp::now());
    told.correlation_id.clone_from(&envelope.correlation_id);
    told.causation_id = Some(message.as_str().into());
    told.headers.push((STEP_HEADER.into(), step.into()));
    Some(answer)
}

/// Deletes what is kept of steps that are long over, until `stop`.
pub(crate) async fn forget(store: Arc<dyn Store>, instance: String, stop: CancellationToken) {
    let mut tick = interval(FORGET_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Err(error) = forget_due(&*store, &instance).await {
            debug!("old steps were not deleted, it is tried again: {error}");
        }
    }
}

async fn forget_due(store: &dyn Store, instance: &str) -> Result<(), StoreError> {
    loop {
        let due = store.records();
        let due = due
            .take_due(KIND, instance, LEASE, FORGET_COUNT_MAX)
            .await?;
        let is_full = due.len() == FORGET_COUNT_MAX;
        let changes = due.into_iter().map(|(lease, record)| RecordChange {
            id: record.id,
            expected: Expected::Lease(lease),
            value: None,
        });
        let commit = Commit {
            records: changes.collect(),
            ..Commit::default()
        };
        if !commit.records.is_empty() {
            store.commit(commit).await?;
        }
        if !is_full {
            return Ok(());
        }
    }
}
