//! What becomes of a saga when something arrives: the journal afterwards, and what is sent.
//!
//! Nothing here does I/O or reads a clock: whoever calls it commits the journal and the messages
//! together, and calls it again when something else arrives or the time has come.

mod anew;
mod child;
mod forward;
mod operator;
mod time;
mod undo;

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidings_core::Outgoing;

use crate::{
    child::Told,
    definition::Definition,
    function::mismatch,
    journal::{BYTES_MAX, ENTRIES_MAX, Entry, Journal, SagaState, Start, What},
    run::Asked,
    step_id::Part,
};

/// The first time that a step which was refused for the moment is left alone; doubled each time.
const PUT_OFF: SignedDuration = SignedDuration::from_secs(1);

/// The longest such time.
const PUT_OFF_MAX: SignedDuration = SignedDuration::from_mins(5);

/// Something for a saga.
#[derive(Debug, Clone)]
pub enum Arrival {
    /// The target of a step has answered.
    Answer {
        /// In which run it was asked.
        run: u32,
        /// The step.
        step: Box<str>,
        /// What it was asked.
        part: Part,
        /// What it says.
        answer: Answer,
    },
    /// The command of a step is a dead letter.
    DeadLetter {
        /// In which run it was sent.
        run: u32,
        /// The step.
        step: Box<str>,
        /// What its target was asked.
        part: Part,
        /// Why.
        reason: Box<str>,
    },
    /// A signal.
    Signal {
        /// Its name.
        signal: Box<str>,
        /// What it says.
        body: Box<RawValue>,
    },
    /// The time has come that [`Turn::due`] said.
    Due,
    /// The saga whose step this one is asks again, or calls it off.
    Parent {
        /// What it asks.
        part: Part,
    },
    /// An operator does something.
    Operator {
        /// Who.
        who: Box<str>,
        /// What for.
        why: Box<str>,
        /// What.
        action: Action,
    },
}

/// What the target of a step says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done; to a cancellation: it was done before, with this reply.
    Done(Box<RawValue>),
    /// It is not done, and will not be; to a cancellation: it never will be.
    Refused {
        /// Why, for people.
        reason: Box<str>,
        /// It may be asked again later.
        for_now: bool,
    },
}

/// What an operator may do to a saga that is stuck.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Try again what failed: the function, a command that is a dead letter, an undo.
    Retry,
    /// Give the answer of a step by hand.
    Answer(Box<str>, Answer),
    /// A step needs no undoing any more: it was undone by hand.
    Skip(Box<str>),
    /// Undo everything now, without the function.
    Compensate,
    /// Leave it as it is, for good.
    GiveUp,
}

/// What is to be committed.
#[derive(Debug)]
pub struct Turn {
    /// The journal now.
    pub journal: Journal,
    /// The same as it is stored: what [`Journal::write`] makes of it.
    pub body: Vec<u8>,
    /// What is sent.
    pub outgoing: Vec<Outgoing>,
    /// When it should be told that it is [`Due`](Arrival::Due).
    pub due: Option<Timestamp>,
    /// What arrived and changed nothing, in words: answers that came twice, signals to a saga that has
    /// ended.
    pub ignored: Vec<String>,
    /// Steps whose commands would say something else now than what was sent: the code was changed.
    pub changed: Vec<Box<str>>,
    /// What the saga is told whose step this one is.
    pub told: Vec<Told>,
    /// The commands of steps that were settled, and how long after they were sent.
    pub settled: Vec<(Box<str>, SignedDuration)>,
    /// How many answers came for which nobody waits any more.
    pub late_count: u64,
    /// It became stuck because its function goes another way than its journal says.
    pub is_mismatch: bool,
}

impl Turn {
    /// This turn and the next one of the same saga, as one.
    pub fn then(mut self, next: Self) -> Self {
        self.journal = next.journal;
        self.body = next.body;
        self.due = next.due;
        self.outgoing.extend(next.outgoing);
        self.ignored.extend(next.ignored);
        self.changed.extend(next.changed);
        self.told.extend(next.told);
        self.settled.extend(next.settled);
        self.late_count += next.late_count;
        self.is_mismatch |= next.is_mismatch;
        self
    }
}

/// A turn under way.
struct Taking<'a> {
    definition: &'a Definition,
    key: &'a str,
    now: Timestamp,
    journal: Journal,
    outgoing: Vec<Outgoing>,
    ignored: Vec<String>,
    changed: Vec<Box<str>>,
    told: Vec<Told>,
    settled: Vec<(Box<str>, SignedDuration)>,
    late_count: u64,
    is_mismatch: bool,
}

impl Definition {
    /// The first turn of a saga.
    pub fn start(&self, key: &str, start: Start, now: Timestamp) -> Turn {
        let journal = Journal::new(self.newest(), start, None, now);
        let mut taking = Taking::new(self, key, journal, now);
        taking.run();
        taking.end()
    }

    /// The next turn of a saga. Whatever arrived is kept, whether the function can go on or not.
    pub fn advance(
        &self,
        key: &str,
        journal: Journal,
        arrivals: impl IntoIterator<Item = Arrival>,
        now: Timestamp,
    ) -> Turn {
        let mut taking = Taking::new(self, key, journal, now);
        for arrival in arrivals {
            taking.arrive(arrival);
        }
        taking.end()
    }

    /// Whether the function still goes the way that a journal says it went.
    ///
    /// # Errors
    ///
    /// Where it does not.
    pub fn check(&self, key: &str, journal: &Journal) -> Result<(), String> {
        let SagaState::Running = journal.state else {
            return Ok(());
        };
        let taking = Taking::new(self, key, journal.clone(), journal.started);
        let passed = taking.pass(journal.entries.len())?;
        match mismatch(journal, &journal.steps(), &passed) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

impl<'a> Taking<'a> {
    fn new(definition: &'a Definition, key: &'a str, journal: Journal, now: Timestamp) -> Self {
        Self {
            definition,
            key,
            now,
            journal,
            outgoing: Vec::new(),
            ignored: Vec::new(),
            changed: Vec::new(),
            told: Vec::new(),
            settled: Vec::new(),
            late_count: 0,
            is_mismatch: false,
        }
    }

    fn end(mut self) -> Turn {
        let mut body = self.journal.write();
        let bytes = body.len() - self.journal.start.body.get().len();
        // Undoing has as much room again, or a saga whose journal is full could not be undone.
        let room = match self.journal.state {
            SagaState::Running => 1,
            SagaState::Compensating => 2,
            _ => usize::MAX,
        };
        let is_over = |is: usize, max: usize| is > max.saturating_mul(room);
        if is_over(self.journal.entries.len(), ENTRIES_MAX) || is_over(bytes, BYTES_MAX) {
            self.stuck(format!(
                "its journal is full (at most {ENTRIES_MAX} entries, and {BYTES_MAX} bytes \
                 beside the message that started it); send \
                 references instead of what is large, and make it several sagas"
            ));
            body = self.journal.write();
        }
        Turn {
            due: self.due(),
            journal: self.journal,
            body,
            outgoing: self.outgoing,
            ignored: self.ignored,
            changed: self.changed,
            told: self.told,
            settled: self.settled,
            late_count: self.late_count,
            is_mismatch: self.is_mismatch,
        }
    }

    fn add(&mut self, what: What) {
        let at = self.now;
        if let What::Done { step, .. } | What::Refused { step, .. } | What::Cancelled { step } =
            &what
        {
            if let Some(sent) = self.journal.step(step) {
                let took = at.duration_since(sent.sent_at);
                let command = sent.command.into();
                self.settled.push((command, took));
            }
            self.journal.settle(step);
        }
        self.late_count += u64::from(matches!(what, What::Done { is_late: true, .. }));
        self.journal.entries.push(Entry { at, what });
    }

    /// An operator has to look.
    fn stuck(&mut self, reason: impl Into<Box<str>>) {
        self.stop(reason.into(), false);
    }

    /// The same; it goes on by itself if the answer comes after all.
    fn stuck_waiting(&mut self, reason: impl Into<Box<str>>) {
        self.stop(reason.into(), true);
    }

    fn stop(&mut self, reason: Box<str>, is_waiting: bool) {
        let while_compensating = match &self.journal.state {
            SagaState::Compensating => true,
            SagaState::Stuck {
                is_waiting: false, ..
            } => return, // For the first reason.
            SagaState::Stuck {
                while_compensating, ..
            } => *while_compensating,
            _ => false,
        };
        self.add(What::Stuck {
            reason: reason.clone(),
        });
        self.journal.state = SagaState::Stuck {
            reason,
            while_compensating,
            is_waiting,
        };
    }

    /// It is not stuck any more.
    fn resume(&mut self) {
        if let SagaState::Stuck {
            while_compensating, ..
        } = self.journal.state
        {
            self.journal.state = match while_compensating {
                true => SagaState::Compensating,
                false => SagaState::Running,
            };
        }
    }

    fn ignore(&mut self, what: impl Into<String>) {
        self.ignored.push(what.into());
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Answer { run, step, .. } | Arrival::DeadLetter { run, step, .. }
                if run != self.journal.run =>
            {
                self.ignore(format!(
                    "an answer to `{step}` of the run {run}, which is over"
                ));
            }
            Arrival::Answer {
                step, part, answer, ..
            } => self.answered(&step, part, answer),
            Arrival::DeadLetter {
                step, part, reason, ..
            } => self.dead(&step, part, &reason),
            Arrival::Signal { signal, body } => self.signal(signal, body),
            Arrival::Due => self.fire(),
            Arrival::Parent { part } => self.asked(part),
            Arrival::Operator { who, why, action } => self.operate(who, why, action),
        }
    }

    fn signal(&mut self, signal: Box<str>, body: Box<RawValue>) {
        match &self.journal.state {
            state if state.is_ended() => {
                self.ignore(format!("the signal `{signal}` came after the end"));
            }
            SagaState::Compensating
            | SagaState::Stuck {
                while_compensating: true,
                ..
            } => {
                self.ignore(format!("the signal `{signal}` came while it is undone"));
                self.add(What::Signal { signal, body });
            }
            _ => {
                self.add(What::Signal { signal, body });
                self.go_on();
            }
        }
    }

    /// The function has ended: signals that it did not take are not taken any more.
    fn tell_unread(&mut self, taken: &HashMap<Box<str>, usize>) {
        let unread: Vec<String> = self
            .journal
            .unread(taken)
            .filter_map(|entry| {
                let What::Signal { signal, .. } = &entry.what else {
                    return None;
                };
                Some(format!("the signal `{signal}` was not awaited"))
            })
            .collect();
        self.ignored.extend(unread);
    }

    /// The same when the function was not asked.
    fn tell_unread_without(&mut self) {
        let passed = self.pass(self.journal.entries.len());
        // If it cannot say what it took, it took nothing that is known of.
        let taken = passed.map(|passed| passed.run.taken).unwrap_or_default();
        self.tell_unread(&taken);
    }

    /// Whatever the state is, what can be done now is done.
    fn go_on(&mut self) {
        match self.journal.state {
            SagaState::Running => self.run(),
            SagaState::Compensating => self.compensate(),
            SagaState::Completed
            | SagaState::Compensated
            | SagaState::Abandoned
            | SagaState::Stuck { .. } => {}
        }
    }

    fn answered(&mut self, name: &str, part: Part, answer: Answer) {
        let Some(step) = self.journal.step(name) else {
            return self.ignore(format!("an answer to `{name}`, which was never sent"));
        };
        let is_open = step.is_open();
        let (has_timed_out, retries, sent) = (step.has_timed_out, step.retries, step.sent);
        let done = step.done.as_ref();
        let is_undo_out = done.is_some_and(|done| done.is_undo_out);
        let step: Box<str> = name.into();
        let is_awaited = match part {
            Part::Undo => is_undo_out,
            Part::Do | Part::Cancel => is_open,
        };
        if is_awaited
            && matches!(
                self.journal.state,
                SagaState::Stuck {
                    is_waiting: true,
                    ..
                }
            )
        {
            self.resume();
        }
        match (part, answer) {
            (Part::Undo, _) if !is_undo_out => {
                self.ignore(format!("an answer to the undoing of `{step}` came twice"));
            }
            (Part::Undo, Answer::Done(_)) => {
                self.add(What::Undone { step });
                self.go_on();
            }
            (Part::Undo, Answer::Refused { reason, .. }) => {
                let why = format!("`{step}` cannot be undone: {reason}");
                self.add(What::UndoRefused { step, reason });
                self.stuck(why);
            }
            (Part::Do | Part::Cancel, _) if !is_open => {
                self.ignore(format!("an answer to `{step}` came twice"));
            }
            (Part::Cancel, Answer::Refused { .. }) => {
                self.add(What::Cancelled { step });
                self.go_on();
            }
            (Part::Do | Part::Cancel, Answer::Done(reply)) => self.done(step, reply, has_timed_out),
            (Part::Do, Answer::Refused { reason, for_now }) => {
                let is_running = self.journal.state == SagaState::Running;
                if for_now && retries > 0 && is_running && !has_timed_out {
                    let pause = PUT_OFF * 2_i32.saturating_pow(sent.saturating_sub(1).min(16));
                    let until = self.now.saturating_add(pause.min(PUT_OFF_MAX));
                    self.add(What::PutOff {
                        step,
                        reason,
                        until: until.unwrap_or(Timestamp::MAX),
                    });
                } else {
                    self.add(What::Refused { step, reason });
                    self.go_on();
                }
            }
        }
    }

    /// A step is done. Its undo is made now, from its reply.
    fn done(&mut self, step: Box<str>, reply: Box<RawValue>, has_timed_out: bool) {
        let is_running = self.journal.state == SagaState::Running;
        let count = self.journal.entries.len();
        let before = self.journal.failed_at().unwrap_or(count);
        // It goes on afterwards, and sees this answer too.
        let goes_on = is_running && before == count;
        let passing = self.passing(before, !goes_on);
        // Nobody waits for it: its deadline has passed, or the function went another way, begins
        // anew, or has ended.
        let is_late = match &passing {
            _ if self.journal.state == SagaState::Completed => true,
            Ok(passing) => {
                let is_dropped = passing.is_dropped(&step) || passing.begins_anew();
                is_running && (has_timed_out || is_dropped)
            }
            Err(_) => has_timed_out,
        };
        self.is_mismatch |= passing.as_ref().is_ok_and(|it| !it.asks_for(&step));
        let undo = match &passing {
            Ok(passing) => passing.undo_of(&step, &reply),
            Err(why) => Err(why.clone()),
        };
        let undo = undo.and_then(|undo| undo.as_ref().map(Asked::stored).transpose());
        let (undo, trouble) = match undo {
            Ok(undo) => (undo, None),
            Err(why) => (None, Some(why)),
        };
        let is_undone_now = is_late && undo.is_some();
        self.add(What::Done {
            step: step.clone(),
            reply,
            undo,
            is_late,
        });
        if let Some(why) = trouble {
            return self.stuck(format!(
                "the command that undoes `{step}` cannot be made: {why}"
            ));
        }
        if is_undone_now {
            self.undo(&step);
        }
        match goes_on && self.journal.state == SagaState::Running {
            true => self.run_on(passing),
            false => self.go_on(),
        }
    }

    /// The command of a step was given up by its target: nobody knows how far it got.
    fn dead(&mut self, name: &str, part: Part, reason: &str) {
        let Some(step) = self.journal.step(name) else {
            return self.ignore(format!("a dead letter of `{name}`, which was never sent"));
        };
        let is_awaited = match part {
            Part::Do | Part::Cancel => step.is_open(),
            Part::Undo => step.done.is_some_and(|done| done.is_undo_out),
        };
        match is_awaited {
            true => {
                let what = match part {
                    Part::Do => "the command of",
                    Part::Undo => "what undoes",
                    Part::Cancel => "what cancels",
                };
                self.stuck_waiting(format!("{what} `{name}` is a dead letter: {reason}"));
            }
            false => self.ignore(format!("a dead letter of `{name}`, which has ended")),
        }
    }
}
