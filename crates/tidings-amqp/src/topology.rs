//! What exchanges and queues there are for topics and queues, and how they are declared.
//!
//! Topic `T` is the durable fanout exchange `T`. Queue `Q` is durable, bound to the exchanges of
//! its topics (and to those that it leaves no more), and dead-letters into the durable queue `Q.dead`. If retries of it wait in the broker,
//! it is bound to where they come back from as well (`delays.rs`). Ordered groups: `groups.rs`.

mod failure;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use tidings_core::{Group, Topology, dead_letter_queue};
use tidings_wire::{
    EncodeMethod, ExchangeDeclare, Method, QueueDeclare, ShortStr, Table, Value, reply,
};
use tokio::sync::oneshot;
use tracing::warn;

pub(crate) use self::failure::DeclareError;
use crate::{
    delays,
    groups::{self, Wants},
    parts::{self, Part},
    queues::{Kind, Making},
    session::{Channel, Closed, Quiet, Session},
};

/// The longest name of a topic or queue: AMQP's limit, and room for the `.dead` of its dead letters.
pub(crate) const NAME_BYTES_MAX: usize = ShortStr::BYTES_MAX - ".dead".len();

/// Everything that was declared, to declare it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) topics: BTreeSet<String>,
    /// Queues with their topics.
    pub(crate) queues: BTreeMap<String, BTreeSet<String>>,
    /// Queues with the topics that they have left.
    pub(crate) left: BTreeMap<String, BTreeSet<String>>,
    /// The steps of the ladder of delays that retries of a queue wait on, in milliseconds.
    pub(crate) delays: BTreeMap<String, BTreeSet<u32>>,
    /// Ordered groups, by name and number of partitions.
    pub(crate) groups: BTreeMap<(String, NonZeroU16), Wants>,
    /// Queues that are deleted when nobody uses them for [`EPHEMERAL_EXPIRES_MS`].
    pub(crate) ephemeral: BTreeSet<String>,
}

/// How long an ephemeral queue is kept when nobody uses it: longer than a lost connection takes to
/// come back.
const EPHEMERAL_EXPIRES_MS: i32 = 300_000;

impl Declared {
    pub(crate) fn of(topology: &Topology) -> Result<Self, DeclareError> {
        let mut declared = Self::default();
        let queues = topology.queues.iter();
        let topics = queues
            .clone()
            .flat_map(|queue| queue.topics.iter().chain(&queue.left));
        for topic in topology.topics.iter().chain(topics) {
            declared.topics.insert(topic.to_string());
        }
        for group in &topology.groups {
            groups::check(group)?;
            declared.merge(Self::group(&group.name, group.partitions, Wants::of(group)));
        }
        for queue in queues {
            if queue.is_ephemeral {
                declared.ephemeral.insert(queue.name.to_string());
                continue;
            }
            let topics = queue.topics.iter().map(ToString::to_string);
            let queues = &mut declared.queues;
            queues
                .entry(queue.name.to_string())
                .or_default()
                .extend(topics);
            if !queue.left.is_empty() {
                let left = queue.left.iter().map(ToString::to_string);
                let of_queue = declared.left.entry(queue.name.to_string()).or_default();
                of_queue.extend(left);
            }
            for &delay in &queue.delays {
                declared.merge(Self::delay(&queue.name, delays::step(delay)));
            }
        }
        Ok(declared)
    }

    pub(crate) fn topic(name: &str) -> Self {
        Self {
            topics: [name.to_owned()].into(),
            ..Self::default()
        }
    }

    fn group(name: &str, partitions: NonZeroU16, wants: Wants) -> Self {
        Self {
            topics: wants.topics.clone(),
            groups: [((name.to_owned(), partitions), wants)].into(),
            ..Self::default()
        }
    }

    fn ephemeral(queue: &str) -> Self {
        Self {
            ephemeral: [queue.to_owned()].into(),
            ..Self::default()
        }
    }

    /// What retries of `queue` need that wait on this step.
    pub(crate) fn delay(queue: &str, step_ms: u32) -> Self {
        Self {
            delays: [(queue.to_owned(), [step_ms].into())].into(),
            ..Self::default()
        }
    }

    /// True if retries of `queue` can wait on this step.
    pub(crate) fn has_delay(&self, queue: &str, step_ms: u32) -> bool {
        let steps = self.delays.get(queue);
        steps.is_some_and(|steps| steps.contains(&step_ms))
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.topics.extend(other.topics);
        for (queue, topics) in other.queues {
            // The last word counts.
            if let Some(left) = self.left.get_mut(&queue) {
                left.retain(|topic| !topics.contains(topic));
            }
            self.queues.entry(queue).or_default().extend(topics);
        }
        for (queue, left) in other.left {
            if let Some(topics) = self.queues.get_mut(&queue) {
                topics.retain(|topic| !left.contains(topic));
            }
            self.left.entry(queue).or_default().extend(left);
        }
        for (queue, steps) in other.delays {
            self.delays.entry(queue).or_default().extend(steps);
        }
        for (group, wants) in other.groups {
            self.groups.entry(group).or_default().merge(wants);
        }
        self.ephemeral.extend(other.ephemeral);
    }

    /// Everything about `queue`, if it was declared.
    pub(crate) fn about(&self, queue: &str) -> Option<Self> {
        if self.ephemeral.contains(queue) {
            return Some(Self::ephemeral(queue));
        }
        let Some(topics) = self.queues.get(queue) else {
            return self.group_with(queue);
        };
        Some(Self {
            topics: topics.clone(),
            queues: [(queue.to_owned(), topics.clone())].into(),
            left: self.left_by(queue),
            ..self.delays_of(queue).unwrap_or_default()
        })
    }

    /// The group that `queue` is a partition of.
    fn group_with(&self, queue: &str) -> Option<Self> {
        let name = groups::group_of_partition(queue);
        let mut of_name = self.groups.iter().filter(|((group, _), _)| group == name);
        let ((_, partitions), wants) = of_name.find(|((group, partitions), _)| {
            let group = Group::new(group.as_str().to_owned(), *partitions);
            queue == group.any() || (0..partitions.get()).any(|it| queue == group.partition(it))
        })?;
        let mut about = Self::group(name, *partitions, wants.clone());
        about.merge(self.delays_of(queue).unwrap_or_default());
        Some(about)
    }

    /// What `queue` has left.
    fn left_by(&self, queue: &str) -> BTreeMap<String, BTreeSet<String>> {
        let left = self.left.get_key_value(queue).into_iter();
        left.map(|(queue, left)| (queue.clone(), left.clone()))
            .collect()
    }

    /// Where retries of `queue` wait.
    pub(crate) fn delays_of(&self, queue: &str) -> Option<Self> {
        let steps = self.delays.get(queue)?;
        Some(Self {
            delays: [(queue.to_owned(), steps.clone())].into(),
            ..Self::default()
        })
    }

    /// The same, each thing for itself, in an order in which it can be declared.
    pub(crate) fn apart(&self) -> impl Iterator<Item = Self> {
        let topics = self.topics.iter().map(|topic| Self::topic(topic));
        let queues = self.queues.iter().map(|(queue, topics)| Self {
            queues: [(queue.clone(), topics.clone())].into(),
            left: self.left_by(queue),
            ..Self::default()
        });
        let delays = self.delays.keys().filter_map(|queue| self.delays_of(queue));
        let groups = self.groups.iter().map(|(group, wants)| Self {
            groups: [(group.clone(), wants.clone())].into(),
            ..Self::default()
        });
        let ephemeral = self.ephemeral.iter().map(|queue| Self::ephemeral(queue));
        topics
            .chain(queues)
            .chain(groups)
            .chain(delays)
            .chain(ephemeral)
    }

    /// The commands of all groups.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        let commands = self.groups.values().flat_map(|wants| &wants.commands);
        commands.map(|command| &**command)
    }

    /// The exchanges that are published to.
    pub(crate) fn exchanges(&self) -> impl Iterator<Item = String> {
        let steps = self.delays.values().flatten();
        let delays = steps.map(|step_ms| delays::name_of(*step_ms));
        let commands = self.commands().map(groups::command_exchange);
        self.topics.iter().cloned().chain(delays).chain(commands)
    }

    /// Declares everything, in a pipeline on a channel of its own; or only [looks](Self::look), if the URL says
    /// that nothing is declared.
    ///
    /// Queues that are there with another type (made by hand, by an older version, or before the virtual host got
    /// another type by default) are taken as they are: those of dead letters whatever else they are, since they
    /// do for as long as few look at them; those of consumers if they differ in nothing but their type.
    pub(crate) async fn declare(&self, session: &Arc<Session>) -> Result<(), DeclareError> {
        if !session.making.declares {
            return self.look(session).await.map_err(DeclareError::only_looked);
        }
        let mut as_they_are: BTreeMap<ShortStr, AsItIs> = BTreeMap::new();
        loop {
            match self.declare_but(session, &as_they_are).await {
                Err(DeclareError::OtherType {
                    queue,
                    is_of_letters: false,
                    closed,
                }) => match as_they_are.get_mut(&queue) {
                    None => {
                        as_they_are.insert(queue, AsItIs::Kinds(Kind::likely(&closed)));
                    }
                    Some(AsItIs::Kinds(kinds)) if kinds.len() > 1 => drop(kinds.remove(0)),
                    Some(_) => {
                        let what = format!("queue `{queue}`");
                        return Err(DeclareError::Closed { what, closed });
                    }
                },
                Err(DeclareError::OtherType { queue, closed, .. }) => {
                    let said = &closed.reason;
                    warn!(
                        "the queue of dead letters `{queue}` was not made as a classic queue, and is \
                         used as it is: a quorum queue counts each look as a delivery, and on \
                         RabbitMQ 4 drops what had 20; redrive or discard its letters and delete it, \
                         then it is made anew (the broker said: {said})"
                    );
                    as_they_are.insert(queue, AsItIs::Letters);
                }
                Ok(()) => {
                    warn_of_kinds(&as_they_are, session.making);
                    return Ok(());
                }
                failed => return failed,
            }
        }
    }

    /// Declares everything but what is there as it is.
    async fn declare_but(
        &self,
        session: &Arc<Session>,
        there: &BTreeMap<ShortStr, AsItIs>,
    ) -> Result<(), DeclareError> {
        // Before anything is asked: a name that cannot be is nobody else's trouble.
        let topics = self.topics.iter().map(|topic| exchange(topic));
        let topics = topics.collect::<Result<Vec<_>, _>>()?;
        let parts = self.parts_beside_topics()?.into_iter();
        let parts: Vec<Part> = parts.map(|part| session.making.made(part)).collect();
        let left = self.left.iter();
        let left = left.flat_map(|(queue, topics)| topics.iter().map(move |it| (queue, it)));
        let left = left.map(|(queue, topic)| unbinding(queue, topic));
        let left = left.collect::<Result<Vec<_>, _>>()?;

        let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
        let mut asked = Asked::on(&channel);
        for topic in &topics {
            asked.ask(topic, format!("topic `{}`", topic.exchange));
        }
        for part in parts.iter().chain(&left) {
            match part {
                Part::Letters(it) if there.contains_key(&it.queue) => asked.ask_whether(part),
                Part::Queue(it) => match there.get(&it.queue) {
                    Some(AsItIs::Kinds(kinds)) if let Some(kind) = kinds.first() => {
                        asked.ask_for(&Part::Queue(kind.of(it)));
                    }
                    _ => asked.ask_for(part),
                },
                _ => asked.ask_for(part),
            }
        }
        asked.all_answered().await
    }

    /// Looks whether exchanges and queues are there; bindings cannot be seen. Queues that belong to this
    /// connection's user alone are made nevertheless.
    async fn look(&self, session: &Arc<Session>) -> Result<(), DeclareError> {
        let parts = self.parts()?;
        let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
        let mut asked = Asked::on(&channel);
        for part in &parts {
            match part {
                Part::Queue(it) if self.ephemeral.contains(&*it.queue.to_str_lossy()) => {
                    asked.ask_for(&session.making.made(part.clone()));
                }
                _ => asked.ask_whether(part),
            }
        }
        asked.all_answered().await
    }

    /// Everything that is to be there, in an order in which it can be declared.
    pub(crate) fn parts(&self) -> Result<Vec<Part>, DeclareError> {
        let topics = self.topics.iter();
        let topics = topics.map(|topic| exchange(topic).map(Part::Exchange));
        let mut parts = topics.collect::<Result<Vec<_>, _>>()?;
        parts.extend(self.parts_beside_topics()?);
        Ok(parts)
    }

    /// The same without the exchanges of topics.
    pub(crate) fn parts_beside_topics(&self) -> Result<Vec<Part>, DeclareError> {
        let queues = self.queues.iter();
        let queues = queues.map(|(name, topics)| queue_with_dead_letters(name, topics));
        let groups = self.groups.iter();
        let groups = groups.map(|((name, partitions), it)| groups::parts(name, *partitions, it));
        let made = queues.chain(groups).collect::<Result<Vec<_>, _>>()?;
        let mut parts: Vec<Part> = made.into_iter().flatten().collect();
        parts.extend(self.parts_of_delays()?);
        let ephemeral = self.ephemeral.iter().map(|name| ephemeral_queue(name));
        parts.extend(ephemeral.collect::<Result<Vec<_>, _>>()?);
        Ok(parts)
    }

    /// The steps that somebody's retries wait on, and their ways back.
    fn parts_of_delays(&self) -> Result<Vec<Part>, DeclareError> {
        if self.delays.is_empty() {
            return Ok(Vec::new());
        }
        let mut parts = delays::ends();
        let steps: BTreeSet<u32> = self.delays.values().flatten().copied().collect();
        parts.extend(steps.into_iter().flat_map(delays::rung));
        for queue in self.delays.keys() {
            parts.push(delays::way_back(checked_name(
                "queue",
                queue,
                NAME_BYTES_MAX,
            )?));
        }
        Ok(parts)
    }
}

/// How a queue that is there with another type is declared.
enum AsItIs {
    /// As the first of these, and if it is none such, as the next.
    Kinds(Vec<Kind>),
    /// Not at all: it is one of dead letters.
    Letters,
}

fn warn_of_kinds(as_they_are: &BTreeMap<ShortStr, AsItIs>, making: Making) {
    for (queue, as_it_is) in as_they_are {
        let AsItIs::Kinds(kinds) = as_it_is else {
            continue;
        };
        match kinds.first() {
            Some(Kind::ForeignQuorum) => warn!(
                "the queue `{queue}` is a quorum queue, and is used as it is: what a consumer gives back may come \
                 after later messages there, and a message that was handed out more often than its delivery limit \
                 allows (20 times by default on RabbitMQ 4) is a dead letter"
            ),
            Some(Kind::Classic) if making.is_quorum() => warn!(
                "the queue `{queue}` is a classic queue, and is used as it is: it is on one node of the cluster, and \
                 cannot be used while that is down; stop its consumers, let it be emptied and delete it, then it is made \
                 anew as a quorum queue"
            ),
            _ => {}
        }
    }
}

/// Looks whether there is an exchange of this name, of whatever type.
pub(crate) async fn find_exchange(session: &Arc<Session>, name: &str) -> Result<(), DeclareError> {
    let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
    let passive = ExchangeDeclare {
        passive: true,
        ..exchange(name)?
    };
    channel.call(&passive).await?;
    Ok(())
}

/// A group's command must have no queue of its own: whoever does not know of the group would go on to
/// send there, where nobody receives any more.
pub(crate) async fn no_queue_of_a_command(
    session: &Arc<Session>,
    command: &str,
) -> Result<(), DeclareError> {
    let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
    let passive = QueueDeclare {
        passive: true,
        queue: checked_name("queue", command, NAME_BYTES_MAX)?,
        ..QueueDeclare::default()
    };
    match channel.call(&passive).await {
        Err(closed) if closed.code == reply::NOT_FOUND && !closed.passes() => Ok(()),
        Err(closed) => Err(DeclareError::Closed {
            what: format!("queue `{command}`"),
            closed,
        }),
        Ok(_) => Err(DeclareError::Name(format!(
            "the queue `{command}` is there from a time when its messages were handled without \
             order: stop the instances that receive from it, let it be emptied, and delete it; \
             then what is sent to it goes into the ordered group"
        ))),
    }
}

/// What was asked for on a channel, and is still to be answered.
struct Asked<'a> {
    channel: &'a Channel,
    answers: Vec<Asking>,
}

struct Asking {
    what: String,
    /// The queue that it makes, and whether it is one of dead letters.
    queue: Option<(ShortStr, bool)>,
    answer: Result<Answer, Closed>,
}

type Answer = oneshot::Receiver<Result<Method, Closed>>;

impl<'a> Asked<'a> {
    fn on(channel: &'a Channel) -> Self {
        Self {
            channel,
            answers: Vec::new(),
        }
    }

    /// If the channel is closed already, the answer to what closed it says so.
    fn ask(&mut self, method: &impl EncodeMethod, what: String) {
        self.answers.push(Asking {
            what,
            queue: None,
            answer: self.channel.request(method),
        });
    }

    /// Asks whether it is there, if that can be seen.
    fn ask_whether(&mut self, part: &Part) {
        if let Some(passive) = part.passive() {
            self.ask_for(&passive);
        }
    }

    fn ask_for(&mut self, part: &Part) {
        match part {
            Part::Exchange(it) => self.ask(it, format!("exchange `{}`", it.exchange)),
            Part::Queue(it) | Part::Letters(it) => self.answers.push(Asking {
                what: format!("queue `{}`", it.queue),
                queue: Some((it.queue.clone(), matches!(part, Part::Letters(_)))),
                answer: self.channel.request(it),
            }),
            Part::Binding(it) => {
                let what = format!("the binding of queue `{}` to `{}`", it.queue, it.exchange);
                self.ask(it, what);
            }
            Part::Link(it) => {
                let (source, to) = (&it.source, &it.destination);
                self.ask(it, format!("the binding of exchange `{to}` to `{source}`"));
            }
            Part::Unbinding(it) => {
                let (queue, topic) = (&it.queue, &it.exchange);
                self.ask(it, format!("that the queue `{queue}` leaves `{topic}`"));
            }
        }
    }

    async fn all_answered(self) -> Result<(), DeclareError> {
        for asking in self.answers {
            let answer = match asking.answer {
                Ok(answer) => self.channel.answer(answer).await,
                Err(closed) => Err(closed),
            };
            let what = asking.what;
            answer.map_err(|closed| match asking.queue {
                Some((queue, is_of_letters)) if parts::is_of_another_type(&closed) => {
                    DeclareError::OtherType {
                        queue,
                        is_of_letters,
                        closed,
                    }
                }
                _ => DeclareError::Closed { what, closed },
            })?;
        }
        Ok(())
    }
}

/// A name as AMQP carries it. RabbitMQ takes line breaks out of the names of what it declares, and
/// then what is published to the name as it was has nowhere to go: so no control characters.
pub(crate) fn checked_name(
    what: &str,
    name: &str,
    bytes_max: usize,
) -> Result<ShortStr, DeclareError> {
    if name.is_empty() {
        return Err(DeclareError::Name(format!("a {what} has a name, not ``")));
    }
    if name.contains(char::is_control) {
        return Err(DeclareError::Name(format!(
            "the name of {what} {name:?} has control characters; take them out"
        )));
    }
    match ShortStr::try_from(name) {
        Ok(short) if name.len() <= bytes_max => Ok(short),
        _ => Err(DeclareError::Name(format!(
            "the name of {what} `{name}` has {} bytes; at most {bytes_max} are possible",
            name.len()
        ))),
    }
}

fn exchange(topic: &str) -> Result<ExchangeDeclare, DeclareError> {
    let topic = checked_name("topic", topic, ShortStr::BYTES_MAX)?;
    Ok(parts::exchange(topic, "fanout", Table::default()))
}

/// Durable, since newer servers refuse queues that are neither durable nor exclusive; and not
/// exclusive, since it outlives the connection.
fn ephemeral_queue(name: &str) -> Result<Part, DeclareError> {
    let name = checked_name("queue", name, NAME_BYTES_MAX)?;
    let expires = parts::table([("x-expires", Value::from(EPHEMERAL_EXPIRES_MS))]);
    Ok(Part::Queue(parts::queue(name, expires)))
}

fn unbinding(queue: &str, topic: &str) -> Result<Part, DeclareError> {
    let queue = checked_name("queue", queue, NAME_BYTES_MAX)?;
    let topic = checked_name("topic", topic, ShortStr::BYTES_MAX)?;
    Ok(Part::Unbinding(parts::unbinding(queue, topic)))
}

/// A queue, its dead letters (first: it refers to them), and its bindings.
fn queue_with_dead_letters(
    name: &str,
    topics: &BTreeSet<String>,
) -> Result<Vec<Part>, DeclareError> {
    let dead = dead_letter_queue(name);
    let queue = checked_name("queue", name, NAME_BYTES_MAX)?;
    let dead_letters = checked_name("queue", &dead, ShortStr::BYTES_MAX)?;
    let to_dead_letters = parts::table([
        // Through the default exchange, so that nothing else has to be declared.
        ("x-dead-letter-exchange", Value::from("")),
        ("x-dead-letter-routing-key", Value::from(&*dead)),
    ]);
    let mut made = vec![
        Part::Letters(parts::letters(dead_letters, Table::default())),
        Part::Queue(parts::queue(queue.clone(), to_dead_letters)),
    ];
    for topic in topics {
        let topic = checked_name("topic", topic, ShortStr::BYTES_MAX)?;
        made.push(Part::Binding(parts::binding(queue.clone(), topic, None)));
    }
    Ok(made)
}
