//! Schedules that a program declares, and what becomes of their records when the program starts: a new
//! one is planned, a changed one replaces what was there.
//!
//! What was due before a change is sent as it was. Of several versions of a program that run at the same
//! time, the one that started last decides; a schedule that it does not declare is not touched by it, but
//! fires only where it is declared, and ends when nobody declares it any more (`scheduler.rs`).

use std::{panic::Location, sync::Arc};

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::{Cron, Recurring};
use crate::{
    Commit, Error, Expected, Message, Outgoing, Record, RecordChange, Router, Sends, Store,
    StoreError, publish::Sender,
};

/// A schedule of a router.
#[derive(Clone)]
pub(crate) struct Declared {
    pub(crate) cron: Cron,
    pub(crate) message: Outgoing,
    pub(crate) sender: Sender,
}

impl Router {
    /// Sends `message` again and again, as `cron` says, while an instance of the service runs: each
    /// occurrence once, by whichever instance is first. It needs a store, in which the schedule is a
    /// record. What becomes of occurrences that no instance could send in time, [`Missed`](crate::Missed)
    /// says.
    ///
    /// The message is the same each time but for its id and its time; which occurrence it is, its handler
    /// learns from [`Occurrence`](crate::Occurrence). It has no identity of its own.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// use tidings::{Cron, prelude::*};
    ///
    /// #[derive(Serialize, Deserialize, Command)]
    /// #[command(target = "books")]
    /// struct CloseBooks {}
    ///
    /// async fn close(_: CloseBooks) -> Result<()> { Ok(()) }
    ///
    /// # fn main() -> Result<()> {
    /// let nightly = Cron::new("close-books", "0 3 * * *", "Europe/Berlin")?;
    /// let router = Router::new("books").on(close).schedule(nightly, &CloseBooks {});
    /// # Ok(()) }
    /// ```
    ///
    /// A schedule whose expression, zone, rule or message was changed in the code is replaced when the
    /// service starts. One that was taken out of the code is not sent by programs without it; when nobody
    /// has declared it for an hour after it was due, it ends, and the log says so.
    ///
    /// # Panics
    ///
    /// When the router has a schedule of this name, or the message cannot be encoded; and in
    /// [`serve`](crate::serve) when the router has no store.
    #[track_caller]
    pub fn schedule<M: Message>(mut self, cron: Cron, message: &M) -> Self {
        let name = cron.name();
        assert!(
            !self.schedules.iter().any(|it| it.cron.name() == name),
            "the router `{}` has two schedules with the name `{name}`",
            self.consumer
        );
        let message = Outgoing::new(message)
            .unwrap_or_else(|error| panic!("the schedule `{name}` cannot be made: {error}"));
        self.schedules.push(Scheduled {
            cron,
            message,
            sends: Sends::of::<M>().maybe(),
            location: Location::caller(),
        });
        self
    }

    /// The schedules, as they are sent.
    pub(crate) fn declared(&self) -> impl Iterator<Item = Declared> + '_ {
        self.schedules.iter().map(|scheduled| Declared {
            cron: scheduled.cron.clone(),
            message: scheduled.message.clone(),
            sender: self.sender(),
        })
    }

    /// Takes the schedules of another router.
    #[track_caller]
    pub(crate) fn take_schedules(&mut self, schedules: Vec<Scheduled>) {
        for scheduled in schedules {
            let name = scheduled.cron.name();
            let known = self.schedules.iter().find(|it| it.cron.name() == name);
            if let Some(known) = known {
                panic!(
                    "both routers of `{}` have a schedule `{name}`: at {} and at {}; give one of them \
                     another name",
                    self.consumer, known.location, scheduled.location
                );
            }
            self.schedules.push(scheduled);
        }
    }

    /// Panics if there is no store to keep schedules in.
    #[track_caller]
    pub(crate) fn check_schedules(&self) {
        if let (Some(scheduled), None) = (self.schedules.first(), &self.store) {
            panic!(
                "the schedule `{}` at {} of the router `{}` is a record in a store, and the router has \
                 none; add `.transactional(store)`",
                scheduled.cron.name(),
                scheduled.location,
                self.consumer
            );
        }
    }

    fn sender(&self) -> Sender {
        Sender {
            source: self.consumer.clone(),
            on_send: self.on_send.clone(),
        }
    }
}

/// The schedules of all routers that have the store of this one.
pub(crate) fn declared(routers: &[Router], of: &Router) -> Vec<Declared> {
    let Some(store) = &of.store else {
        return Vec::new();
    };
    let has_it = |it: &&Router| it.store.as_ref().is_some_and(|it| Arc::ptr_eq(it, store));
    let with_it = routers.iter().filter(has_it);
    with_it.flat_map(Router::declared).collect()
}

/// A schedule as a router has it.
pub(crate) struct Scheduled {
    pub(crate) cron: Cron,
    message: Outgoing,
    pub(crate) sends: Sends,
    pub(crate) location: &'static Location<'static>,
}

/// A recurring message of `sender`.
///
/// # Errors
///
/// When `on_send` refuses the message, or there is no further occurrence.
pub(crate) fn recurring(
    cron: Cron,
    mut message: Outgoing,
    sender: &Sender,
    is_declared: bool,
    now: Timestamp,
) -> Result<Recurring, Error> {
    message.envelope.id = None;
    message.envelope.source = sender.source.clone();
    for on_send in &sender.on_send {
        on_send(&mut message)?;
    }
    let name = cron.name().to_owned();
    let declared_by = is_declared.then_some(&*sender.source);
    Recurring::new(cron, message, declared_by, now)
        .ok_or_else(|| Error::msg(format!("the schedule `{name}` has no further occurrence")))
}

impl Declared {
    /// Sees to it that its record is there and says what the program says (if the program `has_started`
    /// just now), and that it is planned by a clock that is right.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub(crate) async fn write_down(
        &self,
        store: &dyn Store,
        has_started: bool,
    ) -> Result<(), StoreError> {
        loop {
            let now = Timestamp::now();
            let cron = self.cron.clone();
            let made = recurring(cron, self.message.clone(), &self.sender, true, now);
            let wanted = match made {
                Ok(wanted) => wanted,
                Err(why) => {
                    error!("the schedule `{}` is not planned: {why}", self.cron.name());
                    return Ok(());
                }
            };
            let id = wanted.record_id();
            let found = store.records().read(std::slice::from_ref(&id)).await?;
            let found = found.into_iter().next().flatten();
            let expected = match &found {
                None => Expected::Nothing,
                Some(record) => Expected::Version(record.version),
            };
            let Some((outbox, next)) = changed(found.as_ref(), wanted, now, has_started) else {
                return Ok(());
            };
            let commit = Commit {
                outbox,
                records: vec![RecordChange {
                    id,
                    expected,
                    value: Some(next.value()),
                }],
                ..Commit::default()
            };
            match store.commit(commit).await {
                Err(error) if error.is_conflict() => {} // Another instance was first: look again.
                committed => return committed.map(drop),
            }
        }
    }
}

/// What is sent and written for a schedule whose record was found so; `None` if it is as it should be.
fn changed(
    found: Option<&Record>,
    wanted: Recurring,
    now: Timestamp,
    has_started: bool,
) -> Option<(Vec<Outgoing>, Recurring)> {
    let name = wanted.state.name.clone();
    let Some(record) = found else {
        // While a program runs, what was cancelled stays so.
        return has_started.then_some((Vec::new(), wanted));
    };
    let mut there = match Recurring::read(&record.value.body) {
        Ok(there) => there,
        Err(why) => {
            warn!("the record of the schedule `{name}` cannot be read and is replaced: {why}");
            return Some((Vec::new(), wanted));
        }
    };
    if has_started && there.state.ended.is_some() {
        info!("the schedule `{name}` had ended and is planned again");
        return Some((Vec::new(), wanted));
    }
    if has_started && !there.is_defined_as(&wanted) {
        info!("the schedule `{name}` was changed and is planned anew");
        let is_due = there.state.planned <= now && there.state.paused.is_none();
        let outbox = match is_due {
            true => there.fire(now),
            false => Vec::new(),
        };
        let mut next = wanted;
        next.state.last = there.state.last;
        next.state.paused = there.state.paused;
        return Some((outbox, next));
    }
    if there.is_far_ahead(now) {
        warn!(
            "the schedule `{name}` was planned for {} by a clock that was ahead, and is planned anew",
            there.state.planned
        );
        there.plan_after(now);
        there.state.last = None;
        return Some((Vec::new(), there));
    }
    if there.state.foreign_since.take().is_some() {
        return Some((Vec::new(), there));
    }
    None
}
