//! Queues: what they were declared with, their backlog, and the line of their consumers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::backlog::Backlog;
use crate::slab::Key;
use crate::{
    ConnectionId, Counters, NAME_BYTES_MAX, QueueDeclare, QueueId, QueueStats, Refusal, ReplyCode,
    Table, Value,
};

/// The longest time to live, as RabbitMQ has it.
const MILLISECONDS_MAX: i64 = 4_294_967_295;
/// How often a message in a quorum queue may come back, unless the queue says otherwise.
const QUORUM_DELIVERY_LIMIT: u32 = 20;

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    pub(crate) name: Bytes,
    pub(crate) durable: bool,
    pub(crate) owner: Option<ConnectionId>,
    pub(crate) auto_delete: bool,
    pub(crate) arguments: Table,
    pub(crate) rules: Rules,
    pub(crate) backlog: Backlog,
    /// The bindings that lead here: source and key.
    pub(crate) incoming: BTreeSet<(Key, Bytes)>,
    /// Every consumer, in order of arrival.
    pub(crate) consumers: BTreeMap<u64, Key>,
    /// Consumers that may have room, best priority first, whoever waited longest first. One that is
    /// gone may still stand there until it is its turn, or until those are half of them.
    pub(crate) line: BTreeMap<Reverse<i32>, VecDeque<Key>>,
    /// How many of them are gone.
    pub(crate) gone_in_line: usize,
    /// The one that gets everything, if the queue wants a single active consumer.
    pub(crate) active: Option<Key>,
    /// One consumer asked to be the only one.
    pub(crate) exclusive_consumer: bool,
    pub(crate) unacked: u64,
    pub(crate) delivered: u64,
    pub(crate) counters: Counters,
    /// When it was last declared, fetched from or left by a consumer.
    pub(crate) last_used: u64,
    /// When the broker will look at it next.
    pub(crate) timer: Option<u64>,
    /// Messages were asked of the store, and have not come.
    pub(crate) is_fetching: bool,
}

/// What happens when a queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overflow {
    DropHead,
    RejectPublish,
    RejectPublishDlx,
}

/// The arguments of a queue, understood.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) ttl: Option<u64>,
    pub(crate) expires: Option<u64>,
    pub(crate) length_max: Option<u64>,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) overflow: Overflow,
    pub(crate) dead_letter_exchange: Option<Bytes>,
    pub(crate) dead_letter_key: Option<Bytes>,
    pub(crate) single_active: bool,
    pub(crate) priority_max: u8,
    pub(crate) quorum: bool,
    pub(crate) delivery_limit: Option<u32>,
}

impl Queue {
    pub(crate) fn new(
        id: QueueId,
        declare: QueueDeclare,
        owner: Option<ConnectionId>,
        rules: Rules,
        messages_per_piece: usize,
        now: u64,
    ) -> Self {
        Self {
            id,
            name: declare.name,
            durable: declare.durable,
            owner,
            auto_delete: declare.auto_delete,
            arguments: declare.arguments,
            backlog: Backlog::new(rules.priority_max, messages_per_piece),
            rules,
            incoming: BTreeSet::new(),
            consumers: BTreeMap::new(),
            line: BTreeMap::new(),
            gone_in_line: 0,
            active: None,
            exclusive_consumer: false,
            unacked: 0,
            delivered: 0,
            counters: Counters::default(),
            last_used: now,
            timer: None,
            is_fetching: false,
        }
    }

    /// Whether it comes back after a restart: an exclusive queue never does, its connection is gone.
    pub(crate) const fn survives(&self) -> bool {
        self.durable && self.owner.is_none()
    }

    /// Whether `count` messages with `bytes` in their bodies are more than it may hold.
    pub(crate) fn is_over(&self, count: u64, bytes: u64) -> bool {
        let over = |value: u64, max: Option<u64>| max.is_some_and(|max| value > max);
        over(count, self.rules.length_max) || over(bytes, self.rules.bytes_max)
    }

    /// When the message at the head expires or the queue itself does, whichever comes first.
    pub(crate) fn deadline(&self) -> Option<u64> {
        // One that was asked for is looked at when it comes.
        let is_asked_for = self.is_fetching && self.backlog.is_head_away();
        let head = self.backlog.head_expires_at().filter(|_| !is_asked_for);
        let head = head.unwrap_or(u64::MAX);
        let idle = match self.rules.expires {
            Some(expires) if self.consumers.is_empty() => self.last_used.saturating_add(expires),
            _ => u64::MAX,
        };
        let deadline = head.min(idle);
        (deadline != u64::MAX).then_some(deadline)
    }

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats {
            name: self.name.clone(),
            durable: self.durable,
            exclusive: self.owner.is_some(),
            auto_delete: self.auto_delete,
            arguments: self.arguments.clone(),
            consumers: self.consumers.len() as u64,
            ready: self.backlog.len() as u64,
            ready_bytes: self.backlog.bytes(),
            unacked: self.unacked,
            delivered: self.delivered,
            counters: self.counters,
        }
    }

    /// Refuses a declaration that differs from what is there.
    pub(crate) fn check_same(&self, declare: &QueueDeclare, vhost: &str) -> Result<(), Refusal> {
        let what = format!("queue '{}' in vhost '{vhost}'", text(&self.name));
        check_flag("durable", &what, declare.durable, self.durable)?;
        check_flag("auto_delete", &what, declare.auto_delete, self.auto_delete)?;
        let types = [&declare.arguments, &self.arguments].map(|it| it.get(QUEUE_TYPE));
        for (name, _) in ARGUMENTS {
            if *name == QUEUE_TYPE && types.map(is_classic) == [true, true] {
                continue;
            }
            check_argument(name, &what, &declare.arguments, &self.arguments)?;
        }
        Ok(())
    }
}

pub(crate) fn text(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// Refuses a flag that differs from what was declared.
pub(crate) fn check_flag(name: &str, what: &str, new: bool, old: bool) -> Result<(), Refusal> {
    if new == old {
        return Ok(());
    }
    Err(Refusal::precondition(format_args!(
        "inequivalent arg '{name}' for {what}: received '{new}' but current is '{old}'"
    )))
}

/// Refuses an argument that differs from what was declared.
pub(crate) fn check_argument(
    name: &str,
    what: &str,
    new: &Table,
    old: &Table,
) -> Result<(), Refusal> {
    let (new, old) = (new.get(name), old.get(name));
    if new == old {
        return Ok(());
    }
    let show = |value: Option<&Value>| match value {
        None => "none".to_owned(),
        Some(value) => format!("the value '{value}'"),
    };
    Err(Refusal::precondition(format_args!(
        "inequivalent arg '{name}' for {what}: received {} but current is {}",
        show(new),
        show(old)
    )))
}

/// Refuses a name that AMQP has no room for.
pub(crate) fn check_name(what: &str, name: &[u8]) -> Result<(), Refusal> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::precondition(format_args!(
        "invalid {what}: it has {} bytes, at most {NAME_BYTES_MAX} are possible",
        name.len()
    )))
}

/// Refuses arguments that are nested deeper than a store reads back.
pub(crate) fn check_depth(what: &str, arguments: &Table) -> Result<(), Refusal> {
    if arguments.is_within_depth() {
        return Ok(());
    }
    Err(Refusal::precondition(format_args!(
        "invalid arguments for {what}: they are nested deeper than {} levels",
        Table::DEPTH_MAX
    )))
}

/// A queue of which no type is said is a classic one, as it is on RabbitMQ.
fn is_classic(queue_type: Option<&Value>) -> bool {
    queue_type.is_none_or(|it| matches!(it, Value::Str(word) if word == "classic"))
}

type Check = fn(&Value) -> Result<(), &'static str>;

const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";
const DEAD_LETTER_KEY: &str = "x-dead-letter-routing-key";
const DEAD_LETTER_STRATEGY: &str = "x-dead-letter-strategy";
const QUEUE_TYPE: &str = "x-queue-type";

/// Every argument of a queue that means something, and what it must look like.
const ARGUMENTS: &[(&str, Check)] = &[
    ("x-message-ttl", |v| integer(v, 0, MILLISECONDS_MAX)),
    ("x-expires", |v| integer(v, 1, MILLISECONDS_MAX)),
    ("x-max-length", |v| integer(v, 0, i64::MAX)),
    ("x-max-length-bytes", |v| integer(v, 0, i64::MAX)),
    ("x-overflow", |v| {
        one_of(v, &["drop-head", "reject-publish", "reject-publish-dlx"])
    }),
    (DEAD_LETTER_EXCHANGE, name),
    (DEAD_LETTER_KEY, name),
    (DEAD_LETTER_STRATEGY, |v| {
        one_of(v, &["at-most-once", "at-least-once"])
    }),
    ("x-single-active-consumer", boolean),
    ("x-max-priority", |v| integer(v, 0, 255)),
    ("x-delivery-limit", |v| integer(v, -1, u32::MAX as i64)),
    (QUEUE_TYPE, |v| one_of(v, &["classic", "quorum", "stream"])),
    ("x-queue-mode", |v| one_of(v, &["default", "lazy"])),
    ("x-queue-version", |v| integer(v, 1, 2)),
    ("x-queue-leader-locator", string),
    ("x-quorum-initial-group-size", |v| integer(v, 1, i64::MAX)),
    ("x-consumer-timeout", |_| {
        Err("this broker has no consumer timeouts")
    }),
    ("x-max-age", |_| Err("only streams have it")),
    ("x-stream-max-segment-size-bytes", |_| {
        Err("only streams have it")
    }),
    ("x-stream-filter-size-bytes", |_| {
        Err("only streams have it")
    }),
];

fn integer(value: &Value, min: i64, max: i64) -> Result<(), &'static str> {
    match value {
        Value::Int(value) if (min..=max).contains(value) => Ok(()),
        Value::Int(_) if min > 0 => Err("it must be positive and not too large"),
        Value::Int(_) => Err("it must not be negative or too large"),
        _ => Err("it must be an integer"),
    }
}

fn string(value: &Value) -> Result<(), &'static str> {
    if matches!(value, Value::Str(_)) {
        Ok(())
    } else {
        Err("it must be a string")
    }
}

/// What is to become an exchange's name or a routing key on the wire.
pub(crate) fn name(value: &Value) -> Result<(), &'static str> {
    const TOO_LONG: &str = "it must have at most 255 bytes";
    const { assert!(NAME_BYTES_MAX == 255) }
    string(value)?;
    match value {
        Value::Str(name) if name.len() > NAME_BYTES_MAX => Err(TOO_LONG),
        _ => Ok(()),
    }
}

fn boolean(value: &Value) -> Result<(), &'static str> {
    if matches!(value, Value::Bool(_)) {
        Ok(())
    } else {
        Err("it must be a boolean")
    }
}

fn one_of(value: &Value, words: &[&str]) -> Result<(), &'static str> {
    match value {
        Value::Str(word) if words.iter().any(|known| word == known) => Ok(()),
        Value::Str(_) => Err("it has none of the values that are known"),
        _ => Err("it must be a string"),
    }
}

/// The arguments that cannot be accepted: name, and why.
fn faults(arguments: &Table) -> impl Iterator<Item = (&'static str, &'static str)> {
    ARGUMENTS.iter().filter_map(|(name, check)| {
        let why = check(arguments.get(name)?).err()?;
        Some((*name, why))
    })
}

impl Rules {
    /// Understands the arguments of a queue, or says which one is wrong.
    pub(crate) fn of(declare: &QueueDeclare, vhost: &str) -> Result<Self, Refusal> {
        let arguments = &declare.arguments;
        let what = format!("queue '{}' in vhost '{vhost}'", text(&declare.name));
        let invalid = |name: &str, why: &str| {
            Refusal::precondition(format_args!("invalid arg '{name}' for {what}: {why}"))
        };
        check_name("name of a queue", &declare.name)?;
        if let Some((name, why)) = faults(arguments).next() {
            return Err(invalid(name, why));
        }
        check_depth(&what, arguments)?;
        if matches!(arguments.get(QUEUE_TYPE), Some(Value::Str(kind)) if kind == "stream") {
            let why = format_args!("{what}: this broker has no streams; declare a classic queue");
            return Err(Refusal::new(ReplyCode::NotImplemented, why));
        }
        let rules = Self::read(arguments);
        if rules.quorum && (!declare.durable || declare.exclusive) {
            let property = if declare.exclusive {
                "exclusive"
            } else {
                "non-durable"
            };
            let why =
                format_args!("invalid property '{property}' for {what}: it is a quorum queue");
            return Err(Refusal::precondition(why));
        }
        if !rules.quorum && arguments.get(DEAD_LETTER_STRATEGY).is_some() {
            let why = "only quorum queues have it; leave it out, or declare the queue with \
                       x-queue-type: quorum";
            return Err(invalid(DEAD_LETTER_STRATEGY, why));
        }
        if rules.dead_letter_key.is_some() && rules.dead_letter_exchange.is_none() {
            let why = "routing_key_but_no_dlx_defined: it needs x-dead-letter-exchange";
            return Err(invalid(DEAD_LETTER_KEY, why));
        }
        Ok(rules)
    }

    /// Understands the arguments of a queue that a store brought back. What an earlier version
    /// accepted and this one does not is left aside, so that the queue and its messages are kept;
    /// gives the names of such arguments, and why.
    pub(crate) fn restored(arguments: &Table) -> (Self, Vec<(&'static str, &'static str)>) {
        let faults: Vec<_> = faults(arguments).collect();
        let mut understood = arguments.clone();
        understood
            .0
            .retain(|(name, _)| faults.iter().all(|(faulty, _)| name != faulty));
        (Self::read(&understood), faults)
    }

    /// Reads arguments without faults.
    fn read(arguments: &Table) -> Self {
        let number = |name| match arguments.get(name) {
            Some(Value::Int(value)) => u64::try_from(*value).ok(),
            _ => None,
        };
        let word = |name| match arguments.get(name) {
            Some(Value::Str(value)) => Some(value.clone()),
            _ => None,
        };
        let quorum = word(QUEUE_TYPE).is_some_and(|kind| kind == "quorum");
        Self {
            ttl: number("x-message-ttl"),
            expires: number("x-expires"),
            length_max: number("x-max-length"),
            bytes_max: number("x-max-length-bytes"),
            overflow: match word("x-overflow").as_deref() {
                Some(b"reject-publish") => Overflow::RejectPublish,
                Some(b"reject-publish-dlx") => Overflow::RejectPublishDlx,
                _ => Overflow::DropHead,
            },
            dead_letter_exchange: word(DEAD_LETTER_EXCHANGE),
            dead_letter_key: word(DEAD_LETTER_KEY),
            single_active: arguments.get("x-single-active-consumer") == Some(&Value::Bool(true)),
            priority_max: number("x-max-priority").map_or(0, |max| max as u8),
            quorum,
            delivery_limit: match arguments.get("x-delivery-limit") {
                Some(Value::Int(limit)) => u32::try_from(*limit).ok(),
                _ => quorum.then_some(QUORUM_DELIVERY_LIMIT),
            },
        }
    }
}
