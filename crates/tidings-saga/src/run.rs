//! One pass over a saga's function: what it may see, and what it asked for.
//!
//! The function runs from its start over the entries of the journal. They are revealed one by one, and
//! the function is polled after each, so that it takes the way it took when they arrived. Nothing it
//! awaits is waited for: what is not there yet is left pending, and the pass ends.

use std::{collections::HashMap, sync::Arc, task::Waker};

use jiff::SignedDuration;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tidings_core::Outgoing;

use crate::journal::{Journal, Stored, Undo, What};

/// Makes the command that undoes a step, from its reply.
pub(crate) type MakeUndo = Box<dyn Fn(&RawValue) -> Result<Outgoing, String> + Send>;

/// A step as the function asks for it.
pub(crate) struct Asked {
    pub(crate) name: Box<str>,
    pub(crate) command: Result<Outgoing, String>,
    pub(crate) undo: Undo,
    pub(crate) make_undo: Option<MakeUndo>,
    pub(crate) cancel: Option<Result<Outgoing, String>>,
    pub(crate) deadline: Option<SignedDuration>,
    pub(crate) retries: u32,
}

/// What became of a step, with the place of the entry that says so.
#[derive(Clone)]
pub(crate) enum Settled {
    Done(usize, Box<RawValue>),
    Refused(usize, Box<str>),
    TimedOut(usize),
}

/// That the saga begins anew, with this message.
pub(crate) struct Anew {
    pub(crate) name: &'static str,
    pub(crate) body: Box<RawValue>,
}

/// The state of a pass.
#[derive(Default)]
pub(crate) struct Run {
    /// How a saga and its steps are named: `checkout/o-1`, or `checkout/o-1/2` for a later run.
    pub(crate) id: Box<str>,
    /// What has been revealed.
    steps: HashMap<Box<str>, Settled>,
    fired: HashMap<Box<str>, usize>,
    signals: HashMap<Box<str>, Vec<(usize, Box<RawValue>)>>,
    /// Known from the start: they are asked for before their entries are there.
    patches: Vec<Box<str>>,
    /// All entries are revealed: what is asked for now is new.
    pub(crate) is_at_end: bool,
    /// What the function asked for, in the order it did.
    pub(crate) asked: Vec<Asked>,
    pub(crate) timers: Vec<(Box<str>, SignedDuration)>,
    /// How many signals of a name were taken, in the order of their arrival.
    pub(crate) taken: HashMap<Box<str>, usize>,
    pub(crate) patched: Vec<Box<str>>,
    /// Steps that nobody waits for any more.
    pub(crate) dropped: Vec<Box<str>>,
    /// Who waits for what is not revealed.
    waiting: Vec<Waker>,
    /// It is to begin anew.
    pub(crate) anew: Option<Anew>,
    /// Why the function cannot go on.
    pub(crate) broken: Option<String>,
}

pub(crate) type Shared = Arc<Mutex<Run>>;

impl Run {
    pub(crate) fn new(id: Box<str>, journal: &Journal) -> Self {
        let patches = journal
            .entries
            .iter()
            .filter_map(|entry| match &entry.what {
                What::Patched { patch } => Some(patch.clone()),
                _ => None,
            });
        Self {
            id,
            patches: patches.collect(),
            ..Self::default()
        }
    }

    /// Reveals the entry at `place`. The waiting are to be woken, as they see more now.
    pub(crate) fn reveal(&mut self, journal: &Journal, place: usize) -> Vec<Waker> {
        let Some(entry) = journal.entries.get(place) else {
            return Vec::new();
        };
        match &entry.what {
            What::Done {
                step,
                reply,
                is_late: false,
                ..
            } => {
                let settled = Settled::Done(place, reply.clone());
                self.steps.insert(step.clone(), settled);
            }
            What::Refused { step, reason } => {
                let settled = Settled::Refused(place, reason.clone());
                self.steps.entry(step.clone()).or_insert(settled);
            }
            What::TimedOut { step } => {
                self.steps
                    .entry(step.clone())
                    .or_insert(Settled::TimedOut(place));
            }
            What::Fired { timer } => drop(self.fired.insert(timer.clone(), place)),
            What::Signal { signal, body } => {
                let of_name = self.signals.entry(signal.clone()).or_default();
                of_name.push((place, body.clone()));
            }
            _ => {}
        }
        std::mem::take(&mut self.waiting)
    }

    pub(crate) fn settled(&self, step: &str) -> Option<&Settled> {
        self.steps.get(step)
    }

    pub(crate) fn fired(&self, timer: &str) -> Option<usize> {
        self.fired.get(timer).copied()
    }

    /// The first signal of this name that was not taken.
    pub(crate) fn signal(&self, name: &str) -> Option<&(usize, Box<RawValue>)> {
        let taken = self.taken.get(name).copied().unwrap_or_default();
        self.signals.get(name)?.get(taken)
    }

    pub(crate) fn is_patched(&mut self, patch: &str) -> bool {
        if self.patches.iter().any(|it| **it == *patch) {
            return true;
        }
        if self.is_at_end {
            self.patches.push(patch.into());
            self.patched.push(patch.into());
        }
        self.is_at_end
    }

    pub(crate) fn wait(&mut self, waker: &Waker) {
        self.waiting.push(waker.clone());
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The function does something that a saga cannot do.
    pub(crate) fn break_off(&mut self, why: impl Into<String>) {
        self.broken.get_or_insert_with(|| why.into());
    }

    /// Names are keys in stored journals.
    pub(crate) fn check_name(&mut self, what: &str, name: &str) {
        let is_known = self.asked.iter().any(|asked| *asked.name == *name)
            || self.timers.iter().any(|(timer, _)| **timer == *name);
        if is_known {
            self.break_off(format!(
                "it has two steps or timers with the name `{name}`; a name is a key in the journal, so \
                 give each its own (in a loop: with a number)"
            ));
        } else if name.is_empty() || name.contains(['/', '#']) {
            self.break_off(format!(
                "{what} cannot be named `{name}`: a name is part of message ids, so it is not empty \
                 and has no `/` and no `#`"
            ));
        }
    }
}

impl Asked {
    /// A number that differs if the command is another one (64-bit FNV-1a of name and body).
    pub(crate) fn fingerprint(message: &Outgoing) -> u64 {
        let name = message.envelope.name.bytes();
        let body = message.envelope.body.iter().copied();
        name.chain([0])
            .chain(body)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    }

    pub(crate) fn stored(message: &Outgoing) -> Result<Stored, String> {
        Stored::new(message).map_err(|error| error.to_string())
    }
}
