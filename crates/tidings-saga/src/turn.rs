//! What becomes of a saga when something arrives: the journal afterwards, and what is sent.
//!
//! Nothing here does I/O or reads a clock: whoever calls it commits the journal and the messages
//! together, and calls it again when something else arrives or the time has come.

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use tidings_core::{MessageId, Outgoing, REPLY_TO_HEADER};

use crate::{
    definition::Definition,
    function::{Pass, changed, mismatch, pass},
    journal::{BYTES_MAX, ENTRIES_MAX, Entry, Journal, Start, State, Stored, Undo, What},
    progress::{Done, Progress},
    run::Asked,
    step_id::{Part, STEP_HEADER, StepId},
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
        /// The step.
        step: Box<str>,
        /// What it was asked.
        part: Part,
        /// What it says.
        answer: Answer,
    },
    /// The command of a step is a dead letter.
    DeadLetter {
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
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
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
    /// What is sent.
    pub outgoing: Vec<Outgoing>,
    /// When it should be told that it is [`Due`](Arrival::Due).
    pub due: Option<Timestamp>,
    /// What arrived and changed nothing, in words: answers that came twice, signals to a saga that has
    /// ended.
    pub ignored: Vec<String>,
    /// Steps whose commands would say something else now than what was sent: the code was changed.
    pub changed: Vec<Box<str>>,
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
}

impl Definition {
    /// The first turn of a saga.
    pub fn start(&self, key: &str, start: Start, now: Timestamp) -> Turn {
        let journal = Journal::new(self.newest(), start, now);
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
        let State::Running = journal.state else {
            return Ok(());
        };
        let taking = Taking::new(self, key, journal.clone(), journal.started);
        let passed = taking.pass(journal.entries.len())?;
        match mismatch(journal, &passed) {
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
        }
    }

    fn end(mut self) -> Turn {
        let is_full =
            self.journal.entries.len() > ENTRIES_MAX || self.journal.write().len() > BYTES_MAX;
        if is_full && matches!(self.journal.state, State::Running | State::Compensating) {
            self.stuck(format!(
                "its journal is full (at most {ENTRIES_MAX} entries and {BYTES_MAX} bytes); send \
                 references instead of what is large, and make it several sagas"
            ));
        }
        Turn {
            due: self.due(),
            journal: self.journal,
            outgoing: self.outgoing,
            ignored: self.ignored,
            changed: self.changed,
        }
    }

    /// When something is to be done without an arrival.
    fn due(&self) -> Option<Timestamp> {
        match self.journal.state {
            State::Running => {}
            State::Compensating => return Some(self.patience_ends()),
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

    /// When a compensation that waits for an answer is stuck.
    fn patience_ends(&self) -> Timestamp {
        let last = self.journal.entries.last();
        let last = last.map_or(self.journal.started, |entry| entry.at);
        let ends = last.saturating_add(self.definition.stuck_after());
        ends.unwrap_or(Timestamp::MAX)
    }

    fn add(&mut self, what: What) {
        let at = self.now;
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
            State::Compensating => true,
            State::Stuck {
                is_waiting: false, ..
            } => return, // For the first reason.
            State::Stuck {
                while_compensating, ..
            } => *while_compensating,
            _ => false,
        };
        self.add(What::Stuck {
            reason: reason.clone(),
        });
        self.journal.state = State::Stuck {
            reason,
            while_compensating,
            is_waiting,
        };
    }

    /// It is not stuck any more.
    fn resume(&mut self) {
        if let State::Stuck {
            while_compensating, ..
        } = self.journal.state
        {
            self.journal.state = match while_compensating {
                true => State::Compensating,
                false => State::Running,
            };
        }
    }

    fn ignore(&mut self, what: impl Into<String>) {
        self.ignored.push(what.into());
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Answer { step, part, answer } => self.answered(&step, part, answer),
            Arrival::DeadLetter { step, part, reason } => self.dead(&step, part, &reason),
            Arrival::Signal { signal, body } => match self.journal.state.is_ended() {
                true => self.ignore(format!("the signal `{signal}` came after the end")),
                false => {
                    self.add(What::Signal { signal, body });
                    self.go_on();
                }
            },
            Arrival::Due => self.fire(),
            Arrival::Operator { who, why, action } => self.operate(who, why, action),
        }
    }

    /// Whatever the state is, what can be done now is done.
    fn go_on(&mut self) {
        match self.journal.state {
            State::Running => self.run(),
            State::Compensating => self.compensate(),
            State::Completed | State::Compensated | State::Abandoned | State::Stuck { .. } => {}
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
                State::Stuck {
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
                let is_running = self.journal.state == State::Running;
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
        let before = self
            .journal
            .failed_at()
            .unwrap_or(self.journal.entries.len());
        let passed = self.pass(before);
        let is_running = self.journal.state == State::Running;
        // Nobody waits for it: its deadline has passed, or the function went another way, or has
        // ended.
        let is_late = match &passed {
            _ if self.journal.state == State::Completed => true,
            Ok(passed) => is_running && (has_timed_out || passed.dropped.contains(&step)),
            Err(_) => has_timed_out,
        };
        let undo = passed.and_then(|passed| passed.undo_of(&step, &reply));
        let (undo, trouble) = match undo {
            Ok(undo) => (undo, None),
            Err(why) => (None, Some(why)),
        };
        let undo = undo.map(|mut undo| {
            self.address(&mut undo, &step, Part::Undo, 1);
            Asked::stored(&undo)
        });
        let (undo, trouble) = match undo.transpose() {
            Ok(undo) => (undo, trouble),
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
        self.go_on();
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

    /// What the time has come for.
    fn fire(&mut self) {
        loop {
            let now = self.now;
            match self.journal.state {
                State::Running => {}
                State::Compensating if self.patience_ends() <= now => {
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

    fn waits_for(&self) -> String {
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

    fn send_again(&mut self, name: &str) {
        let message = match self.journal.step(name) {
            Some(step) => step.send.message().map(|message| (message, step.sent)),
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

    fn pass(&self, count: usize) -> Result<Pass, String> {
        let function = self.definition.function(self.journal.version)?;
        let id = self.definition.id(self.key, self.journal.run);
        pass(function, &id, &self.journal, count)
    }

    /// Runs the function as far as it goes.
    fn run(&mut self) {
        let passed = self.pass(self.journal.entries.len());
        let passed = passed.and_then(|passed| match mismatch(&self.journal, &passed) {
            Some(why) => Err(why),
            None => Ok(passed),
        });
        let passed = match passed {
            Ok(passed) => passed,
            Err(why) => return self.stuck(why),
        };
        for step in changed(&self.journal, &passed) {
            if !self.changed.contains(&step) {
                self.changed.push(step);
            }
        }
        for patch in &passed.run.patched {
            let patch = patch.clone();
            self.add(What::Patched { patch });
        }
        match passed.ended {
            None => self.send(passed),
            Some(Ok(messages)) => {
                self.outgoing.extend(messages);
                self.journal.state = State::Completed;
                self.add(What::Ended);
            }
            Some(Err(messages)) => self.fail(&messages),
        }
    }

    /// Sends what the function asks for and is not sent.
    fn send(&mut self, passed: Pass) {
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
                && self.journal.step(&asked.name).is_none()
                && let Err(why) = self.send_first(&asked)
            {
                return self.stuck(format!("the step `{}` cannot be sent: {why}", asked.name));
            }
        }
    }

    fn send_first(&mut self, asked: &Asked) -> Result<(), String> {
        let mut message = asked.command.clone()?;
        let fingerprint = Asked::fingerprint(&message);
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
            send: Asked::stored(&message)?,
            cancel,
        });
        self.outgoing.push(message);
        Ok(())
    }

    /// Where the answer goes, and what it is an answer to.
    fn address(&self, message: &mut Outgoing, step: &str, part: Part, time: u32) {
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

    /// The function failed.
    fn fail(&mut self, messages: &[Outgoing]) {
        let steps = self.journal.steps();
        let pivot = steps
            .iter()
            .find(|step| step.undo == Undo::Pivot && step.done.is_some());
        if let Some(pivot) = pivot {
            let why = format!(
                "its function failed after `{}`, which cannot be undone",
                pivot.step
            );
            return self.stuck(why);
        }
        match messages.iter().map(Stored::new).collect() {
            Ok(messages) => self.add(What::Failed { messages }),
            Err(error) => {
                return self.stuck(format!("what it sends at its end cannot be kept: {error}"));
            }
        }
        self.journal.state = State::Compensating;
        self.compensate();
    }

    /// Undoes what can be undone now.
    fn compensate(&mut self) {
        let steps = self.journal.steps();
        let open: Vec<_> = steps.iter().filter(|step| step.is_open()).collect();
        if !open.is_empty() {
            let off = open.iter().filter(|step| step.put_off.is_some());
            let off: Vec<Box<str>> = off.map(|step| step.step.into()).collect();
            let cancel = open
                .iter()
                .filter(|step| !step.is_cancel_sent && step.put_off.is_none());
            let cancel = cancel.filter_map(|step| Some((step.step.into(), step.cancel?.message())));
            let cancel: Vec<(Box<str>, Result<Outgoing, String>)> = cancel.collect();
            let is_over = off.len() == open.len();
            for step in off {
                let reason = "the saga failed before it was sent again".into();
                self.add(What::Refused { step, reason });
            }
            for (step, message) in cancel {
                match message {
                    Ok(message) => {
                        self.add(What::CancelSent { step });
                        self.outgoing.push(message);
                    }
                    Err(why) => {
                        return self.stuck(format!("what cancels `{step}` cannot be read: {why}"));
                    }
                }
            }
            if !is_over {
                return;
            }
            return self.compensate();
        }
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
    fn undo(&mut self, name: &str) {
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
    fn undone(&mut self) {
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
                self.journal.state = State::Compensated;
                self.add(What::Ended);
            }
            Err(why) => self.stuck(format!("what it sends at its end cannot be read: {why}")),
        }
    }

    fn operate(&mut self, who: Box<str>, why: Box<str>, action: Action) {
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
                if self.journal.failed_at().is_none() {
                    self.add(What::Failed {
                        messages: Vec::new(),
                    });
                }
                self.journal.state = State::Compensating;
                self.compensate();
            }
            Action::GiveUp => {
                self.journal.state = State::Abandoned;
                self.add(What::Ended);
            }
        }
    }

    fn has_something_out(&self) -> bool {
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
    fn retry(&mut self) {
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

    /// Makes the undos that could not be made when their steps were done.
    fn complete_undos(&mut self) -> Result<(), String> {
        let steps = self.journal.steps();
        let lacking = steps.iter().filter(|step| step.lacks_undo());
        let lacking: Vec<(Box<str>, usize)> = lacking
            .filter_map(|step| Some((step.step.into(), step.done.as_ref()?.place)))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let passed = self.pass(
            self.journal
                .failed_at()
                .unwrap_or(self.journal.entries.len()),
        )?;
        for (name, place) in lacking {
            let What::Done { reply, .. } = &self.journal.entries[place].what else {
                continue;
            };
            let made = passed.undo_of(&name, reply)?;
            let Some(mut made) = made else { continue };
            self.address(&mut made, &name, Part::Undo, 1);
            let made = Asked::stored(&made)?;
            if let What::Done { undo, .. } = &mut self.journal.entries[place].what {
                *undo = Some(made);
            }
        }
        Ok(())
    }

    fn answered_by_hand(&mut self, name: &str, answer: Answer) {
        match self.journal.step(name) {
            None => self.ignore(format!("there is no step `{name}`, or it was never sent")),
            Some(step) if step.is_open() => self.answered(name, Part::Do, answer),
            Some(step) if step.done.as_ref().is_some_and(|done| done.is_undo_out) => {
                self.answered(name, Part::Undo, answer);
            }
            Some(_) => self.ignore(format!("`{name}` does not wait for an answer")),
        }
    }

    fn skip(&mut self, name: &str) {
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

impl Pass {
    /// The command that undoes a step with this reply, if it is undone at all.
    fn undo_of(&self, step: &str, reply: &RawValue) -> Result<Option<Outgoing>, String> {
        let Some(asked) = self.run.asked.iter().find(|asked| *asked.name == *step) else {
            return Err(format!("the function does not ask for `{step}` (any more)"));
        };
        let Some(make) = &asked.make_undo else {
            return Ok(None);
        };
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make(reply)));
        made.unwrap_or_else(|_| Err("it panicked".into())).map(Some)
    }
}

impl Journal {
    /// The place of the entry that says that the function failed.
    fn failed_at(&self) -> Option<usize> {
        let is_failed = |entry: &Entry| matches!(entry.what, What::Failed { .. });
        self.entries.iter().position(is_failed)
    }
}

impl What {
    /// Among what is due at the same time.
    fn order(&self) -> (u8, Box<str>) {
        match self {
            Self::TimedOut { step } => (0, step.clone()),
            Self::Fired { timer } => (1, timer.clone()),
            what => (2, what.step().unwrap_or_default().into()),
        }
    }
}
