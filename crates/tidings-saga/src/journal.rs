//! What is stored of a saga: everything that has happened to it, in order.
//!
//! A journal is one record. It holds a header and its entries, as JSON that people can read; the bodies in
//! it are those that were sent and received, byte for byte. It is bounded, because it is written
//! again with every change.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidings_core::{Error, Message, Outgoing};

use crate::child::Parent;

/// The most entries of a journal. One that is being undone has room for as many again.
pub const ENTRIES_MAX: usize = 256;

/// The most bytes of a journal as it is stored, beside the message that started it; as many again while
/// it is undone.
pub const BYTES_MAX: usize = 64 * 1024;

/// Room for most journals, so that writing one seldom has to ask for more.
const WRITTEN_BYTES: usize = 2048;

/// How journals are written; a newer program writes a higher number.
const FORMAT: u16 = 1;

/// Everything that has happened to one saga.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journal {
    format: u16,
    /// The version of the function that it was started with.
    pub version: u32,
    /// How often the saga began anew under the same key, from 0.
    pub run: u32,
    /// How far it is.
    pub state: SagaState,
    /// When it was started; this run, if it began anew.
    pub started: Timestamp,
    /// The message that started it, or that it began anew with.
    pub start: Start,
    /// Whose step it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What happened since, in order.
    pub entries: Vec<Entry>,
}

/// The message that started a saga.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// Its name, with its version.
    pub name: Box<str>,
    /// Its id.
    pub id: Box<str>,
    /// The conversation that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Box<str>>,
    /// Its body.
    pub body: Box<RawValue>,
}

/// How far a saga is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SagaState {
    /// Its function has not ended.
    Running,
    /// Its function failed, and what was done is being undone.
    Compensating,
    /// An operator has to look; what it did before goes on afterwards.
    Stuck {
        /// Why.
        reason: Box<str>,
        /// It was [`Compensating`](Self::Compensating).
        while_compensating: bool,
        /// It goes on by itself if the answer comes after all that it waits for.
        is_waiting: bool,
    },
    /// Its function succeeded. Steps that nobody waited for may still be out.
    Completed,
    /// Its function failed, and everything is undone.
    Compensated,
    /// An operator gave it up; what was done stays.
    Abandoned,
}

impl Start {
    /// A message as it starts a saga in a test.
    ///
    /// # Errors
    ///
    /// As [`Outgoing::new`].
    pub fn of<M: Message>(message: &M) -> Result<Self, Error> {
        let message = Outgoing::new(message)?;
        let id = message.envelope.id.as_ref().map(|id| id.as_str().into());
        let body = String::from_utf8(message.envelope.body.to_vec())?;
        Ok(Self {
            name: message.envelope.name.into(),
            id: id.unwrap_or_default(),
            correlation_id: None,
            body: RawValue::from_string(body)?,
        })
    }
}

impl SagaState {
    /// One word, which sagas are listed by.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Stuck { .. } => "stuck",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Abandoned => "abandoned",
        }
    }

    /// Nothing is left to decide.
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Abandoned)
    }
}

impl fmt::Display for SagaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck { reason, .. } => write!(f, "stuck: {reason}"),
            state => f.write_str(state.label()),
        }
    }
}

/// Something that happened to a saga.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The command of a step was sent.
    Sent {
        /// The step.
        step: Box<str>,
        /// The command's name.
        command: Box<str>,
        /// Of the command's body, so that a function that sends something else is noticed.
        fingerprint: u64,
        /// What becomes of the step if the saga fails.
        undo: Undo,
        /// When it is too late for a reply.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
        /// How often it may be sent again after a refusal that is marked temporary.
        #[serde(default, skip_serializing_if = "is_zero")]
        retries: u32,
        /// The command itself, until its answer is there: for a retry, and for an operator.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        send: Option<Stored>,
        /// What cancels it, while its outcome is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cancel: Option<Stored>,
    },
    /// The step was done.
    Done {
        /// The step.
        step: Box<str>,
        /// What its participant answered.
        reply: Box<RawValue>,
        /// What undoes it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        undo: Option<Stored>,
        /// Nobody waits for it any more: its deadline has passed, or the function went another way.
        #[serde(default, skip_serializing_if = "is_false")]
        is_late: bool,
    },
    /// The step was refused: nothing of it was done.
    Refused {
        /// The step.
        step: Box<str>,
        /// Why, for people.
        reason: Box<str>,
    },
    /// The step was refused for the moment, and is sent again at this time.
    PutOff {
        /// The step.
        step: Box<str>,
        /// Why, for people.
        reason: Box<str>,
        /// When it is sent again.
        until: Timestamp,
    },
    /// The step was sent again.
    SentAgain {
        /// The step.
        step: Box<str>,
    },
    /// No reply came before the step's deadline.
    TimedOut {
        /// The step.
        step: Box<str>,
    },
    /// What cancels the step was sent.
    CancelSent {
        /// The step.
        step: Box<str>,
    },
    /// The step was cancelled: it was not done, and will not be.
    Cancelled {
        /// The step.
        step: Box<str>,
    },
    /// What undoes the step was sent.
    UndoSent {
        /// The step.
        step: Box<str>,
    },
    /// The step is undone, or an operator says that it need not be.
    Undone {
        /// The step.
        step: Box<str>,
    },
    /// What undoes the step was refused.
    UndoRefused {
        /// The step.
        step: Box<str>,
        /// Why, for people.
        reason: Box<str>,
    },
    /// A timer was set.
    TimerSet {
        /// The timer.
        timer: Box<str>,
        /// When it fires.
        until: Timestamp,
    },
    /// A timer fired.
    Fired {
        /// The timer.
        timer: Box<str>,
    },
    /// A signal arrived.
    Signal {
        /// The signal.
        signal: Box<str>,
        /// What it said.
        body: Box<RawValue>,
    },
    /// The function asked to begin anew, which waits until every step is settled.
    BeginsAnew,
    /// The saga whose step this one is asked for it not to be done, or to be undone.
    CalledOff,
    /// The function asked whether it is patched, and is.
    Patched {
        /// The patch.
        patch: Box<str>,
    },
    /// The function failed with this, which is sent when everything is undone.
    Failed {
        /// The messages.
        messages: Vec<Stored>,
    },
    /// It became stuck.
    Stuck {
        /// Why.
        reason: Box<str>,
    },
    /// An operator did something.
    Operator {
        /// Who.
        who: Box<str>,
        /// What for.
        why: Box<str>,
        /// What.
        action: Box<str>,
    },
    /// It ended.
    Ended,
}

/// What becomes of a step if the saga fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// It is undone by a command.
    ByCommand,
    /// It needs no undoing.
    Never,
    /// It cannot be undone: once it is done, the saga does not fail any more.
    Pivot,
}

/// A message in a journal. The command of a step and what undoes it are kept without their ids and the
/// headers that name the step: they get these whenever they are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    metadata: Box<RawValue>,
    body: Box<RawValue>,
}

impl Stored {
    pub(crate) fn new(message: &Outgoing) -> Result<Self, Error> {
        let metadata = RawValue::from_string(message.to_metadata());
        let body = String::from_utf8(message.envelope.body.to_vec())
            .map_err(Error::from)
            .and_then(|body| RawValue::from_string(body).map_err(Error::from))?;
        Ok(Self {
            metadata: metadata.map_err(Error::from)?,
            body,
        })
    }

    /// The message.
    ///
    /// # Errors
    ///
    /// When a newer program wrote what this one cannot read.
    pub fn message(&self) -> Result<Outgoing, String> {
        let body = self.body.get().as_bytes().to_vec().into();
        Outgoing::from_metadata(self.metadata.get(), body).map_err(|error| error.to_string())
    }
}

impl Journal {
    pub(crate) fn new(version: u32, start: Start, parent: Option<Parent>, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            version,
            run: 0,
            state: SagaState::Running,
            started: now,
            start,
            parent,
            entries: Vec::new(),
        }
    }

    /// A step is settled: what sends and cancels it is not needed any more.
    pub(crate) fn settle(&mut self, name: &str) {
        for entry in &mut self.entries {
            if let What::Sent {
                step, send, cancel, ..
            } = &mut entry.what
                && **step == *name
            {
                (*send, *cancel) = (None, None);
            }
        }
    }

    /// Reads a journal as it is stored.
    ///
    /// # Errors
    ///
    /// A sentence that says why it cannot be read.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Header {
            format: u16,
        }
        let read: Result<Self, _> = serde_json::from_slice(bytes);
        let format = match &read {
            Ok(journal) => journal.format,
            // A newer format is a better reason, if its number can be read.
            Err(_) => serde_json::from_slice(bytes).map_or(FORMAT, |header: Header| header.format),
        };
        if format > FORMAT {
            return Err(format!(
                "it was written by a newer program (format {format}, this one reads up to {FORMAT})"
            ));
        }
        read.map_err(|error| error.to_string())
    }

    /// The journal as it is stored.
    pub fn write(&self) -> Vec<u8> {
        let mut written = Vec::with_capacity(WRITTEN_BYTES);
        // An error is impossible: there is nothing in it that JSON cannot hold.
        serde_json::to_writer(&mut written, self)
            .unwrap_or_else(|error| unreachable!("a journal: {error}"));
        written
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(truth: &bool) -> bool {
    !truth
}
