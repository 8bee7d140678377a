//! What exchanges and queues there are for topics and queues, and how they are declared.
//!
//! Topic `T` is the durable fanout exchange `T`. Queue `Q` is durable, bound to the exchanges of
//! its topics, and dead-letters into the durable queue `Q.dead`. If retries of it wait in the broker,
//! it is bound to where they come back from as well (`delays.rs`).

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc};

use tidings_core::{Topology, TransportError, dead_letter_queue};
use tidings_wire::{
    EncodeMethod, ExchangeDeclare, Method, QueueBind, QueueDeclare, ShortStr, Table, Value, reply,
};
use tokio::sync::oneshot;

use crate::{
    delays::{self, Part},
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
    /// The steps of the ladder of delays that retries of a queue wait on, in milliseconds.
    pub(crate) delays: BTreeMap<String, BTreeSet<u32>>,
}

impl Declared {
    pub(crate) fn of(topology: &Topology) -> Self {
        let mut declared = Self::default();
        let queues = topology.queues.iter();
        let topics = queues.clone().flat_map(|queue| &queue.topics);
        for topic in topology.topics.iter().chain(topics) {
            declared.topics.insert(topic.to_string());
        }
        for queue in queues {
            let topics = queue.topics.iter().map(ToString::to_string);
            let queues = &mut declared.queues;
            queues
                .entry(queue.name.to_string())
                .or_default()
                .extend(topics);
            for &delay in &queue.delays {
                declared.merge(Self::delay(&queue.name, delays::step(delay)));
            }
        }
        declared
    }

    pub(crate) fn topic(name: &str) -> Self {
        Self {
            topics: [name.to_owned()].into(),
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
            self.queues.entry(queue).or_default().extend(topics);
        }
        for (queue, steps) in other.delays {
            self.delays.entry(queue).or_default().extend(steps);
        }
    }

    /// Everything about `queue`, if it was declared.
    pub(crate) fn about(&self, queue: &str) -> Option<Self> {
        let topics = self.queues.get(queue)?;
        Some(Self {
            topics: topics.clone(),
            queues: [(queue.to_owned(), topics.clone())].into(),
            ..self.delays_of(queue).unwrap_or_default()
        })
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
            ..Self::default()
        });
        let delays = self.delays.keys().filter_map(|queue| self.delays_of(queue));
        topics.chain(queues).chain(delays)
    }

    /// The exchanges that are published to.
    pub(crate) fn exchanges(&self) -> impl Iterator<Item = String> {
        let steps = self.delays.values().flatten();
        let delays = steps.map(|step_ms| delays::name_of(*step_ms));
        self.topics.iter().cloned().chain(delays)
    }

    /// Declares everything, in a pipeline on a channel of its own.
    pub(crate) async fn declare(&self, session: &Arc<Session>) -> Result<(), DeclareError> {
        // Before anything is asked: a name that cannot be is nobody else's trouble.
        let topics = self.topics.iter().map(|topic| exchange(topic));
        let topics = topics.collect::<Result<Vec<_>, _>>()?;
        let queues = self.queues.iter();
        let queues = queues.map(|(name, topics)| queue_with_dead_letters(name, topics));
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        let delays = self.parts_of_delays()?;

        let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
        let mut asked = Asked::on(&channel);
        for topic in &topics {
            asked.ask(topic, format!("topic `{}`", topic.exchange));
        }
        for part in queues.iter().flatten().chain(&delays) {
            asked.ask_for(part);
        }
        asked.all_answered().await
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

/// Looks whether there is an exchange for `topic`, of whatever type.
pub(crate) async fn find_topic(session: &Arc<Session>, topic: &str) -> Result<(), DeclareError> {
    let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
    let passive = ExchangeDeclare {
        passive: true,
        ..exchange(topic)?
    };
    channel.call(&passive).await?;
    Ok(())
}

/// Why a declaration failed.
#[derive(Debug)]
pub(crate) enum DeclareError {
    /// What is wrong with a name.
    Name(String),
    Closed {
        what: String,
        closed: Closed,
    },
}

impl DeclareError {
    /// True if the connection was lost, so that it can be tried on the next one.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self, Self::Closed { closed, .. } if closed.is_connection)
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::Name(reason) => TransportError::fatal(reason),
            Self::Closed { what, closed } if closed.passes() => TransportError::temporary(format!(
                "{what} could not be declared: {}",
                closed.reason
            )),
            Self::Closed { what, closed } => {
                let advice = match closed.code {
                    reply::PRECONDITION_FAILED => {
                        "it exists but differs; delete it (after draining it), or give this one \
                         another name"
                    }
                    reply::ACCESS_REFUSED => {
                        "grant the user of the broker's URL the permission to configure, write \
                         and read it"
                    }
                    reply::RESOURCE_LOCKED => "another connection has it for itself",
                    _ => "the broker refused",
                };
                TransportError::fatal(format!(
                    "{what} could not be declared: {advice} (the broker said: {})",
                    closed.reason
                ))
            }
        }
    }
}

impl From<Closed> for DeclareError {
    fn from(closed: Closed) -> Self {
        Self::Closed {
            what: "a topic or queue".into(),
            closed,
        }
    }
}

/// What was asked for on a channel, and is still to be answered.
struct Asked<'a> {
    channel: &'a Channel,
    answers: Vec<(String, Result<Answer, Closed>)>,
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
        self.answers.push((what, self.channel.request(method)));
    }

    fn ask_for(&mut self, part: &Part) {
        match part {
            Part::Exchange(it) => self.ask(it, format!("exchange `{}`", it.exchange)),
            Part::Queue(it) => self.ask(it, format!("queue `{}`", it.queue)),
            Part::Binding(it) => {
                let what = format!("the binding of queue `{}` to `{}`", it.queue, it.exchange);
                self.ask(it, what);
            }
        }
    }

    async fn all_answered(self) -> Result<(), DeclareError> {
        for (what, answer) in self.answers {
            let answer = match answer {
                Ok(answer) => self.channel.answer(answer).await,
                Err(closed) => Err(closed),
            };
            answer.map_err(|closed| DeclareError::Closed { what, closed })?;
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
    Ok(ExchangeDeclare {
        exchange: checked_name("topic", topic, ShortStr::BYTES_MAX)?,
        kind: ShortStr::from_static("fanout"),
        durable: true,
        ..ExchangeDeclare::default()
    })
}

/// A queue, its dead letters (first: it refers to them), and its bindings.
fn queue_with_dead_letters(
    name: &str,
    topics: &BTreeSet<String>,
) -> Result<Vec<Part>, DeclareError> {
    let dead = dead_letter_queue(name);
    let queue = checked_name("queue", name, NAME_BYTES_MAX)?;
    let declare = |queue: ShortStr, arguments: Table| {
        Part::Queue(QueueDeclare {
            queue,
            durable: true,
            arguments,
            ..QueueDeclare::default()
        })
    };
    let mut parts = vec![
        declare(
            checked_name("queue", &dead, ShortStr::BYTES_MAX)?,
            Table::default(),
        ),
        declare(queue.clone(), dead_letters_to(&dead)),
    ];
    for topic in topics {
        parts.push(Part::Binding(QueueBind {
            queue: queue.clone(),
            exchange: checked_name("topic", topic, ShortStr::BYTES_MAX)?,
            ..QueueBind::default()
        }));
    }
    Ok(parts)
}

/// Through the default exchange, so that nothing else has to be declared.
fn dead_letters_to(queue: &str) -> Table {
    [
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", queue),
    ]
    .into_iter()
    .map(|(name, value)| (ShortStr::from_static(name), Value::from(value)))
    .collect()
}
