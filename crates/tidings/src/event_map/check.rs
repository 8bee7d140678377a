//! What may be wrong with an event map.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Emission, EventMap, HandlerMap, MessageKind, ServiceMap};

/// Something on an event map that may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The message that it is about.
    pub about: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does not work.
    Error,
    /// It works, but is probably not meant.
    Warning,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", self.message)
    }
}

impl EventMap {
    /// What may be wrong, errors first. The map must be whole: on the map of one service alone, whatever
    /// it sends is handled by nobody.
    ///
    /// - Error: a command that no service handles, or that two do.
    /// - Warning: an event that nobody handles. It stays in the outbox of its sender, visibly, until
    ///   somebody does. A program that is not made with Tidings can be put on the map as
    ///   [`ServiceMap::outside`].
    /// - Warning: a message that is handled and that nobody sends.
    /// - Warning: a cycle without an end: each handler on it sends the next message whenever it succeeds,
    ///   so that only errors stop it. What an `Option` or a `Vec` holds, what is declared, and what a saga
    ///   sends may be left out, and so may end a cycle; whether it does, types do not tell.
    pub fn check(&self) -> Vec<Finding> {
        let messages = Messages::of(self);
        let mut findings = Vec::new();
        for (name, (kind, senders)) in &messages.senders {
            let handlers = messages.handlers.get(name);
            match kind {
                MessageKind::Reply => {}
                MessageKind::Event if handlers.is_none() => findings.push(unheard(name, senders)),
                MessageKind::Event => {}
                MessageKind::Command if handlers.is_none() => {
                    findings.push(undone(name, senders, messages.target(name)));
                }
                MessageKind::Command => {}
            }
        }
        for (name, (kind, handlers)) in &messages.handlers {
            if *kind == MessageKind::Command && handlers.len() > 1 {
                findings.push(done_twice(name, handlers));
            }
            if !messages.senders.contains_key(name) {
                findings.push(unsent(name, handlers));
            }
        }
        findings.extend(self.cycles());
        findings.sort();
        findings
    }

    /// One cycle for each set of messages that lead to each other.
    fn cycles(&self) -> Vec<Finding> {
        // From each message to those that always follow from it.
        let mut follow: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let handlers = self.services().iter().flat_map(|it| &it.handlers);
        for handler in handlers {
            let always = handler.emits.iter().filter(|it| it.always);
            let next = always.filter(|it| it.kind != MessageKind::Reply);
            for name in std::iter::once(&handler.message).chain(&handler.older) {
                let follow = follow.entry(name).or_default();
                follow.extend(next.clone().map(|it| &*it.message));
            }
        }
        let mut findings = Vec::new();
        let mut told: BTreeSet<&str> = BTreeSet::new();
        for first in follow.keys() {
            if !told.contains(first)
                && let Some(way) = way_back(first, &follow)
            {
                findings.push(endless(&way));
                told.extend(way);
            }
        }
        findings
    }
}

/// The shortest way from a message to itself.
fn way_back<'a>(
    first: &'a str,
    follow: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> Option<Vec<&'a str>> {
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = std::collections::VecDeque::from([first]);
    while let Some(name) = open.pop_front() {
        for next in follow.get(name).into_iter().flatten() {
            if *next == first {
                let mut way = vec![name];
                while let Some(before) = from.get(way[way.len() - 1]) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if !from.contains_key(next) {
                from.insert(next, name);
                open.push_back(next);
            }
        }
    }
    None
}

/// Who sends and handles what.
#[derive(Default)]
struct Messages<'a> {
    senders: BTreeMap<&'a str, (MessageKind, BTreeSet<&'a str>)>,
    handlers: BTreeMap<&'a str, (MessageKind, BTreeSet<&'a str>)>,
    targets: BTreeMap<&'a str, &'a str>,
}

impl<'a> Messages<'a> {
    fn of(map: &'a EventMap) -> Self {
        let mut messages = Self::default();
        for service in map.services() {
            for emission in sent(service) {
                messages.sent(service, emission);
            }
            for handler in &service.handlers {
                for name in std::iter::once(&handler.message).chain(&handler.older) {
                    let (_, handlers) = messages
                        .handlers
                        .entry(name)
                        .or_insert((handler.kind, BTreeSet::new()));
                    handlers.insert(&service.name);
                }
            }
        }
        // Older messages need no sender in the programs of today.
        for service in map.services() {
            for older in service.handlers.iter().flat_map(|it| &it.older) {
                let senders = messages.senders.entry(older);
                senders.or_insert((MessageKind::Event, BTreeSet::new()));
            }
        }
        messages
    }

    fn sent(&mut self, service: &'a ServiceMap, emission: &'a Emission) {
        let (_, senders) = self
            .senders
            .entry(&emission.message)
            .or_insert((emission.kind, BTreeSet::new()));
        senders.insert(&service.name);
        if let Some(to) = &emission.to {
            self.targets.insert(&emission.message, to);
        }
    }

    fn target(&self, name: &str) -> &'a str {
        self.targets.get(name).copied().unwrap_or("its target")
    }
}

/// Everything that a service sends.
fn sent(service: &ServiceMap) -> impl Iterator<Item = &Emission> {
    let by_handlers = service
        .handlers
        .iter()
        .flat_map(|it: &HandlerMap| &it.emits);
    let by_sagas = service
        .sagas
        .iter()
        .flat_map(|it| it.sends.iter().chain(&it.ends));
    let by_clock = service.schedules.iter().map(|it| &it.emits);
    service
        .emits
        .iter()
        .chain(by_handlers)
        .chain(by_sagas)
        .chain(by_clock)
}

fn unheard(name: &str, senders: &BTreeSet<&str>) -> Finding {
    Finding {
        severity: Severity::Warning,
        about: name.to_owned(),
        message: format!(
            "nobody handles the event `{name}`, which {} sends: it waits in the outbox until somebody \
             does; handle it, do not send it, let it be dropped (`unrouted = \"drop\"` beside its \
             name), or put the program that listens on the map as `ServiceMap::outside`",
            list(senders)
        ),
    }
}

fn undone(name: &str, senders: &BTreeSet<&str>, target: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        about: name.to_owned(),
        message: format!(
            "no service handles the command `{name}`, which {} sends to `{target}`; give `{target}` a \
             handler for it, and put `{target}` on the map",
            list(senders)
        ),
    }
}

fn done_twice(name: &str, handlers: &BTreeSet<&str>) -> Finding {
    Finding {
        severity: Severity::Error,
        about: name.to_owned(),
        message: format!(
            "the command `{name}` is handled by {}, and a command has one target; leave it to one of \
             them, or make it an event",
            list(handlers)
        ),
    }
}

fn unsent(name: &str, handlers: &BTreeSet<&str>) -> Finding {
    Finding {
        severity: Severity::Warning,
        about: name.to_owned(),
        message: format!(
            "nobody sends `{name}`, which {} handles; if something does without returning it from a \
             handler, declare that with `.emits::<…>()`; if a program does that is not made with \
             Tidings, put it on the map as `ServiceMap::outside`",
            list(handlers)
        ),
    }
}

fn endless(way: &[&str]) -> Finding {
    let names: Vec<String> = way.iter().map(|name| format!("`{name}`")).collect();
    let way_back = names.join(" → ");
    Finding {
        severity: Severity::Warning,
        about: way[0].to_owned(),
        message: format!(
            "{way_back} → {} is a cycle without an end: each handler on it always sends the next \
             message; let one of them return an `Option`, and `None` when there is nothing more to do",
            names[0]
        ),
    }
}

fn list(names: &BTreeSet<&str>) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(" and ")
}
