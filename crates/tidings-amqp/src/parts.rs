//! What a topology is made of on the broker: exchanges, queues, and what binds them. All of it is
//! durable.

use tidings_wire::{
    ExchangeBind, ExchangeDeclare, QueueBind, QueueDeclare, QueueUnbind, ShortStr, Table, Value,
    reply,
};

use crate::{queues::DIFFERING, session::Closed};

/// An exchange or a queue, or what binds them (or does so no more).
#[derive(Clone)]
pub(crate) enum Part {
    Exchange(ExchangeDeclare),
    Queue(QueueDeclare),
    /// A queue of dead letters, which may be there with another type.
    Letters(QueueDeclare),
    Binding(QueueBind),
    /// From exchange to exchange.
    Link(ExchangeBind),
    Unbinding(QueueUnbind),
}

impl Part {
    /// What asks whether it is there, and changes nothing. `None`: AMQP does not show bindings.
    pub(crate) fn passive(&self) -> Option<Self> {
        match self {
            Self::Exchange(it) => Some(Self::Exchange(ExchangeDeclare {
                passive: true,
                ..it.clone()
            })),
            Self::Queue(it) | Self::Letters(it) => Some(Self::Queue(QueueDeclare {
                passive: true,
                ..it.clone()
            })),
            Self::Binding(_) | Self::Link(_) | Self::Unbinding(_) => None,
        }
    }
}

pub(crate) fn table<const N: usize>(entries: [(&'static str, Value); N]) -> Table {
    let named = entries.map(|(name, value)| (ShortStr::from_static(name), value));
    named.into_iter().collect()
}

pub(crate) fn exchange(
    exchange: ShortStr,
    kind: &'static str,
    arguments: Table,
) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange,
        kind: ShortStr::from_static(kind),
        durable: true,
        arguments,
        ..ExchangeDeclare::default()
    }
}

pub(crate) fn queue(queue: ShortStr, arguments: Table) -> QueueDeclare {
    QueueDeclare {
        queue,
        durable: true,
        arguments,
        ..QueueDeclare::default()
    }
}

/// A queue of dead letters. It is a classic one, whatever type the virtual host gives to others: a
/// quorum queue counts how often a letter was handed out, and on RabbitMQ 4 drops it after 20 times.
pub(crate) fn letters(queue: ShortStr, arguments: Table) -> QueueDeclare {
    of_type("classic", &self::queue(queue, arguments))
}

/// The same queue, of this type.
pub(crate) fn of_type(queue_type: &'static str, queue: &QueueDeclare) -> QueueDeclare {
    with_argument("x-queue-type", Some(Value::from(queue_type)), queue)
}

/// The same queue with this argument, or without one of that name.
pub(crate) fn with_argument(
    name: &'static str,
    value: Option<Value>,
    queue: &QueueDeclare,
) -> QueueDeclare {
    let name = ShortStr::from_static(name);
    let others = queue.arguments.iter().filter(|(other, _)| *other != name);
    let arguments = others.chain(value.map(|value| (name.clone(), value)));
    QueueDeclare {
        arguments: arguments.collect(),
        ..queue.clone()
    }
}

/// True if a declaration was refused because the queue is there with another type, or another delivery limit.
pub(crate) fn is_of_another_type(closed: &Closed) -> bool {
    let differs = |argument: &&str| closed.reason.contains(*argument);
    closed.code == reply::PRECONDITION_FAILED && DIFFERING.iter().any(differs)
}

pub(crate) fn binding(queue: ShortStr, exchange: ShortStr, key: Option<ShortStr>) -> QueueBind {
    QueueBind {
        queue,
        exchange,
        routing_key: key.unwrap_or_default(),
        ..QueueBind::default()
    }
}

pub(crate) fn unbinding(queue: ShortStr, exchange: ShortStr) -> QueueUnbind {
    QueueUnbind {
        queue,
        exchange,
        ..QueueUnbind::default()
    }
}

/// The way from one exchange to another.
pub(crate) fn link(source: ShortStr, destination: ShortStr) -> ExchangeBind {
    ExchangeBind {
        destination,
        source,
        ..ExchangeBind::default()
    }
}
