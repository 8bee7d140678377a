//! Undoing what was done, without the function: strictly in reverse, once everything is settled.

use tidings_core::Outgoing;

use super::Taking;
use crate::{
    function::End,
    journal::{Entry, Journal, SagaState, Stored, What},
    run::Asked,
    step_id::Part,
};

impl Taking<'_> {
    /// The function failed.
    pub(super) fn fail(&mut self, end: End) {
        if let Some(pivot) = self.pivot() {
            let why = format!("its function failed after `{pivot}`, which cannot be undone");
            return self.stuck(why);
        }
        self.keep_answer(end.answer);
        match end.messages.iter().map(Stored::new).collect() {
            Ok(messages) => self.add(What::Failed { messages }),
            Err(error) => {
                return self.stuck(format!("what it sends at its end cannot be kept: {error}"));
            }
        }
        self.journal.state = SagaState::Compensating;
        self.compensate();
    }

    /// Cancels what is open. True if nothing is.
    pub(super) fn settle_open(&mut self) -> bool {
        loop {
            let steps = self.journal.steps();
            let open: Vec<_> = steps.iter().filter(|step| step.is_open()).collect();
            if open.is_empty() {
                return true;
            }
            let off = open.iter().filter(|step| step.put_off.is_some());
            let off: Vec<Box<str>> = off.map(|step| step.step.into()).collect();
            let cancel = open
                .iter()
                .filter(|step| !step.is_cancel_sent && step.put_off.is_none());
            let cancel = cancel.filter_map(|step| Some((step.step.into(), step.cancel?.message())));
            let cancel: Vec<(Box<str>, Result<Outgoing, String>)> = cancel.collect();
            let is_over = off.len() == open.len();
            for step in off {
                let reason = "nobody waits for it any more".into();
                self.add(What::Refused { step, reason });
            }
            for (step, message) in cancel {
                match message {
                    Ok(message) => {
                        self.add(What::CancelSent { step });
                        self.outgoing.push(message);
                    }
                    Err(why) => {
                        self.stuck(format!("what cancels `{step}` cannot be read: {why}"));
                        return false;
                    }
                }
            }
            if !is_over {
                return false;
            }
        }
    }

    /// Undoes what can be undone now.
    pub(super) fn compensate(&mut self) {
        if !self.settle_open() {
            return;
        }
        let steps = self.journal.steps();
        if let Some(step) = steps.iter().find(|step| step.lacks_undo()) {
            let why = format!("what undoes `{}` is not known", step.step);
            return self.stuck(why);
        }
        let undoable = steps
            .iter()
            .filter_map(|step| Some((step.step, step.done.as_ref()?)));
        let undoable = undoable.filter(|(_, done)| !done.is_undone && done.undo.is_some());
        let last = undoable.max_by_key(|(_, done)| done.place);
        match last {
            Some((_, done)) if done.is_undo_out => {}
            Some((step, _)) => {
                let step: Box<str> = step.into();
                self.undo(&step);
            }
            None => self.undone(),
        }
    }

    /// Sends what undoes a step.
    pub(super) fn undo(&mut self, name: &str) {
        let Some(step) = self.journal.step(name) else {
            return;
        };
        let Some(done) = step.done else {
            return;
        };
        let time = done.undos_sent + 1;
        let message = done.undo.map(Stored::message);
        match message {
            Some(Ok(mut message)) => {
                self.address(&mut message, name, Part::Undo, time);
                self.add(What::UndoSent { step: name.into() });
                self.outgoing.push(message);
            }
            Some(Err(why)) => self.stuck(format!("what undoes `{name}` cannot be read: {why}")),
            None => {}
        }
    }

    /// Everything is undone.
    pub(super) fn undone(&mut self) {
        let failed = self
            .journal
            .entries
            .iter()
            .rev()
            .find_map(|entry| match &entry.what {
                What::Failed { messages } => Some(messages),
                _ => None,
            });
        let messages = failed.into_iter().flatten().map(Stored::message);
        match messages.collect::<Result<Vec<_>, _>>() {
            Ok(messages) => {
                self.outgoing.extend(messages);
                self.journal.state = SagaState::Compensated;
                self.add(What::Ended);
                self.tell_parent();
            }
            Err(why) => self.stuck(format!("what it sends at its end cannot be read: {why}")),
        }
    }

    /// Makes the undos that could not be made when their steps were done.
    pub(super) fn complete_undos(&mut self) -> Result<(), String> {
        let steps = self.journal.steps();
        let lacking = steps.iter().filter(|step| step.lacks_undo());
        let lacking: Vec<(Box<str>, usize)> = lacking
            .filter_map(|step| Some((step.step.into(), step.done.as_ref()?.place)))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let failed_at = self.journal.failed_at();
        let passing = self.passing(failed_at.unwrap_or(self.journal.entries.len()), true)?;
        for (name, place) in lacking {
            let What::Done { reply, .. } = &self.journal.entries[place].what else {
                continue;
            };
            let Some(made) = passing.undo_of(&name, reply)? else {
                continue;
            };
            let made = Asked::stored(&made)?;
            if let What::Done { undo, .. } = &mut self.journal.entries[place].what {
                *undo = Some(made);
            }
        }
        Ok(())
    }
}

impl Journal {
    /// The place of the entry that says that the function failed.
    pub(super) fn failed_at(&self) -> Option<usize> {
        let is_failed = |entry: &Entry| matches!(entry.what, What::Failed { .. });
        self.entries.iter().position(is_failed)
    }
}
