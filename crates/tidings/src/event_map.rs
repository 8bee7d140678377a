//! The event map: which service handles what, and what it sends then, known from the types alone.
//!
//! A [`Router`] knows the message of each handler and what the handler returns; nothing runs, and no
//! broker or database is needed. What the types do not show is declared where it is done: a message
//! that a handler sends through a [`Producer`](crate::Producer) with
//! [`HandlerOptions::emits`](crate::HandlerOptions::emits), what is sent from outside of handlers with
//! [`Router::emits`], the commands of a saga with [`Sagas::sends`](crate::Sagas::sends) (an
//! [`Explorer`](crate::sagas::Explorer) in a test sees to it that they are all there). What is sent and
//! not declared is not on the map.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tidings::{event_map::EventMap, prelude::*};
//!
//! #[derive(Serialize, Deserialize, Event)]
//! struct OrderPlaced { order_id: String }
//!
//! #[derive(Serialize, Deserialize, Event)]
//! struct PaymentSettled { order_id: String }
//!
//! async fn settle(order: OrderPlaced) -> Result<PaymentSettled> {
//!     Ok(PaymentSettled { order_id: order.order_id })
//! }
//!
//! let orders = Router::new("orders").publishes::<OrderPlaced>();
//! let payment = Router::new("payment").on(settle);
//! let map = EventMap::of([&orders, &payment]);
//!
//! assert!(map.to_mermaid().starts_with("flowchart TD\n"));
//! let findings = map.check();
//! assert_eq!(findings.len(), 1);
//! assert_eq!(findings[0].about, "payment-settled.v1"); // Nobody handles it.
//! ```

mod boxes;
mod check;
mod draw;
mod layout;
mod svg;

use serde::{Deserialize, Serialize};
use tidings_saga::ANSWER_NAME;

pub use check::{Finding, Severity};

use crate::{
    Destination, Error, Message, Router, Sends, router::Route, schedule::declared::Scheduled,
};

/// The version of the map's JSON.
const FORMAT: u32 = 1;

/// The services of a system, with what each handles and sends.
///
/// As JSON ([`to_json`](Self::to_json)) it is an object with `format` (1) and `services`, which are as
/// the fields here say, in camel case; what is empty or false is left out. Services, handlers and
/// messages stand in the order of their names, so that two maps of the same system are the same text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventMap {
    services: Vec<ServiceMap>,
}

/// A service on the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ServiceMap {
    /// Its name: the name of its router.
    pub name: String,
    /// Whether it is a program that is not made with Tidings; what it does was written down by hand.
    #[serde(default, skip_serializing_if = "is_false")]
    pub outside: bool,
    /// What it handles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<HandlerMap>,
    /// What it sends from outside of handlers: upon an HTTP request, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emits: Vec<Emission>,
    /// Its sagas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sagas: Vec<SagaMap>,
    /// What it sends by the clock.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleMap>,
}

/// A handler on the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HandlerMap {
    /// The name of the message that it handles.
    pub message: String,
    /// What that is.
    pub kind: MessageKind,
    /// The queue that it is received from.
    pub queue: String,
    /// The topic that an event comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Whether it takes many at once.
    #[serde(default, skip_serializing_if = "is_false")]
    pub batch: bool,
    /// Older messages that it takes as well, as what they are made into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<String>,
    /// The saga that the message starts, or is a signal to; what follows stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saga: Option<String>,
    /// What it sends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emits: Vec<Emission>,
}

/// A message that somebody sends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Emission {
    /// Its name.
    pub message: String,
    /// What it is.
    pub kind: MessageKind,
    /// The topic of an event, the service that carries out a command; nothing for a reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Whether it is sent whenever the handler succeeds. False for what the type leaves open (an
    /// `Option`, a `Vec`), and for what was declared.
    #[serde(default, skip_serializing_if = "is_false")]
    pub always: bool,
}

/// A saga on the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SagaMap {
    /// Its name.
    pub name: String,
    /// The commands of its steps and their undoing, as declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sends: Vec<Emission>,
    /// What it says at its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<Emission>,
}

/// A recurring message on the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ScheduleMap {
    /// The schedule's name.
    pub name: String,
    /// When, for people: `0 3 * * * Europe/Berlin`.
    pub when: String,
    /// What is sent.
    pub emits: Emission,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MessageKind {
    /// A fact, for whoever listens.
    Event,
    /// An instruction to one target.
    Command,
    /// An answer to whoever asked.
    Reply,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl From<&Sends> for Emission {
    fn from(sends: &Sends) -> Self {
        let (kind, to) = match &sends.to {
            None => (MessageKind::Reply, None),
            Some(Destination::Topic(topic)) => (MessageKind::Event, Some(topic.to_string())),
            Some(Destination::Queue(queue)) => {
                let target = queue.strip_suffix(sends.name);
                let target = target.and_then(|target| target.strip_suffix('.'));
                (
                    MessageKind::Command,
                    Some(target.unwrap_or(queue).to_owned()),
                )
            }
        };
        Self {
            message: sends.name.to_owned(),
            kind,
            to,
            always: sends.always,
        }
    }
}

/// Each message once, by name; sent always if it is so once.
fn emissions<'a>(sends: impl IntoIterator<Item = &'a Sends>) -> Vec<Emission> {
    let mut all: Vec<Emission> = sends.into_iter().map(Emission::from).collect();
    tidy(&mut all);
    all
}

fn tidy(emissions: &mut Vec<Emission>) {
    // What is always sent comes before what may be.
    emissions.sort_by(|one, other| {
        let key = |it: &Emission| (it.message.clone(), it.kind, !it.always);
        key(one).cmp(&key(other))
    });
    emissions.dedup_by(|one, other| one.message == other.message && one.kind == other.kind);
}

impl ServiceMap {
    /// A service of which nothing is known yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            outside: false,
            handlers: Vec::new(),
            emits: Vec::new(),
            sagas: Vec::new(),
            schedules: Vec::new(),
        }
    }

    /// A program that is not made with Tidings, and takes part all the same: say what it
    /// [handles](Self::handling) and [sends](Self::sending).
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::{event_map::{EventMap, ServiceMap}, prelude::*};
    /// # #[derive(Serialize, Deserialize, Event)]
    /// # struct OrderPlaced { order_id: String }
    /// let orders = Router::new("orders").publishes::<OrderPlaced>();
    /// let accounting = ServiceMap::outside("accounting").handling::<OrderPlaced>();
    /// assert!(EventMap::of([&orders]).with(accounting).check().is_empty());
    /// ```
    pub fn outside(name: impl Into<String>) -> Self {
        Self {
            outside: true,
            ..Self::new(name)
        }
    }

    /// It handles `M`.
    pub fn handling<M: Message>(mut self) -> Self {
        let (kind, topic) = match M::DESTINATION {
            Destination::Topic(topic) => (MessageKind::Event, Some(topic.into_owned())),
            Destination::Queue(_) => (MessageKind::Command, None),
        };
        self.handlers.push(HandlerMap {
            message: M::NAME.to_owned(),
            kind,
            queue: format!("{}.{}", self.name, M::NAME),
            topic,
            batch: false,
            older: Vec::new(),
            saga: None,
            emits: Vec::new(),
        });
        self.sort();
        self
    }

    /// It sends `M`.
    pub fn sending<M: Message>(mut self) -> Self {
        self.emits.push(Emission::from(&Sends::of::<M>().maybe()));
        self.sort();
        self
    }

    fn of(router: &Router) -> Self {
        let of_toolkit = |route: &&Route| route.name == ANSWER_NAME;
        // One that is unsubscribed gets nothing new.
        let shown = |route: &&Route| !of_toolkit(route) && !router.is_unsubscribed(route);
        let routes = router.routes.iter().filter(shown);
        let mut service = Self {
            handlers: routes.map(|route| HandlerMap::of(router, route)).collect(),
            emits: emissions(&router.published),
            sagas: router.sagas.on_map(),
            schedules: router.schedules.iter().map(ScheduleMap::of).collect(),
            ..Self::new(&*router.consumer)
        };
        service.sort();
        service
    }

    /// Takes what another router of the same service does.
    fn merge(&mut self, other: Self) {
        self.outside &= other.outside;
        self.handlers.extend(other.handlers);
        self.emits.extend(other.emits);
        self.sagas.extend(other.sagas);
        self.schedules.extend(other.schedules);
        self.sort();
    }

    fn sort(&mut self) {
        self.handlers
            .sort_by_cached_key(|it| (it.message.clone(), it.queue.clone()));
        self.handlers.dedup();
        for handler in &mut self.handlers {
            tidy(&mut handler.emits);
            handler.older.sort();
        }
        tidy(&mut self.emits);
        self.sagas.sort_by(|one, other| one.name.cmp(&other.name));
        self.sagas.dedup();
        for saga in &mut self.sagas {
            tidy(&mut saga.sends);
            tidy(&mut saga.ends);
        }
        self.schedules
            .sort_by(|one, other| one.name.cmp(&other.name));
        self.schedules.dedup();
    }
}

impl HandlerMap {
    fn of(router: &Router, route: &Route) -> Self {
        let upcasts = router.upcasts_of(route);
        Self {
            message: route.name.to_owned(),
            kind: match route.topic {
                Some(_) => MessageKind::Event,
                None => MessageKind::Command,
            },
            queue: route.queue.to_string(),
            topic: route.topic.as_deref().map(str::to_owned),
            batch: route.takes_batches && route.saga.is_none(),
            older: upcasts.iter().map(|it| it.name.to_owned()).collect(),
            saga: route.saga.as_deref().map(str::to_owned),
            emits: match route.saga {
                Some(_) => Vec::new(),
                None => emissions(&route.sends),
            },
        }
    }
}

impl SagaMap {
    pub(crate) fn new(name: &str, sends: &[Sends], ends: &[Sends]) -> Self {
        Self {
            name: name.to_owned(),
            sends: emissions(sends),
            ends: emissions(ends),
        }
    }
}

impl ScheduleMap {
    fn of(scheduled: &Scheduled) -> Self {
        Self {
            name: scheduled.cron.name().to_owned(),
            when: scheduled.cron.when(),
            emits: Emission::from(&scheduled.sends),
        }
    }
}

impl EventMap {
    /// The map of the services that these routers make.
    pub fn of<'a>(routers: impl IntoIterator<Item = &'a Router>) -> Self {
        let services = routers.into_iter().map(ServiceMap::of);
        services.fold(Self::default(), Self::with)
    }

    /// With a service. One that is there already has both descriptions.
    pub fn with(mut self, service: ServiceMap) -> Self {
        let known = self.services.iter_mut().find(|it| it.name == service.name);
        match known {
            Some(known) => known.merge(service),
            None => self.services.push(service),
        }
        self.services
            .sort_by(|one, other| one.name.cmp(&other.name));
        self
    }

    /// With all services of another map: of a program that runs elsewhere.
    pub fn merge(self, other: Self) -> Self {
        other.services.into_iter().fold(self, Self::with)
    }

    /// The services, by name.
    pub fn services(&self) -> &[ServiceMap] {
        &self.services
    }

    /// The map as JSON, for programs; [`EventMap`] says what is in it.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Written<'a> {
            format: u32,
            services: &'a [ServiceMap],
        }
        let written = Written {
            format: FORMAT,
            services: &self.services,
        };
        // Names and flags can always be written.
        let mut json = serde_json::to_string_pretty(&written).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    ///
    /// When it is something else, or was written in a newer format.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        #[derive(Deserialize)]
        struct Written {
            services: Vec<ServiceMap>,
        }
        let not_a_map = |error: serde_json::Error| {
            Error::msg(format!(
                "this is not an event map as JSON (`shop map --format json` prints one): {error}"
            ))
        };
        let Format { format } = serde_json::from_str(json).map_err(not_a_map)?;
        if format != FORMAT {
            return Err(Error::msg(format!(
                "the event map has the format {format}, and this program reads {FORMAT}; use \
                 programs of the same version"
            )));
        }
        let Written { services } = serde_json::from_str(json).map_err(not_a_map)?;
        let sorted = services.into_iter().map(|mut service| {
            service.sort();
            service
        });
        Ok(sorted.fold(Self::default(), Self::with))
    }
}
