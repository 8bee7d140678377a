//! How one handler is run, where it differs from the others of its router.

use std::{num::NonZeroU16, time::Duration};

#[allow(unused_imports, reason = "named in the docs")]
use crate::Router;
use crate::{Message, Retry, SLOT_COUNT, Sends};

/// How one handler is run, where it differs from the others of its router; for
/// [`Router::on_with`].
#[derive(Debug, Clone, Default)]
pub struct HandlerOptions {
    pub(crate) retry: Option<Retry>,
    pub(crate) concurrency: Option<NonZeroU16>,
    pub(crate) batch_max: Option<NonZeroU16>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) partitions: Option<NonZeroU16>,
    pub(crate) after_dead_letter: Option<AfterDeadLetter>,
    pub(crate) is_unsubscribed: bool,
    pub(crate) emits: Vec<Sends>,
    pub(crate) skip_replayed: bool,
    /// It takes batches of steps, and answers each: what starts sagas that are steps of others does.
    pub(crate) answers_steps: bool,
    /// It does nothing but write, as what takes answers to steps of sagas: so it may run in vain, and its
    /// messages need not be asked about before.
    pub(crate) only_writes: bool,
}

/// What becomes of the later messages of a key when one of them is a dead letter, at a consumer that
/// asks for order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterDeadLetter {
    /// They are handled without it.
    #[default]
    Pass,
    /// They stay parked until it is redriven and handled, or discarded.
    Park,
}

impl HandlerOptions {
    /// Like the others of its router.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Router::retry`], for this handler.
    pub fn retry(mut self, policy: Retry) -> Self {
        self.retry = Some(policy);
        self
    }

    /// As [`Router::concurrency`], for this handler.
    ///
    /// # Panics
    ///
    /// As [`Router::concurrency`].
    #[track_caller]
    pub fn concurrency(mut self, messages: u16) -> Self {
        self.concurrency = Some(concurrency_checked(messages));
        self
    }

    /// How many messages a handler that takes a [`Batch`](crate::Batch) gets at once at most (default
    /// 64). Its [`concurrency`](Self::concurrency) is twice that by default, so that the next batch
    /// gathers while one runs.
    ///
    /// # Panics
    ///
    /// When it is not between 1 and 1000; and in [`Router::on_with`] when the handler takes one
    /// message.
    #[track_caller]
    pub fn batch_max(mut self, messages: u16) -> Self {
        let max = NonZeroU16::new(messages).filter(|messages| messages.get() <= BATCH_MAX);
        self.batch_max = Some(max.expect("`batch_max` is between 1 and 1000"));
        self
    }

    /// As [`Router::attempt_timeout`], for this handler.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// As [`Router::ordered`], for this handler: its messages are an ordered group of their own.
    ///
    /// # Panics
    ///
    /// As [`Router::ordered`].
    #[track_caller]
    pub fn ordered(mut self, partitions: u16) -> Self {
        self.partitions = Some(partitions_checked(partitions));
        self
    }

    /// As [`Router::after_dead_letter`], for this handler.
    pub fn after_dead_letter(mut self, then: AfterDeadLetter) -> Self {
        self.after_dead_letter = Some(then);
        self
    }

    /// As [`Router::unsubscribed`], for this handler.
    pub fn unsubscribed(mut self) -> Self {
        self.is_unsubscribed = true;
        self
    }

    /// Says that this handler also sends `M` otherwise than by returning it: through a
    /// [`Producer`](crate::Producer), say, which no type shows. Its topic is declared, and the
    /// [event map](crate::event_map) shows it.
    pub fn emits<M: Message>(mut self) -> Self {
        self.emits.push(Sends::of::<M>().maybe());
        self
    }

    /// Passes over events that are sent again out of a log ([`replay`](crate::replay)): for a handler
    /// whose effects are meant for the moment at which something happens, a mail or a call. They are
    /// acknowledged, and counted as `skipped`.
    pub fn skip_replayed(mut self) -> Self {
        self.skip_replayed = true;
        self
    }

    /// These, and where they say nothing, what `defaults` say; except for the group, which handlers
    /// of their own share with no other.
    pub(crate) fn or(&self, defaults: &Self) -> Self {
        Self {
            retry: self.retry.clone().or_else(|| defaults.retry.clone()),
            concurrency: self.concurrency.or(defaults.concurrency),
            batch_max: self.batch_max,
            attempt_timeout: self.attempt_timeout.or(defaults.attempt_timeout),
            partitions: self.partitions,
            after_dead_letter: self.after_dead_letter.or(defaults.after_dead_letter),
            is_unsubscribed: self.is_unsubscribed || defaults.is_unsubscribed,
            emits: Vec::new(), // They stand in the route.
            skip_replayed: self.skip_replayed,
            answers_steps: self.answers_steps,
            only_writes: self.only_writes,
        }
    }

    /// Those of what starts and leads sagas.
    pub(crate) fn of_sagas() -> Self {
        Self {
            only_writes: true,
            batch_max: Some(SAGAS_BATCH_MAX),
            ..Self::default()
        }
    }

    pub(crate) fn answering_steps() -> Self {
        Self {
            answers_steps: true,
            ..Self::of_sagas()
        }
    }
}

#[track_caller]
fn concurrency_checked(messages: u16) -> NonZeroU16 {
    NonZeroU16::new(messages)
        .filter(|messages| messages.get() <= CONCURRENCY_MAX)
        .expect("`concurrency` is between 1 and 16383")
}

#[track_caller]
fn partitions_checked(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count)
        .filter(|count| count.get() <= SLOT_COUNT)
        .expect("`ordered` takes 1 to 64 partitions")
}

/// A broker counts what is out in 16 bits, and four times as many are fetched ahead.
const CONCURRENCY_MAX: u16 = u16::MAX / 4;

/// How many messages of sagas share a commit. More than in other batches: their handlers await nothing
/// but the database, so what a message costs is mostly its share of the commit.
const SAGAS_BATCH_MAX: NonZeroU16 = NonZeroU16::new(128).unwrap();

/// Each message of a batch that fails is tried again.
const BATCH_MAX: u16 = 1000;
