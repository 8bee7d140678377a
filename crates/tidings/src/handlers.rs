//! What a service writes down about its handlers when it starts, for whoever operates it.
//!
//! A broker cannot say whose queues it has, and a consumer's database has rows only for messages that could
//! be read. So each service with a store keeps a [`HandlerRecord`] for each of its handlers there, and a
//! [`ServiceRecord`] with what it publishes to: from them an operator's program knows which queues there
//! should be ([`topology`]), also of handlers that have never had a message.
//!
//! Records are written before the service declares anything, and only if they say something new: a start of a
//! service whose handlers are the same writes nothing. The last start that says something else wins: while an
//! old version runs beside a new one, the records say what started last, and nothing is written in between.
//! A handler that a start does not have any more is marked as gone, never deleted; what it had on the broker
//! is left to an operator (`tidings topology prune`). A service without a store writes nothing.
//!
//! A service is known by the name of its router. If the handlers of one name and one database are spread over
//! several programs, the one that started last marks those of the others as gone.

mod taken;
mod write;

use std::{collections::BTreeSet, num::NonZeroU16};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tidings_saga::{ANSWER_NAME, CALL_OFF_NAME};

pub(crate) use taken::{Taken, taken_at};
pub(crate) use write::{Report, write_down};

use crate::{
    Commit, Error, Expected, Group, Queue, Record, RecordChange, RecordId, RecordQuery, Router,
    Store, StoreError, Topology, event_map::MessageKind, retry, router::Route,
};

/// The kind of the records of handlers; their ids are the names of the handlers' queues.
const KIND: &str = "tidings.handler";
/// The kind of the records of services; their ids are the services' names.
const SERVICE_KIND: &str = "tidings.service";
/// How many records are read at once.
const PAGE_COUNT_MAX: usize = 500;
/// How many handlers of one database are looked at.
const HANDLERS_MAX: usize = 10_000;

/// A handler, as its service wrote it down.
///
/// In the database it is a record of the kind `tidings.handler` with this as JSON, in camel case; what is
/// empty is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct HandlerRecord {
    /// The service: the name of its router.
    pub service: String,
    /// The handler's name as a consumer, and that of its queue: `payment.order-placed.v1`.
    pub consumer: String,
    /// The name of the message that it handles: `order-placed.v1`.
    pub message: String,
    /// The version in that name, if it ends with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The names of the messages that it takes: that one, and older ones ([`Router::upcast`]). Empty if an
    /// earlier version of the toolkit has written the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takes: Vec<String>,
    /// What the message is.
    pub kind: MessageKind,
    /// Its part in a saga, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saga: Option<SagaPart>,
    /// The topics that it takes events from; more than one with older messages
    /// ([`Router::upcast`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// The ordered group that it belongs to; then it has no queue of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<OrderedGroup>,
    /// Whether its queue is taken out of its topics ([`Router::unsubscribed`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsubscribed: bool,
    /// The paths of the fields that are marked as sensitive in what it takes, older messages as well
    /// ([`SensitivePaths`](crate::SensitivePaths)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sensitive: Vec<String>,
    /// Where it received before it was changed, so that messages may still be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// Since when its service does not have it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<Timestamp>,
    /// When this was written, by the database's clock.
    #[serde(skip)]
    pub written: Timestamp,
    /// Of the record.
    #[serde(skip)]
    revision: u64,
}

/// What a handler does for sagas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SagaPart {
    /// What.
    pub role: SagaRole,
    /// The saga's name, for what belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saga: Option<String>,
}

/// What a handler does for sagas. That it carries out a step of one is not known from its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum SagaRole {
    /// Its message starts a saga.
    Starts,
    /// Its command starts a saga that is a step of another one.
    Child,
    /// Its message is a signal to a saga.
    Signal,
    /// It takes the answers to the steps of all sagas of its service.
    Answers,
    /// It calls off sagas that are steps of others.
    CallsOff,
}

/// An ordered group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct OrderedGroup {
    /// Its name: `payment.ordered`.
    pub group: String,
    /// How many partitions it has.
    pub partitions: NonZeroU16,
}

/// Where a handler received before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Left {
    /// The ordered group that it was in; otherwise it was its own queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<OrderedGroup>,
    /// Since when it does not receive there.
    pub since: Timestamp,
}

/// A service, as it wrote itself down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ServiceRecord {
    /// Its name.
    pub service: String,
    /// The topics that it publishes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publishes: Vec<String>,
    /// When this was written, by the database's clock.
    #[serde(skip)]
    pub written: Timestamp,
    #[serde(skip)]
    revision: u64,
}

impl HandlerRecord {
    fn of(router: &Router, route: &Route) -> Self {
        let mut topics: BTreeSet<String> = route.topic.iter().map(ToString::to_string).collect();
        let upcasts = router.upcasts_of(route);
        topics.extend(upcasts.iter().map(|upcast| upcast.topic.to_string()));
        let ordered = router.group_of(route);
        Self {
            service: router.consumer.to_string(),
            consumer: route.queue.to_string(),
            message: route.name.to_owned(),
            version: version_in(route.name),
            takes: std::iter::once(route.name)
                .chain(upcasts.iter().map(|upcast| upcast.name))
                .map(str::to_owned)
                .collect(),
            kind: match route.topic {
                Some(_) => MessageKind::Event,
                None if route.name == ANSWER_NAME => MessageKind::Reply,
                None => MessageKind::Command,
            },
            saga: SagaPart::of(router, route),
            topics: topics.into_iter().collect(),
            ordered: ordered.map(|(group, partitions)| OrderedGroup { group, partitions }),
            unsubscribed: router.is_unsubscribed(route),
            sensitive: router.sensitive_of(route),
            left: Vec::new(),
            gone_since: None,
            written: Timestamp::UNIX_EPOCH,
            revision: 0,
        }
    }

    fn read(record: &Record) -> Result<Self, Error> {
        let read = serde_json::from_slice::<Self>(&record.value.body);
        let read = read.map_err(|error| unreadable(record, &error))?;
        Ok(Self {
            written: record.written,
            revision: record.version,
            ..read
        })
    }

    /// Whether its service does not have it any more.
    pub fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    /// What its dead letters are beside: its queue, or its ordered group
    /// ([`dead_letter_queue`](crate::dead_letter_queue)).
    pub fn dead_letters_beside(&self) -> &str {
        match &self.ordered {
            Some(OrderedGroup { group, .. }) => group,
            None => &self.consumer,
        }
    }

    /// What it needs on the broker, if it receives in this group, or in its own queue.
    fn topology_in(&self, ordered: Option<&OrderedGroup>) -> Topology {
        let topics = self.topics.iter().cloned();
        let Some(OrderedGroup { group, partitions }) = ordered else {
            let mut queue = Queue::new(self.consumer.clone());
            queue = match self.unsubscribed {
                true => topics.fold(queue, Queue::leaves),
                false => topics.fold(queue, Queue::topic),
            };
            return Topology::new().queue(queue);
        };
        let mut group = topics.fold(Group::new(group.clone(), *partitions), Group::topic);
        if self.kind != MessageKind::Event {
            group = group.command(self.consumer.clone());
        }
        Topology::new().group(group)
    }
}

impl SagaPart {
    fn of(router: &Router, route: &Route) -> Option<Self> {
        let role = match (route.name, &route.saga) {
            (ANSWER_NAME, _) => SagaRole::Answers,
            (CALL_OFF_NAME, _) => SagaRole::CallsOff,
            (_, None) => return None,
            (name, _) if router.sagas.is_started_by_command(name) => SagaRole::Child,
            _ if route.takes_batches => SagaRole::Starts,
            _ => SagaRole::Signal,
        };
        let saga = route.saga.as_deref().map(str::to_owned);
        Some(Self { role, saga })
    }
}

/// The `N` of a name that ends with `.vN`.
fn version_in(message: &str) -> Option<u32> {
    let (_, version) = message.rsplit_once(".v")?;
    version.parse().ok()
}

/// What a router writes down about its handlers, by their names.
pub fn of(router: &Router) -> Vec<HandlerRecord> {
    let routes = router.routes.iter();
    let mut all: Vec<HandlerRecord> = routes.map(|it| HandlerRecord::of(router, it)).collect();
    all.sort_by(|one, other| one.consumer.cmp(&other.consumer));
    all
}

/// The handlers that are written down in a database, by their names; those that are gone as well. At most
/// 10,000.
///
/// # Errors
///
/// When the database does not answer, or a record was written by a newer program.
pub async fn list(store: &dyn Store) -> Result<Vec<HandlerRecord>, Error> {
    let records = records_of(store, KIND).await?;
    let all: Result<Vec<_>, _> = records.iter().map(HandlerRecord::read).collect();
    let mut all = all?;
    all.sort_by(|one, other| one.consumer.cmp(&other.consumer));
    Ok(all)
}

/// The fields that the handlers of a database have marked as sensitive, with the name of their message. It reads
/// no more than that of a record, so that what a newer program has written does as well, if it says that.
///
/// # Errors
///
/// When the database does not answer.
pub async fn sensitive(store: &dyn Store) -> Result<Vec<(String, Vec<String>)>, Error> {
    #[derive(Deserialize)]
    struct Marks {
        message: String,
        #[serde(default)]
        sensitive: Vec<String>,
    }
    let records = records_of(store, KIND).await?;
    let marks = records.iter().map(|it| &it.value.body);
    let marks = marks.filter_map(|body| serde_json::from_slice::<Marks>(body).ok());
    Ok(marks.map(|it| (it.message, it.sensitive)).collect())
}

/// The services that are written down in a database, by their names.
///
/// # Errors
///
/// As [`list`].
pub async fn services(store: &dyn Store) -> Result<Vec<ServiceRecord>, Error> {
    let records = records_of(store, SERVICE_KIND).await?;
    let all: Result<Vec<_>, _> = records.iter().map(ServiceRecord::read).collect();
    let mut all = all?;
    all.sort_by(|one, other| one.service.cmp(&other.service));
    Ok(all)
}

impl ServiceRecord {
    fn read(record: &Record) -> Result<Self, Error> {
        let read = serde_json::from_slice::<Self>(&record.value.body);
        let read = read.map_err(|error| unreadable(record, &error))?;
        Ok(Self {
            written: record.written,
            revision: record.version,
            ..read
        })
    }
}

fn unreadable(record: &Record, error: &serde_json::Error) -> Error {
    let RecordId { kind, id } = &record.id;
    Error::msg(format!(
        "the record `{id}` of the kind `{kind}` cannot be read; it was written by a newer program, which \
         can read it: {error}"
    ))
}

async fn records_of(store: &dyn Store, kind: &str) -> Result<Vec<Record>, StoreError> {
    let mut all: Vec<Record> = Vec::new();
    loop {
        let query = RecordQuery {
            kind: kind.into(),
            after: all.last().map(|it| (it.written, it.id.id.clone())),
            limit: PAGE_COUNT_MAX,
            ..RecordQuery::default()
        };
        let page = store.records().list(&query).await?;
        let is_last = page.len() < PAGE_COUNT_MAX;
        all.extend(page);
        if is_last || all.len() >= HANDLERS_MAX {
            return Ok(all);
        }
    }
}

/// What services need on the broker: what their handlers receive from, and the topics that they publish to.
/// Handlers that are gone need nothing, and nobody needs what one has [left](HandlerRecord::left).
///
/// It is what [`Router::topology`] says of a router with a store.
pub fn topology<'a>(
    handlers: impl IntoIterator<Item = &'a HandlerRecord>,
    services: impl IntoIterator<Item = &'a ServiceRecord>,
) -> Topology {
    let published = services.into_iter().flat_map(|it| &it.publishes);
    let mut needed = published.cloned().fold(Topology::new(), Topology::topic);
    let mut groups: Vec<Group> = Vec::new();
    for handler in handlers.into_iter().filter(|it| !it.is_gone()) {
        let of_handler = handler.topology_in(handler.ordered.as_ref());
        needed = of_handler.queues.into_iter().fold(needed, Topology::queue);
        for group in of_handler.groups {
            groups = with_group(groups, group);
        }
    }
    groups.into_iter().fold(needed, Topology::group)
}

/// Joins what the handlers of one group want.
fn with_group(mut groups: Vec<Group>, group: Group) -> Vec<Group> {
    let is_it = |it: &&mut Group| it.name == group.name && it.partitions == group.partitions;
    match groups.iter_mut().find(is_it) {
        Some(known) => {
            let joined = group.topics.into_iter().fold(known.clone(), Group::topic);
            *known = group.commands.into_iter().fold(joined, Group::command);
        }
        None => groups.push(group),
    }
    groups
}

/// What nobody needs any more of what a handler had on the broker: all of it if it is gone, and what it has
/// [left](HandlerRecord::left). One topology each, with since when.
///
/// A group that another handler is in is still needed: compare with [`topology`].
pub fn abandoned(handler: &HandlerRecord) -> Vec<(Topology, Timestamp)> {
    let now = handler
        .gone_since
        .map(|since| (handler.ordered.as_ref(), since));
    let before = handler
        .left
        .iter()
        .map(|it| (it.ordered.as_ref(), it.since));
    let all = now.into_iter().chain(before);
    all.map(|(ordered, since)| (handler.topology_in(ordered), since))
        .collect()
}

/// Forgets what a handler had on the broker, after that was removed from there: the whole record of one that is
/// gone, and what it has [left](HandlerRecord::left) of one that is not. False: its service wrote about
/// it meanwhile, and nothing was changed.
///
/// # Errors
///
/// When the database does not answer.
pub async fn forget(store: &dyn Store, handler: &HandlerRecord) -> Result<bool, Error> {
    let kept = HandlerRecord {
        left: Vec::new(),
        ..handler.clone()
    };
    let commit = Commit::from(RecordChange {
        id: RecordId::new(KIND, &*handler.consumer),
        expected: Expected::Version(handler.revision),
        value: match handler.is_gone() {
            true => None,
            false => Some(write::value_of(&kept)?),
        },
    });
    match retry::commit(store, commit).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
