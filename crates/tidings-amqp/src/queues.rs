//! Which type new queues get (decision 0050), and how one is declared that is there with another.
//!
//! By default the virtual host decides, and what promises something of classic queues says `classic`. On a cluster
//! queues are quorum queues: a classic one is on one node, and cannot be used while that is down.
//!
//! A quorum queue is made with a delivery limit that is never reached. One without a limit puts what is given back behind
//! all others, and one that does not say its limit drops on RabbitMQ 4 what was handed out 20 times.

use tidings_wire::{QueueDeclare, Value};

use crate::{
    address::Address,
    parts::{Part, of_type, with_argument},
    session::Closed,
};

/// The type that new queues get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueType {
    Classic,
    Quorum,
}

/// How often a message may be handed out: a thousand times a second for eleven days.
const DELIVERY_COUNT_MAX: i32 = 1_000_000_000;

/// What is made on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Making {
    /// Topics and queues are declared; otherwise it is only looked whether they are there.
    pub(crate) declares: bool,
    /// `None`: what the virtual host has for those that do not say theirs.
    queues: Option<QueueType>,
}

impl Making {
    pub(crate) fn of(address: &Address) -> Self {
        Self {
            declares: address.declares,
            queues: address.queues,
        }
    }

    /// The part as it is made where it is not there yet.
    pub(crate) fn made(&self, part: Part) -> Part {
        match (self.queues, part) {
            // Those that say it already have more to say.
            (Some(QueueType::Quorum), Part::Queue(it)) if type_of(&it) != Some("quorum") => {
                Part::Queue(Kind::Quorum.of(&it))
            }
            (Some(QueueType::Classic), Part::Queue(it)) if type_of(&it).is_none() => {
                Part::Queue(Kind::Classic.of(&it))
            }
            // Letters are to be back in their places after a look, which only classic queues do.
            (_, part) => part,
        }
    }

    /// New queues are quorum queues.
    pub(crate) fn is_quorum(&self) -> bool {
        self.queues == Some(QueueType::Quorum)
    }
}

/// How a queue can be there that a service can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As they are made here.
    Quorum,
    /// Without a limit, or with that of the server.
    ForeignQuorum,
    Classic,
}

impl Kind {
    /// The same queue, of this kind.
    pub(crate) fn of(self, queue: &QueueDeclare) -> QueueDeclare {
        let limit = (self == Self::Quorum).then_some(Value::I32(DELIVERY_COUNT_MAX));
        let queue = with_argument("x-delivery-limit", limit, queue);
        match self {
            Self::Classic => of_type("classic", &queue),
            Self::Quorum | Self::ForeignQuorum => of_type("quorum", &queue),
        }
    }

    /// What may be there, judging by what the broker said, the likeliest first.
    pub(crate) fn likely(closed: &Closed) -> Vec<Self> {
        let said = &closed.reason;
        let current = said.rsplit_once("current is").map_or("", |(_, it)| it);
        match current.contains("'classic'") {
            true => vec![Self::Classic, Self::ForeignQuorum, Self::Quorum],
            false => vec![Self::ForeignQuorum, Self::Quorum, Self::Classic],
        }
    }
}

fn type_of(queue: &QueueDeclare) -> Option<&'static str> {
    let value = queue.arguments.get("x-queue-type")?;
    ["quorum", "classic"]
        .into_iter()
        .find(|it| value.as_str() == Some(it))
}

/// The arguments in which a queue that a service uses may differ from the one that it would make.
pub(crate) const DIFFERING: [&str; 2] = ["'x-queue-type'", "'x-delivery-limit'"];
