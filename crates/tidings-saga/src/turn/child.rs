//! A saga that is a step of another one: what its parent asks, and what it is told.
//!
//! Its journal is its fence. A command that comes again is answered as before; one that was called off
//! before it came is refused; what is called off later is undone by the saga's own steps.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{Answer, Taking, Turn};
use crate::{
    child::{Parent, Told},
    definition::Definition,
    journal::{Journal, SagaState, Start, Undo, What},
    step_id::Part,
};

impl Definition {
    /// The first turn of a saga that is a step of another one, under [`Parent::key`]. One that is called
    /// off before it was started ends at once.
    pub fn start_child(&self, start: Start, parent: Parent, now: Timestamp) -> Turn {
        let (key, asked) = (parent.key(), parent.asked);
        let journal = Journal::new(self.newest(), start, Some(parent), now);
        let mut taking = Taking::new(self, &key, journal, now);
        match asked {
            Part::Do => taking.run(),
            Part::Cancel | Part::Undo => {
                taking.keep_answer(Some(called_off()));
                taking.add(What::CalledOff);
                taking.journal.state = SagaState::Compensated;
                taking.add(What::Ended);
                taking.tell_parent();
            }
        }
        taking.end()
    }
}

fn called_off() -> Answer {
    Answer::Refused {
        reason: "it was called off".into(),
        for_now: false,
    }
}

impl Parent {
    /// Tells it that what it asks cannot be had.
    pub fn refuse(&self, reason: impl Into<Box<str>>) -> Told {
        self.tell(
            self.asked,
            Ok(Answer::Refused {
                reason: reason.into(),
                for_now: false,
            }),
        )
    }

    fn tell(&self, part: Part, answer: Result<Answer, Box<str>>) -> Told {
        Told {
            step: self.step.with(part),
            reply_to: self.reply_to.clone(),
            answer,
        }
    }
}

impl Taking<'_> {
    /// How its function ended.
    pub(super) fn keep_answer(&mut self, answer: Option<Answer>) {
        if let (Some(parent), Some(answer)) = (&mut self.journal.parent, answer) {
            // What its parent was told stays.
            parent.answer.get_or_insert(answer);
        }
    }

    /// It has ended: its parent is told what it asked last.
    pub(super) fn tell_parent(&mut self) {
        if let Some(parent) = &self.journal.parent {
            self.tell(parent.asked);
        }
    }

    fn tell(&mut self, part: Part) {
        let Some(parent) = &self.journal.parent else {
            return;
        };
        let answer = match (&self.journal.state, part) {
            (SagaState::Completed, Part::Undo) => return,
            (SagaState::Completed, Part::Do | Part::Cancel)
            | (SagaState::Compensated, Part::Do | Part::Cancel) => {
                Ok(parent.answer.clone().unwrap_or_else(called_off))
            }
            (SagaState::Compensated, Part::Undo) => Ok(Answer::Done(RawValue::NULL.to_owned())),
            (SagaState::Abandoned, _) => Err("an operator gave it up".into()),
            (SagaState::Running | SagaState::Compensating | SagaState::Stuck { .. }, _) => return,
        };
        let told = parent.tell(part, answer);
        self.told.push(told);
    }

    /// Its parent asks something.
    pub(super) fn asked(&mut self, part: Part) {
        let Some(parent) = &mut self.journal.parent else {
            return self.ignore("it is no step of another saga, and was called off");
        };
        if part != Part::Do {
            parent.asked = part;
        }
        match (&self.journal.state, part) {
            (SagaState::Completed, Part::Undo) => self.undo_all(),
            (state, part) if state.is_ended() => self.tell(part),
            (
                SagaState::Running
                | SagaState::Stuck {
                    while_compensating: false,
                    ..
                },
                Part::Cancel | Part::Undo,
            ) => self.call_off(),
            // It is under way, and its parent is told when it ends.
            _ => {}
        }
    }

    /// It is not to be done, if that is still possible.
    fn call_off(&mut self) {
        self.add(What::CalledOff);
        if self.pivot().is_some() {
            return; // It ends as it may, and its parent is told.
        }
        self.tell_unread_without();
        self.keep_answer(Some(called_off()));
        self.undo_from_here();
    }

    /// It was done, and is to be undone.
    fn undo_all(&mut self) {
        if let Some(pivot) = self.pivot() {
            let reason = format!("`{pivot}` was done, which cannot be undone");
            if let Some(parent) = &self.journal.parent {
                self.told.push(parent.refuse(reason));
            }
            return;
        }
        self.add(What::CalledOff);
        self.undo_from_here();
    }

    fn undo_from_here(&mut self) {
        self.add(What::Failed {
            messages: Vec::new(),
        });
        self.journal.state = SagaState::Compensating;
        self.compensate();
    }

    /// A step that was done and cannot be undone.
    pub(super) fn pivot(&self) -> Option<Box<str>> {
        let steps = self.journal.steps();
        let mut steps = steps.iter();
        let pivot = steps.find(|step| step.undo == Undo::Pivot && step.done.is_some())?;
        Some(pivot.step.into())
    }
}
