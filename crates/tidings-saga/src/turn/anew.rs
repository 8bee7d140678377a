//! Beginning anew under the same key: with another message, the newest function and an empty journal.
//!
//! Nothing may be forgotten by it. So it waits until every step is settled, as undoing does; a step that
//! could still be undone makes the saga stuck; and signals that were not taken go along.

use std::collections::HashMap;

use super::Taking;
use crate::{
    journal::{Entry, Journal, Start, What},
    progress::Progress,
    run::Anew,
};

impl Taking<'_> {
    /// True if it has begun anew.
    pub(super) fn begin_anew(&mut self, anew: Anew, taken: &HashMap<Box<str>, usize>) -> bool {
        if let Err(why) = self.may_begin_anew(&anew, taken) {
            self.stuck(why);
            return false;
        }
        if self.has_something_out() && !self.journal.begins_anew() {
            self.add(What::BeginsAnew);
        }
        if !self.settle_open() || self.has_something_out() {
            return false;
        }
        let before = &self.journal;
        let start = Start {
            body: anew.body,
            ..before.start.clone()
        };
        let version = self.definition.newest();
        let mut journal = Journal::new(version, start, before.parent.clone(), self.now);
        journal.run = before.run + 1;
        journal.entries = before.unread(taken).cloned().collect();
        self.journal = journal;
        true
    }

    fn may_begin_anew(&self, anew: &Anew, taken: &HashMap<Box<str>, usize>) -> Result<(), String> {
        let journal = &self.journal;
        if *anew.name != *journal.start.name {
            return Err(format!(
                "it begins anew with `{}`, but is started by `{}`",
                anew.name, journal.start.name
            ));
        }
        let key = self.definition.key_of(&anew.body).transpose()?;
        if let Some(key) = key
            && key != self.key
        {
            return Err(format!(
                "it begins anew with a message whose key is `{key}`; it keeps its own, `{}`",
                self.key
            ));
        }
        let steps = journal.steps();
        let undoable = steps.iter().find(|step| {
            let is_undoable = step
                .done
                .as_ref()
                .is_some_and(|done| done.undo.is_some() && !done.is_undone && !done.is_late);
            is_undoable || step.lacks_undo()
        });
        if let Some(Progress { step, .. }) = undoable {
            return Err(format!(
                "it begins anew while `{step}` can still be undone, which would be forgotten; let it \
                 end instead, or give that step `.no_undo()`"
            ));
        }
        let has_waited = journal.entries.iter().any(|entry| {
            matches!(
                entry.what,
                What::Done { .. }
                    | What::Refused { .. }
                    | What::TimedOut { .. }
                    | What::Fired { .. }
            )
        });
        if !has_waited && taken.values().all(|count| *count == 0) {
            return Err(
                "it begins anew without having waited for anything, and would do so for ever"
                    .into(),
            );
        }
        Ok(())
    }
}

impl Journal {
    /// The function has asked to begin anew, and waits for steps to be settled.
    pub(super) fn begins_anew(&self) -> bool {
        let begins = |entry: &Entry| matches!(entry.what, What::BeginsAnew);
        self.entries.iter().any(begins)
    }

    /// Signals that were not taken: of each name, those after so many.
    pub(super) fn unread<'a>(
        &'a self,
        taken: &'a HashMap<Box<str>, usize>,
    ) -> impl Iterator<Item = &'a Entry> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        self.entries.iter().filter(move |entry| {
            let What::Signal { signal, .. } = &entry.what else {
                return false;
            };
            let seen = seen.entry(signal).or_default();
            *seen += 1;
            *seen > taken.get(signal).copied().unwrap_or_default()
        })
    }
}
