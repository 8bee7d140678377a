//! What a router needs on the broker: topics, queues, ordered groups; and what holds for one of its
//! handlers.

use std::num::NonZeroU16;

use crate::{
    AfterDeadLetter, Destination, Event, Group, Message, Provided, Queue, Retry, Router, Sends,
    Topology,
    router::{MESSAGES_DEFAULT, Route, batch_max_of},
    steps,
};

impl Router {
    /// Says that the service publishes `E` from outside of handlers (through a
    /// [`Producer`](crate::Producer)), so that its topic is declared and the event map shows it.
    pub fn publishes<E: Event>(self) -> Self {
        self.emits::<E>()
    }

    /// Says that the service sends `M`, an event or a command, from outside of handlers. What a handler
    /// sends otherwise than by returning it is declared with
    /// [`HandlerOptions::emits`](crate::HandlerOptions::emits).
    pub fn emits<M: Message>(mut self) -> Self {
        self.published.push(Sends::of::<M>().maybe());
        self
    }

    /// Panics if a handler lacks something.
    #[track_caller]
    pub(crate) fn check(&self) {
        for (newer, upcast) in &self.upcasts {
            assert!(
                self.routes.iter().any(|route| route.name == *newer),
                "`{}` is upcast to `{newer}`, for which the router `{}` has no handler; add it with \
                 `.on(handler)`",
                upcast.name,
                self.consumer
            );
        }
        assert!(
            self.store.is_some() || self.limits.keep_events.is_none(),
            "the router `{}` is to keep its events, but has no store to keep them in; add \
             `.transactional(store)`",
            self.consumer
        );
        self.check_schedules();
        for route in &self.routes {
            self.check_order(route);
        }
        let provided = Provided::new(&self.states, self.store.as_ref());
        for route in &self.routes {
            if let Err(lack) = (route.check)(&provided).and_then(|()| route.check_steps()) {
                panic!(
                    "the handler `{}` at {} of the router `{}` cannot run: {lack}",
                    route.handler, route.location, self.consumer
                );
            }
        }
    }

    /// The topics and queues this service needs, as it is configured.
    pub fn topology(&self) -> Topology {
        let mut topology = Topology::new();
        let of_handlers = self.routes.iter().flat_map(|route| &route.sends);
        let by_clock = self.schedules.iter().map(|it| &it.sends);
        for sends in self.published.iter().chain(of_handlers).chain(by_clock) {
            // The queue of a command belongs to its target, which declares it.
            if let Some(Destination::Topic(topic)) = &sends.to {
                topology = topology.topic(topic.clone());
            }
        }
        for group in self.groups() {
            topology = topology.group(group);
        }
        for route in self
            .routes
            .iter()
            .filter(|route| self.group_of(route).is_none())
        {
            let mut queue = Queue::new(route.queue.to_string());
            queue.topics = route.topic.clone().into_iter().collect();
            for upcast in self.upcasts_of(route).iter() {
                if !queue.topics.contains(&upcast.topic) {
                    queue.topics.push(upcast.topic.clone());
                }
            }
            if self.is_unsubscribed(route) {
                queue.left = std::mem::take(&mut queue.topics);
            }
            // What must wait, waits in the store, if there is one.
            if self.store.is_none() {
                queue.delays = self.retry_of(route).delays();
            }
            topology = topology.queue(queue);
        }
        topology
    }

    pub(crate) fn blocks_after_dead_letter(&self, route: &Route) -> bool {
        route.options.or(&self.defaults).after_dead_letter == Some(AfterDeadLetter::Park)
    }

    /// Panics if a handler asks for order that it cannot have.
    #[track_caller]
    pub(crate) fn check_order(&self, route: &Route) {
        if self.group_of(route).is_none() {
            return;
        }
        let (handler, location, consumer) = (route.handler, route.location, &self.consumer);
        assert!(
            self.store.is_some(),
            "the handler `{handler}` at {location} of the router `{consumer}` asks for order, but the \
             router has no store, in which messages wait behind an earlier one of their key; add \
             `.transactional(store)`"
        );
        assert!(
            !self.is_unsubscribed(route),
            "the handler `{handler}` at {location} of the router `{consumer}` asks for order and is \
             unsubscribed; an ordered group cannot leave its topics: take one of the two away"
        );
    }

    pub(crate) fn is_unsubscribed(&self, route: &Route) -> bool {
        route.options.or(&self.defaults).is_unsubscribed
    }

    pub(crate) fn retry_of(&self, route: &Route) -> Retry {
        route.options.or(&self.defaults).retry.unwrap_or_default()
    }

    pub(crate) fn concurrency_of(&self, route: &Route) -> NonZeroU16 {
        let default = match route.takes_batches {
            // One batch runs, and the next one gathers.
            true => batch_max_of(route).saturating_mul(NonZeroU16::MIN.saturating_add(1)),
            false => MESSAGES_DEFAULT,
        };
        let options = route.options.or(&self.defaults);
        options.concurrency.unwrap_or(default)
    }

    /// The fields that are not to be shown of what a handler takes, older messages as well, sorted.
    pub(crate) fn sensitive_of(&self, route: &Route) -> Vec<String> {
        let upcasts = self.upcasts_of(route);
        let older = upcasts.iter().map(|upcast| upcast.sensitive);
        let all = older.chain([route.sensitive]).flat_map(|paths| paths());
        let all: std::collections::BTreeSet<String> = all.collect();
        all.into_iter().collect()
    }

    /// The ordered group of a handler: its name and how many partitions it has.
    pub(crate) fn group_of(&self, route: &Route) -> Option<(String, NonZeroU16)> {
        if let Some(partitions) = route.options.partitions {
            return Some((format!("{}.ordered", route.queue), partitions));
        }
        let partitions = self.defaults.partitions?;
        Some((format!("{}.ordered", self.consumer), partitions))
    }

    /// The ordered groups.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for route in &self.routes {
            let Some((name, partitions)) = self.group_of(route) else {
                continue;
            };
            let known = groups.iter().position(|group| group.name == name);
            let mut group = match known {
                Some(known) => groups.swap_remove(known),
                None => Group::new(name, partitions),
            };
            group = match &route.topic {
                Some(topic) => group.topic(topic.clone()),
                None => group.command(route.queue.to_string()),
            };
            for upcast in self.upcasts_of(route).iter() {
                group = group.topic(upcast.topic.clone());
            }
            groups.push(group);
        }
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        groups
    }
}

impl Route {
    /// Why it cannot carry out the steps of sagas that its message says it is.
    fn check_steps(&self) -> Result<(), String> {
        match self.is_step && self.takes_batches && !self.options.answers_steps {
            true => Err(steps::no_batch(self.name)),
            false => Ok(()),
        }
    }
}
