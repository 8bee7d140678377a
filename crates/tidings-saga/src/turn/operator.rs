//! What an operator may do to a saga.

use super::{Action, Answer, Taking};
use crate::{
    journal::{SagaState, What},
    progress::{Done, Progress},
    step_id::Part,
};

impl Taking<'_> {
    pub(super) fn operate(&mut self, who: Box<str>, why: Box<str>, action: Action) {
        let word = match &action {
            Action::Retry => "retry".to_owned(),
            Action::Answer(step, Answer::Done(_)) => format!("answer {step}: done"),
            Action::Answer(step, Answer::Refused { .. }) => format!("answer {step}: refused"),
            Action::Skip(step) => format!("skip {step}"),
            Action::Compensate => "compensate".to_owned(),
            Action::GiveUp => "give up".to_owned(),
        };
        if self.journal.state.is_ended() && !self.has_something_out() {
            return self.ignore(format!("`{word}`: the saga has ended"));
        }
        self.add(What::Operator {
            who,
            why,
            action: word.into(),
        });
        self.resume();
        match action {
            Action::Retry => self.retry(),
            Action::Answer(step, answer) => self.answered_by_hand(&step, answer),
            Action::Skip(step) => self.skip(&step),
            Action::Compensate => {
                self.tell_unread_without();
                self.keep_answer(Some(Answer::Refused {
                    reason: "an operator had it undone".into(),
                    for_now: false,
                }));
                if self.journal.failed_at().is_none() {
                    self.add(What::Failed {
                        messages: Vec::new(),
                    });
                }
                self.journal.state = SagaState::Compensating;
                self.compensate();
            }
            Action::GiveUp => {
                self.tell_unread_without();
                self.journal.state = SagaState::Abandoned;
                self.add(What::Ended);
                self.tell_parent();
            }
        }
    }

    pub(super) fn has_something_out(&self) -> bool {
        let steps = self.journal.steps();
        let is_out = |step: &Progress<'_>| {
            let done = step.done.as_ref();
            let is_to_undo =
                |done: &Done<'_>| done.undo.is_some() && done.is_late && !done.is_undone;
            step.is_open() || done.is_some_and(is_to_undo)
        };
        steps.iter().any(is_out)
    }

    /// Sends again what is out, and lets the function go on.
    pub(super) fn retry(&mut self) {
        if let Err(why) = self.complete_undos() {
            return self.stuck(why);
        }
        let steps = self.journal.steps();
        let open = steps
            .iter()
            .filter(|step| step.is_open() && step.put_off.is_none());
        let open: Vec<Box<str>> = open.map(|step| step.step.into()).collect();
        let refused = steps
            .iter()
            .filter_map(|step| Some((step.step, step.done.as_ref()?)));
        let refused = refused.filter(|(_, done)| done.undos_sent > 0 && !done.is_undone);
        let refused: Vec<Box<str>> = refused.map(|(step, _)| step.into()).collect();
        for step in open {
            self.add(What::SentAgain { step: step.clone() });
            self.send_again(&step);
        }
        for step in refused {
            self.undo(&step);
        }
        self.go_on();
    }

    pub(super) fn answered_by_hand(&mut self, name: &str, answer: Answer) {
        match self.journal.step(name) {
            None => self.ignore(format!("there is no step `{name}`, or it was never sent")),
            Some(step) if step.is_open() => self.answered(name, Part::Do, answer),
            Some(step) if step.done.as_ref().is_some_and(|done| done.is_undo_out) => {
                self.answered(name, Part::Undo, answer);
            }
            Some(_) => self.ignore(format!("`{name}` does not wait for an answer")),
        }
    }

    pub(super) fn skip(&mut self, name: &str) {
        let step = self.journal.step(name);
        let is_to_undo = step
            .and_then(|step| step.done)
            .is_some_and(|done| !done.is_undone);
        match is_to_undo {
            true => {
                self.add(What::Undone { step: name.into() });
                self.go_on();
            }
            false => self.ignore(format!("`{name}` is not to be undone")),
        }
    }
}
