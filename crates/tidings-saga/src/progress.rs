//! How far each step is, read from the journal.

use jiff::Timestamp;

use crate::journal::{Entry, Journal, Stored, Undo, What};

/// What the journal says of a step.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    pub(crate) step: &'a str,
    pub(crate) command: &'a str,
    pub(crate) fingerprint: u64,
    pub(crate) undo: Undo,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) sent_at: Timestamp,
    pub(crate) send: Option<&'a Stored>,
    pub(crate) cancel: Option<&'a Stored>,
    /// How often it may still be sent again.
    pub(crate) retries: u32,
    /// How often it was sent.
    pub(crate) sent: u32,
    pub(crate) put_off: Option<Timestamp>,
    pub(crate) has_timed_out: bool,
    pub(crate) is_cancel_sent: bool,
    /// It was not done, and will not be.
    pub(crate) is_off: bool,
    pub(crate) done: Option<Done<'a>>,
}

/// A step that was done.
#[derive(Debug)]
pub(crate) struct Done<'a> {
    /// The place of the entry.
    pub(crate) place: usize,
    pub(crate) undo: Option<&'a Stored>,
    pub(crate) is_late: bool,
    /// How often its undoing was asked for.
    pub(crate) undos_sent: u32,
    pub(crate) is_undo_out: bool,
    pub(crate) is_undone: bool,
}

impl Progress<'_> {
    /// Nobody knows whether it was done.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_off && self.done.is_none()
    }

    /// It is to be undone, but what does that could not be made.
    pub(crate) fn lacks_undo(&self) -> bool {
        let done = self.done.as_ref();
        self.undo == Undo::ByCommand
            && done.is_some_and(|done| done.undo.is_none() && !done.is_undone)
    }
}

impl Journal {
    /// All steps that were sent, in that order.
    pub(crate) fn steps(&self) -> Vec<Progress<'_>> {
        let mut steps: Vec<Progress<'_>> = Vec::new();
        for (place, entry) in self.entries.iter().enumerate() {
            let Some(name) = entry.what.step() else {
                continue;
            };
            match steps.iter_mut().find(|it| it.step == name) {
                Some(step) => step.add(place, &entry.what),
                None => steps.extend(Progress::begin(entry)),
            }
        }
        steps
    }

    /// One of them.
    pub(crate) fn step(&self, name: &str) -> Option<Progress<'_>> {
        let mut step: Option<Progress<'_>> = None;
        for (place, entry) in self.entries.iter().enumerate() {
            if entry.what.step() != Some(name) {
                continue;
            }
            match &mut step {
                Some(step) => step.add(place, &entry.what),
                none => *none = Progress::begin(entry),
            }
        }
        step
    }

    /// Whether this step was sent.
    pub(crate) fn is_sent(&self, name: &str) -> bool {
        let is_sent =
            |entry: &Entry| matches!(&entry.what, What::Sent { step, .. } if **step == *name);
        self.entries.iter().any(is_sent)
    }

    /// The timers that have not fired.
    pub(crate) fn timers(&self) -> Vec<(&str, Timestamp)> {
        let mut timers: Vec<(&str, Timestamp)> = Vec::new();
        for entry in &self.entries {
            match &entry.what {
                What::TimerSet { timer, until } => timers.push((timer, *until)),
                What::Fired { timer } => timers.retain(|(name, _)| **name != **timer),
                _ => {}
            }
        }
        timers
    }
}

impl<'a> Progress<'a> {
    /// A step that was sent with this entry, if it is one that says so.
    fn begin(entry: &'a Entry) -> Option<Self> {
        let What::Sent {
            step,
            command,
            fingerprint,
            undo,
            deadline,
            retries,
            send,
            cancel,
        } = &entry.what
        else {
            return None;
        };
        Some(Self {
            step,
            command,
            fingerprint: *fingerprint,
            undo: *undo,
            deadline: *deadline,
            sent_at: entry.at,
            send: send.as_ref(),
            cancel: cancel.as_ref(),
            retries: *retries,
            sent: 1,
            put_off: None,
            has_timed_out: false,
            is_cancel_sent: false,
            is_off: false,
            done: None,
        })
    }

    fn add(&mut self, place: usize, what: &'a What) {
        match what {
            What::Done { undo, is_late, .. } => {
                self.done = Some(Done {
                    place,
                    undo: undo.as_ref(),
                    is_late: *is_late,
                    undos_sent: 0,
                    is_undo_out: false,
                    is_undone: false,
                });
            }
            What::Refused { .. } | What::Cancelled { .. } => self.is_off = true,
            What::PutOff { until, .. } => {
                self.put_off = Some(*until);
                self.retries = self.retries.saturating_sub(1);
            }
            What::SentAgain { .. } => {
                self.put_off = None;
                self.is_off = false;
                self.sent += 1;
            }
            What::TimedOut { .. } => self.has_timed_out = true,
            What::CancelSent { .. } => self.is_cancel_sent = true,
            What::UndoSent { .. } => {
                if let Some(done) = &mut self.done {
                    done.undos_sent += 1;
                    done.is_undo_out = true;
                }
            }
            What::Undone { .. } => {
                if let Some(done) = &mut self.done {
                    (done.is_undo_out, done.is_undone) = (false, true);
                }
            }
            What::UndoRefused { .. } => {
                if let Some(done) = &mut self.done {
                    done.is_undo_out = false;
                }
            }
            _ => {}
        }
    }
}

impl What {
    /// The step that it is about.
    pub(crate) fn step(&self) -> Option<&str> {
        match self {
            Self::Sent { step, .. }
            | Self::Done { step, .. }
            | Self::Refused { step, .. }
            | Self::PutOff { step, .. }
            | Self::SentAgain { step }
            | Self::TimedOut { step }
            | Self::CancelSent { step }
            | Self::Cancelled { step }
            | Self::UndoSent { step }
            | Self::Undone { step }
            | Self::UndoRefused { step, .. } => Some(step),
            Self::TimerSet { .. }
            | Self::Fired { .. }
            | Self::Signal { .. }
            | Self::BeginsAnew
            | Self::CalledOff
            | Self::Patched { .. }
            | Self::Failed { .. }
            | Self::Stuck { .. }
            | Self::Operator { .. }
            | Self::Ended => None,
        }
    }
}
