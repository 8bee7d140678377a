//! Running the function as far as it goes, and sending what it asks for.

use jiff::Timestamp;
use tidings_core::{MessageId, Outgoing, REPLY_TO_HEADER};

use super::Taking;
use crate::{
    function::{Pass, Passing, changed, mismatch},
    journal::{SagaState, What},
    run::Asked,
    step_id::{Part, STEP_HEADER, StepId},
};

impl Taking<'_> {
    pub(super) fn send_again(&mut self, name: &str) {
        let message = match self.journal.step(name) {
            Some(step) => match step.send {
                Some(send) => send.message().map(|message| (message, step.sent)),
                None => return,
            },
            None => return,
        };
        match message {
            Ok((mut message, sent)) => {
                self.address(&mut message, name, Part::Do, sent);
                self.outgoing.push(message);
            }
            Err(why) => self.stuck(format!("the command of `{name}` cannot be read: {why}")),
        }
    }

    /// Runs the function over the first `count` entries. If `is_end`, it sees no others.
    pub(super) fn passing(&self, count: usize, is_end: bool) -> Result<Passing, String> {
        let function = self.definition.function(self.journal.version)?;
        let id = self.definition.id(self.key, self.journal.run);
        let is_at_end = is_end && count == 0;
        let mut passing = Passing::begin(function, &id, &self.journal, is_at_end)?;
        passing.go_on(&self.journal, count, is_end)?;
        Ok(passing)
    }

    pub(super) fn pass(&self, count: usize) -> Result<Pass, String> {
        self.passing(count, true)?.end()
    }

    /// Runs the function as far as it goes, also when it begins anew.
    pub(super) fn run(&mut self) {
        let count = self.journal.entries.len();
        self.run_on(self.passing(count, true));
    }

    /// The same for one that has seen the journal up to here or to an earlier entry.
    pub(super) fn run_on(&mut self, passing: Result<Passing, String>) {
        let mut passing = passing;
        while self.run_once(passing) {
            passing = self.passing(self.journal.entries.len(), true);
        }
    }

    /// True if it begins anew.
    fn run_once(&mut self, passing: Result<Passing, String>) -> bool {
        let passed = passing.and_then(|mut passing| {
            passing.go_on(&self.journal, self.journal.entries.len(), true)?;
            passing.end()
        });
        let passed = passed.and_then(|passed| {
            let steps = self.journal.steps();
            match mismatch(&self.journal, &steps, &passed) {
                Some(why) => {
                    self.is_mismatch = true;
                    Err(why)
                }
                None => Ok((changed(&steps, &passed), passed)),
            }
        });
        let (changed, passed) = match passed {
            Ok(passed) => passed,
            Err(why) => {
                self.stuck(why);
                return false;
            }
        };
        for step in changed {
            if !self.changed.contains(&step) {
                self.changed.push(step);
            }
        }
        for patch in &passed.run.patched {
            let patch = patch.clone();
            self.add(What::Patched { patch });
        }
        if let Some(anew) = passed.run.anew {
            return self.begin_anew(anew, &passed.run.taken);
        }
        match passed.ended {
            None => self.send(passed),
            Some(Ok(end)) => {
                self.outgoing.extend(end.messages);
                self.tell_unread(&passed.run.taken);
                self.keep_answer(end.answer);
                self.journal.state = SagaState::Completed;
                self.add(What::Ended);
                self.tell_parent();
            }
            Some(Err(end)) => {
                self.tell_unread(&passed.run.taken);
                self.fail(end);
            }
        }
        false
    }

    /// Sends what the function asks for and is not sent.
    pub(super) fn send(&mut self, passed: Pass) {
        for (timer, after) in passed.run.timers {
            let is_set = self.journal.entries.iter().any(
                |entry| matches!(&entry.what, What::TimerSet { timer: set, .. } if *set == timer),
            );
            if !is_set {
                let until = self.now.saturating_add(after).unwrap_or(Timestamp::MAX);
                self.add(What::TimerSet { timer, until });
            }
        }
        for asked in passed.run.asked {
            let is_wanted = !passed.dropped.contains(&asked.name);
            if is_wanted
                && !self.journal.is_sent(&asked.name)
                && let Err(why) = self.send_first(&asked)
            {
                return self.stuck(format!("the step `{}` cannot be sent: {why}", asked.name));
            }
        }
    }

    pub(super) fn send_first(&mut self, asked: &Asked) -> Result<(), String> {
        let mut message = asked.command.clone()?;
        let fingerprint = Asked::fingerprint(&message);
        // Without the address, which it gets whenever it is sent.
        let send = Asked::stored(&message)?;
        self.address(&mut message, &asked.name, Part::Do, 1);
        let cancel = match asked.cancel.clone() {
            Some(cancel) => {
                let mut cancel = cancel?;
                self.address(&mut cancel, &asked.name, Part::Cancel, 1);
                Some(Asked::stored(&cancel)?)
            }
            None => None,
        };
        let deadline = asked.deadline;
        let deadline =
            deadline.map(|after| self.now.saturating_add(after).unwrap_or(Timestamp::MAX));
        self.add(What::Sent {
            step: asked.name.clone(),
            command: (&*message.envelope.name).into(),
            fingerprint,
            undo: asked.undo,
            deadline,
            retries: asked.retries,
            send: Some(send),
            cancel,
        });
        self.outgoing.push(message);
        Ok(())
    }

    /// Where the answer goes, and what it is an answer to.
    pub(super) fn address(&self, message: &mut Outgoing, step: &str, part: Part, time: u32) {
        let id = StepId {
            saga: self.definition.name().into(),
            key: self.key.into(),
            run: self.journal.run,
            step: step.into(),
            part,
        };
        let id = id.to_string();
        let envelope = &mut message.envelope;
        let is_other =
            |(name, _): &(Box<str>, Box<str>)| **name != *STEP_HEADER && **name != *REPLY_TO_HEADER;
        envelope.headers.retain(is_other);
        let reply_to = self.definition.reply_to().into();
        let headers = [
            (REPLY_TO_HEADER.into(), reply_to),
            (STEP_HEADER.into(), id.as_str().into()),
        ];
        envelope.headers.extend(headers);
        envelope.id = Some(match time {
            1 => MessageId::new(id),
            time => MessageId::new(format!("{id}/{time}")),
        });
        envelope
            .correlation_id
            .clone_from(&self.journal.start.correlation_id);
    }
}
