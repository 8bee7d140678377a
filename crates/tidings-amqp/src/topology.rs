//! What exchanges and queues there are for topics and queues, and how they are declared.
//!
//! Topic `T` is the durable fanout exchange `T`. Queue `Q` is durable, bound to the exchanges of
//! its topics, and dead-letters into the durable queue `Q.dead`. A retry of `Q` delayed by `D`
//! waits in the durable queue `Q.retry.D` until its time to live ends, and goes back to `Q`. That is
//! a quorum queue which dead-letters at least once: a classic one on RabbitMQ forgets the message
//! before `Q` has stored it, so that a crash in between loses it. Delays are rounded up to two
//! digits (1 234 ms to 1 300 ms), so that a policy with jitter does not make a queue for every
//! message.

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc, time::Duration};

use tidings_core::{Topology, TransportError, dead_letter_queue};
use tidings_wire::{
    EncodeMethod, ExchangeDeclare, Method, QueueBind, QueueDeclare, ShortStr, ShortStrTooLong,
    Table, Value, reply,
};
use tokio::sync::oneshot;

use crate::session::{Channel, Closed, Quiet, Session};

/// Everything that was declared, to declare it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) topics: BTreeSet<String>,
    /// Queues with their topics.
    pub(crate) queues: BTreeMap<String, BTreeSet<String>>,
    /// Queues in which retries wait, with the queue they go back to and the delay in milliseconds.
    pub(crate) retries: BTreeMap<String, (String, u32)>,
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
            let topics = queue.topics.iter().map(ToString::to_string).collect();
            declared.queues.insert(queue.name.to_string(), topics);
            for &delay in &queue.delays {
                declared.merge(Self::retry(&queue.name, delay).1);
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

    /// The queue where retries of `queue` wait for `delay`.
    pub(crate) fn retry(queue: &str, delay: Duration) -> (String, Self) {
        let delay_ms = round_up(delay);
        let name = format!("{queue}.retry.{delay_ms}");
        let declared = Self {
            retries: [(name.clone(), (queue.to_owned(), delay_ms))].into(),
            ..Self::default()
        };
        (name, declared)
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.topics.extend(other.topics);
        self.retries.extend(other.retries);
        for (queue, topics) in other.queues {
            self.queues.entry(queue).or_default().extend(topics);
        }
    }

    /// Everything about `queue`.
    pub(crate) fn about(&self, queue: &str) -> Option<Self> {
        let topics = self.queues.get(queue)?;
        let retries = self.retries.iter().filter(|(_, (of, _))| of == queue);
        Some(Self {
            topics: topics.clone(),
            queues: [(queue.to_owned(), topics.clone())].into(),
            retries: retries
                .map(|(name, it)| (name.clone(), it.clone()))
                .collect(),
        })
    }

    /// Declares everything, in a pipeline on a channel of its own.
    pub(crate) async fn declare(&self, session: &Arc<Session>) -> Result<(), DeclareError> {
        let channel = Channel::open(session, |_| Box::new(Quiet)).await?;
        let mut answers = Vec::new();
        for topic in &self.topics {
            answers.push(ask(&channel, &exchange(topic)?, || {
                format!("topic `{topic}`")
            })?);
        }
        for (name, topics) in &self.queues {
            let dead = dead_letter_queue(name);
            answers.push(ask(&channel, &queue(&dead, Table::default())?, || {
                format!("queue `{dead}`")
            })?);
            let arguments = dead_letters_to(&dead);
            answers.push(ask(&channel, &queue(name, arguments)?, || {
                format!("queue `{name}`")
            })?);
            for topic in topics {
                let bind = QueueBind {
                    queue: name.as_str().try_into()?,
                    exchange: topic.as_str().try_into()?,
                    ..QueueBind::default()
                };
                answers.push(ask(&channel, &bind, || {
                    format!("the binding of queue `{name}` to topic `{topic}`")
                })?);
            }
        }
        for (name, (back_to, delay_ms)) in &self.retries {
            let declare = queue(name, waits_before(back_to, *delay_ms))?;
            answers.push(ask(&channel, &declare, || format!("queue `{name}`"))?);
        }
        for asked in answers {
            let answer = channel.answer(asked.answer).await;
            answer.map_err(|closed| DeclareError::Closed {
                what: asked.what,
                closed,
            })?;
        }
        Ok(())
    }
}

/// Milliseconds with two digits, not less than `delay` (but for the broker's limit of 49 days).
fn round_up(delay: Duration) -> u32 {
    let mut step = 1;
    let delay_ms = delay.as_micros().div_ceil(1000);
    while delay_ms.div_ceil(step) >= 100 {
        step *= 10;
    }
    u32::try_from(delay_ms.next_multiple_of(step)).unwrap_or(u32::MAX)
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
    Name(ShortStrTooLong),
    Closed { what: String, closed: Closed },
}

impl DeclareError {
    /// True if the connection was lost, so that it can be tried on the next one.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self, Self::Closed { closed, .. } if closed.is_connection)
    }

    pub(crate) fn into_transport(self) -> TransportError {
        match self {
            Self::Name(error) => TransportError::fatal(error.to_string()),
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

impl From<ShortStrTooLong> for DeclareError {
    fn from(error: ShortStrTooLong) -> Self {
        Self::Name(error)
    }
}

struct Asked {
    what: String,
    answer: oneshot::Receiver<Result<Method, Closed>>,
}

fn ask(
    channel: &Channel,
    method: &impl EncodeMethod,
    what: impl FnOnce() -> String,
) -> Result<Asked, DeclareError> {
    let what = what();
    match channel.request(method) {
        Ok(answer) => Ok(Asked { what, answer }),
        Err(closed) => Err(DeclareError::Closed { what, closed }),
    }
}

fn exchange(topic: &str) -> Result<ExchangeDeclare, ShortStrTooLong> {
    Ok(ExchangeDeclare {
        exchange: topic.try_into()?,
        kind: ShortStr::from_static("fanout"),
        durable: true,
        ..ExchangeDeclare::default()
    })
}

fn queue(name: &str, arguments: Table) -> Result<QueueDeclare, ShortStrTooLong> {
    Ok(QueueDeclare {
        queue: name.try_into()?,
        durable: true,
        arguments,
        ..QueueDeclare::default()
    })
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

/// At least once needs `reject-publish`, which says what happens if the queue is limited in length.
fn waits_before(queue: &str, delay_ms: u32) -> Table {
    let safely = [
        ("x-queue-type", Value::from("quorum")),
        ("x-dead-letter-strategy", Value::from("at-least-once")),
        ("x-overflow", Value::from("reject-publish")),
        ("x-message-ttl", Value::I64(delay_ms.into())),
    ];
    let safely = safely.map(|(name, value)| (ShortStr::from_static(name), value));
    dead_letters_to(queue).iter().chain(safely).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_have_two_digits_and_are_never_cut_short() {
        let check = |delay_us: u64, expected: u32| {
            assert_eq!(
                round_up(Duration::from_micros(delay_us)),
                expected,
                "{delay_us}"
            );
        };
        check(1, 1);
        check(5_000, 5);
        check(99_000, 99);
        check(99_001, 100);
        check(100_000, 100);
        check(101_000, 110);
        check(1_000_000, 1_000);
        check(1_234_000, 1_300);
        check(30_000_000, 30_000);
        check(u64::MAX, u32::MAX);
    }
}
