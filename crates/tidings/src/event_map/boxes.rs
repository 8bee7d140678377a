//! What pictures of an event map show: boxes of services, and the messages between them.
//!
//! A service has one box for all of its handlers that send the same, so that the picture shows what
//! follows from what: an answer of payment leads to a confirmation, and its refund only to a note. What
//! it sends by itself, each saga and each schedule are boxes of their own. Replies are left out: they
//! go back where the question came from.

use std::collections::BTreeMap;

use super::{Emission, EventMap, HandlerMap, MessageKind, ServiceMap};

/// Nodes, and arrows between them by their places.
#[derive(Default)]
pub(super) struct Picture {
    pub(super) nodes: Vec<Node>,
    pub(super) arrows: Vec<(usize, usize)>,
    messages: BTreeMap<String, usize>,
}

pub(super) struct Node {
    pub(super) shape: Shape,
    pub(super) label: String,
    /// A second line.
    pub(super) detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Service,
    Outside,
    Saga,
    Clock,
    Event,
    Command,
}

impl Picture {
    pub(super) fn of(map: &EventMap) -> Self {
        let mut picture = Self::default();
        for service in map.services() {
            picture.add(service);
        }
        picture.arrows.sort_unstable();
        picture.arrows.dedup();
        picture
    }

    fn add(&mut self, service: &ServiceMap) {
        let name = &service.name;
        if service.outside {
            let node = self.node(Shape::Outside, name, None);
            self.sent_by(node, &service.emits);
            for handler in &service.handlers {
                self.handled_by(node, handler);
                self.sent_by(node, &handler.emits);
            }
            return;
        }
        if !service.emits.is_empty() {
            let node = self.node(Shape::Service, name, None);
            self.sent_by(node, &service.emits);
        }
        for schedule in &service.schedules {
            let detail = format!("{}: {}", schedule.name, schedule.when);
            let node = self.node(Shape::Clock, name, Some(detail));
            self.sent_by(node, std::slice::from_ref(&schedule.emits));
        }
        for saga in &service.sagas {
            let node = self.node(Shape::Saga, name, Some(format!("saga {}", saga.name)));
            self.sent_by(node, &saga.sends);
            self.sent_by(node, &saga.ends);
            let of_saga = |it: &&HandlerMap| it.saga.as_ref() == Some(&saga.name);
            for handler in service.handlers.iter().filter(of_saga) {
                self.handled_by(node, handler);
            }
        }
        let mut groups: BTreeMap<Vec<&str>, Vec<&HandlerMap>> = BTreeMap::new();
        for handler in service.handlers.iter().filter(|it| it.saga.is_none()) {
            let sent = handler.emits.iter().map(|it| &*it.message).collect();
            groups.entry(sent).or_default().push(handler);
        }
        for handlers in groups.values() {
            let node = self.node(Shape::Service, name, None);
            for handler in handlers {
                self.handled_by(node, handler);
                self.sent_by(node, &handler.emits);
            }
        }
    }

    fn node(&mut self, shape: Shape, label: &str, detail: Option<String>) -> usize {
        self.nodes.push(Node {
            shape,
            label: label.to_owned(),
            detail,
        });
        self.nodes.len() - 1
    }

    fn message(&mut self, name: &str, kind: MessageKind) -> usize {
        if let Some(known) = self.messages.get(name) {
            return *known;
        }
        let shape = match kind {
            MessageKind::Command => Shape::Command,
            MessageKind::Event | MessageKind::Reply => Shape::Event,
        };
        let node = self.node(shape, name, None);
        self.messages.insert(name.to_owned(), node);
        node
    }

    fn handled_by(&mut self, node: usize, handler: &HandlerMap) {
        let names = std::iter::once(&handler.message).chain(&handler.older);
        for name in names {
            let message = self.message(name, handler.kind);
            self.arrows.push((message, node));
        }
    }

    fn sent_by(&mut self, node: usize, emissions: &[Emission]) {
        for emission in emissions {
            if emission.kind != MessageKind::Reply {
                let message = self.message(&emission.message, emission.kind);
                self.arrows.push((node, message));
            }
        }
    }
}
