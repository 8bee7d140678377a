//! Everything that can happen to a saga, tried out: for tests of its function.
//!
//! [`Explorer`] plays the targets of the steps and the broker between. It tries every order in which
//! commands and answers can arrive, every refusal, every deadline that passes, signals at any moment, and
//! answers that come twice, and checks that each ending is legal (promise P6: whatever was done is finished or undone,
//! each effect once, or an operator sees it).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde_json::value::RawValue;
use tidings_core::Outgoing;

use crate::{
    child::Parent,
    definition::Definition,
    journal::{Journal, SagaState, Start, Undo},
    step_id::{Part, STEP_HEADER, StepId},
    turn::{Answer, Arrival, Turn},
};

/// What the target of a step answers to its command.
type Reply = dyn Fn(&StepId, &Outgoing) -> Box<RawValue>;

/// Tries everything that can happen to one saga.
///
/// ```
/// # use tidings_saga::{Explorer, Sagas, Saga, Start};
/// # use tidings_core::{Destination, Message};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
/// # impl Message for OrderPlaced {
/// #     const NAME: &'static str = "order-placed.v1";
/// #     const DESTINATION: Destination = Destination::topic("orders");
/// # }
/// # async fn checkout(order: OrderPlaced, saga: Saga) -> Result<(), ()> { Ok(()) }
/// let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone()).version(1, checkout);
/// let placed = OrderPlaced { order_id: "o-1".into() };
/// let explored = Explorer::new(sagas.define("checkout"), "o-1", Start::of(&placed).unwrap())
///     .replies(|step, command| serde_json::value::to_raw_value("p-1").unwrap())
///     .run();
/// assert!(explored.endings.contains_key("completed"));
/// ```
#[must_use = "call `run`"]
pub struct Explorer {
    definition: Definition,
    key: Box<str>,
    start: Start,
    parent: Option<Parent>,
    reply: Box<Reply>,
    signals: Vec<(Box<str>, Box<RawValue>)>,
    willing: Vec<Box<str>>,
    duplicates: u8,
    states_max: usize,
}

/// What was tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explored {
    /// How many different states there were.
    pub states: usize,
    /// How many of those were endings, by the saga's state.
    pub endings: BTreeMap<&'static str, usize>,
    /// What was in effect at the endings: by the saga's state, the steps that are done and not undone.
    pub in_effect: BTreeSet<(&'static str, Vec<Box<str>>)>,
    /// The names of the commands that were sent. Compare them with what the saga is said to send
    /// ([`Sagas::sends`](crate::Sagas::sends)), which may be more than this start message leads to.
    pub commands: BTreeSet<Box<str>>,
}

impl Explorer {
    /// Everything that can happen to the saga that `start` starts.
    pub fn new(definition: Definition, key: &str, start: Start) -> Self {
        Self {
            definition,
            key: key.into(),
            start,
            parent: None,
            reply: Box::new(|_, _| serde_json::value::RawValue::NULL.to_owned()),
            signals: Vec::new(),
            willing: Vec::new(),
            duplicates: 1,
            states_max: 200_000,
        }
    }

    /// Everything that can happen to a saga that `start` starts as a step of another one. That one may call
    /// it off at any time, have it undone after it was done, and asks more than once.
    pub fn child(definition: Definition, start: Start) -> Self {
        let step = StepId {
            saga: "parent".into(),
            key: "p-1".into(),
            run: 0,
            step: "step".into(),
            part: Part::Do,
        };
        let parent = Parent::new(&step, "parent.tidings.step-answer.v1");
        let key = parent.key();
        Self {
            parent: Some(parent),
            ..Self::new(definition, &key, start)
        }
    }

    /// What the targets of steps answer when they do what they are asked. By default: `null`.
    pub fn replies(
        mut self,
        reply: impl Fn(&StepId, &Outgoing) -> Box<RawValue> + 'static,
    ) -> Self {
        self.reply = Box::new(reply);
        self
    }

    /// This signal may come once, at any moment or never. May be said for several signals.
    pub fn signal(mut self, name: &str, body: Box<RawValue>) -> Self {
        self.signals.push((name.into(), body));
        self
    }

    /// The targets of these steps never refuse them: what comes after a pivot, say, where a refusal makes
    /// the saga stuck.
    pub fn never_refused(mut self, steps: &[&str]) -> Self {
        self.willing
            .extend(steps.iter().map(|step| Box::from(*step)));
        self
    }

    /// How many answers come twice, at most. Default: 1.
    pub fn duplicates(mut self, count: u8) -> Self {
        self.duplicates = count;
        self
    }

    /// How many different states are tried at most. Default: 200,000.
    pub fn states_max(mut self, count: usize) -> Self {
        self.states_max = count;
        self
    }

    /// Tries it.
    ///
    /// # Panics
    ///
    /// When something is not legal, with the way that leads there; and when there are more states than
    /// [`states_max`](Self::states_max).
    #[track_caller]
    pub fn run(self) -> Explored {
        let now = Timestamp::UNIX_EPOCH;
        let start = self.start.clone();
        let turn = match self.parent.clone() {
            None => self.definition.start(&self.key, start, now),
            Some(parent) => self.definition.start_child(start, parent, now),
        };
        let first = World {
            journal: turn.journal.clone(),
            now,
            due: None,
            commands: Vec::new(),
            answers: Vec::new(),
            signals: self.signals.clone(),
            duplicates: self.duplicates,
            targets: BTreeMap::new(),
            told: Vec::new(),
            calls: 0,
            way: Vec::new(),
        };
        let mut explored = Explored::default();
        let mut seen = HashSet::new();
        let mut open = vec![self.after(first, turn)];
        while let Some(world) = open.pop() {
            if !seen.insert(world.print()) {
                continue;
            }
            explored.states += 1;
            for (_, command) in &world.commands {
                let name = &*command.envelope.name;
                if !explored.commands.contains(name) {
                    self.check_declared(&world, name);
                    explored.commands.insert(name.into());
                }
            }
            assert!(
                explored.states <= self.states_max,
                "there are more than {} states; make the saga smaller, or raise `states_max`",
                self.states_max
            );
            let next = self.next(&world);
            if next.is_empty() {
                world.check();
                let label = world.journal.state.label();
                *explored.endings.entry(label).or_default() += 1;
                explored.in_effect.insert((label, world.in_effect()));
            }
            open.extend(next);
            // They may never come: without them it must end as well.
            open.extend(self.signalled(&world));
            open.extend(self.parent_asks(&world));
        }
        explored
    }

    /// A saga that says what it sends says all of it.
    #[track_caller]
    fn check_declared(&self, world: &World, command: &str) {
        let declared = self.definition.sends();
        if !declared.is_empty() && !declared.iter().any(|it| it.name == command) {
            world.fail(&format!(
                "it sends `{command}`, but is not said to; add `.sends::<…>()` to its `Sagas`, so that \
                 the event map shows it"
            ));
        }
    }

    /// A world after a turn.
    fn after(&self, mut world: World, turn: Turn) -> World {
        let written = turn.body;
        if turn.journal.write() != written {
            world.fail("what is stored is not its journal");
        }
        if turn.journal.run > world.journal.run {
            world.check_run();
        }
        world.journal = Journal::read(&written).unwrap_or_else(|error| world.fail(&error));
        if world.journal.write() != written {
            world.fail("its journal does not come back as it was written");
        }
        if world.journal.state == SagaState::Running
            && let Err(why) = self.definition.check(&self.key, &world.journal)
        {
            world.fail(&format!(
                "its function goes another way when it is run again: {why}"
            ));
        }
        world.due = turn.due;
        for told in turn.told {
            let is_done = match told.answer {
                Ok(Answer::Done(_)) => true,
                Ok(Answer::Refused { .. }) => false,
                Err(why) => world.fail(&why),
            };
            world.told.push((told.step.part, is_done));
        }
        for message in turn.outgoing {
            if let Some(id) = message.envelope.header(STEP_HEADER) {
                let step = id
                    .parse()
                    .unwrap_or_else(|error: String| world.fail(&error));
                world.commands.push((step, message));
            }
        }
        world
    }

    fn told(&self, world: &World, what: String, arrival: Arrival) -> World {
        let mut next = world.clone();
        next.way.push(what);
        let journal = world.journal.clone();
        let turn = self
            .definition
            .advance(&self.key, journal, [arrival], world.now);
        self.after(next, turn)
    }

    /// What becomes of it with each signal that has not come.
    fn signalled(&self, world: &World) -> Vec<World> {
        let signals = world.signals.iter().enumerate();
        let after = signals.map(|(place, (signal, body))| {
            let mut before = world.clone();
            before.signals.remove(place);
            let arrival = Arrival::Signal {
                signal: signal.clone(),
                body: body.clone(),
            };
            self.told(&before, format!("the signal `{signal}` arrives"), arrival)
        });
        after.collect()
    }

    /// Everything that can happen next, but for signals.
    fn next(&self, world: &World) -> Vec<World> {
        let mut next = Vec::new();
        for (place, (step, command)) in world.commands.iter().enumerate() {
            for is_willing in [true, false] {
                if !is_willing && self.willing.contains(&step.step) {
                    continue;
                }
                let mut after = world.clone();
                after.commands.remove(place);
                let reply = (self.reply)(step, command);
                let Some(answer) = after.target(step, is_willing, reply) else {
                    continue;
                };
                let word = match &answer {
                    Answer::Done(_) => "does it",
                    Answer::Refused { .. } => "refuses",
                };
                after.way.push(format!("the target of {step} {word}"));
                after.answers.push((step.clone(), answer));
                next.push(after);
            }
        }
        for (place, (step, answer)) in world.answers.iter().enumerate() {
            let arrival = Arrival::Answer {
                run: step.run,
                step: step.step.clone(),
                part: step.part,
                answer: answer.clone(),
            };
            let what = format!("the answer to {step} arrives");
            let mut once = self.told(world, what, arrival);
            if world.duplicates > 0 {
                let mut twice = once.clone();
                twice.duplicates -= 1;
                twice.way.push("and will come once more".into());
                next.push(twice);
            }
            once.answers.remove(place);
            next.push(once);
        }
        if let Some(due) = world.due {
            let mut later = world.clone();
            later.now = world.now.max(due);
            next.push(self.told(&later, format!("it is {due}"), Arrival::Due));
        }
        next
    }
}

impl Explorer {
    /// What the saga may ask whose step this one is.
    fn parent_asks(&self, world: &World) -> Vec<World> {
        if self.parent.is_none() {
            return Vec::new();
        }
        let ask = |part: Part, what: &str| {
            let mut next = self.told(world, what.into(), Arrival::Parent { part });
            if part == Part::Do {
                next.duplicates -= 1;
            }
            next.calls += u8::from(part != Part::Do);
            next
        };
        let mut next = Vec::new();
        if world.duplicates > 0 {
            next.push(ask(Part::Do, "its command comes again"));
        }
        match world.told.last() {
            None if world.calls == 0 => next.push(ask(Part::Cancel, "its parent calls it off")),
            Some((Part::Do | Part::Cancel, true)) if world.calls < 2 => {
                next.push(ask(Part::Undo, "its parent has it undone"));
            }
            _ => {}
        }
        next
    }
}

/// The saga, its targets and what is under way between them.
#[derive(Clone)]
struct World {
    journal: Journal,
    now: Timestamp,
    due: Option<Timestamp>,
    commands: Vec<(StepId, Outgoing)>,
    answers: Vec<(StepId, Answer)>,
    /// That may still come.
    signals: Vec<(Box<str>, Box<RawValue>)>,
    duplicates: u8,
    /// What became of steps at their targets.
    targets: BTreeMap<Box<str>, Effect>,
    /// What its parent was told: to what it asked, and whether it is done.
    told: Vec<(Part, bool)>,
    /// How often its parent called it off.
    calls: u8,
    way: Vec<String>,
}

/// What a target knows of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Effect {
    Done,
    Refused,
    Cancelled,
    Undone,
}

/// A step of a run, as its target knows it.
fn target_of(step: &str, run: u32) -> Box<str> {
    format!("{run}/{step}").into()
}

impl World {
    /// A target with a fence does what it is asked; `None` if this way is none.
    fn target(&mut self, step: &StepId, is_willing: bool, reply: Box<RawValue>) -> Option<Answer> {
        let name = target_of(&step.step, step.run);
        let known = self.targets.get(&name).copied();
        let refused = || Answer::Refused {
            reason: "no".into(),
            for_now: false,
        };
        let (effect, answer) = match (step.part, known) {
            (Part::Do, None) if is_willing => (Effect::Done, Answer::Done(reply)),
            (Part::Do, None) => (Effect::Refused, refused()),
            // What follows is not the target's choice.
            _ if !is_willing => return None,
            (Part::Do, Some(Effect::Done | Effect::Undone)) => (known?, Answer::Done(reply)),
            (Part::Do, Some(Effect::Refused | Effect::Cancelled)) => (known?, refused()),
            (Part::Cancel, None) => (Effect::Cancelled, refused()),
            (Part::Cancel, Some(Effect::Done | Effect::Undone)) => (known?, Answer::Done(reply)),
            (Part::Cancel, Some(Effect::Refused | Effect::Cancelled)) => (known?, refused()),
            (Part::Undo, Some(Effect::Done | Effect::Undone)) => {
                (Effect::Undone, Answer::Done(RawValue::NULL.to_owned()))
            }
            (Part::Undo, _) => self.fail(&format!("`{}` is undone, but was never done", step.step)),
        };
        self.targets.insert(name, effect);
        Some(answer)
    }

    /// It has begun anew: nothing of the run that is over can still be undone.
    fn check_run(&self) {
        for step in self.journal.steps() {
            let name = target_of(step.step, self.journal.run);
            let effect = self.targets.get(&name);
            if step.undo == Undo::ByCommand && effect == Some(&Effect::Done) {
                self.fail(&format!(
                    "`{}` is forgotten, though it can be undone",
                    step.step
                ));
            }
            let is_settled = effect.is_some() && effect != Some(&Effect::Done);
            let is_done = step.done.is_some() || effect == Some(&Effect::Done);
            if !is_settled && !is_done {
                self.fail(&format!("`{}` is forgotten while it is open", step.step));
            }
        }
    }

    /// What its parent was told must be what became of it.
    fn check_told(&self) {
        let asked = match self.journal.parent {
            None => return,
            Some(ref parent) => parent.asked,
        };
        let is_completed = self.journal.state == SagaState::Completed;
        let expected = match asked {
            Part::Do | Part::Cancel => is_completed,
            Part::Undo => !is_completed,
        };
        if !self.told.contains(&(asked, expected)) {
            self.fail(&format!(
                "it is {}, and its parent was told {:?}",
                self.journal.state, self.told
            ));
        }
        let has_pivot = self
            .journal
            .steps()
            .iter()
            .any(|step| step.undo == Undo::Pivot);
        if asked == Part::Undo && is_completed && !has_pivot {
            self.fail("it was to be undone, and is not");
        }
    }

    /// Nothing happens any more: it must have ended as it may.
    fn check(&self) {
        match &self.journal.state {
            SagaState::Completed | SagaState::Compensated => {}
            SagaState::Stuck { reason, .. } => self.fail(&format!("it is stuck: {reason}")),
            state => self.fail(&format!("nothing happens any more, and it is {state}")),
        }
        self.check_told();
        for step in self.journal.steps() {
            let name = step.step;
            if step.is_open() {
                self.fail(&format!("`{name}` is still open"));
            }
            let target = self.targets.get(&target_of(name, self.journal.run));
            let is_there = target == Some(&Effect::Done);
            let is_to_be_undone = step.done.as_ref().is_some_and(|done| {
                done.undo.is_some()
                    && (done.is_late || self.journal.state == SagaState::Compensated)
            });
            if is_there && is_to_be_undone {
                self.fail(&format!("`{name}` was done, and is not undone"));
            }
            let is_kept = step.done.as_ref().is_some_and(|done| !done.is_late);
            if self.journal.state == SagaState::Completed
                && is_kept
                && target == Some(&Effect::Undone)
            {
                self.fail(&format!("`{name}` was undone, though the saga completed"));
            }
        }
    }

    /// The steps that are done and not undone.
    fn in_effect(&self) -> Vec<Box<str>> {
        let done = self.targets.iter().filter(|(_, it)| **it == Effect::Done);
        // Without the number of the run.
        let names = done.map(|(target, _)| target.split_once('/').map_or(&**target, |it| it.1));
        names.map(Into::into).collect()
    }

    /// What tells this state from others.
    fn print(&self) -> Vec<u8> {
        let mut print = self.journal.write();
        let commands = self.commands.iter().map(|(step, _)| step.to_string());
        let answers = self.answers.iter().map(|(step, answer)| {
            let is_done = matches!(answer, Answer::Done(_));
            format!("{step} {is_done}")
        });
        let mut under_way: Vec<String> = commands.chain(answers).collect();
        under_way.sort_unstable();
        let signals: Vec<&str> = self.signals.iter().map(|(signal, _)| &**signal).collect();
        let parent = (&self.told, self.calls);
        let rest = (
            under_way,
            signals,
            &self.targets,
            self.duplicates,
            self.due,
            parent,
        );
        print.extend(format!("{rest:?}").into_bytes());
        print
    }

    fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}\n\nThe way there:\n  {}\n\nIts journal:\n{}",
            self.way.join("\n  "),
            String::from_utf8_lossy(&self.journal.write())
        )
    }
}
