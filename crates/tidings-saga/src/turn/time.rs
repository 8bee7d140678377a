//! What a saga does when the time has come: deadlines, timers, and what is sent again.

use jiff::Timestamp;

use super::Taking;
use crate::{
    journal::{SagaState, What},
    progress::Progress,
};

impl Taking<'_> {
    /// When something is to be done without an arrival.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.journal.state {
            SagaState::Running if self.journal.begins_anew() => return Some(self.patience_ends()),
            SagaState::Running => {}
            SagaState::Compensating => return Some(self.patience_ends()),
            _ => return None,
        }
        let steps = self.journal.steps();
        let open = steps.iter().filter(|step| step.is_open());
        let deadlines = open.clone().filter(|step| !step.has_timed_out);
        let deadlines = deadlines.filter_map(|step| step.deadline);
        let timers = self.journal.timers();
        let timers = timers.iter().map(|(_, until)| *until);
        let again = open.filter_map(|step| step.put_off);
        deadlines.chain(timers).chain(again).min()
    }

    /// When a saga is stuck that only waits for an answer, to be undone or to begin anew.
    pub(super) fn patience_ends(&self) -> Timestamp {
        let last = self.journal.entries.last();
        let last = last.map_or(self.journal.started, |entry| entry.at);
        let ends = last.saturating_add(self.definition.stuck_after());
        ends.unwrap_or(Timestamp::MAX)
    }

    /// What the time has come for.
    pub(super) fn fire(&mut self) {
        loop {
            let now = self.now;
            let begins_anew = self.journal.begins_anew();
            match self.journal.state {
                SagaState::Running if !begins_anew => {}
                SagaState::Running | SagaState::Compensating if self.patience_ends() <= now => {
                    return self.stuck_waiting(self.waits_for());
                }
                _ => return,
            }
            let steps = self.journal.steps();
            let open = steps.iter().filter(|step| step.is_open());
            let late = open.clone().filter(|step| !step.has_timed_out);
            let late = late.filter_map(|step| {
                Some((
                    step.deadline?,
                    What::TimedOut {
                        step: step.step.into(),
                    },
                ))
            });
            let timers = self.journal.timers();
            let fired = timers.iter();
            let fired = fired.map(|(timer, until)| {
                (
                    *until,
                    What::Fired {
                        timer: (*timer).into(),
                    },
                )
            });
            let again = open.filter_map(|step| {
                Some((
                    step.put_off?,
                    What::SentAgain {
                        step: step.step.into(),
                    },
                ))
            });
            // In the order of their times; at the same time by name, so that each run does the same.
            let due = late
                .chain(fired)
                .chain(again)
                .filter(|(until, _)| *until <= now);
            let Some((_, what)) = due.min_by_key(|(until, what)| (*until, what.order())) else {
                return;
            };
            if let What::SentAgain { step } = &what {
                let step = step.clone();
                self.add(what);
                self.send_again(&step);
            } else {
                self.add(what);
                self.run();
            }
        }
    }

    pub(super) fn waits_for(&self) -> String {
        let steps = self.journal.steps();
        let open = steps.iter().find(|step| step.is_open());
        let undoing = |step: &&Progress<'_>| step.done.as_ref().is_some_and(|it| it.is_undo_out);
        match (open, steps.iter().find(undoing)) {
            (Some(step), _) => format!(
                "nobody knows whether `{}` was done: `{}` was not answered",
                step.step, step.command
            ),
            (None, Some(step)) => format!("the undoing of `{}` was not answered", step.step),
            (None, None) => "it does not go on".to_owned(),
        }
    }
}

impl What {
    /// Among what is due at the same time.
    pub(super) fn order(&self) -> (u8, Box<str>) {
        match self {
            Self::TimedOut { step } => (0, step.clone()),
            Self::Fired { timer } => (1, timer.clone()),
            what => (2, what.step().unwrap_or_default().into()),
        }
    }
}
